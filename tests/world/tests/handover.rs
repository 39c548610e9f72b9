//! Rollouts of ztunnel under open connections: none is broken, and no byte is lost, doubled or out of order (issue 18). Whoever has no
//! part in that (another release, another node's) drains as before. The whole forms are `#[ignore]`d and run by
//! `cargo xtask soak --long-tests`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_world::{
    Options, Pod, PodSpec, World, app,
    held::{LOST, PORT, Shared, Size, Way, open, serve},
    wait_for,
};
use std::{
    io::{self, Read},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

/// Others run beside it here: what a pause is worth is for the whole form.
const SMALL: Size = Size { rounds: 4, connections: 100, longest: Duration::from_secs(1) };
/// That of issue 18: some ten minutes on two cores.
const WHOLE: Size = Size { rounds: 100, connections: 1000, longest: Duration::from_millis(100) };

/// A service whose connections go through a waypoint: at port 82 as bytes, at port 81 as HTTP.
const BOUND: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: far, namespace: app, labels: {istio.io/use-waypoint: waypoint}}\nspec: {clusterIP: 10.96.0.20, selector: {app: far}, ports: [{name: tcp, port: 82, targetPort: 8080}, {name: http, port: 81, targetPort: 8080}]}\n";

/// Two nodes, and connections within one, between both, from and to outside, and through a waypoint.
struct Site {
    w: World,
    waypoint: Pod,
    shared: Arc<Shared>,
    ways: Vec<Way>,
}

