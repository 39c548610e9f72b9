//! AuthorizationPolicy and PeerAuthentication to L4 policies (reference control-plane §2.7).
//!
//! What L4 cannot see (hosts, methods, paths, headers, request principals) makes an ALLOW rule vanish (it allows less)
//! and is left out of a DENY rule (it denies more). Here Karst is stricter than Istio: a DENY rule of which nothing is
//! left denies everything it might have meant, where Istio's does nothing at all.

use super::{Index, problem, selects};
use karst_manifest::{Problem, kinds::*, parse::Located};
use karst_policy::{
    Action, Clause, Match, Policy, Rule, Scope, StringMatch,
    model::{Cidr2, ServiceAccountMatch},
};
use std::collections::BTreeMap;

/// The compiled policies and to whom the selector ones apply.
pub(super) struct Policies {
    all: BTreeMap<String, Policy>,
    /// Namespace (None: all), selector, key.
    selectors: Vec<(Option<String>, Labels, String)>,
    peer: Peer,
}

const STATIC_STRICT: &str = "istio_converted_static_strict";

impl Policies {
    /// The keys of the policies that a workload must name: sorted.
    pub(super) fn of(&self, namespace: &str, labels: &Labels) -> Vec<String> {
        let hit = |(ns, sel, key): &(Option<String>, Labels, String)| {
            (ns.as_deref().is_none_or(|n| n == namespace) && selects(sel, labels)).then(|| key.clone())
        };
        let mut out: Vec<String> = self.selectors.iter().filter_map(hit).collect();
        out.extend(self.peer.keys(namespace, labels));
        out.sort();
        out.dedup();
        out
    }
    pub(super) fn into_map(self) -> BTreeMap<String, Policy> {
        self.all
    }
}

pub(super) fn compile(x: &Index<'_>, problems: &mut Vec<Problem>) -> Policies {
    let mut all = BTreeMap::new();
    let mut selectors = Vec::new();
    for (at, p) in &x.authorization {
        let policy = match authorization(x, p) {
            Ok(Some(policy)) => policy,
            Ok(None) => continue,
            Err((field, message)) => {
                problems.push(problem(at, field, message));
                // What was meant cannot be known; where it was meant to apply, nothing is allowed until it is mended.
                closed(x, p)
            }
        };
        if policy.scope == Scope::WorkloadSelector {
            let labels = p.spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default();
            let ns = (p.metadata.namespace != x.mesh.root_namespace).then(|| p.metadata.namespace.clone());
            selectors.push((ns, labels, policy.key()));
        }
        all.insert(policy.key(), policy);
    }
    let peer = Peer::compile(x, &mut all, problems);
    Policies { all, selectors, peer }
}

type Bad = (String, String);

fn scope(x: &Index<'_>, p: &AuthorizationPolicy) -> Scope {
    match &p.spec.selector {
        Some(s) if !s.match_labels.is_empty() => Scope::WorkloadSelector,
        _ if p.metadata.namespace == x.mesh.root_namespace => Scope::Global,
        _ => Scope::Namespace,
    }
}

/// An allow policy without rules: it allows nothing.
fn closed(x: &Index<'_>, p: &AuthorizationPolicy) -> Policy {
    Policy {
        name: p.metadata.name.as_str().into(),
        namespace: p.metadata.namespace.as_str().into(),
        scope: scope(x, p),
        action: Action::Allow,
        rules: vec![],
        dry_run: false,
    }
}

