//! `manifest generate`, `manifest apply` and `manifest translate`.

use super::install::{Chosen, Install, failed, wrong};
use crate::{problem::Problem, session::Session};
use karst_install::{cluster::Target, manifest};
use std::path::PathBuf;

/// Verbs of `manifest`.
#[derive(Debug, clap::Subcommand)]
pub enum Manifest {
    /// Print the objects of an installation; the same bytes for the same input
    Generate(Generate),
    /// Install, as `install` does
    #[command(visible_alias = "install")]
    Apply(Install),
    /// Print the values and commands by which helm installs the same
    Translate(Translate),
}

/// Options of `manifest translate`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  karst manifest translate --set profile=demo\n  karst manifest translate -f mesh.yaml -o values/"
)]
pub struct Translate {
    #[command(flatten)]
    chosen: Chosen,
    /// Folder that the files of values are written to [default: they are printed]
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
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
            Self::Translate(verb) => verb.run(session),
        }
    }
}

impl Translate {
    fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let spec = self.chosen.spec(&session.global.istio_namespace)?;
        let components = spec.components(&self.chosen.charts()?).map_err(|error| wrong(&error))?;
        for component in components {
            let file = format!("{}-values.yaml", component.name);
            let values = serde_yaml_ng::to_string(&component.values);
            let values = values.map_err(|e| Problem::new(format!("{file}: cannot be written as YAML")).because(e))?;
            let place = match &self.output {
                Some(folder) => {
                    let path = folder.join(&file);
                    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, &values));
                    let next = "choose another folder with --output";
                    written.map_err(|e| {
                        Problem::new(format!("{}: cannot be written", path.display())).because(e).next(next)
                    })?;
                    path.display().to_string()
                }
                None => {
                    session.text(&format!("# {file}\n{values}---\n"))?;
                    file
                }
            };
            session.line(format!(
                "# helm upgrade --install {} charts/{} -n {} --create-namespace -f {place}",
                component.name, component.chart.name, component.namespace
            ))?;
        }
        Ok(())
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
