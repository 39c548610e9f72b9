//! Files that nobody else may read.

use anyhow::Context;
use std::{fs, os::unix::fs::OpenOptionsExt, path::Path};

/// Writes a file that only its owner can read, unless it is there.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let f = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    f.and_then(|mut f| f.write_all(text.as_bytes())).with_context(|| format!("cannot write {}", path.display()))
}
