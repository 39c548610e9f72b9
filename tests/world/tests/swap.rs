//! Our ztunnel under Istio's node agent: it gets a network namespace for each pod and nothing else, and the pods' connections by
//! NAT. What holds in a world of our own must hold here, but for what Istio's redirection cannot promise
//! (docs/threat-model.md); what that is, `what_a_mark_is_worth` shows.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

use karst_world::{
    Load, Loaded, Options, Pod, PodSpec, World, app,
    istio::{Capture, Rules, probe_addresses},
    wait_for,
};
use socket2::{Domain, Socket, Type};
use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

const MARK: &[u8] = b"karst-plaintext-marker-7f3a91c2";
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n";
const BOTH: [Rules; 2] = [Rules::Iptables, Rules::Nftables];

/// A world with Istio's agents; ztunnel is started by the arguments and the environment of Istio's chart.
fn world(rules: Rules, ztunnel_env: &[(&str, &str)]) -> World {
    let own = [("INPOD_ENABLED", "true"), ("PROXY_MODE", "shared"), ("ISTIO_META_CLUSTER_ID", "Kubernetes")];
    let own = own.iter().chain(&[("RUST_BACKTRACE", "1"), ("TERMINATION_GRACE_PERIOD_SECONDS", "30")]);
    let env = own.chain(ztunnel_env).map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let ztunnel = ["proxy", "ztunnel"].map(String::from).to_vec();
    let w = World::start(Options { istio: Some(rules), ztunnel, ztunnel_env: env, ..Options::default() }).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    w
}

fn pod(w: &mut World, name: &str, node: usize) -> Pod {
    w.istio_pod(PodSpec::new("app", name, node), &Capture::default())
}

fn tunnels(w: &World, node: usize) -> f64 {
    std::thread::sleep(Duration::from_millis(50));
    w.metric(node, "istio_tcp_connections_opened_total", &["reporter=\"source\"", "mutual_tls"])
}

fn says(from: &Pod, to: SocketAddr) -> std::io::Result<()> {
    let mut stream = from.connect(to)?;
    assert_eq!(stream.peer_addr().unwrap(), to, "the application sees the address that it has called");
    let back = app::exchange(&mut stream, MARK)?;
    if back == MARK { Ok(()) } else { Err(std::io::Error::other("other bytes came back")) }
}

/// Waits for the way by IPv6: an address is its pod's only when the kernel has looked for another's.
fn by_ipv6(from: &Pod, to: &Pod) {
    wait_for("the way by IPv6", Duration::from_secs(10), || says(from, to.at6(8080)).ok());
}

/// Both families, both ways of setting rules: tunnels between nodes and connections within one, addresses of clients, STRICT,
/// probes, and no plaintext between the nodes.
#[test]
fn pods_of_istios_agent_are_served() {
    for rules in BOTH {
        let mut w = world(rules, &[]);
        let (a, b, c) = (pod(&mut w, "a", 0), pod(&mut w, "b", 1), pod(&mut w, "c", 0));
        let outside = w.pod(PodSpec::new("out", "o", 0));
        w.settle();
        let echoes: Vec<_> = [&b, &c].map(|p| app::Echo::start(p, 8080, "")).into();
        let sniffer = w.sniffer(MARK);
        for (what, to, echo, crosses) in [
            ("another node, IPv4", b.at(8080), &echoes[0], true),
            ("another node, IPv6", b.at6(8080), &echoes[0], true),
            ("the same node, IPv4", c.at(8080), &echoes[1], false),
            ("the same node, IPv6", c.at6(8080), &echoes[1], false),
        ] {
            let before = tunnels(&w, 0);
            says(&a, to).unwrap_or_else(|e| panic!("{rules:?} {what}: {e}"));
            let own = if to.is_ipv4() { a.ip } else { a.ip6 };
            assert_eq!(echo.last_peer().unwrap().ip(), own, "{rules:?} {what}: the server sees its client's address");
            assert!(tunnels(&w, 0) > before, "{rules:?} {what}: with both identities");
            println!("swap {rules:?} {what}: ok, crosses={crosses}");
        }
        assert_eq!(sniffer.seen().marked, 0, "{rules:?}: nothing of it was readable between the nodes");

        // Strangers, as plaintext: to 15006, with their address; under STRICT they are refused, and probes are not.
        for (to, own) in [(b.at(8080), outside.ip), (b.at6(8080), outside.ip6)] {
            says(&outside, to).unwrap();
            assert_eq!(echoes[0].last_peer().unwrap().ip(), own, "{rules:?}: a stranger's address is kept");
        }
        w.apply("strict", STRICT);
        for to in [b.at(8080), b.at6(8080)] {
            assert!(says(&outside, to).is_err(), "{rules:?}: STRICT refuses a stranger at {to}");
            says(&a, to).unwrap();
            let probe = w.nodes[1].netns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(3))).unwrap();
            app::exchange(&mut probe.unwrap(), b"probe").unwrap();
            let from = echoes[0].last_peer().unwrap().ip();
            assert!(probe_addresses().contains(&from), "{rules:?}: a probe passes by, from {from}");
        }
    }
}

