//! Where the agent learns what is asked for, and where it says what is in force: Kubernetes, or a directory of manifests.

use anyhow::Context;
use karst_kube::{Events, Kube, Notice, Ref, Source, Watch, Watched};
use karst_manifest::{Object, State, kinds::Meta, status};
use std::{
    collections::{BTreeSet, HashSet},
    path::PathBuf,
};

/// Annotation that says what is in force (Istio's).
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// What is told of a pod: its event.
fn notice((namespace, name, uid): (&str, &str, &str), reason: &'static str, text: String) -> Notice {
    let about = Ref { group: "", version: "v1", kind: "Pod", namespace: namespace.into(), name: name.into() };
    Notice { about, uid: uid.into(), reason, action: "Redirect", text }
}

/// Watches the pods of a node, and all namespaces.
pub async fn of_node(kube: &Kube, node: &str) -> Source {
    let pods = Watch { fields: format!("spec.nodeName={node}"), ..Watch::all("Pod") };
    let mut watched = Watched::start(kube, vec![Watch::all("Namespace"), pods]);
    watched.synced().await;
    Source::Kubernetes(Box::new(watched))
}

/// Where it says what is in force.
pub enum Report {
    /// Files beside the manifests.
    Dir(PathBuf),
    /// An annotation of the pod, and events on it.
    Kubernetes(Kube, Events),
}

impl Report {
    /// To the API server, as the agent of a node.
    pub fn of_node(kube: &Kube, node: &str) -> Self {
        Report::Kubernetes(kube.clone(), Events::start(kube, "istio-cni", node))
    }

    /// Says whether a pod is redirected.
    pub async fn set(&self, node: &str, (namespace, name, uid): (&str, &str, &str), on: bool) -> anyhow::Result<()> {
        match self {
            Report::Dir(d) => status::write(d, node, namespace, name, on).context("cannot report the pod's status"),
            Report::Kubernetes(k, _) => {
                k.annotate_pod((namespace, name, uid), REDIRECTION, on.then_some("enabled")).await
            }
        }
    }

    /// Warns of a pod, where its owner looks. (A directory has no such place; the log has it.)
    pub fn warn(&self, pod: (&str, &str, &str), reason: &'static str, text: String) {
        if let Report::Kubernetes(_, events) = self {
            events.tell(notice(pod, reason, text));
        }
    }

    /// The pods (by uid) that are not shown as redirected.
    pub fn lacking<'a>(&self, state: &'a State) -> HashSet<&'a str> {
        let Report::Kubernetes(..) = self else { return HashSet::new() };
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
            Report::Kubernetes(k, _) => k,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// `kubectl describe` finds an event by its object's uid; tools, by its reason (docs/operations.md).
    #[test]
    fn a_closed_pod_is_told_of_on_the_pod() {
        let text = "its network namespace holds none of its addresses";
        let told = notice(("shop", "web-0", "u-1"), "NotRedirected", text.into());
        assert_eq!((told.about.group, told.about.version, told.about.kind), ("", "v1", "Pod"));
        assert_eq!((&*told.about.namespace, &*told.about.name, &*told.uid), ("shop", "web-0", "u-1"));
        assert_eq!((told.reason, told.action, &*told.text), ("NotRedirected", "Redirect", text));
    }
}
