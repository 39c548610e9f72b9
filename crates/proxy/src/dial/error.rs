//! Why there is no connection to an endpoint.

use crate::resolve::ResolveError;
use karst_core::Identity;
use karst_hbone::client::ClientError;
use std::{io, sync::Arc, time::Duration};

/// Why there is no connection to an endpoint. Nobody has seen a byte of what was to be sent there.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    /// There is no certificate of ours to show.
    #[error("there is no certificate for {0} (yet)")]
    NoCertificate(Identity),
    /// The endpoint's host name has no address.
    #[error("{0}")]
    Resolve(Arc<ResolveError>),
    /// No connection without a tunnel.
    #[error("connect: {0}")]
    Connect(Arc<io::Error>),
    /// It has not answered, and there are others.
    #[error("connect: no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// No stream on a tunnel.
    #[error(transparent)]
    Tunnel(#[from] ClientError),
}

impl DialError {
    /// May another endpoint be tried? What has gone wrong is this one's matter.
    pub fn may_retry(&self) -> bool {
        match self {
            DialError::NoCertificate(_) => false,
            DialError::Resolve(_) | DialError::Connect(_) | DialError::NoAnswer(_) => true,
            DialError::Tunnel(e) => e.may_retry(),
        }
    }
}
