//! The tool as a client.

use crate::{
    certs::{Ca, Leaf, spiffe_name},
    options::Server,
    report::{Report, Seen, bad, good, seen},
};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::SendRequest};
use http::{Method, Request, Response};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// No single step takes longer, unless the server hangs.
const STEP: Duration = Duration::from_secs(10);
/// "A bounded time" (2.2): what we wait for.
const BOUNDED: Duration = Duration::from_secs(30);
/// What a server may take in for a stream that nobody reads.
const BACKLOG: usize = 64 << 20;
const TINY: usize = 10_000;

/// A tunnel, for streams.
pub type Sender = SendRequest<Bytes>;

/// Waits for a step.
pub async fn step<T>(f: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(STEP, f).await.context("no answer within 10 s")?
}

/// Runs every check.
pub async fn run(s: &Server, ca: &Ca, report: &mut Report) -> Result<()> {
    let me = &s.common.identity;
    let config = ca.client(Some(ca.issue(&Leaf::good(me))?), "h2")?;
    let silent = tokio::spawn(silent(s.to));
    let idle = tokio::spawn(without_preface(s.to, config.clone()));

    let tls = step(dial(s.to, config.clone())).await.context("no tunnel can be opened with a good certificate")?;
    let (_, c) = tls.get_ref();
    report.add(
        "3.1",
        "version",
        "TLS 1.3",
        match c.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => good("TLS 1.3"),
            other => bad(format!("{other:?}")),
        },
    );
    let alpn = c.alpn_protocol().map(String::from_utf8_lossy).unwrap_or_default();
    report.add("3.2", "ALPN", "h2", seen(alpn == "h2", alpn));
    report.add(
        "3.3",
        "the server's name",
        &s.expect,
        match spiffe_name(c.peer_certificates()) {
            Ok(n) => seen(n == s.expect, n),
            Err(e) => bad(e.to_string()),
        },
    );
    let group = c.negotiated_key_exchange_group().map(|g| format!("{:?}", g.name())).unwrap_or_default();
    report.add("3.1", "key exchange", "X25519MLKEM768 or X25519", seen(group.starts_with("X25519"), group));
    drop(tls);
    report.add("3.1", "a client of TLS 1.2 only", "refused", old_version(s.to).await);
    let other = ca.client(Some(ca.issue(&Leaf::good(me))?), "http/1.1")?;
    report.add("3.2", "ALPN http/1.1 only", "refused", refused(s, other).await);
    report.add("3.3", "no client certificate", "refused", refused(s, ca.client(None, "h2")?).await);
    let mut wrong = Leaf::bad(me, "spiffe://cluster.local/ns/x/sa/x");
    wrong.push(("for servers only", Leaf { usages: (true, false), ..Leaf::good(me) }));
    for (what, leaf) in wrong {
        let c = ca.client(Some(ca.issue(&leaf)?), "h2")?;
        report.add("3.3", format!("client certificate {what}"), "refused", refused(s, c).await);
    }
    let stranger = Leaf::good("spiffe://another.example/ns/default/sa/default");
    let c = ca.client(Some(ca.issue(&stranger)?), "h2")?;
    report.add("3.4", "a client of another trust domain", "refused", refused(s, c).await);

    streams(s, config, report).await?;
    let bounded = |r: Result<Duration>| match r {
        Ok(t) => good(format!("closed after {:.1} s", t.as_secs_f32())),
        Err(e) => bad(format!("{e:#}")),
    };
    report.add("2.2", "a peer that never says anything", "closed", bounded(silent.await?));
    report.add("2.2", "a peer that never sends the HTTP/2 preface", "closed", bounded(idle.await?));
    Ok(())
}

