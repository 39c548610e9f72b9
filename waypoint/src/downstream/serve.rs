//! One CONNECT: may it come here, what is spoken on it, and by whom it is served.

use crate::{
    authz::access::{self, Access, Denial},
    cluster::{
        balance,
        endpoint_set::{ClusterKey, EndpointSet},
    },
    downstream::{
        conns, edge,
        gate::Busy,
        stream::{Io, Reset},
    },
    http::{codec, handle as handling},
    route::table::TcpRouteInput,
    snapshot::Snapshot,
    telemetry::{
        carried::{Carried, Metered},
        flag::ResponseFlag,
        request_log::RequestLog,
    },
    upstream::{
        send::{self, Attempt},
        tls::Speaks,
    },
    worker::{SampleKind, Worker, refuse},
};
use bytes::Bytes;
use http::{Method, StatusCode};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use karst_api::workload::AppProtocol;
use karst_core::{Identity, authority::Authority, limits};
use karst_hbone::{pool::Lease, server::Connect};
use karst_proxy::{
    endpoints::is_waypoint,
    state::{Service, Workload},
};
use karst_rt::admission::Permit;
use std::{
    borrow::Cow,
    cell::Cell,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A client that says nothing for this long may be waiting for the server's greeting.
pub const SILENCE: Duration = Duration::from_millis(200);
/// What HTTP/2 begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The head of a request from outside must be there after this time; counted from the end of the one before.
const PATIENCE: Duration = Duration::from_secs(300);
/// A connection that begins during the drain is told to end after this time; earlier, hyper would close it unread.
const LATE: Duration = Duration::from_secs(1);
/// Endpoints tried for one connection.
const TRIES: usize = 3;

/// Who calls, and what.
pub struct Downstream {
    /// None: it has shown no certificate of the mesh.
    pub peer: Option<Identity>,
    pub from: SocketAddr,
    /// The caller's pod, if it is known.
    pub source: Option<Arc<Workload>>,
    pub target: DownstreamTarget,
    pub port: u16,
    /// The address that was called; decides about the family of endpoints.
    pub to: IpAddr,
    /// Of a connection to a service: the TLS hello that it begins with, if it does.
    pub hello: Option<ClientHello>,
    /// That of the client's connection, if it has come from outside.
    pub permit: Option<Rc<Permit>>,
}

/// A hello of TLS that ends elsewhere.
pub struct ClientHello {
    pub name: Option<String>,
}

/// What is called.
#[derive(Clone)]
pub enum DownstreamTarget {
    Service(Arc<Service>),
    /// This gateway; by TLS, with the name in its hello (empty if there was none).
    Gateway(Option<Rc<str>>),
}

impl Downstream {
    /// The caller's namespace, as proven; empty: there is none.
    pub fn namespace(&self) -> &str {
        self.peer.as_ref().map_or("", Identity::namespace)
    }

    /// The caller, for logs.
    pub fn caller(&self) -> String {
        self.peer.as_ref().map_or_else(|| "-".into(), ToString::to_string)
    }

    /// The service that is called, if it is one.
    pub fn service(&self) -> Option<&Arc<Service>> {
        match &self.target {
            DownstreamTarget::Service(s) => Some(s),
            DownstreamTarget::Gateway(_) => None,
        }
    }

    /// Has it come to a gateway?
    pub fn is_at_gateway(&self) -> bool {
        matches!(self.target, DownstreamTarget::Gateway(_))
    }

    /// How it has come, as URIs call it.
    pub fn scheme(&self) -> &'static str {
        if matches!(self.target, DownstreamTarget::Gateway(Some(_))) { "https" } else { "http" }
    }

    /// The key of a destination. Where no port is named it is the one that was called; at a gateway, that of the service if
    /// it has only one.
    pub fn key(&self, w: &Worker, s: &Snapshot, service: &Arc<str>, port: u16, subset: &Arc<str>) -> ClusterKey {
        let only = || {
            let ports = &s.mesh.services.get(service).filter(|_| self.is_at_gateway())?.ports;
            ports.first().filter(|_| ports.len() == 1).map(|(p, _)| *p)
        };
        let port = if port == 0 { only().unwrap_or(self.port) } else { port };
        // The caller's namespace; else that of this proxy, which Istio takes for the client.
        let own: &str = &w.shared.config.pod_namespace;
        let backend = s.backends.get(service).filter(|b| !b.clients.is_empty());
        let client = backend.and_then(|b| [self.namespace(), own].into_iter().find(|n| b.has_client(n)));
        let client = client.map_or_else(Arc::default, Arc::from);
        ClusterKey { service: service.clone(), port, subset: subset.clone(), client }
    }

    /// The name in the hello that was read; empty if it has none. None: no hello was read.
    pub fn sni(&self) -> Option<&str> {
        match &self.target {
            DownstreamTarget::Gateway(name) => name.as_deref(),
            DownstreamTarget::Service(_) => self.hello.as_ref().map(|h| h.name.as_deref().unwrap_or_default()),
        }
    }

    /// What of a connection decides about its route.
    pub fn tcp(&self) -> TcpRouteInput<'_> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let sni = match &self.target {
            DownstreamTarget::Gateway(name) => name.as_deref(),
            DownstreamTarget::Service(_) => self.hello.as_ref().and_then(|h| h.name.as_deref()),
        };
        let labels = self.source.as_ref().map_or(&NONE, |x| &x.labels);
        TcpRouteInput { port: self.port, namespace: self.namespace(), labels, sni }
    }

    /// Why the call is not allowed, if it is not. Policies that only tell are told of in the log.
    pub fn authorize(&self, w: &Worker, a: &Access, request: Option<access::Request<'_>>) -> Option<Denial> {
        let asked = access::AuthzContext {
            peer: self.peer.as_ref(),
            source: self.from.ip(),
            destination: self.to,
            port: self.port,
            sni: self.sni(),
            request,
        };
        for (policy, told) in a.audit(&asked) {
            let text = match told {
                access::AuditEvent::Matches => "matches",
                access::AuditEvent::DryRun { would, deny } => {
                    w.shared.metrics.dry_runs.count(policy, deny, would);
                    would.text()
                }
            };
            let service = self.service().map_or("-", |s| &s.hostname);
            tracing::info!(target: "audit", policy, peer = self.caller(), service, port = self.port, "{text}");
        }
        a.evaluate(&asked).denial()
    }

    /// What is to be told of a request or a connection of this caller's.
    pub fn record(&self, w: &Rc<Worker>, s: &Snapshot) -> Box<RequestLog> {
        let sni = match &self.target {
            DownstreamTarget::Gateway(name) => name.clone().filter(|n| !n.is_empty()),
            DownstreamTarget::Service(_) => self.hello.as_ref().and_then(|h| h.name.as_deref()).map(Rc::from),
        };
        Box::new(RequestLog {
            worker: w.clone(),
            started: Instant::now(),
            time: SystemTime::now(),
            method: Method::GET,
            path: String::new(),
            authority: None,
            protocol: "-",
            is_grpc: false,
            user_agent: None,
            request_id: None,
            forwarded_for: None,
            from: self.from,
            to: SocketAddr::new(self.to, self.port),
            sni,
            source: self.source.clone(),
            principal: self.peer.as_ref().map(ToString::to_string).unwrap_or_default(),
            called: self.service().cloned(),
            at_gateway: self.is_at_gateway(),
            destination: None,
            workload: None,
            endpoint: None,
            route: String::new(),
            answered: 0,
            grpc: None,
            flag: ResponseFlag::None,
            details: Cow::Borrowed(""),
            error: String::new(),
            upstream_ms: None,
            received: Rc::default(),
            headers: None,
            telemetry: s.telemetry().cloned(),
            telemetry_generation: s.telemetry_generation,
            carried: None,
            told: false,
            upgrade: None,
        })
    }

    /// What is to be told of a connection that is carried as it is.
    pub fn connection(&self, w: &Rc<Worker>, s: &Snapshot) -> Box<RequestLog> {
        let mut r = self.record(w, s);
        r.method = no_method();
        r.carried = Some(Rc::new(Carried { received: r.received.clone(), ..Carried::default() }));
        r
    }
}

