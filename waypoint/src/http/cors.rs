//! Cross-origin rules: preflights that are answered here, and what answers say of their origin.

use crate::{http::reply::ResponseBody, route::cors::Cors};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header, request::Parts};

/// The answer to a preflight, if it is one that is answered here.
pub(super) fn preflight(cors: &Cors, parts: &Parts) -> Option<Response<ResponseBody>> {
    let origin = parts.headers.get(header::ORIGIN)?;
    if parts.method != Method::OPTIONS || !parts.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    let mut response = Response::new(ResponseBody::local(Bytes::new()));
    if !cors.admits(origin) {
        return (!cors.ir.forward_unmatched).then_some(response);
    }
    let headers = response.headers_mut();
    allow_origin(cors, origin, headers);
    let list = |all: &[String], asked: HeaderName| match all.iter().any(|name| name == "*") {
        // A wildcard does not count for requests with credentials: what is asked for is named.
        true => parts.headers.get(asked).cloned(),
        false => (!all.is_empty()).then(|| HeaderValue::from_str(&all.join(", ")).ok()).flatten(),
    };
    if let Some(v) = list(&cors.ir.methods, header::ACCESS_CONTROL_REQUEST_METHOD) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, v);
    }
    if let Some(v) = list(&cors.ir.headers, header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, v);
    }
    if let Some(age) = cors.ir.max_age_s {
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(age));
    }
    Some(response)
}

/// Lets pages of the origin read the answer, if the rule admits it.
pub(super) fn allow_origin(cors: &Cors, origin: &HeaderValue, headers: &mut HeaderMap) {
    if !cors.admits(origin) {
        return;
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.ir.credentials == Some(true) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    if let Some(v) = exposed(cors, headers) {
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, v);
    }
}

/// The headers of an answer that pages may read. With credentials a wildcard is none for browsers: those that are there are named.
fn exposed(cors: &Cors, headers: &HeaderMap) -> Option<HeaderValue> {
    let all = &cors.ir.expose;
    if all.is_empty() {
        return None;
    }
    if cors.ir.credentials != Some(true) || !all.iter().any(|name| name == "*") {
        return HeaderValue::from_str(&all.join(", ")).ok();
    }
    let asked = all.iter().map(String::as_str).filter(|name| *name != "*");
    let there = headers.keys().map(HeaderName::as_str);
    let there = there.filter(|name| !name.starts_with("access-control-") && *name != "set-cookie");
    let names: Vec<&str> = asked.chain(there).collect();
    (!names.is_empty()).then(|| HeaderValue::from_str(&names.join(", ")).ok()).flatten()
}
