//! Connections that are held open while something happens to the mesh: idle, bulk both ways, messages, one byte at a time, half-closed.
//! Of each the bytes are known at every place, and compared at both ends.

use crate::Pod;
use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// At which [`serve`] serves.
pub const PORT: u16 = 8080;
/// Whoever waits this long for a byte has lost it.
pub const LOST: Duration = Duration::from_secs(15);
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
pub enum Kind {
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

/// All of them.
pub const KINDS: [Kind; 5] = [Kind::Idle, Kind::Bulk, Kind::PingPong, Kind::HalfClosed, Kind::Bytewise];

/// How large a run is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// How often something happens to the mesh.
    pub rounds: usize,
    /// How many connections there are.
    pub connections: usize,
    /// The longest that anybody may wait for what is due.
    pub longest: Duration,
}

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
#[derive(Debug)]
pub struct Shared {
    size: Size,
    /// All end, and compare what they have.
    pub stop: AtomicBool,
    /// Connections that have been opened.
    pub opened: AtomicUsize,
    /// All are open, and something happens to the mesh.
    pub measures: AtomicBool,
    /// The longest time that somebody has waited for what was due, in milliseconds.
    pub longest_ms: AtomicU64,
    /// Bytes that were checked.
    pub bytes: AtomicU64,
    /// What servers have had from clients, by seed.
    heard: Mutex<HashMap<u64, u64>>,
    /// What went wrong.
    pub failed: Mutex<Vec<String>>,
}

impl Shared {
    /// Nothing has happened yet.
    pub fn new(size: Size) -> Arc<Self> {
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
pub fn serve(pod: &Pod, shared: &Arc<Shared>) {
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
#[derive(Clone, Debug)]
pub struct Way {
    place: &'static str,
    from: Pod,
    to: SocketAddr,
    /// By a tunnel that the ztunnel of the client's node has opened.
    tunnelled: bool,
    websocket: bool,
}

impl Way {
    /// From a pod to an address.
    pub fn new(place: &'static str, from: &Pod, to: SocketAddr) -> Self {
        Self { place, from: from.clone(), to, tunnelled: false, websocket: false }
    }
    /// By a tunnel that the ztunnel of the client's node has opened.
    pub fn tunnelled(self) -> Self {
        Self { tunnelled: true, ..self }
    }
    /// As a WebSocket.
    pub fn websocket(self) -> Self {
        Self { websocket: true, ..self }
    }
    /// May it go over? Not what the replaced node's own application has half closed towards another node (docs/hbone.md §10.8).
    fn goes_over(&self, kind: Kind) -> bool {
        !self.tunnelled || kind != Kind::HalfClosed
    }
}

/// Connections of every kind, by each of these ways.
pub fn open(ways: &[Way], shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
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
