//! The book: its links, the names that its reference pages list, and its HTML.
//!
//! - [`commands`]: developers' commands exist. [`files`]: what there is to look at.
//! - [`page`]: what a Markdown page links to, and what can be linked to in it. [`links`]: every relative link leads somewhere.
//! - [`names`]: docs/metrics.md and docs/labels.md against the sources, both ways ([`sources`]).
//! - [`observe`]: alerts and dashboards ask for metrics that there are, and each alert has its section in docs/alerts.md.
//! - [`unfinished`]: no figure is still to come.
//! - [`html`]: the links of the built book.
//!
//! What the pages' commands and manifests do is tested by `cli/tests/book.rs`.

mod commands;
mod files;
mod html;
mod links;
mod names;
mod observe;
mod page;
mod sources;
mod unfinished;

pub(crate) use observe::ALERTS;

use crate::setup;
use anyhow::{Context, Result, ensure};
use page::Page;
use std::{collections::BTreeMap, fs, path::Path, process::Command};

/// Where the book is built (book.toml).
const BOOK: &str = "target/book";

/// Looks at all pages, builds the book, and looks at what was built. `commands`: the developers', which pages name.
///
/// # Errors
/// With all dead links, missing names and superfluous ones.
pub(crate) fn run(commands: &clap::Command) -> Result<()> {
    let mut paths = vec![];
    files::find(Path::new("."), "md", &mut paths)?;
    let (mut pages, mut faults) = (BTreeMap::new(), vec![]);
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        faults.extend(commands::unknown(commands, &path, &text));
        faults.extend(unfinished::find(&path, &text));
        pages.insert(path, Page::read(&text));
    }
    faults.extend(links::check(&pages));
    faults.extend(names::check()?);
    faults.extend(observe::check(&names::metrics_listed()?)?);
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    let links: usize = pages.values().map(|page| page.links.len()).sum();
    println!("{} pages, {links} links", pages.len());
    build()?;
    let faults = html::check(Path::new(BOOK))?;
    ensure!(faults.is_empty(), "dead links in {BOOK}:\n{}", faults.join("\n"));
    println!("the book is in {BOOK}");
    Ok(())
}

fn build() -> Result<()> {
    let mdbook = setup::book()?;
    let _ = fs::remove_dir_all(BOOK);
    let out = Command::new(&mdbook).arg("build").output().with_context(|| mdbook.display().to_string())?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "mdbook cannot build the book:\n{said}");
    let told = said.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect::<Vec<_>>();
    ensure!(told.is_empty(), "mdbook warns:\n{}", told.join("\n"));
    Ok(())
}
