//! What came of each listener of a Gateway or of a ListenerSet (Gateway API: ListenerStatus, ListenerEntryStatus), and how many
//! routes are attached to it.

use crate::convert::{
    facts::{listener::GatewayListener, listeners::GatewayListeners},
    objects::{GATEWAY_API, Objects},
    status::{
        condition::{Condition, conditions, same},
        route::Route,
    },
};
use karst_manifest::{
    gatewayapi::ParentRef,
    kinds::{ListenerStatus, Meta},
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// How many routes are attached to each listener, by its id.
pub(crate) type Attached<'a> = HashMap<&'a str, usize>;

/// The listeners that a route is attached to, as places among all: each once, by however many references.
pub(crate) fn attached(objects: &Objects<'_>, listeners: &GatewayListeners, route: &Route<'_>) -> Box<[usize]> {
    let to = |parent: &ParentRef| listeners.attached(objects, route.kind, &route.meta.namespace, route.names, parent);
    let all = route.parents.iter().filter_map(to).flatten().flatten();
    let ids: BTreeMap<&str, &GatewayListener> = all.map(|(listener, _)| (listener.id.as_str(), listener)).collect();
    ids.into_values().filter_map(|one| listeners.all.element_offset(one)).collect()
}

/// Counts the routes that are attached to each listener. Of each route there are the places of its listeners.
pub(crate) fn count<'a, 'r>(
    listeners: &'a GatewayListeners,
    routes: impl Iterator<Item = &'r [usize]>,
) -> Attached<'a> {
    let mut counts = vec![0; listeners.all.len()];
    for place in routes.flatten() {
        if let Some(count) = counts.get_mut(*place) {
            *count += 1;
        }
    }
    let mut out = Attached::new();
    for (listener, count) in listeners.all.iter().zip(counts) {
        *out.entry(listener.id.as_str()).or_default() += count;
    }
    out
}

pub(crate) fn condition(
    kind: &'static str,
    status: bool,
    reason: &'static str,
    message: impl Into<String>,
) -> Condition {
    Condition { kind, status, reason, message: message.into() }
}

/// A listener, and why it is not accepted.
pub(crate) struct Judged<'a> {
    listener: &'a GatewayListener,
    refusal: Option<(&'static str, String)>,
}

impl<'a> Judged<'a> {
    pub(crate) fn of(listeners: &GatewayListeners, all: &'a [GatewayListener]) -> Vec<Self> {
        all.iter().map(|listener| Self { listener, refusal: refusal(listeners, listener) }).collect()
    }

    pub(crate) fn is_accepted(&self) -> bool {
        self.refusal.is_none()
    }

    /// Is what it refers to there?
    pub(crate) fn is_resolved(&self) -> bool {
        self.listener.lost().is_none()
    }

    /// Its port, and whether that is one of UDP.
    pub(crate) fn port(&self) -> (u16, bool) {
        (self.listener.port, self.listener.udp)
    }

    /// Does it take anything?
    pub(crate) fn works(&self) -> bool {
        self.listener.works() && self.is_accepted()
    }
}

/// Why a listener is not accepted.
fn refusal(listeners: &GatewayListeners, listener: &GatewayListener) -> Option<(&'static str, String)> {
    let taken = || {
        let text = listeners.taken_port(listener)?;
        Some(("PortUnavailable", format!("port {} {text}", listener.port)))
    };
    listener.refused.clone().or_else(|| listener.conflict.clone()).or_else(taken)
}

fn wanted(judged: &Judged<'_>) -> [Condition; 4] {
    const NONE: &str = "No errors found";
    let bad = |kind, found: Option<&(&'static str, String)>, good| match found {
        Some((reason, text)) => condition(kind, false, reason, text.clone()),
        None => condition(kind, true, good, NONE),
    };
    let conflicted = match &judged.listener.conflict {
        Some((reason, text)) => condition("Conflicted", true, reason, text.clone()),
        None => condition("Conflicted", false, "NoConflicts", NONE),
    };
    let programmed = match &judged.listener.conflict {
        _ if judged.works() => condition("Programmed", true, "Programmed", NONE),
        Some((reason, text)) => condition("Programmed", false, reason, text.clone()),
        None => condition("Programmed", false, "Invalid", "see the other conditions"),
    };
    [
        bad("Accepted", judged.refusal.as_ref(), "Accepted"),
        programmed,
        conflicted,
        bad("ResolvedRefs", judged.listener.lost(), "ResolvedRefs"),
    ]
}

/// The statuses of the listeners of an object, and whether they are what is there.
pub(crate) fn statuses<'n>(
    names: impl Iterator<Item = &'n str>,
    all: &[Judged<'_>],
    attached: &Attached<'_>,
    have: &[ListenerStatus],
    meta: &Meta,
    now: &str,
) -> (Vec<Value>, bool) {
    let mut unchanged = have.len() == all.len();
    let mut out = vec![];
    for (name, judged) in names.zip(all) {
        let (wanted, listener) = (wanted(judged), judged.listener);
        let before = have.iter().find(|s| s.name == name);
        let there = before.map_or(&[][..], |s| &s.conditions);
        let count = attached.get(listener.id.as_str()).copied().unwrap_or(0);
        let kinds: Vec<Value> = listener.kinds.iter().map(|k| json!({ "group": GATEWAY_API, "kind": k })).collect();
        unchanged &= same(&wanted, there, meta.generation)
            && before.is_some_and(|b| {
                b.attached_routes as usize == count && b.supported_kinds.iter().map(|k| &k.kind).eq(&listener.kinds)
            });
        out.push(json!({
            "name": name, "attachedRoutes": count, "supportedKinds": kinds,
            "conditions": conditions(&wanted, there, meta.generation, now),
        }));
    }
    (out, unchanged)
}
