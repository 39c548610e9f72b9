//! AuthorizationPolicy and PeerAuthentication to L4 policies (reference control-plane §2.7).
//!
//! What L4 cannot see (hosts, methods, paths, headers, request principals) makes an ALLOW rule vanish (it allows less)
//! and is left out of a DENY rule (it denies more). Here Karst is stricter than Istio: a DENY rule of which nothing is
//! left denies everything it might have meant, where Istio's does nothing at all.

use super::{FieldError, GATEWAY_API, ISTIO_NETWORKING, Objects, problem, selects};
use karst_manifest::{Problem, kinds::*, parse::Located};
use karst_policy::{
    Action, Attribute, Clause, Match, Policy, Rule, Scope, StringMatch,
    attribute::{self, SeenBy},
    model::{CidrText, ServiceAccountMatch},
};
use std::{borrow::Cow, collections::BTreeMap};

/// The compiled policies and to whom the selector ones apply.
pub(super) struct Policies {
    all: BTreeMap<String, Policy>,
    /// Namespace (None: all), selector, key.
    selectors: Vec<Selects>,
    /// The same of policies in dry run.
    dry_runs: Vec<Selects>,
    peer: Peer,
}

type Selects = (Option<String>, Labels, String);

/// The annotation of a policy that is not enforced: what it would have done is logged and counted.
const DRY_RUN: &str = "istio.io/dry-run";
const STATIC_STRICT: &str = "istio_converted_static_strict";

impl Policies {
    /// The keys of the policies that a workload must name: sorted.
    pub(super) fn of(&self, namespace: &str, labels: &Labels) -> Vec<String> {
        let mut out = selecting(&self.selectors, namespace, labels);
        out.extend(self.peer.keys(namespace, labels));
        out.sort();
        out.dedup();
        out
    }
    /// The keys of the policies in dry run that select a workload: sorted.
    pub(super) fn dry_runs(&self, namespace: &str, labels: &Labels) -> Vec<String> {
        let mut out = selecting(&self.dry_runs, namespace, labels);
        out.sort();
        out
    }
    /// The policies themselves; what is left says to whom they apply.
    pub(super) fn take(&mut self) -> BTreeMap<String, Policy> {
        std::mem::take(&mut self.all)
    }
}

fn selecting(all: &[Selects], namespace: &str, labels: &Labels) -> Vec<String> {
    let hit = |(ns, sel, key): &Selects| {
        (ns.as_deref().is_none_or(|n| n == namespace) && selects(sel, labels)).then(|| key.clone())
    };
    all.iter().filter_map(hit).collect()
}

pub(super) fn compile(objects: &Objects<'_>, problems: &mut Vec<Problem>) -> Policies {
    let mut all = BTreeMap::new();
    let (mut selectors, mut dry_runs) = (Vec::new(), Vec::new());
    for (at, p) in &objects.authorization {
        let judged = judged(objects, p);
        problems.extend(judged.dropped.into_iter().map(|(field, message)| problem(at, field, message)));
        let policy = match judged.compiled {
            Ok(Some(policy)) => policy,
            Ok(None) => continue,
            Err((field, message)) => {
                problems.push(problem(at, field, message));
                // A waypoint closes what it is attached to.
                let root = p.metadata.namespace == objects.mesh.root_namespace;
                let mut targets = p.spec.targets().peekable();
                if targets.peek().is_some() && targets.all(|(at, t)| target(t, &at, root).is_ok()) {
                    continue;
                }
                // What was meant cannot be known; where it was meant to apply, nothing is allowed until it is mended.
                let Some(closed) = closed(objects, p) else { continue };
                closed
            }
        };
        if policy.scope == Scope::WorkloadSelector {
            let labels = p.spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default();
            let ns = (p.metadata.namespace != objects.mesh.root_namespace).then(|| p.metadata.namespace.clone());
            let list = if policy.dry_run { &mut dry_runs } else { &mut selectors };
            list.push((ns, labels, policy.key()));
        }
        all.insert(policy.key(), policy);
    }
    let peer = Peer::compile(objects, &mut all, problems);
    Policies { all, selectors, dry_runs, peer }
}

