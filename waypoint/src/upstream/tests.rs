//! Ways to endpoints on the loopback network, without root.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
use super::{
    address::is_usable,
    error::{ConnectError, Error, Lent},
    open::{Attempt, lent, open},
    tls::Speaks,
};
use crate::{
    cluster::{
        endpoint_set::{
            DynamicEndpoint,
            tests::{KEY, set},
        },
        key::ClusterKey,
    },
    downstream::{
        context::{Downstream, DownstreamTarget},
        gateway::Gateway,
        requests,
        stream::Io,
    },
    snapshot::Snapshot,
    telemetry::{flag::ResponseFlag, rules::Telemetry},
    testing::{OWN, Plane, member, member_told, run, spawn},
    worker::Worker,
};
use bytes::Bytes;
use karst_api::route as ir;
use karst_api::{
    route::PodRanges,
    workload::{self as pb, Service},
};
use karst_core::limits;
use karst_hbone::{
    Settings,
    client::ClientError,
    continuation::{self, Said, Token},
    pool::Lease,
    server,
};
use karst_proxy::{dial::DialError, state::Workload, trace::TRACEPARENT};
use karst_proxy::{
    state,
    testing::{Ca, pod, service, snapshot},
};
use karst_rt::drain;
use prost::Message;
use std::{
    cell::{Cell, RefCell},
    io,
    net::IpAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::spawn_local,
    time::{sleep, timeout},
};

const PORTS: &[(u32, u32)] = &[(80, 8080)];
const PATIENCE: Duration = Duration::from_secs(15);

/// The waypoint itself, and the endpoints of its service.
fn mesh(endpoints: impl IntoIterator<Item = pb::Workload>) -> state::Snapshot {
    let own = pod(OWN, "127.77.0.1", &[]);
    snapshot(endpoints.into_iter().chain([own]).collect(), vec![service("s", "10.96.0.1", PORTS)])
}

fn at(s: &state::Snapshot, ip: &str) -> Arc<Workload> {
    s.workload(ip.parse().unwrap()).unwrap().clone()
}

