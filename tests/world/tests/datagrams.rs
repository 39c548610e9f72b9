//! UDP at gateways, with the real binary: real sockets, both families, a gateway with several addresses.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_world::{
    Options, Pod, PodSpec, World,
    app::{self, UdpEcho, ask, datagrams},
    wait_for,
};
use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(10);
/// How long a session may be silent here, seconds.
const IDLE: &str = "2";

const OBJECTS: &str = "apiVersion: v1
kind: Namespace
metadata: {name: app, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: edge}
---
apiVersion: v1
kind: Namespace
metadata: {name: out}
---
apiVersion: v1
kind: Service
metadata: {name: dns-v1, namespace: app}
spec: {clusterIP: 10.96.1.1, selector: {version: v1}, ports: [{name: udp, port: 53, protocol: UDP, targetPort: 5353}, {name: tcp, port: 53, targetPort: 8053}]}
---
apiVersion: v1
kind: Service
metadata: {name: dns-v2, namespace: app}
spec: {clusterIP: 10.96.1.2, selector: {version: v2}, ports: [{name: udp, port: 53, protocol: UDP, targetPort: 5353}]}
";

/// A number is a port of both protocols.
const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: edge}
spec:
  gatewayClassName: istio
  listeners:
  - {name: udp, port: 53, protocol: UDP, allowedRoutes: {namespaces: {from: All}}}
  - {name: tcp, port: 53, protocol: TCP, allowedRoutes: {namespaces: {from: All}}}
";

fn route(backends: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: UDPRoute\nmetadata: {{name: dns, namespace: app}}\nspec: {{parentRefs: [{{name: gw, namespace: edge}}], rules: [{{backendRefs: [{backends}]}}]}}\n"
    )
}

fn weights(v1: u32, v2: u32) -> String {
    route(&format!("{{name: dns-v1, port: 53, weight: {v1}}}, {{name: dns-v2, port: 53, weight: {v2}}}"))
}

/// A gateway on node 0 with two threads, two releases in the mesh on node 1, and a client that is no member.
struct Site {
    w: World,
    gateway: Pod,
    client: Pod,
    servers: [UdpEcho; 2],
}

impl Site {
    fn new() -> Self {
        let mut w = World::start(Options::default()).unwrap();
        w.apply("app", OBJECTS);
        let servers = ["v1", "v2"].map(|version| {
            let pod = w.mesh_pod(PodSpec::new("app", &format!("dns-{version}"), 1).label("version", version));
            UdpEcho::start(&pod, 5353, version)
        });
        let client = w.pod(PodSpec::new("out", "client", 1));
        let gateway = w.gateway_pod("edge", "gw", 0, &[("gateway.networking.k8s.io/gateway-name", "gw")]);
        w.start_waypoint(&gateway, &[("KARST_UDP_IDLE_TIMEOUT", IDLE), ("KARST_WORKER_THREADS", "2")]);
        w.apply("gw", GATEWAY);
        Self { w, gateway, client, servers }
    }

    fn at(&self) -> SocketAddr {
        self.gateway.at(53)
    }

    /// A client's socket.
    fn socket(&self) -> UdpSocket {
        datagrams(&self.client, self.at())
    }

    /// Asks as ever new clients until this is the answer.
    fn until(&self, what: &str, want: impl Fn(Option<&str>) -> bool) {
        wait_for(what, PATIENCE, || want(ask(&self.socket(), "x").as_deref()).then_some(()));
    }

