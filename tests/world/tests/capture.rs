//! Capture: who is redirected, in both families and directions, and what stays as it was (T53); opt-outs, probes, DNS,
//! service addresses, same-node connections.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "setsockopt(TCP_FASTOPEN_CONNECT), which socket2 does not have"
)]

use karst_rt::netns::Netns;
use karst_world::{Load, Options, Pod, PodSpec, World, app, wait_for};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

const MARK: &[u8] = b"karst-plaintext-marker-7f3a91c2";

fn row(what: &str, expected: &str, seen: &str) {
    println!("T53 {what:<58} expected={expected} seen={seen}");
    assert_eq!(seen, expected, "{what}");
}

/// `tunnel`, `plain`, or how it failed.
fn verdict(w: &World, from: &Pod, result: std::io::Result<TcpStream>, before: f64) -> String {
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::TimedOut => "dropped".into(),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => "dropped".into(),
        Err(e) => format!("{:?}", e.kind()),
        Ok(mut s) => {
            if app::exchange(&mut s, MARK).is_err() {
                return "reset".into();
            }
            let after = wait_count(w, from.spec.node);
            if after > before { "tunnel".into() } else { "plain".into() }
        }
    }
}
fn wait_count(w: &World, node: usize) -> f64 {
    std::thread::sleep(Duration::from_millis(30));
    w.metric(node, "istio_tcp_connections_opened_total", &["reporter=\"source\"", "mutual_tls"])
}

fn raw(domain: Domain, f: impl Fn(&Socket) -> std::io::Result<()>, to: SocketAddr) -> std::io::Result<TcpStream> {
    let s = Socket::new(domain, Type::STREAM, None)?;
    f(&s)?;
    s.connect_timeout(&SockAddr::from(to), Duration::from_millis(1500))?;
    Ok(s.into())
}

#[test]
fn no_connection_bypasses_the_capture() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 1)));
    let outside = w.pod(PodSpec::new("out", "o", 1));
    let opted = w.pod(PodSpec::new("app", "opted", 0).label("istio.io/dataplane-mode", "none"));
    let bypass =
        w.mesh_pod(PodSpec::new("app", "bypass", 1).annotation("ambient.istio.io/bypass-inbound-capture", "true"));
    w.settle();
    let echo = app::Echo::start(&b, 8080, "");
    let _echo_a = app::Echo::start(&a, 8080, "");
    let _echo_out = app::Echo::start(&outside, 8080, "");
    let _echo_bypass = app::Echo::start(&bypass, 8080, "");
    let sniffer = w.sniffer(MARK);

    for (family, to) in [("IPv4", b.at(8080)), ("IPv6", b.at6(8080))] {
        let before = wait_count(&w, 0);
        let mut s = a.connect(to).unwrap();
        assert_eq!(s.peer_addr().unwrap(), to, "the application sees the address that it called");
        assert_eq!(app::exchange(&mut s, MARK).unwrap(), MARK);
        row(
            &format!("{family}: pod to pod on another node"),
            "tunnel",
            if wait_count(&w, 0) > before { "tunnel" } else { "plain" },
        );
        let own = if to.is_ipv4() { a.ip } else { a.ip6 };
        assert_eq!(echo.last_peer().unwrap().ip(), own, "the server sees its client's address");
    }
    let taken =
        a.netns().run(|| raw(Domain::IPV4, |s| s.bind(&SocketAddr::from(([0, 0, 0, 0], 15008)).into()), b.at(8080)));
    row("source port of the proxy (15008)", "taken", if taken.unwrap().is_err() { "taken" } else { "free" });
    let forms: [(&str, &dyn Fn(&Socket) -> std::io::Result<()>); 4] = [
        ("socket with ztunnel's mark 0x539", &|s| s.set_mark(0x539)),
        ("socket with the capture mark 0x111", &|s| s.set_mark(0x111)),
        ("socket with another mark", &|s| s.set_mark(0x7)),
        ("source port of another proxy (15090)", &|s| s.bind(&SocketAddr::from(([0, 0, 0, 0], 15090)).into())),
    ];
    for (what, f) in forms {
        let before = wait_count(&w, 0);
        let r = a.netns().run(|| raw(Domain::IPV4, f, b.at(8080))).unwrap();
        row(what, "tunnel", &verdict(&w, &a, r, before));
    }
    let before = wait_count(&w, 0);
    let r = a.netns().run(|| raw(Domain::IPV4, |s| s.bind_device(Some(b"eth0")), b.at(8080))).unwrap();
    row("SO_BINDTODEVICE eth0", "dropped", &verdict(&w, &a, r, before));
    let before = wait_count(&w, 0);
    let r = a.netns().run(|| raw(Domain::IPV6, |s| s.bind_device(Some(b"eth0")), b.at6(8080))).unwrap();
    row("SO_BINDTODEVICE eth0, IPv6", "NetworkUnreachable", &verdict(&w, &a, r, before));
    row("SYN from a raw socket", "dropped", &raw_syn(&a, &b));
    let before = wait_count(&w, 0);
    row("TCP fast open", "tunnel", &verdict(&w, &a, fast_open(&a, b.at(8080)), before));
    let before = wait_count(&w, 0);
    let mptcp = a.netns().run(|| Socket::new(Domain::IPV4, Type::STREAM, Some(socket2::Protocol::MPTCP))).unwrap();
    let seen = match mptcp {
        Err(_) => "no MPTCP in this kernel".to_string(),
        Ok(s) => {
            let r = s
                .connect_timeout(&SockAddr::from(b.at(8080)), Duration::from_millis(1500))
                .map(|()| TcpStream::from(s));
            verdict(&w, &a, r, before)
        }
    };
    println!("T53 MPTCP socket: {seen}");
    assert_ne!(seen, "plain");

    // What is left alone.
    for (what, to) in [
        ("own address", a.at(8080)),
        ("own address, IPv6", a.at6(8080)),
        ("loopback", SocketAddr::from(([127, 0, 0, 1], 8080))),
    ] {
        let before = wait_count(&w, 0);
        let r = a.connect(to);
        row(&format!("pod to its {what}"), "plain", &verdict(&w, &a, r, before));
    }
    let before = wait_count(&w, 0);
    let r = a.connect(outside.at(8080));
    row("mesh pod to a pod outside the mesh", "plain", &verdict(&w, &a, r, before));
    let r = outside.connect(b.at(8080));
    row("pod outside the mesh to a mesh pod (PERMISSIVE)", "plain", &verdict(&w, &outside, r, f64::MAX));
    let r = opted.connect(b.at(8080));
    row("opted-out pod to a mesh pod", "plain", &verdict(&w, &opted, r, f64::MAX));
    let r = outside.connect(bypass.at(8080));
    row("pod outside to one that bypasses inbound capture", "plain", &verdict(&w, &outside, r, f64::MAX));
    let r = a.connect(b.at(9999));
    row(
        "closed port",
        "reset",
        &match r {
            Err(_) => "reset".into(),
            Ok(mut s) => match s.read(&mut [0; 1]) {
                Err(_) => "reset".to_string(),
                Ok(n) => format!("{n} bytes"),
            },
        },
    );
    let r = w.nodes[1].netns.run(|| TcpStream::connect_timeout(&b.at(8080), Duration::from_secs(2))).unwrap();
    let before = w.metric(1, "istio_tcp_connections_opened_total", &["reporter=\"destination\""]);
    let mut s = r.unwrap();
    app::ping(&mut s, b"probe").unwrap();
    let after = w.metric(1, "istio_tcp_connections_opened_total", &["reporter=\"destination\""]);
    row("the node's own probe", "left alone", if after == before { "left alone" } else { "captured" });

    let seen = sniffer.seen();
    let status = w.status(0).unwrap();
    println!("{status}");
    println!("T53 sniffer {seen:?}");
    assert!(status.contains("app/a") && seen.hbone > 20);
}

