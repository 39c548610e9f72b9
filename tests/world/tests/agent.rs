//! The node agent's own decisions: who starts without it, what another network stack has, what was open before, who may probe.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

use karst_rt::netns::Netns;
use karst_world::{
    Options, Pod, PodSpec, World, app,
    net::{ip_in, namespace, veth},
    wait_for,
};
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const LONG: Duration = Duration::from_secs(15);
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n";

/// A directory that goes at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let d = std::env::temp_dir().join(format!("karst-agent-{name}-{}", std::process::id()));
        fs::create_dir_all(&d).unwrap();
        Self(d)
    }
}
impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Calls the CNI plugin as a container runtime does for a new pod: did it let the pod start, what did it say, how long did it take?
fn cni_add(socket: &Path, netns: &str, namespace: &str) -> (bool, String, Duration) {
    let begun = Instant::now();
    let conf = serde_json::json!({
        "cniVersion": "1.0.0", "name": "n", "type": "istio-cni", "socket": socket, "excludeNamespaces": ["kube-system"],
        "prevResult": { "cniVersion": "1.0.0", "ips": [{ "address": "10.77.0.200/24" }] },
    });
    let mut c = Command::new(karst_world::bin("karst-cni"))
        .env("CNI_COMMAND", "ADD")
        .env("CNI_ARGS", format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=new;K8S_POD_UID=u-{namespace}"))
        .env("CNI_NETNS", format!("/run/netns/{netns}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    c.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    let out = c.wait_with_output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned(), begun.elapsed())
}

/// While the agent is down: pods of namespaces that are outside the mesh start, all others are held, for a bounded time, with a text
/// that says what to do.
#[test]
fn only_pods_of_the_mesh_wait_for_the_agent() {
    let scratch = Scratch::new("plugin");
    let path = |p: &str| scratch.0.join(p);
    for d in ["bin", "conf", "run", "old"] {
        fs::create_dir_all(path(d)).unwrap();
    }
    fs::write(path("conf/10-x.conflist"), r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#)
        .unwrap();
    let socket = path("run/pluginevent.sock");
    let agent = [("--cni-bin-dir", "bin"), ("--cni-conf-dir", "conf"), ("--events", "run/pluginevent.sock")]
        .iter()
        .flat_map(|(k, v)| [k.to_string(), path(v).display().to_string()])
        .collect();
    let mut w = World::start(Options { nodes: 1, agent, ..Options::default() }).unwrap();
    w.namespace("mesh", true);
    w.namespace("plain", false);
    w.namespace("single", false);
    let opted = w.mesh_pod(PodSpec::new("single", "p", 0).label("istio.io/dataplane-mode", "ambient"));
    let known = path("run/namespaces.json");
    wait_for("the agent has written what it knows", LONG, || {
        let text = fs::read_to_string(&known).ok()?;
        let v: serde_json::Value = serde_json::from_str(&text).ok()?;
        (v["optedIn"]["single"].is_u64() && v["notEnrolled"].to_string().contains("plain")).then_some(())
    });
    w.stop_agent(0, libc::SIGKILL);
    let add = |socket: &Path, namespace: &'static str| {
        let (socket, netns) = (socket.to_path_buf(), opted.ns.clone());
        std::thread::spawn(move || (namespace, cni_add(&socket, &netns, namespace)))
    };
    // Who is not believed holds everybody: what is at this socket's side was written long ago.
    let old = "{\"version\":1,\"written\":1,\"notEnrolled\":[\"plain\"],\"optedIn\":{}}";
    fs::write(path("old/namespaces.json"), old).unwrap();
    let by_an_old_file = add(&path("old/pluginevent.sock"), "plain");
    let asked: Vec<_> = ["plain", "kube-system", "mesh", "single", "never-seen"].map(|n| add(&socket, n)).into();
    for t in asked {
        let (namespace, (starts, text, took)) = t.join().unwrap();
        println!(
            "without the agent: {namespace:<12} starts={starts} after {:.1} s: {}",
            took.as_secs_f64(),
            text.trim()
        );
        if ["plain", "kube-system"].contains(&namespace) {
            assert!(starts && took < Duration::from_secs(3), "{namespace}: {text}");
            continue;
        }
        assert!(!starts, "{namespace} starts");
        assert!(text.contains(&format!("pod {namespace}/new is held: the node agent does not answer")), "{text}");
        assert!(text.contains("it starts once the agent runs") && text.contains("\"code\":11"), "{text}");
        assert!((Duration::from_secs(5)..Duration::from_secs(25)).contains(&took), "{took:?}");
    }
    let (_, (starts, text, _)) = by_an_old_file.join().unwrap();
    assert!(!starts && text.contains("a day old"), "{text}");
}

/// A metric of the agent's page.
fn unmeshed(w: &World, p: &Pod) -> Option<u64> {
    let (_, page) = w.get(p.spec.node, 15014, "/metrics").ok()?;
    let start = format!("karst_unmeshed_connections{{namespace=\"{}\",pod=\"{}\"}} ", p.spec.namespace, p.spec.name);
    page.lines().find_map(|l| l.strip_prefix(&start)?.parse().ok())
}

fn until_unmeshed(w: &World, p: &Pod, n: u64) {
    wait_for(&format!("{n} connections of {} from before", p.spec.name), LONG, || {
        (unmeshed(w, p) == Some(n)).then_some(())
    });
}

fn is_cut(s: &mut TcpStream) -> bool {
    s.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    match s.read(&mut [0; 1]) {
        Err(e) => !matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
        Ok(n) => n == 0,
    }
}

/// What was open when a pod was redirected is counted at both ends, over a restart of the agent, until it ends; and is closed where
/// that is asked for. What the mesh carries is neither.
#[test]
fn connections_from_before_are_counted_and_closed_on_demand() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", false);
    w.namespace("out", false);
    let (mut a, b) = (w.pod(PodSpec::new("app", "a", 0)), w.pod(PodSpec::new("app", "b", 1)));
    let stranger = w.pod(PodSpec::new("out", "stranger", 0));
    w.settle();
    let (_echo_a, _echo) = (app::Echo::start(&a, 8080, ""), app::Echo::start(&b, 8080, ""));
    let open = |from: &Pod, to: SocketAddr| {
        // IPv6 of a new world takes a second or two.
        wait_for("a connection", LONG, || {
            let mut s = from.connect(to).ok()?;
            app::ping(&mut s, b"before").ok().map(|()| s)
        })
    };
    let mut before = vec![open(&a, b.at(8080)), open(&a, b.at(8080)), open(&a, b.at(8080)), open(&a, b.at6(8080))];
    let mut strange = open(&stranger, b.at(8080));
    // Within the pod: nobody's business.
    let mut own = [open(&a, a.at(8080)), open(&a, ([127, 0, 0, 1], 8080).into())];
    w.namespace("app", true);
    w.wait_enrolled(&a);
    w.wait_enrolled(&b);
    until_unmeshed(&w, &a, 4);
    until_unmeshed(&w, &b, 5);
    assert!(w.log_text("agent0.log").contains("go on without encryption"), "it is said, with the way to close them");
    // The mesh's own do not count: at the client, at the server, in ztunnel's hands.
    let mut meshed: Vec<TcpStream> = (0..5).map(|_| open(&a, b.at(8080))).collect();
    w.stop_agent(0, libc::SIGKILL);
    w.start_agent(0).unwrap();
    until_unmeshed(&w, &a, 4);
    w.stop_agent(1, libc::SIGKILL);
    w.start_agent(1).unwrap();
    until_unmeshed(&w, &b, 5);
    for s in before.iter_mut().chain(&mut meshed).chain(&mut own) {
        app::ping(s, b"goes on").unwrap();
    }
    let column = |w: &World, node: usize, pod: &str| {
        let status = w.status(node).unwrap();
        let line = status.lines().find(|l| l.starts_with(pod)).unwrap_or_else(|| panic!("{status}")).to_string();
        line.split_whitespace().nth(2).map(String::from)
    };
    assert_eq!(column(&w, 0, "app/a").as_deref(), Some("4"));
    assert_eq!(column(&w, 1, "app/b").as_deref(), Some("5"));
    before.truncate(3);
    until_unmeshed(&w, &a, 3);
    until_unmeshed(&w, &b, 4);
    // By the annotation of one of the two.
    a.spec = a.spec.annotation("karst.io/close-unmeshed-connections", "true");
    w.write_pod(&a, true);
    until_unmeshed(&w, &a, 0);
    assert!(before.iter_mut().all(is_cut), "they are closed");
    until_unmeshed(&w, &b, 1);
    for s in meshed.iter_mut().chain(&mut own).chain([&mut strange]) {
        app::ping(s, b"goes on").unwrap();
    }
    assert_eq!(column(&w, 0, "app/a").as_deref(), Some("0"));
    println!("connections from before: counted 4 and 5, closed 3 of one pod; meshed, own and others' go on");
    // For all pods of a node.
    w.set_agent_args(&["--close-unmeshed-connections", "true"]);
    w.stop_agent(1, libc::SIGTERM);
    w.start_agent(1).unwrap();
    until_unmeshed(&w, &b, 0);
    assert!(is_cut(&mut strange));
    for s in meshed.iter_mut() {
        app::ping(s, b"goes on").unwrap();
    }
}

/// Gives a pod's addresses to a stack of its own behind a bridge, as the bridge binding of a virtual machine does; what runs there
/// answers on port 8080.
fn virtualise(p: &Pod) -> Netns {
    let inner = format!("{}vm", p.ns);
    namespace(&inner).unwrap();
    ip_in(&p.ns, "addr flush dev eth0").unwrap();
    ip_in(&p.ns, "link add br0 type bridge").unwrap();
    veth(&p.ns, "vm0", &inner, "eth0").unwrap();
    for c in ["link set eth0 master br0", "link set vm0 master br0", "link set br0 up"] {
        ip_in(&p.ns, c).unwrap();
    }
    ip_in(&inner, &format!("addr add {}/24 dev eth0", p.ip)).unwrap();
    let n = Netns::open(format!("/run/netns/{inner}")).unwrap();
    let l = n.run(|| TcpListener::bind("0.0.0.0:8080").unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut s in l.incoming().flatten() {
            let _ = s.write_all(b"machine");
        }
    });
    n
}

fn answers(from: &Netns, to: SocketAddr) -> bool {
    let get = || {
        let mut s = TcpStream::connect_timeout(&to, Duration::from_millis(1500))?;
        s.set_read_timeout(Some(Duration::from_secs(2)))?;
        s.read_exact(&mut [0; 7])
    };
    from.run(get).unwrap().is_ok()
}

/// A pod whose addresses another stack has cannot be redirected: it is closed, both ways, nobody is told that it takes tunnels, and
/// it is said how to mend that.
#[test]
fn pods_of_other_network_stacks_are_closed() {
    let mut w = World::start(Options { nodes: 1, ..Options::default() }).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    // The same machine outside the mesh shows that it is the mesh that closes.
    let (p, free) = (w.mesh_pod(PodSpec::new("app", "p", 0)), w.pod(PodSpec::new("out", "free", 0)));
    let stranger = w.pod(PodSpec::new("out", "stranger", 0));
    let l = stranger.netns().run(|| TcpListener::bind("0.0.0.0:8080").unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut s in l.incoming().flatten() {
            let _ = s.write_all(b"strange");
        }
    });
    let member = w.mesh_pod(PodSpec::new("app", "member", 0));
    let status = w.dir.join("manifests/.status/node0/app.p");
    assert!(status.exists(), "it was redirected while it had its addresses");
    let (inside, inside_free) = (virtualise(&p), virtualise(&free));
    wait_for("p is not reported as redirected any more", LONG, || (!status.exists()).then_some(()));
    w.settle();
    let said = wait_for("the log says it", LONG, || {
        w.log_text("agent0.log").lines().find(|l| l.contains("pod is closed")).map(String::from)
    });
    assert!(said.contains("app/p") && said.contains("istio.io/dataplane-mode: none"), "{said}");
    assert!(w.status(0).unwrap().lines().any(|l| l.starts_with("app/p ") && l.contains("closed: ")), "--status");
    wait_for("the machine outside the mesh is reached", LONG, || {
        answers(stranger.netns(), free.at(8080)).then_some(())
    });
    assert!(answers(&inside_free, stranger.at(8080)), "and reaches others");
    assert!(!answers(stranger.netns(), p.at(8080)), "closed inwards");
    assert!(!answers(&inside, stranger.at(8080)), "closed outwards");
    // Members and other pods are as before.
    assert!(answers(member.netns(), stranger.at(8080)));
    // Taken out of the mesh it is let go.
    let mut out = p.clone();
    out.spec = out.spec.label("istio.io/dataplane-mode", "none");
    w.write_pod(&out, true);
    wait_for("it is reached once it is out of the mesh", LONG, || answers(stranger.netns(), p.at(8080)).then_some(()));
    assert!(answers(&inside, stranger.at(8080)));
    assert!(!w.status(0).unwrap().contains("app/p "), "nothing is left of it");
}

