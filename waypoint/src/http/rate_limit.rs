//! Rate limits of services and routes: which bucket a request takes from, and the answer to one above a limit.

use crate::{
    authz::jwt::Token,
    http::{
        answer::log_reply,
        call::Call,
        entry,
        reply::{self, ResponseBody},
    },
    quota::{
        lease::Verdict,
        link::{self, Taken},
    },
    route::{
        bucket::{Bucket, BucketHash, Key},
        limit::{self, Limit, Over},
    },
    telemetry::{flag::ResponseFlag, request_log::RequestLog},
};
use http::{HeaderValue, Response, header, request::Parts};
use std::sync::Arc;

/// A request that limits are asked about.
#[derive(Clone, Copy)]
pub(super) struct Limited<'a> {
    pub(super) call: &'a Call<'a>,
    pub(super) parts: &'a Parts,
    /// A token that was verified.
    pub(super) token: Option<&'a Token>,
}

impl Limited<'_> {
    /// The limit that the request is above, if there is one.
    pub(super) async fn over(&self, limits: &[Arc<Limit>]) -> Option<Over> {
        for limit in limits {
            let now = limit::now();
            let taken = match limit.rule().shared.is_empty() {
                true => limit.take(now, || self.bucket(limit)),
                false => self.take_shared(limit, now).await,
            };
            if let Err(over) = taken {
                return Some(over);
            }
        }
        None
    }

    async fn take_shared(&self, limit: &Limit, now: u64) -> Result<(), Over> {
        let (worker, bucket) = (self.call.worker, self.bucket(limit));
        let over = |after| Err(Over { limit: limit.rule().burst, after });
        let wait = match link::take(worker, self.call.snapshot, limit, bucket, now) {
            Taken::Yes => return Ok(()),
            Taken::Over(after) => return over(after),
            Taken::Alone => return limit.take(now, || bucket),
            Taken::Wait(wait) => wait,
        };
        // Rare, and large: not in every request's task.
        match Box::pin(link::told(worker, wait)).await {
            Verdict::Taken => Ok(()),
            Verdict::Over(after) => over(after),
            Verdict::Away => limit.take(limit::now(), || bucket),
        }
    }

    /// Which bucket it takes from.
    fn bucket(&self, limit: &Limit) -> Bucket {
        let mut hash = limit.name();
        limit.keys().iter().for_each(|key| self.put(key, &mut hash));
        hash.finish()
    }

    fn put(&self, key: &Key, hash: &mut BucketHash) {
        let (call, parts) = (self.call, self.parts);
        match key {
            Key::Header(name) if *name == header::HOST => hash.value(call.authority().as_str().as_bytes()),
            Key::Header(name) => match entry::joined(&parts.headers, name) {
                Some(value) => hash.value(&value),
                None => hash.nothing(),
            },
            Key::Query(name) => {
                let query = parts.uri.query().unwrap_or_default();
                match form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name) {
                    Some((_, value)) => hash.value(value.as_bytes()),
                    None => hash.nothing(),
                }
            }
            Key::Claim(path) => {
                // Of a list all of it: one text more is another list.
                let put = |text: &str| {
                    hash.value(text.as_bytes());
                    false
                };
                if let Some(token) = self.token {
                    token.has_claim(path, put);
                }
                hash.nothing();
            }
            Key::Path => hash.value(parts.uri.path().as_bytes()),
            Key::SourceAddress => hash.address(call.client.ip()),
            Key::Caller => match &call.downstream.peer {
                Some(peer) => hash.value(peer.to_string().as_bytes()),
                None => hash.address(call.client.ip()),
            },
            Key::Unknown => hash.nothing(),
        }
    }
}

/// Too many requests (RFC 6585 §4), with the headers that Envoy gives.
pub(super) fn limited(over: &Over, record: Box<RequestLog>) -> Response<ResponseBody> {
    let (status, text) = ResponseFlag::RateLimited.answer();
    let mut response = reply::local_response(status, text, record.is_grpc);
    let seconds = over.after.as_millis().div_ceil(1000).max(1) as u64;
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    headers.insert("x-ratelimit-limit", HeaderValue::from(over.limit));
    headers.insert("x-ratelimit-remaining", HeaderValue::from(0));
    headers.insert("x-ratelimit-reset", HeaderValue::from(seconds));
    headers.insert("x-envoy-ratelimited", HeaderValue::from_static("true"));
    log_reply(record, response, ResponseFlag::RateLimited)
}
