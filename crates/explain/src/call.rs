//! What is asked about.

use serde_json::{Map, Value};

/// A call that is to be explained.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Call {
    /// Who calls: `[KIND/]NAME[.NAMESPACE]` (pod, workload, service account), a SPIFFE identity, or an address.
    pub from: String,
    /// What is called: `NAME[.NAMESPACE]` or a host of a service, `pod/NAME[.NAMESPACE]`, or an address.
    pub to: String,
    /// The namespace of names that are written without one; empty: `default`.
    pub namespace: String,
    /// The port; None: the only one that the service has.
    pub port: Option<u16>,
    /// The request; None: a connection of which nothing is known but its bytes.
    pub request: Option<Head>,
    /// The name in the TLS hello, if the connection begins with one.
    pub server_name: Option<String>,
    /// The time, in seconds since 1970, that a token's claims are judged by; 0: they are taken as valid.
    pub now: u64,
}

/// A request's head.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The host; None: the service's name.
    pub host: Option<String>,
    /// Headers, in order.
    pub headers: Vec<(String, String)>,
    /// Claims of a token, taken as signed by their issuer.
    pub claims: Option<Map<String, Value>>,
}

impl Default for Head {
    fn default() -> Self {
        Self { method: "GET".into(), path: "/".into(), host: None, headers: vec![], claims: None }
    }
}

impl Call {
    /// `NAME[.NAMESPACE]`.
    pub(crate) fn split<'a>(&'a self, text: &'a str) -> (&'a str, &'a str) {
        text.split_once('.').unwrap_or((text, self.namespace()))
    }

    /// The namespace of names that are written without one.
    pub(crate) fn namespace(&self) -> &str {
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }
}
