//! Accepting tunnels. A tunnel is one TCP connection; each of its streams is one CONNECT.

use crate::{
    Settings, client,
    tls::{self, Credentials, TlsError},
};
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::Request;
use karst_core::{Identity, limits};
use karst_rt::drain;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

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
}

/// A stream that waits for its answer.
pub struct Connect {
    /// The request.
    pub request: Request<RecvStream>,
    /// The way to answer.
    pub respond: SendResponse<Bytes>,
}

/// Encrypted bytes that TLS may hold before they are written: larger writes, fewer system calls.
pub(crate) const TLS_BUFFER: usize = 512 << 10;
/// Bytes read from a tunnel's socket at a time; TLS by itself reads 4 KiB.
const READ_BUFFER: usize = 128 << 10;

/// A tunnel's socket, read in large pieces. Tunnels are few, so that each may hold a buffer.
pub(crate) fn buffered(tcp: TcpStream) -> BufReader<TcpStream> {
    BufReader::with_capacity(READ_BUFFER, tcp)
}

/// The TLS handshake of a tunnel.
///
/// # Errors
/// If it fails, takes too long, or the peer shows no workload identity.
pub async fn handshake(
    tcp: TcpStream,
    creds: &Credentials,
) -> Result<(tokio_rustls::server::TlsStream<BufReader<TcpStream>>, Identity), ServerError> {
    let acceptor = TlsAcceptor::from(Arc::clone(&creds.server));
    let mut s = timeout(limits::HANDSHAKE_TIMEOUT, acceptor.accept(buffered(tcp)))
        .await
        .map_err(|_| ServerError::Tls("handshake took over 10 s".into()))?
        .map_err(|e| ServerError::Tls(e.to_string()))?;
    s.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
    let session = s.get_ref().1;
    if session.alpn_protocol() != Some(b"h2") {
        return Err(ServerError::Tls("the peer does not speak h2".into()));
    }
    let peer =
        tls::peer_identity(session.peer_certificates()).map_err(|e: TlsError| ServerError::Tls(e.to_string()))?;
    Ok((s, peer))
}

/// Serves the streams of a tunnel until it ends: `on_stream` is called for each. When the drain begins, the peer is told to
/// open no more (GOAWAY), and open streams may finish.
///
/// # Errors
/// See [`ServerError`].
pub async fn serve<S>(
    io: S,
    s: &Settings,
    mut drain: drain::Watch,
    mut on_stream: impl FnMut(Connect),
) -> Result<(), ServerError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut b = h2::server::Builder::new();
    b.initial_window_size(s.stream_window)
        .initial_connection_window_size(s.connection_window)
        .max_frame_size(s.max_frame)
        .max_header_list_size(limits::MAX_HEADER_LIST)
        .max_concurrent_streams(limits::MAX_STREAMS)
        .max_pending_accept_reset_streams(limits::MAX_PENDING_RESETS)
        .max_send_buffer_size(limits::SEND_BUFFER)
        .data_frame_budget(s.connection_window as usize);
    let mut conn =
        timeout(limits::PREFACE_TIMEOUT, b.handshake::<_, Bytes>(io)).await.map_err(|_| ServerError::Preface)??;
    let ping = conn.ping_pong();
    let mut alive = Box::pin(async move {
        match ping {
            Some(p) => client::keepalive(p).await,
            None => std::future::pending().await,
        }
    });
    let mut draining = false;
    loop {
        tokio::select! {
            next = conn.accept() => match next {
                Some(Ok((request, respond))) => on_stream(Connect { request, respond }),
                Some(Err(e)) => return Err(e.into()),
                None => return Ok(()),
            },
            () = drain.reached(drain::Phase::Graceful), if !draining => {
                draining = true;
                conn.graceful_shutdown();
            }
            () = &mut alive => {
                conn.abrupt_shutdown(h2::Reason::NO_ERROR);
                return Err(ServerError::Dead);
            }
        }
    }
}

/// A TLS stream as HTTP/2 sees it.
pub struct TlsIo<S>(S);

impl<S> TlsIo<S> {
    /// Wraps a stream.
    pub fn new(s: S) -> Self {
        Self(s)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TlsIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}
impl<S: AsyncWrite + Unpin> AsyncWrite for TlsIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
