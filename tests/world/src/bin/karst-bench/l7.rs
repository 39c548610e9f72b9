//! `cargo xtask bench l7`: our layer 7 proxy beside Envoy, two worker threads each, without an access log or each with one; each in a
//! pod of its own on node 0 with the client, the servers on node 1.
//!
//! - `gateway-N`: plain HTTP/1.1 in, 90/10, mutual TLS out, N connections of the client. Envoy speaks HTTP/1.1 in TLS to a TLS relay
//!   in the server's pod, its cheapest way; we HBONE to the server's ztunnel, which is one layer more.
//! - `waypoint-N`: HBONE in (the client's ztunnel), 90/10, HBONE out. Envoy is configured as Istio's waypoints are: the tunnel's
//!   listener, an internal one for HTTP, an internal one for the tunnel onwards.
//! - `routes-N`: as `gateway-32`, through the last of N prefix routes of a host.
//! - `gateway-N-B`, `waypoint-N-B`: with bodies of B bytes; in place of those above, where that is asked for (`--wide`).
//!
//! In place of those above, too (`--protocols`):
//! - `gateway-h2-32`: as `gateway-32`, the client by HTTP/2 (prior knowledge, no TLS), one request at a time on each connection.
//! - `gateway-grpc-32`: unary gRPC with a message of 100 bytes, by HTTP/2 to the gateway and from there to the servers.
//! - `gateway-tls-32`: as `gateway-32`, by HTTPS: TLS 1.3 ends at the gateway. `gateway-tls-crr`: over a new connection for each
//!   request, 16 at a time, a whole handshake each. Both proxies have the same certificate (ECDSA P-256), the client offers
//!   AES-128-GCM and X25519 alone, and no session is resumed, though both send tickets. Envoy does not look at the hello before (no
//!   tls_inspector): its cheapest way, too.
//!
//! CPU is the proxy's alone, from /proc. `client's cores` is that of the load generator, which has one thread: near 1, requests per
//! second and latencies are its limit, and only the proxy's CPU compares.
//!
//! `other`: another build of ours. `traced`: ours, which exports the spans of each request to a collector (OTLP over HTTP) on node 1.
//! Only if they are named in `--variants`: `gone`, the same where nobody listens; `bookless`, ours without the book of flows;
//! `one-thread`, ours with one worker.

use crate::{
    envoy,
    measure::{App, Opts, Samples, measure, rss_kib, serve},
};
use anyhow::{Context, Result, ensure};
use karst_world::{
    Options, Pod, PodSpec, World, bin,
    pki::{self, Ca},
    wait_for,
    web::Web,
};
use serde_json::{Value, json};
use std::{
    fmt::Write,
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(20);
const MANY: usize = 5000;
const FEW: usize = 10;
/// Rules that an HTTPRoute may have.
const RULES: usize = 16;
const PORT: u16 = 8000;
/// Where gateways end TLS.
const TLS_PORT: u16 = 8443;
/// The Secret with what they show there.
const SITE: &str = "site";
/// Connections of the wide form, and bytes of a request's body and of its answer's.
const CONNECTIONS: [usize; 3] = [1, 16, 512];
const BODIES: [&str; 2] = ["0", "4096"];

/// How the proxies are set up.
#[derive(Clone, Copy)]
struct How {
    /// Each request is a line of their access logs.
    access_log: bool,
    /// Connections and bodies of several sizes, and none of the many routes.
    wide: bool,
    /// HTTP/2, gRPC and TLS, and none of the many routes.
    protocols: bool,
}

/// What is measured.
struct Case<'a> {
    name: String,
    /// The gateway's port; None: the waypoint.
    gateway: Option<u16>,
    /// What meshbench is to do, with how many connections, and what it is told besides.
    kind: &'static str,
    connections: usize,
    more: Vec<&'a str>,
}

/// A proxy that is measured: as gateway, and as waypoint.
struct Proxy {
    variant: &'static str,
    gateway: (IpAddr, u32),
    waypoint: (SocketAddr, u32),
    /// Of ours: gateway, waypoint.
    pods: Option<[Pod; 2]>,
    _apps: Vec<App>,
}

