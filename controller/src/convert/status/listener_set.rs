//! The statuses of ListenerSets (Gateway API, GEP-1713): whether a set's Gateway takes its listeners, and what came of each.

use crate::convert::{
    facts::{listener_set, listeners::GatewayListeners},
    objects::{GATEWAY_API, LISTENER_SET, Objects},
    status::{
        address,
        condition::{Condition, Write, conditions, reference, same},
        listener::{Attached, Judged, condition, statuses},
    },
};
use karst_manifest::kinds::{Gateway, ListenerSet};
use serde_json::json;

/// A set of a Gateway, and its listeners as far as the Gateway takes them.
pub(crate) struct JudgedSet<'a> {
    set: &'a ListenerSet,
    /// Why the Gateway does not take it.
    not_allowed: Option<String>,
    listeners: Vec<Judged<'a>>,
    /// Which of their ports the Gateway is not reached at.
    unreached: Option<String>,
}

/// What became of a set's Gateway.
#[derive(Clone, Copy)]
pub(crate) struct Parent {
    pub(crate) is_accepted: bool,
    pub(crate) is_programmed: bool,
}

impl<'a> JudgedSet<'a> {
    pub(crate) fn of(
        objects: &Objects<'_>,
        listeners: &'a GatewayListeners,
        gateway: &Gateway,
        set: &'a ListenerSet,
    ) -> Self {
        let meta = &set.metadata;
        let not_allowed = listener_set::refusal(objects, gateway, &meta.namespace);
        let listeners = Judged::of(listeners, listeners.of_set(&meta.namespace, &meta.name));
        let ports: Vec<(u16, bool)> = listeners.iter().filter(|l| l.works()).map(Judged::port).collect();
        let unreached = address::lacks_port(objects, gateway, &ports);
        Self { set, not_allowed, listeners, unreached }
    }

    /// Does any of its listeners take something?
    pub(crate) fn works(&self) -> bool {
        self.not_allowed.is_none() && self.listeners.iter().any(Judged::works)
    }

    fn conditions(&self, gateway: &Gateway, parent: Parent) -> [Condition; 2] {
        const KINDS: [&str; 2] = ["Accepted", "Programmed"];
        let both = |reason, text: &str| KINDS.map(|kind| condition(kind, false, reason, text));
        if let Some(text) = &self.not_allowed {
            return both("NotAllowed", text);
        }
        if !self.works() {
            return both("ListenersNotValid", "none of its listeners is valid: see their conditions [KARST-0514]");
        }
        let name = format!("Gateway {}/{}", gateway.metadata.namespace, gateway.metadata.name);
        let not_programmed = || {
            let text = format!("{name} is not programmed: see its status [KARST-0510]");
            condition(KINDS[1], false, "ParentNotProgrammed", text)
        };
        if !parent.is_accepted {
            let text = format!("{name} is not accepted: see its status [KARST-0514]");
            return [condition(KINDS[0], false, "ParentNotAccepted", text), not_programmed()];
        }
        let accepted = if self.listeners.iter().all(Judged::works) {
            condition(KINDS[0], true, "Accepted", "Resource accepted")
        } else {
            let text = "some of its listeners are not valid: see their conditions [KARST-0514]";
            condition(KINDS[0], true, "ListenersNotValid", text)
        };
        let programmed = match (&self.unreached, parent.is_programmed) {
            (Some(text), _) => condition(KINDS[1], false, "Invalid", text.clone()),
            (None, true) => condition(KINDS[1], true, "Programmed", format!("Resource programmed, served by {name}")),
            (None, false) => not_programmed(),
        };
        [accepted, programmed]
    }

    /// Its status, if it differs.
    pub(crate) fn write(&self, gateway: &Gateway, parent: Parent, attached: &Attached<'_>, now: &str) -> Option<Write> {
        let (meta, have) = (&self.set.metadata, &self.set.status);
        let own = self.conditions(gateway, parent);
        let names = self.set.spec.listeners.iter().map(|l| l.name.as_str());
        let (listeners, is_same) = statuses(names, &self.listeners, attached, &have.listeners, meta, now);
        if is_same && same(&own, &have.conditions, meta.generation) {
            return None;
        }
        let status =
            json!({ "conditions": conditions(&own, &have.conditions, meta.generation, now), "listeners": listeners });
        Some(Write { to: reference(GATEWAY_API, LISTENER_SET, meta), manager: "istio.io/gateway-controller", status })
    }
}

/// Those of the sets of waypoints, which take none: all that differ.
pub(crate) fn of_waypoint(
    objects: &Objects<'_>,
    listeners: &GatewayListeners,
    gateway: &Gateway,
    sets: &[&ListenerSet],
    now: &str,
) -> Vec<Write> {
    let parent = Parent { is_accepted: true, is_programmed: true };
    let one = |set: &&ListenerSet| {
        JudgedSet::of(objects, listeners, gateway, set).write(gateway, parent, &Attached::new(), now)
    };
    sets.iter().filter_map(one).collect()
}
