//! A connection or request as it is noted, and what is kept of those that are alike.

use karst_core::{Identity, limits};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// Who has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reporter {
    /// The ztunnel of the destination's node, about a connection; live also about a request in it.
    Ztunnel,
    /// A waypoint, about a request or a connection to a service.
    Waypoint,
    /// A gateway, about a request or a connection to itself.
    Gateway,
}

/// What policies said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It was let in.
    Allowed,
    /// A DENY policy matched: [`Key::policy`].
    Denied,
    /// There were ALLOW policies, and none matched.
    NotAllowed,
}

/// The same, as it is noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// It is let in.
    Allowed,
    /// This DENY policy (`namespace/name`) matches.
    DeniedBy(&'a str),
    /// No ALLOW policy matches.
    NotAllowed,
}

impl<'a> Decision<'a> {
    pub(crate) fn verdict(self) -> Verdict {
        match self {
            Self::Allowed => Verdict::Allowed,
            Self::DeniedBy(_) => Verdict::Denied,
            Self::NotAllowed => Verdict::NotAllowed,
        }
    }
    pub(crate) fn policy(self) -> &'a str {
        match self {
            Self::DeniedBy(policy) => policy,
            Self::Allowed | Self::NotAllowed => "",
        }
    }
}

/// What is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Destination {
    /// Namespace of the workload or service.
    pub namespace: String,
    /// Name of what the pod belongs to (a Deployment's, say); empty: a service is called, at its waypoint.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workload: String,
    /// `namespace/host` of the service; empty: not known. A ztunnel's is a guess, and decides nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// As proven by its certificate: `spiffe://…`.
    Identity(String),
    /// In plaintext, from a range of addresses: `10.0.0.0/24`, `2001:db8::/64`.
    Addresses(String),
}

/// What makes flows alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// Who has decided.
    pub reporter: Reporter,
    /// What is called.
    pub destination: Destination,
    /// Port: the application's for a ztunnel, the service's for a waypoint, the listener's for a gateway.
    pub port: u16,
    /// Who calls.
    pub source: Source,
    /// Method of a request; empty: a connection.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// Template of a request's path; empty: a connection.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What policies said.
    pub verdict: Verdict,
    /// `namespace/name` of the DENY policy that matched; empty: none did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policy: String,
}

/// The first of those that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Example {
    /// Address of the caller.
    pub from: IpAddr,
    /// What was called.
    pub to: SocketAddr,
    /// Name of the pod that was called; empty: a service was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Host of the request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// Path of the request, without query.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Some text was too long, and is not whole here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

/// What is kept of those that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// What they have in common.
    #[serde(flatten)]
    pub key: Key,
    /// How many.
    pub count: u64,
    /// When the first was seen, in seconds since 1970.
    pub first: u64,
    /// When the last was seen, in seconds since 1970.
    pub last: u64,
    /// One of them.
    pub example: Example,
}

impl Flow {
    /// Was it let in?
    pub fn is_allowed(&self) -> bool {
        self.key.verdict == Verdict::Allowed
    }
}

/// A proxy's page of flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Page {
    /// False: the proxy keeps no book.
    pub enabled: bool,
    /// Since when the proxy has noted, in seconds since 1970.
    pub since: u64,
    /// Flows that there is room for.
    pub capacity: u64,
    /// Flows that had to make room for others since.
    pub evicted: u64,
    /// The flows.
    pub flows: Vec<Flow>,
}

/// One list of several workers' or proxies'; in the order of their keys.
pub fn merge(all: impl IntoIterator<Item = Flow>) -> Vec<Flow> {
    let mut by_key: BTreeMap<Key, Flow> = BTreeMap::new();
    for flow in all {
        match by_key.get_mut(&flow.key) {
            None => drop(by_key.insert(flow.key.clone(), flow)),
            Some(same) => {
                if flow.first < same.first {
                    same.example = flow.example;
                }
                same.count = same.count.saturating_add(flow.count);
                same.first = same.first.min(flow.first);
                same.last = same.last.max(flow.last);
            }
        }
    }
    by_key.into_values().collect()
}

/// A request, as it is noted.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its path, in the form in which policies see it, without query.
    pub path: &'a str,
    /// Its host.
    pub host: &'a str,
}

/// A connection or request, as it is noted.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Who has decided.
    pub reporter: Reporter,
    /// Who calls, as proven; None: plaintext.
    pub identity: Option<&'a Identity>,
    /// Address of the caller.
    pub from: IpAddr,
    /// Namespace of what is called.
    pub namespace: &'a str,
    /// See [`Destination::workload`].
    pub workload: &'a str,
    /// See [`Destination::service`].
    pub service: &'a str,
    /// Address that was called, and the port of [`Key::port`].
    pub to: SocketAddr,
    /// See [`Example::pod`].
    pub pod: &'a str,
    /// None: a connection.
    pub request: Option<Request<'a>>,
    /// What policies say.
    pub decision: Decision<'a>,
}

impl Example {
    /// What was seen, as an example; its texts are cut.
    pub(crate) fn of(seen: &Seen<'_>) -> Self {
        let (from, to, pod) = (seen.from, seen.to, seen.pod.into());
        let Some(request) = seen.request else {
            return Self { from, to, pod, host: String::new(), path: String::new(), cut: false };
        };
        let (host, path) = (start(request.host, limits::FLOW_HOST), start(request.path, limits::FLOW_PATH));
        let is_whole = (host.len(), path.len()) == (request.host.len(), request.path.len());
        let cut = !is_whole || request.kept_method() != request.method;
        Self { from, to, pod, host: host.into(), path: path.into(), cut }
    }
}

impl<'a> Request<'a> {
    /// Its method as it is kept; whoever invents long ones is not told apart.
    pub(crate) fn kept_method(&self) -> &'a str {
        start(self.method, limits::FLOW_METHOD)
    }
}

/// The first bytes of a text, at the end of a character.
fn start(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most.min(text.len()))).unwrap_or_default()
}

/// The network of a plaintext caller: of the usual size of a node's or a site's.
pub(crate) fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) & !0xff).into()),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX))),
    }
}

/// So many bits of a [`network`] count.
pub(crate) fn bits(network: IpAddr) -> u8 {
    match network {
        IpAddr::V4(_) => 24,
        IpAddr::V6(_) => 64,
    }
}
