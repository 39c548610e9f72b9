//! Layer 7: every claim through a real waypoint process, from unmodified pods.

use crate::table::Table;
use karst_world::{
    Pod, PodSpec, World, app,
    pki::{Ca, indented, secret},
    web::{self, Message, Session, TlsClient, TlsSession, TlsWeb, Web},
};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

const SUBSETS: &str = "subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}, {name: v3, labels: {version: v3}}]";
const TO_V1: &str = "route: [{destination: {host: reviews, subset: v1}}]";

/// Requests that came to a path that fails.
static BAD: AtomicUsize = AtomicUsize::new(0);

struct Shop<'a> {
    w: &'a World,
    client: Pod,
    to: SocketAddr,
}

impl Shop<'_> {
    /// Routes by a VirtualService's `http`, and what the DestinationRule says beside the subsets.
    fn route(&self, http: &str, policy: &str) {
        let policy = if policy.is_empty() { String::new() } else { format!("trafficPolicy: {policy}, ") };
        self.w.apply("l7-route", &format!("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: reviews, namespace: books}}\nspec: {{host: reviews, {policy}{SUBSETS}}}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews, namespace: books}}\nspec: {{hosts: [reviews], http: [{http}]}}\n"));
    }
    fn session(&self) -> Session {
        Session::new(&self.client, self.to, "reviews:9080").unwrap()
    }
    fn ask(&self, path: &str, headers: &[(&str, &str)]) -> Message {
        web::ask(&self.client, self.to, "reviews:9080", path, headers).unwrap()
    }
    /// Who answers so many requests: by release.
    fn answers(&self, n: usize, headers: &[(&str, &str)]) -> [usize; 3] {
        let mut s = self.session();
        let mut out = [0; 3];
        for _ in 0..n {
            let text = s.ask("GET", "/", headers, b"").unwrap().text();
            if let Some(i) = ["v1", "v2", "v3"].iter().position(|v| *v == text) {
                out[i] += 1;
            }
        }
        out
    }
    /// So many requests at once: status and time of each.
    fn at_once(&self, n: usize, path: &str) -> Vec<(u16, Duration)> {
        std::thread::scope(|x| {
            let one = || {
                let t = Instant::now();
                (self.ask(path, &[]).status(), t.elapsed())
            };
            let all: Vec<_> = (0..n).map(|_| x.spawn(one)).collect();
            all.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }
}

/// Adds the rows.
pub fn show(w: &mut World, t: &mut Table) {
    t.step("layer 7: a waypoint for the service reviews, with three releases");
    w.namespace("books", true);
    w.apply("l7", "apiVersion: v1\nkind: Service\nmetadata: {name: reviews, namespace: books, labels: {istio.io/use-waypoint: waypoint}}\nspec: {clusterIP: 10.96.7.1, selector: {app: reviews}, ports: [{name: http, port: 9080, targetPort: 8080}]}\n");
    w.waypoint("books", "waypoint", 1, &[]);
    let client = w.mesh_pod(PodSpec::new("books", "productpage", 0));
    let pods: Vec<Pod> = ["v1", "v2", "v3"]
        .iter()
        .enumerate()
        .map(|(i, v)| {
            w.mesh_pod(
                PodSpec::new("books", &format!("reviews-{v}"), i % 2).label("app", "reviews").label("version", v),
            )
        })
        .collect();
    static FLAKY: AtomicUsize = AtomicUsize::new(0);
    static HANGS: AtomicUsize = AtomicUsize::new(0);
    let release = |i: usize| {
        let name = format!("v{}", i + 1);
        Web::start(&pods[i], 8080, move |m| match m.path() {
            "/slow" => {
                std::thread::sleep(Duration::from_millis(1500));
                (200, vec![], vec![])
            }
            "/flaky" if FLAKY.fetch_add(1, Relaxed) % 3 < 2 => (503, vec![], vec![]),
            // The first try hangs, the next does not.
            "/hangs-once" if HANGS.fetch_add(1, Relaxed) == 0 => {
                std::thread::sleep(Duration::from_secs(3));
                (200, vec![], vec![])
            }
            "/lame" if name == "v3" => {
                std::thread::sleep(Duration::from_millis(20));
                (200, vec![], name.clone().into_bytes())
            }
            "/bad" => {
                BAD.fetch_add(1, Relaxed);
                std::thread::sleep(Duration::from_millis(100));
                (503, vec![], vec![])
            }
            "/v2-errs" if name == "v2" => (500, vec![], vec![]),
            "/v3-errs" if name == "v3" => (500, vec![], vec![]),
            "/v3-full" if name == "v3" => (429, vec![("retry-after".into(), "1".into())], vec![]),
            _ if !m.body.is_empty() => (200, vec![], m.body.clone()),
            _ => (200, vec![], name.clone().into_bytes()),
        })
    };
    let servers: Vec<Web> = (0..3).map(release).collect();
    let s = Shop { w, client, to: ([10, 96, 7, 1], 9080).into() };
    routing(&s, &servers, t);
    matches(&s, t);
    faults(&s, t);
    destinations(&s, t);
    let Shop { w: _, client, to } = s;
    slow_start(w, &client, to, t);
    let s = Shop { w, client, to };
    filters(&s, t);
    policy(&s, t);
}

fn routing(s: &Shop<'_>, servers: &[Web], t: &mut Table) {
    s.route("{route: [{destination: {host: reviews, subset: v1}, weight: 90}, {destination: {host: reviews, subset: v2}, weight: 10}]}", "");
    let c = s.answers(2000, &[]);
    t.row(
        "weights 90/10, over 2000 requests",
        "10 % ± 2 to v2",
        format!("{:.1} % to v2", c[1] as f64 / 20.0),
        (160..=240).contains(&c[1]) && c[0] + c[1] == 2000,
    );
    s.route("{match: [{headers: {end-user: {exact: jason}}}], route: [{destination: {host: reviews, subset: v2}}]}, {route: [{destination: {host: reviews, subset: v3}}]}", "");
    let (jason, others) = (s.answers(50, &[("end-user", "jason")]), s.answers(50, &[]));
    t.row(
        "a header decides: user jason",
        "jason v2, others v3",
        format!("jason {jason:?}, others {others:?}"),
        jason == [0, 50, 0] && others == [0, 0, 50],
    );
    s.route(&format!("{{match: [{{uri: {{prefix: /old/}}}}], rewrite: {{uri: /new/}}, headers: {{request: {{set: {{x-by: mesh}}}}, response: {{add: {{x-back: yes}}}}}}, {TO_V1}}}, {{match: [{{uri: {{exact: /teapot}}}}], directResponse: {{status: 418}}}}, {{match: [{{uri: {{regex: '/go/[0-9]+'}}}}], redirect: {{uri: /there, redirectCode: 302}}}}"), "");
    servers[0].take();
    let back = s.ask("/old/x?q=1", &[]);
    let seen = servers[0].take().pop().unwrap_or_default();
    t.row(
        "path rewritten, headers set on the way and back",
        "/new/x?q=1, mesh, yes",
        format!("{}, {}, {}", seen.path(), seen.header("x-by"), back.header("x-back")),
        (seen.path(), seen.header("x-by"), back.header("x-back")) == ("/new/x?q=1", "mesh", "yes"),
    );
    let (a, b, c) = (s.ask("/teapot", &[]), s.ask("/go/17", &[]), s.ask("/else", &[]));
    let got = format!("{}, {} {}, {}", a.status(), b.status(), b.header("location"), c.status());
    t.row(
        "direct response, redirect by pattern, no route",
        "418, 302 http://reviews:9080/there, 404",
        got.clone(),
        got == "418, 302 http://reviews:9080/there, 404",
    );
    s.route(&format!("{{{TO_V1}, mirror: {{host: reviews, subset: v2}}, mirrorPercentage: {{value: 25}}}}"), "");
    servers[1].take();
    s.answers(200, &[]);
    let until = Instant::now() + Duration::from_millis(500);
    while servers[1].count() < 50 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let n = servers[1].take().len();
    t.row("mirror of 25 %, of 200 requests", "50 ± 1", n.to_string(), (49..=51).contains(&n));
    s.route(&format!("{{{TO_V1}, mirror: {{host: reviews, subset: v2}}}}"), "");
    servers[1].take();
    let body: Vec<u8> = (0..50_000u32).map(|i| (i % 241) as u8).collect();
    let mut c = s.session();
    let own = (0..100).filter(|_| c.ask("POST", "/copy", &[], &body).unwrap().body == body).count();
    let until = Instant::now() + Duration::from_secs(3);
    while servers[1].count() < 100 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let same = servers[1].take().iter().filter(|m| m.body == body).count();
    t.row(
        "mirror: 100 requests of 50 kB, with their bodies",
        "100 answered, 100 identical copies",
        format!("{own} answered, {same} identical copies"),
        own == 100 && same == 100,
    );
    s.w.apply("l7-http", "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: reviews, namespace: books}\nspec:\n  parentRefs: [{group: '', kind: Service, name: reviews}]\n  rules:\n  - matches: [{path: {value: /}}]\n    backendRefs: [{name: reviews-v2, port: 9080}]\n  - matches: [{path: {value: /x}, method: GET}]\n    backendRefs: [{name: reviews-v3, port: 9080, weight: 1}]\n---\napiVersion: v1\nkind: Service\nmetadata: {name: reviews-v2, namespace: books}\nspec: {clusterIP: 10.96.7.2, selector: {app: reviews, version: v2}, ports: [{port: 9080, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: reviews-v3, namespace: books}\nspec: {clusterIP: 10.96.7.3, selector: {app: reviews, version: v3}, ports: [{port: 9080, targetPort: 8080}]}\n");
    let (root, x) = (s.ask("/", &[]).text(), s.ask("/x/y", &[]).text());
    t.row(
        "an HTTPRoute of Gateway API: the longer path first",
        "v2, v3",
        format!("{root}, {x}"),
        root == "v2" && x == "v3",
    );
    s.w.delete("l7-http");
}

/// What a request is told apart by, besides path and header.
fn matches(s: &Shop<'_>, t: &mut Table) {
    let to =
        |v: &str, m: &str| format!("{{match: [{{{m}}}], route: [{{destination: {{host: reviews, subset: {v}}}}}]}}");
    let rules = [
        to("v2", "queryParams: {release: {exact: two}}"),
        to("v3", "uri: {exact: /CASE}, ignoreUriCase: true"),
        to("v2", "uri: {exact: /bare}, withoutHeaders: {x-user: {}}"),
        to("v3", "uri: {regex: '/n/[0-9]+'}, scheme: {exact: http}, authority: {prefix: reviews}, port: 9080"),
        to("v2", "uri: {exact: /mine}, sourceLabels: {app: productpage}, sourceNamespace: books"),
        to("v2", "uri: {exact: /theirs}, sourceLabels: {app: other}"),
        to("v1", "method: {exact: GET}"),
    ];
    s.route(&rules.join(", "), "");
    let asked: [(&str, &[(&str, &str)]); 7] = [
        ("/?release=two", &[]),
        ("/case", &[]),
        ("/bare", &[]),
        ("/bare", &[("x-user", "1")]),
        ("/n/42", &[]),
        ("/mine", &[]),
        ("/theirs", &[]),
    ];
    let got = asked.map(|(path, h)| s.ask(path, h).text());
    t.row(
        "matches: query, case, no header, pattern, host, port, caller",
        "v2 v3 v2 v1 v3 v2 v1",
        got.join(" "),
        got == ["v2", "v3", "v2", "v1", "v3", "v2", "v1"],
    );
    s.route(&format!("{{corsPolicy: {{allowOrigins: [{{exact: 'https://a.example'}}], allowMethods: [GET, PUT], maxAge: 1h}}, {TO_V1}}}"), "");
    let preflight = |origin: &str| {
        let h = [("origin", origin), ("access-control-request-method", "PUT")];
        let a = s.session().ask("OPTIONS", "/", &h, b"").unwrap();
        format!("{} {}", a.header("access-control-allow-origin"), a.header("access-control-allow-methods"))
    };
    let got = format!("{}; {}", preflight("https://a.example"), preflight("https://b.example").trim());
    t.row(
        "CORS: a preflight of an origin that may, and of one that may not",
        "https://a.example GET, PUT; nothing",
        if got.ends_with("; ") { format!("{got}nothing") } else { got.clone() },
        got == "https://a.example GET, PUT; ",
    );
}

fn faults(s: &Shop<'_>, t: &mut Table) {
    s.route(&format!("{{match: [{{uri: {{exact: /late}}}}], fault: {{delay: {{fixedDelay: 2s, percentage: {{value: 50}}}}}}, {TO_V1}}}, {{match: [{{uri: {{exact: /no}}}}], fault: {{abort: {{httpStatus: 500, percentage: {{value: 30}}}}}}, {TO_V1}}}, {{match: [{{uri: {{exact: /slow}}}}], timeout: 0.5s, {TO_V1}}}, {{retries: {{attempts: 3, retryOn: 5xx, backoff: 1ms, retryIgnorePreviousHosts: false}}, {TO_V1}}}"), "");
    let all = s.at_once(60, "/late");
    let late = all.iter().filter(|(_, d)| *d >= Duration::from_secs(2)).count();
    t.row(
        "fault: 2 s of delay for half of 60 requests",
        "15 to 45, all answered",
        format!("{late}, {} answered", all.iter().filter(|(s, _)| *s == 200).count()),
        (15..=45).contains(&late) && all.iter().all(|(s, _)| *s == 200),
    );
    let mut c = s.session();
    let no = (0..1000).filter(|_| c.ask("GET", "/no", &[], b"").unwrap().status() == 500).count();
    t.row(
        "fault: 30 % of 1000 requests aborted",
        "30 % ± 5",
        format!("{:.1} %", no as f64 / 10.0),
        (250..=350).contains(&no),
    );
    let begun = Instant::now();
    let a = s.ask("/slow", &[]);
    let ms = begun.elapsed().as_millis();
    t.row(
        "timeout of 0.5 s for an endpoint that takes 1.5 s",
        "504 in 500 to 1000 ms",
        format!("{} in {ms} ms", a.status()),
        a.status() == 504 && (500..1000).contains(&ms),
    );
    let ok = (0..30).filter(|_| s.ask("/flaky", &[]).status() == 200).count();
    s.route(&format!("{{match: [{{uri: {{exact: /hangs-once}}}}], retries: {{attempts: 2, perTryTimeout: 0.2s, retryOn: reset}}, {TO_V1}}}, {{fault: {{abort: {{grpcStatus: UNAVAILABLE, percentage: {{value: 100}}}}}}, {TO_V1}}}"), "");
    let begun = Instant::now();
    let a = s.ask("/hangs-once", &[]).status();
    let (ms, grpc) = (begun.elapsed().as_millis(), s.ask("/shop.Cart/Get", &[]).header("grpc-status").to_string());
    t.row(
        "a try that hangs is given up after 0.2 s; a gRPC abort",
        "200 in 200 to 1000 ms; status 14",
        format!("{a} in {ms} ms; status {grpc}"),
        a == 200 && (200..1000).contains(&ms) && grpc == "14",
    );
    t.row("retries: two of three attempts fail", "30 of 30 answered", format!("{ok} of 30 answered"), ok == 30);
}

fn destinations(s: &Shop<'_>, t: &mut Table) {
    let all = "{route: [{destination: {host: reviews}}]}";
    s.route(all, "{loadBalancer: {simple: ROUND_ROBIN}}");
    let c = s.answers(300, &[]);
    t.row("round robin over 300 requests", "100 each", format!("{c:?}"), c == [100; 3]);
    s.route(all, "{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}");
    let stay = (0..40).filter(|i| {
        let user = format!("user-{i}");
        s.answers(5, &[("x-user", &user)]).contains(&5)
    });
    let stay = stay.count();
    let used = (0..40).map(|i| s.ask("/", &[("x-user", &format!("user-{i}"))]).text());
    let used = used.collect::<std::collections::BTreeSet<_>>().len();
    t.row(
        "consistent hash: 40 users, 5 requests each",
        "40 stay with a pod, 3 pods used",
        format!("{stay} stay with a pod, {used} pods used"),
        stay == 40 && used == 3,
    );
    s.route(all, "{loadBalancer: {consistentHash: {httpCookie: {name: shop, ttl: 60s}, maglev: {}}}}");
    let first = s.ask("/", &[]);
    let cookie = first.header("set-cookie").split(';').next().unwrap_or_default().to_string();
    let back = s.answers(20, &[("cookie", &cookie)]);
    let own = ["v1", "v2", "v3"].iter().position(|v| *v == first.text()).map_or(0, |i| back[i]);
    t.row(
        "Maglev by a cookie that the waypoint gives",
        "20 of 20 come back to the pod",
        format!("{own} of 20 come back to the pod"),
        own == 20 && !cookie.is_empty(),
    );
    s.route(all, "{loadBalancer: {simple: PEAK_EWMA}}");
    let lame = |n: usize| {
        let mut c = s.session();
        (0..n).filter(|_| c.ask("GET", "/lame", &[], b"").unwrap().text() == "v3").count()
    };
    lame(30);
    let n = lame(300);
    t.row("peak EWMA: a pod that takes 20 ms more, of 300", "less than 30, by chance 100", n.to_string(), n < 30);
    s.route(all, "{loadBalancer: {simple: ROUND_ROBIN}}");
    let mut c = s.session();
    let full = (0..300).filter(|_| c.ask("GET", "/v3-full", &[], b"").unwrap().status() == 429).count();
    t.row(
        "a pod says 429 with Retry-After, of 300 requests",
        "1 to 50 more get there, by chance 100",
        full.to_string(),
        (1..=50).contains(&full),
    );
    s.route(
        &format!("{{{TO_V1}}}"),
        "{connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}",
    );
    let mut got: Vec<u16> = s.at_once(10, "/slow").iter().map(|(s, _)| *s).collect();
    got.sort_unstable();
    let ok = got.iter().filter(|s| **s == 200).count();
    t.row(
        "breaker: 10 at once, one served at a time, one waits",
        "2 served, 8 answered 503",
        format!("{ok} served, {} answered 503", got.iter().filter(|s| **s == 503).count()),
        ok == 2 && got.len() == 10,
    );
    s.route(all, "{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 60s, maxEjectionPercent: 50}}");
    let mut c = s.session();
    let bad = (0..90).filter(|_| c.ask("GET", "/v3-errs", &[], b"").unwrap().status() == 500).count();
    t.row("an endpoint that errs is ejected after 3", "3 errors of 90", format!("{bad} errors of 90"), bad == 3);
    let failing = |policy: &str| {
        s.route(
            "{retries: {attempts: 3, retryOn: 5xx, backoff: 1ms}, route: [{destination: {host: reviews}}]}",
            policy,
        );
        BAD.store(0, Relaxed);
        s.at_once(10, "/bad");
        BAD.load(Relaxed)
    };
    let (all, few) = (
        failing("{connectionPool: {http: {maxRetries: 100}}}"),
        failing("{retryBudget: {percent: 20, minRetryConcurrency: 1}}"),
    );
    t.row(
        "retry budget: tries of 10 failing requests, without and with 20 %",
        "40; 11 to 20",
        format!("{all}; {few}"),
        all == 40 && (11..=20).contains(&few),
    );
    places(s, t);
}

/// A second pod of v1 joins while there is a warm-up of 5 s.
fn slow_start(w: &mut World, client: &Pod, to: SocketAddr, t: &mut Table) {
    let s = Shop { w, client: client.clone(), to };
    // Who has been there for longer is warm.
    s.route(&format!("{{{TO_V1}}}"), "{loadBalancer: {simple: RANDOM, warmup: {duration: 5s}}}");
    s.answers(5, &[]);
    let pod =
        PodSpec::new("books", "reviews-v1-new", 1).account("reviews-v1").label("app", "reviews").label("version", "v1");
    let new = w.mesh_pod(pod);
    let _server = Web::named(&new, 8080, "new");
    let s = Shop { w, client: client.clone(), to };
    let mut c = s.session();
    let n = (0..500).filter(|_| c.ask("GET", "/", &[], b"").unwrap().text() == "new").count();
    t.row(
        "slow start: the share of a pod that has just come, of 500",
        "less than half of its 50 %",
        format!("{:.1} %", n as f64 / 5.0),
        (1..125).contains(&n),
    );
    w.remove_pod(&new);
}

/// The pods' nodes are in two zones; the waypoint's is that of v2.
fn places(s: &Shop<'_>, t: &mut Table) {
    let all = "{route: [{destination: {host: reviews}}]}";
    s.route(
        all,
        "{loadBalancer: {localityLbSetting: {distribute: [{from: r1/z1/*, to: {r1/z1/*: 80, r1/z0/*: 20}}]}}}",
    );
    let c = s.answers(1000, &[]);
    t.row(
        "parts by place: 80 % stay in the zone, of 1000",
        "80 % ± 5",
        format!("{:.1} %", c[1] as f64 / 10.0),
        (750..=850).contains(&c[1]),
    );
    s.route(all, "{loadBalancer: {localityLbSetting: {enabled: true}}, outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 60s, maxEjectionPercent: 100}}");
    let near = s.answers(100, &[])[1];
    let mut c = s.session();
    let bad = (0..50).filter(|_| c.ask("GET", "/v2-errs", &[], b"").unwrap().status() == 500).count();
    t.row(
        "failover: the zone's own pod, until it errs twice",
        "100 of 100 near; 2 errors of 50",
        format!("{near} of 100 near; {bad} errors of 50"),
        near == 100 && bad == 2,
    );
}

/// Karst's own filter, for a service and for a rule of an HTTPRoute.
fn filters(s: &Shop<'_>, t: &mut Table) {
    s.w.delete("l7-route");
    let filter = |name: &str, spec: &str| {
        format!(
            "apiVersion: karst.io/v1alpha1\nkind: HTTPFilter\nmetadata: {{name: {name}, namespace: books}}\nspec: {{{spec}}}\n---\n"
        )
    };
    s.w.apply(
        "l7-filter",
        &filter("gentle", "targetRefs: [{kind: Service, name: reviews}], rateLimits: [{requests: 20, per: 1h}]"),
    );
    let mut got: Vec<u16> = s.at_once(30, "/").iter().map(|(s, _)| *s).collect();
    got.sort_unstable();
    let ok = got.iter().filter(|s| **s == 200).count();
    let wait = s.ask("/", &[]).header("retry-after").to_string();
    t.row(
        "rate limit of 20 an hour for a service, 30 requests",
        "20 served, 10 answered 429",
        format!("{ok} served, {} answered 429, retry-after {wait} s", got.iter().filter(|s| **s == 429).count()),
        ok == 20 && got[20..] == [429; 10],
    );
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: reviews, namespace: books}\nspec:\n  parentRefs: [{group: '', kind: Service, name: reviews}]\n  rules:\n  - matches: [{path: {value: /no}}]\n    filters: [{type: ExtensionRef, extensionRef: {group: karst.io, kind: HTTPFilter, name: drill}}]\n    backendRefs: [{name: reviews, port: 9080}]\n  - backendRefs: [{name: reviews, port: 9080}]\n";
    let drill = filter("drill", "fault: {abort: {httpStatus: 503, percentage: {value: 40}}}");
    s.w.apply("l7-filter", &(drill + route));
    let mut c = s.session();
    let mut failed = |path: &str| (0..500).filter(|_| c.ask("GET", path, &[], b"").unwrap().status() == 503).count();
    let (no, others) = (failed("/no"), failed("/"));
    t.row(
        "a fault for one rule of an HTTPRoute: 40 % of 500",
        "40 % ± 5, other rules none",
        format!("{:.1} %, other rules {others}", no as f64 / 5.0),
        (175..=225).contains(&no) && others == 0,
    );
    s.w.delete("l7-filter");
    sessions(s, t);
}

