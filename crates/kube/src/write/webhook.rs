//! The configuration of the validating webhook.

use crate::Kube;
use anyhow::Context;
use futures_util::StreamExt;
use k8s_openapi::{
    ByteString,
    api::admissionregistration::v1::{ValidatingWebhook, ValidatingWebhookConfiguration},
};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use std::collections::BTreeMap;

/// The webhooks that refuse. The first that there is says whether the server is reached: the others are the same server's, for
/// objects of other labels.
const REFUSING: [&str; 3] = ["rev.validation.istio.io", "validation.istio.io", "own.validation.istio.io"];
/// Label: the revision whose control plane a configuration leads to, or that an object is for.
const REVISION: &str = "istio.io/rev";

/// What a webhook configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebhookState {
    /// PEM of the root that its server is verified by.
    pub root: Vec<u8>,
    /// Is what it cannot be asked about refused (`failurePolicy: Fail`), and has it been reached by a root of ours? A webhook
    /// that comes beside it, without any root yet, does not open it.
    pub fail: bool,
    /// The revision that its server is of.
    pub revision: String,
    /// Namespace and name of the Service that it asks.
    pub service: (String, String),
}

impl WebhookState {
    fn of(config: &ValidatingWebhookConfiguration) -> Option<Self> {
        let all = config.webhooks.as_ref()?;
        let main = REFUSING.iter().find_map(|name| all.iter().find(|w| w.name == *name)).or(all.first())?;
        let root = |w: &ValidatingWebhook| w.client_config.ca_bundle.clone().map(|b| b.0).unwrap_or_default();
        // One that lacks it has it written for all.
        let same = all.iter().all(|w| root(w) == root(main));
        Some(Self {
            root: if same { root(main) } else { vec![] },
            fail: main.failure_policy.as_deref() == Some("Fail") && !root(main).is_empty(),
            revision: config
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(REVISION))
                .cloned()
                .unwrap_or_default(),
            service: main
                .client_config
                .service
                .as_ref()
                .map(|service| (service.namespace.clone(), service.name.clone()))
                .unwrap_or_default(),
        })
    }
}

/// What is to be written to the webhooks of these names: the root to all, the policy to those that refuse.
fn webhooks_patch<'a>(names: impl Iterator<Item = &'a str>, state: &WebhookState) -> serde_json::Value {
    let policy = if state.fail { "Fail" } else { "Ignore" };
    let one = |name: &str| {
        let mut webhook = json!({ "name": name, "clientConfig": { "caBundle": ByteString(state.root.clone()) } });
        if REFUSING.contains(&name) {
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

    /// What a ValidatingWebhookConfiguration says; none if there is none of the name.
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

    /// Does the API server refuse an object that has this annotation, and is for this revision, in these words of one webhook (`by`)?
    /// Another's refusal says nothing of that one. Nothing is created.
    ///
    /// # Errors
    /// What else the API server says.
    pub async fn is_refused(
        &self,
        (namespace, name): (&str, &str),
        annotation: &str,
        revision: Option<&str>,
        by: &str,
    ) -> anyhow::Result<bool> {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("networking.istio.io", "v1", "WorkloadEntry"));
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind);
        let mut object = DynamicObject::new(name, &kind).data(json!({ "spec": { "address": "192.0.2.1" } }));
        object.metadata.annotations = Some(BTreeMap::from([(annotation.to_string(), "true".to_string())]));
        object.metadata.labels = revision.map(|name| BTreeMap::from([(REVISION.to_string(), name.to_string())]));
        match api.create(&PostParams { dry_run: true, ..PostParams::default() }, &object).await {
            Ok(_) => Ok(false),
            Err(kube::Error::Api(e)) if e.message.contains("denied the request") => Ok(e.message.contains(by)),
            Err(e) => Err(e).context("the webhook cannot be tested"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    /// The webhooks that only warn are never obligatory, and are reached by the same root.
    #[test]
    fn all_webhooks_get_the_root_and_those_that_refuse_the_policy() {
        const NAMES: [&str; 3] = ["warnings.karst.io", "rev.validation.istio.io", "own.validation.istio.io"];
        let config = |roots: [&str; 3], policies: [&str; 3]| -> ValidatingWebhookConfiguration {
            let one = |((name, root), policy): ((&str, &str), &str)| json!({ "name": name, "clientConfig": { "caBundle": ByteString(root.into()), "service": { "namespace": "ns", "name": "istiod" } }, "failurePolicy": policy, "sideEffects": "None", "admissionReviewVersions": ["v1"] });
            let all: Vec<_> = NAMES.into_iter().zip(roots).zip(policies).map(one).collect();
            let labels = json!({ "istio.io/rev": "canary" });
            serde_json::from_value(json!({ "metadata": { "labels": labels }, "webhooks": all })).unwrap()
        };
        let of = |roots, policies| WebhookState::of(&config(roots, policies)).unwrap();
        let state = |root: &str, fail: bool| WebhookState {
            root: root.into(),
            fail,
            revision: "canary".into(),
            service: ("ns".into(), "istiod".into()),
        };
        const FAIL: [&str; 3] = ["Ignore", "Fail", "Fail"];
        assert_eq!(of(["r"; 3], FAIL), state("r", true));
        // An upgrade adds webhooks that lack it: written to all, and nothing is let through meanwhile.
        assert_eq!(of(["", "r", "r"], FAIL), state("", true));
        assert_eq!(of(["", "r", "r"], ["Ignore"; 3]), state("", false));
        // `Fail` with a root that nobody has: never tried. The same of one that an upgrade adds.
        assert_eq!(of(["r", "", ""], FAIL), state("", false));
        // One that an upgrade adds opens nothing: the first of them has been reached.
        assert_eq!(of(["r", "r", ""], ["Ignore", "Fail", "Ignore"]), state("", true));
        let patch = webhooks_patch(NAMES.into_iter(), &of(["r"; 3], FAIL));
        assert!(patch["webhooks"][0]["failurePolicy"].is_null());
        for i in [1, 2] {
            assert_eq!(patch["webhooks"][i]["failurePolicy"], "Fail");
            assert_eq!(patch["webhooks"][0]["clientConfig"], patch["webhooks"][i]["clientConfig"]);
        }
    }
}