/// Names of the mesh are answered over UDP and TCP; others go to ztunnel's resolver, from the pod.
#[test]
fn dns_of_istios_pods_is_answered() {
    let conf = std::env::temp_dir().join(format!("karst-swap-resolv-{}", std::process::id()));
    for rules in BOTH {
        let mut w = world(rules, &[("KARST_RESOLV_CONF", &conf.display().to_string())]);
        let a = pod(&mut w, "a", 0);
        let without = Capture { dns: false, ..Capture::default() };
        let bare = w.istio_pod(PodSpec::new("app", "bare", 0), &without);
        let resolver = w.pod(PodSpec::new("out", "resolver", 1));
        app::name_server(&resolver, vec![("example.org", Ipv4Addr::new(203, 0, 113, 7))]);
        let _over_tcp = app::zone_server(&resolver, b"x");
        fs::write(&conf, format!("search app.svc.cluster.local\nnameserver {}\n", resolver.ip)).unwrap();
        w.apply("web", "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec: {clusterIP: 10.96.0.10, selector: {app: a}, ports: [{port: 80, targetPort: 8080}]}\n");
        let (web, nobody) = ("web.app.svc.cluster.local", SocketAddr::from(([10, 96, 0, 53], 53)));
        // Of the mesh: whoever is asked, here nobody.
        assert_eq!(over_udp(&a, web, nobody), Some((0, 1)), "{rules:?}");
        assert_eq!(over_tcp(&a, web, nobody), Some((0, 1)), "{rules:?}");
        // Not of the mesh: by UDP from ztunnel's resolver, by TCP from the one that was asked.
        assert_eq!(over_udp(&a, "example.org", nobody), Some((0, 1)), "{rules:?}");
        assert_eq!(over_udp(&a, "nowhere.example", nobody), Some((3, 0)), "{rules:?}");
        assert_eq!(over_tcp(&a, "nowhere.example", (resolver.ip, 53).into()), Some((3, 0)), "{rules:?}");
        // A pod whose DNS is not captured asks for itself, by either.
        assert_eq!(over_udp(&bare, web, (resolver.ip, 53).into()), Some((3, 0)), "{rules:?}");
        assert_eq!(over_tcp(&bare, web, (resolver.ip, 53).into()), Some((3, 0)), "{rules:?}");
    }
    let _ = fs::remove_file(conf);
}