/// That of what is no request, as Envoy's log has it.
fn no_method() -> Method {
    Method::from_bytes(b"-").unwrap_or_default()
}

/// Tells of what HTTP/1.1 could not read as a request; it has been answered (with a status that Envoy gives, too).
fn unreadable(w: &Rc<Worker>, downstream: &Downstream, e: &hyper::Error) {
    if !e.is_parse() {
        return;
    }
    let mut r = downstream.record(w, &w.snapshot());
    (r.method, r.protocol, r.flag) = (no_method(), "HTTP/1.1", ResponseFlag::BadRequest);
    r.error = e.to_string();
    (r.answered, r.details) = match (e.is_parse_too_large(), r.error.contains("URI")) {
        (false, _) => (400, ResponseFlag::BadRequest.details().into()),
        (true, false) => (431, "http1.headers_too_large".into()),
        (true, true) => (414, "http1.headers_too_large".into()),
    };
    if e.is_parse_too_large() {
        r.error = codec::bad_head();
    }
    r.finish(0);
}

/// Serves a stream of a tunnel to its end.
pub async fn stream(w: Rc<Worker>, c: Connect, peer: Identity, from: SocketAddr) {
    let Connect { request, mut respond } = c;
    let mut downstream = match target(&w, &request, peer, from) {
        Ok(c) => c,
        Err((status, why)) => {
            tracing::info!(target: "access", peer = %from, error = why, "CONNECT refused");
            return refuse(&mut respond, status);
        }
    };
    let Ok(send) = respond.send_response(http::Response::new(()), false) else { return };
    let mut io = Io::tunnel(send, request.into_body(), w.lingering.clone());
    let known =
        downstream.service().and_then(|s| s.protocols.iter().find(|(p, _)| *p == downstream.port)).map(|(_, a)| *a);
    match known.unwrap_or(AppProtocol::Unknown) {
        AppProtocol::Tcp => tcp(&w, &downstream, io).await,
        AppProtocol::Tls => {
            // What is no TLS after all is carried as it is.
            match tokio::time::timeout(edge::HELLO, edge::hello(&mut io)).await {
                Ok(found) => downstream.hello = found.ok().map(|name| ClientHello { name }),
                Err(_) => return tracing::debug!(peer = %from, "no TLS in time"),
            }
            tcp(&w, &downstream, io).await;
        }
        AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => http(&w, Rc::new(downstream), io, true).await,
        AppProtocol::Unknown => http(&w, Rc::new(downstream), io, false).await,
    }
}

