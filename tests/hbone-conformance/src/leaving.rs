//! Section 10, for clients that know of it: the tool is the server that leaves, and its successor.

use crate::{
    against_server::{receive, send, step, verdict},
    continuation::{HEADER, token, trailers},
    report::Report,
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Request, Response};
use rustls::ServerConfig;
use std::{sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// Streams that may wait for the check that looks at them; beyond, their tunnel does.
const WAITING: usize = 16;

type Stream = (Request<RecvStream>, SendResponse<Bytes>);

/// The streams of all tunnels, as they come: the next one of a connection may come on any.
struct Streams {
    from: mpsc::Receiver<Stream>,
    patience: Duration,
}

impl Streams {
    fn listen(l: TcpListener, c: Arc<ServerConfig>, patience: Duration) -> Self {
        let (to, from) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            while let Ok((s, _)) = l.accept().await {
                tokio::spawn(tunnel(s, c.clone(), to.clone()));
            }
        });
        Self { from, patience }
    }

    async fn next(&mut self) -> Result<Stream> {
        timeout(self.patience, self.from.recv()).await.context("no stream came")?.context("no tunnel is taken any more")
    }
}

async fn tunnel(s: TcpStream, c: Arc<ServerConfig>, to: mpsc::Sender<Stream>) -> Result<()> {
    s.set_nodelay(true)?;
    let mut h = h2::server::handshake(TlsAcceptor::from(c).accept(s).await?).await?;
    while let Some(stream) = h.accept().await {
        if to.send(stream?).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Runs every check, for a client whose CONNECT says that it knows of continuation: it is optional.
pub async fn run(l: TcpListener, c: Arc<ServerConfig>, patience: Duration, report: &mut Report) {
    let mut streams = Streams::listen(l, c, patience);
    report.add(
        "10.6",
        "a server that leaves, by trailers with a token",
        "goes on in another stream",
        verdict(goes_on(&mut streams, &token()).await),
    );
    let token = token();
    report.add(
        "10.6",
        "a token answered with 200, without karst-continue",
        "reset",
        verdict(begun_anew(&mut streams, &token).await),
    );
    report.add("10.6", "the same token after that", "not shown", verdict(afterwards(&mut streams, &token).await));
}

fn known() -> Result<Response<()>> {
    Ok(Response::builder().header(HEADER, "1").body(())?)
}

/// Takes the application's next connection, says what it has said, and leaves. Gives what that was, and the stream that shows the
/// token then. The application's half has ended before: its next stream has nothing but its end.
async fn leave(streams: &mut Streams, token: &str) -> Result<(Bytes, Stream)> {
    let (request, mut respond) = streams.next().await?;
    ensure!(request.headers().get(HEADER).is_some_and(|value| value == "1"), "a CONNECT without karst-continue: 1");
    let authority = request.uri().authority().cloned();
    let mut tx = respond.send_response(known()?, false)?;
    let said = Bytes::from(step(receive(&mut request.into_body(), None)).await?);
    step(send(&mut tx, said.clone(), false)).await?;
    tx.send_trailers(trailers(token)?)?;
    let next = step(streams.next()).await.context("the next stream")?;
    let value = next.0.headers().get(HEADER);
    ensure!(value.is_some_and(|value| value == token), "the next stream does not show the token");
    ensure!(next.0.uri().authority() == authority.as_ref(), "the next stream is for another application");
    Ok((said, next))
}

/// The application has all of it twice: before and after.
async fn goes_on(streams: &mut Streams, token: &str) -> Result<String> {
    let (said, (request, mut respond)) = leave(streams, token).await?;
    let mut tx = respond.send_response(known()?, false)?;
    let more = step(receive(&mut request.into_body(), None)).await?;
    ensure!(more.is_empty(), "its half had ended, and has {} bytes more", more.len());
    step(send(&mut tx, said.clone(), true)).await?;
    Ok(format!("{} bytes before, {} after", said.len(), said.len()))
}

/// The successor knows of nothing, and takes the stream for a new connection.
async fn begun_anew(streams: &mut Streams, token: &str) -> Result<String> {
    let (_said, (_request, mut respond)) = leave(streams, token).await?;
    let mut tx = respond.send_response(Response::new(()), false)?;
    let reset = async { std::future::poll_fn(|cx| tx.poll_reset(cx)).await.context("the tunnel is lost") };
    let reason = step(reset).await.context("the stream goes on")?;
    Ok(format!("RST_STREAM, {reason:?}"))
}

/// The next stream is another connection's. It is echoed.
async fn afterwards(streams: &mut Streams, token: &str) -> Result<String> {
    let (request, mut respond) = streams.next().await?;
    ensure!(request.headers().get(HEADER).is_none_or(|value| value != token), "it is shown again");
    let mut tx = respond.send_response(Response::new(()), false)?;
    let said = step(receive(&mut request.into_body(), None)).await?;
    step(send(&mut tx, said.into(), true)).await?;
    // What was sent is to leave before the tunnel does.
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok("a new connection".into())
}