/// A connection whose data goes with the SYN.
#[allow(unsafe_code, reason = "setsockopt(TCP_FASTOPEN_CONNECT), which socket2 does not have")]
fn fast_open(from: &Pod, to: SocketAddr) -> std::io::Result<TcpStream> {
    use std::os::fd::AsRawFd;
    let s = from.netns().run(|| Socket::new(Domain::IPV4, Type::STREAM, None))??;
    let one = 1i32;
    // SAFETY: TCP_FASTOPEN_CONNECT (30) takes an int.
    let r = unsafe { libc_setsockopt(s.as_raw_fd(), 6, 30, (&raw const one).cast(), 4) };
    assert_eq!(r, 0, "TCP_FASTOPEN_CONNECT");
    s.connect(&SockAddr::from(to))?;
    Ok(s.into())
}
#[allow(unsafe_code, reason = "setsockopt(TCP_FASTOPEN_CONNECT), which socket2 does not have")]
unsafe extern "C" {
    #[link_name = "setsockopt"]
    fn libc_setsockopt(fd: i32, level: i32, name: i32, value: *const std::ffi::c_void, len: u32) -> i32;
}

/// A SYN by hand; does an answer come?
fn raw_syn(a: &Pod, b: &Pod) -> String {
    let (std::net::IpAddr::V4(src), std::net::IpAddr::V4(dst)) = (a.ip, b.ip) else { panic!("IPv4") };
    let (send, mut recv) = a
        .netns()
        .run(|| {
            let send = Socket::new(Domain::IPV4, Type::RAW, Some(socket2::Protocol::TCP)).unwrap();
            (send, Socket::new(Domain::IPV4, Type::RAW, Some(socket2::Protocol::TCP)).unwrap())
        })
        .unwrap();
    recv.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let mut syn = vec![0u8; 20];
    syn[..2].copy_from_slice(&40_000u16.to_be_bytes());
    syn[2..4].copy_from_slice(&8080u16.to_be_bytes());
    syn[12] = 5 << 4;
    syn[13] = 2;
    syn[14..16].copy_from_slice(&1000u16.to_be_bytes());
    let words = [&src.octets()[..], &dst.octets(), &[0, 6, 0, 20], &syn].concat();
    let mut sum: u32 = words.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    syn[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    if send.send_to(&syn, &SockAddr::from(b.at(0))).is_err() {
        return "dropped".into();
    }
    let mut buf = [0; 1500];
    let end = std::time::Instant::now() + Duration::from_millis(700);
    while std::time::Instant::now() < end {
        let Ok(n) = recv.read(&mut buf) else { break };
        let at = usize::from(buf[0] & 0xf) * 4;
        if n > at + 14 && buf[at + 2..at + 4] == 40_000u16.to_be_bytes() && buf[12..16] == dst.octets() {
            return "answered".into();
        }
    }
    "dropped".into()
}

/// The application's end of a captured connection has the client's address. Were its port one of the client's own range, then
/// for as long as it is open a new connection of the client from that port would never get an answer: found on Kubernetes, by
/// a client outside the mesh that held connections while a namespace joined and left.
#[test]
fn captured_clients_do_not_lose_their_own_ports() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("outside", false);
    let b = w.mesh_pod(PodSpec::new("app", "b", 1));
    let client = w.pod(PodSpec::new("outside", "client", 0));
    let echo = app::Echo::start(&b, 8080, "");
    let range =
        client.netns().run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")).unwrap().unwrap();
    let range: Vec<u16> = range.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let mut held = vec![];
    let mut ports = vec![];
    for n in 1..=40 {
        let mut s = client.connect(b.at(8080)).unwrap();
        app::ping(&mut s, b"held").unwrap();
        assert_eq!(echo.connections(), n);
        let peer = echo.last_peer().unwrap();
        assert_eq!(peer.ip(), client.ip);
        ports.push(peer.port());
        held.push(s);
    }
    println!(
        "ports that the application saw: {} to {}; the client's own: {range:?}",
        ports.iter().min().unwrap(),
        ports.iter().max().unwrap()
    );
    assert!(ports.iter().all(|p| !(range[0]..=range[1]).contains(p)), "{ports:?}");
}

