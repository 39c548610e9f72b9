//! A request on its way to a destination: mirrors, limits, endpoint, attempt, retry, answer. What follows from an
//! attempt is decided by [`crate::http::retry`].

use crate::{
    clock,
    cluster::{balance, endpoint::LbEndpoint, endpoint_set::EndpointSet, overload},
    downstream::busy::Busy,
    http::{
        answer::{local_reply, local_reply_of, refused_body},
        body::{Counted, Faults, RequestBody, discard},
        call::Call,
        deadline::deadline,
        destination::{By, endpoints, hash, uses_http2},
        finish::{Ending, finish},
        grpc_web,
        headers::{Template, identify},
        mirror::mirror,
        names,
        outgoing::Outgoing,
        permits::{RetryPermit, acquire_connection},
        reply::{self, InFlightEndpoint, RequestPermit, ResponseBody},
        retry::{Attempts, Next, Outcome, State},
        session::Session,
        values::OfRequest,
        websocket::Handshake,
    },
    telemetry::{flag::ResponseFlag, request_log::RequestLog},
    upstream::{
        error::{ConnectError, Error},
        open::Attempt,
        pool::ConnectionDisposition,
        send,
    },
};
use http::{HeaderValue, Request, Response, StatusCode, request::Parts};
use hyper::body::Incoming;
use karst_api::route as ir;
use std::{cell::Cell, rc::Rc, sync::LazyLock, time::Duration};
use tokio::time::Instant;

/// Retries where no rule says otherwise.
static RETRY: LazyLock<ir::Retry> = LazyLock::new(ir::Retry::istio);

/// What is decided of a request before its first attempt.
struct Forwarding<'a> {
    call: &'a Call<'a>,
    by: By<'a>,
    set: Rc<EndpointSet>,
    retry: Option<&'a ir::Retry>,
    http2: bool,
    /// When it must be over.
    deadline: Option<Instant>,
    /// Of what its endpoints are chosen by.
    hash: Option<u64>,
    /// To be set at the client, so that it comes back to the same endpoint.
    cookie: Option<HeaderValue>,
    /// The client's session at the endpoints.
    session: Option<Box<Session<'a>>>,
    /// Of what asks for WebSocket.
    websocket: Option<Handshake>,
    /// It is asked for by HTTP/2, where the endpoint takes that.
    by_extended: bool,
    /// What is wrong with the body, if that can be.
    faults: Option<Faults>,
}

/// What an attempt has come to; None: it took too long.
type Sent = Option<Result<(Response<Incoming>, ConnectionDisposition), Error>>;

/// Sends a request to a destination, and again where that is asked for and possible.
pub(super) async fn forward(
    call: &Call<'_>,
    by: By<'_>,
    mut parts: Parts,
    mut incoming: RequestBody,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    if let Some(status) = by.to.refuse {
        return local_reply(record, status, "", ResponseFlag::NoCluster);
    }
    let Some(set) = endpoints(call, by) else { return local_reply_of(record, ResponseFlag::NoCluster) };
    record.destination = Some(set.chosen.clone());
    let retry = match by.rule {
        Some(rule) => rule.retry.as_deref(),
        None => Some(&*RETRY),
    };
    let upgrade = call.entry.websocket;
    let websocket = Handshake::begin(call.entry, &mut parts);
    let web = grpc_web::translate(call, &set, &mut parts, &mut incoming);
    record.is_grpc |= web.is_some();
    let faults = incoming.faults();
    let speaks_http2 = web.is_some() || uses_http2(&set, call.downstream, &parts);
    let (http2, by_extended) = (speaks_http2 && !upgrade, speaks_http2 && upgrade);
    let mirrors = by.rule.is_some_and(|rule| !rule.mirrors.is_empty()) && !upgrade;
    let again = retry.is_some_and(|retry| retry.attempts > 0) && !upgrade;
    let body = Outgoing::new(incoming, again, mirrors);
    identify(&mut parts, &mut record);
    if let (true, Some(rule)) = (mirrors, by.rule) {
        mirror(call, rule, &parts, &body, &values(call, &parts, &record), web.is_some());
    }
    let (hash, cookie) = hash(&set, &parts, call.authority(), call.client.ip());
    let session = Session::begin(call, by.rule, &set, &parts.headers);
    let deadline = deadline(by.rule, &parts);
    let forwarding =
        Forwarding { call, by, set, retry, http2, deadline, hash, cookie, session, websocket, by_extended, faults };
    let response = forwarding.attempt_until_answered(&parts, body, record).await;
    match web {
        Some(web) => web.answer(response),
        None => response,
    }
}

fn values<'a>(call: &Call<'a>, parts: &'a Parts, record: &'a RequestLog) -> OfRequest<'a> {
    OfRequest { downstream: call.downstream, parts, authority: call.authority(), record, answered: false }
}

