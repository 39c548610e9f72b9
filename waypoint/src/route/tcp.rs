//! Rules for connections that are carried as bytes.

use crate::route::{input::TcpRouteInput, sequence::Sequence};
use karst_api::route as ir;
use std::collections::BTreeMap;

/// Does a name, maybe with a wildcard in front, stand for this one?
fn covers(wide: &str, name: &str) -> bool {
    wide == name || wide.strip_prefix('*').is_some_and(|s| name.len() > s.len() && name.ends_with(s))
}

/// Where connections go.
#[derive(Debug)]
pub struct TcpRule {
    pub origin: String,
    ports: Vec<u32>,
    labels: BTreeMap<String, String>,
    namespace: String,
    sni: Vec<String>,
    pub destinations: Vec<ir::Destination>,
    weights: Sequence,
}

impl TcpRule {
    pub(super) fn new(rule: &ir::TcpRule) -> Self {
        Self {
            origin: rule.origin.clone(),
            ports: rule.ports.clone(),
            labels: rule.source_labels.clone(),
            namespace: rule.source_namespace.clone(),
            sni: rule.sni.clone(),
            destinations: rule.destinations.clone(),
            weights: Sequence::default(),
        }
    }

    /// The sum of their weights.
    pub fn total_weight(&self) -> u64 {
        self.destinations.iter().map(|d| u64::from(d.weight)).sum()
    }

    /// The destination whose turn it is, by the weights.
    pub fn choose(&self) -> Option<&ir::Destination> {
        let is_open = self.destinations.len() > 1;
        let mut at = if is_open { self.weights.below(self.total_weight()) } else { 0 };
        self.destinations.iter().find(|d| {
            let hit = at < u64::from(d.weight);
            at = at.saturating_sub(u64::from(d.weight));
            hit
        })
    }

    /// Is it for this connection?
    pub(super) fn matches(&self, input: &TcpRouteInput<'_>) -> bool {
        (self.ports.is_empty() || self.ports.contains(&u32::from(input.port)))
            && (self.namespace.is_empty() || self.namespace == input.namespace)
            && self.labels.iter().all(|(k, v)| input.labels.get(k) == Some(v))
            && (self.sni.is_empty() || input.sni.is_some_and(|n| self.sni.iter().any(|h| covers(h, n))))
    }

    /// The first condition that does not hold, in words; empty if all hold.
    pub(super) fn failing(&self, input: &TcpRouteInput<'_>) -> String {
        if !self.ports.is_empty() && !self.ports.contains(&u32::from(input.port)) {
            return format!("port {} is not one of {:?}", input.port, self.ports);
        }
        if !self.namespace.is_empty() && self.namespace != input.namespace {
            return format!("the caller's namespace is not {}", self.namespace);
        }
        if let Some((key, value)) = self.labels.iter().find(|(key, value)| input.labels.get(*key) != Some(value)) {
            return format!("the caller has no label {key}={value}");
        }
        let named = input.sni.is_some_and(|name| self.sni.iter().any(|host| covers(host, name)));
        match self.sni.is_empty() || named {
            true => String::new(),
            false => format!("the name in the TLS hello is not one of {}", self.sni.join(", ")),
        }
    }
}
