//! `karst-cni trace`: a packet that is lost, or that passes the mesh by, is explained by a line. Nothing is told when nobody asks,
//! and a flood is told of by the rate (docs/operations.md).
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_ebpf::trace::totals;
use karst_world::{Options, Pod, PodSpec, World, app, bin, wait_for};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(5);
/// What a trace that was killed leaves on, and some more.
const EXPIRED: Duration = Duration::from_secs(4);

/// The command, running.
struct Trace {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Trace {
    fn command(w: &World, args: &[&str]) -> Command {
        let mut c = Command::new(bin("karst-cni"));
        c.args(w.agent_args(0)).args(["trace", "-o", "json"]).args(args);
        c
    }
    /// On node 0. On return the programs have been asked.
    fn start(w: &World, args: &[&str]) -> Self {
        let mut c = Self::command(w, args);
        let mut child = c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut first = String::new();
        said.read_line(&mut first).unwrap();
        assert!(first.contains("from now on"), "{first}");
        // It is read to its end, or the command would stop at a full pipe.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::stderr()));
        let lines = Arc::new(Mutex::new(vec![]));
        let (out, all) = (BufReader::new(child.stdout.take().unwrap()), lines.clone());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                all.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, lines }
    }
    fn all(&self) -> Vec<Value> {
        self.lines.lock().unwrap().clone()
    }
    /// Waits for a line with these fields.
    fn says(&self, fields: &[(&str, &str)]) -> Value {
        wait_for(&format!("a line with {fields:?}"), SOON, || {
            self.all().into_iter().find(|l| fields.iter().all(|(k, v)| l[*k] == *v))
        })
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn raw_socket(of: &Pod) -> Socket {
    of.netns().run(|| Socket::new(Domain::IPV4, Type::RAW, Some(socket2::Protocol::TCP))).unwrap().unwrap()
}

/// A SYN by hand, without a checksum: it goes no further than the guard.
fn raw_syn(s: &Socket, to: &Pod, sport: u16) {
    let mut syn = [0u8; 20];
    syn[..2].copy_from_slice(&sport.to_be_bytes());
    syn[2..4].copy_from_slice(&8080u16.to_be_bytes());
    (syn[12], syn[13]) = (5 << 4, 2);
    // A guard's drop is an error here, or none.
    let _ = s.send_to(&syn, &SockAddr::from(to.at(0)));
}

/// A connection of a socket that is bound to a device. Its SYN is sent again after a second.
fn bound_to_device(from: &Pod, to: SocketAddr) -> std::io::Result<()> {
    from.netns().run(|| {
        let s = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        s.bind_device(Some(b"eth0"))?;
        s.connect_timeout(&SockAddr::from(to), Duration::from_millis(500))
    })?
}

fn probe(w: &World, pod: &Pod) -> SocketAddr {
    let connect = || TcpStream::connect_timeout(&pod.at(8080), Duration::from_secs(2)).unwrap();
    let mut s = w.nodes[0].netns.run(connect).unwrap();
    app::ping(&mut s, b"probe").unwrap();
    s.local_addr().unwrap()
}

#[test]
fn a_lost_packet_is_explained_by_a_line() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 1)));
    let other = w.mesh_pod(PodSpec::new("app", "other", 0));
    let open = PodSpec::new("app", "open", 0).annotation("ambient.istio.io/bypass-inbound-capture", "true");
    let open = w.mesh_pod(open);
    let outside = w.pod(PodSpec::new("out", "outside", 1));
    let _echoes: Vec<_> = [&a, &b, &open].map(|p| app::Echo::start(p, 8080, "")).into();
    app::ping(&mut a.connect(b.at(8080)).unwrap(), b"first").unwrap();

    // Nobody asks.
    let (by_a, by_other) = (raw_socket(&a), raw_socket(&other));
    raw_syn(&by_a, &b, 39_999);
    assert!(bound_to_device(&a, b.at(8080)).is_err());
    probe(&w, &a);
    let told = totals(&w.bpf_dir(0)).unwrap();
    assert_eq!((told.told, told.withheld), (0, 0), "nothing is told when nobody asks");

    let trace = Trace::start(&w, &[]);
    raw_syn(&by_a, &b, 40_000);
    let (source, destination) = (format!("{}:40000", a.ip), b.at(8080).to_string());
    let line = trace.says(&[("pod", "app/a"), ("what", "dropped"), ("source", &source), ("destination", &destination)]);
    assert!(line["reason"].as_str().unwrap().contains("raw socket"), "{line}");
    // IPv6 refuses such a connect before it sends anything (surroundings::link_local_…).
    assert!(bound_to_device(&a, b.at6(8080)).is_err());
    {
        let to = b.at(8080);
        assert!(bound_to_device(&a, to).is_err());
        let source = format!("{}:", a.ip);
        let line = wait_for(&format!("the SYN to {to}"), SOON, || {
            let dropped = |l: &Value| l["what"] == "dropped" && l["destination"] == to.to_string();
            let own =
                |l: &Value| l["source"].as_str().is_some_and(|s| s.starts_with(&source) && !s.ends_with(":40000"));
            trace.all().into_iter().find(|l| dropped(l) && own(l))
        });
        assert!(line["reason"].as_str().unwrap().contains("SO_BINDTODEVICE"), "{line}");
        assert!(line["fix"].as_str().unwrap().contains("bound to no device"), "{line}");
    }
    let node = probe(&w, &a).to_string();
    let line = trace.says(&[("pod", "app/a"), ("what", "passed by"), ("counter", "probe"), ("source", &node)]);
    assert!(line["reason"].as_str().unwrap().contains("kubelet"), "{line}");
    app::ping(&mut outside.connect(open.at(8080)).unwrap(), b"plain").unwrap();
    trace.says(&[("pod", "app/open"), ("what", "passed by"), ("counter", "opt_out")]);
    // What goes its way through the mesh is not told.
    app::ping(&mut a.connect(b.at(8080)).unwrap(), b"mesh").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let counters: Vec<Value> = trace.all().iter().map(|l| l["counter"].clone()).collect();
    assert!(counters.iter().all(|c| *c == "guard_drop" || *c == "probe" || *c == "opt_out"), "{counters:?}");

    // The ring buffer has one reader.
    let second = Trace::command(&w, &[]).output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains("another karst-cni trace runs"), "{said}");
    drop(trace);
    let nobody = Trace::command(&w, &["app/nobody"]).output().unwrap();
    let said = String::from_utf8_lossy(&nobody.stderr);
    assert!(!nobody.status.success() && said.contains("no pod app/nobody is redirected on this node"), "{said}");

    // One pod, drops only.
    let trace = Trace::start(&w, &["app/a", "--drops"]);
    raw_syn(&by_other, &b, 41_000);
    probe(&w, &a);
    raw_syn(&by_a, &b, 41_001);
    trace.says(&[("source", &format!("{}:41001", a.ip))]);
    assert!(trace.all().iter().all(|l| l["pod"] == "app/a" && l["what"] == "dropped"), "{:?}", trace.all());

    // Neither ztunnel nor the agent: a trace works all the same, and says so.
    w.stop_ztunnel(0, libc::SIGKILL);
    w.stop_agent(0, libc::SIGKILL);
    let refused = wait_for("the listeners are gone", SOON, || {
        let answered = a.connect(b.at(8080)).and_then(|mut s| {
            s.set_read_timeout(Some(Duration::from_millis(200)))?;
            s.read(&mut [0; 1])
        });
        answered.err()
    });
    println!("trace a connection without ztunnel and agent: {refused}");
    let line = trace.says(&[("pod", "app/a"), ("what", "refused"), ("destination", &b.at(8080).to_string())]);
    assert!(line["reason"].as_str().unwrap().contains("ztunnel does not listen for outbound connections"), "{line}");
}

