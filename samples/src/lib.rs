//! Small services to try a mesh with. They know nothing of it: no TLS, no library, no environment.

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Request, Response, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::{convert::Infallible, io, net::SocketAddr, sync::Arc};
use tokio::net::{TcpListener, TcpStream};

/// The gRPC service.
#[allow(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto file, which has the comments"
)]
pub mod echo {
    tonic::include_proto!("karst.samples.v1");
}

/// The service of Istio's echo application.
#[allow(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated from the .proto file, which has the comments"
)]
pub mod istio_echo {
    tonic::include_proto!("proto");
}

/// What each server is told.
#[derive(Args, Clone, Debug)]
pub struct Serve {
    /// Where to listen.
    #[arg(long, env = "LISTEN", value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// What it calls itself.
    #[arg(long, env = "HOSTNAME", default_value = "sample")]
    pub name: String,
    /// Its version.
    #[arg(long, env = "RELEASE", default_value = "v1")]
    pub release: String,
}

impl Serve {
    /// Listens, and says so on the standard output.
    ///
    /// # Errors
    /// Names the address.
    pub async fn listener(&self) -> io::Result<TcpListener> {
        let l = TcpListener::bind(self.listen)
            .await
            .map_err(|e| io::Error::new(e.kind(), format!("cannot listen at {}: {e}", self.listen)))?;
        println!("{} {} listens at {}", self.name, self.release, l.local_addr()?);
        Ok(l)
    }
}

/// Answers HTTP/1.1 requests, each with its client's address, until the process ends.
///
/// # Errors
/// Those of accepting.
pub async fn http<F>(
    l: TcpListener,
    answer: impl Fn(SocketAddr, Request<Incoming>) -> F + Send + Sync + 'static,
) -> io::Result<Infallible>
where
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let answer = Arc::new(answer);
    loop {
        let (s, peer) = l.accept().await?;
        let _ = s.set_nodelay(true);
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |r| {
                let a = answer(peer, r);
                async move { Ok::<_, Infallible>(a.await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            // The client may go when it likes.
            let _ = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(s), service).await;
        });
    }
}

/// Asks a service on a connection of its own; gives status and JSON, text in `error`.
///
/// # Errors
/// Those of the connection and of HTTP.
pub async fn ask(host: &str, port: u16, r: hyper::http::request::Builder) -> anyhow::Result<(u16, Value)> {
    let tcp = TcpStream::connect((host, port)).await?;
    let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
    tokio::spawn(conn);
    let r = r.header(header::HOST, format!("{host}:{port}")).body(Empty::<Bytes>::new())?;
    let a = send.send_request(r).await?;
    let status = a.status().as_u16();
    let body = a.into_body().collect().await?.to_bytes();
    let text = || json!({ "error": String::from_utf8_lossy(&body) });
    Ok((status, serde_json::from_slice(&body).unwrap_or_else(|_| text())))
}
