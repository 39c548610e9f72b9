//! The small HTTP/1.1 server behind admin, metrics and readiness. Loopback unless told otherwise.

use crate::admission::{Admission, Limits, Permit, Source};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use std::{
    cell::Cell,
    convert::Infallible,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{net::TcpListener, sync::mpsc};

/// An answer.
pub type Answer = Response<Page>;

/// The body of an answer.
#[derive(Debug)]
pub enum Page {
    /// All of it.
    Whole(Full<Bytes>),
    /// What comes, until whoever sends has ended. It is told by [`mpsc::Sender::closed`] when the client is gone.
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for Page {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Stream(parts) => parts.poll_recv(cx).map(|part| part.map(|part| Ok(Frame::data(part)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
/// Answers requests: method, path, query. Runs on the thread that serves.
pub type Handler = Rc<dyn Fn(&str, &str, &str) -> Pin<Box<dyn Future<Output = Answer>>>>;

/// A request, for handlers that must know who asks.
#[derive(Clone, Debug)]
pub struct AdminRequest {
    /// Where it comes from; an IPv4 address is never written as an IPv6 one.
    pub from: IpAddr,
    /// HTTP method.
    pub method: String,
    /// Path, without query.
    pub path: String,
    /// Query, without question mark; may be empty.
    pub query: String,
    /// The bearer token of `authorization`, if there is one.
    pub bearer: Option<String>,
    /// Body, of at most [`BODY`] bytes.
    pub body: Bytes,
}
/// Answers requests, knowing who asks. Runs on the thread that serves.
pub type RequestHandler = Rc<dyn Fn(AdminRequest) -> Pin<Box<dyn Future<Output = Answer>>>>;

/// Most bytes of a request's body; a longer one is answered with 413.
const BODY: usize = 64 << 10;

/// A handler that has its answers at hand.
pub fn pages(answer: impl Fn(&str, &str, &str) -> Answer + 'static) -> Handler {
    Rc::new(move |method, path, query| Box::pin(std::future::ready(answer(method, path, query))))
}

/// Connections of one endpoint, and of them those of one source; then the oldest gives way, of the source that has the most.
/// (Readiness is asked for from outside: who fills the places must not make the process look dead.)
const PLACES: Limits = Limits { per_source: 64, ..Limits::even(256) };
/// A request must be here, and answered, within this time.
const PATIENCE: Duration = Duration::from_secs(30);
/// An answer that is a stream has ended within this time, whatever its page says.
const LONGEST_STREAM: Duration = Duration::from_secs(3600);

/// A text answer.
pub fn text(status: u16, body: impl Into<Bytes>) -> Answer {
    typed(status, "text/plain; charset=utf-8", body)
}
/// A JSON answer.
pub fn json(body: &serde_json::Value) -> Answer {
    typed(200, "application/json", serde_json::to_vec_pretty(body).unwrap_or_default())
}
/// An answer with a content type.
pub fn typed(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Page::Whole(Full::new(body.into())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}
/// An answer that goes on until its sender ends, or an hour has passed.
pub fn stream(content_type: &'static str, parts: mpsc::Receiver<Bytes>) -> Answer {
    let mut response = Response::new(Page::Stream(parts));
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

/// Binds an endpoint.
///
/// # Errors
/// With the address and what to do, if it is taken.
pub async fn bind(addr: SocketAddr, option: &str) -> io::Result<TcpListener> {
    let bound = match TcpListener::bind(addr).await {
        Err(e) => match crate::socket::without_ipv6(addr, &e) {
            Some(at) => TcpListener::bind(at).await,
            None => Err(e),
        },
        r => r,
    };
    bound.map_err(|e| {
        io::Error::new(e.kind(), format!("cannot listen on {addr}: {e}; choose another address with {option}"))
    })
}

/// Serves until the process ends. Must run in a `LocalSet`.
pub fn serve(listener: TcpListener, handler: Handler) -> Pin<Box<dyn Future<Output = ()>>> {
    serve_requests(listener, Rc::new(move |asked| handler(&asked.method, &asked.path, &asked.query)))
}

/// As [`serve`], for a handler that must know who asks.
pub fn serve_requests(listener: TcpListener, handler: RequestHandler) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(async move {
        let places = Admission::new(PLACES);
        loop {
            let (stream, from) = crate::accept::accept(&listener).await;
            let Ok(permit) = Permit::admit(&[&places], &Source::address(from.ip(), false)) else { continue };
            let handler = handler.clone();
            tokio::task::spawn_local(async move {
                let streams = Rc::new(Cell::new(false));
                let told = streams.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let (handler, told) = (handler.clone(), told.clone());
                    async move {
                        let answer = match asked(request, from.ip().to_canonical()).await {
                            Some(asked) => handler(asked).await,
                            None => text(413, format!("the body has more than {BODY} bytes\n")),
                        };
                        told.set(matches!(answer.body(), Page::Stream(_)));
                        Ok::<_, Infallible>(answer)
                    }
                });
                let conn = hyper::server::conn::http1::Builder::new()
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                let served = async {
                    tokio::pin!(conn);
                    let late = tokio::time::timeout(PATIENCE, &mut conn).await.is_err();
                    if late && streams.get() {
                        let _ = conn.await;
                    }
                };
                let _ = permit.within(LONGEST_STREAM, served).await;
            });
        }
    })
}

/// The request with its body; None if that is too long or breaks off.
async fn asked(request: Request<Incoming>, from: IpAddr) -> Option<AdminRequest> {
    let (head, body) = request.into_parts();
    let bearer = head.headers.get(hyper::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    Some(AdminRequest {
        from,
        method: head.method.as_str().into(),
        // istioctl asks for `//version`.
        path: format!("/{}", head.uri.path().trim_start_matches('/')),
        query: head.uri.query().unwrap_or_default().into(),
        bearer: bearer.and_then(|value| value.strip_prefix("Bearer ")).map(String::from),
        body: Limited::new(body, BODY).collect().await.ok()?.to_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpSocket, TcpStream},
        task::LocalSet,
    };

    #[tokio::test]
    async fn who_says_nothing_does_not_stop_the_pages() {
        let ask = async {
            let l = TcpListener::bind("0.0.0.0:0").await.unwrap();
            let to = SocketAddr::from(([127, 0, 0, 1], l.local_addr().unwrap().port()));
            tokio::task::spawn_local(serve(l, pages(|_, _, _| text(200, "ready\n"))));
            let mut held = vec![];
            for i in 0..2 * PLACES.total {
                let s = TcpSocket::new_v4().unwrap();
                s.bind(([127, 0, 1, (i % 8) as u8 + 1], 0).into()).unwrap();
                held.push(s.connect(to).await);
            }
            let mut s = TcpStream::connect(to).await.unwrap();
            s.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            s.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ready\n"), "{answer}");
        };
        tokio::time::timeout(Duration::from_secs(20), LocalSet::new().run_until(ask)).await.unwrap();
    }

    #[tokio::test]
    async fn a_handler_is_told_who_asks_and_long_bodies_are_refused() {
        let ask = async {
            let listener = TcpListener::bind("[::]:0").await.unwrap();
            let to = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
            let handler: RequestHandler = Rc::new(|asked| {
                let line = format!(
                    "{} {} {} {} {:?} {}",
                    asked.from,
                    asked.method,
                    asked.path,
                    asked.query,
                    asked.bearer,
                    asked.body.len()
                );
                Box::pin(std::future::ready(text(200, line)))
            });
            tokio::task::spawn_local(serve_requests(listener, handler));
            let exchange = async |body: usize| {
                let mut stream = TcpStream::connect(to).await.unwrap();
                let head = format!(
                    "PUT //a?b=c HTTP/1.1\r\nhost: x\r\nauthorization: Bearer t\r\ncontent-length: {body}\r\n\r\n"
                );
                stream.write_all(head.as_bytes()).await.unwrap();
                let _ = stream.write_all(&vec![b'x'; body]).await;
                let mut answer = vec![];
                let _ = stream.read_to_end(&mut answer).await;
                String::from_utf8(answer).unwrap()
            };
            let short = exchange(3).await;
            assert!(short.ends_with("127.0.0.1 PUT /a b=c Some(\"t\") 3"), "{short}");
            let long = exchange(BODY + 1).await;
            assert!(long.starts_with("HTTP/1.1 413"), "{long}");
        };
        tokio::time::timeout(Duration::from_secs(20), LocalSet::new().run_until(ask)).await.unwrap();
    }

    /// It outlasts the time that a page has, and whoever makes it is told when nobody reads any more.
    #[tokio::test]
    async fn a_stream_is_sent_as_it_comes_and_ends_with_its_reader() {
        let ask = async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let to = listener.local_addr().unwrap();
            let (sender, parts) = mpsc::channel(1);
            let parts = Cell::new(Some(parts));
            let handler: RequestHandler =
                Rc::new(move |_| Box::pin(std::future::ready(super::stream("text/plain", parts.take().unwrap()))));
            tokio::task::spawn_local(serve_requests(listener, handler));
            let mut reader = TcpStream::connect(to).await.unwrap();
            reader.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            for part in ["first", "second"] {
                sender.send(Bytes::from(part)).await.unwrap();
                let mut heard = String::new();
                while !heard.contains(part) {
                    let mut some = [0; 512];
                    let read = reader.read(&mut some).await.unwrap();
                    assert!(read > 0, "it goes on: {heard}");
                    heard.push_str(std::str::from_utf8(&some[..read]).unwrap());
                }
                tokio::time::pause();
                tokio::time::advance(2 * PATIENCE).await;
                tokio::time::resume();
            }
            drop(reader);
            sender.closed().await;
        };
        tokio::time::timeout(6 * PATIENCE, LocalSet::new().run_until(ask)).await.unwrap();
    }
}