/// Whoever calls ztunnel's own ports, from inside or outside, is refused, and it does not call itself; also where a pod's inbound
/// is not captured, so that its ports are open to everybody.
#[test]
fn nobody_gets_in_by_the_ports_themselves() {
    for rules in BOTH {
        let mut w = world(rules, &[]);
        let a = pod(&mut w, "a", 0);
        let open = Capture { inbound: false, ..Capture::default() };
        let ingress = w.istio_pod(PodSpec::new("app", "ingress", 0), &open);
        let outside = w.pod(PodSpec::new("out", "o", 1));
        let near = w.pod(PodSpec::new("out", "near", 0));
        w.settle();
        let descriptors = || fs::read_dir(format!("/proc/{}/fd", w.ztunnel_pid(0))).unwrap().count();
        let before = descriptors();
        for port in [15001, 15006, 15053] {
            for (who, to) in [
                (&a, SocketAddr::from(([127, 0, 0, 1], port))),
                (&a, SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port))),
                (&a, a.at(port)),
                (&a, a.at6(port)),
                (&ingress, ingress.at(port)),
                (&outside, a.at(port)),
                (&outside, a.at6(port)),
                (&outside, ingress.at(port)),
                (&outside, ingress.at6(port)),
            ] {
                let served = who.connect(to).is_ok_and(|mut s| {
                    let _ = s.set_read_timeout(Some(Duration::from_secs(3)));
                    let _ = s.write_all(MARK);
                    s.read(&mut [0; 64]).is_ok_and(|n| n > 0)
                });
                assert!(!served, "{rules:?}: {} at {to}", who.ns);
            }
        }
        wait_for("ztunnel has closed them", Duration::from_secs(10), || (descriptors() <= before + 4).then_some(()));
        // What a neighbour would have the pod forward comes to ztunnel, as everything that comes in: it is no relay.
        let echo = app::Echo::start(&outside, 8080, "");
        says(&near, outside.at(8080)).unwrap();
        for (to, via) in [(outside.ip, a.ip), (outside.ip6, a.ip6)] {
            let family = if to.is_ipv4() { "-4" } else { "-6" };
            karst_world::net::ip_in(&near.ns, &format!("{family} route replace {to} via {via}")).unwrap();
            assert!(says(&near, (to, 8080).into()).is_err(), "{rules:?}: {to} by way of a member");
        }
        assert_eq!(echo.connections(), 1, "{rules:?}");
        // Of UDP only the pod itself can ask.
        for to in [a.at(15053), a.at6(15053), ingress.at(15053)] {
            assert_eq!(over_udp(&outside, "web.app.svc.cluster.local", to), None, "{rules:?}: {to}");
        }
    }
}

/// A container behind a device of the pod's (`reroute-virtual-interfaces`) calls as its pod.
#[test]
fn what_is_inside_calls_as_its_pod() {
    for rules in BOTH {
        let mut w = world(rules, &[]);
        let b = pod(&mut w, "b", 1);
        let echo = app::Echo::start(&b, 8080, "");
        let capture = Capture { devices: vec!["virt0".into()], ..Capture::default() };
        let host = w.istio_pod(PodSpec::new("app", "host", 0), &capture);
        let inside = host.inside("virt0", [172, 17, 0, 2], [0xfd17, 0, 0, 0, 0, 0, 0, 2]);
        for words in ["addr add 172.17.0.1/24 dev virt0", "addr add fd17::1/64 dev virt0 nodad"] {
            karst_world::net::ip_in(&host.ns, words).unwrap();
        }
        let sniffer = w.sniffer(MARK);
        for (to, own) in [(b.at(8080), host.ip), (b.at6(8080), host.ip6)] {
            let before = tunnels(&w, 0);
            says(&inside, to).unwrap_or_else(|e| panic!("{rules:?} {to}: {e}"));
            assert_eq!(echo.last_peer().unwrap().ip(), own, "{rules:?}: as the pod");
            assert!(tunnels(&w, 0) > before, "{rules:?}");
        }
        assert_eq!(sniffer.seen().marked, 0, "{rules:?}");
    }
}

