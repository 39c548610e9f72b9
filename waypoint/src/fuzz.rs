//! Doors for the fuzz targets (tests/fuzz): what comes from outside, in the functions that the product calls. Each states what
//! must hold whatever comes; none may panic. And one for the differential tests (tests/differential): [`Judge`].

use crate::{
    authz::{
        access::{Access, AuditEvent, AuthzContext, Request},
        external::{answer::Answer, grpc},
        jwt::Cache,
    },
    downstream::gateway::Gateway,
    http::{
        codec,
        entry::{canonical, plain_path},
        forward::sent_on,
        forwarded,
    },
    route::{
        input::{RouteInput, TcpRouteInput},
        table::{RouteMatch, Routes},
    },
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use karst_api::route as ir;
use karst_core::{
    Identity,
    proxy_protocol::{self, Origin, Version},
};
use karst_policy::{Path, Readings};
use prost::Message;
use std::{cell::RefCell, collections::BTreeMap, convert::Infallible, rc::Rc, sync::LazyLock, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

static PEER: LazyLock<Option<Identity>> = LazyLock::new(|| "spiffe://cluster.local/ns/app/sa/web".parse().ok());

/// A path, as it is sent on, and as it is judged.
pub fn path(data: &[u8]) {
    let Ok(uri) = http::Uri::try_from(data) else { return };
    let p = uri.path();
    if !p.starts_with('/') {
        return;
    }
    let routed = plain_path(p);
    assert!(routed.starts_with('/'), "{p:?} {routed:?}");
    assert!(!routed.split('/').any(|s| s == "." || s == ".."), "{p:?} {routed:?}");
    assert_eq!(plain_path(&routed), routed, "once is enough");
    // An application that decodes, or decodes and resolves what it is sent, reads what was judged.
    let readings = Readings::of(&routed);
    let text = String::from_utf8_lossy(&decoded(routed.as_bytes())).into_owned();
    let mut segments: Vec<&str> = vec![];
    for s in text.split('/').filter(|s| !s.is_empty() && *s != ".") {
        if s == ".." {
            segments.pop();
        } else {
            segments.push(s);
        }
    }
    let slash = ["/", "/.", "/.."].iter().any(|e| text.ends_with(e)) && !segments.is_empty();
    let resolved = format!("/{}{}", segments.join("/"), if slash { "/" } else { "" });
    for seen in [text, resolved] {
        assert!(readings.any(|r| r == seen), "{p:?} is read as {seen:?}, judged as {readings:?}");
    }
}

fn decoded(b: &[u8]) -> Vec<u8> {
    let (mut i, mut out) = (0, vec![]);
    while i < b.len() {
        let digits = b.get(i + 1..i + 3).filter(|d| b[i] == b'%' && d.iter().all(u8::is_ascii_hexdigit));
        let code = digits.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok());
        out.push(code.unwrap_or(b[i]));
        i += if code.is_some() { 3 } else { 1 };
    }
    out
}

/// The first bytes of a connection, as a header of the PROXY protocol: what is read does not depend on how it comes, and is written
/// as it was read.
pub fn proxy(data: &[u8]) {
    let Ok(Some(header)) = proxy_protocol::read(data) else { return };
    assert!(header.length <= data.len().min(proxy_protocol::MAX), "{header:?}");
    assert_eq!(proxy_protocol::read(&data[..header.length]), Ok(Some(header)));
    assert_eq!(proxy_protocol::read(&data[..header.length - 1]), Ok(None), "{header:?}");
    let Origin::Client { from, to } = header.origin else { return };
    for version in [Version::V1, Version::V2] {
        let again = proxy_protocol::read(&proxy_protocol::write(version, from, to));
        assert_eq!(again.ok().flatten().map(|h| h.origin), Some(header.origin), "{version:?}");
    }
}

/// Whom so many trusted proxies name in these lines of X-Forwarded-For. For the differential tests.
pub fn client(lines: &[HeaderValue], trusted: usize) -> Option<std::net::IpAddr> {
    let mut headers = HeaderMap::new();
    for line in lines {
        headers.append("x-forwarded-for", line.clone());
    }
    forwarded::named(&headers, trusted)
}

/// What the control plane may send (two messages, each after its length), and a request: `METHOD target` and header lines.
pub fn route(data: &[u8]) {
    let Some((routes, rest)) = part(data) else { return };
    let Some((policies, rest)) = part(rest) else { return };
    let mut lines = rest.split(|b| *b == b'\n');
    let first = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let (method, target) = first.split_once(' ').unwrap_or(("GET", &first));
    let Ok(uri) = http::Uri::try_from(target) else { return };
    let mut headers = HeaderMap::new();
    for l in lines.take(32) {
        let Some(at) = l.iter().position(|b| *b == b':') else { continue };
        if let (Ok(n), Ok(v)) = (HeaderName::from_bytes(&l[..at]), HeaderValue::from_bytes(l[at + 1..].trim_ascii())) {
            headers.append(n, v);
        }
    }
    let labels = BTreeMap::new();
    if let Ok(r) = Routes::decode(routes, None) {
        let ask = RouteInput::new(uri.path(), uri.query(), method, "http", "shop", &headers, "app", &labels);
        let table = r.table("app");
        if let RouteMatch::Rule(rule) = table.find(80, &ask) {
            assert!(rule.matches(&ask, true), "what is found holds");
            let _ = rule.choose_weighted(rule.total_weight.saturating_sub(1));
            if let Some(x) = &rule.rewrite {
                let _ = x.path(uri.path(), rule.path.as_ref());
            }
        }
        let _ = table.find_tcp(&TcpRouteInput { port: 80, namespace: "app", labels: &labels, sni: Some(uri.path()) });
    }
    let (Ok(a), Some(peer)) = (ir::Access::decode(policies), &*PEER) else { return };
    let Ok(a) = Access::new(&a) else { return };
    let path = Path::new(uri.path());
    let ip = std::net::Ipv4Addr::LOCALHOST.into();
    for http in [true, false] {
        let request = Request { method, authority: "shop", path: &path, headers: &headers, known: None, token: None };
        let asked = AuthzContext {
            peer: Some(peer),
            source: ip,
            remote: ip,
            destination: ip,
            port: 80,
            sni: None,
            request: http.then_some(request),
        };
        let _ = (a.evaluate(&asked), a.audit(&asked).count());
    }
}

fn part(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (n, rest) = data.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*n)))
}

