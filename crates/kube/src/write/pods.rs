//! What an agent says of its pods, and asks of its own place.

use crate::Kube;
use anyhow::Context;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod};
use kube::{
    Api,
    api::{Patch, PatchParams},
    core::Status,
};
use serde_json::json;

impl Kube {
    /// Sets or (none) removes an annotation of a pod, if it still is the pod with that uid.
    ///
    /// # Errors
    /// Those of the API server; that the pod is gone or another is none.
    pub async fn annotate_pod(
        &self,
        (namespace, name, uid): (&str, &str, &str),
        annotation: &str,
        value: Option<&str>,
    ) -> anyhow::Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let patch = json!({ "metadata": { "uid": uid, "annotations": { annotation: value } } });
        // On the status subresource: an agent needs no right to change what a pod is.
        match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(e)) if e.code == 404 || is_another(&e) => Ok(()),
            Err(e) => Err(e).with_context(|| format!("cannot annotate Pod {namespace}/{name}")),
        }
    }

    /// Is this DaemonSet there to stay? If we may not even ask any more, it is being uninstalled.
    ///
    /// # Errors
    /// That the API server gives no answer.
    pub async fn daemon_set_remains(&self, namespace: &str, name: &str) -> anyhow::Result<bool> {
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), namespace);
        match api.get_opt(name).await {
            Ok(d) => Ok(d.is_some_and(|d| d.metadata.deletion_timestamp.is_none())),
            Err(kube::Error::Api(e)) if e.code == 401 || e.code == 403 => Ok(false),
            Err(e) => Err(e).with_context(|| format!("DaemonSet {namespace}/{name}")),
        }
    }

    /// One pod, if it is there.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn pod(&self, namespace: &str, name: &str) -> anyhow::Result<Option<karst_manifest::kinds::Pod>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pod = api.get_opt(name).await.with_context(|| format!("Pod {namespace}/{name}"))?;
        pod.map(|pod| Ok(serde_json::from_value(serde_json::to_value(pod)?)?)).transpose()
    }

    /// One namespace, if it is there.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn namespace(&self, name: &str) -> anyhow::Result<Option<karst_manifest::kinds::Namespace>> {
        let api: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client.clone());
        let namespace = api.get_opt(name).await.with_context(|| format!("Namespace {name}"))?;
        namespace.map(|namespace| Ok(serde_json::from_value(serde_json::to_value(namespace)?)?)).transpose()
    }
}

/// Has another object taken the name? The API server compares `metadata.uid`: as a precondition (409), or as a field of a
/// patch that nobody may change (422, what 1.34 says).
fn is_another(status: &Status) -> bool {
    let mut causes = status.details.iter().flat_map(|d| &d.causes);
    status.code == 409 || (status.code == 422 && causes.any(|c| c.field == "metadata.uid"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    /// Answers of a Kubernetes 1.34.
    #[test]
    fn a_pod_that_has_taken_the_name_is_another_and_a_refusal_is_not() {
        let said = |code: u16, field: &str| {
            let cause = json!({ "reason": "FieldValueInvalid", "message": "Invalid value: \"x\": field is immutable", "field": field });
            let status = json!({ "status": "Failure", "message": "Pod \"p\" is invalid", "reason": "Invalid", "details": { "name": "p", "kind": "Pod", "causes": [cause] }, "code": code });
            is_another(&serde_json::from_value(status).unwrap())
        };
        assert!(said(422, "metadata.uid") && said(409, ""));
        assert!(!said(422, "status.podIPs") && !said(403, "metadata.uid"));
    }
}
