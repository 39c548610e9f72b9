//! One test for each program, with the real objects, in network namespaces of its own: what does the program do? Needs root, a
//! cgroup2 and a bpffs at /sys/fs/bpf. `cargo xtask kernels` runs these on old kernels too, where the guard is a filter.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_ebpf::{
    Listeners, Node, PodConfig, Probers,
    net::Device,
    pod_state,
    trace::{Event, Tracer},
};
use karst_ebpf_common::Counter;
use karst_rt::{
    netns::Netns,
    socket::{Exempt, MARK_CAPTURE, MARK_ZTUNNEL, redirect_listener, redirect_udp},
};
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const POD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const POD6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2);
const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);
const APP: u16 = 8080;
/// Generous: under software emulation everything takes its time.
const SOON: Duration = Duration::from_secs(20);
/// For what must not happen.
const WHILE: Duration = Duration::from_millis(1500);

/// A pod and its peer, joined by a veth pair; the pod's listeners; an application in each namespace.
struct World {
    node: Node,
    dir: PathBuf,
    pod: Netns,
    peer: Netns,
    config: PodConfig,
    fds: [OwnedFd; 5],
    apps: [TcpListener; 2],
}

/// Who took a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Taker {
    Hbone,
    Plaintext,
    Outbound,
    PodApp,
    PeerApp,
}

fn ip(words: &str) {
    let out = Command::new("ip").args(words.split_whitespace()).output().expect("ip can be started");
    assert!(out.status.success(), "ip {words}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A network namespace with `lo` up.
fn namespace() -> Netns {
    let made = std::thread::spawn(|| {
        // SAFETY: only this thread is moved, and it ends.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "needs root: {}", io::Error::last_os_error());
        ip("link set lo up");
        Netns::current().unwrap()
    });
    made.join().unwrap()
}

fn cgroup() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let root = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|f| f[2] == "cgroup2");
    PathBuf::from(root.expect("a cgroup2 is mounted")[1])
}

