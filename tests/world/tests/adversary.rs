//! The mesh under attack: an unprivileged process in a pod, a pod with CAP_NET_RAW, a member, and a stranger outside, from the
//! same node and from another (docs/threat-model.md names these tests). While an attack runs, bystanders on the same node are
//! served without one failure, and the node's descriptors come back.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_world::{Options, Pod, PodSpec, World, app, net, wait_for};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const PING: &[u8] = b"adversary";

fn row(who: &str, what: &str, expected: &str, seen: &str) {
    println!("adversary {who:<28} {what:<58} expected={expected} seen={seen}");
    assert_eq!(seen, expected, "{who}: {what}");
}

/// Runs `f` in the pod as a user without any right: on a thread of its own, which gives up everything first.
#[allow(unsafe_code, reason = "setresuid(2) of one thread")]
fn unprivileged<T: Send + 'static>(pod: &Pod, f: impl FnOnce() -> T + Send + 'static) -> T {
    let netns = pod.netns().clone();
    let run = move || {
        netns
            .run(|| {
                std::thread::scope(|s| {
                    // A new thread is in its parent's namespace; what it drops, only it has dropped.
                    s.spawn(|| {
                        let nobody = 65_534;
                        // SAFETY: plain system calls; the kernel keeps credentials by thread.
                        let r = unsafe { libc::syscall(libc::SYS_setresuid, nobody, nobody, nobody) };
                        assert_eq!(r, 0, "setresuid");
                        f()
                    })
                    .join()
                    .unwrap()
                })
            })
            .unwrap()
    };
    std::thread::spawn(run).join().unwrap()
}

/// One application and what it has to say of its clients.
struct Server<'a> {
    pod: &'a Pod,
    echo: app::Echo,
    place: &'static str,
}

impl Server<'_> {
    /// What the application saw of a client: its address, or `refused`.
    fn sees(&self, connect: impl FnOnce(SocketAddr) -> std::io::Result<TcpStream>, v6: bool) -> String {
        let before = self.echo.connections();
        let to = if v6 { self.pod.at6(8080) } else { self.pod.at(8080) };
        let answered = connect(to).and_then(|mut s| app::ping(&mut s, PING)).is_ok();
        match self.echo.connections() - before {
            0 if !answered => "refused".into(),
            1 if answered => self.echo.last_peer().unwrap().ip().to_string(),
            n => format!("{n} connections, answered: {answered}"),
        }
    }
}

/// A connection from `source`, whose port may be 0; `transparent`: also if the kernel does not know that address (CAP_NET_RAW).
fn connect_as(source: SocketAddr, transparent: bool, to: SocketAddr) -> std::io::Result<TcpStream> {
    let s = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if transparent {
        if to.is_ipv6() { s.set_ip_transparent_v6(true)? } else { s.set_ip_transparent_v4(true)? }
    }
    s.bind(&SockAddr::from(source))?;
    s.connect_timeout(&SockAddr::from(to), Duration::from_secs(3))?;
    Ok(s.into())
}

