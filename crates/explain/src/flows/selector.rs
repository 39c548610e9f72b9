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

/// The labels that all pods of a workload have, of those that say what it is; else of all that stay. None: there is none.
pub(super) fn selector(world: &World, pod: &Workload) -> Option<Labels> {
    let same = |other: &&std::sync::Arc<Workload>| {
        other.namespace == pod.namespace && other.workload_name == pod.workload_name && other.hbone
    };
    let mut common = l4::labels(world, pod);
    for other in world.mesh.workloads.values().filter(same) {
        let labels = l4::labels(world, other);
        common.retain(|key, value| labels.get(key) == Some(value));
    }
    let kept = |keep: &dyn Fn(&str) -> bool| {
        let labels: Labels = common.iter().filter(|(key, _)| keep(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
        Some(labels).filter(|labels| !labels.is_empty())
    };
    kept(&|key| NAMES.contains(&key)).or_else(|| kept(&|key| !OF_ONE_POD.contains(&key)))
}
