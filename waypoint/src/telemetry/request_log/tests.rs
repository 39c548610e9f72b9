//! What is told of requests and connections in memory: endpoints are listeners on loopback, the client's side a pipe.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use crate::{
    authz::access::Access,
    control,
    downstream::{
        context::{Downstream, DownstreamTarget, Written},
        edge,
        gateway::Gateway,
        requests, sniff,
        stream::Io,
        tcp,
    },
    route::table::Routes,
    snapshot::Snapshot,
    testing::{LINES, run, spawn, worker},
    upstream::tls::Speaks,
    worker::Worker,
};
use karst_api::{
    route::{self as ir, text::Kind},
    workload,
};
use karst_proxy::{
    testing::{pod, service, snapshot},
    untold::Asker,
    xds::StateWriter,
};
use karst_rt::ready::Ready;
use karst_xds::client::{StreamEnd, XdsSubscriber};
use std::{rc::Rc, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

const KEY: &str = "ns/s.ns.svc.cluster.local";
const CLIENT: &str = "198.51.100.7:4000";
const OWN: &str = "10.0.1.1";

/// A pod outside of the mesh.
fn plain(name: &str, ip: &str, key: &str, port: u16) -> workload::Workload {
    let mut w = pod(name, ip, &[(key, &[(80, port.into())])]);
    w.tunnel_protocol = 0;
    w
}

/// A service `s` with a pod outside of the mesh at this port of loopback, `closed` with one where nobody listens, `empty` without.
fn mesh(port: u16, closed: u16) -> Snapshot {
    let b = plain("b", "127.0.0.1", "ns/closed.ns.svc.cluster.local", closed);
    let pods = vec![pod("own", OWN, &[]), plain("a", "127.0.0.1", KEY, port), b];
    let services = ["s", "closed", "empty"].iter().zip(1..);
    let services = services.map(|(name, n)| service(name, &format!("10.96.0.{n}"), &[(80, 0)])).collect();
    let mut s = Snapshot::new("");
    s.mesh = snapshot(pods, services);
    s
}

fn to(name: &str) -> ir::Destination {
    ir::Destination { service: format!("ns/{name}.ns.svc.cluster.local"), weight: 1, ..Default::default() }
}

/// A rule for a path, which leads to a service.
fn rule(path: &str, name: &str, change: impl Fn(&mut ir::HttpRule)) -> ir::HttpRule {
    let mut r = plain_rule(path, name);
    change(&mut r);
    r
}

fn plain_rule(path: &str, name: &str) -> ir::HttpRule {
    let path = ir::Text { kind: Some(Kind::Exact(path.into())) };
    ir::HttpRule {
        origin: "HTTPRoute ns/r rule 0".into(),
        r#match: Some(ir::Match { path: Some(path), ..Default::default() }),
        destinations: vec![to(name)],
        ..Default::default()
    }
}

fn gateway(s: &mut Snapshot, port: u32, protocol: ir::ListenerProtocol, table: ir::Table, access: Option<ir::Access>) {
    let listener = ir::Listener {
        origin: "Gateway ns/g".into(),
        routes: "l".into(),
        port,
        protocol: protocol as i32,
        hosts: vec!["*".into()],
        ..Default::default()
    };
    let g = ir::Gateway { listeners: vec![listener], access, ..Default::default() };
    s.gateway = Some(Arc::new(Gateway::new(&g).unwrap()));
    let routes = ir::Routes { producer: Some(table), ..Default::default() };
    s.hosts.insert("l/shop.com".into(), Arc::new(Routes::new(&routes, None).unwrap()));
}

fn deny(path: &str) -> ir::Access {
    let test = |value: &str| ir::AccessTest {
        attribute: ir::Attribute::Path as i32,
        values: vec![value.into()],
        ..Default::default()
    };
    let rule = |value: &str| ir::AccessRule {
        clauses: vec![ir::AccessClause { matches: vec![ir::AccessMatch { tests: vec![test(value)] }] }],
    };
    let policy = ir::AccessPolicy {
        name: "ns/deny".into(),
        action: ir::AccessAction::Deny as i32,
        rules: vec![rule("/nobody"), rule(path)],
        ..Default::default()
    };
    ir::Access { policies: vec![policy], ..Default::default() }
}

/// A caller at a port, without a certificate.
fn call(target: DownstreamTarget, port: u16) -> Rc<Downstream> {
    let from = CLIENT.parse().unwrap();
    let to = OWN.parse().unwrap();
    Rc::new(Downstream {
        peer: None,
        from,
        source: None,
        target,
        port,
        to,
        hello: None,
        permit: None,
        entered: Default::default(),
        written: Default::default(),
    })
}

/// An application: answers requests, but never `/slow`, and breaks off at `/broken`; at `/ws` it sends back what it gets.
async fn application() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    spawn(async move {
        loop {
            let (mut c, _) = listener.accept().await.unwrap();
            spawn(async move {
                let mut head = vec![];
                while let Ok(b) = c.read_u8().await {
                    head.push(b);
                    if !head.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
                    match text.split(' ').nth(1).unwrap() {
                        "/slow" => std::future::pending().await,
                        "/broken" => return,
                        "/ws" => {
                            let head =
                                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                            c.write_all(head.as_bytes()).await.unwrap();
                            let (mut r, mut w) = c.split();
                            let _ = tokio::io::copy(&mut r, &mut w).await;
                            return;
                        }
                        _ => c.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap(),
                    }
                }
            });
        }
    });
    port
}

