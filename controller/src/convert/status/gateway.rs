//! The statuses of Gateways that are no waypoints (Gateway API: GatewayStatus): where they are reached, and what came of each
//! listener.

use crate::convert::{
    deploy,
    facts::{gateway, listener::GatewayListener, listeners::GatewayListeners},
    objects::{GATEWAY_API, Objects},
    status::{
        address,
        condition::{Condition, Write, conditions, reference, same},
        route::Route,
    },
};
use karst_manifest::kinds::Gateway;
use serde_json::{Value, json};

/// All that differ.
pub(crate) fn compile(
    objects: &Objects<'_>,
    listeners: &GatewayListeners,
    routes: &[Route<'_>],
    now: &str,
) -> Vec<Write> {
    let mut all: Vec<_> = objects.gateways.values().filter(|g| gateway::is_ingress(objects, g)).collect();
    all.sort_by_key(|g| (&g.metadata.namespace, &g.metadata.name));
    all.into_iter().filter_map(|g| one(objects, listeners, routes, g, now)).collect()
}

/// Routes that are attached to a listener.
fn attached(
    objects: &Objects<'_>,
    listeners: &GatewayListeners,
    routes: &[Route<'_>],
    listener: &GatewayListener,
) -> usize {
    let to = |r: &&Route<'_>| {
        r.parents.iter().any(|p| match listeners.attached(objects, r.kind, &r.meta.namespace, r.names, p) {
            Some(Ok(all)) => all.iter().any(|(a, _)| a.id == listener.id),
            _ => false,
        })
    };
    routes.iter().filter(to).count()
}

fn condition(kind: &'static str, status: bool, reason: &'static str, message: impl Into<String>) -> Condition {
    Condition { kind, status, reason, message: message.into() }
}

/// Why a listener is not accepted.
fn refusal(listeners: &GatewayListeners, listener: &GatewayListener) -> Option<(&'static str, String)> {
    let taken = || {
        let text = listeners.taken_port(listener)?;
        Some(("PortUnavailable", format!("port {} {text}", listener.port)))
    };
    listener.refused.clone().or_else(|| listener.conflict.clone()).or_else(taken)
}

fn listener(listener: &GatewayListener, refusal: &Option<(&'static str, String)>) -> [Condition; 4] {
    const NONE: &str = "No errors found";
    let bad = |kind, found: &Option<(&'static str, String)>, good| match found {
        Some((reason, text)) => condition(kind, false, reason, text.clone()),
        None => condition(kind, true, good, NONE),
    };
    let conflicted = match &listener.conflict {
        Some((reason, text)) => condition("Conflicted", true, reason, text.clone()),
        None => condition("Conflicted", false, "NoConflicts", NONE),
    };
    let programmed = if listener.works() && refusal.is_none() {
        condition("Programmed", true, "Programmed", NONE)
    } else {
        condition("Programmed", false, "Invalid", "see the other conditions")
    };
    [
        bad("Accepted", refusal, "Accepted"),
        programmed,
        conflicted,
        bad("ResolvedRefs", &listener.unresolved, "ResolvedRefs"),
    ]
}

fn one(
    objects: &Objects<'_>,
    listeners: &GatewayListeners,
    routes: &[Route<'_>],
    gateway: &Gateway,
    now: &str,
) -> Option<Write> {
    let meta = &gateway.metadata;
    let name = deploy::name(objects, gateway);
    let mine: Vec<&GatewayListener> = listeners.of(&meta.namespace, &meta.name).collect();
    let refusals: Vec<_> = mine.iter().map(|f| refusal(listeners, f)).collect();
    let working = refusals.iter().filter(|r| r.is_none()).count();
    let parameters =
        deploy::parameters(objects, gateway).err().map(|e| format!("spec.infrastructure.parametersRef: {e}"));
    let accepted = match (address::unsupported(gateway), working) {
        // What is asked for there is not known: nothing is run without it.
        _ if parameters.is_some() => condition("Accepted", false, "InvalidParameters", parameters.unwrap_or_default()),
        (Some(address), _) => condition(
            "Accepted",
            false,
            "UnsupportedAddress",
            format!("unsupported address type {:?}: use IPAddress or Hostname [KARST-0513]", address.kind),
        ),
        (None, 0) => condition(
            "Accepted",
            false,
            "ListenersNotValid",
            "none of its listeners is valid: see their conditions [KARST-0514]",
        ),
        (None, n) if n < mine.len() => condition(
            "Accepted",
            true,
            "ListenersNotValid",
            "some of its listeners are not valid: see their conditions [KARST-0514]",
        ),
        (None, _) => condition("Accepted", true, "Accepted", "Resource accepted"),
    };
    let ports: Vec<u16> = gateway.spec.listeners.iter().map(|l| l.port).collect();
    let found = address::of(objects, gateway, &name, &ports);
    let programmed = match &found {
        _ if !accepted.status => condition("Programmed", false, "Invalid", "see Accepted"),
        Ok(_) => condition(
            "Programmed",
            true,
            "Programmed",
            format!("Resource programmed, served by Deployment {}/{name}", meta.namespace),
        ),
        Err(e) => condition("Programmed", false, e.reason, e.text.clone()),
    };
    let addresses = found.unwrap_or_else(|e| e.bound);
    let own = [accepted, programmed];
    let mut unchanged = addresses == gateway.status.addresses
        && same(&own, &gateway.status.conditions, meta.generation)
        && gateway.status.listeners.len() == mine.len();
    let mut statuses: Vec<Value> = vec![];
    for ((spec, facts), refusal) in gateway.spec.listeners.iter().zip(&mine).zip(&refusals) {
        let wanted = listener(facts, refusal);
        let before = gateway.status.listeners.iter().find(|s| s.name == spec.name);
        let have = before.map_or(&[][..], |s| &s.conditions);
        let count = attached(objects, listeners, routes, facts);
        let kinds: Vec<Value> = facts.kinds.iter().map(|k| json!({ "group": GATEWAY_API, "kind": k })).collect();
        unchanged &= same(&wanted, have, meta.generation)
            && before.is_some_and(|b| {
                b.attached_routes as usize == count && b.supported_kinds.iter().map(|k| &k.kind).eq(&facts.kinds)
            });
        statuses.push(json!({
            "name": spec.name, "attachedRoutes": count, "supportedKinds": kinds,
            "conditions": conditions(&wanted, have, meta.generation, now),
        }));
    }
    if unchanged {
        return None;
    }
    let addresses: Vec<Value> = addresses.iter().map(|a| json!({ "type": a.kind, "value": a.value })).collect();
    let status = json!({
        "addresses": addresses, "listeners": statuses,
        "conditions": conditions(&own, &gateway.status.conditions, meta.generation, now),
    });
    Some(Write { to: reference(GATEWAY_API, "Gateway", meta), manager: "istio.io/gateway-controller", status })
}
