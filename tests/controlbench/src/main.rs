//! `cargo xtask bench controller`: the controller's memory, its time to be in sync, and the delay from a pod's change at the
//! API server to its push at a ztunnel. The controller is the real binary; the API server and the ztunnels are
//! simulated, by this process, on loopback, so their work is in the figures too (two cores for all).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test's failure is a panic")]

mod api;
mod load;
mod objects;
mod routes;
mod rows;
mod ztunnels;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures_util::{StreamExt, TryStreamExt, stream};
use load::Book;
use objects::{Pods, Size};
use rows::{Row, at_quantile, tell};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use ztunnels::{Told, Ztunnels, until};

#[derive(Parser)]
struct Args {
    /// The large mesh: 10,000 services, 100,000 pods, 5,000 nodes whose ztunnels ask for what 20 services are (but the first,
    /// which is told of all), 1,000 changes a second. Each can be given in place.
    #[arg(long)]
    large: bool,
    /// Services [default: 1000].
    #[arg(long)]
    services: Option<usize>,
    /// Pods [default: 10000].
    #[arg(long)]
    pods: Option<usize>,
    /// Nodes, each with a ztunnel that subscribes [default: 100].
    #[arg(long)]
    nodes: Option<usize>,
    /// Services that each ztunnel but the first asks for; 0: they are told of the whole mesh [default: 0].
    #[arg(long)]
    called: Option<usize>,
    /// Changes of a pod that are timed, one after the other, if there is no rate.
    #[arg(long, default_value_t = 300)]
    changes: usize,
    /// Changes of pods in a second, whatever becomes of those before; 0: one after the other [default: 0].
    #[arg(long)]
    rate: Option<usize>,
    /// Seconds of that.
    #[arg(long, default_value_t = 10)]
    seconds: usize,
    /// Measure how long it takes to compile 5,000 VirtualServices and 20,000 HTTPRoutes of 10,000 services, and to compile one that
    /// is edited (`--changes` of them), instead of all else.
    #[arg(long)]
    routes: bool,
    /// Ztunnels that come at once at the start. (Connections that have not shown who they are, of one address: the controller takes
    /// some hundred.)
    #[arg(long, default_value_t = 64)]
    at_once: usize,
    /// Another build of the controller in place of the one beside this program (not with `--routes`, which is a library's). Nobody asks
    /// for pod ranges then, which older builds do not serve: compare two that are both given so.
    #[arg(long, value_name = "PATH", conflicts_with = "routes")]
    controller: Option<PathBuf>,
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
    let pick = |given: Option<usize>, large, usual| given.unwrap_or(if a.large { large } else { usual });
    let services = pick(a.services, 10_000, if a.routes { 10_000 } else { 1000 });
    let size = Size {
        namespaces: 50.min(services),
        services,
        pods: pick(a.pods, 100_000, 10_000),
        nodes: pick(a.nodes, 5000, 100),
    };
    let (called, rate) = (pick(a.called, 20, 0), pick(a.rate, 1000, 0));
    let goal = |large: Option<f64>, usual| if a.large { large } else { usual };
    ensure!(size.fits(), "a pod for each service at least, 250 for each node at most, 60,000 services, 30,000 nodes");
    if a.routes {
        return tell(&routes::run(size, a.changes)?, a.report.as_deref());
    }
    ensure!(a.changes.max(rate * a.seconds) <= size.pods, "each pod changes once at most: fewer changes, or more pods");
    ensure!(called <= size.services, "--called is more than there are services");
    let open = karst_rt::process::raise_descriptor_limit()?;
    ensure!(open > size.nodes as u64 + 100, "{open} descriptors are too few for {} ztunnels", size.nodes);
    println!("{services} services, {} pods, {} nodes", size.pods, size.nodes);
    let api = Arc::new(objects::mesh(size));
    let (l, at) = api::listen().await?;
    tokio::spawn(api.clone().serve(l));

