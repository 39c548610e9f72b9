//! Connections to endpoints: through a tunnel to a member of the mesh, whose identity must be the workload's; as they are to
//! others. HTTP/1.1 connections are kept for the next request, HTTP/2 ones are shared.

use crate::{
    cluster::{endpoint::LbEndpoint, endpoint_set::EndpointSet},
    downstream::stream::Io,
    http::{body::Counted, codec},
    snapshot::Snapshot,
    telemetry::flag::ResponseFlag,
    upstream::tls::{self, Speaks},
    worker::Worker,
};
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::TokioIo;
use karst_api::route as ir;
use karst_core::{Identity, addr::is_host, limits};
use karst_hbone::pool::Lease;
use karst_proxy::{
    dial::{self, Candidate, DialError, Target},
    state::{self, Workload},
    untold::Told,
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

/// Idle connections kept for an endpoint by one worker.
const IDLE: usize = 64;
/// Idle connections kept by one worker.
const ALL_IDLE: usize = 4096;
/// A connection without requests is closed after this time where no rule says otherwise (Istio: an hour).
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Between two looks at those that are kept.
pub const SWEEP: Duration = Duration::from_secs(1);
/// Requests at a time on one HTTP/2 connection; then another is opened.
const H2_STREAMS: usize = 100;

/// Why there is no connection to an endpoint: nobody has seen the request.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It could not be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It took longer than the destination's rules allow.
    #[error("connection timeout")]
    Timeout,
    /// Its name leads to nobody who may be called.
    #[error("{0} has no address that may be used")]
    NoAddress(Arc<str>),
    /// See [`lent`].
    #[error("{0}")]
    Lent(String),
    /// It may be a member's.
    #[error("{0} is in a node's pod range, and the controller has not said in time who is there")]
    Untold(IpAddr),
    /// TLS of ours that it does not take, or that cannot be spoken.
    #[error("{0}")]
    Tls(String),
    /// HTTP could not be begun.
    #[error("{0}")]
    Http(#[from] hyper::Error),
}

impl ConnectError {
    /// May another endpoint be tried?
    pub fn may_retry(&self) -> bool {
        match self {
            ConnectError::Dial(e) => e.may_retry(),
            ConnectError::Timeout
            | ConnectError::NoAddress(_)
            | ConnectError::Lent(_)
            | ConnectError::Untold(_)
            | ConnectError::Tls(_)
            | ConnectError::Http(_) => true,
        }
    }

    /// Does it say something of the endpoint? Not what is wrong with us, with the request, or with what is known.
    pub fn is_of_endpoint(&self) -> bool {
        match self {
            ConnectError::Dial(e) => e.may_retry(),
            ConnectError::Lent(_) | ConnectError::Untold(_) => false,
            ConnectError::Timeout | ConnectError::NoAddress(_) | ConnectError::Tls(_) | ConnectError::Http(_) => true,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The endpoint has refused the stream: it has not looked at the request.
    #[error("{0}")]
    Refused(String),
    /// The connection broke before there was an answer.
    #[error("{0}")]
    Reset(String),
    /// The answer is not HTTP, or its head is too large.
    #[error("{0}")]
    Protocol(String),
}

impl Failure {
    /// As logs and metrics have it.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Failure::Connect(_) => ResponseFlag::ConnectFailure,
            Failure::Refused(_) | Failure::Reset(_) => ResponseFlag::Reset,
            Failure::Protocol(_) => ResponseFlag::ProtocolError,
        }
    }

    /// See [`ConnectError::is_of_endpoint`].
    pub fn is_of_endpoint(&self) -> bool {
        match self {
            Failure::Connect(e) => e.is_of_endpoint(),
            Failure::Refused(_) | Failure::Reset(_) | Failure::Protocol(_) => true,
        }
    }

    /// Is it one after which the route wants the request to be tried again? `sent`: the endpoint may have read something of it.
    pub fn is_retryable(&self, r: &ir::Retry, sent: bool) -> bool {
        let unsent = r.reset_before_request && !sent;
        match self {
            Failure::Connect(e) => {
                e.may_retry() && (r.connect_failure || r.server_error || r.gateway_error || r.reset || unsent)
            }
            Failure::Refused(_) => r.refused_stream || r.server_error || r.reset || unsent,
            Failure::Reset(_) | Failure::Protocol(_) => r.reset || r.server_error || r.gateway_error || unsent,
        }
    }
}

/// A worker's connections.
#[derive(Default)]
pub struct Pool {
    h1: RefCell<HashMap<PoolKey, Vec<Idle>>>,
    h2: RefCell<HashMap<PoolKey, Vec<Shared>>>,
}

/// An end of connections: whose, where, and with which TLS of ours. (What was opened by other rules for TLS is not used again.)
type PoolKey = (Arc<str>, SocketAddr, Option<Arc<[u8]>>);
type Sender1 = http1::SendRequest<Counted>;
type Sender2 = http2::SendRequest<Counted>;

struct Idle {
    send: Sender1,
    /// Requests that it has had.
    requests: u32,
    /// Kept so long.
    until: Instant,
}

#[derive(Clone)]
struct Shared {
    send: Sender2,
    active: Rc<Cell<usize>>,
    /// Without requests it is kept so long.
    until: Rc<Cell<Instant>>,
}

impl Pool {
    /// Closes what has been idle for too long, and forgets endpoints without connections.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut left = ALL_IDLE;
        self.h1.borrow_mut().retain(|_, all| {
            all.retain(|i| i.until > now && !i.send.is_closed());
            // Those that were used last are at the end.
            all.drain(..all.len().saturating_sub(left));
            left -= all.len();
            !all.is_empty()
        });
        self.h2.borrow_mut().retain(|_, all| {
            all.retain(|c| !c.send.is_closed() && (c.active.get() > 0 || c.until.get() > now));
            !all.is_empty()
        });
    }
}

