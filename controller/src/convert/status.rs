//! The statuses that are written to objects: Istio's conditions and reasons (reference control-plane §2.8, §4.2). Pure: from
//! the objects comes what differs from what they say now.

use super::{Index, check, deploy, policy, waypoint};
use karst_kube::Ref;
use karst_manifest::{
    Object,
    kinds::{AuthorizationPolicy, Gateway, Meta, StatusCondition},
    parse::Located,
};
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
struct Condition {
    kind: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

const BOUND: &str = "istio.io/WaypointBound";
const ISTIO: &str = "networking.istio.io";
const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// All statuses that differ. `now` is the time in RFC 3339.
pub(super) fn compile(x: &Index<'_>, now: &str) -> Vec<Write> {
    let mut out = Vec::new();
    for s in x.services.values().flatten() {
        let to = reference("", "Service", &s.metadata);
        out.extend(bound(x, to, &s.metadata, &s.status.conditions, waypoint::Traffic::Service, now));
    }
    for (_, e) in &x.service_entries {
        let to = reference(ISTIO, "ServiceEntry", &e.metadata);
        out.extend(bound(x, to, &e.metadata, &e.status.conditions, waypoint::Traffic::Service, now));
    }
    for (_, e) in &x.workload_entries {
        let to = reference(ISTIO, "WorkloadEntry", &e.metadata);
        out.extend(bound(x, to, &e.metadata, &e.status.conditions, waypoint::Traffic::Workload, now));
    }
    for (at, p) in &x.authorization {
        let to = reference("security.istio.io", "AuthorizationPolicy", &p.metadata);
        let wanted = accepted(x, at, p);
        let other = if wanted.kind == "ZtunnelAccepted" { "WaypointAccepted" } else { "ZtunnelAccepted" };
        let have = &p.status.conditions;
        // One manager writes both kinds: a policy that is attached to something else by an edit changes sides.
        let stale = have.iter().any(|c| c.kind == other);
        if let Some(c) = changed(&[wanted], have, p.metadata.generation, stale, now) {
            out.push(Write { to, manager: "istio.io/authorization-policy", status: json!({ "conditions": c }) });
        }
    }
    for c in x.classes.values().filter(|c| c.spec.controller_name == waypoint::CONTROLLER) {
        let wanted = Condition {
            kind: "Accepted",
            status: true,
            reason: "Accepted",
            message: "Handled by Karst's controller".into(),
        };
        if let Some(v) = changed(&[wanted], &c.status.conditions, c.metadata.generation, false, now) {
            let to = reference(GATEWAY_API, "GatewayClass", &c.metadata);
            out.push(Write { to, manager: "istio.io/gateway-class", status: json!({ "conditions": v }) });
        }
    }
    for g in x.gateways.values().filter(|g| waypoint::is_waypoint(x, g)) {
        out.extend(gateway(x, g, now));
    }
    out
}

fn reference(group: &'static str, kind: &'static str, m: &Meta) -> Ref {
    Ref { group, version: "v1", kind, namespace: m.namespace.clone(), name: m.name.clone() }
}

/// The conditions to write, if they differ from those that are there (or `force`). The time of a condition changes with its status.
fn changed(wanted: &[Condition], have: &[StatusCondition], generation: i64, force: bool, now: &str) -> Option<Value> {
    let find = |k: &str| have.iter().find(|c| c.kind == k);
    let text = |b: bool| if b { "True" } else { "False" };
    let same = |w: &Condition| {
        find(w.kind).is_some_and(|c| {
            c.status == text(w.status)
                && c.reason == w.reason
                && c.message == w.message
                && c.observed_generation == generation
        })
    };
    if !force && wanted.iter().all(same) {
        return None;
    }
    let one = |w: &Condition| {
        let kept = find(w.kind).filter(|c| c.status == text(w.status) && !c.last_transition_time.is_empty());
        json!({
            "type": w.kind, "status": text(w.status), "reason": w.reason, "message": w.message,
            "observedGeneration": generation, "lastTransitionTime": kept.map_or(now, |c| &c.last_transition_time),
        })
    };
    Some(wanted.iter().map(one).collect())
}

fn bound(
    x: &Index<'_>,
    to: Ref,
    m: &Meta,
    have: &[StatusCondition],
    traffic: waypoint::Traffic,
    now: &str,
) -> Option<Write> {
    let one = |status, reason, message| vec![Condition { kind: BOUND, status, reason, message }];
    let wanted = match waypoint::binding(x, &m.namespace, &m.labels, traffic) {
        waypoint::Binding::None => vec![],
        waypoint::Binding::To(g, _) => {
            let text = format!("bound to waypoint {}/{}", g.metadata.namespace, g.metadata.name);
            one(true, "WaypointAccepted", text)
        }
        waypoint::Binding::Refused(reason, text) => one(false, reason, text),
    };
    let stale = wanted.is_empty() && have.iter().any(|c| c.kind == BOUND);
    let conditions = changed(&wanted, have, m.generation, stale, now)?;
    let manager = match to.kind {
        "Service" => "istio.io/ambient-controller/services",
        _ => "istio.io/ambient-controller/serviceentries",
    };
    Some(Write { to, manager, status: json!({ "conditions": conditions }) })
}

/// Who enforces a policy, and whether it is enforced as it stands.
fn accepted(x: &Index<'_>, at: &Located, p: &AuthorizationPolicy) -> Condition {
    let problem = check::problems(Object::AuthorizationPolicy(Box::new(p.clone())), x.mesh).into_iter().next();
    let say = |kind, status, reason, message: String| Condition { kind, status, reason, message };
    let Some((path, target)) = p.spec.targets().next() else {
        let warnings = policy::warnings(p);
        return match (problem, warnings.first()) {
            (Some(e), _) => say(
                "ZtunnelAccepted",
                false,
                "UnsupportedValue",
                format!("{}: {}; nothing is allowed where it applies until it is mended", e.field, e.message),
            ),
            // Istio says True here, too.
            (None, Some(w)) => say("ZtunnelAccepted", true, "UnsupportedValue", w.clone()),
            (None, None) => say("ZtunnelAccepted", true, "Accepted", "enforced by ztunnel".into()),
        };
    };
    if let Some(e) = problem {
        return say("WaypointAccepted", false, "Invalid", format!("{}: {}", e.field, e.message));
    }
    let ns = at.object.meta().namespace.as_str();
    let labels = match target.kind.as_str() {
        "Service" => x
            .services
            .get(ns)
            .into_iter()
            .flatten()
            .find(|s| s.metadata.name == target.name)
            .map(|s| &s.metadata.labels),
        "ServiceEntry" => x
            .entries_of
            .get(ns)
            .into_iter()
            .flatten()
            .find(|s| s.metadata.name == target.name)
            .map(|s| &s.metadata.labels),
        "Gateway" => {
            return match x.gateways.get(&(ns, target.name.as_str())) {
                Some(_) => {
                    say("WaypointAccepted", true, "Accepted", format!("attached to Gateway {ns}/{}", target.name))
                }
                None => say(
                    "WaypointAccepted",
                    false,
                    "TargetNotFound",
                    format!("{path}: there is no Gateway {ns}/{}", target.name),
                ),
            };
        }
        _ => {
            return match x.classes.contains_key(target.name.as_str()) {
                true => say("WaypointAccepted", true, "Accepted", format!("attached to GatewayClass {}", target.name)),
                false => say(
                    "WaypointAccepted",
                    false,
                    "TargetNotFound",
                    format!("{path}: there is no GatewayClass {}", target.name),
                ),
            };
        }
    };
    let Some(labels) = labels else {
        return say(
            "WaypointAccepted",
            false,
            "TargetNotFound",
            format!("{path}: there is no {} {ns}/{}", target.kind, target.name),
        );
    };
    match waypoint::binding(x, ns, labels, waypoint::Traffic::Service) {
        waypoint::Binding::To(g, _) => {
            say("WaypointAccepted", true, "Accepted", format!("bound to {}/{}", g.metadata.namespace, g.metadata.name))
        }
        waypoint::Binding::None => say(
            "WaypointAccepted",
            false,
            "AncestorNotBound",
            format!("{path}: {} {ns}/{} uses no waypoint: label it istio.io/use-waypoint", target.kind, target.name),
        ),
        waypoint::Binding::Refused(_, why) => {
            say("WaypointAccepted", false, "AncestorNotBound", format!("{path}: {why}"))
        }
    }
}

fn gateway(x: &Index<'_>, g: &Gateway, now: &str) -> Option<Write> {
    let m = &g.metadata;
    let ready = x.available.get(&(m.namespace.as_str(), m.name.as_str())).is_some_and(|n| *n > 0);
    let given = deploy::given(g);
    let host = given.map_or_else(|| format!("{}.{}.svc.{}", m.name, m.namespace, x.mesh.cluster_domain), String::from);
    let service = x.services.get(m.namespace.as_str()).into_iter().flatten().find(|s| s.metadata.name == m.name);
    let foreign = service.is_some_and(|s| !s.metadata.labels.contains_key(deploy::MANAGED));
    let ready = given.is_some() || (ready && service.is_some() && !foreign);
    let say = |kind, status, reason, message: String| Condition { kind, status, reason, message };
    let bad = g.spec.listeners.iter().find(|l| l.protocol != "HBONE");
    let accepted = match bad {
        None => say("Accepted", true, "Accepted", "Resource accepted".into()),
        Some(l) => say(
            "Accepted",
            false,
            "ListenersNotValid",
            format!("listener {:?}: a waypoint speaks only protocol HBONE, not {:?}", l.name, l.protocol),
        ),
    };
    // A waypoint without a running pod is not ready: what is bound to it must not be sent there.
    let programmed = if ready {
        let text = format!("Resource programmed, assigned to service(s) {host}:{}", waypoint::PORT);
        say("Programmed", true, "Programmed", text)
    } else if foreign {
        let text = format!("Service {}/{} is somebody else's: give the Gateway another name", m.namespace, m.name);
        say("Programmed", false, "AddressNotUsable", text)
    } else {
        say("Programmed", false, "AddressNotAssigned", format!("Service {host} has no pod that is available yet"))
    };
    // What was ready once stays known: its pods may come and go.
    let programmed_before = ready || (!g.status.addresses.is_empty() && service.is_some() && !foreign);
    let addresses = if programmed_before { json!([{ "type": "Hostname", "value": host }]) } else { json!([]) };
    let same_address =
        g.status.addresses.iter().map(|a| a.value.as_str()).eq(programmed_before.then_some(host.as_str()));
    let listeners: Vec<(String, Option<Value>, Vec<StatusCondition>)> = g
        .spec
        .listeners
        .iter()
        .map(|l| {
            let fine = l.protocol == "HBONE";
            let reason = if fine { "Accepted" } else { "UnsupportedProtocol" };
            let wanted = [
                say(
                    "Accepted",
                    fine,
                    reason,
                    if fine { "No errors found".into() } else { format!("{:?} is not HBONE", l.protocol) },
                ),
                say(
                    "Programmed",
                    fine,
                    if fine { "Programmed" } else { "Invalid" },
                    if fine { "No errors found".into() } else { format!("{:?} is not HBONE", l.protocol) },
                ),
                say("Conflicted", false, "NoConflicts", "No errors found".into()),
                say("ResolvedRefs", true, "ResolvedRefs", "No errors found".into()),
            ];
            let have =
                g.status.listeners.iter().find(|s| s.name == l.name).map(|s| s.conditions.clone()).unwrap_or_default();
            (l.name.clone(), changed(&wanted, &have, m.generation, false, now), have)
        })
        .collect();
    let conditions = changed(&[accepted, programmed], &g.status.conditions, m.generation, false, now);
    if conditions.is_none() && same_address && listeners.iter().all(|(_, c, _)| c.is_none()) {
        return None;
    }
    let again = |have: &[StatusCondition]| -> Value {
        have.iter().map(|c| json!({ "type": c.kind, "status": c.status, "reason": c.reason, "message": c.message, "observedGeneration": c.observed_generation, "lastTransitionTime": c.last_transition_time })).collect()
    };
    let listeners: Vec<Value> = listeners
        .into_iter()
        .map(|(name, c, have)| json!({ "name": name, "attachedRoutes": 0, "supportedKinds": [], "conditions": c.unwrap_or_else(|| again(&have)) }))
        .collect();
    let ours: Vec<StatusCondition> =
        g.status.conditions.iter().filter(|c| matches!(c.kind.as_str(), "Accepted" | "Programmed")).cloned().collect();
    let status = json!({ "addresses": addresses, "conditions": conditions.unwrap_or_else(|| again(&ours)), "listeners": listeners });
    Some(Write { to: reference(GATEWAY_API, "Gateway", m), manager: "istio.io/gateway-controller", status })
}
