//! Pods with something inside: containers on a bridge, a virtual machine behind a device, a VPN's clients. What the pod forwards for
//! them goes through the mesh as the pod's own, and nothing plain comes in past the pod's policies.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_world::{
    Load, Options, Pod, PodSpec, World,
    app::{self, Echo},
    net::{ip_in, run, sysctl},
    wait_for,
};
use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

const MARK: &[u8] = b"karst-plaintext-marker-7f3a91c2";
const PATIENCE: Duration = Duration::from_secs(10);
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n";

fn works(from: &Pod, to: SocketAddr) -> bool {
    from.connect(to).and_then(|mut s| app::ping(&mut s, MARK)).is_ok()
}
fn row(what: &str, expected: &str, seen: &str) {
    println!("forward {what:<74} expected={expected} seen={seen}");
    assert_eq!(seen, expected, "{what}");
}

/// A pod as a container engine leaves it: it forwards, and has a bridge with two containers.
struct Engine {
    pod: Pod,
    one: Pod,
    two: Pod,
}

impl Engine {
    fn start(pod: Pod) -> Self {
        let ns = &pod.ns;
        for (key, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            // The strictest there is.
            ("net.ipv4.conf.all.rp_filter", "1"),
        ] {
            sysctl(ns, key, value).unwrap();
        }
        // Forwarding makes the kernel forget what it has learned by router advertisements, and nothing else.
        ip_in(ns, "link add docker0 type bridge").unwrap();
        ip_in(ns, "addr add 172.30.0.1/24 dev docker0").unwrap();
        ip_in(ns, "addr add fd30::1/64 dev docker0 nodad").unwrap();
        ip_in(ns, "link set docker0 up").unwrap();
        let container = |device: &str, n: u8| {
            let c = pod.inside(device, [172, 30, 0, n], [0xfd30, 0, 0, 0, 0, 0, 0, u16::from(n)]);
            ip_in(ns, &format!("link set {device} master docker0")).unwrap();
            c
        };
        let (one, two) = (container("c1", 2), container("c2", 3));
        Self { one, two, pod }
    }

    /// The pod's own translation of addresses: outwards as the pod, inwards a port of the pod's.
    fn translate(&self) {
        let rules = "table ip nat { chain post { type nat hook postrouting priority 100; ip saddr 172.30.0.0/24 oifname eth0 masquerade; }; chain pre { type nat hook prerouting priority -100; iifname eth0 tcp dport 8088 dnat to 172.30.0.2:9000; }; }";
        run("ip", &["netns", "exec", &self.pod.ns, "nft", rules]).unwrap();
    }
}

/// Asks over UDP for an address: the number of answers.
fn dns_answers(from: &Pod, name: &str) -> Option<u16> {
    let s = from.netns().run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    s.connect("10.96.0.53:53").unwrap();
    s.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut q = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for l in name.split('.') {
        q.push(l.len() as u8);
        q.extend(l.as_bytes());
    }
    q.extend([0, 0, 1, 0, 1]);
    s.send(&q).unwrap();
    let mut b = [0; 512];
    let n = s.recv(&mut b).ok()?;
    (n > 12).then(|| u16::from_be_bytes([b[6], b[7]]))
}

