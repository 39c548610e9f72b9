//! Istio's metrics. Those of requests: a request finds its series in its worker's own table, and only adds.

use crate::{
    authz::{external::counts::Counts as ExternalCounts, token_cache::Counts as TokenCounts},
    downstream::{gate::Gate, udp},
    quota::counts::Counts as SharedLimitCounts,
    spans::queue::{Counts as ExportCounts, Signal},
    telemetry::{key::Key, rules::AllLabels},
};
use karst_api::route::Metric;
use karst_flows::DURATION_BOUNDS;
use karst_proxy::{discovery, dry_run::DryRuns, series::Index, traffic::Table as TrafficTable};
use karst_rt::{
    admission::Ended,
    clock::Instant,
    exposition::{Family, Kind, Page},
    process_metrics,
};
use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Most series; beyond, new ones are counted together under no labels.
const MAX_SERIES: usize = 20_000;
/// Series without a request for this long are dropped: pods come and go.
const SERIES_IDLE: Duration = Duration::from_secs(3600);
/// Between two searches for series to drop when there is no place: new keys must not cost a walk through all of them.
const SWEEP_PAUSE: Duration = Duration::from_secs(10);
/// Istio's buckets of bytes.
const BYTES: [u64; 11] =
    [1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000, u64::MAX];

/// The counters of one series.
pub struct Series {
    labels: AllLabels,
    retired: AtomicBool,
    requests: AtomicU64,
    /// Nanoseconds.
    duration: AtomicU64,
    durations: [AtomicU64; DURATION_BOUNDS.len() + 1],
    received: AtomicU64,
    receiveds: [AtomicU64; 11],
    sent: AtomicU64,
    sents: [AtomicU64; 11],
    began: Instant,
    /// How many requests the last sweep has seen.
    swept: AtomicU64,
    /// Since when it has counted the same: nanoseconds after it began.
    unchanged: AtomicU64,
}

impl Series {
    fn new(labels: AllLabels, now: Instant) -> Self {
        Self {
            labels,
            retired: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            duration: AtomicU64::new(0),
            durations: Default::default(),
            received: AtomicU64::new(0),
            receiveds: Default::default(),
            sent: AtomicU64::new(0),
            sents: Default::default(),
            began: now,
            swept: AtomicU64::new(0),
            unchanged: AtomicU64::new(0),
        }
    }

    /// Has nothing been counted for long? Then it is retired.
    fn retires(&self, now: Instant) -> bool {
        let (requests, age) = (self.requests.load(Relaxed), now.duration_since(self.began));
        if self.swept.swap(requests, Relaxed) != requests {
            self.unchanged.store(age.as_nanos() as u64, Relaxed);
        }
        let is_idle = age.saturating_sub(Duration::from_nanos(self.unchanged.load(Relaxed))) >= SERIES_IDLE;
        self.retired.store(is_idle, Relaxed);
        is_idle
    }

    /// Has it been dropped from the page? Then who holds it looks for another. (A request that is being counted in the moment in
    /// which a series is dropped, after an hour without any, is not told.)
    pub fn is_retired(&self) -> bool {
        self.retired.load(Relaxed)
    }

    /// One more request. `received`, `sent`: bytes of both messages, with their heads.
    pub fn add(&self, took: Duration, received: u64, sent: u64) {
        self.requests.fetch_add(1, Relaxed);
        self.duration.fetch_add(took.as_nanos() as u64, Relaxed);
        let ms = took.as_secs_f64() * 1000.0;
        self.durations[DURATION_BOUNDS.partition_point(|b| *b < ms)].fetch_add(1, Relaxed);
        for (n, sum, all) in [(received, &self.received, &self.receiveds), (sent, &self.sent, &self.sents)] {
            sum.fetch_add(n, Relaxed);
            all[BYTES.partition_point(|b| *b < n).min(10)].fetch_add(1, Relaxed);
        }
    }
}

#[derive(Default)]
struct Table {
    telemetry_generation: u64,
    all: Index<AllLabels, Key, Series, MAX_SERIES>,
    /// Of all that there is no place for.
    beyond: Option<Arc<Series>>,
    /// When there was no place last.
    full: Option<Instant>,
}

impl Table {
    /// Drops the series that nothing has been counted in for long.
    fn sweep(&mut self, now: Instant) {
        self.all.sweep(|series| series.retires(now));
    }

    /// The series of a key that has been asked for before.
    fn known(&self, key: &Key) -> Option<Arc<Series>> {
        self.all.known(key).filter(|series| !series.is_retired())
    }

