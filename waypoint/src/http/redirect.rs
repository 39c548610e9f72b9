//! Redirects: those of a rule, and a gateway's to https.

use crate::{
    http::{
        answer::{local_reply, log_reply},
        entry::Authority,
        reply::ResponseBody,
    },
    route::{change::replace_prefix, destination::status, rule::Rule},
    telemetry::{flag::ResponseFlag, request_log::RequestLog},
};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use karst_api::route as ir;

/// Istio's httpsRedirect.
pub(super) fn to_https(parts: &Parts, authority: &Authority, record: Box<RequestLog>) -> Response<ResponseBody> {
    let host = authority.host();
    let path = parts.uri.path_and_query().map_or("/", |x| x.as_str());
    let mut response = Response::new(ResponseBody::local(Bytes::new()));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    match HeaderValue::from_str(&format!("https://{host}{path}")) {
        Ok(v) => response.headers_mut().insert(header::LOCATION, v),
        Err(_) => return local_reply(record, StatusCode::BAD_REQUEST, "", ResponseFlag::None),
    };
    log_reply(record, response, ResponseFlag::None)
}

pub(super) fn redirect(
    to: &ir::Redirect,
    rule: &Rule,
    parts: &Parts,
    authority: &Authority,
    called: (&str, u16),
    record: Box<RequestLog>,
) -> Response<ResponseBody> {
    let location = location(to, rule, parts, authority, called);
    let status = status(if to.code == 0 { 301 } else { to.code }).unwrap_or(StatusCode::MOVED_PERMANENTLY);
    let mut response = Response::new(ResponseBody::local(Bytes::new()));
    *response.status_mut() = status;
    match HeaderValue::from_str(&location) {
        Ok(v) => response.headers_mut().insert(header::LOCATION, v),
        Err(_) => return local_reply(record, StatusCode::INTERNAL_SERVER_ERROR, "", ResponseFlag::None),
    };
    log_reply(record, response, ResponseFlag::None)
}

fn location(
    redirect: &ir::Redirect,
    rule: &Rule,
    parts: &Parts,
    authority: &Authority,
    (scheme, port): (&str, u16),
) -> String {
    use ir::redirect::Path;
    let scheme = if redirect.scheme.is_empty() { parts.uri.scheme_str().unwrap_or(scheme) } else { &redirect.scheme };
    let own_port = authority.port();
    let host = if redirect.authority.is_empty() { authority.host() } else { &redirect.authority };
    let default = if scheme == "https" { 443 } else { 80 };
    // What is named; else the port of the request, where that is asked for, or nothing but the name has changed.
    let to: u16 = match (redirect.port, redirect.request_port) {
        (0, true) => own_port.unwrap_or(port),
        (0, false) if redirect.scheme.is_empty() && redirect.authority.is_empty() => own_port.unwrap_or(default),
        (0, false) => default,
        (n, _) => n as u16,
    };
    let path = match &redirect.path {
        None => parts.uri.path().to_string(),
        Some(Path::Full(f)) => f.clone(),
        Some(Path::Prefix(x)) => replace_prefix(parts.uri.path(), rule.path.as_ref(), x),
    };
    let query = parts.uri.query().filter(|_| !path.contains('?')).map(|q| format!("?{q}")).unwrap_or_default();
    // A name that brings its own port keeps it.
    let port = if to == default || redirect.authority.contains(':') { String::new() } else { format!(":{to}") };
    format!("{scheme}://{host}{port}{path}{query}")
}
