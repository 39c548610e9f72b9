//! An endpoint of a destination, and what is known of it: load, latency, health.

use crate::clock;
use karst_core::limits;
use karst_proxy::{dial, state::Workload};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use xxhash_rust::xxh64::xxh64;

/// After so many milliseconds a latency counts 1/e of what it was (Linkerd: 10 s).
const DECAY: f64 = 10_000.0;
/// What is not known yet of an endpoint's latency, microseconds.
const NEW_LATENCY: u64 = 1000;

/// What is known of an endpoint.
pub struct EndpointStats {
    pub active: AtomicU32,
    /// Exponentially weighted latency, microseconds, and when that was.
    latency: AtomicU64,
    measured: AtomicU64,
    /// When it was first seen.
    pub since: u64,
    pub errors: AtomicU32,
    pub gateway_errors: AtomicU32,
    /// Requests in a row without an answer, where they are told apart.
    pub local_errors: AtomicU32,
    /// Until when it is ejected.
    pub ejected: AtomicU64,
    pub ejections: AtomicU32,
    /// Until when others are better, since it could not be reached.
    avoided: AtomicU64,
    /// Until when it is to get less, since it says that it has too much to do.
    pub overloaded: AtomicU64,
}

/// An endpoint of a destination at the moment.
pub struct LbEndpoint {
    pub workload: Arc<Workload>,
    pub address: SocketAddr,
    pub state: Arc<EndpointStats>,
    /// Its place in [`super::endpoint_set::EndpointSet::groups`]; those in none are not used, but, while they end, by
    /// clients that are bound to them.
    pub group: Option<usize>,
}

impl LbEndpoint {
    /// Stands for it in sessions, in every process that knows it: a pod of the same name is the same endpoint.
    pub fn session_id(&self) -> u64 {
        xxh64(self.workload.uid.as_bytes(), 0)
    }
}

impl EndpointStats {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self {
            active: AtomicU32::new(0),
            latency: AtomicU64::new(NEW_LATENCY),
            measured: AtomicU64::new(clock::now()),
            since: clock::now(),
            errors: AtomicU32::new(0),
            gateway_errors: AtomicU32::new(0),
            local_errors: AtomicU32::new(0),
            ejected: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            avoided: AtomicU64::new(0),
            overloaded: AtomicU64::new(0),
        }
    }

    /// Could it not be reached a moment ago?
    pub fn is_avoided(&self, now: u64) -> bool {
        self.avoided.load(Relaxed) > now
    }

    /// Has it said that it has too much to do at this time?
    pub fn is_overloaded(&self, now: u64) -> bool {
        self.overloaded.load(Relaxed) > now
    }

    /// Is it out at this time?
    pub fn is_ejected(&self, now: u64) -> bool {
        self.ejected.load(Relaxed) > now
    }

    /// What is known of its latency at a time, microseconds. What is long ago counts less: else who was slow once would never be
    /// asked again.
    pub fn latency(&self, now: u64) -> u64 {
        let age = now.saturating_sub(self.measured.load(Relaxed));
        (self.latency.load(Relaxed) as f64 * (-(age as f64) / DECAY).exp()) as u64
    }

    /// How long an answer took that came at this time.
    pub fn record_latency(&self, t: Duration, now: u64) {
        let (old, new) = (self.latency(now), t.as_micros() as u64);
        // A peak counts at once, and is forgotten slowly.
        let next = if new > old { new } else { old - (old - new) / 8 };
        self.latency.store(next, Relaxed);
        self.measured.store(now, Relaxed);
    }
}

impl dial::Endpoint for EndpointStats {
    fn avoid(&self) {
        self.avoided.store(clock::now() + limits::AVOID.as_millis() as u64, Relaxed);
    }
}
