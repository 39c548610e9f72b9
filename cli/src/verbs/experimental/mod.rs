//! `experimental` (`x`): the verbs that istioctl has there.

mod authz;
mod describe;
mod facts;
mod membership;

use crate::{
    problem::Problem,
    session::Session,
    verbs::{check::Check, uninstall::Uninstall, version::Version, waypoint::Waypoint, ztunnel_config::ZtunnelConfig},
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
    /// Manage waypoints (as `waypoint`; where istioctl had it once)
    #[command(subcommand, hide = true)]
    Waypoint(Waypoint),
    /// Print what a node's ztunnel knows (as `ztunnel-config`; where istioctl had it once)
    #[command(subcommand, hide = true, alias = "zc")]
    ZtunnelConfig(ZtunnelConfig),
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
            Self::Waypoint(verb) => verb.run(session).await,
            Self::ZtunnelConfig(verb) => verb.run(session).await,
        }
    }
}
