//! Why policies cannot be judged by: the control plane is told (NACK).

/// What cannot be understood of policies and rules for tokens.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// An action of a later version.
    #[error("{policy}: action {action}")]
    Action { policy: String, action: i32 },
    /// No header may be called so.
    #[error("{rule}: header {header:?}")]
    Header { rule: String, header: String },
}
