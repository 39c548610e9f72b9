//! The statuses of BackendTLSPolicies (Gateway API: PolicyAncestorStatus): one entry for each Gateway, waypoints among them, that
//! sends requests to a Service that the policy is for.

use crate::convert::{
    compilation::routes::gateway_api,
    facts::{
        backend_tls::{Verdict, evaluate},
        listener::ListenerParent,
        listener_set,
        listeners::GatewayListeners,
        service, waypoint,
    },
    objects::{GATEWAY_API, Objects},
    status::{
        ancestors,
        condition::{Condition, Write, reference},
        route::{self, Route},
    },
};
use karst_manifest::{gatewayapi::ParentRef, kinds::Meta};
use std::collections::BTreeSet;

/// A Gateway or a Service, by namespace and name.
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

/// Which Gateways send requests to which Service: those of their routes, and questions about them.
fn users(objects: &Objects<'_>, listeners: &GatewayListeners, routes: &[Route<'_>]) -> BTreeSet<(Name, Name)> {
    let mut out = BTreeSet::new();
    // Datagrams have no TLS.
    for route in routes.iter().filter(|route| route.kind != gateway_api::UDP) {
        let senders: BTreeSet<Name> =
            route.parents.iter().flat_map(|parent| senders(objects, listeners, route, parent)).collect();
        if senders.is_empty() {
            continue;
        }
        for service in route.services(objects) {
            out.extend(senders.iter().map(|gateway| (gateway.clone(), service.clone())));
        }
    }
    for listener in listeners.all.iter().filter(|listener| listener.works()) {
        let ListenerParent::Api { namespace, gateway, .. } = &listener.parent else { continue };
        for provider in listener.filters.iter().flatten() {
            let host = provider.service.split_once('/').map_or("", |(_, host)| host);
            if let Some((ns, service)) = service::of_hostname(objects, host) {
                out.insert(((namespace.clone(), gateway.clone()), (ns.into(), service.into())));
            }
        }
    }
    for service in objects.services.values().flatten() {
        let to = name(&service.metadata);
        out.extend(waypoints(objects, &service.metadata).map(|gateway| (gateway, to.clone())));
    }
    out
}

/// The Gateways that send what a route says of a parent: the one that it is attached to, or the waypoints of the service.
fn senders(
    objects: &Objects<'_>,
    listeners: &GatewayListeners,
    route: &Route<'_>,
    parent: &ParentRef,
) -> BTreeSet<Name> {
    let ns = &route.meta.namespace;
    match listeners.attached(objects, route.kind, ns, route.names, parent) {
        Some(Ok(_)) => listener_set::gateway_of(objects, ns, parent).map(|g| name(&g.metadata)).into_iter().collect(),
        Some(Err(_)) => BTreeSet::new(),
        None => route::of_mesh(objects, route.meta, parent).into_iter().flat_map(|m| waypoints(objects, m)).collect(),
    }
}

/// The waypoints of a service: the one that it is bound to, and the one that gets a part of its requests.
fn waypoints(objects: &Objects<'_>, meta: &Meta) -> impl Iterator<Item = Name> {
    let first = match waypoint::binding(objects, &meta.namespace, &meta.labels, waypoint::Traffic::Service) {
        waypoint::Binding::To(gateway, _) => Some(name(&gateway.metadata)),
        waypoint::Binding::None | waypoint::Binding::Refused(..) => None,
    };
    let second = first.as_ref().and_then(|_| waypoint::canary(objects, meta)?.ok());
    first.into_iter().chain(second.map(|canary| name(&canary.gateway.metadata)))
}

fn name(meta: &Meta) -> Name {
    (meta.namespace.clone(), meta.name.clone())
}

/// What an entry is of.
fn ancestor((ns, name): &Name) -> ParentRef {
    ParentRef {
        group: Some(GATEWAY_API.into()),
        kind: Some("Gateway".into()),
        namespace: Some(ns.clone()),
        name: name.clone(),
        ..ParentRef::default()
    }
}

fn one(users: &BTreeSet<(Name, Name)>, verdict: &Verdict<'_>, now: &str) -> Option<Write> {
    let meta = &verdict.policy.metadata;
    let targets =
        |ns: &str, name: &str| ns == meta.namespace && verdict.policy.spec.target_refs.iter().any(|t| t.name == name);
    let gateways: BTreeSet<&Name> = users.iter().filter(|(_, (ns, n))| targets(ns, n)).map(|(g, _)| g).collect();
    let say = |(reason, message): &(&'static str, String), kind, good: &str| Condition {
        kind,
        status: *reason == good,
        reason,
        message: message.clone(),
    };
    let wanted =
        [say(&verdict.accepted, "Accepted", "Accepted"), say(&verdict.resolved, "ResolvedRefs", "ResolvedRefs")];
    let entries = gateways.into_iter().map(|gateway| (ancestor(gateway), &wanted[..])).collect();
    let to = reference(GATEWAY_API, "BackendTLSPolicy", meta);
    ancestors::write(to, meta, &verdict.policy.status.ancestors, entries, now)
}
