//! An OCI image layout, written without a container engine: blobs by their digest, and an index that gives them names. As a
//! tar, which `ctr images import` and skopeo (`oci-archive:FILE:NAME`) read.

use crate::archive::Tree;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fs, path::Path};

/// Media type of an image's manifest, and of an artifact's.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of a list of manifests.
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What the layout holds.
#[derive(Default)]
pub(crate) struct Layout {
    /// By digest, without `sha256:`.
    blobs: BTreeMap<String, Vec<u8>>,
    /// Descriptors with names.
    named: Vec<Value>,
}

impl Layout {
    /// Adds bytes; gives their descriptor.
    pub(crate) fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = hex(&bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() });
        self.blobs.insert(digest, bytes);
        descriptor
    }

    /// Adds a document; gives its descriptor.
    pub(crate) fn document(&mut self, media_type: &str, document: &Value) -> Result<Value> {
        Ok(self.blob(media_type, serde_json::to_vec(document)?))
    }

    /// Adds an index of manifests, one for each platform; gives its descriptor.
    pub(crate) fn platforms(&mut self, manifests: &[Value]) -> Result<Value> {
        self.document(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }))
    }

    /// Lists what a descriptor is of under a name of the layout, and under the whole reference for who imports it.
    pub(crate) fn name(&mut self, mut descriptor: Value, name: &str, reference: &str) {
        descriptor["annotations"] =
            json!({ "io.containerd.image.name": reference, "org.opencontainers.image.ref.name": name });
        self.named.push(descriptor);
    }

    /// The layout as a tar: what it is, its index, its blobs.
    pub(crate) fn tar(&self) -> Result<Vec<u8>> {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": self.named });
        let mut tree = Tree::new(0);
        tree.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(), false);
        tree.file("index.json", serde_json::to_vec(&index)?, false);
        for (digest, bytes) in &self.blobs {
            tree.file(&format!("blobs/sha256/{digest}"), bytes.clone(), false);
        }
        tree.tar()
    }

    /// Writes that tar.
    pub(crate) fn write(&self, out: &Path) -> Result<()> {
        fs::write(out, self.tar()?).with_context(|| format!("cannot write {}", out.display()))
    }
}

/// The digest in a descriptor, as `sha256:…`.
pub(crate) fn digest(descriptor: &Value) -> Result<String> {
    Ok(descriptor["digest"].as_str().context("a descriptor without a digest")?.to_string())
}

/// SHA-256 in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use std::io::Read;

    /// Whoever follows the digests from the index finds each blob, with the size and bytes that its descriptor promises.
    #[test]
    fn every_descriptor_leads_to_its_blob() {
        let mut layout = Layout::default();
        let config = layout.document("application/x.config", &json!({ "os": "linux" })).unwrap();
        let layer = layout.blob("application/x.layer", b"layer".to_vec());
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config.clone(), "layers": [layer.clone()] });
        let manifest = layout.document(MANIFEST, &manifest).unwrap();
        let index = layout.platforms(std::slice::from_ref(&manifest)).unwrap();
        layout.name(index.clone(), "app:1", "hub/app:1");
        let bytes = layout.tar().unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = vec![];
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
        for descriptor in [config, layer, manifest, index] {
            let hash = digest(&descriptor).unwrap().replace("sha256:", "");
            let blob = &files[&format!("blobs/sha256/{hash}")];
            assert_eq!((hex(blob), descriptor["size"].as_u64()), (hash, Some(blob.len() as u64)));
        }
        let top: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(top["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "app:1");
        assert_eq!(top["manifests"][0]["annotations"]["io.containerd.image.name"], "hub/app:1");
        assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
    }
}