/// Clients behind one address use any port, so also those that ztunnel's connections to the application have at the moment: theirs
/// are never taken for these. (Without that, 30 of 800 got no answer with 1,500 open.)
#[test]
fn clients_behind_one_address_lose_no_connection() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("outside", false);
    let b = w.mesh_pod(PodSpec::new("app", "b", 1));
    let nat = w.pod(PodSpec::new("outside", "nat", 0));
    let echo = app::Echo::start(&b, 8080, "");
    // A member that calls another application of the pod all the while.
    let member = w.mesh_pod(PodSpec::new("app", "member", 0));
    let _other = app::Echo::start(&b, 8081, "");
    let load = Load::start(member.netns(), b.at(8081), 50, MARK);
    // From a port of the application's own choice.
    let from = |port: u16, to: SocketAddr| {
        let any = if to.is_ipv4() { "0.0.0.0".parse::<IpAddr>() } else { "::".parse() }.unwrap();
        let bind = |s: &Socket| s.bind(&SocketAddr::new(any, port).into());
        nat.netns().run(|| raw(Domain::for_address(to), bind, to)).unwrap()
    };
    let mut held = vec![];
    for to in [b.at(8080), b.at6(8080)] {
        for _ in 0..400 {
            let mut s = nat.connect(to).unwrap();
            app::ping(&mut s, b"held").unwrap();
            held.push(s);
        }
    }
    // The very ports that the application sees of those that are open: each is met.
    let ports: Vec<SocketAddr> = echo.peers.lock().unwrap().clone();
    let (mut ok, mut lost) = (0, vec![]);
    for p in &ports {
        let to = if p.is_ipv4() { b.at(8080) } else { b.at6(8080) };
        match from(p.port(), to).and_then(|mut s| app::ping(&mut s, b"met")) {
            Ok(()) => ok += 1,
            Err(e) => lost.push(format!("{p}: {e}")),
        }
    }
    let broken = held.iter_mut().filter_map(|s| app::ping(s, b"still").err()).count();
    let served = load.end();
    println!(
        "clients behind one address: held={} met={} ok={ok} lost={} broken={broken}; a member: ok={} failed={:?}",
        held.len(),
        ports.len(),
        lost.len(),
        served.ok,
        served.failed
    );
    assert_eq!((ok, lost.len(), broken), (ports.len(), 0, 0), "{:?}", lost.first());
    assert!(served.failed.is_empty() && served.ok > 20, "{served:?}");
}

/// An application that had one of ztunnel's ports before the mesh keeps it, and its pod is redirected all the same; and one that
/// listens at the port of a connection that ztunnel has open in its pod may.
#[test]
fn applications_keep_their_ports() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", false);
    w.namespace("out", false);
    let (a, b) = (w.pod(PodSpec::new("app", "a", 0)), w.pod(PodSpec::new("app", "b", 1)));
    let outside = w.pod(PodSpec::new("out", "outside", 1));
    let _echoes = [app::Echo::start(&a, 8080, ""), app::Echo::start(&b, 8080, "")];
    let server = app::Echo::start(&outside, 8080, "");
    const PORTS: [u16; 4] = [15001, 15006, 15008, 15053];
    let own: Vec<_> = PORTS.iter().map(|port| app::Echo::start(&a, *port, "")).collect();
    let datagrams = a.netns().run(|| UdpSocket::bind("0.0.0.0:15053")).unwrap().unwrap();
    w.namespace("app", true);
    w.wait_enrolled(&a);
    w.wait_enrolled(&b);
    // IPv6 takes a second or two in a world.
    for (from, to) in [(&a, &b), (&b, &a)] {
        for at in [to.at(8080), to.at6(8080)] {
            wait_for("it is served", Duration::from_secs(10), || {
                from.connect(at).and_then(|mut s| app::ping(&mut s, MARK)).ok()
            });
        }
    }
    wait_for("it calls through a tunnel", Duration::from_secs(10), || {
        let before = wait_count(&w, 0);
        app::ping(&mut a.connect(b.at(8080)).unwrap(), MARK).unwrap();
        (wait_count(&w, 0) > before).then_some(())
    });
    w.apply("svc", "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec: {clusterIP: 10.96.0.10, selector: {app: web}, ports: [{name: http, port: 80}]}\n");
    assert_eq!(dns_ask(&a, "web.app.svc.cluster.local", 1), Some((0, 1)), "ztunnel answers for the mesh");
    // The application's own listeners are there for itself, and for nobody else: they are ztunnel's ports to its neighbours.
    for (port, echo) in PORTS.iter().zip(&own) {
        app::ping(&mut a.connect(SocketAddr::from(([127, 0, 0, 1], *port))).unwrap(), MARK).unwrap();
        assert_eq!(echo.connections(), 1, "{port}");
        let answered = b.connect(a.at(*port)).and_then(|mut s| app::ping(&mut s, MARK)).is_ok();
        assert_eq!((answered, echo.connections()), (false, 1), "{port}");
    }
    drop(datagrams);
    // A connection of ztunnel's in the pod, and a server that wants its port.
    for to in [outside.at(8080), outside.at6(8080)] {
        let mut held = wait_for("the outside is reached", Duration::from_secs(10), || {
            a.connect(to).ok().and_then(|mut s| app::ping(&mut s, MARK).ok().map(|()| s))
        });
        let port = server.last_peer().unwrap().port();
        let any = if to.is_ipv4() { "0.0.0.0".parse::<IpAddr>() } else { "::".parse() }.unwrap();
        let listens = a.netns().run(|| TcpListener::bind((any, port))).unwrap();
        let seen = listens.map_or_else(|e| e.kind().to_string(), |_| "listens".into());
        row("a server at the port of a connection of ztunnel's", "listens", &seen);
        app::ping(&mut held, MARK).unwrap();
    }
}

