//! The files that are looked at.

use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
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
