//! Requests to endpoints. HTTP/1.1 connections are kept for the next request, HTTP/2 ones are shared.

use crate::{
    downstream::stream::Io,
    http::{body::Counted, codec, entry},
    upstream::{
        error::{ConnectError, Error, failure},
        open::{Attempt, lent, open},
        pool::{ConnectionDisposition, InFlight, PoolKey, Sender1, Shared, idle_timeout, is_leaving},
        settings::{Announced, FirstFrame},
        tls::{Speaks, TlsError},
    },
    worker::Worker,
};
use http::{Method, Request, Response, StatusCode, Uri, Version, header, request::Parts, uri::Scheme};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
    ext::Protocol,
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use karst_core::limits;
use karst_hbone::{frames::Limited, observed::Observed, pool::Lease};
use std::{cell::Cell, pin::Pin, rc::Rc};
use tokio::time::Instant;

/// Requests at a time on one HTTP/2 connection at most; then another is opened.
const H2_STREAMS: u32 = 100;

/// What most requests do not need, kept apart from them: it would make each one's future as large as itself.
type Rare<'a, T> = Pin<Box<dyn Future<Output = Result<T, ConnectError>> + 'a>>;

/// A connection of HTTP/1.1, what drives it, and its place on a tunnel.
type Dialed = (Sender1, http1::Connection<TokioIo<Io>, Counted>, Option<Lease>);

/// Opens an HTTP/1.1 connection; it goes on while it is polled, on its place on a tunnel.
fn dial_http1<'a>(worker: &'a Rc<Worker>, attempt: &'a Attempt<'_>) -> Rare<'a, Dialed> {
    Box::pin(async move {
        let (io, lease) = open(worker, attempt, Speaks::Http1).await?;
        let (send, conn) = codec::client1().handshake(TokioIo::new(io)).await?;
        Ok((send, conn, lease))
    })
}

/// Which connections a request may use. Asked for each request: one that is kept may have been opened for another service, which
/// could lend the endpoint our identity.
fn pool_key(attempt: &Attempt<'_>) -> Result<PoolKey, ConnectError> {
    match lent(attempt.set, &attempt.member.workload) {
        Some(why) => Err(why.into()),
        None => Ok((attempt.member.workload.uid.clone(), attempt.member.address, attempt.partition())),
    }
}

/// Sends a request on an HTTP/1.1 connection of its own, and gives it back with the answer. `sent`: something of it may have been.
///
/// # Errors
/// See [`Error`].
pub async fn http1(
    worker: &Rc<Worker>,
    attempt: &Attempt<'_>,
    mut request: Request<Counted>,
    sent: &Cell<bool>,
) -> Result<(Response<Incoming>, ConnectionDisposition), Error> {
    let (set, pool_key) = (attempt.set, pool_key(attempt)?);
    let most = set.policy.limits.as_ref().map_or(0, |l| l.requests_per_connection);
    loop {
        let kept = worker.upstream.take(&pool_key);
        let fresh = kept.is_none();
        let (mut send, requests, tunnel) = match kept {
            Some(i) => (i.send, i.requests, i.tunnel),
            None => {
                let (send, conn, lease) = dial_http1(worker, attempt).await?;
                let tunnel = lease.as_ref().map(Lease::tunnel);
                tokio::task::spawn_local(async move {
                    let _ = conn.await;
                    drop(lease);
                });
                (send, 0, tunnel)
            }
        };
        if send.ready().await.is_err() {
            match fresh {
                true => return Err(Error::Reset("the connection was closed at once".into())),
                false => continue,
            }
        }
        sent.set(true);
        match send.try_send_request(request).await {
            Ok(answer) => {
                let requests = requests + 1;
                let after = match most > 0 && requests >= most {
                    true => ConnectionDisposition::Close(None),
                    false => ConnectionDisposition::Reuse {
                        pool: worker.upstream.clone(),
                        pool_key,
                        send,
                        requests,
                        tunnel,
                        idle: idle_timeout(set),
                    },
                };
                return Ok((answer, after));
            }
            Err(error) => request = unseen(error, fresh, sent)?,
        }
    }
}