/// ztunnel connects to the application in a client's name, from a port of its own choice. A client that then comes from that very
/// port, by chance (many behind one address, a node that has changed its port) or because it guesses, is judged as ever. (It was
/// taken for ztunnel's own connection for 30 s, and STRICT let one in 400 pass on the cluster.)
#[test]
fn a_port_that_ztunnel_has_had_lets_nobody_in() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let server = w.mesh_pod(PodSpec::new("app", "server", 1));
    let strangers = [w.pod(PodSpec::new("out", "far", 0)), w.pod(PodSpec::new("out", "near", 1))];
    let echo = app::Echo::start(&server, 8080, "");
    let (calm, _servers) = bystander(&mut w);
    let call = |from: &Pod, port: u16, v6: bool| {
        let (ip, to) = if v6 { (from.ip6, server.at6(8080)) } else { (from.ip, server.at(8080)) };
        let mut s = from.netns().run(|| connect_as((ip, port).into(), false, to)).unwrap()?;
        app::ping(&mut s, PING).map(|()| s)
    };
    let mut ports = vec![];
    for from in &strangers {
        for v6 in [false, true] {
            for stays in [true, false] {
                let open = wait_for("an answer", Duration::from_secs(10), || call(from, 0, v6).ok());
                let port = echo.last_peer().unwrap().port();
                let open = Some(open).filter(|_| stays);
                call(from, port, v6).unwrap();
                let told = if echo.last_peer().unwrap().port() == port { "it came past ztunnel" } else { "by ztunnel" };
                let what =
                    format!("PERMISSIVE, from a port of ztunnel's, IPv{}, open: {stays}", if v6 { 6 } else { 4 });
                row(&format!("stranger, {}", from.spec.name), &what, "by ztunnel", told);
                ports.push((from, v6, port, open));
            }
        }
    }
    w.apply("strict", "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: app}\nspec: {mtls: {mode: STRICT}}\n");
    wait_for("STRICT in force", Duration::from_secs(5), || call(&strangers[0], 0, false).is_err().then_some(()));
    for (from, v6, port, _open) in &ports {
        let seen = if call(from, *port, *v6).is_ok() { "answered" } else { "refused" };
        let what = format!("STRICT, from a port of ztunnel's, IPv{}", if *v6 { 6 } else { 4 });
        row(&format!("stranger, {}", from.spec.name), &what, "refused", seen);
    }
    unharmed(calm, "ports that ztunnel has had");
}

/// Whatever a process binds before it connects, the application sees its pod's own address, or no connection at all; policies
/// by address follow that.
#[test]
fn a_client_has_its_pods_address_whatever_it_binds() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let a = w.mesh_pod(PodSpec::new("app", "a", 0));
    let (near, far) = (w.mesh_pod(PodSpec::new("app", "near", 0)), w.mesh_pod(PodSpec::new("app", "far", 1)));
    let other = w.mesh_pod(PodSpec::new("app", "other", 0));
    let (calm, _servers) = bystander(&mut w);
    let servers = [
        Server { pod: &near, echo: app::Echo::start(&near, 8080, ""), place: "same node" },
        Server { pod: &far, echo: app::Echo::start(&far, 8080, ""), place: "other node" },
    ];
    for s in &servers {
        for v6 in [false, true] {
            let (own, others, loopback, unspecified): (IpAddr, IpAddr, IpAddr, IpAddr) = if v6 {
                (a.ip6, other.ip6, Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into())
            } else {
                (a.ip, other.ip, Ipv4Addr::LOCALHOST.into(), Ipv4Addr::UNSPECIFIED.into())
            };
            let own_text = own.to_string();
            let outside: IpAddr = if v6 { "2001:db8::7".parse().unwrap() } else { "192.0.2.7".parse().unwrap() };
            let what = |x: &str| format!("{}, {}: bound to {x}", s.place, if v6 { "IPv6" } else { "IPv4" });
            for (source, name, expected) in [
                (unspecified, "nothing", own_text.as_str()),
                (own, "its own address", own_text.as_str()),
                (loopback, "loopback", "refused"),
            ] {
                let a = a.clone();
                let seen = s.sees(move |to| unprivileged(&a, move || connect_as((source, 0).into(), false, to)), v6);
                row("unprivileged process", &what(name), expected, &seen);
            }
            let mut bound = vec![(others, "another pod's address"), (outside, "an address of nobody")];
            if !v6 {
                bound.push((Ipv4Addr::new(127, 9, 9, 9).into(), "an address of the loopback network"));
            }
            for (source, name) in bound {
                let seen = s.sees(|to| a.netns().run(|| connect_as((source, 0).into(), true, to)).unwrap(), v6);
                row("pod with CAP_NET_RAW", &what(name), "refused", &seen);
            }
        }
    }
    // What the client chose decides about nothing.
    w.apply("loopback-only", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: local, namespace: app}\nspec: {rules: [{from: [{source: {ipBlocks: [127.0.0.0/8, '::1/128']}}]}]}\n");
    for s in &servers {
        for v6 in [false, true] {
            let source: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
            let a = a.clone();
            let seen = s.sees(move |to| unprivileged(&a, move || connect_as((source, 0).into(), false, to)), v6);
            row("unprivileged process", &format!("{}: ipBlocks that allow loopback", s.place), "refused", &seen);
        }
    }
    unharmed(calm, "sources that are not the pod's");
    let log = w.log_text("ztunnel0.log");
    assert!(log.contains("is not the pod's"), "the log says why");
    assert!(!log.contains("forwarded=\"for=127") && !w.log_text("ztunnel1.log").contains("src.addr=127."));
}

