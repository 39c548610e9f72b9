//! Requests without a waypoint: both sides count them, and where a waypoint counts them they do not.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

use karst_world::{
    Options, Pod, PodSpec, World, app, wait_for,
    web::{Session, Web},
};
use serde_json::Value;
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: shop, namespace: app, labels: {LABELS}}\nspec: {clusterIP: 10.96.1.1, selector: {app: shop}, ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 81, targetPort: 8081}]}\n";

/// Requests that this reporter on this node has counted, with these labels.
fn counted(w: &World, node: usize, reporter: &str, more: &[&str]) -> f64 {
    let reporter = format!("reporter=\"{reporter}\"");
    w.metric(node, "istio_requests_total{", &[&[&*reporter][..], more].concat())
}

/// So many requests on one connection to the service.
fn ask(client: &Pod, n: usize) {
    let mut session = Session::new(client, "10.96.1.1:80".parse().unwrap(), "shop").unwrap();
    for i in 0..n {
        let status = session.ask("POST", &format!("/{i}"), &[], b"12345").unwrap().status();
        assert_eq!(status, if i % 10 == 0 { 500 } else { 200 });
    }
}

/// What ztunnels tell to who looks, by node and filter, one look after the other, while a client asks for /0?secret, /1?secret …
fn live(w: &World, client: &Pod, looks: &[(usize, &str)]) -> Vec<Vec<Value>> {
    let (over, begun) = (AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut session = Session::new(client, "10.96.1.1:80".parse().unwrap(), "shop").unwrap();
            // A look that fails does not end it.
            for n in (0..).take_while(|_| !over.load(Relaxed) && begun.elapsed() < Duration::from_secs(60)) {
                session.ask("GET", &format!("/{n}?secret"), &[], b"").unwrap();
                thread::sleep(Duration::from_millis(5));
            }
        });
        let look = |(node, filter): &(usize, &str)| {
            let (status, page) = w.get(*node, 15000, &format!("/tap?{filter}")).unwrap();
            assert!(status == 200 && !page.contains("secret"), "{page}");
            // Between the lines are the sizes of chunks.
            let lines = page
                .lines()
                .filter(|line| line.starts_with('{'))
                .map(|line| serde_json::from_str::<Value>(line).unwrap());
            lines.filter_map(|mut line| line.get_mut("flow").map(Value::take)).collect::<Vec<_>>()
        };
        let all = looks.iter().map(look).collect();
        over.store(true, Relaxed);
        all
    })
}

#[test]
fn requests_without_a_waypoint_are_told_live_and_once() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.apply("shop", &SERVICE.replace("LABELS", ""));
    let client = w.mesh_pod(PodSpec::new("app", "client", 0));
    let server = w.mesh_pod(PodSpec::new("app", "shop", 1));
    w.settle();
    let _web = Web::start(&server, 8080, |m| (if m.path().contains("0?") { 500 } else { 200 }, vec![], vec![]));
    let looks =
        [(1, "path=*&limit=30"), (0, "path=*&limit=30&all=true"), (0, "path=*&seconds=1"), (1, "status=5xx&limit=2")];
    let [far, near, twice, failed] = <[_; 4]>::try_from(live(&w, &client, &looks)).unwrap();
    for (flows, direction) in [(&far, "INGRESS"), (&near, "EGRESS")] {
        assert_eq!(flows.len(), 30);
        let first: u64 = flows[0]["l7"]["http"]["url"].as_str().unwrap()[1..].parse().unwrap();
        for (flow, n) in flows.iter().zip(first..) {
            let (http, code) = (&flow["l7"]["http"], if n % 10 == 0 { 500_u16 } else { 200 });
            assert_eq!((&http["method"], &http["code"]), (&"GET".into(), &code.into()), "{flow}");
            assert_eq!(http["url"], format!("/{n}"), "each is told once: {flow}");
            assert_eq!([&flow["source"]["pod_name"], &flow["destination"]["pod_name"]], ["client", "shop"], "{flow}");
            assert_eq!([&flow["verdict"], &flow["traffic_direction"]], ["FORWARDED", direction], "{flow}");
            assert_eq!([&flow["karst"]["reporter"], &flow["karst"]["mtls"]], [&Value::from("ztunnel"), &true.into()]);
            assert!(flow["l7"]["latency_ns"].as_u64().is_some_and(|time| time > 0), "{flow}");
        }
    }
    assert!(twice.is_empty(), "the destination tells of them: {twice:?}");
    assert!(failed.len() == 2 && failed.iter().all(|flow| flow["l7"]["http"]["code"] == 500), "{failed:?}");
}

