//! What controllers have written into statuses.

use super::objects::Item;
use crate::analysis::{Level, Message};
use serde_json::Value;

/// Conditions that are to be True.
const WANTED: [&str; 7] = [
    "Accepted",
    "Programmed",
    "ResolvedRefs",
    "ResolvedWaypoints",
    "WaypointAccepted",
    "ZtunnelAccepted",
    "istio.io/WaypointBound",
];

/// Conditions of an object that are not met (IST0171).
pub(super) fn conditions(item: &Item) -> Vec<Message> {
    let inner = |list: &str| item.list(list).iter().filter_map(|one| one.get("conditions")?.as_array()).flatten();
    let all = item.list("/status/conditions").iter().chain(inner("/status/parents")).chain(inner("/status/listeners"));
    let mut out: Vec<Message> = all
        .filter_map(|condition| {
            let text = |field: &str| condition.get(field).and_then(Value::as_str).unwrap_or_default();
            let is_met = text("status") != "False" && text("reason") != "PartiallyInvalid";
            if is_met || !WANTED.contains(&text("type")) {
                return None;
            }
            let message = format!("status: {} is not met: {}: {}", text("type"), text("reason"), text("message"));
            Some(item.say("IST0171", Level::Warning, message))
        })
        .collect();
    out.dedup();
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::codes;

    #[test]
    fn a_condition_that_is_not_met_is_told_once() {
        let service = |status: &str| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: n}}\nstatus: {{conditions: [{{type: \
                 istio.io/WaypointBound, status: '{status}', reason: WaypointIsNotReady, message: no}}]}}\n"
            )
        };
        assert_eq!(codes(&service("False")), [("IST0171".to_owned(), "Service n/s".to_owned())]);
        assert_eq!(codes(&service("True")), []);
        let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: n}\nstatus: \
                     {parents: [{conditions: [{type: ResolvedRefs, status: 'False'}, {type: Accepted, status: 'True'}]}]}\n";
        assert_eq!(codes(route).len(), 1);
    }
}
