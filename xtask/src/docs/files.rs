//! The files that are looked at, and how they name each other.

use anyhow::{Context, Result};
use std::{
    fs,
    path::{Component, Path, PathBuf},
};

/// Folders that hold no pages of ours.
const NOT_OURS: &[&str] = &["target", ".git", "node_modules"];

/// All files below `directory` with this ending, relative to where the search began.
pub(super) fn find(directory: &Path, ending: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if !NOT_OURS.iter().any(|name| path.ends_with(name)) {
                find(&path, ending, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path.strip_prefix(".").unwrap_or(&path).to_path_buf());
        }
    }
    Ok(())
}

/// Where a relative link of a file leads.
pub(super) fn resolve(from: &Path, file: &str) -> PathBuf {
    let mut path = from.parent().map(Path::to_path_buf).unwrap_or_default();
    for part in Path::new(file).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            _ => (),
        }
    }
    path
}
