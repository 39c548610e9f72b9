//! Requests in memory: a hyper client on a stream, the product from [`requests::requests`] on, and endpoints behind a connector that
//! gives streams of this process. Time is paused: it goes on when everybody waits for it, so nothing here takes any, and what is
//! measured is exact. Neither root nor ports are needed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]

mod bodies;
mod certificates;
mod compression;
mod cors;
mod deadlines;
mod drains;
mod external;
mod flows;
mod grpc_web;
mod heads;
mod limits;
mod logs;
mod mirrors;
mod retries;
mod rewrites;
mod sessions;
mod shared_limits;
mod shares;
mod sizes;
mod tokens;
mod traces;
mod upgrades;
mod websockets;

use crate::{
    downstream::{
        context::{Downstream, DownstreamTarget},
        requests,
        stream::Io,
    },
    http::codec,
    route::table::Routes,
    snapshot::Snapshot,
    testing::{LINES, run_paused as run, spawn, worker_and_drain},
    upstream::connector::{Connector, memory::Memory},
    worker::Worker,
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use karst_api::{route as ir, workload::AppProtocol};
use karst_proxy::testing;
use karst_rt::drain::Drain;
use std::{
    cell::RefCell,
    convert::Infallible,
    future::pending,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    sync::watch,
    time::Instant,
};

const KEY: &str = "ns/s.ns.svc.cluster.local";
const PORT: u16 = 8080;

type Payload = UnsyncBoxBody<Bytes, Infallible>;

fn payload(bytes: impl Into<Bytes>) -> Payload {
    Full::new(bytes.into()).boxed_unsync()
}

fn with_trailers(bytes: &'static str, trailers: HeaderMap) -> Payload {
    Full::new(Bytes::from_static(bytes.as_bytes())).with_trailers(async move { Some(Ok(trailers)) }).boxed_unsync()
}

/// Says the same each ten seconds from now on, so many times.
fn each_ten_seconds(says: &'static [u8], times: usize) -> Payload {
    Recurring { says, left: times, next: Box::pin(tokio::time::sleep(Duration::ZERO)) }.boxed_unsync()
}

struct Recurring {
    says: &'static [u8],
    left: usize,
    next: Pin<Box<tokio::time::Sleep>>,
}

impl hyper::body::Body for Recurring {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        ready!(self.next.as_mut().poll(cx));
        self.next = Box::pin(tokio::time::sleep(Duration::from_secs(10)));
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(self.says)))))
    }
}

fn get(path: &str) -> Request<Payload> {
    Request::get(path).header("host", "s").body(payload("")).unwrap()
}

fn post(bytes: impl Into<Bytes>) -> Request<Payload> {
    Request::post("/").header("host", "s").body(payload(bytes)).unwrap()
}

fn status(code: u16) -> Does {
    Does::Answer(Response::builder().status(code).body(payload("ok")).unwrap())
}

/// What an endpoint has got.
struct Seen {
    /// By its number.
    endpoint: usize,
    at: Instant,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

/// What an endpoint does with a request.
enum Does {
    Answer(Response<Payload>),
    After(Duration, Response<Payload>),
    /// It closes the connection.
    Break,
    Never,
}

/// What it does with each, by its number.
type Behaviour = Rc<dyn Fn(usize, &Seen) -> Does>;

/// Everything that the endpoints have got, in order.
type All = Rc<RefCell<Vec<Seen>>>;

/// Whoever answers requests: to hyper there is one.
type Application = Rc<dyn Fn(Request<Incoming>) -> Answering>;
type Answering = Pin<Box<dyn Future<Output = io::Result<Response<Payload>>>>>;

/// Endpoints of a service, and a waypoint before them.
struct Mesh {
    worker: Rc<Worker>,
    state: watch::Sender<Arc<Snapshot>>,
    memory: Rc<Memory>,
    seen: All,
    speaks: AppProtocol,
}

fn address(endpoint: usize) -> SocketAddr {
    (IpAddr::from([10, 0, 0, endpoint as u8 + 1]), PORT).into()
}

/// A mesh with a service that has so many endpoints.
fn snapshot(endpoints: usize, speaks: AppProtocol) -> Snapshot {
    let plain = |n: usize| {
        let mut pod = testing::pod(&format!("p{n}"), &address(n).ip().to_string(), &[(KEY, &[(80, PORT.into())])]);
        pod.tunnel_protocol = 0;
        pod
    };
    let pods = (0..endpoints).map(plain).chain([testing::pod("own", "10.0.1.1", &[])]).collect();
    let mut service = testing::service("s", "10.96.0.1", &[(80, PORT.into())]);
    service.ports[0].app_protocol = speaks as i32;
    let mut s = Snapshot::new("");
    s.mesh = testing::snapshot(pods, vec![service]);
    s
}

impl Mesh {
    /// A service with so many endpoints, of which nobody listens yet.
    fn new(endpoints: usize, speaks: AppProtocol, change: impl FnOnce(&mut Snapshot)) -> Self {
        let (own, drain) = Self::draining(endpoints, speaks, change);
        // It never begins.
        std::mem::forget(drain);
        own
    }

