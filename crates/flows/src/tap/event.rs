//! A request or a connection as a proxy has it at the moment, borrowed.

use crate::flow::Reporter;
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, net::SocketAddr, time::Duration};

/// At which end of a connection the reporter is (Hubble's `traffic_direction`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Direction {
    /// At the destination's: also a waypoint, and a gateway for what comes to it.
    Ingress,
    /// At the source's.
    Egress,
}

/// Which moment is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// A connection has come about.
    Open,
    /// A connection has ended, or has not come about.
    Close,
    /// A request has ended.
    Request,
}

/// What became of it (Hubble's names).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Verdict {
    /// It went to its destination, whatever that has answered.
    Forwarded,
    /// A policy or a limit has refused it.
    Dropped,
    /// It has failed for another reason: no endpoint, no connection, a timeout.
    Error,
}

/// One end. What is not known is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// What its pod belongs to.
    pub workload: &'a str,
    /// The kind of that, in lower case: `deployment`.
    pub kind: &'a str,
    /// Its pod.
    pub pod: &'a str,
    /// Its SPIFFE id; the source's as proven by its certificate.
    pub identity: &'a str,
    /// Its address.
    pub address: Option<SocketAddr>,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its path, with query.
    pub path: &'a str,
    /// Its host.
    pub authority: &'a str,
    /// `HTTP/1.1`.
    pub protocol: &'a str,
    /// Status of the answer; 0: there was none.
    pub status: u16,
    /// gRPC's status.
    pub grpc: Option<u16>,
}

/// A request or a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Who tells of it.
    pub reporter: Reporter,
    /// Where that is.
    pub direction: Direction,
    /// Which moment it is.
    pub phase: Phase,
    /// Who calls.
    pub source: Peer<'a>,
    /// Who is called: the endpoint, where one was chosen.
    pub destination: Peer<'a>,
    /// `namespace/host` of the service; empty: not known.
    pub service: &'a str,
    /// What became of it.
    pub verdict: Verdict,
    /// `namespace/name` of the policy that refused it: a DENY policy, or one that has not arrived; empty: none did.
    pub policy: &'a str,
    /// Why it was refused or has failed, in words; empty: it has not.
    pub reason: Cow<'a, str>,
    /// Istio's response flags, `-` for none.
    pub flags: &'a str,
    /// Was the source's identity proven?
    pub mtls: bool,
    /// None: a connection.
    pub request: Option<Request<'a>>,
    /// Bytes from the client so far.
    pub received: u64,
    /// Bytes to the client so far.
    pub sent: u64,
    /// Since it began.
    pub took: Duration,
}

impl Event<'_> {
    /// Does the proxy at the other end tell of the same? A tunnel that has come about is told of by its destination, which knows who
    /// calls, and so are its requests, whatever became of them; the source's side of a tunnel is of interest only where it failed.
    pub fn is_told_by_other_end(&self) -> bool {
        self.reporter == Reporter::Ztunnel
            && self.direction == Direction::Egress
            && self.mtls
            && (self.verdict == Verdict::Forwarded || self.request.is_some())
    }
}