/// What a provider of external authorization has answered by gRPC: a request that it lets through is still the one that was asked
/// about, and one that comes in may have.
pub fn authorization(data: &[u8]) {
    let ok = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let Ok(request) = http::Request::get("/a?b=c").header(header::HOST, "shop").body(()) else { return };
    let (mut head, ()) = request.into_parts();
    match grpc::answer(data, &ok) {
        Ok(Answer::Allowed(changes)) => {
            if changes.apply(&mut head, codec::HeadLimits::default()).is_ok() {
                assert_eq!((head.uri.path(), head.headers.get_all(header::HOST).iter().count()), ("/a", 1));
                let fixed = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION];
                assert!(!fixed.iter().any(|name| head.headers.contains_key(name)), "{:?}", head.headers);
                assert!(canonical(&mut head).is_ok(), "{head:?}");
            }
            changes.apply_to_response(&mut HeaderMap::new());
        }
        Ok(Answer::Denied(refusal)) => assert!(refusal.status.as_u16() >= 200),
        Err(_) => {}
    }
}

/// What the controller has compiled must be what a proxy can execute: `kind` is that of the message.
pub fn takes(kind: &str, bytes: &[u8]) {
    let taken = match kind {
        "routes" => Routes::decode(bytes, None).map(drop).map_err(|e| e.to_string()),
        "access" => ir::Access::decode(bytes)
            .map_err(|e| e.to_string())
            .and_then(|a| Access::new(&a).map(drop).map_err(|e| e.to_string())),
        _ => ir::Gateway::decode(bytes)
            .map_err(|e| e.to_string())
            .and_then(|g| Gateway::new(&g).map(drop).map_err(|e| e.to_string())),
    };
    assert!(taken.is_ok(), "{kind}: {taken:?}");
}

