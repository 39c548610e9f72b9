//! One CONNECT: may it come here, what is spoken on it, and by whom it is served.

use crate::{
    access::{self, Access},
    cluster::{Key, Set},
    conns,
    control::Snapshot,
    edge,
    gate::Busy,
    http as handling,
    origin::Speaks,
    stream::{Io, Reset},
    table::AskTcp,
    upstream::{self, Local},
    worker::{Turn, Worker, refuse},
};
use bytes::Bytes;
use http::{Method, StatusCode};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use karst_api::workload::AppProtocol;
use karst_core::{Identity, limits};
use karst_hbone::server::Connect;
use karst_proxy::{
    endpoints::is_waypoint,
    state::{Service, Workload},
};
use karst_rt::admission::Place;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A client that says nothing for this long may be waiting for the server's greeting.
const SILENCE: Duration = Duration::from_millis(200);
/// What HTTP/2 begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Largest header list of a request, bytes (Envoy: 60 KiB).
const MAX_HEADERS: u32 = 60 << 10;
/// The head of a request from outside must be there after this time; counted from the end of the one before.
const PATIENCE: Duration = Duration::from_secs(300);
/// A connection that begins during the drain is told to end after this time; earlier, hyper would close it unread.
const LATE: Duration = Duration::from_secs(1);
/// Streams of one HTTP/2 connection of a client.
const MAX_STREAMS: u32 = 1000;

/// Who calls, and what.
pub struct Call {
    /// None: it has shown no certificate of the mesh.
    pub peer: Option<Identity>,
    pub from: SocketAddr,
    /// The caller's pod, if it is known.
    pub source: Option<Arc<Workload>>,
    pub called: Called,
    pub port: u16,
    /// The address that was called; decides about the family of endpoints.
    pub to: IpAddr,
    /// Of a connection to a service: the TLS hello that it begins with, if it does.
    pub hello: Option<Hello>,
    /// That of the client's connection, if it has come from outside.
    pub place: Option<Rc<Place>>,
}

/// A hello of TLS that ends elsewhere.
pub struct Hello {
    pub name: Option<String>,
}

/// What is called.
#[derive(Clone)]
pub enum Called {
    Service(Arc<Service>),
    /// This gateway; by TLS, with the name in its hello (empty if there was none).
    Gateway(Option<String>),
}

impl Call {
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
        match &self.called {
            Called::Service(s) => Some(s),
            Called::Gateway(_) => None,
        }
    }

    /// Has it come to a gateway?
    pub fn is_at_gateway(&self) -> bool {
        matches!(self.called, Called::Gateway(_))
    }

    /// How it has come, as URIs call it.
    pub fn scheme(&self) -> &'static str {
        if matches!(self.called, Called::Gateway(Some(_))) { "https" } else { "http" }
    }

    /// The key of a destination. Where no port is named it is the one that was called; at a gateway, that of the service if
    /// it has only one.
    pub fn key(&self, s: &Snapshot, service: &Arc<str>, port: u16, subset: &Arc<str>) -> Key {
        let only = || {
            let ports = &s.mesh.services.get(service).filter(|_| self.is_at_gateway())?.ports;
            ports.first().filter(|_| ports.len() == 1).map(|(p, _)| *p)
        };
        let port = if port == 0 { only().unwrap_or(self.port) } else { port };
        Key { service: service.clone(), port, subset: subset.clone() }
    }

    /// What of a connection decides about its route.
    pub fn tcp(&self) -> AskTcp<'_> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let sni = match &self.called {
            Called::Gateway(name) => name.as_deref(),
            Called::Service(_) => self.hello.as_ref().and_then(|h| h.name.as_deref()),
        };
        let labels = self.source.as_ref().map_or(&NONE, |x| &x.labels);
        AskTcp { port: self.port, namespace: self.namespace(), labels, sni }
    }

    /// Why the call is not allowed, if it is not. Policies that only tell are told of in the log.
    pub fn judged(&self, w: &Worker, a: &Access, request: Option<access::Request<'_>>) -> Option<String> {
        let asked = access::Asked {
            peer: self.peer.as_ref(),
            source: self.from.ip(),
            destination: self.to,
            port: self.port,
            sni: self.tcp().sni,
            request,
        };
        for (policy, told) in a.told(&asked) {
            let text = match told {
                access::Told::Matches => "matches",
                access::Told::DryRun { would, deny } => {
                    w.shared.metrics.dry_runs.count(policy, deny, would);
                    would.text()
                }
            };
            let service = self.service().map_or("-", |s| &s.hostname);
            tracing::info!(target: "audit", policy, peer = self.caller(), service, port = self.port, "{text}");
        }
        a.judge(&asked).refusal()
    }
}

