//! What a waypoint's decisions are, as values.

use crate::{
    authz::access::Access,
    downstream::{context::Downstream, gateway::Filter},
    route::table::Routes,
};
use http::StatusCode;
use karst_proxy::state::Workload;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// The filters of the listener, the policies and the routes that decide about a request.
pub(super) struct Deciding<'a> {
    pub(super) filters: &'a [Filter],
    pub(super) access: Option<&'a Access>,
    pub(super) routes: Option<&'a Routes>,
}

/// A call that a waypoint or gateway takes: who calls, and what.
pub struct Call(pub(super) Downstream);

impl Call {
    /// The service that is called.
    pub fn service(&self) -> Option<&Arc<karst_proxy::state::Service>> {
        self.0.service()
    }

    /// The address that was called.
    pub fn to(&self) -> IpAddr {
        self.0.to
    }
}

/// A resource that a waypoint refuses; it goes on with what it had.
#[derive(Debug, thiserror::Error)]
#[error("the waypoint refuses {type_url} {name}: {text}")]
pub struct Refused {
    /// The resource's type.
    pub type_url: String,
    /// Its name.
    pub name: String,
    /// Why.
    pub text: String,
}

/// A CONNECT that the waypoint refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectRefused {
    /// The answer to the CONNECT.
    pub status: u16,
    /// Why.
    pub why: &'static str,
}

/// What is spoken at the port that is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP, by the port's name or appProtocol.
    Http,
    /// Bytes: TCP, or TLS that ends elsewhere.
    Bytes,
    /// It is not declared: the first bytes decide.
    Undeclared,
}

/// What policies at the waypoint say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judged {
    /// The service has none.
    NoPolicies,
    /// They allow it: no DENY policy matches, and this ALLOW policy does by its rule of this number; None: there are none.
    Allowed(Option<(String, usize)>),
    /// A DENY policy (`namespace/name`) matches, by its rule of this number.
    DeniedBy(String, usize),
    /// There are ALLOW policies, and none matches.
    NotAllowed,
}

/// Which rule a call goes by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The rule, as `HTTPRoute ns/name rule 0`; empty: there are none, and the call goes to the service.
    pub origin: String,
    /// Rules before it, and why each does not match.
    pub passed_over: Vec<(String, String)>,
    /// What else is done with what goes by it.
    pub settings: Vec<Setting>,
}

/// What is done with calls besides sending them on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingKind {
    /// Somebody else is asked whether a request may go on.
    ExternalAuthorization,
    /// No more than so many requests.
    RateLimit,
    /// Some requests are delayed or answered with an error on purpose.
    Fault,
    /// Copies go elsewhere.
    Mirror,
    /// How large a request may be.
    RequestSize,
    /// Answers are compressed.
    Compression,
    /// How long a request may take.
    Timeout,
    /// How often it is tried again.
    Retry,
    /// How many requests and connections there may be at a time.
    CircuitBreaker,
    /// Endpoints that fail are left out for a while.
    OutlierDetection,
    /// TLS that is spoken to the endpoints.
    Tls,
}

/// One of them, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// What it is.
    pub kind: SettingKind,
    /// What it says.
    pub text: String,
    /// Where it comes from (`Kind ns/name …`); empty: the DestinationRule or policy of the destination.
    pub origin: String,
}

/// A connection that comes to a gateway.
#[derive(Clone, Copy, Debug)]
pub struct Entering<'a> {
    /// The port that it listens on.
    pub port: u16,
    /// The client.
    pub from: SocketAddr,
    /// The gateway's address.
    pub to: IpAddr,
    /// The name in the TLS hello, if TLS is spoken there.
    pub server_name: Option<&'a str>,
}

/// What becomes of a connection that comes to a gateway.
pub enum Entrance {
    /// It does not listen on the port.
    Closed,
    /// TLS, and no listener has the name in the hello.
    NoListener,
    /// Requests are read from it; which listener's they are depends on their host where no TLS is spoken.
    Requests(Call),
    /// Bytes, for this listener.
    Bytes(Decision, String),
}

/// A listener of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Where it comes from: `Gateway/ns/name/listener`.
    pub origin: String,
    /// The port that it listens on.
    pub port: u16,
    /// The port that clients call.
    pub called: u16,
    /// Do clients speak TLS to it?
    pub has_tls: bool,
    /// Does it take requests, not bytes?
    pub is_http: bool,
    /// Names that it is for; `*` is any.
    pub hosts: Vec<String>,
}

/// One of the destinations of a rule.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Its share, of the sum of all.
    pub weight: u64,
    /// Key of the service.
    pub service: Arc<str>,
    /// Port of the service.
    pub port: u16,
    /// Subset; empty: none.
    pub subset: Arc<str>,
    /// What else is done with what goes there.
    pub settings: Vec<Setting>,
    /// The endpoints are pods of the service's waypoint, which is asked for this authority.
    pub via_waypoint: Option<String>,
    /// How it ends.
    pub end: BranchEnd,
}

/// How a destination ends.
#[derive(Clone, Debug)]
pub enum BranchEnd {
    /// The waypoint answers so: nothing can be sent there, or nothing is to be.
    Status(u16, &'static str),
    /// One of these.
    Endpoints(Vec<Endpoint>),
    /// To what was called, by its name or address (`resolution: NONE`, DYNAMIC_DNS).
    Called,
}

/// An endpoint that may be chosen.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Where it serves.
    pub address: SocketAddr,
}

/// How a call ends at the waypoint.
#[derive(Clone, Debug)]
pub enum End {
    /// It is answered here with this status, for this reason (Envoy's response code details or our words).
    Answered(u16, String),
    /// A stream of bytes is reset.
    Reset(String),
    /// It goes to one of these, by their weights.
    Sent(Vec<Branch>),
}

/// All that was decided.
#[derive(Clone, Debug)]
pub struct Decision {
    /// None: the call has not come so far.
    pub access: Option<Judged>,
    /// None: the call has not come so far.
    pub route: Option<Route>,
    /// How it ends.
    pub end: End,
}

impl Decision {
    pub(super) fn answered(status: StatusCode, why: impl Into<String>) -> Self {
        Self { access: None, route: None, end: End::Answered(status.as_u16(), why.into()) }
    }
}
