//! `cargo xtask bench l4`: the cases of docs/performance.md, all variants interleaved in one run, medians and spread.
//!
//! Variants: `raw` (pod to pod), `relay` and `splice` (a plain TCP hop in user space in each pod's namespace, as many as
//! ztunnel adds; one on the same node), `tls-pipe` (the same with TLS between the nodes, one session for each connection, rustls's
//! own stream), `karst`, and with `--ztunnel=PATH` `other`: a world of its own with that ztunnel, driven by our agent. CPU is that of the relays or ztunnels alone, from /proc.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use anyhow::{Context, Result};
use karst_world::{Options, Pod, PodSpec, World, bin, wait_for};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Stdio},
    time::Duration,
};

struct App(Child);
impl Drop for App {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One way from a client to a server.
struct Way {
    variant: &'static str,
    client: Pod,
    bulk: SocketAddr,
    http: SocketAddr,
    /// Processes whose CPU counts.
    cpu: Vec<u32>,
    _relays: Vec<App>,
}

#[derive(Default)]
struct Samples(BTreeMap<(String, String, &'static str), Vec<f64>>);

impl Samples {
    fn add(&mut self, case: &str, variant: &str, unit: &'static str, v: f64) {
        self.0.entry((case.into(), variant.into(), unit)).or_default().push(v);
    }
    fn rows(&self) -> Vec<Value> {
        let row = |((case, variant, unit), v): (&(String, String, &'static str), &Vec<f64>)| {
            let mut v = v.clone();
            v.sort_by(f64::total_cmp);
            let median = (v[(v.len() - 1) / 2] + v[v.len() / 2]) / 2.0;
            serde_json::json!({ "case": case, "variant": variant, "unit": unit, "median": median, "low": v[0], "high": v[v.len() - 1] })
        };
        self.0.iter().map(row).collect()
    }
}

fn arg(name: &str) -> Option<String> {
    std::env::args().find_map(|a| a.strip_prefix(&format!("--{name}=")).map(String::from))
}

/// What it takes, each as --NAME=VALUE; `cargo xtask bench l4 --help` explains them.
const ARGS: [&str; 6] = ["rounds", "secs", "only", "variants", "ztunnel", "report"];

fn main() -> Result<()> {
    for a in std::env::args().skip(1) {
        let known =
            ARGS.iter().any(|n| a.strip_prefix("--").and_then(|a| a.split_once('=')).is_some_and(|(k, _)| k == *n));
        anyhow::ensure!(known, "{a}: use --NAME=VALUE with one of {}", ARGS.join(", "));
    }
    let rounds: usize = arg("rounds").map_or(5, |r| r.parse().expect("--rounds=N"));
    let secs = arg("secs").unwrap_or("3".into());
    let only = arg("only").unwrap_or_default();
    let variants = arg("variants").unwrap_or_default();
    let mut w = World::start(Options::default())?;
    let mesh = Mesh::start(&mut w, true)?;
    let plain = Mesh::start(&mut w, false)?;
    // Another build, or a peer's that knows the listeners of our ZDS, beside ours: its idle processes cost nothing.
    let mut beside = arg("ztunnel")
        .map(|path| World::start(Options { ztunnel_bin: Some(path.into()), ..Options::default() }))
        .transpose()?;
    let other = beside.as_mut().map(|w| Mesh::start(w, true)).transpose()?;
    let zt = [w.ztunnel_pid(0), w.ztunnel_pid(1)];
    let mut ways: BTreeMap<&str, Vec<Way>> = BTreeMap::new();
    for (place, i) in [("cross", 2), ("same", 1)] {
        let mut v = vec![plain.way("raw", i, vec![])];
        v.push(relays("relay", "read", place, &plain.pods, i)?);
        v.push(relays("splice", "splice", place, &plain.pods, i)?);
        if place == "cross" {
            v.push(relays("tls-pipe", "read", place, &plain.pods, i)?);
        }
        v.push(mesh.way("karst", i, zt.to_vec()));
        if let (Some(m), Some(w)) = (&other, &beside) {
            v.push(m.way("other", i, vec![w.ztunnel_pid(0), w.ztunnel_pid(1)]));
        }
        ways.insert(place, v);
    }
    let mut s = Samples::default();
    memory(&mut s, "idle", zt);
    let cases = [("bulk", 1), ("bulk", 8), ("rr", 1), ("rr", 32), ("crr", 1), ("crr", 16)];
    let syn_before = stalls(&mesh.pods);
    for r in 0..rounds {
        for place in ["cross", "same"] {
            for (kind, n) in cases {
                let case = format!("{place}-{kind}-{n}");
                if !case.contains(&only) {
                    continue;
                }
                let v = &ways[place];
                for k in 0..v.len() {
                    // The order turns from round to round, so that no variant always comes after the same other.
                    let way = &v[(k + r) % v.len()];
                    if !variants.is_empty() && !variants.split(',').any(|x| x == way.variant) {
                        continue;
                    }
                    println!("round {} of {rounds}: {case} {}", r + 1, way.variant);
                    measure(&mut s, &case, kind, n, way, &secs)?;
                }
            }
        }
    }
    let syn_after = stalls(&mesh.pods);
    for (k, name) in ["PAWS drops", "SYN retransmits"].iter().enumerate() {
        s.add("all", "karst", name, (syn_after[k] - syn_before[k]) as f64);
    }
    if "idle-connections".contains(&only) || only.is_empty() {
        for n in [1000, 5000] {
            idle(&mut s, &mesh.way("karst", 2, vec![]), n, zt)?;
        }
    }
    let rows = s.rows();
    print(&rows);
    if let Some(p) = arg("report") {
        fs::write(p, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(())
}

/// A client, a server beside it and one on the other node.
struct Mesh {
    pods: Vec<Pod>,
    _servers: Vec<App>,
}

impl Mesh {
    fn start(w: &mut World, member: bool) -> Result<Self> {
        let ns = if member { "mesh" } else { "plain" };
        w.namespace(ns, member);
        let pod = |(n, i)| match member {
            true => w.mesh_pod(PodSpec::new(ns, n, i)),
            false => w.pod(PodSpec::new(ns, n, i)),
        };
        let pods: Vec<Pod> = [("client", 0), ("near", 0), ("far", 1)].map(pod).into();
        w.settle();
        let servers = pods[1..].iter().map(serve).collect::<Result<_>>()?;
        Ok(Self { pods, _servers: servers })
    }
    fn way(&self, variant: &'static str, server: usize, cpu: Vec<u32>) -> Way {
        let (client, server) = (self.pods[0].clone(), &self.pods[server]);
        Way { variant, client, bulk: server.at(9001), http: server.at(8080), cpu, _relays: vec![] }
    }
}

fn serve(p: &Pod) -> Result<App> {
    let c =
        p.command(bin("meshbench")).args(["serve", "--bind", "::", "--threads", "2"]).stderr(Stdio::null()).spawn()?;
    Ok(App(c))
}

/// Cross-node: a relay beside the client and one beside the server; same node: one.
fn relays(variant: &'static str, copy: &str, place: &str, pods: &[Pod], server: usize) -> Result<Way> {
    let base = match (variant, place) {
        ("relay", "cross") => 7000,
        ("relay", _) => 7100,
        ("splice", "cross") => 7200,
        ("splice", _) => 7300,
        _ => 7400,
    };
    let (client, server) = (&pods[0], &pods[server]);
    let mut apps = vec![];
    let mut hop = |p: &Pod, port: u16, to: SocketAddr, tls: &str| -> Result<()> {
        let mut c = p.command(bin("meshbench"));
        c.args(["relay", "--listen", &format!("0.0.0.0:{port}"), "--to", &to.to_string(), "--copy", copy]);
        if variant == "tls-pipe" {
            c.args(["--tls", tls]);
        }
        apps.push(App(c.stderr(Stdio::null()).spawn()?));
        wait_for("relay listens", Duration::from_secs(5), || {
            p.netns().run(|| std::net::TcpStream::connect(("127.0.0.1", port))).ok()?.ok()
        });
        Ok(())
    };
    for (i, port) in [(0, 9001), (1, 8080)] {
        let mut to = server.at(port);
        if place == "cross" {
            hop(server, base + 10 + i, to, "accept")?;
            to = server.at(base + 10 + i);
        }
        hop(client, base + i, to, "connect")?;
    }
    let cpu = apps.iter().map(|a| a.0.id()).collect();
    Ok(Way {
        variant,
        client: client.clone(),
        bulk: ([127, 0, 0, 1], base).into(),
        http: ([127, 0, 0, 1], base + 1).into(),
        cpu,
        _relays: apps,
    })
}

fn measure(s: &mut Samples, case: &str, kind: &str, n: usize, w: &Way, secs: &str) -> Result<()> {
    let to = if kind == "bulk" { w.bulk } else { w.http };
    let mut args = vec![
        kind.to_string(),
        "--to".into(),
        to.to_string(),
        "--conns".into(),
        n.to_string(),
        "--secs".into(),
        secs.into(),
    ];
    if kind == "rr" {
        args.extend(["--proto".into(), "http".into()]);
    }
    let before = cpu_seconds(&w.cpu);
    let out = w.client.command(bin("meshbench")).args(&args).output()?;
    let cpu = cpu_seconds(&w.cpu) - before;
    let j: Value = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("{case} {}: {}", w.variant, String::from_utf8_lossy(&out.stderr)))?;
    let f = |k: &str| j[k].as_f64().unwrap_or(0.0);
    if kind == "bulk" {
        s.add(case, w.variant, "Gbit/s", f("gbit_s"));
        if !w.cpu.is_empty() {
            s.add(case, w.variant, "CPU s per GB", cpu / (f("bytes") / 1e9));
        }
    } else {
        s.add(case, w.variant, "per second", f("rps"));
        s.add(case, w.variant, "p50 us", f("p50_us"));
        s.add(case, w.variant, "p99 us", f("p99_us"));
        if !w.cpu.is_empty() {
            // Warm-up included in both.
            let all = f("requests") * (f("secs") + 0.5) / f("secs");
            s.add(case, w.variant, "CPU s per 10,000", cpu / all * 1e4);
        }
    }
    if let Some(e) = j["errors"].as_object().filter(|e| !e.is_empty()) {
        println!("   errors: {e:?}");
    }
    Ok(())
}

fn cpu_seconds(pids: &[u32]) -> f64 {
    let one = |p: &u32| -> Option<f64> {
        let t = fs::read_to_string(format!("/proc/{p}/stat")).ok()?;
        let f: Vec<&str> = t.rsplit_once(')')?.1.split_whitespace().collect();
        Some((f[11].parse::<f64>().ok()? + f[12].parse::<f64>().ok()?) / 100.0)
    };
    pids.iter().filter_map(one).sum()
}

fn rss_kib(pid: u32) -> f64 {
    let t = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    t.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

fn memory(s: &mut Samples, case: &str, zt: [u32; 2]) {
    for (p, n) in zt.iter().zip(["client side", "server side"]) {
        s.add(case, &format!("karst {n}"), "MiB RSS", rss_kib(*p) / 1024.0);
    }
}

fn idle(s: &mut Samples, w: &Way, n: usize, zt: [u32; 2]) -> Result<()> {
    let before = zt.map(rss_kib);
    let to = SocketAddr::new(w.bulk.ip(), 9000);
    println!("{n} idle connections");
    let mut c = w
        .client
        .command(bin("meshbench"))
        .args(["idle", "--to", &to.to_string(), "--conns", &n.to_string(), "--secs", "2"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let mut out = BufReader::new(c.stdout.take().context("stdout")?);
    out.read_line(&mut line)?;
    std::thread::sleep(Duration::from_millis(500));
    for (i, side) in ["client side", "server side"].iter().enumerate() {
        s.add(
            &format!("idle-{n}"),
            &format!("karst {side}"),
            "KiB per connection",
            (rss_kib(zt[i]) - before[i]) / n as f64,
        );
    }
    let _ = c.wait();
    Ok(())
}

/// PAWS drops and SYN retransmits in the mesh pods' namespaces.
fn stalls(pods: &[Pod]) -> [u64; 2] {
    let mut out = [0; 2];
    for p in pods {
        let text = p
            .netns()
            .run(|| fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default())
            .unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("TcpExt:")).collect();
        let [names, values] = lines[..] else { continue };
        for (n, v) in names.split(' ').zip(values.split(' ')) {
            let v = v.parse::<u64>().unwrap_or(0);
            match n {
                "PAWSActive" | "PAWSEstab" | "PAWSTimewait" => out[0] += v,
                "TCPSynRetrans" => out[1] += v,
                _ => {}
            }
        }
    }
    out
}

fn print(rows: &[Value]) {
    let get = |r: &Value, k: &str| r[k].as_str().unwrap_or("").to_string();
    let relay = |case: &str, unit: &str| {
        rows.iter()
            .find(|r| get(r, "case") == case && get(r, "unit") == unit && get(r, "variant") == "relay")
            .and_then(|r| r["median"].as_f64())
    };
    println!(
        "\n{:<18} {:<18} {:<20} {:>10} {:>10} {:>10} {:>9}",
        "case", "variant", "unit", "median", "low", "high", "to relay"
    );
    for r in rows {
        let (case, unit, m) = (get(r, "case"), get(r, "unit"), r["median"].as_f64().unwrap_or(0.0));
        let ratio = relay(&case, &unit).map(|x| format!("{:.2}", m / x)).unwrap_or_default();
        println!(
            "{case:<18} {:<18} {unit:<20} {m:>10.2} {:>10.2} {:>10.2} {ratio:>9}",
            get(r, "variant"),
            r["low"].as_f64().unwrap_or(0.0),
            r["high"].as_f64().unwrap_or(0.0)
        );
    }
}
