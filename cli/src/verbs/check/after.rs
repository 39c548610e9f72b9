//! After an installation: every component, and why one is not ready.

use super::{
    looked::{DAEMON_SET, Looked, Status},
    nodes,
};
use crate::{
    cluster::{Cluster, PodName, Resource, is_ready},
    problem::Problem,
    verbs::waypoint::gateways_without_program,
};
use k8s_openapi::api::core::v1::Pod;
use karst_install::cluster::trouble;
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, LogParams},
};
use serde_json::Value;

/// Variable of our containers that Istio's have not.
const MARK: &str = "KARST_SOURCE";
/// Label of control planes, whatever their revisions.
const CONTROL_PLANE: &str = "app=istiod";

/// Whether a workload is Karst's, and not Istio's of the same name.
pub fn is_ours(workload: &DynamicObject) -> bool {
    let list = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_array).cloned();
    let containers = list(&workload.data, "/spec/template/spec/containers").unwrap_or_default();
    let variables = containers.iter().flat_map(|container| list(container, "/env").unwrap_or_default());
    variables.into_iter().any(|variable| variable.get("name").and_then(Value::as_str) == Some(MARK))
}

/// Whether there is a control plane of ours.
pub async fn is_installed(cluster: &Cluster, place: &str) -> Result<bool, Problem> {
    Ok(!control_planes(cluster, place).await?.is_empty())
}

/// The control planes of ours: one for each revision.
async fn control_planes(cluster: &Cluster, place: &str) -> Result<Vec<DynamicObject>, Problem> {
    let mut all = cluster.list(Resource::DEPLOYMENT, Some(place), CONTROL_PLANE).await?.unwrap_or_default();
    all.retain(is_ours);
    all.sort_by_key(ResourceExt::name_any);
    Ok(all)
}

/// The components, the nodes by their agents, and the gateways.
pub async fn look(cluster: &Cluster, place: &str) -> Result<Vec<Looked>, Problem> {
    let mut out = vec![];
    for object in control_planes(cluster, place).await? {
        let numbers = ("/spec/replicas", "/status/readyReplicas");
        out.push(component(cluster, place, &object, &selector(&object), numbers).await?);
    }
    for (name, labels) in [("istio-cni-node", "k8s-app=istio-cni-node"), ("ztunnel", "app=ztunnel")] {
        let Some(object) = cluster.object(DAEMON_SET, Some(place), name).await? else {
            let message =
                format!("not installed in namespace {place}: install its chart, or name the namespace with -i");
            out.push(Looked::new(name, Status::Error, message));
            continue;
        };
        let numbers = ("/status/desiredNumberScheduled", "/status/numberReady");
        out.push(component(cluster, place, &object, labels, numbers).await?);
    }
    out.extend(nodes::by_agents(cluster, place).await?);
    for (namespace, name, message) in gateways_without_program(cluster).await? {
        out.push(Looked::new(format!("gateway {namespace}/{name}"), Status::Error, message));
    }
    Ok(out)
}

/// One workload, by the pointers to how many of its pods are wanted and ready, and the labels of its pods.
async fn component(
    cluster: &Cluster,
    place: &str,
    workload: &DynamicObject,
    labels: &str,
    (wanted, ready): (&str, &str),
) -> Result<Looked, Problem> {
    let number = |pointer: &str| workload.data.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
    let mut looked = judge_ready(&workload.name_any(), place, number(wanted), number(ready));
    if looked.status == Status::Error
        && let Some(why) = why(cluster, place, labels).await?
    {
        looked.message = format!("{}; {why}", looked.message);
    }
    Ok(looked)
}

/// What tells the pods of a control plane from those of other revisions.
fn selector(workload: &DynamicObject) -> String {
    let labels = workload.data.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let pairs = labels.into_iter().flatten().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)));
    let all: Vec<String> = pairs.collect();
    if all.is_empty() { CONTROL_PLANE.into() } else { all.join(",") }
}

fn judge_ready(name: &str, place: &str, wanted: u64, ready: u64) -> Looked {
    match ready {
        _ if wanted == 0 => Looked::new(name, Status::Error, "no pod is wanted: no node fits, or it is scaled to 0"),
        _ if ready >= wanted => Looked::new(name, Status::Ok, format!("{ready}/{wanted} ready")),
        _ => {
            let message = format!("{ready}/{wanted} ready: `kubectl -n {place} get pods` and their logs say more");
            Looked::new(name, Status::Error, message)
        }
    }
}

/// Why the first of these pods that is not ready is not: what its status says, else the last line of its log.
async fn why(cluster: &Cluster, place: &str, labels: &str) -> Result<Option<String>, Problem> {
    let pods: Vec<Pod> = cluster.all_pods(place, labels).await?;
    let Some(pod) = pods.iter().find(|pod| !is_ready(pod)) else { return Ok(None) };
    let name = PodName::from(pod);
    let said = serde_json::to_value(pod).ok().and_then(|value| trouble(&value));
    let last = last_line(cluster, &name).await;
    Ok(match (said, last) {
        (Some(said), Some(line)) if !said.contains(&line) => Some(format!("{said}: {line}")),
        (Some(said), _) => Some(said),
        (None, Some(line)) => Some(format!("pod {}: {line}", name.name)),
        (None, None) => None,
    })
}

/// The last line of a container that has ended, else of the one that runs.
async fn last_line(cluster: &Cluster, pod: &PodName) -> Option<String> {
    let api: Api<Pod> = Api::namespaced(cluster.client(), &pod.namespace);
    for previous in [true, false] {
        let params = LogParams { previous, tail_lines: Some(1), ..LogParams::default() };
        let text = api.logs(&pod.name, &params).await.unwrap_or_default();
        if let Some(line) = text.lines().map(str::trim).rfind(|line| !line.is_empty()) {
            return Some(line.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_component_is_healthy_if_all_of_its_pods_are_ready() {
        let status = |wanted, ready| judge_ready("ztunnel", "istio-system", wanted, ready).status;
        assert_eq!([status(2, 2), status(2, 1), status(0, 0)], [Status::Ok, Status::Error, Status::Error]);
    }

    #[test]
    fn pods_of_one_revision_are_selected() {
        let selected = |labels: Value| {
            let spec = json!({ "selector": { "matchLabels": labels } });
            let workload = json!({ "metadata": { "name": "istiod-canary" }, "spec": spec });
            selector(&serde_json::from_value(workload).unwrap())
        };
        assert_eq!(selected(json!({ "app": "istiod", "istio.io/rev": "canary" })), "app=istiod,istio.io/rev=canary");
        assert_eq!(selected(Value::Null), CONTROL_PLANE);
    }

    #[test]
    fn a_control_plane_of_istio_is_not_ours() {
        let with = |name: &str| -> DynamicObject {
            let template = json!({ "spec": { "containers": [{ "env": [{ "name": name }] }] } });
            let deployment = json!({ "metadata": { "name": "istiod" }, "spec": { "template": template } });
            serde_json::from_value(deployment).unwrap()
        };
        assert!(is_ours(&with(MARK)) && !is_ours(&with("PILOT_ENABLE_AMBIENT")));
    }
}
