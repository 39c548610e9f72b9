//! Pages of several proxies at successive times, and the graph that comes of them.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use crate::{Edge, Kind, Sight, Topology, View, cell::BOUNDS, graph::Mtls, history::ROW, namespaces};
use karst_flows::{Page, Verdict};
use std::fmt::Write;

const SECOND: u64 = 1000;
const START: u64 = 1_760_000_000 * SECOND;

/// One side's labels as our proxies write them.
fn side(side: &str, workload: &str) -> String {
    let (namespace, name) = workload.split_once('/').unwrap_or(("unknown", "unknown"));
    let principal = match name {
        "unknown" => "unknown".to_owned(),
        _ => format!("spiffe://cluster.local/ns/{namespace}/sa/{}", name.split("-v").next().unwrap()),
    };
    format!(
        r#"{side}_workload="{name}",{side}_workload_namespace="{namespace}",{side}_principal="{principal}",{side}_app="{name}""#
    )
}

struct Call<'a> {
    reporter: &'a str,
    from: &'a str,
    to: &'a str,
    service: &'a str,
    code: u16,
}

impl Call<'_> {
    fn labels(&self) -> String {
        let Self { reporter, from, to, service, .. } = self;
        let security = if *reporter == "source" { "unknown" } else { "mutual_tls" };
        format!(
            r#"reporter="{reporter}",{},{},destination_service="{service}",destination_service_namespace="shop",connection_security_policy="{security}""#,
            side("source", from),
            side("destination", to)
        )
    }
    fn requests(&self, count: u64) -> String {
        let Self { code, .. } = self;
        let labels = format!(r#"{},request_protocol="http",response_code="{code}",response_flags="-""#, self.labels());
        let mut out = format!("istio_requests_total{{{labels}}} {count}\n");
        for (le, share) in [("5", 0), ("10", 50), ("25", 99), ("+Inf", 100)] {
            let count = count * share / 100;
            let _ = writeln!(out, "istio_request_duration_milliseconds_bucket{{{labels},le=\"{le}\"}} {count}");
        }
        out
    }
    fn connections(&self, opened: u64, failed: u64, flag: &str) -> String {
        let labels = format!(r#"{},request_protocol="tcp",response_flags="{flag}""#, self.labels());
        format!(
            "istio_tcp_connections_opened_total{{{labels}}} {opened}\nistio_tcp_connections_failed_total{{{labels}}} {failed}\n\
             istio_tcp_sent_bytes_total{{{labels}}} {}\nistio_tcp_received_bytes_total{{{labels}}} {}\n",
            opened * 1000,
            opened * 10
        )
    }
}

const REVIEWS: &str = "reviews.shop.svc.cluster.local";

fn call<'a>(reporter: &'a str, from: &'a str, to: &'a str) -> Call<'a> {
    Call { reporter, from, to, service: REVIEWS, code: 200 }
}

