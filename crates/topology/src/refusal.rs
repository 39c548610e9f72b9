//! What policies have refused, from the books of flows (`/flows`), and which edge it belongs to.

use crate::place::{Between, End, account, is_plain};
use karst_flows::{Flow, Reporter, Source, Verdict};
use serde::Serialize;

/// Calls of one kind that were refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// A DENY policy matched, or no ALLOW policy did.
    pub verdict: Verdict,
    /// `namespace/name` of the policy that denied; empty: none allowed it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// Who has decided.
    pub by: Reporter,
    /// Who called: an identity, or a range of addresses.
    pub caller: String,
    /// Port.
    pub port: u16,
    /// Method of the request; empty: a connection.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// Template of its path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// How many, since the proxy keeps its book.
    pub count: u64,
    /// When the last was, in seconds since 1970.
    pub last: u64,
}

impl Refusal {
    /// None: it was let in, or the policy has no name that one can have.
    pub(crate) fn of(flow: &Flow) -> Option<Self> {
        let key = &flow.key;
        if !is_plain(&key.policy) {
            return None;
        }
        match key.verdict {
            Verdict::Allowed => return None,
            Verdict::Denied | Verdict::NotAllowed => {}
        }
        let caller = match &key.source {
            Source::Identity(identity) => identity.clone(),
            Source::Addresses(range) => range.clone(),
        };
        Some(Self {
            verdict: key.verdict,
            policy: key.policy.clone(),
            by: key.reporter,
            caller,
            port: key.port,
            method: key.method.clone(),
            path: key.path.clone(),
            count: flow.count,
            last: flow.last,
        })
    }

    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let key = |one: &Self| (one.verdict, one.by, one.port);
        let text = |one: &Self| [&one.policy, &one.caller, &one.method, &one.path].map(String::clone);
        key(self) == key(other) && text(self) == text(other)
    }
}

/// What a flow calls: the ends as far as they are known, with the source by its account.
pub(crate) fn between(flow: &Flow) -> Between {
    let key = &flow.key;
    let source = match &key.source {
        Source::Identity(identity) => {
            account(identity).map_or_else(End::outside, |(namespace, account)| End::workload(namespace, account))
        }
        Source::Addresses(_) => End::outside(),
    };
    let host = key.destination.service.split_once('/').map_or("", |(_, host)| host);
    let host = if is_plain(host) { host } else { "" };
    let namespace = &key.destination.namespace;
    let destination = match (key.destination.workload.as_str(), host) {
        ("", "") => End::outside(),
        ("", host) => End::service(host, namespace),
        (workload, _) => End::workload(namespace, workload),
    };
    Between { source, destination, service: host.into() }
}

/// The identity of a caller; empty: plaintext, or none that a caller can have.
pub(crate) fn identity(flow: &Flow) -> &str {
    match &flow.key.source {
        Source::Identity(identity) if is_plain(identity) => identity,
        Source::Identity(_) | Source::Addresses(_) => "",
    }
}
