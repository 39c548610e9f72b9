//! Exercises whose pages are followed line by line, in the namespace of the book shop; and beside them what no page can show: exact counts.

use super::Apps;
use karst_e2e::{
    LONG, Pod, Visits,
    dashboard::{Dashboard, edge},
    exercise::Exercise,
    get, kubectl, vip,
};
use karst_world::{http, wait_for};
use serde_json::Value;
use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const SHOP: &str = "bookinfo";
const WAYPOINT: &str = "gateway.networking.k8s.io/gateway-name=waypoint";
/// What sleep asks httpbin in the exercise: requests that go well, and that fail.
const ASKED: [u64; 2] = [20, 5];
/// Our page is renewed every two seconds.
const ASK_EVERY: Duration = Duration::from_millis(250);
const ASKS: &str = "httpbin:8000/status/500";

fn metrics(pod: &Pod) -> String {
    let stream = pod.netns().run(|| TcpStream::connect_timeout(&pod.at(15020), LONG)).unwrap().unwrap();
    let (status, page) = http::get(stream, "/metrics").unwrap();
    assert_eq!(status, 200, "{page}");
    page
}

/// The sum of a counter's series with these labels.
fn sum(page: &str, name: &str, labels: &[&str]) -> u64 {
    let start = format!("{name}{{");
    let lines = page.lines().filter(|line| line.starts_with(&start) && labels.iter().all(|label| line.contains(label)));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Requests of sleep to httpbin that a reporter has counted: those answered with 200, and with 500.
fn counted(pages: &[String], reporter: &str) -> [u64; 2] {
    let reporter = format!("reporter=\"{reporter}\"");
    ["response_code=\"200\"", "response_code=\"500\""].map(|code| {
        let service = "destination_service=\"httpbin.bookinfo.svc.cluster.local\"";
        let labels = [reporter.as_str(), code, "source_workload=\"sleep\"", service];
        pages.iter().map(|page| sum(page, "istio_requests_total", &labels)).sum()
    })
}

/// What all ztunnels have counted: on the source's side, and on the destination's.
fn by_ztunnels() -> [[u64; 2]; 2] {
    let pods = get(&["pods", "-n", "istio-system", "-l", "app=ztunnel", "--field-selector=status.phase=Running"]);
    let names = pods["items"].as_array().unwrap().iter().map(|pod| pod["metadata"]["name"].as_str().unwrap());
    let pages: Vec<String> = names.map(|name| metrics(&Pod::get("istio-system", name))).collect();
    ["source", "destination"].map(|reporter| counted(&pages, reporter))
}

fn by_waypoint(waypoint: &Pod) -> [u64; 2] {
    counted(&[metrics(waypoint)], "waypoint")
}

fn grown(before: [u64; 2], now: [u64; 2]) -> [u64; 2] {
    [now[0] - before[0], now[1] - before[1]]
}

/// Requests with latencies, none of them failed, all in mutual TLS.
fn is_healthy(edge: &Value) -> bool {
    let is_positive = |field: &str| edge[field].as_f64().is_some_and(|value| value > 0.0);
    let is_http = edge["protocol"] == "http" && edge["mtls"] == "all" && edge["errorShare"] == 0.0;
    is_http && ["rate", "p50", "p99"].into_iter().all(is_positive)
}

/// Without a waypoint: our page has edges with rates, errors and latencies, explains one of them, and either side counts every
/// request once.
pub fn signals(a: &Apps) {
    let shop: SocketAddr = (vip(SHOP, "productpage"), 9080).into();
    let visits = Visits::start(&a.client.netns(), shop);
    let page = Dashboard::start(SHOP);
    assert_eq!(page.ask("/api/graph", "").0, 401, "without the secret of the address");
    let graph = || {
        std::thread::sleep(ASK_EVERY);
        page.get(&format!("/api/graph?namespace={SHOP}"))
    };
    for (from, to) in [("productpage-v1", "details-v1"), ("productpage-v1", "reviews-v2"), ("reviews-v2", "ratings-v1")]
    {
        let seen = wait_for(&format!("the edge from {from} to {to}"), LONG, || {
            let graph = graph();
            edge(&graph, from, to).filter(|edge| is_healthy(edge)).cloned()
        });
        println!("{from} to {to}: {} a second, p50 {} ms, p99 {} ms", seen["rate"], seen["p50"], seen["p99"]);
    }
    let before = by_ztunnels();
    let mut exercise = Exercise::open("signals");
    exercise.through(ASKS);
    let seen = wait_for("an edge with errors", LONG, || {
        let graph = graph();
        let has_errors = |edge: &&Value| {
            let share = edge["errorShare"].as_f64().unwrap_or_default();
            edge["codes"]["500"].as_f64().is_some_and(|rate| rate > 0.0) && share > 0.0
        };
        edge(&graph, "sleep", "httpbin").filter(has_errors).cloned()
    });
    println!("sleep to httpbin: {} of the requests fail", seen["errorShare"]);
    // The button at the edge: the caller is the one that has proven its identity.
    let explained = page.get(&format!("/api/explain?edge={}", seen["id"]));
    println!("sleep to httpbin, explained: {}", explained["summary"]);
    let has_steps = explained["steps"].as_array().is_some_and(|steps| !steps.is_empty());
    assert!(explained["verdict"] == "allowed" && has_steps, "{explained}");
    wait_for("each request counted once on either side", LONG, || {
        let now = by_ztunnels();
        (0..2).all(|side| grown(before[side], now[side]) == ASKED).then_some(())
    });
    exercise.finish();
    let seen = visits.end();
    assert!(seen.failed.is_empty() && seen.pages > 10, "{} pages, {:?}", seen.pages, seen.failed);
}

/// With a waypoint: it counts every request once, and no ztunnel counts any.
pub fn counted_once() {
    let waypoint = Pod::by_label(SHOP, WAYPOINT);
    let (ztunnels, before) = (by_ztunnels(), by_waypoint(&waypoint));
    Exercise::open("signals").through(ASKS);
    wait_for("each request counted once by the waypoint", LONG, || {
        (grown(before, by_waypoint(&waypoint)) == ASKED).then_some(())
    });
    assert_eq!(by_ztunnels(), ztunnels, "what the waypoint counts, ztunnels do not");
}

/// What was refused, by what proxies were told then; and the same call now. Without a waypoint.
pub fn past() {
    Exercise::open("past").finish();
}

/// A user without the right sees nothing, and is told which right it is.
pub fn live_traffic() {
    Exercise::open("live-traffic").finish();
}

/// Providers at a waypoint (Open Policy Agent) and at a gateway: yes, no, no answer, and `failOpen`.
pub fn external_authorization() {
    let mut exercise = Exercise::open("external-authorization");
    exercise.through("-f samples/exercises/external-authorization.yaml");
    kubectl(&["-n", "authz", "set", "image", "deploy/opa", "opa=registry.local/opa:1"]);
    exercise.through("opa-if-there");
    exercise.through("ask bookinfo bob /headers");
    let page = metrics(&Pod::by_label(SHOP, WAYPOINT));
    for (provider, outcome) in
        [("opa", "allowed"), ("opa", "denied"), ("opa", "error"), ("opa-if-there", "failed_open")]
    {
        let labels = [format!("provider=\"{provider}\""), format!("outcome=\"{outcome}\"")];
        let labels = labels.each_ref().map(String::as_str);
        let asked = sum(&page, "karst_ext_authz_checks_total", &labels);
        println!("{provider} {outcome}: {asked}");
        assert!(asked > 0, "{provider} {outcome}: {page}");
    }
    exercise.finish();
}

/// Limits for each value of a header, at a waypoint.
pub fn rate_limits() {
    Exercise::open("rate-limits").finish();
}

/// What tokens allow, and where they lead.
pub fn tokens() {
    Exercise::open("tokens").finish();
}

/// UDP at a gateway: an answer, a route that leads nowhere, one that leads back.
pub fn datagrams() {
    Exercise::open("datagrams").finish();
}

/// A name outside, by a waypoint: what it cannot reach in TLS it answers itself, and a policy says who may call it.
pub fn egress() {
    Exercise::open("egress").finish();
}

/// Gateways behind proxies, by X-Forwarded-For and by the PROXY protocol; a policy goes by whom they name.
pub fn client_addresses() {
    Exercise::open("client-addresses").finish();
}