/// Reads pages of proxies in rounds of 2 s: `pages(round)`.
fn run(rounds: u64, mut pages: impl FnMut(u64) -> Vec<(&'static str, String)>) -> Topology {
    let mut topology = Topology::new();
    topology.set_kinds([(("shop".to_owned(), "waypoint".to_owned()), Kind::Waypoint)]);
    for round in 0..rounds {
        let now = START + round * 2 * SECOND;
        for (proxy, page) in pages(round) {
            topology.read(proxy, &page, now).unwrap();
        }
        topology.settle(now);
    }
    topology
}

fn edges(topology: &Topology) -> Vec<(String, f64)> {
    let graph = topology.graph(None);
    graph.edges.iter().filter(|edge| edge.rate > 0.0).map(|e| (format!("{} {}", e.source, e.target), e.rate)).collect()
}

fn only(topology: &Topology) -> Edge {
    let graph = topology.graph(None);
    assert_eq!(graph.edges.len(), 1, "{:?}", graph.edges);
    graph.edges[0].clone()
}

#[test]
fn requests_are_an_edge_with_rate_quantiles_and_mutual_tls() {
    let topology = run(6, |round| {
        vec![(
            "w",
            call("waypoint", "shop/web", "shop/reviews-v1").requests(round * 20)
                + &Call { code: 503, ..call("waypoint", "shop/web", "shop/reviews-v1") }.requests(round * 20),
        )]
    });
    let edge = only(&topology);
    assert_eq!((edge.source.as_str(), edge.target.as_str()), ("shop/web", "shop/reviews-v1"));
    assert_eq!((edge.rate, edge.error_share, edge.mtls), (20.0, 0.5, Mtls::All));
    assert_eq!((edge.p50, edge.codes[&200], edge.codes[&503]), (Some(10.0), 10.0, 10.0));
    assert!(edge.p99.is_some_and(|ms| ms > 20.0 && ms <= 25.0), "{edge:?}");
    let page = serde_json::to_value(topology.graph(None)).unwrap();
    assert_eq!(
        (page["edges"][0]["protocol"].as_str(), page["nodes"][0]["kind"].as_str()),
        (Some("http"), Some("workload"))
    );
}

#[test]
fn what_both_sides_report_is_counted_once() {
    let topology = run(6, |round| {
        let page = |reporter| call(reporter, "shop/web", "shop/reviews-v1");
        vec![
            ("a", page("source").requests(round * 20) + &page("source").connections(round * 2, 0, "-")),
            ("b", page("destination").requests(round * 20) + &page("destination").connections(round * 2, 0, "-")),
        ]
    });
    let edge = only(&topology);
    assert_eq!((edge.rate, edge.opened, edge.sent, edge.received), (10.0, 1.0, 1000.0, 10.0));
}

#[test]
fn a_source_alone_is_believed() {
    let topology = run(6, |round| vec![("a", call("source", "shop/web", "unknown").requests(round * 20))]);
    let edge = only(&topology);
    assert_eq!((edge.target.as_str(), edge.rate, edge.mtls), (&*format!("service:{REVIEWS}"), 10.0, Mtls::Unknown));
}

#[test]
fn what_a_gateway_sends_through_a_waypoint_is_counted_once() {
    let topology = run(6, |round| {
        vec![
            ("gateway", call("source", "shop/gateway", "shop/waypoint").requests(round * 20)),
            ("waypoint", call("waypoint", "shop/gateway", "shop/reviews-v1").requests(round * 20)),
        ]
    });
    assert_eq!(edges(&topology), [("shop/gateway shop/reviews-v1".to_owned(), 10.0)]);
}

#[test]
fn what_a_waypoint_answers_itself_counts_beside_what_it_forwards() {
    let topology = run(6, |round| {
        vec![(
            "waypoint",
            call("waypoint", "shop/web", "shop/reviews-v1").requests(round * 20)
                + &Call { code: 403, ..call("waypoint", "shop/web", "unknown") }.requests(round * 4),
        )]
    });
    let all = edges(&topology);
    assert_eq!(all.iter().map(|(_, rate)| *rate).collect::<Vec<_>>(), [10.0, 2.0], "{all:?}");
}

#[test]
fn connections_that_a_destination_never_saw_count_and_those_of_both_count_once() {
    let topology = run(6, |round| {
        let page = |reporter, failed| {
            call(reporter, "shop/web", "shop/reviews-v1").connections(round * 2, round * failed, "CONNECT")
        };
        vec![("a", page("source", 6)), ("b", page("destination", 2))]
    });
    let edge = only(&topology);
    assert_eq!((edge.opened, edge.failed), (1.0, 3.0));
}

#[test]
fn a_proxy_that_begins_anew_goes_away_or_comes_back_makes_no_spike() {
    let count = |round: u64| match round {
        0..5 => Some(1_000_000 + round * 20),
        5..10 => Some((round - 4) * 20),
        10..60 => None,
        round => Some(5_000_000 + round * 20),
    };
    let mut topology = Topology::new();
    for round in 0..70 {
        let now = START + round * 2 * SECOND;
        if let Some(count) = count(round) {
            let page = call("destination", "shop/web", "shop/reviews-v1").requests(count);
            topology.read("z", &page, now).unwrap();
        }
        topology.settle(now);
        let rate = topology.graph(None).edges.first().map_or(0.0, |edge| edge.rate);
        assert!(rate <= 10.0, "{rate} in round {round}");
    }
    assert_eq!(only(&topology).rate, 10.0);
    let seen: f64 = topology.history(0).points.iter().map(|point| point.rate * 10.0).sum();
    assert!(seen > 200.0 && seen <= 20.0 * 20.0, "{seen}");
}

#[test]
fn a_page_that_cannot_be_read_counts_nothing() {
    let mut topology = Topology::new();
    let page = |count| call("destination", "shop/web", "shop/reviews-v1").requests(count);
    topology.read("z", &page(0), START).unwrap();
    assert_eq!(topology.read("z", &(page(50) + "broken"), START + 2000).unwrap_err().line, 6);
    topology.settle(START + 2000);
    assert!(topology.graph(None).edges.is_empty());
    topology.read("z", &page(60), START + 4000).unwrap();
    topology.settle(START + 4000);
    assert_eq!(only(&topology).rate, 15.0, "60 in 4 s");
}

const BOOK: &str = r#"{ "enabled": true, "since": 1, "capacity": 9, "evicted": 0, "flows": [
  { "reporter": "ztunnel", "destination": { "namespace": "shop", "workload": "reviews-v1", "service": "shop/reviews.shop.svc.cluster.local" },
    "port": 9080, "source": { "identity": "spiffe://cluster.local/ns/shop/sa/web" }, "verdict": "denied", "policy": "shop/no-web",
    "count": COUNT, "first": 1, "last": 1760000001, "example": { "from": "10.0.0.1", "to": "10.0.0.2:9080" } },
  { "reporter": "waypoint", "destination": { "namespace": "shop", "service": "shop/reviews.shop.svc.cluster.local" },
    "port": 9080, "source": { "identity": "spiffe://cluster.local/ns/jobs/sa/batch" }, "method": "GET", "path": "/x", "verdict": "notAllowed",
    "count": COUNT, "first": 1, "last": 1760000001, "example": { "from": "10.0.0.3", "to": "10.0.0.2:9080" } }] }"#;

