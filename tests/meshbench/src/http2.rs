//! HTTP/2 and gRPC over it: a client with one request after the other, and a server that gives back what it is sent.
use bytes::Bytes;
use h2::{RecvStream, client, server};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, TE},
};
use std::{future::poll_fn, io};
use tokio::io::{AsyncRead, AsyncWrite};

/// Receive windows of a stream and of a connection, bytes: so large that nobody waits for one.
const WINDOW: u32 = 4 << 20;
const GRPC: &str = "application/grpc";
const GRPC_STATUS: &str = "grpc-status";

/// A request, which is sent again and again.
pub struct Exchange {
    head: Request<()>,
    body: Bytes,
    is_grpc: bool,
}

impl Exchange {
    /// So many bytes are sent to a URL; by gRPC, a message of so many.
    pub fn new(url: &str, size: usize, is_grpc: bool) -> io::Result<Exchange> {
        let head = Request::post(url);
        let head = match is_grpc {
            true => head.header(CONTENT_TYPE, GRPC).header(TE, "trailers"),
            // A proxy that goes on by HTTP/1.1 need not send it in chunks, which the server does not understand.
            false => head.header(CONTENT_LENGTH, size),
        };
        let mut body = vec![];
        if is_grpc {
            // A message's head: it is not compressed, and its length.
            body.push(0);
            body.extend_from_slice(&(size as u32).to_be_bytes());
        }
        body.resize(body.len() + size, b'x');
        Ok(Exchange { head: head.body(()).map_err(io::Error::other)?, body: body.into(), is_grpc })
    }

    /// Is this its answer: as many bytes as were sent, and of gRPC a good status after them?
    fn check(&self, status: StatusCode, length: usize, trailers: Option<&HeaderMap>) -> io::Result<()> {
        let grpc = trailers.and_then(|t| t.get(GRPC_STATUS));
        let is_good = !self.is_grpc || grpc.is_some_and(|v| v == "0");
        if status == StatusCode::OK && length == self.body.len() && is_good {
            return Ok(());
        }
        let text = format!("status {status}, {length} bytes, {GRPC_STATUS} {grpc:?}");
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    }
}

/// A client's connection.
pub struct Flow(client::SendRequest<Bytes>);

impl Flow {
    pub async fn open<I>(io: I) -> io::Result<Flow>
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut http2 = client::Builder::new();
        http2.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).enable_push(false);
        let (send, connection) = http2.handshake::<_, Bytes>(io).await.map_err(failed)?;
        // Ends with the last handle of it.
        tokio::spawn(connection);
        Ok(Flow(send))
    }

    /// One request and its answer.
    pub async fn once(&mut self, exchange: &Exchange) -> io::Result<()> {
        poll_fn(|cx| self.0.poll_ready(cx)).await.map_err(failed)?;
        let is_empty = exchange.body.is_empty();
        let (answer, mut to) = self.0.send_request(exchange.head.clone(), is_empty).map_err(failed)?;
        if !is_empty {
            to.send_data(exchange.body.clone(), true).map_err(failed)?;
        }
        let (head, mut body) = answer.await.map_err(failed)?.into_parts();
        let length = read(&mut body).await.map_err(failed)?.len();
        let trailers = body.trailers().await.map_err(failed)?;
        exchange.check(head.status, length, trailers.as_ref())
    }
}

/// Serves a client's connection: every body is sent back.
pub async fn serve<I>(io: I) -> io::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let mut http2 = server::Builder::new();
    http2.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let mut connection = http2.handshake::<_, Bytes>(io).await.map_err(failed)?;
    while let Some(next) = connection.accept().await {
        let (request, answer) = next.map_err(failed)?;
        tokio::spawn(echo(request, answer));
    }
    Ok(())
}

async fn echo(request: Request<RecvStream>, mut answer: server::SendResponse<Bytes>) -> Result<(), h2::Error> {
    let (asked, mut body) = request.into_parts();
    let body = Bytes::from(read(&mut body).await?);
    let is_grpc = asked.headers.get(CONTENT_TYPE).is_some_and(|v| v == GRPC);
    let mut head = Response::new(());
    if is_grpc {
        head.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
        let mut to = answer.send_response(head, false)?;
        to.send_data(body, false)?;
        let status = HeaderMap::from_iter([(HeaderName::from_static(GRPC_STATUS), HeaderValue::from_static("0"))]);
        return to.send_trailers(status);
    }
    head.headers_mut().insert(CONTENT_LENGTH, body.len().into());
    let mut to = answer.send_response(head, body.is_empty())?;
    if body.is_empty() { Ok(()) } else { to.send_data(body, true) }
}

/// All of a body.
async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = vec![];
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        all.extend_from_slice(&part);
    }
    Ok(all)
}

/// The same error of I/O; all others end what is under way.
fn failed(e: h2::Error) -> io::Error {
    let kind = e.get_io().map_or(io::ErrorKind::ConnectionReset, io::Error::kind);
    io::Error::new(kind, e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_client_sends_comes_back() {
        for is_grpc in [false, true] {
            for size in [0, 1, 100_000] {
                let (near, far) = tokio::io::duplex(1 << 16);
                tokio::spawn(serve(far));
                let exchange = Exchange::new("http://shop.example/echo", size, is_grpc).unwrap();
                let mut flow = Flow::open(near).await.unwrap();
                // More than the windows, all together.
                for _ in 0..100 {
                    flow.once(&exchange).await.unwrap();
                }
            }
        }
    }

    #[test]
    fn only_the_whole_answer_is_a_good_one() {
        let trailers = |status: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static(GRPC_STATUS), HeaderValue::from_static(status))])
        };
        let (good, bad) = (trailers("0"), trailers("13"));
        let plain = Exchange::new("http://shop.example/", 10, false).unwrap();
        assert!(plain.check(StatusCode::OK, 10, None).is_ok());
        assert!(plain.check(StatusCode::OK, 9, None).is_err());
        assert!(plain.check(StatusCode::BAD_GATEWAY, 10, None).is_err());
        let grpc = Exchange::new("http://shop.example/", 10, true).unwrap();
        assert!(grpc.check(StatusCode::OK, 15, Some(&good)).is_ok());
        assert!(grpc.check(StatusCode::OK, 10, Some(&good)).is_err());
        assert!(grpc.check(StatusCode::OK, 15, Some(&bad)).is_err());
        assert!(grpc.check(StatusCode::OK, 15, None).is_err());
    }
}