/// Bytes of a client, on a connection of HTTP/1.1 that an application shares with others: it must see the requests that we have
/// seen, no more and no others (reliability T17).
#[allow(clippy::panic, reason = "a target's failure is a panic")]
pub fn head(data: &[u8]) {
    thread_local!(static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap_or_else(|e| panic!("{e}")));
    RUNTIME.with(|r| tokio::task::LocalSet::new().block_on(r, carried(data)));
}

/// Method, target and host.
type Line = (String, String, String);

async fn carried(data: &[u8]) {
    let (mut client, front) = tokio::io::duplex(1 << 20);
    let (ours, application) = tokio::io::duplex(1 << 20);
    let (sent, seen) = (Rc::new(RefCell::new(Vec::<Line>::new())), Rc::new(RefCell::new(Vec::<Line>::new())));
    let host = |h: &HeaderMap| {
        let all: Vec<_> = h.get_all(header::HOST).iter().collect();
        assert_eq!(all.len(), 1, "one host: {h:?}");
        String::from_utf8_lossy(all[0].as_bytes()).into_owned()
    };
    let note = {
        let seen = seen.clone();
        service_fn(move |r: http::Request<Incoming>| {
            let (p, body) = r.into_parts();
            let h = &p.headers;
            assert!(!(h.contains_key(header::CONTENT_LENGTH) && h.contains_key(header::TRANSFER_ENCODING)), "{h:?}");
            for n in [
                "connection",
                "upgrade",
                "http2-settings",
                "keep-alive",
                "proxy-connection",
                "x-forwarded-client-cert",
                "x-envoy-internal",
            ] {
                assert!(!h.contains_key(n), "{n}: {h:?}");
            }
            seen.borrow_mut().push((p.method.to_string(), p.uri.to_string(), host(h)));
            async move {
                let _ = body.collect().await;
                Ok::<_, Infallible>(Response::new(Empty::<bytes::Bytes>::new()))
            }
        })
    };
    tokio::task::spawn_local(async move {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(application), note).await;
    });
    let Ok((send, conn)) = hyper::client::conn::http1::handshake(TokioIo::new(ours)).await else { return };
    tokio::task::spawn_local(conn);
    let send = Rc::new(tokio::sync::Mutex::new(send));
    let on = {
        let sent = sent.clone();
        service_fn(move |r: http::Request<Incoming>| {
            let (send, sent) = (send.clone(), sent.clone());
            async move {
                let (mut p, body) = r.into_parts();
                let mut answer = Response::new(Empty::<bytes::Bytes>::new());
                match sent_on(&mut p, body, &Rc::default()) {
                    Err(status) => *answer.status_mut() = status,
                    Ok(r) => {
                        let mut send = send.lock().await;
                        if send.ready().await.is_ok() {
                            sent.borrow_mut().push((r.method().to_string(), r.uri().to_string(), host(r.headers())));
                            let _ = send.send_request(r).await;
                        }
                    }
                }
                Ok::<_, Infallible>(answer)
            }
        })
    };
    let serving = codec::server1(None, codec::HeadLimits::default()).serve_connection(TokioIo::new(front), on);
    let talking = async {
        let _ = client.write_all(data).await;
        let _ = client.shutdown().await;
        let _ = client.read_to_end(&mut vec![]).await;
    };
    let both = async { tokio::join!(serving, talking) };
    assert!(tokio::time::timeout(Duration::from_secs(3), both).await.is_ok(), "it hangs");
    let (sent, seen) = (sent.borrow(), seen.borrow());
    // The last may have been broken off before the application saw it.
    assert!(seen.len() <= sent.len() && seen[..] == sent[..seen.len()], "sent {sent:?}, seen {seen:?}");
}

