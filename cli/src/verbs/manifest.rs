//! `manifest generate` and `manifest apply`.

use super::install::{Chosen, Install, failed, wrong};
use crate::{problem::Problem, session::Session};
use karst_install::{cluster::Target, manifest};

/// Verbs of `manifest`.
#[derive(Debug, clap::Subcommand)]
pub enum Manifest {
    /// Print the objects of an installation; the same bytes for the same input
    Generate(Generate),
    /// Install, as `install` does
    #[command(visible_alias = "install")]
    Apply(Install),
}

/// Options of `manifest generate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  karst manifest generate --set profile=demo > mesh.yaml")]
pub struct Generate {
    #[command(flatten)]
    chosen: Chosen,
    /// Take Kubernetes' version from the cluster
    #[arg(long)]
    cluster_specific: bool,
}

/// What charts are told where no cluster is asked; they need 1.30 or later.
const KUBERNETES: &str = "v1.34.0";

impl Manifest {
    /// Does it.
    ///
    /// # Errors
    /// If values are wrong; for `apply` also those of `install`.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        match self {
            Self::Generate(verb) => verb.run(session).await,
            Self::Apply(verb) => verb.run(session).await,
        }
    }
}

impl Generate {
    async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let spec = self.chosen.spec(&session.global.istio_namespace)?;
        let version = if self.cluster_specific {
            let target = Target::new(session.cluster().await?.client());
            target.version().await.map_err(|error| failed(&error))?
        } else {
            KUBERNETES.to_string()
        };
        let made = manifest::Manifest::of(&spec, &self.chosen.charts()?, &version, false);
        session.text(&made.map_err(|error| wrong(&error))?.to_yaml())
    }
}
