//! One request, from its route to its answer. The stages in order: its canonical form ([`crate::http::entry`]), policies, the service's
//! rate limits, route, its rate limits, cross-origin rules, redirect or direct answer, injected fault, mirrors, destination by
//! weight, limits, endpoint, attempt, retry, answer.

use crate::{
    authz::{
        access::{self, Access, Denial},
        jwt::{Token, TokenError},
    },
    clock,
    cluster::balance,
    downstream::{
        busy::Busy,
        context::{Downstream, DownstreamTarget},
        gateway,
        upgrade::{Kept, Upgrade},
    },
    http::{
        answer::{local_reply, local_reply_of, log_reply},
        body::{BEHIND, Body, REPLAY, Source, discard},
        cors::{allow_origin, preflight},
        deadline::deadline,
        destination::{endpoints, hash, is_grpc, uses_http2},
        entry::{self, Authority, Entry},
        fault::{abort, inject},
        finish::{Ending, finish},
        headers::{Template, request_id},
        mirror::mirror,
        permits::{RetryPermit, acquire_connection},
        rate_limit::{limited, over},
        redirect::{redirect, to_https},
        reply::{self, InFlightEndpoint, RequestPermit, ResponseBody},
        retry::{Attempts, Next, Outcome, State},
        values::OfRequest,
    },
    route::table::{Destination, RouteInput, RouteMatch, Routes, Rule},
    snapshot::Snapshot,
    telemetry::{access_log::one_word, flag::ResponseFlag, request_log::RequestLog},
    upstream::{
        error::{ConnectError, Error},
        open::Attempt,
        send,
    },
    worker::{SampleKind, Worker},
};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use karst_api::route as ir;
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
            Err(WrongListener::Scheme) => return to_https(&parts, authority, record),
            Err(WrongListener::Name) => {
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
    impl crate::route::operators::Values for Nothing {
        fn write(&self, _: &karst_core::operators::Operator, _: &HeaderMap, _: &mut Vec<u8>) {}
    }
    t.request(Body::Incoming(body), bytes, false, &Nothing).ok_or(StatusCode::BAD_REQUEST)
}

/// Why a request is not for the listener that it has come to.
pub(crate) enum WrongListener {
    /// It must come by TLS.
    Scheme,
    /// The name in the TLS hello has chosen another listener than the request's (RFC 9110 §15.5.20).
    Name,
}

/// The routes of the virtual host that a request to a gateway is for.
pub(crate) fn at_gateway<'a>(
    s: &'a Snapshot,
    port: u16,
    tls: Option<&str>,
    host: &str,
) -> Result<Option<&'a Routes>, WrongListener> {
    let Some(p) = s.gateway.as_ref().and_then(|g| g.ports.get(&port)) else { return Ok(None) };
    let chosen = |l: &Arc<gateway::Listener>| {
        tls.is_none_or(|sni| p.find(Some(sni).filter(|n| !n.is_empty())).any(|c| Arc::ptr_eq(c, l)))
    };
    // Of several servers for a name one is enough.
    if tls.is_none() && p.find(Some(host)).any(|l| l.redirect) {
        return Err(WrongListener::Scheme);
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
    if misdirected { Err(WrongListener::Name) } else { Ok(None) }
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
            Err(WrongListener::Scheme) => Some("https".into()),
            Err(WrongListener::Name) => Some("misdirected".into()),
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
