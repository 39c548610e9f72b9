//! Cross-origin rules: preflights that are answered here, and what answers say of their origin.

use crate::{http::reply::ResponseBody, route::table::Cors};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header, request::Parts};

/// The answer to a preflight, if it is one that is answered here.
pub(super) fn preflight(c: &Cors, p: &Parts) -> Option<Response<ResponseBody>> {
    let origin = p.headers.get(header::ORIGIN)?;
    if p.method != Method::OPTIONS || !p.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    let mut a = Response::new(ResponseBody::local(Bytes::new()));
    if !c.admits(origin) {
        return (!c.ir.forward_unmatched).then_some(a);
    }
    let h = a.headers_mut();
    allow_origin(c, origin, h);
    let list = |all: &[String], asked: HeaderName| match all {
        // A wildcard does not count for requests with credentials: what is asked for is named.
        [one] if one == "*" => p.headers.get(asked).cloned(),
        all => (!all.is_empty()).then(|| HeaderValue::from_str(&all.join(", ")).ok()).flatten(),
    };
    if let Some(v) = list(&c.ir.methods, header::ACCESS_CONTROL_REQUEST_METHOD) {
        h.insert(header::ACCESS_CONTROL_ALLOW_METHODS, v);
    }
    if let Some(v) = list(&c.ir.headers, header::ACCESS_CONTROL_REQUEST_HEADERS) {
        h.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, v);
    }
    if let Some(age) = c.ir.max_age_s {
        h.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(age));
    }
    Some(a)
}

/// Lets pages of the origin read the answer, if the rule admits it.
pub(super) fn allow_origin(c: &Cors, origin: &HeaderValue, h: &mut HeaderMap) {
    if !c.admits(origin) {
        return;
    }
    h.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if c.ir.credentials == Some(true) {
        h.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    if !c.ir.expose.is_empty()
        && let Ok(v) = HeaderValue::from_str(&c.ir.expose.join(", "))
    {
        h.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, v);
    }
}
