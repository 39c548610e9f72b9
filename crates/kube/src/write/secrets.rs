//! Secrets and ConfigMaps.

use crate::Kube;
use anyhow::Context;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
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
        let secret = api.get_opt(name).await.with_context(|| format!("Secret {namespace}/{name}"))?;
        Ok(secret.map(|secret| secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect()))
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
        let mut secret = Secret { type_: Some(kind.into()), ..Default::default() };
        secret.metadata.name = Some(name.into());
        secret.data = Some(data.into_iter().map(|(k, v)| (k, ByteString(v))).collect());
        match api.create(&PostParams::default(), &secret).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(e)) if e.code == 409 => Ok(false),
            Err(e) => Err(e).with_context(|| format!("cannot create Secret {namespace}/{name}")),
        }
    }

    /// Exchanges a secret's data, if they are still the `old` ones. False: they are not.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn replace_secret(
        &self,
        namespace: &str,
        name: &str,
        old: &BTreeMap<String, Vec<u8>>,
        new: BTreeMap<String, Vec<u8>>,
    ) -> anyhow::Result<bool> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let bytes = |m: BTreeMap<String, Vec<u8>>| m.into_iter().map(|(k, v)| (k, ByteString(v))).collect();
        let Some(mut secret) = api.get_opt(name).await.with_context(|| format!("Secret {namespace}/{name}"))? else {
            return Ok(false);
        };
        if secret.data.as_ref() != Some(&bytes(old.clone())) {
            return Ok(false);
        }
        secret.data = Some(bytes(new));
        match api.replace(name, &PostParams::default(), &secret).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(e)) if e.code == 409 => Ok(false),
            Err(e) => Err(e).with_context(|| format!("cannot write Secret {namespace}/{name}")),
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
}
