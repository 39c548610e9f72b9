//! Why an answer is not the endpoint's own: Envoy's response flags, and what goes with them. One value gives the log's text, the
//! metric's label, and the answer.

use http::StatusCode;

/// Envoy's response flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flag {
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

/// Response code details of what the endpoint has answered.
pub const VIA_UPSTREAM: &str = "via_upstream";
/// Of what a route answers itself.
pub const DIRECT_RESPONSE: &str = "direct_response";
/// Of an answer that broke off.
pub const LATE_RESET: &str = "upstream_reset_after_response_started{connection_termination}";

impl Flag {
    /// As logs and metrics have it.
    pub fn text(self) -> &'static str {
        match self {
            Flag::None => "-",
            Flag::NoRoute => "NR",
            Flag::NoCluster => "NC",
            Flag::NoHealthy => "UH",
            Flag::ConnectFailure => "UF",
            Flag::Reset => "UC",
            Flag::ProtocolError => "UPE",
            Flag::BadRequest => "DPE",
            Flag::Overflow => "UO",
            Flag::RateLimited => "RL",
            Flag::Timeout => "UT",
            Flag::RetryLimit => "URX",
            Flag::FaultAbort => "FI",
            Flag::FaultDelay => "DI",
            Flag::ClientGone => "DC",
        }
    }

    /// Envoy's response code details of an answer of our own, where nothing more is known.
    pub fn details(self) -> &'static str {
        match self {
            Flag::None => DIRECT_RESPONSE,
            Flag::NoRoute => "route_not_found",
            Flag::NoCluster => "cluster_not_found",
            Flag::NoHealthy => "no_healthy_upstream",
            Flag::ConnectFailure => "upstream_reset_before_response_started{remote_connection_failure}",
            Flag::Reset => "upstream_reset_before_response_started{connection_termination}",
            Flag::ProtocolError => "upstream_reset_before_response_started{protocol_error}",
            Flag::BadRequest => "http1.codec_error",
            Flag::Overflow => "upstream_reset_before_response_started{overflow}",
            Flag::RateLimited => "local_rate_limited",
            Flag::Timeout => "response_timeout",
            Flag::RetryLimit | Flag::FaultDelay => VIA_UPSTREAM,
            Flag::FaultAbort => "fault_filter_abort",
            Flag::ClientGone => "downstream_remote_disconnect",
        }
    }

    /// Status and body of our own answer (Envoy's words).
    pub fn answer(self) -> (StatusCode, &'static str) {
        match self {
            Flag::NoRoute => (StatusCode::NOT_FOUND, ""),
            Flag::NoCluster => (StatusCode::SERVICE_UNAVAILABLE, ""),
            Flag::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "local_rate_limited"),
            Flag::NoHealthy => (StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream"),
            Flag::ConnectFailure => (
                StatusCode::SERVICE_UNAVAILABLE,
                "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
            ),
            Flag::Reset => (
                StatusCode::SERVICE_UNAVAILABLE,
                "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
            ),
            Flag::ProtocolError => (
                StatusCode::BAD_GATEWAY,
                "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
            ),
            Flag::Overflow => (
                StatusCode::SERVICE_UNAVAILABLE,
                "upstream connect error or disconnect/reset before headers. reset reason: overflow",
            ),
            Flag::Timeout => (StatusCode::GATEWAY_TIMEOUT, "upstream request timeout"),
            Flag::FaultAbort => (StatusCode::INTERNAL_SERVER_ERROR, "fault filter abort"),
            Flag::BadRequest => (StatusCode::BAD_REQUEST, ""),
            Flag::None | Flag::RetryLimit | Flag::FaultDelay | Flag::ClientGone => {
                (StatusCode::INTERNAL_SERVER_ERROR, "")
            }
        }
    }
}
