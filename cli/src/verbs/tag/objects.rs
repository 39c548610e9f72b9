//! What a tag consists of, and what there is of tags and revisions in a cluster.
//!
//! The Service is what the control plane goes by (controller: `convert::objects::revisions`). The
//! MutatingWebhookConfiguration is empty, since nothing is injected: it is where Istio's istioctl and Kiali look for
//! tags. The tag `default` has a third object, which sends what has no label to the webhook of its revision.

use crate::{
    cluster::{Cluster, Resource},
    problem::{Exit, Problem},
};
use karst_install::manifest::OURS;
use kube::{ResourceExt, api::DynamicObject};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Label: the tag that an object stands for.
pub(super) const TAG: &str = "istio.io/tag";
/// Label: the revision that it leads to.
pub(super) const REVISION: &str = "istio.io/rev";
/// The revision without a name, and the tag that says which revision is for what has no label.
pub(super) const DEFAULT: &str = "default";
/// The name of what judges objects without a label, for a default revision with a name.
pub(super) const DEFAULT_VALIDATOR: &str = "istiod-default-validator";

pub(super) const MUTATING: Resource = Resource::new(
    "admissionregistration.k8s.io",
    "v1",
    "MutatingWebhookConfiguration",
    "mutatingwebhookconfigurations",
);
pub(super) const VALIDATING: Resource = Resource::VALIDATING_WEBHOOK;

/// The revisions and tags of a cluster.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The Services of revisions, by revision.
    pub(super) revisions: BTreeMap<String, Value>,
    /// Revisions by tag.
    pub(super) tags: BTreeMap<String, String>,
}

impl Known {
    /// Asks the cluster.
    pub(super) async fn of(cluster: &Cluster) -> Result<Self, Problem> {
        let place = Some(cluster.istio_namespace.as_str());
        let services = cluster.list(Resource::SERVICE, place, REVISION).await?.unwrap_or_default();
        let webhooks = cluster.list(MUTATING, None, TAG).await?.unwrap_or_default();
        Ok(Self::read(&services, &webhooks))
    }

    fn read(services: &[DynamicObject], webhooks: &[DynamicObject]) -> Self {
        let mut known = Self::default();
        for object in webhooks.iter().chain(services) {
            let label = |name: &str| object.labels().get(name).cloned();
            let Some(revision) = label(REVISION) else { continue };
            match label(TAG) {
                Some(tag) => drop(known.tags.insert(tag, revision)),
                None if label("app").as_deref() == Some("istiod") => {
                    known.revisions.insert(revision, object.data["spec"].clone());
                }
                None => {}
            }
        }
        known
    }

    /// Can the tag be led to the revision?
    ///
    /// # Errors
    /// If there is no such revision, or the name is taken.
    pub(super) fn judge(&self, tag: &str, revision: &str, overwrite: bool) -> Result<&Value, Problem> {
        let refused = |what: String, next: &str| Err(Problem::new(what).next(next).exit(Exit::Data));
        if !is_name(tag) {
            let next = "use lower-case letters, digits and -, at most 40 of them";
            return refused(format!("{tag:?} cannot be a revision tag"), next);
        }
        let Some(service) = self.revisions.get(revision) else {
            let there: Vec<&str> = self.revisions.keys().map(String::as_str).collect();
            let next = if there.is_empty() {
                "install the control plane first (karst install), or name its namespace with -i".into()
            } else {
                format!("revisions that are there: {}", there.join(", "))
            };
            return refused(format!("cannot modify tag: there is no control plane with revision {revision:?}"), &next);
        };
        if tag != DEFAULT && self.revisions.contains_key(tag) {
            let what =
                format!("cannot create revision tag {tag:?}: found existing control plane revision with same name");
            return refused(what, "choose another name for the tag");
        }
        match self.tags.get(tag) {
            Some(_) if !overwrite => refused(
                format!("revision tag {tag:?} already exists, and --overwrite is false"),
                "pass --overwrite to lead it to another revision",
            ),
            _ => Ok(service),
        }
    }
}

