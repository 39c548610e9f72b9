//! Which waypoint an object is bound to (reference control-plane §2.6).

use super::Index;
use karst_api::workload::{GatewayAddress, NamespacedHostname, NetworkAddress, gateway_address::Destination};
use karst_core::addr::ip_to_bytes;
use karst_manifest::kinds::{Gateway, Labels};

const USE: &str = "istio.io/use-waypoint";
const USE_NS: &str = "istio.io/use-waypoint-namespace";
const FOR: &str = "istio.io/waypoint-for";
const MANAGED: &str = "gateway.istio.io/managed";
/// HBONE port of waypoints (fixed in Istio).
const PORT: u32 = 15008;

/// What is bound.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    Service,
    Workload,
}

/// The waypoint of an object with these labels, if it has one that is ready and takes this traffic.
pub(crate) fn of(x: &Index<'_>, namespace: &str, labels: &Labels, traffic: Traffic) -> Option<GatewayAddress> {
    if labels.contains_key(MANAGED) {
        return None;
    }
    let ns_labels = x.namespaces.get(namespace).map(|n| &n.metadata.labels);
    // The object's own label counts alone, even if it names a waypoint that is not ready.
    let from = if labels.contains_key(USE) { labels } else { ns_labels? };
    let name = from.get(USE).filter(|n| *n != "none" && !n.is_empty())?;
    let ns = from.get(USE_NS).map_or(namespace, String::as_str);
    let g = x.gateways.get(&(ns, name.as_str()))?;
    takes(g, traffic).then(|| address(x, g)).flatten()
}

fn takes(g: &Gateway, traffic: Traffic) -> bool {
    if !g.spec.gateway_class_name.ends_with("-waypoint") {
        return false;
    }
    let wanted = g.metadata.labels.get(FOR).map_or("service", String::as_str);
    matches!((wanted, traffic), ("all", _) | ("service", Traffic::Service) | ("workload", Traffic::Workload))
}

fn address(x: &Index<'_>, g: &Gateway) -> Option<GatewayAddress> {
    let by_name = g.status.addresses.iter().find(|a| a.kind == "Hostname");
    let destination = match by_name {
        Some(a) => Destination::Hostname(NamespacedHostname {
            namespace: g.metadata.namespace.clone(),
            hostname: a.value.clone(),
        }),
        None => {
            let ip = g.status.addresses.iter().find_map(|a| a.value.parse().ok())?;
            Destination::Address(NetworkAddress {
                network: x.mesh.network.clone(),
                address: ip_to_bytes(ip),
                length: None,
            })
        }
    };
    Some(GatewayAddress { destination: Some(destination), hbone_mtls_port: PORT })
}
