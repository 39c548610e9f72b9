//! What stands in front of gateways, what is told of clients, and what endpoints are told of them.

use super::*;
use karst_api::route::{ForwardClientCert as Mode, ProxyProtocol, Topology};
use karst_manifest::MeshConfig;

/// What a pod is told with this mesh configuration, and what is wrong.
fn told(config: &str, text: &str, pod: &str) -> (Option<Topology>, Vec<String>) {
    let objects = parse::file("t.yaml".as_ref(), text).unwrap().into_iter().map(Arc::new).collect();
    let mesh_config = Arc::new(MeshConfig::read(config).unwrap());
    let state = State { objects, mesh_config, ..State::default() };
    let (model, problems) = compile(&state, &mesh());
    (model.gateways.get(pod).and_then(|g| g.topology), problems.iter().map(ToString::to_string).collect())
}

const TWO: &str = "defaultConfig: {gatewayTopology: {numTrustedProxies: 2, forwardClientCertDetails: FORWARD_ONLY, proxyProtocol: {}}}";

#[test]
fn a_gateway_is_told_what_stands_in_front_of_it() {
    let mode = |mode: Mode| mode as i32;
    let all = Topology { trusted_proxies: 2, forward_client_cert: mode(Mode::ForwardOnly), proxy_protocol: true };
    let annotated = |text: &str| {
        let annotation = format!("annotations: {{proxy.istio.io/config: '{text}'}}, labels: {{istio: ingressgateway}}");
        INGRESS.replace("labels: {istio: ingressgateway}", &annotation)
    };
    for (config, pod, want) in [
        ("", INGRESS.to_string(), None),
        ("defaultConfig: {gatewayTopology: {}}", INGRESS.to_string(), None),
        (TWO, INGRESS.to_string(), Some(all)),
        (
            "",
            annotated("gatewayTopology: {numTrustedProxies: 1}"),
            Some(Topology { trusted_proxies: 1, ..Default::default() }),
        ),
        // As a whole, in place of that of the mesh.
        (
            TWO,
            annotated("gatewayTopology: {proxyProtocol: {}}"),
            Some(Topology { proxy_protocol: true, ..Default::default() }),
        ),
        (TWO, annotated("gatewayTopology: {}"), None),
        (TWO, annotated("concurrency: 2"), Some(all)),
    ] {
        let (got, problems) = told(config, &[&pod, SHOP, &servers("g", &[(80, "*")])].concat(), "edge/gw");
        assert_eq!((got, problems), (want, vec![]), "{config} {pod}");
    }
    // Whom it was to trust is not known: nobody.
    for text in ["gatewayTopology: [", "gatewayTopology: {forwardClientCertDetails: ALL}"] {
        let (got, problems) = told(TWO, &[&annotated(text), SHOP, &servers("g", &[(80, "*")])].concat(), "edge/gw");
        let closed = Topology { trusted_proxies: 0, forward_client_cert: mode(Mode::Sanitize), proxy_protocol: true };
        assert_eq!(got, Some(closed), "{text}");
        let says = ["Pod edge/gw", "metadata.annotations[proxy.istio.io/config]", "[KARST-0710]"];
        assert!(problems.len() == 1 && says.iter().all(|s| problems[0].contains(s)), "{problems:?}");
    }
}

#[test]
fn a_waypoint_tells_of_callers_where_it_is_asked_to() {
    let waypoint = WAYPOINT.replace("STATUS\n", "");
    let asked = |value: &str| {
        let meta =
            format!("generation: 3, annotations: {{ambient.istio.io/xfcc-include-client-identity: '{value}'}}}}");
        waypoint.replace("generation: 3}", &meta)
    };
    let configured = |text: &str| {
        let infrastructure = format!("infrastructure: {{annotations: {{proxy.istio.io/config: '{text}'}}, labels:");
        waypoint.replace("infrastructure: {labels:", &infrastructure)
    };
    let pod = |annotations: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: w-1, namespace: a, labels: {{gateway.networking.k8s.io/gateway-name: w}}, annotations: {{{annotations}}}}}\nspec: {{nodeName: n}}\nstatus: {{phase: Running, podIPs: [{{ip: 10.0.0.9}}]}}\n---\n"
        )
    };
    let append = "gatewayTopology: {forwardClientCertDetails: APPEND_FORWARD, numTrustedProxies: 1, proxyProtocol: {}}";
    for (gateway, annotations, want) in [
        // The mesh configuration is for gateways.
        (waypoint.clone(), String::new(), None),
        (asked("true"), String::new(), Some((Mode::SanitizeSet, 0))),
        (asked("false"), String::new(), None),
        (configured(append), format!("proxy.istio.io/config: '{append}'"), Some((Mode::AppendForward, 1))),
    ] {
        let (got, problems) = told(TWO, &format!("{gateway}{}", pod(&annotations)), "a/w-1");
        let want = want.map(|(mode, trusted_proxies): (Mode, u32)| Topology {
            trusted_proxies,
            forward_client_cert: mode as i32,
            proxy_protocol: false,
        });
        assert_eq!((got, problems), (want, vec![]), "{gateway}");
    }
}

#[test]
fn an_annotation_that_cannot_be_read_is_told_as_it_is_written() {
    let own = "infrastructure: {annotations: {proxy.istio.io/config: 'gatewayTopology: ['}, labels:";
    let text = WAYPOINT.replace("STATUS\n", "").replace("infrastructure: {labels:", own);
    let all = parse::file("t.yaml".as_ref(), &text).unwrap();
    let karst_manifest::Object::Gateway(gateway) = &all[0].object else { panic!("{text}") };
    let said = of_gateway(gateway);
    let starts = |s: &String| s.starts_with("spec.infrastructure.annotations[proxy.istio.io/config]: cannot be read: ");
    assert!(said.len() == 1 && starts(&said[0]) && code::of(&said[0]).is_some(), "{said:?}");
}

#[test]
fn endpoints_are_told_the_client_where_a_rule_says_so() {
    let rule = |policy: &str| {
        format!(
            "{SHOP}apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: a}}\nspec: {{host: s, trafficPolicy: {policy}, subsets: [{{name: v}}]}}\n"
        )
    };
    for (policy, want) in [
        ("{proxyProtocol: {}}", ProxyProtocol::V1),
        ("{proxyProtocol: {version: V1}}", ProxyProtocol::V1),
        ("{proxyProtocol: {version: V2}, portLevelSettings: [{port: {number: 80}}]}", ProxyProtocol::V2),
        ("{}", ProxyProtocol::NoHeader),
    ] {
        let (m, p) = run(&rule(policy));
        assert!(p.is_empty(), "{p:?}");
        let backend = &m.backends["a/s.a.svc.cluster.local"];
        let all = backend.policy.iter().chain(backend.ports.values()).chain(&backend.subsets[0].policy);
        assert!(all.clone().count() > 1 && all.clone().all(|x| x.proxy_protocol() == want), "{policy}: {backend:?}");
    }
    let (_, p) = run(&rule("{proxyProtocol: {version: V3}}"));
    assert!(p.len() == 1 && p[0].field == "spec.trafficPolicy.proxyProtocol.version", "{p:?}");
}
