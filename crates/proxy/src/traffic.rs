//! Istio's metrics of connections: the same series at both proxies. A series is found once for each connection and then only added
//! to. Those that have not changed for a while are dropped, and their number is bounded: label values come from the control plane,
//! but workloads come and go.

use crate::{
    labels::{put, side},
    series::Index,
    state::{Service, Workload},
};
use karst_rt::{
    clock::Instant,
    exposition::{Kind, Page},
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Most series; beyond, the ones unused for longest are dropped.
const MAX_SERIES: usize = 20_000;
/// Series without change for this long are dropped.
const SERIES_IDLE: Duration = Duration::from_secs(3600);

/// Between whom a connection is, and who tells of it.
#[derive(Clone, Copy, Debug)]
pub struct Between<'a> {
    /// The label `reporter`.
    pub reporter: &'static str,
    /// Who has opened it.
    pub source: Option<&'a Workload>,
    /// Who serves it.
    pub destination: Option<&'a Workload>,
    /// What was called.
    pub service: Option<&'a Service>,
    /// Both sides have proven who they are: the labels name them.
    pub mtls: bool,
    /// The label `connection_security_policy`.
    pub security: &'static str,
}

/// What the labels of a [`Between`] follow from. Several have the same: labels name workloads, not their pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) reporter: &'static str,
    source: Option<Arc<str>>,
    destination: Option<Arc<str>>,
    service: Option<Arc<str>>,
    mtls: bool,
    security: &'static str,
}

impl Between<'_> {
    /// The key, without what tells the series of one connection apart.
    pub(crate) fn key(&self) -> Key {
        Key {
            reporter: self.reporter,
            source: self.source.map(|w| w.uid.clone()),
            destination: self.destination.map(|w| w.uid.clone()),
            service: self.service.map(|s| s.key.clone()),
            mtls: self.mtls,
            security: self.security,
        }
    }

    /// The labels that come first: all but `connection_security_policy`.
    pub(crate) fn put(&self, out: &mut String) {
        let place = self.source.is_some() || self.destination.is_some();
        put(out, "reporter", self.reporter);
        side(out, "source", self.source, self.mtls, place);
        side(out, "destination", self.destination, self.mtls, place);
        put(out, "destination_service", self.service.map_or("", |s| &s.hostname));
        put(out, "destination_service_namespace", self.service.map_or("", |s| &s.namespace));
        put(out, "destination_service_name", self.service.map_or("", |s| &s.name));
    }
}

/// The counters of one series.
#[derive(Debug)]
pub struct Traffic {
    labels: Arc<str>,
    /// Connections that have come about.
    pub opened: AtomicU64,
    /// Those of them that have ended.
    pub closed: AtomicU64,
    /// Connections that have not come about.
    pub failed: AtomicU64,
    /// Istio: received are bytes from the client.
    pub received: AtomicU64,
    /// Bytes to the client.
    pub sent: AtomicU64,
    used: Mutex<Instant>,
}

/// By labels; the key has the flag, too.
type All = Index<Arc<str>, (Key, &'static str), Traffic, MAX_SERIES>;

/// All series of a process.
#[derive(Debug, Default)]
pub struct Table(Mutex<All>);

impl Table {
    /// The series of a connection. `flag`: Envoy's response flags, or ztunnel's.
    pub fn series(&self, between: &Between<'_>, flag: &'static str) -> Arc<Traffic> {
        let key = (between.key(), flag);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(traffic) = all.known(&key) {
            return traffic;
        }
        let labels: Arc<str> = labels(between, flag).into();
        if !all.has_place(&labels) {
            all.evict(Traffic::used);
        }
        all.add(key, labels, Traffic::new)
    }

    /// Adds them to the metrics page.
    pub fn render(&self, page: &mut Page) {
        let mut series: Vec<Arc<Traffic>> = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.sweep(|traffic| Arc::strong_count(traffic) == 1 && traffic.used().elapsed() >= SERIES_IDLE);
            all.values().cloned().collect()
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
            let mut family = page.family(name, Kind::Counter, help);
            for traffic in &series {
                let value = get(traffic).load(Relaxed);
                if value > 0 || !name.ends_with("failed_total") {
                    family.series(&traffic.labels, value);
                }
            }
        }
    }
}

