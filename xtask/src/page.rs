//! The page of `karst dashboard` (cli/page): what is committed is what its sources and lock file give, and it works in a browser.

use crate::setup;
use anyhow::{Context, Result, ensure};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Where its sources are.
const PAGE: &str = "cli/page";
/// Where the book's pictures are.
const IMAGES: &str = "docs/images";
/// Largest picture, in bytes.
const MAX_IMAGE: u64 = 200_000;

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

fn npm(args: &[&str]) -> Result<()> {
    let status = Command::new("npm").args(args).current_dir(PAGE).status().context("cannot start npm")?;
    ensure!(status.success(), "npm {} failed in {PAGE}", args.join(" "));
    Ok(())
}
