//! Rollouts of ztunnel under open connections: none is broken, and no byte is lost, doubled or out of order (issue 18). The whole
//! form is `#[ignore]`d and run by `cargo xtask soak --long-tests`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_world::{Options, Pod, PodSpec, World};
use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const PORT: u16 = 8080;
/// Whoever waits this long for a byte has lost it.
const LOST: Duration = Duration::from_secs(15);
/// What is said at a time where there is much: more than a read, so that it is spliced. And how often: a thousand of these are
/// to leave some of two cores to all others.
const BURST: usize = 128 << 10;
const PAUSE: Duration = Duration::from_millis(200);
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
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// The longest time that somebody has waited for what was due, in milliseconds.
    longest_ms: AtomicU64,
    /// Bytes that were checked.
    bytes: AtomicU64,
    /// What servers have had from clients, by seed.
    heard: Mutex<HashMap<u64, u64>>,
    failed: Mutex<Vec<String>>,
}

impl Shared {
    fn going(&self) -> bool {
        !self.stop.load(Relaxed)
    }
    fn waited(&self, since: Instant) {
        self.longest_ms.fetch_max(since.elapsed().as_millis() as u64, Relaxed);
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap()
}

/// Reads and checks until the other side's end. `is_steady`: something is always due.
fn read_all(s: &mut TcpStream, mut want: Bytes, shared: &Shared, is_steady: bool) -> io::Result<u64> {
    let mut buf = vec![0; 64 << 10];
    loop {
        let began = Instant::now();
        let length = s.read(&mut buf)?;
        if is_steady && shared.going() {
            shared.waited(began);
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

fn answer(mut s: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    s.set_nodelay(true)?;
    let mut head = [0; 9];
    if s.read_exact(&mut head).is_err() {
        // Not one of ours.
        return Ok(());
    }
    let seed = u64::from_be_bytes(head[1..].try_into().unwrap());
    let heard = |count: u64| {
        shared.heard.lock().unwrap().insert(seed, count);
    };
    match KINDS[usize::from(head[0])] {
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
                    thread::sleep(PAUSE);
                }
                let _ = writer.shutdown(Shutdown::Write);
            });
            heard(read_all(&mut s, Bytes::of(seed), shared, false)?);
            write.join().unwrap();
            // The writer has shut it down.
            return Ok(());
        }
        Kind::HalfClosed => {
            heard(read_all(&mut s, Bytes::of(seed), shared, false)?);
            let mut say = Bytes::of(seed | ANSWER);
            while shared.going() {
                s.write_all(&say.some(100))?;
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
    s.shutdown(Shutdown::Write)
}

/// A client, until all is over; how much it has said.
fn client(mut s: TcpStream, kind: Kind, seed: u64, shared: &Arc<Shared>) -> io::Result<u64> {
    s.set_nodelay(true)?;
    s.set_read_timeout(Some(LOST))?;
    let place = KINDS.iter().position(|one| *one == kind).unwrap() as u8;
    s.write_all(&[&[place][..], &seed.to_be_bytes()].concat())?;
    let mut say = Bytes::of(seed);
    let echo = |s: &mut TcpStream, say: &mut Bytes, length: usize| {
        let (message, mut got) = (say.some(length), vec![0; length]);
        let began = Instant::now();
        s.write_all(&message)?;
        s.read_exact(&mut got)?;
        shared.waited(began);
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
            let (length, pause) = if kind == Kind::Bytewise { (1, 20) } else { (700, 5) };
            while shared.going() {
                echo(&mut s, &mut say, length)?;
                thread::sleep(Duration::from_millis(pause));
            }
        }
        Kind::Bulk => {
            let (mut reader, own) = (s.try_clone()?, shared.clone());
            let read = spawn(move || {
                if let Err(e) = read_all(&mut reader, Bytes::of(seed | ANSWER), &own, false) {
                    own.failed.lock().unwrap().push(format!("bulk, answer: {e}"));
                }
            });
            while shared.going() {
                s.write_all(&say.some(BURST))?;
                thread::sleep(PAUSE);
            }
            s.shutdown(Shutdown::Write)?;
            read.join().unwrap();
            return Ok(say.at);
        }
        Kind::HalfClosed => {
            s.write_all(&say.some(5000))?;
            s.shutdown(Shutdown::Write)?;
            read_all(&mut s, Bytes::of(seed | ANSWER), shared, true)?;
            return Ok(say.at);
        }
    }
    s.shutdown(Shutdown::Write)?;
    match s.read(&mut [0])? {
        0 => Ok(say.at),
        _ => Err(io::Error::other("bytes after the end")),
    }
}

/// So many connections of every kind, from each of these to each of those.
fn open(places: &[(&'static str, &Pod, SocketAddr)], count: usize, shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    let one = |n: usize| {
        let ((place, from, to), mut kind) = (places[n % places.len()], KINDS[(n / places.len()) % KINDS.len()]);
        if !goes_over(place, kind) {
            kind = Kind::PingPong;
        }
        let (from, shared, seed) = (from.clone(), shared.clone(), n as u64 + 1);
        spawn(move || {
            let said = from.connect(to).and_then(|s| client(s, kind, seed, &shared));
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
            shared.failed.lock().unwrap().push(format!("{place}, {kind:?}: {fault}"));
        })
    };
    (0..count).map(one).collect()
}

/// May it go over yet? Not what the replaced node's own application has half closed towards another node (docs/hbone.md §10.8).
fn goes_over(place: &str, kind: Kind) -> bool {
    place != "other node" || kind != Kind::HalfClosed
}

/// Replaces the ztunnels of two nodes in turn, again and again. Each old one ends long before its drain would have ended it: it
/// has nothing open any more.
fn rollouts(rounds: usize, connections: usize, longest: Duration) {
    let drain = Duration::from_secs(59);
    let ztunnel_env = vec![("TERMINATION_GRACE_PERIOD_SECONDS".into(), "64".into())];
    let mut w = World::start(Options { ztunnel_env, ..Options::default() }).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let (a, near) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "near", 0)));
    let far = w.mesh_pod(PodSpec::new("app", "far", 1));
    let outside = w.pod(PodSpec::new("out", "outside", 1));
    w.settle();
    let shared = Arc::new(Shared::default());
    [&near, &far, &outside].into_iter().for_each(|pod| serve(pod, &shared));
    let places = [
        ("same node", &a, near.at(PORT)),
        ("other node", &a, far.at(PORT)),
        ("to outside", &a, outside.at(PORT)),
        ("from outside", &outside, near.at(PORT)),
    ];
    let clients = open(&places, connections, &shared);
    thread::sleep(Duration::from_secs(2));
    let opened = w.metric(0, "istio_tcp_sockets_open", &["reporter=\"destination\""]);
    assert!(opened > 0.0, "nothing is open");
    let (mut ports, mut slowest) = ([15000; 2], Duration::ZERO);
    for round in 0..rounds {
        let node = round % 2;
        ports[node] = if ports[node] == 15000 { 16000 } else { 15000 };
        let mut old = w.replace_ztunnel(node, ports[node]);
        let began = Instant::now();
        old.wait().unwrap();
        slowest = slowest.max(began.elapsed());
        thread::sleep(Duration::from_millis(200));
    }
    shared.stop.store(true, Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
    let failed = shared.failed.lock().unwrap();
    let pause = shared.longest_ms.load(Relaxed);
    println!(
        "rollouts={rounds} connections={connections} broken={} bytes={} longest_pause_ms={pause} slowest_leave_ms={} {:?}",
        failed.len(),
        shared.bytes.load(Relaxed),
        slowest.as_millis(),
        failed.iter().take(5).collect::<Vec<_>>()
    );
    assert!(failed.is_empty(), "{failed:?}");
    assert!(slowest < drain / 4, "it has waited for its drain: {slowest:?}");
    assert!(u128::from(pause) <= longest.as_millis(), "{pause} ms");
    let log = w.log_text("ztunnel0.log");
    assert!(log.contains("connection handed over"), "each part of a connection is told of");
}

#[test]
fn open_connections_survive_rollouts() {
    // Others run beside it here: what a pause is worth is for the whole form.
    rollouts(4, 100, Duration::from_secs(1));
}

#[test]
#[ignore = "soak: about five minutes"]
fn soak_open_connections_survive_rollouts() {
    rollouts(100, 1000, Duration::from_millis(100));
}

/// Switched off, what is open has the drain's time, and is cut when that is over.
#[test]
fn without_hand_over_a_drain_ends_what_is_open() {
    let ztunnel_env = [("TERMINATION_GRACE_PERIOD_SECONDS", "3"), ("KARST_HAND_OVER", "false")];
    let ztunnel_env = ztunnel_env.map(|(k, v)| (k.to_string(), v.to_string())).to_vec();
    let mut w = World::start(Options { nodes: 1, ztunnel_env, ..Options::default() }).unwrap();
    w.namespace("app", true);
    let (a, near) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "near", 0)));
    let _echo = karst_world::app::Echo::start(&near, PORT, "");
    let mut s = a.connect(near.at(PORT)).unwrap();
    karst_world::app::ping(&mut s, b"before").unwrap();
    let mut old = w.replace_ztunnel(0, 16000);
    let began = Instant::now();
    karst_world::app::ping(&mut s, b"while it drains").unwrap();
    old.wait().unwrap();
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    s.set_read_timeout(Some(LOST)).unwrap();
    assert_eq!(s.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}