/// Serves a stream of a tunnel to its end.
pub async fn stream(w: Rc<Worker>, c: Connect, peer: Identity, from: SocketAddr) {
    let Connect { request, mut respond } = c;
    let mut call = match target(&w, &request, peer, from) {
        Ok(c) => c,
        Err((status, why)) => {
            tracing::info!(target: "access", peer = %from, error = why, "CONNECT refused");
            return refuse(&mut respond, status);
        }
    };
    let Ok(send) = respond.send_response(http::Response::new(()), false) else { return };
    let mut io = Io::tunnel(send, request.into_body(), w.lingering.clone());
    let known = call.service().and_then(|s| s.protocols.iter().find(|(p, _)| *p == call.port)).map(|(_, a)| *a);
    match known.unwrap_or(AppProtocol::Unknown) {
        AppProtocol::Tcp => tcp(&w, &call, io).await,
        AppProtocol::Tls => {
            // What is no TLS after all is carried as it is.
            match tokio::time::timeout(edge::HELLO, edge::hello(&mut io)).await {
                Ok(found) => call.hello = found.ok().map(|name| Hello { name }),
                Err(_) => return tracing::debug!(peer = %from, "no TLS in time"),
            }
            tcp(&w, &call, io).await;
        }
        AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => http(&w, Rc::new(call), io, true).await,
        AppProtocol::Unknown => http(&w, Rc::new(call), io, false).await,
    }
}

/// Which service is called, and whether it is bound to us. Whatever is not is refused: its own waypoint, or none, would have
/// decided otherwise.
fn target(
    w: &Worker,
    r: &http::Request<h2::RecvStream>,
    peer: Identity,
    from: SocketAddr,
) -> Result<Call, (StatusCode, &'static str)> {
    let bad = |why| (StatusCode::BAD_REQUEST, why);
    if r.method() != Method::CONNECT {
        return Err((StatusCode::NOT_FOUND, "the method is not CONNECT"));
    }
    let a = r.uri().authority().ok_or(bad("CONNECT without authority"))?;
    let (host, port) = a.as_str().rsplit_once(':').ok_or(bad("the authority is not HOST:PORT"))?;
    let port: u16 = port.parse().map_err(|_| bad("the authority is not HOST:PORT"))?;
    let s = w.snapshot();
    let own = w.own(&s).ok_or((StatusCode::SERVICE_UNAVAILABLE, "the control plane has not told of this waypoint"))?;
    let unknown = (StatusCode::NOT_FOUND, "there is no such service");
    let ip: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    let service = match ip {
        Some(ip) => s.mesh.service(ip.to_canonical(), peer.namespace()),
        None => s.mesh.host(host, peer.namespace()),
    };
    // A pod itself: only where that is bound to a waypoint.
    let pod = || s.mesh.services.get(&Service::stand_in(&s.mesh.workload(ip?.to_canonical())?.uid));
    let service = service.or_else(pod).ok_or(unknown)?.clone();
    if !service.waypoints.iter().any(|(g, _)| is_waypoint(&s.mesh, own, g)) {
        return Err((StatusCode::FORBIDDEN, "the service is not bound to this waypoint"));
    }
    if !service.is_stand_in() && !service.ports.iter().any(|(p, _)| *p == port) {
        return Err((StatusCode::NOT_FOUND, "the service does not have this port"));
    }
    // An address proves nothing: the workload there must be whom the certificate names.
    let source = s.mesh.workload(from.ip()).filter(|x| x.identity == peer).cloned();
    let to = ip.or(service.vips.first().copied()).unwrap_or(from.ip());
    Ok(Call { peer: Some(peer), from, source, called: Called::Service(service), port, to, hello: None, place: None })
}

