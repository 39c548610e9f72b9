//! Istio's metrics of requests. A request finds its series in its worker's own table, and only adds.

use crate::reply::{Flag, Record};
use karst_proxy::labels::{put, side};
use std::{
    collections::HashMap,
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Most series; beyond, new ones are counted together under no labels.
const MAX_SERIES: usize = 20_000;
/// Istio's buckets: milliseconds, and bytes.
const MILLISECONDS: [u64; 19] = [
    1,
    5,
    10,
    25,
    50,
    100,
    250,
    500,
    1000,
    2500,
    5000,
    10_000,
    30_000,
    60_000,
    300_000,
    600_000,
    1_800_000,
    3_600_000,
    u64::MAX,
];
const HALF: f64 = 0.5;
const BYTES: [u64; 11] =
    [1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000, u64::MAX];

/// What tells series apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub source: Option<Arc<str>>,
    pub principal: String,
    pub workload: Option<Arc<str>>,
    pub service: Option<Arc<str>>,
    pub status: u16,
    pub grpc: Option<u16>,
    pub flag: Flag,
    pub is_grpc: bool,
}

/// The counters of one series.
pub struct Series {
    labels: String,
    requests: AtomicU64,
    /// Nanoseconds.
    duration: AtomicU64,
    durations: [AtomicU64; 20],
    received: AtomicU64,
    receiveds: [AtomicU64; 11],
    sent: AtomicU64,
    sents: [AtomicU64; 11],
}

impl Series {
    /// One more request.
    pub fn add(&self, took: Duration, received: u64, sent: u64) {
        self.requests.fetch_add(1, Relaxed);
        self.duration.fetch_add(took.as_nanos() as u64, Relaxed);
        let ms = took.as_secs_f64() * 1000.0;
        let bucket = if ms <= HALF { 0 } else { 1 + MILLISECONDS.partition_point(|b| (*b as f64) < ms).min(18) };
        self.durations[bucket].fetch_add(1, Relaxed);
        for (n, sum, all) in [(received, &self.received, &self.receiveds), (sent, &self.sent, &self.sents)] {
            sum.fetch_add(n, Relaxed);
            all[BYTES.partition_point(|b| *b < n).min(10)].fetch_add(1, Relaxed);
        }
    }
}

/// All metrics of the process.
#[derive(Default)]
pub struct Metrics {
    series: Mutex<HashMap<Key, Arc<Series>>>,
    pub tunnels_refused: AtomicU64,
}

impl Metrics {
    /// The series of a key.
    pub fn series(&self, key: &Key, labels: impl FnOnce() -> String) -> Arc<Series> {
        let mut all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(s) = all.get(key) {
            return s.clone();
        }
        if all.len() >= MAX_SERIES {
            all.retain(|_, s| Arc::strong_count(s) > 1);
        }
        let new = Arc::new(Series {
            labels: labels(),
            requests: AtomicU64::new(0),
            duration: AtomicU64::new(0),
            durations: Default::default(),
            received: AtomicU64::new(0),
            receiveds: Default::default(),
            sent: AtomicU64::new(0),
            sents: Default::default(),
        });
        all.insert(key.clone(), new.clone());
        new
    }

    /// The page, in the text format.
    pub fn render(&self) -> String {
        let mut all: Vec<Arc<Series>> =
            self.series.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        let mut out = String::new();
        let _ = writeln!(out, "# HELP istio_requests_total Requests.\n# TYPE istio_requests_total counter");
        for s in &all {
            let _ = writeln!(out, "istio_requests_total{{{}}} {}", s.labels, s.requests.load(Relaxed));
        }
        let ms = |s: &Series| s.duration.load(Relaxed) as f64 / 1e6;
        let mut le = vec!["0.5".to_string()];
        le.extend(MILLISECONDS.iter().map(bound));
        histogram(&mut out, &all, "istio_request_duration_milliseconds", "Durations of requests.", &le, |s| {
            (&s.durations, ms(s))
        });
        let le: Vec<String> = BYTES.iter().map(bound).collect();
        histogram(&mut out, &all, "istio_request_bytes", "Sizes of requests.", &le, |s| {
            (&s.receiveds, s.received.load(Relaxed) as f64)
        });
        histogram(&mut out, &all, "istio_response_bytes", "Sizes of answers.", &le, |s| {
            (&s.sents, s.sent.load(Relaxed) as f64)
        });
        let _ = writeln!(
            out,
            "# HELP karst_tunnels_refused_total Inbound tunnels closed at accept because of a limit.\n# TYPE karst_tunnels_refused_total counter\nkarst_tunnels_refused_total {}",
            self.tunnels_refused.load(Relaxed)
        );
        let _ = writeln!(
            out,
            "# HELP istio_build Version.\n# TYPE istio_build gauge\nistio_build{{component=\"proxy\",tag=\"karst-{}\"}} 1",
            env!("CARGO_PKG_VERSION")
        );
        out
    }
}

fn bound(b: &u64) -> String {
    if *b == u64::MAX { "+Inf".into() } else { b.to_string() }
}

fn histogram<'a>(
    out: &mut String,
    all: &'a [Arc<Series>],
    name: &str,
    help: &str,
    le: &[String],
    of: impl Fn(&'a Series) -> (&'a [AtomicU64], f64),
) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
    for s in all {
        let (buckets, sum) = of(s);
        let mut count = 0;
        for (b, le) in buckets.iter().zip(le) {
            count += b.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{},le=\"{le}\"}} {count}", s.labels);
        }
        let _ = writeln!(out, "{name}_sum{{{}}} {sum}\n{name}_count{{{}}} {count}", s.labels, s.labels);
    }
}

/// Istio's labels.
pub fn labels(r: &Record) -> String {
    let mut out = String::with_capacity(900);
    let service = r.destination.as_ref().map(|(s, _)| s).or(r.called.as_ref());
    // A gateway tells of what it calls itself, as a sidecar would.
    let own = r.at_gateway.then(|| r.worker.own(&r.worker.snapshot()).cloned()).flatten();
    put(&mut out, "reporter", if r.at_gateway { "source" } else { "waypoint" });
    side(&mut out, "source", own.as_deref().or(r.source.as_deref()), true, true);
    side(&mut out, "destination", r.workload.as_ref().map(|(w, _)| &**w), true, true);
    put(&mut out, "destination_service", service.map_or("", |s| &s.hostname));
    put(&mut out, "destination_service_namespace", service.map_or("", |s| &s.namespace));
    put(&mut out, "destination_service_name", service.map_or("", |s| &s.name));
    put(&mut out, "request_protocol", if r.is_grpc { "grpc" } else { "http" });
    put(&mut out, "response_code", &r.answered.to_string());
    if r.is_grpc {
        put(&mut out, "grpc_response_status", &r.grpc.map(|g| g.to_string()).unwrap_or_default());
    }
    put(&mut out, "response_flags", r.flag.text());
    put(&mut out, "connection_security_policy", if r.at_gateway { "unknown" } else { "mutual_tls" });
    out
}
