//! Istio's metrics of requests that were seen in passing, at the side of the client (`reporter="source"`) and of the server
//! (`destination`). A connection finds its series once and then only adds. As with [`crate::traffic`], those that have not changed
//! for a while are dropped, and their number is bounded.
//!
//! Each thread counts in a part of its own ([`Counter`]), and a page adds them up: no request waits for the memory that another
//! worker counts in, and what was counted is on the next page.

use crate::{
    labels::{grpc_status, put},
    series::Index,
    traffic::{Between, Key},
};
use arc_swap::ArcSwap;
use karst_flows::DURATION_BOUNDS;
use karst_rt::{
    clock::Instant,
    exposition::{self, Family, Page},
};
use karst_signals::{Exchange, Flag, Protocol, Surprise};
use std::{
    marker::PhantomData,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, ThreadId},
};

/// Most series; beyond, the ones unused for longest are dropped, and where all are in use the rest is counted together, by
/// reporter. A series is 44 lines of some 900 bytes, so that the page has at most 80 MB of them; and some 450 bytes for each thread
/// that counts in it.
const MAX_SERIES: usize = 2_000;
/// Series without change for this long are dropped, in seconds.
const SERIES_IDLE: u64 = 3600;
/// Istio's buckets, in bytes.
const BYTES: [f64; 10] = [1.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];

/// What tells the series of one connection apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    protocol: Protocol,
    status: u16,
    flag: Flag,
    grpc_status: Option<u8>,
}

impl From<&Exchange> for Kind {
    fn from(e: &Exchange) -> Self {
        Self { protocol: e.protocol, status: e.status, flag: e.flag, grpc_status: e.grpc_status }
    }
}

/// Adds to a count that no other thread writes. Who reads it sees it as before, or as after.
fn raise(count: &AtomicU64, by: u64) {
    count.store(count.load(Relaxed).wrapping_add(by), Relaxed);
}

/// A histogram; the last bucket is without bound.
#[derive(Debug)]
struct Histogram<const N: usize> {
    buckets: [AtomicU64; N],
    more: AtomicU64,
    /// In whole units of what is counted: bytes, or nanoseconds.
    sum: AtomicU64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), more: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }
}

impl<const N: usize> Histogram<N> {
    /// One more value, which belongs in this bucket.
    fn add(&self, bucket: usize, units: u64) {
        raise(&self.sum, units);
        raise(self.buckets.get(bucket).unwrap_or(&self.more), 1);
    }
    /// Its buckets, in order.
    fn counts(&self) -> impl Iterator<Item = &AtomicU64> {
        self.buckets.iter().chain([&self.more])
    }
    /// How many values it has.
    fn count(&self) -> u64 {
        self.counts().map(|bucket| bucket.load(Relaxed)).sum()
    }
    /// Adds what another has counted so far.
    fn merge(&self, other: &Self) {
        raise(&self.sum, other.sum.load(Relaxed));
        self.counts().zip(other.counts()).for_each(|(own, other)| raise(own, other.load(Relaxed)));
    }
    fn render(&self, family: &mut Family<'_>, labels: &str, bounds: &[f64; N], unit: f64) {
        let counts = self.counts().map(|bucket| bucket.load(Relaxed));
        family.histogram(labels, bounds, counts, self.sum.load(Relaxed) as f64 / unit);
    }
}

/// In which bucket a value belongs. Behind all: it is beyond the last bound.
fn bucket(bounds: &[f64], value: f64) -> usize {
    bounds.partition_point(|bound| *bound < value)
}

/// A request, and the buckets it belongs in: of one within a node two series are told, and they are looked for once.
#[derive(Debug)]
pub struct Placed<'a> {
    exchange: &'a Exchange,
    duration: usize,
    request_bytes: usize,
    response_bytes: usize,
}

impl<'a> From<&'a Exchange> for Placed<'a> {
    fn from(exchange: &'a Exchange) -> Self {
        Self {
            exchange,
            duration: bucket(&DURATION_BOUNDS, exchange.duration.as_secs_f64() * 1000.0),
            request_bytes: bucket(&BYTES, exchange.request_bytes as f64),
            response_bytes: bucket(&BYTES, exchange.response_bytes as f64),
        }
    }
}