#[test]
fn same_node_connections_keep_identity_policy_metrics_and_logs() {
    let mut w = World::start(Options { nodes: 1, ..Options::default() }).unwrap();
    w.namespace("app", true);
    let (a, b, c) = (
        w.mesh_pod(PodSpec::new("app", "a", 0)),
        w.mesh_pod(PodSpec::new("app", "b", 0)),
        w.mesh_pod(PodSpec::new("app", "c", 0)),
    );
    let echo = app::Echo::start(&b, 8080, "");
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    assert_eq!(app::exchange(&mut a.connect(b.at(8080)).unwrap(), &data).unwrap(), data, "bulk, both ways at once");
    assert_eq!(echo.last_peer().unwrap().ip(), a.ip);
    for reporter in ["source", "destination"] {
        let n = w.metric(
            0,
            "istio_tcp_connections_opened_total",
            &[
                &format!("reporter=\"{reporter}\""),
                "source_principal=\"spiffe://cluster.local/ns/app/sa/a\"",
                "mutual_tls",
            ],
        );
        assert_eq!(n, 1.0, "{reporter}");
        let bytes = w.metric(0, "istio_tcp_received_bytes_total", &[&format!("reporter=\"{reporter}\""), "mutual_tls"]);
        assert_eq!(bytes, 3_000_000.0, "{reporter}");
    }
    let allow = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only-a, namespace: app}\nspec: {selector: {matchLabels: {app: b}}, rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/a]}}]}]}\n";
    w.apply("policy", allow);
    app::ping(&mut a.connect(b.at(8080)).unwrap(), MARK).unwrap();
    // The reset may come before connect(2) has returned.
    assert!(c.connect(b.at(8080)).and_then(|mut s| app::ping(&mut s, MARK)).is_err(), "c is refused");
    // A refused client knows it before the line is written.
    wait_for("the access log", Duration::from_secs(5), || {
        let log = w.log_text("ztunnel0.log");
        ["direction=\"inbound\"", "direction=\"outbound\"", "connection denied"]
            .iter()
            .all(|x| log.contains(x))
            .then_some(())
    });
}

#[test]
fn services_balance_fail_over_and_are_found_by_name() {
    services(Options::default());
}

/// A ztunnel that is told only of what is asked for does the same.
#[test]
fn services_balance_fail_over_and_are_found_by_name_on_demand() {
    let ztunnel_env = vec![("XDS_ON_DEMAND".into(), "true".into())];
    services(Options { ztunnel_env, ..Options::default() });
}

fn services(options: Options) {
    let mut w = World::start(options).unwrap();
    w.namespace("app", true);
    let client = w.mesh_pod(PodSpec::new("app", "client", 0));
    let backends: Vec<Pod> =
        (0..3).map(|i| w.mesh_pod(PodSpec::new("app", &format!("b{i}"), i % 2).label("app", "web"))).collect();
    w.apply("svc", "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd96::10'], selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: headless, namespace: app}\nspec: {clusterIP: None, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n");
    let echoes: Vec<_> = backends.iter().map(|b| app::Echo::start(b, 8080, "")).collect();
    let vip: SocketAddr = ([10, 96, 0, 10], 80).into();
    for to in [vip, "[fd96::10]:80".parse().unwrap()] {
        for _ in 0..30 {
            app::ping(&mut client.connect(to).unwrap(), MARK).unwrap();
        }
    }
    let spread: Vec<usize> = echoes.iter().map(app::Echo::connections).collect();
    println!("balance connections={spread:?}");
    assert!(spread.iter().all(|n| *n >= 5), "{spread:?}");
    assert!(
        client.connect(([10, 96, 0, 10], 81).into()).and_then(|mut s| app::ping(&mut s, MARK)).is_err(),
        "a port that the service does not have"
    );

    // A pod that is gone from the network but still in the manifests: the connect fails, and the other endpoint is tried.
    drop(echoes);
    let _only: Vec<_> = backends[..2].iter().map(|b| app::Echo::start(b, 8080, "")).collect();
    w.write_pod(&backends[2], false);
    w.settle();
    let mut ok = 0;
    for _ in 0..30 {
        ok += usize::from(client.connect(vip).and_then(|mut s| app::ping(&mut s, MARK)).is_ok());
    }
    println!("failover ok={ok}/30 with one endpoint not ready");
    assert_eq!(ok, 30);

    // DNS: the application asks a resolver that does not exist; ztunnel answers for the mesh, from that address.
    let dns = |name: &str, kind: u16| dns_ask(&client, name, kind);
    assert_eq!(dns("web.app.svc.cluster.local", 1), Some((0, 1)));
    assert_eq!(dns("web.app.svc.cluster.local", 28), Some((0, 1)));
    assert_eq!(dns("headless.app.svc.cluster.local", 1), Some((0, 2)), "the two ready endpoints");
    assert_eq!(dns("web", 1), Some((0, 2)), "expanded with the client's namespace: CNAME and A");
    // Others go to the resolver that was asked; here a server of ours on a pod outside of the mesh.
    w.namespace("out", false);
    let resolver = w.pod(PodSpec::new("out", "resolver", 1));
    let s = resolver.netns().run(|| UdpSocket::bind("0.0.0.0:53").unwrap()).unwrap();
    let t = std::thread::spawn(move || {
        let mut b = [0; 512];
        let (n, from) = s.recv_from(&mut b).unwrap();
        b[2] |= 0x80;
        b[3] = 3; // NXDOMAIN
        s.send_to(&b[..n], from).unwrap();
    });
    assert_eq!(dns_ask_at(&client, "example.org", 1, (resolver.ip, 53).into()), Some((3, 0)));
    t.join().unwrap();
}

