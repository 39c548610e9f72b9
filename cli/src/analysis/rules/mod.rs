//! What can be said of objects beside the webhook's rule book: messages of Istio's analyzers that have a meaning without
//! sidecars, with Istio's codes and levels. Nothing here refuses anything.

mod gateways;
mod policies;
mod routes;
mod services;
mod statuses;

use super::{Level, Message};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Codes of these rules, and what each says.
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

/// An object, and where it stands.
#[derive(Clone, Debug)]
pub struct Item {
    /// All of it.
    pub value: Value,
    /// `file:line`; empty for an object of the cluster.
    pub reference: String,
}

impl Item {
    fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }
    fn list(&self, pointer: &str) -> &[Value] {
        self.value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }
    fn labels(&self, pointer: &str) -> BTreeMap<&str, &str> {
        let all = self.value.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
        all.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))).collect()
    }
    fn namespace(&self) -> &str {
        self.text("/metadata/namespace")
    }
    fn name(&self) -> &str {
        self.text("/metadata/name")
    }
    fn group(&self) -> &str {
        self.text("/apiVersion").split_once('/').map_or("", |(group, _)| group)
    }
    /// `Kind namespace/name`.
    fn origin(&self) -> String {
        let slash = if self.namespace().is_empty() { "" } else { "/" };
        format!("{} {}{slash}{}", self.text("/kind"), self.namespace(), self.name())
    }
    fn say(&self, code: &str, level: Level, message: String) -> Message {
        Message { code: code.into(), level, origin: self.origin(), reference: self.reference.clone(), message }
    }
}

type Rule = fn(&Objects) -> Vec<Message>;

/// The objects, those of files in place of stored ones of the same name.
#[derive(Debug, Default)]
pub struct Objects {
    all: Vec<Item>,
    root_namespace: String,
}

impl Objects {
    /// All of them.
    pub fn new(stored: Vec<Value>, written: Vec<Item>, root_namespace: &str) -> Self {
        let key = |item: &Item| (item.group().to_owned(), item.origin());
        let own: BTreeSet<_> = written.iter().map(key).collect();
        let stored = stored.into_iter().map(|value| Item { value, reference: String::new() });
        let all = stored.filter(|item| !own.contains(&key(item))).chain(written.iter().cloned()).collect();
        Self { all, root_namespace: root_namespace.into() }
    }

    /// Everything that these rules say.
    pub fn judge(&self) -> Vec<Message> {
        let rules: [Rule; 8] = [
            gateways::certificates,
            gateways::service_entries,
            policies::selectors,
            policies::telemetries,
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

    fn of<'a>(&'a self, kind: &'a str, group: &'a str) -> impl Iterator<Item = &'a Item> + Clone {
        self.all.iter().filter(move |item| item.text("/kind") == kind && item.group() == group)
    }
    fn pods(&self) -> impl Iterator<Item = &Item> + Clone {
        self.of("Pod", "")
    }
}

/// Whether a selector fits labels; an empty one fits all.
fn selects(selector: &BTreeMap<&str, &str>, labels: &BTreeMap<&str, &str>) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// A host as an object of a namespace writes it, in full.
fn full_host(host: &str, namespace: &str) -> String {
    if host.contains('.') || host.contains('*') {
        return host.to_owned();
    }
    format!("{host}.{namespace}.svc.cluster.local")
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
