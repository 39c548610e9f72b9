//! NetworkPolicies of Kubernetes: within the mesh a connection is one to port 15008, so that a policy that names the
//! application's port alone closes it. They are enforced by the network plugin, not by the mesh.

use crate::answer::Object;
use karst_core::Cidr;
use karst_manifest::kinds::{LabelSelector, Labels};
use serde::Deserialize;
use serde_json::Value;
use std::{net::IpAddr, path::PathBuf};

/// One policy, as far as it decides about TCP.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkPolicy {
    object: Object,
    spec: Spec,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    pod_selector: LabelSelector,
    policy_types: Vec<String>,
    ingress: Vec<Rule>,
    egress: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Rule {
    from: Vec<Peer>,
    to: Vec<Peer>,
    ports: Vec<Port>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Peer {
    pod_selector: Option<LabelSelector>,
    namespace_selector: Option<LabelSelector>,
    ip_block: Option<Block>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Block {
    cidr: String,
    except: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Port {
    protocol: Option<String>,
    port: Option<Value>,
    end_port: Option<u16>,
}

/// One end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct End<'a> {
    pub(crate) ip: IpAddr,
    /// None: it is no pod.
    pub(crate) pod: Option<PodEnd<'a>>,
}

/// A pod, as selectors see it.
#[derive(Clone, Debug)]
pub(crate) struct PodEnd<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) labels: &'a Labels,
    /// Labels of its namespace.
    pub(crate) around: &'a Labels,
}

/// Which way a policy looks at a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

impl NetworkPolicy {
    /// Reads one; None: it is another kind, or cannot be read. `file` and `line`: where it is written.
    pub fn read(value: &Value, file: Option<PathBuf>, line: usize) -> Option<Self> {
        let at = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        if at("/kind") != "NetworkPolicy" || !at("/apiVersion").starts_with("networking.k8s.io/") {
            return None;
        }
        let spec = serde_json::from_value(value.get("spec").cloned().unwrap_or_default()).ok()?;
        let namespace = Some(at("/metadata/namespace")).filter(|name| !name.is_empty()).unwrap_or("default");
        let (namespace, name) = (namespace.into(), at("/metadata/name").into());
        Some(Self { object: Object { kind: "NetworkPolicy".into(), namespace, name, file, line }, spec })
    }

    fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        let (kind, rules) = match direction {
            Direction::Ingress => ("Ingress", &self.spec.ingress),
            Direction::Egress => ("Egress", &self.spec.egress),
        };
        // Without policyTypes: ingress always, egress if there are rules for it.
        let is_of = match self.spec.policy_types.is_empty() {
            true => direction == Direction::Ingress || !rules.is_empty(),
            false => self.spec.policy_types.iter().any(|one| one == kind),
        };
        is_of.then_some(rules)
    }

    fn isolates(&self, pod: &PodEnd<'_>, direction: Direction) -> bool {
        self.object.namespace == pod.namespace
            && self.spec.pod_selector.selects(pod.labels)
            && self.rules(direction).is_some()
    }

    fn admits(&self, direction: Direction, other: &End<'_>, port: u16) -> bool {
        self.rules(direction).unwrap_or_default().iter().any(|rule| {
            let peers = if direction == Direction::Ingress { &rule.from } else { &rule.to };
            (peers.is_empty() || peers.iter().any(|peer| peer.is(other, &self.object.namespace)))
                && (rule.ports.is_empty() || rule.ports.iter().any(|one| one.is(port)))
        })
    }
}

impl Peer {
    fn is(&self, end: &End<'_>, own: &str) -> bool {
        if let Some(block) = &self.ip_block {
            let within = |text: &String| text.parse::<Cidr>().is_ok_and(|range| range.contains(end.ip));
            return within(&block.cidr) && !block.except.iter().any(within);
        }
        let Some(pod) = &end.pod else { return false };
        let namespace = match &self.namespace_selector {
            Some(selector) => selector.selects(pod.around),
            None => pod.namespace == own,
        };
        namespace && self.pod_selector.as_ref().is_none_or(|selector| selector.selects(pod.labels))
    }
}