/// A ServiceEntry whose endpoints are host names: ztunnel resolves them. A name that leads to a member is a member; one that
/// leads to the pod itself, or nowhere, is refused.
#[test]
fn endpoints_by_name_are_resolved() {
    let conf = std::env::temp_dir().join(format!("karst-resolv-{}", std::process::id()));
    let mut w = World::start(Options {
        ztunnel_env: vec![("KARST_RESOLV_CONF".into(), conf.display().to_string())],
        ..Options::default()
    })
    .unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let a = w.mesh_pod(PodSpec::new("app", "a", 0));
    let member = w.mesh_pod(PodSpec::new("app", "member", 1));
    let (outside, names) = (w.pod(PodSpec::new("out", "outside", 1)), w.pod(PodSpec::new("out", "names", 0)));
    let (_far, _member) = (app::Echo::start(&outside, 9000, ""), app::Echo::start(&member, 9000, ""));
    let _own = app::Echo::start(&a, 9000, "");
    let v4 = |p: &Pod| match p.at(0).ip() {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => unreachable!(),
    };
    let records = [("db.example", v4(&outside)), ("in.example", v4(&member)), ("self.example", Ipv4Addr::LOCALHOST)];
    app::name_server(&names, records.into());
    std::fs::write(&conf, format!("search wrong.example\nnameserver {}\n", v4(&names))).unwrap();
    for (i, host) in ["db.example", "in.example", "self.example", "nowhere.example"].iter().enumerate() {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e{i}, namespace: app}}\nspec: {{hosts: [s{i}.test], addresses: [10.97.0.{}], resolution: DNS, ports: [{{number: 80, name: tcp, protocol: TCP, targetPort: 9000}}], endpoints: [{{address: {host}}}]}}\n",
            i + 1
        );
        w.apply(&format!("e{i}"), &text);
    }
    let try_it = |i: u8| a.connect(([10, 97, 0, i + 1], 80).into()).and_then(|mut s| app::ping(&mut s, MARK)).is_ok();
    let sniffer = w.sniffer(MARK);
    assert!(try_it(1), "in.example, a member");
    let member_seen = sniffer.seen();
    assert!(member_seen.marked == 0 && member_seen.hbone > 0, "{member_seen:?}");
    assert!(try_it(0), "db.example, outside");
    assert!(sniffer.seen().marked > 0, "the far side of a plain endpoint is plain");
    assert_eq!((try_it(2), try_it(3)), (false, false), "the pod itself, and nowhere");
    wait_for("the access log", Duration::from_secs(5), || {
        let log = w.log_text("ztunnel0.log");
        ["has no usable address", "nowhere.example cannot be resolved"].iter().all(|x| log.contains(x)).then_some(())
    });
    let asked = w.metric(0, "istio_on_demand_dns_total", &["source_workload=\"a\"", "hostname=\"db.example\""]);
    assert_eq!(asked, 1.0);
    std::fs::remove_file(&conf).unwrap();
}

/// Issue 14, 17: `sessionAffinity: ClientIP`, as kube-proxy has it: a client stays with its endpoint while that is there, and with
/// the one that it went to instead, until it has not called for the timeout.
#[test]
fn session_affinity_keeps_a_client_with_its_endpoint() {
    const TIMEOUT: Duration = Duration::from_secs(10);
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let servers: Vec<Pod> =
        (0..3).map(|i| w.mesh_pod(PodSpec::new("app", &format!("s{i}"), i % 2).label("app", "web"))).collect();
    let clients: Vec<Pod> = (0..8).map(|i| w.mesh_pod(PodSpec::new("app", &format!("c{i}"), i % 2))).collect();
    w.apply("svc", &format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: app}}\nspec: {{clusterIP: 10.96.0.20, clusterIPs: [10.96.0.20, 'fd96::20'], selector: {{app: web}}, sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {}}}}}, ports: [{{name: tcp, port: 80, targetPort: 8080}}]}}\n", TIMEOUT.as_secs()));
    let _echoes: Vec<_> = servers.iter().map(|s| app::Echo::start(s, 8080, &s.spec.name)).collect();
    let asks = |c: &Pod| {
        let mut s = c.connect(([10, 96, 0, 20], 80).into()).unwrap();
        String::from_utf8(app::exchange(&mut s, b"").unwrap()).unwrap()
    };
    // Each client with one server, over all workers; not all of them with the same.
    let stays = |c: &Pod| {
        let first = asks(c);
        for i in 1..20 {
            assert_eq!(asks(c), first, "{}: connection {i}", c.spec.name);
        }
        first
    };
    let first: Vec<String> = clients.iter().map(stays).collect();
    println!("affinity first={first:?}");
    assert!(first.iter().any(|s| *s != first[0]), "{first:?}");
    // Its server is not ready: another one. Ready again: it stays where it is.
    let (client, gone) = (&clients[0], servers.iter().find(|s| s.spec.name == first[0]).unwrap());
    w.write_pod(gone, false);
    w.settle();
    let second = stays(client);
    assert_ne!(second, first[0]);
    for (c, before) in clients.iter().zip(&first).filter(|(_, s)| **s != first[0]) {
        assert_eq!(asks(c), *before, "{}: who was with another server stays there", c.spec.name);
    }
    w.write_pod(gone, true);
    w.settle();
    assert_eq!(stays(client), second, "though the first one is back");
    // Forgotten: as a new client it goes where it went first.
    std::thread::sleep(TIMEOUT + Duration::from_secs(1));
    let third = stays(client);
    println!("affinity second={second} third={third}");
    assert_eq!(third, first[0]);
}

/// Issue 14, 17: an address that the application chooses among its pod's is seen by who is not of the mesh; members, and so their
/// policies, see the pod's first one of the family.
#[test]
fn a_chosen_address_is_kept_on_plain_ways() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let a = w.mesh_pod(PodSpec::new("app", "a", 0));
    let members = [0, 1].map(|n| w.mesh_pod(PodSpec::new("app", &format!("member{n}"), n)));
    let outside = [0, 1].map(|n| w.pod(PodSpec::new("out", &format!("outside{n}"), n)));
    w.settle();
    let second: [IpAddr; 2] = ["10.77.0.200".parse().unwrap(), "fd77::200".parse().unwrap()];
    // The newest of IPv6 would be the one that the kernel chooses by itself, unless it is deprecated.
    for words in ["10.77.0.200/24", "fd77::200/64 nodad preferred_lft 0"] {
        karst_world::net::ip_in(&a.ns, &format!("addr add dev eth0 {words}")).unwrap();
    }
    let [inner, outer] = [&members, &outside].map(|pods| pods.each_ref().map(|p| app::Echo::start(p, 8080, "")));
    for v6 in [false, true] {
        let (own, chosen) = if v6 { (a.ip6, second[1]) } else { (a.ip, second[0]) };
        let peer = |pod: &Pod, echo: &app::Echo| {
            let to = if v6 { pod.at6(8080) } else { pod.at(8080) };
            let bind = |s: &Socket| s.bind(&SocketAddr::new(chosen, 0).into());
            // IPv6 takes a second or two in a world.
            wait_for("it is served", Duration::from_secs(10), || {
                let mut s = a.netns().run(|| raw(Domain::for_address(to), bind, to)).unwrap().ok()?;
                app::ping(&mut s, MARK).ok()
            });
            echo.last_peer().unwrap().ip().to_string()
        };
        for (who, pods, echoes, sees) in
            [("a member", &members, &inner, own), ("a pod outside the mesh", &outside, &outer, chosen)]
        {
            for (pod, echo) in pods.iter().zip(echoes) {
                let what = format!("bound to {chosen}: {who} on node {} sees", pod.spec.node);
                row(&what, &sees.to_string(), &peer(pod, echo));
            }
        }
    }
}

