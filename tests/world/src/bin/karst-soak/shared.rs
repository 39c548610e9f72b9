//! What callers, faults and the report share: calls that went well, those that failed, and when which fault was.

use karst_world::soak::{
    faults::Fault,
    judge::{Call, Failure, Place, Window, excuse},
};
use std::{
    collections::BTreeMap,
    io::Write,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// So many failed calls are kept; where there are more, they all count as not excused.
const KEPT: usize = 20_000;
/// So many that nothing excuses are told of at once.
const TOLD: u64 = 20;

/// See above. Times count from its making.
pub struct Shared {
    began: Instant,
    stopped: AtomicBool,
    well: Mutex<BTreeMap<Place, Well>>,
    failed: Mutex<Vec<Judged>>,
    excused: AtomicU64,
    not_excused: AtomicU64,
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

/// The calls of a place that went well.
#[derive(Clone, Copy, Debug, Default)]
pub struct Well {
    /// How many.
    pub calls: u64,
    /// The time of the longest.
    pub slowest: Duration,
}

/// A call that has failed, and the fault that excuses it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The call.
    pub call: Call,
    /// None: it should not have failed.
    pub by: Option<Fault>,
}

impl Shared {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            stopped: AtomicBool::new(false),
            well: Mutex::default(),
            failed: Mutex::default(),
            excused: AtomicU64::new(0),
            not_excused: AtomicU64::new(0),
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

    /// A line with the time before it.
    pub fn say(&self, what: &str) {
        println!("[{:6.1} s] {what}", self.now().as_secs_f64());
        let _ = std::io::stdout().flush();
    }

    /// What has come of a call that began at this time: so many bytes that were due, or why it has failed.
    pub fn note(&self, place: Place, began: Duration, came: Result<usize, (Failure, String)>) {
        match came {
            Ok(bytes) => {
                let took = self.now().saturating_sub(began);
                let mut all = self.well.lock().unwrap();
                let well = all.entry(place).or_default();
                *well = Well { calls: well.calls + 1, slowest: well.slowest.max(took) };
                self.bytes.fetch_add(bytes as u64, Relaxed);
            }
            Err(why) => {
                let judged = self.judge(place, began, why);
                self.keep(judged);
            }
        }
    }

    /// A connection that was kept for the next request has ended before that: the client asks again. It is a failure unless a fault
    /// ends such connections.
    pub fn has_ended(&self, place: Place, began: Duration, why: String) {
        let judged = self.judge(place, began, (Failure::Ended, why));
        match judged.by {
            Some(_) => drop(self.asked_again.fetch_add(1, Relaxed)),
            None => self.keep(judged),
        }
    }

    /// By the faults that were and are: one that comes later excuses nothing.
    fn judge(&self, place: Place, began: Duration, (failure, text): (Failure, String)) -> Judged {
        let call = Call { place, failure, began, ended: self.now(), text };
        let by = excuse(&call, &self.windows.lock().unwrap()).map(|window| window.fault);
        Judged { call, by }
    }

    fn keep(&self, judged: Judged) {
        match judged.by {
            Some(_) => drop(self.excused.fetch_add(1, Relaxed)),
            None if self.not_excused.fetch_add(1, Relaxed) < TOLD => self.say(&format!("FAILED: {}", judged.text())),
            None => {}
        }
        let mut failed = self.failed.lock().unwrap();
        if failed.len() < KEPT {
            failed.push(judged);
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
    pub fn well(&self) -> BTreeMap<Place, Well> {
        self.well.lock().unwrap().clone()
    }

    /// Calls that have failed.
    pub fn failed(&self) -> Vec<Judged> {
        self.failed.lock().unwrap().clone()
    }

    /// How many calls have failed by a fault that excuses it, and how many by none. All of them, also those that are not kept.
    pub fn counts(&self) -> (u64, u64) {
        (self.excused.load(Relaxed), self.not_excused.load(Relaxed))
    }
}

impl Judged {
    /// In words.
    pub fn text(&self) -> String {
        let Call { place, failure, began, ended, text } = &self.call;
        format!("{place}, {:.1} to {:.1} s: {failure:?}: {text}", began.as_secs_f64(), ended.as_secs_f64())
    }
}