/// A policy as it is in force.
pub(super) struct Judged<'a> {
    /// As it stands, or without what was dropped.
    pub(super) policy: Cow<'a, AuthorizationPolicy>,
    /// Values of an ALLOW that can match nothing: without them it allows as much, and the rest of it stays in force.
    pub(super) dropped: Vec<FieldError>,
    /// As ztunnel gets it (None: it is not for ztunnel); or why it cannot be understood.
    pub(super) compiled: Result<Option<Policy>, FieldError>,
}

/// What of a policy is in force.
pub(super) fn judged<'a>(objects: &Objects<'_>, p: &'a AuthorizationPolicy) -> Judged<'a> {
    let compiled = authorization(objects, p);
    if compiled.is_err() && matches!(p.spec.action.as_deref(), None | Some("ALLOW")) {
        let (mut dropped, mut policy) = (vec![], p.clone());
        let all = std::mem::take(&mut policy.spec.rules).into_iter().enumerate();
        let one = |(i, r)| without(r, &p.metadata.namespace, &format!("spec.rules[{i}]"), &mut dropped);
        policy.spec.rules = all.filter_map(one).collect();
        let compiled = authorization(objects, &policy);
        if compiled.is_ok() {
            return Judged { policy: Cow::Owned(policy), dropped, compiled };
        }
    }
    Judged { policy: Cow::Borrowed(p), dropped: vec![], compiled }
}

/// An ALLOW rule without the values that can match nothing. None: nothing matches it any more. (What has lost all of its values
/// goes with them: without a condition it would match everything.)
fn without(mut r: PolicyRule, ns: &str, at: &str, dropped: &mut Vec<FieldError>) -> Option<PolicyRule> {
    use Attribute as A;
    let mut keep = |a: A, values: &mut Vec<String>, at: String| {
        let (had, mut i) = (!values.is_empty(), 0);
        values.retain(|v| {
            let values = std::slice::from_ref(v);
            let one = Condition { attribute: a, name: "", values, not_values: &[], fields: ["", ""] };
            let why = one.judge(&mut Match::default(), ns, "").err();
            let is_good = why.is_none();
            dropped.extend(why.map(|(_, why)| (format!("{at}[{i}]"), why)));
            i += 1;
            is_good
        });
        !had || !values.is_empty()
    };
    let mut i = 0;
    let (from, to, when) = (r.from.len(), r.to.len(), r.when.len());
    r.from.retain_mut(|f| {
        let (at, s) = (format!("{at}.from[{i}].source"), &mut f.source);
        i += 1;
        let all = [
            keep(A::Principal, &mut s.principals, format!("{at}.principals")),
            keep(A::RequestPrincipal, &mut s.request_principals, format!("{at}.requestPrincipals")),
            keep(A::Namespace, &mut s.namespaces, format!("{at}.namespaces")),
            keep(A::ServiceAccount, &mut s.service_accounts, format!("{at}.serviceAccounts")),
            keep(A::SourceIp, &mut s.ip_blocks, format!("{at}.ipBlocks")),
            keep(A::RemoteIp, &mut s.remote_ip_blocks, format!("{at}.remoteIpBlocks")),
        ];
        !all.contains(&false)
    });
    i = 0;
    r.to.retain_mut(|t| {
        let (at, o) = (format!("{at}.to[{i}].operation"), &mut t.operation);
        i += 1;
        let all = [
            keep(A::Host, &mut o.hosts, format!("{at}.hosts")),
            keep(A::Method, &mut o.methods, format!("{at}.methods")),
            keep(A::Path, &mut o.paths, format!("{at}.paths")),
            keep(A::Port, &mut o.ports, format!("{at}.ports")),
        ];
        !all.contains(&false)
    });
    i = 0;
    r.when.retain_mut(|w| {
        let at = format!("{at}.when[{i}].values");
        i += 1;
        attribute::find(&w.key).is_none_or(|(a, _)| keep(a, &mut w.values, at))
    });
    // Of sources and operations one is enough; all conditions must hold.
    let holds = (from == 0 || !r.from.is_empty()) && (to == 0 || !r.to.is_empty()) && when == r.when.len();
    holds.then_some(r)
}

