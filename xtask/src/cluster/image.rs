//! OCI images of one layer, written without a container engine.

use crate::{
    archive::{Tree, gzip},
    oci::{self, Layout, MANIFEST},
};
use anyhow::Result;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// This machine's architecture, by the name that images give it.
pub const HOST: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// What goes into an image.
pub struct Image {
    reference: String,
    entry: Vec<String>,
    user: &'static str,
    files: Vec<(PathBuf, String)>,
    links: Vec<(String, String)>,
}

impl Image {
    /// An empty one with a name and an entry point.
    pub fn new(reference: &str, entry: &[&str]) -> Self {
        Self {
            reference: reference.into(),
            entry: entry.iter().map(|s| s.to_string()).collect(),
            user: "",
            files: vec![],
            links: vec![],
        }
    }
    /// Who runs it where a pod does not say so, as `USER:GROUP`, both numbers: a kubelet refuses an image without, or with a name, where a
    /// pod has `runAsNonRoot` alone, as Istio's own charts do.
    pub fn user(mut self, user: &'static str) -> Self {
        self.user = user;
        self
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

    /// Writes the image, for this machine's architecture; gives its digest, as `sha256:…`. The same files give the same bytes.
    /// Its layer is not compressed: it is imported on the same machine.
    pub fn write(&self, out: &Path) -> Result<String> {
        let mut layout = Layout::default();
        let layer = self.layer()?;
        let hash = oci::hex(&layer);
        let layer = layout.blob("application/vnd.oci.image.layer.v1.tar", layer);
        let descriptor = self.manifest(&mut layout, HOST, &hash, layer)?;
        let tag = self.reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let digest = oci::digest(&descriptor)?;
        layout.name(descriptor, tag, &self.reference);
        layout.write(out)?;
        Ok(digest)
    }

    /// Adds the image to a layout, its layer compressed; gives the descriptor of its manifest.
    pub fn add(&self, layout: &mut Layout, architecture: &str) -> Result<Value> {
        let layer = self.layer()?;
        let hash = oci::hex(&layer);
        let layer = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&layer)?);
        self.manifest(layout, architecture, &hash, layer)
    }

    /// `hash`: of the layer's tar, not compressed.
    fn manifest(&self, layout: &mut Layout, architecture: &str, hash: &str, layer: Value) -> Result<Value> {
        let mut run = json!({ "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Entrypoint": self.entry, "WorkingDir": "/" });
        if !self.user.is_empty() {
            run["User"] = self.user.into();
        }
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": run,
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{hash}")] },
        });
        let config = layout.document("application/vnd.oci.image.config.v1+json", &config)?;
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
        let mut descriptor = layout.document(MANIFEST, &manifest)?;
        descriptor["platform"] = json!({ "architecture": architecture, "os": "linux" });
        Ok(descriptor)
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tree = Tree::new(0);
        for name in ["etc", "proc", "sys", "dev", "run", "var"] {
            tree.directory(name, 0o755);
        }
        tree.directory("tmp", 0o1777);
        for (from, to) in &self.files {
            tree.copy(to, from)?;
        }
        for (at, target) in &self.links {
            tree.link(at, target);
        }
        tree.tar()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use std::{
        fs::{self, File, Permissions},
        os::unix::fs::PermissionsExt,
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

    /// With `runAsNonRoot` alone, as Istio's charts have it, a kubelet refuses an image that says nothing.
    #[test]
    fn an_image_says_who_runs_it() {
        let d = directory("user");
        file(&d.join("program"), b"program", 0o755, 10);
        let user = |image: Image| {
            let out = d.join("image.tar");
            image.file(d.join("program"), "/program").write(&out).unwrap();
            let mut documents = vec![];
            for entry in tar::Archive::new(File::open(&out).unwrap()).entries().unwrap() {
                documents.extend(serde_json::from_reader::<_, Value>(entry.unwrap()));
            }
            let config = documents.iter().find(|d| d["config"]["Entrypoint"].is_array()).unwrap();
            config["config"].get("User").cloned()
        };
        assert_eq!(user(Image::new("hub/x:1", &["/program"])), None);
        assert_eq!(user(Image::new("hub/x:1", &["/program"]).user("1337:1337")), Some("1337:1337".into()));
        let _ = fs::remove_dir_all(d);
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
