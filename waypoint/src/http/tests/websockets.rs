//! WebSocket by an upgrade of HTTP/1.1 and by an extended CONNECT of HTTP/2, on either side.

use super::*;
use crate::{
    authz::access::Access,
    cluster::key::ClusterKey,
    http::body::{Body, Counted},
    upstream::{open::Attempt, send},
};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::{
    client::conn::http2::SendRequest,
    ext::Protocol,
    upgrade::{self, Upgraded},
};
use karst_policy::Attribute;
use std::{
    cell::Cell,
    future::ready,
    sync::atomic::AtomicU64,
    task::{Context, Poll},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};

type Heads = Rc<RefCell<Vec<String>>>;

/// The value of a header in a head of HTTP/1.1.
fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// As a server of RFC 6455 answers a key.
fn accepting(key: &str) -> String {
    let all = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, all.as_bytes()))
}

fn switching(accept: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {accept}\r\nsec-websocket-protocol: chat\r\n\r\n"
    )
}

fn well(head: &str) -> String {
    switching(&accepting(value(head, "sec-websocket-key").unwrap_or_default()))
}

/// Sends back what comes, and a last word when the other side has ended.
async fn echo(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let mut buffer = vec![0; 10_000];
    while let Ok(n @ 1..) = io.read(&mut buffer).await {
        if io.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
    let _ = io.write_all(b"bye").await;
    let _ = io.shutdown().await;
}

/// Serves one connection of HTTP/1.1; a 101 is followed by an echo.
async fn serve_one(mut io: DuplexStream, heads: Heads, answers: Rc<dyn Fn(&str) -> String>) {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = io.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let answer = answers(&head);
    heads.borrow_mut().push(head);
    io.write_all(answer.as_bytes()).await.unwrap();
    if answer.starts_with("HTTP/1.1 101 ") {
        echo(io).await;
    }
}

/// An endpoint of HTTP/1.1, and the heads that it gets.
fn one(m: &Mesh, answers: impl Fn(&str) -> String + 'static) -> Heads {
    let answers: Rc<dyn Fn(&str) -> String> = Rc::new(answers);
    let heads = Heads::default();
    let all = heads.clone();
    m.memory.listen(address(0), move |io| spawn(serve_one(io, all.clone(), answers.clone())));
    heads
}

/// Method, protocol, target and headers.
type Question = (Method, Option<Protocol>, Uri, HeaderMap);
type Asked = Rc<RefCell<Vec<Question>>>;

/// Serves one connection of HTTP/2. `takes`: WebSocket by an extended CONNECT.
async fn serve_two(io: impl AsyncRead + AsyncWrite + Unpin + 'static, asked: Asked, takes: bool) {
    let application = move |mut r: Request<Incoming>| -> Answering {
        let protocol = r.extensions().get::<Protocol>().cloned();
        asked.borrow_mut().push((r.method().clone(), protocol, r.uri().clone(), r.headers().clone()));
        let on = upgrade::on(&mut r);
        spawn(async move {
            if let Ok(io) = on.await {
                echo(TokioIo::new(io)).await;
            }
        });
        let answer = Response::builder().header("sec-websocket-protocol", "chat").body(payload("")).unwrap();
        Box::pin(ready(Ok(answer)))
    };
    let mut server = http2::Builder::new(codec::Local);
    if takes {
        server.enable_connect_protocol();
    }
    serve_http2(io, server, Rc::new(application)).await;
}

/// An endpoint of HTTP/2 that takes WebSocket so, and what it is asked.
fn two(m: &Mesh) -> Asked {
    let asked = Asked::default();
    let all = asked.clone();
    m.memory.listen(address(0), move |io| spawn(serve_two(io, all.clone(), true)));
    asked
}

/// The answer to an extended CONNECT. The connection lives as long as its sender.
async fn connect(m: &Mesh, path: &str, protocol: Option<&'static str>) -> (Response<Incoming>, SendRequest<Payload>) {
    let io = TokioIo::new(m.connect(true));
    let (mut send, conn) = codec::client2().handshake::<_, Payload>(io).await.unwrap();
    spawn(conn);
    let uri = match protocol {
        Some(_) => format!("http://s{path}"),
        None => "s:80".into(),
    };
    let r = Request::builder().method(Method::CONNECT).uri(uri).header("sec-websocket-key", "forged");
    let mut r = r.header("sec-websocket-protocol", "chat").body(payload("")).unwrap();
    if let Some(protocol) = protocol {
        r.extensions_mut().insert(Protocol::from_static(protocol));
    }
    (send.send_request(r).await.unwrap(), send)
}

/// An open WebSocket of a client of HTTP/2.
async fn opened(m: &Mesh, path: &str) -> (TokioIo<Upgraded>, HeaderMap, SendRequest<Payload>) {
    let (answer, send) = connect(m, path, Some("websocket")).await;
    assert_eq!(answer.status(), 200);
    let headers = answer.headers().clone();
    (TokioIo::new(upgrade::on(answer).await.unwrap()), headers, send)
}

async fn goes_both_ways(io: &mut TokioIo<Upgraded>) {
    io.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    io.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
}

#[test]
fn a_client_of_http2_reaches_an_endpoint_of_http1() {
    run(async {
        let m = Mesh::new(1, AppProtocol::Http11, |_| {});
        let heads = one(&m, well);
        let (mut io, headers, _send) = opened(&m, "/chat?a=1").await;
        goes_both_ways(&mut io).await;
        let head = heads.borrow()[0].clone();
        assert!(head.starts_with("GET /chat?a=1 HTTP/1.1\r\n"), "{head}");
        let of = |name: &str| value(&head, name).unwrap_or("-");
        assert_eq!([of("host"), of("upgrade"), of("sec-websocket-version")], ["s", "websocket", "13"]);
        assert_eq!(STANDARD.decode(of("sec-websocket-key")).unwrap().len(), 16, "ours, not the client's");
        assert_eq!(headers["sec-websocket-protocol"], "chat");
        assert!(!["sec-websocket-accept", "upgrade", "connection"].iter().any(|name| headers.contains_key(*name)));
        drop(io);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(logged("GET /chat?a=1 HTTP/2\" 101 - via_upstream"), "{:?}", LINES.with_borrow(|l| l.clone()));
    });
}

/// More than the windows of streams and of the connection hold, both ways at the same time; then one side ends, and the other goes on.
#[test]
fn bytes_flow_as_fast_as_they_are_read_and_each_side_ends_by_itself() {
    run(async {
        const SIZE: usize = 8 << 20;
        for speaks in [AppProtocol::Http11, AppProtocol::Http2] {
            let m = Mesh::new(1, speaks, |_| {});
            match speaks {
                AppProtocol::Http2 => drop(two(&m)),
                _ => drop(one(&m, well)),
            }
            let (io, _, _send) = opened(&m, "/").await;
            let bytes: Vec<u8> = (0..SIZE).map(|i| (i % 251) as u8).collect();
            let (mut from, mut to) = tokio::io::split(io);
            let mut back = vec![];
            let send = async {
                to.write_all(&bytes).await.unwrap();
                to.shutdown().await.unwrap();
            };
            let ((), read) = tokio::join!(send, from.read_to_end(&mut back));
            read.unwrap();
            assert_eq!(back.len(), SIZE + 3, "{speaks:?}");
            assert!(back[..SIZE] == bytes && back.ends_with(b"bye"), "{speaks:?}");
        }
    });
}

#[test]
fn an_endpoint_that_does_not_answer_the_key_speaks_no_websocket() {
    run(async {
        for answer in
            [switching("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), switching("").replace("sec-websocket-accept: \r\n", "")]
        {
            let m = Mesh::new(1, AppProtocol::Http11, |_| {});
            one(&m, move |_| answer.clone());
            let (answer, _send) = connect(&m, "/", Some("websocket")).await;
            assert_eq!(answer.status(), 502);
            answer.into_body().collect().await.unwrap();
            assert!(logged(" 502 UPE ") && logged("Sec-WebSocket-Accept"));
            LINES.take();
        }
    });
}

/// To a client of HTTP/2 a 2xx would say that its WebSocket is open.
#[test]
fn an_answer_that_opens_nothing_is_no_success() {
    run(async {
        for (said, want) in [("200 OK", 502), ("204 No Content", 502), ("403 Forbidden", 403), ("302 Found", 302)] {
            let m = Mesh::new(1, AppProtocol::Http11, |_| {});
            one(&m, move |_| format!("HTTP/1.1 {said}\r\ncontent-length: 0\r\n\r\n"));
            let (answer, _send) = connect(&m, "/", Some("websocket")).await;
            assert_eq!(answer.status(), want, "{said}");
            answer.into_body().collect().await.unwrap();
            assert!(logged(&format!("HTTP/2\" {want} ")), "{said}: {:?}", LINES.with_borrow(|l| l.clone()));
            LINES.take();
        }
        // What a route answers itself, too.
        let direct = Some(ir::DirectResponse { status: 200, body: b"hi".to_vec() });
        let m = Mesh::of(route(|r| r.response = direct), |_, _| status(200));
        assert_eq!(connect(&m, "/", Some("websocket")).await.0.status(), 502);
    });
}

#[test]
fn an_endpoint_of_http2_that_takes_it_is_asked_by_http2() {
    run(async {
        let m = Mesh::new(1, AppProtocol::Http2, |_| {});
        let asked = two(&m);
        let (mut io, headers, _send) = opened(&m, "/chat?a=1").await;
        goes_both_ways(&mut io).await;
        assert_eq!(headers["sec-websocket-protocol"], "chat");
        let asked = asked.borrow();
        let (method, protocol, uri, headers) = &asked[0];
        assert_eq!((method, protocol.as_ref().unwrap().as_str()), (&Method::CONNECT, "websocket"));
        assert_eq!(uri, "http://s/chat?a=1");
        assert!(!["sec-websocket-key", "host", "upgrade"].iter().any(|name| headers.contains_key(*name)));
        assert_eq!(headers["sec-websocket-version"], "13");
    });
}

/// A stream that can be closed between two turns of whoever reads it.
#[derive(Clone)]
struct Closable(Rc<RefCell<Option<DuplexStream>>>);

impl AsyncRead for Closable {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self.0.borrow_mut() {
            Some(io) => Pin::new(io).poll_read(cx, to),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Closable {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self.0.borrow_mut() {
            Some(io) => Pin::new(io).poll_write(cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().as_mut().map_or(Poll::Ready(Ok(())), |io| Pin::new(io).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().as_mut().map_or(Poll::Ready(Ok(())), |io| Pin::new(io).poll_shutdown(cx))
    }
}

#[test]
fn one_that_meets_a_kept_connection_as_it_ends_is_asked_for_on_another() {
    run(async {
        let m = Mesh::new(1, AppProtocol::Http2, |_| {});
        let (asked, connections) = (Asked::default(), Rc::new(RefCell::new(Vec::<Closable>::new())));
        let (all, taken) = (asked.clone(), connections.clone());
        m.memory.listen(address(0), move |io| {
            let io = Closable(Rc::new(RefCell::new(Some(io))));
            taken.borrow_mut().push(io.clone());
            spawn(serve_two(io, all.clone(), true));
        });
        let (mut io, _, _send) = opened(&m, "/").await;
        goes_both_ways(&mut io).await;
        let key =
            ClusterKey { service: KEY.into(), port: 80, subset: Arc::default(), client: Arc::default(), udp: false };
        let set = m.worker.set(&m.worker.snapshot(), key.as_ref(), [10, 96, 0, 1].into()).unwrap();
        let (held, sent) = (Cell::default(), Cell::default());
        let (member, from) = (&set.members[0], SocketAddr::from(([10, 0, 0, 99], 1234)));
        let attempt = Attempt { set: &set, member, from, to: from, has_other: &|| false, held: &held, trace: &|| None };
        let request = Request::get("/late").header("host", "s").header("sec-websocket-key", "key");
        let request = request.body(Counted::new(Body::Empty, Rc::default())).unwrap();
        // The connection's task has had no turn yet in which to notice it.
        drop(connections.borrow()[0].0.take());
        let (answer, _) = send::extended(&m.worker, &attempt, request, &sent).await.unwrap();
        assert_eq!((answer.status().as_u16(), connections.borrow().len()), (101, 2));
        let asked = asked.borrow();
        assert_eq!((asked.len(), asked[1].2.path(), asked[1].0.as_str()), (2, "/late", "CONNECT"));
    });
}

/// A client of HTTP/1.1 looks at what its key is answered with.
#[test]
fn a_client_of_http1_reaches_an_endpoint_of_http2() {
    run(async {
        let m = Mesh::new(1, AppProtocol::Http2, |_| {});
        let asked = two(&m);
        let mut io = m.connect(false);
        let r = "GET /chat HTTP/1.1\r\nhost: s\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n";
        io.write_all(r.as_bytes()).await.unwrap();
        let mut head = vec![];
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(value(&head, "sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        io.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        io.read_exact(&mut back).await.unwrap();
        assert_eq!((&back, &asked.borrow()[0].0), (b"hello", &Method::CONNECT));
    });
}

/// Servers of HTTP/2 mostly take it by HTTP/1.1 only.
#[test]
fn an_endpoint_of_http2_that_takes_it_by_http1_only_is_asked_so() {
    run(async {
        let m = Mesh::new(1, AppProtocol::Http2, |_| {});
        let (heads, asked, connections) = (Heads::default(), Asked::default(), Rc::new(RefCell::new(0)));
        let (all, none) = (heads.clone(), asked.clone());
        m.memory.listen(address(0), move |io| {
            *connections.borrow_mut() += 1;
            // The first is that of which it is asked whether it takes it.
            match *connections.borrow() {
                1 => spawn(serve_two(io, none.clone(), false)),
                _ => spawn(serve_one(io, all.clone(), Rc::new(well))),
            }
        });
        let (mut io, ..) = opened(&m, "/").await;
        goes_both_ways(&mut io).await;
        assert_eq!((heads.borrow().len(), asked.borrow().len()), (1, 0));
    });
}

#[test]
fn routes_and_policies_see_a_get() {
    run(async {
        let exact = |s: &str| Some(ir::Text { kind: Some(ir::text::Kind::Exact(s.into())) });
        let m = Mesh::new(
            1,
            AppProtocol::Http11,
            route(|r| r.r#match = Some(ir::Match { method: exact("GET"), ..Default::default() })),
        );
        one(&m, well);
        let (mut io, ..) = opened(&m, "/").await;
        goes_both_ways(&mut io).await;
        for (attribute, value, want) in
            [(Attribute::Method, "GET", 403), (Attribute::Method, "CONNECT", 200), (Attribute::Path, "/chat", 403)]
        {
            let m = Mesh::new(1, AppProtocol::Http11, |s| {
                s.access.insert(KEY.into(), Arc::new(Access::new(&deny(attribute, value)).unwrap()));
            });
            let heads = one(&m, well);
            assert_eq!(connect(&m, "/chat", Some("websocket")).await.0.status(), want, "{attribute:?} {value}");
            assert_eq!(heads.borrow().len(), usize::from(want == 200), "{attribute:?} {value}");
        }
    });
}

fn deny(attribute: Attribute, value: &str) -> ir::Access {
    let attribute = ir::Attribute::from(attribute) as i32;
    let tests = vec![ir::AccessTest { attribute, values: vec![value.into()], ..Default::default() }];
    let clauses = vec![ir::AccessClause { matches: vec![ir::AccessMatch { tests }] }];
    let rules = vec![ir::AccessRule { clauses }];
    let mut policy = ir::AccessPolicy { name: "ns/deny".into(), rules, ..Default::default() };
    policy.set_action(ir::AccessAction::Deny);
    ir::Access { policies: vec![policy], ..Default::default() }
}

#[test]
fn a_policy_that_comes_later_ends_it() {
    run(async {
        let m = Mesh::new(1, AppProtocol::Http11, |_| {});
        one(&m, well);
        let (mut io, ..) = opened(&m, "/chat").await;
        goes_both_ways(&mut io).await;
        let mut s = (*m.worker.snapshot()).clone();
        s.access.insert(KEY.into(), Arc::new(Access::new(&deny(Attribute::Path, "/chat")).unwrap()));
        m.worker.conns.recheck(|| &s, &AtomicU64::new(0)).await;
        let mut rest = vec![];
        let _ = io.read_to_end(&mut rest).await;
        assert_eq!(rest, b"");
        assert!(logged("ns/deny"), "{:?}", LINES.with_borrow(|l| l.clone()));
    });
}

/// A browser resets the stream of a page that is left. (It is not waited for what the endpoint does then.)
#[test]
fn an_endpoint_learns_at_once_that_its_client_has_left() {
    run(async {
        let m = Mesh::new(1, AppProtocol::Http11, |_| {});
        let (told, mut left) = tokio::sync::mpsc::unbounded_channel();
        m.memory.listen(address(0), move |mut io| {
            let told = told.clone();
            spawn(async move {
                let mut head = vec![];
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(io.read_u8().await.unwrap());
                }
                io.write_all(well(std::str::from_utf8(&head).unwrap()).as_bytes()).await.unwrap();
                assert_eq!(io.read(&mut [0; 10]).await.unwrap_or(0), 0);
                // It is in no hurry itself.
                tokio::time::sleep(Duration::from_secs(60)).await;
                told.send(io.write_all(b"late").await.is_err()).unwrap();
            });
        });
        let (io, _, _send) = opened(&m, "/").await;
        drop(io);
        assert_eq!(left.recv().await, Some(true), "nobody reads it any more");
    });
}

/// A route's timeout is one of the answer, not of what follows it.
#[test]
fn an_open_one_outlives_the_timeout() {
    run(async {
        let m = Mesh::new(1, AppProtocol::Http11, route(|r| r.timeout_ms = 1000));
        one(&m, well);
        let (mut io, ..) = opened(&m, "/").await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        goes_both_ways(&mut io).await;
        let m = Mesh::of(route(|r| r.timeout_ms = 1000), |_, _| Does::Never);
        assert_eq!(connect(&m, "/", Some("websocket")).await.0.status(), 504);
    });
}

/// A drain waits for it, though the request that it has begun with is long over.
#[test]
fn an_open_one_keeps_its_worker_from_ending() {
    run(async {
        let m = Mesh::new(1, AppProtocol::Http11, |_| {});
        one(&m, well);
        assert!(m.worker.is_idle());
        let (mut io, ..) = opened(&m, "/").await;
        goes_both_ways(&mut io).await;
        assert!(!m.worker.is_idle());
        drop(io);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(m.worker.is_idle());
    });
}

#[test]
fn other_tunnels_are_refused() {
    run(async {
        let m = Mesh::of(|_| {}, |_, _| status(200));
        for (protocol, want, details) in [
            (None, 405, "http.connect_not_supported"),
            (Some("connect-udp"), 501, "upgrade_failed"),
            (Some("websockets"), 501, "upgrade_failed"),
        ] {
            assert_eq!(connect(&m, "/", protocol).await.0.status(), want);
            assert!(logged(details), "{details}");
        }
        assert_eq!(m.count(), 0);
    });
}

#[test]
fn clients_are_told_that_it_is_taken() {
    run(async {
        let m = Mesh::of(|_| {}, |_, _| status(200));
        let mut io = m.connect(true);
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut head = [0; 9];
        io.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        io.read_exact(&mut payload).await.unwrap();
        assert!(head[3] == 4 && payload.chunks(6).any(|s| s == [0, 8, 0, 0, 0, 1]), "{payload:?}");
    });
}