/// Which service is called, and whether it is bound to us. Whatever is not is refused: its own waypoint, or none, would have
/// decided otherwise.
fn target(
    w: &Worker,
    r: &http::Request<h2::RecvStream>,
    peer: Identity,
    from: SocketAddr,
) -> Result<Downstream, (StatusCode, &'static str)> {
    let bad = |why| (StatusCode::BAD_REQUEST, why);
    if r.method() != Method::CONNECT {
        return Err((StatusCode::NOT_FOUND, "the method is not CONNECT"));
    }
    let a = r.uri().authority().ok_or(bad("CONNECT without authority"))?;
    let target = Authority::parse(a.as_str().as_bytes()).map_err(|_| bad("the authority is not HOST:PORT"))?;
    let (host, port) = (target.host(), target.port().ok_or(bad("the authority is not HOST:PORT"))?);
    let s = w.snapshot();
    let own = w.own(&s).ok_or((StatusCode::SERVICE_UNAVAILABLE, "the control plane has not told of this waypoint"))?;
    let unknown = (StatusCode::NOT_FOUND, "there is no such service");
    let ip: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    let ip = ip.map(|ip| ip.to_canonical());
    let service = match ip {
        Some(ip) => s.mesh.service(ip, peer.namespace()),
        None => s.mesh.host(host, peer.namespace()),
    };
    // A pod itself: only where that is bound to a waypoint.
    let pod = || s.mesh.services.get(&Service::workload_service(&s.mesh.workload(ip?)?.uid));
    let service = service.or_else(pod).ok_or(unknown)?.clone();
    if !service.waypoints.iter().any(|(g, _)| is_waypoint(&s.mesh, own, g)) {
        return Err((StatusCode::FORBIDDEN, "the service is not bound to this waypoint"));
    }
    if !service.is_workload_service() && !service.ports.iter().any(|(p, _)| *p == port) {
        return Err((StatusCode::NOT_FOUND, "the service does not have this port"));
    }
    // An address proves nothing: the workload there must be whom the certificate names.
    let source = s.mesh.workload(from.ip()).filter(|x| x.identity == peer).cloned();
    let to = ip.or(service.vips.first().copied()).unwrap_or(from.ip());
    Ok(Downstream {
        peer: Some(peer),
        from,
        source,
        target: DownstreamTarget::Service(service),
        port,
        to,
        hello: None,
        permit: None,
    })
}