    /// The series of a key that has none yet. `is_listed`: it is on the page.
    fn add(&mut self, key: &Key, labels: impl FnOnce(&Key) -> AllLabels, is_listed: bool, now: Instant) -> Arc<Series> {
        let labels = labels(key);
        if !is_listed {
            return Arc::new(Series::new(labels, now));
        }
        let may_sweep = self.full.is_none_or(|at| now.duration_since(at) >= SWEEP_PAUSE);
        if !self.all.has_place(&labels) && may_sweep {
            self.full = Some(now);
            self.sweep(now);
            self.all.sweep(|series| Arc::strong_count(series) == 1);
        }
        if !self.all.has_place(&labels) {
            let none = || Arc::new(Series::new(std::array::from_fn(|_| Some("".into())), now));
            return self.beyond.get_or_insert_with(none).clone();
        }
        self.all.add(key.clone(), labels, |labels| Series::new(labels, now))
    }

    /// Those of the page.
    fn listed(&self) -> Vec<Arc<Series>> {
        self.all.values().chain(&self.beyond).cloned().collect()
    }
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
    /// Connections that went on in another stream, because the process at one of their ends was replaced.
    pub followed: AtomicU64,
    /// Of traces.
    pub spans: Arc<ExportCounts>,
    /// The access log for collectors.
    pub logs: Arc<ExportCounts>,
    /// Of external authorization.
    pub external: ExternalCounts,
    /// Of datagrams.
    pub udp: udp::counts::Counts,
    /// Of tokens.
    pub tokens: Arc<TokenCounts>,
    /// Of rate limits that replicas count together.
    pub shared_limits: SharedLimitCounts,
}

impl Metrics {
    /// The series of a key.
    pub fn series(&self, key: &Key, labels: impl FnOnce(&Key) -> AllLabels) -> Arc<Series> {
        let mut table = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = table.known(key) {
            return series;
        }
        // Another Telemetry: the metrics begin anew, as Envoy's do. A request of the era before that ends now is told no more.
        let late = key.telemetry_generation < table.telemetry_generation;
        if key.telemetry_generation > table.telemetry_generation {
            *table = Table { telemetry_generation: key.telemetry_generation, ..Table::default() };
        }
        table.add(key, labels, !late, Instant::now())
    }

    /// Adds them to a page.
    pub fn render(&self, gate: &Gate, page: &mut Page) {
        let all = {
            let mut table = self.series.lock().unwrap_or_else(PoisonError::into_inner);
            table.sweep(Instant::now());
            table.listed()
        };
        requests(page, &all);
        page.single(
            "karst_tunnels_refused_total",
            Kind::Counter,
            "Inbound tunnels refused because of a limit.",
            gate.counts.handshakes.of(Ended::Refused) + gate.counts.tunnels.of(Ended::Refused),
        );
        page.single(
            "karst_connections_closed_by_policy_total",
            Kind::Counter,
            "Open connections closed by a policy change.",
            self.closed_by_policy.load(Relaxed),
        );
        let mut family = page.family(
            "karst_connections_handed_over_total",
            Kind::Counter,
            "Open connections whose other end, a ztunnel, was replaced, and which went on in another stream (followed).",
        );
        family.sample(&[("role", "followed")], self.followed.load(Relaxed));
        gate.render(page);
        self.traffic.render(page);
        self.discovery.render(page);
        self.spans.render(Signal::Spans, page);
        self.logs.render(Signal::Logs, page);
        self.external.render(page);
        self.udp.render(page);
        self.tokens.render(page);
        self.shared_limits.render(page);
        process_metrics::render(page, "proxy");
    }
}

