//! How a connection ended: one value that gives the HTTP status, the metric's flag and the log's text.

use crate::plan::Refusal;
use karst_hbone::client::ClientError;
use karst_policy::Verdict;
use std::{io, sync::Arc};

/// The end of a connection.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// In order.
    Done,
    /// A leg broke while bytes were carried.
    Broken(String),
    /// A policy forbids it.
    Denied(Verdict),
    /// It was open, and a policy that came later forbids it.
    ClosedByPolicy(Verdict),
    /// A policy that applies has not arrived in time.
    PolicyMissing(Arc<str>),
    /// The plan refuses it.
    Refused(Refusal),
    /// The connecting pod is not known (yet).
    NoWorkload,
    /// There is no certificate (yet).
    NoIdentity,
    /// No connection to the application or a plain destination.
    Connect(String),
    /// The endpoint's host name has no address.
    Resolve(String),
    /// The tunnel could not be opened.
    Tunnel(ClientError),
    /// The CONNECT request makes no sense.
    BadRequest(&'static str),
    /// The CONNECT asks for something that is not here.
    NotFound(&'static str),
    /// Too many connections.
    Limit,
    /// It was open, and there were too many connections of its client's when others wanted some.
    GaveWay,
    /// The process stops.
    Drained,
}

impl Outcome {
    /// From an error while bytes were carried.
    pub fn of_copy(r: io::Result<()>) -> Self {
        match r {
            Ok(()) => Outcome::Done,
            Err(e) => Outcome::Broken(e.to_string()),
        }
    }
    /// Status of the answer to a CONNECT that is refused (docs/hbone.md §5).
    pub fn status(&self) -> u16 {
        match self {
            Outcome::Done | Outcome::Broken(_) => 200,
            Outcome::Denied(_) | Outcome::ClosedByPolicy(_) | Outcome::PolicyMissing(_) => 401,
            Outcome::BadRequest(_) => 400,
            Outcome::NotFound(_)
            | Outcome::Refused(_)
            | Outcome::NoWorkload
            | Outcome::NoIdentity
            | Outcome::Connect(_)
            | Outcome::Resolve(_)
            | Outcome::Tunnel(_)
            | Outcome::Limit
            | Outcome::GaveWay
            | Outcome::Drained => 503,
        }
    }
    /// Istio's response flag.
    pub fn flag(&self) -> &'static str {
        match self {
            Outcome::Done | Outcome::Broken(_) | Outcome::GaveWay | Outcome::Drained => "-",
            Outcome::Denied(_) | Outcome::ClosedByPolicy(_) | Outcome::PolicyMissing(_) => "DENY",
            Outcome::NoIdentity | Outcome::NoWorkload => "IDENTITY_ERROR",
            Outcome::Tunnel(ClientError::Tls(..)) => "TLS_FAILURE",
            Outcome::Tunnel(ClientError::Http2(..)) => "H2_HANDSHAKE_FAILURE",
            Outcome::Tunnel(_)
            | Outcome::Connect(_)
            | Outcome::Resolve(_)
            | Outcome::BadRequest(_)
            | Outcome::NotFound(_)
            | Outcome::Refused(_)
            | Outcome::Limit => "CONNECT",
        }
    }
    /// May another endpoint be tried? The application has sent nothing yet that has gone anywhere, and what went wrong is this
    /// endpoint's matter, not the client's.
    pub fn may_retry(&self) -> bool {
        match self {
            Outcome::Connect(_) | Outcome::NotFound(_) | Outcome::Limit => true,
            Outcome::Tunnel(e) => e.may_retry(),
            Outcome::Done
            | Outcome::Broken(_)
            | Outcome::Denied(_)
            | Outcome::ClosedByPolicy(_)
            | Outcome::PolicyMissing(_)
            | Outcome::Refused(_)
            | Outcome::NoWorkload
            | Outcome::NoIdentity
            | Outcome::Resolve(_)
            | Outcome::BadRequest(_)
            | Outcome::GaveWay
            | Outcome::Drained => false,
        }
    }
    /// Did the connection never come about?
    pub fn failed(&self) -> bool {
        !matches!(
            self,
            Outcome::Done | Outcome::Broken(_) | Outcome::ClosedByPolicy(_) | Outcome::GaveWay | Outcome::Drained
        )
    }
    /// For the log; None when there is nothing to say.
    pub fn text(&self) -> Option<String> {
        let verdict = |v: &Verdict| match v {
            Verdict::DeniedBy(p) => format!("connection denied by policy {p}"),
            Verdict::NotAllowed | Verdict::Allow => "connection denied: no allow policy matches".into(),
        };
        Some(match self {
            Outcome::Done => return None,
            Outcome::Broken(e) => e.clone(),
            Outcome::Denied(v) => verdict(v),
            Outcome::ClosedByPolicy(v) => format!("closed after a policy change: {}", verdict(v)),
            Outcome::PolicyMissing(p) => format!("policy {p} applies and has not arrived"),
            Outcome::Refused(r) => r.text().into(),
            Outcome::NoWorkload => "the pod is not known to the control plane (yet)".into(),
            Outcome::NoIdentity => "there is no certificate for the pod's identity (yet)".into(),
            Outcome::Connect(e) => format!("connect: {e}"),
            Outcome::Resolve(e) => e.clone(),
            Outcome::Tunnel(e) => e.to_string(),
            Outcome::BadRequest(e) | Outcome::NotFound(e) => (*e).into(),
            Outcome::Limit => "too many connections of this pod".into(),
            Outcome::GaveWay => "closed for others: its client has the most of too many connections to this pod".into(),
            Outcome::Drained => "closed because the proxy stops".into(),
        })
    }
}
