//! The tool as a server. Each connection that comes is one case, in order: first certificates that the client must refuse,
//! then a tunnel that is as it should be. What comes then is of section 10 ([`leaving`]).

use crate::{
    certs::{Ca, Leaf, spiffe_name},
    continuation,
    hello::{self, Hello},
    leaving,
    options::Client,
    report::{Report, Seen, bad, good, seen},
};
use anyhow::{Context, Result};
use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderValue, Request, Response};
use rustls::ServerConfig;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

const STEP: Duration = Duration::from_secs(10);
const TLS13: u16 = 0x0304;
const X25519: u16 = 29;
const X25519MLKEM768: u16 = 0x11ec;
const SUITES: [u16; 2] = [0x1302, 0x1301];

/// Runs every check.
pub async fn run(c: &Client, ca: &Ca, report: &mut Report) -> Result<()> {
    let l = TcpListener::bind(c.listen).await.with_context(|| format!("cannot listen at {}", c.listen))?;
    println!("listening at {}: let an application connect there through the client, again and again", c.listen);
    let me = &c.common.identity;
    let patience = Duration::from_secs(c.patience);
    let next = || async {
        let (s, _) = timeout(patience, l.accept()).await.context("no connection came")??;
        s.set_nodelay(true)?;
        Ok::<_, anyhow::Error>(s)
    };
    let first = next().await?;
    report_hello(&timeout(STEP, peek(&first)).await.context("no ClientHello within 10 s")??, report);
    drop(first);

    let good_one = ca.server(ca.issue(&Leaf::good(me))?)?;
    report.add("3.1", "a server that chooses TLS 1.2", "refused", old_version(next().await?).await);
    let other = "spiffe://cluster.local/ns/x/sa/x";
    let mut wrong = Leaf::bad(me, other);
    wrong.push(("for clients only", Leaf { usages: (false, true), ..Leaf::good(me) }));
    for (what, leaf) in wrong {
        let s = next().await?;
        report.add(
            "3.3",
            format!("server certificate {what}"),
            "refused",
            refuses(s, ca.server(ca.issue(&leaf)?)?).await,
        );
    }
    let leaf = Leaf::good(other);
    let s = next().await?;
    report.add("3.5", "a server of another identity", "no HTTP/2", refuses(s, ca.server(ca.issue(&leaf)?)?).await);

    // Two tunnels: the second shows that the first was left when it said GOAWAY.
    let mut continues = None;
    for round in 0..2 {
        let s = next().await?;
        let local = s.local_addr()?;
        let tls = timeout(STEP, TlsAcceptor::from(good_one.clone()).accept(s)).await.context("no handshake")??;
        if round == 1 {
            report.add("7.2", "the next stream after GOAWAY", "in a new tunnel", good("in a new tunnel"));
            timeout(STEP, serve(tls, local, None)).await.context("no stream within 10 s")??;
            break;
        }
        let name = spiffe_name(tls.get_ref().1.peer_certificates());
        report.add(
            "3.3",
            "the client's name",
            &c.expect,
            match name {
                Ok(n) => seen(n == c.expect, n),
                Err(e) => bad(e.to_string()),
            },
        );
        continues = timeout(STEP, serve(tls, local, Some(report))).await.context("no stream within 10 s")??;
    }
    let knows = continues.as_ref().is_some_and(|value| value == "1");
    let text = match &continues {
        Some(value) => String::from_utf8_lossy(value.as_bytes()).into_owned(),
        None => "none: the rest of section 10 is left out".into(),
    };
    report.add("10.1", "karst-continue in a CONNECT", "1, or none", seen(knows || continues.is_none(), text));
    if knows {
        leaving::run(l, good_one, patience, report).await;
    }
    Ok(())
}

async fn peek(s: &TcpStream) -> Result<Hello> {
    let mut buf = vec![0; 16 << 10];
    loop {
        let n = s.peek(&mut buf).await?;
        if let Some(h) = hello::parse(&buf[..n]) {
            return Ok(h);
        }
        anyhow::ensure!(n > 0, "closed before a ClientHello");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn report_hello(h: &Hello, report: &mut Report) {
    let hex = |v: &[u16]| v.iter().map(|x| format!("{x:04x}")).collect::<Vec<_>>().join(" ");
    report.add("3.1", "versions offered", "0304", seen(h.versions == [TLS13], hex(&h.versions)));
    let suites = SUITES.iter().all(|s| h.suites.contains(s));
    report.add("3.1", "cipher suites offered", "1302 and 1301", seen(suites, hex(&h.suites)));
    let hybrid = h.groups.first() == Some(&X25519MLKEM768);
    let what = format!("{}{}", hex(&h.groups), if hybrid { "" } else { " (11ec SHOULD be preferred)" });
    report.add("3.1", "groups offered", "001d, 11ec first", seen(h.groups.contains(&X25519), what));
    report.add("3.2", "ALPN offered", "h2", seen(h.alpn == ["h2"], h.alpn.join(" ")));
    report.add("3.2", "server name", "none", seen(!h.sni, if h.sni { "there is one" } else { "none" }));
    report.add("3.2", "early data", "none", seen(!h.early_data, if h.early_data { "announced" } else { "none" }));
}

/// A ServerHello without `supported_versions` chooses TLS 1.2 (RFC 8446 §4.1.3): ECDHE with AES-128, no session.
async fn old_version(mut s: TcpStream) -> Seen {
    let run = async {
        peek(&s).await?;
        let hello = [&b"\x16\x03\x03\0\x2a\x02\0\0\x26\x03\x03"[..], &[7; 32], b"\0\xc0\x2f\0"].concat();
        s.write_all(&hello).await?;
        // Past the ClientHello.
        let mut head = [0; 5];
        s.read_exact(&mut head).await?;
        s.read_exact(&mut vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))]).await?;
        let mut answer = [0; 7];
        let n = s.read(&mut answer).await.unwrap_or(0);
        Ok::<_, anyhow::Error>(answer[..n].to_vec())
    };
    match timeout(STEP, run).await {
        Ok(Ok(a)) if a.is_empty() => good("closed"),
        Ok(Ok(a)) if a[0] == 21 => good(format!("alert {}", a.get(6).copied().unwrap_or_default())),
        Ok(Ok(_)) => bad("the handshake goes on"),
        Ok(Err(e)) => bad(format!("{e:#}")),
        Err(_) => bad("no answer"),
    }
}

