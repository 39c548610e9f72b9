//! Accepting tunnels. A tunnel is one TCP connection; each of its streams is one CONNECT.

use crate::{
    Settings, client,
    frames::{Limited, PREFACE},
    revocation::{Refusal, Role},
    stream::{self, FlushTurn, TlsStream},
    tls::Credentials,
};
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::Request;
use karst_core::{Identity, limits};
use karst_rt::{drain, on_wake::OnWake};
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::Context,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
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
    drain: drain::Watch,
    evicted: impl Future<Output = ()>,
    on_stream: impl FnMut(Connect),
) -> Result<(), ServerError> {
    let standing = stream.take_standing();
    let revoked = async {
        match standing {
            Some(stop) => stop.await,
            None => std::future::pending().await,
        }
    };
    let turn = stream.flush_turn();
    serve_http2(stream, turn, settings, drain, (evicted, revoked), on_stream).await
}

/// What a stream does around each turn of HTTP/2 on it.
trait Turn {
    /// Lets HTTP/2 read and write.
    fn run<T>(&self, cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> T) -> T;
}

impl Turn for FlushTurn {
    fn run<T>(&self, cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
        FlushTurn::run(self, cx, poll)
    }
}

/// See [`serve_until`].
async fn serve_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    turn: impl Turn,
    settings: &Settings,
    mut drain: drain::Watch,
    (evicted, revoked): (impl Future<Output = ()>, impl Future<Output = Refusal>),
    mut on_stream: impl FnMut(Connect),
) -> Result<(), ServerError> {
    // None of these is asked whenever something comes or goes.
    let (evicted, revoked) = (pin!(evicted), pin!(revoked));
    let (mut evicted, mut revoked) = (OnWake::new(evicted), OnWake::new(revoked));
    let drained = pin!(drain.reached(drain::Phase::Graceful));
    let mut drained = OnWake::new(drained);
    let mut end: Option<Pin<Box<Sleep>>> = None;
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.max_frame)
        .max_header_list_size(limits::MAX_HEADER_LIST)
        .max_concurrent_streams(limits::MAX_STREAMS)
        .max_pending_accept_reset_streams(limits::MAX_PENDING_RESETS)
        .max_send_buffer_size(limits::SEND_BUFFER)
        // Not by the window where that is small: many small writes are no attack.
        .data_frame_budget(settings.connection_window.max(limits::CONNECTION_WINDOW) as usize);
    let mut begin = Box::pin(builder.handshake::<_, Bytes>(Limited::new(stream, PREFACE)));
    let preface = timeout(limits::PREFACE_TIMEOUT, poll_fn(|cx| turn.run(cx, |cx| begin.as_mut().poll(cx))));
    let mut conn = tokio::select! {
        r = preface => r.map_err(|_| ServerError::Preface)??,
        () = &mut evicted => return Err(ServerError::Evicted),
        why = &mut revoked => return Err(ServerError::Revoked(why)),
    };
    drop(begin);
    let mut alive = OnWake::new(Box::pin(client::keepalive(conn.ping_pong())));
    let mut draining = false;
    loop {
        tokio::select! {
            next = poll_fn(|cx| turn.run(cx, |cx| conn.poll_accept(cx))) => match next {
                Some(Ok((request, respond))) => on_stream(Connect { request, respond }),
                Some(Err(e)) => return Err(e.into()),
                None => return Ok(()),
            },
            () = &mut drained, if !draining => {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]
    use super::*;
    use h2::{SendStream, client::SendRequest};
    use http::Response;
    use karst_rt::drain::{Drain, Phase};
    use std::{cell::RefCell, future::pending, rc::Rc, time::Duration};
    use tokio::{
        io::DuplexStream,
        sync::Notify,
        task::{JoinHandle, LocalSet, spawn_local},
        time::Instant,
    };

    /// Nothing is done around a turn.
    struct Plain;

    impl Turn for Plain {
        fn run<T>(&self, cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
            poll(cx)
        }
    }

    type Streams = Rc<RefCell<Vec<(SendStream<Bytes>, RecvStream)>>>;

    /// A tunnel over a stream in memory that answers every CONNECT.
    struct Tunnel {
        drain: Drain,
        evict: Rc<Notify>,
        streams: Streams,
        ended: JoinHandle<Result<(), ServerError>>,
    }

    fn tunnel(io: DuplexStream) -> Tunnel {
        let ((drain, watch), evict, streams) = (drain::new(), Rc::<Notify>::default(), Streams::default());
        let (evicted, opened) = (evict.clone(), streams.clone());
        let ended = spawn_local(async move {
            let settings = Settings::default();
            let on_stream = |mut connect: Connect| {
                let send = connect.respond.send_response(Response::new(()), false).unwrap();
                opened.borrow_mut().push((send, connect.request.into_body()));
            };
            let ends = (evicted.notified(), pending());
            serve_http2(io, Plain, &settings, watch, ends, on_stream).await
        });
        Tunnel { drain, evict, streams, ended }
    }

    async fn client(io: DuplexStream) -> SendRequest<Bytes> {
        let (send, connection) = h2::client::handshake(io).await.unwrap();
        spawn_local(connection);
        send
    }

    async fn open(client: &SendRequest<Bytes>) -> Result<(SendStream<Bytes>, RecvStream), h2::Error> {
        let mut request = Request::connect("10.0.0.1:80").body(()).unwrap();
        *request.version_mut() = http::Version::HTTP_2;
        let (response, send) = client.clone().ready().await?.send_request(request, false)?;
        Ok((send, response.await?.into_body()))
    }

    async fn settle() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_lets_open_streams_finish_and_no_other_begin() {
        let run = async {
            let (near, far) = tokio::io::duplex(64 << 10);
            let (tunnel, client) = (tunnel(far), client(near).await);
            let (mut send, mut recv) = open(&client).await.unwrap();
            tunnel.drain.start(Phase::Graceful);
            settle().await;
            assert!(open(&client).await.is_err(), "the peer is told to open no more");
            // What is open goes on for as long as it likes, both ways.
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert!(!tunnel.ended.is_finished());
            let (mut theirs, mut body) = tunnel.streams.borrow_mut().pop().unwrap();
            send.send_data(Bytes::from_static(b"ping"), true).unwrap();
            assert_eq!(body.data().await.unwrap().unwrap(), "ping");
            theirs.send_data(Bytes::from_static(b"pong"), true).unwrap();
            assert_eq!(recv.data().await.unwrap().unwrap(), "pong");
            drop((send, recv, theirs, body, client));
            tunnel.ended.await.unwrap().unwrap();
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_that_gives_way_ends_soon_whatever_its_peer_does() {
        let run = async {
            let (near, far) = tokio::io::duplex(64 << 10);
            let (tunnel, client) = (tunnel(far), client(near).await);
            let _open = open(&client).await.unwrap();
            let began = Instant::now();
            tunnel.evict.notify_one();
            settle().await;
            assert!(open(&client).await.is_err() && !tunnel.ended.is_finished());
            let ended = tunnel.ended.await.unwrap();
            assert!(matches!(ended, Err(ServerError::Evicted)), "{ended:?}");
            let took = began.elapsed();
            assert!((limits::GIVE_WAY_TIMEOUT..limits::GIVE_WAY_TIMEOUT + Duration::from_secs(1)).contains(&took));
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_no_ping_is_given_up() {
        let run = async {
            let (near, far) = tokio::io::duplex(64 << 10);
            let tunnel = tunnel(far);
            let (send, connection) = h2::client::handshake(near).await.unwrap();
            let mut connection = pin!(connection);
            // Its side runs until a stream is open, and then stands still.
            tokio::select! {
                opened = open(&send) => drop(opened.unwrap()),
                ended = &mut connection => panic!("{ended:?}"),
            }
            let began = Instant::now();
            let ended = tunnel.ended.await.unwrap();
            assert!(matches!(ended, Err(ServerError::Dead)), "{ended:?}");
            let (took, limit) = (began.elapsed(), limits::PING_INTERVAL + limits::PING_TIMEOUT);
            assert!((limits::PING_TIMEOUT..limit + Duration::from_secs(1)).contains(&took), "{took:?}");
        };
        LocalSet::new().run_until(run).await;
    }
}
