//! What a release page holds, in one folder: the archive with the command line, the charts as a Helm repository and as an OCI
//! image layout, all images as another, bills of materials, checksums, provenance, and a script that installs
//! from there. `docs/releasing.md` says how it is made and checked; a test on the cluster installs from it alone
//! (`tests/e2e/tests/stages/release.rs`).
//!
//! The same commit, toolchain and architecture give the same bytes: the only time is the commit's.

mod architecture;
mod archive;
mod charts;
mod images;
#[cfg(test)]
mod install_tests;
mod page;
mod provenance;
mod source;
#[cfg(test)]
mod tests;
mod version;

pub(crate) use version::{Bump, bump};

use crate::{oci::Layout, report::Progress, sbom::Sources, setup};
use anyhow::{Context, Result, ensure};
use architecture::Architecture;
use images::Built;
use page::Page;
use source::Source;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What a release is made of.
#[derive(clap::Args)]
pub(crate) struct What {
    /// The version that is meant; refused if it is not the workspace's (a pipeline gives the tag that it was started by).
    #[arg(long)]
    version: Option<String>,
    /// The folder to write, replaced if it is a release [default: target/dist/VERSION].
    #[arg(long)]
    out: Option<PathBuf>,
    /// For these architectures; for another than this machine's the cross compiler is installed if it is missing [default: this
    /// machine's, and others whose compilers are there; a snapshot: this machine's]
    #[arg(long = "architecture", value_enum)]
    architectures: Vec<Architecture>,
    /// Where releases are published: the default mirror of install.sh. Below it is a folder for each version.
    #[arg(long, default_value = "")]
    mirror: String,
    /// No release: uncommitted changes and a version that CHANGELOG.md does not have are let through, and said. The programs are
    /// built as the tests want them, and so mostly there.
    #[arg(long)]
    snapshot: bool,
}

/// Makes the release of the checkout in the current directory.
pub(crate) fn run(what: &What) -> Result<()> {
    let root = std::path::absolute(".")?;
    let source = Source::read(&root, what.version.as_deref(), what.snapshot)?;
    let out = match &what.out {
        Some(out) => std::path::absolute(out)?,
        None => root.join("target/dist").join(&source.version),
    };
    Page::may_replace(&out)?;
    let progress = Progress::new();
    let architectures = match what.architectures.as_slice() {
        [] => Architecture::possible(what.snapshot, |note| progress.say(&note)),
        asked => asked.to_vec(),
    };
    for architecture in &architectures {
        architecture.build(what.snapshot)?;
        progress.say(&format!("the programs for {} are built", architecture.name()));
    }
    let built = programs(&root, &architectures, what.snapshot)?;
    let page = compose(&root, &source, &built, &what.mirror)?;
    page.write(&out)?;
    progress.say(&format!("{}: {} files, {:.1} MB", out.display(), page.len(), page.bytes() as f64 / 1e6));
    if source.snapshot {
        println!("a snapshot, not a release: {}", source.why_no_release());
    }
    println!("what is in it, and how it is checked and published: docs/releasing.md");
    Ok(())
}

/// What was built.
fn programs(root: &Path, architectures: &[Architecture], snapshot: bool) -> Result<Vec<Built>> {
    setup::shell()?;
    let mut all = vec![];
    for architecture in architectures.iter().copied() {
        let folder = root.join("target/dist/.programs").join(architecture.name());
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (programs, samples) = (architecture.programs(snapshot)?, architecture.is_host());
        if !samples {
            println!("no samples for {}: the shell of their image is this machine's own", architecture.name());
        }
        all.push(Built {
            architecture,
            programs,
            folder,
            sources: Sources::read(root, architecture.triple())?,
            samples,
        });
    }
    Ok(all)
}

/// All files of the page, from programs that are built.
fn compose(root: &Path, source: &Source, built: &[Built], mirror: &str) -> Result<Page> {
    let mut page = Page::default();
    // Layouts of their own: who imports images into a node cannot unpack charts.
    let (mut images, mut charts) = (Layout::default(), Layout::default());
    charts::publish(&charts::all(root, source)?, source, &mut page, &mut charts)?;
    for one in built {
        archive::publish(root, source, one, &mut page)?;
    }
    images::publish(built, source, &mut page, &mut images)?;
    page.put(&format!("karst-{}-images.tar", source.version), images.tar()?);
    page.put(&format!("karst-{}-charts.tar", source.version), charts.tar()?);
    page.put("install.sh", script(&source.version, mirror)?.into_bytes());
    page.put("NOTES.md", source.notes().into_bytes());
    let names: Vec<&str> = built.iter().map(|one| one.architecture.name()).collect();
    let statement = provenance::statement(root, source, &names, &page)?;
    page.put_json(&format!("karst-{}.intoto.json", source.version), &statement)?;
    page.put("SHA256SUMS", page.sums().into_bytes());
    Ok(page)
}

/// The script that installs, with its defaults.
fn script(version: &str, mirror: &str) -> Result<String> {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-._~:/+".contains(c);
    ensure!(mirror.chars().all(harmless), "--mirror {mirror:?}: an address of letters, digits and -._~:/+ is wanted");
    let text = include_str!("../release/install.sh");
    Ok(text.replace("@VERSION@", version).replace("@MIRROR@", mirror.trim_end_matches('/')))
}
