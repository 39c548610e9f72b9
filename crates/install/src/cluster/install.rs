//! Applies a manifest, component by component: the control plane, the node agent, the node proxies, the gateways. Each is ready
//! before the next begins, so that an upgrade never has proxies that are newer than what they talk to.

use super::{
    ClusterError, Progress, Target,
    access::{display, name},
    change,
    ready::{self, Readiness},
    record, remove,
};
use crate::manifest::{Manifest, Part, Stage};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::{Instant, sleep};

/// How often the cluster is asked.
const POLL: Duration = Duration::from_millis(700);

/// An installation or an upgrade.
#[derive(Debug)]
pub struct Install<'m> {
    /// What is to be there.
    pub manifest: &'m Manifest,
    /// How long each component may take to be ready.
    pub timeout: Duration,
    /// What an older version has left, from [`Install::obsolete`].
    pub obsolete: Vec<Value>,
    /// CRDs of other revisions, as this one needs them, from [`super::Changes::shared`].
    pub shared: Vec<Value>,
}

impl Install<'_> {
    /// Objects of this installation that its manifest no longer has. CRDs are never among them: their objects would go,
    /// too; nor is what the manifest leaves as it is, such as gateways that run.
    ///
    /// # Errors
    /// If the API server cannot be asked.
    pub async fn obsolete(target: &Target, manifest: &Manifest) -> Result<Vec<Value>, ClusterError> {
        let wanted: BTreeSet<String> = manifest.objects().map(display).collect();
        let owned = remove::owned(target, Some((&manifest.owner, &manifest.namespace))).await?;
        Ok(owned
            .into_iter()
            .filter(|object| !wanted.contains(&display(object)) && Stage::of(object) != Stage::Crd)
            .filter(|object| !record::is_record(object) && !manifest.leaves(object))
            .collect())
    }

    /// Does it.
    ///
    /// # Errors
    /// If something is refused, or not ready in time; what was applied stays, and running it again goes on.
    pub async fn run(&self, target: &Target, tell: &mut dyn FnMut(Progress)) -> Result<(), ClusterError> {
        self.namespaces(target).await?;
        for crd in &self.shared {
            target.apply(crd, true).await?;
        }
        if !self.shared.is_empty() {
            self.wait(target, &self.shared, tell).await?;
            tell(Progress::Ready("CRDs of this release".into()));
        }
        for part in &self.manifest.parts {
            tell(Progress::Begins(title(part)));
            let webhooks = part.objects.partition_point(|object| Stage::of(object) < Stage::Webhook);
            let (before, after) = part.objects.split_at(webhooks);
            for stage in before.chunk_by(|left, right| Stage::of(left) == Stage::of(right)) {
                for object in stage {
                    target.apply(object, true).await?;
                }
                self.wait(target, stage, tell).await?;
            }
            // These judge others' objects: only now there is somebody to answer.
            for object in after {
                let there = target.get(object).await?;
                target.apply(&change::kept(object, there.as_ref()), true).await?;
            }
            tell(Progress::Ready(title(part)));
        }
        // Webhooks go first, so that what they call is never missed.
        for object in remove::in_order(&self.obsolete) {
            if target.delete(object).await? {
                tell(Progress::Removed(display(object)));
            }
        }
        Ok(())
    }

    /// Namespaces that objects are in. They are nobody's: an uninstallation leaves them.
    async fn namespaces(&self, target: &Target) -> Result<(), ClusterError> {
        let mut names: BTreeSet<&str> =
            self.manifest.objects().filter_map(|object| object["metadata"]["namespace"].as_str()).collect();
        names.insert(&self.manifest.namespace);
        for name in names {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            if target.get(&namespace).await?.is_none() {
                target.apply(&namespace, true).await?;
            }
        }
        Ok(())
    }

    async fn wait(
        &self,
        target: &Target,
        objects: &[Value],
        tell: &mut dyn FnMut(Progress),
    ) -> Result<(), ClusterError> {
        let ends = Instant::now() + self.timeout;
        let mut told = String::new();
        loop {
            let mut waiting = Vec::new();
            for object in objects {
                let Some(mut there) = target.get(object).await? else {
                    waiting.push(format!("{}: not there yet", display(object)));
                    continue;
                };
                // Written without it in what is read back.
                there["kind"] = object["kind"].clone();
                if let Readiness::Waiting(lacks) = ready::of(&there) {
                    let why = why(target, &there).await.unwrap_or_default();
                    waiting.push(format!("{}: {lacks}{why}", display(object)));
                }
            }
            if waiting.is_empty() {
                return Ok(());
            }
            let text = waiting.join("; ");
            if Instant::now() >= ends {
                let namespace = self.manifest.namespace.clone();
                return Err(ClusterError::NotReady { seconds: self.timeout.as_secs(), waiting: text, namespace });
            }
            if text != told {
                tell(Progress::Waits(text.clone()));
                told = text;
            }
            sleep(POLL).await;
        }
    }
}

/// As istioctl prints it; a gateway of another name than the profiles' has it, too.
fn title(part: &Part) -> String {
    let title = part.kind.title();
    let is_usual =
        !title.ends_with("gateways") || ["istio-ingressgateway", "istio-egressgateway"].contains(&&*part.name);
    if is_usual { title.into() } else { format!("{title} ({})", part.name) }
}

/// What the pods of a workload complain about, or else its events.
async fn why(target: &Target, object: &Value) -> Result<String, ClusterError> {
    let Some(labels) = ready::selector(object) else { return Ok(String::new()) };
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let pods = target.list("v1", "Pod", Some(namespace), &labels).await?;
    if let Some(trouble) = pods.iter().find_map(ready::trouble) {
        return Ok(format!(" ({trouble})"));
    }
    // Mounts, probes and quotas are told in events only.
    let unready = pods.iter().find(|pod| !is_ready(pod));
    let of = unready.map_or(name(object), name);
    let last = target.warnings(namespace, of).await?.pop();
    Ok(last.map_or(String::new(), |event| format!(" ({of}: {event})")))
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}
