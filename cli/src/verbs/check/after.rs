//! After an installation: every component, and why one is not ready.

use super::{DAEMON_SET, Looked, Status, nodes};
use crate::{
    cluster::{Cluster, PodName, Resource, is_ready},
    problem::Problem,
    verbs::waypoint::gateways_without_program,
};
use k8s_openapi::api::core::v1::Pod;
use karst_install::cluster::trouble;
use kube::{
    Api,
    api::{DynamicObject, LogParams},
};
use serde_json::Value;

/// Variable of our containers that Istio's have not.
const MARK: &str = "KARST_SOURCE";

/// Whether a workload is Karst's, and not Istio's of the same name.
pub fn is_ours(workload: &DynamicObject) -> bool {
    let list = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_array).cloned();
    let containers = list(&workload.data, "/spec/template/spec/containers").unwrap_or_default();
    let variables = containers.iter().flat_map(|container| list(container, "/env").unwrap_or_default());
    variables.into_iter().any(|variable| variable.get("name").and_then(Value::as_str) == Some(MARK))
}

/// Whether there is a control plane of ours.
pub async fn is_installed(cluster: &Cluster, place: &str) -> Result<bool, Problem> {
    let there = cluster.object(Resource::DEPLOYMENT, Some(place), "istiod").await?;
    Ok(there.is_some_and(|there| is_ours(&there)))
}

/// The components, the nodes by their agents, and the gateways.
pub async fn look(cluster: &Cluster, place: &str) -> Result<Vec<Looked>, Problem> {
    let mut out = vec![];
    for (resource, name, labels, wanted, ready) in [
        (Resource::DEPLOYMENT, "istiod", "app=istiod", "/spec/replicas", "/status/readyReplicas"),
        (
            DAEMON_SET,
            "istio-cni-node",
            "k8s-app=istio-cni-node",
            "/status/desiredNumberScheduled",
            "/status/numberReady",
        ),
        (DAEMON_SET, "ztunnel", "app=ztunnel", "/status/desiredNumberScheduled", "/status/numberReady"),
    ] {
        let Some(object) = cluster.object(resource, Some(place), name).await? else {
            let message =
                format!("not installed in namespace {place}: install its chart, or name the namespace with -i");
            out.push(Looked::new(name, Status::Error, message));
            continue;
        };
        let number = |pointer: &str| object.data.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
        let mut looked = judge_ready(name, place, number(wanted), number(ready));
        if looked.status == Status::Error
            && let Some(why) = why(cluster, place, labels).await?
        {
            looked.message = format!("{}; {why}", looked.message);
        }
        out.push(looked);
    }
    out.extend(nodes::by_agents(cluster, place).await?);
    for (namespace, name, message) in gateways_without_program(cluster).await? {
        out.push(Looked::new(format!("gateway {namespace}/{name}"), Status::Error, message));
    }
    Ok(out)
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
    fn a_control_plane_of_istio_is_not_ours() {
        let with = |name: &str| -> DynamicObject {
            let template = json!({ "spec": { "containers": [{ "env": [{ "name": name }] }] } });
            let deployment = json!({ "metadata": { "name": "istiod" }, "spec": { "template": template } });
            serde_json::from_value(deployment).unwrap()
        };
        assert!(is_ours(&with(MARK)) && !is_ours(&with("PILOT_ENABLE_AMBIENT")));
    }
}
