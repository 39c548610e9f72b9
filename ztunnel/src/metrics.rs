//! Traffic metrics with Istio's names and labels. Counters are found once for each connection and then only added to.
//! Series that have not changed for a while are dropped, and their number is bounded: label values come from the control
//! plane, but workloads come and go.

use crate::state::{Service, Workload};
use karst_proxy::{
    dry_run::DryRuns,
    labels::{put, side},
};
use karst_rt::admission::Counts;
use std::{
    collections::HashMap,
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Most series of traffic; beyond, the ones unused for longest are dropped.
const MAX_SERIES: usize = 20_000;
/// Series without change for this long are dropped.
const SERIES_IDLE: Duration = Duration::from_secs(3600);

/// Which side reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    Source,
    Destination,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    reporter: Reporter,
    source: Option<Arc<str>>,
    destination: Option<Arc<str>>,
    service: Option<Arc<str>>,
    flag: &'static str,
    mtls: bool,
}

/// The counters of one series.
#[derive(Debug)]
pub struct Traffic {
    labels: String,
    pub opened: AtomicU64,
    pub closed: AtomicU64,
    pub failed: AtomicU64,
    /// Istio: received are bytes from the client.
    pub received: AtomicU64,
    pub sent: AtomicU64,
    used: Mutex<Instant>,
}

/// All metrics of the process.
pub struct Metrics {
    series: Mutex<HashMap<Key, Arc<Traffic>>>,
    pub open_source: AtomicI64,
    pub open_destination: AtomicI64,
    pub xds_ended: [AtomicU64; 4],
    pub xds_messages: Mutex<HashMap<String, (u64, u64)>>,
    pub pods: AtomicI64,
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
    /// By policy; rendered with the state at hand, which says which policies there are.
    pub dry_runs: DryRuns,
    /// By labels.
    by_name: Mutex<HashMap<String, u64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            series: Mutex::default(),
            open_source: AtomicI64::new(0),
            open_destination: AtomicI64::new(0),
            xds_ended: Default::default(),
            xds_messages: Mutex::default(),
            pods: AtomicI64::new(0),
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
            dry_runs: DryRuns::default(),
            by_name: Mutex::default(),
        }
    }
}

impl Metrics {
    /// The series of a connection.
    pub fn traffic(
        &self,
        reporter: Reporter,
        source: Option<&Workload>,
        destination: Option<&Workload>,
        service: Option<&Service>,
        mtls: bool,
        flag: &'static str,
    ) -> Arc<Traffic> {
        let key = Key {
            reporter,
            source: source.map(|w| w.uid.clone()),
            destination: destination.map(|w| w.uid.clone()),
            service: service.map(|s| s.key.clone()),
            flag,
            mtls,
        };
        let mut m = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(t) = m.get(&key) {
            return t.clone();
        }
        if m.len() >= MAX_SERIES {
            evict(&mut m);
        }
        let t = Arc::new(Traffic {
            labels: labels(reporter, source, destination, service, mtls, flag),
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            used: Mutex::new(Instant::now()),
        });
        m.insert(key, t.clone());
        t
    }

    /// Notes that an endpoint's host name had to be resolved for a connection.
    pub fn on_demand_dns(&self, source: &Workload, host: &str) {
        let mut labels = String::with_capacity(400);
        side(&mut labels, "source", Some(source), true, true);
        put(&mut labels, "hostname", host);
        let mut m = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if m.len() >= MAX_SERIES && !m.contains_key(&labels) {
            m.clear();
        }
        *m.entry(labels).or_default() += 1;
    }

