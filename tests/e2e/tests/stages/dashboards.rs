//! The book shop is visited under STRICT. Without any waypoint a Prometheus has who calls whom, how often it goes well and how fast; with
//! one for details, nothing is counted twice, and there is something for every panel of Istio's dashboards, of ours, and for Kiali's
//! graph (tests/e2e/data/panels.tsv says which may be empty, and why).

use super::{Apps, apps, install_gateway_api, sample, wait_condition};
use karst_e2e::{
    LONG, Pod, Prometheus, Visits, apply, get, helm, kubectl, panels,
    panels::{Answers, Expectation, Query},
    ready, vip,
};
use karst_world::{http, wait_for};
use serde_json::Value;
use std::{
    fs,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const PANELS: &str = include_str!("../../data/panels.tsv");
const NAMESPACE: &str = "observed";
const GATEWAYS: &str = "observed-ingress";
/// What a user would choose in the dashboards' lists. Kiali asks for one namespace; the others take a pattern.
const CHOSEN: [(&str, &str); 10] = [
    ("__rate_interval", "1m"),
    ("qrep", "destination"),
    ("service", "reviews.observed.svc.cluster.local"),
    ("namespace", NAMESPACE),
    ("workload", "productpage-v1"),
    ("srcwl", ".*"),
    ("srcns", ".*"),
    ("dstwl", ".*"),
    ("dstns", ".*"),
    ("dstsvc", ".*"),
];
/// Rates need two scrapes, 15 s apart, and a minute of them.
const PATIENCE: Duration = Duration::from_secs(150);

/// Who calls whom in the shop.
const EDGES: [(&str, &str); 6] = [
    ("productpage-v1", "details-v1"),
    ("productpage-v1", "reviews-v1"),
    ("productpage-v1", "reviews-v2"),
    ("productpage-v1", "reviews-v3"),
    ("reviews-v2", "ratings-v1"),
    ("reviews-v3", "ratings-v1"),
];

/// The shop without a waypoint, and who visits it.
fn shop(a: &Apps) -> [Visits; 2] {
    for (name, labels) in [(NAMESPACE, "{istio.io/dataplane-mode: ambient}"), (GATEWAYS, "{}")] {
        apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {labels}}}\n"));
    }
    apply(&format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: {NAMESPACE}}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
    ));
    install_gateway_api();
    for file in ["manifests/bookinfo.yaml", "exercises/bookinfo-gateway.yaml"] {
        kubectl(&["-n", NAMESPACE, "apply", "-f", &sample(file)]);
    }
    let install = ["install", "istio-ingressgateway", "charts/gateway", "-n", GATEWAYS];
    helm(&[&install[..], &["--set=service.type=ClusterIP", "--wait", "--timeout=90s"]].concat());
    ready(NAMESPACE);
    a.mesh(true);
    let page: SocketAddr = (vip(NAMESPACE, "productpage"), 9080).into();
    let ingress: SocketAddr = (vip(GATEWAYS, "istio-ingressgateway"), 80).into();
    [Visits::start(&a.client.netns(), page), Visits::start(&a.outside.netns(), ingress)]
}

/// Waits until a query has an answer.
fn holds(prometheus: &Prometheus, query: &str) {
    wait_for(query, PATIENCE, || {
        std::thread::sleep(Duration::from_secs(2));
        prometheus.series(query).ok().filter(|series| *series > 0)
    });
}

/// Every edge of the shop has requests, nearly all go well, and they take a time: by ztunnel alone.
fn edges_without_a_waypoint(prometheus: &Prometheus) {
    for (from, to) in EDGES {
        let of = format!(
            "reporter=\"destination\",source_workload=\"{from}\",destination_workload=\"{to}\",destination_workload_namespace=\"{NAMESPACE}\""
        );
        let rate = |more: &str| format!("sum(rate(istio_requests_total{{{of}{more}}}[1m]))");
        holds(prometheus, &format!("{} > 0", rate("")));
        holds(prometheus, &format!("{} / {} > 0.99", rate(",response_code!~\"5..\""), rate("")));
        let durations = format!("sum by (le) (rate(istio_request_duration_milliseconds_bucket{{{of}}}[1m]))");
        holds(prometheus, &format!("histogram_quantile(0.99, {durations}) > 0"));
        println!("without a waypoint, Prometheus: {from} to {to}");
    }
    let by_waypoints =
        format!("istio_requests_total{{reporter=\"waypoint\",destination_workload_namespace=\"{NAMESPACE}\"}}");
    assert_eq!(prometheus.series(&by_waypoints), Ok(0), "there is none");
}