/// The client must not say anything in HTTP/2 to such a server.
async fn refuses(s: TcpStream, c: Arc<ServerConfig>) -> Seen {
    let mut tls = match timeout(STEP, TlsAcceptor::from(c).accept(s)).await {
        Err(_) => return bad("the handshake hangs"),
        Ok(Err(e)) => return good(if e.to_string().contains("alert") { "a TLS alert" } else { "closed" }),
        Ok(Ok(t)) => t,
    };
    match timeout(STEP, tls.read(&mut [0; 24])).await {
        Err(_) => bad("the tunnel stays open"),
        Ok(Ok(n)) if n > 0 => bad("it sends HTTP/2"),
        Ok(_) => good("closed before any HTTP/2"),
    }
}

/// Serves a tunnel's first stream, and says GOAWAY. Gives what the stream says of continuation.
async fn serve(
    tls: TlsStream<TcpStream>,
    local: SocketAddr,
    mut report: Option<&mut Report>,
) -> Result<Option<HeaderValue>> {
    let mut h = h2::server::handshake(tls).await?;
    let mut pings = h.ping_pong().context("no pings")?;
    let (request, respond) = h.accept().await.context("closed without a stream")??;
    let continues = request.headers().get(continuation::HEADER).cloned();
    let conn = tokio::spawn(async move {
        h.graceful_shutdown();
        while h.accept().await.is_some() {}
    });
    if let Some(r) = report.as_deref_mut() {
        of_request(&request, local, r);
        let pong = pings.ping(h2::Ping::opaque()).await;
        r.add("7.1", "PING", "answered", seen(pong.is_ok(), if pong.is_ok() { "answered" } else { "not answered" }));
    }
    let n = echo(request.into_body(), respond).await;
    if let Some(r) = report {
        let seen = match n {
            Ok(n) => seen(n > 0, format!("{n} bytes, then END_STREAM")),
            Err(e) => bad(format!("{e:#}")),
        };
        r.add("6.2", "the application's bytes and its end", "DATA, END_STREAM", seen);
    }
    conn.abort();
    Ok(continues)
}

async fn echo(mut body: RecvStream, mut respond: SendResponse<Bytes>) -> Result<usize> {
    let mut send = respond.send_response(Response::new(()), false)?;
    let mut n = 0;
    while let Some(b) = body.data().await {
        let b = b?;
        n += b.len();
        body.flow_control().release_capacity(b.len())?;
        send.send_data(b, false)?;
    }
    send.send_data(Bytes::new(), true)?;
    // What was sent is to leave before the tunnel does.
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(n)
}

fn of_request(r: &Request<RecvStream>, local: SocketAddr, report: &mut Report) {
    report.add("4.1", "method", "CONNECT", seen(r.method() == http::Method::CONNECT, r.method().as_str()));
    let bare = r.uri().scheme().is_none() && r.uri().path_and_query().is_none();
    let bare = bare && r.extensions().get::<h2::ext::Protocol>().is_none();
    report.add("4.1", ":scheme, :path, :protocol", "none", seen(bare, if bare { "none" } else { "some" }));
    let authority = r.uri().authority().map(ToString::to_string).unwrap_or_default();
    let fits = match authority.parse::<SocketAddr>() {
        Ok(a) => a.ip() == local.ip().to_canonical() && a.port() > 0,
        Err(_) => {
            authority.rsplit_once(':').is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok_and(|p| p > 0))
        }
    };
    report.add("4.2", ":authority", "this address, or a host", seen(fits, authority));
    type Check = fn(&str) -> bool;
    let headers: [(&str, Check); 3] = [
        ("baggage", |v| v.split(',').all(|m| m.split(';').next().is_some_and(|m| m.contains('=')))),
        ("forwarded", |v| {
            v.split(';')
                .next()
                .and_then(|f| f.strip_prefix("for="))
                .is_some_and(|a| a.trim_matches('"').parse::<SocketAddr>().is_ok())
        }),
        ("traceparent", |v| {
            let p: Vec<&str> = v.split('-').collect();
            matches!(p[..], ["00", t, s, f] if [t.len(), s.len(), f.len()] == [32, 16, 2] && p.concat().bytes().all(|b| b.is_ascii_hexdigit()))
        }),
    ];
    for (n, fits) in headers {
        let Some(v) = r.headers().get(n) else { continue };
        let v = v.to_str().unwrap_or_default();
        report.add("4.3", n, "of its form", seen(fits(v), v));
    }
}