/// Everything on one tunnel, so that each refusal shows that it leaves the others alone (section 5).
async fn streams(s: &Server, config: Arc<ClientConfig>, report: &mut Report) -> Result<()> {
    let (mut h, mut pings) = step(tunnel(s.to, config)).await?;
    let app = s.application;
    let at = |port: u16| SocketAddr::new(app.ip(), port).to_string();
    let get = Request::get(format!("https://{app}/")).body(())?;
    report.add("4.4", "GET", "400", status(&mut h, get, 400).await);
    let elsewhere = if app.is_ipv4() { "192.0.2.1:80" } else { "[2001:db8::1]:80" };
    let cases = [
        ("4.2", "an authority without a port", app.ip().to_string().replace(':', "."), 400),
        ("4.4", "an address that is not the tunnel's", elsewhere.into(), 400),
        ("4.4", "the proxy's own port 15008", at(15008), 503),
        ("4.4", "the proxy's own port 15001", at(15001), 503),
        ("4.5", "a port on which nothing listens", at(s.closed_port), 503),
        ("5", "an unknown host name", "no-such-service.nowhere.svc.cluster.local:80".into(), 503),
    ];
    for (item, what, authority, code) in cases {
        let Ok(r) = connect(&authority) else { continue };
        report.add(item, what, code.to_string(), status(&mut h, r, code).await);
    }
    let app = app.to_string();
    let data: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    report.add(
        "5",
        "a stream after all these refusals",
        "200",
        verdict(step(echo(&mut h, connect(&app)?, b"x")).await),
    );
    let mut r = connect(&app)?;
    for (n, v) in [("baggage", "===;,,"), ("forwarded", "???"), ("traceparent", "zz-1"), ("x-other", "1")] {
        r.headers_mut().insert(n, http::HeaderValue::from_static(v));
    }
    report.add("4.3", "headers that cannot be read", "200", verdict(step(echo(&mut h, r, b"x")).await));
    report.add("6.1", "1 MB there and back", "same bytes", verdict(step(echo(&mut h, connect(&app)?, &data)).await));
    report.add(
        "6.2",
        "our end, then the answer, then its end",
        "all of it",
        verdict(step(half_close(&mut h, &app)).await),
    );
    report.add("6.4", "a stream that nobody reads", "sender is stopped", backpressure(&mut h, &app).await);
    report.add("6.5", format!("{TINY} DATA frames of one byte"), "carried", verdict(step(tiny(&mut h, &app)).await));
    report.add("6.3", "RST_STREAM by the client", "others go on", verdict(step(reset(&mut h, &app)).await));
    report.add("6", "50 streams at a time", "each has its own bytes", verdict(step(many(&mut h, &app)).await));
    let t = Instant::now();
    let pong = timeout(STEP, pings.ping(h2::Ping::opaque())).await;
    let pong = match pong {
        Ok(Ok(_)) => good(format!("answered after {} ms", t.elapsed().as_millis())),
        Ok(Err(e)) => bad(e.to_string()),
        Err(_) => bad("no answer"),
    };
    report.add("7.1", "PING", "answered", pong);
    Ok(())
}

/// What was seen, or what went wrong.
pub fn verdict(r: Result<String>) -> Seen {
    match r {
        Ok(s) => good(s),
        Err(e) => bad(format!("{e:#}")),
    }
}

/// A CONNECT.
pub fn connect(authority: &str) -> Result<Request<()>> {
    let uri = http::Uri::builder().authority(authority).build()?;
    Ok(Request::builder().method(Method::CONNECT).uri(uri).body(())?)
}

async fn dial(to: SocketAddr, c: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(to).await.with_context(|| format!("cannot connect to {to}"))?;
    tcp.set_nodelay(true)?;
    Ok(TlsConnector::from(c).connect(ServerName::IpAddress(to.ip().into()), tcp).await?)
}

/// A tunnel.
pub async fn tunnel(to: SocketAddr, c: Arc<ClientConfig>) -> Result<(Sender, h2::PingPong)> {
    let tls = dial(to, c).await?;
    let (h, mut conn) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .handshake(tls)
        .await?;
    let pings = conn.ping_pong().context("no pings")?;
    tokio::spawn(conn);
    Ok((h, pings))
}

/// A server that refuses a client's certificate says so after our side of the handshake (RFC 8446 §4.4): so ask for a stream.
async fn refused(s: &Server, c: Arc<ClientConfig>) -> Seen {
    let try_it = async {
        let (h, _pings) = tunnel(s.to, c).await?;
        let mut h = h.ready().await?;
        Ok::<_, anyhow::Error>(h.send_request(connect(&s.application.to_string())?, false)?.0.await?.status())
    };
    match timeout(STEP, try_it).await {
        Err(_) => bad("neither refused nor answered"),
        Ok(Ok(status)) => bad(format!("a stream was answered with {}", status.as_u16())),
        Ok(Err(e)) => good(if e.to_string().contains("alert") { "a TLS alert" } else { "closed" }),
    }
}