impl Port {
    /// Is it this port of TCP? One that is named is taken for another: the tunnel's has no name in pods of applications.
    fn is(&self, port: u16) -> bool {
        let number = self.port.as_ref().map(|port| port.as_u64().and_then(|number| u16::try_from(number).ok()));
        let fits = match (number, self.end_port) {
            (None, _) => true,
            (Some(None), _) => false,
            (Some(Some(first)), Some(last)) => (first..=last).contains(&port),
            (Some(Some(only)), None) => only == port,
        };
        fits && self.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
    }
}

/// The policy that closes a connection, and in whose direction.
pub(crate) fn closes<'p>(
    policies: &'p [NetworkPolicy],
    from: &End<'_>,
    to: &End<'_>,
    port: u16,
) -> Option<(&'p Object, &'static str)> {
    for (own, other, direction) in [(to, from, Direction::Ingress), (from, to, Direction::Egress)] {
        let Some(pod) = &own.pod else { continue };
        let mut isolating = policies.iter().filter(|policy| policy.isolates(pod, direction)).peekable();
        let Some(first) = isolating.peek().map(|policy| &policy.object) else { continue };
        if !isolating.any(|policy| policy.admits(direction, other, port)) {
            let text = if direction == Direction::Ingress { "into the pod" } else { "out of the pod" };
            return Some((first, text));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    fn policy(spec: &str) -> NetworkPolicy {
        let text = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: a}}, spec: {spec}}}"
        );
        NetworkPolicy::read(&serde_yaml_ng::from_str(&text).unwrap(), None, 0).unwrap()
    }

    #[test]
    fn a_connection_is_closed_as_kubernetes_says() {
        let labels = |key: &str, value: &str| Labels::from([(key.to_string(), value.to_string())]);
        let (web, app, own, other) = (labels("app", "web"), labels("app", "b"), labels("n", "a"), labels("n", "b"));
        let pod = |namespace, labels, around, ip: &str| End {
            ip: ip.parse().unwrap(),
            pod: Some(PodEnd { namespace, labels, around }),
        };
        let (to, near) = (pod("a", &web, &own, "10.0.0.1"), pod("a", &app, &own, "10.0.0.2"));
        let (far, outside) =
            (pod("b", &app, &other, "10.0.1.2"), End { ip: "203.0.113.9".parse().unwrap(), pod: None });
        for (spec, from, port, closed) in [
            ("{podSelector: {}}", &near, 80, true),
            ("{podSelector: {matchLabels: {app: x}}}", &near, 80, false),
            ("{podSelector: {}, policyTypes: [Egress]}", &far, 80, false),
            ("{podSelector: {}, ingress: [{}]}", &outside, 80, false),
            ("{podSelector: {}, ingress: [{ports: [{port: 80}]}]}", &near, 80, false),
            ("{podSelector: {}, ingress: [{ports: [{port: 80}]}]}", &near, 15008, true),
            ("{podSelector: {}, ingress: [{ports: [{port: 15000, endPort: 15010}]}]}", &near, 15008, false),
            ("{podSelector: {}, ingress: [{ports: [{port: http}]}]}", &near, 15008, true),
            ("{podSelector: {}, ingress: [{ports: [{port: 80, protocol: UDP}]}]}", &near, 80, true),
            ("{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}", &near, 80, false),
            ("{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}", &far, 80, true),
            ("{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {n: b}}}]}]}", &far, 80, false),
            ("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}", &outside, 80, false),
            (
                "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.9/32]}}]}]}",
                &outside,
                80,
                true,
            ),
        ] {
            assert_eq!(closes(&[policy(spec)], from, &to, port).is_some(), closed, "{spec} {port}");
        }
        let egress = [policy("{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53}]}]}")];
        assert_eq!(closes(&egress, &near, &far, 15008).map(|(_, way)| way), Some("out of the pod"));
        let two = [policy("{podSelector: {}}"), policy("{podSelector: {}, ingress: [{}]}")];
        assert!(closes(&two, &near, &to, 80).is_none(), "one that admits is enough");
    }
}
