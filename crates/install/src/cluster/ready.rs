//! Whether an object is ready, and why not. Pure: what the API server says goes in.

use serde_json::Value;

/// Of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    /// What is still lacking.
    Waiting(String),
}

/// Of a CRD or a workload; other objects are ready once they are there.
pub(super) fn of(object: &Value) -> Readiness {
    match object["kind"].as_str().unwrap_or_default() {
        "CustomResourceDefinition" => {
            let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
            let established = |one: &Value| one["type"] == "Established" && one["status"] == "True";
            if conditions.iter().any(established) {
                Readiness::Ready
            } else {
                Readiness::Waiting("not established yet".into())
            }
        }
        "Deployment" | "StatefulSet" => {
            let wanted = object["spec"]["replicas"].as_i64().unwrap_or(1);
            rollout(object, wanted, "updatedReplicas", "availableReplicas")
        }
        "DaemonSet" => {
            let wanted = object["status"]["desiredNumberScheduled"].as_i64().unwrap_or_default();
            if object["spec"]["updateStrategy"]["type"] == "OnDelete" {
                return rollout(object, wanted, "desiredNumberScheduled", "numberAvailable");
            }
            rollout(object, wanted, "updatedNumberScheduled", "numberAvailable")
        }
        _ => Readiness::Ready,
    }
}

fn rollout(object: &Value, wanted: i64, updated: &str, available: &str) -> Readiness {
    let status = &object["status"];
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    if number(&status["observedGeneration"]) < number(&object["metadata"]["generation"]) {
        return Readiness::Waiting("Kubernetes has not seen the change yet".into());
    }
    let (updated, available) = (number(&status[updated]), number(&status[available]));
    if updated >= wanted && available >= wanted && number(&status["replicas"]) <= wanted.max(updated) {
        return Readiness::Ready;
    }
    Readiness::Waiting(format!("{available} of {wanted} pods ready, {updated} of this version"))
}

/// What keeps a pod from being ready, if its status says so: an image that cannot be pulled, a container that ends, no node
/// that fits. The pod is named.
pub fn trouble(pod: &Value) -> Option<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let status = &pod["status"];
    for kind in ["initContainerStatuses", "containerStatuses"] {
        for container in status[kind].as_array().into_iter().flatten() {
            for state in ["waiting", "terminated"] {
                let state = &container["state"][state];
                let reason = state["reason"].as_str().unwrap_or_default();
                if reason.is_empty() || matches!(reason, "ContainerCreating" | "PodInitializing" | "Completed") {
                    continue;
                }
                let image = container["image"].as_str().unwrap_or_default();
                let message = state["message"].as_str().unwrap_or_default();
                // Why it does so is in the state before.
                let before = &container["lastState"]["terminated"];
                let ended = before["message"].as_str().map(str::trim).filter(|text| !text.is_empty());
                let text = match (reason, ended, before["exitCode"].as_i64()) {
                    (_, _, _) if reason.contains("Image") => format!("{reason}: {image}: {message}"),
                    ("CrashLoopBackOff", Some(said), _) => format!("{reason}: {said}"),
                    ("CrashLoopBackOff", None, Some(code)) => format!("{reason}: it ends with status {code}"),
                    _ => format!("{reason}: {message}"),
                };
                return Some(format!("pod {name}: {}", text.trim_end_matches([':', ' '])));
            }
        }
    }
    let conditions = status["conditions"].as_array()?;
    let unscheduled = conditions.iter().find(|one| one["type"] == "PodScheduled" && one["status"] == "False")?;
    Some(format!("pod {name}: not scheduled: {}", unscheduled["message"].as_str().unwrap_or_default()))
}

/// The label selector of a workload, in the form of a query.
pub(super) fn selector(object: &Value) -> Option<String> {
    let labels = object["spec"]["selector"]["matchLabels"].as_object().filter(|labels| !labels.is_empty())?;
    let pairs: Vec<String> =
        labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    Some(pairs.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn workloads_are_ready_when_all_pods_of_this_version_are() {
        let deployment = |generation: i64, updated: i64, available: i64| {
            json!({"kind": "Deployment", "metadata": {"generation": generation}, "spec": {"replicas": 2},
                "status": {"observedGeneration": 2, "replicas": 2, "updatedReplicas": updated, "availableReplicas": available}})
        };
        assert_eq!(of(&deployment(2, 2, 2)), Readiness::Ready);
        assert_eq!(of(&deployment(2, 1, 2)), Readiness::Waiting("2 of 2 pods ready, 1 of this version".into()));
        assert!(matches!(of(&deployment(3, 2, 2)), Readiness::Waiting(_)));
        let daemons = json!({"kind": "DaemonSet", "metadata": {"generation": 1}, "status": {"observedGeneration": 1,
            "desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 2}});
        assert_eq!(of(&daemons), Readiness::Waiting("2 of 3 pods ready, 3 of this version".into()));
        assert_eq!(of(&json!({"kind": "Service"})), Readiness::Ready);
        assert!(matches!(of(&json!({"kind": "CustomResourceDefinition"})), Readiness::Waiting(_)));
    }

    #[test]
    fn a_pod_tells_what_is_wrong() {
        let pull = json!({"metadata": {"name": "istiod-1"}, "status": {"containerStatuses": [
            {"image": "h/pilot:1", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}}}]}});
        assert_eq!(trouble(&pull).unwrap(), "pod istiod-1: ImagePullBackOff: h/pilot:1: Back-off");
        let crash = json!({"metadata": {"name": "c"}, "status": {"containerStatuses": [
            {"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
             "lastState": {"terminated": {"exitCode": 1, "message": "/sys/fs/bpf is not on a bpffs\n"}}}]}});
        assert_eq!(trouble(&crash).unwrap(), "pod c: CrashLoopBackOff: /sys/fs/bpf is not on a bpffs");
        let creating =
            json!({"status": {"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}});
        assert_eq!(trouble(&creating), None);
        let pending = json!({"metadata": {"name": "p"}, "status": {"conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]}});
        assert_eq!(trouble(&pending).unwrap(), "pod p: not scheduled: 0/2 nodes are available");
    }
}