    /// The value of a line of the metrics.
    fn metric(&self, name: &str) -> u64 {
        let (_, page) = self.w.waypoint_page(&self.gateway, 15020, "/stats/prometheus").unwrap();
        let line = page.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}: {page}")).parse().unwrap()
    }

    /// The sum of all lines of a metric.
    fn sum(&self, name: &str) -> u64 {
        let (_, page) = self.w.waypoint_page(&self.gateway, 15020, "/stats/prometheus").unwrap();
        let lines = page.lines().filter(|l| l.strip_prefix(name).is_some_and(|l| l.starts_with('{')));
        lines.map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

#[test]
fn datagrams_go_to_endpoints_and_answers_come_back() {
    let s = Site::new();
    assert_eq!(ask(&s.socket(), "x"), None, "there is no route");
    s.w.apply("route", &weights(3, 1));
    s.until("an answer", |answer| answer.is_some());
    // By the weights, over both threads.
    let names: Vec<String> = (0..80).map(|n| ask(&s.socket(), &n.to_string()).expect("an answer")).collect();
    let second = names.iter().filter(|answer| answer.starts_with("v2 ")).count();
    assert!((14..=26).contains(&second), "{second} of 80");
    assert!(names.iter().enumerate().all(|(n, answer)| answer.ends_with(&format!(" {n}"))), "{names:?}");
    // A session stays where it is.
    let socket = s.socket();
    let first = ask(&socket, "a").unwrap();
    for _ in 0..20 {
        assert_eq!(ask(&socket, "a").unwrap(), first);
    }
    let large = "x".repeat(8000);
    assert!(ask(&socket, &large).is_some_and(|answer| answer.len() == 8003), "in fragments");
    // What is seen is the gateway.
    let seen = s.servers.iter().flat_map(|server| server.peers.lock().unwrap().clone()).collect::<Vec<_>>();
    assert!(seen.iter().all(|peer| peer.ip() == s.gateway.ip || peer.ip() == s.gateway.ip6), "{seen:?}");
    // The other family, and another address of the gateway's: a client that has connected takes answers from there only.
    wait_for("IPv6", PATIENCE, || ask(&datagrams(&s.client, s.gateway.at6(53)), "6"));
    let other = "10.77.0.240";
    let added = s.gateway.command("ip").args(["addr", "add", &format!("{other}/24"), "dev", "eth0"]).status().unwrap();
    assert!(added.success());
    let socket = datagrams(&s.client, format!("{other}:53").parse().unwrap());
    wait_for("an answer from the other address", PATIENCE, || ask(&socket, "other"));
    // The listener for connections at the same number is another.
    let mut tcp = s.client.connect(s.at()).unwrap();
    assert!(app::ping(&mut tcp, b"x").is_err(), "it has no route");
    // What is not there any more is not used any more, by who began before either.
    let socket = s.socket();
    s.w.apply("route", &weights(1, 0));
    wait_for("the first release", PATIENCE, || ask(&socket, "1").filter(|a| a.starts_with("v1 ")));
    s.w.apply("route", &weights(0, 1));
    wait_for("the second release", PATIENCE, || ask(&socket, "2").filter(|a| a.starts_with("v2 ")));
    // A backend that is not there loses its share only.
    s.w.apply("route", &route("{name: gone, port: 53}, {name: dns-v2, port: 53}"));
    let answered = (0..20).filter(|_| ask(&s.socket(), "x").is_some()).count();
    assert!((6..=14).contains(&answered), "{answered} of 20");
    assert!(s.metric("karst_udp_datagrams_dropped_total{reason=\"no_destination\"}") >= 6);
    // Who is silent ends.
    let (opened, received) =
        (s.metric("karst_udp_sessions_opened_total"), s.metric("karst_udp_bytes_total{direction=\"received\"}"));
    assert!(opened > 80 && received > 8000, "{opened} {received}");
    wait_for("the end of all sessions", PATIENCE, || (s.metric("karst_udp_sessions") == 0).then_some(()));
    // Those whose endpoint the route has left meanwhile have not ended by their silence.
    let of_silence = s.metric("karst_udp_sessions_ended_total{reason=\"idle\"}");
    let ended = s.sum("karst_udp_sessions_ended_total");
    assert!(of_silence > 0 && ended >= opened, "{of_silence} of {ended}, of {opened}");
    let log = s.w.log_text("waypoint-gw-1.log");
    let line = log.lines().find(|l| l.contains("\"- - UDP\"")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("outbound|53||dns-v") && line.contains("UDPRoute app/dns rule 0"), "{line}");
}

/// No tunnel carries datagrams: a member that asks for an identity gets none, and it is told.
#[test]
fn a_member_that_asks_for_an_identity_is_closed() {
    let s = Site::new();
    s.w.apply("route", &weights(1, 0));
    s.until("an answer", |answer| answer.is_some());
    let open = s.socket();
    assert!(ask(&open, "x").is_some());
    s.w.apply("strict", "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: app}\nspec: {mtls: {mode: STRICT}}\n");
    wait_for("the end of the open session", PATIENCE, || ask(&open, "x").is_none().then_some(()));
    let before = s.servers[0].peers.lock().unwrap().len();
    for _ in 0..5 {
        assert_eq!(ask(&s.socket(), "x"), None);
    }
    assert_eq!(s.servers[0].peers.lock().unwrap().len(), before, "nothing has come");
    assert!(s.metric("karst_udp_datagrams_dropped_total{reason=\"plaintext_closed\"}") >= 5);
    wait_for("the complaint", PATIENCE, || s.w.log_text("controller.log").contains("[KARST-0322]").then_some(()));
    s.w.delete("strict");
    s.until("an answer again", |answer| answer.is_some());
}

/// A route that leads back to its gateway sends nothing round.
#[test]
fn a_gateway_is_no_endpoint() {
    const ROUND: &str = "apiVersion: v1
kind: Service
metadata: {name: round, namespace: edge}
spec: {clusterIP: 10.96.1.9, selector: {gateway.networking.k8s.io/gateway-name: gw}, ports: [{name: udp, port: 53, protocol: UDP}, {name: tcp, port: 53}]}
";
    let s = Site::new();
    s.w.apply("round", ROUND);
    s.w.apply("route", &weights(1, 0));
    s.until("an answer", |answer| answer.is_some());
    let back = route("{name: round, port: 53}").replace("name: dns, namespace: app", "name: dns, namespace: edge");
    s.w.apply("route", &back);
    s.until("no answer", |answer| answer.is_none());
    wait_for("the complaint", PATIENCE, || s.w.log_text("controller.log").contains("[KARST-0323]").then_some(()));
    let opened = s.metric("karst_udp_sessions_opened_total");
    for _ in 0..3 {
        assert_eq!(ask(&s.socket(), "x"), None);
    }
    assert_eq!(s.metric("karst_udp_sessions_opened_total"), opened);
    assert!(s.metric("karst_udp_datagrams_dropped_total{reason=\"no_endpoint\"}") >= 3);
}

/// Ever new clients that never take an answer: their sessions are bounded, and who is there stays served.
#[test]
fn a_flood_is_bounded() {
    /// As `limits::MAX_UDP_NEW`.
    const MOST: u64 = 8192;
    let s = Site::new();
    s.w.apply("route", &weights(1, 0));
    s.until("an answer", |answer| answer.is_some());
    let good = s.socket();
    assert!(ask(&good, "1").is_some() && ask(&good, "2").is_some());
    let (client, to) = (s.client.clone(), s.at());
    let flood = std::thread::spawn(move || {
        client.netns().run(|| {
            for _ in 0..20_000 {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                let _ = socket.send_to(b"flood", to);
            }
        })
    });
    let mut lost = 0;
    while !flood.is_finished() {
        lost += u32::from(ask(&good, "x").is_none());
        let sessions = s.metric("karst_udp_sessions");
        assert!(sessions <= MOST + MOST / 8, "{sessions}");
    }
    flood.join().unwrap().unwrap();
    // The kernel's queue may have been full for a moment.
    assert!(lost <= 3, "{lost} answers were lost");
    wait_for("an answer after it", PATIENCE, || ask(&good, "after"));
    wait_for("the end of the flood", PATIENCE, || (s.metric("karst_udp_sessions") <= 2).then_some(()));
}

/// Those who send datagrams to a gateway hear late that it ends: it goes on to answer for a while, and then does not wait for who is
/// silent.
#[test]
fn a_gateway_that_ends_answers_for_a_while() {
    let mut s = Site::new();
    s.w.apply("route", &weights(1, 0));
    s.until("an answer", |answer| answer.is_some());
    let (client, to) = (s.client.clone(), s.at());
    let visits = std::thread::spawn(move || {
        let (mut answers, mut misses) = (vec![], 0);
        while misses < 3 {
            match ask(&datagrams(&client, to), "x") {
                Some(_) => answers.push(Instant::now()),
                None => misses += 1,
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        answers
    });
    std::thread::sleep(Duration::from_millis(300));
    let told = Instant::now();
    s.w.stop_waypoint(&s.gateway, libc::SIGTERM);
    let took = told.elapsed();
    let answers = visits.join().unwrap();
    let after = answers.iter().filter(|at| **at > told).count();
    assert!(after > 20, "only {after} were answered after it was told to end");
    assert!(took < Duration::from_secs(8), "{took:?}");
}
