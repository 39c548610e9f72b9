//! The statuses of Gateways that are no waypoints (Gateway API: GatewayStatus): where they are reached, and what came of each
//! listener; and of the ListenerSets that add to them.

use crate::convert::{
    deploy,
    facts::{backend_certificate, frontend_tls, listener_set, listeners::GatewayListeners, waypoint},
    objects::{GATEWAY_API, Objects},
    status::{
        address::{self, Assigned, Reached},
        condition::{Condition, Write, conditions, reference, same},
        listener::{Attached, Judged, condition, statuses},
        listener_set::{JudgedSet, Parent, of_waypoint},
    },
};
use karst_manifest::kinds::{Gateway, GatewayAddress, StatusCondition};
use serde_json::{Value, json};

/// All that differ.
pub(crate) fn compile(
    objects: &Objects<'_>,
    listeners: &GatewayListeners,
    attached: &Attached<'_>,
    now: &str,
) -> Vec<Write> {
    let mut all: Vec<_> = objects.gateways.values().filter(|g| listener_set::is_ours(objects, g)).collect();
    all.sort_by_key(|g| (&g.metadata.namespace, &g.metadata.name));
    let sets = listener_set::by_gateway(objects);
    let mut out = vec![];
    for gateway in all {
        let meta = &gateway.metadata;
        let sets = sets.get(&(meta.namespace.as_str(), meta.name.as_str())).map_or(&[][..], Vec::as_slice);
        if waypoint::is_waypoint(objects, gateway) {
            out.extend(of_waypoint(objects, listeners, gateway, sets, now));
            continue;
        }
        let sets: Vec<_> = sets.iter().map(|set| JudgedSet::of(objects, listeners, gateway, set)).collect();
        let (write, parent) = one(objects, listeners, &sets, attached, gateway, now);
        out.extend(write);
        out.extend(sets.iter().filter_map(|set| set.write(gateway, parent, attached, now)));
    }
    out
}

/// Can it be as it is written? `own`: its own listeners.
fn accepted(objects: &Objects<'_>, gateway: &Gateway, own: &[Judged<'_>], sets: &[JudgedSet<'_>]) -> Condition {
    let bad = |reason, text: String| condition("Accepted", false, reason, text);
    // What is asked for there is not known: nothing is run without it.
    if let Err(e) = deploy::parameters(objects, gateway) {
        return bad("InvalidParameters", format!("spec.infrastructure.parametersRef: {e}"));
    }
    if let Some(address) = address::unsupported(gateway) {
        return bad("UnsupportedAddress", address::unsupported_text(&address.kind));
    }
    let working = own.iter().filter(|l| l.is_accepted()).count();
    // Its listeners are its own and those of its sets.
    if working == 0 && !sets.iter().any(JudgedSet::works) {
        return bad(
            "ListenersNotValid",
            "none of its listeners is valid: see their conditions [KARST-0514]".to_string(),
        );
    }
    if working < own.len() {
        let text = "some of its listeners are not valid: see their conditions [KARST-0514]";
        return condition("Accepted", true, "ListenersNotValid", text);
    }
    condition("Accepted", true, "Accepted", "Resource accepted")
}

/// Clients are served whatever they show (GEP-91).
const FALLBACK: &str = "InsecureFrontendValidationMode";
/// Which of the addresses that are asked for there are (GEP-5093).
const ASSIGNED: &str = "AddressesAssigned";

/// Says so while it is so.
fn fallback(gateway: &Gateway) -> Option<Condition> {
    const TEXT: &str = "clients with no valid certificate are accepted: mode is AllowInsecureFallback";
    frontend_tls::has_fallback(gateway).then(|| condition(FALLBACK, true, "ConfigurationChanged", TEXT))
}

/// Can what it refers to be used? Said of Gateways that refer to something themselves, and of those that it was said of before: by
/// Istio's controller of all of them, which may not be taken back. `own`: its own listeners.
fn references(objects: &Objects<'_>, gateway: &Gateway, own: &[Judged<'_>]) -> Option<Condition> {
    const KIND: &str = "ResolvedRefs";
    const LISTENERS: &str = "references of some listeners cannot be resolved: see their conditions [KARST-0514]";
    match backend_certificate::of(objects, gateway) {
        Some(Err((reason, text))) => {
            return Some(condition(KIND, false, reason, format!("{}: {text}", backend_certificate::FIELD)));
        }
        Some(Ok(_)) => {}
        None if gateway.status.conditions.iter().any(|c| c.kind == KIND) => {}
        None => return None,
    }
    Some(match own.iter().all(Judged::is_resolved) {
        true => condition(KIND, true, KIND, "All references resolved"),
        false => condition(KIND, false, "ListenersNotResolved", LISTENERS),
    })
}