/// From now on details has a waypoint, which counts its requests; ztunnels count them no more. (The others see what ztunnel counts.)
fn with_a_waypoint_for_details(prometheus: &Prometheus) {
    kubectl(&["-n", NAMESPACE, "apply", "-f", &sample("exercises/waypoint.yaml")]);
    let waypoint = ["gateways.gateway.networking.k8s.io", "-n", NAMESPACE, "waypoint"];
    wait_condition(&waypoint, "Programmed", ("True", "Programmed"));
    kubectl(&["-n", NAMESPACE, "label", "service", "details", "istio.io/use-waypoint=waypoint"]);
    let rate = |reporter: &str| {
        let service = format!("destination_service=\"details.{NAMESPACE}.svc.cluster.local\"");
        format!("sum(rate(istio_requests_total{{reporter=~\"{reporter}\",{service}}}[45s]))")
    };
    // The same requests in one query: what one reporter has in both would be there twice.
    holds(prometheus, &format!("({} > 0) and ({} == 0)", rate("waypoint"), rate("source|destination")));
    println!("with a waypoint, Prometheus: details is counted by the waypoint alone");
}

/// The queries of our own dashboards; a panel that may be empty says when.
fn ours() -> Vec<Query> {
    let text = fs::read_to_string(sample("addons/dashboards.yaml")).unwrap();
    let object: Value = serde_yaml_ng::from_str(&text).unwrap();
    let mut all = vec![];
    for file in object["data"].as_object().unwrap().values() {
        let dashboard: Value = serde_json::from_str(file.as_str().unwrap()).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            let expectation = match panel["description"].as_str() {
                Some(why) => Expectation::Event(why.to_string()),
                None => Expectation::Data,
            };
            let word = |value: &Value| value.as_str().unwrap().to_string();
            all.extend(panel["targets"].as_array().unwrap().iter().map(|target| Query {
                dashboard: word(&dashboard["title"]).chars().take(14).collect(),
                panel: word(&panel["title"]),
                expectation: expectation.clone(),
                text: word(&target["expr"]),
            }));
        }
    }
    all
}

fn ask(prometheus: &Prometheus, queries: &[Query]) -> Answers {
    let answer = |query: &Query| prometheus.series(&panels::fill(&query.text, &CHOSEN)?);
    queries.iter().map(|query| (query.clone(), answer(query))).collect()
}

/// Installs Prometheus, visits the shop, and asks.
pub fn have_data() {
    let a = apps();
    let rules = "--from-file=charts/istiod/files/alerts.yaml";
    kubectl(&["-n", "istio-system", "create", "configmap", "prometheus-rules", rules]);
    let prometheus = Prometheus::install();
    let visits = shop(&a);
    edges_without_a_waypoint(&prometheus);
    with_a_waypoint_for_details(&prometheus);
    let mut queries = panels::read(PANELS).unwrap();
    queries.extend(ours());
    let end = std::time::Instant::now() + PATIENCE;
    let answers = loop {
        let answers = ask(&prometheus, &queries);
        if panels::faults(&answers).is_empty() || std::time::Instant::now() > end {
            break answers;
        }
        std::thread::sleep(Duration::from_secs(5));
    };
    println!("{}", panels::table(&answers));
    for (dashboard, [seen, wanted, all]) in panels::full(&answers) {
        println!("{dashboard}: {seen} of {all} panels have data, {wanted} must");
    }
    scraped(&prometheus);
    kiali_is_answered();
    for (whose, visits) in ["in the mesh", "through the gateway"].into_iter().zip(visits) {
        let seen = visits.end();
        println!("visits {whose}: {} pages, {} failed", seen.pages, seen.failed.len());
        assert!(seen.pages > 50, "{whose}: {:?}", seen.failed);
    }
    let faults = panels::faults(&answers);
    assert!(faults.is_empty(), "{} of {} queries:\n{}", faults.len(), answers.len(), faults.join("\n"));
    prometheus.remove();
    kubectl(&["-n", "istio-system", "delete", "configmap", "prometheus-rules"]);
    helm(&["uninstall", "istio-ingressgateway", "-n", GATEWAYS, "--wait"]);
    kubectl(&["delete", "namespace", NAMESPACE, GATEWAYS, "--wait=false"]);
}

