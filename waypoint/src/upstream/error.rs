//! Why there is no connection to an endpoint, or no answer from it.

use crate::{http::codec, telemetry::flag::ResponseFlag};
use karst_api::route as ir;
use karst_proxy::dial::DialError;
use std::{net::IpAddr, sync::Arc};

/// Why there is no connection to an endpoint: nobody has seen the request.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It could not be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It took longer than the destination's rules allow.
    #[error("connection timeout")]
    Timeout,
    /// Its name leads to nobody who may be called.
    #[error("{0} has no address that may be used")]
    NoAddress(Arc<str>),
    /// It is not called with our identity.
    #[error("{0}")]
    Lent(String),
    /// It may be a member's.
    #[error("{0} is in a node's pod range, and the controller has not said in time who is there")]
    Untold(IpAddr),
    /// TLS of ours that it does not take, or that cannot be spoken.
    #[error("{0}")]
    Tls(String),
    /// HTTP could not be begun.
    #[error("{0}")]
    Http(#[from] hyper::Error),
}

impl ConnectError {
    /// May another endpoint be tried?
    pub fn may_retry(&self) -> bool {
        match self {
            ConnectError::Dial(e) => e.may_retry(),
            ConnectError::Timeout
            | ConnectError::NoAddress(_)
            | ConnectError::Lent(_)
            | ConnectError::Untold(_)
            | ConnectError::Tls(_)
            | ConnectError::Http(_) => true,
        }
    }

    /// Does it say something of the endpoint? Not what is wrong with us, with the request, or with what is known.
    pub fn is_of_endpoint(&self) -> bool {
        match self {
            ConnectError::Dial(e) => e.may_retry(),
            ConnectError::Lent(_) | ConnectError::Untold(_) => false,
            ConnectError::Timeout | ConnectError::NoAddress(_) | ConnectError::Tls(_) | ConnectError::Http(_) => true,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The endpoint has refused the stream: it has not looked at the request.
    #[error("{0}")]
    Refused(String),
    /// The connection broke before there was an answer.
    #[error("{0}")]
    Reset(String),
    /// The answer is not HTTP, or its head is too large.
    #[error("{0}")]
    Protocol(String),
}

impl Failure {
    /// As logs and metrics have it.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Failure::Connect(_) => ResponseFlag::ConnectFailure,
            Failure::Refused(_) | Failure::Reset(_) => ResponseFlag::Reset,
            Failure::Protocol(_) => ResponseFlag::ProtocolError,
        }
    }

    /// See [`ConnectError::is_of_endpoint`].
    pub fn is_of_endpoint(&self) -> bool {
        match self {
            Failure::Connect(e) => e.is_of_endpoint(),
            Failure::Refused(_) | Failure::Reset(_) | Failure::Protocol(_) => true,
        }
    }

    /// Is it one after which the route wants the request to be tried again? `sent`: the endpoint may have read something of it.
    pub fn is_retryable(&self, r: &ir::Retry, sent: bool) -> bool {
        let unsent = r.reset_before_request && !sent;
        match self {
            Failure::Connect(e) => {
                e.may_retry() && (r.connect_failure || r.server_error || r.gateway_error || r.reset || unsent)
            }
            Failure::Refused(_) => r.refused_stream || r.server_error || r.reset || unsent,
            Failure::Reset(_) | Failure::Protocol(_) => r.reset || r.server_error || r.gateway_error || unsent,
        }
    }
}

/// Why there is no answer to a request that was sent.
pub fn failure(e: &hyper::Error) -> Failure {
    let text = error_chain(e);
    if e.is_parse() {
        return Failure::Protocol(format!("{text}: {}", codec::bad_head()));
    }
    let mut cause = std::error::Error::source(e);
    while let Some(c) = cause {
        if let Some(h) = c.downcast_ref::<h2::Error>() {
            return match h.reason() {
                // The endpoint says that it has not looked at the request (RFC 9113 §8.7); what we say ourselves proves nothing.
                Some(h2::Reason::REFUSED_STREAM) if h.is_remote() => Failure::Refused(text),
                Some(h2::Reason::PROTOCOL_ERROR) if !h.is_remote() => {
                    Failure::Protocol(format!("{text}: {}", codec::bad_head()))
                }
                _ => Failure::Reset(text),
            };
        }
        cause = c.source();
    }
    Failure::Reset(text)
}

fn error_chain(e: &hyper::Error) -> String {
    let mut text = e.to_string();
    let mut cause = std::error::Error::source(e);
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}