/// Runs it.
pub fn run(o: &Opts) -> Result<Samples> {
    let envoy = PathBuf::from(o.text("envoy").context("--envoy=PATH: the Envoy to measure beside")?);
    let asked = |k: &str| o.is_asked(k);
    let how = How { access_log: asked("access-log"), wide: asked("wide"), protocols: asked("protocols") };
    let last = |n: usize| format!("/r{}/echo", n - 1);
    let (few, many) = (last(FEW), last(MANY));
    let cases: Vec<Case<'_>> = cases(how, &few, &many).into_iter().filter(|case| case.name.contains(&o.only)).collect();
    ensure!(
        !cases.is_empty() || "idle".contains(&o.only),
        "--only {}: no case of this run has such a name; some are measured with --wide or --protocols only",
        o.only
    );
    let mut w = World::start(Options::default())?;
    w.namespace("app", true);
    w.namespace("plain", false);
    w.namespace("edge", false);
    // The mesh's servers, and the same outside it for Envoy's TLS.
    let release = |w: &mut World, ns: &str, v: &str| {
        w.pod(PodSpec::new(ns, &format!("shop-{v}"), 1).label("app", "shop").label("version", v))
    };
    let mesh = ["v1", "v2"].map(|v| release(&mut w, "app", v));
    let plain = ["v1", "v2"].map(|v| release(&mut w, "plain", v));
    let client = w.mesh_pod(PodSpec::new("app", "client", 0));
    let outside = w.pod(PodSpec::new("plain", "outside", 0));
    mesh.iter().for_each(|p| w.wait_enrolled(p));
    let mut apps: Vec<App> = mesh.iter().chain(&plain).map(serve).collect::<Result<_>>()?;
    for p in &plain {
        for (listen, to) in [(envoy::HTTP_IN_TLS, 8080), (envoy::HTTP2_IN_TLS, 9002)] {
            let (listen, to) = (format!("0.0.0.0:{listen}"), format!("127.0.0.1:{to}"));
            let args = ["relay", "--listen", &listen, "--to", &to, "--tls", "mutual"];
            apps.push(App(p.command(bin("meshbench")).args(args).stderr(Stdio::null()).spawn()?));
        }
    }
    let mut services = String::new();
    for (i, v) in ["v1", "v2"].iter().enumerate() {
        write!(
            services,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: shop-{v}, namespace: app}}\nspec: {{clusterIP: 10.96.1.{}, selector: {{version: {v}}}, ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: grpc, port: 81, targetPort: 9002}}]}}\n",
            i + 1
        )?;
    }
    w.apply("services", &services);
    // The same for all proxies.
    let site = Ca::new().pair("split.example");
    if how.protocols {
        w.apply("site", &pki::secret("edge", SITE, &site));
    }
    let collector = (!o.skips("traced") || o.names("gone")).then(|| collector(&mut w));
    // By variant, one for each process of a build.
    let mut proxies: Vec<Vec<Proxy>> = vec![];
    let ours = || Some(bin("karst-waypoint"));
    let named = |variant: &str| ours().filter(|_| o.names(variant));
    let other = o.text("waypoint").map(PathBuf::from);
    let builds = [
        ("karst", ours()),
        ("traced", ours()),
        ("gone", named("gone")),
        ("bookless", named("bookless")),
        ("one-thread", named("one-thread")),
        ("other", other),
    ];
    for (variant, program) in builds {
        if let Some(p) = program.filter(|_| !o.skips(variant)) {
            println!("{variant}: {} times a gateway with {} routes, and a waypoint", o.processes, how.routes());
            let before = proxies.iter().map(Vec::len).sum::<usize>();
            let start = |i: usize| karst(&mut w, variant, &p, before + i, how);
            proxies.push((0..o.processes).map(start).collect::<Result<_>>()?);
        }
    }
    if !o.skips("envoy") {
        println!("envoy: a gateway with {} routes, and a waypoint", how.routes());
        proxies.push(vec![beside(&mut w, &envoy, (&mesh, &plain), &site, how)?]);
    }
    let mut s = Samples::default();
    for p in proxies.iter().flatten() {
        s.add("idle", &format!("{} gateway", p.variant), "MiB RSS", rss_kib(p.gateway.1) / 1024.0);
        s.add("idle", &format!("{} waypoint", p.variant), "MiB RSS", rss_kib(p.waypoint.1) / 1024.0);
    }
    for case in &cases {
        for p in proxies.iter().flatten() {
            works(p, if case.gateway.is_some() { &outside } else { &client }, case)?;
        }
    }
    for r in 0..o.rounds {
        for case in &cases {
            for k in 0..proxies.len() {
                // The order turns from round to round, so that no variant always comes after the same other.
                let processes = &proxies[(k + r) % proxies.len()];
                let p = &processes[r % processes.len()];
                println!("round {} of {}: {} {}", r + 1, o.rounds, case.name, p.variant);
                let from = if case.gateway.is_some() { &outside } else { &client };
                let ((to, pid), what) = (case.at(p), (case.kind, case.connections, case.more.as_slice()));
                measure(&mut s, o, &case.name, p.variant, (from, to), &[pid], what)?;
                if let Some(collector) = collector.as_ref().filter(|_| p.variant == "traced") {
                    ensure!(!collector.take().is_empty(), "{}: no spans have come to the collector", case.name);
                }
                if let Some(pods) = p.pods.as_ref().filter(|_| p.variant == "gone") {
                    let pod = &pods[usize::from(case.gateway.is_none())];
                    let (_, page) = w.waypoint_page(pod, 15020, "/metrics")?;
                    let mut dropped = page.lines().filter(|line| line.starts_with("karst_trace_spans_dropped_total{"));
                    ensure!(dropped.any(|line| !line.ends_with(" 0")), "{}: no spans were dropped", case.name);
                }
            }
        }
    }
    for p in proxies.iter().flatten() {
        s.add("after", &format!("{} gateway", p.variant), "MiB RSS", rss_kib(p.gateway.1) / 1024.0);
        s.add("after", &format!("{} waypoint", p.variant), "MiB RSS", rss_kib(p.waypoint.1) / 1024.0);
    }
    Ok(s)
}

