//! Opening tunnels.

use crate::{
    Settings,
    frames::Limited,
    revocation::Role,
    stream,
    tls::{self, Credentials},
};
use bytes::Bytes;
use h2::{Ping, RecvStream, SendStream, client::SendRequest};
use http::{Method, Request, StatusCode, Uri, Version, header::HeaderMap};
use karst_core::{Identity, limits};
use karst_rt::on_wake::OnWake;
use std::{future::poll_fn, io, net::SocketAddr, pin::Pin, sync::Arc, task::Poll};
use tokio::{net::TcpStream, time::timeout};

/// Why a tunnel or a stream could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// TCP.
    #[error("connect to {0}: {1} (a NetworkPolicy may block port 15008)")]
    Connect(SocketAddr, Arc<io::Error>),
    /// TLS.
    #[error("TLS with {0}: {1}")]
    Tls(SocketAddr, String),
    /// The peer is somebody else.
    #[error("TLS with {at}: the peer is {shown}, expected {expected}")]
    PeerIdentity {
        /// Where it is.
        at: SocketAddr,
        /// Who it is.
        shown: Identity,
        /// Who it should have been.
        expected: String,
    },
    /// HTTP/2 could not be set up.
    #[error("HTTP/2 with {0}: {1}")]
    Http2(SocketAddr, String),
    /// The peer's answer to CONNECT.
    #[error("the peer answered {0}")]
    Status(StatusCode),
    /// The peer is going away and has not looked at the request (RFC 9113 §6.8, §8.7): it may be sent on another tunnel.
    #[error("CONNECT was not processed: {0}")]
    Unprocessed(String),
    /// The stream or its tunnel broke before there was an answer.
    #[error("CONNECT: {0}")]
    Stream(String),
    /// The peer was to go on with an interrupted connection, and has begun another one (docs/hbone.md §10.6).
    #[error("the peer does not know of continuation (any more)")]
    NotContinued,
    /// The same, and there was no answer: the connection's token may be used up, and it is not shown a second time.
    #[error("CONNECT of an interrupted connection: {0}")]
    Unanswered(String),
}

impl ClientError {
    /// May another endpoint be tried, and this one be avoided? Before the peer has answered 200 it has had no byte of the
    /// connection, so nothing is sent twice; but a request that is refused for what it is (4xx) is refused by all, and says
    /// nothing of who refuses it: else one client could have an endpoint avoided for all others.
    pub fn may_retry(&self) -> bool {
        match self {
            ClientError::Connect(..)
            | ClientError::Tls(..)
            | ClientError::PeerIdentity { .. }
            | ClientError::Http2(..)
            | ClientError::Unprocessed(_)
            | ClientError::Stream(_) => true,
            ClientError::NotContinued | ClientError::Unanswered(_) => false,
            ClientError::Status(s) => {
                matches!(*s, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
            }
        }
    }
    /// Is it about the tunnel, and not about what was asked for in it?
    pub(crate) fn is_of_tunnel(&self) -> bool {
        matches!(self, ClientError::Unprocessed(_) | ClientError::Stream(_))
    }
}

/// Sets up TLS and HTTP/2 on a connected socket. `expected`: who may answer; nothing is sent to anybody else.
///
/// # Errors
/// See [`ClientError`].
pub async fn handshake(
    tcp: TcpStream,
    to: SocketAddr,
    creds: &Credentials,
    expected: &[Identity],
    settings: &Settings,
) -> Result<(SendRequest<Bytes>, impl Future<Output = Result<(), h2::Error>> + use<>), ClientError> {
    let tls_error = |e: String| ClientError::Tls(to, e);
    let (stream, shown) =
        timeout(limits::HANDSHAKE_TIMEOUT, stream::connect(tcp, &creds.client, tls::server_name(to.ip())))
            .await
            .map_err(|_| tls_error("handshake took over 10 s".into()))?
            .map_err(|e| tls_error(e.to_string()))?;
    let (peer, standing) = match creds.admit(Role::Server, &shown) {
        Ok(x) => x,
        Err(e) => {
            stream.refuse(e.alert());
            return Err(tls_error(e.to_string()));
        }
    };
    if !expected.contains(&peer) {
        let wanted: Vec<_> = expected.iter().map(Identity::to_string).collect();
        return Err(ClientError::PeerIdentity { at: to, shown: peer, expected: wanted.join(" or ") });
    }
    if shown.alpn.as_deref() != Some(b"h2") {
        return Err(tls_error("the peer does not speak h2".into()));
    }
    let h2_error = |e: String| ClientError::Http2(to, e);
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.max_frame)
        .max_header_list_size(limits::MAX_HEADER_LIST)
        .max_send_buffer_size(limits::SEND_BUFFER)
        .initial_max_send_streams(settings.pool_streams)
        // Not by the window where that is small: many small writes are no attack.
        .data_frame_budget(settings.connection_window.max(limits::CONNECTION_WINDOW) as usize)
        .enable_push(false);
    let turn = stream.flush_turn();
    let mut begin = Box::pin(builder.handshake::<_, Bytes>(Limited::new(stream, 0)));
    let (send, mut conn) = timeout(limits::PREFACE_TIMEOUT, poll_fn(|cx| turn.run(cx, |cx| begin.as_mut().poll(cx))))
        .await
        .map_err(|_| h2_error("preface took over 10 s".into()))?
        .map_err(|e| h2_error(e.to_string()))?;
    let ping = conn.ping_pong();
    let drive = async move {
        // Neither is asked whenever something comes or goes.
        let (mut standing, mut alive) = (OnWake::new(standing), OnWake::new(Box::pin(keepalive(ping))));
        poll_fn(|cx| match turn.run(cx, |cx| Pin::new(&mut conn).poll(cx)) {
            Poll::Ready(r) => Poll::Ready(r),
            // Only its being an error matters: the tunnel leaves the pool.
            Poll::Pending if Pin::new(&mut standing).poll(cx).is_ready() => {
                Poll::Ready(Err(h2::Error::from(h2::Reason::INADEQUATE_SECURITY)))
            }
            Poll::Pending => Pin::new(&mut alive).poll(cx).map(|()| Err(h2::Error::from(h2::Reason::SETTINGS_TIMEOUT))),
        })
        .await
    };
    Ok((send, drive))
}

/// Sends PINGs; returns when one is not answered in time.
pub(crate) async fn keepalive(pings: Option<h2::PingPong>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(limits::PING_INTERVAL).await;
        match timeout(limits::PING_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => std::future::pending().await, // the connection itself reports this
            Err(_) => return,
        }
    }
}

/// Asks for a connection to `authority`.
///
/// # Errors
/// See [`ClientError`].
pub async fn connect(
    mut tunnel: SendRequest<Bytes>,
    authority: &str,
    headers: HeaderMap,
) -> Result<(SendStream<Bytes>, RecvStream, HeaderMap), ClientError> {
    let stream = |e: String| ClientError::Stream(e);
    let uri =
        Uri::builder().authority(authority).build().map_err(|e| stream(format!("authority {authority:?}: {e}")))?;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    // What cannot even be sent was not seen by anybody.
    let (answer, send) = tunnel.send_request(request, false).map_err(|e| ClientError::Unprocessed(e.to_string()))?;
    let answer = answer.await.map_err(|e| match e.is_go_away() || e.reason() == Some(h2::Reason::REFUSED_STREAM) {
        true => ClientError::Unprocessed(e.to_string()),
        false => stream(e.to_string()),
    })?;
    let (head, recv) = answer.into_parts();
    if head.status != StatusCode::OK {
        return Err(ClientError::Status(head.status));
    }
    Ok((send, recv, head.headers))
}