/// Looks at the first bytes, and serves HTTP or carries bytes. `declared`: the service says that it is HTTP.
async fn http(w: &Rc<Worker>, call: Rc<Call>, mut io: Io, declared: bool) {
    let mut first = Vec::with_capacity(PREFACE.len());
    let mut early = None;
    if !declared {
        // Who speaks first? A server that greets is no HTTP server.
        let mut buf = [0; 1024];
        match tokio::time::timeout(SILENCE, io.read(&mut buf)).await {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(n)) => first.extend_from_slice(&buf[..n]),
            Err(_) => {
                let Some((mut other, lease, guard)) = raw(w, &call).await else {
                    // Bytes of which nothing is known are not let through, or there is no endpoint: a request may still come,
                    // and will be told.
                    match io.read(&mut buf).await {
                        Ok(0) | Err(_) => return,
                        Ok(n) => first.extend_from_slice(&buf[..n]),
                    }
                    io.unread(first.into());
                    return Box::pin(http(w, call, io, false)).await;
                };
                let mut there = [0; 1024];
                tokio::select! {
                    biased;
                    r = io.read(&mut buf) => match r {
                        Ok(0) | Err(_) => return,
                        // The client after all; it may be HTTP, and then goes the way of HTTP.
                        Ok(n) => first.extend_from_slice(&buf[..n]),
                    },
                    r = other.read(&mut there) => match r {
                        Ok(n) if n > 0 => {
                            other.unread(Bytes::copy_from_slice(&there[..n]));
                            return carry(io, other, lease, &guard).await;
                        }
                        _ => return,
                    },
                }
                early = Some((other, lease, guard));
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
    let two = first.starts_with(PREFACE);
    let one = !two && is_http1(&first);
    io.unread(first.into());
    if !declared && !two && !one {
        return match early {
            Some((other, lease, guard)) => carry(io, other, lease, &guard).await,
            None => tcp(w, &call, io).await,
        };
    }
    drop(early);
    requests(w, call, io, two).await;
}

/// Serves the requests of a connection until it ends. `two`: HTTP/2 is spoken.
pub async fn requests<I>(w: &Rc<Worker>, call: Rc<Call>, io: I, two: bool)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Who comes through the mesh is known; from elsewhere, heads may be sent slowly on purpose.
    let patience = call.is_at_gateway().then_some(PATIENCE);
    let place = call.place.clone();
    let service = {
        let (w, call) = (w.clone(), call.clone());
        service_fn(move |r| {
            let (w, busy, call) = (w.clone(), Busy::on(&call), call.clone());
            async move {
                let answer = handling::handle(w, call, r).await;
                Ok::<_, std::convert::Infallible>(answer.map(|a| a.keeping(busy)))
            }
        })
    };
    let mut drain = w.drain.clone();
    if two {
        let mut b = hyper::server::conn::http2::Builder::new(Local);
        b.timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADERS)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20);
        let conn = std::pin::pin!(b.serve_connection(TokioIo::new(io), service));
        until_drained(conn, |c| c.graceful_shutdown(), &mut drain, place.as_deref()).await;
    } else {
        let conn = std::pin::pin!(http1(patience).serve_connection(TokioIo::new(io), service).with_upgrades());
        until_drained(conn, |c| c.graceful_shutdown(), &mut drain, place.as_deref()).await;
    }
    w.shared.gate.note_evicted(place.as_deref());
}

