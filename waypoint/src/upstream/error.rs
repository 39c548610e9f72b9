//! Why there is no connection to an endpoint, or no answer from it.

use crate::{http::codec, telemetry::flag::ResponseFlag, upstream::tls::TlsError};
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
    /// Its name or address leads to nobody who may be called.
    #[error("{0} has no usable address")]
    NoAddress(Arc<str>),
    /// It is not called with our identity.
    #[error(transparent)]
    Lent(#[from] Lent),
    /// It may be a member's.
    #[error("{0} is in a node's pod range, and the controller did not say in time which workload has it")]
    Untold(IpAddr),
    /// TLS of ours that it does not take, or that cannot be spoken.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It was gone before it was told who the client is.
    #[error("PROXY protocol header: {0}")]
    ProxyHeader(std::io::Error),
    /// HTTP could not be begun.
    #[error("{0}")]
    Http(#[from] hyper::Error),
}

/// Why a member is not called with our identity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Lent {
    /// It is known by what the client has called.
    #[error("{host} is a member of the mesh: call it by its own service")]
    Dynamic { host: Arc<str> },
    /// It is somebody else's.
    #[error(
        "{host}: the endpoint is {namespace}/{name}, a member of the mesh in another namespace: route to a service of that \
         namespace"
    )]
    Namespace { host: Arc<str>, namespace: Arc<str>, name: Arc<str> },
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
            | ConnectError::ProxyHeader(_)
            | ConnectError::Http(_) => true,
        }
    }

    /// Does it say something of the endpoint? Not what is wrong with us, with the request, or with what is known.
    pub fn is_of_endpoint(&self) -> bool {
        match self {
            ConnectError::Dial(e) => e.may_retry(),
            ConnectError::Lent(_) | ConnectError::Untold(_) => false,
            ConnectError::Timeout
            | ConnectError::NoAddress(_)
            | ConnectError::Tls(_)
            | ConnectError::ProxyHeader(_)
            | ConnectError::Http(_) => true,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The endpoint has refused the stream: it has not looked at the request.
    #[error("{0}")]
    StreamRefused(String),
    /// The connection broke before there was an answer.
    #[error("{0}")]
    Reset(String),
    /// The answer is not HTTP, or its head is too large.
    #[error("{0}")]
    Protocol(String),
}

impl Error {
    /// As logs and metrics have it.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Error::Connect(_) => ResponseFlag::ConnectFailure,
            Error::StreamRefused(_) | Error::Reset(_) => ResponseFlag::Reset,
            Error::Protocol(_) => ResponseFlag::ProtocolError,
        }
    }

    /// What the access log says of it.
    pub fn transport_failure_reason(&self) -> String {
        self.to_string()
    }

    /// See [`ConnectError::is_of_endpoint`].
    pub fn is_of_endpoint(&self) -> bool {
        match self {
            Error::Connect(e) => e.is_of_endpoint(),
            Error::StreamRefused(_) | Error::Reset(_) | Error::Protocol(_) => true,
        }
    }

    /// Has the endpoint seen nothing of the request, and may another be tried? `sent`: it may have read something of it.
    pub fn is_unseen(&self, sent: bool) -> bool {
        match self {
            Error::Connect(e) => e.may_retry(),
            Error::StreamRefused(_) => true,
            Error::Reset(_) | Error::Protocol(_) => !sent,
        }
    }

    /// Is it one after which the route wants the request to be tried again? `sent`: the endpoint may have read something of it.
    pub fn is_retryable(&self, retry: &ir::Retry, sent: bool) -> bool {
        let unsent = retry.reset_before_request && !sent;
        match self {
            Error::Connect(e) => {
                e.may_retry()
                    && (retry.connect_failure || retry.server_error || retry.gateway_error || retry.reset || unsent)
            }
            Error::StreamRefused(_) => retry.refused_stream || retry.server_error || retry.reset || unsent,
            Error::Reset(_) | Error::Protocol(_) => retry.reset || retry.server_error || retry.gateway_error || unsent,
        }
    }
}

/// Why there is no answer to a request that was sent.
pub fn failure(error: &hyper::Error) -> Error {
    let text = error_chain(error);
    if error.is_parse() {
        return Error::Protocol(format!("{text}: {}", codec::bad_head()));
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(http2) = inner.downcast_ref::<h2::Error>() {
            return match http2.reason() {
                // The endpoint says that it has not looked at the request (RFC 9113 §8.7); what we say ourselves proves nothing.
                Some(h2::Reason::REFUSED_STREAM) if http2.is_remote() => Error::StreamRefused(text),
                Some(h2::Reason::PROTOCOL_ERROR) if !http2.is_remote() => {
                    Error::Protocol(format!("{text}: {}", codec::bad_head()))
                }
                _ => Error::Reset(text),
            };
        }
        cause = inner.source();
    }
    Error::Reset(text)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_endpoint_may_have_read_is_not_unseen() {
        let text = String::new;
        for (error, sent, unseen) in [
            (Error::from(ConnectError::Timeout), false, true),
            (Error::StreamRefused(text()), true, true),
            (Error::Reset(text()), true, false),
            (Error::Reset(text()), false, true),
            (Error::Protocol(text()), true, false),
            (Error::Protocol(text()), false, true),
        ] {
            assert_eq!(error.is_unseen(sent), unseen, "{error:?} {sent}");
        }
    }
}
