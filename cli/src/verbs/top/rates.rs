//! What is counted of a stream: bounded rows, each with a histogram.

use crate::{
    live::{called, short},
    output::{Cell, Table, Tone},
};
use karst_flows::{
    path::template,
    tap::{Event, Peer, Phase, Verdict},
};
use serde::Serialize;
use std::{collections::BTreeMap, time::Duration};

/// Rows that are kept; what is beyond is counted in one.
const ROWS: usize = 500;
/// The row of what is beyond.
const OTHERS: &str = "(others)";
/// Buckets of each doubling of the time: an upper bound is at most 9 per cent too high.
const PER_DOUBLING: f64 = 8.0;
/// From 1 us to about 18 minutes; longer times are in the last.
const BUCKETS: usize = 240;

/// Times by size.
#[derive(Clone, Debug)]
struct Histogram(Box<[u32; BUCKETS]>);

impl Histogram {
    fn add(&mut self, time: Duration) {
        let us = (time.as_secs_f64() * 1e6).max(1.0);
        let at = ((us.log2() * PER_DOUBLING).ceil() as usize).min(BUCKETS - 1);
        if let Some(count) = self.0.get_mut(at) {
            *count = count.saturating_add(1);
        }
    }

    /// The upper bound of the bucket with this share (0 to 1) of all at or below it; none of no times.
    fn quantile(&self, share: f64) -> Option<Duration> {
        let total: u64 = self.0.iter().map(|count| u64::from(*count)).sum();
        let wanted = (total as f64 * share).ceil().max(1.0) as u64;
        let mut sum = 0;
        let at = self.0.iter().position(|count| {
            sum += u64::from(*count);
            sum >= wanted
        });
        at.map(|at| Duration::from_secs_f64((at as f64 / PER_DOUBLING).exp2() / 1e6))
    }
}

/// What makes a row.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    from: String,
    to: String,
    what: String,
}

#[derive(Clone, Debug)]
struct Row {
    count: u64,
    good: u64,
    times: Histogram,
}

impl Default for Row {
    fn default() -> Self {
        Self { count: 0, good: 0, times: Histogram(Box::new([0; BUCKETS])) }
    }
}

/// The rows.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    rows: BTreeMap<Key, Row>,
    /// Records that proxies could not send.
    pub lost: u64,
}

/// A row as it is written.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    from: String,
    to: String,
    request: String,
    count: u64,
    per_second: f64,
    /// Share, 0 to 1.
    success: f64,
    p50_seconds: Option<f64>,
    p99_seconds: Option<f64>,
}

impl Rates {
    /// Counts a request, or a connection that has ended.
    pub fn add(&mut self, event: &Event<'_>, with_paths: bool) {
        if event.phase == Phase::Open {
            return;
        }
        let mut key = Key { from: caller(&event.source), to: called(event), what: what(event, with_paths) };
        if !self.rows.contains_key(&key) && self.rows.len() >= ROWS {
            key = Key { from: OTHERS.into(), to: OTHERS.into(), what: String::new() };
        }
        let row = self.rows.entry(key).or_default();
        row.count += 1;
        row.good += u64::from(is_good(event));
        if event.request.is_some() {
            row.times.add(event.took);
        }
    }

    /// With those of another stretch of time.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (key, row) in &other.rows {
            let sum = all.rows.entry(key.clone()).or_default();
            (sum.count, sum.good) = (sum.count + row.count, sum.good + row.good);
            sum.times.0.iter_mut().zip(row.times.0.iter()).for_each(|(a, b)| *a = a.saturating_add(*b));
        }
        all.lost += other.lost;
        all
    }

    /// The rows, those with the highest rate first. `time`: over which they were counted.
    pub fn written(&self, time: Duration) -> Vec<Written> {
        let seconds = time.as_secs_f64().max(0.001);
        let mut all: Vec<Written> = self
            .rows
            .iter()
            .map(|(key, row)| Written {
                from: key.from.clone(),
                to: key.to.clone(),
                request: key.what.clone(),
                count: row.count,
                per_second: row.count as f64 / seconds,
                success: row.good as f64 / row.count.max(1) as f64,
                p50_seconds: row.times.quantile(0.5).map(|time| time.as_secs_f64()),
                p99_seconds: row.times.quantile(0.99).map(|time| time.as_secs_f64()),
            })
            .collect();
        all.sort_by_key(|row| std::cmp::Reverse(row.count));
        all
    }
}