#[test]
fn a_refusal_is_at_its_edge_with_its_policy_and_without_metrics_it_makes_one() {
    let mut topology = Topology::new();
    for round in 0..6 {
        let now = START + round * 2 * SECOND;
        let page = call("destination", "shop/web-v3", "shop/reviews-v1").connections(round, 0, "-");
        topology.read("z", &page, now).unwrap();
        let book: Page = serde_json::from_str(&BOOK.replace("COUNT", &(7 + round * 4).to_string())).unwrap();
        topology.read_flows("z", &book.flows, now);
        topology.settle(now);
    }
    let graph = topology.graph(None);
    let of =
        |target: &str| graph.edges.iter().find(|edge| edge.refused > 0.0 && edge.target.starts_with(target)).unwrap();
    let (l4, l7) = (of("shop/reviews-v1"), of("service:reviews.shop"));
    assert_eq!((l4.refused, l4.refusals[0].policy.as_str(), l4.refusals[0].count), (2.0, "shop/no-web", 27));
    assert_eq!((l7.source.as_str(), l7.refusals[0].path.as_str()), ("jobs/batch", "/x"));
    assert_eq!(l4.source, "shop/web-v3", "the workload's own name, not its account's");
}

#[test]
fn what_no_name_can_have_is_in_no_command() {
    let mut topology = run(6, |round| {
        let page = call("waypoint", "shop/web", "shop/reviews-v1").requests(round * 20);
        vec![("w", page.replace("/sa/web", "/sa/web;reboot").replace(REVIEWS, "reviews$(reboot)"))]
    });
    let edge = only(&topology);
    assert_eq!((edge.source.as_str(), &*edge.source_principal, &*edge.service), ("shop/web", "", ""));
    let book = BOOK.replace("COUNT", "9").replace("shop/no-web", "shop/$(reboot)").replace("/sa/batch", "/sa/`reboot`");
    let book: Page = serde_json::from_str(&book).unwrap();
    topology.read_flows("w", &book.flows, START + 20 * SECOND);
    topology.settle(START + 20 * SECOND);
    let graph = topology.graph(None);
    let all: Vec<_> = graph.edges.iter().flat_map(|edge| &edge.refusals).map(|refusal| &*refusal.policy).collect();
    assert_eq!(all, [""], "the one of a policy with such a name is left out");
    assert!(graph.edges.iter().all(|edge| !edge.source_principal.contains("reboot")), "{:?}", graph.edges);
}

