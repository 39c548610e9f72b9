//! AuthorizationPolicies that are attached (`targetRefs`): enforced by waypoints, with all that a request shows.

use crate::convert::{
    compilation::{provider, tokens},
    facts::{
        attached::{Attached, applies, is_class},
        condition::{self, Condition},
        hosts::Hosts,
        policy::{self, Judged, Unread},
        waypoint::{self, Binding},
    },
    objects::Objects,
};
use karst_api::route as ir;
use karst_manifest::{PolicyAction, kinds::*, parse::Located};
use karst_policy::{Attribute, attribute::Values};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The policies of each service.
pub(crate) fn compile(
    objects: &Objects<'_>,
    hosts: &Hosts,
    policies: &[(&Located, Judged<'_>)],
) -> BTreeMap<String, Arc<ir::Access>> {
    let mut all: BTreeMap<String, ir::Access> = BTreeMap::new();
    for judged in policies.iter().map(|(_, judged)| judged).filter(|judged| judged.written.is_attached()) {
        let (written, out) = (judged.written, one(objects, judged));
        // What refuses, or asks, does so by a canary, too. (To allow is the business of the first: both would allow it.)
        let closing = [ir::AccessAction::Deny, ir::AccessAction::Custom];
        let refuses = closing.iter().any(|action| out.action == *action as i32) || judged.compiled.is_err();
        let namespace = &written.metadata.namespace;
        for key in written.spec.targets().flat_map(|(_, t)| services(objects, hosts, namespace, t, refuses)) {
            let own = all.entry(key.to_string()).or_default();
            if !own.policies.iter().any(|o| o.name == out.name) {
                own.policies.push(out.clone());
            }
        }
    }
    for r in tokens::placed(objects) {
        let (m, rules) = (&r.metadata, tokens::compile(objects, r));
        let mut keys: Vec<_> =
            r.spec.targets().flat_map(|(_, t)| services(objects, hosts, &m.namespace, t, false)).collect();
        if r.spec.is_for_all {
            keys.extend(everybody(objects, hosts, &m.namespace));
        }
        for key in keys {
            let own = all.entry(key.to_string()).or_default();
            let new: Vec<_> = rules.iter().filter(|n| !own.tokens.contains(n)).cloned().collect();
            own.tokens.extend(new);
        }
    }
    all.values_mut().for_each(|access| access.providers = providers(objects, access));
    all.into_iter().map(|(k, v)| (k, Arc::new(v))).collect()
}

/// Those whom policies name, by name.
fn providers(objects: &Objects<'_>, access: &ir::Access) -> Vec<ir::AuthzProvider> {
    let names: BTreeSet<&str> = access.policies.iter().map(|p| &*p.provider).filter(|name| !name.is_empty()).collect();
    names.into_iter().filter_map(|name| provider::compile(objects.mesh_config, name).ok()).collect()
}

/// The policies of a gateway's pod: those that are attached to its Gateway or its class, and, unless it is a waypoint's (where they are
/// the business of ztunnel), those that select the pod.
pub(crate) fn of_pod(
    objects: &Objects<'_>,
    policies: &[(&Located, Judged<'_>)],
    pod: &Pod,
    gateway: Option<&Gateway>,
    waypoint: bool,
) -> Option<ir::Access> {
    let mut out = ir::Access::default();
    for (_, judged) in policies.iter().filter(|(_, judged)| judged.written.is_attached() || !waypoint) {
        if applies(objects, pod, gateway, judged.written) {
            out.policies.push(one(objects, judged));
        }
    }
    for r in tokens::placed(objects).filter(|r| r.is_attached() || r.spec.is_for_all || !waypoint) {
        if applies(objects, pod, gateway, r) {
            out.tokens.extend(tokens::compile(objects, r));
        }
    }
    out.providers = providers(objects, &out);
    (out != ir::Access::default()).then_some(out)
}

fn one(objects: &Objects<'_>, judged: &Judged<'_>) -> ir::AccessPolicy {
    let written = judged.written;
    let meta = &written.metadata;
    let mut out = ir::AccessPolicy {
        name: format!("{}/{}", meta.namespace, meta.name),
        dry_run: policy::is_dry_run(written),
        ..Default::default()
    };
    // What was meant cannot be known: nothing is allowed until it is mended (or would be, if it is in dry run).
    if judged.compiled.is_err() {
        match Unread::of(written) {
            Unread::AllowsNobody => {}
            Unread::DeniesAll => {
                out.set_action(ir::AccessAction::Deny);
                out.rules = vec![ir::AccessRule::default()];
            }
            Unread::AuditsNothing => out.set_action(ir::AccessAction::Audit),
        }
        return out;
    }
    let action = match written.spec.action() {
        PolicyAction::Deny => ir::AccessAction::Deny,
        PolicyAction::Audit => ir::AccessAction::Audit,
        PolicyAction::Allow => ir::AccessAction::Allow,
        PolicyAction::Custom => match provider::of_policy(objects.mesh_config, written) {
            Some(Ok(provider)) => {
                out.provider = provider.name;
                ir::AccessAction::Custom
            }
            // Nobody can be asked: what was to be asked about is denied.
            Some(Err(_)) | None => ir::AccessAction::Deny,
        },
        // Refused before. Without rules it allows nothing.
        PolicyAction::Unknown(_) => return out,
    };
    out.set_action(action);
    out.rules = judged.policy.spec.rules.iter().map(|r| rule(r, &meta.namespace)).collect();
    out
}

/// The services that a target means. `canary`: a waypoint means those of which it gets a part, too.
fn services(objects: &Objects<'_>, hosts: &Hosts, ns: &str, target: &TargetRef, canary: bool) -> Vec<Arc<str>> {
    match target.kind.as_str() {
        "Service" => hosts.service(&target.name, ns).into_iter().cloned().collect(),
        "ServiceEntry" => {
            let all = objects.entries_of.get(ns).into_iter().flatten().filter(|e| e.metadata.name == target.name);
            all.flat_map(|e| &e.spec.hosts).filter_map(|h| hosts.own(h, ns)).cloned().collect()
        }
        // Everything that is bound to it.
        "Gateway" => bound(objects, hosts, canary, |g| g.metadata.namespace == ns && g.metadata.name == target.name),
        "GatewayClass" => bound(objects, hosts, canary, |g| is_class(objects, ns, target, g)),
        _ => vec![],
    }
}

/// The services of a namespace, and those that are bound to its waypoints; of the root namespace, to any.
fn everybody(objects: &Objects<'_>, hosts: &Hosts, ns: &str) -> Vec<Arc<str>> {
    let root = ns == objects.mesh.root_namespace;
    let mut out = bound(objects, hosts, false, |g| root || g.metadata.namespace == ns);
    let services = objects.services.values().flatten().filter(|s| s.metadata.namespace == ns);
    out.extend(services.filter_map(|s| hosts.service(&s.metadata.name, ns)).cloned());
    let entries = objects.entries_of.get(ns).into_iter().flatten().flat_map(|e| &e.spec.hosts);
    out.extend(entries.filter_map(|h| hosts.own(h, ns)).cloned());
    out
}

fn bound(objects: &Objects<'_>, hosts: &Hosts, canary: bool, which: impl Fn(&Gateway) -> bool) -> Vec<Arc<str>> {
    let second = |m: &Meta| canary && matches!(waypoint::canary(objects, m), Some(Ok(c)) if which(c.gateway));
    let is = |m: &Meta| match waypoint::binding(objects, &m.namespace, &m.labels, waypoint::Traffic::Service) {
        Binding::To(g, _) => which(g) || second(m),
        Binding::None | Binding::Refused(..) => false,
    };
    let services = objects.services.values().flatten().filter(|s| is(&s.metadata));
    let mut out: Vec<Arc<str>> =
        services.filter_map(|s| hosts.service(&s.metadata.name, &s.metadata.namespace)).cloned().collect();
    for (_, e) in objects.service_entries.iter().filter(|(_, e)| is(&e.metadata)) {
        out.extend(e.spec.hosts.iter().filter_map(|h| hosts.own(h, &e.metadata.namespace)).cloned());
    }
    out
}

fn rule(rule: &PolicyRule, ns: &str) -> ir::AccessRule {
    let mut clauses = vec![];
    if !rule.from.is_empty() {
        let matches = rule.from.iter().map(|f| matched(&condition::source(&f.source), ns)).collect();
        clauses.push(ir::AccessClause { matches });
    }
    if !rule.to.is_empty() {
        let matches = rule.to.iter().map(|t| matched(&condition::operation(&t.operation), ns)).collect();
        clauses.push(ir::AccessClause { matches });
    }
    for w in &rule.when {
        // A key that nobody knows has refused the policy before.
        let one = condition::when(w).map_or_else(|| vec![ir::AccessTest::default()], |c| vec![test(&c, ns)]);
        clauses.push(ir::AccessClause { matches: vec![ir::AccessMatch { tests: one }] });
    }
    ir::AccessRule { clauses }
}

fn matched(conditions: &[Condition<'_>], ns: &str) -> ir::AccessMatch {
    let said = |c: &&Condition<'_>| !c.values.is_empty() || !c.not_values.is_empty();
    ir::AccessMatch { tests: conditions.iter().filter(said).map(|c| test(c, ns)).collect() }
}

fn test(condition: &Condition<'_>, ns: &str) -> ir::AccessTest {
    let values = |all: &[String]| match condition.attribute.values() {
        Values::Accounts => all.iter().map(|a| if a.contains('/') { a.clone() } else { format!("{ns}/{a}") }).collect(),
        Values::Text | Values::Path | Values::Ranges | Values::Ports | Values::TrustDomains => all.to_vec(),
    };
    // Headers are compared without case.
    let name = if condition.attribute == Attribute::Header {
        condition.name.to_ascii_lowercase()
    } else {
        condition.name.to_string()
    };
    let attribute = ir::Attribute::from(condition.attribute) as i32;
    ir::AccessTest { attribute, name, values: values(condition.values), not_values: values(condition.not_values) }
}
