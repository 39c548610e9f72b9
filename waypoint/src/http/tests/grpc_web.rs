//! gRPC-Web in both forms, at a port that is declared to be for it.

use super::*;
use crate::downstream::gateway::Gateway;
use base64::{Engine, engine::general_purpose::STANDARD};

/// A message of gRPC.
const ASK: &[u8] = b"\0\0\0\0\x03ask";
const SAYS: &[u8] = b"\0\0\0\0\x04says";

/// A service whose port is for gRPC-Web, or only for gRPC.
fn mesh(is_web: bool, does: impl Fn(usize, &Seen) -> Does + 'static) -> Mesh {
    let m = before(is_web);
    m.listen(0, does);
    m
}

/// The same, where nobody listens yet.
fn before(is_web: bool) -> Mesh {
    Mesh::new(1, AppProtocol::Grpc, |s| {
        if is_web {
            let pods = (0..1).map(plain).chain([testing::pod("own", "10.0.1.1", &[])]).collect();
            let mut service = testing::service("s", "10.96.0.1", &[(80, PORT.into())]);
            service.ports[0].app_protocol = AppProtocol::Grpc as i32;
            service.karst_grpc_web_ports = vec![80];
            s.mesh = testing::snapshot(pods, vec![service]);
        }
    })
}

fn plain(n: usize) -> karst_api::workload::Workload {
    let mut pod = testing::pod(&format!("p{n}"), &address(n).ip().to_string(), &[(KEY, &[(80, PORT.into())])]);
    pod.tunnel_protocol = 0;
    pod
}

/// An answer with a message and a status.
fn says(code: &'static str) -> Does {
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]);
    let body = Full::new(Bytes::from_static(SAYS)).with_trailers(async move { Some(Ok(trailers)) });
    Does::Answer(Response::builder().header("content-type", "application/grpc").body(body.boxed_unsync()).unwrap())
}

fn ask(kind: &str, body: impl Into<Bytes>) -> Request<Payload> {
    let r = Request::post("http://s/shop.Cart/Add").header("host", "s").header("content-type", kind);
    r.header("x-grpc-web", "1").body(payload(body)).unwrap()
}

/// The frames of an answer: flag, and what is in them.
fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut out = vec![];
    while let [flag, a, b, c, d, rest @ ..] = bytes {
        let (payload, after) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        out.push((*flag, payload.to_vec()));
        bytes = after;
    }
    assert!(bytes.is_empty());
    out
}

/// Of a text: each part is padded by itself.
fn decoded(text: &[u8]) -> Vec<u8> {
    text.chunks(4).flat_map(|group| STANDARD.decode(group).unwrap()).collect()
}

#[test]
fn trailers_are_the_last_frame_of_the_body() {
    run(async {
        let m = mesh(true, |_, _| says("0"));
        for two in [false, true] {
            let r = ask("application/grpc-web+proto", ASK);
            let a = if two { m.send_two(r).await } else { m.send(r).await };
            assert_eq!(
                (a.status().as_u16(), &a.headers()["content-type"]),
                (200, &"application/grpc-web+proto".parse().unwrap())
            );
            let body = a.into_body().collect().await.unwrap();
            assert!(body.trailers().is_none());
            let want = [(0, b"says".to_vec()), (0x80, b"grpc-status: 0\r\n".to_vec())];
            assert_eq!(frames(&body.to_bytes()), want);
        }
        let seen = m.seen.borrow();
        assert_eq!((&seen[0].body[..], &seen[0].headers["te"]), (ASK, &"trailers".parse().unwrap()));
        assert_eq!(seen[0].headers["content-type"], "application/grpc+proto");
        assert!(logged("POST /shop.Cart/Add HTTP/1.1\" 200 "));
    });
}

#[test]
fn the_text_form_is_base64_both_ways() {
    run(async {
        let m = mesh(true, |_, _| says("0"));
        // Two parts, each padded by itself.
        let text = STANDARD.encode(&ASK[..4]) + &STANDARD.encode(&ASK[4..]);
        let a = m.send(ask("application/grpc-web-text", text)).await;
        assert_eq!(a.headers()["content-type"], "application/grpc-web-text+proto");
        let body = a.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(frames(&decoded(&body)), [(0, b"says".to_vec()), (0x80, b"grpc-status: 0\r\n".to_vec())]);
        assert_eq!(m.seen.borrow()[0].body, ASK);
        // It reads what it says that it reads.
        let mut r = ask("application/grpc-web-text", STANDARD.encode(ASK));
        r.headers_mut().insert("accept", "application/grpc-web".parse().unwrap());
        let a = m.send(r).await;
        assert_eq!(a.headers()["content-type"], "application/grpc-web+proto");
    });
}