impl Forwarding<'_> {
    async fn attempt_until_answered(
        self,
        parts: &Parts,
        mut body: Outgoing,
        mut record: Box<RequestLog>,
    ) -> Response<ResponseBody> {
        let (Call { worker, downstream, entry, .. }, set) = (*self.call, &self.set);
        let Some(counter) = RequestPermit::request(set) else { return local_reply_of(record, ResponseFlag::Overflow) };
        if let Some(rate) = &set.retry_rate {
            rate.request(clock::now());
        }
        let (authority, By { rule, to }, upgrade) = (self.call.authority(), self.by, entry.websocket);
        let template = Template { parts, authority, rule, to, http2: self.http2, upgrade };
        let mut attempts = Attempts::new(self.retry, self.deadline);
        let mut tried = vec![];
        let mut retrying: Option<RetryPermit> = None;
        // Looked for once: what has failed there goes elsewhere.
        let mut session = self.session.as_deref();
        loop {
            let permit = match acquire_connection(set, self.http2, self.deadline).await {
                Ok(permit) => permit,
                Err(flag) => return local_reply_of(record, flag),
            };
            let began = Instant::now();
            let bound = session.take().and_then(|session| session.endpoint(set, clock::at(began)));
            let Some(index) = bound.or_else(|| worker.choose(set, self.hash, &tried, clock::at(began))) else {
                return local_reply_of(record, ResponseFlag::NoHealthy);
            };
            let member = &set.members[index];
            let before = record.workload.replace((member.workload.clone(), member.address));
            match &mut record.traced {
                Some(traced) => traced.leave(before),
                None => drop(before),
            }
            let values = values(self.call, parts, &record);
            let request = body.attempt().and_then(|b| template.request(b, &record.received, false, &values));
            let Some(mut request) = request else {
                record.details = "request_payload_exceeded_retry_buffer_limit".into();
                return local_reply(record, StatusCode::BAD_REQUEST, "", ResponseFlag::None);
            };
            if let Some(traced) = &mut record.traced {
                traced.attempt(self.http2, began, worker.random(u64::MAX - 1) + 1, request.headers_mut());
            }
            let held = InFlightEndpoint::new(set.clone(), index, permit);
            let (head_sent, held_back) = (Cell::new(false), Cell::new(false));
            // After an upgrade's head something else may have begun there.
            let can_repeat = || body.can_repeat() && !(upgrade && head_sent.get());
            let unconnected = Error::from(ConnectError::Timeout);
            let has_other =
                || attempts.retries_unconnected(&unconnected) && can_repeat() && balance::has_other(set, index, &tried);
            let trace = || record.traced.as_ref()?.current();
            let (from, to) = (downstream.from, downstream.called());
            let attempt = Attempt { set, member, from, to, has_other: &has_other, held: &held_back, trace: &trace };
            let sent = self.send(&attempt, request, began, &head_sent).await;
            if let (Some(fault), None | Some(Err(_))) = (self.faults.as_ref().and_then(|faults| faults.get()), &sent) {
                // The endpoint has lost the request by its client's fault.
                if let Some(traced) = &mut record.traced {
                    traced.failed(ResponseFlag::BadRequest, Instant::now());
                }
                return refused_body(fault, record);
            }
            let ended = Instant::now();
            self.learn(member, &sent, (began, ended), held_back.get());
            let state = State { sent: head_sent.get(), can_repeat: can_repeat() };
            let next = attempts.after(outcome(&sent), state, ended);
            if let Some(traced) = &mut record.traced {
                let again = matches!(next, Next::Retry { .. });
                match outcome(&sent) {
                    Outcome::Answered(status, grpc) => traced.answered(status, grpc, again.then_some(ended)),
                    Outcome::Failed(error) => traced.failed(error.flag(), ended),
                    Outcome::TimedOut => traced.failed(ResponseFlag::Timeout, ended),
                }
            }
            let Next::Retry { within } = next else {
                return self.end(sent, next, (began, ended), parts, (held, counter), record);
            };
            // Given back first: a second retry is no more at a time than the first.
            drop(retrying.take());
            retrying = RetryPermit::start(set);
            if retrying.is_none() {
                return local_reply_of(record, ResponseFlag::Overflow);
            }
            if self.retry.is_some_and(|retry| !retry.same_host) {
                tried.push(index);
            }
            if let Some(Ok((response, after))) = sent {
                // The connection is used again; nobody waits for it.
                tokio::task::spawn_local(async move {
                    discard(response.into_body()).await;
                    after.release();
                });
            }
            drop(held);
            let again = Instant::now() + Duration::from_millis(worker.random(within.as_millis() as u64));
            if let Some(deadline) = self.deadline.filter(|deadline| *deadline <= again) {
                tokio::time::sleep_until(deadline).await;
                return local_reply_of(record, ResponseFlag::Timeout);
            }
            tokio::time::sleep_until(again).await;
        }
    }

    /// Sends it once, for as long as it may take. `head_sent`: something of it may have been.
    async fn send(
        &self,
        attempt: &Attempt<'_>,
        request: Request<Counted>,
        began: Instant,
        head_sent: &Cell<bool>,
    ) -> Sent {
        let worker = self.call.worker;
        let of_try = self.retry.map(|retry| retry.per_try_ms).filter(|ms| *ms > 0);
        let limit = of_try.or(Some(self.by.to.timeout_ms).filter(|ms| *ms > 0));
        let try_until = limit.map(|ms| began + Duration::from_millis(ms));
        let sent = async {
            match (self.call.entry.websocket, self.http2) {
                (true, _) if self.by_extended => send::extended(worker, attempt, request, head_sent).await,
                (true, _) => send::upgrade(worker, attempt, request, head_sent).await,
                (false, true) => send::http2(worker, attempt, request, head_sent).await,
                (false, false) => send::http1(worker, attempt, request, head_sent).await,
            }
        };
        match [self.deadline, try_until].into_iter().flatten().min() {
            None => Some(sent.await),
            Some(until) => tokio::time::timeout_at(until, sent).await.ok(),
        }
    }

    /// Notes what an attempt says of its endpoint. `held_back`: it has waited for the control plane's word.
    fn learn(&self, member: &LbEndpoint, sent: &Sent, (began, ended): (Instant, Instant), held_back: bool) {
        let status = match sent {
            Some(Ok((response, _))) => {
                let now = clock::at(ended);
                match overload::of_head(response.status(), response.headers()) {
                    // A refusal is quick, and no measure.
                    Some(pause) => self.set.record_overload(member, pause, now),
                    None => self.set.record_latency(member, ended - began, now),
                }
                Some(response.status().as_u16())
            }
            Some(Err(e)) if !e.is_of_endpoint() => return,
            None if held_back => return,
            Some(Err(_)) | None => None,
        };
        self.set.record_outcome(member, status);
    }

    /// What the client gets after the last attempt.
    fn end(
        self,
        sent: Sent,
        next: Next,
        (began, ended): (Instant, Instant),
        parts: &Parts,
        (held, counter): (InFlightEndpoint, RequestPermit),
        mut record: Box<RequestLog>,
    ) -> Response<ResponseBody> {
        let (response, after) = match sent {
            None => {
                if self.deadline.is_none_or(|deadline| ended < deadline) {
                    record.details = "upstream_per_try_timeout".into();
                }
                return local_reply_of(record, ResponseFlag::Timeout);
            }
            Some(Err(error)) => {
                let flag = error.flag();
                record.error = error.transport_failure_reason();
                record.details = flag.details().into();
                let (status, words) = flag.answer();
                let told = if let Next::GiveUp(told) = next { told } else { flag };
                return local_reply(record, status, words, told);
            }
            Some(Ok(answered)) => answered,
        };
        if next == (Next::Answer { exhausted: true }) {
            record.flag = ResponseFlag::RetryLimit;
        }
        record.upstream_ms = Some((ended - began).as_millis() as u64);
        let (Call { worker, downstream, snapshot, .. }, By { rule, to }) = (*self.call, self.by);
        let busy = self.websocket.as_ref().and_then(|_| Busy::on(downstream));
        let upgrade = record.upgrade.take().filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS);
        let guard = upgrade.map(|upgrade| (worker.register(snapshot, downstream, Some(upgrade)), worker.connection()));
        let asked = (&**downstream, parts, self.call.authority());
        let (deadline, websocket, cookie) = (self.deadline, self.websocket, self.cookie);
        let session = self.session.and_then(|session| session.answer(&self.set, held.member));
        finish(
            Ending { rule, to, deadline, websocket, cookie, session, busy, guard, asked },
            response,
            after,
            held,
            counter,
            record,
        )
    }
}