/// Containers call out as their pod: by tunnel, with its identity and address, also to services and by name.
#[test]
fn what_is_inside_a_member_calls_out_as_the_member() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let engine = w.mesh_pod(PodSpec::new("app", "engine", 0));
    let (near, far) = (w.mesh_pod(PodSpec::new("app", "near", 0)), w.mesh_pod(PodSpec::new("app", "far", 1)));
    let outside = w.pod(PodSpec::new("out", "outside", 1));
    w.apply("web", "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec: {clusterIP: 10.96.0.10, selector: {app: far}, ports: [{port: 80, targetPort: 8080}]}\n");
    // Only the engine's identity may call.
    w.apply("only", &format!("{STRICT}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: only, namespace: app}}\nspec: {{rules: [{{from: [{{source: {{serviceAccounts: [engine]}}}}]}}]}}\n"));
    let echoes = [&near, &far, &outside].map(|p| Echo::start(p, 8080, ""));
    let e = Engine::start(engine);
    e.translate();
    wait_for("the agent has heard of the bridge", PATIENCE, || works(&e.one, far.at(8080)).then_some(()));

    let sniffer = w.sniffer(MARK);
    for (what, to, echo, own) in [
        ("to a member on the other node", far.at(8080), &echoes[1], e.pod.ip),
        ("to a member on the other node, IPv6", far.at6(8080), &echoes[1], e.pod.ip6),
        ("to a member on the same node", near.at(8080), &echoes[0], e.pod.ip),
        ("to a member on the same node, IPv6", near.at6(8080), &echoes[0], e.pod.ip6),
        ("to a service", ([10, 96, 0, 10], 80).into(), &echoes[1], e.pod.ip),
    ] {
        for c in [&e.one, &e.two] {
            let before = echo.connections();
            let served = works(c, to);
            let peer = echo.last_peer().filter(|_| echo.connections() > before).map(|a| a.ip());
            row(&format!("a container {what}"), &format!("true {own}"), &format!("{served} {}", peer.unwrap_or(c.ip)));
        }
    }
    let seen = sniffer.seen();
    println!("forward outwards: {seen:?}");
    assert!(seen.marked == 0 && seen.other_tcp == 0 && seen.hbone > 0, "{seen:?}");
    let answers = dns_answers(&e.one, "web.app.svc.cluster.local");
    row("a container asks for a name of the mesh", "Some(1)", &format!("{answers:?}"));
    row("a container to who is not of the mesh", "true", &works(&e.one, outside.at(8080)).to_string());
    row("its address there", &e.pod.ip.to_string(), &echoes[2].last_peer().unwrap().ip().to_string());
    std::thread::sleep(Duration::from_millis(100));
    let plain = sniffer.seen().marked;
    assert!(plain > seen.marked, "what goes out of the mesh is seen");

    // What never leaves the pod is left alone.
    let _inner = Echo::start(&e.two, 9000, "");
    row("a container to another on its bridge", "true", &works(&e.one, e.two.at(9000)).to_string());
    row("a container to another on its bridge, IPv6", "true", &works(&e.one, e.two.at6(9000)).to_string());
    let local = Echo::start(&e.pod, 7000, "");
    row("a container to its pod", "true", &works(&e.one, ([172, 30, 0, 1], 7000).into()).to_string());
    row("its address there", "172.30.0.2", &local.last_peer().unwrap().ip().to_string());
    row("the pod to a container", "true", &works(&e.pod, e.two.at(9000)).to_string());
    // The pod itself is as before.
    row("the pod to a member", "true", &works(&e.pod, far.at(8080)).to_string());
    println!("{}", w.status(0).unwrap());

    // A pair of devices of which nobody can tell where it leads is not inside by itself; if the pod says so, it is.
    let vm = e.pod.inside("p0", [172, 31, 0, 2], [0xfd31, 0, 0, 0, 0, 0, 0, 2]);
    ip_in(&e.pod.ns, "addr add 172.31.0.1/24 dev p0").unwrap();
    ip_in(&e.pod.ns, "addr add fd31::1/64 dev p0 nodad").unwrap();
    let short = |to: SocketAddr| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2));
    let closed = vm.netns().run(|| short(far.at(8080))).unwrap();
    row("behind a pair that is not named", "refused", if closed.is_err() { "refused" } else { "served" });
    let mut named = e.pod.clone();
    named.spec = named.spec.annotation("ambient.istio.io/reroute-virtual-interfaces", "p0");
    w.write_pod(&named, true);
    wait_for("the pair is named", PATIENCE, || works(&vm, far.at(8080)).then_some(()));
    row("behind a pair that is named", "true", &works(&vm, far.at6(8080)).to_string());
    row("its address there", &e.pod.ip6.to_string(), &echoes[1].last_peer().unwrap().ip().to_string());
    assert_eq!(sniffer.seen().marked, plain, "what went outside the mesh, and nothing else");

    // Taken back when the pod leaves.
    let rules = || ["-4", "-6"].map(|f| ip_in(&e.pod.ns, &format!("{f} rule show")).unwrap()).concat();
    assert!(rules().contains("iif docker0"));
    w.namespace("app", false);
    wait_for("no rule of ours for forwarding", PATIENCE, || (!rules().contains("iif ")).then_some(()));
}