impl How {
    /// Are the usual cases measured?
    fn is_usual(self) -> bool {
        !self.wide && !self.protocols
    }

    fn routes(self) -> usize {
        if self.is_usual() { MANY } else { 0 }
    }
}

impl<'a> Case<'a> {
    /// Requests one after the other on each of so many connections.
    fn new(name: String, gateway: Option<u16>, connections: usize, more: &[&'a str]) -> Self {
        Self { name, gateway, kind: "rr", connections, more: more.to_vec() }
    }

    /// Where it calls a proxy, and which process that is.
    fn at(&self, p: &Proxy) -> (SocketAddr, u32) {
        match self.gateway {
            Some(port) => (SocketAddr::new(p.gateway.0, port), p.gateway.1),
            None => p.waypoint,
        }
    }
}

/// What there is to be measured. `few`, `many`: the paths of the last rules of both hosts with routes.
fn cases<'a>(how: How, few: &'a str, many: &'a str) -> Vec<Case<'a>> {
    let mut out = vec![];
    for (name, gateway, host) in [("gateway", Some(PORT), "split.example"), ("waypoint", None, "shop")] {
        if how.is_usual() {
            out.extend([32, 1].map(|n| Case::new(format!("{name}-{n}"), gateway, n, &["--host", host])));
        }
        for n in CONNECTIONS.into_iter().filter(|_| how.wide) {
            let more = |size| ["--host", host, "--size", size];
            out.extend(BODIES.map(|size| Case::new(format!("{name}-{n}-{size}"), gateway, n, &more(size))));
        }
    }
    if how.is_usual() {
        for (n, host, path) in [(FEW, "few.example", few), (MANY, "many.example", many)] {
            out.push(Case::new(format!("routes-{n}"), Some(PORT), 32, &["--host", host, "--path", path]));
        }
    }
    if how.protocols {
        let by_http2 = ["--host", "split.example", "--proto", "h2"];
        out.push(Case::new("gateway-h2-32".into(), Some(PORT), 32, &by_http2));
        let by_grpc = ["--host", "grpc.example", "--path", "/bench.Echo/Once", "--proto", "grpc", "--size", "100"];
        out.push(Case::new("gateway-grpc-32".into(), Some(PORT), 32, &by_grpc));
        let by_tls = ["--host", "split.example", "--tls"];
        out.push(Case::new("gateway-tls-32".into(), Some(TLS_PORT), 32, &by_tls));
        out.push(Case { kind: "crr", ..Case::new("gateway-tls-crr".into(), Some(TLS_PORT), 16, &by_tls) });
    }
    out
}

/// Takes spans; and the mesh knows it as the provider `spans`, which nobody uses who is not told to. At the port of the provider
/// `gone` nobody listens.
fn collector(w: &mut World) -> Web {
    let pod = w.pod(PodSpec::new("plain", "collector", 1).label("app", "collector"));
    w.apply("collector", "apiVersion: v1\nkind: Service\nmetadata: {name: collector, namespace: plain}\nspec: {clusterIP: 10.96.3.1, selector: {app: collector}, ports: [{name: http, port: 4318}, {name: http-gone, port: 4319}]}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'extensionProviders: [{name: spans, opentelemetry: {service: collector.plain.svc.cluster.local, port: 4318, http: {path: /v1/traces}}}, {name: gone, opentelemetry: {service: collector.plain.svc.cluster.local, port: 4319, http: {path: /v1/traces}}}]'}\n");
    Web::start(&pod, 4318, |_| (200, vec![], vec![]))
}

/// All spans of a Gateway's.
fn traced(namespace: &str, gateway: &str, provider: &str) -> String {
    format!(
        "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {gateway}, namespace: {namespace}}}\nspec: {{targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: {gateway}}}], tracing: [{{providers: [{{name: {provider}}}], randomSamplingPercentage: 100}}]}}\n"
    )
}

/// A short run without errors: until then nothing is measured.
fn works(p: &Proxy, client: &Pod, case: &Case<'_>) -> Result<()> {
    let (mut said, to) = (String::new(), case.at(p).0.to_string());
    for _ in 0..40 {
        let args = [case.kind, "--to", &to, "--proto", "http", "--secs", "0.2", "--warmup", "0.1"];
        let out = client.command(bin("meshbench")).args([&args[..], case.more.as_slice()].concat()).output()?;
        said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        if serde_json::from_slice::<Value>(&out.stdout).is_ok_and(|j| j["errors"] == json!({}) && j["requests"] != 0) {
            return Ok(());
        }
    }
    anyhow::bail!("{} {}: no answers: {said}", case.name, p.variant)
}

/// Rules `/rI/` of a host, to v1; as HTTPRoutes for a gateway.
fn many(gateway: &str, host: &str, n: usize) -> String {
    let mut text = String::new();
    for from in (0..n).step_by(RULES) {
        let rules: Vec<String> = (from..(from + RULES).min(n))
            .map(|i| format!("{{matches: [{{path: {{type: PathPrefix, value: /r{i}}}}}], backendRefs: [{{name: shop-v1, port: 80}}]}}"))
            .collect();
        let _ = write!(
            text,
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {gateway}-{n}-{from}, namespace: app}}\nspec: {{parentRefs: [{{name: {gateway}, namespace: edge}}], hostnames: [{host}], rules: [{}]}}\n",
            rules.join(", ")
        );
    }
    text
}

