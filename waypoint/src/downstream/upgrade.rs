//! What is kept of a request that has become a byte stream (WebSocket), so that policies that come later can judge it.

use crate::{
    authz::{access::Access, jwt::Shown},
    http::entry::{self, Names},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use std::{cell::RefCell, net::IpAddr, sync::Arc};

/// The request that a stream has begun with, as it was judged.
pub struct Upgrade {
    pub method: Method,
    pub authority: String,
    pub path: String,
    pub headers: Kept,
    /// The token that it was judged by, if it had one.
    pub token: Option<RefCell<Shown>>,
    /// The client, as trusted proxies have told.
    pub client: IpAddr,
}

/// Longest head that is kept whole for an open WebSocket, bytes. Those of browsers are a fourth of it.
pub const KEPT: usize = 4 << 10;

/// What is kept of a request's headers, copied: its own hold the whole buffer that they were read into.
#[derive(Default)]
pub struct Kept {
    pub all: HeaderMap,
    /// Of a long head only these, at which the policies looked that let it in. Of others nothing is known to policies that come
    /// later. None: all.
    pub known: Option<Arc<Names>>,
}

impl Kept {
    /// Of a request that these policies have let in.
    pub fn of(headers: &HeaderMap, access: Option<&Access>) -> Self {
        let long = headers.iter().map(|(n, v)| n.as_str().len() + v.len()).sum::<usize>() > KEPT;
        let known = long.then(|| access.map(|a| a.headers().clone()).unwrap_or_default());
        let wanted = |n: &HeaderName| known.as_ref().is_none_or(|k| k.contains(n));
        let mut all = HeaderMap::new();
        for name in headers.keys().filter(|name| wanted(name)) {
            // A value that is joined of those that are valid is valid.
            if let Some(Ok(v)) = entry::joined(headers, name).map(|v| HeaderValue::from_bytes(&v)) {
                all.insert(name.clone(), v);
            }
        }
        Self { all, known }
    }
}
