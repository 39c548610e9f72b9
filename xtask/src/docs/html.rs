//! The links of the built book: what a reader clicks on.

use super::files::{self, resolve};
use anyhow::{Context, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Dead links below `book`: files that are not there, fragments without an element of that id.
pub(super) fn check(book: &Path) -> Result<Vec<String>> {
    let mut paths = vec![];
    files::find(book, "html", &mut paths)?;
    let mut pages = BTreeMap::new();
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        pages.insert(path, text);
    }
    let ids: BTreeMap<&Path, BTreeSet<&str>> =
        pages.iter().map(|(path, text)| (path.as_path(), values(text, " id=\"").collect())).collect();
    let mut faults = vec![];
    for (path, text) in &pages {
        for target in values(text, " href=\"").chain(values(text, " src=\"")) {
            if let Some(fault) = dead(&ids, path, target) {
                faults.push(format!("{}: {fault}", path.display()));
            }
        }
    }
    faults.sort();
    faults.dedup();
    Ok(faults)
}

fn values<'a>(text: &'a str, opening: &str) -> impl Iterator<Item = &'a str> {
    text.split(opening).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0)).collect::<Vec<_>>().into_iter()
}

fn dead(ids: &BTreeMap<&Path, BTreeSet<&str>>, from: &Path, target: &str) -> Option<String> {
    if target.contains(':') || target.is_empty() {
        return None;
    }
    let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { from.to_path_buf() } else { resolve(from, file) };
    if !path.exists() {
        return Some(format!("({target}) leads to {}, which is not there", path.display()));
    }
    let known = ids.get(path.as_path())?;
    (!fragment.is_empty() && !known.contains(fragment))
        .then(|| format!("({target}): {} has no element with this id", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_link_of_the_built_book_is_found() -> Result<()> {
        let book = std::env::temp_dir().join(format!("karst-book-{}", std::process::id()));
        fs::create_dir_all(book.join("tasks"))?;
        fs::write(book.join("index.html"), "<h1 id=\"top\"> <a href=\"tasks/a.html#b\"> <a href=\"https://x\">")?;
        fs::write(book.join("tasks/a.html"), "<h2 id=\"b\"> <a href=\"../index.html#no\"> <img src=\"gone.svg\">")?;
        let faults = check(&book);
        fs::remove_dir_all(&book)?;
        let faults = faults?;
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults.iter().any(|fault| fault.contains("(../index.html#no)")), "{faults:?}");
        assert!(faults.iter().any(|fault| fault.contains("(gone.svg) leads to")), "{faults:?}");
        Ok(())
    }
}