/// An application that sends back what it gets.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    spawn(async move {
        loop {
            let (mut c, _) = listener.accept().await.unwrap();
            spawn(async move {
                let (mut r, mut w) = c.split();
                let _ = tokio::io::copy(&mut r, &mut w).await;
            });
        }
    });
    port
}

/// A port of loopback where nobody listens.
async fn closed() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Both ends of a socket.
async fn socket() -> (TcpStream, Io) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, Io::socket(listener.accept().await.unwrap().0))
}

/// What a client gets that sends these bytes of HTTP/1.1, and the one line that is written of it.
async fn ask(w: &Rc<Worker>, downstream: &Rc<Downstream>, bytes: &str) -> (String, String) {
    LINES.take();
    let (mut client, server) = tokio::io::duplex(64 << 10);
    client.write_all(bytes.as_bytes()).await.unwrap();
    let (mut answer, server) = (String::new(), Io::memory(server));
    let ((), read) =
        tokio::join!(requests::requests(w, downstream.clone(), server, false), client.read_to_string(&mut answer));
    read.unwrap();
    let mut lines = LINES.take();
    assert_eq!(lines.len(), 1, "{lines:?}");
    (answer, lines.remove(0))
}

fn get(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: shop.com\r\nuser-agent: t\r\nx-request-id: id\r\nx-forwarded-for: 203.0.113.1\r\nconnection: close\r\n\r\n"
    )
}

