//! What is told on objects as events: what has become of them is not what their owner wrote, and others feel it. Statuses and the
//! log say more; an event is seen by who runs `kubectl describe`.

use crate::convert::{
    facts::{
        policy::effect,
        waypoint::{self, Binding, Traffic},
    },
    objects::{Mesh, Objects},
};
use karst_kube::{Notice, Ref};
use karst_manifest::{
    Object, State, closed,
    kinds::{KINDS, Meta, api_kind},
};
use std::collections::HashMap;

/// All of them, in the order of the objects.
pub fn notices(state: &State, mesh: &Mesh) -> Vec<Notice> {
    let objects = Objects::new(state, mesh);
    let mut unread: HashMap<&str, Vec<String>> = HashMap::new();
    for problem in &state.problems {
        let at = if problem.field.is_empty() { "" } else { ": " };
        unread.entry(&problem.object).or_default().push(format!("{}{at}{}", problem.field, problem.message));
    }
    let mut out = vec![];
    for located in &state.objects {
        let object = &located.object;
        let (kind, meta) = (object.kind(), object.meta());
        // Most objects are of other kinds, and mostly all can be read: no name is made for them.
        let wrong = if !unread.is_empty() && closed::has_closed(kind) {
            let name = format!("{} {}/{}", api_kind(kind), meta.namespace, meta.name);
            unread.get(name.as_str()).map(|all| all.join("; "))
        } else {
            None
        };
        let closed = match object {
            Object::AuthorizationPolicy(policy) => effect(&objects, policy).map(|effect| match &wrong {
                Some(wrong) => format!("{effect}, because it cannot be read: {wrong}"),
                None => format!("{effect}, because a part of it cannot be used: see its status"),
            }),
            _ => wrong.map(|wrong| format!("not in force as it is written, because it cannot be read: {wrong}")),
        };
        out.extend(closed.and_then(|text| notice(kind, meta, "NotInForceAsWritten", "Read", text)));
        out.extend(unbound(&objects, object).and_then(|text| notice(kind, meta, "WaypointNotBound", "Bind", text)));
    }
    out
}

/// Why an object has no waypoint though a label of its own names one.
fn unbound(objects: &Objects<'_>, object: &Object) -> Option<String> {
    let meta = object.meta();
    let (namespace, traffic) = match object {
        Object::Service(_) | Object::ServiceEntry(_) => (&meta.namespace, Traffic::Service),
        Object::Namespace(_) => (&meta.name, Traffic::Service),
        Object::Pod(_) => (&meta.namespace, Traffic::Workload),
        _ => return None,
    };
    match waypoint::binding(objects, namespace, &meta.labels, traffic) {
        Binding::Refused(reason, text) => {
            // Told once where it is written. What a namespace says is meant for those whom it suits.
            let is_of_namespace = matches!(object, Object::Namespace(_));
            let is_told = waypoint::is_own(&meta.labels) && !(is_of_namespace && reason == waypoint::OTHER_TRAFFIC);
            is_told.then(|| format!("the waypoint that the label istio.io/use-waypoint names is not used: {text}"))
        }
        Binding::None | Binding::To(..) => None,
    }
}

fn notice(kind: &str, meta: &Meta, reason: &'static str, action: &'static str, text: String) -> Option<Notice> {
    // Of the names that end the same, this one has the group.
    let &(kind, group, _) = KINDS.iter().find(|(known, ..)| *known == kind)?;
    let about =
        Ref { group, version: "v1", kind: api_kind(kind), namespace: meta.namespace.clone(), name: meta.name.clone() };
    Some(Notice { about, uid: meta.uid.clone(), reason, action, text })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::convert::tests::mesh;
    use karst_manifest::{Problem, parse};
    use std::sync::Arc;

    fn told(state: &State) -> Vec<String> {
        let of = |n: &Notice| format!("{} {} {}", n.about, n.reason, n.text);
        notices(state, &mesh()).iter().map(of).collect()
    }

    fn state(text: &str) -> State {
        let objects = parse::file("t.yaml".as_ref(), text).unwrap().into_iter().map(Arc::new).collect();
        State { objects, ..State::default() }
    }

    #[test]
    fn a_waypoint_that_is_not_there_is_told_where_it_is_named() {
        let all = told(&state(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: gone}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: of-namespace, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: own, namespace: a, labels: {istio.io/use-waypoint: other}}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: none, namespace: a, labels: {istio.io/use-waypoint: none}}\nspec: {clusterIP: 10.96.0.3, ports: [{port: 80}]}\n",
        ));
        assert_eq!(all.len(), 2, "{all:#?}");
        assert!(
            all[0].starts_with("Namespace a WaypointNotBound ") && all[0].contains("a/gone does not exist"),
            "{all:#?}"
        );
        assert!(all[1].starts_with("Service a/own WaypointNotBound ") && all[1].contains("a/other does not exist"));
    }

    /// What stands for a policy that cannot be read denies: its owner is told on the policy itself.
    #[test]
    fn a_policy_that_is_closed_is_told_with_what_is_wrong() {
        let raw = serde_json::json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": { "name": "p", "namespace": "a", "uid": "u" },
            "spec": { "action": "DENY", "rules": [{ "form": [] }] },
        });
        let wrong = parse::value("AuthorizationPolicy", raw.clone()).unwrap_err();
        let object = closed::closed("AuthorizationPolicy", raw).unwrap();
        let located = parse::Located { object, file: Default::default(), line: 0 };
        let closed = State { objects: vec![Arc::new(located)], problems: vec![wrong], ..State::default() };
        let notices = notices(&closed, &mesh());
        assert_eq!((notices.len(), notices[0].uid.as_str()), (1, "u"));
        let text = told(&closed).remove(0);
        assert!(text.starts_with("AuthorizationPolicy a/p NotInForceAsWritten "), "{text}");
        assert!(text.contains("denies all traffic that it selects") && text.contains("form"), "{text}");
        // One that can be read is told nothing of.
        let fine = state(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {rules: [{}]}\n",
        );
        assert!(told(&fine).is_empty());
    }

    #[test]
    fn a_problem_of_an_object_that_closes_nothing_is_no_event() {
        let problem = |object: &str| Problem {
            file: Default::default(),
            line: 0,
            object: object.into(),
            field: "spec.x".into(),
            message: "is wrong".into(),
        };
        let mut fine = state("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: a}\n");
        fine.problems = vec![problem("ConfigMap a/c"), problem("AuthorizationPolicy a/not-there")];
        assert!(told(&fine).is_empty());
    }
}
