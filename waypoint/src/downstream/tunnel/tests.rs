//! Whole streams of tunnels in memory, from their CONNECT to an endpoint: what goes on when the proxy of their client is replaced
//! (docs/hbone.md §10). The test is that proxy, and its successor. Time is paused.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use super::*;
use crate::{
    testing::{OWN, worker_by},
    upstream::connector::{Connector, memory::Memory},
};
use h2::{SendStream, client::SendRequest};
use http::{HeaderMap, Request};
use karst_api::workload as pb;
use karst_proxy::testing::{pod, service, snapshot};
use std::{cell::Cell, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::{LocalSet, spawn_local},
    time::sleep,
};

const KEY: &str = "ns/s.ns.svc.cluster.local";
const PEER: &str = "spiffe://cluster.local/ns/app/sa/web";
const CLIENT: &str = "10.0.0.99:1234";
const CALLED: &str = "10.96.0.1:80";
const UNAVAILABLE: Option<u16> = Some(503);

/// A waypoint, with a service that speaks this on both its ports, and has one endpoint.
fn waypoint(speaks: AppProtocol, serve: impl Fn(DuplexStream) + 'static) -> Rc<Worker> {
    let mut app = pod("app", "10.0.0.1", &[(KEY, &[(80, 8080), (81, 8080)])]);
    app.tunnel_protocol = 0;
    let mut s = service("s", "10.96.0.1", &[(80, 8080), (81, 8080)]);
    s.ports.iter_mut().for_each(|port| port.app_protocol = speaks as i32);
    let address = pb::NetworkAddress { address: vec![10, 0, 1, 1], ..Default::default() };
    let destination = Some(pb::gateway_address::Destination::Address(address));
    s.waypoint = Some(pb::GatewayAddress { destination, hbone_mtls_port: 15008 });
    let mesh = snapshot(vec![app, pod(OWN, "10.0.1.1", &[])], vec![s]);
    let memory = Rc::<Memory>::default();
    memory.listen("10.0.0.1:8080".parse().unwrap(), serve);
    worker_by(Snapshot { mesh, ..Snapshot::new("") }, "waypoint", Connector::Memory(memory))
}

/// A tunnel of this client.
async fn tunnel(worker: &Rc<Worker>, peer: &str, from: &str) -> SendRequest<Bytes> {
    let (near, far) = tokio::io::duplex(256 << 10);
    let (worker, peer): (_, Identity) = (worker.clone(), peer.parse().unwrap());
    let from: SocketAddr = from.parse().unwrap();
    spawn_local(async move {
        let mut connection = h2::server::handshake(far).await.unwrap();
        while let Some(Ok((request, respond))) = connection.accept().await {
            spawn_local(stream(worker.clone(), Connect { request, respond }, peer.clone(), from, None));
        }
    });
    let (client, connection) = h2::client::handshake(near).await.unwrap();
    spawn_local(connection);
    client
}

/// The client's side of a stream.
struct Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// The waypoint has said that it knows of continuation.
    knows: bool,
}

/// Opens a stream; or the status that it is refused with.
async fn open(client: &SendRequest<Bytes>, authority: &str, says: Said) -> Result<Stream, u16> {
    let mut request = Request::connect(authority).body(()).unwrap();
    match says {
        Said::Nothing => {}
        Said::Knows => continuation::announce(request.headers_mut()),
        Said::Token(token) => continuation::name(request.headers_mut(), &token),
    }
    let (answer, send) = client.clone().ready().await.unwrap().send_request(request, false).unwrap();
    let answer = answer.await.unwrap();
    let knows = continuation::said(answer.headers()) == Said::Knows;
    match answer.status().as_u16() {
        200 => Ok(Stream { send, recv: answer.into_body(), knows }),
        other => Err(other),
    }
}

impl Stream {
    fn say(&mut self, bytes: &[u8]) {
        self.send.send_data(Bytes::copy_from_slice(bytes), false).unwrap();
    }

