//! Where a request goes: the endpoints of its destination, the version of HTTP that is spoken to them, and what its client is
//! bound to one of them by.

use crate::{
    cluster::{balance, endpoint_set::EndpointSet},
    downstream::context::Downstream,
    http::{call::Call, entry::Authority, headers::rewrites},
    route::{destination::Destination, rule::Rule},
};
use http::{HeaderValue, Version, header, request::Parts};
use karst_api::{route as ir, workload::AppProtocol};
use std::{net::IpAddr, rc::Rc};

/// What decides about a request that is sent on.
#[derive(Clone, Copy)]
pub(super) struct By<'a> {
    /// None: it goes to the service that was called.
    pub(super) rule: Option<&'a Rule>,
    pub(super) to: &'a Destination,
}

/// The endpoints of a destination.
pub(super) fn endpoints(call: &Call<'_>, by: By<'_>) -> Option<Rc<EndpointSet>> {
    let Call { worker, downstream, snapshot, .. } = *call;
    let new = rewrites(by.rule, by.to).filter_map(|x| x.authority.as_ref()).find_map(|a| a.to_str().ok());
    let authority = new.unwrap_or(call.authority().as_str());
    let (own, to) = (&worker.shared.config.pod_namespace, by.to);
    let key = downstream.key(own, snapshot, &to.service, to.port, &to.subset);
    worker.destination(snapshot, downstream, key, Some(authority))
}

/// Is HTTP/2 spoken to the endpoint? What the port says; else what the client speaks within the mesh, where it has meant the
/// application. What it speaks to a gateway says nothing about that (browsers prefer HTTP/2): only gRPC does.
pub(super) fn uses_http2(set: &EndpointSet, downstream: &Downstream, parts: &Parts) -> bool {
    match set.service.protocols.iter().find(|(x, _)| *x == set.key.port).map(|(_, a)| *a) {
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => true,
        Some(AppProtocol::Http11) => false,
        _ => parts.version == Version::HTTP_2 && (!downstream.is_at_gateway() || is_grpc(parts)),
    }
}

/// gRPC itself, in whichever encoding (Envoy: hasGrpcContentType). What only has its name before it, as gRPC-Web, is answered as
/// HTTP is: its clients read the status, and find no trailers.
pub(super) fn is_grpc(parts: &Parts) -> bool {
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.as_bytes().strip_prefix(b"application/grpc"));
    kind.is_some_and(|encoding| matches!(encoding.first(), None | Some(b'+')))
}

/// The hash of what the policy names, and the cookie for a client that has none.
pub(super) fn hash(
    set: &EndpointSet,
    parts: &Parts,
    authority: &Authority,
    client: IpAddr,
) -> (Option<u64>, Option<HeaderValue>) {
    use ir::hash_on::Key;
    let on = set.policy.balance.as_ref().and_then(|b| b.hash.as_ref()).and_then(|h| h.key.as_ref());
    let text = |s: &str| Some(balance::hash(s.as_bytes()));
    match on {
        None => (None, None),
        // Whatever version of HTTP.
        Some(Key::Header(n)) if n.eq_ignore_ascii_case(header::HOST.as_str()) => (text(authority.as_str()), None),
        Some(Key::Header(n)) => (parts.headers.get(n).map(|v| balance::hash(v.as_bytes())), None),
        Some(Key::SourceIp(_)) => (text(&client.to_string()), None),
        Some(Key::Query(n)) => {
            let q = parts.uri.query().unwrap_or("");
            let found = form_urlencoded::parse(q.as_bytes()).find(|(k, _)| k == n);
            (found.and_then(|(_, v)| text(&v)), None)
        }
        Some(Key::Cookie(c)) => {
            let cookie = parts.headers.get(header::COOKIE).map_or(&b""[..], HeaderValue::as_bytes);
            let mut pairs = cookie.split(|b| *b == b';').map(<[u8]>::trim_ascii);
            if let Some(v) = pairs.find_map(|x| x.strip_prefix(c.name.as_bytes())?.strip_prefix(b"=")) {
                let bare = v.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(v);
                return (Some(balance::hash(bare)), None);
            }
            if !c.generate {
                return (None, None);
            }
            let value = format!("{:016x}", rand::random::<u64>());
            let path = if c.path.is_empty() { String::new() } else { format!("; Path={}", c.path) };
            // Less than a second is one: 0 would delete it.
            let age = if c.ttl_ms == 0 { String::new() } else { format!("; Max-Age={}", c.ttl_ms.div_ceil(1000)) };
            let set = format!("{}=\"{value}\"{age}{path}; HttpOnly", c.name);
            (text(&value), HeaderValue::from_str(&set).ok())
        }
    }
}
