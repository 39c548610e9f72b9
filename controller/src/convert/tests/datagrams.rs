//! UDP: listeners, routes, and who may have datagrams.

use super::*;

const GATEWAY_POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: gw, namespace: edge, labels: {gateway.networking.k8s.io/gateway-name: g}}\nspec: {nodeName: n}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.9}], conditions: [{type: Ready, status: 'True'}]}\n---\n";
/// A member; its container has the name of the port twice.
const SERVER: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: d, namespace: a, labels: {app: dns}, annotations: {ambient.istio.io/redirection: enabled}}\nspec: {nodeName: n, serviceAccountName: sa, containers: [{name: c, ports: [{name: dns, containerPort: 8053}, {name: dns, containerPort: 5353, protocol: UDP}]}]}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'True'}]}\n---\n";
const DNS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: dns, namespace: a}\nspec: {clusterIP: 10.96.0.1, selector: {app: dns}, ports: [{name: tcp, port: 53, targetPort: dns}, {name: udp, port: 53, protocol: UDP, targetPort: dns}, {name: web, port: 80}]}\n---\n";
const KEY: &str = "a/dns.a.svc.cluster.local";

fn gateway(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: edge}}\nspec: {{gatewayClassName: istio, listeners: [{listeners}]}}\n---\n"
    )
}

/// A listener that takes routes of all namespaces.
fn listener(name: &str, port: u16, protocol: &str) -> String {
    format!("{{name: {name}, port: {port}, protocol: {protocol}, allowedRoutes: {{namespaces: {{from: All}}}}}}")
}

fn route(meta: &str, parent: &str, backends: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: UDPRoute\nmetadata: {{namespace: a, {meta}}}\nspec: {{parentRefs: [{parent}], rules: [{{backendRefs: [{backends}]}}]}}\n---\n"
    )
}

const TO_GATEWAY: &str = "{name: g, namespace: edge}";

/// Type, status and reason of each of these conditions.
fn reasons(of: &serde_json::Value) -> Vec<String> {
    let all = of["conditions"].as_array().unwrap().iter();
    all.map(|c| format!("{} {} {}", c["type"], c["status"], c["reason"]).replace('"', "")).collect()
}

/// What is said of the only parent of a route.
fn said(text: &str) -> (Vec<String>, String) {
    let w = written(text);
    let status = &w.statuses.iter().find(|s| s.to.kind == "UDPRoute").unwrap().status;
    let parents = status["parents"].as_array().unwrap();
    assert_eq!(parents.len(), 1, "{status}");
    let messages: Vec<&str> =
        parents[0]["conditions"].as_array().unwrap().iter().map(|c| c["message"].as_str().unwrap()).collect();
    (reasons(&parents[0]), messages.join("; "))
}

/// A number is a port of TCP and one of UDP; two of UDP conflict.
#[test]
fn listeners_are_told_apart_by_number_and_protocol() {
    let listeners = [listener("tcp", 53, "TCP"), listener("udp", 53, "UDP")].join(", ");
    let text = [GATEWAY_POD, &gateway(&listeners)].concat();
    let (m, p) = run(&text);
    assert!(p.is_empty(), "{p:?}");
    let told = &m.gateways["edge/gw"];
    assert_eq!(told.listeners.iter().map(|l| (l.port, l.protocol)).collect::<Vec<_>>(), [(53, 3)]);
    assert_eq!(
        told.udp.iter().map(|l| (l.port, l.called, &*l.origin)).collect::<Vec<_>>(),
        [(53, 0, "Gateway/edge/g/udp")]
    );
    let status = |text: &str| {
        let w = written(text);
        w.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status["listeners"].clone()
    };
    let all = status(&text);
    for (index, kind) in ["TCPRoute", "UDPRoute"].into_iter().enumerate() {
        assert_eq!(all[index]["supportedKinds"][0]["kind"], kind);
        assert_eq!(reasons(&all[index])[0], "Accepted True Accepted");
    }
    let again = gateway(&[listeners, listener("again", 53, "UDP")].join(", "));
    let all = status(&[GATEWAY_POD, &again].concat());
    let accepted = [0usize, 1, 2].map(|index| reasons(&all[index])[0].clone());
    let conflict = "Accepted False HostnameConflict";
    assert_eq!(accepted, ["Accepted True Accepted", conflict, conflict]);
    let (m, _) = run(&[GATEWAY_POD, &again].concat());
    assert_eq!(m.gateways["edge/gw"].udp.len(), 0);
    // The pod listens where its Service sends what comes by the protocol.
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: g-istio, namespace: edge}\nspec: {clusterIP: 10.96.0.9, selector: {gateway.networking.k8s.io/gateway-name: g}, ports: [{name: u, port: 53, protocol: UDP, targetPort: 5300}, {name: t, port: 53, targetPort: 5301}]}\n---\n";
    let (m, p) = run(&[text.as_str(), service].concat());
    assert!(p.is_empty(), "{p:?}");
    let told = &m.gateways["edge/gw"];
    assert_eq!((told.listeners[0].port, told.listeners[0].called), (5301, 53));
    assert_eq!((told.udp[0].port, told.udp[0].called), (5300, 53));
}

