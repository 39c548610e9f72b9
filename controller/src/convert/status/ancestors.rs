//! Statuses of policies of Gateway API (PolicyStatus): an entry for each of what a policy is in force at. Entries of other controllers stay
//! as they are.

use crate::convert::status::{
    condition::{Condition, Write, as_they_are, conditions, same},
    route::CONTROLLER,
};
use karst_kube::Ref;
use karst_manifest::{
    gatewayapi::{AncestorStatus, ParentRef},
    kinds::Meta,
};
use serde_json::{Value, json};

/// Entries that a status has room for (Gateway API's), those of other controllers among them. With one more it could never be written.
const MOST: usize = 16;

/// The status to write, if it is another one than `have`. `wanted`: of what there are to be entries, and what each says; if there is no
/// room for all, who is there stays, whoever else comes.
pub(crate) fn write(
    to: Ref,
    meta: &Meta,
    have: &[AncestorStatus],
    mut wanted: Vec<(ParentRef, &[Condition])>,
    now: &str,
) -> Option<Write> {
    let (ours, others): (Vec<&AncestorStatus>, Vec<_>) = have.iter().partition(|a| a.controller_name == CONTROLLER);
    let of = |ancestor: &ParentRef| ours.iter().find(|a| a.ancestor_ref == *ancestor);
    wanted.sort_by_key(|(ancestor, _)| of(ancestor).is_none());
    wanted.truncate(MOST.saturating_sub(others.len()));
    let mut unchanged = ours.len() == wanted.len();
    let mut all: Vec<Value> = vec![];
    for (ancestor, said) in &wanted {
        let before = of(ancestor);
        let there = before.map_or(&[][..], |a| &a.conditions);
        unchanged &= before.is_some() && same(said, there, meta.generation);
        all.push(json!({
            "ancestorRef": ancestor, "controllerName": CONTROLLER,
            "conditions": conditions(said, there, meta.generation, now),
        }));
    }
    if unchanged {
        return None;
    }
    all.extend(others.iter().map(|a| {
        let conditions = as_they_are(&a.conditions);
        json!({ "ancestorRef": a.ancestor_ref, "controllerName": a.controller_name, "conditions": conditions })
    }));
    Some(Write { to, manager: CONTROLLER, status: json!({ "ancestors": all }) })
}