/// Addresses that come back: the pod is redirected again.
#[test]
fn a_pod_that_has_its_addresses_again_is_redirected_again() {
    let mut w = World::start(Options { nodes: 1, ..Options::default() }).unwrap();
    w.namespace("app", true);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 0)));
    let _echo = app::Echo::start(&b, 8080, "");
    let status = w.dir.join("manifests/.status/node0/app.b");
    ip_in(&b.ns, "addr flush dev eth0").unwrap();
    wait_for("b is closed", LONG, || (!status.exists()).then_some(()));
    ip_in(&b.ns, &format!("addr add {}/24 dev eth0", b.ip)).unwrap();
    ip_in(&b.ns, &format!("addr add {}/64 dev eth0 nodad", b.ip6)).unwrap();
    ip_in(&b.ns, "route add default via 10.77.0.1").unwrap();
    wait_for("b is redirected", LONG, || status.exists().then_some(()));
    w.settle();
    wait_for("a reaches b by the mesh", LONG, || {
        a.connect(b.at(8080)).and_then(|mut s| app::ping(&mut s, b"again")).ok()
    });
}

/// Where cgroup2 is mounted.
fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut fields = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
    fields.find(|f| f[2] == "cgroup2").map(|f| f[1].into()).expect("a cgroup2 is mounted")
}

