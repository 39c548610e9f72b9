//! HTTP/2 and gRPC by the h2 crate: an application that does what the path of a request says, `/client/form/code/size`, and
//! counts what it did.

use crate::{
    route::TEXT,
    tally::{Kind, Tally},
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{Builder, SendResponse},
};
use http::{HeaderMap, Request, Response, header::CONTENT_TYPE};
use std::{net::TcpStream, rc::Rc};
use tokio::{
    runtime::Runtime,
    sync::Notify,
    task::{JoinSet, LocalSet},
};

/// Most streams at a time: more than clients have, so that none is refused.
const STREAMS: u32 = 200;
/// Small frames that may wait to be read (h2 closes a connection beyond): all of them.
pub const FRAMES: usize = 1 << 30;

/// For one thread.
pub fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// A socket for the runtime that is entered.
pub fn socket(stream: TcpStream) -> Result<tokio::net::TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(tokio::net::TcpStream::from_std(stream)?)
}

/// A message of gRPC, of so many bytes.
pub fn message(size: usize) -> Bytes {
    [&[0][..], &(size as u32).to_be_bytes(), &TEXT[..size]].concat().into()
}

/// A body as far as it has come.
pub struct Body {
    stream: RecvStream,
    bytes: Vec<u8>,
}

impl Body {
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, bytes: vec![] }
    }

    /// Waits for more. False: it has ended.
    async fn more(&mut self) -> Result<bool, h2::Error> {
        let Some(data) = self.stream.data().await else { return Ok(false) };
        let data = data?;
        self.bytes.extend_from_slice(&data);
        self.stream.flow_control().release_capacity(data.len())?;
        Ok(true)
    }

    /// All of it, and its trailers.
    pub async fn end(&mut self) -> Result<Option<HeaderMap>, h2::Error> {
        while self.more().await? {}
        self.stream.trailers().await
    }

    /// Waits until there are so many messages.
    pub async fn until(&mut self, messages: u64) -> Result<()> {
        while self.messages() < messages {
            ensure!(self.more().await?, "{} messages instead of {messages}", self.messages());
        }
        Ok(())
    }

    /// Whole messages.
    pub fn messages(&self) -> u64 {
        let (mut count, mut rest) = (0, &self.bytes[..]);
        while let [_, a, b, c, d, more @ ..] = rest {
            let Some(next) = more.get(u32::from_be_bytes([*a, *b, *c, *d]) as usize..) else { break };
            (count, rest) = (count + 1, next);
        }
        count
    }
}

/// Who asks, and what for.
struct Order {
    kind: Kind,
    form: String,
    code: u16,
    size: usize,
}

impl Order {
    fn of(request: &Request<RecvStream>) -> Result<Self> {
        let words: Vec<&str> = request.uri().path().split('/').collect();
        let ["", client, form, code, size] = words[..] else { anyhow::bail!("{}", request.uri()) };
        let is_grpc = request.headers().contains_key(CONTENT_TYPE);
        let kind = Kind { client: client.parse()?, is_grpc, code: 0, grpc_status: None, flag: "-" };
        Ok(Self { kind, form: form.into(), code: code.parse()?, size: size.parse()? })
    }

    /// As clients understand it.
    fn grpc_status(&self) -> u16 {
        if self.code > 16 { 2 } else { self.code }
    }
}

fn head(code: u16) -> Result<Response<()>> {
    Ok(Response::builder().status(code).body(())?)
}

fn trailers(name: &'static str, code: u16) -> HeaderMap {
    [(http::HeaderName::from_static(name), http::HeaderValue::from(code))].into_iter().collect()
}