/// One request of a member on a connection of its own: the status line and all that follows.
async fn ask(w: &Rc<Worker>, s: &state::Snapshot) -> String {
    let downstream = Downstream {
        peer: Some(at(s, "127.77.0.1").identity.clone()),
        from: "127.77.0.1:5".parse().unwrap(),
        source: None,
        target: DownstreamTarget::Service(s.services.get(KEY).unwrap().clone()),
        port: 80,
        to: "10.96.0.1".parse().unwrap(),
        hello: None,
        permit: None,
        entered: Default::default(),
        written: Default::default(),
    };
    let (mut client, io) = tokio::io::duplex(1 << 16);
    let served = async { requests::requests(w, Rc::new(downstream), Io::memory(io), false).await };
    let asked = async {
        client.write_all(b"GET / HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    timeout(PATIENCE, async { tokio::join!(served, asked).1 }).await.unwrap()
}

#[test]
fn a_lost_endpoint_is_not_waited_for() {
    run(async {
        let ca = Ca::mint();
        let ends = [("lost", "127.77.1.1"), ("well", "127.77.1.2")];
        let s = mesh(ends.map(|(name, ip)| pod(name, ip, &[(KEY, PORTS)])));
        // The kernel takes the connections of the one, and nobody ever speaks.
        let _lost = TcpListener::bind(("127.77.1.1", karst_hbone::PORT)).await.unwrap();
        let requests = member(&ca, &at(&s, "127.77.1.2")).await;
        let plane = Plane::start(&ca, s.clone());
        let (mut slow, mut n) = (Duration::ZERO, 0);
        // Which one is chosen is by chance.
        while slow < limits::FIRST_TRY && n < 64 {
            let began = Instant::now();
            let answer = ask(&plane.worker, &s).await;
            slow = began.elapsed();
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("well"), "{answer}");
            n += 1;
        }
        assert!(slow >= limits::FIRST_TRY && slow < limits::CONNECT_TIMEOUT / 2, "{n} requests, {slow:?}");
        // From now on nobody waits.
        let began = Instant::now();
        for _ in 0..20 {
            assert!(ask(&plane.worker, &s).await.ends_with("well"));
        }
        assert!(began.elapsed() < limits::FIRST_TRY, "{:?}", began.elapsed());
        assert_eq!(requests.get(), n + 20, "each request was sent once");
        // Where there is no other, it is tried all the same.
        let only = mesh([pod("lost", "127.77.1.1", &[(KEY, PORTS)])]);
        plane.tell(only.clone());
        let answer = timeout(limits::FIRST_TRY * 2, ask(&plane.worker, &only)).await;
        assert!(answer.is_err(), "it gets the time that there is: {answer:?}");
    });
}

#[test]
fn a_connect_tells_of_the_sampled_request_that_opens_it() {
    run(async {
        let ca = Ca::mint();
        let s = mesh([pod("t", "127.77.3.1", &[(KEY, PORTS)])]);
        let told = Rc::new(RefCell::new(vec![]));
        let all = told.clone();
        let note = move |headers: &http::HeaderMap| all.borrow_mut().push(headers.get(TRACEPARENT).cloned());
        member_told(&ca, &at(&s, "127.77.3.1"), note).await;
        let without = Snapshot { mesh: s.clone(), ..Snapshot::new("") };
        let traced = |rate| {
            let collector = ir::Collector { service: "ns/c".into(), port: 4317, ..Default::default() };
            let tracing = ir::Tracing { per_ten_thousand: rate, collector: Some(collector), ..Default::default() };
            let telemetry = Telemetry::new(&ir::Telemetry { tracing: Some(tracing), ..Default::default() }).unwrap();
            let gateway = Gateway { telemetry: Some(Arc::new(telemetry)), ..Default::default() };
            Snapshot { mesh: s.clone(), gateway: Some(Arc::new(gateway)), ..Snapshot::new("") }
        };
        for (state, is_sampled) in [(without, false), (traced(0), false), (traced(10_000), true)] {
            let plane = Plane::start(&ca, s.clone());
            plane.state.send_replace(Arc::new(state));
            assert!(ask(&plane.worker, &s).await.starts_with("HTTP/1.1 200 "));
            let connects = told.take();
            let [one] = &connects[..] else { panic!("{connects:?}") };
            assert_eq!(one.is_some(), is_sampled, "{one:?}");
            assert!(one.as_ref().is_none_or(|v| v.len() == 55 && v.as_bytes().ends_with(b"-01")), "{one:?}");
        }
    });
}

/// What becomes of a connection to the one endpoint, which takes no tunnels.
async fn to_endpoint(w: Rc<Worker>) -> Result<(), ConnectError> {
    opened(&w).await.map(drop)
}

/// A connection to the one endpoint.
async fn opened(w: &Rc<Worker>) -> Result<(Io, Option<Lease>), ConnectError> {
    let key = ClusterKey { service: KEY.into(), port: 80, subset: Arc::default(), client: Arc::default(), udp: false };
    let set = w.set(&w.snapshot(), key.as_ref(), "10.96.0.1".parse().unwrap()).unwrap();
    let (member, from) = (&set.members[0], "127.77.0.1:5".parse().unwrap());
    let held = Cell::default();
    let attempt = Attempt { set: &set, member, from, to: from, has_other: &|| false, held: &held, trace: &|| None };
    open(w, &attempt, Speaks::Anything).await
}

/// One stream of a member whose proxy is replaced after each message: it sends the message back, leaves with a token, and keeps what
/// comes after that for the next stream.
async fn say_and_leave((mut send, mut recv): (h2::SendStream<Bytes>, h2::RecvStream), rest: Rc<RefCell<Vec<u8>>>) {
    let mut heard = rest.take();
    while heard.len() < 4 {
        let Some(data) = recv.data().await else {
            send.send_data(Bytes::new(), true).unwrap();
            return;
        };
        heard.extend_from_slice(&data.unwrap());
    }
    send.send_data(Bytes::from(heard), false).unwrap();
    let (token, mut trailers) = (Token::new().unwrap(), http::HeaderMap::new());
    continuation::name(&mut trailers, &token);
    send.send_trailers(trailers).unwrap();
    while let Some(data) = recv.data().await {
        rest.borrow_mut().extend_from_slice(&data.unwrap());
    }
    // Both halves go on, unless that one has ended in this moment.
    let theirs = recv.trailers().await.unwrap();
    assert!(theirs.is_none_or(|theirs| continuation::said(&theirs) == Said::Token(token)));
}

/// A member as above; what each CONNECT has said of continuation.
async fn leaving_member(ca: &Ca, w: &Workload) -> Rc<RefCell<Vec<Said>>> {
    let l = TcpListener::bind((w.ips[0], karst_hbone::PORT)).await.unwrap();
    let (creds, all) = (Rc::new(ca.credentials(&w.identity)), Rc::<RefCell<Vec<Said>>>::default());
    let (told, rest) = (all.clone(), Rc::<RefCell<Vec<u8>>>::default());
    spawn_local(async move {
        while let Ok((s, _)) = l.accept().await {
            let (creds, told, rest) = (creds.clone(), told.clone(), Rc::clone(&rest));
            spawn_local(async move {
                let Ok((tunnel, _)) = server::handshake(s, &creds).await else { return };
                let ((_drain, watch), settings) = (drain::new(), Settings::default());
                let on_stream = |mut c: server::Connect| {
                    told.borrow_mut().push(continuation::said(c.request.headers()));
                    let mut answer = http::Response::new(());
                    continuation::announce(answer.headers_mut());
                    let send = c.respond.send_response(answer, false).unwrap();
                    spawn_local(say_and_leave((send, c.request.into_body()), rest.clone()));
                };
                let _ = server::serve(tunnel, &settings, watch, on_stream).await;
            });
        }
    });
    all
}

#[test]
fn a_connection_outlives_the_proxy_of_its_endpoint() {
    run(async {
        let ca = Ca::mint();
        let s = mesh([pod("t", "127.77.4.1", &[(KEY, PORTS)])]);
        let told = leaving_member(&ca, &at(&s, "127.77.4.1")).await;
        let plane = Plane::start(&ca, s);
        let (mut io, _lease) = opened(&plane.worker).await.unwrap();
        for n in 1..=5 {
            io.write_all(b"ping").await.unwrap();
            let mut back = [0; 4];
            timeout(PATIENCE, io.read_exact(&mut back)).await.unwrap().unwrap();
            assert_eq!((&back, n), (b"ping", n));
        }
        io.shutdown().await.unwrap();
        assert_eq!(timeout(PATIENCE, io.read(&mut [0])).await.unwrap().unwrap(), 0, "its end is an end");
        let told = told.borrow();
        assert_eq!(told.len(), 6, "one stream for each message, and one for the end");
        assert!(told[0] == Said::Knows && told[1..].iter().all(|said| matches!(said, Said::Token(_))));
        assert_eq!(plane.worker.shared.metrics.followed.load(Relaxed), 5);
    });
}

/// Another workload has the address.
#[test]
fn a_connection_does_not_go_on_with_somebody_else() {
    run(async {
        let ca = Ca::mint();
        let s = mesh([pod("t", "127.77.4.2", &[(KEY, PORTS)])]);
        let told = leaving_member(&ca, &at(&s, "127.77.4.2")).await;
        let plane = Plane::start(&ca, s);
        let (mut io, _lease) = opened(&plane.worker).await.unwrap();
        plane.tell(mesh([pod("other", "127.77.4.2", &[(KEY, PORTS)])]));
        io.write_all(b"ping").await.unwrap();
        let mut back = vec![];
        let ended = timeout(PATIENCE, io.read_to_end(&mut back)).await.unwrap();
        assert_eq!((back, ended.unwrap_err().kind()), (b"ping".to_vec(), io::ErrorKind::ConnectionReset));
        assert_eq!(told.borrow().len(), 1, "nobody is asked");
    });
}

#[test]
fn what_may_be_a_members_address_is_held() {
    run(async {
        // On a node's network: its address says nothing of who else is there. (One that is written may not be of loopback.)
        let entry = pb::Workload {
            network_mode: pb::NetworkMode::HostNetwork as i32,
            tunnel_protocol: 0,
            ..pod("e", "127.77.2.1", &[(KEY, PORTS)])
        };
        let with = |others: Vec<pb::Workload>| {
            let mut s = mesh([entry.clone()].into_iter().chain(others));
            let ranges = PodRanges { ranges: vec!["127.77.2.0/24".into()] };
            s.put_pod_ranges("n", &ranges.encode_to_vec()).unwrap();
            s
        };
        // What is waited for is not the endpoint: it has another time.
        let short = ir::Limits { connect_timeout_ms: 100, ..Default::default() };
        let policy = Some(ir::Policy { limits: Some(short), ..Default::default() });
        let rules = Arc::new(ir::Backend { policy, ..Default::default() });
        let tell = |p: &Plane, mesh| {
            let mut s = Snapshot { mesh, ..Snapshot::new("") };
            s.backends.insert(KEY.into(), rules.clone());
            p.state.send_replace(Arc::new(s));
        };
        let l = TcpListener::bind("127.77.2.1:8080").await.unwrap();
        let taken = Rc::new(Cell::new(0));
        let count = taken.clone();
        spawn(async move {
            while let Ok(_one) = l.accept().await {
                count.set(count.get() + 1);
            }
        });
        // A member has come there: nothing goes to it in plaintext. (It takes no tunnels here.)
        let mut plane = Plane::start(&Ca::mint(), with(vec![]));
        tell(&plane, with(vec![]));
        let held = spawn_local(to_endpoint(plane.worker.clone()));
        sleep(Duration::from_millis(300)).await;
        assert!(!held.is_finished());
        tell(&plane, with(vec![pod("new", "127.77.2.1", &[])]));
        let e = timeout(PATIENCE, held).await.unwrap().unwrap().unwrap_err();
        let refused = |e: &io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
        assert!(
            matches!(&e, ConnectError::Dial(DialError::Tunnel(ClientError::Connect(to, io)))
                if to.port() == karst_hbone::PORT && refused(io)),
            "{e}"
        );
        assert_eq!(taken.get(), 0);
        // A pod outside of the mesh is known at once.
        tell(&plane, with(vec![pb::Workload { tunnel_protocol: 0, ..pod("out", "127.77.2.1", &[]) }]));
        timeout(limits::ASK_AGAIN / 2, to_endpoint(plane.worker.clone())).await.unwrap().unwrap();
        // Without the control plane's word nothing goes there, and that is not the endpoint's matter.
        tell(&plane, with(vec![]));
        let e = timeout(PATIENCE, to_endpoint(plane.worker.clone())).await.unwrap().unwrap_err();
        assert!(matches!(e, ConnectError::Untold(_)) && !e.is_of_endpoint(), "{e}");
        // Nobody is there, it says twice.
        let held = spawn_local(to_endpoint(plane.worker.clone()));
        for _ in 0..2 {
            assert!(!held.is_finished());
            let names = timeout(PATIENCE, plane.asker.wanted()).await.unwrap().names;
            assert_eq!(names, ["/127.77.2.1"]);
            plane.asker.answered(&names);
        }
        timeout(PATIENCE, held).await.unwrap().unwrap().unwrap();
        // That holds.
        timeout(limits::ASK_AGAIN / 2, to_endpoint(plane.worker.clone())).await.unwrap().unwrap();
        sleep(Duration::from_millis(50)).await;
        assert_eq!(taken.get(), 3);
    });
}

/// A gateway is not led to itself by what somebody writes, nor past the mesh. (Loopback is no endpoint at all: `endpoints` of karst-proxy.)
#[test]
fn what_is_written_leads_neither_to_ourselves_nor_to_a_service() {
    run(async {
        let mesh = |ip: &str| {
            let outside = |name, ip| pb::Workload { tunnel_protocol: 0, ..pod(name, ip, &[(KEY, PORTS)]) };
            let uid = format!("Kubernetes/networking.istio.io/ServiceEntry/ns/e/{ip}");
            let pods = vec![
                pb::Workload { uid, ..outside("e", ip) },
                pb::Workload { services: Default::default(), ..outside(OWN, "10.0.1.1") },
            ];
            let called = Service { canonical: true, ..service("k", "10.96.0.2", PORTS) };
            snapshot(pods, vec![service("s", "10.96.0.1", PORTS), called])
        };
        for (what, ip) in [("ourselves", "10.0.1.1"), ("a Service", "10.96.0.2")] {
            let plane = Plane::start(&Ca::mint(), mesh(ip));
            let e = timeout(PATIENCE, to_endpoint(plane.worker.clone())).await.unwrap().unwrap_err();
            assert!(matches!(&e, ConnectError::NoAddress(said) if **said == *ip), "{what}: {e}");
        }
    });
}

#[test]
fn flags_and_retries_follow_from_causes() {
    let status = |s: http::StatusCode| ConnectError::from(DialError::from(ClientError::Status(s)));
    let nobody = || "spiffe://cluster.local/ns/x/sa/x".parse().unwrap();
    let all = [
        (Error::from(ConnectError::Timeout), ResponseFlag::ConnectFailure, true),
        (status(http::StatusCode::SERVICE_UNAVAILABLE).into(), ResponseFlag::ConnectFailure, true),
        (status(http::StatusCode::UNAUTHORIZED).into(), ResponseFlag::ConnectFailure, false),
        (status(http::StatusCode::NOT_FOUND).into(), ResponseFlag::ConnectFailure, false),
        (ConnectError::from(DialError::NoCertificate(nobody())).into(), ResponseFlag::ConnectFailure, false),
        (ConnectError::from(DialError::NoAnswer(limits::FIRST_TRY)).into(), ResponseFlag::ConnectFailure, true),
        (Error::StreamRefused("x".into()), ResponseFlag::Reset, true),
        // It may have been seen.
        (Error::Reset("x".into()), ResponseFlag::Reset, false),
        (Error::Protocol("x".into()), ResponseFlag::ProtocolError, false),
    ];
    for (f, flag, again) in &all {
        assert_eq!((f.flag(), f.is_retryable(&ir::Retry::istio(), true)), (*flag, *again), "{f}");
        assert!(!f.is_retryable(&ir::Retry::default(), false), "{f}");
        let is_answer = matches!(f, Error::Reset(_) | Error::Protocol(_));
        let wider = ir::Retry { reset: true, ..Default::default() };
        assert_eq!(f.is_retryable(&wider, true), *again || is_answer, "{f}");
        // What every endpoint would refuse is not tried again, though nothing was sent.
        let unsent = ir::Retry { reset_before_request: true, ..Default::default() };
        assert_eq!([false, true].map(|sent| f.is_retryable(&unsent, sent)), [*again || is_answer, false], "{f}");
    }
}

#[test]
fn what_is_not_the_endpoints_matter_is_not_held_against_it() {
    let status = |s: http::StatusCode| ConnectError::from(DialError::from(ClientError::Status(s)));
    let nobody = "spiffe://cluster.local/ns/x/sa/x".parse().unwrap();
    for (e, of_endpoint) in [
        (ConnectError::Timeout, true),
        (DialError::NoAnswer(limits::FIRST_TRY).into(), true),
        (status(http::StatusCode::SERVICE_UNAVAILABLE), true),
        (status(http::StatusCode::NOT_FOUND), false),
        (ConnectError::Untold([10, 0, 0, 1].into()), false),
        (ConnectError::Lent(Lent::Dynamic { host: Arc::default() }), false),
        (DialError::NoCertificate(nobody).into(), false),
    ] {
        let text = e.to_string();
        assert_eq!(Error::from(e).is_of_endpoint(), of_endpoint, "{text}");
    }
}

#[test]
fn our_identity_is_not_lent_to_whom_writes_an_address() {
    let mut s = set(1, karst_api::route::Policy::default());
    let own = (*s.members[0].workload).clone();
    let other = Workload { namespace: "other".into(), ..own.clone() };
    let outside = Workload { hbone: false, ..other.clone() };
    assert_eq!((lent(&s, &own), lent(&s, &outside)), (None, None));
    let why = lent(&s, &other).unwrap().to_string();
    assert!(why.contains("the endpoint is other/p0, a member of the mesh in another namespace"), "{why}");
    s.via_waypoint = Some("10.96.0.1:80".into());
    assert_eq!(lent(&s, &other), None, "another namespace's waypoint");
    (s.via_waypoint, s.dynamic_endpoint) = (None, Some(DynamicEndpoint::Name));
    assert!(lent(&s, &own).unwrap().to_string().contains("call it by its own service"));
}

#[test]
fn an_endpoint_that_is_written_is_neither_ourselves_nor_a_service_nor_nobody() {
    let pods = vec![pod("own", "10.0.1.1", &[]), pod("p0", "10.0.0.1", &[])];
    let called = Service { canonical: true, ..service("s", "10.96.0.1", &[(80, 8080)]) };
    let mesh = snapshot(pods, vec![called]);
    let own = mesh.workload("10.0.1.1".parse().unwrap()).cloned();
    let fits = |ip: &str| is_usable(&mesh, own.as_deref(), ip.parse::<IpAddr>().unwrap());
    assert!(fits("10.0.0.1") && fits("192.0.2.1") && fits("2001:db8::1"));
    assert!(!fits("10.0.1.1"), "ourselves");
    assert!(!fits("10.96.0.1"), "a service");
    for nobody in ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"] {
        assert!(!fits(nobody), "{nobody}");
    }
    // IPv4 in the clothes of IPv6, as an AAAA record may have it, is IPv4.
    for mapped in ["::ffff:127.0.0.1", "::ffff:10.0.1.1", "::ffff:10.96.0.1", "::ffff:0.0.0.0"] {
        assert!(!fits(mapped), "{mapped}");
    }
    assert!(fits("::ffff:10.0.0.1"));
}
