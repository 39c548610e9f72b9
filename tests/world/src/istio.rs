//! Istio's node agent, as far as a ztunnel sees it: the rules that it sets in a pod and on the node, and its side of ZDS. It opens
//! no listeners and sends none. What it does is taken from Istio's sources (cni/pkg/{iptables,nftables,nodeagent}, 1.32-dev).

mod agent;
mod rules;

pub use agent::IstioAgent;
pub use rules::{Capture, Rules, probe_addresses};

use crate::{Pod, PodSpec, World};
use std::collections::BTreeSet;

impl World {
    /// A node's agent of Istio's.
    ///
    /// # Panics
    /// The world has Karst's agents.
    pub fn istio_agent(&self, node: usize) -> &IstioAgent {
        self.nodes[node].istio.as_ref().expect("the world was started with Options::istio")
    }

    /// A pod of an enrolled namespace, taken into the mesh as Istio's agent does it: the rules first, then ztunnel's word, then the
    /// annotation. Ready for use.
    ///
    /// # Panics
    /// If one of them is refused.
    pub fn istio_pod(&mut self, spec: PodSpec, capture: &Capture) -> Pod {
        let pod = self.pod(spec);
        let rules = self.options.istio.expect("the world was started with Options::istio");
        let node = pod.spec.node;
        rules.redirect(&pod, capture).expect("rules of a pod");
        rules::exempt_probes(&self.nodes[node].ns, &pod).expect("rules of the node");
        let said = self.istio_agent(node).add(&pod);
        assert_eq!(said, "", "ztunnel's word on {}", pod.uid);
        self.report(&pod, true);
        self.settle();
        pod
    }

    /// Ends what Istio's agent does for a pod: ztunnel is told, then the rules go.
    ///
    /// # Panics
    /// If the rules cannot be removed.
    pub fn istio_release(&self, pod: &Pod) {
        self.report(pod, false);
        self.istio_agent(pod.spec.node).del(&pod.uid);
        self.options.istio.expect("as above").restore(pod).expect("rules of a pod");
        self.settle();
    }

    /// In directory mode, what stands in place of the annotation.
    fn report(&self, pod: &Pod, enrolled: bool) {
        let (dir, node) = (self.dir.join("manifests"), &self.nodes[pod.spec.node].name);
        let (namespace, name) = (&pod.spec.namespace, &pod.spec.name);
        karst_manifest::status::write(&dir, node, namespace, name, enrolled).expect("a report");
        let key = format!("{namespace}/{name}");
        crate::wait_for("the report is there", std::time::Duration::from_secs(5), || {
            let all: BTreeSet<String> = karst_manifest::status::read(&dir);
            (all.contains(&key) == enrolled).then_some(())
        });
    }
}