/// Each backend that cannot be loses its own share; the oldest route comes first.
#[test]
fn routes_lead_to_udp_ports() {
    const OTHER: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: other, namespace: b}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 53, protocol: UDP}]}\n---\n";
    const GRANT: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: r, namespace: b}\nspec: {from: [{group: gateway.networking.k8s.io, kind: UDPRoute, namespace: a}], to: [{group: '', kind: Service}]}\n---\n";
    let base = [GATEWAY_POD, SERVER, DNS, OTHER, &gateway(&listener("udp", 53, "UDP"))].concat();
    let backends = "{name: dns, port: 53, weight: 70}, {name: dns, port: 80, weight: 1}, {name: gone, port: 53, weight: 2}, {name: other, namespace: b, port: 53, weight: 3}, {name: dns, port: 53, weight: 0}";
    let first = route("name: first, creationTimestamp: '2024'", TO_GATEWAY, backends);
    let second = route("name: second, creationTimestamp: '2025'", TO_GATEWAY, "{name: dns, port: 53}");
    let compiled = |more: &str| {
        let (m, p) = run(&[base.as_str(), &second, &first, more].concat());
        assert!(p.is_empty(), "{p:?}");
        let routes = m.gateways["edge/gw"].udp[0].routes.clone();
        let table = m.routes[&format!("{routes}/*")].producer.clone().unwrap();
        let one = |d: &karst_api::route::Destination| (d.service.clone(), d.port, d.weight, d.refuse_status);
        let shares: Vec<_> = table.tcp[0].destinations.iter().map(one).collect();
        (table.tcp.iter().map(|r| r.origin.clone()).collect::<Vec<_>>(), shares, m)
    };
    let (origins, shares, m) = compiled("");
    assert_eq!(origins, ["UDPRoute a/first rule 0", "UDPRoute a/second rule 0"]);
    let other = "b/other.b.svc.cluster.local";
    let to = |key: &str, port: u32, weight: u32, refuse: u32| (key.to_string(), port, weight, refuse);
    let wanted = [
        to(KEY, 53, 70, 0),
        to("a/dns", 80, 1, 500),
        to("a/gone", 53, 2, 500),
        to(other, 53, 3, 500),
        to(KEY, 53, 0, 0),
    ];
    assert_eq!(shares, wanted);
    assert_eq!(compiled(GRANT).1[3], to(other, 53, 3, 0));
    // The pod's own ports, by the protocol.
    assert_eq!(m.services[KEY].karst_udp_ports, [53]);
    let server = &m.workloads["Kubernetes//Pod/a/d"];
    let udp: Vec<_> = server.karst_udp_services[KEY].ports.iter().map(|p| (p.service_port, p.target_port)).collect();
    assert_eq!(udp, [(53, 5353)]);
    let tcp: Vec<_> = server.services[KEY].ports.iter().map(|p| (p.service_port, p.target_port)).collect();
    assert_eq!(tcp, [(53, 8053), (80, 80)]);
    // Where no route needs them, nothing is told.
    let (m, _) = run(&base);
    assert!(m.services[KEY].karst_udp_ports.is_empty());
    assert!(m.workloads.values().all(|w| w.karst_udp_services.is_empty()));
}