/// Counts what a bystander sees while an attack runs: one request after the other, each on a connection of its own.
struct Bystander {
    stop: Arc<AtomicBool>,
    ok: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Duration>>,
}

impl Bystander {
    fn start(from: &Pod, to: Vec<SocketAddr>) -> Self {
        let (stop, ok, failed) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (s, o, f, from) = (stop.clone(), ok.clone(), failed.clone(), from.clone());
        let thread = std::thread::spawn(move || {
            let mut slowest = Duration::ZERO;
            while !s.load(Relaxed) {
                for to in &to {
                    let t = Instant::now();
                    let r = from.connect(*to).and_then(|mut c| app::ping(&mut c, PING));
                    if let Err(e) = &r {
                        println!("adversary bystander to {to}: {e}");
                    }
                    if r.is_ok() { &o } else { &f }.fetch_add(1, Relaxed);
                    slowest = slowest.max(t.elapsed());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            slowest
        });
        Self { stop, ok, failed, thread: Some(thread) }
    }
    /// Requests that were answered, and that were not.
    fn end(mut self, attack: &str) -> (usize, usize) {
        self.stop.store(true, Relaxed);
        let slowest = self.thread.take().unwrap().join().unwrap();
        let seen = (self.ok.load(Relaxed), self.failed.load(Relaxed));
        println!("adversary bystander, {attack}: ok={} failed={} slowest_ms={}", seen.0, seen.1, slowest.as_millis());
        seen
    }
}

/// A client on node 0 that calls a server there and one on the other node, of a namespace that the attacks leave alone.
fn bystander(w: &mut World) -> (Bystander, Vec<app::Echo>) {
    w.namespace("calm", true);
    let client = w.mesh_pod(PodSpec::new("calm", "client", 0));
    let (mut echoes, mut to) = (vec![], vec![]);
    for node in [0, 1] {
        let server = w.mesh_pod(PodSpec::new("calm", &format!("server{node}"), node));
        echoes.push(app::Echo::start(&server, 8080, ""));
        to.extend([server.at(8080), server.at6(8080)]);
    }
    for at in &to {
        // The world's own IPv6 takes a second or two (duplicate address detection).
        wait_for("the bystander is served", Duration::from_secs(10), || {
            client.connect(*at).and_then(|mut s| app::ping(&mut s, PING)).ok()
        });
    }
    (Bystander::start(&client, to), echoes)
}

/// Ends a bystander, which must have been served without one failure.
fn unharmed(bystander: Bystander, attack: &str) {
    let (ok, failed) = bystander.end(attack);
    row("all of these", "failures that a bystander saw", "0", &failed.to_string());
    assert!(ok > 0, "{attack}: nothing was tried");
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// The largest number of descriptors that a process has had while this was running.
struct Highest(Arc<AtomicBool>, JoinHandle<usize>);

impl Highest {
    fn watch(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let s = stop.clone();
        Self(
            stop,
            std::thread::spawn(move || {
                let mut most = 0;
                while !s.load(Relaxed) {
                    most = most.max(descriptors(pid));
                    std::thread::sleep(Duration::from_millis(20));
                }
                most
            }),
        )
    }
    fn end(self) -> usize {
        self.0.store(true, Relaxed);
        self.1.join().unwrap()
    }
}

/// Ports on which something listens in a pod's namespace, in whatever state the kernel shows it.
fn listening(pod: &Pod) -> BTreeSet<u16> {
    let read = |f: &str| {
        pod.netns().run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{f}")).unwrap_or_default()).unwrap()
    };
    let port = |l: &str| u16::from_str_radix(l.split_whitespace().nth(1)?.rsplit(':').next()?, 16).ok();
    ["tcp", "tcp6", "udp", "udp6"].iter().flat_map(|f| read(f).lines().filter_map(port).collect::<Vec<_>>()).collect()
}

/// Connects to each of the ports, several at a time, has nothing to say, and waits for the end: so no more are under way than
/// there are threads, and no listener's queue can overflow. How many were not settled, one way or the other, within 2 s.
fn scan(from: &Pod, ip: IpAddr, ports: &[u16]) -> usize {
    const LIMIT: Duration = Duration::from_secs(2);
    let (next, stuck) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let one = |port: u16| {
        let Err(e) = TcpStream::connect_timeout(&SocketAddr::new(ip, port), LIMIT).and_then(|mut s| {
            s.set_read_timeout(Some(LIMIT))?;
            s.shutdown(Shutdown::Write)?;
            s.read(&mut [0; 16])
        }) else {
            return;
        };
        if matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) {
            println!("adversary no answer from {ip} port {port}: {e}");
            stuck.fetch_add(1, Relaxed);
        }
    };
    let all = || {
        while let Some(port) = ports.get(next.fetch_add(1, Relaxed)) {
            one(*port);
        }
    };
    std::thread::scope(|s| (0..16).for_each(|_| drop(s.spawn(|| from.netns().run(all).unwrap()))));
    stuck.into_inner()
}

/// No port of a pod and no address that its kernel has leads ztunnel to itself: not from outside, not from inside, not by HBONE.
#[test]
fn nothing_makes_ztunnel_call_itself() {
    const LIMIT: u64 = 16_000;
    let mut w = World::start(Options { ztunnel_descriptors: Some(LIMIT), ..Options::default() }).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let target = w.mesh_pod(PodSpec::new("app", "target", 0));
    let (near, far) = (w.mesh_pod(PodSpec::new("app", "near", 0)), w.mesh_pod(PodSpec::new("app", "far", 1)));
    // Not `far`, which bystanders call: one that scans uses up its own share.
    let member = w.mesh_pod(PodSpec::new("app", "member", 1));
    let (stranger, neighbour) = (w.pod(PodSpec::new("out", "stranger", 1)), w.pod(PodSpec::new("out", "neighbour", 0)));
    let (client, server) = (w.mesh_pod(PodSpec::new("app", "client", 0)), w.mesh_pod(PodSpec::new("app", "server", 0)));
    let _echoes = [app::Echo::start(&server, 8080, ""), app::Echo::start(&far, 8080, "")];
    let _target = app::Echo::start(&target, 8080, "");
    for to in [server.at(8080), far.at(8080), far.at6(8080)] {
        app::ping(&mut client.connect(to).unwrap(), PING).unwrap();
    }
    let zt = w.ztunnel_pid(0);
    let before = descriptors(zt);
    let open: Vec<u16> = listening(&target).into_iter().collect();
    println!("adversary ports that the kernel shows in the pod: {open:?}");
    assert!(open.len() >= 4, "{open:?}");
    // Everything that listens, everything that is known of proxies, and a part of all others; all of them once.
    let known = [15000u16, 15001, 15004, 15006, 15008, 15012, 15014, 15020, 15021, 15053, 15090, 53, 8080];
    let few: Vec<u16> = open.iter().copied().chain(known).chain((1..=65_535).step_by(61)).collect();
    let all: Vec<u16> = (1..=65_535).collect();
    let watched = Highest::watch(zt);
    let served = Bystander::start(&client, vec![server.at(8080), far.at(8080), far.at6(8080)]);
    let mut stuck = 0;
    for (who, from, v4, v6) in [
        ("a stranger on the other node", &stranger, &all, &all),
        ("a stranger on the same node", &neighbour, &few, &few),
        ("a member on the other node", &member, &few, &few),
        ("a member on the same node", &near, &few, &few),
        ("a process in the pod", &target, &all, &all),
    ] {
        for (ip, ports) in [(target.ip, v4), (target.ip6, v6)] {
            let t = Instant::now();
            let n = scan(from, ip, ports);
            println!(
                "adversary scan by {who} of {ip}: {} ports, {n} stuck, {} ms",
                ports.len(),
                t.elapsed().as_millis()
            );
            stuck += n;
        }
    }
    // Addresses that no API knows: on lo, on another device, in both families.
    net::veth(&target.ns, "spare", &target.ns, "spare2").unwrap();
    for (address, device) in [
        ("10.98.0.1/32", "lo"),
        ("10.98.1.1/24", "spare"),
        ("10.98.2.1/32", "eth0"),
        ("fd98::1/128", "lo"),
        ("fd98:1::1/64", "spare"),
        ("fd98:2::1/128", "eth0"),
    ] {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        net::ip_in(&target.ns, &format!("addr add {address} dev {device} {nodad}")).unwrap();
        let ip: IpAddr = address.split('/').next().unwrap().parse().unwrap();
        // At once: nobody can have told anybody of the address.
        let mut ports = open.clone();
        ports.extend([9, 15001, 15006, 15008]);
        stuck += scan(&target, ip, &ports);
        let seen = || match target.connect((ip, 8080).into()).and_then(|mut s| app::ping(&mut s, PING)) {
            Ok(()) => "served".to_string(),
            Err(e) => e.kind().to_string(),
        };
        // In the moment before the agent has heard of it, ztunnel may be asked, and may refuse.
        wait_for("the address is the pod's own", Duration::from_secs(10), || (seen() == "served").then_some(()));
        row("a process in the pod", &format!("{address} on {device}: the application there"), "served", &seen());
    }
    let most = watched.end();
    let (ok, failed) = served.end("scans of ports and own addresses");
    println!("adversary descriptors before={before} highest={most}");
    if failed > 0 {
        for log in ["ztunnel0.log", "ztunnel1.log"] {
            let text = w.log_text(log);
            let of_bystanders = |l: &&str| l.contains(":8080") && l.contains(" error=") && l.contains("client");
            text.lines().filter(of_bystanders).for_each(|l| println!("adversary {log}: {l}"));
        }
    }
    row("all of these", "connections that were not settled within 2 s", "0", &stuck.to_string());
    row("all of these", "failures that a bystander saw", "0", &failed.to_string());
    assert!(ok > 100, "{ok}");
    // A scan may have many connections on their way at once; more than one pod's share it never has.
    let share = 2 * karst_core::limits::connections_per_pod(LIMIT);
    assert!(most < before + share + 256, "no loop: {most} descriptors; the pod's share is {share}");
    wait_for("the descriptors come back", Duration::from_secs(10), || (descriptors(zt) < before + 64).then_some(()));
}

/// The internet's checksum.
fn checksum(b: &[u8]) -> [u8; 2] {
    let mut s: u32 = b.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]))).sum();
    while s >> 16 != 0 {
        s = (s & 0xffff) + (s >> 16);
    }
    (!(s as u16)).to_be_bytes()
}

