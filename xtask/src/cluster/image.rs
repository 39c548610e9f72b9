//! OCI images of one layer, written without a container engine (OCI image layout in a tar, as `ctr images import` reads).

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
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

    /// Writes the image. The same files give the same bytes.
    pub fn write(&self, out: &Path) -> Result<()> {
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
        Ok(tar.into_inner()?.into_inner()?.sync_data()?)
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut made = BTreeSet::new();
        for dir in ["tmp", "etc", "proc", "sys", "dev", "run", "var"] {
            directory(&mut tar, &mut made, dir)?;
        }
        let parent = |p: &str| p.trim_start_matches('/').rsplit_once('/').map(|(d, _)| d.to_string());
        for (from, to) in &self.files {
            if let Some(d) = parent(to) {
                directory(&mut tar, &mut made, &d)?;
            }
            let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
            let run = fs::metadata(from)?.permissions().mode() & 0o111 != 0;
            append(&mut tar, to.trim_start_matches('/'), &bytes, if run { 0o755 } else { 0o644 })?;
        }
        for (at, target) in &self.links {
            if let Some(d) = parent(at) {
                directory(&mut tar, &mut made, &d)?;
            }
            let mut h = tar::Header::new_gnu();
            h.set_entry_type(tar::EntryType::Symlink);
            h.set_size(0);
            h.set_mode(0o777);
            tar.append_link(&mut h, at.trim_start_matches('/'), target)?;
        }
        Ok(tar.into_inner()?)
    }
}

fn directory(tar: &mut tar::Builder<Vec<u8>>, made: &mut BTreeSet<String>, dir: &str) -> Result<()> {
    if let Some((up, _)) = dir.rsplit_once('/') {
        directory(tar, made, up)?;
    }
    if made.insert(dir.into()) {
        let mut h = tar::Header::new_gnu();
        h.set_entry_type(tar::EntryType::Directory);
        h.set_size(0);
        h.set_mode(if dir == "tmp" { 0o1777 } else { 0o755 });
        tar.append_data(&mut h, format!("{dir}/"), std::io::empty())?;
    }
    Ok(())
}

fn append<W: std::io::Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut h = tar::Header::new_gnu();
    h.set_size(bytes.len() as u64);
    h.set_mode(mode);
    Ok(tar.append_data(&mut h, name, bytes)?)
}
