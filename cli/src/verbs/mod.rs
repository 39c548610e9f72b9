//! The verbs, a file for each.

pub mod absent;
pub mod admin;
pub mod analyze;
pub mod bug_report;
pub mod check;
pub mod dashboard;
pub mod experimental;
pub mod explain;
pub mod install;
pub mod local;
pub mod manifest;
pub mod policy;
pub mod profile;
pub mod proxy_config;
pub mod proxy_status;
pub mod tag;
pub mod tap;
pub mod top;
pub mod uninstall;
pub mod upgrade;
pub mod version;
pub mod waypoint;
pub mod ztunnel_config;

use crate::{problem::Problem, session::Session};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Manage the control plane
    #[command(subcommand, alias = "istiod")]
    Admin(admin::Admin),
    /// Find problems in files and in the cluster
    Analyze(analyze::Analyze),
    /// Collect logs, dumps and objects in an archive, without secrets
    BugReport(bug_report::BugReport),
    /// Check the cluster before an installation, or the mesh after it
    #[command(alias = "verify-install")]
    Check(check::Check),
    /// Print the completion script of a shell
    Completion(local::Completion),
    /// Open the page of the mesh; or Kiali, Grafana and others through a port-forward
    #[command(visible_aliases = ["dash", "d"])]
    Dashboard(dashboard::Dashboard),
    /// Verbs that istioctl has as experimental
    #[command(subcommand, visible_aliases = ["x", "exp"])]
    Experimental(experimental::Experimental),
    /// Meshes of several clusters are not supported
    #[command(hide = true, alias = "remote-clusters")]
    CreateRemoteSecret(absent::Absent),
    /// There is no operator
    #[command(hide = true)]
    Operator(absent::Absent),
    /// Explain what becomes of a call from A to B, and which object decides each step
    Explain(explain::Explain),
    /// Install the mesh, or change what is installed
    #[command(visible_alias = "apply")]
    Install(install::Install),
    /// Print a manifest as it is: this mesh injects nothing
    KubeInject(local::KubeInject),
    /// Print or apply the objects of an installation
    #[command(subcommand)]
    Manifest(manifest::Manifest),
    /// Print the options that every verb takes
    Options,
    /// Test and suggest policies by what the proxies have lately seen
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Print the profiles that an installation can be based on
    #[command(subcommand)]
    Profile(profile::Profile),
    /// Print what a waypoint or gateway works by
    #[command(subcommand, visible_alias = "pc")]
    ProxyConfig(proxy_config::ProxyConfig),
    /// Print which proxies are connected, and what each has acknowledged
    #[command(visible_aliases = ["ps", "status"])]
    ProxyStatus(proxy_status::ProxyStatus),
    /// Print the page of all verbs
    #[command(hide = true)]
    Reference,
    /// Manage revision tags
    #[command(subcommand)]
    Tag(tag::Tag),
    /// Print live requests and connections, with why they were refused or failed
    Tap(tap::Tap),
    /// Print rates, success and latencies of live requests and connections
    Top(top::Top),
    /// Remove the mesh from the cluster
    Uninstall(uninstall::Uninstall),
    /// Bring the mesh to this release
    Upgrade(upgrade::Upgrade),
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
    pub async fn run(self, session: &mut Session<'_>, tree: &dyn Fn() -> clap::Command) -> Result<(), Problem> {
        match self {
            Self::Admin(verb) => verb.run(session).await,
            Self::Analyze(verb) => verb.run(session).await,
            Self::BugReport(verb) => verb.run(session).await,
            Self::Check(verb) => verb.run(session).await,
            Self::Completion(verb) => verb.run(session, tree()),
            Self::CreateRemoteSecret(verb) => verb.run(session, absent::Verb::Multicluster),
            Self::Operator(verb) => verb.run(session, absent::Verb::Operator),
            Self::Dashboard(verb) => verb.run(session).await,
            Self::Experimental(verb) => verb.run(session).await,
            Self::Explain(verb) => verb.run(session).await,
            Self::Install(verb) => verb.run(session).await,
            Self::KubeInject(verb) => verb.run(session),
            Self::Manifest(verb) => verb.run(session).await,
            Self::Options => local::options(session, &tree()),
            Self::Policy(verb) => verb.run(session).await,
            Self::Profile(verb) => verb.run(session).await,
            Self::ProxyConfig(verb) => verb.run(session).await,
            Self::ProxyStatus(verb) => verb.run(session).await,
            Self::Reference => session.text(&crate::reference::page(tree())),
            Self::Tag(verb) => verb.run(session).await,
            Self::Tap(verb) => verb.run(session).await,
            Self::Top(verb) => verb.run(session).await,
            Self::Uninstall(verb) => verb.run(session).await,
            Self::Upgrade(verb) => verb.run(session).await,
            Self::Validate(verb) => verb.run(session),
            Self::Version(verb) => verb.run(session).await,
            Self::Waypoint(verb) => verb.run(session).await,
            Self::ZtunnelConfig(verb) => verb.run(session).await,
        }
    }
}