/// A SYN to port 8080 between addresses of either family.
fn syn(src: &[u8], dst: &[u8], sport: u16) -> [u8; 20] {
    let mut tcp = [0u8; 20];
    tcp[..2].copy_from_slice(&sport.to_be_bytes());
    tcp[2..4].copy_from_slice(&8080u16.to_be_bytes());
    (tcp[12], tcp[13]) = (5 << 4, 2);
    tcp[14..16].copy_from_slice(&1000u16.to_be_bytes());
    let check = checksum(&[src, dst, &[0, 6, 0, 20], &tcp].concat());
    tcp[16..18].copy_from_slice(&check);
    tcp
}

/// The link layer's addresses of a frame to the gateway.
struct Link {
    gateway: [u8; 6],
    own: [u8; 6],
}

/// A frame that carries a SYN, as a raw socket of the link layer would send it: what its sender says of it, and the tags that
/// it puts before it, are its own affair.
fn syn_frame(to: &Pod, from: &Pod, link: &Link, sport: u16, tag: Option<u16>) -> Vec<u8> {
    let tag = tag.map(|kind| [kind.to_be_bytes(), [0, 0]].concat()).unwrap_or_default();
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (from.ip, to.ip) else { panic!("IPv4") };
    fragment(to, from, link, &tag, 0, &syn(&src.octets(), &dst.octets(), sport))
}