/// A ztunnel is replaced under load, as a rollout does it: no new connection fails, nothing readable passes.
#[test]
fn a_ztunnel_is_replaced_without_a_failure() {
    let mut w = world(Rules::Nftables, &[("CONNECTION_TERMINATION_DEADLINE", "2s")]);
    let (a, b) = (pod(&mut w, "a", 0), pod(&mut w, "b", 1));
    let outside = w.pod(PodSpec::new("out", "o", 0));
    let _echo = app::Echo::start(&b, 8080, "");
    says(&a, b.at(8080)).unwrap();
    by_ipv6(&a, &b);
    let sniffer = w.sniffer(MARK);
    let loads = [
        (&a, b.at(8080), MARK),
        (&a, b.at6(8080), MARK),
        (&outside, b.at(8080), b"from outside of the mesh".as_slice()),
    ];
    let loads = loads.map(|(from, to, what)| Load::start(from.netns(), to, 100, what));
    let mut ports = [15000, 15000];
    for round in 0..6 {
        let node = round % 2;
        ports[node] = if ports[node] == 15000 { 16000 } else { 15000 };
        let mut old = w.replace_ztunnel(node, ports[node]);
        std::thread::sleep(Duration::from_millis(300));
        let _ = old.wait();
    }
    for load in loads {
        let Loaded { ok, failed, slowest_ms } = load.end();
        println!("swap restarts=6 new_ok={ok} new_failed={} slowest_ms={slowest_ms}", failed.len());
        assert!(failed.is_empty() && ok > 100, "{ok}: {failed:?}");
    }
    assert_eq!(sniffer.seen().marked, 0);
}

/// A ztunnel that cannot get its configuration takes nothing over from the one that serves, though it has the same ports.
#[test]
fn a_ztunnel_without_a_configuration_takes_nothing_over() {
    let mut w = world(Rules::Nftables, &[]);
    let (a, b) = (pod(&mut w, "a", 0), pod(&mut w, "b", 1));
    let _echo = app::Echo::start(&b, 8080, "");
    says(&a, b.at(8080)).unwrap();
    by_ipv6(&a, &b);
    w.stop_controller(libc::SIGKILL);
    let mut new: Vec<_> = (0..2).map(|node| w.start_ztunnel_at(node, 16000).unwrap()).collect();
    for node in 0..2 {
        wait_for("the agent has told the new one of its pods", Duration::from_secs(10), || {
            (w.istio_agent(node).connected() == 2).then_some(())
        });
    }
    let loads = [b.at(8080), b.at6(8080)].map(|to| Load::start(a.netns(), to, 100, MARK));
    std::thread::sleep(Duration::from_secs(2));
    for load in loads {
        let Loaded { ok, failed, .. } = load.end();
        assert!(failed.is_empty() && ok > 100, "{ok}: {failed:?}");
    }
    for process in &mut new {
        karst_world::kill(process.id(), libc::SIGKILL);
        let _ = process.wait();
    }
    says(&a, b.at(8080)).unwrap();
}

/// Nothing falls back to plaintext while ztunnel is away; and what is served goes on while the agent is away, or comes again.
#[test]
fn what_is_away_is_closed_and_what_is_there_goes_on() {
    let mut w = world(Rules::Iptables, &[]);
    let (a, b) = (pod(&mut w, "a", 0), pod(&mut w, "b", 1));
    let _echo = app::Echo::start(&b, 8080, "");
    says(&a, b.at(8080)).unwrap();
    let sniffer = w.sniffer(MARK);
    w.stop_ztunnel(0, libc::SIGKILL);
    for to in [b.at(8080), b.at6(8080)] {
        assert!(says(&a, to).is_err(), "without ztunnel there is no way to {to}");
    }
    w.start_ztunnel(0).unwrap();
    w.wait_ztunnel(0);
    for to in [b.at(8080), b.at6(8080)] {
        says(&a, to).unwrap();
    }
    // The agent comes again under load: the pods that it tells of are served already.
    let load = Load::start(a.netns(), b.at(8080), 100, MARK);
    let served = |w: &World| w.log_text("ztunnel0.log").matches("pod is served").count();
    let before = served(&w);
    w.start_istio_agent(0).unwrap();
    wait_for("ztunnel is connected again", Duration::from_secs(10), || {
        (w.istio_agent(0).connected() == 1).then_some(())
    });
    std::thread::sleep(Duration::from_millis(500));
    let Loaded { ok, failed, .. } = load.end();
    assert!(failed.is_empty() && ok > 20, "{ok}: {failed:?}");
    assert_eq!(served(&w), before, "nothing was opened a second time");
    assert_eq!(sniffer.seen().marked, 0);
    // A pod that goes is let go: its ports are free, and it works as one outside of the mesh.
    w.istio_release(&a);
    wait_for("its ports are free", Duration::from_secs(10), || {
        let free = |port| a.netns().run(|| std::net::TcpListener::bind(("0.0.0.0", port))).unwrap().is_ok();
        [15001, 15006, 15008, 15053].into_iter().all(free).then_some(())
    });
    let before = tunnels(&w, 0);
    says(&a, b.at(8080)).unwrap();
    assert_eq!(tunnels(&w, 0), before);
}

