//! From an older release to this one and back, in the order that docs/upgrade.md gives, while a service is called and a book shop is
//! visited through a waypoint. `cargo xtask upgrade --from COMMIT` starts a cluster with the images of both and runs it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_e2e::{LONG, Load, Pod, Visits, apply, dry_apply, get, helm, karst, kubectl, ready, vip, wait_redirected};
use karst_world::wait_for;
use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

const MARK: &[u8] = b"plaintext-marker-of-the-upgrade-test";
const APPS: &str = include_str!("../manifests/apps.yaml");
const WAYPOINT: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: waypoint, namespace: bookinfo, labels: {istio.io/waypoint-for: service}}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n";
/// With its group: `gateway` may be Istio's.
const GATEWAY: &str = "gateways.gateway.networking.k8s.io/waypoint";
/// The CRD's schema lets it in, the webhook does not.
const INVALID: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: invalid, namespace: app}\nspec: {action: DENY}\n";
/// After a step things go on for so long, under load.
const AFTER: Duration = Duration::from_secs(5);

/// A release: its charts, and the tag of its images where that is not the charts' own.
struct Release {
    charts: String,
    tag: String,
}

impl Release {
    /// Installs a chart of it, or brings it to this release.
    fn install(&self, name: &str, chart: &str, more: &[&str]) {
        let path = format!("{}/{chart}", self.charts);
        let tag = format!("--set=global.tag={}", self.tag);
        let base = ["upgrade", "--install", name, &path, "-n", "istio-system", "--create-namespace", "--reset-values"];
        let wait = ["--wait", "--timeout=240s"];
        // The chart of the CRDs has no images.
        let tag: &[&str] = if self.tag.is_empty() || chart == "base" { &[] } else { &[&tag] };
        helm(&[&base[..], &wait, tag, more].concat());
    }
}

/// What calls and visits all the time.
struct Traffic {
    client: Pod,
    outside: Pod,
    echo: SocketAddr,
    shop: SocketAddr,
}

/// A line of the table.
struct Row {
    step: String,
    expected: String,
    seen: String,
    holds: bool,
}

#[derive(Default)]
struct Table(Vec<Row>);

impl Table {
    /// Does a step under load: nothing may fail, and afterwards something must be so.
    fn step(
        &mut self,
        traffic: &Traffic,
        name: &str,
        expected: &str,
        change: impl FnOnce(),
        seen: impl Fn() -> String,
    ) {
        println!("==> {name}");
        let begun = Instant::now();
        let loads = [&traffic.client, &traffic.outside].map(|pod| Load::start(&pod.netns(), traffic.echo, 50, MARK));
        let visits = Visits::start(&traffic.client.netns(), traffic.shop);
        change();
        let took = begun.elapsed().as_secs_f64();
        let mut state = seen();
        let end = Instant::now() + LONG;
        while state != expected && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(500));
            state = seen();
        }
        self.note(name, expected, &state, state == expected);
        std::thread::sleep(AFTER);
        let ([inside, outside], visits) = (loads.map(Load::end), visits.end());
        let mut failed = visits.failed;
        failed.extend(inside.failed.iter().map(|why| format!("in the mesh: {why}")));
        failed.extend(outside.failed.iter().map(|why| format!("from outside: {why}")));
        let text = format!(
            "{} failed of {} calls and {} visits, slowest call {} ms, in {took:.0} s",
            failed.len(),
            inside.ok + outside.ok,
            visits.pages,
            inside.slowest_ms.max(outside.slowest_ms),
        );
        for why in failed.iter().take(5) {
            println!("    failed: {why}");
        }
        let was_tried = inside.ok > 20 && outside.ok > 20 && visits.pages > 10;
        self.note("", "0 failed", &text, failed.is_empty() && was_tried);
    }

    fn note(&mut self, step: &str, expected: &str, seen: &str, holds: bool) {
        let (step, expected, seen) = (step.to_string(), expected.to_string(), seen.to_string());
        self.0.push(Row { step, expected, seen, holds });
    }

    /// Prints it; all of it must hold.
    fn print(&self) {
        println!("\n{:<58} | {:<50} | {:<5} | seen", "step", "expected", "holds");
        for row in &self.0 {
            let holds = if row.holds { "yes" } else { "NO" };
            println!("{:<58} | {:<50} | {holds:<5} | {}", row.step, row.expected, row.seen);
        }
        let lost = self.0.iter().filter(|row| !row.holds).count();
        assert_eq!(lost, 0, "lines of the table that do not hold");
    }
}

/// The tags of the images that the pods with a label run, those that are going left out; `none` without a pod, and `starting` where one
/// is not ready.
fn tags(namespace: &str, label: &str) -> String {
    let pods = get(&["pods", "-n", namespace, "-l", label]);
    let staying = pods["items"].as_array().unwrap().iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let tag = |pod: &serde_json::Value| {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let is_ready = conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        let image = pod["spec"]["containers"][0]["image"].as_str().unwrap().to_string();
        if is_ready { image.rsplit_once(':').unwrap().1.to_string() } else { "starting".into() }
    };
    let mut all: Vec<String> = staying.map(tag).collect();
    all.sort();
    all.dedup();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}

/// Which control plane the waypoint's Deployment names, and what its pods run.
fn waypoint() -> String {
    let deployment = get(&["deployment", "-n", "bookinfo", "waypoint"]);
    let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().clone();
    let address = env.iter().find(|variable| variable["name"] == "XDS_ADDRESS").unwrap()["value"].clone();
    let address = address.as_str().unwrap().split('.').next().unwrap().to_string();
    format!("{} by {address}", tags("bookinfo", "gateway.networking.k8s.io/gateway-name=waypoint"))
}

