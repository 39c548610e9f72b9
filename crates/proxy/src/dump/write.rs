//! The lists of `/config_dump`: workloads, services and ranges of pods, as Istio's tools read them (reference ztunnel §4.8), and what
//! else is needed to read them back ([`super::snapshot`]).

use crate::state::{Asked, Endpoints, Gateway, GatewayTo, Mode, Service, Snapshot, Workload};
use karst_api::workload as pb;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The lists, in the order of names.
pub struct Mesh {
    /// By uid.
    pub workloads: Vec<Value>,
    /// By key.
    pub services: Vec<Value>,
    /// By node.
    pub pod_ranges: BTreeMap<String, Vec<String>>,
}

/// What is known of the mesh, as lists.
pub fn mesh(snapshot: &Snapshot) -> Mesh {
    let network = snapshot.network();
    let workloads: BTreeMap<_, _> = snapshot.workloads.iter().map(|(uid, w)| (uid, workload(w, network))).collect();
    let services: BTreeMap<_, _> = snapshot
        .services
        .iter()
        .filter(|(_, one)| !one.is_workload_service())
        .map(|(key, one)| (key, service(one, snapshot.endpoints.get(key), network)))
        .collect();
    let mut pod_ranges: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (node, range) in snapshot.pod_ranges.iter() {
        pod_ranges.entry(node.to_string()).or_default().push(range.to_string());
    }
    Mesh { workloads: workloads.into_values().collect(), services: services.into_values().collect(), pod_ranges }
}

/// What was asked for, of a proxy that is told no more than that: of what is not among these, nothing is known.
pub fn names(asked: &Asked, network: &str) -> Value {
    let mut names: Vec<String> = asked.names().map(|name| name.wire(network)).collect();
    names.sort();
    json!({ "names": names })
}

/// A gateway of our network, as a service's `vips` name it, so that readers find the service by it.
fn gateway(gateway: &Gateway, network: &str) -> Value {
    let destination = match &gateway.to {
        GatewayTo::Service(k) => k.to_string(),
        GatewayTo::Address(a) => format!("{network}/{a}"),
    };
    json!({ "destination": destination, "hboneMtlsPort": gateway.port })
}

fn workload(workload: &Workload, network: &str) -> Value {
    json!({
        "uid": &*workload.uid, "name": &*workload.name, "namespace": &*workload.namespace,
        "workloadIps": workload.ips, "hostname": &*workload.hostname, "network": &*workload.network,
        "protocol": if workload.hbone { "HBONE" } else { "TCP" }, "nativeTunnel": workload.native_tunnel,
        "trustDomain": workload.identity.trust_domain(), "serviceAccount": workload.identity.service_account(),
        "waypoint": workload.waypoint.as_ref().map(|to| gateway(to, network)), "node": &*workload.node,
        "workloadName": &*workload.workload_name, "workloadType": workload.workload_type,
        "canonicalName": &*workload.canonical_name, "canonicalRevision": &*workload.canonical_revision,
        "authorizationPolicies": workload.policies.iter().map(|p| p.to_string()).collect::<Vec<_>>(),
        "dryRunPolicies": workload.dry_runs.iter().map(|p| p.to_string()).collect::<Vec<_>>(),
        "status": if workload.healthy { "Healthy" } else { "Unhealthy" }, "draining": workload.draining,
        "clusterId": &*workload.cluster,
        "locality": { "region": &*workload.region, "zone": &*workload.zone, "subzone": &*workload.subzone },
        "capacity": workload.capacity, "networkMode": if workload.host_network { "HostNetwork" } else { "Standard" },
        "services": workload.services.iter().map(|(k, _)| k.to_string()).collect::<Vec<_>>(),
        "podUid": &*workload.pod_uid, "labels": &*workload.labels,
    })
}

fn service(service: &Service, endpoints: Option<&Endpoints>, network: &str) -> Value {
    let ports = |p: &[(u16, u16)]| p.iter().map(|(a, b)| (a.to_string(), json!(b))).collect::<serde_json::Map<_, _>>();
    let endpoints: BTreeMap<String, Value> = endpoints
        .into_iter()
        .flatten()
        .map(|(u, p)| (u.to_string(), json!({ "workloadUid": &**u, "port": ports(p) })))
        .collect();
    let weighted = |(to, weight): &(Gateway, u32)| {
        let mut one = gateway(to, network);
        one["weight"] = json!(weight);
        one
    };
    let weighted: Vec<Value> = service.waypoints.iter().map(weighted).collect();
    let protocol = |(port, protocol): &(u16, pb::AppProtocol)| (port.to_string(), json!(protocol.as_str_name()));
    let protocols: serde_json::Map<_, _> = service.protocols.iter().map(protocol).collect();
    json!({
        "name": &*service.name, "namespace": &*service.namespace, "hostname": &*service.hostname,
        "vips": service.vips.iter().map(|v| format!("{network}/{v}")).collect::<Vec<_>>(),
        "cidrVips": service.ranges.iter().map(|c| format!("{network}/{c}")).collect::<Vec<_>>(),
        "ports": ports(&service.ports), "endpoints": endpoints,
        "subjectAltNames": service.sans.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "waypoint": service.waypoints.first().map(|(to, _)| gateway(to, network)),
        "weightedWaypoints": weighted, "appProtocols": protocols,
        "grpcWebPorts": service.grpc_web,
        "ingressUseWaypoint": service.ingress_waypoint,
        "loadBalancer": load_balancer(service), "canonical": service.canonical, "private": service.private,
        "sessionAffinitySeconds": service.affinity.map(|t| t.as_secs()),
    })
}

fn load_balancer(service: &Service) -> Value {
    let mode = match service.mode {
        Mode::Any => "Standard",
        Mode::Strict => "Strict",
        Mode::Failover => "Failover",
        Mode::Passthrough => "Passthrough",
    };
    json!({
        "mode": mode, "routingPreferences": service.scopes.iter().map(|x| format!("{x:?}")).collect::<Vec<_>>(),
        "healthPolicy": if service.only_healthy { "OnlyHealthy" } else { "AllowAll" },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::testing;

    #[test]
    fn the_lists_have_istioctls_types() {
        const WEB: &str = "ns/web.ns.svc.cluster.local";
        let web = testing::service("web", "10.96.0.1", &[(80, 8080)]);
        let pod = testing::pod("web-1", "10.0.0.7", &[(WEB, &[(80, 8080)])]);
        let snapshot = testing::snapshot(vec![pod], vec![web]);
        let one = snapshot.workloads.values().next().unwrap();
        let page = workload(one, "net");
        assert_eq!((&page["status"], &page["workloadIps"]), (&json!("Healthy"), &json!(["10.0.0.7"])));
        let page = service(&snapshot.services[WEB], snapshot.endpoints.get(WEB), "net");
        assert_eq!((&page["vips"], &page["ports"]), (&json!(["net/10.96.0.1"]), &json!({ "80": 8080 })));
        let uid = &*one.uid;
        assert_eq!(page["endpoints"], json!({ uid: { "workloadUid": uid, "port": { "80": 8080 } } }));
        // The column WAYPOINT finds the service by one of its vips.
        let to = Gateway { to: GatewayTo::Address("10.96.0.1".parse().unwrap()), port: 15008 };
        assert_eq!(gateway(&to, "net")["destination"], page["vips"][0]);
    }
}