/// Why a policy cannot be understood.
pub(super) fn validate(objects: &Objects<'_>, p: &AuthorizationPolicy) -> Option<FieldError> {
    judged(objects, p).compiled.err()
}

fn scope(objects: &Objects<'_>, p: &AuthorizationPolicy) -> Scope {
    match &p.spec.selector {
        Some(s) if !s.match_labels.is_empty() => Scope::WorkloadSelector,
        _ if p.metadata.namespace == objects.mesh.root_namespace => Scope::Global,
        _ => Scope::Namespace,
    }
}

/// Is it clearly marked as one that is not to be enforced?
pub(super) fn is_dry_run(p: &AuthorizationPolicy) -> bool {
    p.metadata.annotations.get(DRY_RUN).is_some_and(|v| v == "true")
}

/// What stands for a policy that cannot be read, by what it was to do.
pub(super) enum Unread {
    /// It was to let somebody in: it lets nobody in.
    AllowsNobody,
    /// It may have been to refuse: beside another one that allows, to let nobody in would be to refuse nobody, so it refuses
    /// everybody.
    DeniesAll,
    /// It was to be told of in the log, and decides nothing.
    AuditsNothing,
}

impl Unread {
    pub(super) fn of(p: &AuthorizationPolicy) -> Self {
        match p.spec.action.as_deref() {
            None | Some("ALLOW") => Unread::AllowsNobody,
            Some("AUDIT") => Unread::AuditsNothing,
            Some(_) => Unread::DeniesAll,
        }
    }
}

/// What stands for a policy that cannot be read, where ztunnel decides. (Of one in dry run it is known that it is to refuse nobody.)
fn closed(objects: &Objects<'_>, p: &AuthorizationPolicy) -> Option<Policy> {
    let (action, rules) = match Unread::of(p) {
        Unread::AllowsNobody => (Action::Allow, vec![]),
        Unread::DeniesAll => (Action::Deny, vec![Rule::default()]),
        Unread::AuditsNothing => return None,
    };
    Some(Policy {
        name: p.metadata.name.as_str().into(),
        namespace: p.metadata.namespace.as_str().into(),
        scope: scope(objects, p),
        action,
        rules,
        dry_run: is_dry_run(p),
    })
}

fn authorization(objects: &Objects<'_>, p: &AuthorizationPolicy) -> Result<Option<Policy>, FieldError> {
    let s = &p.spec;
    let root = p.metadata.namespace == objects.mesh.root_namespace;
    let mut targets = s.targets().peekable();
    if targets.peek().is_some() && s.selector.is_some() {
        return Err((
            "spec.targetRefs".into(),
            "cannot be combined with selector: remove one of them [KARST-0014]".into(),
        ));
    }
    let attached = targets.peek().is_some();
    for (at, t) in targets {
        target(t, &at, root)?;
    }
    if let Some(sel) = &s.selector {
        selector(sel)?;
    }
    let action = match s.action.as_deref() {
        None | Some("ALLOW") => Some(Action::Allow),
        Some("DENY") => Some(Action::Deny),
        Some("AUDIT") => None,
        Some("CUSTOM") => {
            return Err(("spec.action".into(), "CUSTOM is not supported: use ALLOW or DENY [KARST-0101]".into()));
        }
        Some(o) => {
            return Err((
                "spec.action".into(),
                format!("unsupported value {o:?}: use ALLOW, DENY or AUDIT [KARST-0016]"),
            ));
        }
    };
    if s.provider.is_some() {
        return Err((
            "spec.provider".into(),
            "is only for action CUSTOM, which is not supported: remove it [KARST-0101]".into(),
        ));
    }
    if action == Some(Action::Deny) && s.rules.is_empty() {
        return Err((
            "spec.rules".into(),
            "is empty: a DENY policy without rules has no effect; to deny all traffic, set rules: [{}] [KARST-0102]"
                .into(),
        ));
    }
    let dry_run = match p.metadata.annotations.get(DRY_RUN).map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(v) => {
            return Err((
                format!("metadata.annotations[{DRY_RUN}]"),
                format!("unsupported value {v:?}: use \"true\" or \"false\" [KARST-0103]"),
            ));
        }
    };
    let mut rules = Vec::new();
    for (i, r) in s.rules.iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        rules.extend(rule(r, action.unwrap_or(Action::Allow), &p.metadata.namespace, &at)?);
    }
    let Some(action) = action.filter(|_| !attached) else {
        return Ok(None); // the waypoint enforces it
    };
    Ok(Some(Policy {
        name: p.metadata.name.as_str().into(),
        namespace: p.metadata.namespace.as_str().into(),
        scope: scope(objects, p),
        action,
        rules,
        dry_run,
    }))
}