/// Looks at the first bytes, and serves HTTP or carries bytes. `declared`: the service says that it is HTTP.
pub async fn http(w: &Rc<Worker>, downstream: Rc<Downstream>, mut io: Io, declared: bool) {
    let mut first = Vec::with_capacity(PREFACE.len());
    let mut early = None;
    if !declared {
        // Who speaks first? A server that greets is no HTTP server.
        let mut buf = [0; 1024];
        match tokio::time::timeout(SILENCE, io.read(&mut buf)).await {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(n)) => first.extend_from_slice(&buf[..n]),
            Err(_) => {
                let (mut found, refused) = match connect_tcp(w, &downstream).await {
                    Ok(f) => (Some(f), None),
                    // Bytes of which nothing is known are not let through, or there is no endpoint: a request may still come,
                    // and will be told. If none comes, this is: when it is dropped.
                    Err(r) => (None, Some(r)),
                };
                let Some(other) = &mut found else {
                    match io.read(&mut buf).await {
                        Ok(0) | Err(_) => return,
                        Ok(n) => first.extend_from_slice(&buf[..n]),
                    }
                    if let Some(r) = refused {
                        r.forget();
                    }
                    io.unread(first.into());
                    return Box::pin(http(w, downstream, io, false)).await;
                };
                let mut there = [0; 1024];
                tokio::select! {
                    biased;
                    r = io.read(&mut buf) => match r {
                        Ok(0) | Err(_) => return,
                        // The client after all; it may be HTTP, and then goes the way of HTTP.
                        Ok(n) => first.extend_from_slice(&buf[..n]),
                    },
                    r = other.io.read(&mut there) => match r {
                        Ok(n) if n > 0 => {
                            other.io.unread(Bytes::copy_from_slice(&there[..n]));
                            if let Some(found) = found {
                                relay(io, found).await;
                            }
                            return;
                        }
                        _ => return,
                    },
                }
                early = found;
            }
        }
    }
    // As many bytes as decide between HTTP/2 and HTTP/1.1.
    while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
        let mut buf = [0; 1024];
        match io.read(&mut buf).await {
            Ok(0) if first.is_empty() => return,
            Ok(0) | Err(_) => break,
            Ok(n) => first.extend_from_slice(&buf[..n]),
        }
    }
    let http2 = first.starts_with(PREFACE);
    let http1 = !http2 && is_http1(&first);
    io.unread(first.into());
    if !declared && !http2 && !http1 {
        return match early {
            Some(early) => relay(io, early).await,
            None => tcp(w, &downstream, io).await,
        };
    }
    if let Some(early) = early {
        early.record.forget();
    }
    requests(w, downstream, io, http2).await;
}

