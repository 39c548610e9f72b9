//! Redirects: those of a rule, and a gateway's to https.

use crate::{
    http::{
        answer::{local_reply, log_reply},
        entry::Authority,
        reply::ResponseBody,
    },
    route::table::Rule,
    telemetry::{flag::ResponseFlag, request_log::RequestLog},
};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use karst_api::route as ir;

/// Istio's httpsRedirect.
pub(super) fn to_https(p: &Parts, authority: &Authority, record: Box<RequestLog>) -> Response<ResponseBody> {
    let host = authority.host();
    let path = p.uri.path_and_query().map_or("/", |x| x.as_str());
    let mut a = Response::new(ResponseBody::local(Bytes::new()));
    *a.status_mut() = StatusCode::MOVED_PERMANENTLY;
    match HeaderValue::from_str(&format!("https://{host}{path}")) {
        Ok(v) => a.headers_mut().insert(header::LOCATION, v),
        Err(_) => return local_reply(record, StatusCode::BAD_REQUEST, "", ResponseFlag::None),
    };
    log_reply(record, a, ResponseFlag::None)
}

pub(super) fn redirect(
    r: &ir::Redirect,
    rule: &Rule,
    p: &Parts,
    authority: &Authority,
    called: (&str, u16),
    record: Box<RequestLog>,
) -> Response<ResponseBody> {
    let location = location(r, rule, p, authority, called);
    let status =
        crate::route::table::status(if r.code == 0 { 301 } else { r.code }).unwrap_or(StatusCode::MOVED_PERMANENTLY);
    let mut a = Response::new(ResponseBody::local(Bytes::new()));
    *a.status_mut() = status;
    match HeaderValue::from_str(&location) {
        Ok(v) => a.headers_mut().insert(header::LOCATION, v),
        Err(_) => return local_reply(record, StatusCode::INTERNAL_SERVER_ERROR, "", ResponseFlag::None),
    };
    log_reply(record, a, ResponseFlag::None)
}

fn location(r: &ir::Redirect, rule: &Rule, p: &Parts, authority: &Authority, (scheme, port): (&str, u16)) -> String {
    use ir::redirect::Path;
    let scheme = if r.scheme.is_empty() { p.uri.scheme_str().unwrap_or(scheme) } else { &r.scheme };
    let own_port = authority.port();
    let host = if r.authority.is_empty() { authority.host() } else { &r.authority };
    let default = if scheme == "https" { 443 } else { 80 };
    // What is named; else the port of the request, where that is asked for, or nothing but the name has changed.
    let to: u16 = match (r.port, r.request_port) {
        (0, true) => own_port.unwrap_or(port),
        (0, false) if r.scheme.is_empty() && r.authority.is_empty() => own_port.unwrap_or(default),
        (0, false) => default,
        (n, _) => n as u16,
    };
    let path = match &r.path {
        None => p.uri.path().to_string(),
        Some(Path::Full(f)) => f.clone(),
        Some(Path::Prefix(x)) => crate::route::table::replace_prefix(p.uri.path(), rule.path.as_ref(), x),
    };
    let query = p.uri.query().filter(|_| !path.contains('?')).map(|q| format!("?{q}")).unwrap_or_default();
    // A name that brings its own port keeps it.
    let port = if to == default || r.authority.contains(':') { String::new() } else { format!(":{to}") };
    format!("{scheme}://{host}{port}{path}{query}")
}