#[test]
fn routes_say_what_became_of_them() {
    let listeners = [listener("udp", 53, "UDP"), listener("web", 80, "HTTP")].join(", ");
    let base = [GATEWAY_POD, SERVER, DNS, &gateway(&listeners)].concat();
    let good = "{name: dns, port: 53}";
    let of = |parent: &str, backends: &str| said(&[base.as_str(), &route("name: r", parent, backends)].concat());
    let is = |accepted: &str, resolved: &str| vec![format!("Accepted {accepted}"), format!("ResolvedRefs {resolved}")];
    let (yes, resolved) = ("True Accepted", "True ResolvedRefs");
    assert_eq!(of(TO_GATEWAY, good).0, is(yes, resolved));
    assert_eq!(of(TO_GATEWAY, "{name: dns, port: 80}").0, is(yes, "False BackendNotFound"));
    assert!(of(TO_GATEWAY, "{name: dns, port: 80}").1.contains("Service a/dns has no UDP port 80 [KARST-0308]"));
    assert_eq!(of(TO_GATEWAY, "{name: gone, port: 53}").0, is(yes, "False BackendNotFound"));
    assert_eq!(of(TO_GATEWAY, "{name: dns, namespace: b, port: 53}").0, is(yes, "False RefNotPermitted"));
    let hostname = "{group: networking.istio.io, kind: Hostname, name: dns.a.svc.cluster.local, port: 53}";
    assert_eq!(of(TO_GATEWAY, hostname).0, is(yes, "False InvalidKind"));
    let section = |name: &str| format!("{{name: g, namespace: edge, sectionName: {name}}}");
    assert_eq!(of(&section("udp"), good).0, is(yes, resolved));
    assert_eq!(of(&section("web"), good).0, is("False NotAllowedByListeners", resolved));
    assert_eq!(of(&section("none"), good).0, is("False NoMatchingParent", resolved));
    // The mesh carries none; and what a route is attached to grants nothing.
    let service = "{group: '', kind: Service, name: dns}";
    let (reasons, why) = of(service, good);
    assert_eq!(reasons, is("False NoMatchingParent", resolved));
    assert!(why.contains("a UDPRoute cannot be attached to Service a/dns"), "{why}");
    let of_others = format!("{TO_GATEWAY}, {{group: '', kind: Service, name: dns, namespace: b}}");
    let other = DNS.replace("namespace: a", "namespace: b");
    let own = route("name: r", &of_others, "{name: dns, namespace: b, port: 53}");
    let (m, _) = run(&[base.as_str(), &other, &own].concat());
    let routes = &m.gateways["edge/gw"].udp[0].routes;
    let rule = &m.routes[&format!("{routes}/*")].producer.as_ref().unwrap().tcp[0];
    assert_eq!(rule.destinations[0].refuse_status, 500);
    assert!(!m.routes.keys().any(|k| k.contains("dns.")), "no service has rules for datagrams");
}

/// Nothing carries an identity with datagrams: who asks for one gets none, and it is told.
#[test]
fn who_asks_for_an_identity_is_closed() {
    let base = [
        GATEWAY_POD,
        SERVER,
        DNS,
        &gateway(&listener("udp", 53, "UDP")),
        &route("name: r", TO_GATEWAY, "{name: dns, port: 53}"),
    ]
    .concat();
    let peer = |namespace: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let policy = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: ap, namespace: a}}\nspec: {spec}\n"
        )
    };
    let strict = "{mtls: {mode: STRICT}}";
    let by_port = |mode: &str, port: &str, own: &str| {
        peer(
            "a",
            &format!(
                "{{selector: {{matchLabels: {{app: dns}}}}, mtls: {{mode: {mode}}}, portLevelMtls: {{{port}: {{mode: {own}}}}}}}"
            ),
        )
    };
    let principal = "rules: [{from: [{source: {principals: ['*']}}]}]";
    for (more, closed) in [
        (String::new(), ""),
        (peer("a", strict), "STRICT"),
        (peer("istio-system", strict), "STRICT"),
        (peer("other", strict), ""),
        (by_port("STRICT", "5353", "PERMISSIVE"), ""),
        (by_port("STRICT", "8053", "PERMISSIVE"), "STRICT"),
        (by_port("PERMISSIVE", "5353", "STRICT"), "STRICT"),
        (policy(&format!("{{action: ALLOW, {principal}}}")), "none of which allows"),
        (policy("{action: ALLOW, rules: [{to: [{operation: {ports: ['5353']}}]}]}"), ""),
        (policy("{action: ALLOW, rules: [{to: [{operation: {ports: ['8053']}}]}]}"), "none of which allows"),
        (policy("{action: DENY, rules: [{from: [{source: {notPrincipals: [x]}}]}]}"), "AuthorizationPolicy a/ap"),
        (policy(&format!("{{action: DENY, {principal}}}")), ""),
        // Who may have which address is not known here.
        (policy("{action: ALLOW, rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]}"), "none of which allows"),
        (policy("{action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]}"), "AuthorizationPolicy a/ap"),
        (
            policy(
                "{action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}], to: [{operation: {ports: ['8053']}}]}]}",
            ),
            "",
        ),
        (policy("{selector: {matchLabels: {app: other}}, action: ALLOW}"), ""),
        (policy("{action: NONSENSE, rules: [{}]}"), "AuthorizationPolicy a/ap"),
    ] {
        let text = [base.as_str(), more.as_str()].concat();
        let (m, p) = run(&text);
        let port = m.workloads["Kubernetes//Pod/a/d"].karst_udp_services[KEY].ports[0].clone();
        assert_eq!(port.closed.is_empty(), closed.is_empty(), "{more}: {}", port.closed);
        assert!(port.closed.contains(closed), "{more}: {}", port.closed);
        let told: Vec<_> = p.iter().filter(|p| p.field == "spec.rules[0].backendRefs[0]").collect();
        assert_eq!(told.len(), usize::from(!closed.is_empty()), "{more}: {p:?}");
        let (reasons, why) = said(&text);
        match closed {
            "" => assert_eq!(reasons, ["Accepted True Accepted", "ResolvedRefs True ResolvedRefs"], "{more}"),
            _ => {
                assert_eq!(reasons, ["Accepted False UnsupportedValue", "ResolvedRefs True ResolvedRefs"], "{more}");
                assert!(why.contains("[KARST-0322]; their datagrams are dropped"), "{why}");
            }
        }
    }
    // Of another namespace's service it is told that it is closed to who may use it, and not by what.
    let foreign = route("name: f", TO_GATEWAY, "{name: dns, namespace: a, port: 53}")
        .replace("namespace: a, name: f", "namespace: b, name: f");
    let grant = "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: r, namespace: a}\nspec: {from: [{group: gateway.networking.k8s.io, kind: UDPRoute, namespace: b}], to: [{group: '', kind: Service}]}\n---\n";
    for (grant, want) in [("", None), (grant, Some("by policies of its namespace"))] {
        let (_, p) = run(&[base.as_str(), &foreign, grant, &peer("a", strict)].concat());
        let told = p.iter().find(|p| p.object.contains("b/f")).map(|p| p.message.clone());
        assert_eq!(told.is_some(), want.is_some(), "{p:?}");
        assert!(told.is_none_or(|text| want.is_some_and(|want| text.contains(want))));
    }
    // One endpoint that is open is enough; a pod that is not captured guards nothing.
    let open = SERVER
        .replace("name: d,", "name: e,")
        .replace("redirection: enabled", "redirection: ''")
        .replace("10.0.0.1", "10.0.0.2");
    let (_, p) = run(&[base.as_str(), &open, &peer("a", strict)].concat());
    assert!(p.is_empty(), "{p:?}");
}

