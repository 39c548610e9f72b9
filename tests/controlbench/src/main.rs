//! `cargo xtask bench controller`: the controller's memory, its time to be in sync, and the delay from a pod's change at the
//! API server to its push at a ztunnel. The controller is the real binary; the API server and the ztunnels are
//! simulated, by this process, on loopback, so their work is in the figures too (two cores for all).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test's failure is a panic")]

mod api;
mod objects;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use clap::Parser;
use karst_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    ads::{DeltaDiscoveryRequest, Node, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient},
};
use objects::Size;
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tonic::{
    Request,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};

#[derive(Parser)]
struct Args {
    /// Services.
    #[arg(long, default_value_t = 1000)]
    services: usize,
    /// Pods.
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// Nodes, each with a ztunnel that subscribes.
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// Changes of a pod that are timed.
    #[arg(long, default_value_t = 300)]
    changes: usize,
    /// Also write the rows as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
}

struct Controller(Child, PathBuf);
impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = fs::remove_dir_all(&self.1);
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(args))
}

async fn run(a: Args) -> Result<()> {
    ensure!(
        a.services > 0 && a.nodes > 0 && a.pods >= a.services,
        "at least one service and node, and a pod for each service"
    );
    let size = Size { namespaces: 50.min(a.services), services: a.services, pods: a.pods, nodes: a.nodes };
    println!("{} services, {} pods, {} nodes", a.services, a.pods, a.nodes);
    let api = Arc::new(objects::mesh(size));
    let (l, at) = api::listen().await?;
    tokio::spawn(api.clone().serve(l));

    let begun = Instant::now();
    let (controller, port) = start(at)?;
    let pid = controller.0.id();
    let mut first = wait_for_stream(&api, port, "token-0").await?;
    let subscribed = begun.elapsed();
    let resources = until_quiet(&mut first, size).await;
    let synced = begun.elapsed();
    println!("in sync after {:.2} s: {resources} resources", synced.as_secs_f64());
    ensure!(resources >= a.pods + a.services, "only {resources} resources have come");
    let rss_alone = rss_mib(pid);

    let mut others = Vec::new();
    for i in 1..a.nodes {
        others.push(wait_for_stream(&api, port, &format!("token-{i}")).await?);
    }
    for o in &mut others {
        until_quiet(o, size).await;
    }
    // They go on reading, as ztunnels do.
    for mut o in others {
        tokio::spawn(async move { while o.recv().await.is_some() {} });
    }
    println!("{} ztunnels have everything after {:.1} s", a.nodes, begun.elapsed().as_secs_f64());
    let cpu_before = cpu_s(pid);
    let mut delays = Vec::new();
    for k in 0..a.changes {
        // Pods in an order that is spread over everything; each goes from ready to not ready.
        let i = (k * 7919) % a.pods;
        let p = size.place(i);
        let uid = format!("Kubernetes//Pod/{}/{}", p.namespace, p.name);
        let event = |o: Value| format!("{}\n", json!({ "type": "MODIFIED", "object": o }));
        let mut o = objects::pod(&p, false, k + 2);
        (o["kind"], o["apiVersion"]) = (json!("Pod"), json!("v1"));
        let mut s = objects::slice(size, i % a.services, Some((i, false)), k + 2);
        (s["kind"], s["apiVersion"]) = (json!("EndpointSlice"), json!("discovery.k8s.io/v1"));
        let (pod, slice) = (event(o), event(s));
        let sent = Instant::now();
        api.events.send(("pods", pod)).ok().context("nobody watches")?;
        api.events.send(("endpointslices", slice)).ok().context("nobody watches")?;
        let came = async {
            while let Some(names) = first.recv().await {
                if names.contains(&uid) {
                    return true;
                }
            }
            false
        };
        let came = tokio::time::timeout(Duration::from_secs(10), came).await;
        ensure!(matches!(came, Ok(true)), "the change of {uid} has not come");
        delays.push(sent.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let cpu = (cpu_s(pid) - cpu_before) / a.changes as f64 * 1e3;
    delays.sort_by(f64::total_cmp);
    let at = |q: f64| delays[((delays.len() - 1) as f64 * q) as usize];
    let rows = [
        ("sync: first ztunnel has everything", "s", synced.as_secs_f64(), 2.0),
        ("  of which until discovery answers", "s", subscribed.as_secs_f64(), f64::NAN),
        ("memory, one ztunnel", "MiB RSS", rss_alone, f64::NAN),
        ("memory, all ztunnels", "MiB RSS", rss_mib(pid), 150.0),
        ("pod change to push, p50", "ms", at(0.5), f64::NAN),
        ("pod change to push, p99", "ms", at(0.99), 20.0),
        ("pod change to push, max", "ms", at(1.0), f64::NAN),
        ("CPU for each change, all ztunnels", "ms", cpu, f64::NAN),
    ];
    println!("\n{:<36} {:>10} {:<8} {:>8}", "what", "measured", "unit", "goal");
    for (what, unit, v, goal) in &rows {
        let goal = if goal.is_nan() { String::new() } else { format!("{goal}") };
        println!("{what:<36} {v:>10.2} {unit:<8} {goal:>8}");
    }
    if let Some(p) = a.report {
        let row = |(case, unit, v, _): &(&str, &str, f64, f64)| json!({ "case": case.trim(), "variant": "karst", "unit": unit, "median": v, "low": v, "high": v });
        fs::write(p, serde_json::to_string_pretty(&rows.iter().map(row).collect::<Vec<_>>())?)?;
    }
    Ok(())
}

fn start(api: std::net::SocketAddr) -> Result<(Controller, u16)> {
    let dir = std::env::temp_dir().join(format!("karst-bench-controller-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let config = format!(
        "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: 'http://{api}'}}}}]\nusers: [{{name: u, user: {{}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
    );
    fs::write(dir.join("kubeconfig"), config)?;
    let free = || -> Result<u16> { Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()) };
    let port = free()?;
    let program = std::env::current_exe()?.with_file_name("karst-controller");
    let mut c = Command::new(&program);
    c.env("KUBECONFIG", dir.join("kubeconfig"))
        .args(["--source", "kubernetes", "--log-level", "warn", "--data-dir"])
        .arg(&dir)
        .arg(format!("--grpc-addr=127.0.0.1:{port}"))
        .arg(format!("--webhook-addr=127.0.0.1:{}", free()?))
        .arg(format!("--monitoring-addr=127.0.0.1:{}", free()?))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = c.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    Ok((Controller(child, dir), port))
}

/// Subscribes as a node's ztunnel; gives the names in each response.
async fn wait_for_stream(api: &api::Api, port: u16, token: &str) -> Result<mpsc::UnboundedReceiver<Vec<String>>> {
    let end = Instant::now() + Duration::from_secs(60);
    let channel = loop {
        if let Some(root) = api.root() {
            let pem = base64::prelude::BASE64_STANDARD.decode(&root).context("the controller's Secret")?;
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(pem))
                .domain_name("istiod.istio-system.svc");
            let e = Endpoint::from_shared(format!("https://127.0.0.1:{port}"))?.tls_config(tls)?;
            if let Ok(c) = e.connect().await {
                break c;
            }
        }
        ensure!(Instant::now() < end, "the controller does not answer");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let (tx, rx) = mpsc::channel(16);
    let node = Node { id: token.into(), client_features: vec!["karst.parts".into()], ..Node::default() };
    for t in [ADDRESS_TYPE, AUTHORIZATION_TYPE] {
        let r = DeltaDiscoveryRequest { node: Some(node.clone()), type_url: t.into(), ..Default::default() };
        tx.send(r).await?;
    }
    let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(rx));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(200 << 20);
    let mut stream = client.delta_aggregated_resources(request).await?.into_inner();
    let (out, names) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(Some(m)) = stream.message().await {
            let ack = DeltaDiscoveryRequest { type_url: m.type_url, response_nonce: m.nonce, ..Default::default() };
            let names = m.resources.into_iter().map(|r| r.name).collect();
            if tx.send(ack).await.is_err() || out.send(names).is_err() {
                return;
            }
        }
    });
    Ok(names)
}

/// Reads until the whole mesh has come.
async fn until_quiet(s: &mut mpsc::UnboundedReceiver<Vec<String>>, size: Size) -> usize {
    let mut n = 0;
    while n < size.pods + size.services + size.nodes {
        match tokio::time::timeout(Duration::from_secs(10), s.recv()).await {
            Ok(Some(names)) => n += names.len(),
            _ => return n,
        }
    }
    n
}

fn rss_mib(pid: u32) -> f64 {
    let t = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = t.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

fn cpu_s(pid: u32) -> f64 {
    let t = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let f: Vec<&str> = t.rsplit_once(')').map_or("", |x| x.1).split_whitespace().collect();
    let at = |i: usize| f.get(i).and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0);
    (at(11) + at(12)) / 100.0
}
