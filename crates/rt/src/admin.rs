//! The small HTTP/1.1 server behind admin, metrics and readiness. Loopback unless told otherwise.

use crate::admission::{Admission, Limits, Permit, Source};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, future::Future, io, net::SocketAddr, pin::Pin, rc::Rc, time::Duration};
use tokio::net::TcpListener;

/// An answer.
pub type Answer = Response<Full<Bytes>>;
/// Answers requests: method, path, query. Runs on the thread that serves.
pub type Handler = Rc<dyn Fn(&str, &str, &str) -> Pin<Box<dyn Future<Output = Answer>>>>;

/// A handler that has its answers at hand.
pub fn pages(answer: impl Fn(&str, &str, &str) -> Answer + 'static) -> Handler {
    Rc::new(move |method, path, query| Box::pin(std::future::ready(answer(method, path, query))))
}

/// Connections of one endpoint, and of them those of one source; then the oldest gives way, of the source that has the most.
/// (Readiness is asked for from outside: who fills the places must not make the process look dead.)
const PLACES: Limits = Limits { per_source: 64, ..Limits::even(256) };
/// A request must be here, and answered, within this time.
const PATIENCE: Duration = Duration::from_secs(30);

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
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
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
    Box::pin(async move {
        let places = Admission::new(PLACES);
        loop {
            let (stream, from) = crate::accept::accept(&listener).await;
            let Ok(permit) = Permit::admit(&[&places], &Source::address(from.ip(), false)) else { continue };
            let handler = handler.clone();
            tokio::task::spawn_local(async move {
                let service = service_fn(move |r: Request<Incoming>| {
                    let answer = handler(r.method().as_str(), r.uri().path(), r.uri().query().unwrap_or(""));
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let conn = hyper::server::conn::http1::Builder::new()
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                let _ = permit.within(PATIENCE, conn).await;
            });
        }
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
}
