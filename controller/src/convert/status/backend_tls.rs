//! The statuses of BackendTLSPolicies (Gateway API: PolicyAncestorStatus): one entry for each Gateway, waypoints among them, that
//! sends requests to a Service that the policy is for. Entries of other controllers stay as they are.

use crate::convert::{
    facts::{
        backend_tls::{Verdict, evaluate},
        listener_set,
        listeners::GatewayListeners,
        waypoint,
    },
    objects::{GATEWAY_API, Objects},
    status::{
        condition::{Condition, Write, as_they_are, conditions, reference, same},
        route::{CONTROLLER, Route},
    },
};
use karst_manifest::gatewayapi::ParentRef;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A Gateway, by namespace and name.
type Name = (String, String);

/// All that differ.
pub(crate) fn compile(
    objects: &Objects<'_>,
    listeners: &GatewayListeners,
    routes: &[Route<'_>],
    now: &str,
) -> Vec<Write> {
    if objects.backend_tls.is_empty() {
        return vec![];
    }
    let users = users(objects, listeners, routes);
    evaluate(objects).iter().filter_map(|v| one(&users, v, now)).collect()
}

/// Which Gateways send requests to which Service (namespace, name).
fn users(objects: &Objects<'_>, listeners: &GatewayListeners, routes: &[Route<'_>]) -> BTreeSet<(Name, Name)> {
    let mut out = BTreeSet::new();
    for route in routes {
        let ns = &route.meta.namespace;
        for p in route.parents.iter().filter(|p| listeners.attached(objects, route.kind, ns, route.names, p).is_some())
        {
            let Some(gateway) = listener_set::gateway_of(objects, ns, p) else { continue };
            let gateway = (gateway.metadata.namespace.clone(), gateway.metadata.name.clone());
            for b in &route.refs {
                let service = (b.namespace.clone().unwrap_or(ns.clone()), b.name.clone());
                out.insert((gateway.clone(), service));
            }
        }
    }
    for s in objects.services.values().flatten() {
        let meta = &s.metadata;
        if let waypoint::Binding::To(bound, _) =
            waypoint::binding(objects, &meta.namespace, &meta.labels, waypoint::Traffic::Service)
        {
            let gateway = (bound.metadata.namespace.clone(), bound.metadata.name.clone());
            out.insert((gateway, (meta.namespace.clone(), meta.name.clone())));
        }
    }
    out
}

fn one(users: &BTreeSet<(Name, Name)>, verdict: &Verdict<'_>, now: &str) -> Option<Write> {
    let meta = &verdict.policy.metadata;
    let targets =
        |ns: &str, name: &str| ns == meta.namespace && verdict.policy.spec.target_refs.iter().any(|t| t.name == name);
    let gateways: BTreeSet<&Name> = users.iter().filter(|(_, (ns, n))| targets(ns, n)).map(|(g, _)| g).collect();
    let have = &verdict.policy.status.ancestors;
    let say = |(reason, message): &(&'static str, String), kind, good: &str| Condition {
        kind,
        status: *reason == good,
        reason,
        message: message.clone(),
    };
    let wanted =
        [say(&verdict.accepted, "Accepted", "Accepted"), say(&verdict.resolved, "ResolvedRefs", "ResolvedRefs")];
    let mut unchanged = have.iter().filter(|a| a.controller_name == CONTROLLER).count() == gateways.len();
    let mut all: Vec<Value> = vec![];
    for (ns, name) in gateways {
        let to = ParentRef {
            group: Some(GATEWAY_API.into()),
            kind: Some("Gateway".into()),
            namespace: Some(ns.clone()),
            name: name.clone(),
            ..ParentRef::default()
        };
        let before = have.iter().find(|a| a.controller_name == CONTROLLER && a.ancestor_ref == to);
        let there = before.map_or(&[][..], |a| &a.conditions);
        unchanged &= before.is_some() && same(&wanted, there, meta.generation);
        all.push(json!({
            "ancestorRef": to, "controllerName": CONTROLLER,
            "conditions": conditions(&wanted, there, meta.generation, now),
        }));
    }
    if unchanged {
        return None;
    }
    let others = have.iter().filter(|a| a.controller_name != CONTROLLER);
    all.extend(others.map(|a| json!({ "ancestorRef": a.ancestor_ref, "controllerName": a.controller_name, "conditions": as_they_are(&a.conditions) })));
    Some(Write {
        to: reference(GATEWAY_API, "BackendTLSPolicy", meta),
        manager: CONTROLLER,
        status: json!({ "ancestors": all }),
    })
}