/// The value of the one series of a name that has all of these labels.
fn value(w: &Worker, name: &str, labels: &[&str]) -> u64 {
    let page = karst_rt::exposition::page(|page| w.shared.metrics.render(&w.shared.gate, page));
    let all: Vec<&str> = page.lines().filter(|l| l.starts_with(&format!("{name}{{"))).collect();
    let found: Vec<_> = all.iter().filter(|l| labels.iter().all(|x| l.contains(x))).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {all:#?}");
    found[0].rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_line_says_what_has_answered_and_why() {
    run(async {
        let (port, closed) = (application().await, closed().await);
        let mut s = mesh(port, closed);
        let abort = ir::Fault { abort_status: 503, abort_per_million: 1_000_000, ..Default::default() };
        let tries = ir::Retry { per_try_ms: 30, ..Default::default() };
        let once = ir::RateLimit { name: "l".into(), requests: 1, per_ms: 3_600_000, burst: 1, ..Default::default() };
        let origin = ir::Text { kind: Some(Kind::Exact("http://a".into())) };
        let cors = ir::Cors { origins: vec![origin], ..Default::default() };
        let http = vec![
            rule("/", "s", |_| {}),
            rule("/direct", "s", |r| r.response = Some(ir::DirectResponse { status: 200, ..Default::default() })),
            rule("/abort", "s", |r| r.fault = Some(abort)),
            rule("/slow", "s", |r| r.timeout_ms = 30),
            rule("/try", "s", |r| {
                r.retry = Some(tries.clone());
                let path = Some(ir::rewrite::Path::Full("/slow".into()));
                r.rewrite = Some(ir::Rewrite { path, ..Default::default() });
            }),
            rule("/broken", "s", |_| {}),
            rule("/closed", "closed", |_| {}),
            rule("/empty", "empty", |_| {}),
            rule("/nothing", "nothing", |_| {}),
            rule("/once", "s", |r| r.limits = vec![once.clone()]),
            rule("/cors", "s", |r| r.cors = Some(cors.clone())),
        ];
        let mut access = deny("/admin");
        access.tokens =
            vec![ir::Jwt { name: "ns/j".into(), issuer: "i".into(), broken: "no keys".into(), ..Default::default() }];
        gateway(&mut s, 8080, ir::ListenerProtocol::Http, ir::Table { http, tcp: vec![] }, Some(access));
        let w = worker(s, "router");
        let downstream = call(DownstreamTarget::Gateway(Some("shop.com".into())), 8080);
        let early = |why: &str| format!("upstream_reset_before_response_started{{{why}}}");
        let early = (early("connection_termination"), early("remote_connection_failure"));
        for (path, want) in [
            ("/", "200 - via_upstream"),
            ("/unknown", "404 NR route_not_found"),
            ("/direct", "200 - direct_response"),
            ("/abort", "503 FI fault_filter_abort"),
            ("/slow", "504 UT response_timeout"),
            ("/try", "504 UT upstream_per_try_timeout"),
            ("/broken", &format!("503 UC {}", early.0)),
            ("/closed", &format!("503 UF {}", early.1)),
            ("/empty", "503 UH no_healthy_upstream"),
            ("/nothing", "503 NC cluster_not_found"),
            ("/admin", "403 - rbac_access_denied_matched_policy[ns[ns]-policy[deny]-rule[1]]"),
            ("/%00", "400 - path_normalization_failed"),
            ("/once", "200 - via_upstream"),
            ("/once", "429 RL local_rate_limited"),
        ] {
            let (answer, line) = ask(&w, &downstream, &get(path)).await;
            assert!(line.contains(&format!("\"GET {path} HTTP/1.1\" {want} - \"")), "{want}: {line}\n{answer}");
        }
        let (_, line) = ask(&w, &downstream, "GET / HTTP/1.1\r\nconnection: close\r\n\r\n").await;
        assert!(line.contains("400 - missing_host_header - "), "{line}");
        let jwt = "Jwt_is_not_in_the_form_of_Header.Payload.Signature_with_two_dots_and_3_sections";
        for (head, want) in [
            ("GET / HTTP/1.1\r\nauthorization: Bearer x", format!("401 - jwt_authn_access_denied{{{jwt}}} - ")),
            (
                "OPTIONS /cors HTTP/1.1\r\norigin: http://a\r\naccess-control-request-method: GET",
                "200 - cors_response - ".into(),
            ),
        ] {
            let (_, line) =
                ask(&w, &downstream, &format!("{head}\r\nhost: shop.com\r\nconnection: close\r\n\r\n")).await;
            assert!(line.contains(&want), "{want}: {line}");
        }
        // Port, time, addresses and names, in the order of Envoy's fields.
        let (answer, line) = ask(&w, &downstream, &get("/")).await;
        let (head, tail) = line.split_once(" \"203.0.113.1,198.51.100.7\" \"t\" \"id\" \"shop.com\" ").unwrap();
        let want = format!(
            "\"127.0.0.1:{port}\" outbound|80||s.ns.svc.cluster.local - 10.0.1.1:8080 {CLIENT} shop.com \"HTTPRoute ns/r rule 0\""
        );
        assert_eq!(tail, want);
        let (head, numbers) = head.split_once(" \"-\" ").unwrap();
        assert!(head.ends_with(" 200 - via_upstream -"), "{head}");
        let numbers: Vec<u64> = numbers.split(' ').map(|n| n.parse().unwrap()).collect();
        assert!(numbers.len() == 4 && numbers[..2] == [0, 2], "{numbers:?} {answer}");
    });
}

#[test]
fn what_is_no_request_is_told_and_counted() {
    run(async {
        let mut s = mesh(1, 1);
        gateway(&mut s, 8080, ir::ListenerProtocol::Http, ir::Table::default(), None);
        let w = worker(s, "router");
        let downstream = call(DownstreamTarget::Gateway(None), 8080);
        let (answer, line) = ask(&w, &downstream, "GET /\u{1} HTTP/1.1\r\nhost: a b\r\nx y: z\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(line.contains("\"- - HTTP/1.1\" 400 DPE http1.codec_error - \""), "{line}");
        let labels = ["response_code=\"400\"", "response_flags=\"DPE\"", "reporter=\"source\""];
        assert_eq!(value(&w, "istio_requests_total", &labels), 1);
    });
}

/// Kiali shows no throughput where the sums are 0: those of a shop that is visited by GETs were.
#[test]
fn sizes_have_heads_in_metrics_and_none_in_the_log() {
    run(async {
        let mut s = mesh(application().await, closed().await);
        let http = vec![rule("/", "s", |_| {})];
        gateway(&mut s, 8080, ir::ListenerProtocol::Http, ir::Table { http, tcp: vec![] }, None);
        let w = worker(s, "router");
        let downstream = call(DownstreamTarget::Gateway(None), 8080);
        let (_, line) = ask(&w, &downstream, &get("/")).await;
        assert!(line.contains(" 200 - via_upstream - \"-\" 0 2 "), "{line}");
        assert_eq!(value(&w, "istio_request_bytes_sum", &[]), get("/").len() as u64);
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        assert_eq!(value(&w, "istio_response_bytes_sum", &[]), answer.len() as u64);
    });
}

#[test]
fn a_websocket_is_told_at_its_end_with_its_bytes() {
    run(async {
        let mut s = mesh(application().await, closed().await);
        let http = vec![rule("/ws", "s", |_| {})];
        gateway(&mut s, 8080, ir::ListenerProtocol::Http, ir::Table { http, tcp: vec![] }, None);
        let w = worker(s, "router");
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let head = "GET /ws HTTP/1.1\r\nhost: shop.com\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        let ask = async {
            let mut answer = vec![];
            while !answer.ends_with(b"\r\n\r\n") {
                answer.push(client.read_u8().await.unwrap());
            }
            assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
            client.write_all(b"hello").await.unwrap();
            client.read_exact(&mut [0; 5]).await.unwrap();
            assert!(LINES.take().is_empty(), "it has not ended");
            client.shutdown().await.unwrap();
            client.read_to_end(&mut vec![]).await.unwrap();
            while LINES.with_borrow(Vec::is_empty) {
                tokio::task::yield_now().await;
            }
        };
        let downstream = call(DownstreamTarget::Gateway(None), 8080);
        let both = async { tokio::join!(requests::requests(&w, downstream, Io::memory(server), false), ask) };
        tokio::time::timeout(std::time::Duration::from_secs(10), both).await.unwrap();
        let lines = LINES.take();
        assert!(lines[0].contains("\"GET /ws HTTP/1.1\" 101 - via_upstream - \"-\" 5 5 "), "{lines:?}");
        assert_eq!(value(&w, "istio_requests_total", &["response_code=\"101\"", "response_flags=\"-\""]), 1);
        assert_eq!(value(&w, "istio_request_bytes_sum", &[]), head.len() as u64 + 5);
        let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
        assert_eq!(value(&w, "istio_response_bytes_sum", &[]), head.len() as u64 + 5);
    });
}

