//! What a CONNECT says of who opens the stream.

use crate::trace::{SpanContext, TRACEPARENT};
use http::{HeaderMap, HeaderValue};
use std::net::SocketAddr;

/// Headers of a CONNECT (docs/hbone.md §4.3). `baggage`: of who opens the stream; `from`: its client; `service`: the host name of
/// the service that was called; `trace`: the span of the request that opens it, if that is sampled. No id is made up here.
pub fn headers(
    baggage: Option<&HeaderValue>,
    from: SocketAddr,
    service: Option<&str>,
    trace: Option<SpanContext>,
) -> HeaderMap {
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
    if let Some(trace) = trace {
        headers.insert(TRACEPARENT, trace.to_traceparent(true));
    }
    headers
}
