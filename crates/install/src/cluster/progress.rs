//! What users are told meanwhile.

/// What is told while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A component is being applied.
    Begins(String),
    /// What it waits for, and why; told when it changes.
    Waits(String),
    /// A component is ready.
    Ready(String),
    /// An object that is no longer wanted was removed.
    Removed(String),
}
