//! The few writes: everything by server-side apply, so that several replicas may do the same.

use crate::Kube;
use anyhow::Context;
use futures_util::StreamExt;
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{ValidatingWebhook, ValidatingWebhookConfiguration},
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, ObjectReference, Pod, Secret},
    },
};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
    core::Status,
    runtime::{
        WatchStreamExt,
        events::{Event, EventType, Recorder, Reporter},
        watcher,
    },
};
use serde_json::json;
use std::collections::BTreeMap;

/// Name that the API server notes for our writes.
const MANAGER: &str = "karst";
/// Istio's name of the webhook in its configuration.
const WEBHOOK: &str = "rev.validation.istio.io";

impl Kube {
    /// The data of a secret; none if there is no such secret.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn secret(&self, namespace: &str, name: &str) -> anyhow::Result<Option<BTreeMap<String, Vec<u8>>>> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let secret = api.get_opt(name).await.with_context(|| format!("Secret {namespace}/{name}"))?;
        Ok(secret.map(|secret| secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect()))
    }

    /// Creates a secret, unless it is there already. True: created.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn create_secret(
        &self,
        namespace: &str,
        name: &str,
        kind: &str,
        data: BTreeMap<String, Vec<u8>>,
    ) -> anyhow::Result<bool> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let mut secret = Secret { type_: Some(kind.into()), ..Default::default() };
        secret.metadata.name = Some(name.into());
        secret.data = Some(data.into_iter().map(|(k, v)| (k, ByteString(v))).collect());
        match api.create(&PostParams::default(), &secret).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(e)) if e.code == 409 => Ok(false),
            Err(e) => Err(e).with_context(|| format!("cannot create Secret {namespace}/{name}")),
        }
    }

    /// Exchanges a secret's data, if they are still the `old` ones. False: they are not.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn replace_secret(
        &self,
        namespace: &str,
        name: &str,
        old: &BTreeMap<String, Vec<u8>>,
        new: BTreeMap<String, Vec<u8>>,
    ) -> anyhow::Result<bool> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let bytes = |m: BTreeMap<String, Vec<u8>>| m.into_iter().map(|(k, v)| (k, ByteString(v))).collect();
        let Some(mut secret) = api.get_opt(name).await.with_context(|| format!("Secret {namespace}/{name}"))? else {
            return Ok(false);
        };
        if secret.data.as_ref() != Some(&bytes(old.clone())) {
            return Ok(false);
        }
        secret.data = Some(bytes(new));
        match api.replace(name, &PostParams::default(), &secret).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(e)) if e.code == 409 => Ok(false),
            Err(e) => Err(e).with_context(|| format!("cannot write Secret {namespace}/{name}")),
        }
    }

    /// Makes a ConfigMap have these data and labels. A namespace that is going or gone is no error.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn config_map(
        &self,
        namespace: &str,
        name: &str,
        labels: &[(&str, &str)],
        data: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let data: BTreeMap<_, _> = data.iter().copied().collect();
        let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "labels": labels }, "data": data });
        match api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await {
            Ok(_) => Ok(()),
            // 403: the namespace is terminating. 404: it is gone.
            Err(kube::Error::Api(e)) if e.code == 404 || (e.code == 403 && e.message.contains("being terminated")) => {
                Ok(())
            }
            Err(e) => Err(e).with_context(|| format!("cannot write ConfigMap {namespace}/{name}")),
        }
    }

    /// Sets or (none) removes an annotation of a pod, if it still is the pod with that uid.
    ///
    /// # Errors
    /// Those of the API server; that the pod is gone or another is none.
    pub async fn annotate_pod(
        &self,
        (namespace, name, uid): (&str, &str, &str),
        annotation: &str,
        value: Option<&str>,
    ) -> anyhow::Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let patch = json!({ "metadata": { "uid": uid, "annotations": { annotation: value } } });
        // On the status subresource: an agent needs no right to change what a pod is.
        match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(e)) if e.code == 404 || is_another(&e) => Ok(()),
            Err(e) => Err(e).with_context(|| format!("cannot annotate Pod {namespace}/{name}")),
        }
    }

    /// Notes a warning on a pod, where `kubectl describe pod` shows it.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn warn_pod(
        &self,
        (namespace, name, uid): (&str, &str, &str),
        from: (&str, &str),
        reason: &str,
        text: &str,
    ) -> anyhow::Result<()> {
        let reporter = Reporter { controller: from.0.into(), instance: Some(from.1.into()) };
        let pod = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(namespace.into()),
            name: Some(name.into()),
            uid: Some(uid.into()),
            ..Default::default()
        };
        // The API server takes no longer ones.
        let note = text.chars().take(1000).collect();
        let event = Event {
            type_: EventType::Warning,
            reason: reason.into(),
            note: Some(note),
            action: "Redirect".into(),
            secondary: None,
        };
        let done = Recorder::new(self.client.clone(), reporter).publish(&event, &pod).await;
        done.with_context(|| format!("cannot create an Event for Pod {namespace}/{name}"))
    }

    /// Is this DaemonSet there to stay? If we may not even ask any more, it is being uninstalled.
    ///
    /// # Errors
    /// That the API server gives no answer.
    pub async fn daemon_set_remains(&self, namespace: &str, name: &str) -> anyhow::Result<bool> {
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), namespace);
        match api.get_opt(name).await {
            Ok(d) => Ok(d.is_some_and(|d| d.metadata.deletion_timestamp.is_none())),
            Err(kube::Error::Api(e)) if e.code == 401 || e.code == 403 => Ok(false),
            Err(e) => Err(e).with_context(|| format!("DaemonSet {namespace}/{name}")),
        }
    }

    /// One pod, if it is there.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn pod(&self, namespace: &str, name: &str) -> anyhow::Result<Option<karst_manifest::kinds::Pod>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pod = api.get_opt(name).await.with_context(|| format!("Pod {namespace}/{name}"))?;
        pod.map(|pod| Ok(serde_json::from_value(serde_json::to_value(pod)?)?)).transpose()
    }

    /// One namespace, if it is there.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn namespace(&self, name: &str) -> anyhow::Result<Option<karst_manifest::kinds::Namespace>> {
        let api: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client.clone());
        let namespace = api.get_opt(name).await.with_context(|| format!("Namespace {name}"))?;
        namespace.map(|namespace| Ok(serde_json::from_value(serde_json::to_value(namespace)?)?)).transpose()
    }
}