#[test]
fn the_trace_of_a_connect_is_in_the_line_of_its_connection() {
    run(async {
        let w = worker(mesh(1, 2), "router");
        let line = |headers: &http::HeaderMap, is_request: bool| {
            let mut downstream = call(DownstreamTarget::Gateway(None), 8080);
            Rc::get_mut(&mut downstream).unwrap().written = Written::of_connect(headers);
            LINES.take();
            match is_request {
                true => drop(downstream.record(&w.sink, &w.snapshot())),
                false => drop(downstream.connection(&w.sink, &w.snapshot())),
            }
            LINES.take().pop().unwrap()
        };
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let named = |text: &str| http::HeaderMap::from_iter([("traceparent".parse().unwrap(), text.parse().unwrap())]);
        let told = line(&named(text), false);
        assert!(told.ends_with(" trace_id=4bf92f3577b34da6a3ce929d0e0e4736 span_id=00f067aa0ba902b7"), "{told}");
        for (headers, is_request) in [(http::HeaderMap::new(), false), (named("00-x"), false), (named(text), true)] {
            let told = line(&headers, is_request);
            assert!(!told.contains("trace_id"), "{told}");
        }
    });
}

#[test]
fn connections_through_a_gateway_are_counted_and_told_at_their_end() {
    run(async {
        let mut s = mesh(echo().await, closed().await);
        let rule = |sni: &str, name: &str| ir::TcpRule {
            origin: format!("TLSRoute ns/{name}"),
            destinations: vec![to(name)],
            sni: vec![sni.into()],
            ..Default::default()
        };
        let tcp = vec![rule("shop.com", "s")];
        gateway(&mut s, 8443, ir::ListenerProtocol::Tls, ir::Table { http: vec![], tcp }, None);
        let w = worker(s, "router");
        let s = w.snapshot();
        let listener = s.gateway.as_ref().unwrap().ports[&8443].find(None).next().unwrap().clone();
        let downstream = call(DownstreamTarget::Gateway(Some("shop.com".into())), 8443);
        let (mut client, io) = socket().await;
        let serve = edge::bytes(&w, s.clone(), &downstream, &listener, ("shop.com", Speaks::Tls), io);
        let labels = ["reporter=\"source\"", "destination_service_name=\"s\"", "source_workload_namespace=\"ns\""];
        let all = |what: &str| value(&w, &format!("istio_tcp_{what}_total"), &labels);
        let ask = async {
            client.write_all(b"hello").await.unwrap();
            let mut got = [0; 5];
            client.read_exact(&mut got).await.unwrap();
            assert_eq!(["connections_opened", "connections_closed"].map(all), [1, 0]);
            assert_eq!(["received_bytes", "sent_bytes"].map(all), [5, 5], "while it is open");
            assert!(LINES.take().is_empty(), "it has not ended");
            client.write_all(b"bye").await.unwrap();
            client.shutdown().await.unwrap();
            client.read_to_end(&mut vec![]).await.unwrap();
        };
        tokio::join!(serve, ask);
        assert_eq!(["connections_opened", "connections_closed"].map(all), [1, 1]);
        assert_eq!(["received_bytes", "sent_bytes"].map(all), [8, 8]);
        let lines = LINES.take();
        let [line] = &lines[..] else { panic!("{lines:?}") };
        let (head, tail) = line.split_once(" - \"-\" \"-\" \"-\" \"-\" ").unwrap();
        assert!(head.contains("\"- - -\" 0 - - - \"-\" 8 8 "), "{line}");
        let port = tail.split(['"', ':']).nth(2).unwrap();
        let want = format!(
            "\"127.0.0.1:{port}\" outbound|80||s.ns.svc.cluster.local - 10.0.1.1:8443 {CLIENT} shop.com \"TLSRoute ns/s\""
        );
        assert_eq!(tail, want);
    });
}

