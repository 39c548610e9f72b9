//! AuthorizationPolicies as they are in force: as they stand, without what can match nothing, or closed.
//!
//! What L4 cannot see (hosts, methods, paths, headers, request principals) makes an ALLOW rule vanish (it allows less)
//! and is left out of a DENY rule (it denies more). Here Karst is stricter than Istio: a DENY rule of which nothing is
//! left denies everything it might have meant, where Istio's does nothing at all.

use crate::convert::{
    facts::{
        attached::{selector, target},
        condition::{Condition, all, judge_source, judge_when, operation},
    },
    objects::{FieldError, Objects},
};
use karst_manifest::{PolicyAction, kinds::*, parse::Located};
use karst_policy::{Action, Attribute, Clause, Match, Policy, Rule, Scope, attribute};
use std::borrow::Cow;

/// The annotation of a policy that is not enforced: what it would have done is logged and counted.
const DRY_RUN: &str = "istio.io/dry-run";

/// A policy as it is in force.
pub(crate) struct Judged<'a> {
    /// As it stands.
    pub(crate) written: &'a AuthorizationPolicy,
    /// As it stands, or without what was dropped.
    pub(crate) policy: Cow<'a, AuthorizationPolicy>,
    /// Values of an ALLOW that can match nothing: without them it allows as much, and the rest of it stays in force.
    pub(crate) dropped: Vec<FieldError>,
    /// As ztunnel gets it (None: it is not for ztunnel); or why it cannot be understood.
    pub(crate) compiled: Result<Option<Policy>, FieldError>,
}

/// All policies, with where they stand: a compilation judges each once.
pub(crate) fn judge_all<'a>(objects: &Objects<'a>) -> Vec<(&'a Located, Judged<'a>)> {
    objects.authorization.iter().map(|(at, policy)| (*at, judged(objects, policy))).collect()
}

/// What of a policy is in force.
pub(crate) fn judged<'a>(objects: &Objects<'_>, written: &'a AuthorizationPolicy) -> Judged<'a> {
    let compiled = authorization(objects, written);
    if compiled.is_err() && written.spec.action() == PolicyAction::Allow {
        let (mut dropped, mut policy) = (vec![], written.clone());
        let all = std::mem::take(&mut policy.spec.rules).into_iter().enumerate();
        let one = |(i, r)| without(r, &written.metadata.namespace, &format!("spec.rules[{i}]"), &mut dropped);
        policy.spec.rules = all.filter_map(one).collect();
        let compiled = authorization(objects, &policy);
        if compiled.is_ok() {
            return Judged { written, policy: Cow::Owned(policy), dropped, compiled };
        }
    }
    Judged { written, policy: Cow::Borrowed(written), dropped: vec![], compiled }
}

/// An ALLOW rule without the values that can match nothing. None: nothing matches it any more. (What has lost all of its values
/// goes with them: without a condition it would match everything.)
fn without(mut rule: PolicyRule, ns: &str, at: &str, dropped: &mut Vec<FieldError>) -> Option<PolicyRule> {
    use Attribute as A;
    let mut keep = |a: A, values: &mut Vec<String>, at: String| {
        let (had, mut index) = (!values.is_empty(), 0);
        values.retain(|v| {
            let values = std::slice::from_ref(v);
            let one = Condition { attribute: a, name: "", values, not_values: &[], fields: ["", ""] };
            let why = one.judge(&mut Match::default(), ns, "").err();
            let is_good = why.is_none();
            dropped.extend(why.map(|(_, why)| (format!("{at}[{index}]"), why)));
            index += 1;
            is_good
        });
        !had || !values.is_empty()
    };
    let mut index = 0;
    let (from, to, when) = (rule.from.len(), rule.to.len(), rule.when.len());
    rule.from.retain_mut(|f| {
        let (at, source) = (format!("{at}.from[{index}].source"), &mut f.source);
        index += 1;
        let all = [
            keep(A::Principal, &mut source.principals, format!("{at}.principals")),
            keep(A::RequestPrincipal, &mut source.request_principals, format!("{at}.requestPrincipals")),
            keep(A::Namespace, &mut source.namespaces, format!("{at}.namespaces")),
            keep(A::ServiceAccount, &mut source.service_accounts, format!("{at}.serviceAccounts")),
            keep(A::SourceIp, &mut source.ip_blocks, format!("{at}.ipBlocks")),
            keep(A::RemoteIp, &mut source.remote_ip_blocks, format!("{at}.remoteIpBlocks")),
        ];
        !all.contains(&false)
    });
    index = 0;
    rule.to.retain_mut(|t| {
        let (at, operation) = (format!("{at}.to[{index}].operation"), &mut t.operation);
        index += 1;
        let all = [
            keep(A::Host, &mut operation.hosts, format!("{at}.hosts")),
            keep(A::Method, &mut operation.methods, format!("{at}.methods")),
            keep(A::Path, &mut operation.paths, format!("{at}.paths")),
            keep(A::Port, &mut operation.ports, format!("{at}.ports")),
        ];
        !all.contains(&false)
    });
    index = 0;
    rule.when.retain_mut(|w| {
        let at = format!("{at}.when[{index}].values");
        index += 1;
        attribute::find(&w.key).is_none_or(|(a, _)| keep(a, &mut w.values, at))
    });
    // Of sources and operations one is enough; all conditions must hold.
    let holds = (from == 0 || !rule.from.is_empty()) && (to == 0 || !rule.to.is_empty()) && when == rule.when.len();
    holds.then_some(rule)
}