/// What a policy may be attached to.
const TARGETS: [(&str, &str); 4] =
    [("Service", ""), ("ServiceEntry", ISTIO_NETWORKING), ("Gateway", GATEWAY_API), ("GatewayClass", GATEWAY_API)];

/// What selects pods, or is attached to something by `targetRefs`.
pub(super) trait Attached {
    fn meta(&self) -> &Meta;
    fn selector(&self) -> Option<&Selector>;
    /// What it is attached to, and the path of the field that says so.
    fn targets(&self) -> impl Iterator<Item = (String, &TargetRef)>;
    fn is_attached(&self) -> bool {
        self.targets().next().is_some()
    }
}
macro_rules! attached {
    ($($kind:ident),*) => { $(impl Attached for $kind {
        fn meta(&self) -> &Meta {
            &self.metadata
        }
        fn selector(&self) -> Option<&Selector> {
            self.spec.selector.as_ref()
        }
        fn targets(&self) -> impl Iterator<Item = (String, &TargetRef)> {
            self.spec.targets()
        }
    })* };
}
attached!(AuthorizationPolicy, RequestAuthentication, Telemetry);

/// Why it is for nobody, if it is not. (Else anybody could decide about waypoints of others.)
pub(super) fn ineffective_reason(objects: &Objects<'_>, o: &impl Attached) -> Option<FieldError> {
    if o.selector().is_some() && o.is_attached() {
        return Some((
            "spec.selector".into(),
            "cannot be combined with targetRefs: remove one of them [KARST-0014]".into(),
        ));
    }
    let root = o.meta().namespace == objects.mesh.root_namespace;
    o.targets().find_map(|(path, t)| target(t, &path, root).err())
}

pub(super) fn target(t: &TargetRef, at: &str, root: bool) -> Result<(), FieldError> {
    let Some((_, group)) = TARGETS.iter().find(|(k, _)| *k == t.kind) else {
        return Err((
            format!("{at}.kind"),
            format!(
                "unsupported target kind {:?}: use Service, ServiceEntry, Gateway or GatewayClass [KARST-0104]",
                t.kind
            ),
        ));
    };
    if t.group != *group && !(t.kind == "Service" && t.group == "core") {
        return Err((
            format!("{at}.group"),
            format!("{:?} is not the API group of {}: use {group:?} [KARST-0104]", t.group, t.kind),
        ));
    }
    if t.kind == "GatewayClass" && !root {
        return Err((
            format!("{at}.kind"),
            "GatewayClass can be a target only in the root namespace: use a Gateway, or move the policy to the root namespace [KARST-0105]".into(),
        ));
    }
    if t.namespace.as_deref().is_some_and(|n| !n.is_empty()) {
        return Err((
            format!("{at}.namespace"),
            "must be empty: a policy attaches only within its own namespace [KARST-0106]".into(),
        ));
    }
    Ok(())
}

/// Labels are compared as they stand: a wildcard would select nothing.
pub(super) fn selector(s: &Selector) -> Result<(), FieldError> {
    for (k, v) in &s.match_labels {
        if v.contains('*') || k.contains('*') {
            return Err((
                format!("spec.selector.matchLabels[{k}]"),
                format!(
                    "{:?} contains a wildcard, which is not supported in labels: specify the whole value [KARST-0107]",
                    format!("{k}={v}")
                ),
            ));
        }
    }
    Ok(())
}

