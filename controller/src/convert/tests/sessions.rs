//! Session persistence: what rules and labels become, and who is told which keys.

use super::*;
use karst_api::route as ir;
use karst_manifest::dir::SessionKey;

const KEY: &str = "a/s.a.svc.cluster.local";

fn route(kind: &str, persistence: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: a}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], rules: [{{{persistence}backendRefs: [{{name: s, port: 80}}]}}]}}\n---\n"
    )
}

fn rule(model: &Model) -> &ir::HttpRule {
    &model.routes[KEY].producer.as_ref().unwrap().http[0]
}

#[test]
fn a_rule_binds_its_clients() {
    for kind in ["HTTPRoute", "GRPCRoute"] {
        let persistence = "sessionPersistence: {type: Header, header: {name: X-S}, absoluteTimeout: 1h}, ";
        let (model, problems) = run(&[SHOP, &route(kind, persistence)].concat());
        assert!(problems.is_empty(), "{problems:?}");
        let want = ir::Session {
            name: "x-s".into(),
            in_header: true,
            absolute_ms: 3_600_000,
            scope: format!("{kind} a/r"),
            strict: true,
            ..Default::default()
        };
        assert_eq!(rule(&model).session, Some(want));
        let (model, _) = run(&[SHOP, &route(kind, "")].concat());
        assert_eq!(rule(&model).session, None);
    }
}

#[test]
fn a_rule_whose_session_cannot_be_read_is_not_in_force() {
    let (model, problems) = run(&[SHOP, &route("HTTPRoute", "sessionPersistence: {type: Query}, ")].concat());
    let text = problems[0].to_string();
    assert!(problems.len() == 1 && text.contains("spec.rules[0].sessionPersistence.type: "), "{problems:?}");
    let rule = rule(&model);
    assert_eq!((rule.response.as_ref().map(|r| r.status), &rule.session), (Some(500), &None));
    let written = written(&[SHOP, &route("HTTPRoute", "sessionPersistence: {type: Query}, ")].concat());
    let statuses: String = written.statuses.iter().map(|w| w.status.to_string()).collect();
    assert!(statuses.contains(r#""reason":"UnsupportedValue""#), "{statuses}");
}

#[test]
fn a_service_binds_its_clients_by_its_labels() {
    let service = |labels: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a, labels: {{{labels}}}}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let of = |labels: &str| run(&service(labels)).0.backends.get(KEY).and_then(|backend| backend.session.clone());
    let want = ir::Session { name: "shop".into(), path: "/".into(), ..Default::default() };
    assert_eq!(of("istio.io/persistent-session: shop"), Some(want.clone()));
    let header = ir::Session { name: "x-shop".into(), in_header: true, ..Default::default() };
    assert_eq!(of("istio.io/persistent-session-header: X-Shop"), Some(header));
    assert_eq!(of("app: shop"), None);
    let (model, problems) = run(&service("istio.io/persistent-session-header: Host"));
    assert!(model.backends.is_empty() && problems.len() == 1, "{problems:?}");
    assert!(problems[0].to_string().contains("Service a/s: metadata.labels["), "{problems:?}");
    // Beside what a DestinationRule says, which others share.
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: a}\nspec: {host: '*.a.svc.cluster.local', trafficPolicy: {loadBalancer: {simple: RANDOM}}}\n---\n";
    let other = SHOP.replace("name: s,", "name: t,").replace("10.96.0.1", "10.96.0.2");
    let (model, _) = run(&[&service("istio.io/persistent-session: shop"), other.as_str(), rule].concat());
    assert!(model.backends[KEY].policy.is_some());
    assert_eq!(model.backends[KEY].session, Some(want.clone()));
    assert_eq!(model.backends["a/t.a.svc.cluster.local"].session, None);
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: a, labels: {istio.io/persistent-session: shop}}\nspec: {hosts: [e.com], resolution: STATIC, ports: [{number: 80, name: h, protocol: HTTP}], endpoints: [{address: 192.0.2.1}]}\n";
    assert_eq!(run(entry).0.backends["a/e.com"].session, Some(want));
}

/// Gateways have keys only where somebody is bound; those of one gateway have the same, and another's are others.
#[test]
fn the_pods_of_a_gateway_share_its_keys() {
    let gateway = |name: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: a}}\nspec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n---\n"
        )
    };
    let pod = |name: &str, labels: &str, ip: u8| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: a, labels: {{{labels}}}}}\nspec: {{nodeName: n, serviceAccountName: sa}}\nstatus: {{phase: Running, podIPs: [{{ip: 10.0.0.{ip}}}]}}\n---\n"
        )
    };
    let label = |gateway: &str| format!("gateway.networking.k8s.io/gateway-name: {gateway}");
    let all = [
        gateway("w"),
        gateway("v"),
        pod("w1", &label("w"), 1),
        pod("w2", &label("w"), 2),
        pod("v1", &label("v"), 3),
        pod("i1", "istio: ingressgateway", 4),
        pod("i2", "istio: ingressgateway", 5),
        servers("g", &[(80, "*")]),
        SHOP.to_string(),
    ]
    .concat();
    let keys = |more: &str, of: &[u8]| {
        let objects = parse::file("t.yaml".as_ref(), &[all.as_str(), more].concat()).unwrap();
        let session_keys = Arc::new(of.iter().map(|byte| SessionKey([*byte; 32])).collect());
        let objects = objects.into_iter().map(Arc::new).collect();
        let (model, _) = compile(&State { objects, session_keys, ..State::default() }, &mesh());
        ["w1", "w2", "v1", "i1", "i2"].map(|name| {
            let gateway = model.gateways.get(&format!("a/{name}"));
            gateway.map_or(vec![], |g| g.session_keys.iter().map(|key| key.secret.clone()).collect::<Vec<_>>())
        })
    };
    assert!(keys("", &[1, 2]).iter().all(Vec::is_empty), "nobody is bound");
    let bound = route("HTTPRoute", "sessionPersistence: {}, ");
    assert!(keys(&bound, &[]).iter().all(Vec::is_empty), "there are none");
    let by_policy = "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\nmetadata: {name: p, namespace: a}\nspec: {targetRefs: [{group: '', kind: Service, name: s}], sessionPersistence: {}}\n";
    assert!(keys(by_policy, &[1, 2]).iter().all(|keys| keys.len() == 2), "a policy binds, too");
    let [w1, w2, v1, i1, i2] = keys(&bound, &[1, 2]);
    assert_eq!((w1.len(), &w1, &i1), (2, &w2, &i2));
    assert!(w1 != v1 && v1 != i1 && w1 != i1);
    // After a rotation the former one still opens.
    let [after, ..] = keys(&bound, &[3, 1]);
    assert!(after[0] != w1[0] && after[1] == w1[0]);
}
