//! Flows that were seen, judged again: what `karst policy test` says of one is what an evaluator that shares nothing with the
//! product says of the whole call, whatever its headers were; and what `karst policy suggest` writes refuses nothing that was seen.
//!
//! `SEED=n` for another run.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]

use crate::common::state;
use karst_core::{Identity, authority::Authority};
use karst_differential::{
    meshes,
    naive::{self, Facts, Place},
    random, seed,
    shrink::shrink,
    worlds,
};
use karst_explain::{
    Enrolment, World,
    flows::{Judge, Judgement, suggest},
};
use karst_flows::{Book, Decision, Flow, Reporter, Request, Seen, Verdict};
use karst_manifest::{State, parse};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::{Value, json};
use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc};

/// What is called: a pod, its service with its waypoint, a gateway.
/// The waypoint's pod and service.
const WAYPOINT: &str = "---
apiVersion: v1
kind: Pod
metadata: {name: w-1, namespace: app, labels: {gw: w, networking.istio.io/tunnel: http, istio.io/dataplane-mode: none}}
spec: {serviceAccountName: w}
status: {phase: Running, podIPs: [{ip: 10.9.0.50}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: w, namespace: app, labels: {gateway.networking.k8s.io/managed: istio.io-mesh-controller}}
spec: {clusterIP: 10.96.0.2, selector: {gw: w}, ports: [{name: mesh, port: 15008}]}
";

fn mesh_with(policies: &[Value]) -> World {
    let mesh = parse::file(Path::new("mesh.yaml"), &[meshes::SHOP, WAYPOINT, meshes::GATEWAYS].concat())
        .unwrap()
        .into_iter()
        .map(Arc::new);
    let objects = mesh.chain(state(policies).objects).collect();
    World::new(State { objects, ..State::default() }, Enrolment::Expected).unwrap()
}

/// As the proxy at this place notes the call.
fn noted(facts: &Facts, place: Place) -> Option<Flow> {
    let identity = facts.identity.as_ref().map(|[domain, ns, account]| Identity::new(domain, ns, account).unwrap());
    let (reporter, workload, service, pod) = match place {
        Place::Pod => (Reporter::Ztunnel, "shop-1", "", "shop-1"),
        Place::Service => (Reporter::Waypoint, "", "app/shop.app.svc.cluster.local", ""),
        Place::Gateway => (Reporter::Gateway, "edge-1", "", "edge-1"),
    };
    let asked = facts.request.as_ref().filter(|_| place != Place::Pod);
    let host = match asked {
        Some(request) => Authority::parse(request.host.as_bytes()).ok()?.to_string(),
        None => String::new(),
    };
    let request = asked.map(|r| Request { method: &r.method, path: &r.path, host: &host });
    let mut book = Book::new(1);
    book.note(
        &Seen {
            reporter,
            identity: identity.as_ref(),
            from: facts.source,
            namespace: "app",
            workload,
            service,
            to: SocketAddr::new(facts.destination, facts.port),
            pod,
            request,
            decision: Decision::Allowed,
        },
        0,
    );
    book.flows().next()
}

/// What is said and what is so, if they differ.
fn differs(policies: &[Value], facts: &Facts, place: Place) -> Option<String> {
    let flow = noted(facts, place)?;
    let said = Judge::new(&mesh_with(policies)).judge(&flow);
    let path = facts.request.as_ref().map_or("", |r| &r.path);
    let so = naive::judge(policies, facts, place, path).is_allowed;
    let differs = match &said {
        Judgement::Allowed => !so,
        Judgement::Refused(_) => so,
        Judgement::Unknown(_) => false,
    };
    differs.then(|| format!("{place:?}: said {said:?}, is allowed: {so}"))
}

#[test]
fn what_is_said_of_a_flow_is_so_whatever_was_not_noted() {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for set in 0..1_000 {
        let mut r = StdRng::seed_from_u64(seed().wrapping_mul(1 << 32).wrapping_add(set));
        let policies: Vec<Value> =
            (0..r.random_range(1..5)).map(|i| random::policy(&mut r, &format!("p{i}"))).collect();
        let used = random::Used::of(&policies);
        let world = mesh_with(&policies);
        let judge = Judge::new(&world);
        for _ in 0..20 {
            let mut facts = random::facts(&mut r, &used, &[]);
            // Applications read it as it is written.
            if facts.request.as_ref().is_some_and(|request| !random::is_plain(&request.path)) {
                continue;
            }
            for place in [Place::Pod, Place::Service, Place::Gateway] {
                if place == Place::Service && facts.request.is_some() {
                    // A request to a service has come without a hello that was read.
                    facts.sni = None;
                }
                let Some(flow) = noted(&facts, place) else { continue };
                let said = judge.judge(&flow);
                let so =
                    naive::judge(&policies, &facts, place, facts.request.as_ref().map_or("", |r| &r.path)).is_allowed;
                let (agrees, word) = match said {
                    Judgement::Allowed => (so, "allowed"),
                    Judgement::Refused(_) => (!so, "refused"),
                    Judgement::Unknown(why) => {
                        assert!(why.contains("headers"), "{why}");
                        (true, "unknown")
                    }
                };
                *counts.entry(format!("{place:?} {word}")).or_default() += 1;
                if !agrees {
                    let small = shrink(policies.clone(), |p| differs(p, &facts, place).is_some());
                    let text: Vec<String> = small.iter().map(ToString::to_string).collect();
                    panic!("set {set}: {:?}\n{facts:#?}\n{}", differs(&small, &facts, place), text.join("\n"));
                }
            }
        }
    }
    println!("{counts:#?}");
    // Each is said often, and it is rare that nothing can be said.
    for place in ["Pod", "Service", "Gateway"] {
        for word in ["allowed", "refused"] {
            assert!(counts.get(&format!("{place} {word}")).is_some_and(|n| *n > 1000), "{place} {word}: {counts:#?}");
        }
    }
    assert_eq!(counts.get("Pod unknown"), None);
}

/// Calls of a random world, as its proxies would note them, with what its policies say of each.
fn book(r: &mut StdRng, world: &World) -> Vec<Flow> {
    const PATHS: [&str; 10] = ["/", "/a", "/a/17", "/a/18/b", "/b/", "/a%2fb", "/c;v=1/d", "//e", "/f/..%2fg", "/a b"];
    let judge = Judge::new(world);
    let pods: Vec<_> = world.mesh().workloads.values().filter(|w| w.hbone && !w.native_tunnel).cloned().collect();
    let services: Vec<_> = world.mesh().services.values().filter(|s| !s.waypoints.is_empty()).cloned().collect();
    let identities: Vec<Identity> = [("client", "caller"), ("client", "batch"), ("shop", "w"), ("shop", "web")]
        .map(|(ns, account)| Identity::new("cluster.local", ns, account).unwrap())
        .into();
    let mut book = Book::new(200);
    for now in 0..r.random_range(1..120) {
        let identity = (r.random_bool(0.85)).then(|| &identities[r.random_range(0..identities.len())]);
        let port = [80, 81, 8080][r.random_range(0..3)];
        let base = Seen {
            reporter: Reporter::Ztunnel,
            identity,
            from: [10, 1, r.random_range(0..2), r.random()].into(),
            namespace: "shop",
            workload: "",
            service: "",
            to: ([10, 0, 0, 1], port).into(),
            pod: "",
            request: None,
            decision: Decision::Allowed,
        };
        let by_waypoint = !services.is_empty() && identity.is_some() && r.random_bool(0.7);
        let of_http = Request {
            method: ["GET", "POST", "OPTIONS"][r.random_range(0..3)],
            path: PATHS[r.random_range(0..PATHS.len())],
            host: "web.shop.svc.cluster.local",
        };
        let seen = match (by_waypoint, pods.is_empty()) {
            (true, _) => {
                let service = &services[r.random_range(0..services.len())];
                let request = r.random_bool(0.9).then_some(of_http);
                Seen {
                    reporter: Reporter::Waypoint,
                    namespace: &service.namespace,
                    service: &service.key,
                    request,
                    ..base
                }
            }
            (false, true) => continue,
            (false, false) => {
                let pod = &pods[r.random_range(0..pods.len())];
                Seen { namespace: &pod.namespace, workload: &pod.workload_name, pod: &pod.name, ..base }
            }
        };
        book.note(&seen, now);
    }
    let judged = |mut flow: Flow| {
        match judge.judge(&flow) {
            Judgement::Allowed => {}
            Judgement::Refused(policy) if policy.is_empty() => flow.key.verdict = Verdict::NotAllowed,
            Judgement::Refused(policy) => (flow.key.verdict, flow.key.policy) = (Verdict::Denied, policy),
            Judgement::Unknown(_) => return None,
        }
        Some(flow)
    };
    book.flows().filter_map(judged).collect()
}

#[test]
fn what_is_suggested_refuses_nothing_that_was_seen() {
    let (mut replayed, mut policies) = (0, 0);
    for number in 0..1_000 {
        let mut r = StdRng::seed_from_u64(seed().wrapping_mul(1_000_003).wrapping_add(number));
        let objects = worlds::world(&mut r);
        let world = World::new(state(&objects), Enrolment::Expected).unwrap();
        let mut flows = book(&mut r, &world);
        let made = suggest(&state(&objects), Enrolment::Expected, "shop", &flows).unwrap();
        assert_eq!(made.replay.refused, [], "world {number}");
        // Not only by its own word.
        let with: Vec<Value> = objects.iter().chain(&made.policies).cloned().collect();
        let after = World::new(state(&with), Enrolment::Expected).unwrap();
        let judge = Judge::new(&after);
        for flow in flows.iter().filter(|f| f.is_allowed() && f.key.destination.namespace == "shop") {
            assert_eq!(judge.judge(flow), Judgement::Allowed, "world {number}: {flow:#?}\n{:#?}", made.policies);
        }
        // The same book, the same text.
        flows.shuffle(&mut r);
        assert_eq!(suggest(&state(&objects), Enrolment::Expected, "shop", &flows).unwrap(), made);
        replayed += made.replay.flows;
        policies += made.policies.len();
    }
    println!("{replayed} flows, {policies} policies");
    assert!(replayed > 10_000 && policies > 1_000, "{replayed} flows, {policies} policies");
}

/// Who was not seen, or wants what it was not seen to want, is refused by what is suggested alone.
#[test]
fn what_is_suggested_is_the_least() {
    let mut refused = 0;
    for number in 0..300 {
        let mut r = StdRng::seed_from_u64(seed().wrapping_mul(1_000_003).wrapping_add(number));
        let mut objects = worlds::world(&mut r);
        objects.retain(|v| v["kind"] != "AuthorizationPolicy");
        let world = World::new(state(&objects), Enrolment::Expected).unwrap();
        let flows = book(&mut r, &world);
        let made = suggest(&state(&objects), Enrolment::Expected, "shop", &flows).unwrap();
        let with: Vec<Value> = objects.iter().chain(&made.policies).cloned().collect();
        let after = World::new(state(&with), Enrolment::Expected).unwrap();
        let judge = Judge::new(&after);
        for flow in flows.iter().filter(|f| f.is_allowed() && f.key.destination.namespace == "shop") {
            let mut stranger = flow.clone();
            stranger.key.source = karst_flows::Source::Identity("spiffe://cluster.local/ns/other/sa/stranger".into());
            let mut elsewhere = flow.clone();
            (elsewhere.key.port, elsewhere.example.to) = (7, ([10, 0, 0, 1], 7).into());
            let mut deletes = flow.clone();
            if !deletes.key.method.is_empty() {
                deletes.key.method = "DELETE".into();
                // Unless the caller has the port for bytes of any kind.
                let is_stream = |f: &&Flow| f.key.method.is_empty() && f.key.source == flow.key.source;
                let same = |f: &&Flow| f.key.destination == flow.key.destination && f.key.port == flow.key.port;
                if !flows.iter().filter(same).any(|f| is_stream(&f)) {
                    assert!(
                        matches!(judge.judge(&deletes), Judgement::Refused(_)),
                        "{deletes:#?}\n{:#?}",
                        made.policies
                    );
                }
            }
            for other in [stranger, elsewhere] {
                assert!(matches!(judge.judge(&other), Judgement::Refused(_)), "{other:#?}\n{:#?}", made.policies);
                refused += 1;
            }
        }
    }
    assert!(refused > 2_000, "{refused}");
}

/// As it is read by people: one rule for those who do the same.
#[test]
fn a_suggestion_is_grouped() {
    let mut r = StdRng::seed_from_u64(1);
    let objects: Vec<Value> = (0..)
        .map(|_| worlds::world(&mut r))
        .map(|mut objects| {
            objects.retain(|v| v["kind"] != "AuthorizationPolicy" && v["kind"] != "PeerAuthentication");
            objects
        })
        .find(|objects| {
            let world = World::new(state(objects), Enrolment::Expected).unwrap();
            world.mesh().services.values().any(|s| !s.waypoints.is_empty())
        })
        .unwrap();
    let identity = |account: &str| Identity::new("cluster.local", "client", account).unwrap();
    let (one, other) = (identity("a"), identity("b"));
    let mut book = Book::new(100);
    for (who, method, path) in [
        (&one, "GET", "/orders/17"),
        (&one, "GET", "/orders/18"),
        (&one, "GET", "/health"),
        (&other, "GET", "/health"),
        (&other, "GET", "/orders/4"),
        (&one, "POST", "/orders"),
        (&other, "POST", "/orders"),
    ] {
        let request = Request { method, path, host: "web" };
        let seen = Seen {
            reporter: Reporter::Waypoint,
            identity: Some(who),
            from: [10, 1, 0, 1].into(),
            namespace: "shop",
            workload: "",
            service: "shop/web.shop.svc.cluster.local",
            to: ([10, 96, 0, 1], 80).into(),
            pod: "",
            request: Some(request),
            decision: Decision::Allowed,
        };
        book.note(&seen, 0);
    }
    let flows: Vec<Flow> = book.flows().collect();
    let made = suggest(&state(&objects), Enrolment::Expected, "shop", &flows).unwrap();
    let wanted = json!([{
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "callers-of-web", "namespace": "shop" },
        "spec": {
            "action": "ALLOW",
            "targetRefs": [{ "group": "", "kind": "Service", "name": "web" }],
            "rules": [{
                "from": [{ "source": { "principals": ["cluster.local/ns/client/sa/a", "cluster.local/ns/client/sa/b"] } }],
                "to": [
                    { "operation": { "ports": ["80"], "methods": ["GET"], "paths": ["/health", "/orders/{*}"] } },
                    { "operation": { "ports": ["80"], "methods": ["POST"], "paths": ["/orders"] } },
                ],
            }],
        },
    }]);
    assert_eq!(Value::from(made.policies), wanted);
}
