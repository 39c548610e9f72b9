//! Where the agent learns what is asked for, and where it says what is in force: Kubernetes, or a directory of manifests.

use anyhow::Context;
use karst_kube::{Kube, Watch};
use karst_manifest::{Dir, Object, State, status};
use std::{collections::BTreeSet, path::PathBuf};

/// Annotation that says what is in force (Istio's).
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// The objects.
pub enum Source {
    /// A directory of manifests.
    Dir(Dir),
    /// The API server: this node's pods, and all namespaces.
    Kubernetes(karst_kube::Source),
}

impl Source {
    /// Watches the pods of a node.
    pub async fn of_node(kube: &Kube, node: &str) -> Self {
        let pods = Watch { fields: format!("spec.nodeName={node}"), ..Watch::all("Pod") };
        let mut s = karst_kube::Source::start(kube, vec![Watch::all("Namespace"), pods]);
        s.synced().await;
        Source::Kubernetes(s)
    }
    /// Waits for a change.
    pub async fn changed(&mut self) {
        match self {
            Source::Dir(d) => d.changed().await,
            Source::Kubernetes(k) => k.changed().await,
        }
    }
    /// The state now.
    pub fn read(&mut self) -> State {
        match self {
            Source::Dir(d) => d.read(),
            Source::Kubernetes(k) => k.state(),
        }
    }
}

/// Where it says what is in force.
pub enum Report {
    /// Files beside the manifests.
    Dir(PathBuf),
    /// An annotation of the pod.
    Kubernetes(Kube),
}

impl Report {
    /// Says whether a pod is redirected.
    pub async fn set(&self, node: &str, (namespace, name, uid): (&str, &str, &str), on: bool) -> anyhow::Result<()> {
        match self {
            Report::Dir(d) => status::write(d, node, namespace, name, on).context("cannot report the pod's status"),
            Report::Kubernetes(k) => k.annotate_pod((namespace, name, uid), REDIRECTION, on.then_some("enabled")).await,
        }
    }

    /// Does a pod that is shown as running lack what was said of it?
    pub fn lacks(&self, state: &State, uid: &str) -> bool {
        let Report::Kubernetes(_) = self else { return false };
        let mut pods = state.objects.iter().filter_map(|o| match &o.object {
            Object::Pod(p) => Some(p),
            _ => None,
        });
        pods.any(|p| {
            p.metadata.uid == uid && p.metadata.annotations.get(REDIRECTION).map(String::as_str) != Some("enabled")
        })
    }

    /// Withdraws what an earlier agent said of pods that are not in `keep` (`namespace/name`).
    pub async fn retain(&self, node: &str, state: &State, keep: &BTreeSet<String>) {
        let kube = match self {
            Report::Dir(d) => {
                let _ = status::retain(d, node, keep);
                return;
            }
            Report::Kubernetes(k) => k,
        };
        for o in &state.objects {
            let Object::Pod(p) = &o.object else { continue };
            let m = &p.metadata;
            if m.annotations.contains_key(REDIRECTION)
                && !p.spec.host_network
                && !keep.contains(&format!("{}/{}", m.namespace, m.name))
                && let Err(e) = kube.annotate_pod((&m.namespace, &m.name, &m.uid), REDIRECTION, None).await
            {
                tracing::warn!(error = format!("{e:#}"), "annotation of a pod that is not redirected");
            }
        }
    }
}
