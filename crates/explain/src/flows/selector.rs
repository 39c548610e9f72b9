//! Labels by which a policy selects the pods of a workload: those that stay with them.

use crate::{l4, world::World};
use karst_manifest::kinds::Labels;
use karst_proxy::state::Workload;

/// Labels that say what a workload is. (Not its version: a policy is for all that are called by one name.)
const NAMES: [&str; 7] = [
    "app",
    "app.kubernetes.io/component",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/name",
    "component",
    "k8s-app",
    "tier",
];
/// What controllers write to tell pods apart.
const OF_ONE_POD: [&str; 9] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/controller-uid",
    "controller-uid",
    "job-name",
];

/// The labels that all pods of a workload have, of those that say what it is; else of all that stay. Pods that have none in common
/// are selected by their own. None: it has no label.
pub(super) fn selector(world: &World, pod: &Workload) -> Option<Labels> {
    let same = |other: &&std::sync::Arc<Workload>| {
        other.namespace == pod.namespace && other.workload_name == pod.workload_name && other.hbone
    };
    let own = l4::labels(world, pod);
    let mut common = own.clone();
    for other in world.mesh.workloads.values().filter(same) {
        let labels = l4::labels(world, other);
        common.retain(|key, value| labels.get(key) == Some(value));
    }
    of_names(&common).or_else(|| that_stay(&common)).or_else(|| of_names(&own)).or_else(|| that_stay(&own))
}

fn of_names(labels: &Labels) -> Option<Labels> {
    kept(labels, |key| NAMES.contains(&key))
}

fn that_stay(labels: &Labels) -> Option<Labels> {
    kept(labels, |key| !OF_ONE_POD.contains(&key))
}

fn kept(labels: &Labels, keep: impl Fn(&str) -> bool) -> Option<Labels> {
    let kept = labels.iter().filter(|(key, _)| keep(key)).map(|(key, value)| (key.clone(), value.clone()));
    Some(kept.collect::<Labels>()).filter(|labels| !labels.is_empty())
}
