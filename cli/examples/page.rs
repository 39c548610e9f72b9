//! The page of `karst dashboard` without a cluster, for the browser's test (cli/page/test/browser.mjs): the product's own server and
//! graph, fed with pages as proxies write them. Time is made: it moves by the lines of standard input, each answered by `ok`.
//!
//! `bookinfo` | `store` | `services N`: what there is. `ticks N`: N rounds of 2 s. `fault on|off`: ratings fails. `deny on|off`: a policy
//! refuses curl at reviews. The last of the addresses is that of the same page as it is in a cluster, where users log in.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test's program: its failure is a panic, its output is read"
)]

use karst_cli::page::{
    Door, Guard, Reading, Shared, State,
    judge::{Judge, JudgeError, Judged, User},
    serve,
};
use karst_flows::{DURATION_BOUNDS, Flow};
use karst_topology::Kind;
use std::{cell::RefCell, collections::BTreeMap, fmt::Write, rc::Rc};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    task::LocalSet,
};

const START: u64 = 1_760_000_000_000;

/// In the API server's place: `NAMESPACE-token` is the token of whoever may list the pods of that namespace.
struct Tokens;

impl Judge for Tokens {
    fn user<'a>(&'a self, token: &'a str) -> Judged<'a, User> {
        let user = token.strip_suffix("-token").map(|namespace| User {
            name: format!("viewer of {namespace}"),
            groups: vec![namespace.into()],
            ..User::default()
        });
        Box::pin(async move { user.ok_or(JudgeError::Refused) })
    }
    fn may_list_pods<'a>(&'a self, user: &'a User, namespace: Option<&'a str>) -> Judged<'a, bool> {
        let may = user.groups.iter().any(|group| Some(group.as_str()) == namespace);
        Box::pin(async move { Ok(may) })
    }
}

/// Calls of one kind.
#[derive(Clone)]
struct Load {
    reporter: &'static str,
    from: String,
    to: String,
    service: String,
    protocol: &'static str,
    /// Per round; of requests, or of connections.
    count: u64,
    /// Index of the bucket that most fall in.
    bucket: usize,
    code: u16,
    plain: bool,
}

impl Load {
    fn new(reporter: &'static str, from: &str, to: &str, service: &str, count: u64) -> Self {
        let service = if service.is_empty() { String::new() } else { format!("{service}.svc.cluster.local") };
        let (from, to) = (from.to_owned(), to.to_owned());
        Self { reporter, from, to, service, protocol: "http", count, bucket: 4, code: 200, plain: false }
    }
    fn slow(mut self, bucket: usize) -> Self {
        self.bucket = bucket;
        self
    }
    fn code(mut self, code: u16) -> Self {
        self.code = code;
        self
    }
    fn tcp(mut self) -> Self {
        self.protocol = "tcp";
        self
    }
    fn plain(mut self) -> Self {
        self.plain = true;
        self
    }
    fn labels(&self) -> String {
        let side = |side: &str, name: &str| {
            let (namespace, name) = name.split_once('/').unwrap_or(("unknown", "unknown"));
            let account = name.split("-v").next().unwrap_or_default();
            let principal = match name {
                "unknown" => "unknown".to_owned(),
                _ => format!("spiffe://cluster.local/ns/{namespace}/sa/{account}"),
            };
            format!(
                "{side}_workload=\"{name}\",{side}_workload_namespace=\"{namespace}\",{side}_principal=\"{principal}\""
            )
        };
        let security = match (self.reporter, self.plain) {
            (_, true) => "none",
            ("source", _) => "unknown",
            _ => "mutual_tls",
        };
        let service = if self.service.is_empty() { "unknown" } else { &self.service };
        let mut out = format!(
            "reporter=\"{}\",{},{},destination_service=\"{service}\",request_protocol=\"{}\",response_flags=\"-\",connection_security_policy=\"{security}\"",
            self.reporter,
            side("source", &self.from),
            side("destination", &self.to),
            self.protocol,
        );
        if self.protocol != "tcp" {
            let _ = write!(out, ",response_code=\"{}\"", self.code);
        }
        out
    }
}

/// Counters of all proxies, in one page for each.
#[derive(Default)]
struct World {
    loads: Vec<Load>,
    counters: BTreeMap<String, u64>,
    now: u64,
    fault: bool,
    deny: bool,
    denied: u64,
}

