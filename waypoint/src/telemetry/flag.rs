//! Why an answer is not the endpoint's own: Envoy's response flags, and what goes with them. One value gives the log's text, the
//! metric's label, and the answer.

use http::StatusCode;

/// Envoy's response flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// All is well.
    None,
    /// No route matches.
    NoRoute,
    /// The destination or the subset does not exist.
    NoCluster,
    /// No endpoint may be used.
    NoHealthy,
    /// No connection to the endpoint.
    ConnectFailure,
    /// The connection broke.
    Reset,
    /// The endpoint has not kept to HTTP, or to a limit of its heads.
    ProtocolError,
    /// The client has not.
    BadRequest,
    /// A limit of connections or requests at a time is reached.
    Overflow,
    /// A rate limit is reached.
    RateLimited,
    /// External authorization has refused it, or could not be had.
    Unauthorized,
    /// The answer took too long.
    Timeout,
    /// All retries are used up.
    RetryLimit,
    /// An abort was injected.
    FaultAbort,
    /// A delay was injected, and the endpoint has answered.
    FaultDelay,
    /// The client has left.
    ClientGone,
}

/// What the error of a request begins with that a DENY policy has refused; the policy's `namespace/name` follows.
pub const DENIED_BY: &str = "denied by policy ";
/// Response code details of what the endpoint has answered.
pub const VIA_UPSTREAM: &str = "via_upstream";
/// Of what a route answers itself.
pub const DIRECT_RESPONSE: &str = "direct_response";
/// Of the answer to a browser that asks whether it may call.
pub const CORS_RESPONSE: &str = "cors_response";
/// Of what a provider of external authorization has refused.
pub const EXT_AUTHZ_DENIED: &str = "ext_authz_denied";
/// Of what was refused because it has not said anything that can be used.
pub const EXT_AUTHZ_ERROR: &str = "ext_authz_error";
/// Of an answer that broke off.
pub const LATE_RESET: &str = "upstream_reset_after_response_started{connection_termination}";

impl ResponseFlag {
    /// As logs and metrics have it.
    pub fn text(self) -> &'static str {
        match self {
            ResponseFlag::None => "-",
            ResponseFlag::NoRoute => "NR",
            ResponseFlag::NoCluster => "NC",
            ResponseFlag::NoHealthy => "UH",
            ResponseFlag::ConnectFailure => "UF",
            ResponseFlag::Reset => "UC",
            ResponseFlag::ProtocolError => "UPE",
            ResponseFlag::BadRequest => "DPE",
            ResponseFlag::Overflow => "UO",
            ResponseFlag::RateLimited => "RL",
            ResponseFlag::Unauthorized => "UAEX",
            ResponseFlag::Timeout => "UT",
            ResponseFlag::RetryLimit => "URX",
            ResponseFlag::FaultAbort => "FI",
            ResponseFlag::FaultDelay => "DI",
            ResponseFlag::ClientGone => "DC",
        }
    }

    /// Envoy's response code details of an answer of our own, where nothing more is known.
    pub fn details(self) -> &'static str {
        match self {
            ResponseFlag::None => DIRECT_RESPONSE,
            ResponseFlag::NoRoute => "route_not_found",
            ResponseFlag::NoCluster => "cluster_not_found",
            ResponseFlag::NoHealthy => "no_healthy_upstream",
            ResponseFlag::ConnectFailure => "upstream_reset_before_response_started{remote_connection_failure}",
            ResponseFlag::Reset => "upstream_reset_before_response_started{connection_termination}",
            ResponseFlag::ProtocolError => "upstream_reset_before_response_started{protocol_error}",
            ResponseFlag::BadRequest => "http1.codec_error",
            ResponseFlag::Overflow => "upstream_reset_before_response_started{overflow}",
            ResponseFlag::RateLimited => "local_rate_limited",
            ResponseFlag::Unauthorized => EXT_AUTHZ_DENIED,
            ResponseFlag::Timeout => "response_timeout",
            ResponseFlag::RetryLimit | ResponseFlag::FaultDelay => VIA_UPSTREAM,
            ResponseFlag::FaultAbort => "fault_filter_abort",
            ResponseFlag::ClientGone => "downstream_remote_disconnect",
        }
    }

    /// Status and body of our own answer (Envoy's words).
    pub fn answer(self) -> (StatusCode, &'static str) {
        match self {
            ResponseFlag::NoRoute => (StatusCode::NOT_FOUND, ""),
            ResponseFlag::NoCluster => (StatusCode::SERVICE_UNAVAILABLE, ""),
            ResponseFlag::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "local_rate_limited"),
            ResponseFlag::Unauthorized => (StatusCode::FORBIDDEN, ""),
            ResponseFlag::NoHealthy => (StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream"),
            ResponseFlag::ConnectFailure => (
                StatusCode::SERVICE_UNAVAILABLE,
                "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
            ),
            ResponseFlag::Reset => (
                StatusCode::SERVICE_UNAVAILABLE,
                "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
            ),
            ResponseFlag::ProtocolError => (
                StatusCode::BAD_GATEWAY,
                "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
            ),
            ResponseFlag::Overflow => (
                StatusCode::SERVICE_UNAVAILABLE,
                "upstream connect error or disconnect/reset before headers. reset reason: overflow",
            ),
            ResponseFlag::Timeout => (StatusCode::GATEWAY_TIMEOUT, "upstream request timeout"),
            ResponseFlag::FaultAbort => (StatusCode::INTERNAL_SERVER_ERROR, "fault filter abort"),
            ResponseFlag::BadRequest => (StatusCode::BAD_REQUEST, ""),
            ResponseFlag::None | ResponseFlag::RetryLimit | ResponseFlag::FaultDelay | ResponseFlag::ClientGone => {
                (StatusCode::INTERNAL_SERVER_ERROR, "")
            }
        }
    }
}
