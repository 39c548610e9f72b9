//! What policies have refused, from the books of flows (`/flows`) or, where those are not read, from the metrics; and which edge it
//! belongs to.

use crate::{
    place::{Between, End, account, is_plain, known},
    text::Sample,
};
use karst_flows::{Flow, Reporter, Source, Verdict};
use serde::Serialize;
use std::sync::Arc;

/// The metric: of each caller, destination and policy.
pub(crate) const COUNTER: &str = "karst_policy_refusals_total";
/// The caller of a series that has none: whoever calls in plaintext.
const PLAINTEXT: &str = "plaintext";

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
    /// Port; 0: it is not told.
    pub port: u16,
    /// Requests were refused, not connections.
    pub requests: bool,
    /// Method of the request; empty: a connection, or it is not told.
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
            requests: !key.method.is_empty(),
            method: key.method.clone(),
            path: key.path.clone(),
            count: flow.count,
            last: flow.last,
        })
    }

    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let key = |one: &Self| (one.verdict, one.by, one.port, one.requests);
        let text = |one: &Self| [&one.policy, &one.caller, &one.method, &one.path].map(String::clone);
        key(self) == key(other) && text(self) == text(other)
    }
}

/// What a flow calls: the ends as far as they are known, with the source by its account.
pub(crate) fn between(flow: &Flow) -> Between {
    let key = &flow.key;
    let identity = match &key.source {
        Source::Identity(identity) => identity.as_str(),
        Source::Addresses(_) => "",
    };
    let host = key.destination.service.split_once('/').map_or("", |(_, host)| host);
    ends(identity, &key.destination.namespace, &key.destination.workload, host)
}

fn ends(identity: &str, namespace: &str, workload: &str, host: &str) -> Between {
    let caller = account(identity);
    let source = caller.map_or_else(End::outside, |(namespace, account)| End::workload(namespace, account));
    let host = if is_plain(host) { host } else { "" };
    let destination = match (workload, host) {
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

/// What a series of [`COUNTER`] says.
pub(crate) struct Refused {
    pub(crate) between: Between,
    /// Empty: plaintext.
    pub(crate) identity: Arc<str>,
    pub(crate) refusal: Refusal,
}

impl Refused {
    /// `count`: of the series. `now`: when it has grown, in seconds. None: it is of a proxy that nobody knows, or names what no name
    /// can be.
    pub(crate) fn read(sample: &Sample<'_>, count: u64, now: u64) -> Option<Self> {
        let [mut by, mut identity, mut namespace, mut workload, mut host, mut protocol, mut policy] =
            [const { String::new() }; 7];
        for (name, value) in sample.labels() {
            let place = match name {
                "by" => &mut by,
                "source_principal" => &mut identity,
                "destination_workload_namespace" => &mut namespace,
                "destination_workload" => &mut workload,
                "destination_service" => &mut host,
                "request_protocol" => &mut protocol,
                "policy" => &mut policy,
                _ => continue,
            };
            *place = known(&value).unwrap_or_default().to_owned();
        }
        let by = match by.as_str() {
            "ztunnel" => Reporter::Ztunnel,
            "waypoint" => Reporter::Waypoint,
            "gateway" => Reporter::Gateway,
            _ => return None,
        };
        if ![&identity, &policy].iter().all(|name| is_plain(name)) {
            return None;
        }
        let refusal = Refusal {
            verdict: if policy.is_empty() { Verdict::NotAllowed } else { Verdict::Denied },
            policy,
            by,
            caller: if identity.is_empty() { PLAINTEXT.into() } else { identity.clone() },
            port: 0,
            requests: protocol == "http",
            method: String::new(),
            path: String::new(),
            count,
            last: now,
        };
        let between = ends(&identity, &namespace, &workload, &host);
        Some(Self { between, identity: identity.into(), refusal })
    }
}
