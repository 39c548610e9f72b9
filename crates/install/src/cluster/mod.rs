//! The cluster: what an installation changes there, and how it is done.

mod access;
mod change;
mod error;
mod install;
mod ready;
mod remove;

pub use access::Target;
pub use change::{Change, Changes};
pub use error::ClusterError;
pub use install::{Install, Progress};
pub use remove::{Removal, Selection};
