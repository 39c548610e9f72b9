//! Whole requests without root: a client on an in-memory stream, the product from [`requests::requests`] on, and an endpoint on loopback
//! that answers as it is told to.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]

mod client;

use crate::{
    authz::access::Access,
    downstream::{
        context::{Downstream, DownstreamTarget, Entered},
        gateway::Gateway,
        requests,
        stream::Io,
    },
    http::codec,
    route::table::Routes,
    snapshot::Snapshot,
    testing::{LINES, run, spawn, worker},
    worker::Worker,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use karst_api::{
    route::{self as ir, text::Kind},
    workload::AppProtocol,
};
use karst_proxy::testing;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::TcpListener,
};

const KEY: &str = "ns/s.ns.svc.cluster.local";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// An endpoint, and what it has got.
#[derive(Clone, Default)]
struct Endpoint {
    port: u16,
    heads: Rc<RefCell<Vec<String>>>,
    connections: Rc<Cell<usize>>,
}

impl Endpoint {
    /// Of HTTP/1.1; an empty answer closes the connection.
    async fn of_http1(answer: impl Fn(&str) -> String + 'static) -> Self {
        Self::answering(Rc::new(answer)).await
    }

    async fn answering(answer: Rc<dyn Fn(&str) -> String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = Self { port: listener.local_addr().unwrap().port(), ..Self::default() };
        let e = own.clone();
        spawn(async move {
            while let Ok((mut s, _)) = listener.accept().await {
                e.connections.set(e.connections.get() + 1);
                let (e, answer) = (e.clone(), answer.clone());
                spawn(async move {
                    while let Some(head) = read_head(&mut s).await {
                        let a = answer(&head);
                        e.heads.borrow_mut().push(head);
                        if a.is_empty() || s.write_all(a.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        own
    }

    /// Of HTTP/2; its headers and trailers are `size` bytes long.
    async fn of_http2(size: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = Self { port: listener.local_addr().unwrap().port(), ..Self::default() };
        spawn(async move {
            while let Ok((s, _)) = listener.accept().await {
                let answer = service_fn(move |_: Request<Incoming>| async move {
                    let long = HeaderValue::try_from("x".repeat(size)).unwrap();
                    let trailers = HeaderMap::from_iter([("grpc-message".parse().unwrap(), long.clone())]);
                    let frames = [Frame::data(Bytes::from_static(b"ok")), Frame::trailers(trailers)];
                    let mut r = Response::new(Frames(frames.into()));
                    r.headers_mut().insert("x-long", long);
                    Ok::<_, Infallible>(r)
                });
                // It takes whatever it is told.
                let http2 = hyper::server::conn::http2::Builder::new(codec::Local);
                spawn(async move { http2.serve_connection(TokioIo::new(s), answer).await });
            }
        });
        own
    }
}

/// A body of given frames.
struct Frames(VecDeque<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

async fn read_head<I: AsyncReadExt + Unpin>(s: &mut I) -> Option<String> {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(s.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// A waypoint (or a gateway) with one service, which has one endpoint.
struct Proxy {
    worker: Rc<Worker>,
    at_gateway: bool,
    /// Where clients call from, and what they call.
    ends: Cell<(SocketAddr, IpAddr)>,
    /// What the next connection has shown on its way in.
    entered: Cell<Entered>,
    /// It has come by TLS, which named nobody.
    by_tls: Cell<bool>,
}

/// A mesh with the service, the endpoint and the waypoint.
fn snapshot(e: &Endpoint, speaks: AppProtocol) -> Snapshot {
    let mut app = testing::pod("app", "127.0.0.1", &[(KEY, &[(80, e.port.into())])]);
    app.tunnel_protocol = 0;
    let mut service = testing::service("s", "10.96.0.1", &[(80, e.port.into())]);
    service.ports[0].app_protocol = speaks as i32;
    let mut s = Snapshot::new("");
    s.mesh = testing::snapshot(vec![app, testing::pod("own", "10.0.1.1", &[])], vec![service]);
    s
}

impl Proxy {
    fn new(e: &Endpoint, speaks: AppProtocol, change: impl FnOnce(&mut Snapshot)) -> Self {
        let mut s = snapshot(e, speaks);
        change(&mut s);
        Self::knowing(s)
    }

    fn knowing(s: Snapshot) -> Self {
        let at_gateway = s.gateway.is_some();
        let ends = Cell::new((([10, 0, 0, 9], 1234).into(), [10, 96, 0, 1].into()));
        let worker = worker(s, if at_gateway { "router" } else { "waypoint" });
        Self { worker, at_gateway, ends, entered: Cell::default(), by_tls: Cell::default() }
    }

    /// A client's connection.
    fn connect(&self, two: bool) -> DuplexStream {
        let (client, server) = tokio::io::duplex(1 << 20);
        let service = self.worker.snapshot().mesh.services[KEY].clone();
        let name = self.by_tls.get().then(|| Rc::from(""));
        let target = if self.at_gateway { DownstreamTarget::Gateway(name) } else { DownstreamTarget::Service(service) };
        let downstream = Downstream {
            peer: "spiffe://cluster.local/ns/app/sa/web".parse().ok().filter(|_| !self.at_gateway),
            from: self.ends.get().0,
            source: None,
            target,
            port: 80,
            to: self.ends.get().1,
            hello: None,
            permit: None,
            entered: self.entered.take(),
            written: Default::default(),
        };
        let w = self.worker.clone();
        spawn(async move { requests::requests(&w, Rc::new(downstream), Io::memory(server), two).await });
        client
    }

    /// The answer to a request of HTTP/1.1: head and body.
    async fn ask(&self, request: &str) -> String {
        asked(&mut self.connect(false), request).await
    }

    /// How many requests have been counted with these labels.
    fn counted(&self, labels: &[&str]) -> bool {
        let shared = &self.worker.shared;
        let page = karst_rt::exposition::page(|page| shared.metrics.render(&shared.gate, page));
        let fits = |l: &str| l.starts_with("istio_requests_total{") && labels.iter().all(|x| l.contains(x));
        page.lines().any(fits)
    }
}

async fn asked(client: &mut DuplexStream, request: &str) -> String {
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = read_head(client).await.unwrap();
    let length = answer.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body).await.unwrap();
    answer.push_str(&String::from_utf8_lossy(&body));
    answer
}

/// One rule for everything.
fn rule(change: impl FnOnce(&mut ir::HttpRule)) -> Arc<Routes> {
    let to = ir::Destination { service: KEY.into(), weight: 1, ..Default::default() };
    let mut r = ir::HttpRule { origin: "route".into(), destinations: vec![to], ..Default::default() };
    change(&mut r);
    only(r)
}

fn only(rule: ir::HttpRule) -> Arc<Routes> {
    let table = ir::Table { http: vec![rule], tcp: vec![] };
    Arc::new(Routes::new(&ir::Routes { producer: Some(table), ..Default::default() }, None).unwrap())
}

fn route(change: impl FnOnce(&mut ir::HttpRule)) -> impl FnOnce(&mut Snapshot) {
    let routes = rule(change);
    move |s| drop(s.routes.insert(KEY.into(), routes))
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: s\r\n{headers}\r\n")
}

#[test]
fn only_websocket_is_tunnelled_and_only_if_the_answer_names_it() {
    run(async {
        let e = Endpoint::of_http1(|head| match head {
            h if h.starts_with("GET /h2c ") => {
                "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: h2c\r\n\r\n".into()
            }
            h if h.starts_with("GET /chat ") => {
                "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\nx: y\r\n\r\nhello"
                    .into()
            }
            _ => OK.into(),
        })
        .await;
        let p = Proxy::new(&e, AppProtocol::Unknown, |_| {});
        let h2c = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";
        let mut client = p.connect(false);
        for _ in 0..3 {
            let a = asked(&mut client, &get("/", h2c)).await;
            assert!(a.starts_with("HTTP/1.1 200 ") && a.ends_with("ok"), "{a}");
        }
        assert_eq!((e.connections.get(), e.heads.borrow().len()), (1, 3), "ordinary requests");
        for head in e.heads.borrow_mut().drain(..) {
            assert!(!["upgrade", "http2-settings", "connection"].iter().any(|n| head.contains(n)), "{head}");
        }
        // A 101 that nobody has asked for, or that names another protocol.
        let websocket = "connection: Upgrade\r\nupgrade: websocket\r\n";
        for headers in ["", h2c, websocket] {
            let a = p.ask(&get("/h2c", headers)).await;
            assert!(a.starts_with("HTTP/1.1 502 "), "{headers}: {a}");
        }
        assert!(p.counted(&["response_code=\"502\"", "response_flags=\"UPE\""]));
        let line = LINES.take().pop().unwrap();
        assert!(line.contains(" 502 UPE upstream_reset_before_response_started{protocol_error} - "), "{line}");
        let mut client = p.connect(false);
        let a =
            asked(&mut client, &get("/chat", "connection: keep-alive, upgrade\r\nupgrade: h2c, websocket\r\n")).await;
        assert!(
            a.starts_with("HTTP/1.1 101 ") && a.contains("upgrade: websocket\r\n") && a.contains("x: y\r\n"),
            "{a}"
        );
        let mut bytes = [0; 5];
        client.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"hello");
        let heads = e.heads.borrow();
        let last = heads.last().unwrap().to_lowercase();
        assert!(last.contains("connection: upgrade\r\n") && last.contains("upgrade: websocket\r\n"), "{last}");
    });
}

#[test]
fn only_grpc_is_answered_as_grpc() {
    run(async {
        let e = Endpoint::of_http1(|_| OK.into()).await;
        let forbidden = Some(ir::DirectResponse { status: 403, body: vec![] });
        let p = Proxy::new(&e, AppProtocol::Unknown, route(|r| r.response = forbidden));
        for (kind, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc+json", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grpc-web-text", false),
            ("application/grpcx", false),
            ("application/json", false),
        ] {
            let a = p
                .ask(&format!("POST /s/m HTTP/1.1\r\nhost: s\r\ncontent-length: 0\r\ncontent-type: {kind}\r\n\r\n"))
                .await;
            let wanted = if grpc { "HTTP/1.1 200 " } else { "HTTP/1.1 403 " };
            assert!(a.starts_with(wanted) && a.contains("grpc-status: 7") == grpc, "{kind}: {a}");
        }
    });
}

#[test]
fn a_host_is_denied_however_it_is_written() {
    run(async {
        let e = Endpoint::of_http1(|_| OK.into()).await;
        let p = Proxy::new(&e, AppProtocol::Unknown, |s| {
            let mut test = ir::AccessTest { values: vec!["admin.example.com".into()], ..Default::default() };
            test.set_attribute(ir::Attribute::Host);
            let clauses = vec![ir::AccessClause { matches: vec![ir::AccessMatch { tests: vec![test] }] }];
            let mut deny = ir::AccessPolicy { rules: vec![ir::AccessRule { clauses }], ..Default::default() };
            deny.set_action(ir::AccessAction::Deny);
            let access = Access::new(&ir::Access { policies: vec![deny], ..Default::default() }).unwrap();
            s.access.insert(KEY.into(), Arc::new(access));
        });
        for (host, want) in [
            ("admin.example.com", "403"),
            ("admin.example.com.", "403"),
            ("ADMIN.example.com.:80", "403"),
            ("admin.example.com:", "403"),
            ("x@admin.example.com", "400"),
            ("admin.example.com/", "400"),
            ("admin.example.com,a", "400"),
            ("admin.example.com\r\nhost: a", "400"),
            ("Public.example.com.:80", "200"),
            ("[0:0::1]:80", "200"),
        ] {
            let a = p.ask(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
            assert!(a.starts_with(&format!("HTTP/1.1 {want} ")), "{host}: {a}");
        }
        let heads = e.heads.borrow();
        let host = |i: usize| heads[i].lines().find(|l| l.starts_with("host: ")).map(str::to_string);
        assert_eq!([host(0), host(1)], [Some("host: public.example.com:80".into()), Some("host: [::1]:80".into())]);
    });
}

/// A gateway with one rule, which sets a header.
fn gateway(name: &str, value: &str) -> impl FnOnce(&mut Snapshot) {
    let set = vec![ir::Header { name: name.into(), value: value.into() }];
    let routes = rule(|r| r.request = Some(ir::HeaderChange { set, ..Default::default() }));
    move |s| {
        let listener = ir::Listener {
            origin: "Gateway/ns/g/l".into(),
            routes: "g".into(),
            port: 80,
            hosts: vec!["*".into()],
            ..Default::default()
        };
        let g = Gateway::new(&ir::Gateway { listeners: vec![listener], ..Default::default() }).unwrap();
        s.gateway = Some(Arc::new(g));
        s.hosts.insert("g/*".into(), routes);
    }
}

#[test]
fn addresses_of_ipv6_are_written_as_envoy_does() {
    run(async {
        let e = Endpoint::of_http1(|_| OK.into()).await;
        let value = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%|%DOWNSTREAM_REMOTE_ADDRESS%|%DOWNSTREAM_LOCAL_ADDRESS%";
        let p = Proxy::new(&e, AppProtocol::Unknown, gateway("x-a", value));
        p.ends.set(("[fd00::9]:1234".parse().unwrap(), "fd00:1::1".parse().unwrap()));
        let a = p.ask("GET / HTTP/1.1\r\nhost: [FD00:1:0::1]:80\r\n\r\n").await;
        assert!(a.starts_with("HTTP/1.1 200 "), "{a}");
        let heads = e.heads.borrow();
        for wanted in [
            "x-forwarded-for: fd00::9\r\n",
            "x-a: fd00::9|[fd00::9]:1234|[fd00:1::1]:80\r\n",
            "host: [fd00:1::1]:80\r\n",
        ] {
            assert!(heads[0].contains(wanted), "{wanted}{}", heads[0]);
        }
        let line = LINES.take().pop().unwrap();
        assert!(line.contains(" [fd00:1::1]:80 [fd00::9]:1234 "), "{line}");
    });
}

#[test]
fn an_offer_of_h2c_is_mirrored_and_repeated() {
    run(async {
        let failed = Cell::new(false);
        let e = Endpoint::of_http1(move |head| match head.contains("-shadow\r\n") || failed.replace(true) {
            true => OK.into(),
            false => OK.replace("200 OK", "503 Service Unavailable"),
        })
        .await;
        let to = ir::Destination { service: KEY.into(), weight: 1, ..Default::default() };
        let p = Proxy::new(
            &e,
            AppProtocol::Unknown,
            route(|r| {
                r.mirrors = vec![ir::Mirror { to: Some(to), per_million: 1_000_000 }];
                r.retry = Some(ir::Retry { attempts: 1, server_error: true, backoff_ms: 1, ..Default::default() });
            }),
        );
        let a =
            p.ask(&get("/", "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n")).await;
        assert!(a.starts_with("HTTP/1.1 200 "), "{a}");
        while e.heads.borrow().len() < 3 {
            tokio::task::yield_now().await;
        }
        let shadows = e.heads.borrow().iter().filter(|h| h.contains("-shadow\r\n")).count();
        assert_eq!(shadows, 1, "{:?}", e.heads);
    });
}

#[test]
fn what_a_gateway_writes_is_not_taken_out_by_a_client() {
    run(async {
        let e = Endpoint::of_http1(|_| OK.into()).await;
        let p = Proxy::new(&e, AppProtocol::Unknown, gateway("x-user", "nobody"));
        let headers = "connection: x-forwarded-for, x-forwarded-proto, x-own\r\nx-forwarded-for: 1.2.3.4\r\nx-own: 1\r\nX_User: admin\r\nx_forwarded_for: 1.2.3.4\r\na_b: 1\r\n";
        let a = p.ask(&get("/", headers)).await;
        assert!(a.starts_with("HTTP/1.1 200 "), "{a}");
        let heads = e.heads.borrow();
        let mut lines: Vec<&str> = heads[0].lines().skip(1).filter(|l| !l.starts_with("x-request-id")).collect();
        lines.sort_unstable();
        let want = ["", "a_b: 1", "host: s", "x-forwarded-for: 10.0.0.9", "x-forwarded-proto: http", "x-user: nobody"];
        assert_eq!(lines, want);
    });
}

/// A request of HTTP/2, and what comes of it: status, headers and trailers.
async fn ask_two(p: &Proxy, cookies: &[&str]) -> (u16, HeaderMap, Option<HeaderMap>) {
    let io = TokioIo::new(p.connect(true));
    // A body of the type that other tests' clients have.
    let (mut send, conn) = codec::client2().handshake::<_, UnsyncBoxBody<Bytes, Infallible>>(io).await.unwrap();
    spawn(conn);
    let mut r = Request::post("http://s/").body(Empty::<Bytes>::new().boxed_unsync()).unwrap();
    for c in cookies {
        r.headers_mut().append("cookie", HeaderValue::from_str(c).unwrap());
    }
    let (parts, mut body) = send.send_request(r).await.unwrap().into_parts();
    let mut trailers = None;
    while let Some(f) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        trailers = f.unwrap().into_trailers().ok().or(trailers);
    }
    (parts.status.as_u16(), parts.headers, trailers)
}

#[test]
fn what_concerns_the_endpoints_connection_is_not_sent_on() {
    run(async {
        let own = "connection: X-Hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nproxy-connection: close\r\nx: y";
        let e = Endpoint::of_http1(move |_| OK.replace("\r\n\r\n", &format!("\r\n{own}\r\n\r\n"))).await;
        let p = Proxy::new(&e, AppProtocol::Unknown, |_| {});
        let a = p.ask(&get("/", "")).await.to_lowercase();
        assert!(a.starts_with("http/1.1 200 ") && a.contains("\r\nx: y\r\n"), "{a}");
        assert!(!["x-hop", "keep-alive", "connection"].iter().any(|n| a.contains(n)), "{a}");
    });
}

#[test]
fn split_cookies_are_one_field_for_routes_and_applications() {
    run(async {
        let e = Endpoint::of_http1(|_| OK.into()).await;
        let value = Some(ir::Text { kind: Some(Kind::Exact("a=1; b=2; c=3".into())) });
        let p = Proxy::new(
            &e,
            AppProtocol::Http11,
            route(|r| {
                let cookie = ir::Named { name: "cookie".into(), value, invert: false };
                r.r#match = Some(ir::Match { headers: vec![cookie], ..Default::default() });
            }),
        );
        assert_eq!(ask_two(&p, &["a=1", "b=2; c=3"]).await.0, 200);
        let heads = e.heads.borrow();
        let cookies: Vec<&str> = heads[0].lines().filter(|l| l.starts_with("cookie: ")).collect();
        assert_eq!(cookies, ["cookie: a=1; b=2; c=3"]);
    });
}

#[test]
fn heads_have_one_limit_both_ways() {
    run(async {
        let long = 50 << 10;
        let e = Endpoint::of_http2(long).await;
        let p = Proxy::new(&e, AppProtocol::Http2, |_| {});
        let (status, headers, trailers) = ask_two(&p, &[]).await;
        assert_eq!((status, headers["x-long"].len()), (200, long));
        assert_eq!(trailers.unwrap()["grpc-message"].len(), long);
        // Too large, of either version.
        let two = Endpoint::of_http2(70 << 10).await;
        let one =
            Endpoint::of_http1(|_| OK.replace("\r\n\r\n", &format!("\r\nx: {}\r\n\r\n", "x".repeat(70 << 10)))).await;
        for (e, speaks) in [(&two, AppProtocol::Http2), (&one, AppProtocol::Http11)] {
            let p = Proxy::new(e, speaks, |_| {});
            let a = p.ask(&get("/", "")).await;
            assert!(a.starts_with("HTTP/1.1 502 ") && a.contains("protocol error"), "{speaks:?} {a}");
            assert!(p.counted(&["response_code=\"502\"", "response_flags=\"UPE\""]), "{speaks:?}");
        }
        let e = Endpoint::of_http1(|_| OK.into()).await;
        let p = Proxy::new(&e, AppProtocol::Http11, |_| {});
        let a = p.ask(&get("/", &format!("x: {}\r\n", "x".repeat(long)))).await;
        assert!(a.starts_with("HTTP/1.1 200 "), "{a}");
        let a = p.ask(&get("/", &format!("x: {}\r\n", "x".repeat(70 << 10)))).await;
        assert!(a.starts_with("HTTP/1.1 431 "), "{a}");
        while !p.counted(&["response_code=\"431\"", "response_flags=\"DPE\""]) {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_request_that_was_read_is_not_repeated_by_reset_before_request() {
    run(async {
        for (retry, want) in [
            (ir::Retry { reset_before_request: true, ..Default::default() }, 1),
            (ir::Retry { reset: true, ..Default::default() }, 3),
        ] {
            let e = Endpoint::of_http1(|_| String::new()).await;
            let retry = ir::Retry { attempts: 2, backoff_ms: 1, ..retry };
            let p = Proxy::new(&e, AppProtocol::Http11, route(|r| r.retry = Some(retry)));
            let a = p.ask("POST / HTTP/1.1\r\nhost: s\r\ncontent-length: 0\r\n\r\n").await;
            assert!(a.starts_with("HTTP/1.1 503 "), "{a}");
            assert_eq!(e.heads.borrow().len(), want, "{a}");
        }
    });
}

#[test]
fn operators_in_headers_are_put_in() {
    run(async {
        let e = Endpoint::of_http1(|_| OK.replace("\r\n\r\n", "\r\nx-from: app\r\nx-kept: app\r\n\r\n")).await;
        let change = |all: &[(&str, &str)]| {
            let header = |(n, v): &(&str, &str)| ir::Header { name: n.to_string(), value: v.to_string() };
            Some(ir::HeaderChange { set: all.iter().map(header).collect(), ..Default::default() })
        };
        let p = Proxy::new(
            &e,
            AppProtocol::Http11,
            route(|r| {
                r.request = change(&[
                    ("x-a", "%REQ(user-agent)%/%REQ(none?:path)%"),
                    (
                        "x-b",
                        "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%|%DOWNSTREAM_REMOTE_ADDRESS%|%DOWNSTREAM_LOCAL_PORT%",
                    ),
                    ("x-c", "%PROTOCOL% %HOSTNAME% %ROUTE_NAME% %DOWNSTREAM_PEER_URI_SAN% 5%%"),
                    ("x-d", "%REQ(:method)% %REQ(:scheme)%://%REQ(:authority)%"),
                    ("x-kept", "%REQ(none)%"),
                ]);
                r.answer = change(&[
                    ("x-a", "%RESPONSE_CODE% %RESP(x-from)% %REQ(user-agent)% %UPSTREAM_CLUSTER%"),
                    ("x-b", "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %RESPONSE_FLAGS%"),
                    ("x-kept", "%RESP(none)%"),
                ]);
            }),
        );
        let a = p.ask(&get("/path?q=1", "user-agent: me\r\nx-kept: client\r\n")).await;
        let head = e.heads.borrow()[0].clone();
        for (text, want) in [
            (&head, "x-a: me//path?q=1\r\n"),
            (&head, "x-b: 10.0.0.9|10.0.0.9:1234|80\r\n"),
            (&head, "x-c: HTTP/1.1 own route spiffe://cluster.local/ns/app/sa/web 5%\r\n"),
            (&head, "x-d: GET http://s\r\n"),
            (&head, "x-kept: client\r\n"),
            (&a, "x-a: 200 app me inbound-vip|80|http|s.ns.svc.cluster.local\r\n"),
            (&a, "x-b: 127.0.0.1 -\r\n"),
            (&a, "x-kept: app\r\n"),
        ] {
            assert!(text.contains(want), "{want}{text}");
        }
    });
}
