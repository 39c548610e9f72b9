//! The metrics of the process, with Istio's names and labels; those of connections are in [`karst_proxy::traffic`].

use crate::{handover::desk, outcome::Outcome, state::Workload, survival::counts};
use karst_proxy::{
    discovery,
    dry_run::DryRuns,
    labels::{put, side},
    requests, traffic,
};
use karst_rt::{
    admission::Counts,
    exposition::{Kind, Page},
    process_metrics,
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

/// Most series of what is counted by host name; beyond, they begin anew.
const MAX_SERIES: usize = 20_000;

/// Which side reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    Source,
    Destination,
}

impl Reporter {
    /// As the label has it.
    pub fn text(self) -> &'static str {
        match self {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        }
    }
}

/// How connections have ended, by reporter and reason.
#[derive(Default)]
pub struct Ends([[AtomicU64; Outcome::REASONS.len()]; 2]);

impl Ends {
    /// One more. `reason`: one of [`Outcome::REASONS`].
    pub fn note(&self, reporter: Reporter, reason: &str) {
        let of = &self.0[usize::from(reporter == Reporter::Destination)];
        if let Some((_, count)) = Outcome::REASONS.iter().zip(of).find(|(known, _)| **known == reason) {
            count.fetch_add(1, Relaxed);
        }
    }

    fn render(&self, page: &mut Page) {
        let help = "Ends of connections, by reporter and reason.";
        let mut family = page.family("karst_connections_ended_total", Kind::Counter, help);
        for (reporter, counts) in [Reporter::Source, Reporter::Destination].into_iter().zip(&self.0) {
            for (reason, count) in Outcome::REASONS.iter().zip(counts) {
                let count = count.load(Relaxed);
                if count > 0 {
                    family.sample(&[("reporter", reporter.text()), ("reason", reason)], count);
                }
            }
        }
    }
}

/// All metrics of the process.
pub struct Metrics {
    /// Of connections.
    pub traffic: traffic::Table,
    /// Of requests that were seen in passing.
    pub requests: Arc<requests::Table>,
    pub open_source: AtomicI64,
    pub open_destination: AtomicI64,
    pub discovery: Arc<discovery::Counts>,
    pub pods: AtomicI64,
    /// Pods whose listeners could not be opened yet.
    pub pods_waiting: AtomicU64,
    /// Of connections, those too that were refused before they had a series.
    pub ends: Ends,
    pub pods_started: AtomicU64,
    pub pods_stopped: AtomicU64,
    pub tunnels_refused: AtomicU64,
    /// Tunnels that limits have ended during the handshake, and after it.
    pub handshakes: Counts,
    pub tunnels: Counts,
    /// Connections without a tunnel that their clients' shares have ended.
    pub plaintext: Counts,
    pub dns_requests: AtomicU64,
    pub dns_upstream: AtomicU64,
    pub dns_upstream_failures: AtomicU64,
    pub closed_by_policy: AtomicU64,
    /// Open connections that have gone to another process or come from one.
    pub handed_over: desk::Counts,
    /// Processes that have crashed before this one took over.
    pub crashes: AtomicU64,
    /// What has become of the open connections of the last one.
    pub survived: counts::Counts,
    /// By policy; rendered with the state at hand, which says which policies there are.
    pub dry_runs: DryRuns,
    /// By labels.
    by_name: Mutex<HashMap<String, u64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            traffic: traffic::Table::default(),
            requests: Arc::default(),
            open_source: AtomicI64::new(0),
            open_destination: AtomicI64::new(0),
            discovery: Arc::default(),
            pods: AtomicI64::new(0),
            pods_waiting: AtomicU64::new(0),
            ends: Ends::default(),
            pods_started: AtomicU64::new(0),
            pods_stopped: AtomicU64::new(0),
            tunnels_refused: AtomicU64::new(0),
            handshakes: Counts::default(),
            tunnels: Counts::default(),
            plaintext: Counts::default(),
            dns_requests: AtomicU64::new(0),
            dns_upstream: AtomicU64::new(0),
            dns_upstream_failures: AtomicU64::new(0),
            closed_by_policy: AtomicU64::new(0),
            handed_over: desk::Counts::default(),
            crashes: AtomicU64::new(0),
            survived: counts::Counts::default(),
            dry_runs: DryRuns::default(),
            by_name: Mutex::default(),
        }
    }
}

