//! Connections to endpoints: through a tunnel to a member of the mesh, whose identity must be the workload's; as they are to
//! others. HTTP/1.1 connections are kept for the next request, HTTP/2 ones are shared.

use crate::{
    body::Counted,
    cluster::{Member, Set},
    codec,
    control::Snapshot,
    origin::{self, Speaks},
    stream::Io,
    worker::Worker,
};
use http::{HeaderMap, Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::TokioIo;
use karst_core::{Identity, addr::is_host, limits};
use karst_hbone::{
    client::{self, ClientError},
    pool::Lease,
};
use karst_proxy::state::{self, Workload};
use karst_rt::socket::Origin;
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

/// Which tunnel: to where, and who must answer.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    to: SocketAddr,
    /// The workload that has that address: with another one there, the tunnel is another.
    peer: Arc<str>,
    expected: Identity,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// There is no connection: nobody has seen the request.
    Connect(String),
    /// The endpoint has refused the stream: it has not looked at the request.
    Refused(String),
    /// The connection broke before there was an answer.
    Reset(String),
    /// The answer is not HTTP, or its head is too large.
    Protocol(String),
}

/// A worker's connections.
#[derive(Default)]
pub struct Pool {
    h1: RefCell<HashMap<End, Vec<Idle>>>,
    h2: RefCell<HashMap<End, Vec<Shared>>>,
}

/// An end of connections: whose, where, and with which TLS of ours. (What was opened by other rules for TLS is not used again.)
type End = (Arc<str>, SocketAddr, Option<Arc<[u8]>>);
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
fn idle_timeout(s: &Set) -> Duration {
    match s.policy.limits.as_ref().map_or(0, |l| l.idle_timeout_ms) {
        0 => IDLE_TIMEOUT,
        ms => Duration::from_millis(ms),
    }
}