/// An attempt's end, as retries look at it.
fn outcome(sent: &Sent) -> Outcome<'_> {
    match sent {
        None => Outcome::TimedOut,
        Some(Err(error)) => Outcome::Failed(error),
        Some(Ok((response, _))) => {
            let grpc = response.headers().get(names::GRPC_STATUS).and_then(reply::grpc_status);
            Outcome::Answered(response.status().as_u16(), grpc)
        }
    }
}

/// For the fuzz targets: a request as it is sent on where no rule changes it, to a connection of HTTP/1.1.
#[cfg(feature = "fuzz")]
pub(crate) fn sent_on(
    parts: &mut Parts,
    body: Incoming,
    bytes: &Rc<Cell<u64>>,
) -> Result<Request<Counted>, StatusCode> {
    use crate::http::{body::Body, entry};
    let entry = entry::canonical(parts).map_err(entry::Unfit::status)?;
    let to = crate::route::destination::Destination::same(&"ns/any".into());
    let template = Template { parts, authority: &entry.authority, rule: None, to: &to, http2: false, upgrade: false };
    /// No rule changes it.
    struct Nothing;
    impl crate::route::operators::Values for Nothing {
        fn write(&self, _: &karst_core::operators::Operator, _: &http::HeaderMap, _: &mut Vec<u8>) {}
    }
    template.request(Body::Incoming(body.into()), bytes, false, &Nothing).ok_or(StatusCode::BAD_REQUEST)
}