/// Those of requests.
fn requests(page: &mut Page, all: &[Arc<Series>]) {
    let mut family = page.family("istio_requests_total", Kind::Counter, "Requests.");
    for (labels, same) in grouped(all, Metric::RequestCount) {
        family.series(labels, same.iter().map(|s| s.requests.load(Relaxed)).sum::<u64>());
    }
    histogram(
        page.family("istio_request_duration_milliseconds", Kind::Histogram, "Durations of requests."),
        grouped(all, Metric::RequestDuration),
        &DURATION_BOUNDS,
        |s| (&s.durations, s.duration.load(Relaxed) as f64 / 1e6),
    );
    let [bounds @ .., _] = &BYTES;
    histogram(
        page.family("istio_request_bytes", Kind::Histogram, "Sizes of requests."),
        grouped(all, Metric::RequestSize),
        bounds,
        |s| (&s.receiveds, s.received.load(Relaxed) as f64),
    );
    histogram(
        page.family("istio_response_bytes", Kind::Histogram, "Sizes of answers."),
        grouped(all, Metric::ResponseSize),
        bounds,
        |s| (&s.sents, s.sent.load(Relaxed) as f64),
    );
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

/// A histogram. `of`: the buckets of a series, the last of which is beyond all bounds, and the sum.
fn histogram<'a>(
    mut family: Family<'_>,
    series: BTreeMap<&str, Vec<&'a Series>>,
    bounds: &[impl Display],
    of: impl Fn(&'a Series) -> (&'a [AtomicU64], f64),
) {
    for (labels, same) in series {
        let counts = (0..=bounds.len()).map(|i| same.iter().map(|s| of(s).0[i].load(Relaxed)).sum::<u64>());
        family.histogram(labels, bounds, counts, same.iter().map(|s| of(s).1).sum::<f64>());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::telemetry::{flag::ResponseFlag, key::KeyRef};

    fn key(status: u16, values: &[String]) -> Key {
        let nobody = KeyRef {
            source: None,
            principal: None,
            workload: None,
            service: None,
            status,
            grpc: None,
            flag: ResponseFlag::None,
            is_grpc: false,
            telemetry_generation: 0,
            values,
        };
        nobody.to_key()
    }

    fn labels(key: &Key) -> AllLabels {
        std::array::from_fn(|_| Some(format!("v=\"{}\"", key.values.join(",")).into()))
    }

    /// Replicas, and a pod in place of one that is gone, count on in one series.
    #[test]
    fn keys_with_the_same_labels_have_one_series() {
        let mut table = Table::default();
        let now = Instant::now();
        let [one, other] = [200, 404].map(|status| key(status, &[]));
        let first = table.add(&one, labels, true, now);
        first.add(Duration::ZERO, 0, 0);
        let second = table.add(&other, labels, true, now);
        assert!(Arc::ptr_eq(&first, &second));
        assert!([&one, &other].iter().all(|key| table.known(key).is_some_and(|known| Arc::ptr_eq(&known, &first))));
        table.sweep(now);
        drop((first, second));
        assert_eq!(table.listed().iter().map(|series| series.requests.load(Relaxed)).collect::<Vec<_>>(), [1]);
    }

    /// Pods come and go: what has counted nothing for an hour goes from the page, and counts anew under a series of its own.
    #[test]
    fn series_without_requests_are_dropped_and_begin_anew() {
        let mut table = Table::default();
        let start = Instant::now();
        let [busy, idle] = ["200", "404"]
            .map(|n| key(200, &[n.into()]))
            .map(|key| (key.clone(), table.add(&key, labels, true, start)));
        let count = |series: &Series| series.add(Duration::from_millis(1), 1, 1);
        count(&idle.1);
        table.sweep(start);
        let later = start + SERIES_IDLE;
        count(&busy.1);
        table.sweep(later - Duration::from_secs(1));
        assert_eq!(table.listed().len(), 2, "not yet");
        table.sweep(later);
        assert!(table.known(&busy.0).is_some() && table.known(&idle.0).is_none());
        assert_eq!(table.listed().len(), 1);
        assert!(idle.1.is_retired() && !busy.1.is_retired(), "workers are told to look for another");
        let anew = table.add(&idle.0, labels, true, later);
        assert!(!anew.is_retired() && anew.requests.load(Relaxed) == 0);
    }

    /// However many there are: no request is left uncounted, and the page has an end.
    #[test]
    fn beyond_the_most_series_all_are_counted_together() {
        let mut table = Table::default();
        let now = Instant::now();
        let all: Vec<_> = (0..MAX_SERIES + 50)
            .map(|n| {
                let series = table.add(&key(200, &[n.to_string()]), labels, true, now);
                series.add(Duration::ZERO, 0, 0);
                series
            })
            .collect();
        let listed = table.listed();
        assert_eq!(listed.len(), MAX_SERIES + 1);
        assert_eq!(listed.iter().map(|s| s.requests.load(Relaxed)).sum::<u64>(), all.len() as u64);
        let together = table.beyond.as_ref().unwrap();
        assert_eq!((together.requests.load(Relaxed), together.labels[0].as_deref()), (50, Some("")));
        assert!(grouped(&listed, Metric::RequestCount).contains_key(""));
        // Once workers have let go of some, there is place again.
        drop((all, listed));
        table.add(&key(500, &[]), labels, true, now + SWEEP_PAUSE);
        assert_eq!(table.all.values().count(), 1);
    }
}
