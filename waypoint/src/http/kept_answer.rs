//! Under what the answer of a provider of external authorization to a question is kept: a hash of who was asked, by which service or
//! gateway's port, whether for a WebSocket, what was sent of the body, and the values that the provider's answers are said to follow
//! from. Whole values, and all of them: what is like something for a limit of rate may be something else for who decides.

use crate::{
    authz::{
        external::{
            provider::{CacheKey, CacheRule},
            question::BodyPart,
        },
        generations,
    },
    http::call::Call,
    route::bucket::BucketHash,
};
use http::{HeaderMap, request::Parts};
use std::{net::IpAddr, ops::Deref};

/// The key of the answer to a question. `headers`: as the provider is told them, which a gateway has added to; looked at only if the
/// answer follows from one.
pub(super) fn key(
    call: &Call<'_>,
    rule: &CacheRule,
    parts: &Parts,
    headers: &impl Deref<Target = HeaderMap>,
    body: Option<&BodyPart>,
) -> generations::Key {
    let mut hash = BucketHash::default();
    hash.value(&rule.provider);
    hash.value(call.downstream.service().map_or("", |service| &*service.key).as_bytes());
    hash.value(&call.downstream.port.to_be_bytes());
    // A stream that stays open is more than an answer.
    hash.value(&[u8::from(call.entry.websocket)]);
    match body {
        Some(part) => {
            hash.value(part.told().as_bytes());
            hash.value(&part.bytes);
        }
        None => hash.nothing(),
    }
    rule.keys.iter().for_each(|key| put(call, key, (parts, headers), &mut hash));
    hash.whole()
}

fn put(
    call: &Call<'_>,
    key: &CacheKey,
    (parts, headers): (&Parts, &impl Deref<Target = HeaderMap>),
    hash: &mut BucketHash,
) {
    match key {
        CacheKey::Method => hash.value(parts.method.as_str().as_bytes()),
        CacheKey::Host => hash.value(call.authority().as_str().as_bytes()),
        CacheKey::Path => hash.value(parts.uri.path().as_bytes()),
        CacheKey::Query => match parts.uri.query() {
            Some(query) => hash.value(query.as_bytes()),
            None => hash.nothing(),
        },
        CacheKey::Parameter(name) => {
            // As they are written: of bytes that are no text, all are read as the same.
            let all = parts.uri.query().unwrap_or_default().split('&');
            all.filter(|pair| is_named(pair, name)).for_each(|pair| hash.value(pair.as_bytes()));
            hash.nothing();
        }
        // Each line: by HTTP a provider gets them apart, and may look at one of them only.
        CacheKey::Header(name) => {
            headers.get_all(name).iter().for_each(|value| hash.value(value.as_bytes()));
            hash.nothing();
        }
        CacheKey::SourceAddress => address(call.client.ip(), hash),
        CacheKey::Caller => match &call.downstream.peer {
            Some(peer) => hash.value(peer.as_str().as_bytes()),
            None => {
                address(call.client.ip(), hash);
                // Many may have one address, and certificates of their own.
                match &call.downstream.entered.certificate {
                    Some(certificate) => hash.value(certificate.as_bytes()),
                    None => hash.nothing(),
                }
            }
        },
    }
}

/// Is it a parameter of this name, whichever way that is written?
fn is_named(pair: &str, name: &str) -> bool {
    form_urlencoded::parse(pair.as_bytes()).any(|(key, _)| key == *name)
}

/// All of it.
fn address(ip: IpAddr, hash: &mut BucketHash) {
    match ip.to_canonical() {
        IpAddr::V4(ip) => hash.value(&ip.octets()),
        IpAddr::V6(ip) => hash.value(&ip.octets()),
    }
}