fn authorization(x: &Index<'_>, p: &AuthorizationPolicy) -> Result<Option<Policy>, Bad> {
    let s = &p.spec;
    let targets = s.target_ref.is_some() || !s.target_refs.is_empty();
    if targets && s.selector.is_some() {
        return Err(("spec.targetRefs".into(), "cannot stand beside selector: remove one of them".into()));
    }
    if targets {
        return Ok(None); // the waypoint enforces it
    }
    let action = match s.action.as_deref() {
        None | Some("ALLOW") => Action::Allow,
        Some("DENY") => Action::Deny,
        Some("AUDIT") => return Ok(None),
        Some("CUSTOM") => return Err(("spec.action".into(), "CUSTOM is not supported: use ALLOW or DENY".into())),
        Some(o) => return Err(("spec.action".into(), format!("{o:?} is not one of ALLOW, DENY, AUDIT"))),
    };
    if action == Action::Deny && s.rules.is_empty() {
        return Err((
            "spec.rules".into(),
            "is empty: a DENY policy without rules would do nothing; to deny everything write rules: [{}]".into(),
        ));
    }
    let mut rules = Vec::new();
    for (i, r) in s.rules.iter().enumerate() {
        rules.extend(rule(r, action, &p.metadata.namespace, &format!("spec.rules[{i}]"))?);
    }
    let dry_run = p.metadata.annotations.get("istio.io/dry-run").is_some_and(|v| v == "true");
    Ok(Some(Policy {
        name: p.metadata.name.as_str().into(),
        namespace: p.metadata.namespace.as_str().into(),
        scope: scope(x, p),
        action,
        rules,
        dry_run,
    }))
}

/// None: an ALLOW rule that needs more than L4 can see.
fn rule(r: &PolicyRule, action: Action, ns: &str, at: &str) -> Result<Option<Rule>, Bad> {
    let mut clauses = Vec::new();
    let mut beyond = false;
    let mut add = |matches: Vec<(Match, bool)>| {
        // A match of a DENY rule that lost all its fields stands for "anything": then the whole clause does.
        beyond |= matches.iter().any(|(_, b)| *b);
        if matches.iter().any(|(m, b)| *b && *m == Match::default()) {
            return;
        }
        clauses.push(Clause { matches: matches.into_iter().map(|(m, _)| m).collect() });
    };
    if !r.from.is_empty() {
        let from: Result<Vec<_>, Bad> =
            r.from.iter().enumerate().map(|(i, f)| source(&f.source, ns, &format!("{at}.from[{i}].source"))).collect();
        add(from?);
    }
    if !r.to.is_empty() {
        let to: Result<Vec<_>, Bad> =
            r.to.iter().enumerate().map(|(i, t)| operation(&t.operation, &format!("{at}.to[{i}].operation"))).collect();
        add(to?);
    }
    for (i, w) in r.when.iter().enumerate() {
        add(vec![when(w, &format!("{at}.when[{i}]"))?]);
    }
    Ok(if beyond && action == Action::Allow { None } else { Some(Rule { clauses }) })
}

fn strings(v: &[String]) -> Vec<StringMatch> {
    v.iter().map(|s| StringMatch::parse(s)).collect()
}

fn nets(v: &[String], at: &str) -> Result<Vec<Cidr2>, Bad> {
    v.iter()
        .enumerate()
        .map(|(i, s)| {
            s.parse().map(Cidr2).map_err(|e: karst_core::addr::CidrError| (format!("{at}[{i}]"), e.to_string()))
        })
        .collect()
}

fn ports(v: &[String], at: &str) -> Result<Vec<u16>, Bad> {
    let one = |(i, s): (usize, &String)| {
        s.parse().map_err(|_| (format!("{at}[{i}]"), format!("{s:?} is not a port: use 1 to 65535")))
    };
    v.iter().enumerate().map(one).collect()
}

fn accounts(v: &[String], ns: &str, at: &str) -> Result<Vec<ServiceAccountMatch>, Bad> {
    let one = |(i, s): (usize, &String)| {
        let (n, a) = s.split_once('/').unwrap_or((ns, s));
        if a.is_empty() || a.contains(['/', '*']) || n.contains('*') {
            return Err((
                format!("{at}[{i}]"),
                format!("{s:?} is not NAME or NAMESPACE/NAME (wildcards are not allowed)"),
            ));
        }
        Ok(ServiceAccountMatch { namespace: n.into(), service_account: a.into() })
    };
    v.iter().enumerate().map(one).collect()
}