/// Has another object taken the name? The API server compares `metadata.uid`: as a precondition (409), or as a field of a
/// patch that nobody may change (422, what 1.34 says).
fn is_another(status: &Status) -> bool {
    let mut causes = status.details.iter().flat_map(|d| &d.causes);
    status.code == 409 || (status.code == 422 && causes.any(|c| c.field == "metadata.uid"))
}

/// What a webhook configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebhookState {
    /// PEM of the root that its server is verified by.
    pub root: Vec<u8>,
    /// Is what it cannot be asked about refused (`failurePolicy: Fail`), and has it been reached by a root of ours? A webhook
    /// that comes beside it, without any root yet, does not open it.
    pub fail: bool,
}

impl WebhookState {
    fn of(config: &ValidatingWebhookConfiguration) -> Option<Self> {
        let all = config.webhooks.as_ref()?;
        let main = all.iter().find(|w| w.name == WEBHOOK).or(all.first())?;
        let root = |w: &ValidatingWebhook| w.client_config.ca_bundle.clone().map(|b| b.0).unwrap_or_default();
        // One that lacks it has it written for all.
        let same = all.iter().all(|w| root(w) == root(main));
        Some(Self {
            root: if same { root(main) } else { vec![] },
            fail: main.failure_policy.as_deref() == Some("Fail") && !root(main).is_empty(),
        })
    }
}

/// What is to be written to the webhooks of these names: the root to all, the policy to the one that refuses.
fn webhooks_patch<'a>(names: impl Iterator<Item = &'a str>, state: &WebhookState) -> serde_json::Value {
    let policy = if state.fail { "Fail" } else { "Ignore" };
    let one = |name: &str| {
        let mut webhook = json!({ "name": name, "clientConfig": { "caBundle": ByteString(state.root.clone()) } });
        if name == WEBHOOK {
            webhook["failurePolicy"] = json!(policy);
        }
        webhook
    };
    json!({ "webhooks": names.map(one).collect::<Vec<_>>() })
}

impl Kube {
    fn webhooks(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }

    /// A ValidatingWebhookConfiguration with one webhook; none if there is none of the name.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn webhook(&self, name: &str) -> anyhow::Result<Option<WebhookState>> {
        let found = self.webhooks().get_opt(name).await;
        let found = found.with_context(|| format!("ValidatingWebhookConfiguration {name}"))?;
        Ok(found.as_ref().and_then(WebhookState::of))
    }

    /// Changes it.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn set_webhook(&self, name: &str, state: &WebhookState) -> anyhow::Result<()> {
        let found = self.webhooks().get(name).await;
        let found = found.with_context(|| format!("ValidatingWebhookConfiguration {name}"))?;
        let names = found.webhooks.iter().flatten().map(|w| w.name.as_str());
        let patch = Patch::Strategic(webhooks_patch(names, state));
        let done = self.webhooks().patch(name, &PatchParams::default(), &patch).await;
        done.map(drop).with_context(|| format!("cannot write ValidatingWebhookConfiguration {name}"))
    }

    /// Waits until it says something else than what is known of it.
    pub async fn webhook_differs(&self, name: &str, known: Option<&WebhookState>) {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut events = watcher::watcher(self.webhooks(), config).default_backoff().boxed();
        let mut listed = None;
        while let Some(event) = events.next().await {
            let now = match event {
                Ok(watcher::Event::Init) => {
                    listed = None;
                    continue;
                }
                // What has changed since it was read is in the list.
                Ok(watcher::Event::InitApply(c)) => {
                    listed = WebhookState::of(&c);
                    continue;
                }
                Ok(watcher::Event::InitDone) => listed.take(),
                Ok(watcher::Event::Apply(c)) => WebhookState::of(&c),
                Ok(watcher::Event::Delete(_)) => None,
                Err(e) => {
                    tracing::debug!(error = %e, "watch of the webhook configuration interrupted");
                    continue;
                }
            };
            if now.as_ref() != known {
                return;
            }
        }
    }

    /// Does the API server refuse an object that has this annotation? Nothing is created.
    ///
    /// # Errors
    /// What else the API server says.
    pub async fn is_refused(&self, namespace: &str, name: &str, annotation: &str) -> anyhow::Result<bool> {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("networking.istio.io", "v1", "WorkloadEntry"));
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind);
        let mut object = DynamicObject::new(name, &kind).data(json!({ "spec": { "address": "192.0.2.1" } }));
        object.metadata.annotations = Some(BTreeMap::from([(annotation.to_string(), "true".to_string())]));
        match api.create(&PostParams { dry_run: true, ..PostParams::default() }, &object).await {
            Ok(_) => Ok(false),
            Err(kube::Error::Api(e)) if e.message.contains("denied the request") => Ok(true),
            Err(e) => Err(e).context("the webhook cannot be tested"),
        }
    }
}

/// Kinds that have had no v1 until lately, and the version that they had.
const OLDER: [(&str, &str); 1] = [("TCPRoute", "v1alpha2")];

/// An object of any kind, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ref {
    /// API group; empty for the core.
    pub group: &'static str,
    /// API version, as `v1`.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Namespace; empty for objects of the cluster.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for Ref {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        write!(f, "{} {}{slash}{}", self.kind, self.namespace, self.name)
    }
}

impl Kube {
    fn any(&self, object: &Ref) -> (Api<DynamicObject>, serde_json::Value) {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(object.group, object.version, object.kind));
        let api = if object.namespace.is_empty() {
            Api::all_with(self.client.clone(), &kind)
        } else {
            Api::namespaced_with(self.client.clone(), &object.namespace, &kind)
        };
        (api, json!({ "apiVersion": kind.api_version, "kind": object.kind, "metadata": { "name": object.name } }))
    }

    /// Applies fields of an object under a field manager's name; what that manager owned and no longer says goes. An object
    /// that is not there is made.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn apply(&self, object: &Ref, manager: &str, fields: serde_json::Value) -> anyhow::Result<()> {
        let (api, mut body) = self.any(object);
        merge(&mut body, fields);
        match api.patch(&object.name, &PatchParams::apply(manager).force(), &Patch::Apply(&body)).await {
            Ok(_) => Ok(()),
            // One error for all objects of the kind.
            Err(kube::Error::Api(e)) if is_unknown_kind(&e) => {
                anyhow::bail!("the API server does not know {} of {:?}: install its CRD", object.kind, object.group)
            }
            Err(e) => Err(e).with_context(|| format!("cannot write {object}")),
        }
    }

    /// Removes an object, if it is there and has this label.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn remove(&self, object: &Ref, label: &str) -> anyhow::Result<()> {
        if self.is_foreign(object, label).await? {
            return Ok(());
        }
        match self.any(object).0.delete(&object.name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(e)) if e.code == 404 => Ok(()),
            Err(e) => Err(e).with_context(|| format!("cannot remove {object}")),
        }
    }

    /// Is there such an object without this label: somebody else's?
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn is_foreign(&self, object: &Ref, label: &str) -> anyhow::Result<bool> {
        let found = self.any(object).0.get_metadata_opt(&object.name).await.with_context(|| format!("{object}"))?;
        Ok(found.is_some_and(|o| !o.metadata.labels.unwrap_or_default().contains_key(label)))
    }

    /// The same for the status. An object that is gone is no error.
    ///
    /// # Errors
    /// Those of the API server.
    pub async fn apply_status(&self, object: &Ref, manager: &str, status: serde_json::Value) -> anyhow::Result<()> {
        // An older release of the CRDs may not have the version.
        let older = OLDER.iter().find(|(k, _)| *k == object.kind).map(|(_, version)| Ref { version, ..object.clone() });
        for object in std::iter::once(object).chain(&older) {
            let (api, mut body) = self.any(object);
            body["status"] = status.clone();
            match api.patch_status(&object.name, &PatchParams::apply(manager).force(), &Patch::Apply(&body)).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(e)) if e.code == 404 => {}
                Err(e) => return Err(e).with_context(|| format!("cannot write the status of {object}")),
            }
        }
        Ok(())
    }
}