#[test]
fn both_sides_count_the_requests_of_a_connection_without_a_waypoint() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.apply("shop", &SERVICE.replace("LABELS", ""));
    let (client, near) = (w.mesh_pod(PodSpec::new("app", "client", 0)), w.mesh_pod(PodSpec::new("app", "near", 1)));
    let server = w.mesh_pod(PodSpec::new("app", "shop", 1));
    w.settle();
    let _web =
        Web::start(&server, 8080, |m| (if m.path().ends_with('0') { 500 } else { 200 }, vec![], vec![b'x'; 100]));
    let _echo = app::Echo::start(&server, 8081, "");
    let labels = |code: &str| {
        [
            format!("response_code=\"{code}\""),
            "source_principal=\"spiffe://cluster.local/ns/app/sa/".into(),
            "destination_service=\"shop.app.svc.cluster.local\"".into(),
            "connection_security_policy=\"mutual_tls\"".into(),
        ]
    };
    let seen = |node: usize, reporter: &str, code: &str| {
        let labels = labels(code);
        counted(&w, node, reporter, &labels.each_ref().map(|l| l.as_str()))
    };
    // Across nodes by a tunnel; on the same node without one, where one process reports both sides.
    for (client, source, before) in [(&client, 0, 0.0), (&near, 1, 100.0)] {
        ask(client, 100);
        // A request is read and counted when its answer has gone on already.
        wait_for("each request is counted once by both sides", Duration::from_secs(10), || {
            let own = (seen(source, "source", "200"), seen(source, "source", "500"));
            let all = (seen(1, "destination", "200"), seen(1, "destination", "500"));
            (own == (90.0, 10.0) && all == (before * 0.9 + 90.0, before * 0.1 + 10.0)).then_some(())
        });
    }
    // Whole messages, as they were on the wire: heads, and bodies of 5 and of 100 bytes.
    let request = |i: usize| format!("POST /{i} HTTP/1.1\r\nhost: shop\r\ncontent-length: 5\r\n\r\n").len() + 5;
    let answer = "HTTP/1.1 200 x\r\ncontent-length: 100\r\n\r\n".len() + 100;
    let bytes = |name: &str| w.metric(0, name, &["reporter=\"source\""]);
    assert_eq!(bytes("istio_request_bytes_sum"), (0..100).map(request).sum::<usize>() as f64);
    assert_eq!(bytes("istio_response_bytes_sum"), (100 * answer) as f64);
    // What is not HTTP is carried, and is no surprise at a port that is not declared.
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    assert_eq!(app::exchange(&mut client.connect("10.96.1.1:81".parse().unwrap()).unwrap(), &data).unwrap(), data);
    for node in 0..2 {
        assert_eq!(w.metric(node, "karst_http_signals_given_up_total", &[]), 0.0);
    }
}

#[test]
fn what_a_waypoint_counts_is_counted_once() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.apply("shop", &SERVICE.replace("LABELS", "istio.io/use-waypoint: waypoint"));
    let waypoint = w.waypoint("app", "waypoint", 1, &[]);
    let client = w.mesh_pod(PodSpec::new("app", "client", 0));
    let server = w.mesh_pod(PodSpec::new("app", "shop", 1));
    w.settle();
    let web = Web::start(&server, 8080, |m| (if m.path().ends_with('0') { 500 } else { 200 }, vec![], vec![]));
    ask(&client, 100);
    // It counts a request when the client has its answer already.
    let told = || {
        let (_, page) = w.waypoint_page(&waypoint, 15020, "/metrics").unwrap();
        let told =
            page.lines().filter(|l| l.starts_with("istio_requests_total{") && l.contains("reporter=\"waypoint\""));
        told.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    wait_for("each request is counted once by the waypoint", Duration::from_secs(10), || {
        (told() == 100.0).then_some(())
    });
    assert_eq!(web.count(), 100);
    for (node, reporter) in [(0, "source"), (1, "source"), (0, "destination"), (1, "destination")] {
        assert_eq!(counted(&w, node, reporter, &[]), 0.0, "node {node} {reporter}");
    }
    // Nor does a ztunnel tell of them to who looks.
    let told = live(&w, &client, &[(0, "path=*&seconds=1&all=true"), (1, "path=*&seconds=1&all=true")]);
    assert!(told.iter().all(Vec::is_empty) && web.count() > 100, "{told:?}");
}
