//! The verbs, a file for each.

pub mod version;

use crate::{problem::Problem, session::Session};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Print the versions of client, control plane and data plane
    Version(version::Version),
}

impl Verb {
    /// Does it. The tree of verbs is for those that print it.
    ///
    /// # Errors
    /// Why it failed, and the next step.
    pub async fn run(self, session: &mut Session<'_>, _tree: &dyn Fn() -> clap::Command) -> Result<(), Problem> {
        match self {
            Self::Version(verb) => verb.run(session).await,
        }
    }
}
