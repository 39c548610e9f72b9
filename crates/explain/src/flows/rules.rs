//! Rules of an AuthorizationPolicy, from flows: callers that may do the same are in one rule, paths with the same methods in one
//! operation. Everything is sorted, so that the same book gives the same text.

use karst_core::limits;
use karst_flows::{Flow, Source};
use karst_manifest::kinds::Labels;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// A service with a waypoint, by its name.
    Service(String),
    /// A ServiceEntry with a waypoint, by its name.
    Entry(String),
    /// Pods, by their labels.
    Workload(Labels),
}

impl Target {
    /// A name for its policy.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Service(name) | Self::Entry(name) => format!("callers-of-{name}"),
            Self::Workload(labels) => {
                let by = ["app.kubernetes.io/name", "app", "k8s-app"].iter().find_map(|key| labels.get(key));
                let name = by.or_else(|| labels.values().next()).map_or("", String::as_str);
                // A label's value may have capitals and underscores, a name may not.
                let plain =
                    |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
                let name: String = name.chars().map(plain).collect();
                format!("connections-to-{}", name.trim_matches('-')).trim_end_matches('-').to_string()
            }
        }
    }
}

/// Values of a field; empty: any.
type Values = BTreeSet<String>;

/// The path of a request that may have any. (A template begins with a slash.)
const ANY: &str = "*";

/// What a caller may do: methods by path, by port. A path that is empty stands for a connection.
type Allowed = BTreeMap<u16, BTreeMap<String, Values>>;

/// What callers may do.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules(BTreeMap<Source, Allowed>);

impl Rules {
    /// Allows a flow.
    pub(super) fn add(&mut self, flow: &Flow) {
        self.allow(flow, &flow.key.path);
    }

    /// Allows a flow, and what has any other path.
    pub(super) fn open(&mut self, flow: &Flow) {
        self.allow(flow, ANY);
    }

    fn allow(&mut self, flow: &Flow, path: &str) {
        let paths = self.0.entry(flow.key.source.clone()).or_default().entry(flow.key.port).or_default();
        let is_request = !flow.key.method.is_empty();
        let methods = paths.entry(if is_request && path.is_empty() { ANY } else { path }.into()).or_default();
        if is_request {
            let is_cut = flow.key.method.len() >= limits::FLOW_METHOD;
            methods.insert(format!("{}{}", flow.key.method, if is_cut { "*" } else { "" }));
        }
    }

    /// As a policy has them.
    pub(super) fn values(&self) -> Vec<Value> {
        // Callers by what they may do; those with an identity and those with an address are in rules of their own.
        let mut callers: BTreeMap<(bool, Vec<Operation>), Values> = BTreeMap::new();
        for (source, allowed) in &self.0 {
            let (is_identity, name) = match source {
                Source::Identity(uri) => (true, uri.strip_prefix("spiffe://").unwrap_or(uri)),
                Source::Addresses(range) => (false, range.as_str()),
            };
            callers.entry((is_identity, operations(allowed))).or_default().insert(name.into());
        }
        let mut rules: Vec<_> = callers.into_iter().collect();
        rules.sort_by(|((a, _), one), ((b, _), other)| (!a, one).cmp(&(!b, other)));
        let rule = |((is_identity, operations), names): ((bool, Vec<Operation>), Values)| {
            let source = match is_identity {
                true => json!({ "principals": names }),
                // Who shows an identity is not let in by its address.
                false => json!({ "ipBlocks": names, "notPrincipals": ["*"] }),
            };
            let to: Vec<Value> = operations.iter().map(|one| json!({ "operation": one.value() })).collect();
            json!({ "from": [{ "source": source }], "to": to })
        };
        rules.into_iter().map(rule).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Operation {
    ports: BTreeSet<u16>,
    paths: Values,
    methods: Values,
}

impl Operation {
    fn value(&self) -> Value {
        let ports: Vec<String> = self.ports.iter().map(ToString::to_string).collect();
        let mut value = json!({ "ports": ports });
        for (field, values) in [("methods", &self.methods), ("paths", &self.paths)] {
            if !values.is_empty() {
                value[field] = json!(values);
            }
        }
        value
    }
}

fn operations(allowed: &Allowed) -> Vec<Operation> {
    let mut by_port: BTreeMap<(Values, Values), BTreeSet<u16>> = BTreeMap::new();
    for (port, paths) in allowed {
        // What may have any path needs no others of the same methods.
        let any = paths.get(ANY);
        let mut by_methods: BTreeMap<Values, Values> = BTreeMap::new();
        for (path, methods) in paths {
            let rest: Values = match any {
                Some(any) if path.starts_with('/') => methods.difference(any).cloned().collect(),
                _ => methods.clone(),
            };
            if path.starts_with('/') && rest.is_empty() {
                continue;
            }
            let own = path.starts_with('/').then(|| path.clone());
            by_methods.entry(rest).or_default().extend(own);
        }
        for (methods, paths) in by_methods {
            by_port.entry((methods, paths)).or_default().insert(*port);
        }
    }
    let mut all: Vec<Operation> =
        by_port.into_iter().map(|((methods, paths), ports)| Operation { ports, paths, methods }).collect();
    all.sort();
    all
}
