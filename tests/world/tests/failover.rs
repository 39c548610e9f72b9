//! Before a byte of the application has gone anywhere, a connection may go elsewhere: to another endpoint, or on a fresh tunnel.
//! So does a request of which nobody has seen anything. And a pod that is its own service's endpoint.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_world::{
    Load, Loaded, Options, Pod, PodSpec, World, app, wait_for,
    web::{self, Session, Web},
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd96::10'], selector: {app: web}, ports: [{name: tcp, port: 80, targetPort: 8080}]}\n";

/// Called through a waypoint, by HTTP and otherwise. Each request has a connection of its own to its endpoint, on a tunnel.
const SHOP: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: shop, namespace: app, labels: {istio.io/use-waypoint: waypoint}}\nspec: {clusterIP: 10.96.1.1, selector: {app: shop}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 82, targetPort: 8082}]}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: shop, namespace: app}\nspec: {host: shop, trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}}\n";

/// How many of `n` connections are served, and the longest that one took.
fn served(from: &Pod, to: SocketAddr, n: usize) -> (usize, Duration) {
    let mut slowest = Duration::ZERO;
    let one = || {
        let t = Instant::now();
        let ok = from.connect(to).and_then(|mut s| app::ping(&mut s, b"x")).is_ok();
        slowest = slowest.max(t.elapsed());
        ok
    };
    let ok = std::iter::repeat_with(one).take(n).filter(|ok| *ok).count();
    (ok, slowest)
}

#[test]
fn an_endpoint_that_does_not_listen_costs_nobody_a_connection() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let clients = [w.mesh_pod(PodSpec::new("app", "near", 0)), w.mesh_pod(PodSpec::new("app", "far", 1))];
    let backends: Vec<Pod> =
        (0..2).map(|i| w.mesh_pod(PodSpec::new("app", &format!("b{i}"), 1).label("app", "web"))).collect();
    w.apply("svc", SERVICE);
    let _only = app::Echo::start(&backends[0], 8080, "");
    for (client, place) in clients.iter().zip(["another node", "the same node"]) {
        // The world's own IPv6 takes a second or two (duplicate address detection).
        wait_for("IPv6 between the nodes", Duration::from_secs(10), || {
            client.connect(backends[0].at6(8080)).and_then(|mut s| app::ping(&mut s, b"up")).ok()
        });
        for to in ["10.96.0.10:80", "[fd96::10]:80"] {
            let (ok, slowest) = served(client, to.parse().unwrap(), 60);
            println!(
                "failover one of two does not listen, from {place}, {to}: ok={ok}/60 slowest_ms={}",
                slowest.as_millis()
            );
            assert_eq!(ok, 60, "{place}, {to}");
        }
    }
}

#[test]
fn an_address_that_is_another_pods_by_now_is_reached_at_once() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let client = w.mesh_pod(PodSpec::new("app", "client", 0));
    for i in 0..4 {
        w.next_address(1, 200);
        // Names that come back, too: those of a StatefulSet's pods.
        let p = w.mesh_pod(PodSpec::new("app", &format!("x{}", i / 2), 1).account("x"));
        let echo = app::Echo::start(&p, 8080, "");
        let (ok, slowest) = served(&client, p.at(8080), 20);
        println!("failover pod {i} at {}: ok={ok}/20 slowest_ms={}", p.ip, slowest.as_millis());
        assert_eq!(ok, 20, "the {i}th pod of this address");
        drop(echo);
        w.remove_pod(&p);
    }
}

#[test]
fn a_pod_reaches_itself_by_its_own_service() {
    for keeps_source in ["true", "false"] {
        let mut w = World::start(Options {
            nodes: 1,
            ztunnel_env: vec![("ENABLE_ORIG_SRC".into(), keeps_source.into())],
            ..Options::default()
        })
        .unwrap();
        w.namespace("app", true);
        w.namespace("out", false);
        let own = w.mesh_pod(PodSpec::new("app", "own", 0).label("app", "web"));
        let (member, stranger) =
            (w.mesh_pod(PodSpec::new("app", "member", 0)), w.pod(PodSpec::new("out", "stranger", 0)));
        w.apply("svc", SERVICE);
        let echo = app::Echo::start(&own, 8080, "");
        for to in ["10.96.0.10:80", "[fd96::10]:80"] {
            let to: SocketAddr = to.parse().unwrap();
            let (ok, slowest) = served(&own, to, 20);
            println!(
                "failover own service, original source {keeps_source}: ok={ok}/20 slowest_ms={}",
                slowest.as_millis()
            );
            assert_eq!(ok, 20);
            assert_eq!(echo.last_peer().unwrap().ip(), if to.is_ipv4() { own.ip } else { own.ip6 });
        }
        for (who, from) in [("a member", &member), ("a stranger", &stranger)] {
            for to in [own.at(8080), own.at6(8080)] {
                assert_eq!(served(from, to, 10).0, 10, "{who} to {to}, original source {keeps_source}");
                let seen = echo.last_peer().unwrap().ip();
                let (kept, hidden) = if to.is_ipv4() { (from.ip, own.ip) } else { (from.ip6, own.ip6) };
                assert_eq!(seen, if keeps_source == "true" { kept } else { hidden }, "{who}");
            }
        }
    }
}