    /// The page, in the text format.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let mut series: Vec<Arc<Traffic>> = {
            let mut m = self.series.lock().unwrap_or_else(PoisonError::into_inner);
            m.retain(|_, t| {
                Arc::strong_count(t) > 1
                    || t.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < SERIES_IDLE
            });
            m.values().cloned().collect()
        };
        series.sort_by(|a, b| a.labels.cmp(&b.labels));
        for (name, help, get) in [
            (
                "istio_tcp_connections_opened_total",
                "TCP connections opened.",
                (|t: &Traffic| &t.opened) as fn(&Traffic) -> &AtomicU64,
            ),
            ("istio_tcp_connections_closed_total", "TCP connections closed.", |t| &t.closed),
            ("istio_tcp_connections_failed_total", "TCP connections that did not come about.", |t| &t.failed),
            ("istio_tcp_received_bytes_total", "Bytes from the client.", |t| &t.received),
            ("istio_tcp_sent_bytes_total", "Bytes to the client.", |t| &t.sent),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
            for t in &series {
                let v = get(t).load(Relaxed);
                if v > 0 || !name.ends_with("failed_total") {
                    let _ = writeln!(out, "{name}{{{}}} {v}", t.labels);
                }
            }
        }
        let _ = writeln!(
            out,
            "# HELP istio_tcp_sockets_open Open connections.\n# TYPE istio_tcp_sockets_open gauge\nistio_tcp_sockets_open{{reporter=\"source\"}} {}\nistio_tcp_sockets_open{{reporter=\"destination\"}} {}",
            self.open_source.load(Relaxed),
            self.open_destination.load(Relaxed)
        );
        let _ = writeln!(
            out,
            "# HELP istio_xds_connection_terminations_total Ends of the configuration stream.\n# TYPE istio_xds_connection_terminations_total counter"
        );
        for (i, reason) in ["ConnectionError", "Error", "Reconnect", "Complete"].iter().enumerate() {
            let _ = writeln!(
                out,
                "istio_xds_connection_terminations_total{{reason=\"{reason}\"}} {}",
                self.xds_ended.get(i).map_or(0, |c| c.load(Relaxed))
            );
        }
        let messages = self.xds_messages.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, help, pick) in [
            ("istio_xds_message_total", "Configuration messages.", (|v: &(u64, u64)| v.0) as fn(&(u64, u64)) -> u64),
            ("istio_xds_message_bytes_total", "Bytes of configuration messages.", |v| v.1),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
            for (url, v) in &messages {
                let _ = writeln!(out, "{name}{{url=\"{url}\"}} {}", pick(v));
            }
        }
        for (name, kind, help, v) in [
            (
                "workload_manager_active_proxy_count",
                "gauge",
                "Pods that are served.",
                self.pods.load(Relaxed).max(0) as u64,
            ),
            ("workload_manager_proxies_started_total", "counter", "Pods taken on.", self.pods_started.load(Relaxed)),
            ("workload_manager_proxies_stopped_total", "counter", "Pods let go.", self.pods_stopped.load(Relaxed)),
            ("istio_dns_requests_total", "counter", "DNS queries.", self.dns_requests.load(Relaxed)),
            ("istio_dns_upstream_requests_total", "counter", "DNS queries passed on.", self.dns_upstream.load(Relaxed)),
            (
                "istio_dns_upstream_failures_total",
                "counter",
                "DNS queries passed on without answer.",
                self.dns_upstream_failures.load(Relaxed),
            ),
            (
                "karst_tunnels_refused_total",
                "counter",
                "Inbound tunnels and connections refused because of a limit.",
                self.tunnels_refused.load(Relaxed),
            ),
            (
                "karst_connections_closed_by_policy_total",
                "counter",
                "Open connections closed by a policy change.",
                self.closed_by_policy.load(Relaxed),
            ),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {v}");
        }
        let by_limit = [
            ("hbone", "handshake", &self.handshakes),
            ("hbone", "open", &self.tunnels),
            ("plaintext", "open", &self.plaintext),
        ];
        Counts::render(&mut out, &by_limit);
        let _ = writeln!(
            out,
            "# HELP istio_build Version.\n# TYPE istio_build gauge\nistio_build{{component=\"ztunnel\",tag=\"karst-{}\"}} 1",
            env!("CARGO_PKG_VERSION")
        );
        let _ = writeln!(
            out,
            "# HELP istio_on_demand_dns_total Connections for which an endpoint's host name was resolved.\n# TYPE istio_on_demand_dns_total counter"
        );
        for (labels, n) in self.by_name.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "istio_on_demand_dns_total{{{labels}}} {n}");
        }
        let fds = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let _ = writeln!(
            out,
            "# HELP process_open_fds Open descriptors.\n# TYPE process_open_fds gauge\nprocess_open_fds {fds}"
        );
        out
    }
}

impl Traffic {
    /// Notes that the series is in use.
    pub fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

fn evict(m: &mut HashMap<Key, Arc<Traffic>>) {
    let mut idle: Vec<(Instant, Key)> = m
        .iter()
        .filter(|(_, t)| Arc::strong_count(t) == 1)
        .map(|(k, t)| (*t.used.lock().unwrap_or_else(PoisonError::into_inner), k.clone()))
        .collect();
    idle.sort_by_key(|(t, _)| *t);
    for (_, k) in idle.iter().take(MAX_SERIES / 10) {
        m.remove(k);
    }
}

fn labels(
    reporter: Reporter,
    source: Option<&Workload>,
    destination: Option<&Workload>,
    service: Option<&Service>,
    mtls: bool,
    flag: &str,
) -> String {
    let mut out = String::with_capacity(800);
    let place = source.is_some() || destination.is_some();
    put(&mut out, "reporter", if reporter == Reporter::Source { "source" } else { "destination" });
    side(&mut out, "source", source, mtls, place);
    side(&mut out, "destination", destination, mtls, place);
    put(&mut out, "destination_service", service.map_or("", |s| &s.hostname));
    put(&mut out, "destination_service_namespace", service.map_or("", |s| &s.namespace));
    put(&mut out, "destination_service_name", service.map_or("", |s| &s.name));
    put(&mut out, "request_protocol", "tcp");
    put(&mut out, "response_flags", flag);
    put(&mut out, "connection_security_policy", if mtls { "mutual_tls" } else { "unknown" });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_have_istios_labels() {
        let m = Metrics::default();
        let t = m.traffic(Reporter::Source, None, None, None, true, "-");
        t.opened.fetch_add(1, Relaxed);
        let page = m.render();
        assert!(
            page.contains("istio_tcp_connections_opened_total{reporter=\"source\",source_workload=\"unknown\","),
            "{page}"
        );
        assert!(page.contains("connection_security_policy=\"mutual_tls\"} 1"));
        assert!(!page.contains("source_region"), "absent when neither workload is known");
        assert!(Arc::ptr_eq(&t, &m.traffic(Reporter::Source, None, None, None, true, "-")));
    }
}
