//! A request's head as it is sent on: path, host and headers, by what the rule and the destination say.

use crate::{
    http::{
        body::{Body, Counted},
        entry::{self, Authority},
        names,
    },
    route::{change::Rewrite, destination::Destination, operators::Values, rule::Rule},
    telemetry::request_log::RequestLog,
};
use http::{
    HeaderValue, Request, Uri, Version, header,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};
use karst_proxy::trace;
use std::{cell::Cell, rc::Rc};

/// A request as it is sent on, once or several times.
pub(super) struct Template<'a> {
    pub(super) parts: &'a Parts,
    pub(super) authority: &'a Authority,
    pub(super) rule: Option<&'a Rule>,
    pub(super) to: &'a Destination,
    pub(super) http2: bool,
    /// To WebSocket.
    pub(super) upgrade: bool,
}

impl Template<'_> {
    pub(super) fn request(
        &self,
        body: Body,
        bytes: &Rc<Cell<u64>>,
        shadow: bool,
        values: &dyn Values,
    ) -> Option<Request<Counted>> {
        let parts = self.parts;
        let mut headers = parts.headers.clone();
        if self.upgrade {
            entry::upgrade(&mut headers);
        }
        // We have said "continue" ourselves.
        headers.remove(header::EXPECT);
        let rewrites = || rewrites(self.rule, self.to);
        let matched = self.rule.and_then(|rule| rule.path.as_ref());
        let new = rewrites().find_map(|x| x.path(parts.uri.path(), matched));
        let own = parts.uri.path_and_query().map_or("/", |x| x.as_str());
        let path = match (&new, parts.uri.query()) {
            // It has been read once.
            (None, _) => parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")),
            (Some(n), Some(q)) if !n.contains('?') => PathAndQuery::try_from(format!("{n}?{q}")).ok()?,
            (Some(n), _) => PathAndQuery::try_from(n.as_str()).ok()?,
        };
        if new.is_some()
            && let Ok(v) = HeaderValue::from_str(own)
        {
            headers.insert(names::ORIGINAL_PATH, v);
        }
        for c in [self.rule.and_then(|rule| rule.request.as_ref()), self.to.request.as_ref()].into_iter().flatten() {
            c.names().drop_alike(&mut headers);
            c.apply(&mut headers, values);
        }
        let mut host = match rewrites().find_map(|x| x.authority.as_ref()) {
            Some(a) => a.clone(),
            None => self.authority.value().clone(),
        };
        if shadow {
            host = HeaderValue::from_str(&shadowed(host.to_str().ok()?)).ok()?;
        }
        headers.entry(names::FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
        let mut request = Request::new(Counted::new(body, bytes.clone()));
        *request.method_mut() = parts.method.clone();
        if self.http2 {
            headers.remove(header::HOST);
            let uri = Uri::builder().scheme(Scheme::HTTP).authority(host.to_str().ok()?).path_and_query(path);
            *request.uri_mut() = uri.build().ok()?;
            *request.version_mut() = Version::HTTP_2;
        } else {
            headers.insert(header::HOST, host);
            *request.uri_mut() = Uri::from(path);
        }
        *request.headers_mut() = headers;
        Some(request)
    }
}

/// What is written anew, the destination's own first.
pub(super) fn rewrites<'a>(rule: Option<&'a Rule>, to: &'a Destination) -> impl Iterator<Item = &'a Rewrite> {
    [to.rewrite.as_deref(), rule.and_then(|r| r.rewrite.as_deref())].into_iter().flatten()
}

/// The host of a mirrored request (Envoy's way).
fn shadowed(host: &str) -> String {
    match host.rsplit_once(':') {
        Some((h, p)) if p.bytes().all(|b| b.is_ascii_digit()) => format!("{h}-shadow:{p}"),
        _ => format!("{host}-shadow"),
    }
}

/// A request has an id from here on.
pub(super) fn identify(parts: &mut Parts, record: &mut RequestLog) {
    if record.request_id.is_none() {
        let id = request_id();
        parts.headers.insert(names::REQUEST_ID, id.clone());
        record.request_id = Some(id);
    }
}

/// A new id (RFC 9562 version 4), as Envoy gives one to requests without.
pub(super) fn request_id() -> HeaderValue {
    let n: u128 = rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let (mut digits, mut id) = ([0; 32], [b'-'; 36]);
    trace::digits(n, &mut digits);
    // Groups of digits, by where each begins in the id.
    for (at, group) in [(0, 0..8), (9, 8..12), (14, 12..16), (19, 16..20), (24, 20..32)] {
        id[at..at + group.len()].copy_from_slice(&digits[group]);
    }
    trace::header(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_mirrors() {
        assert_eq!((shadowed("a.b"), shadowed("a:80")), ("a.b-shadow".into(), "a-shadow:80".into()));
    }

    #[test]
    fn request_ids_are_of_version_4() {
        let id = request_id();
        let id = id.to_str().unwrap_or_default();
        assert!(id.len() == 36 && &id[14..15] == "4" && "89ab".contains(&id[19..20]), "{id}");
        let is_hyphen = |at: usize| [8, 13, 18, 23].contains(&at);
        assert!(
            id.bytes().enumerate().all(|(at, b)| if is_hyphen(at) { b == b'-' } else { b.is_ascii_hexdigit() }),
            "{id}"
        );
    }
}
