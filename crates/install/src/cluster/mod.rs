//! The cluster: what an installation changes there, and how it is done.

mod access;
mod change;
mod crds;
mod error;
mod install;
mod progress;
mod ready;
mod record;
mod remove;
mod standing;

pub use access::Target;
pub use change::{Change, Changes};
pub use crds::{Lacks, Used, used};
pub use error::ClusterError;
pub use install::Install;
pub use progress::Progress;
pub use ready::trouble;
pub use remove::{Removal, Selection};