/// A node with two of a service's three endpoints is gone without a word. The waypoint has tunnels to them that are open: requests
/// and connections go to what is left.
#[test]
fn a_lost_node_is_not_waited_for_through_a_waypoint() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.apply("shop", SHOP);
    let _waypoint = w.waypoint("app", "waypoint", 0, &[]);
    let client = w.mesh_pod(PodSpec::new("app", "client", 0));
    let backends =
        [0, 1, 2].map(|i: usize| w.mesh_pod(PodSpec::new("app", &format!("b{i}"), i.min(1)).label("app", "shop")));
    let webs = [0, 1, 2].map(|i: usize| Web::named(&backends[i], 8080, &format!("b{i}")));
    let echoes = [0, 1, 2].map(|i: usize| app::Echo::start(&backends[i], 8082, ""));
    let stop = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..4)
        .map(|_| {
            let (client, stop) = (client.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut failed = vec![];
                while !stop.load(Relaxed) {
                    match web::ask(&client, ([10, 96, 1, 1], 80).into(), "shop", "/", &[]) {
                        Ok(a) if a.status() == 200 => {}
                        other => failed.push(format!("{other:?}")),
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                failed
            })
        })
        .collect();
    let load = Load::start(client.netns(), ([10, 96, 1, 1], 82).into(), 40, b"x");
    let served = || [0, 1, 2].map(|i: usize| (webs[i].count(), echoes[i].connections()));
    std::thread::sleep(Duration::from_secs(2));
    let before = served();
    assert!(before.iter().all(|(requests, connections)| *requests > 3 && *connections > 3), "all are used: {before:?}");
    load.between(|| w.lose(1, 0, true));
    // As long as in restarts::a_lost_node_is_not_waited_for.
    std::thread::sleep(Duration::from_secs(11));
    let lost = served();
    w.lose(1, 0, false);
    std::thread::sleep(Duration::from_secs(12));
    let after = served();
    stop.store(true, Relaxed);
    let mut failed: Vec<String> = asking.into_iter().flat_map(|t| t.join().unwrap()).collect();
    let Loaded { ok, failed: cut, slowest_ms } = load.end();
    failed.extend(cut);
    println!(
        "node lost for 11 s behind a waypoint: {before:?} {lost:?} {after:?} connections ok={ok} slowest_ms={slowest_ms} failed={failed:?}"
    );
    assert!(failed.is_empty(), "{failed:?}");
    // Of some 400 each. Those who wait for a connect do so for 10 s.
    let more = (lost[0].0 - before[0].0, lost[0].1 - before[0].1);
    assert!(more.0 > 100 && more.1 > 100, "they waited: {more:?}");
    for i in 1..3 {
        assert!(
            after[i].0 > lost[i].0 && after[i].1 > lost[i].1,
            "the node that is back is used again: {lost:?} {after:?}"
        );
    }
}

/// The same of the only endpoint, which is none of the mesh: a request goes to it by a connection that is kept, and nobody refuses it. TCP
/// itself would wait for some 15 minutes.
#[test]
fn a_request_under_way_to_a_lost_node_comes_to_an_end() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.apply("svc", "apiVersion: v1\nkind: Service\nmetadata: {name: far, namespace: app, labels: {istio.io/use-waypoint: waypoint}}\nspec: {clusterIP: 10.96.1.2, selector: {app: far}, ports: [{name: http, port: 80, targetPort: 8080}]}\n");
    let _waypoint = w.waypoint("app", "waypoint", 0, &[]);
    let client = w.mesh_pod(PodSpec::new("app", "client", 0));
    let far = w.pod(PodSpec::new("app", "far", 1).label("app", "far").label("istio.io/dataplane-mode", "none"));
    let web = Web::named(&far, 8080, "far");
    let at = ([10, 96, 1, 2], 80).into();
    wait_for("the endpoint", Duration::from_secs(10), || {
        web::ask(&client, at, "far", "/", &[]).ok().filter(|answer| answer.status() == 200)
    });
    let mut session = Session::new(&client, at, "far").unwrap();
    assert_eq!(session.ask("GET", "/", &[], b"").unwrap().status(), 200);
    let before = web.count();
    w.lose(0, 1, true);
    let begun = Instant::now();
    let status = session.ask("GET", "/", &[], b"").unwrap().status();
    println!("a request under way to a lost node: {status} after {} ms", begun.elapsed().as_millis());
    assert_eq!((status, web.count()), (503, before), "it has not arrived");
}
