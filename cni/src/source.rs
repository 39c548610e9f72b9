//! Where the agent learns what is asked for, and where it says what is in force: Kubernetes, or a directory of manifests.

use anyhow::Context;
use karst_kube::{Kube, Source, Watch, Watched};
use karst_manifest::{Object, State, kinds::Meta, status};
use std::{
    collections::{BTreeSet, HashSet},
    path::PathBuf,
};

/// Annotation that says what is in force (Istio's).
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// Watches the pods of a node, and all namespaces.
pub async fn of_node(kube: &Kube, node: &str) -> Source {
    let pods = Watch { fields: format!("spec.nodeName={node}"), ..Watch::all("Pod") };
    let mut watched = Watched::start(kube, vec![Watch::all("Namespace"), pods]);
    watched.synced().await;
    Source::Kubernetes(watched)
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

    /// Warns of a pod, where its owner looks. (A directory has no such place; the log has it.)
    pub async fn warn(&self, node: &str, pod: (&str, &str, &str), reason: &str, text: &str) {
        let Report::Kubernetes(kube) = self else { return };
        if let Err(e) = kube.warn_pod(pod, ("istio-cni", node), reason, text).await {
            tracing::warn!(error = format!("{e:#}"), "the event is only in the log");
        }
    }

    /// The pods (by uid) that are not shown as redirected.
    pub fn lacking<'a>(&self, state: &'a State) -> HashSet<&'a str> {
        let Report::Kubernetes(_) = self else { return HashSet::new() };
        let pods = state.objects.iter().filter_map(|o| match &o.object {
            Object::Pod(p) => Some(&p.metadata),
            _ => None,
        });
        let lacks = |m: &&Meta| m.annotations.get(REDIRECTION).map(String::as_str) != Some("enabled");
        pods.filter(lacks).map(|m| m.uid.as_str()).collect()
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
        for located in &state.objects {
            let Object::Pod(pod) = &located.object else { continue };
            let meta = &pod.metadata;
            if meta.annotations.contains_key(REDIRECTION)
                && !pod.spec.host_network
                && !keep.contains(&format!("{}/{}", meta.namespace, meta.name))
                && let Err(e) = kube.annotate_pod((&meta.namespace, &meta.name, &meta.uid), REDIRECTION, None).await
            {
                tracing::warn!(error = format!("{e:#}"), "annotation of a pod that is not redirected");
            }
        }
    }
}
