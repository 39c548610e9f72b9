//! The answer: stable names, for people and for programs.

use serde::Serialize;
use std::{net::SocketAddr, path::PathBuf};

/// Does the call get through?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Yes, whichever way is chosen.
    Allowed,
    /// No, whichever way is chosen.
    Refused,
    /// It depends on which endpoint or destination is chosen.
    Partly,
    /// It cannot be said.
    Unknown,
}

/// An object, and where it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Object {
    /// Kind, as the API has it.
    pub kind: String,
    /// Namespace; empty for objects of the whole Kubernetes cluster.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its file; none for an object from the API server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Line of the file, from 1; 0 without a file.
    #[serde(skip_serializing_if = "is_zero")]
    pub line: usize,
}

fn is_zero(line: &usize) -> bool {
    *line == 0
}

/// A step of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Who calls.
    Source,
    /// What is called.
    Destination,
    /// Is the caller's traffic redirected to ztunnel?
    Redirection,
    /// How the connection leaves the caller's node.
    Plan,
    /// May the connection be made at all, by the NetworkPolicies of Kubernetes?
    Network,
    /// The listener of a gateway.
    Gateway,
    /// Which waypoint, or why none.
    Waypoint,
    /// Whose certificate is shown to whom.
    Identity,
    /// Is plaintext accepted?
    PeerAuthentication,
    /// Policies at the destination's ztunnel.
    Authorization,
    /// Policies at the waypoint.
    WaypointAuthorization,
    /// The rule that is chosen.
    Route,
    /// Service, port and subset that a rule leads to.
    Backend,
    /// The endpoints that can be chosen.
    Endpoints,
    /// What else is done with calls: limits, timeouts, retries, faults, mirrors, breakers, TLS.
    Settings,
    /// An object of those whom the call concerns that has no effect, or not all of it.
    Configuration,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It goes on.
    Pass,
    /// It ends here.
    Refuse,
    /// It goes on, though hardly as was meant.
    Warn,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Which.
    pub step: Stage,
    /// What came of it.
    pub outcome: Outcome,
    /// The object that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<Object>,
    /// Why.
    pub why: String,
}

/// A place that the call may come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Arrival {
    /// The pod or other workload; empty: an address of nobody's.
    pub workload: String,
    /// Where it serves.
    pub address: SocketAddr,
    /// The weight of the destination that leads here, of all destinations of the rule.
    pub weight: u64,
    /// Does it let the call in?
    pub allowed: bool,
    /// What forbids it: the policy as `namespace/name`; empty where none allows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

/// A kind of proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ProxyKind {
    /// The ztunnel of a node.
    Ztunnel,
    /// A waypoint's pod.
    Waypoint,
    /// A gateway's pod.
    Gateway,
}

/// A proxy that has a say in the call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Which kind.
    pub kind: ProxyKind,
    /// The node of a ztunnel, or `namespace/name` of a pod.
    pub name: String,
}

/// What is wrong, by a name that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// The service has no such port.
    NoSuchPort,
    /// The selector of the service matches no pod.
    SelectorMatchesNoPod,
    /// There are pods, and none is ready, or has the port.
    NoReadyEndpoint,
    /// The waypoint has no pod that is ready.
    WaypointNotReady,
    /// The CONNECT is refused by the waypoint.
    WaypointRefuses,
    /// The port belongs to ztunnel itself.
    OwnPort,
    /// The pod calls itself.
    OwnAddress,
    /// Nobody is known at an address that pods have.
    NobodyKnown,
    /// The mesh knows nobody at the address, and allows only destinations that it knows (`REGISTRY_ONLY`).
    NotInRegistry,
    /// A DENY policy matches.
    DeniedByPolicy,
    /// There are ALLOW policies, and none matches.
    NotAllowedByAnyPolicy,
    /// Mutual TLS is required, and the caller is not in the mesh.
    StrictMtlsOutsider,
    /// A policy asks for HTTP on a port that is declared as TCP.
    HttpPolicyOnTcpPort,
    /// There are routes, and none matches.
    NoRouteMatches,
    /// The rule cannot be used: a reference is not granted, or leads to nothing.
    BackendNotUsable,
    /// The subset does not exist, or the service or port that a route names.
    NoSuchDestination,
    /// The subset has no ready pods.
    SubsetWithoutPods,
    /// The request's token or head cannot be taken.
    BadRequest,
    /// The route answers with an error or injects a fault.
    AnsweredByRoute,
    /// A ztunnel waits for a policy that has not come.
    PolicyMissing,
    /// A NetworkPolicy of Kubernetes keeps the connection out.
    NetworkPolicy,
    /// The gateway does not listen on the port, or for the name in the TLS hello.
    NoListener,
    /// The gateway has no routes for the host.
    NoRouteForHost,
    /// A policy with conditions on HTTP is enforced by ztunnel, which sees none.
    HttpPolicyAtZtunnel,
    /// A policy names nearly this caller.
    PrincipalMistyped,
    /// A policy names this caller in another trust domain.
    OtherTrustDomain,
    /// The policy that refuses cannot be used as it is written, and closes.
    PolicyUnusable,
    /// A policy asks for a token, and the request has none, or nobody verifies it.
    TokenMissing,
    /// The token has expired.
    TokenExpired,
    /// A fault is injected into every request.
    FaultInjected,
}

/// A change that turns a refusal.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fix {
    /// What to do, in a line.
    pub text: String,
    /// The object to apply, or the part to put into the object that is named.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub yaml: String,
    /// It was tried: with this change the call gets through.
    pub verified: bool,
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Does it get through?
    pub verdict: Verdict,
    /// The answer in a line.
    pub summary: String,
    /// What is wrong, if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The status of HTTP with which the waypoint answers itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The policy that refuses, as `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Key of the service that is called, `namespace/host`; none for an address of no service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The way.
    pub steps: Vec<Step>,
    /// Where it may come to.
    pub endpoints: Vec<Arrival>,
    /// Who decides, in the order of the way.
    pub proxies: Vec<Proxy>,
    /// The smallest change that turns a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<Fix>,
}

impl Explanation {
    /// The exit status of a command: 0 allowed (at least in part), 1 refused, 2 unknown.
    pub fn exit_status(&self) -> u8 {
        match self.verdict {
            Verdict::Allowed | Verdict::Partly => 0,
            Verdict::Refused => 1,
            Verdict::Unknown => 2,
        }
    }
}