/// How HTTP/1.1 is read.
pub fn http1(patience: Option<Duration>) -> hyper::server::conn::http1::Builder {
    let mut b = hyper::server::conn::http1::Builder::new();
    b.timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(MAX_HEADERS as usize + (64 << 10));
    b
}

/// Serves a client's connection to its end; when the drain begins, it is told to end after what is under way. The same when it
/// has to give way to others, and then it ends soon whatever the client does.
async fn until_drained<C: Future<Output = hyper::Result<()>>>(
    mut conn: Pin<&mut C>,
    end: impl Fn(Pin<&mut C>),
    drain: &mut karst_rt::drain::Watch,
    place: Option<&Place>,
) {
    let evicted = async {
        match place {
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
                if let Err(e) = r {
                    tracing::debug!(error = %e, "a client's connection ended");
                }
                return;
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
            () = async { if let Some(t) = &mut last { t.await } }, if last.is_some() => return,
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
async fn tcp(w: &Rc<Worker>, call: &Call, mut io: Io) {
    match raw(w, call).await {
        Some((other, lease, guard)) => carry(io, other, lease, &guard).await,
        None => io.reset(),
    }
}

/// A byte stream to an endpoint, by the service's rules for connections.
async fn raw(w: &Rc<Worker>, call: &Call) -> Option<(Io, Option<karst_hbone::pool::Lease>, conns::Guard)> {
    let s = w.snapshot();
    let service = call.service()?;
    if let Some(a) = s.access_to(service)
        && let Some(why) = call.judged(w, a, None)
    {
        tracing::info!(target: "access", peer = call.caller(), service = %service.hostname, error = why, "connection refused");
        return None;
    }
    let rule = s.routes.get(&service.key).and_then(|r| {
        let t = r.table(call.namespace()).find_tcp(&call.tcp())?;
        t.pick(w.turn(Turn::Weight, t.total_weight()))
    });
    let key = match rule {
        Some(d) if d.refuse_status != 0 => return None,
        Some(d) => call.key(&s, &d.service.as_str().into(), d.port as u16, &d.subset.as_str().into()),
        None => Key { service: service.key.clone(), port: call.port, subset: "".into() },
    };
    let Some(set) = w.destination(&s, call, &key, call.tcp().sni) else {
        let name = call.tcp().sni.unwrap_or_default();
        tracing::info!(target: "access", peer = call.caller(), service = %service.hostname, sni = name, error = "no such destination", "connection refused");
        return None;
    };
    let speaks = if call.hello.is_some() { Speaks::Tls } else { Speaks::Anything };
    let (io, lease) = open(w, &set, call.from, speaks).await?;
    Some((io, lease, w.opened(&s, call, None)))
}

/// A byte stream to one of the endpoints; some are tried.
pub async fn open(
    w: &Rc<Worker>,
    set: &Set,
    from: SocketAddr,
    speaks: Speaks,
) -> Option<(Io, Option<karst_hbone::pool::Lease>)> {
    let mut tried = vec![];
    while tried.len() < 3 {
        let i = crate::balance::choose(set, None, &tried, |n| w.random(n))?;
        let m = &set.members[i];
        match upstream::open(w, set, m, from, speaks).await {
            Ok(x) => return Some(x),
            Err(e) => {
                tracing::warn!(target: "access", service = %set.service.hostname, endpoint = %m.address, error = e, "connection failed");
                set.result(m, None);
                tried.push(m.workload.uid.clone());
            }
        }
    }
    None
}

/// Carries bytes both ways until both have ended, or a policy forbids it.
pub async fn carry<I>(mut a: I, mut b: Io, lease: Option<karst_hbone::pool::Lease>, guard: &conns::Guard)
where
    I: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let ended = tokio::select! {
        r = tokio::io::copy_bidirectional(&mut a, &mut b) => r.is_ok(),
        _ = guard.forbidden() => false,
    };
    if !ended {
        a.reset();
        b.reset();
    }
    let _ = (a.shutdown().await, b.shutdown().await);
    drop(lease);
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