/// It was let in by the policies of before.
#[test]
fn a_connection_that_a_policy_ends_is_told_with_it() {
    run(async {
        let rule = ir::TcpRule { destinations: vec![to("s")], sni: vec!["shop.com".into()], ..Default::default() };
        let table = ir::Table { http: vec![], tcp: vec![rule] };
        let mut before = mesh(echo().await, closed().await);
        gateway(&mut before, 8443, ir::ListenerProtocol::Tls, table.clone(), None);
        let mut now = before.clone();
        gateway(&mut now, 8443, ir::ListenerProtocol::Tls, table, Some(deny("/admin")));
        let w = worker(now, "router");
        let listener = before.gateway.as_ref().unwrap().ports[&8443].find(None).next().unwrap().clone();
        let downstream = call(DownstreamTarget::Gateway(Some("shop.com".into())), 8443);
        let (mut client, io) = socket().await;
        let serve = edge::bytes(&w, Arc::new(before), &downstream, &listener, ("shop.com", Speaks::Tls), io);
        let ended = async { client.read_to_end(&mut vec![]).await.unwrap_err().kind() };
        assert_eq!(tokio::join!(serve, ended).1, std::io::ErrorKind::ConnectionReset);
        let lines = LINES.take();
        let [line] = &lines[..] else { panic!("{lines:?}") };
        let why = "rbac_access_denied_matched_policy[ns[ns]-policy[deny]-rule[0]] \"denied by policy ns/deny\" 0 0 ";
        assert!(line.contains(&format!("\"- - -\" 0 - - {why}")), "{line}");
        assert_eq!(w.shared.metrics.closed_by_policy.load(std::sync::atomic::Ordering::Relaxed), 1);
    });
}

