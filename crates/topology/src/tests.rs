//! Pages of several proxies at successive times, and the graph that comes of them.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use crate::{Edge, Kind, Topology, graph::Mtls};
use karst_flows::Page;
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
