//! UDP ports of Services. They are told only where there are UDPRoutes: nobody else sends datagrams anywhere.
//!
//! Endpoints are the pods and WorkloadEntries that a Service selects, and, of a Service that selects nothing, the addresses in its
//! EndpointSlices that are no pod's. Gateways are none: what one is sent by a gateway it might send there again, and datagrams have no
//! count of hops that would end that.

use crate::convert::{
    facts::{
        service::{self, udp},
        workload::{is_behind, udp_target_port},
    },
    objects::{Objects, selects},
};
use karst_manifest::kinds::*;

/// UDP ports of a Service on an endpoint: the Service's, and the endpoint's.
pub(crate) type UdpPorts = Vec<(u16, u16)>;

/// Is anything told of UDP?
pub(crate) fn is_used(objects: &Objects<'_>) -> bool {
    !objects.udp_routes.is_empty()
}

/// The UDP ports of a Service, if they are told.
pub(crate) fn numbers(objects: &Objects<'_>, service: &Service) -> Vec<u32> {
    match is_used(objects) {
        true => service.spec.ports.iter().filter(|p| udp(&p.protocol)).map(|p| u32::from(p.port)).collect(),
        false => vec![],
    }
}

fn key(objects: &Objects<'_>, service: &Service) -> String {
    format!("{}/{}", service.metadata.namespace, service::hostname(objects, service))
}

/// The UDP ports of a pod, by the Services that select it.
pub(crate) fn of_pod(objects: &Objects<'_>, pod: &Pod) -> Vec<(String, UdpPorts)> {
    if is_gateway(pod) { vec![] } else { selected(objects, pod) }
}

/// Those of a gateway's pod, which is no endpoint of them.
pub(crate) fn of_gateway(objects: &Objects<'_>, pod: &Pod) -> Vec<(String, UdpPorts)> {
    if is_gateway(pod) { selected(objects, pod) } else { vec![] }
}

/// Is it one of Gateway API? (No other has UDP.)
fn is_gateway(pod: &Pod) -> bool {
    pod.metadata.labels.contains_key(GATEWAY_NAME)
}

fn selected(objects: &Objects<'_>, pod: &Pod) -> Vec<(String, UdpPorts)> {
    if !is_used(objects) {
        return vec![];
    }
    let here = objects.services.get(&*pod.metadata.namespace).into_iter().flatten().filter(|s| is_behind(pod, s));
    let one = |s: &&Service| {
        let ports: UdpPorts = s.spec.ports.iter().filter_map(|p| Some((p.port, udp_target_port(pod, p)?))).collect();
        (!ports.is_empty()).then(|| (key(objects, s), ports))
    };
    here.filter_map(one).collect()
}

/// The same of a WorkloadEntry.
pub(crate) fn of_entry(
    objects: &Objects<'_>,
    namespace: &str,
    labels: &Labels,
    entry: &WorkloadEntrySpec,
) -> Vec<(String, UdpPorts)> {
    if !is_used(objects) {
        return vec![];
    }
    let target = |p: &ServicePort| match &p.target_port {
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(name)) => entry.ports.get(name).copied().unwrap_or(p.port),
        None => entry.ports.get(&p.name).copied().unwrap_or(p.port),
    };
    let selecting = |s: &&&Service| !s.spec.selector.is_empty() && selects(&s.spec.selector, labels);
    let one = |s: &&Service| {
        let own = s.spec.ports.iter().filter(|p| udp(&p.protocol));
        let ports: UdpPorts = own.map(|p| (p.port, target(p))).collect();
        (!ports.is_empty()).then(|| (key(objects, s), ports))
    };
    objects.services.get(namespace).into_iter().flatten().filter(selecting).filter_map(one).collect()
}

/// The same of the endpoints of a slice, which finds ports by the names of the Service's.
pub(crate) fn of_slice(objects: &Objects<'_>, slice: &EndpointSlice, service: &Service) -> Vec<(String, UdpPorts)> {
    if !is_used(objects) {
        return vec![];
    }
    let one = |sp: &ServicePort| {
        let fits =
            |p: &&EndpointPort| p.name.as_deref().unwrap_or("") == sp.name && udp(p.protocol.as_deref().unwrap_or(""));
        let target = match (slice.ports.iter().find(fits)?.port, &sp.target_port) {
            (Some(port), _) => Some(port),
            (None, Some(IntOrString::Int(port))) => Some(*port),
            (None, None) => Some(sp.port),
            (None, Some(IntOrString::String(name))) => name.parse().ok(),
        };
        Some((sp.port, target?))
    };
    let ports: UdpPorts = service.spec.ports.iter().filter(|p| udp(&p.protocol)).filter_map(one).collect();
    if ports.is_empty() { vec![] } else { vec![(key(objects, service), ports)] }
}
