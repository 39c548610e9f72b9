//! `experimental` (`x`): the verbs that istioctl has there.

mod authz;
mod describe;
mod facts;

use crate::{
    problem::Problem, session::Session, verbs::check::Check, verbs::uninstall::Uninstall, verbs::version::Version,
};
use clap::Subcommand;

/// The verbs of `experimental`.
#[derive(Debug, Subcommand)]
pub enum Experimental {
    /// Print which authorization policies are enforced for a pod
    #[command(subcommand)]
    Authz(authz::Authz),
    /// Explain what the mesh does for a pod or a service
    #[command(subcommand, alias = "des")]
    Describe(describe::Describe),
    /// Check whether the mesh can be installed here (as `check`)
    Precheck(Check),
    /// Remove the mesh from the cluster (as `uninstall`)
    Uninstall(Uninstall),
    /// Print versions (as `version`)
    Version(Version),
}

impl Experimental {
    /// Does it.
    ///
    /// # Errors
    /// Why it failed, and the next step.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        match self {
            Self::Authz(verb) => verb.run(session).await,
            Self::Describe(verb) => verb.run(session).await,
            Self::Precheck(verb) => verb.run(session).await,
            Self::Uninstall(verb) => verb.run(session).await,
            Self::Version(verb) => verb.run(session).await,
        }
    }
}
