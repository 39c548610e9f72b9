//! HTTP/1.1: answers with who it is and what it was asked, and writes a line for each request.
//!
//! `/` and any other path: JSON. `/status/CODE`: that status. `/delay/MS`: the answer comes so much later, at most a minute.
//! `/bytes/N`: so many bytes, at most 64 MiB.
//!
//! `--flavour httpbin`: the paths and answers of the httpbin that exercises use (`/get`, `/headers`, `/ip`, `/post`, `/anything`,
//! `/user-agent`, `/status/CODE`, `/delay/SECONDS`). `--flavour nginx`: a page that names the release. `--flavour authz`: what Envoy's
//! `ext_authz` asks by HTTP: yes to requests with `x-user: alice`, no to all others.

use anyhow::Result;
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, header};
use samples::Serve;
use serde_json::{Map, Value, json};
use std::{net::SocketAddr, time::Duration};

/// An HTTP service that says who answers.
#[derive(Parser)]
#[command(name = "sample-http", version)]
struct Cli {
    #[command(flatten)]
    serve: Serve,
    /// Whose paths and answers.
    #[arg(long, value_enum, default_value = "plain")]
    flavour: Flavour,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Flavour {
    Plain,
    Httpbin,
    Nginx,
    Authz,
}

const MAX_DELAY_MS: u64 = 60_000;
const MAX_BYTES: usize = 64 << 20;

#[tokio::main]
async fn main() -> Result<()> {
    let Cli { serve: me, flavour } = Cli::parse();
    let l = me.listener().await?;
    match samples::http(l, move |peer, r| logged(me.clone(), flavour, peer, r)).await? {}
}

async fn logged(me: Serve, flavour: Flavour, peer: SocketAddr, r: Request<Incoming>) -> Response<Full<Bytes>> {
    let what = format!("{} {}", r.method(), r.uri());
    let a = match flavour {
        Flavour::Plain => answer(&me, peer, r).await,
        Flavour::Httpbin => httpbin(peer, r).await,
        Flavour::Nginx => nginx(&me, &r),
        Flavour::Authz => authz(&r),
    };
    println!("{peer} \"{what}\" {}", a.status().as_u16());
    a
}

fn json_of(status: StatusCode, v: &Value) -> Response<Full<Bytes>> {
    let mut a = Response::new(Full::new(format!("{v:#}\n").into()));
    *a.status_mut() = status;
    a.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    a
}

fn number(path: &str, prefix: &str) -> Option<u64> {
    path.strip_prefix(prefix)?.parse().ok()
}

fn status_of(path: &str) -> Option<StatusCode> {
    StatusCode::from_u16(u16::try_from(number(path, "/status/")?).ok()?).ok()
}

async fn httpbin(peer: SocketAddr, r: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = r.uri().path().to_string();
    let text = |v: &header::HeaderValue| Value::from(String::from_utf8_lossy(v.as_bytes()));
    let mut headers = Map::new();
    for (k, v) in r.headers() {
        // As they are usually written.
        let name: Vec<String> = k.as_str().split('-').map(|w| w[..1].to_uppercase() + &w[1..]).collect();
        let all = headers.entry(name.join("-")).or_insert_with(|| json!([]));
        if let Some(all) = all.as_array_mut() {
            all.push(text(v));
        }
    }
    let host = r.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default().to_string();
    let mut args = Map::new();
    for (k, v) in r.uri().query().unwrap_or("").split('&').filter_map(|p| p.split_once('=')) {
        args.insert(k.into(), json!([v]));
    }
    let (method, origin) = (r.method().to_string(), peer.ip().to_canonical().to_string());
    let url = format!("http://{host}{}", r.uri());
    let agent = r.headers().get(header::USER_AGENT).map(text).unwrap_or_default();
    if let Some(s) = number(&path, "/delay/") {
        tokio::time::sleep(Duration::from_secs(s.min(10))).await;
    }
    if let Some(s) = status_of(&path) {
        let mut a = Response::new(Full::default());
        *a.status_mut() = s;
        return a;
    }
    let all = json!({ "args": args, "headers": headers, "method": method, "origin": origin, "url": url });
    match path.as_str() {
        "/headers" => json_of(StatusCode::OK, &json!({ "headers": headers })),
        "/ip" => json_of(StatusCode::OK, &json!({ "origin": origin })),
        "/user-agent" => json_of(StatusCode::OK, &json!({ "user-agent": agent })),
        "/get" => json_of(StatusCode::OK, &all),
        p if p == "/post" || p.starts_with("/anything") || p.starts_with("/delay/") => {
            let body = r.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
            let mut all = all;
            all["data"] = String::from_utf8_lossy(&body).into();
            json_of(StatusCode::OK, &all)
        }
        "/" => Response::new(Full::new("<html><head><title>httpbin</title></head><body>/get /headers /ip /post /anything /user-agent /status/CODE /delay/SECONDS</body></html>\n".into())),
        _ => json_of(StatusCode::NOT_FOUND, &json!({ "error": "not found" })),
    }
}

fn nginx(me: &Serve, r: &Request<Incoming>) -> Response<Full<Bytes>> {
    if let Some(s) = status_of(r.uri().path()) {
        let mut a = Response::new(Full::default());
        *a.status_mut() = s;
        return a;
    }
    let page = format!(
        "<!DOCTYPE html>\n<html><head><title>Welcome to nginx!</title></head><body><h1>{} {}</h1></body></html>\n",
        me.name, me.release
    );
    let mut a = Response::new(Full::new(page.into()));
    a.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/html; charset=utf-8"));
    a
}

/// May this request go on? What is said beside the status are headers: of a yes for the service, of a no for the client.
fn authz(r: &Request<Incoming>) -> Response<Full<Bytes>> {
    let is_alice = r.headers().get("x-user").is_some_and(|user| user == "alice");
    let (status, name, text) = match is_alice {
        true => (StatusCode::OK, "x-checked-by", ""),
        false => (StatusCode::FORBIDDEN, "x-decided-by", "not for you\n"),
    };
    let mut a = Response::new(Full::new(text.into()));
    *a.status_mut() = status;
    a.headers_mut().insert(name, header::HeaderValue::from_static("checks"));
    a
}

async fn answer(me: &Serve, peer: SocketAddr, r: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = r.uri().path().to_string();
    if let Some(ms) = number(&path, "/delay/") {
        tokio::time::sleep(Duration::from_millis(ms.min(MAX_DELAY_MS))).await;
    }
    if let Some(n) = number(&path, "/bytes/") {
        let n = usize::try_from(n).unwrap_or(MAX_BYTES).min(MAX_BYTES);
        return Response::new(Full::new(vec![b'.'; n].into()));
    }
    let headers: Map<String, Value> =
        r.headers().iter().map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into())).collect();
    let (method, host) = (r.method().to_string(), headers.get("host").cloned());
    let body = r.into_body().collect().await.map(|b| b.to_bytes().len()).unwrap_or(0);
    let text = json!({
        "name": me.name, "release": me.release, "peer": peer.to_string(), "method": method, "host": host, "path": path,
        "headers": headers, "body_bytes": body,
    });
    json_of(status_of(&path).unwrap_or(StatusCode::OK), &text)
}
