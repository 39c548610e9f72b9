//! What a change costs: what is not compiled anew is the same thing in memory, not only an equal one.

use super::*;
use std::fmt::Write as _;

fn state(old: &State, text: &str) -> State {
    // As from the API server: what has not changed is the same object.
    let new = |o: Located| {
        let same = old.objects.iter().find(|p| p.object == o.object);
        same.cloned().unwrap_or_else(|| Arc::new(Located { line: 0, ..o }))
    };
    let objects = parse::file("t.yaml".as_ref(), text).unwrap().into_iter().map(new).collect();
    State { objects, ..State::default() }
}

fn services(namespaces: usize, each: usize) -> String {
    let mut out = String::new();
    for n in 0..namespaces {
        for s in 0..each {
            let _ = writeln!(
                out,
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s{s}, namespace: ns{n}}}\nspec: {{clusterIP: 10.96.{n}.{s}, ports: [{{name: http, port: 80}}]}}\n---"
            );
        }
    }
    out
}

fn rule(n: usize, host: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: ns{n}}}\nspec: {{host: '{host}', trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL}}}}, subsets: [{{name: v{n}}}]}}\n{more}---\n"
    )
}

fn route(name: &str, host: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: ns0}}\nspec: {{hosts: [{host}], http: [{{route: [{{destination: {{host: {host}}}}}]}}]}}\n{more}---\n"
    )
}

fn distinct(m: &Model) -> usize {
    m.backends.values().map(Arc::as_ptr).collect::<std::collections::HashSet<_>>().len()
}

/// The usual rule for mTLS, one in each namespace: as many backends as namespaces, however many services, and none anew while
/// only routes change.
#[test]
fn rules_are_compiled_once_for_services_that_are_alike() {
    let rules: String = (0..4).map(|n| rule(n, "*.local", "")).collect();
    let base = services(4, 10) + &rules;
    let mut c = Compiler::new(mesh());
    let first = state(&State::default(), &base);
    c.update(&first);
    let before = c.model().clone();
    assert_eq!((before.backends.len(), distinct(&before)), (40, 4));
    // Each client's own namespace decides, then the service's.
    let one = &before.backends["ns1/s3.ns1.svc.cluster.local"];
    let clients: Vec<_> = one.clients.iter().map(|c| (c.namespace.as_str(), c.subsets[0].name.as_str())).collect();
    assert_eq!(one.subsets[0].name, "v1");
    assert_eq!(clients, [("ns0", "v0"), ("ns2", "v2"), ("ns3", "v3")]);
    let second = state(&first, &(base.clone() + &route("r", "s1", "")));
    assert_eq!(c.update(&second), Change::Everything);
    let same = |a: &Model, b: &Model| a.backends.iter().filter(|(k, v)| Arc::ptr_eq(v, &b.backends[*k])).count();
    assert_eq!(same(&before, c.model()), 40, "a route decides about none of them");
    // A rule of its own for one service: it is alone, and the others are still alike.
    let own = rule(2, "s7", "").replace("name: d,", "name: own,").replace("name: v2", "name: mine");
    let third = state(&second, &(base + &own));
    c.update(&third);
    assert_eq!(distinct(c.model()), 5);
    let one = &c.model().backends["ns2/s7.ns2.svc.cluster.local"];
    assert_eq!((one.subsets[0].name.as_str(), one.clients.len()), ("mine", 3));
}

/// A service that only its own namespace knows is nothing to rules of others.
#[test]
fn rules_of_others_are_not_for_private_services() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: ns0}\nspec: {hosts: [e.example.com], EXPORT resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}\n---\n";
    let rules: String = (0..2).map(|n| rule(n, "*.example.com", "")).collect();
    let clients = |export: &str| {
        let (m, _) = run(&(entry.replace("EXPORT", export) + &rules));
        m.backends["ns0/e.example.com"].clients.len()
    };
    assert_eq!((clients(""), clients("exportTo: ['.'],")), (1, 0));
}