/// Says so whether it is served or not. (The reason of success is that of the API's types; the proposal's text calls it `Assigned`.)
fn assigned(assigned: &Assigned) -> Condition {
    match assigned {
        Assigned::All => condition(ASSIGNED, true, ASSIGNED, "All addresses are assigned"),
        Assigned::Part(text) => condition(ASSIGNED, false, "PartiallyAssigned", text.clone()),
        Assigned::Nothing(text) => condition(ASSIGNED, false, "NotAssigned", text.clone()),
    }
}

/// Is there a condition that is only there while something holds, which does not any more?
fn is_over(wanted: &[Condition], have: &[StatusCondition]) -> bool {
    let is_left = |kind| have.iter().any(|c| c.kind == kind) && !wanted.iter().any(|c| c.kind == kind);
    [FALLBACK, ASSIGNED].into_iter().any(is_left)
}

/// As it is written. (The field of where it is reached from is there only if the CRD has it.)
fn written(address: &GatewayAddress) -> Value {
    let mut out = json!({ "type": address.kind, "value": address.value });
    if let Some(routability) = &address.routability {
        out["routability"] = json!(routability);
    }
    out
}

/// Its status, if it differs, and what its sets are to know of it.
fn one(
    objects: &Objects<'_>,
    listeners: &GatewayListeners,
    sets: &[JudgedSet<'_>],
    attached: &Attached<'_>,
    gateway: &Gateway,
    now: &str,
) -> (Option<Write>, Parent) {
    let (meta, have) = (&gateway.metadata, &gateway.status);
    let name = deploy::name(objects, gateway);
    let own = Judged::of(listeners, listeners.of(&meta.namespace, &meta.name));
    let accepted = accepted(objects, gateway, &own, sets);
    let ports: Vec<(u16, bool)> = gateway.spec.listeners.iter().map(|l| (l.port, l.protocol == "UDP")).collect();
    let Reached { addresses, unreached, assigned: of_addresses } = address::of(objects, gateway, &name, &ports);
    let programmed = match unreached {
        _ if !accepted.status => condition("Programmed", false, "Invalid", "see Accepted"),
        None => condition(
            "Programmed",
            true,
            "Programmed",
            format!("Resource programmed, served by Deployment {}/{name}", meta.namespace),
        ),
        Some((reason, text)) => condition("Programmed", false, reason, text),
    };
    let parent = Parent { is_accepted: accepted.status, is_programmed: programmed.status };
    let mut wanted = vec![accepted, programmed];
    wanted.extend(of_addresses.as_ref().map(assigned));
    wanted.extend(fallback(gateway));
    wanted.extend(references(objects, gateway, &own));
    let names = gateway.spec.listeners.iter().map(|l| l.name.as_str());
    let (statuses, is_same) = statuses(names, &own, attached, &have.listeners, meta, now);
    let with_sets = sets.iter().filter(|set| parent.is_accepted && set.works()).count();
    if is_same
        && addresses == have.addresses
        && same(&wanted, &have.conditions, meta.generation)
        && !is_over(&wanted, &have.conditions)
        && have.attached_listener_sets as usize == with_sets
    {
        return (None, parent);
    }
    let addresses: Vec<Value> = addresses.iter().map(written).collect();
    let mut status = json!({
        "addresses": addresses, "listeners": statuses,
        "conditions": conditions(&wanted, &have.conditions, meta.generation, now),
    });
    // Older CRDs do not have the field, and would refuse the whole status; who leaves it out takes it back.
    if with_sets > 0 {
        status["attachedListenerSets"] = json!(with_sets);
    }
    let to = reference(GATEWAY_API, "Gateway", meta);
    (Some(Write { to, manager: "istio.io/gateway-controller", status }), parent)
}
