//! Of routes at one listener the one whose own host name is more specific comes first, whatever their paths and ages (Gateway API:
//! GatewayRouteHostnameIntersectionPrecedence), and what its rules do not match is the other's.

use super::*;

/// The host of a listener, and the host names of an older and of a younger route, which meet there.
const INTERSECTIONS: [(&str, &str, &str); 3] = [
    ("abc.example.com", "hostnames: ['*.example.com']", "hostnames: [abc.example.com]"),
    ("'*.example.com'", "hostnames: ['*.com']", "hostnames: ['*.example.com']"),
    ("abc.example.com", "hostnames: []", "hostnames: ['*.com']"),
];

/// Gateway g of namespace edge with a listener for this host.
fn listener(protocol: &str, host: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: edge}}\nspec: {{gatewayClassName: istio, listeners: [{{name: l, port: 443, hostname: {host}, {protocol}, allowedRoutes: {{namespaces: {{from: All}}}}}}]}}\n---\n"
    )
}

fn route(kind: &str, name: &str, year: u16, hosts: &str, rule: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: a, creationTimestamp: '{year}-01-01T00:00:00Z'}}\nspec: {{parentRefs: [{{name: g, namespace: edge}}], {hosts}, rules: [{{{rule}backendRefs: [{{name: s, port: 80}}]}}]}}\n---\n"
    )
}

/// The rules for a host of the listener, in order: those for requests, else those for connections.
fn rules(text: &str, host: &str) -> Vec<String> {
    let (m, problems) = run(text);
    assert!(problems.is_empty(), "{problems:?}");
    let routes = &m.routes[&format!("~Gateway/edge/g/l/{}", host.trim_matches('\''))];
    let table = routes.producer.as_ref().unwrap();
    let http = table.http.iter().map(|rule| rule.origin.clone());
    http.chain(table.tcp.iter().map(|rule| rule.origin.clone())).collect()
}

#[test]
fn the_more_specific_host_of_a_route_comes_before_its_path_and_age() {
    let http = |path: &str| format!("matches: [{{path: {{type: PathPrefix, value: {path}}}}}], ");
    let grpc = |method: &str| format!("matches: [{{method: {{service: s{method}}}}}], ");
    for (host, wide, narrow) in INTERSECTIONS {
        for (kind, protocol, older, younger) in [
            ("HTTPRoute", "protocol: HTTP", http("/path/prefix"), http("/path")),
            ("GRPCRoute", "protocol: HTTP", grpc(", method: m"), grpc("")),
            ("TLSRoute", "protocol: TLS, tls: {mode: Passthrough}", String::new(), String::new()),
        ] {
            let old = route(kind, "wide", 2024, wide, &older);
            let young = route(kind, "narrow", 2025, narrow, &younger);
            let text = [SHOP, &listener(protocol, host), &old, &young].concat();
            let want = [format!("{kind} a/narrow rule 0"), format!("{kind} a/wide rule 0")];
            assert_eq!(rules(&text, host), want, "{host} {wide} {narrow}");
        }
    }
}

/// Hosts that are as specific decide about nothing: the longer path comes first, then the older route.
#[test]
fn routes_of_one_host_are_in_the_order_of_paths_and_ages() {
    let prefix = |path: &str| format!("matches: [{{path: {{type: PathPrefix, value: {path}}}}}], ");
    let hosts = "hostnames: ['*.example.com']";
    let text = [
        SHOP,
        &listener("protocol: HTTP", "abc.example.com"),
        &route("HTTPRoute", "old", 2023, hosts, &prefix("/p")),
        &route("HTTPRoute", "long", 2025, hosts, &prefix("/p/longer")),
        &route("HTTPRoute", "young", 2024, hosts, &prefix("/p")),
    ]
    .concat();
    let want = ["long", "old", "young"].map(|name| format!("HTTPRoute a/{name} rule 0"));
    assert_eq!(rules(&text, "abc.example.com"), want);
}
