//! How a connection ended: one value that gives the HTTP status, the metric's flag and the log's text.

use crate::plan::Refusal;
use karst_hbone::client::ClientError;
use karst_policy::Verdict;
use karst_proxy::dial::DialError;
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
    /// No connection to the application.
    Connect(String),
    /// No connection to an endpoint.
    Dial(DialError),
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
    /// The process stops, and the one that comes after it goes on with it.
    HandedOver,
}

impl From<DialError> for Outcome {
    fn from(error: DialError) -> Self {
        match error {
            DialError::NoCertificate(_) => Outcome::NoIdentity,
            error @ (DialError::Resolve(_) | DialError::Connect(_) | DialError::NoAnswer(_) | DialError::Tunnel(_)) => {
                Outcome::Dial(error)
            }
        }
    }
}

impl Outcome {
    /// From an error while bytes were carried.
    pub fn of_copy(result: io::Result<()>) -> Self {
        match result {
            Ok(()) => Outcome::Done,
            Err(e) => Outcome::Broken(e.to_string()),
        }
    }
    /// Status of the answer to a CONNECT that is refused (docs/hbone.md §5).
    pub fn status(&self) -> u16 {
        match self {
            Outcome::Done | Outcome::Broken(_) | Outcome::HandedOver => 200,
            Outcome::Denied(_) | Outcome::ClosedByPolicy(_) | Outcome::PolicyMissing(_) => 401,
            Outcome::BadRequest(_) => 400,
            Outcome::NotFound(_)
            | Outcome::Refused(_)
            | Outcome::NoWorkload
            | Outcome::NoIdentity
            | Outcome::Connect(_)
            | Outcome::Dial(_)
            | Outcome::Limit
            | Outcome::GaveWay
            | Outcome::Drained => 503,
        }
    }
    /// Istio's response flag.
    pub fn flag(&self) -> &'static str {
        match self {
            Outcome::Done | Outcome::Broken(_) | Outcome::GaveWay | Outcome::Drained | Outcome::HandedOver => "-",
            Outcome::Denied(_) | Outcome::ClosedByPolicy(_) | Outcome::PolicyMissing(_) => "DENY",
            Outcome::NoIdentity | Outcome::NoWorkload => "IDENTITY_ERROR",
            Outcome::Refused(Refusal::NotInRegistry) => "REGISTRY_ONLY",
            Outcome::Dial(e) => match e {
                DialError::NoCertificate(_) => "IDENTITY_ERROR",
                DialError::Tunnel(ClientError::Tls(..) | ClientError::PeerIdentity { .. }) => "TLS_FAILURE",
                DialError::Tunnel(ClientError::Http2(..)) => "H2_HANDSHAKE_FAILURE",
                DialError::Tunnel(
                    ClientError::Connect(..)
                    | ClientError::Status(_)
                    | ClientError::Unprocessed(_)
                    | ClientError::Stream(_)
                    | ClientError::NotContinued
                    | ClientError::Unanswered(_),
                )
                | DialError::Resolve(_)
                | DialError::Connect(_)
                | DialError::NoAnswer(_) => "CONNECT",
            },
            Outcome::Connect(_)
            | Outcome::BadRequest(_)
            | Outcome::NotFound(_)
            | Outcome::Refused(_)
            | Outcome::Limit => "CONNECT",
        }
    }
    /// All codes of [`Outcome::reason`].
    pub const REASONS: [&'static str; 18] = [
        "done",
        "broken",
        "policy_denied",
        "no_allow_policy",
        "closed_by_policy",
        "policy_missing",
        "not_in_registry",
        "refused",
        "unknown_workload",
        "no_certificate",
        "application",
        "endpoint",
        "bad_request",
        "not_found",
        "limit",
        "evicted",
        "drained",
        "handed_over",
    ];
    /// A code that stays when texts improve: for the log, and the label of a metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Broken(_) => "broken",
            Outcome::Denied(Verdict::DeniedBy(..)) => "policy_denied",
            Outcome::Denied(Verdict::NotAllowed | Verdict::Allow) => "no_allow_policy",
            Outcome::ClosedByPolicy(_) => "closed_by_policy",
            Outcome::PolicyMissing(_) => "policy_missing",
            Outcome::Refused(Refusal::NotInRegistry) => "not_in_registry",
            Outcome::Refused(_) => "refused",
            Outcome::NoWorkload => "unknown_workload",
            Outcome::NoIdentity | Outcome::Dial(DialError::NoCertificate(_)) => "no_certificate",
            Outcome::Connect(_) => "application",
            Outcome::Dial(_) => "endpoint",
            Outcome::BadRequest(_) => "bad_request",
            Outcome::NotFound(_) => "not_found",
            Outcome::Limit => "limit",
            Outcome::GaveWay => "evicted",
            Outcome::Drained => "drained",
            Outcome::HandedOver => "handed_over",
        }
    }
    /// The policy (`namespace/name`) that has decided, or is waited for.
    pub fn policy(&self) -> Option<&str> {
        match self {
            Outcome::Denied(Verdict::DeniedBy(policy, _))
            | Outcome::ClosedByPolicy(Verdict::DeniedBy(policy, _))
            | Outcome::PolicyMissing(policy) => Some(policy),
            Outcome::Done
            | Outcome::Broken(_)
            | Outcome::Denied(Verdict::Allow | Verdict::NotAllowed)
            | Outcome::ClosedByPolicy(Verdict::Allow | Verdict::NotAllowed)
            | Outcome::Refused(_)
            | Outcome::NoWorkload
            | Outcome::NoIdentity
            | Outcome::Connect(_)
            | Outcome::Dial(_)
            | Outcome::BadRequest(_)
            | Outcome::NotFound(_)
            | Outcome::Limit
            | Outcome::GaveWay
            | Outcome::Drained
            | Outcome::HandedOver => None,
        }
    }
    /// The rule of that policy that has matched, by its index.
    pub fn rule(&self) -> Option<usize> {
        let (Outcome::Denied(verdict) | Outcome::ClosedByPolicy(verdict)) = self else { return None };
        if let Verdict::DeniedBy(_, rule) = verdict { Some(*rule) } else { None }
    }
    /// May another endpoint be tried? The application has sent nothing yet that has gone anywhere, and what went wrong is this
    /// endpoint's matter, not the client's.
    pub fn may_retry(&self) -> bool {
        match self {
            Outcome::Connect(_) | Outcome::NotFound(_) | Outcome::Limit => true,
            Outcome::Dial(e) => e.may_retry(),
            Outcome::Done
            | Outcome::Broken(_)
            | Outcome::Denied(_)
            | Outcome::ClosedByPolicy(_)
            | Outcome::PolicyMissing(_)
            | Outcome::Refused(_)
            | Outcome::NoWorkload
            | Outcome::NoIdentity
            | Outcome::BadRequest(_)
            | Outcome::GaveWay
            | Outcome::Drained
            | Outcome::HandedOver => false,
        }
    }
    /// Did the connection never come about?
    pub fn failed(&self) -> bool {
        !matches!(
            self,
            Outcome::Done
                | Outcome::Broken(_)
                | Outcome::ClosedByPolicy(_)
                | Outcome::GaveWay
                | Outcome::Drained
                | Outcome::HandedOver
        )
    }
    /// For the log; None when there is nothing to say.
    pub fn text(&self) -> Option<String> {
        let verdict = |v: &Verdict| match v {
            Verdict::DeniedBy(p, _) => format!("connection denied by policy {p}"),
            Verdict::NotAllowed | Verdict::Allow => "connection denied: no allow policy matches".into(),
        };
        Some(match self {
            Outcome::Done | Outcome::HandedOver => return None,
            Outcome::Broken(e) => e.clone(),
            Outcome::Denied(v) => verdict(v),
            Outcome::ClosedByPolicy(v) => format!("closed after a policy change: {}", verdict(v)),
            Outcome::PolicyMissing(p) => format!("policy {p} applies but has not been received"),
            Outcome::Refused(r) => r.text().into(),
            Outcome::NoWorkload => "the pod is not known to the control plane (yet)".into(),
            Outcome::NoIdentity => "there is no certificate for the pod's identity (yet)".into(),
            Outcome::Connect(e) => format!("connect: {e}"),
            Outcome::Dial(e) => e.to_string(),
            Outcome::BadRequest(e) | Outcome::NotFound(e) => (*e).into(),
            Outcome::Limit => "too many connections of this pod".into(),
            Outcome::GaveWay => "evicted: too many connections to this pod, and its client has the most".into(),
            Outcome::Drained => "closed because the proxy is stopping".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_core::{Identity, limits};

    /// A refusal by the mesh's outboundTrafficPolicy can be told from all others.
    #[test]
    fn registry_only_has_a_flag_of_its_own() {
        let refused = Outcome::Refused(Refusal::NotInRegistry);
        assert_eq!((refused.flag(), refused.failed(), refused.may_retry()), ("REGISTRY_ONLY", true, false));
        assert!(refused.text().unwrap().contains("ServiceEntry"));
        assert_eq!(Outcome::Refused(Refusal::NoPort).flag(), "CONNECT");
    }

    /// Whoever alerts on a code or searches the log by a policy goes by these.
    #[test]
    fn every_end_has_a_code_and_the_policy_that_decided() {
        let by = Verdict::DeniedBy("ns/p".into(), 1);
        let all = [
            (Outcome::Done, "done", None),
            (Outcome::Broken("x".into()), "broken", None),
            (Outcome::Denied(by.clone()), "policy_denied", Some("ns/p")),
            (Outcome::Denied(Verdict::NotAllowed), "no_allow_policy", None),
            (Outcome::ClosedByPolicy(by), "closed_by_policy", Some("ns/p")),
            (Outcome::PolicyMissing("ns/q".into()), "policy_missing", Some("ns/q")),
            (Outcome::Refused(Refusal::NotInRegistry), "not_in_registry", None),
            (Outcome::Refused(Refusal::NoPort), "refused", None),
            (Outcome::NoWorkload, "unknown_workload", None),
            (Outcome::NoIdentity, "no_certificate", None),
            (Outcome::Connect("x".into()), "application", None),
            (Outcome::Dial(DialError::NoAnswer(limits::FIRST_TRY)), "endpoint", None),
            (Outcome::BadRequest("x"), "bad_request", None),
            (Outcome::NotFound("x"), "not_found", None),
            (Outcome::Limit, "limit", None),
            (Outcome::GaveWay, "evicted", None),
            (Outcome::Drained, "drained", None),
            (Outcome::HandedOver, "handed_over", None),
        ];
        for (outcome, reason, policy) in &all {
            assert_eq!((outcome.reason(), outcome.policy()), (*reason, *policy), "{outcome:?}");
            assert_eq!(outcome.rule(), (*policy == Some("ns/p")).then_some(1), "{outcome:?}");
        }
        // One that were not in the list would not be counted.
        assert_eq!(all.map(|(_, reason, _)| reason), Outcome::REASONS);
    }

    #[test]
    fn what_is_said_follows_from_the_cause() {
        let at = "10.0.0.1:15008".parse().unwrap();
        let id = |x: &str| -> Identity { format!("spiffe://td/ns/{x}/sa/{x}").parse().unwrap() };
        let refused = || Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused));
        let who = ClientError::PeerIdentity { at, shown: id("a"), expected: id("b").to_string() };
        let all: [(DialError, &str, bool, &str); 9] = [
            (DialError::NoCertificate(id("a")), "IDENTITY_ERROR", false, "no certificate for the pod's identity (yet)"),
            (DialError::Connect(refused()), "CONNECT", true, "connect: connection refused"),
            (DialError::NoAnswer(limits::FIRST_TRY), "CONNECT", true, "connect: no answer within 2 s"),
            (
                ClientError::Connect(at, refused()).into(),
                "CONNECT",
                true,
                "connect to 10.0.0.1:15008: connection refused",
            ),
            (ClientError::Tls(at, "x".into()).into(), "TLS_FAILURE", true, "TLS with 10.0.0.1:15008: x"),
            (who.into(), "TLS_FAILURE", true, "the peer is spiffe://td/ns/a/sa/a, expected spiffe://td/ns/b/sa/b"),
            (ClientError::Http2(at, "x".into()).into(), "H2_HANDSHAKE_FAILURE", true, "HTTP/2 with 10.0.0.1:15008: x"),
            (ClientError::Status(http::StatusCode::UNAUTHORIZED).into(), "CONNECT", false, "the peer answered 401"),
            // The next stream of a connection is not asked for again, which whoever waits for it does else (`connect::again`).
            (ClientError::Unanswered("broken".into()).into(), "CONNECT", false, "interrupted connection: broken"),
        ];
        for (e, flag, again, text) in all {
            let o = Outcome::from(e);
            assert_eq!((o.flag(), o.may_retry(), o.status(), o.failed()), (flag, again, 503, true), "{o:?}");
            let said = o.text().unwrap();
            assert!(said.contains(text), "{said}");
        }
    }
}