fn source(s: &Source, ns: &str, at: &str) -> Result<(Match, bool), Bad> {
    if *s == Source::default() {
        return Err((at.into(), "is empty: name at least one condition".into()));
    }
    let others = !s.principals.is_empty() || !s.namespaces.is_empty();
    if others && !s.service_accounts.is_empty() {
        return Err((
            format!("{at}.serviceAccounts"),
            "cannot stand beside principals or namespaces: remove one of them".into(),
        ));
    }
    let m = Match {
        principals: strings(&s.principals),
        not_principals: strings(&s.not_principals),
        namespaces: strings(&s.namespaces),
        not_namespaces: strings(&s.not_namespaces),
        service_accounts: accounts(&s.service_accounts, ns, &format!("{at}.serviceAccounts"))?,
        not_service_accounts: accounts(&s.not_service_accounts, ns, &format!("{at}.notServiceAccounts"))?,
        source_ips: nets(&s.ip_blocks, &format!("{at}.ipBlocks"))?,
        not_source_ips: nets(&s.not_ip_blocks, &format!("{at}.notIpBlocks"))?,
        ..Match::default()
    };
    let l7 = [&s.request_principals, &s.not_request_principals, &s.remote_ip_blocks, &s.not_remote_ip_blocks];
    Ok((m, l7.iter().any(|v| !v.is_empty())))
}

fn operation(o: &Operation, at: &str) -> Result<(Match, bool), Bad> {
    if *o == Operation::default() {
        return Err((at.into(), "is empty: name at least one condition".into()));
    }
    let m = Match {
        destination_ports: ports(&o.ports, &format!("{at}.ports"))?,
        not_destination_ports: ports(&o.not_ports, &format!("{at}.notPorts"))?,
        ..Match::default()
    };
    let l7 = [&o.hosts, &o.not_hosts, &o.methods, &o.not_methods, &o.paths, &o.not_paths];
    Ok((m, l7.iter().any(|v| !v.is_empty())))
}

fn when(w: &When, at: &str) -> Result<(Match, bool), Bad> {
    if w.values.is_empty() && w.not_values.is_empty() {
        return Err((at.into(), "has neither values nor notValues: give at least one".into()));
    }
    let (values, not_values) = (&w.values, &w.not_values);
    let (v_at, n_at) = (format!("{at}.values"), format!("{at}.notValues"));
    let m = match w.key.as_str() {
        "source.ip" => {
            Match { source_ips: nets(values, &v_at)?, not_source_ips: nets(not_values, &n_at)?, ..Match::default() }
        }
        "destination.ip" => Match {
            destination_ips: nets(values, &v_at)?,
            not_destination_ips: nets(not_values, &n_at)?,
            ..Match::default()
        },
        "source.namespace" => {
            Match { namespaces: strings(values), not_namespaces: strings(not_values), ..Match::default() }
        }
        "source.principal" => {
            Match { principals: strings(values), not_principals: strings(not_values), ..Match::default() }
        }
        "destination.port" => Match {
            destination_ports: ports(values, &v_at)?,
            not_destination_ports: ports(not_values, &n_at)?,
            ..Match::default()
        },
        k if k.starts_with("request.")
            || matches!(k, "remote.ip" | "connection.sni" | "experimental.envoy.filters.") =>
        {
            return Ok((Match::default(), true));
        }
        k => {
            return Err((
                format!("{at}.key"),
                format!(
                    "{k:?} is not known: use source.ip, source.namespace, source.principal, destination.ip or destination.port"
                ),
            ));
        }
    };
    Ok((m, false))
}

/// Effective mutual TLS modes.
struct Peer {
    mesh: Mode,
    namespaces: BTreeMap<String, Mode>,
    /// Namespace, selector, keys.
    workloads: Vec<(String, Labels, Mode, Option<String>)>,
    strict_key: Option<String>,
}