fn sessions(s: &Shop<'_>, t: &mut Table) {
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: reviews, namespace: books}\nspec: {parentRefs: [{group: '', kind: Service, name: reviews}], rules: [{sessionPersistence: {cookie: {name: shop}}, backendRefs: [{name: reviews, port: 9080}]}]}\n";
    s.w.apply("l7-session", route);
    let stay = (0..10).filter(|_| {
        let first = s.ask("/", &[]);
        let cookie = first.header("set-cookie").split(';').next().unwrap_or_default().to_string();
        let back = s.answers(10, &[("cookie", &cookie)]);
        let own = ["v1", "v2", "v3"].iter().position(|v| *v == first.text()).map_or(0, |i| back[i]);
        !cookie.is_empty() && own == 10
    });
    let stay = stay.count();
    t.row(
        "session persistence: 10 clients come back 10 times each",
        "10 stay with their pod",
        format!("{stay} stay with their pod"),
        stay == 10,
    );
    let cookie = format!("{}x", s.ask("/", &[]).header("set-cookie").split(';').next().unwrap_or_default());
    let told = (0..20).filter(|_| s.ask("/", &[("cookie", &cookie)]).header("set-cookie").starts_with("shop=")).count();
    t.row("a session's value that was changed", "20 of 20 are given a new one", format!("{told} of 20"), told == 20);
    s.w.delete("l7-session");
}

