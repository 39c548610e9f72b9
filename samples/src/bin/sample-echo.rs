//! Answers as Istio's echo application does, as far as Gateway API's conformance tests read it. Called `client`, it asks.
//!
//! The server takes the flags of the original: `--port` (HTTP/1.1), `--grpc`, `--tcp`, each as often as needed; a port that is named
//! with `--tls`, too, is left out, and `--crt`, `--key` are passed over: the tests call nothing by TLS.
//!
//! `client http://HOST[:PORT]/PATH [--method M] [-H NAME:VALUE]... [--count N]`, or `grpc://HOST:PORT`.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, header};
use hyper_util::rt::TokioIo;
use samples::istio_echo::{
    EchoRequest, EchoResponse,
    echo_test_service_client::EchoTestServiceClient,
    echo_test_service_server::{EchoTestService, EchoTestServiceServer},
};
use std::{fmt::Write, net::SocketAddr, path::Path};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Status, metadata::KeyAndValueRef};

/// Answers with what it was asked.
#[derive(Parser)]
#[command(name = "server", version)]
struct Server {
    /// Ports of HTTP/1.1.
    #[arg(long)]
    port: Vec<u16>,
    /// Ports of gRPC.
    #[arg(long)]
    grpc: Vec<u16>,
    /// Ports that send back what comes.
    #[arg(long)]
    tcp: Vec<u16>,
    /// Ports that are left out.
    #[arg(long)]
    tls: Vec<u16>,
    /// Passed over.
    #[arg(long)]
    crt: Option<String>,
    /// Passed over.
    #[arg(long)]
    key: Option<String>,
    /// What it calls itself.
    #[arg(long, env = "HOSTNAME", default_value = "echo")]
    name: String,
}

/// Asks, and prints what is answered.
#[derive(Parser)]
#[command(name = "client", version)]
struct Client {
    /// `http://HOST[:PORT]/PATH` or `grpc://HOST:PORT`
    url: http::Uri,
    #[arg(long, default_value = "GET")]
    method: String,
    /// NAME:VALUE
    #[arg(short = 'H')]
    headers: Vec<String>,
    /// Requests, one after the other.
    #[arg(long, default_value_t = 1)]
    count: u32,
}

