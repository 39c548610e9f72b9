//! The page of `karst dashboard` (cli/page): what is committed is what its sources and lock file give, with the licences of all that
//! is bundled, and it works in a browser.

use crate::setup;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Where its sources are.
const PAGE: &str = "cli/page";
/// Where the book's pictures are.
const IMAGES: &str = "docs/images";
/// Largest picture, in bytes.
const MAX_IMAGE: u64 = 200_000;

/// What a licence begins with in `dist/licences.txt` (cli/page/licences.mjs): the package, and its version.
const HEADING: &str = "-------- ";
/// Bytes that a licence has at least; a shorter text only names it.
const LICENCE: usize = 500;

/// What is asked for.
#[derive(clap::Args)]
pub(crate) struct What {
    /// Only compare what is committed with what the sources give.
    #[arg(long)]
    check: bool,
    /// Make the book's pictures anew.
    #[arg(long, conflicts_with = "check")]
    pictures: bool,
}

impl What {
    /// As the stage of `cargo xtask test` wants it.
    pub(crate) fn for_tests() -> Self {
        Self { check: false, pictures: false }
    }
}

/// Compares, and unless that is all runs the page in Chromium.
///
/// # Errors
/// If it is stale, or does not work.
pub(crate) fn run(what: &What) -> Result<()> {
    let read = |file: &str| fs::read_to_string(Path::new(PAGE).join(file)).with_context(|| format!("{PAGE}/{file}"));
    licensed(&read("package-lock.json")?, &read("dist/licences.txt")?)?;
    setup::node()?;
    npm(&["ci", "--no-audit", "--no-fund", "--ignore-scripts"])?;
    npm(&["run", "--silent", "check"])?;
    println!("{PAGE}/dist is what the sources give");
    if what.check {
        return Ok(());
    }
    let chromium = setup::chromium()?;
    let example = ["build", "--release", "--workspace", "--locked", "--example", "page"];
    crate::cargo(&[&example[..], &crate::TESTED].concat(), &[])?;
    let pictures = std::path::absolute(if what.pictures { Path::new(IMAGES) } else { Path::new("target") })?;
    let program = crate::bin("examples/page")?;
    let status = Command::new("node")
        .arg("test/browser.mjs")
        .args([&program, &pictures])
        .env("CHROMIUM", chromium)
        .current_dir(PAGE)
        .status()
        .context("cannot start node")?;
    ensure!(status.success(), "the page does not work in Chromium: see above");
    for name in ["dashboard-light.png", "dashboard-dark.png"] {
        let path: PathBuf = pictures.join(name);
        let size = path.metadata().with_context(|| path.display().to_string())?.len();
        ensure!(size <= MAX_IMAGE, "{}: {size} bytes, more than {MAX_IMAGE}", path.display());
    }
    Ok(())
}

/// Has each package that the page is bundled from the text of its licence? (What those have built into their own files is known to
/// cli/page/licences.mjs.)
fn licensed(lock: &str, licences: &str) -> Result<()> {
    let lock: Value = serde_json::from_str(lock).with_context(|| format!("{PAGE}/package-lock.json"))?;
    let packages = lock["packages"].as_object().with_context(|| format!("{PAGE}/package-lock.json has no packages"))?;
    // The page itself is the one without a path.
    for (path, package) in packages.iter().filter(|(path, package)| !path.is_empty() && package["dev"] != true) {
        let name = path.rsplit("node_modules/").next().unwrap_or(path);
        let heading = format!("{HEADING}{name} {} ", package["version"].as_str().unwrap_or_default());
        let text = licences.split_once(&heading).map_or("", |(_, rest)| rest.split(HEADING).next().unwrap_or_default());
        ensure!(
            text.len() >= LICENCE,
            "{PAGE}/dist/licences.txt does not have the licence of {}: run `npm run build` in {PAGE} and commit it",
            heading.trim_start_matches(HEADING).trim_end()
        );
    }
    Ok(())
}

fn npm(args: &[&str]) -> Result<()> {
    let status = Command::new("npm").args(args).current_dir(PAGE).status().context("cannot start npm")?;
    ensure!(status.success(), "npm {} failed in {PAGE}", args.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn each_package_of_the_page_has_its_licence_beside_it() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/page");
        let read = |file: &str| fs::read_to_string(page.join(file)).unwrap();
        let (lock, licences) = (read("package-lock.json"), read("dist/licences.txt"));
        licensed(&lock, &licences).unwrap();
        // Of another version, another package, or only named.
        let only_named = (" (MIT)\n", " (MIT)\n-------- x\n");
        for (from, to) in [("cytoscape 3.", "cytoscape 2."), ("cytoscape-dagre 4", "dagre 4"), only_named] {
            let error = licensed(&lock, &licences.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains("does not have the licence of cytoscape"), "{from:?}: {error}");
        }
    }
}
