//! The files of a release page, and how they come into a folder: all of them or none.

use crate::oci::hex;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path};

/// Files by their names; there are no folders.
#[derive(Default, PartialEq)]
pub(crate) struct Page(BTreeMap<String, Vec<u8>>);

impl Page {
    /// Adds a file.
    pub(crate) fn put(&mut self, name: &str, bytes: Vec<u8>) {
        self.0.insert(name.into(), bytes);
    }

    /// Adds a document, one key a line.
    pub(crate) fn put_json(&mut self, name: &str, document: &Value) -> Result<()> {
        self.put(name, (serde_json::to_string_pretty(document)? + "\n").into_bytes());
        Ok(())
    }

    /// How many files.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Bytes of all.
    pub(crate) fn bytes(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Name and SHA-256 of each.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = (&str, String)> {
        self.0.iter().map(|(name, bytes)| (name.as_str(), hex(bytes)))
    }

    /// What `sha256sum -c` reads.
    pub(crate) fn sums(&self) -> String {
        self.hashes().map(|(name, hash)| format!("{hash}  {name}\n")).collect()
    }

    /// Refuses to replace a folder that is no release.
    pub(crate) fn may_replace(folder: &Path) -> Result<()> {
        let empty = fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none());
        ensure!(
            empty || folder.join("SHA256SUMS").is_file(),
            "--out {}: there is something that is no release; give another folder, or remove it",
            folder.display()
        );
        Ok(())
    }

    /// Writes the folder, in the place of an earlier one.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        Self::may_replace(folder)?;
        let parent = folder.parent().context("--out / is no folder for a release")?;
        let name = folder.file_name().context("--out needs a name")?.to_string_lossy();
        let fresh = parent.join(format!(".{name}.{}", std::process::id()));
        fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
        for (name, bytes) in &self.0 {
            let path = fresh.join(name);
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
            let mode = if name.ends_with(".sh") { 0o755 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::rename(&fresh, folder).with_context(|| format!("cannot write {}", folder.display()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use std::process::Command;

    #[test]
    fn sha256sum_agrees_and_only_a_release_is_replaced() {
        let root = std::env::temp_dir().join(format!("karst-page-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let out = root.join("1.0.0");
        let mut page = Page::default();
        page.put("b.txt", b"b".to_vec());
        page.put("a.sh", b"a".to_vec());
        page.put("SHA256SUMS", page.sums().into_bytes());
        page.write(&out).unwrap();
        let check = || Command::new("sha256sum").args(["-c", "--strict", "SHA256SUMS"]).current_dir(&out).output();
        assert!(check().unwrap().status.success());
        assert!(fs::metadata(out.join("a.sh")).unwrap().permissions().mode() & 0o111 != 0);
        fs::write(out.join("b.txt"), "c").unwrap();
        assert!(!check().unwrap().status.success());
        page.write(&out).unwrap();
        assert!(check().unwrap().status.success(), "it was replaced");
        fs::remove_file(out.join("SHA256SUMS")).unwrap();
        let refused = page.write(&out).unwrap_err().to_string();
        assert!(refused.contains("no release"), "{refused}");
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1, "no half-written folder is left");
        fs::remove_dir_all(root).unwrap();
    }
}