    fn end(&mut self) {
        self.send.send_data(Bytes::new(), true).unwrap();
    }

    async fn some(&mut self) -> Option<Bytes> {
        let data = self.recv.data().await?.unwrap();
        self.recv.flow_control().release_capacity(data.len()).unwrap();
        Some(data)
    }

    /// At least so many bytes.
    async fn hear(&mut self, count: usize) -> Vec<u8> {
        let mut heard = vec![];
        while heard.len() < count {
            heard.extend(self.some().await.unwrap());
        }
        heard
    }

    /// All until the half's end, and what it has ended with.
    async fn rest(&mut self) -> (Vec<u8>, Option<Said>) {
        let mut all = vec![];
        while let Some(data) = self.some().await {
            all.extend_from_slice(&data);
        }
        let trailers = self.recv.trailers().await.unwrap();
        (all, trailers.as_ref().map(continuation::said))
    }

    /// The client leaves.
    fn leave(&mut self) -> Token {
        let (token, mut trailers) = (Token::new().unwrap(), HeaderMap::new());
        continuation::name(&mut trailers, &token);
        self.send.send_trailers(trailers).unwrap();
        token
    }

    /// The same, and goes on in another tunnel; what came meanwhile.
    async fn replaced(mut self, worker: &Rc<Worker>) -> (Self, Vec<u8>) {
        let token = self.leave();
        let (heard, end) = self.rest().await;
        assert_eq!(end, Some(Said::Token(token)));
        let next = open(&tunnel(worker, PEER, CLIENT).await, CALLED, Said::Token(token)).await.unwrap();
        assert!(next.knows);
        (next, heard)
    }
}

async fn echo(mut io: DuplexStream) {
    let mut buf = vec![0; 10_000];
    while let Ok(length @ 1..) = io.read(&mut buf).await {
        if io.write_all(&buf[..length]).await.is_err() {
            return;
        }
    }
    let _ = io.shutdown().await;
}

async fn head(io: &mut DuplexStream) -> Option<Vec<u8>> {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.ok()?);
    }
    Some(head)
}

