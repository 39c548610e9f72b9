//! The verbs, a file for each.

pub mod analyze;
pub mod explain;
pub mod proxy_status;
pub mod version;
pub mod waypoint;
pub mod ztunnel_config;

use crate::{problem::Problem, session::Session};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Find problems in files and in the cluster
    Analyze(analyze::Analyze),
    /// Explain what becomes of a call from A to B, and which object decides each step
    Explain(explain::Explain),
    /// Print which proxies are connected, and what each has acknowledged
    #[command(visible_aliases = ["ps", "status"])]
    ProxyStatus(proxy_status::ProxyStatus),
    /// Check manifests as the webhook does, without a cluster
    #[command(visible_alias = "v")]
    Validate(analyze::Validate),
    /// Print the versions of client, control plane and data plane
    Version(version::Version),
    /// Manage waypoints
    #[command(subcommand)]
    Waypoint(waypoint::Waypoint),
    /// Print what a node's ztunnel knows
    #[command(subcommand, visible_alias = "zc")]
    ZtunnelConfig(ztunnel_config::ZtunnelConfig),
}

impl Verb {
    /// Does it. The tree of verbs is for those that print it.
    ///
    /// # Errors
    /// Why it failed, and the next step.
    pub async fn run(self, session: &mut Session<'_>, _tree: &dyn Fn() -> clap::Command) -> Result<(), Problem> {
        match self {
            Self::Analyze(verb) => verb.run(session).await,
            Self::Explain(verb) => verb.run(session).await,
            Self::ProxyStatus(verb) => verb.run(session).await,
            Self::Validate(verb) => verb.run(session),
            Self::Version(verb) => verb.run(session).await,
            Self::Waypoint(verb) => verb.run(session).await,
            Self::ZtunnelConfig(verb) => verb.run(session).await,
        }
    }
}
