//! The small HTTP/1.1 server behind admin, metrics and readiness. Loopback unless told otherwise.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, future::Future, io, net::SocketAddr, pin::Pin, rc::Rc, sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// An answer.
pub type Answer = Response<Full<Bytes>>;
/// Answers requests: method, path, query. Runs on the thread that serves.
pub type Handler = Rc<dyn Fn(&str, &str, &str) -> Pin<Box<dyn Future<Output = Answer>>>>;

/// A handler that has its answers at hand.
pub fn pages(f: impl Fn(&str, &str, &str) -> Answer + 'static) -> Handler {
    Rc::new(move |method, path, query| Box::pin(std::future::ready(f(method, path, query))))
}

/// Requests that one endpoint serves at a time; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 64;

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
    let mut r = Response::new(Full::new(body.into()));
    *r.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    r.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    r
}

/// Binds an endpoint.
///
/// # Errors
/// With the address and what to do, if it is taken.
pub async fn bind(addr: SocketAddr, knob: &str) -> io::Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|e| {
        io::Error::new(e.kind(), format!("cannot listen on {addr}: {e}; choose another address with {knob}"))
    })
}

/// Serves until the process ends. Must run in a `LocalSet`.
pub fn serve(l: TcpListener, handler: Handler) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(async move {
        let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let (s, _) = crate::accept::accept(&l).await;
            let h = handler.clone();
            tokio::task::spawn_local(async move {
                let service = service_fn(move |r: Request<Incoming>| {
                    let a = h(r.method().as_str(), r.uri().path(), r.uri().query().unwrap_or(""));
                    async move { Ok::<_, Infallible>(a.await) }
                });
                let conn = hyper::server::conn::http1::Builder::new()
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(s), service);
                let _ = tokio::time::timeout(Duration::from_secs(30), conn).await;
                drop(slot);
            });
        }
    })
}
