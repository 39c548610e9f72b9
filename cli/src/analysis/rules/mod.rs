//! What can be said of objects beside the webhook's rule book: messages of Istio's analyzers that have a meaning without
//! sidecars, with Istio's codes and levels, and a few of ours. Nothing here refuses anything.

mod gateways;
mod mesh;
mod objects;
mod policies;
mod revisions;
mod routes;
mod services;
mod statuses;

use super::Message;
use std::collections::BTreeSet;

pub use objects::{Item, Objects};
pub use revisions::{is_unjudged, unjudged_tag};

/// Istio's codes of these rules, and what each says. (Ours are among those of `karst_manifest::code`.)
pub const CODES: &[(&str, &str)] = &[
    ("IST0109", "two VirtualServices of the mesh are for the same host"),
    ("IST0118", "a port of a Service does not say its protocol"),
    ("IST0127", "a selector selects no pods"),
    ("IST0130", "a rule of a VirtualService is never reached"),
    ("IST0131", "a match of a VirtualService is never reached"),
    ("IST0138", "two Gateways of the same pods have the same certificate"),
    ("IST0159", "two Telemetries select the same pod"),
    ("IST0160", "two Telemetries are for the same namespace"),
    ("IST0166", "a selector selects pods of a Gateway, where targetRefs is needed"),
    ("IST0171", "a status has a condition that is not met"),
    ("IST0173", "a subset selects no pods"),
    ("IST0177", "ServiceEntries have the same host and port with several protocols"),
];

type Rule = fn(&Objects) -> Vec<Message>;

impl Objects {
    /// Everything that these rules say.
    pub fn judge(&self) -> Vec<Message> {
        let rules: [Rule; 10] = [
            gateways::certificates,
            gateways::service_entries,
            mesh::configurations,
            policies::selectors,
            policies::telemetries,
            revisions::unjudged,
            routes::hosts,
            routes::unreachable,
            routes::subsets,
            services::ports,
        ];
        rules.iter().flat_map(|rule| rule(self)).collect()
    }

    /// Conditions that are not met, of objects of which nothing else is said.
    pub fn conditions(&self, said: &[Message]) -> Vec<Message> {
        let known: BTreeSet<&str> = said.iter().map(|message| message.origin.as_str()).collect();
        let unsaid = self.all.iter().filter(|item| !known.contains(item.origin().as_str()));
        unsaid.flat_map(statuses::conditions).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The codes that are said of these documents, in order.
    pub(crate) fn codes(yaml: &str) -> Vec<(String, String)> {
        let documents = karst_manifest::parse::values(yaml);
        let items = documents.into_iter().map(|(line, value)| Item { value, reference: format!("a.yaml:{line}") });
        let objects = Objects::new(vec![], items.collect(), "istio-system");
        let mut said = objects.judge();
        said.extend(objects.conditions(&said));
        said.into_iter().map(|message| (message.code, message.origin)).collect()
    }

    #[test]
    fn files_replace_what_is_stored() {
        let pod = |label: &str| {
            serde_json::json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a", "namespace": "n", "labels": { "app": label } },
            })
        };
        let written = Item { value: pod("new"), reference: "a.yaml:1".into() };
        let objects = Objects::new(vec![pod("old")], vec![written], "istio-system");
        let labels: Vec<&str> = objects.pods().map(|pod| pod.text("/metadata/labels/app")).collect();
        assert_eq!(labels, ["new"]);
    }

    #[test]
    fn every_code_is_listed_once() {
        assert!(CODES.windows(2).all(|pair| matches!(pair, [(one, _), (other, _)] if one < other)));
    }
}