/// A frame with a part of a TCP segment by IPv4: `place` is what its header says of the fragment.
fn fragment(to: &Pod, from: &Pod, link: &Link, tag: &[u8], place: u16, part: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (from.ip, to.ip) else { panic!("IPv4") };
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[2..4].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
    ip[6..8].copy_from_slice(&place.to_be_bytes());
    ip[12..16].copy_from_slice(&src.octets());
    ip[16..].copy_from_slice(&dst.octets());
    let check = checksum(&ip);
    ip[10..12].copy_from_slice(&check);
    [&link.gateway[..], &link.own, tag, &0x0800u16.to_be_bytes(), &ip, part].concat()
}

/// The same by IPv6, behind extension headers of these kinds.
fn syn_frame6(to: &Pod, from: &Pod, link: &Link, sport: u16, headers: &[u8]) -> Vec<u8> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (from.ip6, to.ip6) else { panic!("IPv6") };
    let kinds = [headers, &[6]].concat();
    // Options that are only padding; a fragment that is the only one.
    let body = |kind: u8| -> [u8; 7] { if kind == 44 { [0, 0, 0, 0, 0, 0, 7] } else { [0, 1, 4, 0, 0, 0, 0] } };
    let chain: Vec<u8> = kinds.windows(2).flat_map(|pair| [&[pair[1]][..], &body(pair[0])].concat()).collect();
    let length = (chain.len() as u16 + 20).to_be_bytes();
    let ip = [&[0x60u8, 0, 0, 0][..], &length, &[kinds[0], 64], &src.octets(), &dst.octets()].concat();
    let tcp = syn(&src.octets(), &dst.octets(), sport);
    [&link.gateway[..], &link.own, &0x86ddu16.to_be_bytes(), &ip, &chain, &tcp].concat()
}

