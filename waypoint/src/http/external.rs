//! External authorization of a request: the providers that filters of a gateway's listener and then CUSTOM policies name are asked, one
//! after the other, each about the request as those before it have left it. Whoever says no ends it; so does who says nothing that can be
//! used, unless it is `failOpen`. Tokens, DENY and ALLOW follow, and look at what has come of it. A request is asked about once, at its
//! head: a WebSocket, or a stream of gRPC, is not asked about again.

use crate::{
    authz::{
        access::{Access, Asks, Denial},
        external::{
            answer::{Answer, Changes, Refusal},
            counts::Outcome,
            prepare::prepare,
            provider::{BodyRule, Provider},
            question::{BodyPart, Party, Prepared, Question},
        },
    },
    clock,
    downstream::gateway::Filter,
    http::{
        answer::{local_reply, local_reply_of, log_reply},
        ask::{CheckError, ask},
        body::RequestBody,
        call::Call,
        entry,
        forwarded::introduce,
        headers::identify,
        kept_answer, names,
        reply::{self, ResponseBody},
    },
    telemetry::{
        flag::{EXT_AUTHZ_DENIED, EXT_AUTHZ_ERROR, ResponseFlag},
        request_log::RequestLog,
    },
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, request::Parts, uri::PathAndQuery};
use http_body::Body;
use karst_core::Identity;
use karst_policy::Path;
use karst_proxy::dry_run::Would;
use std::{cell::LazyCell, fmt, sync::Arc, time::Duration};

/// A question of a policy in dry run, for which nobody waits, takes at most this long.
const TRIAL: Duration = Duration::from_secs(10);

/// Why a request does not go on.
pub(super) enum Stopped {
    /// A provider has said so.
    Denied(Box<Refusal>, Denial),
    /// It has said nothing that can be used.
    Unanswered(StatusCode, Denial),
    /// There is more of the body than may be sent to it.
    TooLarge,
    /// The client has not sent the body.
    Broken,
}

