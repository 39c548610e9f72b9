//! Accepting tunnels. A tunnel is one TCP connection; each of its streams is one CONNECT.

use crate::{
    Settings, client,
    revocation::{Refusal, Role},
    stream::{self, TlsStream},
    tls::Credentials,
};
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::Request;
use karst_core::{Identity, limits};
use karst_rt::drain;
use std::future::poll_fn;
use tokio::{
    net::TcpStream,
    time::{Sleep, sleep, timeout},
};

/// Why a tunnel ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The handshake failed, or the peer has no identity.
    #[error("TLS: {0}")]
    Tls(String),
    /// HTTP/2.
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
    /// PINGs are not answered.
    #[error("the peer has not answered PING for 20 s")]
    Dead,
    /// The preface did not come.
    #[error("no HTTP/2 preface within 10 s")]
    Preface,
    /// It had to give way to others.
    #[error("evicted in favor of another tunnel: the limit is reached")]
    Evicted,
    /// A certificate of the peer was revoked while the tunnel was open.
    #[error("the tunnel was closed: {0}")]
    Revoked(Refusal),
}

/// A stream that waits for its answer.
pub struct Connect {
    /// The request.
    pub request: Request<RecvStream>,
    /// The way to answer.
    pub respond: SendResponse<Bytes>,
}

/// The TLS handshake of a tunnel.
///
/// # Errors
/// If it fails, takes too long, or the peer shows no workload identity.
pub async fn handshake(tcp: TcpStream, creds: &Credentials) -> Result<(TlsStream, Identity), ServerError> {
    let (mut stream, shown) = timeout(limits::HANDSHAKE_TIMEOUT, stream::accept(tcp, &creds.server))
        .await
        .map_err(|_| ServerError::Tls("handshake took over 10 s".into()))?
        .map_err(|e| ServerError::Tls(e.to_string()))?;
    if shown.alpn.as_deref() != Some(b"h2") {
        return Err(ServerError::Tls("the peer does not speak h2".into()));
    }
    match creds.admit(Role::Client, &shown) {
        Ok((peer, standing)) => {
            stream.set_standing(standing);
            Ok((stream, peer))
        }
        Err(e) => {
            stream.refuse(e.alert());
            Err(ServerError::Tls(e.to_string()))
        }
    }
}

/// Serves the streams of a tunnel until it ends: `on_stream` is called for each. When the drain begins, the peer is told to
/// open no more (GOAWAY), and open streams may finish.
///
/// # Errors
/// See [`ServerError`].
pub async fn serve(
    stream: TlsStream,
    settings: &Settings,
    drain: drain::Watch,
    on_stream: impl FnMut(Connect),
) -> Result<(), ServerError> {
    serve_until(stream, settings, drain, std::future::pending(), on_stream).await
}

/// As [`serve`]; when `evicted` is done, the peer is told to open no more, and the tunnel ends soon whatever the peer does.
///
/// # Errors
/// See [`ServerError`].
pub async fn serve_until(
    mut stream: TlsStream,
    settings: &Settings,
    mut drain: drain::Watch,
    evicted: impl Future<Output = ()>,
    mut on_stream: impl FnMut(Connect),
) -> Result<(), ServerError> {
    let mut evicted = std::pin::pin!(evicted);
    let standing = stream.take_standing();
    let mut revoked = std::pin::pin!(async {
        match standing {
            Some(stop) => stop.await,
            None => std::future::pending().await,
        }
    });
    let mut end: Option<std::pin::Pin<Box<Sleep>>> = None;
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.max_frame)
        .max_header_list_size(limits::MAX_HEADER_LIST)
        .max_concurrent_streams(limits::MAX_STREAMS)
        .max_pending_accept_reset_streams(limits::MAX_PENDING_RESETS)
        .max_send_buffer_size(limits::SEND_BUFFER)
        .data_frame_budget(settings.connection_window as usize);
    let turn = stream.flush_turn();
    let mut begin = Box::pin(builder.handshake::<_, Bytes>(stream));
    let preface = timeout(limits::PREFACE_TIMEOUT, poll_fn(|cx| turn.run(cx, |cx| begin.as_mut().poll(cx))));
    let mut conn = tokio::select! {
        r = preface => r.map_err(|_| ServerError::Preface)??,
        () = &mut evicted => return Err(ServerError::Evicted),
        why = &mut revoked => return Err(ServerError::Revoked(why)),
    };
    drop(begin);
    let mut alive = Box::pin(client::keepalive(conn.ping_pong()));
    let mut draining = false;
    loop {
        tokio::select! {
            next = poll_fn(|cx| turn.run(cx, |cx| conn.poll_accept(cx))) => match next {
                Some(Ok((request, respond))) => on_stream(Connect { request, respond }),
                Some(Err(e)) => return Err(e.into()),
                None => return Ok(()),
            },
            () = drain.reached(drain::Phase::Graceful), if !draining => {
                draining = true;
                conn.graceful_shutdown();
            }
            () = &mut evicted, if end.is_none() => {
                end = Some(Box::pin(sleep(limits::GIVE_WAY_TIMEOUT)));
                draining = true;
                conn.graceful_shutdown();
            }
            () = async { if let Some(end) = &mut end { end.await } }, if end.is_some() => return Err(ServerError::Evicted),
            why = &mut revoked => {
                conn.abrupt_shutdown(h2::Reason::INADEQUATE_SECURITY);
                return Err(ServerError::Revoked(why));
            }
            () = &mut alive => {
                conn.abrupt_shutdown(h2::Reason::NO_ERROR);
                return Err(ServerError::Dead);
            }
        }
    }
}
