//! Archives whose bytes follow from their content: entries are sorted, belong to nobody, bear one time, and keep no more of
//! their permissions than whether they may be run.

use anyhow::{Context, Result};
use std::{collections::BTreeMap, fs, io, io::Write, os::unix::fs::PermissionsExt, path::Path};

/// Files, directories and links by their path in the archive, without a slash at the front.
pub(crate) struct Tree {
    entries: BTreeMap<String, Entry>,
    /// Seconds since 1970, of every entry.
    time: u64,
}

enum Entry {
    Directory { mode: u32 },
    File { bytes: Vec<u8>, run: bool },
    Link { target: String },
}

impl Tree {
    /// An empty one; `time` in seconds since 1970.
    pub(crate) fn new(time: u64) -> Self {
        Self { entries: BTreeMap::new(), time }
    }

    /// Adds a directory with these permissions.
    pub(crate) fn directory(&mut self, at: &str, mode: u32) {
        self.put(at, Entry::Directory { mode });
    }

    /// Adds a file, and the directories above it.
    pub(crate) fn file(&mut self, at: &str, bytes: Vec<u8>, run: bool) {
        self.put(at, Entry::File { bytes, run });
    }

    /// Adds a file of this machine.
    pub(crate) fn copy(&mut self, at: &str, from: &Path) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let run = fs::metadata(from)?.permissions().mode() & 0o111 != 0;
        self.file(at, bytes, run);
        Ok(())
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, at: &str, target: &str) {
        self.put(at, Entry::Link { target: target.into() });
    }

    /// Adds all files below a folder of this machine, by what their links lead to.
    pub(crate) fn folder(&mut self, at: &str, from: &Path) -> Result<()> {
        for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let below = format!("{at}/{}", name.with_context(|| format!("{} is no name in UTF-8", path.display()))?);
            if path.is_dir() { self.folder(&below, &path)? } else { self.copy(&below, &path)? }
        }
        Ok(())
    }

    fn put(&mut self, at: &str, entry: Entry) {
        let at = at.trim_start_matches('/');
        for (end, _) in at.match_indices('/') {
            if let Some(above) = at.get(..end) {
                self.entries.entry(above.to_string()).or_insert(Entry::Directory { mode: 0o755 });
            }
        }
        self.entries.insert(at.to_string(), entry);
    }

    /// The archive. A directory comes before what is in it.
    pub(crate) fn tar(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (at, entry) in &self.entries {
            match entry {
                Entry::Directory { mode } => {
                    let mut header = header(*mode, 0, self.time);
                    header.set_entry_type(tar::EntryType::Directory);
                    tar.append_data(&mut header, format!("{at}/"), io::empty())?;
                }
                Entry::File { bytes, run } => {
                    let mode = if *run { 0o755 } else { 0o644 };
                    tar.append_data(&mut header(mode, bytes.len() as u64, self.time), at, &bytes[..])?;
                }
                Entry::Link { target } => {
                    let mut header = header(0o777, 0, self.time);
                    header.set_entry_type(tar::EntryType::Symlink);
                    tar.append_link(&mut header, at, target)?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }
}

fn header(mode: u32, size: u64, time: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Compressed, without a name and a time.
pub(crate) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn entries_are_sorted_with_their_directories_and_one_time() {
        let mut tree = Tree::new(77);
        tree.file("/b/c/run", b"run".to_vec(), true);
        tree.link("b/again", "c/run");
        tree.file("a", b"read".to_vec(), false);
        let bytes = tree.tar().unwrap();
        let mut seen = vec![];
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (77, 0, 0));
            seen.push(format!("{} {:o}", entry.path().unwrap().display(), header.mode().unwrap()));
        }
        assert_eq!(seen, ["a 644", "b/ 755", "b/again 777", "b/c/ 755", "b/c/run 755"]);
        assert_eq!(gzip(&bytes).unwrap(), gzip(&bytes).unwrap());
        // Bytes 4 to 8 of a gzip header are the time.
        assert_eq!(gzip(&bytes).unwrap().get(4..8), Some(&[0; 4][..]));
    }

    #[test]
    fn a_folder_is_taken_by_what_its_links_lead_to() {
        let root = std::env::temp_dir().join(format!("karst-archive-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("base/templates")).unwrap();
        fs::create_dir_all(root.join("whole/charts")).unwrap();
        fs::write(root.join("base/templates/a.yaml"), "a: 1").unwrap();
        std::os::unix::fs::symlink("../../base", root.join("whole/charts/base")).unwrap();
        let mut tree = Tree::new(0);
        tree.folder("whole", &root.join("whole")).unwrap();
        assert!(tree.entries.contains_key("whole/charts/base/templates/a.yaml"));
        fs::remove_dir_all(root).unwrap();
    }
}