/// How long a destination's connections are kept without requests.
fn idle_timeout(s: &EndpointSet) -> Duration {
    match s.policy.limits.as_ref().map_or(0, |l| l.idle_timeout_ms) {
        0 => IDLE_TIMEOUT,
        ms => Duration::from_millis(ms),
    }
}

/// What becomes of a connection after the answer.
pub enum ConnectionDisposition {
    /// To be kept for the next request, once the answer has been read.
    Reuse { pool: Rc<Pool>, pool_key: PoolKey, send: Sender1, requests: u32, idle: Duration },
    /// One of several on the connection.
    Multiplexed(#[allow(dead_code, reason = "held for its drop, which gives the place back")] InFlight),
    /// Ends with the answer, or lives on as something else.
    Close(#[allow(dead_code, reason = "held for its drop, which gives the place back")] Option<Lease>),
}

impl ConnectionDisposition {
    /// The answer has been read to its end.
    pub fn release(self) {
        match self {
            ConnectionDisposition::Reuse { pool, pool_key, send, requests, idle: timeout } => {
                if !send.is_closed() {
                    let mut all = pool.h1.borrow_mut();
                    let idle = all.entry(pool_key).or_default();
                    idle.retain(|i| !i.send.is_closed());
                    if idle.len() < IDLE {
                        idle.push(Idle { send, requests, until: Instant::now() + timeout });
                    }
                }
            }
            other => drop(other),
        }
    }
}

/// A request on a shared connection, counted until dropped.
pub struct InFlight {
    requests: Rc<Cell<usize>>,
    until: Rc<Cell<Instant>>,
    idle: Duration,
}

impl InFlight {
    fn new(c: &Shared, idle: Duration) -> Self {
        c.active.set(c.active.get() + 1);
        Self { requests: c.active.clone(), until: c.until.clone(), idle }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.requests.set(self.requests.get().saturating_sub(1));
        self.until.set(Instant::now() + self.idle);
    }
}

/// One attempt to reach a destination: by which endpoint, and for whom.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    pub set: &'a EndpointSet,
    pub member: &'a LbEndpoint,
    /// The client.
    pub from: SocketAddr,
    /// Is there another endpoint that would be tried if this one does not answer?
    pub has_other: &'a dyn Fn() -> bool,
    /// Set while the attempt waits for the control plane's word and not for the endpoint: its end then says nothing of that.
    pub held: &'a Cell<bool>,
}

impl<'a> Attempt<'a> {
    /// What is learnt of the endpoint counts where there are others.
    fn candidate(&self) -> Option<Candidate<'a>> {
        let Attempt { set, member, has_other, .. } = *self;
        (set.members.len() > 1).then_some(Candidate { endpoint: &*member.state, has_other })
    }
}

