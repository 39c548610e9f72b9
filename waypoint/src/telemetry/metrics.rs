//! Istio's metrics. Those of requests: a request finds its series in its worker's own table, and only adds.

use crate::{
    downstream::gate::Gate,
    spans::queue::Counts as SpanCounts,
    telemetry::{key::Key, rules::AllLabels},
};
use karst_api::route::Metric;
use karst_proxy::{discovery, dry_run::DryRuns, traffic::Table as TrafficTable};
use karst_rt::admission::Ended;
use std::{
    collections::{BTreeMap, HashMap},
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

/// The counters of one series.
pub struct Series {
    labels: AllLabels,
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

#[derive(Default)]
struct Table {
    telemetry_generation: u64,
    all: HashMap<Key, Arc<Series>>,
}

/// All metrics of the process.
#[derive(Default)]
pub struct Metrics {
    series: Mutex<Table>,
    /// By policy; rendered with the state at hand, which says which policies there are.
    pub dry_runs: DryRuns,
    /// Of connections that are carried as they are.
    pub traffic: TrafficTable,
    /// Of the way to the control plane.
    pub discovery: Arc<discovery::Counts>,
    /// Byte streams that a policy has ended.
    pub closed_by_policy: AtomicU64,
    /// Of traces.
    pub spans: Arc<SpanCounts>,
}

impl Metrics {
    /// The series of a key.
    pub fn series(&self, key: &Key, labels: impl FnOnce(&Key) -> AllLabels) -> Arc<Series> {
        let mut table = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(s) = table.all.get(key) {
            return s.clone();
        }
        // Another Telemetry: the metrics begin anew, as Envoy's do. A request of the era before that ends now is told no more.
        let late = key.telemetry_generation < table.telemetry_generation;
        if key.telemetry_generation > table.telemetry_generation {
            *table = Table { telemetry_generation: key.telemetry_generation, all: HashMap::new() };
        }
        let all = &mut table.all;
        if all.len() >= MAX_SERIES {
            all.retain(|_, s| Arc::strong_count(s) > 1);
        }
        let new = Arc::new(Series {
            labels: labels(key),
            requests: AtomicU64::new(0),
            duration: AtomicU64::new(0),
            durations: Default::default(),
            received: AtomicU64::new(0),
            receiveds: Default::default(),
            sent: AtomicU64::new(0),
            sents: Default::default(),
        });
        if !late {
            all.insert(key.clone(), new.clone());
        }
        new
    }

    /// The page, in the text format.
    pub fn render(&self, gate: &Gate) -> String {
        let all: Vec<Arc<Series>> =
            self.series.lock().unwrap_or_else(PoisonError::into_inner).all.values().cloned().collect();
        let mut out = String::new();
        let _ = writeln!(out, "# HELP istio_requests_total Requests.\n# TYPE istio_requests_total counter");
        for (labels, same) in grouped(&all, Metric::RequestCount) {
            let n: u64 = same.iter().map(|s| s.requests.load(Relaxed)).sum();
            let _ = writeln!(out, "istio_requests_total{{{labels}}} {n}");
        }
        let ms = |s: &Series| s.duration.load(Relaxed) as f64 / 1e6;
        let mut le = vec!["0.5".to_string()];
        le.extend(MILLISECONDS.iter().map(bound));
        let (metric, name) = (Metric::RequestDuration, "istio_request_duration_milliseconds");
        histogram(&mut out, &all, metric, name, "Durations of requests.", &le, |s| (&s.durations, ms(s)));
        let le: Vec<String> = BYTES.iter().map(bound).collect();
        let sum = |n: &AtomicU64| n.load(Relaxed) as f64;
        let (metric, name) = (Metric::RequestSize, "istio_request_bytes");
        histogram(&mut out, &all, metric, name, "Sizes of requests.", &le, |s| (&s.receiveds, sum(&s.received)));
        let (metric, name) = (Metric::ResponseSize, "istio_response_bytes");
        histogram(&mut out, &all, metric, name, "Sizes of answers.", &le, |s| (&s.sents, sum(&s.sent)));
        let _ = writeln!(
            out,
            "# HELP karst_tunnels_refused_total Inbound tunnels refused because of a limit.\n# TYPE karst_tunnels_refused_total counter\nkarst_tunnels_refused_total {}",
            gate.counts.handshakes.of(Ended::Refused) + gate.counts.tunnels.of(Ended::Refused)
        );
        let _ = writeln!(
            out,
            "# HELP karst_connections_closed_by_policy_total Open connections closed by a policy change.\n# TYPE karst_connections_closed_by_policy_total counter\nkarst_connections_closed_by_policy_total {}",
            self.closed_by_policy.load(Relaxed)
        );
        gate.render(&mut out);
        self.traffic.render(&mut out);
        self.discovery.render(&mut out);
        self.spans.render(&mut out);
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

/// The series of a metric by their labels. Several may have the same, where a Telemetry takes labels away.
fn grouped(all: &[Arc<Series>], metric: Metric) -> BTreeMap<&str, Vec<&Series>> {
    let mut out: BTreeMap<&str, Vec<&Series>> = BTreeMap::new();
    for s in all {
        if let Some(l) = &s.labels[metric as usize] {
            out.entry(l).or_default().push(s);
        }
    }
    out
}

fn histogram<'a>(
    out: &mut String,
    all: &'a [Arc<Series>],
    metric: Metric,
    name: &str,
    help: &str,
    le: &[String],
    of: impl Fn(&'a Series) -> (&'a [AtomicU64], f64),
) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
    for (labels, same) in grouped(all, metric) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut count = 0;
        for (i, le) in le.iter().enumerate() {
            count += same.iter().map(|s| of(s).0[i].load(Relaxed)).sum::<u64>();
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{le}\"}} {count}");
        }
        let sum: f64 = same.iter().map(|s| of(s).1).sum();
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
    }
}
