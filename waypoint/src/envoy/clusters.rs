//! Clusters and their endpoints: `proxy-config clusters` and `endpoints`.

use super::{View, routes::config_path};
use karst_proxy::state::{Service, Workload};
use serde_json::{Value, json};
use std::{fmt::Write, net::IpAddr};

/// An endpoint of a cluster.
struct Endpoint<'a> {
    ip: IpAddr,
    port: u16,
    workload: &'a Workload,
}

impl Endpoint<'_> {
    fn address(&self) -> Value {
        json!({ "socket_address": { "address": self.ip.to_string(), "port_value": self.port } })
    }
    fn health(&self) -> &'static str {
        match (self.workload.healthy, self.workload.draining) {
            (true, _) => "HEALTHY",
            (false, true) => "DRAINING",
            (false, false) => "UNHEALTHY",
        }
    }
    fn locality(&self) -> Value {
        let Workload { region, zone, subzone, .. } = self.workload;
        json!({ "region": &**region, "zone": &**zone, "sub_zone": &**subzone })
    }
}

fn endpoints<'a>(view: &'a View<'_>, service: &Service, port: u16, subset: &str) -> Vec<Endpoint<'a>> {
    let mesh = &view.snapshot.mesh;
    let backend = view.snapshot.backends.get(&service.key);
    let labels = backend.and_then(|b| b.subsets.iter().find(|s| s.name == subset)).map(|s| &s.labels);
    let mut out = vec![];
    for (uid, ports) in mesh.endpoints.get(&service.key).into_iter().flatten() {
        let Some(workload) = mesh.workloads.get(uid) else { continue };
        if labels.is_some_and(|wanted| wanted.iter().any(|(name, value)| workload.labels.get(name) != Some(value))) {
            continue;
        }
        let Some((_, target)) = ports.iter().find(|(at, _)| *at == port) else { continue };
        let port = if *target == 0 { port } else { *target };
        out.extend(workload.ips.iter().map(|ip| Endpoint { ip: *ip, port, workload }));
    }
    out
}

/// What a service's port is called by.
struct Cluster<'a> {
    name: String,
    /// The DestinationRule that decides; empty: none.
    rule: &'a str,
    endpoints: Vec<Endpoint<'a>>,
}

/// Every cluster, in order of their services.
fn all<'a>(view: &'a View<'_>) -> Vec<Cluster<'a>> {
    let mut out = vec![];
    for service in view.services() {
        let rule = view.snapshot.backends.get(&service.key).map_or("", |backend| &backend.origin);
        for (port, _) in &service.ports {
            for subset in view.subsets(service) {
                let name = view.cluster_name(service, *port, subset);
                out.push(Cluster { name, rule, endpoints: endpoints(view, service, *port, subset) });
            }
        }
    }
    out
}

/// The section of the dump.
pub fn section(view: &View<'_>) -> Value {
    let one = |Cluster { name, rule, .. }: Cluster<'_>| {
        let mut cluster = json!({
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": name, "type": "EDS",
        });
        if let Some(config) = config_path(rule) {
            cluster["metadata"] = json!({ "filter_metadata": { "istio": { "config": config } } });
        }
        json!({ "cluster": cluster })
    };
    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
        "dynamic_active_clusters": all(view).into_iter().map(one).collect::<Vec<_>>(),
    })
}

/// The section that is there for `?include_eds`.
pub fn endpoints_section(view: &View<'_>) -> Value {
    let endpoint = |endpoint: &Endpoint<'_>| {
        json!({
            "locality": endpoint.locality(),
            "lb_endpoints": [{ "endpoint": { "address": endpoint.address() }, "health_status": endpoint.health() }],
        })
    };
    let one = |Cluster { name, endpoints, .. }: Cluster<'_>| {
        json!({ "endpoint_config": {
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", "cluster_name": name,
            "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        } })
    };
    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump",
        "dynamic_endpoint_configs": all(view).into_iter().map(one).collect::<Vec<_>>(),
    })
}

/// `/clusters?format=json`.
pub fn statuses(view: &View<'_>) -> Value {
    let host = |endpoint: &Endpoint<'_>| json!({ "address": endpoint.address(), "health_status": { "eds_health_status": endpoint.health() } });
    let one = |Cluster { name, endpoints, .. }: Cluster<'_>| {
        json!({
            "name": name, "added_via_api": true,
            "host_statuses": endpoints.iter().map(host).collect::<Vec<_>>(),
        })
    };
    json!({ "cluster_statuses": all(view).into_iter().map(one).collect::<Vec<_>>() })
}

/// `/clusters`, a line for each endpoint.
pub fn text(view: &View<'_>) -> String {
    let mut out = String::new();
    for Cluster { name, endpoints, .. } in all(view) {
        let _ = writeln!(out, "{name}::added_via_api::true");
        for endpoint in endpoints {
            let at = std::net::SocketAddr::new(endpoint.ip, endpoint.port);
            let _ = writeln!(out, "{name}::{at}::health_flags::{}", endpoint.health().to_lowercase());
        }
    }
    out
}