#[test]
fn a_flood_is_told_by_the_rate_and_a_killed_trace_leaves_nothing_on() {
    let mut w = World::start(Options { nodes: 1, ..Options::default() }).unwrap();
    w.namespace("app", true);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 0)));
    let dir = w.bpf_dir(0);
    // The way to the other pod is known to the kernel.
    let _echo = app::Echo::start(&b, 8080, "");
    app::ping(&mut a.connect(b.at(8080)).unwrap(), b"first").unwrap();

    let trace = Trace::start(&w, &["a"]);
    let by_a = raw_socket(&a);
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < Duration::from_secs(2) {
        raw_syn(&by_a, &b, 20_000 + sent as u16 % 20_000);
        sent += 1;
    }
    // A hundred in each window of 1.07 s, on each CPU; two seconds are in three windows at most.
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    std::thread::sleep(Duration::from_millis(300));
    let after = totals(&dir).unwrap();
    println!("trace flood sent={sent} cpus={cpus} {after:?} lines={}", trace.all().len());
    assert!(sent > 100 * 3 * cpus, "the flood is one: {sent}");
    assert!(after.told >= 100 && after.told <= 100 * 3 * cpus, "{after:?}");
    assert!(after.withheld > 0 && trace.all().len() as u64 <= after.told, "{after:?}");

    drop(trace);
    std::thread::sleep(EXPIRED);
    let before = totals(&dir).unwrap();
    for i in 0..50 {
        raw_syn(&by_a, &b, 50_000 + i);
    }
    assert_eq!(totals(&dir).unwrap(), before, "nobody asks any more");
    // One that nobody ends ends by itself.
    let mut forgotten = Trace::command(&w, &["a", "--for", "1"]);
    let ended = forgotten.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(ended.success(), "{ended}");
}
