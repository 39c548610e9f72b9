//! Why a route cannot be executed: the control plane is told (NACK).

use crate::{authz::external::provider::ProviderError, session::rules::SessionError};
use karst_core::operators::OperatorError;
use prost::DecodeError;

/// What cannot be executed.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// It is no message of its type.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Of which rule it is.
    #[error("{origin}: {error}")]
    Rule { origin: String, error: Box<CompileError> },
    /// A condition of a later version.
    #[error("a match of a kind that is not known")]
    MatchKind,
    /// A condition that says nothing.
    #[error("a match without a value")]
    MatchValue,
    /// A condition's expression.
    #[error("regular expression {0:?}: {1}")]
    Regex(String, regex::Error),
    /// A rewrite's expression.
    #[error("{0:?}: {1}")]
    RewriteRegex(String, regex::Error),
    /// A mirror that leads nowhere.
    #[error("a mirror without destination")]
    Mirror,
    /// No header may be called so.
    #[error("{0:?} is not a valid header name")]
    HeaderName(String),
    /// No header may have it.
    #[error("{0:?} is not a valid header value")]
    HeaderValue(String),
    /// A header's value with an operator that is not known.
    #[error("{0:?} {1}")]
    Operator(String, OperatorError),
    /// It is no number of a port.
    #[error("port {0}")]
    Port(u32),
    /// It is no status code.
    #[error("{0} is not a valid status")]
    Status(u32),
    /// A provider of external authorization that cannot be asked.
    #[error("external authorization: {0}")]
    Provider(#[from] ProviderError),
    /// A session that nothing can carry.
    #[error("session: {0}")]
    Session(#[from] SessionError),
    /// A host that requests cannot have.
    #[error("{0:?} is not a valid authority")]
    Authority(String),
}
