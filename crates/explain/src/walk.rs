//! The way of a call: the questions in the order in which a connection comes to them.

use crate::{
    answer::{Cause, Outcome, ProxyKind, Stage},
    call::Call,
    enter,
    l4::{self, Arriving, step},
    l7,
    parties::{self, PartyError},
    way::Way,
    world::World,
};
use karst_core::Identity;
use karst_manifest::enrol;
use karst_proxy::{
    endpoints::candidates,
    state::{Service, Workload},
};
use karst_ztunnel::plan::{Plan, Refusal, Tunnel};
use std::{net::SocketAddr, sync::Arc};

/// Annotation of pods that a sidecar was injected into.
const SIDECAR: &str = "sidecar.istio.io/status";
/// Label that binds to a waypoint.
const USE_WAYPOINT: &str = "istio.io/use-waypoint";

/// Where the waypoint is, if it is in another namespace.
const WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";

/// The way, without a fix.
pub(crate) fn walk(world: &World, call: &Call) -> Result<Way, PartyError> {
    let source = parties::source(world, call)?;
    let destination = parties::destination(world, call, &source)?;
    let mut way = Way::new(call, source, destination);
    way.parties(world, call);
    match way.source.in_mesh {
        true => way.of_member(world, call),
        false => way.of_outsider(world, call),
    }
    way.finish(call);
    Ok(way)
}

impl Way {
    fn parties(&mut self, world: &World, call: &Call) {
        let workload = self.source.workload.clone();
        let object = l4::pod(world, &workload);
        let why = match (self.source.in_mesh, self.source.assumed) {
            (true, true) => format!("{}: nobody runs as it now; taken for a pod of the mesh", workload.identity),
            (true, false) => format!("{} at {}", workload.identity, self.source.ip),
            (false, _) => format!("{} at {}: it has no identity of the mesh", call.from, self.source.ip),
        };
        self.push(step(Stage::Source, Outcome::Pass, object.clone(), why));
        let to = self.destination.to;
        let (object_of_service, name) = (self.service_object(world), self.destination.name.clone());
        let why = match &self.destination.service {
            Some(service) => {
                let ports: Vec<String> = service.ports.iter().map(|(port, _)| port.to_string()).collect();
                format!("{name} at {to}, ports {}", ports.join(", "))
            }
            None => format!("the address {to}, of no service"),
        };
        self.push(step(Stage::Destination, Outcome::Pass, object_of_service, why));
        let why = match self.source.in_mesh {
            true => "the caller is in the mesh: its connections go to ztunnel".to_string(),
            false => outside_of_mesh(world, &workload),
        };
        self.push(step(Stage::Redirection, Outcome::Pass, object, why));
    }

    /// A caller of the mesh.
    fn of_member(&mut self, world: &World, call: &Call) {
        let to = self.destination.to;
        self.meet(ProxyKind::Ztunnel, &*self.source.workload.node.clone());
        self.unbound(world);
        self.passed_by(world);
        match l4::leaves(world, &self.source, to) {
            Plan::Refuse(refusal) => self.not_sent(world, refusal),
            Plan::Tunnel(Tunnel { peer, waypoint: true, .. }) => {
                let object = l4::pod(world, &peer);
                let why = format!("{} is bound to a waypoint: HBONE to {}", self.destination.name, peer.name);
                self.push(step(Stage::Plan, Outcome::Pass, object, why));
                let name = self.destination.name.clone();
                let (own, ip) = (self.source.workload.identity.clone(), self.source.ip);
                l7::through(world, self, call, &peer, to, (&name, &own, ip));
            }
            Plan::Tunnel(tunnel) => {
                let by_service = self.is_of(tunnel.service.as_deref());
                self.direct(world, call, by_service, (&tunnel.peer, tunnel.target));
            }
            Plan::Plain { to: target, workload: Some(workload), service } => {
                self.direct(world, call, self.is_of(service.as_deref()), (&workload, target));
            }
            Plan::Plain { to, workload: None, .. } => {
                self.push(step(
                    Stage::Plan,
                    Outcome::Pass,
                    None,
                    format!("{to} is nobody's of the mesh: sent as it is"),
                ));
                self.answered();
            }
            Plan::Untold { to, .. } => {
                let why = format!("{to} is in a node's pod range, and no pod is known there: it is held, then refused");
                self.refuse(Stage::Plan, None, why, Cause::NobodyKnown);
            }
            Plan::Resolve(name) => {
                let why =
                    format!("the endpoint is the name {}: it is resolved, then sent as it is", name.workload.hostname);
                self.push(step(Stage::Plan, Outcome::Pass, None, why));
                self.answered();
            }
        }
    }