fn dns_ask(from: &Pod, name: &str, kind: u16) -> Option<(u8, u16)> {
    dns_ask_at(from, name, kind, ([10, 96, 0, 53], 53).into())
}

/// Asks over UDP: response code and number of answers.
fn dns_ask_at(from: &Pod, name: &str, kind: u16, server: SocketAddr) -> Option<(u8, u16)> {
    let s = from.netns().run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    s.connect(server).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(7))).unwrap();
    let q = dns_query(name, kind);
    s.send(&q).unwrap();
    let mut b = [0; 1500];
    let n = s.recv(&mut b).ok()?;
    assert!(n > 12 && b[..2] == q[..2]);
    Some(dns_answer(&b))
}

fn dns_query(name: &str, kind: u16) -> Vec<u8> {
    let mut q = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for l in name.split('.') {
        q.push(l.len() as u8);
        q.extend(l.as_bytes());
    }
    q.push(0);
    q.extend([(kind >> 8) as u8, kind as u8, 0, 1]);
    q
}

/// Response code and number of answers.
fn dns_answer(b: &[u8]) -> (u8, u16) {
    (b[3] & 0xf, u16::from_be_bytes([b[6], b[7]]))
}

/// Queries for TCP, one after the other.
fn dns_stream(questions: &[(&str, u16)]) -> Vec<u8> {
    let framed = questions.iter().map(|(name, kind)| {
        let q = dns_query(name, *kind);
        [&(q.len() as u16).to_be_bytes()[..], &q].concat()
    });
    framed.collect::<Vec<_>>().concat()
}

/// The next message of a TCP connection.
fn dns_read(s: &mut TcpStream) -> Vec<u8> {
    let mut len = [0; 2];
    s.read_exact(&mut len).unwrap();
    let mut m = vec![0; usize::from(u16::from_be_bytes(len))];
    s.read_exact(&mut m).unwrap();
    m
}

/// DNS over TCP: names of the mesh are answered where the client is. From the first message on that is not ours, the resolver is
/// reached as any other server is, a member through a tunnel, and all that either side says is carried. A pod whose DNS is not
/// captured speaks with its resolver alone.
#[test]
fn dns_over_tcp_goes_by_the_plan() {
    const ZONE: &str = "karst-plaintext-marker-7f3a91c2.example";
    const WEB: &str = "web.app.svc.cluster.local";
    const A: u16 = 1;
    const AXFR: u16 = 252;
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let client = w.mesh_pod(PodSpec::new("app", "client", 0));
    let alone = w.mesh_pod(PodSpec::new("app", "alone", 0).annotation("ambient.istio.io/dns-capture", "false"));
    let (near, far) = (w.mesh_pod(PodSpec::new("app", "near", 0)), w.mesh_pod(PodSpec::new("app", "far", 1)));
    let outside = w.pod(PodSpec::new("out", "outside", 1));
    w.apply("web", "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec: {clusterIP: 10.96.0.10, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}\n");
    w.apply("strict", "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n");
    let asked = [&near, &far, &outside].map(|p| app::zone_server(p, MARK));
    app::name_server(&far, vec![]);

    // Nobody needs to be there for names of the mesh.
    let mut s = client.connect(([10, 96, 0, 53], 53).into()).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for _ in 0..3 {
        s.write_all(&dns_stream(&[(WEB, A)])).unwrap();
        assert_eq!(dns_answer(&dns_read(&mut s)), (0, 1), "by ztunnel");
    }
    drop(s);

    let transfer = |to: SocketAddr| {
        let mut s = client.connect(to).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // All at once: one for ztunnel, two for the resolver.
        s.write_all(&dns_stream(&[(WEB, A), (ZONE, AXFR), (WEB, A)])).unwrap();
        assert_eq!(dns_answer(&dns_read(&mut s)), (0, 1), "by ztunnel");
        for i in 0..3 {
            let m = dns_read(&mut s);
            let records = m.windows(MARK.len()).filter(|x| *x == MARK).count();
            assert_eq!((dns_answer(&m), records), ((0, 100), 101), "message {i} of the transfer from {to}");
        }
        assert_eq!(dns_answer(&dns_read(&mut s)), (3, 0), "by the resolver");
        s.write_all(&dns_stream(&[("later.example", A)])).unwrap();
        assert_eq!(dns_answer(&dns_read(&mut s)), (3, 0), "by the resolver, later");
        // The end of one direction is carried, and answered with the end of the other.
        s.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(s.read_to_end(&mut vec![]).unwrap(), 0);
    };
    let sniffer = w.sniffer(MARK);
    for to in [far.at(53), far.at6(53), near.at(53)] {
        transfer(to);
    }
    let mut s = alone.connect(far.at(53)).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    s.write_all(&dns_stream(&[(WEB, A), (ZONE, AXFR)])).unwrap();
    assert_eq!(dns_answer(&dns_read(&mut s)), (3, 0), "not captured: by the resolver");
    (0..3).for_each(|_| assert_eq!(dns_answer(&dns_read(&mut s)), (0, 100)));
    drop(s);
    let seen = sniffer.seen();
    println!("DNS over TCP to members: {seen:?}");
    assert!(seen.marked == 0 && seen.other_tcp == 0 && seen.hbone > 0, "{seen:?}");
    transfer(outside.at(53));
    assert!(sniffer.seen().marked > 0, "a resolver outside the mesh is spoken to as it is");
    assert_eq!(asked.map(|a| a.lock().unwrap().len()), [3, 2 * 3 + 2, 3]);

    // Over UDP, which is not carried.
    assert_eq!(dns_ask_at(&client, WEB, A, far.at(53)), Some((0, 1)));
    assert_eq!(dns_ask_at(&alone, WEB, A, far.at(53)), Some((3, 0)), "not captured: by the resolver");
}