/// Whose an object with the name of a tag's object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// A tag's of ours.
    Tag,
    /// The validator of the chart base: helm's, or `karst install`'s.
    Chart,
    /// Somebody else's, Istio's tags among them.
    Other,
}

/// Whose is it? A tag's webhook of ours calls nobody, its validator judges our own kinds, too.
fn whose(resource: Resource, there: &DynamicObject) -> Whose {
    let labels = there.labels();
    let webhooks = there.data.get("webhooks").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is_helms = labels.get("app.kubernetes.io/managed-by").is_some_and(|manager| manager == "Helm");
    if resource == VALIDATING && (is_helms || labels.contains_key(OURS)) {
        return Whose::Chart;
    }
    let is_ours = webhooks.is_empty() || (resource == VALIDATING && webhooks.iter().any(judges_ours));
    if labels.contains_key(TAG) && is_ours { Whose::Tag } else { Whose::Other }
}

fn judges_ours(webhook: &Value) -> bool {
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    list(webhook, "rules").iter().any(|rule| list(rule, "apiGroups").iter().any(|group| group == "karst.io"))
}

/// Why an object that is there is left as it is, and what to do about it; none if it is a tag's of ours. `failed`: what
/// cannot be done because of it.
pub(super) fn foreign(failed: &str, resource: Resource, name: &str, there: &DynamicObject) -> Option<Problem> {
    let kind = resource.kind;
    let (why, next) = match whose(resource, there) {
        Whose::Tag => return None,
        Whose::Chart => (
            format!("{kind} {name} is the chart base's"),
            "the chart's value defaultRevision says where it leads, and default removes it (helm upgrade --set \
             defaultRevision=default, or karst upgrade --set values.defaultRevision=default); then run the same \
             command again"
                .to_string(),
        ),
        Whose::Other => {
            let mut next = format!(
                "`kubectl get {} {name} -o yaml` shows whose it is; a tag of Istio's is removed by `istioctl tag \
                 remove`; once it is gone, run the same command again",
                resource.plural
            );
            if resource == MUTATING {
                next += ", or use another name with --webhook-name (tag set)";
            }
            (format!("{kind} {name} is there, and is no revision tag of karst's"), next)
        }
    };
    Some(Problem::new(failed).because(why).next(next).exit(Exit::Data))
}

/// A label's value and a part of a Service's name.
fn is_name(tag: &str) -> bool {
    let of_label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=40).contains(&tag.len()) && tag.chars().all(of_label) && !tag.starts_with('-') && !tag.ends_with('-')
}

/// A tag as it is asked for.
pub(super) struct Wanted<'a> {
    pub(super) tag: &'a str,
    pub(super) revision: &'a str,
    /// Namespace of the control plane.
    pub(super) namespace: &'a str,
    /// Name of the MutatingWebhookConfiguration; empty: as istioctl names it.
    pub(super) webhook: &'a str,
}

/// An object, its kind and the namespace that it is in.
pub(super) type Made = (Resource, Option<String>, Value);

/// The objects of a tag. `service`: the `spec` of its revision's Service.
pub(super) fn of(wanted: &Wanted<'_>, service: &Value) -> Vec<Made> {
    let Wanted { tag, revision, namespace, webhook } = *wanted;
    let labels = |app: &str| json!({ "app": app, REVISION: revision, TAG: tag });
    // Addresses are given to each Service.
    let fields = ["selector", "ports", "ipFamilyPolicy"].into_iter().filter_map(|key| Some((key, service.get(key)?)));
    let mut spec: Value =
        fields.map(|(key, value)| (key.to_string(), value.clone())).collect::<serde_json::Map<_, _>>().into();
    for port in spec["ports"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        port.remove("nodePort");
    }
    let name = if webhook.is_empty() { format!("istio-revision-tag-{tag}") } else { webhook.to_string() };
    let mut all = vec![
        (
            Resource::SERVICE,
            Some(namespace.to_string()),
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": { "name": service_name(tag), "namespace": namespace, "labels": labels("istiod") },
                "spec": spec,
            }),
        ),
        (
            MUTATING,
            None,
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": MUTATING.kind,
                "metadata": { "name": name, "labels": labels("sidecar-injector") },
                "webhooks": [],
            }),
        ),
    ];
    // The chart of the revision without a name has this in its own configuration.
    if tag == DEFAULT && revision != DEFAULT {
        all.push((VALIDATING, None, default_validator(revision, namespace)));
    }
    all
}