/// STRICT in the namespaces of applications keeps no Prometheus from the mesh's own pods; and it takes the alerts.
fn scraped(prometheus: &Prometheus) {
    let targets = prometheus.targets();
    for prefix in [
        "istio-system/istiod-",
        "istio-system/ztunnel-",
        "istio-system/istio-cni-node-",
        "observed/waypoint-",
        "observed-ingress/istio-ingressgateway-",
    ] {
        assert!(targets.iter().any(|one| one.pod.starts_with(prefix)), "{prefix}: {targets:?}");
    }
    let down: Vec<_> = wait_for("every pod was scraped", LONG, || {
        let targets = prometheus.targets();
        targets.iter().all(|one| one.health != "unknown").then_some(targets)
    })
    .into_iter()
    .filter(|one| one.health != "up")
    .collect();
    assert!(down.is_empty(), "{down:?}");
    let rules = wait_for("the alerts were evaluated", LONG, || {
        let rules = prometheus.rules();
        rules.iter().all(|rule| rule.health != "unknown").then_some(rules)
    });
    assert!(rules.len() > 10, "{rules:?}");
    let unsound: Vec<_> = rules.iter().filter(|rule| rule.health != "ok").collect();
    let firing: Vec<&str> = rules.iter().filter(|rule| rule.state == "firing").map(|rule| rule.name.as_str()).collect();
    println!("{} alerts, of which fire: {firing:?}", rules.len());
    assert!(unsound.is_empty(), "{unsound:?}");
}

/// What Kiali reads besides Prometheus, as it reads it.
fn kiali_is_answered() {
    let system = ["-n", "istio-system"];
    let of = |what: &[&str]| get(&[what, &system].concat());
    let istiod = of(&["deployment", "istiod"]);
    assert_eq!(istiod["metadata"]["labels"]["app"], "istiod");
    assert_eq!(istiod["metadata"]["labels"]["istio.io/rev"], "default");
    let env = istiod["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    assert!(env.iter().any(|one| one["name"] == "CLUSTER_ID" && one["value"] == "Kubernetes"), "{env:?}");
    assert!(of(&["configmap", "istio"])["data"]["mesh"].is_string());
    assert!(of(&["configmap", "istio-ca-root-cert"])["data"]["root-cert.pem"].is_string());
    let ports = of(&["service", "istiod"])["spec"]["ports"].clone();
    let monitoring = ports.as_array().unwrap().iter().find(|port| port["name"] == "http-monitoring").unwrap();
    assert_eq!(monitoring["port"], 15014);
    // As a port-forward comes: from loopback.
    let page = |pod: &Pod, port: u16, path: &str| {
        let at: SocketAddr = ([127, 0, 0, 1], port).into();
        let stream = pod.netns().run(|| TcpStream::connect_timeout(&at, Duration::from_secs(5))).unwrap();
        let (status, text) = http::get(stream.unwrap(), path).unwrap();
        assert_eq!(status, 200, "{path}: {text}");
        text
    };
    let pod = Pod::by_label("istio-system", "app=istiod");
    page(&pod, 8080, "/ready");
    assert!(page(&pod, 15014, "/version").starts_with("1."));
    let proxies: Value = serde_json::from_str(&page(&pod, 15014, "/debug/syncz")).unwrap();
    assert!(!proxies.as_array().unwrap().is_empty());
    page(&Pod::by_label("istio-system", "app=ztunnel"), 15000, "/config_dump");
}
