//! Why policies cannot be judged by: the control plane is told (NACK).

use crate::authz::external::provider::ProviderError;

/// What cannot be understood of policies and rules for tokens.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// An action of a later version.
    #[error("{policy}: action {action}")]
    Action { policy: String, action: i32 },
    /// No header may be called so.
    #[error("{rule}: header {header:?}")]
    Header { rule: String, header: String },
    /// A provider of external authorization that cannot be asked.
    #[error("provider {name:?}: {error}")]
    Provider { name: String, error: ProviderError },
    /// A policy that is to ask one that we were not told of.
    #[error("{policy}: no provider {provider:?}")]
    NoProvider { policy: String, provider: String },
}