#[tokio::main]
async fn main() -> Result<()> {
    let program = std::env::args_os().next().unwrap_or_default();
    if Path::new(&program).file_name().is_some_and(|n| n == "client") {
        return ask(Client::parse()).await;
    }
    let s = Server::parse();
    let at = |p: u16| SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, p));
    for p in s.port.iter().filter(|p| !s.tls.contains(p)).copied() {
        let (l, name) = (TcpListener::bind(at(p)).await?, s.name.clone());
        tokio::spawn(samples::http(l, move |peer, r| {
            let name = name.clone();
            async move { http_answer(&name, p, peer, r).await }
        }));
    }
    for p in s.tcp.iter().copied() {
        let l = TcpListener::bind(at(p)).await?;
        tokio::spawn(async move {
            while let Ok((mut s, _)) = l.accept().await {
                tokio::spawn(async move {
                    let mut buf = [0; 4096];
                    while let Ok(n @ 1..) = s.read(&mut buf).await {
                        if s.write_all(&buf[..n]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }
    for p in s.grpc.iter().copied() {
        let l = TcpListener::bind(at(p)).await?;
        let service = EchoTestServiceServer::new(Grpc { name: s.name.clone(), port: p });
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(l)));
    }
    println!("{} serves HTTP {:?}, gRPC {:?}, TCP {:?}", s.name, s.port, s.grpc, s.tcp);
    std::future::pending().await
}

/// What both protocols tell.
fn told(
    name: &str,
    port: u16,
    peer: Option<SocketAddr>,
    lines: &[(&str, &str)],
    headers: &[(String, String)],
) -> String {
    let mut out = format!("ServiceVersion=\nServicePort={port}\n");
    for (k, v) in lines {
        let _ = writeln!(out, "{k}={v}");
    }
    if let Some(p) = peer {
        let _ = writeln!(out, "IP={}", p.ip().to_canonical());
    }
    for (k, v) in headers {
        let _ = writeln!(out, "RequestHeader={k}:{v}");
    }
    let _ = writeln!(out, "Hostname={name}");
    out
}

async fn http_answer(name: &str, port: u16, peer: SocketAddr, r: Request<Incoming>) -> Response<Full<Bytes>> {
    let text = |v: &header::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
    let host = r.headers().get(header::HOST).map(text).unwrap_or_default();
    let all: Vec<_> = r
        .headers()
        .iter()
        .filter(|(k, _)| **k != header::HOST)
        .map(|(k, v)| (canonical(k.as_str()), text(v)))
        .collect();
    let url = r.uri().to_string();
    let proto = format!("{:?}", r.version());
    let lines = [("Host", host.as_str()), ("URL", &url), ("Method", r.method().as_str()), ("Proto", &proto)];
    Response::new(Full::new(told(name, port, Some(peer), &lines, &all).into()))
}

/// As Go writes names of headers.
fn canonical(name: &str) -> String {
    let word = |w: &str| w.get(..1).unwrap_or("").to_uppercase() + w.get(1..).unwrap_or("");
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}

struct Grpc {
    name: String,
    port: u16,
}

#[tonic::async_trait]
impl EchoTestService for Grpc {
    async fn echo(&self, r: tonic::Request<EchoRequest>) -> Result<tonic::Response<EchoResponse>, Status> {
        let mut all = vec![];
        for m in r.metadata().iter() {
            if let KeyAndValueRef::Ascii(k, v) = m {
                all.push((canonical(k.as_str()), v.to_str().unwrap_or_default().to_string()));
            }
        }
        let mut message = told(&self.name, self.port, r.remote_addr(), &[("Proto", "GRPC")], &all);
        let _ = writeln!(message, "Echo={}", r.get_ref().message);
        Ok(tonic::Response::new(EchoResponse { message }))
    }
}

async fn ask(c: Client) -> Result<()> {
    let host = c.url.host().context("the URL names no host")?.to_string();
    match c.url.scheme_str() {
        Some("http") => ask_http(&c, &host).await,
        Some("grpc") => ask_grpc(&c, &host).await,
        other => bail!("scheme {other:?} is neither http nor grpc"),
    }
}

/// The lines of one answer.
fn print(n: u32, c: &Client, status: u16, headers: &[(String, String)], body: &str) {
    let mut out = format!("[{n}] Url={}\n[{n}] StatusCode={status}\n", c.url);
    for (k, v) in headers {
        let _ = writeln!(out, "[{n}] ResponseHeader={k}:{v}");
    }
    for l in body.lines() {
        let _ = writeln!(out, "[{n} body] {l}");
    }
    println!("{out}");
}

async fn ask_http(c: &Client, host: &str) -> Result<()> {
    let port = c.url.port_u16().unwrap_or(80);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let mut kept = None;
    for n in 0..c.count {
        let mut send = match kept.take() {
            Some(s) => s,
            None => {
                let s = TcpStream::connect((bare, port)).await.with_context(|| format!("{host}:{port}"))?;
                let (send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(s)).await?;
                tokio::spawn(conn);
                send
            }
        };
        let authority = c.url.authority().map_or(host, |a| a.as_str());
        let path = c.url.path_and_query().map_or("/", |p| p.as_str());
        let mut r = Request::builder().method(c.method.as_str()).uri(path).header(header::HOST, authority);
        for h in &c.headers {
            let (k, v) = h.split_once(':').with_context(|| format!("-H {h:?} is not NAME:VALUE"))?;
            r = match k.eq_ignore_ascii_case("host") {
                true => {
                    let mut r = r;
                    if let Some(all) = r.headers_mut() {
                        all.insert(header::HOST, v.trim().parse()?);
                    }
                    r
                }
                false => r.header(k, v.trim()),
            };
        }
        let a = send.send_request(r.body(Full::<Bytes>::default())?).await?;
        let headers: Vec<_> = a
            .headers()
            .iter()
            .map(|(k, v)| (canonical(k.as_str()), String::from_utf8_lossy(v.as_bytes()).into_owned()))
            .collect();
        let status = a.status().as_u16();
        let body = a.into_body().collect().await?.to_bytes();
        print(n, c, status, &headers, &String::from_utf8_lossy(&body));
        kept = send.ready().await.is_ok().then_some(send);
    }
    Ok(())
}

async fn ask_grpc(c: &Client, host: &str) -> Result<()> {
    let at = format!("http://{host}:{}", c.url.port_u16().unwrap_or(7070));
    let mut client = EchoTestServiceClient::connect(at).await?;
    for n in 0..c.count {
        let mut r = tonic::Request::new(EchoRequest { message: n.to_string() });
        for h in &c.headers {
            let (k, v) = h.split_once(':').with_context(|| format!("-H {h:?} is not NAME:VALUE"))?;
            let k: tonic::metadata::MetadataKey<tonic::metadata::Ascii> = k.to_ascii_lowercase().parse()?;
            r.metadata_mut().insert(k, v.trim().parse()?);
        }
        let a = client.echo(r).await?;
        print(n, c, 200, &[], &a.get_ref().message);
    }
    Ok(())
}
