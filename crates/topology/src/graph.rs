//! The graph as it is asked for: names and numbers, as JSON.

use crate::{
    cell::Cell,
    edge::Tracked,
    place::{End, Kind, Protocol},
    refusal::Refusal,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// An edge of which nothing was seen for this long is not shown, in milliseconds.
const OLD: u64 = 300_000;
/// Id of the one node that stands for all ends whose names are not shown. No end has it ([`End::id`]).
pub(crate) const HIDDEN: &str = "hidden";

/// Who talks to whom.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Graph {
    /// When it was read, in milliseconds since 1970.
    pub at: u64,
    /// When the time line begins, in seconds since 1970.
    pub since: Option<u64>,
    /// Readings for which there was no room.
    pub dropped: u64,
    /// The nodes, by their ids.
    pub nodes: Vec<Node>,
    /// The edges.
    pub edges: Vec<Edge>,
}

/// A workload, service, gateway, waypoint, or what is outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Stable.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// Empty outside.
    pub namespace: String,
    /// Workload, or host.
    pub name: String,
}

/// Whether calls are in mutual TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Mtls {
    /// All are.
    All,
    /// Some are.
    Some,
    /// None is.
    None,
    /// Nobody tells.
    Unknown,
}

/// Calls from one node to another, in the last 10 s.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Edge {
    /// A number that no other edge will have.
    pub id: u32,
    /// Id of a node.
    pub source: String,
    /// Id of a node.
    pub target: String,
    /// Host of the service that was called; empty: none.
    pub service: String,
    /// Identity of the caller, if it was proven.
    pub source_principal: String,
    /// Identity of who was called.
    pub destination_principal: String,
    /// What is spoken.
    pub(crate) protocol: Protocol,
    /// Requests per second.
    pub rate: f64,
    /// Share of errors of the server in the requests, 0 to 1.
    pub error_share: f64,
    /// Share of 4xx in the requests, 0 to 1.
    pub client_error_share: f64,
    /// Half of the requests took no longer, in milliseconds.
    pub p50: Option<f64>,
    /// Of 100 requests 99 took no longer, in milliseconds.
    pub p99: Option<f64>,
    /// Connections opened per second.
    pub opened: f64,
    /// Connections per second that did not come about.
    pub failed: f64,
    /// Bytes per second to the client.
    pub sent: f64,
    /// Bytes per second from the client.
    pub received: f64,
    /// Calls per second that policies have refused.
    pub refused: f64,
    /// Mutual TLS.
    pub mtls: Mtls,
    /// Requests per second by status; 0: no answer.
    pub codes: BTreeMap<u16, f64>,
    /// Requests and connections per second by Envoy's response flags.
    pub flags: BTreeMap<String, f64>,
    /// The last refusals, the newest first.
    pub refusals: Vec<Refusal>,
    /// A hop to or from a waypoint: what passes it is told by another edge.
    pub hop: bool,
    /// When something was last seen, in milliseconds since 1970.
    pub last: u64,
    #[serde(skip)]
    pub(crate) is_old: bool,
}

fn mtls(cell: &Cell) -> Mtls {
    match (cell.mtls > 0, cell.plain > 0) {
        (true, false) => Mtls::All,
        (true, true) => Mtls::Some,
        (false, true) => Mtls::None,
        (false, false) => Mtls::Unknown,
    }
}

impl Edge {
    pub(crate) fn live(id: u32, edge: &Tracked, seconds: f64, now: u64, kind: &dyn Fn(&End) -> Kind) -> Self {
        let cell = edge.live();
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let share = |count: u64| if cell.requests > 0 { count as f64 / cell.requests as f64 } else { 0.0 };
        let ends = [&edge.between.source, &edge.between.destination];
        Self {
            id,
            source: edge.between.source.id(),
            target: edge.between.destination.id(),
            service: edge.between.service.to_string(),
            source_principal: edge.source_principal.to_string(),
            destination_principal: edge.destination_principal.to_string(),
            protocol: edge.protocol,
            rate: per_second(cell.requests),
            error_share: share(cell.errors),
            client_error_share: share(cell.client_errors),
            p50: cell.quantile(0.5),
            p99: cell.quantile(0.99),
            opened: per_second(cell.opened),
            failed: per_second(cell.failed),
            sent: per_second(cell.sent),
            received: per_second(cell.received),
            refused: per_second(cell.refused),
            mtls: mtls(&cell),
            codes: cell.codes.iter().map(|(code, count)| (*code, per_second(*count))).collect(),
            flags: cell.flags.iter().map(|(flag, count)| (flag.to_string(), per_second(*count))).collect(),
            refusals: edge.refusals.clone(),
            hop: ends.iter().any(|end| kind(end) == Kind::Waypoint),
            last: edge.last,
            is_old: now.saturating_sub(edge.last) >= OLD,
        }
    }
}

impl Node {
    pub(crate) fn of(end: &End, kind: Kind) -> Self {
        Self { id: end.id(), kind, namespace: end.namespace.to_string(), name: end.name.to_string() }
    }

    /// In the place of all whose names are not shown.
    pub(crate) fn hidden() -> Self {
        let (id, name) = (HIDDEN.into(), "other namespaces".into());
        Self { id, kind: Kind::Outside, namespace: String::new(), name }
    }
}

/// The ends of these edges, each once.
pub(crate) fn nodes<'a>(edges: impl Iterator<Item = &'a Tracked>, node: &dyn Fn(&End) -> Node) -> Vec<Node> {
    let mut all = BTreeMap::new();
    for end in edges.flat_map(|edge| [&edge.between.source, &edge.between.destination]) {
        let node = node(end);
        all.entry(node.id.clone()).or_insert(node);
    }
    all.into_values().collect()
}
