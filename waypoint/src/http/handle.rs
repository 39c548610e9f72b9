//! One request, from its route to its answer. The stages in order: its canonical form ([`crate::http::entry`]), policies, the service's
//! rate limits, route, its rate limits, cross-origin rules, redirect or direct answer, injected fault, mirrors, destination by
//! weight, limits, endpoint, attempt, retry, answer.

use crate::{
    authz::{
        access::{self, Access, Denial},
        jwt::{Token, TokenError},
    },
    clock,
    cluster::{balance, endpoint_set::EndpointSet},
    downstream::{
        busy::Busy,
        conns::Guard,
        context::{Downstream, DownstreamTarget},
        gateway,
        upgrade::{Kept, Upgrade},
    },
    http::{
        body::{BEHIND, Body, REPLAY, Source, discard},
        cors::{allow_origin, preflight},
        deadline::deadline,
        entry::{self, Authority, Entry},
        headers::{Template, request_id, rewrites},
        permits::{RetryPermit, acquire_connection},
        reply::{self, InFlightEndpoint, RequestPermit, ResponseBody},
        retry::{Attempts, Next, Outcome, State},
        values::OfRequest,
    },
    route::{
        limit::{self, Limit, Over},
        operators::Values,
        table::{Destination, RouteInput, RouteMatch, Routes, Rule},
    },
    snapshot::Snapshot,
    telemetry::{
        access_log::one_word,
        carried::{Carried, Metered},
        flag::{ResponseFlag, VIA_UPSTREAM},
        request_log::RequestLog,
    },
    upstream::{
        error::{ConnectError, Error},
        open::Attempt,
        pool::ConnectionDisposition,
        send,
    },
    worker::{SampleKind, Worker},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use karst_api::{route as ir, workload::AppProtocol};
use karst_policy::Path;
use std::{cell::Cell, collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Answers a request.
pub async fn handle(w: Rc<Worker>, downstream: Rc<Downstream>, r: Request<Incoming>) -> Response<ResponseBody> {
    let (mut parts, incoming) = r.into_parts();
    let entered = entry::canonical(&mut parts);
    let s = w.snapshot();
    let mut record = begin(&w, &s, &downstream, &parts);
    let entry = match entered {
        Ok(e) => e,
        Err(why) => {
            let sent = || HeaderValue::from_str(parts.uri.authority()?.as_str()).ok();
            record.authority = parts.headers.get(header::HOST).cloned().or_else(sent);
            record.details = why.details().into();
            return local_reply(record, why.status(), "", ResponseFlag::None);
        }
    };
    let authority = &entry.authority;
    record.authority = Some(authority.value().clone());
    let (access, routes) = match &downstream.target {
        DownstreamTarget::Service(x) => (s.access_to(x), s.routes.get(&x.key).map(|r| &**r)),
        DownstreamTarget::Gateway(tls) => match at_gateway(&s, downstream.port, tls.as_deref(), authority.host()) {
            Ok(Some(r)) => (s.gateway.as_ref().and_then(|g| g.access.as_ref()), Some(r)),
            Ok(None) => return local_reply(record, StatusCode::NOT_FOUND, "", ResponseFlag::NoRoute),
            Err(Wrong::Scheme) => return to_https(&parts, authority, record),
            Err(Wrong::Listener) => {
                return local_reply(record, StatusCode::MISDIRECTED_REQUEST, "", ResponseFlag::NoRoute);
            }
        },
    };
    if let Some(a) = access {
        a.headers().drop_alike(&mut parts.headers);
    }
    let token = match access.map(|a| a.tokens.verify(&mut parts)) {
        None => None,
        Some(Ok(t)) => t,
        Some(Err(why)) => return unauthorized(why, &downstream, &parts, authority, record),
    };
    if let Some(a) = access
        && let Some(by) = authorize(&w, a, &downstream, &parts, authority, token.as_ref())
    {
        (record.error, record.details) = (by.error, by.details.into());
        return local_reply(record, StatusCode::FORBIDDEN, "RBAC: access denied", ResponseFlag::None);
    }
    if entry.websocket {
        let (method, path, authority) = (parts.method.clone(), parts.uri.path().to_string(), authority.as_str());
        let headers = Kept::of(&parts.headers, access);
        record.upgrade = Some(Box::new(Upgrade { method, authority: authority.to_string(), path, headers, token }));
    }
    if let Some(over) = routes.and_then(|r| over(&r.limits, &downstream)) {
        return limited(&over, record);
    }
    if downstream.is_at_gateway() {
        introduce(&downstream, &mut parts.headers);
        record.forwarded_for = parts.headers.get("x-forwarded-for").cloned();
    }
    let rule: Option<Arc<Rule>> = {
        let none = BTreeMap::new();
        let labels = downstream.source.as_ref().map_or(&none, |x| &x.labels);
        let uri = &parts.uri;
        let input = RouteInput::new(
            uri.path(),
            uri.query(),
            parts.method.as_str(),
            uri.scheme_str().unwrap_or(downstream.scheme()),
            authority.as_str(),
            &parts.headers,
            downstream.namespace(),
            labels,
        );
        match routes.map(|r| r.table(downstream.namespace()).find(downstream.port, &input)) {
            Some(RouteMatch::Rule(r)) => Some(r.clone()),
            Some(RouteMatch::Nothing) => return local_reply(record, StatusCode::NOT_FOUND, "", ResponseFlag::NoRoute),
            Some(RouteMatch::Default) | None => None,
        }
    };
    let own = rule.as_ref().and_then(|r| r.fault);
    let fault = own.or(routes.and_then(|r| r.fault));
    let Some(rule) = rule else {
        if let Some(a) = inject(&w, fault.as_ref(), &mut record).await {
            return abort(&a, record);
        }
        // At a gateway nothing is called by default.
        let Some(service) = downstream.service() else {
            return local_reply(record, StatusCode::NOT_FOUND, "", ResponseFlag::NoRoute);
        };
        record.route = "default".into();
        let to = Destination::same(&service.key);
        return forward(&w, &downstream, &s, None, &to, parts, incoming, &entry, record).await;
    };
    record.route.clone_from(&rule.origin);
    if let Some(over) = over(&rule.limits, &downstream) {
        return limited(&over, record);
    }
    if let Some(c) = &rule.cors
        && let Some(a) = preflight(c, &parts)
    {
        record.details = "cors_response".into();
        return log_reply(record, a, ResponseFlag::None);
    }
    if let Some(r) = &rule.redirect {
        let at_gateway = s.gateway.as_ref().filter(|_| downstream.is_at_gateway());
        let called = at_gateway.and_then(|g| g.ports.get(&downstream.port)?.called()).unwrap_or(downstream.port);
        return redirect(r, &rule, &parts, authority, (downstream.scheme(), called), record);
    }
    if let Some(d) = &rule.response {
        let status = crate::route::table::status(d.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return local_reply(record, status, d.body.clone(), ResponseFlag::None);
    }
    if let Some(a) = inject(&w, fault.as_ref(), &mut record).await {
        return abort(&a, record);
    }
    let origin = parts.headers.get(header::ORIGIN).cloned();
    let Some(to) = rule.choose_weighted(w.sample(SampleKind::Weight, rule.total_weight)) else {
        return local_reply(record, StatusCode::INTERNAL_SERVER_ERROR, "", ResponseFlag::NoCluster);
    };
    let mut a = forward(&w, &downstream, &s, Some(&rule), to, parts, incoming, &entry, record).await;
    if let (Some(c), Some(o)) = (&rule.cors, origin) {
        allow_origin(c, &o, a.headers_mut());
    }
    a
}

/// For the fuzz targets: a request as it is sent on where no rule changes it, to a connection of HTTP/1.1.
#[cfg(feature = "fuzz")]
pub(crate) fn sent_on(
    p: &mut Parts,
    body: Incoming,
    bytes: &Rc<Cell<u64>>,
) -> Result<Request<crate::http::body::Counted>, StatusCode> {
    let entry = entry::canonical(p).map_err(entry::Unfit::status)?;
    let to = Destination::same(&"ns/any".into());
    let t = Template { parts: p, authority: &entry.authority, rule: None, to: &to, http2: false, upgrade: false };
    /// No rule changes it.
    struct Nothing;
    impl Values for Nothing {
        fn write(&self, _: &karst_core::operators::Operator, _: &HeaderMap, _: &mut Vec<u8>) {}
    }
    t.request(Body::Incoming(body), bytes, false, &Nothing).ok_or(StatusCode::BAD_REQUEST)
}

/// Why a request is not for the listener that it has come to.
enum Wrong {
    /// It must come by TLS.
    Scheme,
    /// The name in the TLS hello has chosen another listener than the request's (RFC 9110 §15.5.20).
    Listener,
}

/// The routes of the virtual host that a request to a gateway is for.
fn at_gateway<'a>(s: &'a Snapshot, port: u16, tls: Option<&str>, host: &str) -> Result<Option<&'a Routes>, Wrong> {
    let Some(p) = s.gateway.as_ref().and_then(|g| g.ports.get(&port)) else { return Ok(None) };
    let chosen = |l: &Arc<gateway::Listener>| {
        tls.is_none_or(|sni| p.find(Some(sni).filter(|n| !n.is_empty())).any(|c| Arc::ptr_eq(c, l)))
    };
    // Of several servers for a name one is enough.
    if tls.is_none() && p.find(Some(host)).any(|l| l.redirect) {
        return Err(Wrong::Scheme);
    }
    let mut misdirected = false;
    for l in p.find(Some(host)) {
        if !chosen(l) {
            misdirected = true;
            continue;
        }
        if let Some(r) = l.routes(&s.hosts, host) {
            return Ok(Some(r));
        }
    }
    if misdirected { Err(Wrong::Listener) } else { Ok(None) }
}

/// Istio's httpsRedirect.
fn to_https(p: &Parts, authority: &Authority, record: Box<RequestLog>) -> Response<ResponseBody> {
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

/// Tells the application who has come through a gateway, and how. What the client says of itself stands before.
fn introduce(downstream: &Downstream, h: &mut HeaderMap) {
    let own = downstream.from.ip().to_string();
    let before = h.get_all("x-forwarded-for").iter().map(HeaderValue::as_bytes);
    let all: Vec<&[u8]> = before.chain([own.as_bytes()]).collect();
    if let Ok(v) = HeaderValue::from_bytes(&all.join(&b","[..])) {
        h.insert("x-forwarded-for", v);
    }
    h.insert("x-forwarded-proto", HeaderValue::from_static(downstream.scheme()));
}

/// Why the request is not allowed, if it is not. (What only tells is told.)
fn authorize(
    w: &Worker,
    a: &Access,
    downstream: &Downstream,
    p: &Parts,
    authority: &Authority,
    token: Option<&Token>,
) -> Option<Denial> {
    let (path, authority, method) = (Path::new(p.uri.path()), authority.as_str(), p.method.as_str());
    let request = access::Request { method, authority, path: &path, headers: &p.headers, known: None, token };
    downstream.authorize(&w.shared.metrics.dry_runs, a, Some(request))
}

/// The token is not good (RFC 6750 §3), in Envoy's words.
fn unauthorized(
    why: TokenError,
    downstream: &Downstream,
    p: &Parts,
    authority: &Authority,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    let why = why.to_string();
    let mut a = reply::local_response(StatusCode::UNAUTHORIZED, why.clone(), record.is_grpc);
    let realm = format!("{}://{}{}", downstream.scheme(), authority.as_str(), p.uri.path());
    let text = format!("Bearer realm=\"{}\", error=\"invalid_token\"", realm.replace(['"', '\\'], ""));
    if let Ok(v) = HeaderValue::from_str(&text) {
        a.headers_mut().insert(header::WWW_AUTHENTICATE, v);
    }
    record.details = format!("jwt_authn_access_denied{{{}}}", one_word(&why)).into();
    record.error = why;
    log_reply(record, a, ResponseFlag::None)
}

fn begin(w: &Rc<Worker>, s: &Snapshot, downstream: &Downstream, p: &Parts) -> Box<RequestLog> {
    let mut r = downstream.record(&w.sink, s);
    r.method = p.method.clone();
    r.path = p.uri.path_and_query().map(|p| p.as_str().to_string()).unwrap_or_default();
    r.protocol = if p.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" };
    r.is_grpc = is_grpc(p);
    r.user_agent = p.headers.get(header::USER_AGENT).cloned();
    r.request_id = p.headers.get("x-request-id").cloned();
    r.forwarded_for = p.headers.get("x-forwarded-for").cloned();
    r.headers = r.telemetry.as_ref().filter(|t| t.wants_headers).map(|_| p.headers.clone());
    r
}

/// Our own answer.
fn local_reply(
    r: Box<RequestLog>,
    status: StatusCode,
    text: impl Into<Bytes>,
    flag: ResponseFlag,
) -> Response<ResponseBody> {
    let grpc = r.is_grpc;
    log_reply(r, reply::local_response(status, text, grpc), flag)
}

/// An answer of our own for a reason that has one.
fn local_reply_of(r: Box<RequestLog>, flag: ResponseFlag) -> Response<ResponseBody> {
    let (status, text) = flag.answer();
    local_reply(r, status, text, flag)
}

fn log_reply(mut r: Box<RequestLog>, a: Response<ResponseBody>, flag: ResponseFlag) -> Response<ResponseBody> {
    r.answered = a.status().as_u16();
    r.grpc = a.headers().get("grpc-status").and_then(reply::grpc_status);
    if flag != ResponseFlag::None {
        r.flag = flag;
    }
    if r.details.is_empty() {
        r.details = flag.details().into();
    }
    a.map(|b| b.recorded(r))
}

/// Waits if it is to; gives the fault back if the request is to be aborted.
async fn inject(w: &Worker, f: Option<&ir::Fault>, record: &mut RequestLog) -> Option<ir::Fault> {
    let f = f?;
    if w.chance(SampleKind::Delay, f.delay_per_million) {
        tokio::time::sleep(Duration::from_millis(f.delay_ms)).await;
        record.flag = ResponseFlag::FaultDelay;
    }
    w.chance(SampleKind::Abort, f.abort_per_million).then_some(*f)
}

/// The limit that the request is above, if there is one.
fn over(limits: &[Arc<Limit>], downstream: &Downstream) -> Option<Over> {
    if limits.is_empty() {
        return None;
    }
    let who = || downstream.peer.as_ref().map_or_else(|| downstream.from.ip().to_string(), ToString::to_string);
    let now = limit::now();
    limits.iter().find_map(|l| l.take(now, who).err())
}

/// Too many requests (RFC 6585 §4), with the headers that Envoy gives.
fn limited(o: &Over, record: Box<RequestLog>) -> Response<ResponseBody> {
    let (status, text) = ResponseFlag::RateLimited.answer();
    let mut a = reply::local_response(status, text, record.is_grpc);
    let seconds = o.after.as_millis().div_ceil(1000).max(1) as u64;
    let h = a.headers_mut();
    h.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    h.insert("x-ratelimit-limit", HeaderValue::from(o.limit));
    h.insert("x-ratelimit-remaining", HeaderValue::from(0));
    h.insert("x-ratelimit-reset", HeaderValue::from(seconds));
    h.insert("x-envoy-ratelimited", HeaderValue::from_static("true"));
    log_reply(record, a, ResponseFlag::RateLimited)
}

fn abort(f: &ir::Fault, mut record: Box<RequestLog>) -> Response<ResponseBody> {
    let (_, text) = ResponseFlag::FaultAbort.answer();
    if let Some(code) = f.abort_grpc {
        let mut a = reply::local_response(StatusCode::OK, text, true);
        a.headers_mut().insert("grpc-status", HeaderValue::from(code));
        record.is_grpc = true;
        return log_reply(record, a, ResponseFlag::FaultAbort);
    }
    let status = crate::route::table::status(f.abort_status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    local_reply(record, status, text, ResponseFlag::FaultAbort)
}

fn redirect(
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

/// Is HTTP/2 spoken to the endpoint? What the port says; else what the client speaks within the mesh, where it has meant the
/// application. What it speaks to a gateway says nothing about that (browsers prefer HTTP/2): only gRPC does.
fn uses_http2(set: &EndpointSet, downstream: &Downstream, p: &Parts) -> bool {
    match set.service.protocols.iter().find(|(x, _)| *x == set.key.port).map(|(_, a)| *a) {
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => true,
        Some(AppProtocol::Http11) => false,
        _ => p.version == Version::HTTP_2 && (!downstream.is_at_gateway() || is_grpc(p)),
    }
}

/// gRPC itself, in whichever encoding (Envoy: hasGrpcContentType). What only has its name before it, as gRPC-Web, is answered as
/// HTTP is: its clients read the status, and find no trailers.
fn is_grpc(p: &Parts) -> bool {
    let kind = p.headers.get(header::CONTENT_TYPE).and_then(|v| v.as_bytes().strip_prefix(b"application/grpc"));
    kind.is_some_and(|encoding| matches!(encoding.first(), None | Some(b'+')))
}

/// The endpoints of a rule's destination.
fn endpoints(
    w: &Worker,
    downstream: &Downstream,
    s: &Arc<Snapshot>,
    rule: Option<&Rule>,
    to: &Destination,
    authority: &Authority,
) -> Option<Rc<EndpointSet>> {
    let new = rewrites(rule, to).filter_map(|x| x.authority.as_ref()).find_map(|a| a.to_str().ok());
    let authority = new.unwrap_or(authority.as_str());
    w.destination(
        s,
        downstream,
        &downstream.key(&w.shared.config.pod_namespace, s, &to.service, to.port, &to.subset),
        Some(authority),
    )
}

/// Sends copies to the rule's mirrors. Nobody waits for them.
#[allow(clippy::too_many_arguments, reason = "parts of one request with different owners, together for this call only")]
fn mirror(
    w: &Rc<Worker>,
    downstream: &Rc<Downstream>,
    s: &Arc<Snapshot>,
    rule: &Rule,
    parts: &Parts,
    authority: &Authority,
    source: Option<&Source>,
    values: &dyn Values,
) {
    for (to, part) in &rule.mirrors {
        if to.refuse.is_some() || !w.chance(SampleKind::Mirror, *part) {
            continue;
        }
        let Some(set) = endpoints(w, downstream, s, Some(rule), to, authority) else { continue };
        let Some(body) = source.map_or(Some(Body::Empty), Source::mirror) else { continue };
        let http2 = uses_http2(&set, downstream, parts);
        let t = Template { parts, authority, rule: Some(rule), to, http2, upgrade: false };
        let Some(r) = t.request(body, &Rc::default(), true, values) else { continue };
        let (w, downstream) = (w.clone(), downstream.clone());
        tokio::task::spawn_local(async move {
            let Some(i) = w.choose(&set, None, &[]) else { return };
            let Some(_counter) = RequestPermit::request(&set) else { return };
            let held = InFlightEndpoint::new(set.clone(), i, None);
            let (member, from, held_back) = (&set.members[i], downstream.from, Cell::default());
            let attempt = Attempt { set: &set, member, from, has_other: &|| false, held: &held_back };
            let sent = match http2 {
                true => send::http2(&w, &attempt, r, &Cell::default()).await,
                false => send::http1(&w, &attempt, r, &Cell::default()).await,
            };
            if let Ok((a, after)) = sent {
                discard(a.into_body()).await;
                after.release();
            }
            drop(held);
        });
    }
}

/// Sends a request to a destination, and again where that is asked for and possible.
#[allow(clippy::too_many_arguments, reason = "parts of one request with different owners, together for this call only")]
async fn forward(
    w: &Rc<Worker>,
    downstream: &Rc<Downstream>,
    s: &Arc<Snapshot>,
    rule: Option<&Rule>,
    to: &Destination,
    mut parts: Parts,
    incoming: Incoming,
    entry: &Entry,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    if let Some(status) = to.refuse {
        return local_reply(record, status, "", ResponseFlag::NoCluster);
    }
    let authority = &entry.authority;
    let Some(set) = endpoints(w, downstream, s, rule, to, authority) else {
        return local_reply_of(record, ResponseFlag::NoCluster);
    };
    record.destination = Some((&*set).into());
    let default;
    let retry = match rule {
        Some(r) => r.retry.as_ref(),
        None => {
            default = ir::Retry::istio();
            Some(&default)
        }
    };
    let upgrade = entry.websocket;
    let client_upgrade = if upgrade { parts.extensions.remove::<OnUpgrade>() } else { None };
    let http2 = !upgrade && uses_http2(&set, downstream, &parts);
    let mirrors = rule.is_some_and(|r| !r.mirrors.is_empty()) && !upgrade;
    let again = retry.is_some_and(|r| r.attempts > 0) && !upgrade;
    let empty = hyper::body::Body::is_end_stream(&incoming);
    let (source, mut whole) = match (empty, again || mirrors) {
        (true, _) => (None, Some(Body::Empty)),
        (false, true) => (Some(Source::new(incoming, if mirrors { BEHIND } else { REPLAY })), None),
        (false, false) => (None, Some(Body::Incoming(incoming))),
    };
    if record.request_id.is_none() {
        let id = request_id();
        parts.headers.insert("x-request-id", id.clone());
        record.request_id = Some(id);
    }
    if let (true, Some(r)) = (mirrors, rule) {
        let values = OfRequest { downstream, parts: &parts, authority, record: &record, answered: false };
        mirror(w, downstream, s, r, &parts, authority, source.as_ref(), &values);
    }
    let (hash, cookie) = hash(&set, &parts, authority, downstream);
    let deadline = deadline(rule, &parts);
    let Some(counter) = RequestPermit::request(&set) else { return local_reply_of(record, ResponseFlag::Overflow) };
    let mut tried = vec![];
    let template = Template { parts: &parts, authority, rule, to, http2, upgrade };
    let mut attempts = Attempts::new(retry, deadline);
    let mut retrying: Option<RetryPermit> = None;
    loop {
        let permit = match acquire_connection(&set, http2, deadline).await {
            Ok(p) => p,
            Err(f) => return local_reply_of(record, f),
        };
        let Some(i) = w.choose(&set, hash, &tried) else {
            return local_reply_of(record, ResponseFlag::NoHealthy);
        };
        let m = &set.members[i];
        record.workload = Some((m.workload.clone(), m.address));
        // Names that clients think of are no series.
        let series = if set.dynamic_endpoint.is_some() { &set.key.service } else { &m.workload.uid };
        record.endpoint = Some(series.clone());
        let body = match (&source, &mut whole) {
            (Some(x), _) => x.attempt(),
            (None, w) if empty => Some(w.take().unwrap_or(Body::Empty)),
            (None, w) => w.take(),
        };
        let values = OfRequest { downstream, parts: &parts, authority, record: &record, answered: false };
        let Some(r) = body.and_then(|b| template.request(b, &record.received, false, &values)) else {
            record.details = "request_payload_exceeded_retry_buffer_limit".into();
            return local_reply(record, StatusCode::BAD_REQUEST, "", ResponseFlag::None);
        };
        let held = InFlightEndpoint::new(set.clone(), i, permit);
        let began = Instant::now();
        let limit = retry.map(|r| r.per_try_ms).filter(|ms| *ms > 0).or(Some(to.timeout_ms).filter(|ms| *ms > 0));
        let try_until = limit.map(|ms| began + Duration::from_millis(ms));
        let until = [deadline, try_until].into_iter().flatten().min();
        let head_sent = Cell::new(false);
        // After an upgrade's head something else may have begun there.
        let can_repeat = || {
            let body = source.as_ref().is_none_or(Source::is_whole) && (source.is_some() || empty);
            body && !(upgrade && head_sent.get())
        };
        let unconnected = Error::from(ConnectError::Timeout);
        let has_other =
            || attempts.retries_unconnected(&unconnected) && can_repeat() && balance::has_other(&set, i, &tried);
        let held_back = Cell::new(false);
        let by = Attempt { set: &set, member: m, from: downstream.from, has_other: &has_other, held: &held_back };
        let sent = async {
            match (upgrade, http2) {
                (true, _) => send::upgrade(w, &by, r, &head_sent).await,
                (false, true) => send::http2(w, &by, r, &head_sent).await,
                (false, false) => send::http1(w, &by, r, &head_sent).await,
            }
        };
        let outcome = match until {
            None => Some(sent.await),
            Some(t) => tokio::time::timeout_at(t, sent).await.ok(),
        };
        let over = deadline.is_some_and(|d| Instant::now() >= d);
        let status = outcome.as_ref().and_then(|o| o.as_ref().ok()).map(|(a, _)| a.status().as_u16());
        if let Some(Ok(_)) = &outcome {
            m.state.record_latency(began.elapsed(), clock::now());
        }
        let of_endpoint = match &outcome {
            None => !held_back.get(),
            Some(Ok(_)) => true,
            Some(Err(e)) => e.is_of_endpoint(),
        };
        if of_endpoint {
            set.record_outcome(m, status);
        }
        let ended = match &outcome {
            None => Outcome::TimedOut,
            Some(Err(e)) => Outcome::Failed(e),
            Some(Ok((a, _))) => {
                Outcome::Answered(a.status().as_u16(), a.headers().get("grpc-status").and_then(reply::grpc_status))
            }
        };
        let state = State { sent: head_sent.get(), can_repeat: can_repeat() };
        let next = attempts.after(ended, state, Instant::now());
        if let Next::Retry { within } = next {
            // Given back first: a second retry is no more at a time than the first.
            drop(retrying.take());
            retrying = RetryPermit::start(&set);
            if retrying.is_none() {
                return local_reply_of(record, ResponseFlag::Overflow);
            }
            if retry.is_some_and(|r| !r.same_host) {
                tried.push(i);
            }
            if let Some(Ok((a, after))) = outcome {
                // The connection is used again; nobody waits for it.
                tokio::task::spawn_local(async move {
                    discard(a.into_body()).await;
                    after.release();
                });
            }
            drop(held);
            tokio::time::sleep(Duration::from_millis(w.random(within.as_millis() as u64))).await;
            continue;
        }
        return match outcome {
            None => {
                if !over {
                    record.details = "upstream_per_try_timeout".into();
                }
                local_reply_of(record, ResponseFlag::Timeout)
            }
            Some(Err(e)) => {
                let f = e.flag();
                record.error = e.transport_failure_reason();
                record.details = f.details().into();
                let (status, words) = f.answer();
                let told = if let Next::GiveUp(told) = next { told } else { f };
                local_reply(record, status, words, told)
            }
            Some(Ok((a, after))) => {
                if next == (Next::Answer { exhausted: true }) {
                    record.flag = ResponseFlag::RetryLimit;
                }
                record.upstream_ms = Some(began.elapsed().as_millis() as u64);
                let busy = client_upgrade.as_ref().and_then(|_| Busy::on(downstream));
                let guard = record.upgrade.take().filter(|_| a.status() == StatusCode::SWITCHING_PROTOCOLS);
                let guard = guard.map(|u| w.register(s, downstream, Some(u)));
                let asked = (&**downstream, &parts, authority);
                let ending = Ending { rule, to, deadline, client_upgrade, cookie, busy, guard, asked };
                finish(ending, a, after, held, counter, record)
            }
        };
    }
}

/// What an answer still needs.
struct Ending<'a> {
    rule: Option<&'a Rule>,
    to: &'a Destination,
    deadline: Option<Instant>,
    client_upgrade: Option<OnUpgrade>,
    /// What was asked.
    asked: (&'a Downstream, &'a Parts, &'a Authority),
    /// Of the connection, if it may change to another protocol.
    busy: Option<Busy>,
    guard: Option<Guard>,
    /// To be set at the client, so that it comes back to the same endpoint.
    cookie: Option<HeaderValue>,
}

fn finish(
    e: Ending<'_>,
    a: Response<Incoming>,
    after: ConnectionDisposition,
    held: InFlightEndpoint,
    counter: RequestPermit,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    let (mut p, incoming) = a.into_parts();
    record.answered = p.status.as_u16();
    record.details = VIA_UPSTREAM.into();
    record.grpc = p.headers.get("grpc-status").and_then(reply::grpc_status);
    p.version = Version::HTTP_11;
    if p.status == StatusCode::SWITCHING_PROTOCOLS {
        // Only to what was asked for: nothing of what follows is judged.
        if e.client_upgrade.is_none() || !entry::names_websocket(&p.headers) {
            record.error = "the endpoint has changed to a protocol that was not asked for".into();
            record.details = ResponseFlag::ProtocolError.details().into();
            return local_reply_of(record, ResponseFlag::ProtocolError);
        }
        return switched(p, incoming, (e.client_upgrade, e.busy, e.guard), after, record);
    }
    entry::strip(&mut p.headers);
    for c in [e.to.answer.as_ref(), e.rule.and_then(|r| r.answer.as_ref())].into_iter().flatten() {
        let (downstream, parts, authority) = e.asked;
        c.apply(&mut p.headers, &OfRequest { downstream, parts, authority, record: &record, answered: true });
    }
    if let Some(c) = e.cookie {
        p.headers.append(header::SET_COOKIE, c);
    }
    let body = ResponseBody::endpoint(incoming, after, held, counter).until(e.deadline).recorded(record);
    p.extensions.clear();
    Response::from_parts(p, body)
}

/// Both sides have changed to another protocol (RFC 9110 §7.8): bytes from now on.
fn switched(
    mut p: http::response::Parts,
    _: Incoming,
    (client, busy, guard): (Option<OnUpgrade>, Option<Busy>, Option<Guard>),
    after: ConnectionDisposition,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    let endpoint = p.extensions.remove::<OnUpgrade>();
    entry::strip(&mut p.headers);
    entry::upgrade(&mut p.headers);
    if let (Some(c), Some(e), Some(guard)) = (client, endpoint, guard) {
        tokio::task::spawn_local(async move {
            let bytes = Rc::new(Carried { received: record.received.clone(), ..Carried::default() });
            if let (Ok(c), Ok(e)) = (c.await, e.await) {
                let mut c = Metered::new(hyper_util::rt::TokioIo::new(c), bytes.clone());
                let mut e = hyper_util::rt::TokioIo::new(e);
                let carried = async {
                    tokio::select! {
                        r = tokio::io::copy_bidirectional(&mut c, &mut e) => drop(r),
                        by = guard.forbidden() => (record.error, record.details) = (by.error, by.details.into()),
                    }
                };
                Busy::keep_busy(busy, carried).await;
            }
            drop(after);
            // Told when it is over, with what has been carried.
            record.finish(bytes.sent.get());
        });
        return Response::from_parts(p, ResponseBody::local(Bytes::new()));
    }
    let r = Response::from_parts(p, ResponseBody::local(Bytes::new()));
    log_reply(record, r, ResponseFlag::None)
}

/// The hash of what the policy names, and the cookie for a client that has none.
fn hash(
    set: &EndpointSet,
    p: &Parts,
    authority: &Authority,
    downstream: &Downstream,
) -> (Option<u64>, Option<HeaderValue>) {
    use ir::hash_on::Key;
    let on = set.policy.balance.as_ref().and_then(|b| b.hash.as_ref()).and_then(|h| h.key.as_ref());
    let text = |s: &str| Some(balance::hash(s.as_bytes()));
    match on {
        None => (None, None),
        // Whatever version of HTTP.
        Some(Key::Header(n)) if n.eq_ignore_ascii_case(header::HOST.as_str()) => (text(authority.as_str()), None),
        Some(Key::Header(n)) => (p.headers.get(n).map(|v| balance::hash(v.as_bytes())), None),
        Some(Key::SourceIp(_)) => (text(&downstream.from.ip().to_string()), None),
        Some(Key::Query(n)) => {
            let q = p.uri.query().unwrap_or("");
            let found = form_urlencoded::parse(q.as_bytes()).find(|(k, _)| k == n);
            (found.and_then(|(_, v)| text(&v)), None)
        }
        Some(Key::Cookie(c)) => {
            let cookie = p.headers.get(header::COOKIE).map_or(&b""[..], HeaderValue::as_bytes);
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
            let age = if c.ttl_ms == 0 { String::new() } else { format!("; Max-Age={}", c.ttl_ms / 1000) };
            let set = format!("{}=\"{value}\"{age}{path}; HttpOnly", c.name);
            (text(&value), HeaderValue::from_str(&set).ok())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Listeners of one port may share their virtual hosts (Istio's servers): the longest host that has routes counts, whichever
    /// listener is for the name.
    #[test]
    fn a_request_finds_the_virtual_host_of_its_port() {
        let listener = |host: &str, redirect: bool| ir::Listener {
            routes: "~shared".into(),
            port: 8080,
            called: 80,
            hosts: vec![host.into()],
            redirect,
            ..Default::default()
        };
        let snapshot = |listeners: Vec<ir::Listener>| {
            let mut s = Snapshot::new("");
            for host in ["*", "a.com"] {
                s.hosts.insert(format!("~shared/{host}").into(), Arc::default());
            }
            let g = gateway::Gateway::new(&ir::Gateway { listeners, ..Default::default() });
            s.gateway = g.ok().map(Arc::new);
            s
        };
        let which = |s: &Snapshot, name: &str| match at_gateway(s, 8080, None, name) {
            Ok(Some(r)) => s.hosts.iter().find(|(_, x)| std::ptr::eq(&***x, r)).map(|(k, _)| k.to_string()),
            Ok(None) => None,
            Err(Wrong::Scheme) => Some("https".into()),
            Err(Wrong::Listener) => Some("misdirected".into()),
        };
        let s = snapshot(vec![listener("*", false), listener("a.com", false), listener("b.com", false)]);
        for (name, want) in [("a.com", "~shared/a.com"), ("b.com", "~shared/*"), ("c.com", "~shared/*")] {
            assert_eq!(which(&s, name).as_deref(), Some(want), "{name}");
        }
        // What one of the servers for a name sends to https is sent there, whatever others say; a wider name is another.
        let s = snapshot(vec![listener("*", false), listener("a.com", false), listener("a.com", true)]);
        for (name, want) in [("a.com", "https"), ("b.com", "~shared/*")] {
            assert_eq!(which(&s, name).as_deref(), Some(want), "{name}");
        }
        // Clients call the Service's port, and are redirected there.
        let called = |g: &gateway::Gateway| g.ports.get(&8080).and_then(gateway::Port::called);
        assert_eq!(s.gateway.as_deref().and_then(called), Some(80));
    }
}
