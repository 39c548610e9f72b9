//! Which pods are gateways, and which of them takes a host.

use karst_controller::offline::Compiled;
use karst_proxy::state::{Snapshot, Workload};
use karst_waypoint::decision::{Listening, Waypoint};
use std::sync::Arc;

/// A pod that is a gateway, and what it listens on.
pub(crate) struct GatewayPod {
    pub(crate) workload: Arc<Workload>,
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

/// All gateways' pods, by name.
pub(crate) fn pods(compiled: &Compiled, mesh: &Snapshot) -> Vec<GatewayPod> {
    let resources = compiled.resources.iter().filter(|r| r.type_url == karst_api::GATEWAY_TYPE);
    let mut out = vec![];
    for resource in resources {
        let Some((namespace, name)) = resource.name.split_once('/') else { continue };
        let mut alone = Waypoint::gateway(namespace, name, "");
        // What is refused leaves nothing to listen on, as in the pod.
        let _ = alone.put(resource.type_url, &resource.name, &resource.bytes);
        let listening = alone.listening();
        let uids = mesh.by_name.get(&resource.name).into_iter().flatten();
        let workload = uids.filter_map(|uid| mesh.workloads.get(uid)).find(|w| w.uid.contains("/Pod/"));
        if let (Some(workload), false) = (workload, listening.is_empty()) {
            out.push(GatewayPod { workload: workload.clone(), listening });
        }
    }
    out
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