    /// Is it the service that was called? An endpoint that is written by a Service's address leads to that one.
    fn is_of(&self, chosen: Option<&Service>) -> bool {
        let called = self.destination.service.as_ref();
        chosen.is_some_and(|chosen| called.is_none_or(|called| called.key == chosen.key))
    }

    /// Labels ask for a waypoint, and none is used: policies and routes at it have no effect.
    fn unbound(&mut self, world: &World) {
        // What labels asked for at another time is not known.
        let unbound = self.destination.service.as_ref().filter(|s| !world.is_past && s.waypoints.is_empty());
        let Some(service) = unbound else { return };
        let own = world.objects.service(&service.namespace, &service.name).map(|s| &s.metadata.labels);
        let namespace = world.objects.namespace(&service.namespace).map(|n| &n.metadata.labels);
        let named = [own, namespace].into_iter().flatten().find_map(|labels| labels.get(USE_WAYPOINT));
        let Some(named) = named.filter(|name| *name != "none") else { return };
        let elsewhere = [own, namespace].into_iter().flatten().find_map(|labels| labels.get(WAYPOINT_NAMESPACE));
        let place = elsewhere.map_or(&*service.namespace, String::as_str);
        let object = world.objects.named("Gateway", place, named);
        let is_other = place != &*service.namespace;
        let why = match &object {
            Some(_) if is_other => format!(
                "{USE_WAYPOINT} names {named} of {place}, which has no pod that is ready, or does not take services of {} (allowedRoutes): it is passed by",
                service.namespace
            ),
            Some(_) => format!(
                "{USE_WAYPOINT} names {named}, which has no pod that is ready, or does not take services: it is passed by"
            ),
            None => {
                format!("{USE_WAYPOINT} names {named}, and there is no such Gateway in {place}: no waypoint is used")
            }
        };
        self.push(step(Stage::Waypoint, Outcome::Warn, object, why));
    }

    /// A pod is called by its own address, and the waypoint of its service is not asked.
    fn passed_by(&mut self, world: &World) {
        let to = self.destination.to;
        let by_name = self.destination.service.clone();
        let called = world.mesh.service(to.ip(), &self.source.workload.namespace);
        let Some(pod) = world.mesh.workload(to.ip()).filter(|_| called.is_none()) else { return };
        let mut services = pod.services.iter().filter_map(|(key, _)| world.mesh.services.get(key));
        let bound = services.find(|s| !s.waypoints.is_empty() && pod.waypoint.is_none());
        let Some(bound) = bound.cloned() else { return };
        let object = world.objects.named("Service", &bound.namespace, &bound.name);
        let why = match by_name {
            Some(service) => format!(
                "{} is headless, so its pods are called by their own addresses: its waypoint is passed by",
                service.hostname
            ),
            None => format!(
                "the pod is called by its own address: the waypoint of {} is passed by, with its policies and routes",
                bound.hostname
            ),
        };
        self.push(step(Stage::Waypoint, Outcome::Warn, object, why));
    }

    fn not_sent(&mut self, world: &World, refusal: Refusal) {
        let key = self.destination.service.as_ref().map(|s| s.key.to_string());
        let cause = l4::cause(world, refusal, key.as_deref());
        let object = self.service_object(world);
        self.refuse(Stage::Plan, object, refusal.text(), cause);
    }

    /// From ztunnel to ztunnel, or to who is not in the mesh.
    fn direct(&mut self, world: &World, call: &Call, by_service: bool, one: (&Arc<Workload>, SocketAddr)) {
        let service = self.destination.service.clone().filter(|_| by_service);
        let all = match &service {
            Some(service) => {
                let mesh = l4::mesh_of_call(world, &self.source.workload, self.destination.to);
                let service = mesh.services.get(&service.key).unwrap_or(service);
                candidates(mesh, l4::as_known(mesh, &self.source.workload), service, self.destination.to, &[])
            }
            None => vec![],
        };
        let mut all: Vec<_> = all.into_iter().map(|(w, at, _)| (w, at)).collect();
        if all.is_empty() {
            all.push((one.0.clone(), one.1));
        }
        all.sort_by_key(|(_, at)| *at);
        let key = self.destination.service.as_ref().map(|s| s.key.to_string());
        let why = l4::choice(world, key.as_deref(), all.iter().map(|(w, at)| (&**w, *at)));
        let way = if one.0.hbone { "HBONE from ztunnel to ztunnel, no waypoint" } else { "as it is: not in the mesh" };
        self.push(step(Stage::Plan, Outcome::Pass, None, way));
        self.push(step(Stage::Endpoints, Outcome::Pass, self.service_object(world), why));
        let own = self.source.workload.identity.clone();
        self.come(world, call, all, Some(&own));
    }