#[test]
fn a_namespace_has_the_edges_that_touch_it() {
    let topology = run(6, |round| {
        let of = |from, to| call("destination", from, to).requests(round * 20);
        vec![("z", of("shop/web", "shop/reviews-v1") + &of("jobs/batch", "shop/reviews-v1") + &of("a/b", "a/c"))]
    });
    let count = |namespace| topology.graph(namespace).edges.len();
    assert_eq!([count(None), count(Some("shop")), count(Some("jobs")), count(Some("x"))], [3, 2, 1, 0]);
    assert_eq!(topology.graph(Some("jobs")).nodes.len(), 2);
}

#[test]
fn the_time_line_goes_on_and_old_edges_are_forgotten() {
    let topology = run(2200, |round| {
        let first = call("destination", "shop/web", "shop/reviews-v1").requests(round.min(100) * 20);
        vec![("z", first + &call("destination", "shop/web", "shop/reviews-v2").requests(round * 20))]
    });
    let edge = only(&topology);
    assert_eq!(edge.target, "shop/reviews-v2");
    let history = topology.history(edge.id);
    assert_eq!((history.points.len(), history.points[0].rate), (360, 10.0));
    assert_eq!(topology.total(None).points.last().unwrap().rate, 10.0);
    let spark = topology.sparks()[&edge.id].clone();
    assert!(spark.len() == 60 && (spark[59] - 10.0).abs() < 0.01 && (spark[3] - 10.0).abs() < 0.01, "{spark:?}");
}

