//! `cargo xtask bench l4`: the cases of docs/performance.md, all variants interleaved in one run, medians and spread.
//!
//! Variants: `raw` (pod to pod), `relay` and `splice` (a plain TCP hop in user space in each pod's namespace, as many as
//! ztunnel adds; one on the same node), `tls-pipe` (the same with TLS between the nodes, one session for each connection, rustls's
//! own stream), `karst`, `unread` (ours, which does not look at requests in passing: `KARST_HTTP_SIGNALS=false`), and with
//! `--ztunnel=PATH` `other`: a world of its own with that ztunnel, driven by our agent. Only if they are named in `--variants`:
//! `one-thread`, ours with one worker (what two threads cost each other is the difference); `bookless`, ours, which keeps no book of
//! flows (`KARST_FLOWS=false`). CPU is that of the relays or ztunnels alone, from /proc.

use crate::measure::{App, Opts, Samples, measure, rss_kib, serve};
use anyhow::{Context, Result};
use karst_core::limits;
use karst_world::{Options, Pod, PodSpec, World, bin, wait_for};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::Stdio,
    time::Duration,
};

/// As on a node of a cluster, if this machine has so many: with few, a pod's share is less than what is to be measured.
const DESCRIPTORS: u64 = 1 << 17;

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

/// Runs it.
pub fn run(o: &Opts) -> Result<Samples> {
    let descriptors = karst_rt::process::raise_descriptor_limit()?.min(DESCRIPTORS);
    // The ways without a mesh have a world of their own, and builds are started in turn: the worlds of two builds differ in
    // nothing but the build, or the comparison would measure who came first.
    let mut apart = World::start(Options::default())?;
    let plain = Mesh::start(&mut apart, false)?;
    let (mut ours, mut unread, mut others) = (vec![], vec![], vec![]);
    let (mut single, mut bookless) = (vec![], vec![]);
    let without = |option: &str| vec![(option.to_string(), "false".to_string())];
    for _ in 0..o.processes {
        ours.push(member_world(Options::default(), descriptors)?);
        if !o.skips("unread") {
            let ztunnel_env = without("KARST_HTTP_SIGNALS");
            unread.push(member_world(Options { ztunnel_env, ..Options::default() }, descriptors)?);
        }
        if o.names("one-thread") {
            let ztunnel_env = vec![("ZTUNNEL_WORKER_THREADS".into(), "1".into())];
            single.push(member_world(Options { ztunnel_env, ..Options::default() }, descriptors)?);
        }
        if o.names("bookless") {
            let ztunnel_env = without("KARST_FLOWS");
            bookless.push(member_world(Options { ztunnel_env, ..Options::default() }, descriptors)?);
        }
        if let Some(path) = o.text("ztunnel") {
            others.push(member_world(Options { ztunnel_bin: Some(path.into()), ..Options::default() }, descriptors)?);
        }
    }
    let (first, mesh) = &ours[0];
    let zt = pids(first);
    // By place and variant, one for each process of a build.
    let mut ways: BTreeMap<&str, Vec<Vec<Way>>> = BTreeMap::new();
    for (place, i) in [("cross", 2), ("same", 1)] {
        let mut v = vec![vec![plain.way("raw", i, vec![])]];
        v.push(vec![relays("relay", "read", place, &plain.pods, i)?]);
        v.push(vec![relays("splice", "splice", place, &plain.pods, i)?]);
        if place == "cross" {
            v.push(vec![relays("tls-pipe", "read", place, &plain.pods, i)?]);
        }
        let meshed = [
            ("karst", &ours),
            ("unread", &unread),
            ("one-thread", &single),
            ("bookless", &bookless),
            ("other", &others),
        ];
        for (variant, worlds) in meshed {
            v.push(worlds.iter().map(|(w, mesh)| mesh.way(variant, i, pids(w).to_vec())).collect());
        }
        v.retain(|way| way.first().is_some_and(|way| !o.skips(way.variant)));
        ways.insert(place, v);
    }
    let mut s = Samples::default();
    memory(&mut s, "idle", zt);
    let cases = [("bulk", 1), ("bulk", 8), ("rr", 1), ("rr", 32), ("crr", 1), ("crr", 16)];
    let syn_before = stalls(&mesh.pods);
    for r in 0..o.rounds {
        for place in ["cross", "same"] {
            for (kind, n) in cases {
                let case = format!("{place}-{kind}-{n}");
                if !case.contains(&o.only) {
                    continue;
                }
                let v = &ways[place];
                for k in 0..v.len() {
                    // The order turns from round to round, so that no variant always comes after the same other.
                    let processes = &v[(k + r) % v.len()];
                    let way = &processes[r % processes.len()];
                    println!("round {} of {}: {case} {}", r + 1, o.rounds, way.variant);
                    let to = if kind == "bulk" { way.bulk } else { way.http };
                    measure(&mut s, o, &case, way.variant, (&way.client, to), &way.cpu, (kind, n, &[]))?;
                }
            }
        }
    }
    let syn_after = stalls(&mesh.pods);
    for (k, name) in ["PAWS drops", "SYN retransmits"].iter().enumerate() {
        s.add("all", "karst", name, (syn_after[k] - syn_before[k]) as f64);
    }
    if "idle-connections".contains(&o.only) || o.only.is_empty() {
        let share = limits::connections_of_direction(descriptors);
        for n in [1000, 5000] {
            if n > share {
                println!("{n} idle connections: left out; {descriptors} descriptors allow {share} of a pod");
                continue;
            }
            idle(&mut s, &mesh.way("karst", 2, vec![]), n, zt)?;
        }
    }
    Ok(s)
}

/// A world with agents and ztunnels of its own: ours, another build's, or a peer's that knows the listeners of our ZDS.
fn member_world(options: Options, descriptors: u64) -> Result<(World, Mesh)> {
    let mut w = World::start(Options { ztunnel_descriptors: Some(descriptors), ..options })?;
    let mesh = Mesh::start(&mut w, true)?;
    Ok((w, mesh))
}

fn pids(w: &World) -> [u32; 2] {
    [w.ztunnel_pid(0), w.ztunnel_pid(1)]
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
