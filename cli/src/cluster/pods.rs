//! Pods by label, by node, by name.

use super::{connect::Cluster, failure::failed, objects::Resource};
use crate::problem::Problem;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{Api, ResourceExt, api::ListParams, core::Selector};
use serde_json::Value;
use std::fmt;

/// A pod's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

impl From<&Pod> for PodName {
    fn from(pod: &Pod) -> Self {
        Self { namespace: pod.namespace().unwrap_or_default(), name: pod.name_any() }
    }
}

/// Whether the kubelet reports it as ready.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Its node; empty while it has none.
pub fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// Its uid.
pub fn uid_of(pod: &Pod) -> String {
    pod.uid().unwrap_or_default()
}

/// The labels by which a deployment finds its pods, as in a query. None: they cannot be read.
fn selector(deployment: &Value) -> Option<String> {
    let labels: LabelSelector = serde_json::from_value(deployment.pointer("/spec/selector")?.clone()).ok()?;
    Some(Selector::try_from(labels).ok()?.to_string()).filter(|labels| !labels.is_empty())
}

impl Cluster {
    /// The running pods of a deployment, by name.
    ///
    /// # Errors
    /// There is no such deployment, or its pods cannot be told; or the API server refuses or cannot be reached.
    pub async fn pods_of_deployment(&self, namespace: &str, name: &str) -> Result<Vec<Pod>, Problem> {
        let Some(deployment) = self.object(Resource::DEPLOYMENT, Some(namespace), name).await? else {
            return Err(Problem::new(format!("there is no deployment {name} in namespace {namespace}"))
                .next("check the name and the namespace (-n)"));
        };
        let labels = selector(&deployment.data)
            .ok_or_else(|| Problem::new(format!("the selector of deployment {name} cannot be read")))?;
        self.pods(namespace, &labels).await
    }

    /// The running pods of a namespace with these labels (`app=istiod`), by name.
    ///
    /// # Errors
    /// If the API server refuses or cannot be reached.
    pub async fn pods(&self, namespace: &str, labels: &str) -> Result<Vec<Pod>, Problem> {
        self.pods_of(Some(namespace), labels).await
    }

    /// The same of one namespace, or of all.
    ///
    /// # Errors
    /// If the API server refuses or cannot be reached.
    pub async fn pods_of(&self, namespace: Option<&str>, labels: &str) -> Result<Vec<Pod>, Problem> {
        self.select(namespace, ListParams::default().labels(labels).fields("status.phase=Running")).await
    }

    /// All pods of a namespace with these labels, those that do not run yet, too.
    ///
    /// # Errors
    /// If the API server refuses or cannot be reached.
    pub async fn all_pods(&self, namespace: &str, labels: &str) -> Result<Vec<Pod>, Problem> {
        self.select(Some(namespace), ListParams::default().labels(labels)).await
    }

    async fn select(&self, namespace: Option<&str>, params: ListParams) -> Result<Vec<Pod>, Problem> {
        let (api, place): (Api<Pod>, _) = match namespace {
            Some(name) => (Api::namespaced(self.client.clone(), name), format!("namespace {name}")),
            None => (Api::all(self.client.clone()), "all namespaces".to_owned()),
        };
        let labels = params.label_selector.clone().unwrap_or_default();
        let listed = api.list(&params).await;
        let mut pods = listed.map_err(|e| failed(format!("cannot list pods with {labels} in {place}"), &e))?.items;
        pods.sort_by_key(ResourceExt::name_any);
        Ok(pods)
    }

    /// The pods of the control plane that are ready.
    ///
    /// # Errors
    /// As [`Cluster::pods`], and if there is none.
    pub async fn control_plane(&self) -> Result<Vec<Pod>, Problem> {
        let place = &self.istio_namespace;
        let mut pods = self.all_pods(place, "app=istiod").await?;
        let late = pods.iter().find(|pod| !is_ready(pod)).cloned();
        pods.retain(is_ready);
        if !pods.is_empty() {
            return Ok(pods);
        }
        let Some(late) = late else {
            return Err(Problem::new(format!("no control plane is running in namespace {place}"))
                .because("there is no pod with the label app=istiod")
                .next("install the mesh, or name its namespace with -i"));
        };
        let why = serde_json::to_value(&late).ok().and_then(|value| karst_install::cluster::trouble(&value));
        let name = late.name_any();
        Err(Problem::new(format!("the control plane in namespace {place} is not ready"))
            .because(why.unwrap_or_else(|| format!("pod {name} is not ready")))
            .next(format!("`karst check`, `kubectl -n {place} describe pod {name}` and its log say more")))
    }

    /// The running ztunnels.
    ///
    /// # Errors
    /// As [`Cluster::pods`], and if there is none.
    pub async fn ztunnels(&self) -> Result<Vec<Pod>, Problem> {
        let pods = self.pods(&self.istio_namespace, "app=ztunnel").await?;
        if pods.is_empty() {
            return Err(Problem::new(format!("no ztunnel is running in namespace {}", self.istio_namespace))
                .because("there is no running pod with the label app=ztunnel")
                .next("install the mesh's ztunnel, or name its namespace with -i"));
        }
        Ok(pods)
    }

    /// One pod, named `name`, `name.namespace` or `namespace/name`.
    ///
    /// # Errors
    /// If there is no such pod.
    pub async fn pod(&self, named: &str) -> Result<Pod, Problem> {
        let name = self.pod_name(named);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &name.namespace);
        api.get(&name.name).await.map_err(|e| failed(format!("pod {} in namespace {}", name.name, name.namespace), &e))
    }

    /// What a user means by a pod's name.
    pub fn pod_name(&self, named: &str) -> PodName {
        let named = named.strip_prefix("pod/").unwrap_or(named);
        let (namespace, name) = match (named.split_once('/'), named.split_once('.')) {
            (Some((namespace, name)), _) | (None, Some((name, namespace))) => (namespace, name),
            (None, None) => (self.namespace.as_str(), named),
        };
        PodName { namespace: namespace.into(), name: name.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_of_a_deployment_are_those_that_it_selects() {
        let of = |selector: Value| super::selector(&json!({ "spec": { "selector": selector } }));
        let gateway = json!({ "matchLabels": { "gateway.networking.k8s.io/gateway-name": "shop" } });
        assert_eq!(of(gateway).as_deref(), Some("gateway.networking.k8s.io/gateway-name=shop"));
        let several = json!({
            "matchLabels": { "app": "a" },
            "matchExpressions": [{ "key": "v", "operator": "In", "values": ["1", "2"] }],
        });
        assert_eq!(of(several).as_deref(), Some("app=a,v in (1,2)"));
        // Else all pods of the namespace would be taken for its.
        for unread in [json!({}), json!(null), json!({ "matchExpressions": [{ "key": "v", "operator": "Like" }] })] {
            assert_eq!(of(unread.clone()), None, "{unread}");
        }
    }
}
