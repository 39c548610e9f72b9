//! HTTP/1.1: answers with who it is and what it was asked.
//!
//! `/` and any other path: JSON. `/status/CODE`: that status. `/delay/MS`: the answer comes so much later, at most a minute.
//! `/bytes/N`: so many bytes, at most 64 MiB.

use anyhow::Result;
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use samples::Serve;
use serde_json::{Map, Value, json};
use std::{convert::Infallible, net::SocketAddr, time::Duration};

/// An HTTP service that says who answers.
#[derive(Parser)]
#[command(name = "sample-http", version)]
struct Cli {
    #[command(flatten)]
    serve: Serve,
}

const MAX_DELAY_MS: u64 = 60_000;
const MAX_BYTES: usize = 64 << 20;

#[tokio::main]
async fn main() -> Result<()> {
    let me = Cli::parse().serve;
    let l = me.listener().await?;
    loop {
        let (s, peer) = l.accept().await?;
        let _ = s.set_nodelay(true);
        let me = me.clone();
        tokio::spawn(async move {
            let service = service_fn(move |r| answer(me.clone(), peer, r));
            // The client may go when it likes.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(s), service)
                .await;
        });
    }
}

async fn answer(me: Serve, peer: SocketAddr, r: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = r.uri().path().to_string();
    let number = |prefix: &str| path.strip_prefix(prefix).and_then(|n| n.parse::<u64>().ok());
    let status = number("/status/").and_then(|n| StatusCode::from_u16(u16::try_from(n).ok()?).ok());
    if let Some(ms) = number("/delay/") {
        tokio::time::sleep(Duration::from_millis(ms.min(MAX_DELAY_MS))).await;
    }
    if let Some(n) = number("/bytes/") {
        let n = usize::try_from(n).unwrap_or(MAX_BYTES).min(MAX_BYTES);
        return Ok(Response::new(Full::new(vec![b'.'; n].into())));
    }
    let headers: Map<String, Value> =
        r.headers().iter().map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into())).collect();
    let (method, host) = (r.method().to_string(), headers.get("host").cloned());
    let body = r.into_body().collect().await.map(|b| b.to_bytes().len()).unwrap_or(0);
    let text = json!({
        "name": me.name, "release": me.release, "peer": peer.to_string(), "method": method, "host": host, "path": path,
        "headers": headers, "body_bytes": body,
    });
    let mut a = Response::new(Full::new(format!("{text:#}\n").into()));
    *a.status_mut() = status.unwrap_or(StatusCode::OK);
    a.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    Ok(a)
}