impl World {
    /// `near`: the peer is the node itself, as the kubelet is.
    fn new(name: &str, near: bool) -> Self {
        let (pod, peer) = (namespace(), namespace());
        let other = format!("/proc/{}/fd/{}", std::process::id(), peer.as_fd().as_raw_fd());
        pod.run(|| {
            ip(&format!("link add eth0 type veth peer name eth0 netns {other}"));
            ip(&format!("addr add {POD}/24 dev eth0"));
            ip(&format!("addr add {POD6}/64 dev eth0 nodad"));
            ip("link set eth0 up");
        })
        .unwrap();
        peer.run(|| {
            ip(&format!("addr add {PEER}/24 dev eth0"));
            ip(&format!("addr add {PEER6}/64 dev eth0 nodad"));
            ip("link set eth0 up");
        })
        .unwrap();
        let dir = Path::new("/sys/fs/bpf").join(format!("karst-test-{}-{name}", std::process::id()));
        let host = if near { peer.clone() } else { Netns::current().unwrap() };
        let node = Node::open(&dir, &cgroup(), &host, Probers::All).expect("the node's programs");
        let fds = pod.run(|| {
            [
                redirect_listener(MARK_ZTUNNEL, 0).unwrap().into(),
                redirect_listener(MARK_ZTUNNEL, 0).unwrap().into(),
                redirect_listener(MARK_CAPTURE, 0).unwrap().into(),
                redirect_udp(0).unwrap().into(),
                redirect_listener(MARK_ZTUNNEL, 0).unwrap().into(),
            ]
        });
        let app = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, APP)).unwrap();
        let apps = [pod.run(app).unwrap(), peer.run(app).unwrap()];
        for app in &apps {
            app.set_nonblocking(true).unwrap();
        }
        let config = PodConfig {
            uid: format!("uid-{name}"),
            closed: false,
            ips: vec![POD.into(), POD6.into()],
            bypass_inbound: false,
            bypass_dns: false,
            all_devices: false,
            trust_mark: false,
            other_protocols: false,
            inner_devices: vec![],
        };
        Self { node, dir, pod, peer, config, fds: fds.unwrap(), apps }
    }
    fn enrol(&mut self) {
        let [hbone, plaintext, outbound, dns, forward] = &self.fds;
        let listeners = Listeners { hbone, plaintext, outbound, dns, forward };
        self.node.enrol(&self.pod, &self.config, &listeners).expect("enrolment");
    }
    /// Connects within the namespace and says who took the connection; None if nobody did in time.
    fn takes(&self, from: &Netns, to: impl Into<IpAddr>, port: u16) -> Option<Taker> {
        let to = SocketAddr::new(to.into(), port);
        let stream = from.run(|| TcpStream::connect_timeout(&to, SOON)).unwrap();
        let taker = self.taken(SOON);
        drop(stream);
        taker
    }
    fn taken(&self, within: Duration) -> Option<Taker> {
        let [hbone, plaintext, outbound, ..] = &self.fds;
        let own = |fd: &OwnedFd| TcpListener::from(fd.try_clone().unwrap());
        let ways = [
            (Taker::Hbone, own(hbone)),
            (Taker::Plaintext, own(plaintext)),
            (Taker::Outbound, own(outbound)),
            (Taker::PodApp, self.apps[0].try_clone().unwrap()),
            (Taker::PeerApp, self.apps[1].try_clone().unwrap()),
        ];
        let until = Instant::now() + within;
        loop {
            if let Some((taker, _)) = ways.iter().find(|(_, l)| l.accept().is_ok()) {
                return Some(*taker);
            }
            if Instant::now() > until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    fn count(&self, counter: Counter) -> u64 {
        let state = pod_state(&self.dir, &self.config.uid).unwrap();
        state.counters.iter().find(|(c, _)| *c == counter).unwrap().1
    }
    /// Begins to connect from the pod, by a socket of ztunnel's or by any other.
    fn begins(&self, to: Ipv4Addr, exempt: bool) -> OwnedFd {
        let connect = || {
            // SAFETY: plain socket calls; the address outlives its call.
            unsafe {
                let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0);
                assert!(fd >= 0);
                let s = OwnedFd::from_raw_fd(fd);
                if exempt {
                    Exempt::new(self.node.exempt_map().try_clone().unwrap()).set(s.as_fd()).unwrap();
                }
                let a = libc::sockaddr_in {
                    sin_family: libc::AF_INET as u16,
                    sin_port: APP.to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(to).to_be() },
                    sin_zero: [0; 8],
                };
                libc::connect(fd, (&raw const a).cast(), size_of::<libc::sockaddr_in>() as u32);
                s
            }
        };
        self.pod.run(connect).unwrap()
    }
    /// Sends a frame from the pod, past its network and transport layers.
    fn sends(&self, frame: &[u8]) {
        let send = || {
            // SAFETY: plain socket calls; the frame, the name and the address outlive theirs.
            unsafe {
                let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
                assert!(fd >= 0);
                let _socket = OwnedFd::from_raw_fd(fd);
                let mut to: libc::sockaddr_ll = std::mem::zeroed();
                to.sll_family = libc::AF_PACKET as u16;
                to.sll_protocol = u16::from_ne_bytes([frame[12], frame[13]]);
                to.sll_ifindex = libc::if_nametoindex(c"eth0".as_ptr()) as i32;
                to.sll_halen = 6;
                let length = size_of::<libc::sockaddr_ll>() as u32;
                // A guard's drop is an error here, or none.
                libc::sendto(fd, frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), length);
            }
        };
        self.pod.run(send).unwrap();
    }
    /// Makes a pair of the pod's `eth0` and a device of the peer's.
    fn new_eth0(&self, index: &str, far: &str) {
        let other = format!("/proc/{}/fd/{}", std::process::id(), self.peer.as_fd().as_raw_fd());
        self.pod
            .run(|| {
                ip(&format!("link add name eth0 {index} type veth peer name {far} netns {other}"));
                ip(&format!("addr add {POD}/24 dev eth0"));
                ip(&format!("addr add {POD6}/64 dev eth0 nodad"));
                ip("link set eth0 up");
            })
            .unwrap();
        self.peer
            .run(|| {
                ip(&format!("addr add {PEER}/24 dev {far}"));
                ip(&format!("link set {far} up"));
            })
            .unwrap();
    }
    /// Without the pod's routing the guard alone is in the way of a connection.
    fn drops_past_routing(&self, why: &str) {
        self.cut_routing();
        let _stray = self.begins(PEER, false);
        assert_eq!(self.taken(WHILE), None, "{why}");
        assert!(self.count(Counter::GuardDrop) >= 1);
    }
    /// Takes away what leads marked connections to `lo`: whoever has CAP_NET_ADMIN in the pod can do so.
    fn cut_routing(&self) {
        self.pod.run(|| ip("rule del pref 10")).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        Node::remove_all(&self.dir).unwrap();
    }
}

#[test]
fn mark_connect_sends_an_enrolled_pods_connections_to_the_outbound_listener() {
    let mut w = World::new("connect", false);
    assert_eq!(w.takes(&w.pod, PEER, APP), Some(Taker::PeerApp), "before enrolment nothing is redirected");
    w.enrol();
    assert_eq!(w.takes(&w.pod, PEER, APP), Some(Taker::Outbound));
    assert_eq!(w.takes(&w.pod, PEER6, APP), Some(Taker::Outbound));
    assert!(w.node.marked(w.pod.cookie().unwrap()) >= 2);
    assert_eq!(w.takes(&w.peer, PEER, APP), Some(Taker::PeerApp), "other namespaces are left alone");
}