    let begun = Instant::now();
    let (controller, port) = start(at, a.controller.as_deref())?;
    let pid = controller.0.id();
    let ztunnels = Ztunnels::new(&api, port, a.controller.is_some()).await?;
    let mut first = ztunnels.subscribe(0, None).await?;
    let subscribed = begun.elapsed();
    let all = size.pods + size.services + size.nodes;
    let resources = until(&mut first, all).await;
    let synced = begun.elapsed();
    println!("in sync after {:.2} s: {resources} addresses", synced.as_secs_f64());
    ensure!(resources >= all, "only {resources} of {all} addresses have come");
    let rss_alone = status_mib(pid, "VmRSS:");

    let book = Arc::new(Mutex::new(Book::new(size)));
    let others = others(&ztunnels, size, (called, a.at_once.max(1)), &book).await?;
    // They go on reading, as ztunnels do.
    for mut told in others {
        let book = book.clone();
        tokio::spawn(async move {
            while let Some(heard) = told.recv().await {
                load::open(&book).heard(&heard);
            }
        });
    }
    println!("{} ztunnels have everything after {:.1} s", size.nodes, begun.elapsed().as_secs_f64());
    let mut rows: Vec<Row> = vec![
        ("sync: first ztunnel has everything", "s", synced.as_secs_f64(), goal(None, Some(2.0))),
        ("  of which until discovery answers", "s", subscribed.as_secs_f64(), None),
        ("memory, one ztunnel", "MiB RSS", rss_alone, None),
        ("memory, all ztunnels", "MiB RSS", status_mib(pid, "VmRSS:"), goal(Some(1024.0), Some(150.0))),
    ];
    let cpu_before = cpu_s(pid);
    if rate == 0 {
        let mut delays = one_by_one(&api, size, a.changes, &mut first).await?;
        delays.sort_by(f64::total_cmp);
        rows.push(("pod change to push, p50", "ms", at_quantile(&delays, 0.5), None));
        rows.push(("pod change to push, p99", "ms", at_quantile(&delays, 0.99), goal(Some(100.0), Some(20.0))));
        rows.push(("pod change to push, max", "ms", at_quantile(&delays, 1.0), None));
        rows.push((
            "CPU for each change, all ztunnels",
            "ms",
            (cpu_s(pid) - cpu_before) / a.changes as f64 * 1e3,
            None,
        ));
    } else {
        let whole = Arc::new(Mutex::new(Book::new(size)));
        load::open(&whole).follows(0..size.pods);
        let of_first = whole.clone();
        tokio::spawn(async move {
            while let Some(heard) = first.recv().await {
                load::open(&of_first).heard(&heard);
            }
        });
        println!("{rate} changes a second for {} s", a.seconds);
        let took = load::run(&api, size, &[book.clone(), whole.clone()], (rate, a.seconds)).await?.as_secs_f64();
        let cpu = cpu_s(pid) - cpu_before;
        let missing = load::open(&book).missing() + load::open(&whole).missing();
        ensure!(missing == 0, "{missing} pushes have not come within 10 s of the last change");
        let lost = api.lost.load(std::sync::atomic::Ordering::Relaxed);
        ensure!(lost == 0, "the controller was too slow for {lost} events");
        let (delays, of_whole) = (load::open(&book).delays(), load::open(&whole).delays());
        let changes = (rate * a.seconds) as f64;
        rows.push(("changes", "per s", changes / took, None));
        rows.push(("pushes of them", "per s", (delays.len() + load::open(&whole).pushes()) as f64 / took, None));
        rows.push(("pod change to push, p50", "ms", at_quantile(&delays, 0.5), None));
        rows.push(("pod change to push, p99", "ms", at_quantile(&delays, 0.99), goal(Some(100.0), None)));
        rows.push(("pod change to push, max", "ms", at_quantile(&delays, 1.0), None));
        rows.push(("  to who is told of all, p99", "ms", at_quantile(&of_whole, 0.99), goal(Some(100.0), None)));
        rows.push(("CPU for each change, all ztunnels", "ms", cpu / changes * 1e3, None));
        rows.push(("memory after that", "MiB RSS", status_mib(pid, "VmRSS:"), goal(Some(1024.0), None)));
    }
    rows.push(("memory, the most there was", "MiB RSS", status_mib(pid, "VmHWM:"), goal(Some(1024.0), None)));
    tell(&rows, a.report.as_deref())
}