/// The name of a tag's Service.
pub(super) fn service_name(tag: &str) -> String {
    format!("istiod-revision-tag-{tag}")
}

/// Its controller sets caBundle and failurePolicy once the API server reaches it.
fn default_validator(revision: &str, namespace: &str) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": VALIDATING.kind,
        "metadata": {
            "name": DEFAULT_VALIDATOR,
            "labels": { "app": "istiod", "istio": "istiod", REVISION: revision, TAG: DEFAULT },
        },
        "webhooks": [{
            "name": "validation.istio.io",
            "clientConfig": { "service": {
                "name": format!("istiod-{revision}"), "namespace": namespace, "path": "/validate", "port": 443,
            } },
            "rules": [{
                "apiGroups": [
                    "security.istio.io", "networking.istio.io", "telemetry.istio.io", "extensions.istio.io", "karst.io",
                ],
                "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"], "resources": ["*"], "scope": "*",
            }],
            "objectSelector": { "matchExpressions": [{ "key": REVISION, "operator": "DoesNotExist" }] },
            "failurePolicy": "Ignore", "matchPolicy": "Equivalent", "sideEffects": "None", "timeoutSeconds": 10,
            "admissionReviewVersions": ["v1"],
        }],
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    fn object(name: &str, labels: Value) -> DynamicObject {
        let spec = json!({
            "selector": { "app": "istiod" }, "clusterIP": "10.96.0.9",
            "ports": [{ "name": "https-dns", "port": 15012, "nodePort": 30001 }],
        });
        serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels }, "spec": spec })).unwrap()
    }

    fn known() -> Known {
        let services = [
            object("istiod", json!({ "app": "istiod", REVISION: DEFAULT })),
            object("istiod-canary", json!({ "app": "istiod", REVISION: "canary" })),
            object("istiod-revision-tag-prod", json!({ "app": "istiod", REVISION: "canary", TAG: "prod" })),
            object("other", json!({ "app": "shop", REVISION: "v2" })),
        ];
        Known::read(&services, &[object("w", json!({ REVISION: DEFAULT, TAG: "prod" }))])
    }

    #[test]
    fn what_is_there_is_read_from_labels() {
        let known = known();
        assert_eq!(known.revisions.keys().collect::<Vec<_>>(), ["canary", DEFAULT]);
        assert_eq!(known.tags, BTreeMap::from([("prod".to_string(), "canary".to_string())]), "the Service counts");
    }

    #[test]
    fn tags_that_cannot_be_are_refused_with_the_reason() {
        let known = known();
        let refusal = |tag: &str, revision: &str, overwrite: bool| {
            known.judge(tag, revision, overwrite).map(|_| ()).map_err(|problem| problem.to_string()).unwrap_err()
        };
        assert!(refusal("new", "gone", false).contains("no control plane with revision \"gone\""));
        assert!(refusal("prod", DEFAULT, false).contains("already exists, and --overwrite is false"));
        assert!(refusal("canary", DEFAULT, true).contains("existing control plane revision with same name"));
        assert!(refusal("Prod", DEFAULT, true).contains("cannot be a revision tag"));
        assert!(Known::default().judge("new", "x", false).unwrap_err().next_step().contains("karst install"));
        for (tag, overwrite) in [("new", false), ("prod", true), (DEFAULT, false)] {
            assert!(known.judge(tag, "canary", overwrite).is_ok(), "{tag}");
        }
    }

    #[test]
    fn objects_of_others_are_told_from_a_tags() {
        let object = |labels: Value, webhooks: Value| -> DynamicObject {
            let metadata = json!({ "name": "x", "labels": labels });
            serde_json::from_value(json!({ "metadata": metadata, "webhooks": webhooks })).unwrap()
        };
        let tag = || json!({ TAG: "prod", REVISION: "canary" });
        let validator = default_validator("canary", "istio-system");
        let webhooks = validator["webhooks"].clone();
        assert_eq!(whose(MUTATING, &object(tag(), json!([]))), Whose::Tag);
        assert_eq!(whose(MUTATING, &object(tag(), json!([{ "name": "rev.namespace.sidecar" }]))), Whose::Other);
        assert_eq!(whose(MUTATING, &object(json!({}), json!([]))), Whose::Other);
        assert_eq!(whose(Resource::SERVICE, &object(tag(), Value::Null)), Whose::Tag);
        assert_eq!(whose(Resource::SERVICE, &object(json!({}), Value::Null)), Whose::Other);
        assert_eq!(whose(VALIDATING, &serde_json::from_value(validator).unwrap()), Whose::Tag);
        let istios = json!([{ "rules": [{ "apiGroups": ["networking.istio.io"] }] }]);
        assert_eq!(whose(VALIDATING, &object(tag(), istios)), Whose::Other);
        let helms = json!({ "app.kubernetes.io/managed-by": "Helm", TAG: DEFAULT });
        for chart in [helms, json!({ OURS: "installed-state" })] {
            let there = object(chart, webhooks.clone());
            assert_eq!(whose(VALIDATING, &there), Whose::Chart);
            let problem = foreign("cannot set tag", VALIDATING, DEFAULT_VALIDATOR, &there).unwrap();
            assert!(problem.next_step().contains("defaultRevision"), "{problem}");
        }
        let problem = foreign("cannot set tag", MUTATING, "x", &object(json!({}), istios_injector())).unwrap();
        assert!(problem.to_string().contains("MutatingWebhookConfiguration x is there"), "{problem}");
        assert!(problem.next_step().contains("--webhook-name"), "{problem}");
        assert_eq!(foreign("cannot set tag", MUTATING, "x", &object(tag(), json!([]))), None);
    }

    fn istios_injector() -> Value {
        json!([{ "name": "object.sidecar-injector.istio.io" }])
    }

    #[test]
    fn a_tag_leads_to_the_pods_of_its_revision() {
        let known = known();
        let wanted = |tag, webhook| Wanted { tag, revision: "canary", namespace: "istio-system", webhook };
        let service = known.judge("new", "canary", false).unwrap();
        let made = of(&wanted("new", ""), service);
        let [(_, place, service_object), (_, None, webhook)] = &made[..] else { panic!("{}", made.len()) };
        assert_eq!(place.as_deref(), Some("istio-system"));
        assert_eq!(service_object["metadata"]["labels"], json!({ "app": "istiod", REVISION: "canary", TAG: "new" }));
        let spec = json!({ "selector": { "app": "istiod" }, "ports": [{ "name": "https-dns", "port": 15012 }] });
        assert_eq!(service_object["spec"], spec);
        assert_eq!(webhook["metadata"]["name"], "istio-revision-tag-new");
        assert_eq!(webhook["webhooks"], json!([]), "it calls nobody: pods are not held up by it");
        assert_eq!(of(&wanted("new", "mine"), service)[1].2["metadata"]["name"], "mine");
        let default = of(&wanted(DEFAULT, ""), service);
        assert_eq!(default[2].2["webhooks"][0]["clientConfig"]["service"]["name"], "istiod-canary");
        assert_eq!(default[2].2["metadata"]["labels"][REVISION], "canary");
        assert_eq!(of(&Wanted { revision: DEFAULT, ..wanted(DEFAULT, "") }, service).len(), 2);
    }
}