    /// The same, and who begins the waypoint's drain.
    fn draining(endpoints: usize, speaks: AppProtocol, change: impl FnOnce(&mut Snapshot)) -> (Self, Drain) {
        let mut s = snapshot(endpoints, speaks);
        change(&mut s);
        Self::knowing(s, speaks)
    }

    fn knowing(s: Snapshot, speaks: AppProtocol) -> (Self, Drain) {
        let memory = Rc::<Memory>::default();
        let (worker, state, drain) = worker_and_drain(s, "waypoint", Connector::Memory(memory.clone()));
        (Self { worker, state, memory, seen: Rc::default(), speaks }, drain)
    }

    /// The control plane tells of a change.
    fn tell(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = Snapshot::clone(&self.state.borrow());
        change(&mut snapshot);
        self.state.send_replace(Arc::new(snapshot));
    }

    /// One endpoint, that does this with each request, by its number.
    fn of(change: impl FnOnce(&mut Snapshot), does: impl Fn(usize, &Seen) -> Does + 'static) -> Self {
        let own = Self::new(1, AppProtocol::Http11, change);
        own.listen(0, does);
        own
    }

    /// An endpoint begins to listen.
    fn listen(&self, endpoint: usize, does: impl Fn(usize, &Seen) -> Does + 'static) {
        let two = matches!(self.speaks, AppProtocol::Http2 | AppProtocol::Grpc);
        self.serve(address(endpoint), (endpoint, two), self.seen.clone(), Rc::new(does));
    }

    /// Somebody begins to listen at an address, `two`: by HTTP/2.
    fn serve(&self, at: SocketAddr, (endpoint, two): (usize, bool), seen: All, does: Behaviour) {
        let application = move |r| -> Answering { Box::pin(answered(endpoint, r, seen.clone(), does.clone())) };
        self.open(at, two, Rc::new(application));
    }

    fn open(&self, at: SocketAddr, two: bool, application: Application) {
        self.memory.listen(at, move |io| match two {
            true => spawn(serve_http2(io, http2::Builder::new(codec::Local), application.clone())),
            false => spawn(serve_http1(io, application.clone())),
        });
    }

    /// A client that calls the service.
    fn downstream(&self) -> Downstream {
        let target = DownstreamTarget::Service(self.worker.snapshot().mesh.services[KEY].clone());
        Downstream {
            peer: "spiffe://cluster.local/ns/app/sa/web".parse().ok(),
            from: ([10, 0, 0, 99], 1234).into(),
            source: None,
            target,
            port: 80,
            to: Ipv4Addr::new(10, 96, 0, 1).into(),
            hello: None,
            permit: None,
            entered: Default::default(),
            written: Default::default(),
        }
    }

    /// A client's connection.
    fn connect(&self, two: bool) -> DuplexStream {
        let (client, server) = tokio::io::duplex(64 << 10);
        let (w, downstream) = (self.worker.clone(), self.downstream());
        spawn(async move { requests::requests(&w, Rc::new(downstream), Io::memory(server), two).await });
        client
    }

