//! PeerAuthentication to L4 policies (reference control-plane §2.7).

use crate::convert::{
    facts::attached::selector,
    objects::{Objects, problem, selects},
};
use karst_manifest::{Problem, kinds::*, parse::Located};
use karst_policy::{Action, Clause, Match, Policy, Rule, Scope, StringMatch};
use std::collections::BTreeMap;

const STATIC_STRICT: &str = "istio_converted_static_strict";

/// Effective mutual TLS modes.
pub(crate) struct Peer {
    mesh: Mode,
    namespaces: BTreeMap<String, Mode>,
    /// Namespace, selector, keys.
    workloads: Vec<(String, Labels, Mode, Option<String>)>,
    strict_key: Option<String>,
}

impl Peer {
    pub(crate) fn compile(
        objects: &Objects<'_>,
        all: &mut BTreeMap<String, Policy>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut out = Peer { mesh: Mode::Unset, namespaces: BTreeMap::new(), workloads: vec![], strict_key: None };
        if objects.peer.is_empty() {
            return out;
        }
        let root = objects.mesh.root_namespace.as_str();
        let strict = deny(STATIC_STRICT, root, Scope::WorkloadSelector, vec![vec![no_principal()]]);
        out.strict_key = Some(strict.key());
        all.insert(strict.key(), strict);
        // The oldest wins; without time stamps, the first by name.
        let mut sorted = objects.peer.clone();
        sorted.sort_by_key(|(_, p)| {
            (p.metadata.creation_timestamp.clone(), p.metadata.namespace.clone(), p.metadata.name.clone())
        });
        for (_, policy) in sorted.iter().filter(|(_, p)| !selected(p)) {
            let mode = policy.spec.mtls.as_ref().map_or(Mode::Unset, |m| m.mode);
            if policy.metadata.namespace == root {
                if out.mesh == Mode::Unset {
                    out.mesh = mode;
                }
            } else {
                out.namespaces.entry(policy.metadata.namespace.clone()).or_insert(mode);
            }
        }
        for (at, policy) in sorted {
            if let Some(Err((field, text))) = policy.spec.selector.as_ref().map(selector) {
                problems.push(problem(at, field, text));
            }
            if !policy.spec.port_level_mtls.is_empty() && (!selected(policy) || policy.metadata.namespace == root) {
                problems.push(problem(
                    at,
                    "spec.portLevelMtls",
                    "requires a selector, and a namespace other than the root namespace: add spec.selector.matchLabels [KARST-0116]",
                ));
            } else if selected(policy) {
                out.add_workload(at, policy, all, problems);
            }
        }
        out
    }

    fn add_workload(
        &mut self,
        at: &Located,
        authentication: &PeerAuthentication,
        all: &mut BTreeMap<String, Policy>,
        problems: &mut Vec<Problem>,
    ) {
        let ns = &authentication.metadata.namespace;
        let parent = self.namespace_mode(ns);
        let mode = match authentication.spec.mtls.as_ref().map_or(Mode::Unset, |m| m.mode) {
            Mode::Unset => parent,
            m => m,
        };
        if authentication.spec.port_level_mtls.contains_key(&0) {
            problems.push(problem(at, "spec.portLevelMtls", "invalid port 0: use 1 to 65535 [KARST-0019]"));
        }
        let effective = |m: &MutualTls| if m.mode == Mode::Unset { mode } else { m.mode };
        let of = |strict: bool| {
            let it = authentication
                .spec
                .port_level_mtls
                .iter()
                .filter(move |(_, m)| (effective(m) == Mode::Strict) == strict);
            it.map(|(port, _)| *port).collect::<Vec<u16>>()
        };
        // Ports that differ from the workload's own mode.
        let differing = of(mode != Mode::Strict);
        let labels = authentication.spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default();
        let mut key = None;
        if !differing.is_empty() {
            let port = match mode {
                Mode::Strict => Match { not_destination_ports: differing, ..Match::default() },
                Mode::Unset | Mode::Disable | Mode::Permissive => {
                    Match { destination_ports: differing, ..Match::default() }
                }
            };
            let name = format!("converted_peer_authentication_{}", authentication.metadata.name);
            let policy = deny(&name, ns, Scope::WorkloadSelector, vec![vec![no_principal()], vec![port]]);
            key = Some(policy.key());
            all.insert(policy.key(), policy);
        }
        self.workloads.push((ns.clone(), labels, mode, key));
    }

    fn namespace_mode(&self, ns: &str) -> Mode {
        match self.namespaces.get(ns) {
            None | Some(Mode::Unset) => self.mesh,
            Some(m) => *m,
        }
    }

    pub(crate) fn keys(&self, ns: &str, labels: &Labels) -> Option<String> {
        let own = self.workloads.iter().find(|(n, sel, ..)| n == ns && selects(sel, labels));
        if let Some((.., Some(key))) = own {
            return Some(key.clone());
        }
        let mode = own.map_or_else(|| self.namespace_mode(ns), |(_, _, m, _)| *m);
        (mode == Mode::Strict).then(|| self.strict_key.clone()).flatten()
    }
}

fn selected(policy: &PeerAuthentication) -> bool {
    policy.spec.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty())
}

fn no_principal() -> Match {
    Match { not_principals: vec![StringMatch::Presence], ..Match::default() }
}

fn deny(name: &str, ns: &str, scope: Scope, clauses: Vec<Vec<Match>>) -> Policy {
    let clauses = clauses.into_iter().map(|matches| Clause { matches }).collect();
    Policy {
        name: name.into(),
        namespace: ns.into(),
        scope,
        action: Action::Deny,
        rules: vec![Rule { clauses }],
        dry_run: false,
    }
}
