//! Connections out of a pod: new ones at a pace, and held ones.

use karst_rt::netns::Netns;
use karst_world::app;
use std::{
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const THREADS: u64 = 4;

/// New connections, each with one message there and back.
pub struct Load {
    stop: Arc<AtomicBool>,
    ok: Arc<AtomicU64>,
    slowest_ms: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

/// What came of it.
#[derive(Debug)]
pub struct Result {
    /// Connections that went well.
    pub ok: u64,
    /// The others.
    pub failed: Vec<String>,
    /// The longest that one took.
    pub slowest_ms: u64,
}

impl Load {
    /// Starts it: so many connections a second.
    pub fn start(from: &Netns, to: SocketAddr, rate: u64, marker: &'static [u8]) -> Self {
        let (stop, ok, slowest_ms) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let threads = (0..THREADS)
            .map(|_| {
                let (n, stop, ok, slowest) = (from.clone(), stop.clone(), ok.clone(), slowest_ms.clone());
                std::thread::spawn(move || {
                    let pause = Duration::from_micros(1_000_000 * THREADS / rate);
                    let mut failed = Vec::new();
                    while !stop.load(Relaxed) {
                        let begun = Instant::now();
                        let done = n
                            .run(|| TcpStream::connect_timeout(&to, Duration::from_secs(10)))
                            .and_then(|s| s)
                            .and_then(|mut s| app::ping(&mut s, marker));
                        match done {
                            Ok(()) => drop(ok.fetch_add(1, Relaxed)),
                            Err(e) => failed.push(e.to_string()),
                        }
                        slowest.fetch_max(begun.elapsed().as_millis() as u64, Relaxed);
                        std::thread::sleep(pause.saturating_sub(begun.elapsed()));
                    }
                    failed
                })
            })
            .collect();
        Self { stop, ok, slowest_ms, threads }
    }
    /// Ends it.
    pub fn end(self) -> Result {
        self.stop.store(true, Relaxed);
        let failed = self.threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        Result { ok: self.ok.load(Relaxed), failed, slowest_ms: self.slowest_ms.load(Relaxed) }
    }
}

/// Connections that stay open and are used now and then.
pub struct Held(Vec<TcpStream>);

impl Held {
    /// Opens them.
    pub fn open(from: &Netns, to: SocketAddr, number: usize) -> Self {
        let one = |_| from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5))).unwrap().unwrap();
        Self((0..number).map(one).collect())
    }
    /// How many do not work any more.
    pub fn broken(&mut self) -> usize {
        self.0.iter_mut().filter_map(|s| app::ping(s, b"held connection").err()).count()
    }
}