/// One series.
#[derive(Debug)]
struct Series {
    labels: Arc<str>,
    is_grpc: bool,
    /// What each thread has counted. It is looked at where a connection finds its series and where a page is written, and not where
    /// requests are counted.
    parts: ArcSwap<Vec<(ThreadId, Arc<Part>)>>,
    /// Seconds after the table began.
    used: AtomicU64,
}

/// What one thread has counted in a series. In lines of the cache in which nothing of another thread's is.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Part {
    /// Each request has one: their number is that of requests.
    duration: Histogram<{ DURATION_BOUNDS.len() }>,
    request_bytes: Histogram<10>,
    response_bytes: Histogram<10>,
    request_messages: AtomicU64,
    response_messages: AtomicU64,
}

impl Part {
    /// Adds what another has counted so far.
    fn merge(&self, other: &Self) {
        self.duration.merge(&other.duration);
        self.request_bytes.merge(&other.request_bytes);
        self.response_bytes.merge(&other.response_bytes);
        raise(&self.request_messages, other.request_messages.load(Relaxed));
        raise(&self.response_messages, other.response_messages.load(Relaxed));
    }
}

impl Series {
    fn new(labels: Arc<str>, is_grpc: bool, now: u64) -> Self {
        Self { labels, is_grpc, parts: ArcSwap::default(), used: AtomicU64::new(now) }
    }

    /// What all threads have counted so far.
    fn total(&self) -> Part {
        let total = Part::default();
        self.parts.load().iter().for_each(|(_, part)| total.merge(part));
        total
    }
}

/// A series, and where connections of this thread count in it. While there is one the series is in use.
#[derive(Debug)]
pub struct Counter {
    series: Arc<Series>,
    part: Arc<Part>,
    /// It stays on its thread: nobody else writes to the part.
    own: PhantomData<Rc<()>>,
}

impl Counter {
    /// This thread's.
    fn of(series: Arc<Series>) -> Self {
        let own = thread::current().id();
        let known = series.parts.load().iter().find(|(id, _)| *id == own).map(|(_, part)| part.clone());
        let part = known.unwrap_or_else(|| {
            let new = Arc::<Part>::default();
            // Nobody else adds one for this thread.
            series.parts.rcu(|parts| {
                let added = [(own, new.clone())];
                parts.iter().cloned().chain(added).collect::<Vec<_>>()
            });
            new
        });
        Self { series, part, own: PhantomData }
    }

    /// One more request.
    pub fn add(&self, placed: &Placed<'_>) {
        let (part, e) = (&*self.part, placed.exchange);
        part.duration.add(placed.duration, e.duration.as_nanos() as u64);
        part.request_bytes.add(placed.request_bytes, e.request_bytes);
        part.response_bytes.add(placed.response_bytes, e.response_bytes);
        if self.series.is_grpc {
            raise(&part.request_messages, e.request_messages);
            raise(&part.response_messages, e.response_messages);
        }
    }
}

type All = Index<Arc<str>, (Key, Kind), Series, MAX_SERIES>;

/// The series with these labels, for this key, too.
fn add(all: &mut All, key: &(Key, Kind), labels: &Arc<str>, now: u64) -> Arc<Series> {
    let mut is_grpc = key.1.protocol == Protocol::Grpc;
    let mut labels = labels.clone();
    if !all.has_place(&labels) {
        all.evict(|series| series.used.load(Relaxed));
        if !all.has_place(&labels) {
            labels = format!("reporter=\"{}\"", key.0.reporter).into();
            is_grpc = true;
        }
    }
    all.add(key.clone(), labels, |labels| Series::new(labels, is_grpc, now))
}

/// All series of a process.
#[derive(Debug)]
pub struct Table {
    all: ArcSwap<All>,
    began: Instant,
    /// Connections that were given up, by [`Surprise`].
    given_up: [AtomicU64; Surprise::ALL.len()],
}