/// Statuses that we write come back as changes: nothing is compiled for them.
#[test]
fn what_objects_are_told_compiles_nothing() {
    let told = "status: {conditions: [{type: ResolvedRefs, status: 'False', reason: HostNotFound}]}\n";
    let text = |more: &str, other: &str| {
        services(1, 3) + &route("a", "s1", more) + &route("b", "s2", "") + &rule(0, "*.local", more) + other
    };
    let mut c = Compiler::new(mesh());
    let first = state(&State::default(), &text("", ""));
    c.update(&first);
    let before = c.model().clone();
    let second = state(&first, &text(told, ""));
    let seen = (c.update(&second), c.was_whole(), c.was_told());
    assert_eq!(seen, (Change::Nothing, false, true));
    // What was compiled of the objects before is theirs now.
    let third = state(&second, &text(told, &route("c", "s0", "")));
    let seen = (c.update(&third), c.was_whole(), c.was_told());
    assert_eq!(seen, (Change::Everything, true, false));
    for service in ["s1", "s2"] {
        let key = format!("ns0/{service}.ns0.svc.cluster.local");
        assert!(Arc::ptr_eq(&before.routes[&key], &c.model().routes[&key]), "{key}");
        assert!(Arc::ptr_eq(&before.backends[&key], &c.model().backends[&key]), "{key}");
    }
    // A change of what it says is one.
    let edited = text(told, "").replacen("hosts: [s1]", "hosts: [s2]", 1);
    assert_eq!(c.update(&state(&third, &edited)), Change::Everything);
}

/// A rollout, or a StatefulSet: pods that the same Gateways and Services select share virtual hosts.
#[test]
fn pods_of_a_gateway_share_its_virtual_hosts() {
    let text = |pods: &[&str]| {
        let mut out = String::from(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: ns0}\nspec: {selector: {app: in}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: in, namespace: ns0}\nspec: {clusterIP: 10.96.1.1, selector: {app: in}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: ns0}\nspec: {hosts: [a.com], gateways: [g], http: [{route: [{destination: {host: in}}]}]}\n---\n",
        );
        for (i, hash) in pods.iter().enumerate() {
            let _ = writeln!(
                out,
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{hash}, namespace: ns0, labels: {{app: in, pod-template-hash: '{hash}'}}}}\nspec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.0.0.{i}}}\n---"
            );
        }
        out
    };
    let hosts = |m: &Model| -> Vec<(String, Arc<karst_api::route::Routes>)> {
        let all = m.routes.iter().filter(|(k, _)| k.starts_with(VIRTUAL));
        all.map(|(k, r)| (k.clone(), r.clone())).collect()
    };
    let mut c = Compiler::new(mesh());
    let mut now = State::default();
    let mut before: Option<(String, Arc<karst_api::route::Routes>)> = None;
    for pods in [&["1"][..], &["1", "2"], &["2"]] {
        now = state(&now, &text(pods));
        c.update(&now);
        let found = hosts(c.model());
        let [(name, one)] = &found[..] else { panic!("{found:?}") };
        let kept = before.is_none_or(|(n, r)| n == *name && Arc::ptr_eq(&r, one));
        assert!(kept, "{pods:?}: neither renamed nor converted again");
        before = Some((name.clone(), one.clone()));
    }
}

/// What was found before an edit is not said of what is there now.
#[test]
fn findings_of_another_generation_are_not_written() {
    let text = |generation: i64, host: &str| {
        let object = route("r", host, "").replace("name: r,", &format!("name: r, generation: {generation},"));
        state(&State::default(), &(services(1, 1) + &object))
    };
    let template = Template { image: "hub/waypoint:1".into(), pull_policy: "Never".into(), ..Template::default() };
    let (broken, edited) = (text(6, "none"), text(7, "s0"));
    let found = findings(&broken, &compile(&broken, &mesh()).0, &mesh());
    let written = |state: &State| -> Vec<i64> {
        let all = written_with(state, &template, Some(&found)).statuses;
        let of = all.iter().filter(|w| w.to.kind == "VirtualService");
        of.map(|w| w.status["conditions"][0]["observedGeneration"].as_i64().unwrap()).collect()
    };
    assert_eq!(written(&broken), [6]);
    assert_eq!(written(&edited), Vec::<i64>::new());
}