/// None: an ALLOW rule that needs more than L4 can see.
fn rule(r: &PolicyRule, action: Action, ns: &str, at: &str) -> Result<Option<Rule>, FieldError> {
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
        let from: Result<Vec<_>, FieldError> = r
            .from
            .iter()
            .enumerate()
            .map(|(i, f)| judge_source(&f.source, ns, &format!("{at}.from[{i}].source")))
            .collect();
        add(from?);
    }
    if !r.to.is_empty() {
        let to: Result<Vec<_>, FieldError> =
            r.to.iter()
                .enumerate()
                .map(|(i, t)| all(&operation(&t.operation), ns, &format!("{at}.to[{i}].operation")))
                .collect();
        add(to?);
    }
    for (i, w) in r.when.iter().enumerate() {
        add(vec![judge_when(w, ns, &format!("{at}.when[{i}]"))?]);
    }
    Ok(if beyond && action == Action::Allow { None } else { Some(Rule { clauses }) })
}

fn strings(v: &[String], at: &str) -> Result<Vec<StringMatch>, FieldError> {
    let one =
        |(i, s): (usize, &String)| StringMatch::parse(s).map_err(|e| (format!("{at}[{i}]"), format!("{s:?} {e}")));
    v.iter().enumerate().map(one).collect()
}

fn filled(v: &[String], at: &str) -> Result<(), FieldError> {
    match v.iter().position(String::is_empty) {
        Some(i) => Err((format!("{at}[{i}]"), "is empty: remove it or specify a value [KARST-0012]".into())),
        None => Ok(()),
    }
}

fn nets(v: &[String], at: &str) -> Result<Vec<CidrText>, FieldError> {
    v.iter()
        .enumerate()
        .map(|(i, s)| {
            s.parse().map(CidrText).map_err(|e: karst_core::addr::CidrError| (format!("{at}[{i}]"), e.to_string()))
        })
        .collect()
}

fn ports(v: &[String], at: &str) -> Result<Vec<u16>, FieldError> {
    let one = |(i, s): (usize, &String)| {
        attribute::port(s)
            .ok_or_else(|| (format!("{at}[{i}]"), format!("invalid port {s:?}: use 1 to 65535 [KARST-0019]")))
    };
    v.iter().enumerate().map(one).collect()
}

fn accounts(v: &[String], ns: &str, at: &str) -> Result<Vec<ServiceAccountMatch>, FieldError> {
    let one = |(i, s): (usize, &String)| {
        let (n, a) = s.split_once('/').unwrap_or((ns, s));
        if a.is_empty() || a.contains(['/', '*']) || n.contains('*') {
            return Err((
                format!("{at}[{i}]"),
                format!("invalid service account {s:?}: use NAME or NAMESPACE/NAME, without wildcards [KARST-0108]"),
            ));
        }
        Ok(ServiceAccountMatch { namespace: n.into(), service_account: a.into() })
    };
    v.iter().enumerate().map(one).collect()
}

/// What an attribute must be, or must not be. What a waypoint is told is made of this, too.
pub(super) struct Condition<'a> {
    pub(super) attribute: Attribute,
    /// Of a header or a claim.
    pub(super) name: &'a str,
    pub(super) values: &'a [String],
    pub(super) not_values: &'a [String],
    /// The fields that hold them.
    fields: [&'static str; 2],
}