/// The rows as a table.
pub fn table(rows: &[Written]) -> Table {
    let mut table = Table::new(&["FROM", "TO", "REQUEST", "RATE", "SUCCESS", "P50", "P99"]);
    let time =
        |seconds: Option<f64>| seconds.map(|seconds| short(Duration::from_secs_f64(seconds))).unwrap_or_default();
    for row in rows {
        let tone = match row.success {
            all if all >= 1.0 => Tone::Good,
            most if most >= 0.95 => Tone::Warning,
            _ => Tone::Bad,
        };
        table.row([
            row.from.clone().into(),
            row.to.clone().into(),
            row.request.clone().into(),
            format!("{:.1}/s", row.per_second).into(),
            // Not rounded up to 100: that would hide one failure of a thousand.
            Cell::new(format!("{:.1}%", (row.success * 1000.0).floor() / 10.0), tone),
            time(row.p50_seconds).into(),
            time(row.p99_seconds).into(),
        ]);
    }
    table
}

/// Pods of one workload are one caller.
fn caller(peer: &Peer<'_>) -> String {
    match (peer.workload, peer.address) {
        ("", Some(address)) if peer.pod.is_empty() => address.ip().to_canonical().to_string(),
        ("", _) => format!("{}/{}", peer.namespace, peer.pod),
        (workload, _) => format!("{}/{workload}", peer.namespace),
    }
}

fn what(event: &Event<'_>, with_paths: bool) -> String {
    match &event.request {
        None => "tcp".into(),
        Some(_) if !with_paths => "http".into(),
        Some(request) => {
            let path = request.path.split('?').next().unwrap_or_default();
            format!("{} {}", request.method, template(path))
        }
    }
}

/// An answer that is no server's error, or a connection that nothing went wrong with.
fn is_good(event: &Event<'_>) -> bool {
    let answered = event
        .request
        .is_none_or(|request| (100..500).contains(&request.status) && request.grpc.is_none_or(|code| code == 0));
    event.verdict == Verdict::Forwarded && answered
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_flows::{
        Reporter,
        tap::{Direction, Request},
    };

    fn event<'a>(workload: &'a str, path: &'a str, status: u16, ms: u64) -> Event<'a> {
        Event {
            reporter: Reporter::Waypoint,
            direction: Direction::Ingress,
            phase: Phase::Request,
            source: Peer { namespace: "shop", workload, ..Peer::default() },
            destination: Peer { namespace: "shop", workload: "db", ..Peer::default() },
            service: "shop/db.shop.svc.cluster.local",
            verdict: Verdict::Forwarded,
            policy: "",
            reason: "".into(),
            flags: "-",
            mtls: true,
            request: Some(Request { method: "GET", path, authority: "", protocol: "HTTP/1.1", status, grpc: None }),
            received: 0,
            sent: 0,
            took: Duration::from_millis(ms),
        }
    }

    #[test]
    fn quantiles_are_bounds_that_are_near() {
        let mut rates = Rates::default();
        (1..=100).for_each(|ms| rates.add(&event("web", "/", 200, ms), false));
        let rows = rates.written(Duration::from_secs(10));
        let (p50, p99) = (rows[0].p50_seconds.unwrap(), rows[0].p99_seconds.unwrap());
        assert!((0.050..0.0546).contains(&p50) && (0.099..0.108).contains(&p99), "{p50} {p99}");
        assert!((rows[0].per_second - 10.0).abs() < 1e-9 && rows[0].count == 100);
        assert!(Rates::default().written(Duration::ZERO).is_empty());
    }

    #[test]
    fn failures_are_what_went_wrong_here_not_what_callers_did() {
        let mut rates = Rates::default();
        for status in [200, 404, 503, 0] {
            rates.add(&event("web", "/", status, 1), false);
        }
        rates.add(&Event { verdict: Verdict::Dropped, ..event("web", "/", 403, 1) }, false);
        rates.add(&Event { phase: Phase::Open, request: None, ..event("web", "", 0, 1) }, false);
        let rows = rates.written(Duration::from_secs(1));
        assert_eq!((rows.len(), rows[0].count), (1, 5));
        assert!((rows[0].success - 0.4).abs() < 1e-9, "{rows:?}");
    }

    #[test]
    fn rows_are_bounded_and_paths_are_templates() {
        let mut rates = Rates::default();
        rates.add(&event("web", "/orders/17?a", 200, 1), true);
        rates.add(&event("web", "/orders/18", 200, 1), true);
        let rows = rates.written(Duration::from_secs(1));
        assert_eq!((rows.len(), rows[0].request.as_str(), rows[0].count), (1, "GET /orders/{*}", 2));
        let names: Vec<String> = (0..2 * ROWS).map(|n| format!("w{n}")).collect();
        names.iter().for_each(|name| rates.add(&event(name, "/", 200, 1), false));
        let rows = rates.with(&Rates::default()).written(Duration::from_secs(1));
        assert_eq!((rows.len(), rows[0].from.as_str()), (ROWS + 1, OTHERS));
    }
}