/// Two who say different things of one object do not take each other's word away.
#[test]
fn conditions_of_others_stay() {
    let others = "status: {conditions: [{type: Reconciled, status: 'True', reason: Ok, lastTransitionTime: t}]}\n";
    let policy = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: ns0}}\nspec: {{}}\n{others}---\n"
    );
    let entry = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: ns0}}\nspec: {{hosts: [e.com], exportTo: ['.'], resolution: DNS, ports: [{{number: 80, name: http, protocol: HTTP}}]}}\n{others}---\n"
    );
    for (kind, text) in [
        ("VirtualService", route("r", "none", others)),
        ("DestinationRule", rule(0, "none", others)),
        ("AuthorizationPolicy", policy),
        ("ServiceEntry", entry),
    ] {
        let w = written(&text);
        let of = |w: &&Write| w.to.kind == kind && w.status.get("conditions").is_some();
        let all = w.statuses.iter().find(of).unwrap().status["conditions"].as_array().unwrap().clone();
        let kinds: Vec<_> = all.iter().map(|c| c["type"].as_str().unwrap()).collect();
        assert!(kinds.len() == 2 && kinds[1] == "Reconciled" && all[1]["lastTransitionTime"] == "t", "{kind}: {all:?}");
    }
}

/// A route decides about what it is for, and nothing else is compiled for it: not even the pods that have changed meanwhile decide
/// otherwise.
#[test]
fn an_edit_of_a_route_compiles_what_it_is_for() {
    let pod = |n: usize, ready: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}, namespace: ns0, uid: u{n}, labels: {{app: a}}}}\nspec: {{nodeName: n}}\nstatus: {{phase: Running, podIPs: [{{ip: 10.0.0.{n}}}], conditions: [{{type: Ready, status: '{ready}'}}]}}\n---\n"
        )
    };
    let http = |path: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: h, namespace: ns0}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s3}}], rules: [{{matches: [{{path: {path}}}], backendRefs: [{{name: s3, port: 80}}]}}]}}\n---\n"
        )
    };
    let text = |ready: &str, routes: &str| services(1, 5) + &pod(1, ready) + &pod(2, "True") + routes;
    let mut c = Compiler::new(mesh());
    let mut last =
        state(&State::default(), &text("True", &(route("a", "s1", "") + &route("b", "s2", "") + &http("{value: /x}"))));
    c.update(&last);
    let (a, b) = (|| route("a", "s1", ""), |host: &str| route("b", host, ""));
    let steps = [
        ("True", a() + &b("s4") + &http("{value: /x}")),
        ("True", a() + &b("s4") + &http("{value: /y}")),
        ("False", a() + &b("s3") + &http("{value: /y}")),
        ("False", a() + &http("{value: /y}")),
        ("False", a() + &http("{type: None, value: /y}")),
        ("False", a()),
    ];
    for (ready, routes) in steps {
        let before = c.model().clone();
        last = state(&last, &text(ready, &routes));
        assert_eq!((c.update(&last), c.was_whole()), (Change::Everything, true));
        let now = c.model();
        let own = |name: &str| format!("ns0/{name}.ns0.svc.cluster.local");
        assert!(Arc::ptr_eq(&before.routes[&own("s1")], &now.routes[&own("s1")]));
        // Compiled anew, it would be another one.
        let uid = now.workloads.keys().find(|uid| uid.ends_with("p2")).unwrap();
        assert!(Arc::ptr_eq(&before.workloads[uid], &now.workloads[uid]));
        let (model, problems) = compile(&last, &mesh());
        assert!(model == *now && problems == c.problems());
    }
}