/// A process on a node, in a cgroup of its own, that goes with it.
struct Service {
    cgroup: PathBuf,
    child: Child,
}

impl Service {
    fn start(w: &World, cgroup: &Path, program: &Path) -> Self {
        fs::create_dir_all(cgroup).unwrap();
        let child = on_node(w, &format!("echo $$ > {}/cgroup.procs; exec {} 600", cgroup.display(), program.display()))
            .spawn()
            .unwrap();
        wait_for("the service is in its cgroup", LONG, || {
            fs::read_to_string(cgroup.join("cgroup.events")).ok()?.contains("populated 1").then_some(())
        });
        Self { cgroup: cgroup.into(), child }
    }
}
impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Empty, but not at once.
        let end = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.cgroup).is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn on_node(w: &World, script: &str) -> Command {
    let mut c = Command::new("nsenter");
    c.arg(format!("--net=/run/netns/{}", w.nodes[0].ns)).args(["bash", "-c", script]);
    c
}

/// A connection from the node's own network, by a process of this cgroup, or of the test's own: is it answered?
fn probe(w: &World, cgroup: Option<&Path>, to: SocketAddr) -> bool {
    let enter = cgroup.map(|c| format!("echo $$ > {}/cgroup.procs; ", c.display())).unwrap_or_default();
    let script = format!(
        "{enter}exec timeout 10 bash -c 'exec 3<>/dev/tcp/{}/{} && echo probe >&3 && read -r -t 3 x <&3 && echo got $x'",
        to.ip(),
        to.port()
    );
    let out = on_node(w, &script).stderr(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&out.stdout).contains("got probe")
}

