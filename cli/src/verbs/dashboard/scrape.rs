//! A proxy's metrics from its pod's own address, as Prometheus reads them.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{ACCEPT, HOST},
};
use hyper_util::rt::TokioIo;
use std::{io, net::SocketAddr};
use tokio::net::TcpStream;

/// Largest page, in bytes. Those of nodes with many pods have some MB; one of a proxy of somebody else's must not fill the memory.
const MAX_PAGE: usize = 64 << 20;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScrapeError {
    /// Nobody listens, or a NetworkPolicy does not let us through.
    #[error("port {port} cannot be connected to: {error}", port = .0.port(), error = .1)]
    Connect(SocketAddr, io::Error),
    /// What answers does not speak HTTP, or breaks off.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// It has no such page.
    #[error("it answers {0} to /metrics")]
    Status(StatusCode),
    /// It is longer than [`MAX_PAGE`], or breaks off.
    #[error("the page of metrics cannot be read: {0}")]
    Page(Box<dyn std::error::Error + Send + Sync>),
    /// It is of other characters.
    #[error("the page of metrics is no text: {0}")]
    Text(#[from] std::string::FromUtf8Error),
    /// The address cannot be asked.
    #[error(transparent)]
    Request(#[from] http::Error),
}

/// The page `/metrics` of an address.
pub(super) async fn scrape(at: SocketAddr) -> Result<String, ScrapeError> {
    let request = Request::get("/metrics").header(HOST, at.to_string()).header(ACCEPT, "text/plain;version=0.0.4");
    let request = request.body(Empty::<Bytes>::new())?;
    let stream = TcpStream::connect(at).await.map_err(|e| ScrapeError::Connect(at, e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let read = async move {
        let answer = sender.send_request(request).await?;
        if answer.status() != StatusCode::OK {
            return Err(ScrapeError::Status(answer.status()));
        }
        let page = Limited::new(answer.into_body(), MAX_PAGE).collect().await.map_err(ScrapeError::Page)?;
        Ok(String::from_utf8(page.to_bytes().into())?)
    };
    tokio::pin!(read);
    tokio::select! {
        done = &mut read => done,
        ended = connection => match ended {
            // Closed after all was read.
            Ok(()) => read.await,
            Err(e) => Err(e.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_rt::admin;
    use tokio::{net::TcpListener, task::LocalSet};

    #[tokio::test]
    async fn a_page_is_read_and_what_is_none_is_told() {
        let run = async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = listener.local_addr().unwrap();
            let pages = admin::pages(|method, path, _| match (method, path) {
                ("GET", "/metrics") => admin::text(200, "up 1\n".repeat(100_000)),
                _ => admin::text(404, "none\n"),
            });
            let served = tokio::task::spawn_local(admin::serve(listener, pages));
            assert_eq!(scrape(at).await.unwrap().lines().count(), 100_000);
            served.abort();
            let _ = served.await;
            assert!(matches!(scrape(at).await, Err(ScrapeError::Connect(to, _)) if to == at));
            let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = other.local_addr().unwrap();
            tokio::task::spawn_local(admin::serve(other, admin::pages(|_, _, _| admin::text(503, "later\n"))));
            let error = scrape(at).await.unwrap_err();
            assert_eq!(error.to_string(), "it answers 503 Service Unavailable to /metrics");
        };
        LocalSet::new().run_until(run).await;
    }
}
