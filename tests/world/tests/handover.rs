//! Rollouts of ztunnel under open connections: none is broken, and no byte is lost, doubled or out of order (issue 18). Whoever has no
//! part in that (another release, another node's) drains as before. The whole forms are `#[ignore]`d and run by
//! `cargo xtask soak --long-tests`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_world::{Options, Pod, PodSpec, World, app, wait_for};
use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const PORT: u16 = 8080;
/// Whoever waits this long for a byte has lost it.
const LOST: Duration = Duration::from_secs(15);
/// What is said at a time where there is much: more than a read, so that it is spliced.
const BURST: usize = 128 << 10;
/// What a server says at a time by itself.
const SAYING: usize = 100;
/// Between two bursts, two messages, two bytes, and two of what a server says by itself, where there are a hundred connections.
const BURST_PAUSE: Duration = Duration::from_millis(200);
const MESSAGE_PAUSE: Duration = Duration::from_millis(5);
const BYTE_PAUSE: Duration = Duration::from_millis(20);
const SAYING_PAUSE: Duration = Duration::from_millis(10);
/// Seeds of what the server says by itself.
const ANSWER: u64 = 1 << 40;

/// What is done on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing, until all is over.
    Idle,
    /// Much, both ways at a time.
    Bulk,
    /// A message and its answer, again and again.
    PingPong,
    /// The client has ended; the server goes on.
    HalfClosed,
    /// One byte and its answer, now and then.
    Bytewise,
}

const KINDS: [Kind; 5] = [Kind::Idle, Kind::Bulk, Kind::PingPong, Kind::HalfClosed, Kind::Bytewise];

/// How large a run is.
#[derive(Clone, Copy)]
struct Size {
    /// How many ztunnels are replaced, one after the other.
    rounds: usize,
    connections: usize,
    /// The longest that anybody may wait for what is due.
    longest: Duration,
}

/// Others run beside it here: what a pause is worth is for the whole form.
const SMALL: Size = Size { rounds: 4, connections: 100, longest: Duration::from_secs(1) };
/// That of issue 18: some ten minutes on two cores.
const WHOLE: Size = Size { rounds: 100, connections: 1000, longest: Duration::from_millis(100) };

impl Size {
    /// However many connections there are, they say as much together: or it would be measured how long two cores take for that.
    fn pause(self, of_a_hundred: Duration) -> Duration {
        of_a_hundred * (self.connections as u32).div_ceil(100)
    }
}

/// A sequence of bytes in which each place is known.
struct Bytes {
    seed: u64,
    at: u64,
}

impl Bytes {
    fn of(seed: u64) -> Self {
        Self { seed, at: 0 }
    }
    fn byte(&mut self) -> u8 {
        let z = (self.seed.wrapping_mul(0x1000_0001) ^ self.at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.at += 1;
        (z >> 32) as u8 ^ (z >> 56) as u8
    }
    fn some(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.byte()).collect()
    }
    /// Are these the next ones?
    fn check(&mut self, got: &[u8]) -> io::Result<()> {
        let began = self.at;
        match got.iter().all(|byte| *byte == self.byte()) {
            true => Ok(()),
            false => Err(io::Error::other(format!("other bytes after {began}"))),
        }
    }
}

/// What all threads share.
struct Shared {
    size: Size,
    stop: AtomicBool,
    /// Connections that have been opened.
    opened: AtomicUsize,
    /// All are open, and rollouts go on.
    measures: AtomicBool,
    /// The longest time that somebody has waited for what was due, in milliseconds.
    longest_ms: AtomicU64,
    /// Bytes that were checked.
    bytes: AtomicU64,
    /// What servers have had from clients, by seed.
    heard: Mutex<HashMap<u64, u64>>,
    failed: Mutex<Vec<String>>,
}

