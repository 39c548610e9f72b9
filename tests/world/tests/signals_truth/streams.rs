//! Clients of HTTP/2 and gRPC: many streams of a connection at a time, and the ways in which streams and connections may end.

use crate::{
    http2::{Body, FRAMES, message, runtime, socket},
    route::{Route, TEXT, pick},
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::{
    Reason, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::Request;
use rand::{Rng, rngs::StdRng};
use std::{net::TcpStream, time::Duration};
use tokio::{
    task::{JoinSet, LocalSet, spawn_local},
    time::timeout,
};

/// The application's port, which is not declared.
const PORT: u16 = 81;
/// Calls of a connection at a time; one that hangs has two streams.
const AT_ONCE: usize = 64;
/// A connection takes no longer.
const PATIENCE: Duration = Duration::from_secs(60);

const HTTP: [&str; 10] = ["plain", "plain", "plain", "plain", "trailers", "early", "refuse", "break", "leave", "hang"];
const GRPC: [&str; 12] =
    ["stream", "stream", "stream", "stream", "stream", "talk", "only", "bare", "refuse", "break", "leave", "hang"];
const CODES: [u16; 6] = [200, 200, 201, 404, 500, 503];
/// The last one is none, and is understood as 2.
const STATUSES: [u16; 8] = [0, 0, 0, 1, 5, 13, 16, 99];

#[derive(Clone, Copy)]
struct Call {
    client: usize,
    is_grpc: bool,
    form: &'static str,
    code: u16,
    size: usize,
}

impl Call {
    fn any(client: usize, rng: &mut StdRng) -> Self {
        let is_grpc = rng.random();
        let form = if is_grpc { pick(rng, &GRPC) } else { pick(rng, &HTTP) };
        let code = if is_grpc { pick(rng, &STATUSES) } else { pick(rng, &CODES) };
        // Bytes, or messages.
        let size = if is_grpc { rng.random_range(0..12) } else { rng.random_range(0..5000) };
        Self { client, is_grpc, form, code, size }
    }

    fn plain(client: usize) -> Self {
        Self { client, is_grpc: false, form: "plain", code: 200, size: 10 }
    }

    fn start(self, send: &mut SendRequest<Bytes>, ends: bool) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        let Self { client, form, code, size, .. } = self;
        let mut request = Request::post(format!("http://app/{client}/{form}/{code}/{size}"));
        if self.is_grpc {
            request = request.header("content-type", "application/grpc+proto");
        }
        Ok(send.send_request(request.body(())?, ends)?)
    }

    /// The rest of it, with these messages where their number is free.
    async fn finish(self, response: ResponseFuture, mut send: SendStream<Bytes>, messages: Vec<Bytes>) -> Result<()> {
        match self.form {
            "early" => {
                self.check(response, 0).await?;
                send.send_data(TEXT.slice(..100), true)?;
            }
            "talk" => {
                let mut body = Body::new(response.await?.into_body());
                for (message, number) in messages.into_iter().zip(1..) {
                    send.send_data(message, false)?;
                    body.until(number).await?;
                }
                send.send_data(Bytes::new(), true)?;
                body.end().await?;
            }
            "break" | "leave" => {
                send.send_data(message(20), false)?;
                let mut body = Body::new(response.await?.into_body());
                body.until(1).await?;
                if self.form == "leave" {
                    send.send_reset(Reason::CANCEL);
                } else {
                    send.send_data(message(20), true)?;
                    ensure!(body.end().await.is_err(), "the application did not break off");
                }
            }
            form => {
                for message in messages {
                    send.send_data(message, false)?;
                }
                send.send_data(Bytes::new(), true)?;
                if form == "refuse" {
                    ensure!(response.await.is_err(), "the application did not refuse");
                } else {
                    let wanted = if form == "stream" { self.size as u64 } else { 0 };
                    self.check(response, wanted).await?;
                }
            }
        }
        Ok(())
    }

    /// Its answer is as it was ordered.
    async fn check(self, response: ResponseFuture, messages: u64) -> Result<()> {
        let response = response.await?;
        let code = match self.form {
            "bare" => 503,
            _ if self.is_grpc => 200,
            _ => self.code,
        };
        ensure!(response.status() == code, "{} instead of {code}", response.status());
        let mut body = Body::new(response.into_body());
        body.end().await?;
        ensure!(!self.is_grpc || body.messages() == messages, "{} messages", body.messages());
        Ok(())
    }
}

/// A connection with some streams on it; how many there were.
pub fn session(route: &Route, rng: &mut StdRng) -> Result<u64> {
    LocalSet::new().block_on(&runtime()?, timed(route.connect(PORT)?, route.number, rng))
}

async fn timed(stream: TcpStream, client: usize, rng: &mut StdRng) -> Result<u64> {
    timeout(PATIENCE, run(stream, client, rng)).await.context("a connection takes too long")?
}

/// One stream that is left without an answer, and one behind it: when that is answered, the application has both.
async fn hang(
    send: SendRequest<Bytes>,
    client: usize,
    is_grpc: bool,
) -> Result<(SendRequest<Bytes>, SendStream<Bytes>, ResponseFuture, ResponseFuture)> {
    let mut send = send.ready().await?;
    let call = Call { client, is_grpc, form: "hang", code: 0, size: 0 };
    let (response, stream) = call.start(&mut send, false)?;
    let mut send = send.ready().await?;
    let (behind, _) = Call::plain(client).start(&mut send, true)?;
    Ok((send, stream, response, behind))
}

async fn run(stream: TcpStream, client: usize, rng: &mut StdRng) -> Result<u64> {
    let mut builder = Builder::new();
    builder.data_frame_budget(FRAMES);
    let (mut send, connection) = builder.handshake::<_, Bytes>(socket(stream)?).await.context("handshake")?;
    let connection = spawn_local(connection);
    let mut calls: JoinSet<Result<()>> = JoinSet::new();
    let mut asked = 0;
    for _ in 0..rng.random_range(1..200) {
        if calls.len() == AT_ONCE
            && let Some(ended) = calls.join_next().await
        {
            ended??;
        }
        let call = Call::any(client, rng);
        if call.form == "hang" {
            let (next, mut stream, response, behind) = hang(send, client, call.is_grpc).await?;
            send = next;
            asked += 2;
            calls.spawn_local(async move {
                Call::plain(client).check(behind, 0).await.context("behind one that hangs")?;
                stream.send_reset(Reason::CANCEL);
                drop(response);
                Ok(())
            });
            continue;
        }
        let messages = (0..rng.random_range(0..6)).map(|_| match rng.random_range(0..100) {
            0 => message(rng.random_range(0..100_000)),
            _ => message(rng.random_range(0..1000)),
        });
        let messages: Vec<Bytes> = messages.collect();
        send = send.ready().await?;
        let (response, stream) = call.start(&mut send, false)?;
        asked += 1;
        calls.spawn_local(async move { call.finish(response, stream, messages).await.context(call.form) });
    }
    while let Some(ended) = calls.join_next().await {
        ended??;
    }
    let is_grpc = rng.random();
    match rng.random_range(0..4) {
        // The client goes with a stream open.
        0 => {
            let (_send, _stream, _response, behind) = hang(send, client, is_grpc).await?;
            Call::plain(client).check(behind, 0).await?;
            asked += 2;
            connection.abort();
            let _ = connection.await;
        }
        // The application does, when all that was broken off has come to it.
        1 => {
            send = send.ready().await?;
            let (behind, _) = Call::plain(client).start(&mut send, true)?;
            Call::plain(client).check(behind, 0).await?;
            send = send.ready().await?;
            let call = Call { client, is_grpc, form: "quit", code: 0, size: 0 };
            let (response, _stream) = call.start(&mut send, true)?;
            ensure!(response.await.is_err(), "the application did not quit");
            asked += 2;
            connection.abort();
            let _ = connection.await;
        }
        _ => {
            drop(send);
            let _ = connection.await;
        }
    }
    Ok(asked)
}