/// The request again, if nobody has seen it: the connection was kept, and had been closed meanwhile. `sent`: something of it may have
/// been.
fn unseen(
    mut error: TrySendError<Request<Counted>>,
    fresh: bool,
    sent: &Cell<bool>,
) -> Result<Request<Counted>, Error> {
    match error.take_message() {
        Some(back) if !fresh => {
            sent.set(false);
            Ok(back)
        }
        back => {
            sent.set(back.is_none());
            Err(failure(error.error()))
        }
    }
}

/// Sends a request that may change the protocol (WebSocket), on a connection that is used for nothing else. `sent`: something of it
/// may have been.
///
/// # Errors
/// See [`Error`].
pub async fn upgrade(
    worker: &Rc<Worker>,
    attempt: &Attempt<'_>,
    request: Request<Counted>,
    sent: &Cell<bool>,
) -> Result<(Response<Incoming>, ConnectionDisposition), Error> {
    let (mut send, conn, lease) = dial_http1(worker, attempt).await?;
    tokio::task::spawn_local(async move {
        let _ = conn.with_upgrades().await;
    });
    sent.set(true);
    let answer = send.send_request(request).await.map_err(|e| failure(&e))?;
    Ok((answer, ConnectionDisposition::Close(lease)))
}

/// Opens an HTTP/2 connection, which is shared from here on.
fn dial_http2<'a>(worker: &'a Rc<Worker>, attempt: &'a Attempt<'_>, pool_key: &'a PoolKey) -> Rare<'a, Shared> {
    Box::pin(async move {
        let (io, lease) = open(worker, attempt, Speaks::Http2).await?;
        let announced = Rc::<Announced>::default();
        let io = Limited::new(Observed::by(FirstFrame::new(announced.clone()), io), 0);
        let (send, conn) = codec::client2().handshake::<_, Counted>(TokioIo::new(io)).await?;
        let tunnel = lease.as_ref().map(Lease::tunnel);
        tokio::task::spawn_local(async move {
            let _ = conn.await;
            drop(lease);
        });
        let until = Rc::new(Cell::new(Instant::now()));
        let connection = Shared { send, active: Rc::default(), announced, tunnel, until };
        worker.upstream.h2.borrow_mut().entry(pool_key.clone()).or_default().push(connection.clone());
        Ok(connection)
    })
}

/// A shared connection of HTTP/2 with room for another request: one that is there, or a new one (then true).
async fn shared(
    worker: &Rc<Worker>,
    attempt: &Attempt<'_>,
    pool_key: &PoolKey,
) -> Result<(Shared, bool), ConnectError> {
    let most = match attempt.set.policy.limits.as_ref().map_or(0, |l| l.concurrent_streams) {
        0 => H2_STREAMS,
        streams => streams.min(H2_STREAMS),
    };
    let kept = {
        let mut all = worker.upstream.h2.borrow_mut();
        let conns = all.entry(pool_key.clone()).or_default();
        conns.retain(|c| !c.send.is_closed());
        let takes_more = |c: &&Shared| c.active.get() < most as usize && !is_leaving(c.tunnel.as_ref());
        conns.iter().find(takes_more).cloned()
    };
    if let Some(connection) = kept {
        return Ok((connection, false));
    }
    Ok((dial_http2(worker, attempt, pool_key).await?, true))
}

/// Sends a request on a shared HTTP/2 connection. `sent`: something of it may have been.
///
/// # Errors
/// See [`Error`].
pub async fn http2(
    worker: &Rc<Worker>,
    attempt: &Attempt<'_>,
    mut request: Request<Counted>,
    sent: &Cell<bool>,
) -> Result<(Response<Incoming>, ConnectionDisposition), Error> {
    let (set, pool_key) = (attempt.set, pool_key(attempt)?);
    loop {
        let (mut connection, fresh) = shared(worker, attempt, &pool_key).await?;
        let after = ConnectionDisposition::Multiplexed(InFlight::new(&connection, idle_timeout(set)));
        if connection.send.ready().await.is_err() && !fresh {
            continue;
        }
        sent.set(true);
        match connection.send.try_send_request(request).await {
            Ok(answer) => return Ok((answer, after)),
            Err(error) => request = unseen(error, fresh, sent)?,
        }
    }
}

