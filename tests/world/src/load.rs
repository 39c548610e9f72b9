//! New connections at a fixed rate out of a network namespace, until told to stop.

use crate::app;
use karst_rt::netns::Netns;
use std::{
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const THREADS: u64 = 4;
const CONNECT: Duration = Duration::from_secs(10);

/// Connections, each with one message there and back.
pub struct Load {
    stop: Arc<AtomicBool>,
    ok: Arc<AtomicU64>,
    slowest_ms: Arc<AtomicU64>,
    /// Read while a connection is open.
    open: Arc<RwLock<()>>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

/// What came of it.
#[derive(Debug)]
pub struct Loaded {
    /// Connections that went well.
    pub ok: u64,
    /// The others: `refused: …`, or `cut: …` where the connection had been accepted before, or `late: …` where the client has
    /// lost patience.
    pub failed: Vec<String>,
    /// The longest that one took, milliseconds.
    pub slowest_ms: u64,
}

impl Load {
    /// Starts it: so many connections a second.
    pub fn start(from: &Netns, to: SocketAddr, per_second: u64, marker: &'static [u8]) -> Self {
        Self::with((from, to), (per_second, THREADS), marker, None)
    }

    /// The same with clients that give a connection up after `limit`. They are so many that those who wait hold up no other.
    pub fn impatient(from: &Netns, to: SocketAddr, per_second: u64, marker: &'static [u8], limit: Duration) -> Self {
        let waiting = per_second * limit.as_millis() as u64 / 1000;
        Self::with((from, to), (per_second, waiting + 1), marker, Some(limit))
    }

    fn with(
        (from, to): (&Netns, SocketAddr),
        (per_second, threads): (u64, u64),
        marker: &'static [u8],
        limit: Option<Duration>,
    ) -> Self {
        let (stop, ok, slowest_ms) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let open = Arc::new(RwLock::new(()));
        let work = |i: u64| {
            let (stop, ok, slowest, from) = (stop.clone(), ok.clone(), slowest_ms.clone(), from.clone());
            let open = open.clone();
            std::thread::spawn(move || {
                let mut failed = vec![];
                let gap = Duration::from_micros(1_000_000 * threads / per_second);
                let mut next = Instant::now() + gap * i as u32 / threads as u32;
                while !stop.load(Relaxed) {
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                    next += gap;
                    let _open = open.read().unwrap();
                    let t = Instant::now();
                    let connect = limit.unwrap_or(CONNECT);
                    match from.run(|| TcpStream::connect_timeout(&to, connect)).and_then(|s| s) {
                        Err(e) if limit.is_some() && is_late(&e) => failed.push(format!("late: {e}")),
                        // A reset means that a killed process had taken the connection already.
                        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => failed.push(format!("cut: {e}")),
                        Err(e) => failed.push(format!("refused: {e}")),
                        Ok(mut s) => match ping(&mut s, marker, limit.map(|limit| limit.saturating_sub(t.elapsed()))) {
                            Ok(()) => drop(ok.fetch_add(1, Relaxed)),
                            Err(e) if limit.is_some() && is_late(&e) => failed.push(format!("late: {e}")),
                            Err(e) => failed.push(format!("cut: {e}")),
                        },
                    }
                    slowest.fetch_max(t.elapsed().as_millis() as u64, Relaxed);
                }
                failed
            })
        };
        Self { threads: (0..threads).map(work).collect(), stop, ok, slowest_ms, open }
    }

    /// Does this while none of its connections is open. A node that is lost takes along what it was about to answer, and no mesh
    /// can tell whether that had been done: such a connection says nothing about those that come after.
    pub fn between<T>(&self, what: impl FnOnce() -> T) -> T {
        let _none = self.open.write().unwrap();
        what()
    }

    /// Ends it.
    pub fn end(self) -> Loaded {
        self.stop.store(true, Relaxed);
        let failed = self.threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        Loaded { ok: self.ok.load(Relaxed), failed, slowest_ms: self.slowest_ms.load(Relaxed) }
    }
}

fn ping(s: &mut TcpStream, marker: &[u8], limit: Option<Duration>) -> std::io::Result<()> {
    match limit {
        None => app::ping(s, marker),
        // No time at all would mean any time.
        Some(limit) => app::ping_within(s, marker, limit.max(Duration::from_millis(1))),
    }
}

fn is_late(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock)
}
