//! The objects that the rules look at.

use crate::analysis::{Level, Message};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// An object, and where it stands.
#[derive(Clone, Debug)]
pub struct Item {
    /// All of it.
    pub value: Value,
    /// `file:line`; empty for an object of the cluster.
    pub reference: String,
}

impl Item {
    pub(super) fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }
    pub(super) fn list(&self, pointer: &str) -> &[Value] {
        self.value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }
    pub(super) fn labels(&self, pointer: &str) -> BTreeMap<&str, &str> {
        let all = self.value.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
        all.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))).collect()
    }
    pub(super) fn namespace(&self) -> &str {
        self.text("/metadata/namespace")
    }
    pub(super) fn name(&self) -> &str {
        self.text("/metadata/name")
    }
    pub(super) fn group(&self) -> &str {
        self.text("/apiVersion").split_once('/').map_or("", |(group, _)| group)
    }
    /// `Kind namespace/name`.
    pub(super) fn origin(&self) -> String {
        let slash = if self.namespace().is_empty() { "" } else { "/" };
        format!("{} {}{slash}{}", self.text("/kind"), self.namespace(), self.name())
    }
    pub(super) fn say(&self, code: &str, level: Level, message: String) -> Message {
        Message { code: code.into(), level, origin: self.origin(), reference: self.reference.clone(), message }
    }
}

/// The objects, those of files in place of stored ones of the same name.
#[derive(Debug, Default)]
pub struct Objects {
    pub(super) all: Vec<Item>,
    pub(super) root_namespace: String,
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

    pub(super) fn of<'a>(&'a self, kind: &'a str, group: &'a str) -> impl Iterator<Item = &'a Item> + Clone {
        self.all.iter().filter(move |item| item.text("/kind") == kind && item.group() == group)
    }
    pub(super) fn pods(&self) -> impl Iterator<Item = &Item> + Clone {
        self.of("Pod", "")
    }
}

/// Whether a selector fits labels; an empty one fits all.
pub(super) fn selects(selector: &BTreeMap<&str, &str>, labels: &BTreeMap<&str, &str>) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// A host as an object of a namespace writes it, in full.
pub(super) fn full_host(host: &str, namespace: &str) -> String {
    if host.contains('.') || host.contains('*') {
        return host.to_owned();
    }
    format!("{host}.{namespace}.svc.cluster.local")
}