/// What becomes of a connection after the answer.
pub enum After {
    /// To be kept for the next request, once the answer has been read.
    Keep { pool: Rc<Pool>, end: End, send: Sender1, requests: u32, idle: Duration },
    /// One of several on the connection.
    Shared(#[allow(dead_code)] Active),
    /// Ends with the answer, or lives on as something else.
    Alone(#[allow(dead_code)] Option<Lease>),
}

impl After {
    /// The answer has been read to its end.
    pub fn done(self) {
        match self {
            After::Keep { pool, end, send, requests, idle: timeout } => {
                if !send.is_closed() {
                    let mut all = pool.h1.borrow_mut();
                    let idle = all.entry(end).or_default();
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
pub struct Active {
    requests: Rc<Cell<usize>>,
    until: Rc<Cell<Instant>>,
    idle: Duration,
}

impl Active {
    fn new(c: &Shared, idle: Duration) -> Self {
        c.active.set(c.active.get() + 1);
        Self { requests: c.active.clone(), until: c.until.clone(), idle }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.requests.set(self.requests.get().saturating_sub(1));
        self.until.set(Instant::now() + self.idle);
    }
}

/// Opens a byte stream to an endpoint.
///
/// # Errors
/// Why not, in words.
pub async fn open(
    w: &Rc<Worker>,
    s: &Set,
    m: &Member,
    from: SocketAddr,
    speaks: Speaks,
) -> Result<(Io, Option<Lease>), String> {
    let limit = match s.policy.limits.as_ref().map_or(0, |l| l.connect_timeout_ms) {
        0 => limits::CONNECT_TIMEOUT,
        ms => Duration::from_millis(ms),
    };
    let whole = async {
        let (io, lease) = connect(w, s, m, from).await?;
        match s.policy.tls.as_ref().filter(|_| speaks != Speaks::Tls) {
            None => Ok((io, lease)),
            Some(t) => Ok((Box::pin(origin::shake(&w.snapshot(), s, t, io, speaks)).await?, lease)),
        }
    };
    match tokio::time::timeout(limit, whole).await {
        Ok(r) => r,
        Err(_) => Err("connection timeout".into()),
    }
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
fn lent(s: &Set, workload: &Workload) -> Option<String> {
    if !workload.hbone {
        return None;
    }
    if s.follows.is_some() {
        return Some(format!("{} is a member of the mesh, which is called by its own service", s.host));
    }
    // A waypoint is asked, not called.
    (s.through.is_none() && workload.namespace != s.service.namespace).then(|| {
        format!(
            "{}: the endpoint is {}/{}, a member of the mesh in another namespace: route to a service of that namespace",
            s.host, workload.namespace, workload.name
        )
    })
}

async fn connect(w: &Rc<Worker>, s: &Set, m: &Member, from: SocketAddr) -> Result<(Io, Option<Lease>), String> {
    let (mut address, mut workload) = (m.address, m.workload.clone());
    if address.ip().is_unspecified() {
        let mut ips = Box::pin(w.resolver.lookup(&m.workload.hostname, true)).await?;
        let snapshot = w.snapshot();
        ips.retain(|ip| is_usable(w, &snapshot, *ip));
        if ips.is_empty() {
            return Err(format!("{} has no address that may be used", m.workload.hostname));
        }
        address.set_ip(ips[w.random(ips.len() as u64) as usize]);
        // A name may lead to a member of the mesh: then it is spoken to as one.
        if let Some(x) = snapshot.mesh.workload(address.ip()) {
            workload = x.clone();
        }
    }
    if let Some(why) = lent(s, &workload) {
        return Err(why);
    }
    // A waypoint takes tunnels whatever it is itself.
    if !workload.hbone && s.through.is_none() {
        let tcp = Origin::host().connect(address, limits::CONNECT_TIMEOUT).await.map_err(|e| e.to_string())?;
        return Ok((Io::socket(tcp), None));
    }
    let mut secrets = w.shared.secrets.clone();
    let own = &w.shared.identity;
    let creds = secrets.get(own, limits::HOLD_TIMEOUT).await.ok_or("we have no certificate")?;
    // A waypoint says itself where it takes tunnels.
    let port = if s.through.is_some() { address.port() } else { karst_hbone::PORT };
    let to = SocketAddr::new(address.ip(), port);
    let key = TunnelKey { to, peer: workload.uid.clone(), expected: workload.identity.clone() };
    // Who answers must be that workload, or who the service says it is.
    let others = s.service.sans.iter().filter(|_| s.through.is_none());
    let expected: Vec<Identity> = [workload.identity.clone()].into_iter().chain(others.cloned()).collect();
    let dial = || {
        let (settings, creds, expected) = (w.settings.clone(), creds.clone(), expected.clone());
        async move {
            let tcp = Origin::host()
                .connect(to, limits::CONNECT_TIMEOUT)
                .await
                .map_err(|e| ClientError::Connect(to, e.to_string()))?;
            client::handshake(tcp, to, &creds, &expected, &settings).await
        }
    };
    let mut headers = HeaderMap::with_capacity(1);
    if let Ok(v) = format!("for=\"{from}\";host={}", s.service.hostname).try_into() {
        headers.insert("forwarded", v);
    }
    let target = s.through.clone().unwrap_or_else(|| address.to_string());
    let o = w.tunnels.open(&key, dial, &target, headers).await.map_err(|e| e.to_string())?;
    Ok((Io::tunnel(o.send, o.recv, w.lingering.clone()), Some(o.lease)))
}

/// Opens an HTTP/1.1 connection; it goes on while it is polled, on its place on a tunnel.
async fn dial_http1(
    w: &Rc<Worker>,
    s: &Set,
    m: &Member,
    from: SocketAddr,
) -> Result<(Sender1, http1::Connection<TokioIo<Io>, Counted>, Option<Lease>), Failure> {
    let (io, lease) = open(w, s, m, from, Speaks::Http1).await.map_err(Failure::Connect)?;
    let (send, conn) =
        codec::client1().handshake(TokioIo::new(io)).await.map_err(|e| Failure::Connect(e.to_string()))?;
    Ok((send, conn, lease))
}

/// Which connections a request may use. Asked for each request: one that is kept may have been opened for another service, which
/// could lend the endpoint our identity.
fn end(s: &Set, m: &Member) -> Result<End, Failure> {
    match lent(s, &m.workload) {
        Some(why) => Err(Failure::Connect(why)),
        None => Ok((m.workload.uid.clone(), m.address, s.apart.clone())),
    }
}

/// Sends a request on an HTTP/1.1 connection of its own, and gives it back with the answer. `sent`: something of it may have been.
///
/// # Errors
/// See [`Failure`].
pub async fn http1(
    w: &Rc<Worker>,
    s: &Set,
    m: &Member,
    from: SocketAddr,
    mut r: Request<Counted>,
    sent: &Cell<bool>,
) -> Result<(Response<Incoming>, After), Failure> {
    let end = end(s, m)?;
    let most = s.policy.limits.as_ref().map_or(0, |l| l.requests_per_connection);
    loop {
        let kept = w.upstream.h1.borrow_mut().get_mut(&end).and_then(Vec::pop);
        let fresh = kept.is_none();
        let (mut send, requests) = match kept {
            Some(i) => (i.send, i.requests),
            None => {
                let (send, conn, lease) = dial_http1(w, s, m, from).await?;
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
                    true => After::Alone(None),
                    false => After::Keep { pool: w.upstream.clone(), end, send, requests, idle: idle_timeout(s) },
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

/// Sends a request that may change the protocol (WebSocket), on a connection that is used for nothing else.
///
/// # Errors
/// See [`Failure`].
pub async fn upgrade(
    w: &Rc<Worker>,
    s: &Set,
    m: &Member,
    from: SocketAddr,
    r: Request<Counted>,
) -> Result<(Response<Incoming>, After), Failure> {
    let (mut send, conn, lease) = dial_http1(w, s, m, from).await?;
    tokio::task::spawn_local(async move {
        let _ = conn.with_upgrades().await;
    });
    let answer = send.send_request(r).await.map_err(|e| failure(&e))?;
    Ok((answer, After::Alone(lease)))
}

/// Sends a request on a shared HTTP/2 connection. `sent`: something of it may have been.
///
/// # Errors
/// See [`Failure`].
pub async fn http2(
    w: &Rc<Worker>,
    s: &Set,
    m: &Member,
    from: SocketAddr,
    mut r: Request<Counted>,
    sent: &Cell<bool>,
) -> Result<(Response<Incoming>, After), Failure> {
    let end = end(s, m)?;
    loop {
        let kept = {
            let mut all = w.upstream.h2.borrow_mut();
            let conns = all.entry(end.clone()).or_default();
            conns.retain(|c| !c.send.is_closed());
            conns.iter().find(|c| c.active.get() < H2_STREAMS).cloned()
        };
        let fresh = kept.is_none();
        let mut c = match kept {
            Some(c) => c,
            None => {
                let (io, lease) = open(w, s, m, from, Speaks::Http2).await.map_err(Failure::Connect)?;
                let (send, conn) = codec::client2()
                    .handshake::<_, Counted>(TokioIo::new(io))
                    .await
                    .map_err(|e| Failure::Connect(e.to_string()))?;
                tokio::task::spawn_local(async move {
                    let _ = conn.await;
                    drop(lease);
                });
                let until = Rc::new(Cell::new(Instant::now()));
                let c = Shared { send, active: Rc::default(), until };
                w.upstream.h2.borrow_mut().entry(end.clone()).or_default().push(c.clone());
                c
            }
        };
        let after = After::Shared(Active::new(&c, idle_timeout(s)));
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
    let text = words(e);
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

fn words(e: &hyper::Error) -> String {
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
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cluster::{Follows, tests::set};
    use karst_api::workload::Service;
    use karst_proxy::testing::{pod, service, snapshot};

    #[test]
    fn our_identity_is_not_lent_to_whom_writes_an_address() {
        let mut s = set(1, karst_api::route::Policy::default());
        let own = (*s.members[0].workload).clone();
        let other = Workload { namespace: "other".into(), ..own.clone() };
        let outside = Workload { hbone: false, ..other.clone() };
        assert_eq!((lent(&s, &own), lent(&s, &outside)), (None, None));
        let why = lent(&s, &other).unwrap();
        assert!(why.contains("the endpoint is other/p0, a member of the mesh in another namespace"), "{why}");
        s.through = Some("10.96.0.1:80".into());
        assert_eq!(lent(&s, &other), None, "another namespace's waypoint");
        (s.through, s.follows) = (None, Some(Follows::Name));
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
