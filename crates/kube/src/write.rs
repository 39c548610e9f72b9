//! The few writes: everything by server-side apply, so that several replicas may do the same.

use crate::Kube;
use anyhow::Context;
use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Pod, Secret},
    },
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::collections::BTreeMap;

/// Name that the API server notes for our writes.
const MANAGER: &str = "karst";

impl Kube {
    /// The data of a secret; none if there is no such secret.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn secret(&self, namespace: &str, name: &str) -> anyhow::Result<Option<BTreeMap<String, Vec<u8>>>> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let s = api.get_opt(name).await.with_context(|| format!("Secret {namespace}/{name}"))?;
        Ok(s.map(|s| s.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect()))
    }

    /// Creates a secret, unless it is there already. True: created.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn create_secret(
        &self,
        namespace: &str,
        name: &str,
        kind: &str,
        data: BTreeMap<String, Vec<u8>>,
    ) -> anyhow::Result<bool> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let mut s = Secret { type_: Some(kind.into()), ..Default::default() };
        s.metadata.name = Some(name.into());
        s.data = Some(data.into_iter().map(|(k, v)| (k, ByteString(v))).collect());
        match api.create(&PostParams::default(), &s).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(e)) if e.code == 409 => Ok(false),
            Err(e) => Err(e).with_context(|| format!("cannot create Secret {namespace}/{name}")),
        }
    }

    /// Makes a ConfigMap have these data and labels. A namespace that is going or gone is no error.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn config_map(
        &self,
        namespace: &str,
        name: &str,
        labels: &[(&str, &str)],
        data: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let data: BTreeMap<_, _> = data.iter().copied().collect();
        let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "labels": labels }, "data": data });
        match api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await {
            Ok(_) => Ok(()),
            // 403: the namespace is terminating. 404: it is gone.
            Err(kube::Error::Api(e)) if e.code == 404 || (e.code == 403 && e.message.contains("being terminated")) => {
                Ok(())
            }
            Err(e) => Err(e).with_context(|| format!("cannot write ConfigMap {namespace}/{name}")),
        }
    }

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
            // 409: another pod has taken the name.
            Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => Ok(()),
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
        let p = api.get_opt(name).await.with_context(|| format!("Pod {namespace}/{name}"))?;
        p.map(|p| Ok(serde_json::from_value(serde_json::to_value(p)?)?)).transpose()
    }

    /// One namespace, if it is there.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn namespace(&self, name: &str) -> anyhow::Result<Option<karst_manifest::kinds::Namespace>> {
        let api: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client.clone());
        let n = api.get_opt(name).await.with_context(|| format!("Namespace {name}"))?;
        n.map(|n| Ok(serde_json::from_value(serde_json::to_value(n)?)?)).transpose()
    }
}
