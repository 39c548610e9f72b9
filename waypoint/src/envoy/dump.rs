//! The dump as a whole, and who we are.

use super::{View, clusters, listeners, routes, secrets};
use crate::config::Config;
use prost_types::value::Kind;
use serde_json::{Value, json};

/// `/config_dump`, with endpoints if they are asked for (`?include_eds`).
pub fn config_dump(view: &View<'_>, endpoints: bool) -> Value {
    let mut configs = vec![
        json!({
            "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
            "bootstrap": { "node": node(view.config) },
        }),
        clusters::section(view),
        listeners::section(view),
        routes::section(view),
        secrets::section(view),
    ];
    if endpoints {
        configs.push(clusters::endpoints_section(view));
    }
    json!({ "configs": configs })
}

/// `/server_info`.
pub fn server_info(config: &Config, ready: bool) -> Value {
    json!({
        "version": concat!("karst/", env!("CARGO_PKG_VERSION")),
        "state": if ready { "LIVE" } else { "INITIALIZING" },
        "node": node(config),
    })
}

/// `/memory`: what the process has in memory, in bytes, as the kernel counts it; nothing where it does not say.
pub fn memory() -> Value {
    let kib = |key: &str| {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    let bytes = |key: &str| kib(key).map(|kib| (kib * 1024).to_string());
    let all = [("allocated", bytes("RssAnon:")), ("total_physical_bytes", bytes("VmRSS:"))];
    all.into_iter()
        .filter_map(|(key, value)| Some((key.to_string(), value?.into())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Who we say that we are.
fn node(config: &Config) -> Value {
    let node = config.node();
    let texts =
        node.metadata.into_iter().flat_map(|metadata| metadata.fields).filter_map(|(key, value)| match value.kind? {
            Kind::StringValue(text) => Some((key, Value::from(text))),
            _ => None,
        });
    json!({
        "id": node.id, "cluster": node.cluster, "metadata": texts.collect::<serde_json::Map<_, _>>(),
        "user_agent_name": "karst-waypoint",
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::{downstream::gateway::Gateway, route::table::Routes, snapshot::Snapshot};
    use clap::Parser;
    use karst_api::{
        route::{self as ir, text::Kind as Text},
        workload::{GatewayAddress, NamespacedHostname, gateway_address::Destination},
    };
    use karst_core::Identity;
    use karst_proxy::testing::{self, Ca};
    use std::{collections::BTreeMap, sync::Arc};

    const WEB: &str = "ns/web.ns.svc.cluster.local";

    fn config(role: &str) -> Config {
        let args = ["karst-waypoint", "proxy", role, "--pod-name", "w-1", "--pod-namespace", "ns", "--account", "w"];
        Config::parse_from(args)
    }
    fn rule(origin: &str, path: &str, subset: &str) -> ir::HttpRule {
        let path = ir::Text { kind: Some(Text::Segments(path.into())) };
        ir::HttpRule {
            origin: origin.into(),
            r#match: Some(ir::Match { path: Some(path), ..Default::default() }),
            destinations: vec![ir::Destination {
                service: WEB.into(),
                subset: subset.into(),
                weight: 1,
                ..Default::default()
            }],
            ..Default::default()
        }
    }
    fn routes(rules: Vec<ir::HttpRule>) -> Arc<Routes> {
        let table = ir::Table { http: rules, ..Default::default() };
        Arc::new(Routes::new(&ir::Routes { producer: Some(table), ..Default::default() }, None).unwrap())
    }
    /// A service with a waypoint, one pod, and a route to a subset.
    fn snapshot() -> Snapshot {
        let waypoint = Destination::Hostname(NamespacedHostname {
            namespace: "ns".into(),
            hostname: "w.ns.svc.cluster.local".into(),
        });
        let mut web = testing::service("web", "10.96.0.1", &[(80, 8080)]);
        web.waypoint = Some(GatewayAddress { destination: Some(waypoint), hbone_mtls_port: 15008 });
        let pod = testing::pod("web-1", "10.0.0.7", &[(WEB, &[(80, 8080)])]);
        let mesh = testing::snapshot(vec![pod], vec![web]);
        assert!(mesh.services.contains_key(WEB), "the key that the test is about");
        let mut out = Snapshot { mesh, ..Snapshot::new("") };
        out.routes.insert(WEB.into(), routes(vec![rule("VirtualService ns/r http[0]", "/a", "v1")]));
        let subset = ir::Subset {
            name: "v1".into(),
            labels: [("version".to_string(), "v1".to_string())].into_iter().collect(),
            ..Default::default()
        };
        let origin = "DestinationRule ns/d".to_string();
        let backend = ir::Backend { subsets: vec![subset], origin, ..Default::default() };
        out.backends.insert(WEB.into(), Arc::new(backend));
        out
    }
    fn dump(snapshot: &Snapshot, role: &str) -> Value {
        let (config, identity) = (config(role), Identity::new("cluster.local", "ns", "w").unwrap());
        let own = Arc::new(Ca::mint().credentials(&identity));
        let certificates = BTreeMap::from([(identity.clone(), own)]);
        let view = View { config: &config, identity: &identity, snapshot, certificates: &certificates };
        config_dump(&view, true)
    }
    fn section<'a>(dump: &'a Value, kind: &str) -> &'a Value {
        let all = dump["configs"].as_array().unwrap();
        all.iter().find(|section| section["@type"] == format!("type.googleapis.com/envoy.admin.v3.{kind}")).unwrap()
    }
    fn names(list: &Value, pointer: &str) -> Vec<String> {
        list.as_array().unwrap().iter().map(|x| x.pointer(pointer).unwrap().as_str().unwrap().to_string()).collect()
    }

    #[test]
    fn a_waypoints_clusters_routes_and_endpoints_have_istios_names() {
        let dump = dump(&snapshot(), "waypoint");
        let clusters = &section(&dump, "ClustersConfigDump")["dynamic_active_clusters"];
        let (all, v1) = (
            "inbound-vip|80|http|web.ns.svc.cluster.local".to_string(),
            "inbound-vip|80|http/v1|web.ns.svc.cluster.local".to_string(),
        );
        assert_eq!(names(clusters, "/cluster/name"), [all.clone(), v1.clone()]);
        // The column DESTINATION RULE.
        let rule = "/apis/networking.istio.io/v1/namespaces/ns/destination-rule/d";
        assert_eq!(names(clusters, "/cluster/metadata/filter_metadata/istio/config"), [rule, rule]);
        let routes = &section(&dump, "RoutesConfigDump")["dynamic_route_configs"];
        assert_eq!(names(routes, "/route_config/name"), std::slice::from_ref(&all));
        assert_eq!(
            routes[0]["route_config"]["virtual_hosts"],
            json!([{ "name": "inbound|http|80", "domains": ["*"], "routes": [{
                "name": "VirtualService ns/r http[0]",
                "match": { "path_separated_prefix": "/a" },
                "route": { "cluster": v1 },
                "metadata": { "filter_metadata": { "istio": {
                    "config": "/apis/networking.istio.io/v1/namespaces/ns/virtual-service/r",
                } } },
            }] }])
        );
        let endpoints = &section(&dump, "EndpointsConfigDump")["dynamic_endpoint_configs"];
        let of = |at: usize| endpoints[at]["endpoint_config"]["endpoints"].as_array().unwrap().clone();
        assert_eq!(
            of(0)[0]["lb_endpoints"],
            json!([{
                "endpoint": { "address": { "socket_address": { "address": "10.0.0.7", "port_value": 8080 } } },
                "health_status": "HEALTHY",
            }])
        );
        assert!(of(1).is_empty(), "the pod has not the subset's label");
        let listeners = &section(&dump, "ListenersConfigDump")["dynamic_listeners"];
        assert_eq!(names(listeners, "/name"), ["connect_terminate", "main_internal"]);
        let chain = &listeners[1]["active_state"]["listener"]["filter_chains"][0];
        assert_eq!(chain["filter_chain_match"]["destination_port"], 80);
        assert_eq!(chain["filters"][0]["typed_config"]["rds"]["route_config_name"], all);
    }

    #[test]
    fn memory_is_counted_in_bytes() {
        let page = memory();
        let bytes = |key: &str| page[key].as_str().unwrap().parse::<u64>().unwrap();
        assert!(bytes("allocated") > 100_000 && bytes("total_physical_bytes") >= bytes("allocated"), "{page}");
    }

    #[test]
    fn secrets_are_certificates_without_keys() {
        let dump = dump(&snapshot(), "waypoint");
        let secrets = &section(&dump, "SecretsConfigDump")["dynamic_active_secrets"];
        assert_eq!(names(secrets, "/name"), ["default", "ROOTCA"]);
        use base64::{Engine, prelude::BASE64_STANDARD};
        let pem = |pointer: &str, at: usize| {
            let text = secrets[at].pointer(pointer).unwrap().as_str().unwrap();
            String::from_utf8(BASE64_STANDARD.decode(text).unwrap()).unwrap()
        };
        let chain = pem("/secret/tls_certificate/certificate_chain/inline_bytes", 0);
        let root = pem("/secret/validation_context/trusted_ca/inline_bytes", 1);
        for text in [chain, root] {
            assert!(text.starts_with("-----BEGIN CERTIFICATE-----") && !text.contains("KEY"), "{text}");
        }
        assert!(!dump.to_string().contains("private_key"));
    }

    #[test]
    fn a_gateways_listeners_name_their_routes() {
        let mut snapshot = snapshot();
        let listener = ir::Listener {
            origin: "Gateway/ns/gw/http".into(),
            routes: "ns/gw/http".into(),
            port: 8080,
            called: 80,
            hosts: vec!["*.example.com".into()],
            ..Default::default()
        };
        let gateway = Gateway::new(&ir::Gateway { listeners: vec![listener], ..Default::default() }).unwrap();
        snapshot.gateway = Some(Arc::new(gateway));
        let http = routes(vec![rule("HTTPRoute ns/r rule 0", "/", "")]);
        snapshot.hosts.insert("ns/gw/http/a.example.com".into(), http);
        let dump = dump(&snapshot, "router");
        let listener = &section(&dump, "ListenersConfigDump")["dynamic_listeners"][0]["active_state"]["listener"];
        assert_eq!(listener["address"]["socket_address"]["port_value"], 8080);
        let filter = &listener["filter_chains"][0]["filters"][0];
        assert_eq!(filter["name"], "envoy.filters.network.http_connection_manager");
        let name = filter["typed_config"]["rds"]["route_config_name"].as_str().unwrap();
        let config = &section(&dump, "RoutesConfigDump")["dynamic_route_configs"][0]["route_config"];
        assert_eq!(config["name"], name);
        let host = &config["virtual_hosts"][0];
        assert_eq!((&host["name"], &host["domains"]), (&json!("a.example.com:80"), &json!(["a.example.com"])));
        assert_eq!(host["routes"][0]["match"], json!({ "prefix": "/" }));
        assert_eq!(host["routes"][0]["route"], json!({ "cluster": "outbound|80||web.ns.svc.cluster.local" }));
    }
}
