//! Before a byte of the application has gone anywhere, a connection may go elsewhere: to another endpoint, or on a fresh tunnel.
//! And a pod that is its own service's endpoint.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use karst_world::{Options, Pod, PodSpec, World, app, wait_for};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd96::10'], selector: {app: web}, ports: [{name: tcp, port: 80, targetPort: 8080}]}\n";

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