/// Sends a request that is no upgrade, as [`http2()`] or as [`http1()`]. `sent`: something of it may have been.
///
/// # Errors
/// See [`Error`].
pub async fn plain(
    worker: &Rc<Worker>,
    attempt: &Attempt<'_>,
    request: Request<Counted>,
    is_http2: bool,
    sent: &Cell<bool>,
) -> Result<(Response<Incoming>, ConnectionDisposition), Error> {
    match is_http2 {
        true => http2(worker, attempt, request, sent).await,
        false => http1(worker, attempt, request, sent).await,
    }
}

/// As [`upgrade`], on a shared HTTP/2 connection, if the endpoint takes that: most servers of HTTP/2 take a WebSocket only by HTTP/1.1.
/// `request`: as HTTP/1.1 asks; `sent`: something of it may have been.
///
/// # Errors
/// See [`Error`].
pub async fn extended(
    worker: &Rc<Worker>,
    attempt: &Attempt<'_>,
    request: Request<Counted>,
    sent: &Cell<bool>,
) -> Result<(Response<Incoming>, ConnectionDisposition), Error> {
    let (set, pool_key) = (attempt.set, pool_key(attempt)?);
    let (parts, mut body) = request.into_parts();
    loop {
        let found = shared(worker, attempt, &pool_key).await;
        let (mut connection, fresh) = match found {
            Ok(found) => found,
            // By TLS it says itself that it speaks HTTP/1.1 only.
            Err(ConnectError::Tls(TlsError::NoHttp2)) => {
                return upgrade(worker, attempt, Request::from_parts(parts, body), sent).await;
            }
            Err(error) => return Err(error.into()),
        };
        let after = ConnectionDisposition::Multiplexed(InFlight::new(&connection, idle_timeout(set)));
        let patience = tokio::time::timeout(limits::CONNECT_TIMEOUT, connection.announced.takes_extended());
        let takes = matches!(patience.await, Ok(true));
        // One that has gone meanwhile says nothing of what the endpoint takes.
        if connection.send.ready().await.is_err() && !fresh {
            continue;
        }
        if !takes {
            drop(after);
            return upgrade(worker, attempt, Request::from_parts(parts, body), sent).await;
        }
        let head = as_extended(&parts).ok_or_else(|| Error::Protocol("a host that HTTP/2 cannot ask for".into()))?;
        sent.set(true);
        match connection.send.try_send_request(Request::from_parts(head, body)).await {
            Ok(answer) => return Ok((as_upgraded(answer), after)),
            Err(error) => body = unseen(error, fresh, sent)?.into_body(),
        }
    }
}

/// The head of a request for WebSocket as HTTP/2 asks (RFC 8441 §4): without a key.
fn as_extended(asked: &Parts) -> Option<Parts> {
    let mut parts = asked.clone();
    let host = parts.headers.remove(header::HOST)?;
    for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_KEY] {
        parts.headers.remove(name);
    }
    let path = parts.uri.path_and_query().cloned()?;
    parts.uri = Uri::builder().scheme(Scheme::HTTP).authority(host.to_str().ok()?).path_and_query(path).build().ok()?;
    (parts.method, parts.version) = (Method::CONNECT, Version::HTTP_2);
    parts.extensions.insert(Protocol::from_static("websocket"));
    Some(parts)
}

/// The answer as HTTP/1.1 would have given it: 101 where bytes follow.
fn as_upgraded(mut answer: Response<Incoming>) -> Response<Incoming> {
    if answer.extensions().get::<OnUpgrade>().is_some() {
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        entry::upgrade(answer.headers_mut());
    }
    answer
}
