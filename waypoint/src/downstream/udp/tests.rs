//! Datagrams through a worker, whose control plane is the test: clients and endpoints are sockets on loopback. No root is needed.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use super::{
    counts::{Counts, Dropped, SessionEnd},
    serve,
};
use crate::{
    downstream::gateway::Gateway,
    route::table::Routes,
    snapshot::Snapshot,
    testing::{LINES, Plane, run, spawn},
};
use karst_api::{route as ir, workload as pb};
use karst_core::limits;
use karst_proxy::testing::{Ca, pod, service, snapshot};
use karst_rt::udp::{Front, listeners};
use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    net::UdpSocket,
    task::spawn_local,
    time::{sleep, timeout},
};

const KEY: &str = "ns/s.ns.svc.cluster.local";
const IDLE: Duration = Duration::from_secs(60);
/// Longer than an answer takes.
const ANSWER: Duration = Duration::from_millis(500);

/// An endpoint that answers each datagram with its name before it, if it answers at all.
struct Endpoint {
    name: &'static str,
    at: SocketAddr,
}

async fn endpoint(name: &'static str, ip: &str, answers: bool) -> Endpoint {
    let socket = UdpSocket::bind((ip, 0)).await.unwrap();
    let at = socket.local_addr().unwrap();
    spawn(async move {
        let mut room = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut room).await {
            if answers {
                let answer = [name.as_bytes(), b" ", &room[..length]].concat();
                let _ = socket.send_to(&answer, from).await;
            }
        }
    });
    Endpoint { name, at }
}

/// A pod; `closed`: why it is a member that takes nothing without an identity. Empty: it is none.
fn workload(endpoint: &Endpoint, closed: &str) -> pb::Workload {
    let port = pb::UdpPort { service_port: 53, target_port: endpoint.at.port().into(), closed: closed.into() };
    let own = pb::UdpPortList { ports: vec![port] };
    pb::Workload {
        tunnel_protocol: i32::from(!closed.is_empty()),
        karst_udp_services: [(KEY.to_string(), own)].into(),
        ..pod(endpoint.name, &endpoint.at.ip().to_string(), &[(KEY, &[])])
    }
}

/// So much goes to the service; of `refuse` nothing goes anywhere.
fn to(weight: u32, refuse: bool) -> ir::Destination {
    let refuse_status = if refuse { 500 } else { 0 };
    ir::Destination { service: KEY.into(), port: 53, weight, refuse_status, ..Default::default() }
}

/// A worker that has one UDP port.
struct Site {
    plane: Plane,
    number: u16,
    task: tokio::task::JoinHandle<()>,
    /// The address of its pod.
    own: Cell<&'static str>,
}

impl Site {
    fn start(idle: Duration) -> Self {
        let own = pod("own", "10.0.1.1", &[]);
        let plane = Plane::start(&Ca::mint(), snapshot(vec![own], vec![]));
        let socket = listeners(0, 1).unwrap().remove(0);
        let number = socket.local_addr().unwrap().port();
        let front = Front::new(socket).unwrap();
        let task = spawn_local(serve::port(plane.worker.clone(), front, (number, idle), Rc::default()));
        Self { plane, number, task, own: Cell::new("10.0.1.1") }
    }

    fn tell(&self, pods: Vec<pb::Workload>, destinations: Vec<ir::Destination>, access: Option<ir::Access>) {
        let mut s = Snapshot::new("");
        let dns = pb::Service { karst_udp_ports: vec![53], ..service("s", "10.96.0.1", &[]) };
        // A gateway is no member of the mesh.
        let own = pb::Workload { tunnel_protocol: 0, ..pod("own", self.own.get(), &[]) };
        s.mesh = snapshot(pods.into_iter().chain([own]).collect(), vec![dns]);
        let listener = ir::UdpListener {
            origin: "Gateway/ns/g/dns".into(),
            routes: "l".into(),
            port: self.number.into(),
            called: 53,
        };
        let gateway = ir::Gateway { udp: vec![listener], access, ..Default::default() };
        s.gateway = Some(Arc::new(Gateway::new(&gateway).unwrap()));
        let rule = ir::TcpRule { origin: "UDPRoute ns/r rule 0".into(), destinations, ..Default::default() };
        let table = ir::Table { tcp: vec![rule], ..Default::default() };
        let routes = ir::Routes { producer: Some(table), ..Default::default() };
        s.hosts.insert("l/*".into(), Arc::new(Routes::new(&routes, None).unwrap()));
        self.plane.state.send_replace(Arc::new(s));
    }

    fn counts(&self) -> &Counts {
        &self.plane.worker.shared.metrics.udp
    }

    async fn client(&self, ip: &str) -> UdpSocket {
        let socket = UdpSocket::bind((ip, 0)).await.unwrap();
        socket.connect((ip, self.number)).await.unwrap();
        socket
    }
}

async fn ask(client: &UdpSocket, text: &str) -> Option<String> {
    // What was answered before by an ICMP message is not of this one.
    while client.send(text.as_bytes()).await.is_err() {}
    let mut room = [0; 2048];
    let length = timeout(ANSWER, client.recv(&mut room)).await.ok()?.ok()?;
    Some(String::from_utf8_lossy(&room[..length]).into())
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert!(holds(), "{what}");
}