    /// To endpoints; at a gateway's pod it goes on. `identity`: what is shown to members of the mesh.
    fn come(&mut self, world: &World, call: &Call, all: Vec<(Arc<Workload>, SocketAddr)>, identity: Option<&Identity>) {
        let mut has_entered = false;
        for (workload, at) in all {
            let by = Arriving { identity: identity.filter(|_| workload.hbone), ip: self.source.ip, weight: 1 };
            let arrived = l4::arrives(world, &workload, at, &by);
            if workload.hbone {
                self.meet(ProxyKind::Ztunnel, &*workload.node);
            }
            let gateway = world
                .gateways()
                .iter()
                .find(|pod| (&pod.workload.namespace, &pod.workload.name) == (&workload.namespace, &workload.name));
            match gateway.filter(|_| arrived.0.allowed) {
                // The pods of a gateway are alike.
                Some(pod) if !has_entered => {
                    enter::enter(world, self, call, pod, at);
                    has_entered = true;
                }
                Some(_) => {}
                None => self.arrived(arrived),
            }
        }
    }

    /// A caller outside: Kubernetes, not the mesh, chooses an endpoint.
    fn of_outsider(&mut self, world: &World, call: &Call) {
        let to = self.destination.to;
        let Some(service) = self.destination.service.clone() else {
            match world.mesh.workload(to.ip()).cloned() {
                Some(workload) => self.direct_plain(world, call, vec![(workload, to)]),
                None => {
                    self.push(step(Stage::Plan, Outcome::Pass, None, format!("{to} is nobody's of the mesh")));
                    self.answered();
                }
            }
            return;
        };
        if !service.waypoints.is_empty() {
            let why =
                "the caller is not in the mesh, so it passes by the waypoint: its policies and routes have no effect";
            self.push(step(Stage::Waypoint, Outcome::Warn, self.service_object(world), why));
        }
        if !service.ports.iter().any(|(port, _)| *port == to.port()) {
            return self.not_sent(world, Refusal::NoPort);
        }
        let all = candidates(&world.mesh, &self.source.workload, &service, to, &[]);
        match all.is_empty() {
            true => self.not_sent(world, Refusal::NoEndpoint),
            false => self.direct_plain(world, call, all.into_iter().map(|(w, at, _)| (w, at)).collect()),
        }
    }

    fn direct_plain(&mut self, world: &World, call: &Call, mut all: Vec<(Arc<Workload>, SocketAddr)>) {
        all.sort_by_key(|(_, at)| *at);
        let key = self.destination.service.as_ref().map(|s| s.key.to_string());
        let why = l4::choice(world, key.as_deref(), all.iter().map(|(w, at)| (&**w, *at)));
        self.push(step(Stage::Plan, Outcome::Pass, None, "plaintext, by Kubernetes' own services"));
        self.push(step(Stage::Endpoints, Outcome::Pass, self.service_object(world), why));
        self.come(world, call, all, None);
    }
}

/// Why the traffic of a workload is not redirected.
pub(crate) fn outside_of_mesh(world: &World, workload: &Workload) -> String {
    let pod = world.objects.pod(&workload.namespace, &workload.name).filter(|_| !world.is_past);
    let Some((_, pod)) = pod else {
        return "the caller is no pod of the mesh: its connections are not redirected".into();
    };
    let namespace = world.objects.namespace(&pod.metadata.namespace);
    match (pod.spec.host_network, enrol::wanted(namespace, pod)) {
        (true, _) => "the caller is on the host network, which is never redirected".into(),
        _ if pod.metadata.annotations.contains_key(SIDECAR) => {
            format!("the caller has a sidecar of Istio ({SIDECAR}), so it is not redirected: restart it without one")
        }
        (_, false) => format!(
            "neither the pod nor the namespace {} has the label istio.io/dataplane-mode=ambient: not redirected",
            pod.metadata.namespace
        ),
        (_, true) => "the pod is not redirected (it has no address yet, or has ended)".into(),
    }
}
