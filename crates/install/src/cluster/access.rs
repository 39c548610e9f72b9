//! Objects of any kind, by their JSON.

use super::ClusterError;
use crate::manifest;
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams},
};
use serde_json::Value;

/// The field manager of everything that is applied.
const MANAGER: &str = "karst-install";

/// A cluster to install into.
#[derive(Clone)]
pub struct Target {
    client: Client,
}

/// `Kind namespace/name`, as messages have it.
pub(super) fn display(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let (kind, namespace) = (text(&object["kind"]), text(&object["metadata"]["namespace"]));
    let slash = if namespace.is_empty() { "" } else { "/" };
    format!("{kind} {namespace}{slash}{}", text(&object["metadata"]["name"]))
}

pub(super) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn resource(object: &Value) -> ApiResource {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, object["kind"].as_str().unwrap_or_default()))
}

fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

impl Target {
    /// With a connection that is there.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn api(&self, object: &Value) -> Api<DynamicObject> {
        let resource = resource(object);
        match object["metadata"]["namespace"].as_str() {
            Some(namespace) if manifest::namespaced(object) => {
                Api::namespaced_with(self.client.clone(), namespace, &resource)
            }
            _ => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// Kubernetes' version, as `v1.34.0`.
    ///
    /// # Errors
    /// If the API server cannot be asked.
    pub async fn version(&self) -> Result<String, ClusterError> {
        let info = self.client.apiserver_version().await;
        Ok(info.map_err(|error| ClusterError::request("cannot ask the API server for its version", error))?.git_version)
    }

    /// The object as it is there.
    pub(super) async fn get(&self, object: &Value) -> Result<Option<Value>, ClusterError> {
        let failed = |error| ClusterError::request(format!("cannot read {}", display(object)), error);
        let found = match self.api(object).get_opt(name(object)).await {
            Ok(found) => found,
            // A kind that is not there yet.
            Err(error) if is_absent(&error) => None,
            Err(error) => return Err(failed(error)),
        };
        Ok(found.and_then(|found| serde_json::to_value(found).ok()))
    }

    /// Applies it; gives what comes of it. A try is a dry run of the API server.
    pub(super) async fn apply(&self, object: &Value, really: bool) -> Result<Value, ClusterError> {
        let mut parameters = PatchParams::apply(MANAGER).force();
        parameters.dry_run = !really;
        let applied = self.api(object).patch(name(object), &parameters, &Patch::Apply(object)).await;
        let applied =
            applied.map_err(|error| ClusterError::request(format!("cannot apply {}", display(object)), error))?;
        Ok(serde_json::to_value(applied).unwrap_or_default())
    }

    /// Removes it; what depends on it goes in the background. Gives whether it was there.
    pub(super) async fn delete(&self, object: &Value) -> Result<bool, ClusterError> {
        match self.api(object).delete(name(object), &DeleteParams::background()).await {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(ClusterError::request(format!("cannot remove {}", display(object)), error)),
        }
    }

    /// All objects of a kind that a label selector selects, in one namespace or in all.
    pub(super) async fn list(
        &self,
        version: &str,
        kind: &str,
        namespace: Option<&str>,
        labels: &str,
    ) -> Result<Vec<Value>, ClusterError> {
        let like = serde_json::json!({"apiVersion": version, "kind": kind});
        let resource = resource(&like);
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let found = match api.list(&ListParams::default().labels(labels)).await {
            Ok(found) => found.items,
            Err(error) if is_absent(&error) => Vec::new(),
            Err(error) => return Err(ClusterError::request(format!("cannot list {kind}"), error)),
        };
        let with_kind = |object| {
            let mut object = serde_json::to_value(object).unwrap_or_default();
            object["apiVersion"] = version.into();
            object["kind"] = kind.into();
            object
        };
        Ok(found.into_iter().map(with_kind).collect())
    }

    /// Events of an object, newest last.
    pub(super) async fn warnings(&self, namespace: &str, object: &str) -> Result<Vec<String>, ClusterError> {
        let fields = format!("involvedObject.name={object},type=Warning");
        let like = serde_json::json!({"apiVersion": "v1", "kind": "Event"});
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource(&like));
        let found = api.list(&ListParams::default().fields(&fields)).await;
        let found = found.map_err(|error| ClusterError::request("cannot list events", error))?;
        let text = |event: &DynamicObject, key: &str| event.data[key].as_str().unwrap_or_default().to_string();
        let mut events: Vec<(String, String)> = found
            .items
            .iter()
            .map(|event| {
                (text(event, "lastTimestamp"), format!("{}: {}", text(event, "reason"), text(event, "message")))
            })
            .collect();
        events.sort();
        Ok(events.into_iter().map(|(_, text)| text).collect())
    }
}