#[test]
fn connections_through_a_waypoint_are_counted_whatever_becomes_of_them() {
    run(async {
        let mut s = mesh(echo().await, closed().await);
        s.access.insert("ns/empty.ns.svc.cluster.local".into(), Arc::new(Access::closed()));
        let w = worker(s, "waypoint");
        let s = w.snapshot();
        for (name, want) in [
            ("s", "\"- - -\" 0 - - - \"-\" 5 5 "),
            ("closed", "\"- - -\" 0 UF - - \""),
            ("empty", "\"- - -\" 0 - - rbac_access_denied_matched_policy[none] \"no policy allows it\" 0 0 "),
        ] {
            let key = format!("ns/{name}.ns.svc.cluster.local");
            let downstream = call(DownstreamTarget::Service(s.mesh.services[key.as_str()].clone()), 80);
            let (mut client, io) = socket().await;
            let ask = async {
                let _ = client.write_all(b"hello").await;
                let _ = client.shutdown().await;
                let _ = client.read_to_end(&mut vec![]).await;
            };
            tokio::join!(tcp::tcp(&w, &downstream, io), ask);
            let lines = LINES.take();
            let [line] = &lines[..] else { panic!("{lines:?}") };
            assert!(line.contains(want), "{want}: {line}");
            assert!(line.contains(&format!(" inbound-vip|80|tcp|{name}.ns.svc.cluster.local - ")), "{line}");
            let flag = if name == "closed" { "UF" } else { "-" };
            let service = format!("destination_service=\"{name}.ns.svc.cluster.local\"");
            let labels = ["reporter=\"waypoint\"", &service, &format!("response_flags=\"{flag}\"")];
            for what in ["opened", "closed"] {
                assert_eq!(value(&w, &format!("istio_tcp_connections_{what}_total"), &labels), 1, "{name}");
            }
        }
    });
}

#[test]
fn the_way_to_the_control_plane_is_counted() {
    run(async {
        let w = worker(Snapshot::new(""), "waypoint");
        let (xds, _) = w.shared.config.remotes().unwrap();
        let state = watch::channel(Arc::new(Snapshot::new(""))).0;
        let (configured, stream) = (watch::channel(false).0, watch::channel(true).0);
        let (discovery, asker) = (w.shared.metrics.discovery.clone(), Asker::new("").1);
        let (ready, needed) = (Ready::default(), control::needed(control::WAYPOINT));
        let writer = StateWriter::new(xds, state, (&ready, &needed), (configured, stream), discovery, asker);
        writer.received("type", 7);
        writer.ended(StreamEnd::Reconnect);
        assert_eq!(value(&w, "istio_xds_message_bytes_total", &["url=\"type\""]), 7);
        assert_eq!(value(&w, "istio_xds_message_total", &["url=\"type\""]), 1);
        assert_eq!(value(&w, "istio_xds_connection_terminations_total", &["reason=\"Reconnect\""]), 1);
    });
}

