//! Two control planes side by side: each runs and tends what is its own, and both send traffic through all of it.

use super::*;

const CONTROL_PLANES: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: istiod, namespace: istio-system, labels: {app: istiod, istio.io/rev: default}}\nspec: {}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: istiod-canary, namespace: istio-system, labels: {app: istiod, istio.io/rev: canary}}\nspec: {}\n---\n";
const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a, LABELS}\nspec: {}\nSTATUS\n---\n";

fn revision(name: &str) -> Mesh {
    Mesh { revision: Revision { name: name.into(), tags: vec![] }, ..mesh() }
}

/// What a revision makes of these objects: what it writes, and what it says to proxies.
fn seen_by(name: &str, text: &str) -> (Writes, Model) {
    let objects = parse::file("t.yaml".as_ref(), text).unwrap().into_iter().map(Arc::new).collect();
    let mut state = State { objects, ..State::default() };
    crate::intake::of_revision(&mut state, "istio-system", &revision(name).revision);
    let mut compiler = Compiler::new(revision(name));
    compiler.update(&state);
    let writes = compiler.writes(&state, &Template::default(), Some(&[]), "2026-01-01T00:00:00Z");
    (writes, compiler.model().clone())
}

/// Names of what a revision deploys, and of what it writes statuses to.
fn tended_by(name: &str, text: &str) -> (Vec<String>, BTreeSet<String>) {
    let writes = seen_by(name, text).0;
    let deployed = writes.objects.iter().filter(|(to, _)| to.kind == "Deployment").map(|(to, _)| to.name.clone());
    let told = writes.statuses.iter().map(|write| write.to.to_string());
    (deployed.collect(), told.filter(|to| !to.starts_with("GatewayClass")).collect())
}

fn waypoint(name: &str, labels: &str) -> String {
    WAYPOINT.replace("STATUS", READY).replace("name: w,", &format!("name: {name}, labels: {{{labels}}},"))
}

#[test]
fn each_revision_runs_and_tends_its_own_gateways() {
    let text = CONTROL_PLANES.to_string() + &waypoint("w", "") + &waypoint("x", "istio.io/rev: canary");
    let set = |names: &[&str]| names.iter().map(|name| format!("Gateway a/{name}")).collect::<BTreeSet<_>>();
    assert_eq!(tended_by("default", &text), (vec!["w".to_string()], set(&["w"])));
    assert_eq!(tended_by("canary", &text), (vec!["x".to_string()], set(&["x"])));
    // By the label of the namespace, and by a tag.
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/rev: prod}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: istiod-revision-tag-prod, namespace: istio-system, labels: {app: istiod, istio.io/tag: prod, istio.io/rev: canary}}\nspec: {}\n---\n";
    let moved = text + namespace;
    assert_eq!(tended_by("default", &moved), (vec![], set(&[])));
    assert_eq!(tended_by("canary", &moved), (vec!["w".to_string(), "x".to_string()], set(&["w", "x"])));
}

/// A waypoint of another revision is a waypoint all the same: what is bound to it is never sent past it.
#[test]
fn waypoints_of_other_revisions_are_used() {
    let text = CONTROL_PLANES.to_string() + &waypoint("w", "istio.io/rev: canary") + &BOUND.replace("NS", "a");
    for name in ["default", "canary"] {
        let model = seen_by(name, &text).1;
        let bound = model.services["a/s.a.svc.cluster.local"].waypoint.clone().unwrap();
        assert_eq!(bound.hbone_mtls_port, 15008, "{name}");
    }
    // The Service itself is in nobody's hands but the default revision's.
    assert_eq!(tended_by("canary", &text).1, BTreeSet::from(["Gateway a/w".to_string()]));
    assert_eq!(tended_by("default", &text).1, BTreeSet::from(["Service a/s".to_string()]));
}

/// A route is told by the revision of the Gateway that it is attached to.
#[test]
fn routes_are_told_with_their_gateway() {
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: a, labels: {istio.io/rev: canary}}\nspec: {gatewayClassName: istio, listeners: [{name: h, port: 80, protocol: HTTP}]}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: a}\nspec: {parentRefs: [{name: g}]}\n---\n";
    let text = CONTROL_PLANES.to_string() + gateway;
    assert_eq!(tended_by("default", &text).1, BTreeSet::new());
    let both = ["Gateway a/g", "HTTPRoute a/r"].map(String::from);
    assert_eq!(tended_by("canary", &text).1, BTreeSet::from(both));
}

#[test]
fn a_policy_for_a_revision_that_nobody_is_says_so() {
    let policy =
        |label: &str, status: &str| POLICY.replace("LABELS", &format!("labels: {{{label}}}")).replace("STATUS", status);
    let said = |name: &str, label: &str, status: &str| {
        conditions(&seen_by(name, &(CONTROL_PLANES.to_string() + &policy(label, status))).0)
    };
    let gone = "AuthorizationPolicy a/p: karst.io/Revision False RevisionNotFound";
    assert_eq!(said("default", "istio.io/rev: gone", ""), [gone]);
    assert!(said("canary", "istio.io/rev: gone", "").is_empty(), "one of them says it");
    // And whose it is then takes it back.
    let old = "status: {conditions: [{type: karst.io/Revision, status: 'False', reason: RevisionNotFound, message: 'm [KARST-0711]'}, {type: other, status: 'True'}]}";
    let taken_back = |name: &str, label: &str| {
        let writes = seen_by(name, &(CONTROL_PLANES.to_string() + &policy(label, old))).0;
        let write = writes.statuses.into_iter().find(|write| write.manager == "karst.io/revision");
        write.map(|write| write.status["conditions"].as_array().unwrap().len())
    };
    assert_eq!(taken_back("default", ""), Some(1), "what others have said stays");
    assert_eq!(taken_back("canary", "istio.io/rev: canary"), Some(1));
    assert_eq!(taken_back("canary", ""), None);
    assert_eq!(taken_back("default", "istio.io/rev: canary"), None);
}