/// Who may call a service or come in at a gateway, as the control plane says it: for the differential tests (tests/differential).
pub struct Judge(Access);

/// A connection.
pub struct Caller {
    /// Who has shown a certificate.
    pub peer: Option<Identity>,
    /// Where it comes from.
    pub source: std::net::IpAddr,
    /// What it has called.
    pub destination: std::net::IpAddr,
    /// At which port.
    pub port: u16,
    /// The name in the hello of TLS. None: no hello was read.
    pub sni: Option<String>,
}

/// What comes of a call.
#[derive(Debug)]
pub struct Judged {
    /// The answer, if it does not go on.
    pub refused: Option<StatusCode>,
    /// Policies that only tell, and what of: it matches; it would have let in, or refused.
    pub told: Vec<(String, &'static str)>,
    /// The host as it was judged, and as it is sent on. (Of bytes, and of what cannot be read: none.)
    pub authority: Option<HeaderValue>,
}

impl Judge {
    /// Of a service: the bytes of its `Access`. None: there are no policies.
    ///
    /// # Errors
    /// A waypoint would not take them.
    pub fn service(bytes: Option<&[u8]>) -> anyhow::Result<Self> {
        let all = bytes.map(ir::Access::decode).transpose()?;
        Ok(Self(Access::new(&all.unwrap_or_default())?))
    }

    /// Of a gateway: the bytes of its `Gateway`.
    ///
    /// # Errors
    /// It would not take them.
    pub fn gateway(bytes: &[u8]) -> anyhow::Result<Self> {
        let gateway = ir::Gateway::decode(bytes)?;
        Ok(Self(Access::new(&gateway.access.unwrap_or_default())?))
    }

    /// Judges bytes.
    pub fn bytes(&self, caller: &Caller) -> Judged {
        self.judge(caller, None, None)
    }

    /// Judges a request, in the order in which `http::handle` does; the head is then as it is sent on.
    pub fn request(&self, caller: &Caller, head: &mut http::request::Parts) -> Judged {
        let refused = |status| Judged { refused: Some(status), told: vec![], authority: None };
        let entry = match canonical(head) {
            Ok(entry) => entry,
            Err(why) => return refused(why.status()),
        };
        self.0.headers().drop_alike(&mut head.headers);
        let token = match self.0.tokens.verify(head, &mut Cache::default()) {
            Ok(token) => token,
            Err(_) => return refused(StatusCode::UNAUTHORIZED),
        };
        let path = Path::new(head.uri.path());
        let request = Request {
            method: head.method.as_str(),
            authority: entry.authority.as_str(),
            path: &path,
            headers: &head.headers,
            known: None,
            token: token.as_deref(),
        };
        self.judge(caller, Some(request), Some(entry.authority.value().clone()))
    }

    fn judge(&self, caller: &Caller, request: Option<Request<'_>>, authority: Option<HeaderValue>) -> Judged {
        let asked = AuthzContext {
            peer: caller.peer.as_ref(),
            source: caller.source,
            remote: caller.source,
            destination: caller.destination,
            port: caller.port,
            sni: caller.sni.as_deref(),
            request,
        };
        let say = |(name, event): (&str, AuditEvent)| match event {
            AuditEvent::Matches => (name.to_string(), "matches"),
            AuditEvent::DryRun { would, .. } => (name.to_string(), would.result()),
        };
        let told = self.0.audit(&asked).map(say).collect();
        let refused = self.0.evaluate(&asked).denial().map(|_| StatusCode::FORBIDDEN);
        Judged { refused, told, authority }
    }
}