/// Opens a byte stream to an endpoint. Its rules say how long that may take; the control plane's word has its own time.
///
/// # Errors
/// See [`ConnectError`].
pub async fn open(w: &Rc<Worker>, a: &Attempt<'_>, speaks: Speaks) -> Result<(Io, Option<Lease>), ConnectError> {
    let s = a.set;
    let limit = match s.policy.limits.as_ref().map_or(0, |l| l.connect_timeout_ms) {
        0 => limits::CONNECT_TIMEOUT,
        ms => Duration::from_millis(ms),
    };
    let late = || {
        if let Some(c) = a.candidate() {
            c.endpoint.avoid();
        }
        ConnectError::Timeout
    };
    let began = Instant::now();
    let (address, workload) = match a.member.address.ip().is_unspecified() {
        // Rare, and large: not in every request's task.
        true => tokio::time::timeout(limit, Box::pin(found(w, a))).await.map_err(|_| late())??,
        false => (a.member.address, a.member.workload.clone()),
    };
    let limit = limit.saturating_sub(began.elapsed());
    let workload = told(w, a, address.ip(), workload).await?;
    let whole = async {
        let (io, lease) = connect(w, a, address, workload).await?;
        match s.policy.tls.as_ref().filter(|_| speaks != Speaks::Tls) {
            None => Ok((io, lease)),
            Some(t) => {
                let io = Box::pin(tls::shake(&w.snapshot(), s, t, io, speaks)).await;
                Ok((io.map_err(ConnectError::Tls)?, lease))
            }
        }
    };
    tokio::time::timeout(limit, whole).await.map_err(|_| late())?
}

/// May this address be an endpoint that is known by its name, or by what was called? Not ourselves; and sent to a service's
/// address, it would go past the mesh. (An entry may well have its endpoint's address.)
pub fn is_usable(w: &Worker, s: &Snapshot, ip: IpAddr) -> bool {
    fits(&s.mesh, w.own(s).map(|own| &**own), ip)
}

fn fits(mesh: &state::Snapshot, own: Option<&Workload>, ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let is_own = own.is_some_and(|o| o.ips.contains(&ip));
    let mut called = mesh.by_vip.get(&ip).into_iter().flatten().filter_map(|k| mesh.services.get(k));
    is_host(ip) && !is_own && !called.any(|s| s.canonical)
}

/// Why a member is not called with our identity: its policies may let us in for the sake of its own services' routes and policies,
/// past which nobody is to come by us, neither by what he calls nor by endpoints that he writes.
fn lent(s: &EndpointSet, workload: &Workload) -> Option<String> {
    if !workload.hbone {
        return None;
    }
    if s.dynamic_endpoint.is_some() {
        return Some(format!("{} is a member of the mesh, which is called by its own service", s.host));
    }
    // A waypoint is asked, not called.
    (s.via_waypoint.is_none() && workload.namespace != s.service.namespace).then(|| {
        format!(
            "{}: the endpoint is {}/{}, a member of the mesh in another namespace: route to a service of that namespace",
            s.host, workload.namespace, workload.name
        )
    })
}