impl Default for Table {
    fn default() -> Self {
        Self { all: ArcSwap::default(), began: Instant::now(), given_up: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Table {
    /// Where this thread counts a connection's requests of one kind.
    pub fn counter(&self, between: &Between<'_>, kind: Kind) -> Counter {
        Counter::of(self.series(between, kind))
    }

    fn series(&self, between: &Between<'_>, kind: Kind) -> Arc<Series> {
        let key = (between.key(), kind);
        let now = self.now();
        if let Some(series) = self.all.load().known(&key) {
            series.used.store(now, Relaxed);
            return series;
        }
        let labels: Arc<str> = labels(between, kind).into();
        loop {
            let before = self.all.load_full();
            let mut all = (*before).clone();
            let series = add(&mut all, &key, &labels, now);
            let seen = self.all.compare_and_swap(&before, Arc::new(all));
            if Arc::ptr_eq(&seen, &before) {
                return series;
            }
        }
    }

    /// Somebody has counted in this series until now.
    pub fn touch(&self, counter: &Counter) {
        counter.series.used.store(self.now(), Relaxed);
    }

    /// A connection is not read any further.
    pub fn gave_up(&self, surprise: Surprise) {
        if let Some(n) = Surprise::ALL.iter().position(|s| *s == surprise).and_then(|i| self.given_up.get(i)) {
            n.fetch_add(1, Relaxed);
        }
    }

    /// Adds them to the metrics page.
    pub fn render(&self, page: &mut Page) {
        let now = self.now();
        let is_idle = |s: &Series| now.saturating_sub(s.used.load(Relaxed)) >= SERIES_IDLE;
        // A copy shares them, so that who nobody uses is still held once.
        self.all.rcu(|all| {
            let mut all = All::clone(all);
            all.sweep(|series| Arc::strong_count(series) == 1 && is_idle(series));
            all
        });
        let mut series: Vec<Arc<Series>> = self.all.load().values().cloned().collect();
        series.sort_by(|a, b| a.labels.cmp(&b.labels));
        let series: Vec<(&Series, Part)> = series.iter().map(|s| (&**s, s.total())).collect();
        let (counter, histogram) = (exposition::Kind::Counter, exposition::Kind::Histogram);
        let mut family = page.family("istio_requests_total", counter, "Requests.");
        series.iter().for_each(|(s, total)| family.series(&s.labels, total.duration.count()));
        let mut family = page.family("istio_request_duration_milliseconds", histogram, "Durations of requests.");
        series.iter().for_each(|(s, total)| total.duration.render(&mut family, &s.labels, &DURATION_BOUNDS, 1e6));
        let mut family = page.family("istio_request_bytes", histogram, "Sizes of requests.");
        series.iter().for_each(|(s, total)| total.request_bytes.render(&mut family, &s.labels, &BYTES, 1.0));
        let mut family = page.family("istio_response_bytes", histogram, "Sizes of answers.");
        series.iter().for_each(|(s, total)| total.response_bytes.render(&mut family, &s.labels, &BYTES, 1.0));
        for (name, help, get) in [
            (
                "istio_request_messages_total",
                "Messages of gRPC to servers.",
                (|part: &Part| &part.request_messages) as fn(&Part) -> &AtomicU64,
            ),
            ("istio_response_messages_total", "Messages of gRPC to clients.", |part| &part.response_messages),
        ] {
            let mut family = page.family(name, counter, help);
            for (s, total) in series.iter().filter(|(s, _)| s.is_grpc) {
                family.series(&s.labels, get(total).load(Relaxed));
            }
        }
        let help = "Connections whose requests are not counted.";
        let mut family = page.family("karst_http_signals_given_up_total", counter, help);
        for (surprise, n) in Surprise::ALL.iter().zip(&self.given_up) {
            family.sample(&[("reason", surprise.text())], n.load(Relaxed));
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_secs()
    }
}

fn labels(between: &Between<'_>, kind: Kind) -> String {
    let mut out = String::with_capacity(900);
    between.put(&mut out);
    put(&mut out, "request_protocol", kind.protocol.text());
    put(&mut out, "response_code", &kind.status.to_string());
    if kind.protocol == Protocol::Grpc {
        grpc_status(&mut out, kind.grpc_status.map(u16::from), kind.status);
    }
    put(&mut out, "response_flags", kind.flag.text());
    put(&mut out, "connection_security_policy", between.security);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn between() -> Between<'static> {
        Between {
            reporter: "source",
            source: None,
            destination: None,
            service: None,
            mtls: true,
            security: "mutual_tls",
        }
    }

    fn exchange() -> Exchange {
        Exchange {
            protocol: Protocol::Grpc,
            status: 200,
            flag: Flag::None,
            grpc_status: Some(5),
            request_bytes: 10,
            response_bytes: 2_000_000_000,
            request_messages: 3,
            response_messages: 4,
            duration: Duration::from_micros(1500),
            asked: None,
        }
    }

    #[test]
    fn requests_have_istios_series_and_labels() {
        let (all, e) = (Table::default(), exchange());
        let counter = all.counter(&between(), Kind::from(&e));
        counter.add(&Placed::from(&e));
        counter.add(&Placed::from(&e));
        assert!(Arc::ptr_eq(&counter.series, &all.series(&between(), Kind::from(&e))));
        all.gave_up(Surprise::Framing);
        let page = exposition::page(|page| all.render(page));
        let line = |start: &str, end: &str| page.lines().any(|l| l.starts_with(start) && l.ends_with(end));
        let labels = "request_protocol=\"grpc\",response_code=\"200\",grpc_response_status=\"5\",response_flags=\"-\",connection_security_policy=\"mutual_tls\"";
        assert!(line("istio_requests_total{reporter=\"source\"", &format!("{labels}}} 2")), "{page}");
        assert!(line("istio_request_duration_milliseconds_bucket{", "le=\"1\"} 0"), "{page}");
        assert!(line("istio_request_duration_milliseconds_bucket{", "le=\"5\"} 2"), "{page}");
        assert!(line("istio_request_duration_milliseconds_sum{", "} 3"), "{page}");
        assert!(line("istio_request_bytes_bucket{", "le=\"10\"} 2"), "{page}");
        assert!(line("istio_response_bytes_bucket{", "le=\"1000000000\"} 0"), "{page}");
        assert!(line("istio_response_bytes_bucket{", "le=\"+Inf\"} 2"), "{page}");
        assert!(
            line("istio_request_messages_total{", "} 6") && line("istio_response_messages_total{", "} 8"),
            "{page}"
        );
        assert!(line("karst_http_signals_given_up_total{reason=\"framing\"}", " 1"), "{page}");
    }

    /// Two workers count the same kind of request, and connections of one worker share its part.
    #[test]
    fn what_every_thread_has_counted_is_on_the_page() {
        const CONNECTIONS: u64 = 3;
        const REQUESTS: u64 = 1000;
        let (all, e) = (Table::default(), exchange());
        let count = || {
            let connections: Vec<_> = (0..CONNECTIONS).map(|_| all.counter(&between(), Kind::from(&e))).collect();
            (0..REQUESTS).for_each(|_| connections.iter().for_each(|counter| counter.add(&Placed::from(&e))));
        };
        thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(count))));
        count();
        let series = all.series(&between(), Kind::from(&e));
        assert_eq!(series.parts.load().len(), 3, "one of each thread");
        let requests = 3 * CONNECTIONS * REQUESTS;
        let page = exposition::page(|page| all.render(page));
        for (name, value) in [
            ("istio_requests_total{", requests),
            ("istio_request_duration_milliseconds_count{", requests),
            ("istio_request_bytes_sum{", requests * e.request_bytes),
            ("istio_response_bytes_sum{", requests * e.response_bytes),
            ("istio_request_messages_total{", requests * e.request_messages),
            ("istio_response_messages_total{", requests * e.response_messages),
        ] {
            let line = page.lines().find(|line| line.starts_with(name)).unwrap();
            assert!(line.ends_with(&format!("}} {value}")), "{value}: {line}");
        }
    }