async fn run(f: impl Future<Output = ()>) {
    LocalSet::new().run_until(f).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_outlives_the_proxy_of_its_client() {
    run(async {
        let worker = waypoint(AppProtocol::Tcp, |io| drop(spawn_local(echo(io))));
        let client = tunnel(&worker, PEER, CLIENT).await;
        let mut stream = open(&client, CALLED, Said::Knows).await.unwrap();
        assert!(stream.knows);
        for n in 1..=5 {
            stream.say(b"ping");
            let (next, mut heard) = stream.replaced(&worker).await;
            stream = next;
            stream.say(b"pong");
            heard.extend(stream.hear(8 - heard.len()).await);
            assert_eq!(heard, b"pingpong");
            assert_eq!(worker.shared.metrics.followed.load(Relaxed), n);
        }
        stream.end();
        assert_eq!(stream.rest().await, (vec![], None), "the application's end is an end");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_websocket_outlives_the_proxy_of_its_client() {
    run(async {
        let worker = waypoint(AppProtocol::Http11, |mut io| {
            spawn_local(async move {
                head(&mut io).await.unwrap();
                let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
                io.write_all(answer.as_bytes()).await.unwrap();
                echo(io).await;
            });
        });
        let client = tunnel(&worker, PEER, CLIENT).await;
        let mut stream = open(&client, CALLED, Said::Knows).await.unwrap();
        stream.say(b"GET /chat HTTP/1.1\r\nhost: s\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");
        let mut answer = vec![];
        while !answer.ends_with(b"\r\n\r\n") {
            answer.extend(stream.some().await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
        for _ in 0..3 {
            stream.say(b"ping");
            let (next, mut heard) = stream.replaced(&worker).await;
            stream = next;
            stream.say(b"pong");
            heard.extend(stream.hear(8 - heard.len()).await);
            assert_eq!(heard, b"pingpong");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_goes_on_in_the_middle_of_its_head_and_of_its_answer() {
    run(async {
        let worker = waypoint(AppProtocol::Http11, |mut io| {
            spawn_local(async move {
                while head(&mut io).await.is_some() {
                    io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\none").await.unwrap();
                    sleep(Duration::from_secs(1)).await;
                    io.write_all(b"two").await.unwrap();
                }
            });
        });
        let client = tunnel(&worker, PEER, CLIENT).await;
        let mut stream = open(&client, CALLED, Said::Knows).await.unwrap();
        for _ in 0..3 {
            stream.say(b"GET / HTTP/1.1\r\nho");
            let (next, nothing) = stream.replaced(&worker).await;
            assert!(nothing.is_empty());
            stream = next;
            stream.say(b"st: s\r\n\r\n");
            let mut answer = vec![];
            while !answer.ends_with(b"one") {
                answer.extend(stream.some().await.unwrap());
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 "));
            let (next, early) = stream.replaced(&worker).await;
            assert!(early.is_empty());
            stream = next;
            assert_eq!(stream.hear(3).await, b"two");
        }
    })
    .await;
}

/// By another workload, from another address, for another port, with another token, and twice.
#[tokio::test(start_paused = true)]
async fn only_who_had_a_connection_goes_on_with_it() {
    run(async {
        let worker = waypoint(AppProtocol::Tcp, |io| drop(spawn_local(echo(io))));
        let client = tunnel(&worker, PEER, CLIENT).await;
        let mut stream = open(&client, CALLED, Said::Knows).await.unwrap();
        stream.say(b"ping");
        stream.hear(4).await;
        let token = stream.leave();
        stream.rest().await;
        for (peer, from, called) in [
            ("spiffe://cluster.local/ns/app/sa/other", CLIENT, CALLED),
            (PEER, "10.0.0.98:1234", CALLED),
            (PEER, CLIENT, "10.96.0.1:81"),
        ] {
            let other = tunnel(&worker, peer, from).await;
            let refused = open(&other, called, Said::Token(token)).await.err();
            assert_eq!(refused, UNAVAILABLE, "{peer} {from} {called}");
        }
        let guessed = Said::Token(Token::new().unwrap());
        assert_eq!(open(&client, CALLED, guessed).await.err(), UNAVAILABLE);
        // What may not come here as something new may not go on either.
        assert_eq!(open(&client, "10.96.0.9:80", Said::Token(token)).await.err(), Some(404));
        let mut stream = open(&client, CALLED, Said::Token(token)).await.unwrap();
        assert_eq!(open(&client, CALLED, Said::Token(token)).await.err(), UNAVAILABLE, "it works once");
        stream.say(b"pong");
        assert_eq!(stream.hear(4).await, b"pong");
        assert_eq!(worker.shared.metrics.followed.load(Relaxed), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_goes_on_with_ends_for_its_endpoint() {
    run(async {
        let ended = Rc::new(Cell::new(false));
        let own = ended.clone();
        let worker = waypoint(AppProtocol::Tcp, move |io| {
            let own = own.clone();
            spawn_local(async move {
                echo(io).await;
                own.set(true);
            });
        });
        let client = tunnel(&worker, PEER, CLIENT).await;
        let mut stream = open(&client, CALLED, Said::Knows).await.unwrap();
        stream.say(b"ping");
        stream.hear(4).await;
        let token = stream.leave();
        stream.rest().await;
        sleep(Duration::from_secs(14)).await;
        assert!(!ended.get(), "it waits for its next stream");
        sleep(Duration::from_secs(3)).await;
        assert!(ended.get());
        assert_eq!(open(&client, CALLED, Said::Token(token)).await.err(), UNAVAILABLE);
    })
    .await;
}

/// An older ztunnel, and Istio's.
#[tokio::test(start_paused = true)]
async fn who_does_not_know_of_continuation_is_told_nothing_of_it() {
    run(async {
        let worker = waypoint(AppProtocol::Tcp, |io| drop(spawn_local(echo(io))));
        let client = tunnel(&worker, PEER, CLIENT).await;
        let mut stream = open(&client, CALLED, Said::Nothing).await.unwrap();
        assert!(!stream.knows);
        stream.say(b"all");
        let token = stream.leave();
        assert_eq!(stream.rest().await, (b"all".to_vec(), None), "trailers are an end");
        assert_eq!(open(&client, CALLED, Said::Token(token)).await.err(), UNAVAILABLE);
    })
    .await;
}

const PORTS: &[(u32, u32)] = &[(80, 8080)];

/// A service that is bound to the waypoint of this name.
fn bound_to(name: &str, vip: &str, waypoint: &str) -> pb::Service {
    let hostname = format!("{waypoint}.ns.svc.cluster.local");
    let destination =
        pb::gateway_address::Destination::Hostname(pb::NamespacedHostname { namespace: "ns".into(), hostname });
    let waypoint = Some(pb::GatewayAddress { destination: Some(destination), hbone_mtls_port: 15008 });
    pb::Service { waypoint, ..service(name, vip, PORTS) }
}

/// Whatever a member asks for: only services, and pods, that are bound to this waypoint, at their ports.
#[test]
fn only_what_is_bound_to_it_is_served() {
    let waypoint = |name: &str, ip: &str| {
        let key = format!("ns/{name}.ns.svc.cluster.local");
        pod(name, ip, &[(key.as_str(), &[(15008, 15008)][..])])
    };
    let mut alone = pod("alone", "10.0.0.3", &[]);
    alone.waypoint = bound_to("x", "10.96.0.99", "w").waypoint;
    let pods = vec![waypoint("w", "10.0.0.1"), waypoint("v", "10.0.0.2"), alone, pod("free", "10.0.0.4", &[])];
    let services = vec![
        bound_to("ours", "10.96.0.1", "w"),
        bound_to("theirs", "10.96.0.2", "v"),
        service("free", "10.96.0.3", PORTS),
        service("w", "10.96.0.8", &[(15008, 15008)]),
        service("v", "10.96.0.9", &[(15008, 15008)]),
    ];
    let mut mesh = snapshot(pods, services);
    for name in ["alone", "free"] {
        mesh.add_workload_service(&format!("Kubernetes//Pod/ns/{name}"));
    }
    let known = Snapshot { mesh, ..Snapshot::new("") };
    let own = known.mesh.workload("10.0.0.1".parse().unwrap()).cloned();
    let peer: Identity = "spiffe://cluster.local/ns/ns/sa/client".parse().unwrap();
    let ask = |method: Method, authority: &str, own: Option<&Workload>| {
        let uri = http::Uri::builder().authority(authority).build().unwrap();
        let request = http::Request::builder().method(method).uri(uri).body(()).unwrap();
        let from = "10.0.0.5:4000".parse().unwrap();
        target(&known, own, &request, peer.clone(), from).map_or_else(|(status, _)| status.as_u16(), |_| 200)
    };
    for (authority, status) in [
        ("10.96.0.1:80", 200),
        ("ours.ns.svc.cluster.local:80", 200),
        ("10.96.0.1:81", 404),
        // Another waypoint's, or nobody's: whoever decides there would be passed by.
        ("10.96.0.2:80", 403),
        ("theirs.ns.svc.cluster.local:80", 403),
        ("10.96.0.3:80", 403),
        ("10.0.0.3:9000", 200),
        ("10.0.0.4:9000", 404),
        // Nor ourselves, nor anybody by whatever the waypoint could reach.
        ("10.0.0.1:15000", 404),
        ("127.0.0.1:15000", 404),
        ("192.0.2.1:80", 404),
        ("10.96.0.1", 400),
    ] {
        assert_eq!(ask(Method::CONNECT, authority, own.as_deref()), status, "{authority}");
    }
    assert_eq!(ask(Method::GET, "10.96.0.1:80", own.as_deref()), 404);
    assert_eq!(ask(Method::CONNECT, "10.96.0.1:80", None), 503, "nobody has told who we are");
}
