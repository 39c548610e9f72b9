//! Removes an installation: webhooks first, so that nobody's objects wait for them; then workloads from the data plane to the
//! control plane, each while it still has its rights, which the node agent needs to undo the redirection; then the rest.

use super::{ClusterError, Progress, Target, access::display, ready};
use crate::{
    manifest::{self, COMPONENT, Manifest, OURS, OWNER_NAMESPACE, REVISION, Stage},
    spec::Kind,
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{Instant, sleep};

/// Kinds of what is installed.
const KINDS: [(&str, &str); 22] = [
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "DaemonSet"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("policy/v1", "PodDisruptionBudget"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
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

/// API group and version of webhooks' configurations.
const ADMISSION: &str = "admissionregistration.k8s.io/v1";
/// What judges objects without a label, if the default revision has a name. A tag has made it, or the chart base.
const DEFAULT_VALIDATOR: &str = "istiod-default-validator";
/// Label: the tag that an object stands for.
const TAG: &str = "istio.io/tag";

/// A revision of the control plane, as labels have it (`default`), and its namespace.
type Revision = (String, String);

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
        let mut leading = leading(target, &revisions(target, selection, &found).await?).await?;
        leading.retain(|object| !found.iter().any(|other| display(other) == display(object)));
        found.extend(leading);
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

/// The revisions whose control planes are removed.
async fn revisions(
    target: &Target,
    selection: &Selection,
    found: &[Value],
) -> Result<BTreeSet<Revision>, ClusterError> {
    let mut all: BTreeSet<Revision> = found.iter().filter_map(revision_of).collect();
    if let Selection::Revision(revision, namespace) = selection {
        let label = if revision.is_empty() { "default" } else { revision };
        let metadata = json!({"name": service_of(label), "namespace": namespace});
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata});
        // Gone already, but perhaps not what led to it. One that is there and was not found is helm's or Istio's.
        if target.get(&deployment).await?.is_none() {
            all.insert((label.into(), namespace.clone()));
        }
    }
    Ok(all)
}

/// The revision that an object is the control plane of.
fn revision_of(object: &Value) -> Option<Revision> {
    let labels = &object["metadata"]["labels"];
    let is_pilot = object["kind"] == "Deployment" && labels[COMPONENT] == Kind::Pilot.label();
    let text = |value: &Value| value.as_str().map(String::from);
    if is_pilot { Some((text(&labels[REVISION])?, text(&object["metadata"]["namespace"])?)) } else { None }
}

/// The name of a revision's Service, and of its Deployment.
fn service_of(revision: &str) -> String {
    if revision == "default" { "istiod".into() } else { format!("istiod-{revision}") }
}

/// What leads to these revisions and was not installed with them: what judges objects without a label, which would hold
/// up all their writes; and tags.
async fn leading(target: &Target, revisions: &BTreeSet<Revision>) -> Result<Vec<Value>, ClusterError> {
    let mut all = Vec::new();
    let mut validator = json!({
        "apiVersion": ADMISSION, "kind": "ValidatingWebhookConfiguration", "metadata": {"name": DEFAULT_VALIDATOR},
    });
    let there = target.get(&validator).await?;
    if let Some(there) = there
        && calls(&there, revisions)
    {
        validator["metadata"] = there["metadata"].clone();
        all.push(validator);
    }
    for revision in revisions {
        let labels = format!("{TAG},{REVISION}={}", revision.0);
        let services = target.list("v1", "Service", None, &labels).await?;
        let webhooks = target.list(ADMISSION, "MutatingWebhookConfiguration", None, &labels).await?;
        all.extend(tags(&revision.1, services, webhooks));
    }
    Ok(all)
}

/// Does a configuration call one of these revisions?
fn calls(configuration: &Value, revisions: &BTreeSet<Revision>) -> bool {
    let webhooks = configuration["webhooks"].as_array().map(Vec::as_slice).unwrap_or_default();
    webhooks.iter().any(|webhook| {
        let service = &webhook["clientConfig"]["service"];
        let is = |(revision, namespace): &Revision| {
            service["name"] == service_of(revision).as_str() && service["namespace"] == namespace.as_str()
        };
        revisions.iter().any(is)
    })
}

/// Of the objects of tags of one revision those that lead to the one in this namespace. A tag of ours calls nobody: one
/// with webhooks is Istio's.
fn tags(namespace: &str, services: Vec<Value>, webhooks: Vec<Value>) -> Vec<Value> {
    let tag = |object: &Value| object["metadata"]["labels"][TAG].as_str().unwrap_or_default().to_string();
    let is_tag = |object: &Value| object["metadata"]["name"] == format!("istiod-revision-tag-{}", tag(object)).as_str();
    let services = services.into_iter().filter(is_tag);
    let (ours, others): (Vec<Value>, Vec<Value>) =
        services.partition(|service| service["metadata"]["namespace"] == namespace);
    let has = |all: &[Value], name: &str| all.iter().any(|service| tag(service) == name);
    let mut all: Vec<Value> = webhooks
        .into_iter()
        .filter(|object| object["webhooks"].as_array().is_none_or(Vec::is_empty))
        .filter(|object| has(&ours, &tag(object)) || !has(&others, &tag(object)))
        .collect();
    all.extend(ours);
    all
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

/// Webhooks, first the one that judges what has no label; tags; workloads from the outside to the control plane; what they
/// have read; rights; CRDs; namespaces.
fn rank(object: &Value) -> (u8, u8) {
    let label = object["metadata"]["labels"][COMPONENT].as_str().unwrap_or_default();
    let position = Kind::ALL.iter().position(|kind| kind.label() == label).unwrap_or_default();
    match Stage::of(object) {
        Stage::Webhook => (0, u8::from(object["metadata"]["name"] != DEFAULT_VALIDATOR)),
        Stage::Config if object["kind"] == "Service" && object["metadata"]["labels"][TAG].is_string() => (0, 2),
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

    fn revisions(all: &[(&str, &str)]) -> BTreeSet<Revision> {
        all.iter().map(|(revision, namespace)| ((*revision).to_string(), (*namespace).to_string())).collect()
    }

    #[test]
    fn what_judges_objects_without_a_label_goes_with_its_control_plane_and_before_it() {
        let validator = json!({
            "kind": "ValidatingWebhookConfiguration", "metadata": {"name": DEFAULT_VALIDATOR},
            "webhooks": [{"clientConfig": {"service": {"name": "istiod-canary", "namespace": "mesh"}}}],
        });
        assert!(calls(&validator, &revisions(&[("default", "mesh"), ("canary", "mesh")])));
        assert!(!calls(&validator, &revisions(&[("default", "mesh"), ("canary", "other")])));
        assert!(!calls(&json!({}), &revisions(&[("default", "mesh")])));
        let labels = json!({COMPONENT: "Pilot", REVISION: "canary"});
        let deployment = json!({"kind": "Deployment", "metadata": {"name": "istiod-canary", "namespace": "mesh",
            "labels": labels}});
        assert_eq!(revision_of(&deployment), Some(("canary".into(), "mesh".into())));
        assert_eq!(revision_of(&validator), None);
        let tag = json!({"kind": "Service", "metadata": {"name": "t", "labels": {TAG: "t"}}});
        let other = json!({"kind": "MutatingWebhookConfiguration", "metadata": {"name": "a"}});
        let all = [deployment, tag, other, validator];
        let kinds: Vec<&str> = in_order(&all).into_iter().filter_map(|object| object["kind"].as_str()).collect();
        assert_eq!(kinds, ["ValidatingWebhookConfiguration", "MutatingWebhookConfiguration", "Service", "Deployment"]);
    }

    #[test]
    fn tags_of_others_stay() {
        let service = |namespace: &str, tag: &str| {
            let name = format!("istiod-revision-tag-{tag}");
            json!({"kind": "Service", "metadata": {"name": name, "namespace": namespace, "labels": {TAG: tag}}})
        };
        let webhook = |tag: &str, webhooks: Value| {
            let metadata = json!({"name": tag, "labels": {TAG: tag}});
            json!({"kind": "MutatingWebhookConfiguration", "metadata": metadata, "webhooks": webhooks})
        };
        let mut named_otherwise = service("mesh", "prod");
        named_otherwise["metadata"]["name"] = "mine".into();
        let services = vec![service("mesh", "prod"), service("other", "test"), named_otherwise];
        let none = || json!([]);
        let mut webhooks = vec![webhook("prod", none()), webhook("test", none())];
        webhooks.extend([webhook("alone", Value::Null), webhook("istio", json!([{}]))]);
        let names: Vec<String> = tags("mesh", services, webhooks).iter().map(display).collect();
        assert_eq!(
            names,
            [
                "MutatingWebhookConfiguration prod",
                "MutatingWebhookConfiguration alone",
                "Service mesh/istiod-revision-tag-prod"
            ]
        );
    }

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