/// A ClientHello without `supported_versions` offers TLS 1.2 at most (RFC 8446 §4.2.1).
async fn old_version(to: SocketAddr) -> Seen {
    // Groups x25519, secp256r1; ecdsa and rsa signatures; ALPN h2.
    const EXTENSIONS: &[u8] = b"\0\x0a\0\x06\0\x04\0\x1d\0\x17\0\x0b\0\x02\x01\0\0\x0d\0\x08\0\x06\x04\x03\x08\x04\x04\x01\0\x10\0\x05\0\x03\x02h2";
    let mut body = b"\x03\x03".to_vec();
    body.extend([7; 32]);
    // No session; ECDHE with AES-GCM and ChaCha20; no compression.
    body.extend(b"\0\0\x0c\xc0\x2b\xc0\x2f\xc0\x2c\xc0\x30\xcc\xa9\xcc\xa8\x01\0");
    body.extend((EXTENSIONS.len() as u16).to_be_bytes());
    body.extend(EXTENSIONS);
    let mut record = b"\x16\x03\x01".to_vec();
    record.extend((body.len() as u16 + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend((body.len() as u16).to_be_bytes());
    record.extend(body);
    let run = async {
        let mut s = TcpStream::connect(to).await?;
        s.write_all(&record).await?;
        let mut answer = [0; 7];
        let n = s.read(&mut answer).await.unwrap_or(0);
        Ok::<_, std::io::Error>(answer[..n].to_vec())
    };
    match timeout(STEP, run).await {
        Ok(Ok(a)) if a.is_empty() => good("closed"),
        Ok(Ok(a)) if a[0] == 21 => good(format!("alert {}", a.get(6).copied().unwrap_or_default())),
        Ok(Ok(_)) => bad("the handshake goes on"),
        Ok(Err(e)) => bad(e.to_string()),
        Err(_) => bad("no answer"),
    }
}

async fn silent(to: SocketAddr) -> Result<Duration> {
    closed(TcpStream::connect(to).await?).await
}
async fn without_preface(to: SocketAddr, c: Arc<ClientConfig>) -> Result<Duration> {
    closed(dial(to, c).await?).await
}
async fn closed(mut s: impl tokio::io::AsyncRead + Unpin) -> Result<Duration> {
    let t = Instant::now();
    let mut buf = [0; 1024];
    let end = async { while matches!(s.read(&mut buf).await, Ok(1..)) {} };
    timeout(BOUNDED, end).await.context("still open after 30 s")?;
    Ok(t.elapsed())
}

/// A stream, and its answer.
pub async fn open(h: &mut Sender, r: Request<()>, end: bool) -> Result<(Response<RecvStream>, SendStream<Bytes>)> {
    *h = h.clone().ready().await?;
    let (answer, send) = h.send_request(r, end)?;
    Ok((answer.await?, send))
}

async fn status(h: &mut Sender, r: Request<()>, want: u16) -> Seen {
    let run = async {
        let (answer, _send) = open(h, r, false).await?;
        let code = answer.status().as_u16();
        let mut body = answer.into_body();
        if code != 200 {
            let first = body.data().await;
            ensure!(!matches!(&first, Some(Ok(b)) if !b.is_empty()), "{code}, with a body");
        }
        Ok(code)
    };
    match step(run).await {
        Ok(code) => seen(code == want, code.to_string()),
        Err(e) => bad(format!("{e:#}")),
    }
}

/// A stream that is accepted.
pub async fn ok(h: &mut Sender, r: Request<()>) -> Result<(RecvStream, SendStream<Bytes>)> {
    let (answer, send) = open(h, r, false).await?;
    ensure!(answer.status() == 200, "{}", answer.status().as_u16());
    Ok((answer.into_body(), send))
}

/// Sends as the window allows.
pub async fn send(to: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<()> {
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        let n = std::future::poll_fn(|cx| to.poll_capacity(cx)).await.context("the stream is closed")??;
        let part = data.split_to(n.min(data.len()));
        to.send_data(part, end && data.is_empty())?;
    }
    Ok(())
}

/// Reads `n` bytes, or until the end.
pub async fn receive(from: &mut RecvStream, n: Option<usize>) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    while n.is_none_or(|n| out.len() < n) {
        match from.data().await {
            Some(b) => {
                let b = b?;
                from.flow_control().release_capacity(b.len())?;
                out.extend_from_slice(&b);
            }
            None if n.is_none() => break,
            None => bail!("the stream ends after {} bytes", out.len()),
        }
    }
    Ok(out)
}

async fn echo(h: &mut Sender, r: Request<()>, data: &[u8]) -> Result<String> {
    let (mut body, mut tx) = ok(h, r).await?;
    let bytes = Bytes::copy_from_slice(data);
    let (sent, got) = tokio::join!(send(&mut tx, bytes, false), receive(&mut body, Some(data.len())));
    sent?;
    ensure!(got? == data, "other bytes came back");
    tx.send_data(Bytes::new(), true)?;
    ensure!(receive(&mut body, None).await?.is_empty(), "more came back than was sent");
    Ok(if data.len() > 1 { format!("{} bytes", data.len()) } else { "200".into() })
}

async fn half_close(h: &mut Sender, app: &str) -> Result<String> {
    let data = vec![b'y'; 300_000];
    let (mut body, mut tx) = ok(h, connect(app)?).await?;
    let (sent, got) = tokio::join!(send(&mut tx, data.clone().into(), true), receive(&mut body, None));
    sent?;
    let got = got?;
    ensure!(got == data, "{} of {} bytes came after our end", got.len(), data.len());
    Ok(format!("{} bytes, then the end", got.len()))
}

async fn tiny(h: &mut Sender, app: &str) -> Result<String> {
    let (mut body, mut tx) = ok(h, connect(app)?).await?;
    let write = async {
        for i in 0..TINY {
            send(&mut tx, Bytes::copy_from_slice(&[i as u8]), false).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let (sent, got) = tokio::join!(write, receive(&mut body, Some(TINY)));
    sent?;
    let got = got?;
    ensure!(got.iter().enumerate().all(|(i, b)| i as u8 == *b), "other bytes came back");
    tx.send_data(Bytes::new(), true)?;
    echo(h, connect(app)?, b"x").await?;
    Ok("all came back, the tunnel goes on".into())
}

/// The application echoes into a stream whose window is never opened again: both directions must fill up and stop.
async fn backpressure(h: &mut Sender, app: &str) -> Seen {
    let mut sent = 0;
    let run = async {
        let (mut body, mut tx) = ok(h, connect(app)?).await?;
        loop {
            tx.reserve_capacity(64 << 10);
            let more = timeout(Duration::from_secs(1), std::future::poll_fn(|cx| tx.poll_capacity(cx))).await;
            let Ok(n) = more else { break };
            let n = n.context("the stream is closed")??;
            tx.send_data(vec![b'z'; n].into(), false)?;
            sent += n;
            ensure!(sent <= BACKLOG, "the server took {} MiB", sent >> 20);
        }
        // Then everything must come.
        tx.reserve_capacity(0);
        tx.send_data(Bytes::new(), true)?;
        let n = receive(&mut body, None).await?.len();
        ensure!(n == sent, "{n} of {sent} bytes came back");
        Ok(format!("stopped after {:.1} MiB, none lost", sent as f64 / (1 << 20) as f64))
    };
    let r = timeout(BOUNDED, run).await.context("no end within 30 s").flatten();
    verdict(r)
}

async fn reset(h: &mut Sender, app: &str) -> Result<String> {
    let (mut kept, mut tx) = ok(h, connect(app)?).await?;
    for _ in 0..20 {
        let (_body, mut s) = ok(h, connect(app)?).await?;
        s.send_reset(Reason::CANCEL);
    }
    send(&mut tx, Bytes::from_static(b"still here"), true).await?;
    ensure!(receive(&mut kept, None).await? == b"still here", "the other stream has suffered");
    Ok("20 reset, the other echoes".into())
}

async fn many(h: &mut Sender, app: &str) -> Result<String> {
    let mut open = Vec::new();
    for i in 0..50u8 {
        let (body, mut tx) = ok(h, connect(app)?).await?;
        send(&mut tx, vec![i; 1000].into(), true).await?;
        open.push((i, body));
    }
    for (i, mut body) in open {
        ensure!(receive(&mut body, None).await? == vec![i; 1000], "stream {i} has other bytes");
    }
    Ok("50 of 50".into())
}
