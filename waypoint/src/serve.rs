//! One CONNECT: may it come here, what is spoken on it, and by whom it is served.

use crate::{
    access::{self, Access},
    cluster::Key,
    http as requests,
    stream::Io,
    upstream::{self, Local},
    worker::{Turn, Worker, refuse},
};
use bytes::Bytes;
use http::{Method, StatusCode};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use karst_api::workload::AppProtocol;
use karst_core::Identity;
use karst_hbone::server::Connect;
use karst_proxy::{
    endpoints::is_waypoint,
    state::{Service, Workload},
};
use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A client that says nothing for this long may be waiting for the server's greeting.
const SILENCE: Duration = Duration::from_millis(200);
/// What HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Largest header list of a request, bytes (Envoy: 60 KiB).
const MAX_HEADERS: u32 = 60 << 10;
/// Streams of one HTTP/2 connection of a client.
const MAX_STREAMS: u32 = 1000;

/// Who calls, and what.
pub struct Call {
    pub peer: Identity,
    pub from: SocketAddr,
    /// The caller's pod, if it is known.
    pub source: Option<Arc<Workload>>,
    pub service: Arc<Service>,
    pub port: u16,
    /// The address that was called; decides about the family of endpoints.
    pub to: IpAddr,
}

impl Call {
    /// Why the call is not allowed, if it is not. Policies that only tell are told of in the log.
    pub fn judged(&self, a: &Access, request: Option<access::Request<'_>>) -> Option<String> {
        let asked =
            access::Asked { peer: &self.peer, source: self.from.ip(), destination: self.to, port: self.port, request };
        for p in a.told(&asked) {
            tracing::info!(target: "audit", policy = p, peer = %self.peer, service = %self.service.hostname, port = self.port, "matches");
        }
        match a.judge(&asked) {
            access::Verdict::Allow => None,
            access::Verdict::DeniedBy(p) => Some(format!("denied by policy {p}")),
            access::Verdict::NotAllowed => Some("no policy allows it".into()),
        }
    }
}

/// Serves a stream of a tunnel to its end.
pub async fn stream(w: Rc<Worker>, c: Connect, peer: Identity, from: SocketAddr) {
    let Connect { request, mut respond } = c;
    let call = match target(&w, &request, peer, from) {
        Ok(c) => Rc::new(c),
        Err((status, why)) => {
            tracing::info!(target: "access", peer = %from, error = why, "CONNECT refused");
            return refuse(&mut respond, status);
        }
    };
    let Ok(send) = respond.send_response(http::Response::new(()), false) else { return };
    let io = Io::tunnel(send, request.into_body(), w.lingering.clone());
    let known = call.service.protocols.iter().find(|(p, _)| *p == call.port).map(|(_, a)| *a);
    match known.unwrap_or(AppProtocol::Unknown) {
        AppProtocol::Tcp | AppProtocol::Tls => tcp(&w, &call, io).await,
        AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => http(&w, call, io, true).await,
        AppProtocol::Unknown => http(&w, call, io, false).await,
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
    let service = service.ok_or(unknown)?.clone();
    if !service.waypoints.iter().any(|(g, _)| is_waypoint(&s.mesh, own, g)) {
        return Err((StatusCode::FORBIDDEN, "the service is not bound to this waypoint"));
    }
    if !service.ports.iter().any(|(p, _)| *p == port) {
        return Err((StatusCode::NOT_FOUND, "the service does not have this port"));
    }
    // An address proves nothing: the workload there must be whom the certificate names.
    let source = s.mesh.workload(from.ip()).filter(|x| x.identity == peer).cloned();
    let to = ip.or(service.vips.first().copied()).unwrap_or(from.ip());
    Ok(Call { peer, from, source, service, port, to })
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
                let Some((mut other, lease)) = raw(w, &call).await else {
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
                            return carry(io, other, lease).await;
                        }
                        _ => return,
                    },
                }
                early = Some((other, lease));
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
            Some((other, lease)) => carry(io, other, lease).await,
            None => tcp(w, &call, io).await,
        };
    }
    drop(early);
    let service = {
        let (w, call) = (w.clone(), call.clone());
        service_fn(move |r| {
            let (w, call) = (w.clone(), call.clone());
            async move { Ok::<_, std::convert::Infallible>(requests::handle(w, call, r).await) }
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
        return until_drained(conn, |c| c.graceful_shutdown(), &mut drain).await;
    }
    let mut b = hyper::server::conn::http1::Builder::new();
    b.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEADERS as usize + (64 << 10));
    let conn = std::pin::pin!(b.serve_connection(TokioIo::new(io), service).with_upgrades());
    until_drained(conn, |c| c.graceful_shutdown(), &mut drain).await;
}

/// Serves a client's connection to its end; when the drain begins, it is told to end after what is under way.
async fn until_drained<C: Future<Output = hyper::Result<()>>>(
    mut conn: Pin<&mut C>,
    end: impl Fn(Pin<&mut C>),
    drain: &mut karst_rt::drain::Watch,
) {
    let mut ending = false;
    loop {
        tokio::select! {
            r = conn.as_mut() => {
                if let Err(e) = r {
                    tracing::debug!(error = %e, "a client's connection ended");
                }
                return;
            }
            () = drain.reached(karst_rt::drain::Phase::Graceful), if !ending => {
                ending = true;
                end(conn.as_mut());
            }
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
        Some((other, lease)) => carry(io, other, lease).await,
        None => io.reset(),
    }
}

/// A byte stream to an endpoint, by the service's rules for connections.
async fn raw(w: &Rc<Worker>, call: &Call) -> Option<(Io, Option<karst_hbone::pool::Lease>)> {
    let s = w.snapshot();
    if let Some(a) = s.access.get(&call.service.key)
        && let Some(why) = call.judged(a, None)
    {
        tracing::info!(target: "access", peer = %call.peer, service = %call.service.hostname, error = why, "connection refused");
        return None;
    }
    let none = Default::default();
    let labels = call.source.as_ref().map_or(&none, |x| &x.labels);
    let rule = s.routes.get(&call.service.key).and_then(|r| {
        let t = r.table(call.peer.namespace()).find_tcp(call.port, call.peer.namespace(), labels)?;
        t.pick(w.turn(Turn::Weight, t.total_weight()))
    });
    let key = match rule {
        Some(d) if d.refuse_status != 0 => return None,
        Some(d) => Key {
            service: d.service.as_str().into(),
            port: u16::try_from(d.port).ok().filter(|p| *p != 0).unwrap_or(call.port),
            subset: d.subset.as_str().into(),
        },
        None => Key { service: call.service.key.clone(), port: call.port, subset: "".into() },
    };
    let set = w.set(&s, &key, call.to)?;
    let mut tried = vec![];
    while tried.len() < 3 {
        let i = crate::balance::choose(&set, None, &tried, |n| w.random(n))?;
        let m = &set.members[i];
        match upstream::open(w, &set, m, call.from).await {
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

/// Carries bytes both ways until both have ended.
pub async fn carry(mut a: Io, mut b: Io, lease: Option<karst_hbone::pool::Lease>) {
    if tokio::io::copy_bidirectional(&mut a, &mut b).await.is_err() {
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
