//! Sockets of applications that are not as most are: bound to a device, with a mark of their own, to link-local addresses.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_world::{Options, Pod, PodSpec, World, app, net::ip_in, wait_for};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const PING: &[u8] = b"surroundings";

/// An echo server whose listener is prepared by `prepare`. Gives its peers.
fn serve(pod: &Pod, port: u16, prepare: impl FnOnce(&Socket)) -> Arc<Mutex<Vec<SocketAddr>>> {
    let s = pod.netns().run(|| Socket::new(Domain::IPV6, Type::STREAM, None).unwrap()).unwrap();
    s.set_only_v6(false).unwrap();
    prepare(&s);
    s.bind(&SockAddr::from(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))).unwrap();
    s.listen(16).unwrap();
    let peers = Arc::new(Mutex::new(vec![]));
    let p = peers.clone();
    std::thread::spawn(move || {
        let l = std::net::TcpListener::from(s);
        while let Ok((mut s, from)) = l.accept() {
            p.lock().unwrap().push(karst_core::canonical(from));
            let mut b = [0; 64];
            while let Ok(n @ 1..) = s.read(&mut b) {
                let _ = s.write_all(&b[..n]);
            }
        }
    });
    peers
}

#[test]
fn applications_that_listen_on_one_device_or_with_a_mark_are_reached() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let server = w.mesh_pod(PodSpec::new("app", "server", 0));
    let (near, far) = (w.mesh_pod(PodSpec::new("app", "near", 0)), w.mesh_pod(PodSpec::new("app", "far", 1)));
    let outside = w.pod(PodSpec::new("out", "outside", 1));
    w.settle();
    let device = serve(&server, 9001, |s| s.bind_device(Some(b"eth0")).unwrap());
    let marked = serve(&server, 9002, |s| s.set_mark(0x77).unwrap());
    let usual = serve(&server, 9003, |_| {});
    let listeners = [
        ("bound to eth0", 9001, &device, true),
        ("with a mark", 9002, &marked, true),
        ("as usual", 9003, &usual, false),
    ];
    for (what, port, peers, own) in listeners {
        for (who, from) in [("a member, same node", &near), ("a member, other node", &far), ("a stranger", &outside)] {
            for v6 in [false, true] {
                let to = if v6 { server.at6(port) } else { server.at(port) };
                let t = Instant::now();
                app::ping(&mut from.connect(to).unwrap(), PING).unwrap_or_else(|e| panic!("{what}, {who}, {to}: {e}"));
                let seen = peers.lock().unwrap().last().unwrap().ip();
                let sees = if own { &server } else { from };
                let expected: IpAddr = if v6 { sees.ip6 } else { sees.ip };
                println!("surroundings listener {what}: {who}: peer={seen} ms={}", t.elapsed().as_millis());
                assert_eq!(seen, expected, "{what}, {who}");
            }
        }
    }
    // Nobody listens: that is said as before.
    let t = Instant::now();
    let refused = far.connect(server.at(9004)).and_then(|mut s| app::ping(&mut s, PING));
    assert!(refused.is_err() && t.elapsed() < Duration::from_secs(3), "{refused:?} {:?}", t.elapsed());
}

#[test]
fn link_local_destinations_are_refused_at_once() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let (member, outside) = (w.mesh_pod(PodSpec::new("app", "member", 0)), w.pod(PodSpec::new("out", "outside", 0)));
    let text = ip_in(&w.nodes[0].ns, "-6 -o addr show dev cni0 scope link").unwrap();
    let ip: Ipv6Addr = text.split("inet6 ").nth(1).unwrap().split('/').next().unwrap().parse().unwrap();
    let try_from = |p: &Pod| {
        let index = ip_in(&p.ns, "-o link show eth0").unwrap().split(':').next().unwrap().trim().parse().unwrap();
        let to = SocketAddr::V6(SocketAddrV6::new(ip, 9, 0, index));
        let t = Instant::now();
        let r = p.netns().run(|| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(3))).unwrap();
        (r.unwrap_err().raw_os_error(), t.elapsed())
    };
    // The node answers who is not of the mesh; a member gets no further than its own kernel.
    // (The world's own IPv6 takes a second or two: duplicate address detection.)
    let theirs = wait_for("the node answers", Duration::from_secs(5), || {
        Some(try_from(&outside)).filter(|r| r.0 == Some(libc::ECONNREFUSED))
    });
    let ours = try_from(&member);
    println!("surroundings link-local: outside {theirs:?}, member {ours:?}");
    assert_eq!(ours.0, Some(libc::ENETUNREACH));
    assert!(ours.1 < Duration::from_millis(500), "{:?}", ours.1);
}
