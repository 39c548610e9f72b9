//! What is counted of the way of configuration to the proxies.

use super::histogram::Histogram;
use karst_api::{
    ACCESS_TYPE, ADDRESS_TYPE, AUTHORIZATION_TYPE, BACKEND_TYPE, GATEWAY_TYPE, POD_RANGES_TYPE, ROUTES_TYPE,
    VIRTUAL_HOST_TYPE,
};
use karst_rt::clock::Instant;
use karst_xds::server::Event;
use std::{
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::Duration,
};

/// The label `type`: Istio's short names of the two types that Istio has, words of the same kind for the others.
const TYPES: [(&str, &str); 8] = [
    (ADDRESS_TYPE, "wds"),
    (AUTHORIZATION_TYPE, "wads"),
    (ACCESS_TYPE, "access"),
    (BACKEND_TYPE, "backends"),
    (GATEWAY_TYPE, "gateways"),
    (POD_RANGES_TYPE, "pod_ranges"),
    (ROUTES_TYPE, "routes"),
    (VIRTUAL_HOST_TYPE, "virtual_hosts"),
];
/// Istio's buckets, in seconds and bytes.
const PUSH_TIME: &[f64] = &[0.01, 0.1, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
const CONVERGENCE: &[f64] = &[0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
const MODEL_TIME: &[f64] = &[0.01, 0.1, 0.5, 1.0, 3.0, 5.0];
const SIZES: &[f64] = &[1.0, 10_000.0, 1_000_000.0, 4_000_000.0, 10_000_000.0, 40_000_000.0];
/// Snapshots whose time is known; a proxy that is further behind is not in the histogram.
const SNAPSHOTS: u64 = 1024;

/// What made a new snapshot, by Istio's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Workloads only.
    Endpoint,
    /// Anything else.
    Config,
}

/// Of one type of resources.
#[derive(Debug)]
pub struct OfType {
    /// The label `type`.
    pub name: &'static str,
    type_url: &'static str,
    /// Responses sent.
    pub sent: AtomicU64,
    /// Responses that a proxy has refused.
    pub rejected: AtomicU64,
    /// Bytes of the resources in each.
    pub sizes: Histogram,
}

/// When changes were seen: each snapshot has a place by its number, which the newest that has the place holds. One task writes.
#[derive(Debug)]
struct Seen {
    begun: Instant,
    /// Number (0: none), and nanoseconds since the begin.
    places: Vec<(AtomicU64, AtomicU64)>,
}

impl Seen {
    fn new() -> Self {
        Self { begun: Instant::now(), places: (0..SNAPSHOTS).map(|_| Default::default()).collect() }
    }

    fn note(&self, version: u64, seen: Instant) {
        let Some((number, at)) = self.places.get((version % SNAPSHOTS) as usize) else { return };
        number.store(0, Release);
        at.store(seen.duration_since(self.begun).as_nanos() as u64, Release);
        number.store(version, Release);
    }

    fn of(&self, version: u64) -> Option<Instant> {
        let (number, at) = self.places.get((version % SNAPSHOTS) as usize)?;
        let is_there = || version != 0 && number.load(Acquire) == version;
        let nanoseconds = is_there().then(|| at.load(Acquire))?;
        // Not written over meanwhile.
        is_there().then(|| self.begun + Duration::from_nanos(nanoseconds))
    }
}

/// All of it.
#[derive(Debug)]
pub struct Pushes {
    /// By type.
    pub types: Vec<OfType>,
    /// Seconds until a proxy's queue has what it is to be told.
    pub push_time: Histogram,
    /// Seconds from a change until a proxy has taken it in.
    pub convergence: Histogram,
    /// Seconds until a model is made of what has changed.
    pub model_time: Histogram,
    /// Streams that could not be served on.
    pub failed: AtomicU64,
    /// Snapshots because of workloads only.
    pub of_endpoints: AtomicU64,
    /// Snapshots because of other objects.
    pub of_config: AtomicU64,
    /// When the change of each of the newest snapshots was seen.
    seen: Seen,
}

impl Default for Pushes {
    fn default() -> Self {
        let of_type = |&(type_url, name): &(&'static str, &'static str)| OfType {
            name,
            type_url,
            sent: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            sizes: Histogram::new(SIZES),
        };
        Self {
            types: TYPES.iter().map(of_type).collect(),
            push_time: Histogram::new(PUSH_TIME),
            convergence: Histogram::new(CONVERGENCE),
            model_time: Histogram::new(MODEL_TIME),
            failed: AtomicU64::new(0),
            of_endpoints: AtomicU64::new(0),
            of_config: AtomicU64::new(0),
            seen: Seen::new(),
        }
    }
}

impl Pushes {
    fn of(&self, type_url: &str) -> Option<&OfType> {
        self.types.iter().find(|one| one.type_url == type_url)
    }

    /// A snapshot is there; its change was seen then.
    pub fn made(&self, version: u64, trigger: Trigger, seen: Instant, took: Duration) {
        match trigger {
            Trigger::Endpoint => &self.of_endpoints,
            Trigger::Config => &self.of_config,
        }
        .fetch_add(1, Relaxed);
        self.model_time.add(took.as_secs_f64());
        self.seen.note(version, seen);
    }

    /// Takes in what a stream tells. `connected`: when it began; what changed before then is no delay of a push.
    pub fn note(&self, event: &Event, connected: Instant, now: Instant) {
        match event {
            Event::Sent { type_url, bytes, .. } => {
                if let Some(one) = self.of(type_url) {
                    one.sent.fetch_add(1, Relaxed);
                    one.sizes.add(*bytes as f64);
                }
            }
            Event::Pushed { took } => self.push_time.add(took.as_secs_f64()),
            Event::Nack { type_url, .. } => {
                if let Some(one) = self.of(type_url) {
                    one.rejected.fetch_add(1, Relaxed);
                }
            }
            Event::Failed { .. } => {
                self.failed.fetch_add(1, Relaxed);
            }
            Event::Acked { version, told: true } => {
                if let Some(seen) = self.seen.of(*version).filter(|seen| *seen >= connected) {
                    self.convergence.add(now.duration_since(seen).as_secs_f64());
                }
            }
            Event::Acked { told: false, .. } | Event::Node(_) | Event::Accepted { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_rt::exposition;

    #[test]
    fn every_type_that_is_served_has_a_name() {
        for type_url in crate::push::TYPES.order {
            assert!(TYPES.iter().any(|(known, _)| known == type_url), "{type_url}");
        }
    }

    /// A proxy that connects is told of changes of long ago: no push took that long.
    #[test]
    fn a_delay_counts_from_the_change_that_a_connected_proxy_was_told_of() {
        let pushes = Pushes::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        pushes.made(1, Trigger::Config, at(0), Duration::ZERO);
        pushes.made(2, Trigger::Endpoint, at(100), Duration::ZERO);
        let acked = |version, told| Event::Acked { version, told };
        pushes.note(&acked(1, true), at(50), at(51));
        pushes.note(&acked(2, false), at(50), at(101));
        pushes.note(&acked(9, true), at(50), at(101));
        let page = || {
            exposition::page(|page| {
                pushes.convergence.render(&mut page.family("x", exposition::Kind::Histogram, "X."), "");
            })
        };
        assert!(page().contains("x_count 0\n"), "{}", page());
        pushes.note(&acked(2, true), at(50), at(102));
        assert!(page().contains("x_sum 2\nx_count 1\n"), "{}", page());
        assert_eq!((pushes.of_config.load(Relaxed), pushes.of_endpoints.load(Relaxed)), (1, 1));
    }

    #[test]
    fn of_snapshots_the_newest_are_remembered() {
        let seen = Seen::new();
        let at = seen.begun + Duration::from_secs(3);
        (1..=2 * SNAPSHOTS).for_each(|version| seen.note(version, at));
        assert_eq!((seen.of(1), seen.of(SNAPSHOTS), seen.of(0)), (None, None, None));
        assert_eq!((seen.of(SNAPSHOTS + 1), seen.of(2 * SNAPSHOTS)), (Some(at), Some(at)));
    }
}
