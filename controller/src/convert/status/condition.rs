//! Conditions of statuses: as they should be, and what is to be written where they differ.

use karst_kube::Ref;
use karst_manifest::kinds::{Meta, StatusCondition};
use serde_json::{Value, json};

/// A status that is not yet what it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub to: Ref,
    /// Field manager: each kind of status has its own, as in Istio.
    pub manager: &'static str,
    pub status: Value,
}

/// A condition as it should be.
pub(crate) struct Condition {
    pub(crate) kind: &'static str,
    pub(crate) status: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

pub(crate) fn reference(group: &'static str, kind: &'static str, meta: &Meta) -> Ref {
    Ref { group, version: "v1", kind, namespace: meta.namespace.clone(), name: meta.name.clone() }
}

/// Are the conditions there as they should be?
pub(crate) fn same(wanted: &[Condition], have: &[StatusCondition], generation: i64) -> bool {
    wanted.iter().all(|expected| {
        have.iter().any(|condition| {
            condition.kind == expected.kind
                && condition.status == text(expected.status)
                && condition.reason == expected.reason
                && condition.message == expected.message
                && condition.observed_generation == generation
        })
    })
}

/// The conditions to write. The time of a condition changes with its status.
pub(crate) fn conditions(wanted: &[Condition], have: &[StatusCondition], generation: i64, now: &str) -> Value {
    let one = |w: &Condition| {
        let kept = have.iter().find(|c| c.kind == w.kind && c.status == text(w.status));
        let time = kept.map(|c| c.last_transition_time.as_str()).filter(|t| !t.is_empty());
        json!({
            "type": w.kind, "status": text(w.status), "reason": w.reason, "message": w.message,
            "observedGeneration": generation, "lastTransitionTime": time.unwrap_or(now),
        })
    };
    wanted.iter().map(one).collect()
}

/// Conditions of somebody else, to be written again.
pub(crate) fn as_they_are(all: &[StatusCondition]) -> Value {
    all.iter().map(as_it_is).collect()
}

fn as_it_is(condition: &StatusCondition) -> Value {
    json!({
        "type": condition.kind, "status": condition.status, "reason": condition.reason, "message": condition.message,
        "observedGeneration": condition.observed_generation, "lastTransitionTime": condition.last_transition_time,
    })
}

/// In Istio's CRDs the list of conditions is one value, whose writer has all of it: what others have said stays, or they and
/// we would take it from each other for ever.
pub(crate) fn beside(conditions: Value, have: &[StatusCondition], ours: &[&str]) -> Value {
    let others = have.iter().filter(|c| !ours.contains(&c.kind.as_str())).map(|c| {
        let mut one = as_it_is(c);
        if let Some(fields) = one.as_object_mut().filter(|_| c.last_transition_time.is_empty()) {
            fields.remove("lastTransitionTime");
        }
        one
    });
    conditions.as_array().into_iter().flatten().cloned().chain(others).collect()
}

pub(crate) fn text(is_true: bool) -> &'static str {
    if is_true { "True" } else { "False" }
}

/// The conditions to write, if they differ from those that are there (or `force`).
pub(crate) fn changed(
    wanted: &[Condition],
    have: &[StatusCondition],
    generation: i64,
    force: bool,
    now: &str,
) -> Option<Value> {
    (force || !same(wanted, have, generation)).then(|| conditions(wanted, have, generation, now))
}