impl World {
    fn bookinfo(&mut self) {
        let reviews = "reviews.bookinfo";
        let http = |from: &str, to: &str, service: &str, count| Load::new("waypoint", from, to, service, count);
        self.loads = vec![
            Load::new("source", "istio-ingress/gateway-istio", "bookinfo/productpage-v1", "productpage.bookinfo", 84)
                .slow(5),
            Load::new("source", "unknown/unknown", "istio-ingress/gateway-istio", "", 21).tcp().plain(),
            http("bookinfo/productpage-v1", "bookinfo/details-v1", "details.bookinfo", 84).slow(3),
            http("bookinfo/productpage-v1", "bookinfo/reviews-v1", reviews, 28).slow(4),
            http("bookinfo/productpage-v1", "bookinfo/reviews-v2", reviews, 28).slow(5),
            http("bookinfo/productpage-v1", "bookinfo/reviews-v3", reviews, 28).slow(5),
            http("bookinfo/reviews-v2", "bookinfo/ratings-v1", "ratings.bookinfo", 28).slow(3),
            http("bookinfo/reviews-v3", "bookinfo/ratings-v1", "ratings.bookinfo", 28).slow(3),
            Load::new("destination", "bookinfo/ratings-v1", "bookinfo/mongodb-v1", "mongodb.bookinfo", 6).tcp(),
            Load::new("source", "bookinfo/ratings-v1", "bookinfo/mongodb-v1", "mongodb.bookinfo", 6).tcp(),
            Load::new("destination", "bookinfo/productpage-v1", "bookinfo/waypoint", reviews, 5).tcp(),
            Load::new("destination", "bookinfo/waypoint", "bookinfo/reviews-v1", reviews, 5).tcp(),
            Load::new("destination", "monitoring/prometheus", "bookinfo/productpage-v1", "", 1).tcp().plain(),
        ];
    }

    /// samples/store without a waypoint: a tenth of what is bought goes to a release that fails.
    fn store(&mut self) {
        let http = |from: &str, to: &str, service: &str, count| {
            let name = |short: &str| format!("store/{short}");
            Load::new("destination", &name(from), &name(to), &format!("{service}.store"), count)
        };
        self.loads = vec![
            http("shopper-v1", "storefront-v1", "storefront", 120).slow(5),
            http("storefront-v1", "catalog-v1", "catalog", 60).slow(2),
            http("storefront-v1", "checkout-v1", "checkout", 54).slow(4),
            http("storefront-v1", "checkout-v2", "checkout", 6).code(500),
            http("checkout-v1", "catalog-v1", "catalog", 54).slow(2),
            http("checkout-v1", "payments-v1", "payments", 54).slow(3),
        ];
    }

    fn services(&mut self, count: usize) {
        let name = |i: usize| format!("shop-{}/service-{i:03}", i % 6);
        let mut loads = vec![];
        for i in 1..count {
            for parent in [i / 3, (i.wrapping_mul(2_654_435_761) >> 9) % i] {
                let service = format!("service-{i:03}.shop-{}", i % 6);
                loads
                    .push(Load::new("destination", &name(parent), &name(i), &service, (i % 40 + 1) as u64).slow(i % 8));
            }
        }
        loads.dedup_by_key(|load| (load.from.clone(), load.to.clone()));
        loads.push(Load::new("destination", &name(0), &name(1), "service-001.shop-1", 9).code(503));
        self.loads = loads;
    }

    fn add(&mut self, series: String, by: u64) {
        *self.counters.entry(series).or_default() += by;
    }