impl Condition<'_> {
    fn is_empty(&self) -> bool {
        self.values.is_empty() && self.not_values.is_empty()
    }

    /// Adds it to what is compared of a connection. True: only a waypoint can see it.
    fn judge(&self, m: &mut Match, ns: &str, at: &str) -> Result<bool, FieldError> {
        use Attribute as A;
        let (yes, no) = (self.values, self.not_values);
        let [yes_at, no_at] = self.fields.map(|f| format!("{at}.{f}"));
        for (values, at) in [(yes, &yes_at), (no, &no_at)] {
            filled(values, at)?;
            for (i, v) in values.iter().enumerate() {
                self.attribute.check(v).map_err(|e| (format!("{at}[{i}]"), format!("{v:?} {e}")))?;
            }
        }
        let domain = |v: &[String]| v.iter().map(|d| StringMatch::Prefix(format!("{d}/").into())).collect::<Vec<_>>();
        match self.attribute {
            A::Principal => {
                m.principals.extend(strings(yes, &yes_at)?);
                m.not_principals.extend(strings(no, &no_at)?);
            }
            A::TrustDomain => {
                m.principals.extend(domain(yes));
                m.not_principals.extend(domain(no));
            }
            A::Namespace => {
                m.namespaces.extend(strings(yes, &yes_at)?);
                m.not_namespaces.extend(strings(no, &no_at)?);
            }
            A::ServiceAccount => {
                m.service_accounts.extend(accounts(yes, ns, &yes_at)?);
                m.not_service_accounts.extend(accounts(no, ns, &no_at)?);
            }
            A::SourceIp => {
                m.source_ips.extend(nets(yes, &yes_at)?);
                m.not_source_ips.extend(nets(no, &no_at)?);
            }
            A::DestinationIp => {
                m.destination_ips.extend(nets(yes, &yes_at)?);
                m.not_destination_ips.extend(nets(no, &no_at)?);
            }
            A::Port => {
                m.destination_ports.extend(ports(yes, &yes_at)?);
                m.not_destination_ports.extend(ports(no, &no_at)?);
            }
            A::RemoteIp => {
                nets(yes, &yes_at)?;
                nets(no, &no_at)?;
            }
            A::Sni
            | A::Host
            | A::Method
            | A::Path
            | A::Header
            | A::RequestPrincipal
            | A::Claim
            | A::Audience
            | A::Presenter => {}
        }
        Ok(!self.is_empty() && self.attribute.seen_by() == SeenBy::Waypoint)
    }
}

/// The conditions of a source.
pub(super) fn source(s: &Source) -> [Condition<'_>; 6] {
    use Attribute as A;
    let one = |attribute, values, not_values, fields| Condition { attribute, name: "", values, not_values, fields };
    [
        one(A::Principal, &s.principals[..], &s.not_principals[..], ["principals", "notPrincipals"]),
        one(
            A::RequestPrincipal,
            &s.request_principals,
            &s.not_request_principals,
            ["requestPrincipals", "notRequestPrincipals"],
        ),
        one(A::Namespace, &s.namespaces, &s.not_namespaces, ["namespaces", "notNamespaces"]),
        one(A::ServiceAccount, &s.service_accounts, &s.not_service_accounts, ["serviceAccounts", "notServiceAccounts"]),
        one(A::SourceIp, &s.ip_blocks, &s.not_ip_blocks, ["ipBlocks", "notIpBlocks"]),
        one(A::RemoteIp, &s.remote_ip_blocks, &s.not_remote_ip_blocks, ["remoteIpBlocks", "notRemoteIpBlocks"]),
    ]
}

/// The conditions of an operation.
pub(super) fn operation(o: &Operation) -> [Condition<'_>; 4] {
    use Attribute as A;
    let one = |attribute, values, not_values, fields| Condition { attribute, name: "", values, not_values, fields };
    [
        one(A::Host, &o.hosts[..], &o.not_hosts[..], ["hosts", "notHosts"]),
        one(A::Method, &o.methods, &o.not_methods, ["methods", "notMethods"]),
        one(A::Path, &o.paths, &o.not_paths, ["paths", "notPaths"]),
        one(A::Port, &o.ports, &o.not_ports, ["ports", "notPorts"]),
    ]
}

/// The condition of a key. None: nobody knows it.
pub(super) fn when(w: &When) -> Option<Condition<'_>> {
    let (attribute, name) = attribute::find(&w.key)?;
    let (values, not_values) = (&w.values[..], &w.not_values[..]);
    Some(Condition { attribute, name, values, not_values, fields: ["values", "notValues"] })
}