/// Does a frame that a pod sends come to another one's device? Routers write its first part anew, and leave what is behind IP's
/// header, which begins at `header`.
fn comes(from: &Pod, to: &Pod, protocol: u16, frame: &[u8], header: usize) -> &'static str {
    const ALL: i32 = (libc::ETH_P_ALL as u16).to_be() as i32;
    let open = || Socket::new(Domain::PACKET, Type::RAW, Some(socket2::Protocol::from(ALL))).unwrap();
    let mut seen = to.netns().run(open).unwrap();
    seen.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    send_frame(from, protocol, frame);
    let end = Instant::now() + Duration::from_millis(600);
    let mut buf = [0; 2048];
    while Instant::now() < end {
        let Ok(n) = Read::read(&mut seen, &mut buf) else { continue };
        if buf[..n].ends_with(&frame[header..]) {
            return "comes";
        }
    }
    "dropped"
}

/// Sends a frame with the protocol that its sender gives it.
#[allow(unsafe_code, reason = "an address of AF_PACKET")]
fn send_frame(from: &Pod, protocol: u16, frame: &[u8]) {
    let index = from.netns().run(|| std::fs::read_to_string("/proc/thread-self/net/dev_snmp6/eth0").unwrap()).unwrap();
    let index: i32 = index.split_whitespace().nth(1).unwrap().parse().unwrap();
    let s = from.netns().run(|| Socket::new(Domain::PACKET, Type::RAW, None).unwrap()).unwrap();
    // SAFETY: the storage is large enough for a sockaddr_ll, which is written whole, with its own length.
    let ((), to) = unsafe {
        SockAddr::try_init(|storage, length| {
            let mut a: libc::sockaddr_ll = std::mem::zeroed();
            (a.sll_family, a.sll_protocol, a.sll_ifindex, a.sll_halen) =
                (libc::AF_PACKET as u16, protocol.to_be(), index, 6);
            storage.cast::<libc::sockaddr_ll>().write(a);
            *length = size_of::<libc::sockaddr_ll>() as u32;
            Ok(())
        })
    }
    .unwrap();
    // A guard's drop is an error here, or none.
    let _ = s.send_to(frame, &to);
}

