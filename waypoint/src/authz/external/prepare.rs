//! A question as it is sent, whichever way the provider is asked.

use crate::authz::external::{
    answer::Invalid,
    grpc, plain,
    provider::{Protocol, Provider},
    question::{Prepared, Question},
};
use http::{HeaderMap, HeaderValue, Method, header, uri::PathAndQuery};

/// A question to a provider.
///
/// # Errors
/// It cannot be asked.
pub fn prepare(provider: &Provider, question: &Question<'_>) -> Result<Prepared, Invalid> {
    let rules = match &provider.protocol {
        Protocol::Http(rules) => return plain::request(question, rules),
        Protocol::Grpc(rules) => rules,
    };
    let as_bytes = provider.body.is_some_and(|body| body.as_bytes);
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    Ok(Prepared {
        method: Method::POST,
        path: PathAndQuery::from_static(grpc::PATH),
        headers,
        authority: None,
        body: grpc::framed(&grpc::request(question, rules, as_bytes)),
    })
}