    fn tick(&mut self, shared: &Shared) {
        self.now += 2000;
        for mut load in self.loads.clone() {
            // Waves, so that the time line has a form.
            let wave =
                1.0 + 0.35 * ((self.now / 1000) as f64 / 340.0).sin() + 0.1 * ((self.now / 1000) as f64 / 47.0).sin();
            let count = ((load.count as f64 * wave).round() as u64).max(1);
            if load.protocol == "tcp" {
                let labels = load.labels();
                self.add(format!("istio_tcp_connections_opened_total{{{labels}}}"), count);
                self.add(format!("istio_tcp_sent_bytes_total{{{labels}}}"), count * 5200);
                self.add(format!("istio_tcp_received_bytes_total{{{labels}}}"), count * 900);
                continue;
            }
            let failing = if self.fault && load.to.contains("ratings") { count / 2 } else { 0 };
            for (code, count) in [(load.code, count - failing), (503, failing)] {
                load.code = code;
                self.requests(&load, count);
            }
        }
        if self.deny {
            self.denied += 4;
            let denied = Load::new("waypoint", "tools/curl", "unknown", "reviews.bookinfo", 4).code(403);
            self.requests(&denied, 4);
        }
        let mut page = String::new();
        for (series, value) in &self.counters {
            let _ = writeln!(page, "{series} {value}");
        }
        let mut state = shared.borrow_mut();
        let at = START + self.now;
        state.topology.set_kinds([
            (("istio-ingress".to_owned(), "gateway-istio".to_owned()), Kind::Gateway),
            (("bookinfo".to_owned(), "waypoint".to_owned()), Kind::Waypoint),
        ]);
        state.topology.read("proxy", &page, at).unwrap();
        state.topology.read_flows("proxy", &self.flows(at / 1000), at);
        state.topology.settle(at);
        state.reading = Reading { read: 4, unread: vec![], took: 120 };
    }

    fn requests(&mut self, load: &Load, count: u64) {
        if count == 0 {
            return;
        }
        let labels = load.labels();
        self.add(format!("istio_requests_total{{{labels}}}"), count);
        let bounds = DURATION_BOUNDS.iter().map(f64::to_string).chain(["+Inf".into()]);
        for (i, le) in bounds.enumerate() {
            let below = match i + 1 {
                i if i == load.bucket => count / 4,
                i if i == load.bucket + 1 => count * 9 / 10,
                i if i > load.bucket + 1 => count,
                _ => 0,
            };
            self.add(format!("istio_request_duration_milliseconds_bucket{{{labels},le=\"{le}\"}}"), below);
        }
    }

    fn flows(&self, now: u64) -> Vec<Flow> {
        let flow = serde_json::json!({
            "reporter": "waypoint", "port": 9080, "method": "GET", "path": "/reviews/{*}", "verdict": "denied",
            "policy": "bookinfo/reviews-viewer", "count": self.denied, "first": now, "last": now,
            "destination": { "namespace": "bookinfo", "service": "bookinfo/reviews.bookinfo.svc.cluster.local" },
            "source": { "identity": "spiffe://cluster.local/ns/tools/sa/curl" },
            "example": { "from": "10.0.0.9", "to": "10.96.0.7:9080", "path": "/reviews/1" },
        });
        if self.denied == 0 { vec![] } else { vec![serde_json::from_value(flow).unwrap()] }
    }

    fn command(&mut self, words: &[&str], shared: &Shared) {
        match words {
            ["bookinfo"] => self.bookinfo(),
            ["store"] => self.store(),
            ["services", count] => self.services(count.parse::<usize>().unwrap()),
            ["ticks", count] => (0..count.parse::<u32>().unwrap()).for_each(|_| self.tick(shared)),
            ["fault", on] => self.fault = *on == "on",
            ["deny", on] => self.deny = *on == "on",
            other => eprintln!("unknown: {other:?}"),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = Door::new(listener.local_addr().unwrap().port());
    let of_cluster = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let guard = Guard::new(Rc::new(Tokens), vec![], Box::new(|_| {}));
    println!("{}\n{}\nhttp://{}/", door.address(), door.address_once(), of_cluster.local_addr().unwrap());
    let shared: Shared = Rc::new(RefCell::new(State { cluster: "https://example:6443".into(), ..State::default() }));
    let local = LocalSet::new();
    let told = shared.clone();
    let commands = async move {
        let (mut world, mut lines) = (World::default(), BufReader::new(tokio::io::stdin()).lines());
        while let Some(line) = lines.next_line().await.unwrap() {
            world.command(&line.split_whitespace().collect::<Vec<_>>(), &told);
            println!("ok");
        }
    };
    local
        .run_until(async {
            tokio::select! {
                () = serve(listener, door, shared.clone(), None) => {}
                () = serve(of_cluster, guard, shared, None) => {}
                () = commands => {}
            }
        })
        .await;
}
