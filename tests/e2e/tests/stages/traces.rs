//! The book shop is visited through a gateway, every service of it behind a waypoint, and Jaeger has every hop of every visit, in order,
//! errors marked. While there is no Jaeger no visit fails, and spans are dropped and counted.

use super::{Apps, apps, install_gateway_api, sample, wait_condition};
use karst_e2e::{Jaeger, LONG, Pod, Visits, apply, get, helm, kubectl, ready, traces::dropped, vip};
use karst_rt::netns::Netns;
use karst_world::{http, wait_for};
use serde_json::{Value, json};
use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

const NAMESPACE: &str = "traced";
const GATEWAYS: &str = "traced-ingress";
/// What the gateway calls itself in its spans.
const GATEWAY: &str = "istio-ingressgateway.traced-ingress";
const TELEMETRY: &str = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: traces, namespace: istio-system}\nspec: {tracing: [{providers: [{name: jaeger}], randomSamplingPercentage: 100}]}\n";
/// Spans are sent at latest after a second; Jaeger has them a moment later.
const EXPORTED: Duration = Duration::from_secs(10);
/// Until the control plane has told all proxies.
const TOLD: Duration = Duration::from_secs(90);
/// For so long there is no Jaeger.
const DEAD: Duration = Duration::from_secs(15);
/// Visits of each kind whose traces are looked at.
const LOOKED_AT: usize = 5;

/// A visit of nobody in particular: what the gateway sends goes through the waypoint (`istio.io/ingress-use-waypoint`), and the shop
/// passes on the headers of the trace.
const WHOLE: &str = "\
istio-ingressgateway.traced-ingress server productpage 200 istio-ingressgateway > waypoint
  istio-ingressgateway.traced-ingress client productpage 200 istio-ingressgateway > waypoint
    waypoint.traced server productpage 200 istio-ingressgateway > productpage-v1
      waypoint.traced client productpage 200 istio-ingressgateway > productpage-v1
        waypoint.traced server details 200 productpage-v1 > details-v1
          waypoint.traced client details 200 productpage-v1 > details-v1
        waypoint.traced server reviews 200 productpage-v1 > reviews-v3
          waypoint.traced client reviews 200 productpage-v1 > reviews-v3
            waypoint.traced server ratings 200 reviews-v3 > ratings-v1
              waypoint.traced client ratings 200 reviews-v3 > ratings-v1
";
/// One of jason's, for whom the waypoint answers in the place of ratings: no endpoint was asked.
const FAULTY: &str = "\
istio-ingressgateway.traced-ingress server productpage 200 istio-ingressgateway > waypoint
  istio-ingressgateway.traced-ingress client productpage 200 istio-ingressgateway > waypoint
    waypoint.traced server productpage 200 istio-ingressgateway > productpage-v1
      waypoint.traced client productpage 200 istio-ingressgateway > productpage-v1
        waypoint.traced server details 200 productpage-v1 > details-v1
          waypoint.traced client details 200 productpage-v1 > details-v1
        waypoint.traced server reviews 200 productpage-v1 > reviews-v2
          waypoint.traced client reviews 200 productpage-v1 > reviews-v2
            waypoint.traced server ratings 500 reviews-v2 > - ERROR
";

/// The shop with its waypoint and its gateway; gives the gateway's address.
fn shop() -> SocketAddr {
    for (name, labels) in [(NAMESPACE, "{istio.io/dataplane-mode: ambient}"), (GATEWAYS, "{}")] {
        apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {labels}}}\n"));
    }
    install_gateway_api();
    let files = [
        "manifests/bookinfo.yaml",
        "exercises/waypoint.yaml",
        "exercises/bookinfo-gateway.yaml",
        "exercises/bookinfo-subsets.yaml",
        "exercises/reviews-jason.yaml",
        "exercises/ratings-abort.yaml",
    ];
    for file in files {
        kubectl(&["-n", NAMESPACE, "apply", "-f", &sample(file)]);
    }
    let install = ["install", "istio-ingressgateway", "charts/gateway", "-n", GATEWAYS];
    helm(&[&install[..], &["--set=service.type=ClusterIP", "--wait", "--timeout=90s"]].concat());
    let waypoint = ["gateways.gateway.networking.k8s.io", "-n", NAMESPACE, "waypoint"];
    wait_condition(&waypoint, "Programmed", ("True", "Programmed"));
    let through = ["istio.io/use-waypoint=waypoint", "istio.io/ingress-use-waypoint=true"];
    kubectl(&[&["label", "namespace", NAMESPACE][..], &through[..]].concat());
    wait_condition(&["service", "-n", NAMESPACE, "ratings"], "istio.io/WaypointBound", ("True", "WaypointAccepted"));
    ready(NAMESPACE);
    (vip(GATEWAYS, "istio-ingressgateway"), 80).into()
}

fn write_mesh(mesh: &str) {
    let patch = json!({ "data": { "mesh": mesh } }).to_string();
    kubectl(&["-n", "istio-system", "patch", "configmap", "istio", "--type=merge", "-p", &patch]);
}

/// Names Jaeger as a provider, and asks for all traces; gives the mesh configuration that was there.
fn trace_all() -> String {
    let before = get(&["configmap", "istio", "-n", "istio-system"])["data"]["mesh"].as_str().unwrap().to_string();
    let mut mesh: Value = serde_yaml_ng::from_str(&before).unwrap();
    let collector = json!({ "service": "jaeger-collector.istio-system.svc.cluster.local", "port": 4317 });
    mesh["extensionProviders"] = json!([{ "name": "jaeger", "opentelemetry": collector }]);
    // JSON is YAML.
    write_mesh(&mesh.to_string());
    apply(TELEMETRY);
    before
}

