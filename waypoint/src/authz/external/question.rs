//! What a provider is asked about: a request in its canonical form, as it is judged and sent on.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, uri::PathAndQuery};
use std::{net::SocketAddr, time::SystemTime};

/// Tells a provider whether it has got a part of the body only (Envoy's name).
pub const PARTIAL_BODY: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");

/// A request, and who has sent it.
pub struct Question<'a> {
    pub method: &'a Method,
    /// With its query.
    pub path: &'a str,
    pub authority: &'a str,
    pub scheme: &'a str,
    /// As Envoy names it: `HTTP/1.1`, `HTTP/2`.
    pub protocol: &'a str,
    pub headers: &'a HeaderMap,
    /// Length of the whole body, if it is known.
    pub size: Option<u64>,
    /// None: the provider is not sent any.
    pub body: Option<BodyPart>,
    pub time: SystemTime,
    pub source: Party<'a>,
    pub destination: Party<'a>,
    /// The name in the TLS hello; empty: there is none.
    pub sni: &'a str,
}

/// What is sent of a body.
#[derive(Clone)]
pub struct BodyPart {
    pub bytes: Bytes,
    /// There is more.
    pub is_partial: bool,
}

impl BodyPart {
    /// What a provider is told of it.
    pub fn told(&self) -> &'static str {
        if self.is_partial { "true" } else { "false" }
    }
}

/// One end of the call.
pub struct Party<'a> {
    pub address: SocketAddr,
    /// Canonical name of its service; empty: it is not known.
    pub service: &'a str,
    /// SPIFFE id; empty: it has shown none.
    pub principal: &'a str,
}

/// A question as it is sent, whichever way the provider is asked.
pub struct Prepared {
    pub method: Method,
    pub path: PathAndQuery,
    pub headers: HeaderMap,
    /// As the client calls it; None: as the provider is called.
    pub authority: Option<HeaderValue>,
    pub body: Bytes,
}

/// For tests: a request of a client of the mesh.
#[cfg(test)]
pub(super) fn example<'a>(method: &'a Method, path: &'a str, headers: &'a HeaderMap) -> Question<'a> {
    let party = |last: u8, port: u16, service, principal| Party {
        address: SocketAddr::from(([10, 0, 0, last], port)),
        service,
        principal,
    };
    Question {
        method,
        path,
        authority: "shop:8080",
        scheme: "http",
        protocol: "HTTP/1.1",
        headers,
        size: None,
        body: None,
        time: SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1500),
        source: party(1, 4000, "web", "spiffe://cluster.local/ns/app/sa/web"),
        destination: party(2, 80, "", "spiffe://cluster.local/ns/shop/sa/waypoint"),
        sni: "",
    }
}
