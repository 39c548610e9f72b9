//! What an installation was asked for, kept in the cluster, so that an upgrade starts from it and loses nothing.

use super::{ClusterError, Target};
use crate::{
    manifest::{Manifest, OURS, OWNER_NAMESPACE, owner},
    spec::Wanted,
};
use serde::Deserialize;
use serde_json::{Value, json};

const NAME: &str = "karst-installation";

/// Is this the record of an installation?
pub(super) fn is_record(object: &Value) -> bool {
    object["kind"] == "ConfigMap"
        && object["metadata"]["name"]
            .as_str()
            .is_some_and(|name| name == NAME || name.starts_with("karst-installation-"))
}

fn reference(namespace: &str, revision: &str) -> Value {
    let name = if revision.is_empty() { NAME.to_string() } else { format!("{NAME}-{revision}") };
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}})
}

/// What is kept of [`Wanted`].
#[derive(Debug, PartialEq, Deserialize)]
struct Kept {
    files: Vec<(String, String)>,
    sets: Vec<String>,
}

fn written(wanted: &Wanted) -> String {
    json!({"files": wanted.files, "sets": wanted.sets}).to_string()
}

fn read(text: &str) -> Option<Kept> {
    serde_json::from_str(text).ok()
}

impl Target {
    /// What an installation was asked for; none if there is none.
    ///
    /// # Errors
    /// If the API server cannot be asked.
    pub async fn recorded(&self, namespace: &str, revision: &str) -> Result<Option<Wanted>, ClusterError> {
        let found = self.get(&reference(namespace, revision)).await?;
        let read = found.and_then(|found| read(found["data"]["wanted.json"].as_str()?));
        let revision = (!revision.is_empty()).then(|| revision.to_string());
        Ok(read.map(|kept| Wanted { files: kept.files, sets: kept.sets, revision, namespace: namespace.into() }))
    }

    /// Keeps what a manifest was made from.
    ///
    /// # Errors
    /// If the API server refuses it.
    pub async fn record(&self, wanted: &Wanted, manifest: &Manifest) -> Result<(), ClusterError> {
        let mut object = reference(&manifest.namespace, &manifest.revision);
        object["metadata"]["labels"] = json!({OURS: owner(&manifest.revision), OWNER_NAMESPACE: manifest.namespace});
        object["data"] = json!({"wanted.json": written(wanted)});
        self.apply(&object, true).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again() {
        let wanted = Wanted {
            files: vec![("a.yaml".into(), "spec: {}\n".into())],
            sets: vec!["profile=demo".into()],
            ..Wanted::default()
        };
        assert_eq!(read(&written(&wanted)), Some(Kept { files: wanted.files.clone(), sets: wanted.sets.clone() }));
        assert_eq!(read("{}"), None);
        assert!(is_record(&reference("istio-system", "canary")) && is_record(&reference("istio-system", "")));
    }
}