/// The guard judges what is in a frame, not what its sender says of it.
#[test]
fn frames_are_judged_by_what_is_in_them() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 1)));
    let near = w.mesh_pod(PodSpec::new("app", "near", 0));
    let free = PodSpec::new("app", "free", 0).annotation("karst.io/allow-other-protocols", "true");
    let free = w.mesh_pod(free);
    let outside = w.pod(PodSpec::new("out", "o", 0));
    let echo = app::Echo::start(&b, 8080, "");
    let (calm, _servers) = bystander(&mut w);
    let mac = |text: &str| -> [u8; 6] {
        let bytes: Vec<u8> = text.trim().split(':').map(|x| u8::from_str_radix(x, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    };
    let own = |p: &Pod| {
        let text = net::ip_in(&p.ns, "-o link show eth0").unwrap();
        mac(text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap())
    };
    let text = net::ip_in(&w.nodes[0].ns, "-o link show cni0").unwrap();
    let gateway = mac(text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap());
    let link = |p: &Pod| Link { gateway, own: own(p) };
    // What comes back for a port of the client's.
    let answered = |from: &Pod, sport: u16, tag: Option<u16>, protocol: u16| {
        let mut back =
            from.netns().run(|| Socket::new(Domain::IPV4, Type::RAW, Some(socket2::Protocol::TCP)).unwrap()).unwrap();
        back.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        send_frame(from, protocol, &syn_frame(&b, from, &link(from), sport, tag));
        let end = Instant::now() + Duration::from_millis(600);
        let mut buf = [0; 1500];
        while Instant::now() < end {
            let Ok(n) = std::io::Read::read(&mut back, &mut buf) else { continue };
            let at = usize::from(buf[0] & 0xf) * 4;
            if n > at + 14 && buf[at + 2..at + 4] == sport.to_be_bytes() {
                return "answered";
            }
        }
        "dropped"
    };
    // The way is open for who is not of the mesh: so what is dropped below, the guard has dropped.
    row("pod outside of the mesh", "a SYN as a frame", "answered", answered(&outside, 41_000, None, 0x0800));
    row("pod outside of the mesh", "the same in VLAN 0", "answered", answered(&outside, 41_001, Some(0x8100), 0x8100));
    for (i, (what, tag, protocol)) in [
        ("a SYN as a frame", None, 0x0800),
        ("the same, said to be ARP", None, 0x0806),
        ("the same, said to be of an unknown protocol", None, 0x88b5),
        ("the same in VLAN 0", Some(0x8100), 0x8100),
        ("the same in VLAN 0, said to be IP", Some(0x8100), 0x0800),
        ("the same in a service VLAN", Some(0x88a8), 0x88a8),
    ]
    .into_iter()
    .enumerate()
    {
        row("pod with CAP_NET_RAW", what, "dropped", answered(&a, 42_000 + i as u16, tag, protocol));
    }
    // By IPv6, with what may stand before a segment; and in pieces, of which one is written over the flags of another (RFC 3128).
    for (from, who, expected) in
        [(&outside, "pod outside of the mesh", "comes"), (&a, "pod with CAP_NET_RAW", "dropped")]
    {
        for (i, (what, headers)) in [
            ("a SYN by IPv6", &[][..]),
            ("the same behind options of the destination", &[60][..]),
            ("the same behind a fragment's header", &[44][..]),
            ("the same behind options and a fragment's header", &[60, 44, 60][..]),
            ("the same behind seven headers", &[60; 7][..]),
        ]
        .into_iter()
        .enumerate()
        {
            let frame = syn_frame6(&b, from, &link(from), 43_000 + i as u16, headers);
            row(who, what, expected, comes(from, &b, 0x86dd, &frame, 54));
        }
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (from.ip, b.ip) else { panic!("IPv4") };
        let whole = syn(&src.octets(), &dst.octets(), 43_500);
        for (what, place, part) in [
            ("a first fragment with the flags of a SYN", 0x2000, &whole[..16]),
            ("a first fragment that ends before the flags", 0x2000, &whole[..8]),
            ("a fragment that is written over the flags", 1, &whole[8..]),
        ] {
            let frame = fragment(&b, from, &link(from), &[], place, part);
            row(who, what, expected, comes(from, &b, 0x0800, &frame, 34));
        }
    }
    // To a pod of the same node, past no router; and what is neither IP nor ARP, which one pod may send.
    for (who, from, segments, others) in [
        ("pod outside of the mesh", &outside, "comes", "comes"),
        ("pod with CAP_NET_RAW", &a, "dropped", "dropped"),
        ("pod with other protocols", &free, "dropped", "comes"),
    ] {
        let beside = Link { gateway: own(&near), own: own(from) };
        let protocol = |tag: &[u8], kind: u16| tag.first_chunk::<2>().map_or(kind, |outer| u16::from_be_bytes(*outer));
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (from.ip, near.ip) else { panic!("IPv4") };
        for (i, (what, tag)) in [
            ("a SYN to its own node", &[][..]),
            ("the same in VLAN 0", &[0x81, 0, 0, 0][..]),
            ("the same in a service VLAN", &[0x88, 0xa8, 0, 0][..]),
            ("the same in VLAN 0, twice", &[0x81, 0, 0, 0, 0x81, 0, 0, 0][..]),
        ]
        .into_iter()
        .enumerate()
        {
            let whole = syn(&src.octets(), &dst.octets(), 44_000 + i as u16);
            let frame = fragment(&near, from, &beside, tag, 0, &whole);
            row(who, what, segments, comes(from, &near, protocol(tag, 0x0800), &frame, 34 + tag.len()));
        }
        for (what, tag, kind) in [
            ("a frame of a local experiment (88b5)", &[][..], 0x88b5u16),
            ("a frame of LLDP (88cc)", &[][..], 0x88cc),
            ("a frame of a local experiment in VLAN 0", &[0x81, 0, 0, 0][..], 0x88b5),
        ] {
            let frame = [&beside.gateway[..], &beside.own, tag, &kind.to_be_bytes(), what.as_bytes()].concat();
            row(who, what, others, comes(from, &near, protocol(tag, kind), &frame, 14 + tag.len()));
        }
    }
    unharmed(calm, "frames of raw sockets");
    println!("{}", w.status(0).unwrap());
    app::ping(&mut a.connect(b.at(8080)).unwrap(), PING).unwrap();
    app::ping(&mut a.connect(b.at6(8080)).unwrap(), PING).unwrap();
    assert_eq!(echo.connections(), 2);
}