#[test]
fn pod_lookup_tells_hbone_plaintext_and_loopback_apart() {
    let mut w = World::new("lookup", false);
    w.enrol();
    for to in [IpAddr::from(POD), POD6.into()] {
        assert_eq!(w.takes(&w.peer, to, APP), Some(Taker::Plaintext), "{to}");
        assert_eq!(w.takes(&w.peer, to, 15008), Some(Taker::Hbone), "{to}");
    }
    assert_eq!(w.takes(&w.pod, Ipv4Addr::LOCALHOST, APP), Some(Taker::PodApp));
    assert_eq!(w.takes(&w.pod, Ipv6Addr::LOCALHOST, APP), Some(Taker::PodApp));
}

#[test]
fn note_probe_lets_the_nodes_own_connections_through() {
    let mut w = World::new("probe", true);
    w.enrol();
    assert_eq!(w.takes(&w.peer, POD, APP), Some(Taker::PodApp));
    assert_eq!(w.takes(&w.peer, POD6, APP), Some(Taker::PodApp));
    assert!(w.count(Counter::Probe) >= 2);
}

#[test]
fn note_probe_lets_through_only_the_cgroup_that_may_probe() {
    let mut w = World::new("prober", true);
    w.enrol();
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = groups.lines().find_map(|l| l.strip_prefix("0::/")).expect("this process is in a cgroup2");
    let own = fs::metadata(cgroup().join(own)).unwrap().ino();
    for (probers, taker) in [
        (Probers::Cgroup(own), Taker::PodApp),
        (Probers::Cgroup(own + 1), Taker::Plaintext),
        (Probers::None, Taker::Plaintext),
        (Probers::All, Taker::PodApp),
    ] {
        w.node.set_probers(probers).unwrap();
        assert_eq!(w.takes(&w.peer, POD, APP), Some(taker), "{probers:?}");
        assert_eq!(w.takes(&w.peer, POD6, APP), Some(taker), "{probers:?}");
    }
}

#[test]
fn pod_guard_lets_nothing_of_tcp_through_while_the_pod_is_closed() {
    let mut w = World::new("closed", false);
    w.config.closed = true;
    w.enrol();
    let stray = w.begins(PEER, false);
    assert_eq!(w.taken(WHILE), None, "outwards");
    drop(stray);
    for to in [IpAddr::from(POD), POD6.into()] {
        let answer = w.peer.run(|| TcpStream::connect_timeout(&(to, APP).into(), WHILE)).unwrap();
        assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::TimedOut, "inwards, {to}");
    }
    // Its addresses are back: redirected in place.
    w.config.closed = false;
    w.enrol();
    assert_eq!(w.takes(&w.peer, POD, APP), Some(Taker::Plaintext));
    assert_eq!(w.takes(&w.pod, PEER, APP), Some(Taker::Outbound));
}

#[test]
fn pod_guard_lets_only_ztunnels_connections_out_until_the_pod_leaves() {
    let mut w = World::new("guard", false);
    w.enrol();
    // What a restarted agent does: in place, so that there is one guard and no moment without.
    w.enrol();
    w.drops_past_routing("the guard must drop it");
    let own = w.begins(PEER, true);
    assert_eq!(w.taken(SOON), Some(Taker::PeerApp), "ztunnel's passes");
    assert!(w.count(Counter::GuardPass) >= 1);
    drop(own);
    w.node.release(&w.pod, &w.config).unwrap();
    assert_eq!(w.takes(&w.pod, PEER, APP), Some(Taker::PeerApp), "a pod that has left is free");
}