/// What is sent from one to another could be sent back, without end.
#[test]
fn a_gateway_is_no_endpoint_of_datagrams() {
    const ROUND: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: round, namespace: edge}\nspec: {clusterIP: 10.96.0.8, selector: {gateway.networking.k8s.io/gateway-name: g}, ports: [{port: 53, protocol: UDP}]}\n---\n";
    let to_itself = route("name: r", "{name: g}", "{name: round, port: 53}").replace("namespace: a", "namespace: edge");
    let text = [GATEWAY_POD, ROUND, &gateway(&listener("udp", 53, "UDP")), &to_itself].concat();
    let (m, p) = run(&text);
    assert!(m.workloads["Kubernetes//Pod/edge/gw"].karst_udp_services.is_empty());
    let told: Vec<_> = p.iter().filter(|p| p.field == "spec.rules[0].backendRefs[0]").collect();
    assert_eq!(told.len(), 1, "{p:?}");
    assert!(told[0].message.contains("Service edge/round are gateways"), "{p:?}");
    let (reasons, why) = said(&text);
    assert_eq!(reasons, ["Accepted False UnsupportedValue", "ResolvedRefs True ResolvedRefs"]);
    assert!(why.contains("[KARST-0323]; their datagrams are dropped"), "{why}");
    // Another endpoint of the same Service is one.
    let other = "apiVersion: v1\nkind: Pod\nmetadata: {name: d, namespace: edge, labels: {app: dns}}\nspec: {nodeName: n}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'True'}]}\n---\n";
    let both = text.replace("selector: {gateway.networking.k8s.io/gateway-name: g}", "selector: {app: dns}");
    let both = [both.replace("gateway-name: g}}", "gateway-name: g, app: dns}}").as_str(), other].concat();
    let (m, p) = run(&both);
    assert!(p.is_empty(), "{p:?}");
    assert_eq!(m.workloads["Kubernetes//Pod/edge/d"].karst_udp_services.len(), 1);
    assert!(m.workloads["Kubernetes//Pod/edge/gw"].karst_udp_services.is_empty());
}

/// The Service of a Gateway has a port for each number and protocol, and each its own name.
#[test]
fn services_of_gateways_have_udp_ports() {
    let listeners = ["tcp", "udp", "udp.other", "tcp.other"].map(|name| {
        let (port, protocol) = (if name.contains('.') { 54 } else { 53 }, name[..3].to_ascii_uppercase());
        listener(name, port, &protocol)
    });
    let w = written(&gateway(&listeners.join(", ")));
    let (_, service) = w.objects.iter().find(|(r, _)| r.kind == "Service").unwrap();
    let ports = service["spec"]["ports"].as_array().unwrap().iter();
    let ports: Vec<String> = ports
        .map(|p| format!("{} {} {} {}", p["name"], p["port"], p["targetPort"], p["protocol"]).replace('"', ""))
        .collect();
    assert_eq!(
        ports,
        ["status-port 15021 15021 TCP", "tcp 53 53 TCP", "udp 53 53 UDP", "udp-port-54 54 54 UDP", "port-54 54 54 TCP"]
    );
}
