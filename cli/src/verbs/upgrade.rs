//! `upgrade`: an installation that is there becomes this release's.

use super::install::Install;
use crate::{problem::Problem, session::Session};

/// Options of `upgrade`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The control plane is upgraded first, then the node agent, the node proxies and the gateways; what an older\nrelease had and this one has not is removed at the end. It starts from what the installation was asked for; -f and --set come over that.\n\nExamples:\n  karst upgrade\n  karst upgrade -f mesh.yaml --dry-run"
)]
pub struct Upgrade {
    #[command(flatten)]
    install: Install,
}

impl Upgrade {
    /// Upgrades.
    ///
    /// # Errors
    /// As `install`.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        self.install.change(session, true).await
    }
}