/// Serves the requests of a connection until it ends. `http2`: HTTP/2 is spoken.
pub async fn requests<I>(w: &Rc<Worker>, downstream: Rc<Downstream>, io: I, http2: bool)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Who comes through the mesh is known; from elsewhere, heads may be sent slowly on purpose.
    let patience = downstream.is_at_gateway().then_some(PATIENCE);
    let (permit, own) = (downstream.permit.clone(), downstream.clone());
    let service = {
        let (w, downstream) = (w.clone(), downstream.clone());
        service_fn(move |r| {
            let (w, busy, downstream) = (w.clone(), Busy::on(&downstream), downstream.clone());
            async move {
                let answer = handling::handle(w, downstream, r).await;
                Ok::<_, std::convert::Infallible>(answer.map(|a| a.keeping(busy)))
            }
        })
    };
    let mut drain = w.drain.clone();
    if http2 {
        let conn = std::pin::pin!(codec::server2().serve_connection(TokioIo::new(io), service));
        let _ = until_drained(conn, |c| c.graceful_shutdown(), &mut drain, permit.as_deref()).await;
    } else {
        let http1 = codec::server1(patience);
        let conn = std::pin::pin!(http1.serve_connection(TokioIo::new(io), service).with_upgrades());
        if let Err(e) = until_drained(conn, |c| c.graceful_shutdown(), &mut drain, permit.as_deref()).await {
            unreadable(w, &own, &e);
        }
    }
    w.shared.gate.note_evicted(permit.as_deref());
}

/// Serves a client's connection to its end; when the drain begins, it is told to end after what is under way. The same when it
/// has to give way to others, and then it ends soon whatever the client does.
async fn until_drained<C: Future<Output = hyper::Result<()>>>(
    mut conn: Pin<&mut C>,
    end: impl Fn(Pin<&mut C>),
    drain: &mut karst_rt::drain::Watch,
    permit: Option<&Permit>,
) -> hyper::Result<()> {
    let evicted = async {
        match permit {
            Some(p) => p.evicted().await,
            None => std::future::pending().await,
        }
    };
    let mut evicted = std::pin::pin!(evicted);
    let mut last: Option<Pin<Box<tokio::time::Sleep>>> = None;
    // Who comes during the drain (gateways take connections for a while) has come with a request.
    let wait = if drain.started() { LATE } else { Duration::ZERO };
    let mut ending = false;
    loop {
        tokio::select! {
            r = conn.as_mut() => {
                return r.inspect_err(|e| tracing::debug!(error = %e, "a client's connection ended"));
            }
            () = async { drain.reached(karst_rt::drain::Phase::Graceful).await; tokio::time::sleep(wait).await }, if !ending => {
                ending = true;
                end(conn.as_mut());
            }
            () = &mut evicted, if last.is_none() => {
                ending = true;
                end(conn.as_mut());
                last = Some(Box::pin(tokio::time::sleep(limits::GIVE_WAY_TIMEOUT)));
            }
            () = async { if let Some(t) = &mut last { t.await } }, if last.is_some() => return Ok(()),
        }
    }
}

/// Does this begin a request of HTTP/1.1? (A method, and something after it.)
fn is_http1(b: &[u8]) -> bool {
    let method = b.split(|c| *c == b' ').next().unwrap_or(b"");
    let known = [&b"GET"[..], b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];
    match method.len() < b.len() {
        true => known.contains(&method),
        // Not whole yet: what has come could become one.
        false => known.iter().any(|k| k.starts_with(method)) && !method.is_empty(),
    }
}

/// Carries bytes to an endpoint.
pub async fn tcp(w: &Rc<Worker>, downstream: &Downstream, mut io: Io) {
    match connect_tcp(w, downstream).await {
        Ok(to) => relay(io, to).await,
        // It is told when it is dropped.
        Err(_) => io.reset(),
    }
}

/// A byte stream to an endpoint, its place on a tunnel, who ends it when a policy forbids it, and what is to be told of it.
pub struct TcpRelay {
    pub io: Io,
    lease: Option<Lease>,
    guard: conns::Guard,
    pub record: Box<RequestLog>,
}