    /// What it takes to count a request within a node, in ns, with the look for its buckets: by one thread, and by each of two at
    /// once that count the same kind. The budget is 0.6 per cent of what such a request takes of a ztunnel's CPU (17 us).
    #[test]
    #[ignore = "measures: cargo test --release -p karst-proxy --lib -- --ignored --nocapture a_request_is_counted"]
    fn a_request_is_counted_in_little_time() {
        const ROUNDS: u32 = 5_000_000;
        const BUDGET: f64 = 100.0;
        let (all, e) = (Table::default(), exchange());
        let nanoseconds = || {
            let side = |reporter| all.counter(&Between { reporter, ..between() }, Kind::from(&e));
            let (sides, began) = (["source", "destination"].map(side), Instant::now());
            for _ in 0..ROUNDS {
                let placed = Placed::from(std::hint::black_box(&e));
                sides.iter().for_each(|side| side.add(&placed));
            }
            began.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS)
        };
        let alone = nanoseconds();
        let at_once = thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(nanoseconds));
            threads.map(|thread| thread.join().unwrap())
        });
        println!("a request: {alone:.0} ns, by two threads at once {at_once:.0?} ns each");
        assert!(alone < BUDGET && at_once.iter().all(|ns| *ns < BUDGET));
    }

    #[test]
    fn a_call_without_a_grpc_status_has_that_of_its_http_status() {
        for (status, label) in [(0, ""), (200, "2"), (401, "16"), (404, "12"), (500, "2"), (503, "14")] {
            let kind = Kind { status, grpc_status: None, ..Kind::from(&exchange()) };
            let text = labels(&between(), kind);
            assert!(text.contains(&format!("grpc_response_status=\"{label}\"")), "{status}: {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn series_that_nobody_uses_go() {
        let (all, e) = (Table::default(), exchange());
        let kept = all.counter(&between(), Kind::from(&e));
        all.series(&between(), Kind { status: 404, ..Kind::from(&e) });
        tokio::time::advance(Duration::from_secs(SERIES_IDLE + 1)).await;
        let render = || exposition::page(|page| all.render(page));
        let page = render();
        assert!(page.contains("response_code=\"200\"") && !page.contains("response_code=\"404\""), "{page}");
        all.touch(&kept);
        drop(kept);
        assert!(render().contains("response_code=\"200\""), "it was used just now");
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_series_is_bounded() {
        let (all, e) = (Table::default(), exchange());
        let mesh = crate::testing::snapshot(vec![], vec![crate::testing::service("s", "10.96.0.1", &[(80, 80)])]);
        let one = mesh.services.values().next().unwrap();
        let of = |name: &str| {
            let service = crate::state::Service { key: name.into(), name: name.into(), ..(**one).clone() };
            all.series(&Between { service: Some(&service), ..between() }, Kind::from(&e))
        };
        let open: Vec<_> = (0..MAX_SERIES / 2).map(|n| of(&format!("open{n}"))).collect();
        for n in 0..MAX_SERIES {
            of(&format!("s{n}"));
            if n == 0 {
                tokio::time::advance(Duration::from_secs(1)).await;
            }
        }
        let listed = || all.all.load().values().cloned().collect::<Vec<_>>();
        assert!(listed().len() <= MAX_SERIES, "{}", listed().len());
        let is_listed = |one: &Arc<Series>| listed().iter().any(|series| Arc::ptr_eq(series, one));
        assert!(open.iter().all(is_listed), "open connections count on");
        assert!(!listed().iter().any(|series| series.labels.contains("\"s0\"")), "the oldest");
        // All are in use: what comes is counted together.
        let _more: Vec<_> = (0..MAX_SERIES).map(|n| of(&format!("more{n}"))).collect();
        let rest = of("rest");
        Counter::of(rest.clone()).add(&Placed::from(&e));
        let page = exposition::page(|page| all.render(page));
        assert!(is_listed(&rest) && listed().len() == MAX_SERIES + 1, "{}", listed().len());
        assert!(page.contains("istio_requests_total{reporter=\"source\"} 1\n"), "one for all");
    }

    /// Replicas count in one line.
    #[test]
    fn pods_of_one_workload_have_one_series() {
        let (all, e) = (Table::default(), exchange());
        let pod = |name: &str, ip: &str| {
            let pod = crate::testing::pod(name, ip, &[]);
            karst_api::workload::Workload { workload_name: "shop".into(), service_account: "shop".into(), ..pod }
        };
        let mesh = crate::testing::snapshot(vec![pod("a", "10.0.0.1"), pod("b", "10.0.0.2")], vec![]);
        for ip in ["10.0.0.1", "10.0.0.2", "10.0.0.1"] {
            let destination = mesh.workload(ip.parse().unwrap()).map(|pod| &**pod);
            all.counter(&Between { destination, ..between() }, Kind::from(&e)).add(&Placed::from(&e));
        }
        let page = exposition::page(|page| all.render(page));
        let lines: Vec<_> = page.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
        assert!(lines.len() == 1 && lines[0].ends_with("} 3"), "{lines:?}");
    }
}
