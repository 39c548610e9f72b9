//! May a request come in, and whose routes decide about it: the listener that it is for, the policies, its token. (Between the
//! listener and the rest, [`crate::http`]'s `external` asks others; the rate limits of the service that is called come after.)
//! What must hold: a request that has waited for others is judged by the filters and policies that are in force then.

use crate::{
    authz::{
        access::{Access, Denial},
        external::answer::Changes,
        jwt::{Token, TokenError},
    },
    downstream::{
        conns::Policies,
        context::{Downstream, DownstreamTarget},
        gateway::Filter,
        upgrade::{Kept, Upgrade},
    },
    http::{
        answer::{local_reply, log_reply},
        body::RequestBody,
        call::Call,
        external::{self, AskedProviders, Stopped},
        forwarded::{introduce, is_https},
        rate_limit::limited,
        redirect::to_https,
        reply::{self, ResponseBody},
        virtual_host::{Arrival, VirtualHost, WrongListener, at_gateway},
    },
    route::{limit::Over, table::Routes},
    telemetry::{access_log::one_word, flag::ResponseFlag, request_log::RequestLog},
    worker::Latest,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts};
use karst_policy::Path;
use std::{cell::RefCell, sync::Arc, time::SystemTime};

/// Why a request does not come in.
pub(super) enum Refused {
    /// No listener, or no route, is for it.
    NoRoute,
    /// It is for another listener.
    Listener(WrongListener),
    /// Its token is not good.
    Token(TokenError),
    /// By a policy.
    Denied(Denial),
    /// By who was asked.
    Stopped(Stopped),
    /// There are too many of them.
    Limited(Over),
}

impl Refused {
    /// The answer.
    pub(super) fn answer(self, call: &Call<'_>, parts: &Parts, mut record: Box<RequestLog>) -> Response<ResponseBody> {
        match self {
            Refused::NoRoute => local_reply(record, StatusCode::NOT_FOUND, "", ResponseFlag::NoRoute),
            Refused::Listener(WrongListener::Scheme) => to_https(parts, call.authority(), record),
            Refused::Listener(why @ (WrongListener::Name | WrongListener::Certificate)) => {
                if why == WrongListener::Certificate {
                    // The next one will be asked.
                    call.downstream.entered.outdated.notify_one();
                }
                local_reply(record, StatusCode::MISDIRECTED_REQUEST, "", ResponseFlag::NoRoute)
            }
            Refused::Token(why) => unauthorized(why, call, parts, record),
            Refused::Denied(by) => {
                (record.error, record.details) = (by.error, by.details.into());
                local_reply(record, StatusCode::FORBIDDEN, "RBAC: access denied", ResponseFlag::None)
            }
            Refused::Stopped(stopped) => stopped.answer(record),
            Refused::Limited(over) => limited(&over, record),
        }
    }
}

/// The token of a request, if it has one.
type Verified = Option<Arc<Token>>;

/// The filters, the policies and the routes that decide about a request.
#[derive(Clone, Copy)]
pub(super) struct Entrance<'a> {
    /// Of the listener of a gateway.
    pub(super) filters: &'a [Filter],
    pub(super) access: Option<&'a Access>,
    pub(super) routes: Option<&'a Routes>,
}

impl Entrance<'_> {
    /// Is there no route for it at a gateway? Then it comes in no further than to the filters.
    pub(super) fn is_nowhere(&self) -> bool {
        // A waypoint has none, and needs no route.
        !self.filters.is_empty() && self.routes.is_none()
    }

    /// May somebody else be asked about the request before anything is decided?
    pub(super) fn asks_others(&self) -> bool {
        !self.filters.is_empty() || self.access.is_some_and(|access| !access.providers().is_empty())
    }
}

/// Which policies and routes decide about a request with these headers.
///
/// # Errors
/// None do: it has come to a listener that it is not for.
pub(super) fn enter<'a>(call: &Call<'a>, headers: &HeaderMap) -> Result<Entrance<'a>, Refused> {
    let (downstream, snapshot, authority) = (call.downstream, &**call.snapshot, call.authority());
    Ok(match &downstream.target {
        DownstreamTarget::Service(service) => Entrance {
            filters: &[],
            access: snapshot.access_to(service),
            routes: snapshot.routes.get(&service.key).map(|routes| &**routes),
        },
        DownstreamTarget::Gateway(tls) => {
            let arrival = arrival(downstream, tls.as_deref(), is_https(call.topology, headers));
            let found = at_gateway(snapshot, arrival, authority.host()).map_err(Refused::Listener)?;
            let VirtualHost { filters, routes } = found;
            // Filters are passed by all requests of a listener (GEP-5224).
            if routes.is_none() && filters.is_empty() {
                return Err(Refused::NoRoute);
            }
            let access = snapshot.gateway.as_ref().and_then(|g| g.access.as_ref());
            Entrance { filters, access, routes }
        }
    })
}

/// `is_https`: by TLS that has ended before.
fn arrival<'a>(downstream: &Downstream, tls: Option<&'a str>, is_https: bool) -> Arrival<'a> {
    Arrival { port: downstream.port, tls, has_proof: !downstream.entered.unproven, is_https }
}

/// The filters, as they are now, of the listener of a request that was let in. (Whether it is to be sent to https was looked at.)
///
/// # Errors
/// By now it is for a listener that its connection has not come to: what it would pass there it does not go past.
fn filters<'a>(call: &Call<'a>) -> Result<&'a [Filter], Refused> {
    match &call.downstream.target {
        DownstreamTarget::Service(_) => Ok(&[]),
        DownstreamTarget::Gateway(tls) => {
            let arrival = arrival(call.downstream, tls.as_deref(), true);
            let found = at_gateway(call.snapshot, arrival, call.authority().host());
            found.map(|found| found.filters).map_err(Refused::Listener)
        }
    }
}

