//! The objects, compiled, and the proxies that have been told of them.

use crate::{
    answer::{Proxy, ProxyKind},
    gateways::{self, GatewayPod},
    network::NetworkPolicy,
    objects::Objects,
    observed::{Observed, ObservedError},
};
use karst_controller::offline::{self, Compiled, OptionsError, Resource};
use karst_manifest::{Dir, MeshConfig, Object, Problem, State, enrol, mesh_config};
use karst_proxy::{
    state::{Snapshot, Workload},
    xds::ApplyResource,
};
use karst_waypoint::decision::Waypoint;
use karst_ztunnel::mesh_config::OutboundMode;
use serde_json::Value;
use std::{cell::OnceCell, io, path::Path};

/// Objects cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The directory cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// The environment has a bad option of the controller.
    #[error(transparent)]
    Options(#[from] OptionsError),
}

/// The objects, and what proxies make of them.
pub struct World {
    pub(crate) state: State,
    pub(crate) objects: Objects,
    pub(crate) compiled: Compiled,
    /// What each ztunnel knows.
    pub(crate) mesh: Snapshot,
    /// Where pods of the mesh may connect to.
    pub(crate) outbound: OutboundMode,
    /// What Kubernetes lets through.
    pub(crate) network: Vec<NetworkPolicy>,
    gateways: OnceCell<Vec<GatewayPod>>,
    /// What running proxies know, where that is known.
    pub(crate) observed: Observed,
    /// What proxies were told is of another time than the objects.
    pub(crate) is_past: bool,
}

/// Which pods are in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// Those that labels ask for: nobody has enrolled any yet, as in files.
    Expected,
    /// Those that the nodes' agents report by an annotation, as in a Kubernetes cluster.
    Reported,
}

impl World {
    /// Of a directory of manifests.
    ///
    /// # Errors
    /// It cannot be read, or the environment is wrong. What is wrong in the files is in [`World::problems`].
    pub fn read(directory: &Path) -> Result<Self, WorldError> {
        Self::new(Dir::watch(directory)?.read(), Enrolment::Expected)
    }

    /// Of these objects.
    ///
    /// # Errors
    /// The environment has a bad option of the controller.
    pub fn new(mut state: State, enrolment: Enrolment) -> Result<Self, WorldError> {
        let objects = Objects::new(&state);
        let wanted = objects.pods().filter(|(_, pod)| {
            enrolment == Enrolment::Expected
                && enrol::wanted(objects.namespace(&pod.metadata.namespace), pod)
                && !enrol::ips(pod).is_empty()
        });
        state.enrolled.extend(wanted.map(|(_, p)| format!("{}/{}", p.metadata.namespace, p.metadata.name)));
        let compiled = offline::compile(&state)?;
        let mesh = mesh(&compiled.resources, &compiled.root_namespace);
        let outbound = outbound(&objects, &compiled.root_namespace);
        Ok(Self {
            state,
            objects,
            compiled,
            mesh,
            outbound,
            network: vec![],
            gateways: OnceCell::new(),
            observed: Observed::default(),
            is_past: false,
        })
    }

    /// Judges by what proxies were told at another time, in place of what the objects compile to. It has no keys: TLS of listeners is
    /// taken as good. The objects are still asked for names; what they alone say of the call (changes that would help, objects without
    /// effect, NetworkPolicies) is of their time and is left out.
    #[must_use]
    pub fn with_told(mut self, resources: Vec<Resource>) -> Self {
        self.mesh = mesh(&resources, &self.compiled.root_namespace);
        self.compiled = Compiled { resources, problems: vec![], no_effect: vec![], warnings: vec![], ..self.compiled };
        self.network = vec![];
        self.gateways = OnceCell::new();
        self.is_past = true;
        self
    }

    /// With the NetworkPolicies of Kubernetes, which are no objects of the mesh.
    #[must_use]
    pub fn with_network_policies(self, network: Vec<NetworkPolicy>) -> Self {
        Self { network, ..self }
    }