pub(crate) fn scope(objects: &Objects<'_>, policy: &AuthorizationPolicy) -> Scope {
    match &policy.spec.selector {
        Some(s) if !s.match_labels.is_empty() => Scope::WorkloadSelector,
        _ if policy.metadata.namespace == objects.mesh.root_namespace => Scope::Global,
        _ => Scope::Namespace,
    }
}

/// Is it clearly marked as one that is not to be enforced?
pub(crate) fn is_dry_run(policy: &AuthorizationPolicy) -> bool {
    policy.metadata.annotations.get(DRY_RUN).is_some_and(|v| v == "true")
}

/// What stands for a policy that cannot be read, by what it was to do.
pub(crate) enum Unread {
    /// It was to let somebody in: it lets nobody in.
    AllowsNobody,
    /// It may have been to refuse: beside another one that allows, to let nobody in would be to refuse nobody, so it refuses
    /// everybody.
    DeniesAll,
    /// It was to be told of in the log, and decides nothing.
    AuditsNothing,
}

impl Unread {
    pub(crate) fn of(policy: &AuthorizationPolicy) -> Self {
        match policy.spec.action() {
            PolicyAction::Allow => Unread::AllowsNobody,
            PolicyAction::Audit => Unread::AuditsNothing,
            PolicyAction::Deny | PolicyAction::Custom | PolicyAction::Unknown(_) => Unread::DeniesAll,
        }
    }
}

fn authorization(objects: &Objects<'_>, policy: &AuthorizationPolicy) -> Result<Option<Policy>, FieldError> {
    let spec = &policy.spec;
    if spec.is_unread {
        return Err(("spec".into(), "cannot be read: see the controller's log for the reason [KARST-0001]".into()));
    }
    let root = policy.metadata.namespace == objects.mesh.root_namespace;
    let mut targets = spec.targets().peekable();
    if targets.peek().is_some() && spec.selector.is_some() {
        return Err((
            "spec.targetRefs".into(),
            "cannot be combined with selector: remove one of them [KARST-0014]".into(),
        ));
    }
    let attached = targets.peek().is_some();
    for (at, t) in targets {
        target(t, &at, root)?;
    }
    if let Some(sel) = &spec.selector {
        selector(sel)?;
    }
    let action = match spec.action() {
        PolicyAction::Allow => Some(Action::Allow),
        // ztunnel can ask nobody: what is to be asked about is denied there.
        PolicyAction::Deny | PolicyAction::Custom => Some(Action::Deny),
        PolicyAction::Audit => None,
        PolicyAction::Unknown(other) => {
            return Err((
                "spec.action".into(),
                format!("unsupported value {other:?}: use ALLOW, DENY, AUDIT or CUSTOM [KARST-0016]"),
            ));
        }
    };
    let is_custom = spec.action() == PolicyAction::Custom;
    match &spec.provider {
        Some(_) if !is_custom => {
            return Err((
                "spec.provider".into(),
                "is only for action CUSTOM: remove it, or set action: CUSTOM [KARST-0014]".into(),
            ));
        }
        provider if is_custom && provider.as_ref().is_none_or(|p| p.name.is_empty()) => {
            return Err((
                "spec.provider.name".into(),
                "is empty: specify the name of a provider in extensionProviders of the mesh configuration [KARST-0010]"
                    .into(),
            ));
        }
        Some(_) | None => {}
    }
    if action == Some(Action::Deny) && spec.rules.is_empty() {
        let text = if is_custom {
            "is empty: a CUSTOM policy without rules has no effect; to ask about all requests, set rules: [{}] [KARST-0102]"
        } else {
            "is empty: a DENY policy without rules has no effect; to deny all traffic, set rules: [{}] [KARST-0102]"
        };
        return Err(("spec.rules".into(), text.into()));
    }
    let dry_run = match policy.metadata.annotations.get(DRY_RUN).map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(value) => {
            return Err((
                format!("metadata.annotations[{DRY_RUN}]"),
                format!("unsupported value {value:?}: use \"true\" or \"false\" [KARST-0103]"),
            ));
        }
    };
    let mut rules = Vec::new();
    for (i, r) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        rules.extend(rule(r, action.unwrap_or(Action::Allow), &policy.metadata.namespace, &at)?);
    }
    let Some(action) = action.filter(|_| !attached) else {
        return Ok(None); // the waypoint enforces it
    };
    Ok(Some(Policy {
        name: policy.metadata.name.as_str().into(),
        namespace: policy.metadata.namespace.as_str().into(),
        scope: scope(objects, policy),
        action,
        rules,
        dry_run,
    }))
}

