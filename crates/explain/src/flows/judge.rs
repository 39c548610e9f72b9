//! What policies say of a flow that a proxy has noted: ztunnel's of a connection, a waypoint's or gateway's of a request.

use crate::world::World;
use karst_core::Identity;
use karst_flows::{Flow, Reporter, Source};
use karst_policy::{Connection, Verdict, authorize};
use karst_proxy::state::Workload;
use karst_waypoint::decision::{Judged, Noted, Waypoint};
use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

/// What would become of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is let in.
    Allowed,
    /// It is refused, by this DENY policy (`namespace/name`); empty: no ALLOW policy matches.
    Refused(String),
    /// It cannot be said, for this reason.
    Unknown(&'static str),
}

/// Judges flows by the objects of a world.
pub struct Judge<'a> {
    world: &'a World,
    /// The policies of all services.
    services: Waypoint,
    /// The pods of a workload, by its namespace and name, and by their own names.
    workloads: BTreeMap<(&'a str, &'a str), &'a Arc<Workload>>,
    /// Gateways, by the pod of each.
    gateways: RefCell<BTreeMap<String, Waypoint>>,
}

impl<'a> Judge<'a> {
    /// By these objects.
    pub fn new(world: &'a World) -> Self {
        let mut services = Waypoint::new("", "", "");
        world.tell(&mut services);
        let mut pods: Vec<_> = world.mesh.workloads.values().collect();
        // Of several pods the first by name stands for all; one of the mesh before others.
        pods.sort_by_key(|workload| (!workload.hbone, workload.name.clone()));
        let mut workloads = BTreeMap::new();
        for workload in pods {
            workloads.entry((&*workload.namespace, &*workload.workload_name)).or_insert(workload);
            workloads.entry((&*workload.namespace, &*workload.name)).or_insert(workload);
        }
        Self { world, services, workloads, gateways: RefCell::default() }
    }

    /// What becomes of a flow.
    pub fn judge(&self, flow: &Flow) -> Judgement {
        let identity = match &flow.key.source {
            Source::Addresses(_) => None,
            Source::Identity(text) => match text.parse::<Identity>() {
                Ok(identity) => Some(identity),
                Err(_) => return Judgement::Unknown("its caller's identity cannot be read"),
            },
        };
        let key = &flow.key;
        let call = Noted {
            identity: identity.as_ref(),
            from: flow.example.from,
            to: flow.example.to,
            request: (!key.method.is_empty()).then_some((&*key.method, &*flow.example.host, &*flow.example.path)),
            cut: flow.example.cut,
        };
        let judged = match key.reporter {
            Reporter::Ztunnel => return self.connection(flow, identity),
            Reporter::Waypoint if key.destination.service.is_empty() => {
                return Judgement::Unknown("a pod was called by its address through a waypoint");
            }
            Reporter::Waypoint => match self.world.mesh.services.get(key.destination.service.as_str()) {
                None => return Judgement::Unknown("the service is not there any more"),
                Some(service) if service.waypoints.is_empty() => {
                    return Judgement::Unknown("the service has no waypoint any more");
                }
                Some(_) => self.services.noted(&key.destination.service, &call),
            },
            Reporter::Gateway => match self.gateway(flow, &call) {
                Some(judged) => judged,
                None => return Judgement::Unknown("the gateway's pod is not there any more"),
            },
        };
        match judged {
            None => Judgement::Unknown("a policy looks at headers, tokens or names of TLS, which are not noted"),
            Some(Judged::NoPolicies | Judged::Allowed(_)) => Judgement::Allowed,
            Some(Judged::DeniedBy(policy, _)) => Judgement::Refused(policy),
            Some(Judged::NotAllowed) => Judgement::Refused(String::new()),
        }
    }

    /// A pod that stands for those of a flow's workload: the one of the example, if it is there.
    pub fn pod(&self, flow: &Flow) -> Option<&'a Arc<Workload>> {
        let (namespace, workload) = (&*flow.key.destination.namespace, &*flow.key.destination.workload);
        let find = |name| self.workloads.get(&(namespace, name)).copied();
        find(&flow.example.pod).filter(|pod| *pod.workload_name == *workload).or_else(|| find(workload))
    }

    fn connection(&self, flow: &Flow, identity: Option<Identity>) -> Judgement {
        let Some(pod) = self.pod(flow) else { return Judgement::Unknown("no pod of the workload is there any more") };
        if !pod.hbone {
            return Judgement::Unknown("the workload is not in the mesh any more");
        }
        let policies = match self.world.mesh.policies_of(pod) {
            Ok(policies) => policies,
            // It is held, and then refused.
            Err(missing) => return Judgement::Refused(missing.to_string()),
        };
        let check = Connection {
            source_identity: identity,
            source_ip: flow.example.from,
            destination_ip: flow.example.to.ip(),
            destination_port: flow.key.port,
        };
        match authorize(policies.into_iter(), &check) {
            Verdict::Allow => Judgement::Allowed,
            Verdict::DeniedBy(policy, _) => Judgement::Refused(policy.to_string()),
            Verdict::NotAllowed => Judgement::Refused(String::new()),
        }
    }

    /// By a gateway's own policies. None: it is not there.
    fn gateway(&self, flow: &Flow, call: &Noted<'_>) -> Option<Option<Judged>> {
        let pod = self.pod(flow)?;
        let mut all = self.gateways.borrow_mut();
        let told = all.entry(format!("{}/{}", pod.namespace, pod.name)).or_insert_with(|| self.world.waypoint(pod));
        Some(told.noted_here(call))
    }
}