/// T55: joining and leaving while connections are open and new ones are made: none broken, none failed.
#[test]
fn joining_and_leaving_under_load_breaks_nothing() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", false);
    let (a, b) = (w.pod(PodSpec::new("app", "a", 0)), w.pod(PodSpec::new("app", "b", 1)));
    w.settle();
    let _echo = app::Echo::start(&b, 8080, "");
    let flips = 4;
    let held: Vec<_> = (0..20).map(|_| a.connect(b.at(8080)).unwrap()).collect();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (st, a2, to) = (stop.clone(), a.clone(), b.at(8080));
    let load = std::thread::spawn(move || {
        let (mut ok, mut failed, mut slowest) = (0, vec![], Duration::ZERO);
        while !st.load(std::sync::atomic::Ordering::Relaxed) {
            let t = std::time::Instant::now();
            match a2.connect(to).and_then(|mut s| app::ping(&mut s, MARK)) {
                Ok(()) => ok += 1,
                Err(e) => failed.push(e.to_string()),
            }
            slowest = slowest.max(t.elapsed());
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("T55 slowest_new_ms={}", slowest.as_millis());
        (ok, failed)
    });
    let mut broken = 0;
    let mut held = held;
    for i in 0..flips {
        let ambient = i % 2 == 0;
        let t = std::time::Instant::now();
        w.namespace("app", ambient);
        if ambient {
            w.wait_enrolled(&a);
            w.wait_enrolled(&b);
        } else {
            let f = w.dir.join("manifests/.status/node0/app.a");
            wait_for("a is reported as gone", Duration::from_secs(10), || (!f.exists()).then_some(()));
            std::thread::sleep(Duration::from_millis(700));
        }
        println!("T55 flip={i} ambient={ambient} ms={}", t.elapsed().as_millis());
        for s in &mut held {
            broken += usize::from(app::ping(s, MARK).is_err());
        }
        held.push(a.connect(b.at(8080)).unwrap());
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (ok, failed) = load.join().unwrap();
    println!(
        "T55 flips={flips} held={} broken={broken} new_ok={ok} new_failed={} {failed:?}",
        held.len(),
        failed.len()
    );
    assert_eq!((broken, failed.len()), (0, 0));
    assert!(ok > 50);
    let mut s = held.pop().unwrap();
    let _ = s.flush();
}

/// T51: once enrolment is acknowledged, the very first packet of a pod is captured. Pods come and go; each connects at once.
#[test]
fn the_first_packet_is_captured() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let b = w.mesh_pod(PodSpec::new("app", "b", 1));
    let _echo = app::Echo::start(&b, 8080, "");
    let sniffer = w.sniffer(MARK);
    let (mut captured, mut slowest) = (0, Duration::ZERO);
    const PODS: usize = 40;
    for i in 0..PODS {
        let p = w.mesh_pod(PodSpec::new("app", &format!("p{i}"), 0));
        let t = std::time::Instant::now();
        captured += usize::from(p.connect(b.at(8080)).and_then(|mut s| app::ping(&mut s, MARK)).is_ok());
        slowest = slowest.max(t.elapsed());
        w.remove_pod(&p);
    }
    let seen = sniffer.seen();
    println!("T51 pods={PODS} captured={captured} plaintext={} slowest_ms={}", seen.marked, slowest.as_millis());
    assert_eq!((captured, seen.marked, seen.other_tcp), (PODS, 0, 0));
}

/// A client that has closed long before the server does: what its kernel answers in TIME_WAIT goes to ztunnel, not to the wire.
/// (Else ztunnel's side stays in LAST_ACK for minutes, and a later connection from the same port gets no answer.)
#[test]
fn late_ends_stay_in_the_pod() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 1)));
    let l = b.netns().run(|| std::net::TcpListener::bind("[::]:9000").unwrap()).unwrap();
    let server = std::thread::spawn(move || {
        let ends: Vec<_> = (0..20)
            .map(|_| {
                let (mut s, _) = l.accept().unwrap();
                std::thread::spawn(move || {
                    let _ = s.read(&mut [0; 1]);
                    // Longer than a delayed acknowledgement: our end comes after the client has forgotten its socket.
                    std::thread::sleep(Duration::from_millis(200));
                })
            })
            .collect();
        ends.into_iter().for_each(|t| t.join().unwrap());
    });
    let sniffer = w.sniffer(MARK);
    for i in 0..20 {
        drop(a.connect(if i % 2 == 0 { b.at(9000) } else { b.at6(9000) }).unwrap());
    }
    server.join().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    // 09: LAST_ACK (include/net/tcp_states.h).
    let waiting: usize = ["tcp", "tcp6"]
        .iter()
        .map(|f| a.netns().run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{f}")).unwrap()).unwrap())
        .map(|t| t.lines().filter(|l| l.split_whitespace().nth(3) == Some("09")).count())
        .sum();
    let seen = sniffer.seen();
    println!("late ends=20 last_ack={waiting} other_tcp={}", seen.other_tcp);
    assert_eq!((waiting, seen.other_tcp), (0, 0));
}

/// Applications of every kind: as another user, as a static binary without libc's resolver, and started before the mesh.
#[test]
fn any_application_is_captured() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", false);
    let a = w.pod(PodSpec::new("app", "a", 0));
    let b = w.pod(PodSpec::new("app", "b", 1));
    let _echo = app::Echo::start(&b, 8080, "");
    w.settle();
    // The world's own IPv6 takes a second or two (duplicate address detection).
    app::ping(&mut a.connect(b.at6(8080)).unwrap(), MARK).unwrap();
    // Started before its namespace joins; connects again and again, over both families, as nobody, from a static binary.
    let client = karst_world::bin("meshbench");
    let run = |uid: &str| {
        a.command("setpriv")
            .args(["--reuid", uid, "--regid", uid, "--clear-groups"])
            .arg(karst_world::static_client().unwrap())
            .args([b.at(8080).to_string(), b.at6(8080).to_string(), "4000".into()])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    assert!(client.is_file());
    let children = [run("0"), run("65534")];
    std::thread::sleep(std::time::Duration::from_millis(500));
    w.namespace("app", true);
    w.wait_enrolled(&a);
    w.wait_enrolled(&b);
    // The client's node has to hear that b takes tunnels now; until then b is called as any other server is.
    karst_world::wait_for("node 0 knows b as a member", Duration::from_secs(5), || {
        let dump: serde_json::Value = serde_json::from_str(&w.get(0, 15000, "/config_dump").ok()?.1).ok()?;
        dump["workloads"].as_array()?.iter().any(|x| x["name"] == "b" && x["protocol"] == "HBONE").then_some(())
    });
    std::thread::sleep(Duration::from_millis(100)); // connections that had begun before
    let sniffer = w.sniffer(b"static-client-marker");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let seen = sniffer.seen();
    for c in children {
        let out = c.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        println!("static client: {}", text.trim());
        assert!(out.status.success() && text.contains("failed=0"), "{text}");
    }
    println!("static, uid 0 and 65534, v4 and v6, started before: marked={} hbone={}", seen.marked, seen.hbone);
    assert!(seen.marked == 0 && seen.hbone > 100, "{seen:?}");
}