/// As proxies count refusals for Prometheus.
fn refusals(by: &str, caller: &str, to: &str, service: &str, policy: &str, count: u64) -> String {
    let (namespace, workload) = to.split_once('/').unwrap();
    let protocol = if by == "ztunnel" { "tcp" } else { "http" };
    format!(
        "karst_policy_refusals_total{{by=\"{by}\",source_principal=\"{caller}\",destination_workload=\"{workload}\",\
         destination_workload_namespace=\"{namespace}\",destination_service=\"{service}\",request_protocol=\"{protocol}\",\
         policy=\"{policy}\"}} {count}\n"
    )
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const BATCH: &str = "spiffe://cluster.local/ns/jobs/sa/batch";

/// Six rounds, with metrics and no books.
fn by_metrics(page: impl Fn(u64) -> String) -> Topology {
    let mut topology = Topology::without_books();
    for round in 0..6 {
        let now = START + round * 2 * SECOND;
        topology.read("z", &page(round), now).unwrap();
        topology.settle(now);
    }
    topology
}

#[test]
fn refusals_are_those_of_the_metrics_where_no_book_is_read() {
    let page = |round: u64| {
        call("destination", "shop/web-v3", "shop/reviews-v1").connections(round, 0, "-")
            + &refusals("ztunnel", WEB, "shop/reviews-v1", REVIEWS, "shop/no-web", 7 + round * 4)
            + &refusals("waypoint", BATCH, "shop/unknown", REVIEWS, "-", 3 + round * 2)
            + &refusals("ztunnel", "unknown", "shop/reviews-v1", REVIEWS, "shop/$(reboot)", round)
    };
    let graph = by_metrics(page).graph(None);
    let refused: Vec<&Edge> = graph.edges.iter().filter(|edge| edge.refused > 0.0).collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    let of = |source: &str| {
        let edge = refused.iter().find(|edge| edge.source == source).unwrap();
        (edge.refused, edge.refusals[0].clone())
    };
    let (rate, l4) = of("shop/web-v3");
    assert_eq!((rate, l4.policy.as_str(), l4.count, l4.requests), (2.0, "shop/no-web", 27, false));
    assert_eq!((l4.verdict, l4.caller.as_str(), l4.port, l4.last), (Verdict::Denied, WEB, 0, START / SECOND + 10));
    let (rate, l7) = of("jobs/batch");
    assert_eq!((rate, l7.policy.as_str(), l7.verdict, l7.requests), (1.0, "", Verdict::NotAllowed, true));
    // Whoever reads the book has the same refusals there.
    let with_books = run(6, |round| vec![("z", page(round))]);
    assert!(with_books.graph(None).edges.iter().all(|edge| edge.refused == 0.0 && edge.refusals.is_empty()));
}

/// What is seen by whoever may look into these.
fn sight(names: &[&str]) -> Sight {
    Sight::Of(names.iter().map(|name| (*name).into()).collect())
}

/// Calls within and between namespaces, to outside and from there, and refusals of policies in two namespaces.
fn several_namespaces() -> Topology {
    by_metrics(|round| {
        let of =
            |from, to, service: &'static str| Call { service, ..call("destination", from, to) }.requests(round * 20);
        let leaves = Call { service: "api.example.com", ..call("source", "shop/web", "unknown") };
        of("shop/web", "shop/reviews-v1", REVIEWS)
            + &of("jobs/batch", "shop/reviews-v1", REVIEWS)
            + &of("shop/web", "bank/ledger", "ledger.bank.svc.cluster.local")
            + &of("jobs/batch", "bank/ledger", "ledger.bank.svc.cluster.local")
            + &of("unknown/unknown", "shop/web", "web.shop.svc.cluster.local")
            + &leaves.requests(round * 20)
            + &refusals("waypoint", BATCH, "shop/reviews-v1", REVIEWS, "shop/closed", round)
            + &refusals("ztunnel", BATCH, "shop/web", "web.shop.svc.cluster.local", "istio-system/root-rule", round)
            + &refusals("ztunnel", WEB, "bank/ledger", "ledger.bank.svc.cluster.local", "bank/no-shop", round)
    })
}

#[test]
fn all_is_seen_by_whoever_may_look_into_all() {
    let topology = several_namespaces();
    let view = View::new(&topology, &Sight::All);
    for namespace in [None, Some("shop"), Some("bank")] {
        assert_eq!(view.graph(namespace), topology.graph(namespace), "{namespace:?}");
        assert_eq!(view.total(namespace), topology.total(namespace), "{namespace:?}");
    }
    assert_eq!(view.sparks(), topology.sparks());
    let known = namespaces(&topology);
    assert_eq!(known.iter().map(|name| &**name).collect::<Vec<_>>(), ["bank", "istio-system", "jobs", "shop"]);
}

#[test]
fn of_a_namespace_that_one_may_not_look_into_nothing_is_told() {
    let topology = several_namespaces();
    let shop = sight(&["shop"]);
    let graph = View::new(&topology, &shop).graph(None);
    let all: Vec<(&str, &str, &str)> =
        graph.edges.iter().map(|edge| (&*edge.source, &*edge.target, &*edge.service)).collect();
    for wanted in [
        ("shop/web", "shop/reviews-v1", REVIEWS),
        ("hidden", "shop/reviews-v1", REVIEWS),
        ("shop/web", "hidden", ""),
        ("outside", "shop/web", "web.shop.svc.cluster.local"),
        ("shop/web", "outside:api.example.com", "api.example.com"),
    ] {
        assert!(all.contains(&wanted), "{wanted:?} in {all:?}");
    }
    assert!(!all.iter().any(|(source, target, _)| source == target), "nobody's own edges: {all:?}");
    // In no field, wherever it may be added.
    let text = serde_json::to_string(&graph).unwrap();
    for secret in ["jobs", "batch", "bank", "ledger", "istio-system", "root-rule", "no-shop"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    assert_eq!(graph.nodes.iter().filter(|node| node.id == "hidden").count(), 1, "one for all");
    let policies: Vec<&str> =
        graph.edges.iter().flat_map(|edge| &edge.refusals).map(|refusal| &*refusal.policy).collect();
    assert!(policies.contains(&"shop/closed") && policies.contains(&"one of another namespace"), "{policies:?}");
    // Whoever called is not told why: that is the business of who was called.
    let called = graph.edges.iter().find(|edge| edge.source == "shop/web" && edge.target == "hidden").unwrap();
    assert!(called.refused > 0.0 && called.refusals.is_empty(), "{called:?}");
    let both = sight(&["shop", "jobs"]);
    assert!(serde_json::to_string(&View::new(&topology, &both).graph(None)).unwrap().contains(BATCH));
}

#[test]
fn edges_sums_and_time_lines_are_of_what_is_seen() {
    let mut topology = several_namespaces();
    // A slot of the time line has ended.
    topology.settle(START + 20 * SECOND);
    let (shop, none) = (sight(&["shop"]), sight(&[]));
    let (view, blind) = (View::new(&topology, &shop), View::new(&topology, &none));
    let whole = topology.graph(None);
    let (seen, hidden): (Vec<&Edge>, Vec<&Edge>) =
        whole.edges.iter().partition(|edge| edge.source.starts_with("shop/") || edge.target.starts_with("shop/"));
    assert!(!seen.is_empty() && !hidden.is_empty());
    for edge in &seen {
        assert!(view.edge_now(edge.id).is_some() && view.history(edge.id).is_some(), "{edge:?}");
        assert!(blind.edge_now(edge.id).is_none() && blind.history(edge.id).is_none(), "{edge:?}");
    }
    for edge in &hidden {
        assert!(view.edge_now(edge.id).is_none() && view.history(edge.id).is_none(), "{edge:?}");
    }
    let ids: Vec<u32> = view.sparks().into_keys().collect();
    assert!(!ids.is_empty() && ids.iter().all(|id| seen.iter().any(|edge| edge.id == *id)), "{ids:?}");
    let calls = |view: &View<'_>, namespace| view.total(namespace).points.iter().map(|point| point.rate).sum::<f64>();
    assert!(calls(&view, None) > 0.0 && calls(&view, None) < calls(&View::new(&topology, &Sight::All), None));
    assert_eq!(calls(&view, Some("shop")), calls(&view, None));
    // Neither says which of the ends without a name are in a namespace.
    for namespace in ["bank", "jobs", "nowhere"] {
        assert!(view.graph(Some(namespace)).edges.is_empty(), "{namespace}");
        assert!(view.total(Some(namespace)).points.is_empty(), "{namespace}");
    }
    assert!(blind.graph(None).nodes.is_empty() && blind.sparks().is_empty() && calls(&blind, None) == 0.0);
}

/// As the page in the cluster reads: every 5 s, both sides of 2,500 edges, each of which has calls all the time.
#[test]
fn an_hour_of_a_thousand_services_fits_in_48_mib_with_all_that_is_beside_it() {
    let mut topology = Topology::without_books();
    for round in 0..4 {
        let now = START + round * 5 * SECOND;
        for reporter in ["source", "destination"] {
            topology.read(reporter, &thousand_services(reporter, round * 10), now).unwrap();
        }
        topology.settle(now);
    }
    let (edges, beside) = (topology.graph(None).edges.len(), topology.bytes());
    assert_eq!(edges, 2500);
    // How the time line grows and ends is proven in `history`.
    let line = 360 * edges * ROW;
    assert!(line <= 32 << 20 && line + beside <= 48 << 20, "{line} bytes of time line, {beside} beside it");
}

/// A page of 1,000 services, each with 2.5 callers.
fn thousand_services(reporter: &str, count: u64) -> String {
    let mut page = String::new();
    for edge in 0..2500 {
        let (from, to) = (format!("shop/caller-{}", edge % 700), format!("shop/service-{}", edge % 1000));
        let of = Call { reporter, from: &from, to: &to, service: REVIEWS, code: 200 };
        let labels = format!("{},request_protocol=\"http\",response_code=\"200\"", of.labels());
        let _ = writeln!(page, "istio_requests_total{{{labels}}} {count}");
        for bound in BOUNDS {
            let le = if bound.is_finite() { bound.to_string() } else { "+Inf".into() };
            let _ = writeln!(page, "istio_request_duration_milliseconds_bucket{{{labels},le=\"{le}\"}} {count}");
        }
    }
    page
}
