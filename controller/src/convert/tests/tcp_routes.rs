//! TCPRoutes at gateways: where they are attached, what their backends get, and what their statuses say (the cases of the conformance
//! suite's TCP profile).

use super::*;
use karst_api::route as ir;

const BACKENDS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: one, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 3000}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: two, namespace: a}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 3000}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: far, namespace: b}\nspec: {clusterIP: 10.96.0.3, ports: [{port: 3000}]}\n---\n";
const GRANT: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: b}\nspec: {from: [{group: gateway.networking.k8s.io, kind: TCPRoute, namespace: a}], to: [{group: '', kind: Service, name: far}]}\n---\n";
const FAR: &str = "{name: far, namespace: b, port: 3000}";
const ONE: &str = "{name: one, port: 3000}";

/// A Gateway whose listeners have these names and protocols, from port 9300 on.
fn gateway(listeners: &[(&str, &str)]) -> String {
    let one = |(at, (name, protocol)): (usize, &(&str, &str))| {
        let kind = if *protocol == "HTTP" { "HTTPRoute" } else { "TCPRoute" };
        let port = 9300 + at;
        format!("{{name: {name}, protocol: {protocol}, port: {port}, allowedRoutes: {{kinds: [{{kind: {kind}}}]}}}}")
    };
    let all: Vec<String> = listeners.iter().enumerate().map(one).collect();
    format!(
        "{BACKENDS}apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: a}}\nspec: {{gatewayClassName: istio, listeners: [{}]}}\n---\n",
        all.join(", ")
    )
}

fn route(name: &str, year: u16, parent: &str, backends: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: {{name: {name}, namespace: a, creationTimestamp: '{year}'}}\nspec: {{parentRefs: [{{{parent}}}], rules: [{{backendRefs: [{backends}]}}]}}\n---\n"
    )
}

/// Each route with its conditions, and each listener with the number of its routes.
fn said(text: &str) -> Vec<String> {
    let mut out = vec![];
    for w in &written(text).statuses {
        for parent in w.status["parents"].as_array().into_iter().flatten() {
            let one = |c: &serde_json::Value| format!(" {}={}", c["type"], c["reason"]).replace('"', "");
            let all: String = parent["conditions"].as_array().unwrap().iter().map(one).collect();
            out.push(format!("{}{all}", w.to.name));
        }
        for listener in w.status["listeners"].as_array().into_iter().flatten() {
            let kinds: Vec<&str> =
                listener["supportedKinds"].as_array().unwrap().iter().map(|k| k["kind"].as_str().unwrap()).collect();
            out.push(format!("{} {} {}", listener["name"], listener["attachedRoutes"], kinds[0]).replace('"', ""));
        }
    }
    out.sort();
    out
}

/// The rules of a listener, in order.
fn rules(text: &str, listener: &str) -> Vec<ir::TcpRule> {
    let (m, _) = run(text);
    let key = format!("~Gateway/a/g/{listener}/*");
    m.routes.get(&key).and_then(|r| r.producer.clone()).map_or(vec![], |table| table.tcp)
}

const FINE: &str = "Accepted=Accepted ResolvedRefs=ResolvedRefs";

#[test]
fn a_route_is_attached_to_every_listener_of_its_kind_or_to_those_that_it_names() {
    let four = [("one", "TCP"), ("two", "TCP"), ("three", "TCP"), ("four", "HTTP")];
    for (parent, attached) in [
        ("name: g", &["one", "two", "three"][..]),
        ("name: g, port: 9300", &["one"]),
        ("name: g, sectionName: two", &["two"]),
        ("name: g, sectionName: three, port: 9302", &["three"]),
    ] {
        let text = gateway(&four) + &route("r", 2025, parent, ONE);
        for (name, protocol) in four {
            let is_attached = attached.contains(&name);
            assert_eq!(rules(&text, name).len(), usize::from(is_attached), "{parent}: {name}");
            let kind = if protocol == "HTTP" { "HTTPRoute" } else { "TCPRoute" };
            let listener = format!("{name} {} {kind}", u8::from(is_attached));
            assert!(said(&text).contains(&listener), "{parent}: {listener}");
        }
        assert!(said(&text).contains(&format!("r {FINE}")), "{parent}");
    }
    // A listener of another protocol, or another port.
    for (parent, reason) in [
        ("name: g, sectionName: four", "NotAllowedByListeners"),
        ("name: g, sectionName: one, port: 9301", "NoMatchingParent"),
        ("name: g, sectionName: five", "NoMatchingParent"),
    ] {
        let text = gateway(&four) + &route("r", 2025, parent, ONE);
        let all = said(&text);
        assert!(all.contains(&format!("r Accepted={reason} ResolvedRefs=ResolvedRefs")), "{all:?}");
        assert!(!all.iter().any(|line| line.contains(" 1 ")), "{all:?}");
    }
}

