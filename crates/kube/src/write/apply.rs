//! Objects of any kind, and their statuses.

use crate::Kube;
use anyhow::Context;
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams},
    core::Status,
};
use serde_json::json;

/// Kinds that have had no v1 until lately, and the version that they had.
const OLDER: [(&str, &str); 2] = [("TCPRoute", "v1alpha2"), ("UDPRoute", "v1alpha2")];

/// An object of any kind, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ref {
    /// API group; empty for the core.
    pub group: &'static str,
    /// API version, as `v1`.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Namespace; empty for objects of the cluster.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for Ref {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        write!(f, "{} {}{slash}{}", self.kind, self.namespace, self.name)
    }
}

impl Kube {
    fn any(&self, object: &Ref) -> (Api<DynamicObject>, serde_json::Value) {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(object.group, object.version, object.kind));
        let api = if object.namespace.is_empty() {
            Api::all_with(self.client.clone(), &kind)
        } else {
            Api::namespaced_with(self.client.clone(), &object.namespace, &kind)
        };
        (api, json!({ "apiVersion": kind.api_version, "kind": object.kind, "metadata": { "name": object.name } }))
    }

    /// Applies fields of an object under a field manager's name; what that manager owned and no longer says goes. An object
    /// that is not there is made.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn apply(&self, object: &Ref, manager: &str, fields: serde_json::Value) -> anyhow::Result<()> {
        let (api, mut body) = self.any(object);
        merge(&mut body, fields);
        match api.patch(&object.name, &PatchParams::apply(manager).force(), &Patch::Apply(&body)).await {
            Ok(_) => Ok(()),
            // One error for all objects of the kind.
            Err(kube::Error::Api(e)) if is_unknown_kind(&e) => {
                anyhow::bail!("the API server does not know {} of {:?}: install its CRD", object.kind, object.group)
            }
            Err(e) => Err(e).with_context(|| format!("cannot write {object}")),
        }
    }

    /// Removes an object, if it is there and has this label.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn remove(&self, object: &Ref, label: &str) -> anyhow::Result<()> {
        if self.is_foreign(object, label).await? {
            return Ok(());
        }
        match self.any(object).0.delete(&object.name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(e)) if e.code == 404 => Ok(()),
            Err(e) => Err(e).with_context(|| format!("cannot remove {object}")),
        }
    }

    /// Is there such an object without this label: somebody else's?
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn is_foreign(&self, object: &Ref, label: &str) -> anyhow::Result<bool> {
        let found = self.any(object).0.get_metadata_opt(&object.name).await.with_context(|| format!("{object}"))?;
        Ok(found.is_some_and(|o| !o.metadata.labels.unwrap_or_default().contains_key(label)))
    }

    /// The same for the status. An object that is gone is no error.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn apply_status(&self, object: &Ref, manager: &str, status: serde_json::Value) -> anyhow::Result<()> {
        // An older release of the CRDs may not have the version.
        let older = OLDER.iter().find(|(k, _)| *k == object.kind).map(|(_, version)| Ref { version, ..object.clone() });
        for object in std::iter::once(object).chain(&older) {
            let (api, mut body) = self.any(object);
            body["status"] = status.clone();
            match api.patch_status(&object.name, &PatchParams::apply(manager).force(), &Patch::Apply(&body)).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(e)) if e.code == 404 => {}
                Err(e) => return Err(e).with_context(|| format!("cannot write the status of {object}")),
            }
        }
        Ok(())
    }
}

/// An object that is applied is made where it lacks: what is not found is its kind, or else its namespace.
fn is_unknown_kind(status: &Status) -> bool {
    status.code == 404 && !status.message.contains("namespaces ")
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    match (into, from) {
        (serde_json::Value::Object(a), serde_json::Value::Object(b)) => {
            for (k, v) in b {
                merge(a.entry(k).or_insert(serde_json::Value::Null), v);
            }
        }
        (a, b) => *a = b,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn a_kind_that_is_gone_is_told_from_a_namespace_that_is() {
        let said = |code: u16, message: &str| {
            is_unknown_kind(&serde_json::from_value(json!({ "message": message, "code": code })).unwrap())
        };
        assert!(said(404, "404 page not found"));
        assert!(!said(404, "namespaces \"app\" not found") && !said(403, "404 page not found"));
    }
}