/// The sample applications in the mesh, and the book shop behind a waypoint.
fn traffic() -> Traffic {
    apply(APPS);
    apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: bookinfo}\n");
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/manifests/bookinfo.yaml");
    kubectl(&["-n", "bookinfo", "apply", "-f", manifests]);
    kubectl(&["-n", "app", "rollout", "status", "deploy/echo", "--timeout=90s"]);
    ready("bookinfo");
    ready("app");
    ready("outside");
    for namespace in ["app", "bookinfo"] {
        kubectl(&["label", "namespace", namespace, "--overwrite", "istio.io/dataplane-mode=ambient"]);
    }
    let (client, echo) = (Pod::get("app", "client"), Pod::by_label("app", "app=echo"));
    let page = Pod::by_label("bookinfo", "app=productpage");
    wait_redirected(&[&client, &echo, &page], true);
    apply(WAYPOINT);
    kubectl(&["-n", "bookinfo", "wait", "--for=condition=Programmed", GATEWAY, "--timeout=90s"]);
    kubectl(&["label", "namespace", "bookinfo", "--overwrite", "istio.io/use-waypoint=waypoint"]);
    wait_for("the shop is bound to its waypoint", LONG, || {
        let service = get(&["service", "-n", "bookinfo", "productpage"]);
        let conditions = service["status"]["conditions"].as_array()?.clone();
        conditions.iter().any(|c| c["type"] == "istio.io/WaypointBound" && c["status"] == "True").then_some(())
    });
    Traffic {
        client,
        outside: Pod::get("outside", "client"),
        echo: (vip("app", "echo"), 9000).into(),
        shop: (vip("bookinfo", "productpage"), 9080).into(),
    }
}

/// Does the webhook of the default revision refuse what is wrong?
fn refuses() -> String {
    match dry_apply(INVALID) {
        Err(said) if said.contains("denied the request") => "invalid objects are refused".into(),
        Err(said) => said,
        Ok(_) => "invalid objects are let in".into(),
    }
}

#[test]
#[ignore = "cargo xtask upgrade builds the older release and runs it"]
fn from_an_older_release_to_this_one_and_back() {
    let variable =
        |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run cargo xtask upgrade"));
    let old = Release { charts: variable("KARST_UPGRADE_CHARTS"), tag: variable("KARST_UPGRADE_TAG") };
    let new = Release { charts: "charts".into(), tag: String::new() };
    let (before, now) = (old.tag.as_str(), env!("CARGO_PKG_VERSION"));
    // Releases before it left Gateways out that are labelled for another revision, and did not know tags.
    let rules = std::fs::read_to_string(Path::new(&old.charts).join("istiod/templates/rbac.yaml")).unwrap();
    let knows_revisions = rules.contains("istio-mesh-leader");

    for (name, chart) in [("istio-base", "base"), ("istiod", "istiod"), ("istio-cni", "cni"), ("ztunnel", "ztunnel")] {
        old.install(name, chart, &[]);
    }
    let traffic = traffic();
    let mut table = Table::default();
    let agent = || tags("istio-system", "k8s-app=istio-cni-node");
    let ztunnel = || tags("istio-system", "app=ztunnel");
    let canary = || tags("istio-system", "app=istiod,istio.io/rev=canary");
    let label = |value: &str| drop(kubectl(&["-n", "bookinfo", "label", GATEWAY, "--overwrite", value]));

    table.step(&traffic, "older release", &format!("{before} by istiod"), || {}, waypoint);
    table.step(&traffic, "base", "", || new.install("istio-base", "base", &[]), String::new);
    let install = || new.install("istiod-canary", "istiod", &["--set=revision=canary"]);
    table.step(&traffic, "istiod as revision canary, beside the older one", now, install, canary);
    table.step(&traffic, "istio-cni", now, || new.install("istio-cni", "cni", &[]), agent);
    let install = || new.install("ztunnel", "ztunnel", &["--set=revision=canary"]);
    table.step(&traffic, "ztunnel, to the canary", now, install, ztunnel);
    let moved = format!("{now} by istiod-canary");
    let remove = || drop(helm(&["uninstall", "istiod", "-n", "istio-system", "--wait"]));
    if knows_revisions {
        let to_canary = || label("istio.io/rev=canary");
        table.step(&traffic, "waypoint, by its label", &moved, to_canary, waypoint);
        let tag = || drop(karst(&["tag", "set", "default", "--revision", "canary"]));
        table.step(&traffic, "tag default, to the canary", "invalid objects are refused", tag, refuses);
        table.step(&traffic, "older istiod removed", &moved, remove, waypoint);
    } else {
        table.step(&traffic, "older istiod removed: the canary is the only one", &moved, remove, waypoint);
        let tag = || drop(karst(&["tag", "set", "default", "--revision", "canary"]));
        table.step(&traffic, "tag default, to the canary", "invalid objects are refused", tag, refuses);
    }
    table.step(&traffic, "this release", now, || {}, ztunnel);

    let back = || {
        karst(&["tag", "remove", "default", "-y"]);
        old.install("istiod", "istiod", &[]);
        if knows_revisions {
            label("istio.io/rev-");
        }
    };
    table.step(
        &traffic,
        "back: older istiod, which takes the waypoint",
        &format!("{before} by istiod"),
        back,
        waypoint,
    );
    table.step(&traffic, "back: ztunnel", before, || old.install("ztunnel", "ztunnel", &[]), ztunnel);
    table.step(&traffic, "back: istio-cni", before, || old.install("istio-cni", "cni", &[]), agent);
    let remove = || drop(helm(&["uninstall", "istiod-canary", "-n", "istio-system", "--wait"]));
    table.step(&traffic, "back: canary removed", &format!("{before} by istiod"), remove, waypoint);
    table.print();
}