#[test]
fn a_session_stays_with_its_endpoint_and_is_told_of() {
    run(async {
        let (a, b) = (endpoint("a", "127.0.0.2", true).await, endpoint("b", "127.0.0.3", true).await);
        let site = Site::start(Duration::from_millis(600));
        site.tell(vec![workload(&a, ""), workload(&b, "")], vec![to(1, false)], None);
        let mut seen = vec![];
        for ip in ["127.0.0.1", "::1", "127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1"] {
            let client = site.client(ip).await;
            let first = ask(&client, "0").await.unwrap();
            let name = first.strip_suffix(" 0").unwrap().to_string();
            for n in 1..4 {
                assert_eq!(ask(&client, &n.to_string()).await.unwrap(), format!("{name} {n}"));
            }
            seen.push(name);
        }
        // Of two endpoints each has some: the one with fewer sessions comes first.
        assert!(["a", "b"].iter().all(|name| seen.iter().any(|n| n == name)), "{seen:?}");
        let counts = site.counts();
        assert_eq!(counts.opened.load(Relaxed), 8);
        assert_eq!([&counts.received, &counts.sent].map(|c| c.datagrams.load(Relaxed)), [32, 32]);
        assert_eq!([&counts.received, &counts.sent].map(|c| c.bytes.load(Relaxed)), [32, 96]);
        until("silent sessions have ended", || counts.ended(SessionEnd::Idle) == 8).await;
        let lines = LINES.with_borrow(|l| l.clone());
        let line = lines.iter().find(|l| l.contains("\"- - UDP\" 0 - - - \"-\" 4 12 "));
        let line = line.unwrap_or_else(|| panic!("{lines:?}"));
        for part in ["outbound|53||s.ns.svc.cluster.local", "UDPRoute ns/r rule 0"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        // Nothing of it is a TCP connection's.
        let shared = &site.plane.worker.shared;
        let page = karst_rt::exposition::page(|page| shared.metrics.render(&shared.gate, page));
        assert!(!page.contains("istio_tcp_connections_opened_total{"), "{page}");
    });
}

#[test]
fn what_has_nowhere_to_go_is_dropped_and_counted() {
    run(async {
        let a = endpoint("a", "127.0.0.2", true).await;
        let site = Site::start(IDLE);
        let counts = site.counts();
        let client = site.client("127.0.0.1").await;
        assert_eq!(ask(&client, "x").await, None);
        assert_eq!(counts.dropped(Dropped::NoRoute), 1, "there is no listener");
        site.tell(vec![], vec![to(1, false)], None);
        assert_eq!(ask(&client, "x").await, None);
        assert_eq!(counts.dropped(Dropped::NoEndpoint), 1);
        site.tell(vec![workload(&a, "policy ns/strict")], vec![to(1, false)], None);
        assert_eq!(ask(&client, "x").await, None);
        assert_eq!(counts.dropped(Dropped::Closed), 1, "it is a member that asks for an identity");
        // Nobody has one.
        let anybody = ir::AccessTest {
            attribute: ir::Attribute::Principal as i32,
            values: vec!["*".into()],
            ..Default::default()
        };
        let rule = ir::AccessRule {
            clauses: vec![ir::AccessClause { matches: vec![ir::AccessMatch { tests: vec![anybody] }] }],
        };
        let policy = ir::AccessPolicy {
            name: "ns/allow".into(),
            action: ir::AccessAction::Allow as i32,
            rules: vec![rule],
            ..Default::default()
        };
        let access = ir::Access { policies: vec![policy], ..Default::default() };
        site.tell(vec![workload(&a, "")], vec![to(1, false)], Some(access));
        assert_eq!(ask(&client, "x").await, None);
        assert_eq!(counts.dropped(Dropped::Denied), 1);
        assert_eq!(counts.opened.load(Relaxed), 0);
        // A backend that is not there loses its share, and the other has its own.
        site.tell(vec![workload(&a, "")], vec![to(3, false), to(1, true), to(0, false)], None);
        let mut answered = 0;
        for _ in 0..12 {
            answered += usize::from(ask(&site.client("127.0.0.1").await, "x").await.is_some());
        }
        assert_eq!(answered as u64 + counts.dropped(Dropped::NoDestination), 12);
        assert!((8..=10).contains(&answered), "{answered}");
        assert_eq!(counts.dropped(Dropped::Closed) + counts.dropped(Dropped::NoEndpoint), 2, "as before");
    });
}

#[test]
fn sessions_end_with_their_endpoint_their_route_and_their_port() {
    run(async {
        let (a, b) = (endpoint("a", "127.0.0.2", true).await, endpoint("b", "127.0.0.3", true).await);
        let site = Site::start(IDLE);
        let counts = site.counts();
        let client = site.client("127.0.0.1").await;
        site.tell(vec![workload(&a, "")], vec![to(1, false)], None);
        assert_eq!(ask(&client, "1").await.as_deref(), Some("a 1"));
        // What changes nothing for it leaves it alone.
        site.tell(vec![workload(&a, ""), workload(&b, "")], vec![to(1, false), to(1, true)], None);
        sleep(Duration::from_millis(50)).await;
        assert_eq!(ask(&client, "2").await.as_deref(), Some("a 2"));
        site.tell(vec![workload(&b, "")], vec![to(1, false)], None);
        until("it has ended", || counts.ended(SessionEnd::Gone) == 1).await;
        assert_eq!(ask(&client, "3").await.as_deref(), Some("b 3"));
        // It is closed from now on.
        site.tell(vec![workload(&b, "policy ns/strict")], vec![to(1, false)], None);
        until("it has ended", || counts.ended(SessionEnd::Gone) == 2).await;
        assert_eq!(ask(&client, "4").await, None);
        // A grant is gone.
        site.tell(vec![workload(&b, "")], vec![to(1, false)], None);
        assert_eq!(ask(&client, "5").await.as_deref(), Some("b 5"));
        site.tell(vec![workload(&b, "")], vec![to(1, true)], None);
        until("it has ended", || counts.ended(SessionEnd::Gone) == 3).await;
        assert_eq!(ask(&client, "6").await, None);
        site.tell(vec![workload(&b, "")], vec![to(1, false)], None);
        assert_eq!(ask(&client, "7").await.as_deref(), Some("b 7"));
        site.task.abort();
        until("it has ended", || counts.ended(SessionEnd::Closed) == 1).await;
    });
}

/// No datagram says how often it has been sent on.
#[test]
fn what_a_gateway_sends_to_itself_goes_no_further() {
    run(async {
        let site = Site::start(IDLE);
        site.own.set("127.0.0.1");
        let counts = site.counts();
        let client = site.client("127.0.0.5").await;
        let itself = |ip: &str| Endpoint { name: "itself", at: format!("{ip}:{}", site.number).parse().unwrap() };
        site.tell(vec![workload(&itself("127.0.0.1"), "")], vec![to(1, false)], None);
        assert_eq!(ask(&client, "x").await, None);
        let dropped = || Dropped::ALL.iter().filter(|why| counts.dropped(**why) > 0).collect::<Vec<_>>();
        assert_eq!((dropped(), counts.opened.load(Relaxed)), (vec![&Dropped::NoEndpoint], 0));
        // By an address of which nobody has told that it is the gateway's.
        site.tell(vec![workload(&itself("127.0.0.8"), "")], vec![to(1, false)], None);
        assert_eq!(ask(&client, "x").await, None);
        until("it has come back", || counts.dropped(Dropped::Loop) == 1).await;
        assert_eq!(counts.opened.load(Relaxed), 1);
    });
}

/// A host that says that nobody is at the port ends the session; the next one goes to another endpoint.
#[test]
fn an_endpoint_that_refuses_is_avoided() {
    run(async {
        let gone = Endpoint { name: "gone", at: UdpSocket::bind("127.0.0.4:0").await.unwrap().local_addr().unwrap() };
        let site = Site::start(IDLE);
        let counts = site.counts();
        site.tell(vec![workload(&gone, "")], vec![to(1, false)], None);
        let client = site.client("127.0.0.1").await;
        assert_eq!(ask(&client, "1").await, None);
        until("it has ended", || counts.ended(SessionEnd::Refused) == 1).await;
        let a = endpoint("a", "127.0.0.2", true).await;
        site.tell(vec![workload(&gone, ""), workload(&a, "")], vec![to(1, false)], None);
        for n in 0..8 {
            let client = site.client("127.0.0.1").await;
            assert_eq!(ask(&client, &n.to_string()).await.unwrap(), format!("a {n}"));
        }
    });
}

/// However many clients there seem to be: sessions are bounded, and one that is in use stays.
#[test]
fn a_flood_is_bounded() {
    run(async {
        let a = endpoint("a", "127.0.0.2", true).await;
        let site = Site::start(IDLE);
        let counts = site.counts();
        site.tell(vec![workload(&a, "")], vec![to(1, false)], None);
        let client = site.client("127.0.0.1").await;
        for n in 0..2 {
            assert_eq!(ask(&client, &n.to_string()).await.unwrap(), format!("a {n}"));
        }
        // Each sends once, and so never shows that it gets the answer.
        let (_, most) = limits::udp_sessions(1024);
        let clients = 3 * most as u64;
        let mut all = vec![];
        for _ in 0..clients {
            let one = site.client("127.0.0.1").await;
            one.send(b"x").await.unwrap();
            // Its port is no other's.
            all.push(one);
            tokio::task::yield_now().await;
        }
        until("all have begun", || counts.opened.load(Relaxed) == clients + 1).await;
        until("the oldest have given way", || counts.ended(SessionEnd::Evicted) >= clients - most as u64).await;
        assert_eq!(ask(&client, "2").await.as_deref(), Some("a 2"));
        assert_eq!(counts.opened.load(Relaxed), clients + 1, "its session is the one of before");
    });
}
