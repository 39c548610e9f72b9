//! One request, from its head to its answer. The stages in order: its canonical form ([`crate::http::entry`]), external
//! authorization ([`crate::http`]'s `external`), policies ([`crate::http::admit`]), the service's rate limits, route,
//! its rate limits, cross-origin rules, redirect or direct answer, injected fault, destination by weight; then mirrors,
//! limits, endpoint, attempt, retry, answer ([`crate::http::forward`]).

use crate::{
    authz::{
        access::Access,
        external::{answer::Changes, provider::Provider},
        jwt::Token,
    },
    downstream::context::Downstream,
    http::{
        admit::{Refused, admit, admit_again, enter, introduced},
        answer::{local_reply, log_reply, refused_body},
        body::{BodyFault, RequestBody},
        call::Call,
        compression::{Asked, compress, vary},
        cors::{allow_origin, preflight},
        destination::{By, is_grpc},
        entry::{self, Unfit},
        external::{self, AskedProviders},
        fault::{abort, inject},
        forward::forward,
        forwarded,
        headers::request_id,
        names,
        rate_limit::{Limited, limited},
        redirect::redirect,
        reply::ResponseBody,
        websocket,
    },
    route::{
        destination::{Destination, status},
        input::RouteInput,
        rule::{Fault, Rule},
        table::{RouteMatch, Routes},
    },
    snapshot::Snapshot,
    spans::{self, request::Origin},
    telemetry::{
        flag::{CORS_RESPONSE, ResponseFlag},
        request_log::RequestLog,
        wire,
    },
    worker::Worker,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::body::Incoming;
use karst_core::refusal;
use karst_rt::outlined::outlined;
use std::{collections::BTreeMap, net::IpAddr, pin::pin, rc::Rc, sync::Arc};

/// Answers a request.
pub async fn handle(
    worker: Rc<Worker>,
    downstream: Rc<Downstream>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let is_connect = request.method() == Method::CONNECT;
    // The same code for every kind of connection.
    let response = outlined(pin!(answer(worker, downstream, request))).await;
    if is_connect { websocket::unless_opened(response) } else { response }
}

async fn answer(worker: Rc<Worker>, downstream: Rc<Downstream>, request: Request<Incoming>) -> Response<ResponseBody> {
    let (mut parts, incoming) = request.into_parts();
    let request_head = wire::request_head(&parts);
    let snapshot = worker.latest();
    let topology = snapshot.topology();
    // Of the head as it has come: `Connection` may name what the entry takes out.
    let client = forwarded::client(&downstream, topology, &parts.headers);
    let certificates = forwarded::certificates(&downstream, topology, &parts.headers);
    let entered = entry::canonical_within(&mut parts, worker.shared.config.max_request_fields as usize);
    let mut record = begin(&worker, &snapshot, &downstream, &parts);
    record.request_head = request_head;
    record.from = client;
    let entry = match entered {
        Ok(entry) => entry,
        Err(why) => return unfit(why, &parts, record),
    };
    record.authority = Some(entry.authority.value().clone());
    let own = &worker.shared.identity;
    forwarded::tell_certificates(&downstream, topology, certificates, own, &mut parts.headers);
    trace(&worker, &downstream, &mut parts, &mut record);
    let call = Call {
        worker: &worker,
        downstream: &downstream,
        snapshot: &snapshot,
        entry: &entry,
        topology,
        client,
        is_introduced: false,
    };
    let entrance = match enter(&call, &parts.headers) {
        Ok(entrance) => entrance,
        Err(refused) => return refused.answer(&call, &parts, record),
    };
    let body = RequestBody::from(incoming);
    match entrance.asks_others() {
        // Large: not in every request's task.
        true => Box::pin(asked_about(&call, parts, body, record)).await,
        false => allowed(&call, (entrance.access, entrance.routes), vec![], parts, body, record).await,
    }
}

/// The filters of a gateway's listener are passed, and providers of external authorization asked, before anything else is decided,
/// which is decided by what is known once they have answered: they may take long, and a policy that has come meanwhile holds. What they
/// say to clients is added to whatever these are answered.
async fn asked_about(
    call: &Call<'_>,
    mut parts: Parts,
    mut body: RequestBody,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    let (mut asked, mut changes) = (AskedProviders::new(), vec![]);
    loop {
        let snapshot = call.worker.latest();
        let call = Call { snapshot: &snapshot, ..*call };
        let entrance = match enter(&call, &parts.headers) {
            Ok(entrance) => entrance,
            Err(refused) => return told(&changes, refused.answer(&call, &parts, record)),
        };
        match external::pass(&call, entrance.filters, &mut asked, &mut parts, &mut body, &mut record).await {
            Ok(more) => changes.extend(more),
            Err(stopped) => return stopped.answer(record),
        }
        if entrance.is_nowhere() {
            return told(&changes, Refused::NoRoute.answer(&call, &parts, record));
        }
        if let Some(access) = entrance.access {
            match external::check(&call, access, &mut asked, &mut parts, &mut body, &mut record).await {
                Ok(more) => changes.extend(more),
                Err(stopped) => return stopped.answer(record),
            }
        }
        if Arc::ptr_eq(&snapshot, &call.worker.latest()) {
            let decide = (entrance.access, entrance.routes);
            return told(&changes, allowed(&call, decide, asked, parts, body, record).await);
        }
    }
}

/// An answer, with what providers say to the client.
fn told(changes: &[Changes], mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    changes.iter().for_each(|changes| changes.apply_to_response(response.headers_mut()));
    response
}

/// The smallest of some limits, of which 0 is none.
fn smallest(limits: [u64; 3]) -> Option<u64> {
    limits.into_iter().filter(|limit| *limit > 0).min()
}

/// Nobody who was asked has refused it: these policies and routes decide.
async fn allowed(
    call: &Call<'_>,
    (access, routes): (Option<&Access>, Option<&Routes>),
    asked: AskedProviders,
    mut parts: Parts,
    mut body: RequestBody,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    let token = match admit(call, access, &mut parts, &mut record) {
        Ok(token) => token,
        Err(refused) => return refused.answer(call, &parts, record),
    };
    let limits = routes.map_or(&[][..], |routes| &routes.limits[..]);
    let limit = Limited { call, parts: &parts, token: token.as_deref() };
    if let Some(over) = limit.over(limits).await {
        return Refused::Limited(over).answer(call, &parts, record);
    }
    introduced(call, &mut parts, &mut record);
    let call = &Call { is_introduced: true, ..*call };
    let rule = match find(call, routes, &parts, token.as_deref()) {
        Ok(rule) => rule,
        Err(refused) => return refused.answer(call, &parts, record),
    };
    let origin = rule.as_ref().and_then(|rule| rule.cors.as_ref());
    let origin = origin.and_then(|_| parts.headers.get(header::ORIGIN).cloned());
    let most = smallest([
        call.worker.shared.config.max_request_body,
        routes.map_or(0, |routes| routes.max_body_bytes),
        rule.as_ref().map_or(0, |rule| rule.max_body_bytes),
    ]);
    let is_too_large = most.is_some_and(|most| body.is_larger_than(most));
    if let Some(most) = most {
        body.limit(most);
    }
    let fault = rule.as_ref().and_then(|rule| rule.fault.as_deref());
    let fault = fault.or_else(|| routes.and_then(|routes| routes.fault.as_deref()));
    let own = rule.as_ref().and_then(|rule| rule.compression.as_deref());
    let compression = own.or_else(|| routes.and_then(|routes| routes.compression.as_deref()));
    let compression = compression.map(|compression| (compression, Asked::of(&parts)));
    let mut response = match &rule {
        _ if is_too_large => refused_body(BodyFault::TooLarge, record),
        Some(rule) => match &rule.authorization {
            // Large: not in every request's task.
            Some(provider) => {
                Box::pin(by_guarded_rule(call, rule, (&**provider, token, asked), fault, parts, body, record)).await
            }
            None => by_rule(call, rule, token, fault, parts, body, record).await,
        },
        None => by_default(call, fault, parts, body, record).await,
    };
    // Whoever has answered: a page may read why it is refused, too.
    if let Some(cors) = rule.as_ref().and_then(|rule| rule.cors.as_ref()) {
        if let Some(origin) = origin {
            allow_origin(cors, &origin, response.headers_mut());
        }
        // A cache gives a page of another origin no answer that names this one, or that names none (Fetch).
        vary(response.headers_mut(), &header::ORIGIN);
    }
    match compression {
        Some((compression, asked)) => compress(compression, asked, response, &call.worker.encoders),
        None => response,
    }
}

/// As a rule says, if the provider that it names lets the request go on, and no filter or policy has come meanwhile that does not. (A
/// browser that asks whether it may call has no credentials yet, and is answered by the rule itself.)
async fn by_guarded_rule(
    call: &Call<'_>,
    rule: &Rule,
    (provider, token, mut asked): (&Provider, Option<Arc<Token>>, AskedProviders),
    fault: Option<&Fault>,
    mut parts: Parts,
    mut body: RequestBody,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    let is_preflight = rule.cors.as_ref().is_some_and(|cors| preflight(cors, &parts).is_some());
    if is_preflight {
        return by_rule(call, rule, token, fault, parts, body, record).await;
    }
    let by = (provider, rule.origin.as_str());
    let goes_on = async {
        let mut changes = vec![];
        let own = external::check_rule(call, by, &mut parts, &mut body, &mut record).await;
        changes.extend(own.map_err(Refused::Stopped)?);
        let again = admit_again(call, token.as_deref(), &mut asked, &mut parts, &mut body, &mut record).await;
        let (latest, more) = again?;
        changes.extend(more);
        Ok::<_, Refused>((latest, changes))
    };
    let (latest, changes) = match goes_on.await {
        Ok(goes_on) => goes_on,
        Err(refused) => {
            record.route.clone_from(&rule.origin);
            return refused.answer(call, &parts, record);
        }
    };
    let call = Call { snapshot: &latest, ..*call };
    told(&changes, by_rule(&call, rule, token, fault, parts, body, record).await)
}

/// What is known of a request at its beginning.
fn begin(worker: &Worker, snapshot: &Snapshot, downstream: &Downstream, parts: &Parts) -> Box<RequestLog> {
    let mut record = downstream.record(&worker.sink, snapshot);
    record.method = parts.method.clone();
    record.path = parts.uri.path_and_query().cloned();
    record.protocol = if parts.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" };
    record.is_grpc = is_grpc(parts);
    record.user_agent = parts.headers.get(header::USER_AGENT).cloned();
    record.request_id = parts.headers.get(names::REQUEST_ID).cloned();
    record.forwarded_for = parts.headers.get(names::FORWARDED_FOR).cloned();
    record.headers = record.telemetry.as_ref().filter(|t| t.wants_headers).map(|_| parts.headers.clone());
    record
}

/// Is it traced, where a Telemetry says that some are? Decides by the request's id, which it gets here if it has none.
fn trace(worker: &Worker, downstream: &Downstream, parts: &mut Parts, record: &mut RequestLog) {
    let Some(tracing) = record.telemetry.as_ref().and_then(|t| t.tracing.as_ref()) else { return };
    if record.request_id.is_none() {
        parts.headers.insert(names::REQUEST_ID, request_id());
    }
    let is_external = downstream.is_at_gateway() && downstream.peer.is_none() && !is_private(record.from.ip());
    let origin = Origin { scheme: downstream.scheme(), is_external };
    let takes = || worker.sink.spans.takes(&tracing.collector);
    let traced = spans::request::begin(tracing, origin, &mut parts.headers, |bound| worker.random(bound), takes);
    let keeps_headers = tracing.wants_headers && traced.as_ref().is_some_and(|traced| traced.spans.is_ok());
    record.traced = traced;
    record.request_id = parts.headers.get(names::REQUEST_ID).cloned();
    if keeps_headers && record.headers.is_none() {
        record.headers = Some(parts.headers.clone());
    }
}

/// Is it an address of a network of one's own (RFC 1918, RFC 4193), which Envoy takes for internal?
fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_loopback(),
    }
}