/// What of them is compared of a connection, and whether there is more, which only a waypoint can see.
fn all(conditions: &[Condition<'_>], ns: &str, at: &str) -> Result<(Match, bool), FieldError> {
    if conditions.iter().all(Condition::is_empty) {
        return Err((at.into(), "is empty: specify at least one condition [KARST-0109]".into()));
    }
    let (mut m, mut beyond) = (Match::default(), false);
    for c in conditions {
        beyond |= c.judge(&mut m, ns, at)?;
    }
    Ok((m, beyond))
}

fn judge_source(s: &Source, ns: &str, at: &str) -> Result<(Match, bool), FieldError> {
    let others = !s.principals.is_empty() || !s.namespaces.is_empty();
    if others && !s.service_accounts.is_empty() {
        return Err((
            format!("{at}.serviceAccounts"),
            "cannot be combined with principals or namespaces: remove one of them [KARST-0014]".into(),
        ));
    }
    all(&source(s), ns, at)
}

fn judge_when(w: &When, ns: &str, at: &str) -> Result<(Match, bool), FieldError> {
    if w.values.is_empty() && w.not_values.is_empty() {
        return Err((at.into(), "has neither values nor notValues: specify at least one of them [KARST-0109]".into()));
    }
    let unknown = || (format!("{at}.key"), format!("unknown key {:?}: use {} [KARST-0110]", w.key, attribute::list()));
    all(&[when(w).ok_or_else(unknown)?], ns, at)
}

/// What comes of a policy that cannot be read, for who upgrades.
pub(super) fn effect(objects: &Objects<'_>, p: &AuthorizationPolicy) -> Option<String> {
    let judged = judged(objects, p);
    let what = match (judged.compiled.is_err(), judged.dropped.is_empty()) {
        (true, _) if is_dry_run(p) => "is in dry-run mode: no traffic is denied",
        (true, _) => match Unread::of(p) {
            Unread::AllowsNobody => "allows no traffic: traffic that no other policy allows is denied",
            Unread::DeniesAll => "denies all traffic that it selects",
            Unread::AuditsNothing => "audits nothing: no traffic is denied",
        },
        (false, false) => "ignores the values above; the rest of the policy is in force",
        (false, true) => return None,
    };
    Some(format!("AuthorizationPolicy {}/{}: {what}", p.metadata.namespace, p.metadata.name))
}

/// What is valid, and yet hardly what was meant. For the one who applies it.
pub(super) fn warnings(p: &AuthorizationPolicy) -> Vec<String> {
    let s = &p.spec;
    let mut out = Vec::new();
    let attached = s.targets().next().is_some();
    let action = s.action.as_deref().unwrap_or("ALLOW");
    for (i, r) in s.rules.iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        let from = r.from.iter().any(|f| judge_source(&f.source, "", "").is_ok_and(|(_, l7)| l7));
        let to = r.to.iter().any(|t| all(&operation(&t.operation), "", "").is_ok_and(|(_, l7)| l7));
        let cond = r.when.iter().any(|w| judge_when(w, "", "").is_ok_and(|(_, l7)| l7));
        if !attached && (from || to || cond) {
            out.push(match action {
                "DENY" => format!("{at}: has HTTP conditions, which ztunnel cannot evaluate: it denies all connections that the other conditions match, whatever the request; to use HTTP conditions, attach the policy to a waypoint (targetRefs) [KARST-0114]"),
                _ => format!("{at}: has HTTP conditions, which ztunnel cannot evaluate: it allows no traffic there; to use HTTP conditions, attach the policy to a waypoint (targetRefs) [KARST-0114]"),
            });
        }
    }
    if is_dry_run(p) {
        out.push(format!("metadata.annotations[{DRY_RUN}]: the policy is logged, not enforced [KARST-0115]"));
    }
    out
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
    fn compile(objects: &Objects<'_>, all: &mut BTreeMap<String, Policy>, problems: &mut Vec<Problem>) -> Self {
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
            if let Some(Err((field, text))) = p.spec.selector.as_ref().map(selector) {
                problems.push(problem(at, field, text));
            }
            if !p.spec.port_level_mtls.is_empty() && (!selected(p) || p.metadata.namespace == root) {
                problems.push(problem(
                    at,
                    "spec.portLevelMtls",
                    "requires a selector, and a namespace other than the root namespace: add spec.selector.matchLabels [KARST-0116]",
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
            problems.push(problem(at, "spec.portLevelMtls", "invalid port 0: use 1 to 65535 [KARST-0019]"));
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