/// None: an ALLOW rule that needs more than L4 can see.
fn rule(rule: &PolicyRule, action: Action, ns: &str, at: &str) -> Result<Option<Rule>, FieldError> {
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
    if !rule.from.is_empty() {
        let from: Result<Vec<_>, FieldError> = rule
            .from
            .iter()
            .enumerate()
            .map(|(i, f)| judge_source(&f.source, ns, &format!("{at}.from[{i}].source")))
            .collect();
        add(from?);
    }
    if !rule.to.is_empty() {
        let to: Result<Vec<_>, FieldError> = rule
            .to
            .iter()
            .enumerate()
            .map(|(i, t)| all(&operation(&t.operation), ns, &format!("{at}.to[{i}].operation")))
            .collect();
        add(to?);
    }
    for (i, w) in rule.when.iter().enumerate() {
        add(vec![judge_when(w, ns, &format!("{at}.when[{i}]"))?]);
    }
    Ok(if beyond && action == Action::Allow { None } else { Some(Rule { clauses }) })
}

/// What comes of a policy that cannot be read, for who upgrades.
pub(crate) fn effect(objects: &Objects<'_>, policy: &AuthorizationPolicy) -> Option<String> {
    let judged = judged(objects, policy);
    let what = match (judged.compiled.is_err(), judged.dropped.is_empty()) {
        (true, _) if is_dry_run(policy) => "is in dry-run mode: no traffic is denied",
        (true, _) => match Unread::of(policy) {
            Unread::AllowsNobody => "allows no traffic: traffic that no other policy allows is denied",
            Unread::DeniesAll => "denies all traffic that it selects",
            Unread::AuditsNothing => "audits nothing: no traffic is denied",
        },
        (false, false) => "ignores the values above; the rest of the policy is in force",
        (false, true) => return None,
    };
    Some(format!("AuthorizationPolicy {}/{}: {what}", policy.metadata.namespace, policy.metadata.name))
}

/// Does a rule look at what only a verified token shows?
fn names_token(rule: &PolicyRule) -> bool {
    let is_of_token = |a: Attribute| {
        matches!(a, Attribute::RequestPrincipal | Attribute::Claim | Attribute::Audience | Attribute::Presenter)
    };
    let from = rule
        .from
        .iter()
        .any(|f| !f.source.request_principals.is_empty() || !f.source.not_request_principals.is_empty());
    from || rule.when.iter().any(|w| attribute::find(&w.key).is_some_and(|(a, _)| is_of_token(a)))
}

/// What is valid, and yet hardly what was meant. For the one who applies it.
pub(crate) fn warnings(policy: &AuthorizationPolicy) -> Vec<String> {
    let spec = &policy.spec;
    let mut out = Vec::new();
    let attached = spec.targets().next().is_some();
    let is_custom = spec.action() == PolicyAction::Custom;
    if is_custom && !attached {
        out.push("spec.action: ztunnel cannot ask a provider: it denies all connections that the rules may match; gateways whose pods are selected ask it, and waypoints if the policy is attached to them (targetRefs) [KARST-0130]".into());
    }
    for (i, rule) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{i}]");
        if is_custom {
            if names_token(rule) {
                out.push(format!("{at}: has conditions on tokens, which are verified only after the provider was asked: it is asked whatever the token [KARST-0132]"));
            }
            continue;
        }
        let from = rule.from.iter().any(|f| judge_source(&f.source, "", "").is_ok_and(|(_, l7)| l7));
        let to = rule.to.iter().any(|t| all(&operation(&t.operation), "", "").is_ok_and(|(_, l7)| l7));
        let cond = rule.when.iter().any(|w| judge_when(w, "", "").is_ok_and(|(_, l7)| l7));
        if !attached && (from || to || cond) {
            out.push(match spec.action() {
                PolicyAction::Deny => format!("{at}: has HTTP conditions, which ztunnel cannot evaluate: it denies all connections that the other conditions match, whatever the request; to use HTTP conditions, attach the policy to a waypoint (targetRefs) [KARST-0114]"),
                PolicyAction::Allow | PolicyAction::Audit | PolicyAction::Custom | PolicyAction::Unknown(_) => format!("{at}: has HTTP conditions, which ztunnel cannot evaluate: it allows no traffic there; to use HTTP conditions, attach the policy to a waypoint (targetRefs) [KARST-0114]"),
            });
        }
    }
    if is_dry_run(policy) {
        out.push(format!("metadata.annotations[{DRY_RUN}]: the policy is logged, not enforced [KARST-0115]"));
    }
    out
}
