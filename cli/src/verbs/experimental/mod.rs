//! `experimental` (`x`): the verbs that istioctl has there.

mod authz;
mod conditions;
mod debug;
mod describe;
mod description;
mod facts;
mod membership;

use crate::{
    problem::Problem,
    session::Session,
    verbs::{
        absent::{self, Absent},
        check::Check,
        proxy_status::ProxyStatus,
        uninstall::Uninstall,
        version::Version,
        waypoint::Waypoint,
        ztunnel_config::ZtunnelConfig,
    },
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
    /// Nothing is injected
    #[command(hide = true, alias = "injector")]
    CheckInject(Absent),
    /// There is no file of defaults
    #[command(hide = true)]
    Config(Absent),
    /// Print the metrics of a waypoint or gateway
    #[command(alias = "es")]
    EnvoyStats(debug::Stats),
    /// Print a debug page of the control plane
    InternalDebug(debug::InternalDebug),
    /// Prometheus is not asked
    #[command(hide = true, alias = "m")]
    Metrics(Absent),
    /// Check whether the mesh can be installed here (as `check`)
    Precheck(Check),
    /// Print which proxies are connected (as `proxy-status`)
    #[command(alias = "ps")]
    ProxyStatus(ProxyStatus),
    /// Remove the mesh from the cluster (as `uninstall`)
    Uninstall(Uninstall),
    /// Print versions (as `version`)
    Version(Version),
    /// Manage waypoints (as `waypoint`; where istioctl had it once)
    #[command(subcommand, hide = true)]
    Waypoint(Waypoint),
    /// Virtual machines cannot join
    #[command(hide = true)]
    Workload(Absent),
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
            Self::CheckInject(verb) => verb.run(session, absent::Verb::Injection),
            Self::Config(verb) => verb.run(session, absent::Verb::Defaults),
            Self::EnvoyStats(verb) => verb.run(session).await,
            Self::InternalDebug(verb) => verb.run(session).await,
            Self::Metrics(verb) => verb.run(session, absent::Verb::Metrics),
            Self::ProxyStatus(verb) => verb.run(session).await,
            Self::Workload(verb) => verb.run(session, absent::Verb::VirtualMachines),
            Self::Precheck(verb) => verb.run(session).await,
            Self::Uninstall(verb) => verb.run(session).await,
            Self::Version(verb) => verb.run(session).await,
            Self::Waypoint(verb) => verb.run(session).await,
            Self::ZtunnelConfig(verb) => verb.run(session).await,
        }
    }
}
