//! Removes an installation: webhooks first, so that nobody's objects wait for them; then workloads from the data plane to the
//! control plane, each while it still has its rights, which the node agent needs to undo the redirection; then the rest.

use super::{ClusterError, Progress, Target, access::display, ready};
use crate::{
    manifest::{self, COMPONENT, Manifest, OURS, OWNER_NAMESPACE, Stage},
    spec::Kind,
};
use serde_json::Value;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Kinds of what is installed.
const KINDS: [(&str, &str); 19] = [
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "DaemonSet"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("policy/v1", "PodDisruptionBudget"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("v1", "ResourceQuota"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding"),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("v1", "ServiceAccount"),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
];

/// What is to be removed.
#[derive(Debug, Clone)]
pub enum Selection {
    /// One revision in a namespace; empty for the default one.
    Revision(String, String),
    /// What a manifest has, as far as karst has installed it.
    Manifest(Box<Manifest>),
    /// Everything that karst has installed, of all revisions, and what the control plane has made in other namespaces.
    Purge,
}

/// A removal.
#[derive(Debug, Clone)]
pub struct Removal {
    /// In the order of removal.
    pub objects: Vec<Value>,
    /// How long pods may take to end.
    pub timeout: Duration,
}

impl Removal {
    /// Finds what there is to remove. CRDs stay, and with them users' objects, unless they are asked for.
    ///
    /// # Errors
    /// If the API server cannot be asked.
    pub async fn find(
        target: &Target,
        selection: &Selection,
        crds: bool,
        timeout: Duration,
    ) -> Result<Self, ClusterError> {
        let mut found = match selection {
            Selection::Revision(revision, namespace) => {
                owned(target, Some((&manifest::owner(revision), namespace))).await?
            }
            Selection::Manifest(manifest) => {
                let mut there = Vec::new();
                for object in manifest.objects() {
                    let found = target.get(object).await?.filter(|found| owner_of(found).is_some());
                    there.extend(found.map(|mut found| {
                        found["apiVersion"] = object["apiVersion"].clone();
                        found["kind"] = object["kind"].clone();
                        found
                    }));
                }
                there
            }
            Selection::Purge => {
                let mut all = owned(target, None).await?;
                // The root certificate in each namespace.
                all.extend(target.list("v1", "ConfigMap", None, "istio.io/config=true").await?.into_iter().filter(
                    |object| {
                        let name = object["metadata"]["name"].as_str().unwrap_or_default();
                        matches!(name, "istio-ca-root-cert" | "istio-ca-crl") && is_written_by_karst(object)
                    },
                ));
                all
            }
        };
        found.retain(|object| crds || Stage::of(object) != Stage::Crd);
        Ok(Self { objects: in_order(&found).into_iter().cloned().collect(), timeout })
    }

    /// A line for each object.
    pub fn lines(&self) -> Vec<String> {
        self.objects.iter().map(|object| format!("- {}", display(object))).collect()
    }

    /// Does it.
    ///
    /// # Errors
    /// If something is refused, or pods do not end in time.
    pub async fn run(&self, target: &Target, tell: &mut dyn FnMut(Progress)) -> Result<(), ClusterError> {
        for same in self.objects.chunk_by(|left, right| rank(left) == rank(right)) {
            for object in same {
                if target.delete(object).await? {
                    tell(Progress::Removed(display(object)));
                }
            }
            // The agent undoes the redirection as it ends: its rights must outlive its pods.
            for object in same.iter().filter(|object| Stage::of(object) == Stage::Workload) {
                self.gone(target, object, tell).await?;
            }
        }
        Ok(())
    }

    async fn gone(&self, target: &Target, object: &Value, tell: &mut dyn FnMut(Progress)) -> Result<(), ClusterError> {
        let Some(labels) = ready::selector(object) else { return Ok(()) };
        let namespace = object["metadata"]["namespace"].as_str();
        let ends = Instant::now() + self.timeout;
        let mut told = 0;
        loop {
            let pods = target.list("v1", "Pod", namespace, &labels).await?;
            if pods.is_empty() {
                return Ok(());
            }
            if Instant::now() >= ends {
                let waiting = pods.iter().map(display).collect::<Vec<_>>().join(", ");
                return Err(ClusterError::NotGone { seconds: self.timeout.as_secs(), waiting });
            }
            if pods.len() != told {
                told = pods.len();
                tell(Progress::Waits(format!("{}: {told} pods are ending", display(object))));
            }
            sleep(Duration::from_millis(500)).await;
        }
    }
}

/// As what karst has installed an object; none if it is not karst's.
pub(super) fn owner_of(object: &Value) -> Option<&str> {
    object["metadata"]["labels"][OURS].as_str()
}

/// Is the object our control plane's? Istio's has the same names and labels.
fn is_written_by_karst(object: &Value) -> bool {
    let fields = object["metadata"]["managedFields"].as_array();
    fields.is_some_and(|all| {
        all.iter().any(|field| field["manager"].as_str().is_some_and(|manager| manager.contains("karst")))
    })
}

/// Objects that karst has installed: as this owner in this namespace, or as any.
pub(super) async fn owned(target: &Target, of: Option<(&str, &str)>) -> Result<Vec<Value>, ClusterError> {
    let labels = match of {
        Some((owner, namespace)) => format!("{OURS}={owner},{OWNER_NAMESPACE}={namespace}"),
        None => OURS.to_string(),
    };
    let mut found = Vec::new();
    for (version, kind) in KINDS {
        // The control plane labels what it makes for Gateways otherwise; EndpointSlices and the like have no label of ours.
        found.extend(target.list(version, kind, None, &labels).await?);
    }
    Ok(found)
}

/// In the order of removal.
pub(super) fn in_order(objects: &[Value]) -> Vec<&Value> {
    let mut ordered: Vec<&Value> = objects.iter().collect();
    ordered.sort_by_key(|object| (rank(object), display(object)));
    ordered
}

/// Webhooks; workloads from the outside to the control plane; what they have read; rights; CRDs; namespaces.
fn rank(object: &Value) -> (u8, u8) {
    let label = object["metadata"]["labels"][COMPONENT].as_str().unwrap_or_default();
    let position = Kind::ALL.iter().position(|kind| kind.label() == label).unwrap_or_default();
    match Stage::of(object) {
        Stage::Webhook => (0, 0),
        Stage::Workload => (1, u8::try_from(Kind::ALL.len() - position).unwrap_or_default()),
        Stage::Config => (2, 0),
        Stage::Access => (3, 0),
        Stage::Crd => (4, 0),
        Stage::Namespace => (5, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn webhooks_go_first_and_rights_after_the_pods() {
        let object = |kind: &str, component: &str| json!({"kind": kind, "metadata": {"name": component, "labels": {COMPONENT: component}}});
        let all = [
            object("ClusterRole", "Cni"),
            object("Deployment", "Pilot"),
            object("DaemonSet", "Cni"),
            object("CustomResourceDefinition", "Base"),
            object("ValidatingWebhookConfiguration", "Pilot"),
            object("Deployment", "IngressGateways"),
            object("ConfigMap", "Pilot"),
            object("DaemonSet", "Ztunnel"),
        ];
        let order: Vec<String> = in_order(&all).into_iter().map(display).collect();
        assert_eq!(
            order,
            [
                "ValidatingWebhookConfiguration Pilot",
                "Deployment IngressGateways",
                "DaemonSet Ztunnel",
                "DaemonSet Cni",
                "Deployment Pilot",
                "ConfigMap Pilot",
                "ClusterRole Cni",
                "CustomResourceDefinition Base"
            ]
        );
    }
}