/// A visit of `user` (nobody in particular: ""), with a name by which its trace is found.
fn visit(from: &Netns, to: SocketAddr, agent: &str, user: &str) -> std::io::Result<(u16, String)> {
    let stream = from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
    let user = if user.is_empty() { String::new() } else { format!("end-user: {user}\r\n") };
    http::with_headers(stream, "GET", "/productpage", &format!("User-Agent: {agent}\r\n{user}"))
}

/// Waits for the trace of a visit to be this one.
fn comes(jaeger: &Jaeger, agent: &str, wanted: &str) -> Result<(), String> {
    let end = Instant::now() + EXPORTED;
    loop {
        let seen = jaeger.tree(GATEWAY, agent);
        if seen.as_deref() == Ok(wanted) {
            return Ok(());
        }
        if Instant::now() > end {
            let seen = seen.unwrap_or_else(|why| why);
            return Err(format!("{agent}:\n{seen}\nand not\n{wanted}"));
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// Visits until there is a whole trace: proxies and endpoints learn of what was applied one after the other.
fn until_whole(jaeger: &Jaeger, from: &Netns, to: SocketAddr, name: &str) {
    let (begun, mut tries) = (Instant::now(), 0);
    loop {
        tries += 1;
        let agent = format!("{name}-{tries}");
        let page = visit(from, to, &agent, "").map_err(|e| e.to_string());
        let seen = match page {
            Ok((200, _)) => comes(jaeger, &agent, WHOLE),
            other => Err(format!("{agent}: {other:?}")),
        };
        let Err(why) = seen else {
            return println!("{name}: a whole trace at visit {tries}, after {:.1} s", begun.elapsed().as_secs_f64());
        };
        assert!(begun.elapsed() < TOLD, "no whole trace within {TOLD:?}: {why}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Spans that the gateway and the waypoint have dropped.
fn drops() -> [u64; 2] {
    let of = |namespace: &str, label: &str| {
        let pod = Pod::by_label(namespace, label);
        let stream = pod.netns().run(|| TcpStream::connect_timeout(&pod.at(15020), LONG)).unwrap().unwrap();
        let (status, page) = http::get(stream, "/stats/prometheus").unwrap();
        assert_eq!(status, 200, "{page}");
        dropped(&page)
    };
    [of(GATEWAYS, "istio=ingressgateway"), of(NAMESPACE, "gateway.networking.k8s.io/gateway-name=waypoint")]
}

/// Without Jaeger nobody notices; gives the one that is there afterwards.
fn without_a_collector(jaeger: Jaeger, outside: &Netns, ingress: SocketAddr) -> Jaeger {
    let before = drops();
    let visits = Visits::start(outside, ingress);
    std::thread::sleep(Duration::from_secs(2));
    jaeger.stop();
    let after = wait_for("both proxies count dropped spans", LONG, || {
        std::thread::sleep(Duration::from_millis(500));
        let after = drops();
        after.iter().zip(before).all(|(after, before)| *after > before).then_some(after)
    });
    std::thread::sleep(DEAD);
    let later = drops();
    let jaeger = Jaeger::start();
    let seen = visits.end();
    println!(
        "without Jaeger: {} pages, {} whole, {} failed; spans dropped by gateway and waypoint: {before:?}, {after:?}, {later:?}",
        seen.pages,
        seen.whole,
        seen.failed.len()
    );
    assert!(seen.failed.is_empty(), "{:?}", seen.failed);
    assert!(seen.pages > 50 && seen.whole == seen.pages, "{} of {} pages are whole", seen.whole, seen.pages);
    assert!(later.iter().zip(after).all(|(later, after)| *later > after), "{after:?}, {later:?}");
    jaeger
}

/// Installs Jaeger, visits the shop, looks at the traces, and takes Jaeger away for a while.
pub fn have_every_hop() {
    let Apps { outside, .. } = apps();
    let outside = outside.netns();
    let jaeger = Jaeger::install();
    let ingress = shop();
    let mesh = trace_all();
    until_whole(&jaeger, &outside, ingress, "first");
    for (user, wanted) in [("", WHOLE), ("jason", FAULTY)] {
        for number in 0..LOOKED_AT {
            let agent = format!("visit-{user}-{number}");
            let (status, page) = visit(&outside, ingress, &agent, user).unwrap();
            assert_eq!(status, 200, "{page}");
            assert_eq!(page.contains("Ratings service is currently unavailable"), !user.is_empty(), "{page}");
            comes(&jaeger, &agent, wanted).unwrap();
        }
    }
    println!("{LOOKED_AT} traces of each:\n{WHOLE}\n{FAULTY}");
    let jaeger = without_a_collector(jaeger, &outside, ingress);
    until_whole(&jaeger, &outside, ingress, "again");
    write_mesh(&mesh);
    kubectl(&["-n", "istio-system", "delete", "telemetry", "traces"]);
    jaeger.remove();
    // Another shop's gateway has the same hosts.
    kubectl(&["-n", NAMESPACE, "delete", "-f", &sample("exercises/bookinfo-gateway.yaml")]);
    helm(&["uninstall", "istio-ingressgateway", "-n", GATEWAYS, "--wait"]);
    kubectl(&["delete", "namespace", NAMESPACE, GATEWAYS, "--wait=false"]);
}
