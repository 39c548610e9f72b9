//! What callers, faults and the report share: calls that went well, those that failed, and when which fault was.

use karst_world::soak::{
    faults::Fault,
    judge::{Call, Failure, Place, Window, excuse},
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// What applications say and no frame between nodes may show.
pub const MARK: &[u8] = b"karst-plaintext-marker-7f3a91c2";
/// So many failed calls are kept; where there are more, they all count as not excused.
const KEPT: usize = 20_000;

/// See above. Times count from its making.
pub struct Shared {
    began: Instant,
    stopped: AtomicBool,
    ok: Mutex<BTreeMap<Place, u64>>,
    failed: Mutex<Vec<Call>>,
    not_kept: AtomicU64,
    windows: Mutex<Vec<Window>>,
    /// Bytes that were compared with those that were due.
    pub bytes: AtomicU64,
    /// Requests that were asked again, as clients do where a kept connection has ended between two of them.
    pub asked_again: AtomicU64,
    /// Calls that a policy forbids, and those of them that were served.
    pub forbidden: AtomicU64,
    /// See there.
    pub served_forbidden: AtomicU64,
    /// Where the gateway is, by which clients choose; never empty.
    pub gateways: Mutex<Vec<SocketAddr>>,
}

/// The calls of a place that have failed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Failed {
    /// By a fault that excuses it.
    pub excused: u64,
    /// By none.
    pub not: u64,
}

impl Shared {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            stopped: AtomicBool::new(false),
            ok: Mutex::default(),
            failed: Mutex::default(),
            not_kept: AtomicU64::new(0),
            windows: Mutex::default(),
            bytes: AtomicU64::new(0),
            asked_again: AtomicU64::new(0),
            forbidden: AtomicU64::new(0),
            served_forbidden: AtomicU64::new(0),
            gateways: Mutex::default(),
        }
    }

    /// The time since the start.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Is it going on?
    pub fn goes_on(&self) -> bool {
        !self.stopped.load(Relaxed)
    }

    /// All callers end.
    pub fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }

    /// A call was answered with the bytes that were due.
    pub fn well(&self, place: Place, bytes: usize) {
        *self.ok.lock().unwrap().entry(place).or_default() += 1;
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// A call that began at this time has failed now.
    pub fn failed(&self, place: Place, began: Duration, (failure, text): (Failure, String)) {
        let mut failed = self.failed.lock().unwrap();
        if failed.len() < KEPT {
            failed.push(Call { place, failure, began, ended: self.now(), text });
        } else {
            self.not_kept.fetch_add(1, Relaxed);
        }
    }

    /// A fault begins. Gives its number.
    pub fn open(&self, fault: Fault) -> usize {
        let mut windows = self.windows.lock().unwrap();
        windows.push(Window { fault, from: self.now(), to: None });
        windows.len() - 1
    }

    /// A fault is over.
    pub fn close(&self, number: usize) {
        if let Some(window) = self.windows.lock().unwrap().get_mut(number) {
            window.to = Some(self.now());
        }
    }

    /// All faults that there were, and those that go on.
    pub fn windows(&self) -> Vec<Window> {
        self.windows.lock().unwrap().clone()
    }

    /// Calls that went well, by place.
    pub fn ok(&self) -> BTreeMap<Place, u64> {
        self.ok.lock().unwrap().clone()
    }

    /// All calls that have failed, each with the fault that excuses it.
    pub fn judged(&self) -> Vec<(Call, Option<Fault>)> {
        let windows = self.windows();
        let judge = |call: &Call| (call.clone(), excuse(call, &windows).map(|window| window.fault));
        self.failed.lock().unwrap().iter().map(judge).collect()
    }

    /// Calls that have failed, by place, and how many were not kept.
    pub fn failures(&self) -> (BTreeMap<Place, Failed>, u64) {
        let mut all: BTreeMap<Place, Failed> = BTreeMap::new();
        for (call, by) in self.judged() {
            let of = all.entry(call.place).or_default();
            let count = if by.is_some() { &mut of.excused } else { &mut of.not };
            *count += 1;
        }
        (all, self.not_kept.load(Relaxed))
    }
}