/// A SYN in a frame with these VLAN tags. Its checksums are wrong: it goes no further than the guard.
fn syn(tags: &[u8], from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut tcp = [0u8; 20];
    tcp[..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    (tcp[12], tcp[13]) = (5 << 4, 2);
    let (kind, ip) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let start = [0x45u8, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
            (0x0800u16, [&start[..], &from.octets(), &to.octets()].concat())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let start = [0x60u8, 0, 0, 0, 0, 20, 6, 64];
            (0x86dd, [&start[..], &from.octets(), &to.octets()].concat())
        }
        _ => panic!("{from} and {to} are of two families"),
    };
    let ends = [2u8, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    [&ends[..], tags, &kind.to_be_bytes(), &ip, &tcp].concat()
}

#[test]
fn pod_guard_tells_what_is_behind_a_tag_as_what_has_none() {
    let mut w = World::new("tagged", false);
    w.enrol();
    let mut tracer = Tracer::open(&w.dir).unwrap();
    // Whether tagged frames may leave or not, a SYN is dropped; what is told of it says why.
    for others in [false, true] {
        w.config.other_protocols = others;
        w.enrol();
        let behind_one = if others { Counter::GuardDrop } else { Counter::GuardProtocol };
        let behind_two = if others { Counter::GuardUnparsable } else { Counter::GuardProtocol };
        for (from, to) in [(IpAddr::from(POD), IpAddr::from(PEER)), (POD6.into(), PEER6.into())] {
            for (tags, what, is_read) in [
                (&[][..], Counter::GuardDrop, true),
                (&[0x81, 0, 0, 0][..], behind_one, true),
                (&[0x88, 0xa8, 0, 7][..], behind_one, true),
                (&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 0][..], behind_two, false),
            ] {
                let ends = (SocketAddr::new(from, 40_000), SocketAddr::new(to, APP));
                let frame = syn(tags, ends.0, ends.1);
                let asked = [Counter::GuardDrop, Counter::GuardProtocol, Counter::GuardUnparsable];
                tracer.ask(None, &asked, SOON).unwrap();
                w.sends(&frame);
                let until = Instant::now() + SOON;
                let Event { pod, what: told, ends: of, protocol, ether_type, .. } = loop {
                    match tracer.read().unwrap() {
                        // The kernel sends some of its own, such as those that look for routers.
                        Some(event) if event.ends.is_none_or(|(from, _)| from.ip() == ends.0.ip()) => break event,
                        _ => {}
                    }
                    assert!(Instant::now() < until, "nothing is told of {frame:02x?}");
                    std::thread::sleep(Duration::from_millis(5));
                };
                assert_eq!((pod, told), (Some(POD.into()), what), "{frame:02x?}");
                assert_eq!(ether_type, u16::from_be_bytes([frame[12], frame[13]]), "{frame:02x?}");
                assert_eq!((of, protocol), if is_read { (Some(ends), 6) } else { (None, 0) }, "{frame:02x?}");
            }
        }
    }
}

#[test]
fn pod_guard_leads_dns_queries_to_the_dns_socket() {
    let mut w = World::new("dns", false);
    w.enrol();
    let s = w.pod.run(|| UdpSocket::bind((POD, 0))).unwrap().unwrap();
    let dns = UdpSocket::from(w.fds[3].try_clone().unwrap());
    let until = Instant::now() + SOON;
    let mut buffer = [0; 16];
    // The first packets may wait for the neighbour, or be lost with it.
    while w.count(Counter::Dns) == 0 || dns.recv(&mut buffer).is_err() {
        assert!(Instant::now() < until, "no query reached the DNS socket");
        s.send_to(b"query", (PEER, 53)).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(buffer.starts_with(b"query"));
}

#[test]
fn a_device_that_comes_again_under_its_old_name_is_guarded_again() {
    let mut w = World::new("device", false);
    w.enrol();
    w.pod.run(|| ip("link del eth0")).unwrap();
    w.new_eth0("", "eth0");
    w.enrol();
    w.drops_past_routing("the new device has no guard");
}

#[test]
fn a_device_under_the_name_of_one_that_was_renamed_is_guarded() {
    let mut w = World::new("renamed", false);
    w.enrol();
    w.pod
        .run(|| {
            ip("link set eth0 down");
            ip("addr flush dev eth0");
            ip("link set eth0 name eth9");
        })
        .unwrap();
    w.peer.run(|| ip("addr flush dev eth0")).unwrap();
    // The guard of the first one is pinned under this name, and lives.
    w.new_eth0("", "eth1");
    w.enrol();
    w.drops_past_routing("the new device has no guard");
}

#[test]
fn a_device_made_anew_with_its_name_and_index_has_lost_its_guard_and_gets_it_again() {
    let mut w = World::new("lost", false);
    w.pod.run(|| ip("link del eth0")).unwrap();
    w.new_eth0("index 7777", "eth0");
    w.enrol();
    let eth0 = Device { index: 7777, name: "eth0".into() };
    let devices = std::slice::from_ref(&eth0);
    assert_eq!(w.node.sync_local(&w.pod, &w.config).unwrap(), devices);
    assert_eq!(w.node.lost(&w.pod, &w.config, devices).unwrap(), []);
    w.pod.run(|| ip("link del eth0")).unwrap();
    w.new_eth0("index 7777", "eth0");
    assert_eq!(w.node.sync_local(&w.pod, &w.config).unwrap(), devices, "it looks as it did");
    assert_eq!(w.node.lost(&w.pod, &w.config, devices).unwrap(), devices);
    // One that is gone by the time is no failure, and nothing is said of it.
    let gone = Device { index: 7778, name: "eth0".into() };
    let each = w.node.guard(&w.pod, &w.config, vec![eth0.clone(), gone]).unwrap();
    assert!(matches!(&each[..], [(d, Ok(()))] if *d == eth0), "{each:?}");
    assert_eq!(w.node.lost(&w.pod, &w.config, devices).unwrap(), []);
    w.drops_past_routing("the new device has no guard");
}
