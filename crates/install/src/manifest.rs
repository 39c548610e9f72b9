//! What an installation consists of: the objects of all components, labelled, in the order in which they are applied.

use crate::{
    chart::Charts,
    spec::{Component, Kind, Spec, SpecError},
    template::to_yaml,
};
use serde_json::{Value, json};

/// Names the installation that an object belongs to.
pub const OWNER: &str = "install.operator.istio.io/owning-resource";
/// Its namespace.
pub const OWNER_NAMESPACE: &str = "install.operator.istio.io/owning-resource-namespace";
/// Says that karst has installed it, and as what ([`owner`]). The labels above are Istio's, whose own installations have them
/// with the same values: what is to be removed, or may be changed, is told by this one alone.
pub const OURS: &str = "karst.io/installation";
/// The component that an object is of.
pub const COMPONENT: &str = "operator.istio.io/component";
/// Who manages it.
pub const MANAGED: &str = "operator.istio.io/managed";
/// The revision that an object is of.
pub const REVISION: &str = "istio.io/rev";

/// Stages of an installation; each is there before the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Namespaces.
    Namespace,
    /// Kinds of objects.
    Crd,
    /// Accounts and what they may do.
    Access,
    /// What workloads read when they start, and their Services.
    Config,
    /// What runs.
    Workload,
    /// What judges others' objects: only when somebody answers.
    Webhook,
}

impl Stage {
    /// Of an object.
    pub fn of(object: &Value) -> Self {
        match object["kind"].as_str().unwrap_or_default() {
            "Namespace" => Self::Namespace,
            "CustomResourceDefinition" => Self::Crd,
            "ServiceAccount" | "Role" | "RoleBinding" | "ClusterRole" | "ClusterRoleBinding" => Self::Access,
            "Deployment" | "DaemonSet" | "StatefulSet" | "Job" | "Pod" | "HorizontalPodAutoscaler" => Self::Workload,
            "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => Self::Webhook,
            _ => Self::Config,
        }
    }
}

/// A component's objects.
#[derive(Debug, Clone)]
pub struct Part {
    /// Which component.
    pub kind: Kind,
    /// Its release's name.
    pub name: String,
    /// In the order of application.
    pub objects: Vec<Value>,
    /// What its chart has to say.
    pub notes: String,
}

/// Everything that is to be there.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Its namespace, where its charts install into.
    pub namespace: String,
    /// What the objects' owner is called: installed-state, or installed-state-REVISION.
    pub owner: String,
    /// Empty: the default one.
    pub revision: String,
    /// In the order of installation.
    pub parts: Vec<Part>,
    /// Components and gateways that stay as they are, whoever runs them.
    pub left: Vec<String>,
}

/// The name that marks what belongs together.
pub fn owner(revision: &str) -> String {
    if revision.is_empty() { "installed-state".into() } else { format!("installed-state-{revision}") }
}

impl Manifest {
    /// Renders all components of a spec. `kubernetes` is the version that charts see, as `v1.34.0`.
    ///
    /// # Errors
    /// If a value is wrong.
    pub fn of(spec: &Spec, charts: &Charts, kubernetes: &str, upgrade: bool) -> Result<Self, SpecError> {
        let mut manifest = Self {
            namespace: spec.namespace.clone(),
            owner: owner(&spec.revision),
            revision: spec.revision.clone(),
            parts: Vec::new(),
            left: left(spec),
        };
        for component in spec.components(charts)? {
            let part = manifest.part(&component, kubernetes, upgrade)?;
            manifest.parts.push(part);
        }
        Ok(manifest)
    }

    fn part(&self, component: &Component, kubernetes: &str, upgrade: bool) -> Result<Part, SpecError> {
        let rendered = component.render(kubernetes, upgrade)?;
        let mut objects = rendered.objects;
        for object in &mut objects {
            self.label(object, component.kind);
            if namespaced(object) && object["metadata"]["namespace"].is_null() {
                object["metadata"]["namespace"] = component.namespace.as_str().into();
            }
        }
        objects.sort_by_key(order);
        Ok(Part { kind: component.kind, name: component.name.clone(), objects, notes: rendered.notes })
    }

    /// Says on an object whose it is, and of which component.
    pub(crate) fn label(&self, object: &mut Value, kind: Kind) {
        let labels = &mut object["metadata"]["labels"];
        if !labels.is_object() {
            *labels = json!({});
        }
        labels[OURS] = self.owner.as_str().into();
        labels[OWNER] = self.owner.as_str().into();
        labels[OWNER_NAMESPACE] = self.namespace.as_str().into();
        labels[COMPONENT] = kind.label().into();
        labels[MANAGED] = "Reconcile".into();
        if labels[REVISION].is_null() {
            labels[REVISION] = if self.revision.is_empty() { "default" } else { &self.revision }.into();
        }
    }

    /// Is an object of what this installation leaves as it is?
    pub fn leaves(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        let labels = &metadata["labels"];
        let Some(kind) = Kind::ALL.into_iter().find(|kind| labels[COMPONENT] == kind.label()) else { return false };
        self.left.iter().any(|name| match kind {
            // Of the gateways all have the same label; the chart names each object, or its app, as the gateway.
            Kind::Ingress | Kind::Egress => metadata["name"] == name.as_str() || labels["app"] == name.as_str(),
            Kind::Base | Kind::Pilot | Kind::Cni | Kind::Ztunnel => name == kind.key(),
        })
    }

    /// Leaves CRDs out by their names: those that are there, and somebody else's.
    pub fn leave(&mut self, crds: &[&str]) {
        let is_left = |object: &Value| {
            Stage::of(object) == Stage::Crd
                && object["metadata"]["name"].as_str().is_some_and(|name| crds.contains(&name))
        };
        self.parts.iter_mut().for_each(|part| part.objects.retain(|object| !is_left(object)));
    }

    /// All objects, by stages and within them by component.
    pub fn objects(&self) -> impl Iterator<Item = &Value> {
        self.parts.iter().flat_map(|part| &part.objects)
    }

    /// As YAML: the same bytes for the same input, in an order in which `kubectl apply` succeeds.
    pub fn to_yaml(&self) -> String {
        let mut objects: Vec<&Value> = self.objects().collect();
        objects.sort_by_key(|object| order(object));
        objects.iter().map(|object| to_yaml(object) + "\n---\n").collect()
    }
}

/// The names of what a spec leaves as it is; those that gateways have by their values, too.
fn left(spec: &Spec) -> Vec<String> {
    let gateways = spec.spec.get("values").and_then(|values| values.get("gateways"));
    let renamed = |name: &String| gateways?.get(name)?.get("name")?.as_str().map(String::from);
    spec.left.iter().cloned().chain(spec.left.iter().filter_map(renamed)).collect()
}

/// Stage, then kind, namespace and name.
fn order(object: &Value) -> (Stage, String, String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let metadata = &object["metadata"];
    // A role is there before what binds it: R, then RoleBinding, by the alphabet.
    (Stage::of(object), text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
}

/// Whether objects of its kind are in namespaces. (All kinds of our charts; others have their namespace written.)
pub(crate) fn namespaced(object: &Value) -> bool {
    !matches!(
        object["kind"].as_str().unwrap_or_default(),
        "Namespace"
            | "CustomResourceDefinition"
            | "ClusterRole"
            | "ClusterRoleBinding"
            | "ValidatingWebhookConfiguration"
            | "MutatingWebhookConfiguration"
            | "ValidatingAdmissionPolicy"
            | "ValidatingAdmissionPolicyBinding"
            | "PriorityClass"
            | "GatewayClass"
    )
}