#[test]
fn what_is_no_base64_is_the_clients_fault() {
    run(async {
        let m = mesh(true, |_, _| says("0"));
        for text in ["AAAAAANhc2", "****"] {
            let a = m.send(ask("application/grpc-web-text", text)).await;
            // INTERNAL, in the head.
            assert_eq!((a.status().as_u16(), &a.headers()["grpc-status"]), (200, &"13".parse().unwrap()), "{text}");
            assert_eq!(a.headers()["content-type"], "application/grpc-web-text+proto");
            a.into_body().collect().await.unwrap();
            assert!(logged("grpc_base_64_decode_failed") && logged("[KARST-0913]"), "{text}");
            LINES.take();
        }
        // The endpoint is not held to blame, and its connection is used again.
        let a = m.send(ask("application/grpc-web", ASK)).await;
        assert_eq!(a.status(), 200);
    });
}

#[test]
fn failures_have_the_form_of_the_client() {
    run(async {
        // A status without a message, from the endpoint.
        let only_status = |_: usize, _: &Seen| {
            let a = Response::builder().header("content-type", "application/grpc").header("grpc-status", "5");
            Does::Answer(a.header("grpc-message", "none").body(payload("")).unwrap())
        };
        let m = mesh(true, only_status);
        let a = m.send(ask("application/grpc-web+proto", ASK)).await;
        assert_eq!((a.status().as_u16(), &a.headers()["grpc-status"]), (200, &"5".parse().unwrap()));
        assert_eq!(a.headers()["content-type"], "application/grpc-web+proto");
        assert!(a.into_body().collect().await.unwrap().to_bytes().is_empty());
        // A message, and a failure after it.
        let m = mesh(true, |_, _| says("8"));
        let body = m.send(ask("application/grpc-web", ASK)).await.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(frames(&body)[1], (0x80, b"grpc-status: 8\r\n".to_vec()));
        // Nobody is there (UNAVAILABLE).
        let m = mesh(true, |_, _| says("0"));
        m.memory.listen(address(0), drop);
        let a = m.send(ask("application/grpc-web", ASK)).await;
        assert_eq!((a.status().as_u16(), &a.headers()["grpc-status"]), (200, &"14".parse().unwrap()));
        assert_eq!(a.headers()["content-type"], "application/grpc-web+proto");
        // An answer that is none of gRPC.
        let m = mesh(true, |_, _| Does::Answer(Response::builder().status(502).body(payload("oh")).unwrap()));
        let a = m.send(ask("application/grpc-web", ASK)).await;
        assert_eq!(a.status(), 502);
        assert_eq!(a.into_body().collect().await.unwrap().to_bytes(), "oh");
    });
}

/// To the client the status is a frame of the body; that the endpoint has too much to do is seen all the same.
#[test]
fn an_exhausted_endpoint_is_known_by_its_trailers() {
    run(async {
        for (code, wanted) in [("8", true), ("0", false)] {
            let m = mesh(true, move |_, _| says(code));
            m.send(ask("application/grpc-web", ASK)).await.into_body().collect().await.unwrap();
            let (snapshot, downstream) = (m.worker.snapshot(), m.downstream());
            let (service, subset) = (Arc::<str>::from(KEY), Arc::<str>::default());
            let key = downstream.key("ns", &snapshot, &service, 80, &subset);
            let set = m.worker.set(&snapshot, key, downstream.to).unwrap();
            assert_eq!(set.members[0].state.is_overloaded(crate::clock::now()), wanted, "{code}");
        }
    });
}

