//! What decides about a route.

use crate::authz::jwt::Token;
use http::HeaderMap;
use std::{cell::OnceCell, collections::BTreeMap};

/// What of a request decides about its route.
pub struct RouteInput<'a> {
    /// Without query.
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub method: &'a str,
    pub scheme: &'a str,
    pub authority: &'a str,
    pub headers: &'a HeaderMap,
    /// The caller's namespace, as proven.
    pub namespace: &'a str,
    /// Labels of the caller's pod, as far as known.
    pub labels: &'a BTreeMap<String, String>,
    /// The token, where one was verified.
    pub token: Option<&'a Token>,
    parameters: OnceCell<Vec<(String, String)>>,
}

impl<'a> RouteInput<'a> {
    /// Of these parts.
    #[allow(clippy::too_many_arguments, reason = "what of a request routes ask about, each once and by its name")]
    pub fn new(
        path: &'a str,
        query: Option<&'a str>,
        method: &'a str,
        scheme: &'a str,
        authority: &'a str,
        headers: &'a HeaderMap,
        namespace: &'a str,
        labels: &'a BTreeMap<String, String>,
    ) -> Self {
        let parameters = OnceCell::new();
        Self { path, query, method, scheme, authority, headers, namespace, labels, token: None, parameters }
    }

    /// With a token that was verified.
    #[must_use]
    pub fn with_token(self, token: Option<&'a Token>) -> Self {
        Self { token, ..self }
    }

    pub(super) fn parameters(&self) -> &[(String, String)] {
        self.parameters.get_or_init(|| {
            let q = self.query.unwrap_or("");
            form_urlencoded::parse(q.as_bytes()).map(|(k, v)| (k.into_owned(), v.into_owned())).collect()
        })
    }
}

/// What of a connection decides about its route.
pub struct TcpRouteInput<'a> {
    pub port: u16,
    /// The caller's namespace, as proven.
    pub namespace: &'a str,
    /// Labels of the caller's pod, as far as known.
    pub labels: &'a BTreeMap<String, String>,
    /// The name in its TLS hello.
    pub sni: Option<&'a str>,
}