/// Lets a request in, or not. The token, if it has one.
///
/// # Errors
/// Why it does not come in.
pub(super) fn admit(
    call: &Call<'_>,
    access: Option<&Access>,
    parts: &mut Parts,
    record: &mut RequestLog,
) -> Result<Verified, Refused> {
    let (downstream, authority) = (call.downstream, call.authority());
    // The header that holds it may not go on.
    let shown = access.filter(|_| call.entry.websocket).and_then(|access| {
        let text = access.tokens.shown(&parts.headers, &parts.uri)?;
        Some((&access.tokens, text.to_string()))
    });
    let (token, denied) = match access {
        Some(access) => judge(call, access, parts)?,
        None => (None, None),
    };
    call.worker.note(downstream, Some((&*parts, authority.as_str())), denied.as_ref(), record.time);
    if let Some(by) = denied {
        return Err(Refused::Denied(by));
    }
    if call.entry.websocket {
        let (method, path, authority) = (parts.method.clone(), parts.uri.path().into(), authority.as_str().into());
        let (headers, client) = (Kept::of(&parts.headers, access), call.client.ip());
        let shown = shown.zip(token.clone());
        let token = shown.map(|((tokens, text), token)| RefCell::new(tokens.kept(&text, token)));
        record.upgrade = Some(Box::new(Upgrade { method, authority, path, headers, token, client }));
    }
    Ok(token)
}

/// Judges a request that was let in and has waited since, if its policies are others by now: one that forbids it holds, and whoever is
/// to be asked, by them or by filters of its listener, and was not is asked. Returns the state that it goes on in, and what is changed
/// of the answer to it. Where nothing has changed it costs a comparison.
///
/// # Errors
/// Why it does not go on.
pub(super) async fn admit_again(
    call: &Call<'_>,
    token: Option<&Token>,
    asked: &mut AskedProviders,
    parts: &mut Parts,
    body: &mut RequestBody,
    record: &mut RequestLog,
) -> Result<(Latest, Vec<Changes>), Refused> {
    let (mut latest, mut changes) = (call.worker.latest(), vec![]);
    if Arc::ptr_eq(&latest, call.snapshot) {
        return Ok((latest, changes));
    }
    let target = &call.downstream.target;
    let mut judged = Policies::of(call.snapshot, target);
    loop {
        let policies = Policies::of(&latest, target);
        if policies.same(&judged) {
            return Ok((latest, changes));
        }
        let call = Call { snapshot: &latest, ..*call };
        let more = external::pass(&call, filters(&call)?, asked, parts, body, record).await;
        changes.extend(more.map_err(Refused::Stopped)?);
        if let Some(access) = policies.access() {
            let more = external::check(&call, access, asked, parts, body, record).await;
            changes.extend(more.map_err(Refused::Stopped)?);
            if let Some(by) = forbidden(&call, access, parts, token, record.time) {
                return Err(Refused::Denied(by));
            }
        }
        judged = policies;
        // Somebody may have been waited for again.
        latest = call.worker.latest();
    }
}

/// Why a request is not allowed that was, if it is not. (What only tells has told.) `came`: when it came.
fn forbidden(
    call: &Call<'_>,
    access: &Access,
    parts: &Parts,
    token: Option<&Token>,
    came: SystemTime,
) -> Option<Denial> {
    let path = Path::new(parts.uri.path());
    let request = call.asks(parts, &path, token);
    let by = access.evaluate(&call.downstream.asked(call.client.ip(), Some(request))).denial()?;
    call.worker.note(call.downstream, Some((parts, call.authority().as_str())), Some(&by), came);
    Some(by)
}

/// What a gateway tells on of a client whose request it has let in.
pub(super) fn introduced(call: &Call<'_>, parts: &mut Parts, record: &mut RequestLog) {
    if call.downstream.is_at_gateway() {
        record.forwarded_for = introduce(call.downstream, call.topology, call.client, &mut parts.headers);
    }
}

/// What the issuers of tokens and the policies say: the token, if there is one and it is good, and why the request is
/// not allowed, if it is not. (What only tells is told.)
fn judge(call: &Call<'_>, access: &Access, parts: &mut Parts) -> Result<(Verified, Option<Denial>), Refused> {
    access.headers().drop_alike(&mut parts.headers);
    let token = access.tokens.verify(parts, &mut call.worker.tokens.borrow_mut()).map_err(Refused::Token)?;
    let path = Path::new(parts.uri.path());
    let request = call.asks(parts, &path, token.as_deref());
    let dry_runs = &call.worker.shared.metrics.dry_runs;
    let denied = call.downstream.authorize(dry_runs, access, call.client.ip(), Some(request));
    Ok((token, denied))
}

/// The token is not good (RFC 6750 §3), in Envoy's words.
fn unauthorized(
    why: TokenError,
    call: &Call<'_>,
    parts: &Parts,
    mut record: Box<RequestLog>,
) -> Response<ResponseBody> {
    let why = why.to_string();
    let mut response = reply::local_response(StatusCode::UNAUTHORIZED, why.clone(), record.is_grpc);
    let realm = format!("{}://{}{}", call.downstream.scheme(), call.authority().as_str(), parts.uri.path());
    let text = format!("Bearer realm=\"{}\", error=\"invalid_token\"", realm.replace(['"', '\\'], ""));
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    record.details = format!("jwt_authn_access_denied{{{}}}", one_word(&why)).into();
    record.error = why;
    log_reply(record, response, ResponseFlag::None)
}
