//! Whose statuses this revision writes, and the condition of objects whose label names a revision that nobody is: nobody
//! enforces them, so the default revision says so.

use crate::convert::{
    facts::listener_set,
    finding::REVISION,
    objects::{Objects, named},
    status::condition::{Condition, Write, beside, changed, reference},
};
use karst_manifest::{
    Object, State,
    gatewayapi::ParentRef,
    kinds::{self, Meta, StatusCondition},
    parse::Located,
};
use serde_json::json;
use std::{collections::HashMap, sync::Arc};

/// Field manager.
const MANAGER: &str = "karst.io/revision";

/// Keeps the statuses of objects that belong to this revision.
pub(crate) fn of_ours(objects: &Objects<'_>, state: &State, statuses: Vec<Write>) -> Vec<Write> {
    if objects.revisions.is_only_one() || statuses.is_empty() {
        return statuses;
    }
    let named: HashMap<_, &Object> =
        state.objects.iter().filter_map(|at| Some((key(&at.object)?, &at.object))).collect();
    let is_ours = |write: &Write| {
        let to = &write.to;
        let found = named.get(&(to.group, to.kind, to.namespace.as_str(), to.name.as_str()));
        found.is_none_or(|object| objects.is_ours(tended_as(objects, object)))
    };
    statuses.into_iter().filter(is_ours).collect()
}

/// What writes name an object by. None: it has no status of ours.
fn key(object: &Object) -> Option<(&'static str, &'static str, &str, &str)> {
    if matches!(object, Object::Pod(_) | Object::EndpointSlice(_) | Object::Node(_) | Object::Secret(_)) {
        return None;
    }
    let (kind, group, _) = kinds::KINDS.iter().find(|(kind, ..)| *kind == object.kind())?;
    let meta = object.meta();
    Some((group, kinds::api_kind(kind), &meta.namespace, &meta.name))
}

/// What says whose an object is: itself, or, of a route without a label, the Gateway that it is attached to; of a ListenerSet the
/// Gateway that it adds to, whose pods serve it.
fn tended_as<'a>(objects: &Objects<'a>, object: &'a Object) -> &'a Meta {
    let meta = object.meta();
    let parents: &[ParentRef] = match object {
        Object::HTTPRoute(route) => &route.spec.parent_refs,
        Object::GRPCRoute(route) => &route.spec.parent_refs,
        Object::TCPRoute(route) => &route.spec.parent_refs,
        Object::TLSRoute(route) => &route.spec.parent_refs,
        Object::UDPRoute(route) => &route.spec.parent_refs,
        Object::ListenerSet(set) => return listener_set::parent(objects, set).map_or(meta, |of| &of.metadata),
        _ => return meta,
    };
    if named(&meta.labels).is_some() {
        return meta;
    }
    let gateway = |parent: &ParentRef| listener_set::gateway_of(objects, &meta.namespace, parent);
    parents.iter().find_map(gateway).map_or(meta, |gateway| &gateway.metadata)
}

/// The conditions that say that nobody is the revision that an object names, and those that say so no longer.
pub(crate) fn compile(objects: &Objects<'_>, state: &State, now: &str) -> Vec<Write> {
    let one = |at: &Arc<Located>| {
        let have = have(&at.object)?;
        let unknown = objects.revisions.unknown(at.object.meta()).filter(|_| objects.revisions.is_default());
        let stale = unknown.is_none() && have.iter().any(|condition| condition.kind == REVISION);
        // What is over is taken back by whom it belongs to.
        if unknown.is_none() && (!stale || !objects.is_ours(at.object.meta())) {
            return None;
        }
        let wanted: Vec<Condition> = unknown.into_iter().map(|(field, text)| nobody(&field, &text)).collect();
        let meta = at.object.meta();
        let conditions = changed(&wanted, have, meta.generation, stale, now)?;
        let (kind, group, _) = kinds::KINDS.iter().find(|(kind, ..)| *kind == at.object.kind())?;
        // Here each condition has a writer of its own.
        let is_map = matches!(at.object, Object::Gateway(_));
        let conditions = if is_map { conditions } else { beside(conditions, have, &[REVISION]) };
        let status = json!({ "conditions": conditions });
        Some(Write { to: reference(group, kinds::api_kind(kind), meta), manager: MANAGER, status })
    };
    state.elsewhere.iter().chain(&state.objects).filter_map(one).collect()
}

fn nobody(field: &str, text: &str) -> Condition {
    Condition { kind: REVISION, status: false, reason: "RevisionNotFound", message: format!("{field}: {text}") }
}

/// The conditions of an object. (Routes have lists of parents instead.)
fn have(object: &Object) -> Option<&[StatusCondition]> {
    Some(match object {
        Object::AuthorizationPolicy(policy) => &policy.status.conditions,
        Object::PeerAuthentication(policy) => &policy.status.conditions,
        Object::RequestAuthentication(policy) => &policy.status.conditions,
        Object::Telemetry(telemetry) => &telemetry.status.conditions,
        Object::VirtualService(service) => &service.status.conditions,
        Object::DestinationRule(rule) => &rule.status.conditions,
        Object::Gateway(gateway) => &gateway.status.conditions,
        Object::IstioGateway(gateway) => &gateway.status.conditions,
        Object::ServiceEntry(entry) => &entry.status.conditions,
        Object::WorkloadEntry(entry) => &entry.status.conditions,
        _ => return None,
    })
}