impl Stopped {
    /// The answer.
    pub(super) fn answer(self, mut record: Box<RequestLog>) -> Response<ResponseBody> {
        match self {
            Stopped::Denied(refusal, by) => {
                (record.error, record.details) = (by.error, by.details.into());
                let response = refused(*refusal, record.is_grpc);
                log_reply(record, response, ResponseFlag::Unauthorized)
            }
            Stopped::Unanswered(status, by) => {
                (record.error, record.details) = (by.error, by.details.into());
                local_reply(record, status, "", ResponseFlag::Unauthorized)
            }
            Stopped::TooLarge => {
                record.details = "request_payload_too_large".into();
                local_reply(record, StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large", ResponseFlag::None)
            }
            Stopped::Broken => local_reply_of(record, ResponseFlag::BadRequest),
        }
    }
}

/// A provider's refusal as the client gets it. (To gRPC it is one in gRPC's form, with the provider's other headers.)
fn refused(refusal: Refusal, is_grpc: bool) -> Response<ResponseBody> {
    let has_body = !matches!(refusal.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let body = if has_body { refusal.body } else { Bytes::new() };
    let mut response = reply::local_response(refusal.status, body, is_grpc);
    let headers = response.headers_mut();
    let told = |name: &http::HeaderName| !is_grpc || *name != header::CONTENT_TYPE;
    for name in refusal.headers.keys().filter(|name| told(name)) {
        headers.remove(name);
    }
    for (name, value) in refusal.headers.iter().filter(|(name, _)| told(name)) {
        headers.append(name, value.clone());
    }
    response
}

/// By what somebody was asked about a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AskedBy {
    /// A filter of the listener that it has come in by.
    Filter,
    Policy,
    /// A policy in dry run: nothing followed from it.
    DryRun,
}

impl AskedBy {
    /// Need another one not ask any more?
    fn counts_for(self, other: Self) -> bool {
        match (self, other) {
            (AskedBy::Policy, AskedBy::Policy | AskedBy::DryRun) | (AskedBy::DryRun, AskedBy::DryRun) => true,
            (AskedBy::DryRun, AskedBy::Policy) | (AskedBy::Filter, _) | (_, AskedBy::Filter) => false,
        }
    }
}

/// Who was asked about a request.
pub(super) type AskedProviders = Vec<(Arc<Provider>, AskedBy)>;

/// Asks whoever is to be asked about a request, and was not yet; it goes on as they have changed it. Returns what they change of the
/// answer to it.
///
/// # Errors
/// It does not go on.
pub(super) async fn check(
    call: &Call<'_>,
    access: &Access,
    asked: &mut AskedProviders,
    parts: &mut Parts,
    body: &mut RequestBody,
    record: &mut RequestLog,
) -> Result<Vec<Changes>, Stopped> {
    access.headers().drop_alike(&mut parts.headers);
    let mut changes = vec![];
    for provider in access.providers() {
        let Some(asks) = asks(call, access, provider, parts) else { continue };
        let asks_by = if asks.dry_run { AskedBy::DryRun } else { AskedBy::Policy };
        if asked.iter().any(|(known, by)| by.counts_for(asks_by) && known.is_same(provider)) {
            continue;
        }
        asked.push((provider.clone(), asks_by));
        identify(parts, record);
        if asks.dry_run {
            try_out(call, &asks, parts, body, record);
            continue;
        }
        let by = By::Policy { provider: &provider.name, policy: asks.policy };
        changes.extend(enforce(call, provider, &by, parts, body, record).await?);
    }
    Ok(changes)
}

/// The same for the rule that a request goes by.
///
/// # Errors
/// It does not go on.
pub(super) async fn check_rule(
    call: &Call<'_>,
    (provider, origin): (&Provider, &str),
    parts: &mut Parts,
    body: &mut RequestBody,
    record: &mut RequestLog,
) -> Result<Option<Changes>, Stopped> {
    identify(parts, record);
    enforce(call, provider, &By::Rule { origin }, parts, body, record).await
}

/// Lets a request through the filters of the listener that it has come to: all of them, in their order, each once. `asked`: who was
/// asked, also by what was known before; whom a filter has asked already is not asked by the filters of now.
///
/// # Errors
/// It does not go on.
pub(super) async fn pass(
    call: &Call<'_>,
    filters: &[Filter],
    asked: &mut AskedProviders,
    parts: &mut Parts,
    body: &mut RequestBody,
    record: &mut RequestLog,
) -> Result<Vec<Changes>, Stopped> {
    let mut changes = vec![];
    if filters.is_empty() {
        return Ok(changes);
    }
    let all = std::mem::take(asked).into_iter();
    let (mut before, others): (AskedProviders, AskedProviders) = all.partition(|(_, by)| *by == AskedBy::Filter);
    *asked = others;
    for (place, filter) in filters.iter().enumerate() {
        let by = By::Filter { place };
        let Filter::ExternalAuth(provider) = filter else {
            let error = format!("{by} cannot be executed: see the status of its Gateway");
            let denial = denial(call, parts, &by, (error, EXT_AUTHZ_ERROR), record);
            return Err(Stopped::Unanswered(StatusCode::INTERNAL_SERVER_ERROR, denial));
        };
        asked.push((provider.clone(), AskedBy::Filter));
        // One that is there twice is asked twice.
        if let Some(known) = before.iter().position(|(known, _)| known.is_same(provider)) {
            before.remove(known);
            continue;
        }
        identify(parts, record);
        changes.extend(enforce(call, provider, &by, parts, body, record).await?);
    }
    Ok(changes)
}

/// Who has a provider asked. Its text is for the log: it is written only if the request does not go on, or goes on without an answer.
enum By<'a> {
    Policy {
        provider: &'a str,
        policy: &'a str,
    },
    Rule {
        origin: &'a str,
    },
    /// One of the listener of a gateway; counted from 0.
    Filter {
        place: usize,
    },
}

impl By<'_> {
    /// The policy; empty: it is none.
    fn policy(&self) -> &str {
        match self {
            By::Policy { policy, .. } => policy,
            By::Rule { .. } | By::Filter { .. } => "",
        }
    }
}