/// The kubelet's probes pass STRICT; other processes of the node do not, whatever they are called. It is known by its cgroup, also
/// after its restart, and while the agent is away.
#[test]
fn only_the_kubelet_may_probe() {
    let scratch = Scratch::new("kubelet");
    let kubelet = scratch.0.join("kubelet");
    fs::copy("/bin/sleep", &kubelet).unwrap();
    let cgroup = cgroup2().join(format!("karst-kubelet-{}", std::process::id()));
    let mut w = World::start(Options { nodes: 1, ..Options::default() }).unwrap();
    w.namespace("app", true);
    let p = w.mesh_pod(PodSpec::new("app", "p", 0));
    let _echo = app::Echo::start(&p, 8080, "");
    w.apply("strict", STRICT);
    let again = |w: &mut World, args: &[&str]| {
        w.set_agent_args(args);
        w.stop_agent(0, libc::SIGTERM);
        let before = w.log_text("agent0.log").matches("node agent is up").count();
        w.start_agent(0).unwrap();
        wait_for("the agent is up", LONG, || {
            (w.log_text("agent0.log").matches("node agent is up").count() > before).then_some(())
        });
    };
    assert!(probe(&w, None, p.at(8080)), "--probes all");
    // Nothing on this node is called kubelet.
    again(&mut w, &["--probes", "auto"]);
    assert!(w.log_text("agent0.log").contains("the kubelet has no cgroup of its own that could be found"));
    assert!(probe(&w, None, p.at(8080)), "so everybody may, and it is said");

    let service = Service::start(&w, &cgroup, &kubelet);
    again(&mut w, &["--probes", "auto"]);
    for to in [p.at(8080), p.at6(8080)] {
        let seen = [Some(cgroup.as_path()), None].map(|c| probe(&w, c, to));
        println!("STRICT, {to}: answered the kubelet {}, another process of the node {}", seen[0], seen[1]);
        assert_eq!(seen, [true, false], "{to}");
    }
    w.stop_agent(0, libc::SIGKILL);
    assert_eq!([Some(cgroup.as_path()), None].map(|c| probe(&w, c, p.at(8080))), [true, false], "without the agent");
    again(&mut w, &["--probes", "auto"]);
    // A kubelet that starts again has another cgroup of the same name.
    drop(service);
    assert!(!cgroup.exists(), "the cgroup is gone");
    assert!(!probe(&w, None, p.at(8080)), "nobody takes its place");
    let service = Service::start(&w, &cgroup, &kubelet);
    wait_for("the new one's probes pass", LONG, || probe(&w, Some(&cgroup), p.at(8080)).then_some(()));
    assert!(!probe(&w, None, p.at(8080)));
    // Said by name, and switched off.
    let name = format!("/{}", cgroup.file_name().unwrap().to_string_lossy());
    again(&mut w, &["--probes", &name]);
    assert_eq!([Some(cgroup.as_path()), None].map(|c| probe(&w, c, p.at(8080))), [true, false], "{name}");
    again(&mut w, &["--probes", "none"]);
    assert!(!probe(&w, Some(&cgroup), p.at(8080)), "--probes none");
    drop(service);
}
