//! Section 10, for servers that know of it: the tool is the client that leaves, and its successor.

use crate::{
    against_server::{Sender, connect, ok, open, receive, send, step, tunnel, verdict},
    certs::{Ca, Leaf},
    options::Server,
    report::{Report, good, seen},
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use std::{
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
};

/// The header, and the trailer.
pub const HEADER: &str = "karst-continue";

/// Somebody whom a token must not help, and what they are answered.
struct Wrong {
    what: &'static str,
    by: Sender,
    application: String,
    status: Option<u16>,
}

/// Runs every check, if the server knows of continuation: it is optional.
pub async fn run(s: &Server, ca: &Ca, report: &mut Report) -> Result<()> {
    let config = ca.client(Some(ca.issue(&Leaf::good(&s.common.identity))?), "h2")?;
    // Another workload of the same trust domain.
    let another = ca.client(Some(ca.issue(&Leaf::good(&format!("{}x", s.common.identity)))?), "h2")?;
    let (mut h, _pings) = step(tunnel(s.to, config.clone())).await?;
    let (stranger, _pings_of_stranger) = step(tunnel(s.to, another)).await?;
    let app = s.application.to_string();
    let known = step(known(&mut h, &app)).await?;
    let text = if known { "known" } else { "not known: the rest of section 10 is left out" };
    report.add("10.1", "a CONNECT with karst-continue: 1", "200, known or not", good(text));
    if !known {
        return Ok(());
    }
    let wrong = |what, by: &Sender, application: String| Wrong { what, by: by.clone(), application, status: None };
    let closed = SocketAddr::new(s.application.ip(), s.closed_port).to_string();
    let mut all = vec![wrong("by another workload", &stranger, app.clone()), wrong("for another port", &h, closed)];
    let neighbour = match s.neighbour {
        Some(to) => Some((to.ip(), step(tunnel(to, config)).await?)),
        None => None,
    };
    if let Some((ip, (by, _pings))) = &neighbour {
        all.push(wrong("at another workload", by, SocketAddr::new(*ip, s.application.port()).to_string()));
    }
    let token = token();
    report.add(
        "10.4",
        "our half ends by trailers with a token",
        "so does the server's",
        verdict(step(goes_on(&mut h, &mut all, &app, &token)).await),
    );
    for Wrong { what, status, .. } in all {
        let status = match status {
            Some(status) => seen((400..600).contains(&status), status.to_string()),
            None => crate::report::bad("not answered"),
        };
        report.add("10.6", format!("the token {what}, before its connection goes on"), "refused", status);
    }
    report.add("10.6", "the same token once more", "refused", refused(&mut h, &app, &token).await);
    report.add("10.6", "a token of nobody's", "refused", refused(&mut h, &app, &self::token()).await);
    report.add(
        "10.1",
        "trailers of a client that does not know of it",
        "an end",
        verdict(step(unknowing(&mut h, &app)).await),
    );
    Ok(())
}

/// Another one each time.
pub fn token() -> String {
    format!("{:016x}{:016x}", RandomState::new().hash_one(1), RandomState::new().hash_one(2))
}

fn saying(app: &str, value: &str) -> Result<Request<()>> {
    let mut request = connect(app)?;
    request.headers_mut().insert(HEADER, HeaderValue::from_str(value)?);
    Ok(request)
}

/// With which the half of one that leaves ends.
pub fn trailers(token: &str) -> Result<HeaderMap> {
    let mut trailers = HeaderMap::new();
    trailers.insert(HEADER, HeaderValue::from_str(token)?);
    Ok(trailers)
}

async fn known(h: &mut Sender, app: &str) -> Result<bool> {
    let (answer, mut tx) = open(h, saying(app, "1")?, false).await?;
    ensure!(answer.status() == 200, "{}", answer.status().as_u16());
    let known = answer.headers().get(HEADER).is_some_and(|value| value == "1");
    tx.send_data(Bytes::new(), true)?;
    receive(&mut answer.into_body(), None).await?;
    Ok(known)
}

async fn refused(h: &mut Sender, app: &str, token: &str) -> crate::report::Seen {
    let status = step(async { Ok(open(h, saying(app, token)?, false).await?.0.status().as_u16()) }).await;
    match status {
        Ok(status) => seen((400..600).contains(&status), status.to_string()),
        Err(e) => crate::report::bad(format!("{e:#}")),
    }
}

/// In the middle of an echo: what the server has not sent before its trailers comes in the next stream. Who shows the token before,
/// and must not have the connection, does not use it up.
async fn goes_on(h: &mut Sender, wrong: &mut [Wrong], app: &str, token: &str) -> Result<String> {
    let data: Vec<u8> = (0..200_000u32).map(|n| (n % 253) as u8).collect();
    let (mut body, mut tx) = ok(h, saying(app, "1")?).await?;
    let bytes = Bytes::copy_from_slice(&data);
    let (sent, first) = tokio::join!(send(&mut tx, bytes, false), receive(&mut body, Some(1000)));
    sent?;
    let mut got = first?;
    tx.send_trailers(trailers(token)?)?;
    got.extend(receive(&mut body, None).await?);
    let theirs = body.trailers().await?.context("the server's half ends without trailers")?;
    ensure!(theirs.get(HEADER).is_some_and(|value| value == token), "the server's trailers name another token");
    for Wrong { by, application, status, .. } in wrong {
        *status = Some(open(by, saying(application, token)?, false).await?.0.status().as_u16());
    }
    let (mut body, mut tx) = ok(h, saying(app, token)?).await.context("the next stream")?;
    let before = got.len();
    got.extend(receive(&mut body, Some(data.len() - before)).await?);
    ensure!(got == data, "other bytes came back");
    send(&mut tx, Bytes::from_static(b"after"), true).await?;
    ensure!(receive(&mut body, None).await? == b"after", "the connection does not go on");
    Ok(format!("{before} bytes before, {} after", data.len() - before))
}

async fn unknowing(h: &mut Sender, app: &str) -> Result<String> {
    let (mut body, mut tx) = ok(h, connect(app)?).await?;
    send(&mut tx, Bytes::from_static(b"x"), false).await?;
    tx.send_trailers(trailers(&token())?)?;
    ensure!(receive(&mut body, None).await? == b"x", "other bytes came back");
    Ok("the echo, then its end".into())
}
