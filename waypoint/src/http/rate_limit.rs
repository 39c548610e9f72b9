//! Local rate limits of services and routes, and the answer to a request above one.

use crate::{
    downstream::context::Downstream,
    http::{
        answer::log_reply,
        reply::{self, ResponseBody},
    },
    route::limit::{self, Limit, Over},
    telemetry::{flag::ResponseFlag, request_log::RequestLog},
};
use http::{HeaderValue, Response, header};
use std::{net::IpAddr, sync::Arc};

/// The limit that the request is above, if there is one. Callers without an identity are told apart by the client's address.
pub(super) fn over(limits: &[Arc<Limit>], downstream: &Downstream, client: IpAddr) -> Option<Over> {
    if limits.is_empty() {
        return None;
    }
    let who = || downstream.peer.as_ref().map_or_else(|| client.to_string(), ToString::to_string);
    let now = limit::now();
    limits.iter().find_map(|l| l.take(now, who).err())
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