/// Its head cannot be taken.
fn unfit(why: Unfit, parts: &Parts, mut record: Box<RequestLog>) -> Response<ResponseBody> {
    let sent = || HeaderValue::from_str(parts.uri.authority()?.as_str()).ok();
    record.authority = parts.headers.get(header::HOST).cloned().or_else(sent);
    record.details = why.details().into();
    if why == Unfit::Fields {
        record.error = refusal::LARGE_HEAD.into();
    }
    local_reply(record, why.status(), "", ResponseFlag::None)
}

/// The rule for a request; None: it goes to what was called.
fn find(
    call: &Call<'_>,
    routes: Option<&Routes>,
    parts: &Parts,
    token: Option<&Token>,
) -> Result<Option<Arc<Rule>>, Refused> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    let Some(routes) = routes else { return Ok(None) };
    let (downstream, uri) = (call.downstream, &parts.uri);
    let input = RouteInput::new(
        uri.path(),
        uri.query(),
        parts.method.as_str(),
        uri.scheme_str().unwrap_or(downstream.scheme()),
        call.authority().as_str(),
        &parts.headers,
        downstream.namespace(),
        downstream.source.as_ref().map_or(&NONE, |source| &source.labels),
    )
    .with_token(token);
    match routes.table(downstream.namespace()).find(downstream.port, &input) {
        RouteMatch::Rule(rule) => Ok(Some(rule.clone())),
        RouteMatch::Nothing => Err(Refused::NoRoute),
        RouteMatch::Default => Ok(None),
    }
}