fn karst(w: &mut World, variant: &'static str, program: &Path, nth: usize, how: How) -> Result<Proxy> {
    let name = &format!("{variant}-{nth}");
    let single = (variant == "one-thread").then_some(("KARST_WORKER_THREADS", "1"));
    let bookless = (variant == "bookless").then_some(("KARST_FLOWS", "false"));
    let access_log = ("KARST_ACCESS_LOG", if how.access_log { "true" } else { "false" });
    let all = [("KARST_WORKER_THREADS", "2"), access_log];
    let knobs: Vec<(&str, &str)> = all.into_iter().chain(single).chain(bookless).collect();
    let by_port = |port: u16| {
        format!(
            "[{{backendRefs: [{{name: shop-v1, port: {port}, weight: 90}}, {{name: shop-v2, port: {port}, weight: 10}}]}}]"
        )
    };
    let split = by_port(80);
    let all = "allowedRoutes: {namespaces: {from: All}}";
    let edge = match how.protocols {
        true => format!(
            ", {{name: edge, port: {TLS_PORT}, protocol: HTTPS, tls: {{certificateRefs: [{{name: {SITE}}}]}}, {all}}}"
        ),
        false => String::new(),
    };
    let mut text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: edge}}\nspec: {{gatewayClassName: istio, listeners: [{{name: web, port: {PORT}, protocol: HTTP, {all}}}{edge}]}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: app}}\nspec: {{parentRefs: [{{name: {name}, namespace: edge}}], hostnames: [split.example], rules: {split}}}\n"
    );
    if how.is_usual() {
        text += &many(name, "few.example", FEW);
        text += &many(name, "many.example", MANY);
    }
    if how.protocols {
        let rules = by_port(81);
        text += &format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}-grpc, namespace: app}}\nspec: {{parentRefs: [{{name: {name}, namespace: edge}}], hostnames: [grpc.example], rules: {rules}}}\n"
        );
    }
    w.apply(&format!("gateway-{name}"), &text);
    let gateway = w.gateway_pod("edge", name, 0, &[("gateway.networking.k8s.io/gateway-name", name)]);
    w.start_waypoint_of(&gateway, program, &knobs);
    let (vip, service) = bound(w, name, nth);
    w.apply(
        &format!("split-{name}"),
        &format!("{service}---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop-{name}, namespace: app}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: shop-{name}}}], rules: {split}}}\n"),
    );
    let way = &format!("{name}-way");
    let provider = match variant {
        "traced" => Some("spans"),
        "gone" => Some("gone"),
        _ => None,
    };
    if let Some(provider) = provider {
        w.apply(&format!("traced-{name}"), &(traced("edge", name, provider) + &traced("app", way, provider)));
    }
    let waypoint = w.waypoint_pod("app", way, 0);
    w.start_waypoint_of(&waypoint, program, &knobs);
    Ok(Proxy {
        variant,
        gateway: (gateway.ip, w.waypoint_pid(&gateway)),
        waypoint: (vip, w.waypoint_pid(&waypoint)),
        pods: Some([gateway, waypoint]),
        _apps: vec![],
    })
}

