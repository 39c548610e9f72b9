//! Selectors of policies and telemetries.

use super::objects::{Item, Objects, selects};
use crate::analysis::{Level, Message};
use std::collections::BTreeMap;

/// Label of pods that were deployed for a Gateway.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// What has a selector: kind, group.
const SELECTING: [(&str, &str); 4] = [
    ("AuthorizationPolicy", "security.istio.io"),
    ("PeerAuthentication", "security.istio.io"),
    ("RequestAuthentication", "security.istio.io"),
    ("Telemetry", "telemetry.istio.io"),
];

fn selector(item: &Item) -> BTreeMap<&str, &str> {
    item.labels("/spec/selector/matchLabels")
}

fn has_target(item: &Item) -> bool {
    ["/spec/targetRef", "/spec/targetRefs"].iter().any(|at| item.value.pointer(at).is_some())
}

/// Selectors that select nothing (IST0127), and those that select pods of a Gateway (IST0166).
pub(super) fn selectors(objects: &Objects) -> Vec<Message> {
    // Files alone have no pods: nothing can be said.
    if objects.pods().next().is_none() {
        return vec![];
    }
    let mut out = vec![];
    for (kind, group) in SELECTING {
        for item in objects.of(kind, group) {
            let wanted = selector(item);
            if wanted.is_empty() {
                continue;
            }
            let of_all = item.namespace() == objects.root_namespace;
            let selected: Vec<&Item> = objects
                .pods()
                .filter(|pod| of_all || pod.namespace() == item.namespace())
                .filter(|pod| selects(&wanted, &pod.labels("/metadata/labels")))
                .collect();
            let shown: Vec<String> = wanted.iter().map(|(name, value)| format!("{name}={value}")).collect();
            if selected.is_empty() {
                let message = format!("spec.selector: no pod has the labels {}: correct them", shown.join(","));
                out.push(item.say("IST0127", Level::Warning, message));
            } else if selected.iter().all(|pod| pod.labels("/metadata/labels").contains_key(GATEWAY_NAME)) {
                let message = "spec.selector: selects pods of a Gateway only, where it has no effect: use targetRefs \
                               with kind Gateway";
                out.push(item.say("IST0166", Level::Warning, message.into()));
            }
        }
    }
    out
}

/// Telemetries for the same pod (IST0159) or the same namespace (IST0160).
pub(super) fn telemetries(objects: &Objects) -> Vec<Message> {
    let all: Vec<&Item> = objects.of("Telemetry", "telemetry.istio.io").filter(|item| !has_target(item)).collect();
    let mut out = vec![];
    for (at, item) in all.iter().enumerate() {
        for other in all.iter().skip(at + 1).filter(|other| other.namespace() == item.namespace()) {
            let (one, two) = (selector(item), selector(other));
            let (code, place) = if one.is_empty() && two.is_empty() {
                ("IST0160", format!("namespace {}", item.namespace()))
            } else if one.is_empty() || two.is_empty() {
                // The one with a selector is the more specific: they are laid over each other.
                continue;
            } else {
                let both = |pod: &&Item| {
                    let labels = pod.labels("/metadata/labels");
                    pod.namespace() == item.namespace() && selects(&one, &labels) && selects(&two, &labels)
                };
                let Some(pod) = objects.pods().find(both) else { continue };
                ("IST0159", format!("pod {}", pod.name()))
            };
            let message =
                format!("Telemetry {} is for {place}, too, and one of them wins: make one of both", other.name());
            out.push(item.say(code, Level::Error, message));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::codes;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: n, labels: {app: web, \
                       LABEL: x}}\n---\n";

    fn said(label: &str, objects: &str) -> Vec<String> {
        codes(&(POD.replace("LABEL", label) + objects)).into_iter().map(|(code, _)| code).collect()
    }

    fn policy(namespace: &str, app: &str) -> String {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a, namespace: {namespace}}}\n\
             spec: {{selector: {{matchLabels: {{app: {app}}}}}}}\n"
        )
    }

    #[test]
    fn a_selector_selects_pods_that_are_no_gateways() {
        let none: [String; 0] = [];
        assert_eq!(said("x", &policy("n", "web")), none);
        assert_eq!(said("x", &policy("n", "wbe")), ["IST0127"]);
        assert_eq!(said("x", &policy("other", "web")), ["IST0127"]);
        assert_eq!(said("x", &policy("istio-system", "web")), none, "the root namespace is for all");
        assert_eq!(said("gateway.networking.k8s.io/gateway-name", &policy("n", "web")), ["IST0166"]);
        let alone: Vec<_> = codes(&policy("n", "wbe"));
        assert_eq!(alone, [], "nothing is known of pods");
    }

    #[test]
    fn telemetries_do_not_compete() {
        let one = |name: &str, spec: &str| {
            format!(
                "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {name}, namespace: n}}\nspec: {spec}\n---\n"
            )
        };
        let web = "{selector: {matchLabels: {app: web}}}";
        assert_eq!(said("x", &(one("a", "{}") + &one("b", "{}"))), ["IST0160"]);
        assert_eq!(said("x", &(one("a", web) + &one("b", web))), ["IST0159"]);
        assert!(said("x", &(one("a", "{}") + &one("b", web))).is_empty());
    }
}