    /// The answer's head, on a connection of its own.
    async fn send(&self, r: Request<Payload>) -> Response<Incoming> {
        let io = TokioIo::new(self.connect(false));
        let (mut send, conn) = hyper::client::conn::http1::handshake(io).await.unwrap();
        spawn(conn);
        send.send_request(r).await.unwrap()
    }

    /// The same by HTTP/2.
    async fn send_two(&self, r: Request<Payload>) -> Response<Incoming> {
        let io = TokioIo::new(self.connect(true));
        let (mut send, conn) = codec::client2().handshake::<_, Payload>(io).await.unwrap();
        spawn(conn);
        send.send_request(r).await.unwrap()
    }

    /// Status and body.
    async fn ask(&self, r: Request<Payload>) -> (StatusCode, String) {
        let (parts, body) = self.send(r).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (parts.status, String::from_utf8_lossy(&bytes).into_owned())
    }

    /// How many requests the endpoints have got.
    fn count(&self) -> usize {
        self.seen.borrow().len()
    }
}

/// Serves a connection of HTTP/1.1.
async fn serve_http1(io: DuplexStream, application: Application) {
    let service = service_fn(move |r: Request<Incoming>| application(r));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
}

/// Serves one of HTTP/2.
async fn serve_http2(
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    server: http2::Builder<codec::Local>,
    application: Application,
) {
    let service = service_fn(move |r: Request<Incoming>| application(r));
    let _ = server.serve_connection(TokioIo::new(io), service).await;
}

async fn answered(endpoint: usize, r: Request<Incoming>, all: All, does: Behaviour) -> io::Result<Response<Payload>> {
    let (parts, body) = r.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?;
    let trailers = body.trailers().cloned();
    let (method, uri, headers) = (parts.method, parts.uri, parts.headers);
    let seen = Seen { endpoint, at: Instant::now(), method, uri, headers, body: body.to_bytes(), trailers };
    let what = does(all.borrow().len(), &seen);
    all.borrow_mut().push(seen);
    match what {
        Does::Answer(r) => Ok(r),
        Does::After(time, r) => {
            tokio::time::sleep(time).await;
            Ok(r)
        }
        Does::Break => Err(io::ErrorKind::ConnectionReset.into()),
        Does::Never => pending().await,
    }
}

/// One rule for everything.
fn route(change: impl FnOnce(&mut ir::HttpRule)) -> impl FnOnce(&mut Snapshot) {
    let to = ir::Destination { service: KEY.into(), weight: 1, ..Default::default() };
    let mut r = ir::HttpRule { origin: "route".into(), destinations: vec![to], ..Default::default() };
    change(&mut r);
    only(r)
}

fn only(rule: ir::HttpRule) -> impl FnOnce(&mut Snapshot) {
    let table = ir::Table { http: vec![rule], tcp: vec![] };
    let routes = Routes::new(&ir::Routes { producer: Some(table), ..Default::default() }, None).unwrap();
    move |s| drop(s.routes.insert(KEY.into(), Arc::new(routes)))
}

/// As [`route`], with retries.
fn retry(attempts: u32, change: impl FnOnce(&mut ir::Retry)) -> impl FnOnce(&mut Snapshot) {
    let mut retry = ir::Retry { attempts, backoff_ms: 10, ..Default::default() };
    change(&mut retry);
    retrying(retry)
}

fn retrying(retry: ir::Retry) -> impl FnOnce(&mut Snapshot) {
    route(|r| r.retry = Some(retry))
}

fn policy(s: &mut Snapshot, policy: ir::Policy) {
    s.backends.insert(KEY.into(), Arc::new(ir::Backend { policy: Some(policy), ..Default::default() }));
}

/// Is there a line of the access log with this in it?
fn logged(text: &str) -> bool {
    LINES.with_borrow(|lines| lines.iter().any(|l| l.contains(text)))
}