/// At a port of a gateway that is for gRPC-Web it counts for every service.
#[test]
fn a_gateways_port_can_be_for_grpc_web() {
    run(async {
        for is_web in [true, false] {
            let m = Mesh::new(1, AppProtocol::Unknown, |s| {
                let to = ir::Destination { service: KEY.into(), port: 80, weight: 1, ..Default::default() };
                let mirrors = vec![ir::Mirror { to: Some(to.clone()), per_million: 1_000_000 }];
                let one = ir::HttpRule { destinations: vec![to], mirrors, ..Default::default() };
                let table = ir::Table { http: vec![one], tcp: vec![] };
                let routes = Routes::new(&ir::Routes { producer: Some(table), ..Default::default() }, None).unwrap();
                s.hosts.insert("g/*".into(), Arc::new(routes));
                let listener = ir::Listener {
                    routes: "g".into(),
                    port: 8000,
                    hosts: vec!["*".into()],
                    grpc_web: is_web,
                    ..Default::default()
                };
                let gateway = ir::Gateway { listeners: vec![listener], ..Default::default() };
                s.gateway = Some(Arc::new(Gateway::new(&gateway).unwrap()));
            });
            m.serve(address(0), (0, is_web), m.seen.clone(), Rc::new(|_, _| says("0")));
            let (client, server) = tokio::io::duplex(64 << 10);
            let downstream = Downstream {
                peer: None,
                from: ([192, 0, 2, 9], 1234).into(),
                source: None,
                target: DownstreamTarget::Gateway(None),
                port: 8000,
                to: Ipv4Addr::new(10, 0, 1, 1).into(),
                hello: None,
                permit: None,
                entered: Default::default(),
                written: Default::default(),
            };
            let w = m.worker.clone();
            spawn(async move { requests::requests(&w, Rc::new(downstream), Io::memory(server), false).await });
            let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
            spawn(conn);
            let a = send.send_request(ask("application/grpc-web", ASK)).await.unwrap();
            assert_eq!(a.status(), 200);
            let kind = if is_web { "application/grpc-web+proto" } else { "application/grpc" };
            assert_eq!(a.headers()["content-type"], kind);
            let asked = if is_web { "application/grpc" } else { "application/grpc-web" };
            // So is the copy of it.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let kinds: Vec<_> = m.seen.borrow().iter().map(|s| s.headers["content-type"].clone()).collect();
            assert_eq!(kinds, [asked; 2]);
        }
    });
}

/// Each message is sent when it is there.
#[test]
fn streams_are_not_held_back() {
    run(async {
        let m = mesh(true, |_, _| {
            let answer = Response::builder().header("content-type", "application/grpc");
            Does::Answer(answer.body(each_ten_seconds(SAYS, 3)).unwrap())
        });
        let began = Instant::now();
        let mut body = m.send(ask("application/grpc-web-text", STANDARD.encode(ASK))).await.into_body();
        let mut times = vec![];
        while let Some(frame) = body.frame().await {
            assert_eq!(decoded(frame.unwrap().data_ref().unwrap()), SAYS);
            times.push(began.elapsed().as_secs());
        }
        assert_eq!(times, [0, 10, 20]);
    });
}

/// At a port of gRPC, or by other clients, nothing is changed.
#[test]
fn other_ports_and_other_requests_are_left_alone() {
    run(async {
        let web = "application/grpc-web-text";
        let m = mesh(false, |_, _| status(200));
        m.ask(ask(web, "AAAA")).await;
        assert_eq!(
            (&m.seen.borrow()[0].body[..], &m.seen.borrow()[0].headers["content-type"]),
            (&b"AAAA"[..], &web.parse().unwrap())
        );
        let m = mesh(true, |_, _| status(200));
        for kind in ["application/json", "application/grpc-webx"] {
            assert_eq!(m.ask(ask(kind, "AAAA")).await.1, "ok");
        }
        let mut preflight = ask(web, "");
        *preflight.method_mut() = Method::OPTIONS;
        m.ask(preflight).await;
        {
            let seen = m.seen.borrow();
            assert!(seen[..2].iter().all(|s| s.body == "AAAA") && seen[2].headers["content-type"] == web);
        }
        // gRPC itself has its trailers.
        let m = mesh(true, |_, _| says("0"));
        let a = m.send_two(ask("application/grpc", ASK)).await.into_body().collect().await.unwrap();
        assert_eq!(a.trailers().unwrap()["grpc-status"], "0");
    });
}