impl fmt::Display for By<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            By::Policy { provider, policy } => write!(f, "provider {provider} (policy {policy})"),
            By::Rule { origin } => write!(f, "external authorization of {origin}"),
            By::Filter { place } => write!(f, "filter {place} of the listener"),
        }
    }
}

/// Asks a provider, and does what it says. None: without an answer the request goes on as it is.
async fn enforce(
    call: &Call<'_>,
    provider: &Provider,
    by: &By<'_>,
    parts: &mut Parts,
    body: &mut RequestBody,
    record: &RequestLog,
) -> Result<Option<Changes>, Stopped> {
    let part = match provider.body {
        Some(rule) => Some(read(rule, body).await.inspect_err(|stopped| {
            if matches!(stopped, Stopped::TooLarge) {
                count(call, provider, Outcome::TooLarge);
            }
        })?),
        None => None,
    };
    // By what the client has sent, and those before it and a gateway have made of it. Made where they are looked at: many an answer
    // that is kept follows from none.
    let now = clock::now();
    let headers = LazyCell::new(|| question_headers(call, parts));
    let kept =
        provider.cache.as_ref().map(|rule| (kept_answer::key(call, rule, parts, &headers, part.as_ref()), rule.ttl));
    let known = kept.and_then(|(key, _)| call.worker.answers.borrow_mut().get(&key, now));
    let [allowed, denied] = match known {
        Some(_) => [Outcome::AllowedCached, Outcome::DeniedCached],
        None => [Outcome::Allowed, Outcome::Denied],
    };
    let answer = match known {
        Some(answer) => Ok(answer),
        None => asked(call, provider, (&*parts, &*headers), body, record, part).await.inspect(|answer| {
            if let Some((key, ttl)) = kept {
                call.worker.answers.borrow_mut().keep(key, answer, (now, ttl));
            }
        }),
    };
    let error = match answer {
        Ok(Answer::Denied(refusal)) => {
            count(call, provider, denied);
            let denial = denial(call, parts, by, (format!("denied by {by}"), EXT_AUTHZ_DENIED), record);
            return Err(Stopped::Denied(Box::new(refusal), denial));
        }
        Ok(Answer::Allowed(changes)) => match changes.apply(parts, call.worker.shared.config.head_limits()) {
            Ok(()) => {
                count(call, provider, allowed);
                return Ok(Some(changes));
            }
            Err(invalid) => CheckError::from(invalid),
        },
        Err(error) => error,
    };
    if provider.fail_open {
        count(call, provider, Outcome::FailedOpen);
        tracing::debug!(%by, "no answer, and the request goes on (failOpen): {error}");
        return Ok(None);
    }
    count(call, provider, Outcome::Error);
    let denial = denial(call, parts, by, (format!("{by}: {error}"), EXT_AUTHZ_ERROR), record);
    Err(Stopped::Unanswered(provider.status_on_error, denial))
}

/// Is a provider to be asked about a request as it is now?
fn asks<'a>(call: &Call<'_>, access: &'a Access, provider: &'a Arc<Provider>, parts: &Parts) -> Option<Asks<'a>> {
    let path = Path::new(parts.uri.path());
    let request = call.asks(parts, &path, None);
    access.asks(provider, &call.downstream.asked(call.client.ip(), Some(request)))
}

/// The beginning of the body.
async fn read(rule: BodyRule, body: &mut RequestBody) -> Result<BodyPart, Stopped> {
    if !rule.allow_partial && body.size_hint().lower() > rule.max as u64 {
        return Err(Stopped::TooLarge);
    }
    let (bytes, is_all) = body.read_ahead(rule.max, rule.allow_partial).await.map_err(|_| Stopped::Broken)?;
    if !is_all && !rule.allow_partial {
        return Err(Stopped::TooLarge);
    }
    Ok(BodyPart { bytes, is_partial: !is_all })
}

/// Waits for what a provider says.
async fn asked(
    call: &Call<'_>,
    provider: &Provider,
    head: (&Parts, &HeaderMap),
    body: &RequestBody,
    record: &RequestLog,
    part: Option<BodyPart>,
) -> Result<Answer, CheckError> {
    let prepared = prepared(call, provider, head, body, record, part)?;
    ask(call.worker, call.snapshot, provider, &prepared, provider.timeout).await
}