impl Traffic {
    fn new(labels: Arc<str>) -> Self {
        Self {
            labels,
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            used: Mutex::new(Instant::now()),
        }
    }

    fn used(&self) -> Instant {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the series is in use.
    pub fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

fn labels(between: &Between<'_>, flag: &str) -> String {
    let mut out = String::with_capacity(800);
    between.put(&mut out);
    put(&mut out, "request_protocol", "tcp");
    put(&mut out, "response_flags", flag);
    put(&mut out, "connection_security_policy", between.security);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_rt::exposition;

    fn between(reporter: &'static str, security: &'static str) -> Between<'static> {
        Between { reporter, source: None, destination: None, service: None, mtls: true, security }
    }

    #[test]
    fn series_have_istios_labels() {
        let all = Table::default();
        let t = all.series(&between("source", "mutual_tls"), "-");
        t.opened.fetch_add(1, Relaxed);
        let page = exposition::page(|page| all.render(page));
        assert!(
            page.contains("istio_tcp_connections_opened_total{reporter=\"source\",source_workload=\"unknown\","),
            "{page}"
        );
        assert!(page.contains("connection_security_policy=\"mutual_tls\"} 1"), "{page}");
        assert!(!page.contains("source_region"), "absent when neither workload is known");
        assert!(!page.contains("failed_total{"), "nothing has failed");
        assert!(Arc::ptr_eq(&t, &all.series(&between("source", "mutual_tls"), "-")));
        assert!(!Arc::ptr_eq(&t, &all.series(&between("waypoint", "mutual_tls"), "-")));
        assert!(!Arc::ptr_eq(&t, &all.series(&between("source", "unknown"), "-")));
        assert!(!Arc::ptr_eq(&t, &all.series(&between("source", "mutual_tls"), "UF")));
    }

    /// A series without change goes after an hour; one whose connection is open stays, however quiet it is.
    #[tokio::test(start_paused = true)]
    async fn series_that_do_not_change_are_dropped() {
        let all = Table::default();
        let open = all.series(&between("source", "mutual_tls"), "-");
        drop(all.series(&between("destination", "mutual_tls"), "-"));
        let on_page = || {
            let page = exposition::page(|page| all.render(page));
            ["source", "destination"].map(|side| page.contains(&format!("opened_total{{reporter=\"{side}\"")))
        };
        tokio::time::advance(SERIES_IDLE - Duration::from_secs(1)).await;
        assert_eq!(on_page(), [true, true]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(on_page(), [true, false]);
        drop(open);
        assert_eq!(on_page(), [false, false]);
    }

    /// Services and workloads come and go: their number on the page is bounded, and who is used longest ago goes first.
    #[tokio::test(start_paused = true)]
    async fn the_number_of_series_is_bounded() {
        let all = Table::default();
        let snapshot = crate::testing::snapshot(vec![], vec![crate::testing::service("s", "10.96.0.1", &[(80, 80)])]);
        let one = snapshot.services.values().next().unwrap();
        let of = |name: &str| {
            let service = Service { key: name.into(), name: name.into(), ..(**one).clone() };
            all.series(&Between { service: Some(&service), ..between("source", "mutual_tls") }, "-")
        };
        let open = of("open");
        for n in 0..MAX_SERIES + 10 {
            of(&format!("s{n}"));
            if n == 0 {
                tokio::time::advance(Duration::from_secs(1)).await;
            }
        }
        let table = all.0.lock().unwrap();
        let count = table.values().count();
        assert!(count <= MAX_SERIES && count > MAX_SERIES * 8 / 10, "{count}");
        assert!(table.values().any(|traffic| Arc::ptr_eq(traffic, &open)), "an open connection counts on");
        assert!(!table.values().any(|traffic| traffic.labels.contains("\"s0\"")), "the oldest");
    }

    /// Replicas, and a pod in place of one that is gone, count on in one line.
    #[tokio::test(start_paused = true)]
    async fn pods_of_one_workload_have_one_series() {
        let all = Table::default();
        let pod = |name: &str, ip: &str| {
            let pod = crate::testing::pod(name, ip, &[]);
            karst_api::workload::Workload { workload_name: "shop".into(), service_account: "shop".into(), ..pod }
        };
        let pods = vec![pod("a", "10.0.0.1"), pod("b", "10.0.0.2")];
        let snapshot = crate::testing::snapshot(pods, vec![]);
        let of = |ip: &str| {
            let pod = snapshot.workload(ip.parse().unwrap());
            all.series(&Between { destination: pod.map(|pod| &**pod), ..between("source", "mutual_tls") }, "-")
        };
        of("10.0.0.1").opened.fetch_add(2, Relaxed);
        tokio::time::advance(SERIES_IDLE / 2).await;
        let kept = of("10.0.0.2");
        kept.opened.fetch_add(3, Relaxed);
        tokio::time::advance(SERIES_IDLE / 2).await;
        let page = exposition::page(|page| all.render(page));
        let opened: Vec<_> =
            page.lines().filter(|line| line.starts_with("istio_tcp_connections_opened_total{")).collect();
        assert!(opened.len() == 1 && opened[0].ends_with("} 5"), "{opened:?}");
    }

    fn nanoseconds(rounds: usize, one: impl FnMut(usize)) -> f64 {
        let began = std::time::Instant::now();
        (0..rounds).for_each(one);
        began.elapsed().as_secs_f64() * 1e9 / rounds as f64
    }

    /// How long a connection holds its two locks, in ns: that of all series, to look up one that is known, and that of its series,
    /// to note when it was used. The second is measured from before it is taken until after it is let go, with the look at the clock.
    /// The budget is of the time of one lock, if all connections that 16 cores can open wanted the same (docs/performance.md).
    #[test]
    #[ignore = "measures: cargo test --release -p karst-proxy --lib -- --ignored --nocapture locks_of_a_connection"]
    fn locks_of_a_connection_are_held_for_little() {
        const ROUNDS: usize = 1_000_000;
        const PODS: usize = 200;
        const PAIRS: usize = 1000;
        /// New connections a second of 16 cores, at 1.8 s of CPU for 10,000.
        const PER_SECOND: f64 = 16.0 * 10_000.0 / 1.8;
        const BUDGET: f64 = 0.05;
        let pods = (0..PODS).map(|n| crate::testing::pod(&format!("pod-{n}"), &format!("10.0.0.{}", n + 1), &[]));
        let snapshot = crate::testing::snapshot(pods.collect(), vec![]);
        let pods: Vec<Arc<Workload>> = snapshot.workloads.values().cloned().collect();
        assert_eq!(pods.len(), PODS);
        let at = |n: usize| pods.get(n).map(|pod| &**pod);
        let of = |n: usize| {
            let n = n % PAIRS;
            Between { source: at(n % PODS), destination: at(n / PODS), ..between("source", "mutual_tls") }
        };
        let all = Table::default();
        let series: Vec<Arc<Traffic>> = (0..PAIRS).map(|n| all.series(&of(n), "-")).collect();
        let find = |n: usize| drop(std::hint::black_box(all.series(&of(n), "-")));
        let alone = nanoseconds(ROUNDS, find);
        let at_once: Vec<f64> = std::thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(move || nanoseconds(ROUNDS, find)));
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let keys: Vec<_> = (0..PAIRS).map(|n| (of(n).key(), "-")).collect();
        let table = all.0.lock().unwrap();
        assert!(keys.iter().all(|key| table.known(key).is_some()));
        let look_up = nanoseconds(ROUNDS, |n| drop(std::hint::black_box(table.known(&keys[n % PAIRS]))));
        drop(table);
        let touch = nanoseconds(ROUNDS, |n| series[n % PAIRS].touch());
        println!("a known series: {alone:.0} ns, by two threads at once {at_once:.0?} ns each");
        for (what, held) in [("all series, for a look-up", look_up), ("one series, for the time of day", touch)] {
            let share = held / 1e9 * PER_SECOND;
            println!("lock of {what}: {held:.0} ns, {:.2} per cent of the time with 16 cores", share * 100.0);
            assert!(share < BUDGET, "{what}: {held:.0} ns");
        }
    }
}
