//! `install`, and `manifest apply`, which is the same.

use crate::{
    analysis::rules,
    cluster::Resource,
    problem::{Exit, Problem},
    session::Session,
};
use karst_install::{
    chart::Charts,
    cluster::{Changes, ClusterError, Install as Installation, Progress, Target},
    manifest::Manifest,
    spec::{Spec, SpecError, Wanted},
};
use std::{
    io::{self, BufRead},
    path::PathBuf,
    time::Duration,
};

/// What is to be installed, as several verbs take it.
#[derive(Debug, Default, clap::Args)]
pub struct Chosen {
    /// IstioOperator file; several are laid over each other, the last one wins
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// A value: profile=demo, values.pilot.replicaCount=2, meshConfig.accessLogFile=/dev/stdout, components.cni.enabled=false
    #[arg(short = 's', long = "set", value_name = "PATH=VALUE")]
    pub sets: Vec<String>,
    /// Revision of the control plane, where several run side by side
    #[arg(short, long, value_name = "NAME")]
    pub revision: Option<String>,
    /// Folder with the charts [default: those of this release, which are in the program]
    #[arg(short = 'd', long, visible_alias = "charts", value_name = "FOLDER")]
    pub manifests: Option<PathBuf>,
}

/// Options of `install`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  karst install\n  karst install --set profile=demo -y\n  karst install -f mesh.yaml --set hub=registry.example/karst\n  karst install --dry-run"
)]
pub struct Install {
    /// What is to be installed.
    #[command(flatten)]
    chosen: Chosen,
    /// Do not ask
    #[arg(short = 'y', long)]
    skip_confirmation: bool,
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take over objects of others that have the names of ours, helm's among them
    #[arg(long)]
    force: bool,
    /// How long each component may take to be ready, as 300s or 5m
    #[arg(long, default_value = "300s", value_parser = duration, value_name = "TIME")]
    readiness_timeout: Duration,
    /// Wait until everything is ready (it always does)
    #[arg(long, hide = true)]
    verify: bool,
}

impl Chosen {
    /// The charts to render.
    ///
    /// # Errors
    /// If the folder has none.
    pub fn charts(&self) -> Result<Charts, Problem> {
        match &self.manifests {
            None => Ok(Charts::embedded()),
            Some(folder) => Charts::folder(folder)
                .map_err(|error| Problem::new("--manifests cannot be used").because(error).exit(Exit::Data)),
        }
    }

    /// All of it as one IstioOperator.
    ///
    /// # Errors
    /// If a file cannot be read, or a key is unknown.
    pub fn spec(&self, namespace: &str) -> Result<Spec, Problem> {
        self.wanted(namespace)?.spec().map_err(|error| wrong(&error))
    }

    /// What was said, the files read.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn wanted(&self, namespace: &str) -> Result<Wanted, Problem> {
        let mut files = Vec::new();
        for file in &self.files {
            let name = file.display().to_string();
            let text = match name.as_str() {
                "-" => io::read_to_string(io::stdin()),
                _ => std::fs::read_to_string(file),
            };
            let next = "-f names an IstioOperator file; - is the standard input";
            let text = text.map_err(|e| {
                Problem::new(format!("-f {name}: cannot be read")).because(e).next(next).exit(Exit::Data)
            })?;
            files.push((name, text));
        }
        Ok(Wanted { files, sets: self.sets.clone(), revision: self.revision.clone(), namespace: namespace.into() })
    }
}