/// Where the name of an endpoint leads, and to whom.
async fn found(w: &Worker, a: &Attempt<'_>) -> Result<(SocketAddr, Arc<Workload>), ConnectError> {
    let m = a.member;
    let mut ips = w.dialer.lookup(&m.workload.hostname, true).await?;
    let snapshot = w.snapshot();
    ips.retain(|ip| is_usable(w, &snapshot, *ip));
    if ips.is_empty() {
        return Err(ConnectError::NoAddress(m.workload.hostname.clone()));
    }
    let ip = ips[w.random(ips.len() as u64) as usize];
    // A name may lead to a member of the mesh: then it is spoken to as one.
    let workload = snapshot.mesh.workload(ip).unwrap_or(&m.workload).clone();
    Ok((SocketAddr::new(ip, m.address.port()), workload))
}

/// Is it spoken to without a tunnel? (A waypoint takes tunnels whatever it is itself.)
fn is_plain(s: &EndpointSet, workload: &Workload) -> bool {
    !workload.hbone && s.via_waypoint.is_none()
}

/// Who an endpoint is, once it is known who is at its address.
async fn told(w: &Worker, a: &Attempt<'_>, ip: IpAddr, workload: Arc<Workload>) -> Result<Arc<Workload>, ConnectError> {
    if !is_plain(a.set, &workload) || !w.shared.state.borrow().mesh.is_untold(ip) {
        return Ok(workload);
    }
    a.held.set(true);
    // Rare, and large: not in every request's task.
    let told = Box::pin(w.told(ip)).await;
    a.held.set(false);
    match told {
        Told::Known => Ok(w.snapshot().mesh.member(&workload, ip).clone()),
        Told::Nobody => Ok(workload),
        Told::Nothing => Err(ConnectError::Untold(ip)),
    }
}

async fn connect(
    w: &Rc<Worker>,
    a: &Attempt<'_>,
    address: SocketAddr,
    workload: Arc<Workload>,
) -> Result<(Io, Option<Lease>), ConnectError> {
    let s = a.set;
    if let Some(why) = lent(s, &workload) {
        return Err(ConnectError::Lent(why));
    }
    if is_plain(s, &workload) {
        let tcp = w.dialer.connect(&w.connector, None, address, a.candidate()).await?;
        return Ok((Io::socket(tcp), None));
    }
    // A waypoint says itself where it takes tunnels.
    let port = if s.via_waypoint.is_some() { address.port() } else { karst_hbone::PORT };
    // Who answers must be that workload, or who the service says it is.
    let others = s.service.sans.iter().filter(|_| s.via_waypoint.is_none());
    let expected: Vec<Identity> = [workload.identity.clone()].into_iter().chain(others.cloned()).collect();
    let target = Target {
        connector: &w.connector,
        pod: "",
        own: &w.shared.identity,
        peer: &workload,
        address: SocketAddr::new(address.ip(), port),
        expected: &expected,
        authority: &s.via_waypoint.clone().unwrap_or_else(|| address.to_string()),
        headers: dial::headers(s.baggage.as_ref(), a.from, Some(&s.service.hostname)),
    };
    let o = w.dialer.tunnel(&target, a.candidate()).await?;
    Ok((Io::tunnel(o.send, o.recv, w.lingering.clone()), Some(o.lease)))
}

/// Opens an HTTP/1.1 connection; it goes on while it is polled, on its place on a tunnel.
async fn dial_http1(
    w: &Rc<Worker>,
    a: &Attempt<'_>,
) -> Result<(Sender1, http1::Connection<TokioIo<Io>, Counted>, Option<Lease>), ConnectError> {
    let (io, lease) = open(w, a, Speaks::Http1).await?;
    let (send, conn) = codec::client1().handshake(TokioIo::new(io)).await?;
    Ok((send, conn, lease))
}

/// Which connections a request may use. Asked for each request: one that is kept may have been opened for another service, which
/// could lend the endpoint our identity.
fn pool_key(a: &Attempt<'_>) -> Result<PoolKey, ConnectError> {
    match lent(a.set, &a.member.workload) {
        Some(why) => Err(ConnectError::Lent(why)),
        None => Ok((a.member.workload.uid.clone(), a.member.address, a.set.pool_partition.clone())),
    }
}