/// A pod whose process has one of the ports is refused by name, and served once the port is free.
#[test]
fn a_port_that_is_taken_is_tried_again() {
    let mut w = world(Rules::Iptables, &[]);
    let b = pod(&mut w, "b", 1);
    let _echo = app::Echo::start(&b, 8080, "");
    let a = w.pod(PodSpec::new("app", "a", 0));
    let taken = a.netns().run(|| std::net::TcpListener::bind(("0.0.0.0", 15001))).unwrap().unwrap();
    let said = w.istio_agent(0).add(&a);
    assert!(said.contains("15001") && said.contains("in the pod's network namespace"), "{said}");
    drop(taken);
    wait_for("the pod is served", Duration::from_secs(15), || {
        w.log_text("ztunnel0.log").lines().any(|l| l.contains("pod is served") && l.contains("app/a")).then_some(())
    });
}

/// What Istio's redirection cannot promise, and ours does: a process that may set marks (CAP_NET_RAW, which many runtimes give to
/// every container) passes it by. It gets no identity by it: a member under STRICT refuses it.
#[test]
fn what_a_mark_is_worth() {
    let mut w = world(Rules::Nftables, &[]);
    let (a, b) = (pod(&mut w, "a", 0), pod(&mut w, "b", 1));
    let _echo = app::Echo::start(&b, 8080, "");
    let marked = |to: SocketAddr| {
        let connect = || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.set_mark(0x539)?;
            socket.connect_timeout(&to.into(), Duration::from_secs(2))?;
            Ok::<_, std::io::Error>(TcpStream::from(socket))
        };
        a.netns().run(connect).unwrap().and_then(|mut stream| app::exchange(&mut stream, b"by the mark"))
    };
    let before = tunnels(&w, 0);
    assert!(marked(b.at(8080)).is_ok_and(|got| got == b"by the mark"), "it passes Istio's rules");
    assert_eq!(tunnels(&w, 0), before, "as plaintext");
    w.apply("strict", STRICT);
    for to in [b.at(8080), b.at6(8080)] {
        assert!(!marked(to).is_ok_and(|got| got == b"by the mark"), "STRICT refuses it at {to}");
        says(&a, to).unwrap();
    }
}

fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// Response code and number of answers.
fn answer(message: &[u8]) -> (u8, u16) {
    (message[3] & 0xf, u16::from_be_bytes([message[6], message[7]]))
}

fn over_udp(from: &Pod, name: &str, server: SocketAddr) -> Option<(u8, u16)> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = from.netns().run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
    // Connected: an answer from another address than the one that was asked would not be taken.
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket.send(&query(name)).unwrap();
    let mut message = [0; 1500];
    let length = socket.recv(&mut message).ok()?;
    (length > 12 && message[..2] == [0x12, 0x34]).then(|| answer(&message))
}

fn over_tcp(from: &Pod, name: &str, server: SocketAddr) -> Option<(u8, u16)> {
    let mut stream = from.connect(server).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let query = query(name);
    stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], &query].concat()).ok()?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(answer(&message))
}