/// Subscribes for all nodes but the first, and waits until each has what it is to have.
async fn others(
    ztunnels: &Ztunnels,
    size: Size,
    (called, at_once): (usize, usize),
    book: &load::Shared,
) -> Result<Vec<Told>> {
    let mut of_node: Vec<Vec<usize>> = vec![vec![]; size.nodes];
    (0..size.pods).for_each(|i| of_node[size.seat(i).0].push(i));
    let of_node = &of_node;
    let subscribe = move |node: usize| async move {
        if called == 0 {
            let mut told = ztunnels.subscribe(node, None).await?;
            let (came, all) = (until(&mut told, size.pods + size.services + size.nodes).await, size.pods);
            ensure!(came >= all, "node {node}: only {came} addresses have come");
            load::open(book).follows(0..all);
            return Ok(told);
        }
        let services: BTreeSet<usize> = (0..called).map(|k| (node * 13 + k * 997) % size.services).collect();
        // As it asks when a connection is made: what is at the address; then the service that is, with its endpoints.
        let names = services.iter().map(|s| size.service(*s)).flat_map(|(ip, key)| [format!("/{ip}"), key]).collect();
        let mut pods: BTreeSet<usize> = services.iter().flat_map(|s| size.of_service(*s)).collect();
        pods.extend(&of_node[node]);
        let mut told = ztunnels.subscribe(node, Some(names)).await?;
        // Its own pod is on the node, too.
        let all = pods.len() + services.len() + 1;
        let came = until(&mut told, all).await;
        ensure!(came == all, "node {node}: {came} addresses have come, not {all}");
        load::open(book).follows(pods);
        Ok(told)
    };
    stream::iter(1..size.nodes).map(subscribe).buffer_unordered(at_once).try_collect().await
}

/// Changes one pod after the other; gives how long each took to the stream, in ms.
async fn one_by_one(api: &api::Api, size: Size, changes: usize, first: &mut Told) -> Result<Vec<f64>> {
    let pods = Pods::new();
    let mut delays = Vec::new();
    for k in 0..changes {
        let i = load::order(size, k);
        let uid = size.place(i).uid();
        let sent = Instant::now();
        load::change(api, &pods, size, i, |_| true, k)?;
        let came = async {
            while let Some(heard) = first.recv().await {
                if heard.names.contains(&uid) {
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
    Ok(delays)
}

fn start(api: std::net::SocketAddr, program: Option<&Path>) -> Result<(Controller, u16)> {
    let dir = std::env::temp_dir().join(format!("karst-bench-controller-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let config = format!(
        "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: 'http://{api}'}}}}]\nusers: [{{name: u, user: {{}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
    );
    fs::write(dir.join("kubeconfig"), config)?;
    let free = || -> Result<u16> { Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()) };
    let port = free()?;
    let program = match program {
        Some(program) => program.to_path_buf(),
        None => std::env::current_exe()?.with_file_name("karst-controller"),
    };
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

/// A figure of a process's memory, by its name in /proc.
fn status_mib(pid: u32, name: &str) -> f64 {
    let t = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = t.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

fn cpu_s(pid: u32) -> f64 {
    let t = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let f: Vec<&str> = t.rsplit_once(')').map_or("", |x| x.1).split_whitespace().collect();
    let at = |i: usize| f.get(i).and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0);
    (at(11) + at(12)) / 100.0
}