impl Install {
    /// Installs.
    ///
    /// # Errors
    /// If values are wrong, the API server refuses something, or it is not ready in time.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        self.change(session, false).await
    }

    /// Installs or upgrades.
    ///
    /// # Errors
    /// As [`Install::run`].
    pub async fn change(self, session: &mut Session<'_>, upgrade: bool) -> Result<(), Problem> {
        let mut wanted = self.chosen.wanted(&session.global.istio_namespace)?;
        let charts = self.chosen.charts()?;
        let target = Target::new(session.cluster().await?.client());
        if upgrade {
            wanted = after(&target, wanted).await?;
        }
        let spec = wanted.spec().map_err(|error| wrong(&error))?;
        let version = target.version().await.map_err(|error| failed(&error))?;
        if let Some(problem) = crate::verbs::check::too_old(&version) {
            return Err(problem);
        }
        let mut manifest = Manifest::of(&spec, &charts, &version, upgrade).map_err(|error| wrong(&error))?;
        let obsolete = Installation::obsolete(&target, &manifest).await.map_err(|error| failed(&error))?;
        let changes = Changes::find(&target, &manifest, &obsolete, self.force).await.map_err(|error| failed(&error))?;
        manifest.leave(&changes.not_ours());
        if self.dry_run {
            return session.text(&(changes.lines().join("\n") + "\n"));
        }
        if !self.skip_confirmation {
            preview(session, &spec, &manifest, &changes, upgrade)?;
            confirmed(session)?;
        }
        let timeout = self.readiness_timeout;
        let installation = Installation { manifest: &manifest, timeout, obsolete, shared: changes.shared };
        let mut teller = Teller::new(session);
        installation.run(&target, &mut |progress| teller.tell(progress)).await.map_err(|error| failed(&error))?;
        let told = teller.done();
        // Whatever has become of the terminal: it is installed.
        target.record(&wanted, &manifest).await.map_err(|error| failed(&error))?;
        told?;
        for part in manifest.parts.iter().filter(|part| part.notes.contains("no effect")) {
            session.note(part.notes.trim_end());
        }
        let (tick, place) = (tick(session), &manifest.namespace);
        session.line(format!(
            "{tick} {} complete in namespace {place}",
            if upgrade { "Upgrade" } else { "Installation" }
        ))?;
        if !manifest.revision.is_empty() {
            default_revision(session, &manifest.revision).await?;
        }
        session.line("Next: add a namespace to the mesh: kubectl label namespace NAME istio.io/dataplane-mode=ambient")
    }
}

/// Says what is missing while a revision with a name is the only one.
async fn default_revision(session: &mut Session<'_>, revision: &str) -> Result<(), Problem> {
    let validating = Resource::VALIDATING_WEBHOOK;
    let found = session.cluster().await?.list(validating, None, "app=istiod").await?.unwrap_or_default();
    if !rules::is_unjudged(found.iter().map(|one| &one.data), None) {
        return Ok(());
    }
    session.line(format!(
        "Next: no revision is the default one, and objects without the label istio.io/rev are not judged when they are applied: \
         karst tag set default --revision {revision}"
    ))
}

/// Prints progress as it comes; the first line that cannot be written is the answer of [`Teller::done`].
pub(super) struct Teller<'s, 'o> {
    session: &'s mut Session<'o>,
    tick: &'static str,
    written: Result<(), Problem>,
}

impl<'s, 'o> Teller<'s, 'o> {
    /// Prints to a session.
    pub(super) fn new(session: &'s mut Session<'o>) -> Self {
        Self { tick: tick(session), session, written: Ok(()) }
    }

    /// Prints one.
    pub(super) fn tell(&mut self, progress: Progress) {
        let line = match progress {
            Progress::Begins(_) => return,
            Progress::Waits(what) => format!("- waiting: {what}"),
            Progress::Ready(component) => format!("{} {component} installed", self.tick),
            Progress::Removed(object) => format!("- removed {object}"),
        };
        if self.written.is_ok() {
            self.written = self.session.line(line);
        }
    }

    /// Whether all of it was written.
    pub(super) fn done(self) -> Result<(), Problem> {
        self.written
    }
}

