//! Objects of any kind, as JSON: read, listed, applied, deleted.

use super::{connect::Cluster, failure::failed};
use crate::problem::Problem;
use kube::{
    Api, Error,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
};
use serde_json::Value;

/// Who has written what is applied (`managedFields`).
const MANAGER: &str = "karst";

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its API group; empty for the core.
    pub group: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Its kind.
    pub kind: &'static str,
    /// As in paths: lower case, plural.
    pub plural: &'static str,
}

impl Resource {
    /// Deployments.
    pub const DEPLOYMENT: Self = Self::new("apps", "v1", "Deployment", "deployments");
    /// Namespaces.
    pub const NAMESPACE: Self = Self::new("", "v1", "Namespace", "namespaces");
    /// Nodes.
    pub const NODE: Self = Self::new("", "v1", "Node", "nodes");
    /// Pods.
    pub const POD: Self = Self::new("", "v1", "Pod", "pods");
    /// Services.
    pub const SERVICE: Self = Self::new("", "v1", "Service", "services");
    /// What judges objects when they are applied.
    pub const VALIDATING_WEBHOOK: Self = Self::new(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
    );

    /// A kind.
    pub const fn new(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self { group, version, kind, plural }
    }
    fn api(self) -> ApiResource {
        let api_version =
            if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) };
        ApiResource {
            group: self.group.into(),
            version: self.version.into(),
            api_version,
            kind: self.kind.into(),
            plural: self.plural.into(),
        }
    }
}

impl Cluster {
    fn objects(&self, resource: Resource, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource.api()),
            None => Api::all_with(self.client.clone(), &resource.api()),
        }
    }

    /// All objects of a kind, in one namespace or in all, with these labels (empty: all). None if the API server does
    /// not know the kind.
    ///
    /// # Errors
    /// If the API server refuses or cannot be reached.
    pub async fn list(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        labels: &str,
    ) -> Result<Option<Vec<DynamicObject>>, Problem> {
        match self.objects(resource, namespace).list(&ListParams::default().labels(labels)).await {
            Ok(mut list) => {
                for object in &mut list.items {
                    let api = resource.api();
                    object.types.get_or_insert(kube::core::TypeMeta { api_version: api.api_version, kind: api.kind });
                }
                Ok(Some(list.items))
            }
            Err(Error::Api(status)) if status.code == 404 => Ok(None),
            Err(e) => Err(failed(format!("cannot list {}", resource.plural), &e)),
        }
    }

    /// One object; none if there is none.
    ///
    /// # Errors
    /// If the API server refuses or cannot be reached.
    pub async fn object(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<DynamicObject>, Problem> {
        let got = self.objects(resource, namespace).get_opt(name).await;
        got.map_err(|e| failed(format!("cannot read {} {name}", resource.kind), &e))
    }

    /// Applies an object (server-side), taking over fields of others if forced.
    ///
    /// # Errors
    /// If the API server refuses or cannot be reached.
    pub async fn apply(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        name: &str,
        object: &Value,
    ) -> Result<DynamicObject, Problem> {
        let params = PatchParams::apply(MANAGER).force();
        let applied = self.objects(resource, namespace).patch(name, &params, &Patch::Apply(object)).await;
        applied.map_err(|e| failed(format!("cannot apply {} {name}", resource.kind), &e))
    }

    /// Changes fields of an object (merge patch).
    ///
    /// # Errors
    /// If the API server refuses or cannot be reached.
    pub async fn merge(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        name: &str,
        fields: &Value,
    ) -> Result<DynamicObject, Problem> {
        let merged =
            self.objects(resource, namespace).patch(name, &PatchParams::default(), &Patch::Merge(fields)).await;
        merged.map_err(|e| failed(format!("cannot change {} {name}", resource.kind), &e))
    }

    /// Deletes an object. False: there was none.
    ///
    /// # Errors
    /// If the API server refuses or cannot be reached.
    pub async fn delete(&self, resource: Resource, namespace: Option<&str>, name: &str) -> Result<bool, Problem> {
        match self.objects(resource, namespace).delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(true),
            Err(Error::Api(status)) if status.code == 404 => Ok(false),
            Err(e) => Err(failed(format!("cannot delete {} {name}", resource.kind), &e)),
        }
    }
}