/// A byte stream to an endpoint, by the service's rules for connections.
async fn connect_tcp(w: &Rc<Worker>, downstream: &Downstream) -> Result<TcpRelay, Box<RequestLog>> {
    let s = w.snapshot();
    let mut record = downstream.connection(w, &s);
    let Some(service) = downstream.service() else { return Err(record) };
    if let Some(a) = s.access_to(service)
        && let Some(by) = downstream.authorize(w, a, None)
    {
        record.details = by.details.into();
        return Err(record.failed(ResponseFlag::None, &by.error));
    }
    let rule = s.routes.get(&service.key).and_then(|r| r.table(downstream.namespace()).find_tcp(&downstream.tcp()));
    if let Some(r) = rule {
        record.route.clone_from(&r.origin);
    }
    let rule = rule.and_then(|t| t.choose_weighted(w.sample(SampleKind::Weight, t.total_weight())));
    let key = match rule {
        Some(d) if d.refuse_status != 0 => return Err(record.failed(ResponseFlag::NoCluster, "no destination")),
        Some(d) => downstream.key(w, &s, &d.service.as_str().into(), d.port as u16, &d.subset.as_str().into()),
        None => downstream.key(w, &s, &service.key, downstream.port, &Arc::default()),
    };
    let Some(set) = w.destination(&s, downstream, &key, downstream.tcp().sni) else {
        return Err(record.failed(ResponseFlag::NoCluster, "no such destination"));
    };
    let speaks = if downstream.hello.is_some() { Speaks::Tls } else { Speaks::Anything };
    open(w, &s, downstream, set, speaks, record).await
}

/// A byte stream to one of the endpoints; some are tried. `judged`: by whose policies the call was let in.
///
/// # Errors
/// The record says why there is none.
pub async fn open(
    w: &Rc<Worker>,
    judged: &Snapshot,
    downstream: &Downstream,
    set: Rc<EndpointSet>,
    speaks: Speaks,
    mut record: Box<RequestLog>,
) -> Result<TcpRelay, Box<RequestLog>> {
    record.destination = Some((&*set).into());
    let mut tried = vec![];
    while tried.len() < TRIES {
        let Some(i) = w.choose(&set, None, &tried) else { break };
        let m = &set.members[i];
        record.workload = Some((m.workload.clone(), m.address));
        let has_other = || tried.len() + 1 < TRIES && balance::has_other(&set, i, &tried);
        let held = Cell::default();
        let attempt = Attempt { set: &set, member: m, from: downstream.from, has_other: &has_other, held: &held };
        let e = match send::open(w, &attempt, speaks).await {
            Ok((io, lease)) => {
                let guard = w.register(judged, downstream, None);
                return Ok(TcpRelay { io, lease, guard, record: record.failed(ResponseFlag::None, "") });
            }
            Err(e) => e,
        };
        tracing::warn!(target: "access", service = %set.service.hostname, endpoint = %m.address, error = %e, "connection failed");
        if e.is_of_endpoint() {
            set.record_outcome(m, None);
        }
        record = record.failed(ResponseFlag::ConnectFailure, &e.to_string());
        if !e.may_retry() {
            return Err(record);
        }
        tried.push(i);
    }
    if tried.is_empty() {
        record = record.failed(ResponseFlag::NoHealthy, "no endpoint");
    }
    Err(record)
}

/// Carries bytes both ways until both have ended, or a policy forbids it; then it is told, also where this is given up.
pub async fn relay<I>(client: I, to: TcpRelay)
where
    I: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let TcpRelay { io: mut b, lease, guard, mut record } = to;
    let mut a = Metered::new(client, record.established());
    let ended = tokio::select! {
        r = tokio::io::copy_bidirectional(&mut a, &mut b) => r.map(drop).map_err(|e| record.error = e.to_string()),
        by = guard.forbidden() => Err((record.error, record.details) = (by.error, by.details.into())),
    };
    match ended {
        Ok(()) => drop((a.shutdown().await, b.shutdown().await)),
        // Without an end before it: nobody is to take what is truncated for complete.
        Err(()) => {
            a.io.reset();
            b.reset();
        }
    }
    drop((lease, record));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_recognised() {
        for (b, want) in [
            (&b"GET / HTTP/1.1\r\n"[..], true),
            (b"PATCH ", true),
            (b"OPT", true),
            (b"\x16\x03\x01", false),
            (b"EHLO x", false),
            (b"GETX /", false),
            (b"", false),
            (b"*1\r\n$4\r\nPING", false),
        ] {
            assert_eq!(is_http1(b), want, "{:?}", String::from_utf8_lossy(b));
        }
    }
}