#[test]
fn of_two_routes_at_one_listener_both_are_accepted_and_the_oldest_serves() {
    for (first, second) in [(2024, 2025), (2025, 2024)] {
        let text = gateway(&[("tcp", "TCP")])
            + &route("x", first, "name: g, sectionName: tcp", ONE)
            + &route("y", second, "name: g, sectionName: tcp", "{name: two, port: 3000}");
        assert_eq!(said(&text), ["tcp 2 TCPRoute".to_string(), format!("x {FINE}"), format!("y {FINE}")]);
        // A proxy takes the first one that matches, and both match everything.
        let origins: Vec<String> = rules(&text, "tcp").into_iter().map(|r| r.origin).collect();
        let (x, y) = ("TCPRoute a/x rule 0", "TCPRoute a/y rule 0");
        assert_eq!(origins, if first < second { [x, y] } else { [y, x] });
    }
}

/// What is wrong with a backend closes the share of its weight, and no other.
#[test]
fn a_backend_that_cannot_be_loses_its_share() {
    let weighted = |name: &str, weight: u32| format!("{{name: {name}, port: 3000, weight: {weight}}}");
    let far = |weight: u32| format!("{{name: far, namespace: b, port: 3000, weight: {weight}}}");
    let three = [weighted("one", 70), weighted("two", 30), weighted("one", 0)].join(", ");
    let other_port = format!("{}, {{name: two, port: 3001, weight: 30}}", weighted("one", 70));
    for (backends, grant, wanted, status) in [
        (three, "", &[(70, 0), (30, 0), (0, 0)][..], FINE),
        (
            format!("{}, {}", weighted("one", 70), weighted("none", 30)),
            "",
            &[(70, 0), (30, 500)],
            "Accepted=Accepted ResolvedRefs=BackendNotFound",
        ),
        (other_port, "", &[(70, 0), (30, 500)], "Accepted=Accepted ResolvedRefs=BackendNotFound"),
        (
            format!("{}, {}", far(70), weighted("two", 30)),
            "",
            &[(70, 500), (30, 0)],
            "Accepted=Accepted ResolvedRefs=RefNotPermitted",
        ),
        (format!("{}, {}", far(70), weighted("two", 30)), GRANT, &[(70, 0), (30, 0)], FINE),
        (
            format!("{}, {{kind: Pod, name: one, port: 3000, weight: 30}}", weighted("one", 70)),
            "",
            &[(70, 0), (30, 500)],
            "Accepted=Accepted ResolvedRefs=InvalidKind",
        ),
        // Nobody is called, and not by default, either.
        (format!("{}, {}", weighted("one", 0), weighted("two", 0)), "", &[(0, 0), (0, 0), (1, 500)], FINE),
    ] {
        let text = gateway(&[("tcp", "TCP")]) + grant + &route("r", 2025, "name: g", &backends);
        let all = rules(&text, "tcp");
        let shares: Vec<(u32, u32)> = all[0].destinations.iter().map(|d| (d.weight, d.refuse_status)).collect();
        assert_eq!((all.len(), &shares[..]), (1, wanted), "{backends}");
        assert_eq!(said(&text), [format!("r {status}"), "tcp 1 TCPRoute".into()], "{backends}");
    }
    // One backend, of which nothing is known, or which may not be referred to (any more).
    for (backend, reason) in [("{name: none, port: 8080}", "BackendNotFound"), (FAR, "RefNotPermitted")] {
        let text = gateway(&[("tcp", "TCP")]) + &route("r", 2025, "name: g", backend);
        assert_eq!(rules(&text, "tcp")[0].destinations[0].refuse_status, 500, "{backend}");
        let wanted = format!("r Accepted=Accepted ResolvedRefs={reason}");
        assert_eq!(said(&text), [wanted, "tcp 1 TCPRoute".into()]);
    }
}