/// To the service that was called.
async fn by_default(
    call: &Call<'_>,
    fault: Option<&Fault>,
    parts: Parts,
    body: RequestBody,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    if let Some(fault) = inject(fault, &mut record).await {
        return abort(fault, record);
    }
    // At a gateway nothing is called by default.
    let Some(service) = call.downstream.service() else {
        return Refused::NoRoute.answer(call, &parts, record);
    };
    record.route = "default".into();
    let to = Destination::same(&service.key);
    forward(call, By { rule: None, to: &to }, parts, body, record).await
}

/// As a rule says.
async fn by_rule(
    call: &Call<'_>,
    rule: &Rule,
    token: Option<Arc<Token>>,
    fault: Option<&Fault>,
    parts: Parts,
    body: RequestBody,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    let Call { downstream, snapshot, .. } = *call;
    record.route.clone_from(&rule.origin);
    if let Some(over) = (Limited { call, parts: &parts, token: token.as_deref() }).over(&rule.limits).await {
        return limited(&over, record);
    }
    drop(token);
    if let Some(cors) = &rule.cors
        && let Some(response) = preflight(cors, &parts)
    {
        record.details = CORS_RESPONSE.into();
        return log_reply(record, response, ResponseFlag::None);
    }
    if let Some(to) = &rule.redirect {
        let at_gateway = snapshot.gateway.as_ref().filter(|_| downstream.is_at_gateway());
        let called = at_gateway.and_then(|g| g.ports.get(&downstream.port)?.called()).unwrap_or(downstream.port);
        return redirect(to, rule, &parts, call.authority(), (downstream.scheme(), called), record);
    }
    if let Some(direct) = &rule.response {
        let status = status(direct.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return local_reply(record, status, direct.body.clone(), ResponseFlag::None);
    }
    if let Some(fault) = inject(fault, &mut record).await {
        return abort(fault, record);
    }
    let Some(to) = rule.choose() else {
        return local_reply(record, StatusCode::INTERNAL_SERVER_ERROR, "", ResponseFlag::NoCluster);
    };
    forward(call, By { rule: Some(rule), to }, parts, body, record).await
}