fn tick(session: &Session<'_>) -> &'static str {
    if session.has_colour() { "\u{1b}[32m✔\u{1b}[0m" } else { "✔" }
}

fn preview(
    session: &mut Session<'_>,
    spec: &Spec,
    manifest: &Manifest,
    changes: &Changes,
    upgrade: bool,
) -> Result<(), Problem> {
    const SHOWN: usize = 20;
    let lines = changes.lines();
    for line in lines.iter().take(SHOWN) {
        session.line(line)?;
    }
    if lines.len() > SHOWN {
        session.line(format!("… and {} more lines; --dry-run prints all", lines.len() - SHOWN))?;
    }
    if !spec.left.is_empty() {
        session.line(left(spec))?;
    }
    let mut components: Vec<&str> = manifest.parts.iter().map(|part| part.kind.title()).collect();
    components.dedup();
    let verb = if upgrade { "upgrade to" } else { "install" };
    session.text(&format!(
        "This will {verb} Karst {} profile {:?} with components {} into the cluster. Proceed? (y/N) ",
        env!("CARGO_PKG_VERSION"),
        spec.profile,
        components.join(", "),
    ))
}

/// What a further revision leaves to the one that is there, and how it is moved.
fn left(spec: &Spec) -> String {
    format!(
        "Revision {:?} leaves these as they are: {}. They are moved only if they are asked for \
         (--set components.NAME.enabled=true, or components.ingressGateways[name:NAME].enabled=true, \
         with --force to take them over in place); docs/upgrade.md has the order. CRDs of an older release are \
         brought to this one all the same, since all revisions read them.",
        spec.revision,
        spec.left.join(", ")
    )
}

/// What was said at the installation, and over it what is said now.
///
/// # Errors
/// If nothing is installed.
async fn after(target: &Target, now: Wanted) -> Result<Wanted, Problem> {
    let revision = now.revision.clone().filter(|name| name != "default").unwrap_or_default();
    let Some(mut wanted) = target.recorded(&now.namespace, &revision).await.map_err(|error| failed(&error))? else {
        let next = "karst install installs it; helm's installations are upgraded by helm";
        let which = if revision.is_empty() { String::new() } else { format!(" of revision {revision}") };
        let what = format!("karst has installed nothing{which} in namespace {}", now.namespace);
        return Err(Problem::new(what).next(next));
    };
    wanted.files.extend(now.files);
    wanted.sets.extend(now.sets);
    Ok(wanted)
}

/// Reads the answer; no answer is no.
///
/// # Errors
/// If there is no reading, or the answer is not yes: a script must not take that for an installation.
pub(super) fn confirmed(session: &mut Session<'_>) -> Result<(), Problem> {
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|e| Problem::new("cannot read the answer").because(e).next("pass -y to proceed without asking"))?;
    if answer.is_empty() {
        session.line("")?;
    }
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Problem::new("nothing was changed: the answer was not y").next("pass -y to proceed without asking")),
    }
}

pub(super) fn wrong(error: &SpecError) -> Problem {
    let next = "karst profile dump default shows the keys; docs/values.md has all values";
    Problem::new("the installation is not what it has to be").because(error).next(next).exit(Exit::Data)
}

pub(super) fn failed(error: &ClusterError) -> Problem {
    let next = match error {
        ClusterError::Request { what, error } => return crate::cluster::failed(what.clone(), error),
        ClusterError::NotReady { waiting, .. } if waiting.contains("Image") => {
            "check the image: --set hub=REGISTRY and --set tag=TAG, and its pull secret \
             (--set values.global.imagePullSecrets[0]=NAME); then run the same command again"
        }
        ClusterError::NotReady { waiting, .. } if waiting.contains("not scheduled") => {
            "make room, or add a node: `kubectl describe nodes` shows what is taken; then run the same command again"
        }
        ClusterError::NotReady { .. } | ClusterError::NotGone { .. } => {
            "run the same command again: it goes on where it is"
        }
        ClusterError::Helm { .. } | ClusterError::Foreign { .. } | ClusterError::Lacking { .. } => {
            "correct it, and run the same command again"
        }
    };
    Problem::new("the cluster is not changed as it was wanted").because(error).next(next)
}

/// `90`, `90s`, `5m`, `1h`, `1m30s`.
///
/// # Errors
/// If it is something else.
pub(super) fn duration(text: &str) -> Result<Duration, DurationError> {
    let wrong = || DurationError(text.into());
    let (mut seconds, mut number) = (0_u64, String::new());
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => return Err(wrong()),
        };
        let count: u64 = number.parse().map_err(|_| wrong())?;
        seconds = count.checked_mul(unit).and_then(|more| seconds.checked_add(more)).ok_or_else(wrong)?;
        number.clear();
    }
    if !number.is_empty() {
        seconds = number.parse::<u64>().ok().and_then(|more| seconds.checked_add(more)).ok_or_else(wrong)?;
    } else if text.is_empty() {
        return Err(wrong());
    }
    Ok(Duration::from_secs(seconds))
}

/// A text that is no duration.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no time; write it as 300s, 5m or 1h")]
pub(super) struct DurationError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_gos() {
        let seconds = |text: &str| duration(text).ok().map(|time| time.as_secs());
        assert_eq!(["90", "90s", "5m", "1m30s", "1h"].map(seconds), [90, 90, 300, 90, 3600].map(Some));
        assert_eq!(["", "s", "5x", "-1s", "99999999999999999999"].map(seconds), [None; 5]);
    }

    #[test]
    fn wrong_values_name_the_key() {
        let chosen = Chosen { sets: vec!["values.pilto.x=1".into()], ..Chosen::default() };
        let spec = chosen.spec("istio-system").unwrap();
        let error = spec.components(&chosen.charts().unwrap()).unwrap_err();
        assert!(wrong(&error).to_string().contains("did you mean pilot?"));
    }
}
