//! OCI images of one layer, written without a container engine (OCI image layout in a tar, as `ctr images import` reads).

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// What goes into an image.
pub struct Image {
    reference: String,
    entry: Vec<String>,
    files: Vec<(PathBuf, String)>,
    links: Vec<(String, String)>,
}

impl Image {
    /// An empty one with a name and an entry point.
    pub fn new(reference: &str, entry: &[&str]) -> Self {
        Self {
            reference: reference.into(),
            entry: entry.iter().map(|s| s.to_string()).collect(),
            files: vec![],
            links: vec![],
        }
    }
    /// Adds a file of this machine, with its permission to be run.
    pub fn file(mut self, from: impl Into<PathBuf>, to: &str) -> Self {
        self.files.push((from.into(), to.into()));
        self
    }
    /// Adds a symbolic link.
    pub fn link(mut self, at: &str, target: &str) -> Self {
        self.links.push((at.into(), target.into()));
        self
    }

    /// Writes the image; gives its digest, as `sha256:…`. The same files give the same bytes: entries are sorted, and have no
    /// times, no owners, and no more of their permissions than whether they may be run.
    pub fn write(&self, out: &Path) -> Result<String> {
        let layer = self.layer()?;
        let digest = |b: &[u8]| -> String { Sha256::digest(b).iter().map(|b| format!("{b:02x}")).collect() };
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = serde_json::to_vec(&json!({
            "architecture": arch, "os": "linux",
            "config": { "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Entrypoint": self.entry, "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))] },
        }))?;
        let part = |kind: &str, b: &[u8]| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{}", digest(b)), "size": b.len() });
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": part("config.v1+json", &config), "layers": [part("layer.v1.tar", &layer)],
        }))?;
        let mut entry = part("manifest.v1+json", &manifest);
        entry["platform"] = json!({ "architecture": arch, "os": "linux" });
        let tag = self.reference.rsplit_once(':').map_or("latest", |(_, t)| t);
        entry["annotations"] =
            json!({ "io.containerd.image.name": self.reference, "org.opencontainers.image.ref.name": tag });
        let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [entry] }))?;
        let file = fs::File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
        let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        append(&mut tar, "index.json", &index, 0o644)?;
        for b in [&layer, &config, &manifest] {
            append(&mut tar, &format!("blobs/sha256/{}", digest(b)), b, 0o644)?;
        }
        tar.into_inner()?.into_inner()?.sync_data()?;
        Ok(format!("sha256:{}", digest(&manifest)))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut entries = BTreeMap::new();
        for dir in ["tmp", "etc", "proc", "sys", "dev", "run", "var"] {
            entries.insert(dir.to_string(), Entry::Directory);
        }
        let mut put = |at: &str, entry: Entry| {
            let at = at.trim_start_matches('/');
            for (end, _) in at.match_indices('/') {
                if let Some(dir) = at.get(..end) {
                    entries.entry(dir.to_string()).or_insert(Entry::Directory);
                }
            }
            entries.insert(at.to_string(), entry);
        };
        for (from, to) in &self.files {
            let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
            let run = fs::metadata(from)?.permissions().mode() & 0o111 != 0;
            put(to, Entry::File { bytes, run });
        }
        for (at, target) in &self.links {
            put(at, Entry::Link(target.clone()));
        }
        let mut tar = tar::Builder::new(Vec::new());
        // Sorted, so that a directory comes before what is in it.
        for (at, entry) in &entries {
            match entry {
                Entry::Directory => {
                    let mut h = header(if at == "tmp" { 0o1777 } else { 0o755 }, 0);
                    h.set_entry_type(tar::EntryType::Directory);
                    tar.append_data(&mut h, format!("{at}/"), std::io::empty())?;
                }
                Entry::File { bytes, run } => append(&mut tar, at, bytes, if *run { 0o755 } else { 0o644 })?,
                Entry::Link(target) => {
                    let mut h = header(0o777, 0);
                    h.set_entry_type(tar::EntryType::Symlink);
                    tar.append_link(&mut h, at, target)?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }
}

enum Entry {
    Directory,
    File { bytes: Vec<u8>, run: bool },
    Link(String),
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut h = tar::Header::new_gnu();
    h.set_mode(mode);
    h.set_size(size);
    h.set_mtime(0);
    h.set_uid(0);
    h.set_gid(0);
    h
}

fn append<W: std::io::Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    Ok(tar.append_data(&mut header(mode, bytes.len() as u64), name, bytes)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use std::{
        fs::{File, Permissions},
        time::{Duration, SystemTime},
    };

    /// A directory of this test's own, without one of an earlier run.
    fn directory(name: &str) -> PathBuf {
        let d = std::env::temp_dir().join(format!("karst-image-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&d);
        fs::create_dir_all(&d).unwrap();
        d
    }

    fn file(at: &Path, bytes: &[u8], mode: u32, age: u64) {
        fs::write(at, bytes).unwrap();
        fs::set_permissions(at, Permissions::from_mode(mode)).unwrap();
        File::options()
            .write(true)
            .open(at)
            .unwrap()
            .set_modified(SystemTime::now() - Duration::from_secs(age))
            .unwrap();
    }

    #[test]
    fn the_same_files_give_the_same_bytes_and_others_another_digest() {
        let (one, two) = (directory("one"), directory("two"));
        file(&one.join("program"), b"program", 0o755, 10);
        file(&two.join("program"), b"program", 0o700, 90_000);
        file(&one.join("passwd"), b"root", 0o644, 0);
        file(&two.join("passwd"), b"root", 0o600, 5);
        let image = || Image::new("hub/x:1", &["/usr/local/bin/program"]);
        // In another order, with other times, from other places, with another umask.
        let first = image()
            .file(one.join("program"), "/usr/local/bin/program")
            .file(one.join("passwd"), "/etc/passwd")
            .link("/bin/a", "/usr/local/bin/program")
            .link("/bin/b", "/usr/local/bin/program");
        let second = image()
            .link("/bin/b", "/usr/local/bin/program")
            .file(two.join("passwd"), "/etc/passwd")
            .link("/bin/a", "/usr/local/bin/program")
            .file(two.join("program"), "/usr/local/bin/program");
        let written = |i: &Image, d: &Path| (i.write(&d.join("x.tar")).unwrap(), fs::read(d.join("x.tar")).unwrap());
        let (a, b) = (written(&first, &one), written(&second, &two));
        assert_eq!(a.0, b.0);
        assert!(a.1 == b.1, "the archives differ");
        // The digest is that of the manifest which the archive's index names.
        let mut index = String::new();
        for entry in tar::Archive::new(&a.1[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.path().unwrap().ends_with("index.json") {
                std::io::Read::read_to_string(&mut entry, &mut index).unwrap();
            }
        }
        let index: serde_json::Value = serde_json::from_str(&index).unwrap();
        assert_eq!(index["manifests"][0]["digest"], a.0.as_str());
        file(&two.join("program"), b"Program", 0o755, 10);
        assert_ne!(written(&second, &two).0, a.0, "other bytes");
        file(&two.join("program"), b"program", 0o644, 10);
        assert_ne!(written(&second, &two).0, a.0, "it cannot be run");
        let _ = (fs::remove_dir_all(one), fs::remove_dir_all(two));
    }

    #[test]
    fn entries_are_sorted_and_have_no_time_and_no_owner() {
        let d = directory("entries");
        file(&d.join("program"), b"program", 0o750, 10);
        let image = Image::new("hub/x:1", &["/usr/bin/z"])
            .file(d.join("program"), "/usr/bin/z")
            .link("/bin/sh", "/usr/bin/z")
            .file(d.join("program"), "/usr/bin/a");
        let layer = image.layer().unwrap();
        let mut names = vec![];
        for entry in tar::Archive::new(&layer[..]).entries().unwrap() {
            let entry = entry.unwrap();
            let h = entry.header();
            assert_eq!((h.mtime().unwrap(), h.uid().unwrap(), h.gid().unwrap()), (0, 0, 0));
            names.push(format!("{} {:o}", entry.path().unwrap().display(), h.mode().unwrap()));
        }
        let wanted = [
            "bin/ 755",
            "bin/sh 777",
            "dev/ 755",
            "etc/ 755",
            "proc/ 755",
            "run/ 755",
            "sys/ 755",
            "tmp/ 1777",
            "usr/ 755",
            "usr/bin/ 755",
            "usr/bin/a 755",
            "usr/bin/z 755",
            "var/ 755",
        ];
        assert_eq!(names, wanted);
        let _ = fs::remove_dir_all(d);
    }
}