/// A server that greets may have been meant, and nobody says a word: what was refused is told all the same, and only once.
#[test]
fn a_refused_connection_is_told_though_its_client_stays_silent() {
    run(async {
        let mut s = mesh(application().await, closed().await);
        s.access.insert(KEY.into(), Arc::new(Access::closed()));
        let w = worker(s, "waypoint");
        let s = w.snapshot();
        let denied = "\"- - -\" 0 - - rbac_access_denied_matched_policy[none] \"no policy allows it\" 0 0 ";
        for (name, says, want) in [
            ("s", "", denied),
            ("empty", "", "\"- - -\" 0 UH - - \"no endpoint\" 0 0 "),
            ("closed", "", "\"- - -\" 0 UF - - \""),
            // A request after all, and what is none.
            ("s", "GET / HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n", "\"GET / HTTP/1.1\" 403 "),
            ("s", "*1\r\n$4\r\nPING\r\n", denied),
        ] {
            let key = format!("ns/{name}.ns.svc.cluster.local");
            let downstream = call(DownstreamTarget::Service(s.mesh.services[key.as_str()].clone()), 80);
            let (mut client, io) = socket().await;
            let ask = async {
                tokio::time::sleep(sniff::SILENCE * 2).await;
                assert!(LINES.with_borrow(Vec::is_empty), "it may still come");
                let _ = client.write_all(says.as_bytes()).await;
                if !says.starts_with("GET ") {
                    let _ = client.shutdown().await;
                }
                let _ = client.read_to_end(&mut vec![]).await;
            };
            tokio::join!(sniff::http(&w, downstream, io, false), ask);
            let lines = LINES.take();
            let [line] = &lines[..] else { panic!("{name} {says}: {lines:?}") };
            assert!(line.contains(want), "{want}: {line}");
        }
    });
}

#[test]
fn an_upgrade_is_repeated_as_long_as_nothing_of_it_was_sent() {
    run(async {
        let port = application().await;
        let mut s = mesh(port, closed().await);
        // Nobody listens there.
        let lost = plain("lost", "127.0.0.2", KEY, port);
        let pods = vec![pod("own", OWN, &[]), plain("a", "127.0.0.1", KEY, port), lost];
        s.mesh = snapshot(pods, vec![service("s", "10.96.0.1", &[(80, 0)])]);
        let retry = ir::Retry { reset: true, ..ir::Retry::istio() };
        let http = ["/ws", "/broken"].map(|path| rule(path, "s", |r| r.retry = Some(retry.clone()))).into();
        gateway(&mut s, 8080, ir::ListenerProtocol::Http, ir::Table { http, tcp: vec![] }, None);
        let w = worker(s, "router");
        // They stay open, so that both endpoints come by turns.
        let mut open = vec![];
        for path in ["/ws", "/ws", "/ws", "/ws", "/broken"] {
            let (mut client, server) = tokio::io::duplex(64 << 10);
            let (downstream, w) = (call(DownstreamTarget::Gateway(None), 8080), w.clone());
            spawn(async move { requests::requests(&w, downstream, Io::memory(server), false).await });
            let head =
                format!("GET {path} HTTP/1.1\r\nhost: shop.com\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
            client.write_all(head.as_bytes()).await.unwrap();
            let mut answer = vec![];
            while !answer.ends_with(b"\r\n\r\n") {
                answer.push(client.read_u8().await.unwrap());
            }
            let want = if path == "/ws" { "HTTP/1.1 101 " } else { "HTTP/1.1 503 " };
            assert!(answer.starts_with(want.as_bytes()), "{path}: {}", String::from_utf8_lossy(&answer));
            open.push(client);
        }
        while LINES.with_borrow(Vec::is_empty) {
            tokio::task::yield_now().await;
        }
        // What was sent is not sent again: no RetryLimit.
        let lines = LINES.take();
        assert!(lines.len() == 1 && lines[0].contains("\"GET /broken HTTP/1.1\" 503 UC "), "{lines:?}");
    });
}