/// An object that is applied is made where it lacks: what is not found is its kind, or else its namespace.
fn is_unknown_kind(status: &Status) -> bool {
    status.code == 404 && !status.message.contains("namespaces ")
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    match (into, from) {
        (serde_json::Value::Object(a), serde_json::Value::Object(b)) => {
            for (k, v) in b {
                merge(a.entry(k).or_insert(serde_json::Value::Null), v);
            }
        }
        (a, b) => *a = b,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    /// Answers of a Kubernetes 1.34.
    #[test]
    fn a_pod_that_has_taken_the_name_is_another_and_a_refusal_is_not() {
        let said = |code: u16, field: &str| {
            let cause = json!({ "reason": "FieldValueInvalid", "message": "Invalid value: \"x\": field is immutable", "field": field });
            let status = json!({ "status": "Failure", "message": "Pod \"p\" is invalid", "reason": "Invalid", "details": { "name": "p", "kind": "Pod", "causes": [cause] }, "code": code });
            is_another(&serde_json::from_value(status).unwrap())
        };
        assert!(said(422, "metadata.uid") && said(409, ""));
        assert!(!said(422, "status.podIPs") && !said(403, "metadata.uid"));
    }

    /// The webhooks that only warn are never obligatory, and are reached by the same root.
    #[test]
    fn all_webhooks_get_the_root_and_one_the_policy() {
        let config = |roots: [&str; 2], policy: &str| -> ValidatingWebhookConfiguration {
            let one = |(name, root): (&str, &str)| json!({ "name": name, "clientConfig": { "caBundle": ByteString(root.into()) }, "failurePolicy": policy, "sideEffects": "None", "admissionReviewVersions": ["v1"] });
            let all: Vec<_> = ["warnings.karst.io", WEBHOOK].into_iter().zip(roots).map(one).collect();
            serde_json::from_value(json!({ "metadata": {}, "webhooks": all })).unwrap()
        };
        let of = |roots, policy| WebhookState::of(&config(roots, policy)).unwrap();
        assert_eq!(of(["r", "r"], "Fail"), WebhookState { root: "r".into(), fail: true });
        // An upgrade adds webhooks that lack it: written to all, and nothing is let through meanwhile.
        assert_eq!(of(["", "r"], "Fail"), WebhookState { root: vec![], fail: true });
        assert_eq!(of(["", "r"], "Ignore"), WebhookState::default());
        // `Fail` with a root that nobody has: never tried.
        assert_eq!(of(["r", ""], "Fail"), WebhookState::default());
        let patch = webhooks_patch(["warnings.karst.io", WEBHOOK].into_iter(), &of(["r", "r"], "Fail"));
        assert!(patch["webhooks"][0]["failurePolicy"].is_null());
        assert_eq!(patch["webhooks"][1]["failurePolicy"], "Fail");
        assert_eq!(patch["webhooks"][0]["clientConfig"], patch["webhooks"][1]["clientConfig"]);
    }

    #[test]
    fn a_kind_that_is_gone_is_told_from_a_namespace_that_is() {
        let said = |code: u16, message: &str| {
            is_unknown_kind(&serde_json::from_value(json!({ "message": message, "code": code })).unwrap())
        };
        assert!(said(404, "404 page not found"));
        assert!(!said(404, "namespaces \"app\" not found") && !said(403, "404 page not found"));
    }
}