/// A service of both releases that is bound to the waypoint NAME-way: where clients call it, and its manifest.
fn bound(w: &World, name: &str, nth: usize) -> (SocketAddr, String) {
    let ip = format!("10.96.2.{}", nth + 1);
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: shop-{name}, namespace: app, labels: {{istio.io/use-waypoint: {name}-way}}}}\nspec: {{clusterIP: {ip}, selector: {{app: shop}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n"
    );
    let _ = w.write(&format!("split-{name}"), &text);
    (SocketAddr::new(ip.parse().expect("an address"), 80), text)
}

/// Envoy. `site`: what it shows where it ends TLS.
fn beside(
    w: &mut World,
    program: &Path,
    (mesh, plain): (&[Pod; 2], &[Pod; 2]),
    site: &(String, String),
    how: How,
) -> Result<Proxy> {
    let gateway = w.gateway_pod("edge", "envoy", 0, &[]);
    let (vip, _) = bound(w, "envoy", 99);
    let waypoint = w.waypoint_pod("app", "envoy-way", 0);
    w.settle();
    let edge = envoy::certificate(&w.dir, "edge", "envoy")?;
    let app = envoy::certificate(&w.dir, "app", "envoy-way")?;
    let log = |name: &str| how.access_log.then(|| w.dir.join("logs").join(format!("envoy-{name}-access.log")));
    let routes = [FEW.min(how.routes()), how.routes()];
    let site = envoy::Files::new(&w.dir, SITE, (&site.0, &site.1))?;
    let tls = how.protocols.then_some((TLS_PORT, &site));
    let as_gateway = envoy::Gateway { servers: plain, own: &edge, log: log("gateway"), port: PORT, routes, edge: tls };
    let files = [
        ("gateway", &gateway, as_gateway.config()),
        ("waypoint", &waypoint, envoy::waypoint(mesh, &app, log("waypoint"))),
    ];
    let mut apps = vec![];
    for ((name, pod, config), port) in files.into_iter().zip([PORT, 15008]) {
        let file = w.dir.join(format!("envoy-{name}.json"));
        fs::write(&file, config.to_string())?;
        let log = fs::File::create(w.dir.join("logs").join(format!("envoy-{name}.log")))?;
        let args = ["--concurrency", "2", "--disable-hot-restart", "--log-level", "warning", "-c"];
        let c = pod.command(program).args(args).arg(&file).stdout(Stdio::null()).stderr(log).spawn()?;
        apps.push(App(c));
        wait_for(&format!("Envoy listens as {name}"), PATIENCE, || {
            pod.netns().run(|| TcpStream::connect(("127.0.0.1", port))).ok()?.ok()
        });
    }
    let pids: Vec<u32> = apps.iter().map(|a| a.0.id()).collect();
    Ok(Proxy { variant: "envoy", gateway: (gateway.ip, pids[0]), waypoint: (vip, pids[1]), pods: None, _apps: apps })
}