impl Site {
    fn new(size: Size, grace: &str) -> Self {
        let ztunnel_env = vec![("TERMINATION_GRACE_PERIOD_SECONDS".into(), grace.into())];
        let mut w = World::start(Options { ztunnel_env, ..Options::default() }).unwrap();
        w.namespace("app", true);
        w.namespace("out", false);
        w.apply("far", BOUND);
        let waypoint = w.waypoint("app", "waypoint", 1, &[]);
        let (a, near) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "near", 0)));
        let far = w.mesh_pod(PodSpec::new("app", "far", 1));
        let outside = w.pod(PodSpec::new("out", "outside", 1));
        w.settle();
        let shared = Shared::new(size);
        [&near, &far, &outside].into_iter().for_each(|pod| serve(pod, &shared));
        let at = |port| SocketAddr::from(([10, 96, 0, 20], port));
        let ways = vec![
            Way::new("same node", &a, near.at(PORT)),
            Way::new("other node", &a, far.at(PORT)).tunnelled(),
            Way::new("to outside", &a, outside.at(PORT)),
            Way::new("from outside", &outside, near.at(PORT)),
            Way::new("through a waypoint", &a, at(82)).tunnelled(),
            Way::new("WebSocket through a waypoint", &a, at(81)).tunnelled().websocket(),
        ];
        Self { w, waypoint, shared, ways }
    }

    /// How many connections the waypoint has gone on with, of which a ztunnel at one of their ends was replaced.
    fn followed(&self) -> f64 {
        let (_, page) = self.w.waypoint_page(&self.waypoint, 15020, "/metrics").unwrap();
        let line = page.lines().find(|line| line.starts_with("karst_connections_handed_over_total{role=\"followed\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("the metric")
    }
}

/// Replaces the ztunnels of two nodes in turn, again and again. Each old one ends long before its drain would have ended it: it
/// has nothing open any more. `former`: a ztunnel of another release, which takes every other turn on each node.
fn rollouts(size: Size, former: Option<PathBuf>) {
    let drain = Duration::from_secs(59);
    let mut site = Site::new(size, "64");
    let shared = site.shared.clone();
    let clients = open(&site.ways, &shared);
    wait_for("all are open", Duration::from_secs(60), || {
        let failed = shared.failed.lock().unwrap();
        assert!(failed.is_empty(), "{failed:?}");
        (shared.opened.load(Relaxed) == size.connections).then_some(())
    });
    thread::sleep(Duration::from_secs(2));
    let opened = site.w.metric(0, "istio_tcp_sockets_open", &["reporter=\"destination\""]);
    assert!(opened > 0.0, "nothing is open");
    let (mut ports, mut slowest) = ([15000; 2], Duration::ZERO);
    shared.measures.store(true, Relaxed);
    for round in 0..size.rounds {
        let node = round % 2;
        ports[node] = if ports[node] == 15000 { 16000 } else { 15000 };
        site.w.set_ztunnel_bin(former.clone().filter(|_| (round / 2 + node).is_multiple_of(2)));
        let mut old = site.w.replace_ztunnel(node, ports[node]);
        let began = Instant::now();
        old.wait().unwrap();
        slowest = slowest.max(began.elapsed());
        thread::sleep(Duration::from_millis(200));
    }
    shared.measures.store(false, Relaxed);
    let followed = site.followed();
    shared.stop.store(true, Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
    let failed = shared.failed.lock().unwrap();
    let pause = shared.longest_ms.load(Relaxed);
    println!(
        "rollouts={} connections={} broken={} bytes={} longest_pause_ms={pause} slowest_leave_ms={} followed_by_waypoint={followed} {:?}",
        size.rounds,
        size.connections,
        failed.len(),
        shared.bytes.load(Relaxed),
        slowest.as_millis(),
        failed.iter().take(5).collect::<Vec<_>>()
    );
    assert!(failed.is_empty(), "{failed:?}");
    assert!(slowest < drain / 4, "it has waited for its drain: {slowest:?}");
    assert!(followed > 0.0, "the waypoint has gone on with none");
    assert!(u128::from(pause) <= size.longest.as_millis(), "{pause} ms");
    let log = site.w.log_text("ztunnel0.log");
    assert!(log.contains("connection handed over"), "each part of a connection is told of");
}

#[test]
fn open_connections_survive_rollouts() {
    rollouts(SMALL, None);
}

#[test]
#[ignore = "soak: about ten minutes"]
fn soak_open_connections_survive_rollouts() {
    rollouts(WHOLE, None);
}

#[test]
#[ignore = "soak: about ten minutes; KARST_FORMER_ZTUNNEL: a ztunnel of another release"]
fn soak_open_connections_survive_rollouts_of_two_releases() {
    let former = std::env::var_os("KARST_FORMER_ZTUNNEL").map(PathBuf::from);
    let former = former.expect("KARST_FORMER_ZTUNNEL names a ztunnel of another release (docs/operations.md)");
    assert!(former.is_file(), "KARST_FORMER_ZTUNNEL: {} is no file", former.display());
    rollouts(WHOLE, Some(former));
}

/// A connection that is used all the time; every byte of it is checked.
struct Held {
    place: &'static str,
    s: TcpStream,
}

impl Held {
    fn new(place: &'static str, from: &Pod, to: SocketAddr) -> Self {
        let mut held = Self { place, s: from.connect(to).unwrap() };
        held.works();
        held
    }
    fn works(&mut self) {
        app::ping(&mut self.s, self.place.as_bytes()).unwrap_or_else(|e| panic!("{}: {e}", self.place));
    }
    /// It has ended as something that is cut, and with no byte or end that nobody has sent.
    fn was_cut(mut self) {
        self.s.set_read_timeout(Some(LOST)).unwrap();
        let ended = self.s.read(&mut [0]).map_err(|e| e.kind());
        assert_eq!(ended, Err(io::ErrorKind::ConnectionReset), "{}", self.place);
    }
}

/// A drain of three seconds, without hand-over or with it.
fn env(hand_over: bool) -> Vec<(String, String)> {
    let all =
        [("TERMINATION_GRACE_PERIOD_SECONDS", "4"), ("KARST_HAND_OVER", if hand_over { "true" } else { "false" })];
    all.map(|(k, v)| (k.to_string(), v.to_string())).to_vec()
}

/// Node 1 has a ztunnel as of a release from before hand-over, which node 0 has. What only one side knows of drains, on either node;
/// what is within node 0 goes over.
#[test]
fn beside_a_release_without_hand_over_connections_drain_as_before() {
    let mut w = World::start(Options { ztunnel_env: env(true), ..Options::default() }).unwrap();
    w.namespace("app", true);
    w.apply("far", BOUND);
    let _waypoint = w.waypoint("app", "waypoint", 0, &[]);
    let (a, near) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "near", 0)));
    let (b, far) = (w.mesh_pod(PodSpec::new("app", "b", 1)), w.mesh_pod(PodSpec::new("app", "far", 1)));
    let echoes = [&near, &far].map(|pod| app::Echo::start(pod, PORT, ""));
    w.set_ztunnel_env(env(false));
    w.replace_ztunnel(1, 16000).wait().unwrap();
    let through = SocketAddr::from(([10, 96, 0, 20], 82));
    let mut within = Held::new("within node 0", &a, near.at(PORT));
    let mut drain = vec![
        Held::new("the server does not announce", &a, far.at(PORT)),
        Held::new("the client does not announce", &b, near.at(PORT)),
    ];
    let mut spared = vec![
        Held::new("through a waypoint, to node 1", &a, through),
        Held::new("through a waypoint, of node 1", &b, through),
    ];
    w.set_ztunnel_env(env(true));
    let mut old = w.replace_ztunnel(0, 16000);
    let began = Instant::now();
    drain.iter_mut().chain([&mut within]).for_each(Held::works);
    old.wait().unwrap();
    assert!(began.elapsed() > Duration::from_secs(2), "it has not drained: {:?}", began.elapsed());
    drain.into_iter().for_each(Held::was_cut);
    within.works();
    // The waypoint and the ztunnel of node 0 know of it, whoever is at the other end.
    spared.iter_mut().for_each(Held::works);
    // On node 1 nothing goes over.
    let mut drain = vec![Held::new("to node 1", &a, far.at(PORT)), Held::new("of node 1", &b, near.at(PORT))];
    w.set_ztunnel_env(env(false));
    let mut old = w.replace_ztunnel(1, 15000);
    let began = Instant::now();
    drain.iter_mut().chain(&mut spared).for_each(Held::works);
    old.wait().unwrap();
    assert!(began.elapsed() > Duration::from_secs(2), "it has not drained: {:?}", began.elapsed());
    drain.into_iter().chain(spared).for_each(Held::was_cut);
    within.works();
    // Of node 0: one within it, and two from node 1. Of node 1: two from node 0, and two by the waypoint.
    assert_eq!(echoes.each_ref().map(app::Echo::connections), [3, 4], "nobody has begun a connection anew");
}

