//! Every relative link of every page leads to a file, and its fragment to a heading; every page of the book is in its
//! table of contents; and none of the book's pages links out of the book, where a reader of the built book would find nothing.

use super::{files::resolve, page::Page};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

const BOOK: &str = "docs";
const CONTENTS: &str = "docs/SUMMARY.md";

/// Faults, each with its page and line.
pub(super) fn check(pages: &BTreeMap<PathBuf, Page>) -> Vec<String> {
    let mut faults = vec![];
    for (path, page) in pages {
        for link in &page.links {
            if let Some(fault) = dead(pages, path, &link.target) {
                faults.push(format!("{}:{}: ({}): {fault}", path.display(), link.line, link.target));
            }
        }
    }
    faults.extend(contents(pages));
    faults
}

/// What is wrong with a link.
fn dead(pages: &BTreeMap<PathBuf, Page>, from: &Path, target: &str) -> Option<String> {
    if ["http://", "https://", "mailto:"].iter().any(|scheme| target.starts_with(scheme)) {
        return None;
    }
    let (file, fragment) = target.split_once('#').map_or((target, None), |(file, fragment)| (file, Some(fragment)));
    let path = if file.is_empty() { from.to_path_buf() } else { resolve(from, file) };
    if !file.is_empty() && !path.exists() {
        return Some(format!("{} does not exist", path.display()));
    }
    if from.starts_with(BOOK) && !path.starts_with(BOOK) {
        return Some("it leads out of the book: name the file as code".into());
    }
    let (page, fragment) = (pages.get(&path)?, fragment?);
    (!page.anchors.contains(fragment)).then(|| format!("{} has no heading #{fragment}", path.display()))
}

/// Pages of the book that its table of contents has not exactly once.
fn contents(pages: &BTreeMap<PathBuf, Page>) -> Vec<String> {
    let listed = |path: &Path| {
        let links = pages.get(Path::new(CONTENTS)).map(|page| page.links.as_slice()).unwrap_or_default();
        links.iter().filter(|link| resolve(Path::new(CONTENTS), &link.target) == path).count()
    };
    let of_book = pages.keys().filter(|path| path.starts_with(BOOK) && *path != Path::new(CONTENTS));
    let times = of_book.map(|path| (path, listed(path))).filter(|(_, times)| *times != 1);
    times.map(|(path, times)| format!("{CONTENTS}: {} is listed {times} times", path.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The faults of these pages; files exist as they do in xtask's folder, where this test runs.
    fn faults(all: &[(&str, &str)]) -> Vec<String> {
        check(&all.iter().map(|(path, text)| (PathBuf::from(path), Page::read(text))).collect())
    }

    #[test]
    fn a_dead_link_is_named_with_its_line() {
        let found = faults(&[("Cargo.toml.md", "[a](Cargo.toml)\n[b](gone.md)\n[c](#here)\n[d](https://x)\n# Here")]);
        assert_eq!(found, ["Cargo.toml.md:2: (gone.md): gone.md does not exist"]);
        let found = faults(&[("a.md", "[c](#there)\n# Here")]);
        assert_eq!(found, ["a.md:1: (#there): a.md has no heading #there"]);
    }

    #[test]
    fn a_page_is_in_the_contents_once() {
        let of = |contents: &str| faults(&[(CONTENTS, contents), ("docs/a.md", "# A")]);
        let listed = of("- A");
        assert_eq!(listed, ["docs/SUMMARY.md: docs/a.md is listed 0 times"]);
        assert!(of("- [A](a.md)\n- [A](a.md)").contains(&"docs/SUMMARY.md: docs/a.md is listed 2 times".to_string()));
    }

    #[test]
    fn paths_are_relative_to_the_page() {
        assert_eq!(resolve(Path::new("docs/tasks/a.md"), "../routes.md"), Path::new("docs/routes.md"));
        assert_eq!(resolve(Path::new("README.md"), "./docs"), Path::new("docs"));
    }
}