/// Sends a request on an HTTP/1.1 connection of its own, and gives it back with the answer. `sent`: something of it may have been.
///
/// # Errors
/// See [`Failure`].
pub async fn http1(
    w: &Rc<Worker>,
    a: &Attempt<'_>,
    mut r: Request<Counted>,
    sent: &Cell<bool>,
) -> Result<(Response<Incoming>, ConnectionDisposition), Failure> {
    let (s, pool_key) = (a.set, pool_key(a)?);
    let most = s.policy.limits.as_ref().map_or(0, |l| l.requests_per_connection);
    loop {
        let kept = w.upstream.h1.borrow_mut().get_mut(&pool_key).and_then(Vec::pop);
        let fresh = kept.is_none();
        let (mut send, requests) = match kept {
            Some(i) => (i.send, i.requests),
            None => {
                let (send, conn, lease) = dial_http1(w, a).await?;
                tokio::task::spawn_local(async move {
                    let _ = conn.await;
                    drop(lease);
                });
                (send, 0)
            }
        };
        if send.ready().await.is_err() {
            match fresh {
                true => return Err(Failure::Reset("the connection was closed at once".into())),
                false => continue,
            }
        }
        sent.set(true);
        match send.try_send_request(r).await {
            Ok(answer) => {
                let requests = requests + 1;
                let after = match most > 0 && requests >= most {
                    true => ConnectionDisposition::Close(None),
                    false => ConnectionDisposition::Reuse {
                        pool: w.upstream.clone(),
                        pool_key,
                        send,
                        requests,
                        idle: idle_timeout(s),
                    },
                };
                return Ok((answer, after));
            }
            Err(mut e) => match e.take_message() {
                // A kept connection that was closed meanwhile: nobody has seen the request.
                Some(back) if !fresh => {
                    sent.set(false);
                    r = back;
                }
                unsent => {
                    sent.set(unsent.is_none());
                    return Err(failure(e.error()));
                }
            },
        }
    }
}

/// Sends a request that may change the protocol (WebSocket), on a connection that is used for nothing else. `sent`: something of it
/// may have been.
///
/// # Errors
/// See [`Failure`].
pub async fn upgrade(
    w: &Rc<Worker>,
    a: &Attempt<'_>,
    r: Request<Counted>,
    sent: &Cell<bool>,
) -> Result<(Response<Incoming>, ConnectionDisposition), Failure> {
    let (mut send, conn, lease) = dial_http1(w, a).await?;
    tokio::task::spawn_local(async move {
        let _ = conn.with_upgrades().await;
    });
    sent.set(true);
    let answer = send.send_request(r).await.map_err(|e| failure(&e))?;
    Ok((answer, ConnectionDisposition::Close(lease)))
}

/// Sends a request on a shared HTTP/2 connection. `sent`: something of it may have been.
///
/// # Errors
/// See [`Failure`].
pub async fn http2(
    w: &Rc<Worker>,
    a: &Attempt<'_>,
    mut r: Request<Counted>,
    sent: &Cell<bool>,
) -> Result<(Response<Incoming>, ConnectionDisposition), Failure> {
    let (s, pool_key) = (a.set, pool_key(a)?);
    loop {
        let kept = {
            let mut all = w.upstream.h2.borrow_mut();
            let conns = all.entry(pool_key.clone()).or_default();
            conns.retain(|c| !c.send.is_closed());
            conns.iter().find(|c| c.active.get() < H2_STREAMS).cloned()
        };
        let fresh = kept.is_none();
        let mut c = match kept {
            Some(c) => c,
            None => {
                let (io, lease) = open(w, a, Speaks::Http2).await?;
                let (send, conn) =
                    codec::client2().handshake::<_, Counted>(TokioIo::new(io)).await.map_err(ConnectError::from)?;
                tokio::task::spawn_local(async move {
                    let _ = conn.await;
                    drop(lease);
                });
                let until = Rc::new(Cell::new(Instant::now()));
                let c = Shared { send, active: Rc::default(), until };
                w.upstream.h2.borrow_mut().entry(pool_key.clone()).or_default().push(c.clone());
                c
            }
        };
        let after = ConnectionDisposition::Multiplexed(InFlight::new(&c, idle_timeout(s)));
        if c.send.ready().await.is_err() && !fresh {
            continue;
        }
        sent.set(true);
        match c.send.try_send_request(r).await {
            Ok(answer) => return Ok((answer, after)),
            Err(mut e) => match e.take_message() {
                Some(back) if !fresh => {
                    sent.set(false);
                    r = back;
                }
                unsent => {
                    sent.set(unsent.is_none());
                    return Err(failure(e.error()));
                }
            },
        }
    }
}