/// What comes in for a container is plaintext to its pod, and judged as that; nobody is sent on to the outside.
#[test]
fn nothing_plain_comes_in_past_policies() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let engine = w.mesh_pod(PodSpec::new("app", "engine", 0));
    let (stranger, outside) = (w.pod(PodSpec::new("out", "stranger", 0)), w.pod(PodSpec::new("out", "outside", 1)));
    let member = w.mesh_pod(PodSpec::new("app", "member", 1));
    // Two members on the same nodes, who go on all the while.
    let calm = [0, 1].map(|n| w.mesh_pod(PodSpec::new("app", &format!("calm{n}"), n)));
    let _calm = Echo::start(&calm[1], 8080, "");
    let load = Load::start(calm[0].netns(), calm[1].at(8080), 50, b"bystander");
    let e = Engine::start(engine);
    let inner = Echo::start(&e.one, 9000, "");
    let beyond = Echo::start(&outside, 8080, "");
    // Everybody's way to the containers is by the pod.
    let own = (e.pod.ip.to_string(), e.pod.ip6.to_string());
    for (node, via, via6) in [(0, own.0.as_str(), own.1.as_str()), (1, "10.66.0.1", "fd66::1")] {
        ip_in(&w.nodes[node].ns, &format!("route add 172.30.0.0/24 via {via}")).unwrap();
        ip_in(&w.nodes[node].ns, &format!("-6 route add fd30::/64 via {via6}")).unwrap();
    }
    e.translate();
    let ways = [
        ("by its address", e.one.at(9000)),
        ("by its address, IPv6", e.one.at6(9000)),
        ("by a port of the pod's", e.pod.at(8088)),
    ];
    // Permissive: it comes in, through ztunnel, which the container sees.
    for (what, to) in &ways {
        wait_for(what, PATIENCE, || works(&stranger, *to).then_some(()));
        row(&format!("permissive: a stranger to a container {what}"), "true", &works(&outside, *to).to_string());
        let peer = inner.last_peer().unwrap().ip().to_string();
        row("its peer", if to.is_ipv4() { "172.30.0.1" } else { "fd30::1" }, &peer);
    }
    // A pod is no way from the outside to the outside, though its kernel forwards.
    let (ip, ip6) = (outside.ip, outside.ip6);
    ip_in(&w.nodes[0].ns, &format!("route add {ip}/32 via {}", e.pod.ip)).unwrap();
    ip_in(&w.nodes[0].ns, &format!("-6 route add {ip6}/128 via {}", e.pod.ip6)).unwrap();
    for to in [outside.at(8080), outside.at6(8080)] {
        let s = stranger.netns().run(|| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2))).unwrap();
        let served = s.and_then(|mut s| app::ping(&mut s, MARK)).is_ok();
        row(&format!("a stranger through the pod to {to}"), "false", &served.to_string());
    }
    assert_eq!(beyond.connections(), 0);
    ip_in(&w.nodes[0].ns, &format!("route del {ip}/32")).unwrap();
    ip_in(&w.nodes[0].ns, &format!("-6 route del {ip6}/128")).unwrap();

    w.apply("strict", STRICT);
    let before = inner.connections();
    for (what, to) in &ways {
        for (who, from) in [("a stranger", &stranger), ("a stranger, other node", &outside), ("a member", &member)] {
            let t = Instant::now();
            let served = works(from, *to);
            row(&format!("STRICT: {who} to a container {what}"), "false", &served.to_string());
            assert!(t.elapsed() < Duration::from_secs(5), "refused, not left waiting: {:?}", t.elapsed());
        }
    }
    assert_eq!(inner.connections(), before);
    // Outwards it still goes, and answers come back.
    let far = Echo::start(&member, 8080, "");
    row("STRICT: the container to a member", "true", &works(&e.one, member.at(8080)).to_string());
    row("its address there", &e.pod.ip.to_string(), &far.last_peer().unwrap().ip().to_string());
    let served = load.end();
    println!("forward bystander: ok={} failed={:?} slowest_ms={}", served.ok, served.failed, served.slowest_ms);
    assert!(served.failed.is_empty() && served.ok > 50, "{served:?}");
    println!("{}", w.status(0).unwrap());
}