fn policy(s: &Shop<'_>, t: &mut Table) {
    s.route("{route: [{destination: {host: reviews}}]}", "");
    s.w.apply("l7-policy", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: readers, namespace: books}\nspec: {targetRefs: [{group: '', kind: Service, name: reviews}], rules: [{from: [{source: {serviceAccounts: [productpage]}}], to: [{operation: {methods: [GET], paths: [/reviews/*]}}]}]}\n");
    let status = |method: &str, path: &str| s.session().ask(method, path, &[], b"").unwrap().status();
    let got = [status("GET", "/reviews/1"), status("POST", "/reviews/1"), status("GET", "/reviews/%2e%2e/admin")];
    t.row("policy by method and path", "200, 403, 403", format!("{got:?}"), got == [200, 403, 403]);
    s.w.delete("l7-policy");
    s.w.delete("l7-route");
}

/// A gateway into the mesh, called by a pod that is no member.
pub fn gateway(w: &mut World, t: &mut Table) {
    t.step("a gateway into the mesh, and a pod outside of it");
    w.namespace("shop", true);
    w.namespace("edge", false);
    w.apply("gw-shop", "apiVersion: v1\nkind: Service\nmetadata: {name: front, namespace: shop}\nspec: {clusterIP: 10.96.8.1, selector: {app: front}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: front, namespace: shop}\nspec: {selector: {matchLabels: {app: front}}, rules: [{from: [{source: {serviceAccounts: [edge/gw]}}]}]}\n");
    let front = w.mesh_pod(PodSpec::new("shop", "front", 1).label("app", "front"));
    let _server = Web::named(&front, 8080, "front");
    let outside = w.pod(PodSpec::new("edge", "visitor", 1));
    let labels = [("gateway.networking.k8s.io/gateway-name", "gw"), ("istio", "ingressgateway")];
    let gateway = w.gateway("edge", "gw", 0, &labels);
    let ask = |port: u16, host: &str, path: &str| {
        web::ask(&outside, gateway.at(port), host, path, &[]).map_or(0, |m| m.status())
    };
    let until = |port: u16, host: &str, path: &str, status: u16| {
        let end = Instant::now() + Duration::from_secs(5);
        while ask(port, host, path) != status && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let closed = outside.connect(gateway.at(80)).is_err();
    w.apply("gw", "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: edge}\nspec: {gatewayClassName: istio, listeners: [{name: web, port: 80, protocol: HTTP, hostname: '*.shop.example', allowedRoutes: {namespaces: {from: All}}}]}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: front, namespace: shop}\nspec: {parentRefs: [{name: gw, namespace: edge}], hostnames: [www.shop.example], rules: [{backendRefs: [{name: front, port: 80}]}]}\n");
    until(80, "www.shop.example", "/", 200);
    t.row(
        "a port of the gateway: before it is configured, and after",
        "closed, then open",
        format!(
            "{}, then {}",
            if closed { "closed" } else { "open" },
            if outside.connect(gateway.at(80)).is_ok() { "open" } else { "closed" }
        ),
        closed && outside.connect(gateway.at(80)).is_ok(),
    );
    let direct = web::ask(&outside, front.at(8080), "front", "/", &[]).is_ok();
    let ok = (0..50).filter(|_| ask(80, "www.shop.example", "/") == 200).count();
    t.row(
        "only the gateway's identity may call the application",
        "50 of 50 by the gateway, none past it",
        format!("{ok} of 50 by the gateway, {} past it", if direct { "some" } else { "none" }),
        ok == 50 && !direct,
    );
    w.apply("gw-istio", "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: shop}\nspec: {selector: {istio: ingressgateway}, servers: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}]}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: front, namespace: shop}\nspec: {hosts: ['*'], gateways: [gw], http: [{match: [{uri: {exact: /productpage}}], route: [{destination: {host: front}}]}]}\n");
    until(8080, "any", "/productpage", 200);
    let got = [
        ask(80, "www.shop.example", "/"),
        ask(80, "api.shop.example", "/"),
        ask(8080, "any", "/productpage"),
        ask(8080, "any", "/admin"),
    ];
    t.row(
        "HTTPRoute by host; Istio's Gateway and VirtualService by path",
        "200, 404; 200, 404",
        format!("{}, {}; {}, {}", got[0], got[1], got[2], got[3]),
        got == [200, 404, 200, 404],
    );
    certificates(w, t, &gateway, &outside);
    behind(w, t, &gateway, &outside);
}

/// Who comes in by TLS: clients whose certificate counts.
fn certificates(w: &World, t: &mut Table, gateway: &Pod, outside: &Pod) {
    let (ca, partners) = (Ca::new(), Ca::new());
    w.apply("gw-door", &secret("edge", "door", &ca.pair("www.shop.example")));
    w.apply(
        "gw-partners",
        &format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: partners, namespace: edge}}\ndata:\n  ca.crt: |\n{}",
            indented(&partners.roots())
        ),
    );
    w.apply("gw", "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: edge}\nspec: {gatewayClassName: istio, tls: {frontend: {default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: partners}]}}}}, listeners: [{name: web, port: 80, protocol: HTTP, hostname: '*.shop.example', allowedRoutes: {namespaces: {from: All}}}, {name: door, port: 443, protocol: HTTPS, hostname: '*.shop.example', tls: {certificateRefs: [{name: door}]}, allowedRoutes: {namespaces: {from: All}}}]}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: front, namespace: shop}\nspec: {parentRefs: [{name: gw, namespace: edge}], hostnames: [www.shop.example], rules: [{backendRefs: [{name: front, port: 80}]}]}\n");
    let ask = |own: Option<(String, String)>| {
        let client = TlsClient { own, ..TlsClient::new(ca.roots()) };
        let session = TlsSession::new(outside, gateway.at(443), "www.shop.example", &client);
        session.and_then(|mut s| s.ask("www.shop.example", "/")).map_or(0, |m| m.status())
    };
    let end = Instant::now() + Duration::from_secs(5);
    while ask(Some(partners.pair("client"))) != 200 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    let got = [ask(Some(partners.pair("client"))), ask(Some(Ca::new().pair("client"))), ask(None)];
    let words = got.map(|status| if status == 0 { "refused".to_string() } else { status.to_string() });
    t.row(
        "TLS at the gateway: with a partner's certificate, a stranger's, none",
        "200, refused, refused",
        words.join(", "),
        got == [200, 0, 0],
    );
}

/// What stands between a gateway and an application: the service's own waypoint, TLS that the application speaks itself.
fn behind(w: &mut World, t: &mut Table, gateway: &Pod, outside: &Pod) {
    let ca = Ca::new();
    let till = w.mesh_pod(PodSpec::new("shop", "till", 1).label("app", "till"));
    let (_plain, _tls) = (Web::named(&till, 8080, "till"), TlsWeb::start(&till, 8443, &ca.pair("till.shop"), None));
    let service = |label: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: till, namespace: shop, labels: {{istio.io/use-waypoint: wp{label}}}}}\nspec: {{clusterIP: 10.96.8.2, selector: {{app: till}}, ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: https, port: 443, targetPort: 8443}}]}}\n"
        )
    };
    w.apply("till", &service(""));
    let route = |host: &str, port: u16| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {host}, namespace: shop}}\nspec: {{parentRefs: [{{name: gw, namespace: edge}}], hostnames: [{host}.shop.example], rules: [{{backendRefs: [{{name: till, port: {port}}}]}}]}}\n"
        )
    };
    let mesh = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: mesh, namespace: shop}\nspec: {parentRefs: [{group: '', kind: Service, name: till, port: 80}], rules: [{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-way, value: waypoint}]}}], backendRefs: [{name: till, port: 80}]}]}\n";
    w.apply("till-routes", &(mesh.to_string() + &route("till", 80) + &route("pay", 443)));
    w.waypoint("shop", "wp", 1, &[]);
    let ask =
        |host: &str| web::ask(outside, gateway.at(80), &format!("{host}.shop.example"), "/x", &[]).unwrap_or_default();
    let until = |host: &str, seen: &dyn Fn(&web::Message) -> bool| {
        let end = Instant::now() + Duration::from_secs(5);
        let mut a = ask(host);
        while !seen(&a) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
            a = ask(host);
        }
        a
    };
    let before = until("till", &|a| a.status() == 200).header("x-way").to_string();
    w.apply("till", &service(", istio.io/ingress-use-waypoint: 'true'"));
    let after = until("till", &|a| a.header("x-way") == "waypoint").header("x-way").to_string();
    t.row(
        "istio.io/ingress-use-waypoint: past the waypoint, then through it",
        "\"\", \"waypoint\"",
        format!("{before:?}, {after:?}"),
        before.is_empty() && after == "waypoint",
    );
    w.apply("till", &service(""));
    // A TLS alert is no HTTP: the endpoint breaks the protocol, which is a 502 as Envoy has it, not a connection that failed.
    let plain = until("pay", &|a| a.status() == 502).status();
    let policy = |map: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: till, namespace: shop}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: till, sectionName: https}}], validation: {{hostname: till.shop, caCertificateRefs: [{{group: '', kind: ConfigMap, name: {map}}}]}}}}\n"
        )
    };
    w.apply("till-ca", &format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: shop}}\ndata:\n  ca.crt: |\n{}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: other, namespace: shop}}\ndata:\n  ca.crt: |\n{}", indented(&ca.roots()), indented(&Ca::new().roots())));
    w.apply("till-tls", &policy("other"));
    let wrong = until("pay", &|a| a.status() == 503).status();
    w.apply("till-tls", &policy("ca"));
    let right = until("pay", &|a| a.status() == 200).text();
    t.row(
        "BackendTLSPolicy: none, another CA, the right one",
        "502, 503, till.shop /x alone",
        format!("{plain}, {wrong}, {right}"),
        plain == 502 && wrong == 503 && right == "till.shop /x alone",
    );
}

/// Out of the mesh through a waypoint: an endpoint by name, and TLS that the application does not speak.
pub fn egress(w: &mut World, t: &mut Table) {
    t.step("out of the mesh: api.example.com, by name, through a waypoint");
    w.namespace("out", true);
    w.namespace("world", false);
    let client = w.mesh_pod(PodSpec::new("out", "client", 0));
    let (server, names) = (w.pod(PodSpec::new("world", "api", 1)), w.pod(PodSpec::new("world", "names", 0)));
    let IpAddr::V4(ip) = server.ip else { return };
    let records: Vec<(&str, Ipv4Addr)> = vec![("api.example.com", ip)];
    app::name_server(&names, records);
    let conf = w.dir.join("resolv.conf");
    std::fs::write(&conf, format!("nameserver {}\n", names.ip)).unwrap();
    w.apply("egress", "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: api, namespace: out, labels: {istio.io/use-waypoint: egress}}\nspec: {hosts: [api.example.com], addresses: [10.97.0.1], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8443}]}\n");
    w.waypoint("out", "egress", 1, &[("KARST_RESOLV_CONF", &conf.display().to_string())]);
    let (ca, clients) = (Ca::new(), Ca::new());
    let _server = TlsWeb::start(&server, 8443, &ca.pair("api.example.com"), Some(&clients.roots()));
    let pair = secret("out", "api", &clients.pair("out"));
    w.apply("egress-secret", &format!("{pair}  ca.crt: |\n{}", indented(&ca.roots())));
    let ask = |tls: &str| {
        w.apply("egress-rule", &format!("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: api, namespace: out}}\nspec: {{host: api.example.com, trafficPolicy: {{portLevelSettings: [{{port: {{number: 80}}, tls: {tls}}}]}}}}\n"));
        let a = web::ask(&client, ([10, 97, 0, 1], 80).into(), "api.example.com", "/v1", &[]).unwrap();
        if a.status() == 200 { a.text() } else { a.status().to_string() }
    };
    let got = [
        ask("{mode: SIMPLE}"),
        ask("{mode: SIMPLE, credentialName: api}"),
        ask("{mode: MUTUAL, credentialName: api, subjectAltNames: [other.example.com]}"),
        ask("{mode: MUTUAL, credentialName: api}"),
    ];
    t.row(
        "TLS for plain HTTP: unknown CA, no certificate, wrong name, right",
        "503, 503, 503, api.example.com /v1 mutual",
        got.join(", "),
        got == ["503", "503", "503", "api.example.com /v1 mutual"],
    );
    let _plain = Web::named(&server, 8080, "outside");
    w.apply("egress-wild", "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: wild, namespace: out, labels: {istio.io/use-waypoint: egress}}\nspec: {hosts: ['*.example.com'], addresses: [10.97.0.2], location: MESH_EXTERNAL, resolution: DYNAMIC_DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]}\n");
    let ask = |host: &str| web::ask(&client, ([10, 97, 0, 2], 80).into(), host, "/", &[]).map_or(0, |a| a.status());
    let end = Instant::now() + Duration::from_secs(5);
    while ask("api.example.com") != 200 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    let got = ["api.example.com", "no.example.com", "api.example.org"].map(ask);
    t.row(
        "*.example.com: a name that is there, one that is not, another's",
        "200, 503, 503",
        got.map(|s| s.to_string()).join(", "),
        got == [200, 503, 503],
    );
}