/// Of routes that have been told what there is to tell nothing is found out again; and whatever changes, what is written is the same
/// as if all had been looked at.
#[test]
fn what_is_written_does_not_depend_on_what_was_looked_at_before() {
    let gateway = |from: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: ns0}}\nspec: {{gatewayClassName: istio, listeners: [{{name: l, port: 80, protocol: HTTP, allowedRoutes: {{namespaces: {{from: {from}}}}}}}, {{name: m, port: 81, protocol: HTTP, hostname: m.com}}]}}\n---\n"
        )
    };
    let http = |name: &str, host: &str, to: &str, status: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: ns0}}\nspec: {{hostnames: [{host}], parentRefs: [{{name: g}}, {{name: g, sectionName: m}}], rules: [{{backendRefs: [{{name: {to}, port: 80}}]}}]}}\n{status}\n---\n"
        )
    };
    let policy = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: t, namespace: ns0}\nspec: {targetRefs: [{group: '', kind: Service, name: s1}], validation: {hostname: s1, wellKnownCACertificates: System}}\n---\n";
    /// Who may attach, the routes (name, host, Service), and whether there is the policy.
    type Step = (&'static str, &'static [(&'static str, &'static str, &'static str)], bool);
    let steps: [Step; 9] = [
        ("Same", &[("a", "a.com", "s1"), ("b", "m.com", "s1")], false),
        ("Same", &[("a", "a.com", "s1"), ("b", "m.com", "s1")], false),
        // Two more, one of them to what is not there.
        ("Same", &[("a", "a.com", "s1"), ("b", "m.com", "s1"), ("c", "c.com", "s2"), ("d", "d.com", "x")], false),
        ("Same", &[("a", "a.com", "s1"), ("b", "b.com", "s1"), ("c", "c.com", "s2"), ("d", "d.com", "x")], false),
        ("Same", &[("b", "b.com", "s1"), ("c", "c.com", "s2"), ("d", "d.com", "s2")], false),
        // What is no route decides about all of them.
        ("None", &[("b", "b.com", "s1"), ("c", "c.com", "s2"), ("d", "d.com", "s2")], false),
        ("Same", &[("b", "b.com", "s1"), ("c", "c.com", "s2"), ("d", "d.com", "s2")], true),
        ("Same", &[("b", "b.com", "s1"), ("d", "d.com", "s2")], true),
        ("Same", &[("d", "d.com", "s2")], false),
    ];
    let template = Template::default();
    let mut told = std::collections::BTreeMap::<String, String>::new();
    let mut c = Compiler::new(mesh());
    let (mut last, mut written, mut silent) = (State::default(), 0, 0);
    for (from, routes, has_policy) in steps {
        // Once as it comes, once with what it was told then, and once more, when nothing is to be said.
        for round in 0..3 {
            let one = |(name, host, to): &(&str, &str, &str)| {
                let status = told.get(*name).map(|status| format!("status: {status}")).unwrap_or_default();
                http(name, host, to, &status)
            };
            let all: String = routes.iter().map(one).collect();
            let more = if has_policy { policy } else { "" };
            last = state(&last, &(services(1, 3) + &gateway(from) + &all + more));
            c.update(&last);
            let found = c.writes(&last, &template, None, "2026-01-01T00:00:00Z");
            assert_eq!(found, written_with(&last, &template, None), "{from} {all}");
            let of_routes: Vec<_> = found.statuses.iter().filter(|w| w.to.kind == "HTTPRoute").collect();
            assert!(round == 0 || of_routes.is_empty(), "it was told: {of_routes:?}");
            match of_routes.is_empty() {
                true => silent += 1,
                false => written += of_routes.len(),
            }
            told.extend(of_routes.into_iter().map(|w| (w.to.name.clone(), w.status.to_string())));
        }
    }
    assert!(written > 10 && silent > 10, "{written} {silent}");
}
