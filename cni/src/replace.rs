//! Files that others read while they are written: they see the one before or the next one.

use std::{fs, io, path::Path};

/// Replaces a file by what `write` makes at `temporary`, a path of the same file system. Where that fails, the file stays as it was, and
/// what is half made is removed: on a full disk it would take room.
///
/// # Errors
/// Those of `write`, and of the renaming.
pub fn replace(file: &Path, temporary: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let replaced = write(temporary).and_then(|()| fs::rename(temporary, file));
    if replaced.is_err() {
        let _ = fs::remove_file(temporary);
    }
    replaced
}