impl Peer {
    fn compile(x: &Index<'_>, all: &mut BTreeMap<String, Policy>, problems: &mut Vec<Problem>) -> Self {
        let mut out = Peer { mesh: Mode::Unset, namespaces: BTreeMap::new(), workloads: vec![], strict_key: None };
        if x.peer.is_empty() {
            return out;
        }
        let root = x.mesh.root_namespace.as_str();
        let strict = deny(STATIC_STRICT, root, Scope::WorkloadSelector, vec![vec![no_principal()]]);
        out.strict_key = Some(strict.key());
        all.insert(strict.key(), strict);
        // The oldest wins; without time stamps, the first by name.
        let mut sorted = x.peer.clone();
        sorted.sort_by_key(|(_, p)| {
            (p.metadata.creation_timestamp.clone(), p.metadata.namespace.clone(), p.metadata.name.clone())
        });
        for (_, p) in sorted.iter().filter(|(_, p)| !selected(p)) {
            let mode = p.spec.mtls.as_ref().map_or(Mode::Unset, |m| m.mode);
            if p.metadata.namespace == root {
                if out.mesh == Mode::Unset {
                    out.mesh = mode;
                }
            } else {
                out.namespaces.entry(p.metadata.namespace.clone()).or_insert(mode);
            }
        }
        for (at, p) in sorted {
            if !p.spec.port_level_mtls.is_empty() && (!selected(p) || p.metadata.namespace == root) {
                problems.push(problem(
                    at,
                    "spec.portLevelMtls",
                    "needs a selector, outside of the root namespace: add spec.selector.matchLabels",
                ));
            } else if selected(p) {
                out.add_workload(at, p, all, problems);
            }
        }
        out
    }

    fn add_workload(
        &mut self,
        at: &Located,
        p: &PeerAuthentication,
        all: &mut BTreeMap<String, Policy>,
        problems: &mut Vec<Problem>,
    ) {
        let ns = &p.metadata.namespace;
        let parent = self.namespace_mode(ns);
        let mode = match p.spec.mtls.as_ref().map_or(Mode::Unset, |m| m.mode) {
            Mode::Unset => parent,
            m => m,
        };
        if p.spec.port_level_mtls.contains_key(&0) {
            problems.push(problem(at, "spec.portLevelMtls", "port 0 is not a port: use 1 to 65535"));
        }
        let effective = |m: &MutualTls| if m.mode == Mode::Unset { mode } else { m.mode };
        let of = |strict: bool| {
            let it = p.spec.port_level_mtls.iter().filter(move |(_, m)| (effective(m) == Mode::Strict) == strict);
            it.map(|(port, _)| *port).collect::<Vec<u16>>()
        };
        // Ports that differ from the workload's own mode.
        let differing = of(mode != Mode::Strict);
        let labels = p.spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default();
        let mut key = None;
        if !differing.is_empty() {
            let port = match mode {
                Mode::Strict => Match { not_destination_ports: differing, ..Match::default() },
                Mode::Unset | Mode::Disable | Mode::Permissive => {
                    Match { destination_ports: differing, ..Match::default() }
                }
            };
            let name = format!("converted_peer_authentication_{}", p.metadata.name);
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

    fn keys(&self, ns: &str, labels: &Labels) -> Option<String> {
        let own = self.workloads.iter().find(|(n, sel, ..)| n == ns && selects(sel, labels));
        if let Some((.., Some(key))) = own {
            return Some(key.clone());
        }
        let mode = own.map_or_else(|| self.namespace_mode(ns), |(_, _, m, _)| *m);
        (mode == Mode::Strict).then(|| self.strict_key.clone()).flatten()
    }
}

fn selected(p: &PeerAuthentication) -> bool {
    p.spec.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty())
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
