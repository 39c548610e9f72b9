//! Flows as they are shown.

use crate::output::{Cell, Tone};
use karst_flows::{Key, Reporter, Source, Verdict};

/// Who calls: its identity as policies write it, or a range of addresses.
pub fn caller(key: &Key) -> String {
    match &key.source {
        Source::Identity(uri) => uri.strip_prefix("spiffe://").unwrap_or(uri).to_owned(),
        Source::Addresses(range) => range.clone(),
    }
}

/// What is called, and its port.
pub fn called(key: &Key) -> String {
    let to = &key.destination;
    match key.reporter {
        Reporter::Waypoint if !to.service.is_empty() => format!("{}:{}", to.service, key.port),
        Reporter::Gateway => format!("gateway {}/{}:{}", to.namespace, to.workload, key.port),
        Reporter::Ztunnel | Reporter::Waypoint => format!("{}/{}:{}", to.namespace, to.workload, key.port),
    }
}

/// Method and path of a request; empty for a connection.
pub fn request(key: &Key) -> String {
    if key.method.is_empty() { String::new() } else { format!("{} {}", key.method, key.path) }
}

/// What policies said.
pub fn verdict(verdict: Verdict) -> Cell {
    match verdict {
        Verdict::Allowed => Cell::new("allowed", Tone::Good),
        Verdict::Denied => Cell::new("denied", Tone::Bad),
        Verdict::NotAllowed => Cell::new("not allowed", Tone::Bad),
    }
}
