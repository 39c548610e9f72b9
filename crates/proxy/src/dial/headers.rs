//! What a CONNECT says of who opens the stream.

use http::{HeaderMap, HeaderValue};
use std::net::SocketAddr;

/// Headers of a CONNECT (docs/hbone.md §4.3). `baggage`: of who opens the stream; `from`: its client; `service`: the host name of
/// the service that was called.
pub fn headers(baggage: Option<&HeaderValue>, from: SocketAddr, service: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(4);
    if let Some(baggage) = baggage {
        headers.insert("baggage", baggage.clone());
    }
    let forwarded = match service {
        Some(host) if !host.is_empty() => format!("for=\"{from}\";host={host}"),
        Some(_) | None => format!("for=\"{from}\""),
    };
    if let Ok(value) = forwarded.try_into() {
        headers.insert("forwarded", value);
    }
    let (id, span): (u128, u64) = (rand::random(), rand::random());
    if let Ok(value) = format!("00-{id:032x}-{span:016x}-00").try_into() {
        headers.insert("traceparent", value);
    }
    headers
}
