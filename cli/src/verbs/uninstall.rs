//! `uninstall`, also as `x uninstall`.

use super::install::{Chosen, Teller, confirmed, duration, failed, wrong};
use crate::{problem::Problem, session::Session};
use karst_install::{
    cluster::{Removal, Selection, Target},
    manifest::Manifest,
};
use std::time::Duration;

/// Options of `uninstall`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  karst uninstall --purge\n  karst uninstall --revision canary\n  karst uninstall -f mesh.yaml\n  karst uninstall --purge --crds -y   # also the CRDs, and with them all objects of these kinds"
)]
pub struct Uninstall {
    /// What is to be removed: by revision (default: the one without a name), or by file.
    #[command(flatten)]
    chosen: Chosen,
    /// Everything that karst has installed, of all revisions
    #[arg(long)]
    purge: bool,
    /// The CRDs, too: all VirtualServices, AuthorizationPolicies and so on go with them
    #[arg(long)]
    crds: bool,
    /// Do not ask
    #[arg(short = 'y', long)]
    skip_confirmation: bool,
    /// Print what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// How long pods may take to end
    #[arg(long, default_value = "300s", value_parser = duration, value_name = "TIME")]
    timeout: Duration,
}

impl Uninstall {
    /// Removes it.
    ///
    /// # Errors
    /// If it does not say what, or the API server refuses.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let by_file = !self.chosen.files.is_empty() || !self.chosen.sets.is_empty();
        if u8::from(self.purge) + u8::from(by_file) + u8::from(self.chosen.revision.is_some() && !by_file) != 1 {
            let next = "pass one of --revision NAME (default for the one without a name), -f FILE, or --purge";
            return Err(Problem::usage("it is not said what to uninstall", next));
        }
        let target = Target::new(session.cluster().await?.client());
        let selection = self.selection(session, &target, by_file).await?;
        let found = Removal::find(&target, &selection, self.crds, self.timeout).await;
        let removal = found.map_err(|error| failed(&error))?;
        if removal.objects.is_empty() {
            let next = "an installation by helm is removed by helm uninstall; helm list -A shows it";
            session.note(format!("Nothing that karst has installed is there; {next}."));
            return Ok(());
        }
        if self.dry_run {
            return session.text(&(removal.lines().join("\n") + "\n"));
        }
        if !self.skip_confirmation {
            session.text(&(removal.lines().join("\n") + "\n"))?;
            let count = removal.objects.len();
            session.text(&format!("{count} objects will be removed from the cluster. Proceed? (y/N) "))?;
            confirmed(session)?;
        }
        let mut teller = Teller::new(session);
        removal.run(&target, &mut |progress| teller.tell(progress)).await.map_err(|error| failed(&error))?;
        teller.done()?;
        if !self.crds {
            session.note("The CRDs and their objects are still there; --crds removes them, too.");
        }
        session.line("✔ Uninstall complete")?;
        session.line("The namespace stays: kubectl delete namespace removes it, and with it the authority's key.")
    }

    async fn selection(&self, session: &Session<'_>, target: &Target, by_file: bool) -> Result<Selection, Problem> {
        if self.purge {
            return Ok(Selection::Purge);
        }
        if by_file {
            let spec = self.chosen.spec(&session.global.istio_namespace)?;
            let version = target.version().await.map_err(|error| failed(&error))?;
            let manifest =
                Manifest::of(&spec, &self.chosen.charts()?, &version, true).map_err(|error| wrong(&error))?;
            return Ok(Selection::Manifest(Box::new(manifest)));
        }
        let revision = self.chosen.revision.clone().filter(|name| name != "default").unwrap_or_default();
        Ok(Selection::Revision(revision, session.global.istio_namespace.clone()))
    }
}