/// One request.
async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    tally: Tally,
    quit: Rc<Notify>,
) -> Result<()> {
    let order = Order::of(&request)?;
    let mut body = Body::new(request.into_body());
    let (code, size) = (order.code, order.size);
    // What is counted: code, status of gRPC, flag, messages in the answer.
    let (code, grpc_status, flag, messages) = match order.form.as_str() {
        "plain" | "trailers" => {
            body.end().await?;
            let mut send = respond.send_response(head(code)?, false)?;
            let ends = order.form == "plain";
            send.send_data(TEXT.slice(..size), ends)?;
            if !ends {
                send.send_trailers(trailers("x-trailer", code))?;
            }
            (code, None, "-", 0)
        }
        // Before the request has ended.
        "early" => {
            respond.send_response(head(code)?, true)?;
            body.end().await?;
            (code, None, "-", 0)
        }
        "stream" => {
            body.end().await?;
            let mut send = respond.send_response(head(200)?, false)?;
            for n in 0..size {
                send.send_data(message(n * 997 % 3000), false)?;
            }
            send.send_trailers(trailers("grpc-status", code))?;
            (200, Some(order.grpc_status()), "-", size as u64)
        }
        // An answer to each message, while more come.
        "talk" => {
            let mut send = respond.send_response(head(200)?, false)?;
            let mut sent = 0;
            loop {
                let goes_on = body.more().await?;
                while sent < body.messages() {
                    send.send_data(message(10), false)?;
                    sent += 1;
                }
                if !goes_on {
                    break;
                }
            }
            send.send_trailers(trailers("grpc-status", code))?;
            (200, Some(order.grpc_status()), "-", sent)
        }
        // Trailers only.
        "only" => {
            body.end().await?;
            let mut response = head(200)?;
            *response.headers_mut() = trailers("grpc-status", code);
            respond.send_response(response, true)?;
            (200, Some(order.grpc_status()), "-", 0)
        }
        // Without a status of gRPC, as a gateway answers.
        "bare" => {
            body.end().await?;
            respond.send_response(head(503)?, true)?;
            (503, Some(14), "-", 0)
        }
        "refuse" => {
            body.end().await?;
            respond.send_reset(Reason::INTERNAL_ERROR);
            (0, None, "UR", 0)
        }
        // The client has the first message when its own second one comes.
        "break" => {
            body.until(1).await?;
            let mut send = respond.send_response(head(200)?, false)?;
            send.send_data(message(10), false)?;
            body.end().await?;
            send.send_reset(Reason::INTERNAL_ERROR);
            (200, Some(2), "UR", 1)
        }
        "leave" => {
            body.until(1).await?;
            let mut send = respond.send_response(head(200)?, false)?;
            send.send_data(message(10), false)?;
            ensure!(body.end().await.is_err(), "the client stays");
            (200, Some(2), "DC", 1)
        }
        "hang" => {
            ensure!(body.end().await.is_err(), "the client stays");
            (0, None, "DC", 0)
        }
        "quit" => {
            body.end().await?;
            quit.notify_one();
            (0, None, "UC", 0)
        }
        other => anyhow::bail!("{other}"),
    };
    // An answer without a status of gRPC has the one that its HTTP status stands for.
    let grpc_status = grpc_status.filter(|_| order.kind.is_grpc);
    tally.served(Kind { code, grpc_status, flag, ..order.kind }, body.messages(), messages);
    Ok(())
}

/// One connection.
pub fn serve(stream: TcpStream, tally: &Tally) -> Result<()> {
    LocalSet::new().block_on(&runtime()?, run(stream, tally))
}

async fn run(stream: TcpStream, tally: &Tally) -> Result<()> {
    let mut builder = Builder::new();
    builder.max_concurrent_streams(STREAMS).data_frame_budget(FRAMES);
    let mut connection = builder.handshake::<_, Bytes>(socket(stream)?).await.context("handshake")?;
    let (quit, mut requests) = (Rc::new(Notify::new()), JoinSet::new());
    loop {
        let accepted = tokio::select! {
            // Before the connection could say that the open stream is reset.
            biased;
            () = quit.notified() => None,
            accepted = connection.accept() => accepted,
        };
        let Some(Ok((request, respond))) = accepted else { break };
        requests.spawn_local(answer(request, respond, tally.clone(), quit.clone()));
    }
    drop(connection);
    // Who is left sees that it is gone. What fails is not counted, and is missed.
    while let Some(ended) = requests.join_next().await {
        if let Err(error) = ended? {
            eprintln!("application: {error:#}");
        }
    }
    Ok(())
}