impl Shared {
    fn new(size: Size) -> Arc<Self> {
        Arc::new(Self {
            size,
            stop: AtomicBool::default(),
            opened: AtomicUsize::default(),
            measures: AtomicBool::default(),
            longest_ms: AtomicU64::default(),
            bytes: AtomicU64::default(),
            heard: Mutex::default(),
            failed: Mutex::default(),
        })
    }
    fn going(&self) -> bool {
        !self.stop.load(Relaxed)
    }
    fn rest(&self, of_a_hundred: Duration) {
        thread::sleep(self.size.pause(of_a_hundred));
    }
    /// Somebody has waited for what was due after so long.
    fn waited(&self, since: Instant, due: Duration) {
        if self.measures.load(Relaxed) {
            self.longest_ms.fetch_max(since.elapsed().saturating_sub(due).as_millis() as u64, Relaxed);
        }
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap()
}

/// Reads and checks until the other side's end. `every`: so many bytes come at a time, and so often; the rest of those that have
/// begun to come is due at once.
fn read_all(s: &mut TcpStream, mut want: Bytes, shared: &Shared, every: Option<(usize, Duration)>) -> io::Result<u64> {
    let mut buf = vec![0; 64 << 10];
    loop {
        let began = Instant::now();
        let length = s.read(&mut buf)?;
        if let Some((together, pause)) = every.filter(|_| shared.going()) {
            let due = if want.at.is_multiple_of(together as u64) { pause } else { Duration::ZERO };
            shared.waited(began, due);
        }
        if length == 0 {
            return Ok(want.at);
        }
        want.check(&buf[..length])?;
        shared.bytes.fetch_add(length as u64, Relaxed);
    }
}

/// Serves whatever clients ask for: a first message says the kind and the seed.
fn serve(pod: &Pod, shared: &Arc<Shared>) {
    let bind = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    let listener = pod.netns().run(bind).unwrap();
    let shared = shared.clone();
    spawn(move || {
        while let Ok((s, _)) = listener.accept() {
            let shared = shared.clone();
            spawn(move || {
                let name = format!("server of {:?}", s.peer_addr());
                if let Err(e) = answer(s, &shared) {
                    shared.failed.lock().unwrap().push(format!("{name}: {e}"));
                }
            });
        }
    });
}

/// A head of HTTP/1.1, and nothing of what follows it.
fn head(s: &mut TcpStream) -> io::Result<Vec<u8>> {
    let (mut head, mut byte) = (vec![], [0]);
    while !head.ends_with(b"\r\n\r\n") {
        s.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(head)
}

/// Makes a WebSocket of a connection, as far as proxies look.
fn upgrade(s: &mut TcpStream) -> io::Result<()> {
    s.write_all(b"GET / HTTP/1.1\r\nhost: far\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")?;
    let answer = head(s)?;
    match answer.starts_with(b"HTTP/1.1 101 ") {
        true => Ok(()),
        false => Err(io::Error::other(format!("no WebSocket: {}", String::from_utf8_lossy(&answer)))),
    }
}

fn answer(mut s: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    s.set_nodelay(true)?;
    let (mut kind, mut seed) = ([0], [0; 8]);
    if s.read_exact(&mut kind).is_err() {
        // Not one of ours.
        return Ok(());
    }
    if kind == *b"G" {
        head(&mut s)?;
        s.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")?;
        s.read_exact(&mut kind)?;
    }
    s.read_exact(&mut seed)?;
    let seed = u64::from_be_bytes(seed);
    let heard = |count: u64| {
        shared.heard.lock().unwrap().insert(seed, count);
    };
    match KINDS[usize::from(kind[0])] {
        Kind::Idle | Kind::PingPong | Kind::Bytewise => {
            let (mut want, mut buf) = (Bytes::of(seed), vec![0; 16 << 10]);
            loop {
                let length = s.read(&mut buf)?;
                if length == 0 {
                    break;
                }
                want.check(&buf[..length])?;
                s.write_all(&buf[..length])?;
            }
            heard(want.at);
        }
        Kind::Bulk => {
            let (mut writer, own) = (s.try_clone()?, shared.clone());
            let write = spawn(move || {
                let mut say = Bytes::of(seed | ANSWER);
                while own.going() && writer.write_all(&say.some(BURST)).is_ok() {
                    own.rest(BURST_PAUSE);
                }
                let _ = writer.shutdown(Shutdown::Write);
            });
            heard(read_all(&mut s, Bytes::of(seed), shared, Some((BURST, shared.size.pause(BURST_PAUSE))))?);
            write.join().unwrap();
            // The writer has shut it down.
            return Ok(());
        }
        Kind::HalfClosed => {
            heard(read_all(&mut s, Bytes::of(seed), shared, None)?);
            let mut say = Bytes::of(seed | ANSWER);
            while shared.going() {
                s.write_all(&say.some(SAYING))?;
                shared.rest(SAYING_PAUSE);
            }
        }
    }
    s.shutdown(Shutdown::Write)
}

/// A client, until all is over; how much it has said.
fn client(mut s: TcpStream, way: &Way, kind: Kind, seed: u64, shared: &Arc<Shared>) -> io::Result<u64> {
    s.set_nodelay(true)?;
    s.set_read_timeout(Some(LOST))?;
    if way.websocket {
        upgrade(&mut s)?;
    }
    let place = KINDS.iter().position(|one| *one == kind).unwrap() as u8;
    s.write_all(&[&[place][..], &seed.to_be_bytes()].concat())?;
    shared.opened.fetch_add(1, Relaxed);
    let mut say = Bytes::of(seed);
    let echo = |s: &mut TcpStream, say: &mut Bytes, length: usize| {
        let (message, mut got) = (say.some(length), vec![0; length]);
        let began = Instant::now();
        s.write_all(&message)?;
        s.read_exact(&mut got)?;
        shared.waited(began, Duration::ZERO);
        shared.bytes.fetch_add(length as u64, Relaxed);
        if got == message { Ok(()) } else { Err(io::Error::other("another answer")) }
    };
    match kind {
        Kind::Idle => {
            echo(&mut s, &mut say, 1000)?;
            while shared.going() {
                thread::sleep(Duration::from_millis(100));
            }
            echo(&mut s, &mut say, 1000)?;
        }
        Kind::PingPong | Kind::Bytewise => {
            let (length, pause) = if kind == Kind::Bytewise { (1, BYTE_PAUSE) } else { (700, MESSAGE_PAUSE) };
            while shared.going() {
                echo(&mut s, &mut say, length)?;
                shared.rest(pause);
            }
        }
        Kind::Bulk => {
            let (mut reader, own) = (s.try_clone()?, shared.clone());
            let read = spawn(move || {
                let every = (BURST, own.size.pause(BURST_PAUSE));
                if let Err(e) = read_all(&mut reader, Bytes::of(seed | ANSWER), &own, Some(every)) {
                    own.failed.lock().unwrap().push(format!("bulk, answer: {e}"));
                }
            });
            while shared.going() {
                s.write_all(&say.some(BURST))?;
                shared.rest(BURST_PAUSE);
            }
            s.shutdown(Shutdown::Write)?;
            read.join().unwrap();
            return Ok(say.at);
        }
        Kind::HalfClosed => {
            s.write_all(&say.some(5000))?;
            s.shutdown(Shutdown::Write)?;
            let every = (SAYING, shared.size.pause(SAYING_PAUSE));
            read_all(&mut s, Bytes::of(seed | ANSWER), shared, Some(every))?;
            return Ok(say.at);
        }
    }
    s.shutdown(Shutdown::Write)?;
    match s.read(&mut [0])? {
        0 => Ok(say.at),
        _ => Err(io::Error::other("bytes after the end")),
    }
}

/// From where to where, and how.
#[derive(Clone)]
struct Way {
    place: &'static str,
    from: Pod,
    to: SocketAddr,
    /// By a tunnel that the ztunnel of the client's node has opened.
    tunnelled: bool,
    websocket: bool,
}

impl Way {
    fn new(place: &'static str, from: &Pod, to: SocketAddr) -> Self {
        Self { place, from: from.clone(), to, tunnelled: false, websocket: false }
    }
    fn tunnelled(self) -> Self {
        Self { tunnelled: true, ..self }
    }
    fn websocket(self) -> Self {
        Self { websocket: true, ..self }
    }
    /// May it go over? Not what the replaced node's own application has half closed towards another node (docs/hbone.md §10.8).
    fn goes_over(&self, kind: Kind) -> bool {
        !self.tunnelled || kind != Kind::HalfClosed
    }
}

/// Connections of every kind, by each of these ways.
fn open(ways: &[Way], shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    let one = |n: usize| {
        let (way, mut kind) = (ways[n % ways.len()].clone(), KINDS[(n / ways.len()) % KINDS.len()]);
        if !way.goes_over(kind) {
            kind = Kind::PingPong;
        }
        let (shared, seed) = (shared.clone(), n as u64 + 1);
        spawn(move || {
            let said = way.from.connect(way.to).and_then(|s| client(s, &way, kind, seed, &shared));
            let fault = match said {
                Err(e) => e.to_string(),
                Ok(said) => {
                    // The server has its end about now.
                    thread::sleep(Duration::from_millis(500));
                    match shared.heard.lock().unwrap().get(&seed) {
                        Some(heard) if *heard == said => return,
                        heard => format!("{said} bytes were sent and {heard:?} received"),
                    }
                }
            };
            shared.failed.lock().unwrap().push(format!("{}, {kind:?}: {fault}", way.place));
        })
    };
    (0..shared.size.connections).map(one).collect()
}

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
