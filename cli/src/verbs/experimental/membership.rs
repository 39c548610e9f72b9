//! Whether a pod is part of the mesh, and why.

use super::facts::Facts;
use crate::cluster::node_of;
use k8s_openapi::api::core::v1::Pod;
use karst_manifest::{Object, enrol, parse};
use kube::ResourceExt;

/// Whether a pod is in the mesh, and why: by the same rule as the node agent's ([`enrol`]).
pub fn membership(pod: &Pod, facts: &Facts) -> String {
    let place = pod.namespace().unwrap_or_default();
    let space = facts.namespaces.iter().find(|one| one.name_any() == place);
    let space = space.and_then(|one| read("Namespace", one)).and_then(|object| match object {
        Object::Namespace(namespace) => Some(namespace),
        _ => None,
    });
    let Some(Object::Pod(own)) = read("Pod", pod) else {
        return "unknown: the pod cannot be read as the node agent reads it".into();
    };
    let node = node_of(pod);
    if enrol::wanted(space.as_deref(), &own) {
        let whose = if enrol::opts_in(&own) { "its own label" } else { "its namespace's label" };
        let is_redirected =
            pod.annotations().get("ambient.istio.io/redirection").map(String::as_str) == Some("enabled");
        return match is_redirected {
            true => format!("yes, by {whose}; ztunnel of node {node}"),
            false => format!(
                "wanted by {whose}, and not redirected yet: look at the node agent of node {node} \
                 (pods k8s-app=istio-cni-node)"
            ),
        };
    }
    if own.spec.host_network {
        return "no: pods of the host's network are never part of the mesh".into();
    }
    if enrol::is_done(&own) {
        return "no: the pod has ended".into();
    }
    if own.metadata.annotations.contains_key("sidecar.istio.io/status") {
        return "no: it has a sidecar; restart it without injection".into();
    }
    match pod.labels().get("istio.io/dataplane-mode") {
        Some(mode) => format!("no: the pod has the label istio.io/dataplane-mode={mode}"),
        None => format!(
            "no: neither the pod nor namespace {place} has the label: \
             `kubectl label namespace {place} istio.io/dataplane-mode=ambient`"
        ),
    }
}

/// An object as the mesh reads it.
fn read(kind: &str, object: &impl serde::Serialize) -> Option<Object> {
    parse::value(kind, serde_json::to_value(object).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn who_is_outside_of_the_mesh_is_told_why() {
        let pod = |value: Value| serde_json::from_value::<Pod>(value).unwrap();
        let facts = Facts {
            namespaces: vec![
                serde_json::from_value(json!({
                    "apiVersion": "v1", "kind": "Namespace",
                    "metadata": { "name": "shop", "labels": { "istio.io/dataplane-mode": "ambient" } },
                }))
                .unwrap(),
            ],
            ..Facts::default()
        };
        let other = pod(json!({ "metadata": { "name": "a", "namespace": "other" } }));
        assert!(membership(&other, &facts).contains("kubectl label namespace other istio.io/dataplane-mode=ambient"));
        let host = pod(
            json!({ "metadata": { "name": "a", "namespace": "shop" }, "spec": { "hostNetwork": true, "containers": [] } }),
        );
        assert!(membership(&host, &facts).starts_with("no: pods of the host's network"));
        let none = pod(
            json!({ "metadata": { "name": "a", "namespace": "shop", "labels": { "istio.io/dataplane-mode": "none" } } }),
        );
        assert!(membership(&none, &facts).starts_with("no: the pod has the label"));
    }
}