/// The other node's ztunnel is rolled back to a release without hand-over in the middle of a hand-over: the stream with which the
/// connection would go on comes to one that does not have it.
#[test]
fn what_cannot_go_on_is_reset_and_never_begun_anew() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let (a, far) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "far", 1)));
    let echo = app::Echo::start(&far, PORT, "");
    let mut held = Held::new("other node", &a, far.at(PORT));
    let of = |grace: &str, hand_over: &str| {
        let all = [("TERMINATION_GRACE_PERIOD_SECONDS", grace), ("KARST_HAND_OVER", hand_over)];
        all.map(|(k, v)| (k.to_string(), v.to_string())).to_vec()
    };
    // It drains for 25 s by itself, and keeps what its successor does not take.
    w.set_ztunnel_env(of("30", "true"));
    w.replace_ztunnel(1, 16000).wait().unwrap();
    held.works();
    w.set_ztunnel_env(of("30", "false"));
    let mut before = w.replace_ztunnel(1, 15000);
    held.works();
    w.set_ztunnel_env(of("30", "true"));
    w.replace_ztunnel(0, 16000).wait().unwrap();
    held.was_cut();
    assert_eq!(echo.connections(), 1, "what was left of it is no connection of its own");
    assert!(w.log_text("ztunnel0.log").contains("connection handed over"));
    karst_world::kill(before.id(), libc::SIGKILL);
    before.wait().unwrap();
}

/// Switched off, what is open has the drain's time, and is cut when that is over.
#[test]
fn without_hand_over_a_drain_ends_what_is_open() {
    let ztunnel_env = [("TERMINATION_GRACE_PERIOD_SECONDS", "3"), ("KARST_HAND_OVER", "false")];
    let ztunnel_env = ztunnel_env.map(|(k, v)| (k.to_string(), v.to_string())).to_vec();
    let mut w = World::start(Options { nodes: 1, ztunnel_env, ..Options::default() }).unwrap();
    w.namespace("app", true);
    let (a, near) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "near", 0)));
    let _echo = app::Echo::start(&near, PORT, "");
    let mut held = Held::new("same node", &a, near.at(PORT));
    let mut old = w.replace_ztunnel(0, 16000);
    let began = Instant::now();
    held.works();
    old.wait().unwrap();
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    held.was_cut();
}
