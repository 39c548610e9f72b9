//! The verbs, a file for each.

pub mod proxy_status;
pub mod version;
pub mod waypoint;
pub mod ztunnel_config;

use crate::{problem::Problem, session::Session};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Print which proxies are connected, and what each has acknowledged
    #[command(visible_aliases = ["ps", "status"])]
    ProxyStatus(proxy_status::ProxyStatus),
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
            Self::ProxyStatus(verb) => verb.run(session).await,
            Self::Version(verb) => verb.run(session).await,
            Self::Waypoint(verb) => verb.run(session).await,
            Self::ZtunnelConfig(verb) => verb.run(session).await,
        }
    }
}
