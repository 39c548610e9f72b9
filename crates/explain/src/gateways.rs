//! Which pods are gateways, and which of them takes a host.

use crate::objects::Objects;
use karst_controller::offline::Compiled;
use karst_manifest::{Object, kinds::GATEWAY_NAME};
use karst_proxy::state::{Snapshot, Workload};
use karst_waypoint::decision::{Listening, Waypoint};
use std::{collections::BTreeMap, sync::Arc};

/// A pod that is a gateway, and what it listens on.
pub(crate) struct GatewayPod {
    pub(crate) workload: Arc<Workload>,
    /// The Gateway that it was deployed for, `Gateway/ns/name`; empty: a label selects it.
    pub(crate) gateway: String,
    pub(crate) listening: Vec<Listening>,
}

/// The listener of a gateway's pod that takes a host.
pub(crate) struct Taken<'a> {
    pub(crate) pod: &'a Arc<Workload>,
    pub(crate) listening: &'a Listening,
}

/// How closely a listener's names fit a host; None: not.
pub(crate) fn fits(listening: &Listening, host: &str) -> Option<usize> {
    let rank = |own: &String| match own.strip_prefix('*') {
        Some("") => Some(0),
        Some(end) => (host.len() > end.len() && host.ends_with(end)).then_some(end.len()),
        None => (own == host).then_some(usize::MAX),
    };
    listening.hosts.iter().filter_map(rank).max()
}

/// All gateways' pods, by name: those that listen on something, and those of a Gateway whose listeners are not in force. `has_keys`:
/// what they are told holds their keys; without these, TLS is taken as good.
pub(crate) fn pods(compiled: &Compiled, has_keys: bool, mesh: &Snapshot, objects: &Objects) -> Vec<GatewayPod> {
    let resources = compiled.resources.iter().filter(|r| r.type_url == karst_api::GATEWAY_TYPE);
    let mut out: BTreeMap<String, GatewayPod> = BTreeMap::new();
    let workload = |name: &str| {
        let mut uids = mesh.by_name.get(name).into_iter().flatten().filter_map(|uid| mesh.workloads.get(uid));
        uids.find(|workload| workload.is_pod()).cloned()
    };
    for (_, pod) in objects.pods() {
        let meta = &pod.metadata;
        let Some(gateway) = meta.labels.get(GATEWAY_NAME) else { continue };
        let located = objects.get("Gateway", &meta.namespace, gateway).map(|o| &o.object);
        let Some(Object::Gateway(found)) = located else { continue };
        let is_waypoint = found.spec.listeners.iter().any(|listener| listener.protocol == "HBONE");
        let name = format!("{}/{}", meta.namespace, meta.name);
        if let (Some(workload), false) = (workload(&name), is_waypoint) {
            let gateway = format!("Gateway/{}/{gateway}", meta.namespace);
            out.insert(name, GatewayPod { workload, gateway, listening: vec![] });
        }
    }
    for resource in resources {
        let Some((namespace, name)) = resource.name.split_once('/') else { continue };
        let mut alone = Waypoint::gateway(namespace, name, "");
        // What is refused is closed, as in the pod.
        let _ = match has_keys {
            true => alone.put(resource.type_url, &resource.name, &resource.bytes),
            false => alone.put_outline(resource.type_url, &resource.name, &resource.bytes),
        };
        let listening = alone.listening();
        let (Some(workload), false) = (workload(&resource.name), listening.is_empty()) else { continue };
        let empty = GatewayPod { workload, gateway: String::new(), listening: vec![] };
        out.entry(resource.name.clone()).or_insert(empty).listening = listening;
    }
    out.into_values().collect()
}

/// Who takes a host that clients outside call, at a port if one is said; of several ports that of TLS.
pub(crate) fn taking<'a>(pods: &'a [GatewayPod], host: &str, port: Option<u16>) -> Option<Taken<'a>> {
    let all = pods.iter().flat_map(|pod| pod.listening.iter().map(move |listening| (pod, listening)));
    let called = all.filter(|(_, listening)| port.is_none_or(|port| listening.called == port));
    let fitting = called.filter_map(|(pod, listening)| Some((pod, listening, fits(listening, host)?)));
    let best = fitting
        .max_by_key(|(pod, listening, rank)| (*rank, listening.has_tls, std::cmp::Reverse(pod.workload.name.clone())));
    best.map(|(pod, listening, _)| Taken { pod: &pod.workload, listening })
}
