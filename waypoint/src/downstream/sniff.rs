//! What a client speaks, where that is not said: HTTP of either version, or something else.

use crate::{
    downstream::{
        context::Downstream,
        requests::requests,
        stream::Io,
        tcp::{connect_tcp, relay, tcp},
    },
    worker::Worker,
};
use bytes::Bytes;
use std::{rc::Rc, time::Duration};
use tokio::io::AsyncReadExt;

/// A client that says nothing for this long may be waiting for the server's greeting.
pub const SILENCE: Duration = Duration::from_millis(200);
/// What HTTP/2 begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Looks at the first bytes, and serves HTTP or carries bytes. `declared`: the service says that it is HTTP.
pub async fn http(worker: &Rc<Worker>, downstream: Rc<Downstream>, mut io: Io, declared: bool) {
    let mut first = Vec::with_capacity(PREFACE.len());
    let mut early = None;
    if !declared {
        // Who speaks first? A server that greets is no HTTP server.
        let mut buf = [0; 1024];
        match tokio::time::timeout(SILENCE, io.read(&mut buf)).await {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(n)) => first.extend_from_slice(&buf[..n]),
            Err(_) => {
                let (mut found, refused) = match connect_tcp(worker, &downstream).await {
                    Ok(f) => (Some(f), None),
                    // Bytes of which nothing is known are not let through, or there is no endpoint: a request may still come,
                    // and will be told. If none comes, this is: when it is dropped.
                    Err(r) => (None, Some(r)),
                };
                let Some(other) = &mut found else {
                    match io.read(&mut buf).await {
                        Ok(0) | Err(_) => return,
                        Ok(n) => first.extend_from_slice(&buf[..n]),
                    }
                    if let Some(r) = refused {
                        r.forget();
                    }
                    io.unread(first.into());
                    return Box::pin(http(worker, downstream, io, false)).await;
                };
                let mut there = [0; 1024];
                tokio::select! {
                    biased;
                    r = io.read(&mut buf) => match r {
                        Ok(0) | Err(_) => return,
                        // The client after all; it may be HTTP, and then goes the way of HTTP.
                        Ok(n) => first.extend_from_slice(&buf[..n]),
                    },
                    r = other.io.read(&mut there) => match r {
                        Ok(n) if n > 0 => {
                            other.io.unread(Bytes::copy_from_slice(&there[..n]));
                            if let Some(found) = found {
                                relay(io, found).await;
                            }
                            return;
                        }
                        _ => return,
                    },
                }
                early = found;
            }
        }
    }
    // As many bytes as decide between HTTP/2 and HTTP/1.1.
    while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
        let mut buf = [0; 1024];
        match io.read(&mut buf).await {
            Ok(0) if first.is_empty() => return,
            Ok(0) | Err(_) => break,
            Ok(n) => first.extend_from_slice(&buf[..n]),
        }
    }
    let http2 = first.starts_with(PREFACE);
    let http1 = !http2 && is_http1(&first);
    io.unread(first.into());
    if !declared && !http2 && !http1 {
        return match early {
            Some(early) => relay(io, early).await,
            None => tcp(worker, &downstream, io).await,
        };
    }
    if let Some(early) = early {
        early.record.forget();
    }
    requests(worker, downstream, io, http2).await;
}

/// Does this begin a request of HTTP/1.1? (A method, and something after it.)
fn is_http1(b: &[u8]) -> bool {
    let method = b.split(|c| *c == b' ').next().unwrap_or(b"");
    let known = [&b"GET"[..], b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"];
    match method.len() < b.len() {
        true => known.contains(&method),
        // Not whole yet: what has come could become one.
        false => known.iter().any(|k| k.starts_with(method)) && !method.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_recognised() {
        for (b, want) in [
            (&b"GET / HTTP/1.1\r\n"[..], true),
            (b"PATCH ", true),
            (b"OPT", true),
            (b"\x16\x03\x01", false),
            (b"EHLO x", false),
            (b"GETX /", false),
            (b"", false),
            (b"*1\r\n$4\r\nPING", false),
        ] {
            assert_eq!(is_http1(b), want, "{:?}", String::from_utf8_lossy(b));
        }
    }
}