    /// What is wrong with the objects.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.state.problems.iter().chain(&self.compiled.problems)
    }

    /// What the proxies have been told.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// What each ztunnel knows.
    pub fn mesh(&self) -> &Snapshot {
        &self.mesh
    }

    /// A waypoint's pod, told what it would be.
    pub(crate) fn waypoint(&self, pod: &Workload) -> Waypoint {
        self.told(Waypoint::new(&pod.namespace, &pod.name, pod.identity.service_account()), pod)
    }

    /// The proxy of a pod, told what it would be.
    fn told(&self, mut proxy: Waypoint, pod: &Workload) -> Waypoint {
        let name = format!("{}/{}", pod.namespace, pod.name);
        if let Some(observed) = self.observed.proxy(&name) {
            return observed.told_to(proxy);
        }
        if !self.is_past {
            self.tell(&mut proxy);
            return proxy;
        }
        let is_for_it = |r: &&Resource| r.type_url != karst_api::GATEWAY_TYPE || r.name == name;
        for r in self.compiled.resources.iter().filter(is_for_it) {
            // What is refused is in force as the proxy has it in force.
            let _ = proxy.put_outline(r.type_url, &r.name, &r.bytes);
        }
        proxy
    }

    /// Tells a waypoint's pod what it would be told.
    pub(crate) fn tell(&self, waypoint: &mut Waypoint) {
        for r in &self.compiled.resources {
            // What is refused is in force as the proxy has it in force.
            let _ = waypoint.put(r.type_url, &r.name, &r.bytes);
        }
    }

    /// Judges by what the ztunnel of a node knows: its page `/config_dump`. Without a node's name it is taken for the ztunnel of
    /// all nodes.
    ///
    /// # Errors
    /// It is no such page.
    pub fn observe_ztunnel(&mut self, node: &str, page: Value) -> Result<(), ObservedError> {
        self.observed.put_ztunnel(node, page, &self.compiled.root_namespace)
    }

    /// Judges by what a waypoint's or gateway's pod (`namespace/name`) knows: its page `/config_dump/karst?resources`.
    ///
    /// # Errors
    /// It is no such page.
    pub fn observe_proxy(&mut self, pod: &str, page: &Value) -> Result<(), ObservedError> {
        self.observed.put_proxy(pod, page, &self.compiled.root_namespace)
    }

    /// Is it known what this proxy knows?
    pub fn has_observed(&self, proxy: &Proxy) -> bool {
        match proxy.kind {
            ProxyKind::Ztunnel => self.observed.ztunnel(&proxy.name).is_some(),
            ProxyKind::Waypoint | ProxyKind::Gateway => self.observed.proxy(&proxy.name).is_some(),
        }
    }

    /// What the ztunnel of a node knows, as far as it was asked.
    pub(crate) fn mesh_at(&self, node: &str) -> &Snapshot {
        self.observed.ztunnel(node).map_or(&self.mesh, |ztunnel| &ztunnel.mesh)
    }

    /// Where pods of a node may connect to.
    pub(crate) fn outbound_at(&self, node: &str) -> OutboundMode {
        self.observed.ztunnel(node).and_then(|ztunnel| ztunnel.outbound).unwrap_or(self.outbound)
    }

    /// The pods that are gateways.
    pub(crate) fn gateways(&self) -> &[GatewayPod] {
        let has_keys = !self.is_past;
        self.gateways.get_or_init(|| gateways::pods(&self.compiled, has_keys, &self.mesh, &self.objects))
    }

    /// A gateway's pod, told what it would be.
    pub(crate) fn gateway(&self, pod: &Workload) -> Waypoint {
        self.told(Waypoint::gateway(&pod.namespace, &pod.name, pod.identity.service_account()), pod)
    }

    /// The same with other objects.
    pub(crate) fn with(&self, change: impl FnOnce(&mut Vec<Object>)) -> Option<Self> {
        let mut objects: Vec<Object> = self.state.objects.iter().map(|o| o.object.clone()).collect();
        change(&mut objects);
        let located = |object| karst_manifest::parse::Located { object, file: "".into(), line: 0 };
        let objects = objects.into_iter().map(|o| std::sync::Arc::new(located(o))).collect();
        let enrolled = self.state.enrolled.clone();
        // The agents follow a change of labels.
        let changed = Self::new(State { objects, enrolled, ..State::default() }, Enrolment::Expected).ok()?;
        Some(Self { network: self.network.clone(), ..changed })
    }
}

/// What a ztunnel subscribes.
const ZTUNNEL: &[&str] = &[karst_api::AUTHORIZATION_TYPE, karst_api::POD_RANGES_TYPE, karst_api::ADDRESS_TYPE];

/// What a ztunnel makes of what it is told.
fn mesh(resources: &[Resource], root_namespace: &str) -> Snapshot {
    let mut mesh = Snapshot::new("").with_root(root_namespace);
    for r in resources.iter().filter(|r| ZTUNNEL.contains(&r.type_url)) {
        // What is refused leaves what was, as in the proxy.
        let _ = mesh.put(r.type_url, &r.name, &r.bytes);
    }
    mesh
}

/// Istio's `outboundTrafficPolicy`, of ConfigMap `istio` in the mesh's own namespace. What cannot be read changes nothing.
fn outbound(objects: &Objects, root: &str) -> OutboundMode {
    let Some(Object::ConfigMap(map)) = objects.get("ConfigMap", root, "istio").map(|o| &o.object) else {
        return OutboundMode::default();
    };
    let text = map.data.get(mesh_config::KEY).map_or("", String::as_str);
    match MeshConfig::read(text).map(|config| config.outbound_traffic_policy.mode) {
        Ok(mode) if mode == "REGISTRY_ONLY" => OutboundMode::RegistryOnly,
        Ok(_) | Err(_) => OutboundMode::AllowAny,
    }
}