/// A pod that comes does not disturb those that are there. (A bridge without an address of its own takes the lowest of its
/// ports': with one chance in as many pods as there are, a new pod changed the gateway's address, and who knew the old one got no
/// answer for ten seconds. CNI plugins set it, as the world does now; the demo failed by this, 3 times in 26.)
#[test]
fn a_pod_that_comes_disturbs_nobody() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 1)));
    let _echo = app::Echo::start(&b, 8080, "");
    let address = |w: &World| karst_world::net::ip_in(&w.nodes[0].ns, "-o link show cni0").unwrap();
    let gateway = |w: &World| address(w).split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_string();
    let before = gateway(&w);
    let outside = w.pod(PodSpec::new("out", "outside", 0));
    app::ping(&mut outside.connect(b.at(8080)).unwrap(), MARK).unwrap();
    let (mut failed, mut slowest) = (vec![], Duration::ZERO);
    for i in 0..12 {
        w.pod(PodSpec::new("out", &format!("new{i}"), 0));
        let t = std::time::Instant::now();
        for p in [&a, &outside] {
            if let Err(e) = p.connect(b.at(8080)).and_then(|mut s| app::ping(&mut s, MARK)) {
                failed.push(format!("pod {i}, {}, gateway {} then {}: {e}", p.spec.name, before, gateway(&w)));
            }
        }
        slowest = slowest.max(t.elapsed());
    }
    println!("new pods: gateway {before}, now {}; failed={failed:?} slowest_ms={}", gateway(&w), slowest.as_millis());
    assert_eq!((gateway(&w), failed.len()), (before, 0), "{failed:?}");
}

/// A device of a pod's that leads to the node past its uplink; made anew, in one go, as often as one likes.
struct Second<'a> {
    pod: &'a Pod,
    node: &'a str,
    /// The other end's name, and the third byte of the addresses.
    n: u8,
}

impl Second<'_> {
    fn made_anew(&self, first: bool, index: &str) {
        let (n, node) = (self.n, self.node);
        let mut words = vec![];
        if !first {
            // The first change is taken up at once; those that follow come while the agent waits.
            words.extend([
                "link add trigger type veth peer name trigger2".into(),
                "link del trigger".into(),
                "link del net1".into(),
            ]);
        }
        words.extend([
            format!("link add name net1 {index} type veth peer name anew{n} netns {node}"),
            format!("addr add 10.99.{n}.2/24 dev net1"),
            "link set net1 up".into(),
        ]);
        let batch = format!("printf '{}\\n' | ip -n {} -batch -", words.join("\\n"), self.pod.ns);
        karst_world::net::run("sh", &["-c", &batch]).unwrap();
        for c in [format!("addr add 10.99.{n}.1/24 dev anew{n}"), format!("link set anew{n} up")] {
            karst_world::net::ip_in(node, &c).unwrap();
        }
    }

    fn to(&self) -> SocketAddr {
        SocketAddr::from(([10, 99, self.n, 1], 7000))
    }

    /// Past the pod's routing.
    fn connects(&self) -> bool {
        let connect = || {
            let s = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            s.bind_device(Some(b"net1"))?;
            s.connect_timeout(&SockAddr::from(self.to()), Duration::from_millis(300))
        };
        self.pod.netns().run(connect).unwrap().is_ok()
    }

    /// By UDP, which is nothing to the guard: does the device lead there?
    fn leads(&self, node: &UdpSocket) -> bool {
        let send = || {
            let s = UdpSocket::bind("0.0.0.0:0")?;
            socket2::SockRef::from(&s).bind_device(Some(b"net1"))?;
            s.send_to(&[self.n], self.to())
        };
        let mut b = [0; 8];
        self.pod.netns().run(send).unwrap().is_ok() && matches!(node.recv(&mut b), Ok(1)) && b[0] == self.n
    }
}

#[test]
fn a_device_made_anew_under_the_same_name_is_guarded_again() {
    let mut w = World::start(Options { nodes: 1, ..Options::default() }).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let (member, outside) = (w.mesh_pod(PodSpec::new("app", "member", 0)), w.pod(PodSpec::new("out", "outside", 0)));
    w.settle();
    let node = Netns::open(format!("/run/netns/{}", w.nodes[0].ns)).unwrap();
    let (tcp, udp) =
        node.run(|| (TcpListener::bind("0.0.0.0:7000").unwrap(), UdpSocket::bind("0.0.0.0:7000").unwrap())).unwrap();
    udp.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    std::thread::spawn(move || tcp.incoming().for_each(drop));
    let second = |pod, n| Second { pod, node: &w.nodes[0].ns, n };
    let (member, outside) = (second(&member, 1), second(&outside, 2));
    // With an index that the kernel chooses, with one of its own, and twice with the same.
    for (round, index) in ["", "index 7777", "index 7777", ""].into_iter().cycle().take(16).enumerate() {
        member.made_anew(round == 0, index);
        wait_for("the device leads to the node", Duration::from_secs(5), || member.leads(&udp).then_some(()));
        wait_for(&format!("the device is guarded, round {round} {index}"), Duration::from_secs(3), || {
            (!member.connects()).then_some(())
        });
        // Not only by chance, and not because nothing gets there.
        assert!(!member.connects() && member.leads(&udp), "round {round} {index}");
    }
    // The way is open for who is not of the mesh: so what was dropped above, the guard has dropped.
    outside.made_anew(true, "");
    wait_for("an outsider connects", Duration::from_secs(5), || outside.connects().then_some(()));
    outside.made_anew(false, "");
    wait_for("an outsider connects again", Duration::from_secs(5), || outside.connects().then_some(()));
}