/// The headers of a request as providers are told them.
fn question_headers(call: &Call<'_>, parts: &Parts) -> HeaderMap {
    let mut headers = parts.headers.clone();
    // What is written later where it is sent on, and once only.
    if call.downstream.is_at_gateway() && !call.is_introduced {
        let _ = introduce(call.downstream, call.topology, call.client, &mut headers);
    }
    headers.entry(names::FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    if call.entry.websocket {
        entry::upgrade(&mut headers);
    }
    headers
}

/// The question about a request: what is asked is what is judged and sent on. `headers`: its [`question_headers`].
fn prepared(
    call: &Call<'_>,
    provider: &Provider,
    (parts, headers): (&Parts, &HeaderMap),
    body: &RequestBody,
    record: &RequestLog,
    part: Option<BodyPart>,
) -> Result<Prepared, CheckError> {
    let Call { worker, downstream, .. } = *call;
    let question = Question {
        method: &parts.method,
        path: parts.uri.path_and_query().map_or("/", PathAndQuery::as_str),
        authority: call.authority().as_str(),
        scheme: parts.uri.scheme_str().unwrap_or(downstream.scheme()),
        protocol: record.protocol,
        headers,
        size: body.size_hint().exact(),
        body: part,
        time: record.time,
        source: Party {
            address: downstream.from,
            service: record.source.as_ref().map_or("", |workload| &*workload.canonical_name),
            principal: downstream.peer.as_ref().map_or("", Identity::as_str),
        },
        destination: Party { address: record.to, service: "", principal: worker.shared.identity.as_str() },
        sni: downstream.sni().unwrap_or_default(),
    };
    Ok(prepare(provider, &question)?)
}

/// Asks for a policy in dry run, without the body; nobody waits for it. What would have become of the request is told as of the
/// other policies in dry run.
fn try_out(call: &Call<'_>, asks: &Asks<'_>, parts: &Parts, body: &RequestBody, record: &RequestLog) {
    let Ok(place) = asks.provider.trials.clone().try_acquire_owned() else { return };
    let headers = question_headers(call, parts);
    let Ok(prepared) = prepared(call, asks.provider, (parts, &headers), body, record, None) else { return };
    let (worker, snapshot, provider) = (call.worker.clone(), call.snapshot.clone(), asks.provider.clone());
    let (policy, downstream) = (asks.policy.to_string(), call.downstream.clone());
    tokio::task::spawn_local(async move {
        let said = ask(&worker, &snapshot, &provider, &prepared, provider.timeout.min(TRIAL)).await;
        let (outcome, would) = match said {
            Ok(Answer::Allowed(_)) => (Outcome::Allowed, Would::Allow),
            Ok(Answer::Denied(_)) => (Outcome::Denied, Would::Deny),
            Err(_) if provider.fail_open => (Outcome::FailedOpen, Would::Allow),
            Err(_) => (Outcome::Error, Would::Deny),
        };
        let metrics = &worker.shared.metrics;
        metrics.external.count(&provider.name, true, outcome);
        metrics.dry_runs.count(&policy, true, would);
        let service = downstream.service().map_or("-", |s| &s.hostname);
        let (peer, port, text) = (downstream.caller(), downstream.port, would.text());
        tracing::info!(target: "audit", policy, peer, service, port, provider = &*provider.name, "{text}");
        drop(place);
    });
}

fn count(call: &Call<'_>, provider: &Provider, outcome: Outcome) {
    call.worker.shared.metrics.external.count(&provider.name, false, outcome);
}

/// Notes in the book of flows that a request was refused.
fn denial(
    call: &Call<'_>,
    parts: &Parts,
    by: &By<'_>,
    (error, details): (String, &str),
    record: &RequestLog,
) -> Denial {
    let denial = Denial { error, details: details.into(), policy: by.policy().into() };
    call.worker.note(call.downstream, Some((parts, call.authority().as_str())), Some(&denial), record.time);
    denial
}