/// Why there is no answer to a request that was sent.
fn failure(e: &hyper::Error) -> Failure {
    let text = error_chain(e);
    if e.is_parse() {
        return Failure::Protocol(format!("{text}: {}", codec::bad_head()));
    }
    let mut cause = std::error::Error::source(e);
    while let Some(c) = cause {
        if let Some(h) = c.downcast_ref::<h2::Error>() {
            return match h.reason() {
                // The endpoint says that it has not looked at the request (RFC 9113 §8.7); what we say ourselves proves nothing.
                Some(h2::Reason::REFUSED_STREAM) if h.is_remote() => Failure::Refused(text),
                Some(h2::Reason::PROTOCOL_ERROR) if !h.is_remote() => {
                    Failure::Protocol(format!("{text}: {}", codec::bad_head()))
                }
                _ => Failure::Reset(text),
            };
        }
        cause = c.source();
    }
    Failure::Reset(text)
}

fn error_chain(e: &hyper::Error) -> String {
    let mut text = e.to_string();
    let mut cause = std::error::Error::source(e);
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::{
        cluster::endpoint_set::{
            ClusterKey, DynamicEndpoint,
            tests::{KEY, set},
        },
        downstream::serve::{self, Downstream, DownstreamTarget},
        testing::{OWN, Plane, member},
    };
    use karst_api::{
        route::PodRanges,
        workload::{self as pb, Service},
    };
    use karst_hbone::client::ClientError;
    use karst_proxy::{
        state,
        testing::{Ca, pod, service, snapshot},
    };
    use prost::Message;
    use std::io;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::{LocalSet, spawn_local},
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
        };
        let (mut client, io) = tokio::io::duplex(1 << 16);
        let served = async { serve::requests(w, Rc::new(downstream), io, false).await };
        let asked = async {
            client.write_all(b"GET / HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        timeout(PATIENCE, async { tokio::join!(served, asked).1 }).await.unwrap()
    }

    #[tokio::test]
    async fn a_lost_endpoint_is_not_waited_for() {
        let run = async {
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
        };
        LocalSet::new().run_until(run).await;
    }

    /// What becomes of a connection to the one endpoint, which takes no tunnels.
    async fn to_endpoint(w: Rc<Worker>) -> Result<(), ConnectError> {
        let key = ClusterKey { service: KEY.into(), port: 80, subset: Arc::default(), client: Arc::default() };
        let set = w.set(&w.snapshot(), &key, "10.96.0.1".parse().unwrap()).unwrap();
        let (member, from) = (&set.members[0], "127.77.0.1:5".parse().unwrap());
        let attempt = Attempt { set: &set, member, from, has_other: &|| false, held: &Cell::default() };
        open(&w, &attempt, Speaks::Anything).await.map(drop)
    }

    #[tokio::test]
    async fn what_may_be_a_members_address_is_held() {
        let run = async {
            let entry = pb::Workload {
                uid: "Kubernetes/networking.istio.io/WorkloadEntry/ns/e".into(),
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
            spawn_local(async move {
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
                let names = timeout(PATIENCE, plane.asker.names()).await.unwrap();
                assert_eq!(names, ["/127.77.2.1"]);
                plane.asker.answered(&names);
            }
            timeout(PATIENCE, held).await.unwrap().unwrap().unwrap();
            // That holds.
            timeout(limits::ASK_AGAIN / 2, to_endpoint(plane.worker.clone())).await.unwrap().unwrap();
            sleep(Duration::from_millis(50)).await;
            assert_eq!(taken.get(), 3);
        };
        LocalSet::new().run_until(run).await;
    }

    #[test]
    fn flags_and_retries_follow_from_causes() {
        let status = |s: http::StatusCode| ConnectError::from(DialError::from(ClientError::Status(s)));
        let nobody = || "spiffe://cluster.local/ns/x/sa/x".parse().unwrap();
        let all = [
            (Failure::from(ConnectError::Timeout), ResponseFlag::ConnectFailure, true),
            (status(http::StatusCode::SERVICE_UNAVAILABLE).into(), ResponseFlag::ConnectFailure, true),
            (status(http::StatusCode::UNAUTHORIZED).into(), ResponseFlag::ConnectFailure, false),
            (status(http::StatusCode::NOT_FOUND).into(), ResponseFlag::ConnectFailure, false),
            (ConnectError::from(DialError::NoCertificate(nobody())).into(), ResponseFlag::ConnectFailure, false),
            (ConnectError::from(DialError::NoAnswer(limits::FIRST_TRY)).into(), ResponseFlag::ConnectFailure, true),
            (Failure::Refused("x".into()), ResponseFlag::Reset, true),
            // It may have been seen.
            (Failure::Reset("x".into()), ResponseFlag::Reset, false),
            (Failure::Protocol("x".into()), ResponseFlag::ProtocolError, false),
        ];
        for (f, flag, again) in &all {
            assert_eq!((f.flag(), f.is_retryable(&ir::Retry::istio(), true)), (*flag, *again), "{f}");
            assert!(!f.is_retryable(&ir::Retry::default(), false), "{f}");
            let is_answer = matches!(f, Failure::Reset(_) | Failure::Protocol(_));
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
            (ConnectError::Lent(String::new()), false),
            (DialError::NoCertificate(nobody).into(), false),
        ] {
            let text = e.to_string();
            assert_eq!(Failure::from(e).is_of_endpoint(), of_endpoint, "{text}");
        }
    }

    #[test]
    fn our_identity_is_not_lent_to_whom_writes_an_address() {
        let mut s = set(1, karst_api::route::Policy::default());
        let own = (*s.members[0].workload).clone();
        let other = Workload { namespace: "other".into(), ..own.clone() };
        let outside = Workload { hbone: false, ..other.clone() };
        assert_eq!((lent(&s, &own), lent(&s, &outside)), (None, None));
        let why = lent(&s, &other).unwrap();
        assert!(why.contains("the endpoint is other/p0, a member of the mesh in another namespace"), "{why}");
        s.via_waypoint = Some("10.96.0.1:80".into());
        assert_eq!(lent(&s, &other), None, "another namespace's waypoint");
        (s.via_waypoint, s.dynamic_endpoint) = (None, Some(DynamicEndpoint::Name));
        assert!(lent(&s, &own).unwrap().contains("called by its own service"));
    }

    #[test]
    fn an_endpoint_that_is_written_is_neither_ourselves_nor_a_service_nor_nobody() {
        let pods = vec![pod("own", "10.0.1.1", &[]), pod("p0", "10.0.0.1", &[])];
        let called = Service { canonical: true, ..service("s", "10.96.0.1", &[(80, 8080)]) };
        let mesh = snapshot(pods, vec![called]);
        let own = mesh.workload("10.0.1.1".parse().unwrap()).cloned();
        let fits = |ip: &str| fits(&mesh, own.as_deref(), ip.parse::<IpAddr>().unwrap());
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
}