impl Metrics {
    /// Notes that an endpoint's host name had to be resolved for a connection.
    pub fn on_demand_dns(&self, source: &Workload, host: &str) {
        let mut labels = String::with_capacity(400);
        side(&mut labels, "source", Some(source), true, true);
        put(&mut labels, "hostname", host);
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if by_name.len() >= MAX_SERIES && !by_name.contains_key(&labels) {
            by_name.clear();
        }
        *by_name.entry(labels).or_default() += 1;
    }

    /// Adds them to a page.
    pub fn render(&self, page: &mut Page) {
        self.traffic.render(page);
        self.requests.render(page);
        let mut family = page.family("istio_tcp_sockets_open", Kind::Gauge, "Open connections.");
        for (reporter, open) in [(Reporter::Source, &self.open_source), (Reporter::Destination, &self.open_destination)]
        {
            family.sample(&[("reporter", reporter.text())], open.load(Relaxed));
        }
        self.ends.render(page);
        self.handed_over.render(page);
        self.survived.render(page);
        self.discovery.render(page);
        for (name, kind, help, v) in [
            (
                "workload_manager_active_proxy_count",
                Kind::Gauge,
                "Pods that are served.",
                self.pods.load(Relaxed).max(0) as u64,
            ),
            (
                "workload_manager_pending_proxy_count",
                Kind::Gauge,
                "Pods that cannot be served yet.",
                self.pods_waiting.load(Relaxed),
            ),
            (
                "workload_manager_proxies_started_total",
                Kind::Counter,
                "Pods taken on.",
                self.pods_started.load(Relaxed),
            ),
            ("workload_manager_proxies_stopped_total", Kind::Counter, "Pods let go.", self.pods_stopped.load(Relaxed)),
            ("istio_dns_requests_total", Kind::Counter, "DNS queries.", self.dns_requests.load(Relaxed)),
            (
                "istio_dns_upstream_requests_total",
                Kind::Counter,
                "DNS queries passed on.",
                self.dns_upstream.load(Relaxed),
            ),
            (
                "istio_dns_upstream_failures_total",
                Kind::Counter,
                "DNS queries passed on without answer.",
                self.dns_upstream_failures.load(Relaxed),
            ),
            (
                "karst_tunnels_refused_total",
                Kind::Counter,
                "Inbound tunnels and connections refused because of a limit.",
                self.tunnels_refused.load(Relaxed),
            ),
            (
                "karst_connections_closed_by_policy_total",
                Kind::Counter,
                "Open connections closed by a policy change.",
                self.closed_by_policy.load(Relaxed),
            ),
            (
                "karst_ztunnel_crashes_total",
                Kind::Counter,
                "Processes of this ztunnel that have crashed or were killed, and were replaced.",
                self.crashes.load(Relaxed),
            ),
        ] {
            page.single(name, kind, help, v);
        }
        let by_limit = [
            ("hbone", "handshake", &self.handshakes),
            ("hbone", "open", &self.tunnels),
            ("plaintext", "open", &self.plaintext),
        ];
        Counts::render(page, &by_limit);
        process_metrics::render(page, "ztunnel");
        let help = "Connections for which an endpoint's host name was resolved.";
        let mut family = page.family("istio_on_demand_dns_total", Kind::Counter, help);
        for (labels, n) in self.by_name.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            family.series(labels, n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_counted_by_side_and_reason() {
        let metrics = Metrics::default();
        metrics.ends.note(Reporter::Source, "done");
        metrics.ends.note(Reporter::Destination, "policy_denied");
        metrics.ends.note(Reporter::Destination, "policy_denied");
        metrics.ends.note(Reporter::Destination, "no such reason");
        let page = karst_rt::exposition::page(|page| metrics.render(page));
        let ends: Vec<_> = page.lines().filter(|line| line.starts_with("karst_connections_ended_total{")).collect();
        let line =
            |side, reason, n| format!("karst_connections_ended_total{{reporter=\"{side}\",reason=\"{reason}\"}} {n}");
        assert_eq!(ends, [line("source", "done", 1), line("destination", "policy_denied", 2)]);
        assert!(page.contains("workload_manager_pending_proxy_count 0\n") && page.contains("process_max_fds "));
        assert!(page.contains("istio_build{component=\"ztunnel\",tag=\"karst-"));
    }
}
