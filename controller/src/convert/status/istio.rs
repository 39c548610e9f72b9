//! The statuses that are written to objects: Istio's conditions and reasons (reference control-plane §2.8, §4.2). Pure: from
//! the objects comes what differs from what they say now.

use crate::convert::{
    compilation::provider,
    deploy,
    facts::{
        listeners::{GatewayListeners, Unmapped},
        policy, service, waypoint,
    },
    finding::{self, Finding},
    objects::{FieldError, GATEWAY_API, INGRESS, ISTIO_NETWORKING, MANAGED, Objects},
    status::condition::{Condition, Write, beside, changed, conditions, reference, same},
};
use karst_kube::Ref;
use karst_manifest::{
    PolicyAction,
    kinds::{AuthorizationPolicy, Gateway, IstioGateway, Listener, Meta, ServiceEntry, StatusCondition},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const BOUND: &str = "istio.io/WaypointBound";
const MISSING: &str = "istio.io/WaypointMissing";
/// Are the ports of a Gateway of Istio's API those of the Services that select its pods?
const PORTS: &str = "karst.io/PortsMapped";
const VISIBILITY: &str = "istio.io/VisibilityApplied";

/// All statuses that differ. `now` is the time in RFC 3339.
pub(crate) fn compile(objects: &Objects<'_>, listeners: &GatewayListeners, now: &str) -> Vec<Write> {
    let mut out = Vec::new();
    for s in objects.services.values().flatten() {
        let to = reference("", "Service", &s.metadata);
        // Nothing goes to it, whatever its labels say.
        if service::is_alias(s) {
            out.extend(binding_status(to, &s.metadata, &s.status.conditions, &[], now));
            continue;
        }
        out.extend(bound(objects, to, &s.metadata, &s.status.conditions, waypoint::Traffic::Service, vec![], now));
    }
    let automatic = service::automatic(objects);
    for (_, entry) in &objects.service_entries {
        let to = reference(ISTIO_NETWORKING, "ServiceEntry", &entry.metadata);
        let missing = service::missing_waypoint(objects, entry).map(|text| Condition {
            kind: MISSING,
            status: true,
            reason: "NoWaypointForWildcardService",
            message: text.into(),
        });
        let private = service::is_private(entry);
        let visibility = (!entry.spec.export_to.is_empty() && !service::is_hidden(entry)).then(|| Condition {
            kind: VISIBILITY,
            status: true,
            reason: if private { "Namespace" } else { "Public" },
            message: if private { "known to its own namespace" } else { "known to all namespaces" }.into(),
        });
        let more = missing.into_iter().chain(visibility).collect();
        out.extend(given(&automatic, to.clone(), entry));
        out.extend(bound(
            objects,
            to,
            &entry.metadata,
            &entry.status.conditions,
            waypoint::Traffic::Service,
            more,
            now,
        ));
    }
    for (_, e) in &objects.workload_entries {
        let to = reference(ISTIO_NETWORKING, "WorkloadEntry", &e.metadata);
        out.extend(bound(objects, to, &e.metadata, &e.status.conditions, waypoint::Traffic::Workload, vec![], now));
    }
    for (_, policy) in &objects.authorization {
        let to = reference("security.istio.io", "AuthorizationPolicy", &policy.metadata);
        let wanted = accepted(objects, policy);
        let other = if wanted.kind == "ZtunnelAccepted" { "WaypointAccepted" } else { "ZtunnelAccepted" };
        let have = &policy.status.conditions;
        // One manager writes both kinds: a policy that is attached to something else by an edit changes sides.
        let stale = have.iter().any(|c| c.kind == other);
        if let Some(c) = changed(&[wanted], have, policy.metadata.generation, stale, now) {
            let c = beside(c, have, &["ZtunnelAccepted", "WaypointAccepted"]);
            out.push(Write { to, manager: "istio.io/authorization-policy", status: json!({ "conditions": c }) });
        }
    }
    let ours = [waypoint::CONTROLLER, INGRESS];
    for class in objects.classes.values().filter(|c| ours.contains(&c.spec.controller_name.as_str())) {
        let wanted = Condition {
            kind: "Accepted",
            status: true,
            reason: "Accepted",
            message: "Handled by Karst's controller".into(),
        };
        if let Some(v) = changed(&[wanted], &class.status.conditions, class.metadata.generation, false, now) {
            let to = reference(GATEWAY_API, "GatewayClass", &class.metadata);
            out.push(Write { to, manager: "istio.io/gateway-class", status: json!({ "conditions": v }) });
        }
    }
    let mut waypoints: Vec<_> = objects.gateways.values().filter(|g| waypoint::is_waypoint(objects, g)).collect();
    waypoints.sort_by_key(|g| (&g.metadata.namespace, &g.metadata.name));
    out.extend(waypoints.into_iter().filter_map(|g| gateway(objects, g, now)));
    out.extend(objects.istio_gateways.iter().filter_map(|(_, g)| unmapped(listeners, g, now)));
    out
}

/// Servers of Istio's Gateway whose ports no Service has, or other servers. (Nothing is said of the others.)
fn unmapped(listeners: &GatewayListeners, gateway: &IstioGateway, now: &str) -> Option<Write> {
    let meta = &gateway.metadata;
    let all: Vec<_> = listeners.unmapped(&meta.namespace, &meta.name).collect();
    let text: Vec<String> = all.iter().map(|(n, u)| format!("spec.servers[{n}].port.number: {}", u.text)).collect();
    let of = |u: &Unmapped| Condition { kind: PORTS, status: false, reason: u.reason, message: text.join("; ") };
    let wanted: Vec<Condition> = all.first().map(|(_, u)| of(u)).into_iter().collect();
    let stale = wanted.is_empty() && gateway.status.conditions.iter().any(|c| c.kind == PORTS);
    let conditions = changed(&wanted, &gateway.status.conditions, meta.generation, stale, now)?;
    let conditions = beside(conditions, &gateway.status.conditions, &[PORTS]);
    let to = reference(ISTIO_NETWORKING, "Gateway", meta);
    Some(Write { to, manager: "karst.io/gateway-ports", status: json!({ "conditions": conditions }) })
}

/// What nobody executes of Istio's routes and rules; what is over is taken back.
pub(crate) fn unserved(objects: &Objects<'_>, findings: &[Finding], now: &str) -> Vec<Write> {
    const OURS: [&str; 2] = [finding::RESOLVED_WAYPOINTS, finding::RESOLVED_REFS];
    let mut of: BTreeMap<(&str, &str, &str), Vec<&Finding>> = BTreeMap::new();
    for f in findings {
        of.entry((f.kind, &f.namespace, &f.name)).or_default().push(f);
    }
    let routes = objects.virtual_services.iter().map(|(_, v)| ("VirtualService", &v.metadata, &v.status.conditions));
    let rules = objects.destination_rules.iter().map(|(_, d)| ("DestinationRule", &d.metadata, &d.status.conditions));
    let one = |(kind, meta, have): (&'static str, &Meta, &Vec<StatusCondition>)| {
        let mine = of.get(&(kind, meta.namespace.as_str(), meta.name.as_str())).map_or(&[][..], |f| f);
        // What was found of another generation says nothing of this one: it is looked at soon.
        if mine.iter().any(|f| f.generation != meta.generation) {
            return None;
        }
        let mut wanted = vec![];
        for condition in OURS {
            let all: Vec<&&Finding> = mine.iter().filter(|f| f.reason.condition() == condition).collect();
            let Some(first) = all.first() else { continue };
            let message = all.iter().map(|f| f.text()).collect::<Vec<_>>().join("; ");
            wanted.push(Condition { kind: condition, status: false, reason: first.reason.name(), message });
        }
        let gone = |c: &StatusCondition| OURS.contains(&&*c.kind) && !wanted.iter().any(|w| w.kind == c.kind);
        let conditions = changed(&wanted, have, meta.generation, have.iter().any(gone), now)?;
        let conditions = beside(conditions, have, &OURS);
        let to = reference(ISTIO_NETWORKING, kind, meta);
        Some(Write { to, manager: "karst.io/findings", status: json!({ "conditions": conditions }) })
    };
    routes.chain(rules).filter_map(one).collect()
}

fn bound(
    objects: &Objects<'_>,
    to: Ref,
    meta: &Meta,
    have: &[StatusCondition],
    traffic: waypoint::Traffic,
    more: Vec<Condition>,
    now: &str,
) -> Option<Write> {
    let one = |status, reason, message| vec![Condition { kind: BOUND, status, reason, message }];
    let mut wanted = match waypoint::binding(objects, &meta.namespace, &meta.labels, traffic) {
        waypoint::Binding::None => vec![],
        waypoint::Binding::To(g, _) => {
            let first = format!("{}/{}", g.metadata.namespace, g.metadata.name);
            let canary = match traffic {
                waypoint::Traffic::Service => waypoint::canary(objects, meta),
                waypoint::Traffic::Workload => None,
            };
            match canary {
                Some(Err((reason, why))) => one(false, reason, format!("{why}; waypoint {first} receives all traffic")),
                Some(Ok(c)) => {
                    let text = format!("bound to waypoint {first}, {} % of the traffic to its canary", c.weight);
                    one(true, "WaypointAccepted", text)
                }
                None => one(true, "WaypointAccepted", format!("bound to waypoint {first}")),
            }
        }
        waypoint::Binding::Refused(reason, text) => one(false, reason, text),
    };
    wanted.extend(more);
    binding_status(to, meta, have, &wanted, now)
}

/// These conditions, if they are not what the object says; others of ours are over.
fn binding_status(to: Ref, meta: &Meta, have: &[StatusCondition], wanted: &[Condition], now: &str) -> Option<Write> {
    const OURS: [&str; 3] = [BOUND, MISSING, VISIBILITY];
    let over = |kind: &str| OURS.contains(&kind) && !wanted.iter().any(|w| w.kind == kind);
    let stale = have.iter().any(|c| over(&c.kind));
    let conditions = changed(wanted, have, meta.generation, stale, now)?;
    // Kubernetes merges conditions of Services by their type.
    let (manager, conditions) = match to.kind {
        "Service" => ("istio.io/ambient-controller/services", conditions),
        _ => ("istio.io/ambient-controller/serviceentries", beside(conditions, have, &OURS)),
    };
    Some(Write { to, manager, status: json!({ "conditions": conditions }) })
}

/// The addresses that we give to the hosts of a ServiceEntry, if its status does not tell them.
fn given(automatic: &service::Automatic<'_>, to: Ref, entry: &ServiceEntry) -> Option<Write> {
    let mut wanted = vec![];
    for h in &entry.spec.hosts {
        let ips = automatic.get(&(&*entry.metadata.namespace, &*entry.metadata.name, h.as_str()));
        wanted.extend(ips.into_iter().flatten().map(|ip| (ip.to_string(), h.as_str())));
    }
    let told = entry.status.addresses.iter().map(|a| (a.value.as_str(), a.host.as_str()));
    if told.eq(wanted.iter().map(|(v, h)| (v.as_str(), *h))) {
        return None;
    }
    let all: Vec<Value> = wanted.iter().map(|(v, h)| json!({ "value": v, "host": h })).collect();
    Some(Write { to, manager: "istio.io/ip-autoallocate", status: json!({ "addresses": all }) })
}

/// Who enforces a policy, and whether it is enforced as it stands.
fn accepted(objects: &Objects<'_>, policy: &AuthorizationPolicy) -> Condition {
    let judged = policy::judged(objects, policy);
    let is_understood = judged.compiled.is_ok();
    let mut out = enforced(objects, policy, judged.compiled.err());
    if let Some((field, text)) = provider::unusable(objects.mesh_config, policy).filter(|_| is_understood) {
        (out.status, out.reason, out.message) = (false, "Invalid", format!("{field}: {text}"));
        return out;
    }
    // As Istio says it of what is left out.
    if let Some((field, text)) = judged.dropped.first().filter(|_| out.status) {
        out.reason = "UnsupportedValue";
        out.message = format!("{field}: {text}; this value is ignored, the rest of the policy is in force");
    }
    out
}

fn enforced(objects: &Objects<'_>, policy: &AuthorizationPolicy, trouble: Option<FieldError>) -> Condition {
    let say = |kind, status, reason, message: String| Condition { kind, status, reason, message };
    let Some((path, target)) = policy.spec.targets().next() else {
        let warnings = policy::warnings(policy);
        return match (trouble, warnings.first()) {
            (Some((field, text)), _) => say(
                "ZtunnelAccepted",
                false,
                "UnsupportedValue",
                match policy::is_dry_run(policy) {
                    true => format!("{field}: {text}; the policy is in dry-run mode and not enforced"),
                    false => format!("{field}: {text}; all traffic it selects is denied until it is fixed"),
                },
            ),
            // That it is in dry run is the last that is said of it.
            (None, Some(w)) if policy::is_dry_run(policy) && warnings.len() == 1 => {
                say("ZtunnelAccepted", true, "Accepted", w.clone())
            }
            // Istio says True here, too.
            (None, Some(w)) => say("ZtunnelAccepted", true, "UnsupportedValue", w.clone()),
            (None, None) if policy.spec.action() == PolicyAction::Audit => {
                let text = "has no effect at ztunnel: attach the policy to a waypoint (targetRefs), which logs the requests that match [KARST-0117]";
                say("ZtunnelAccepted", true, "Accepted", text.into())
            }
            (None, None) => say("ZtunnelAccepted", true, "Accepted", "enforced by ztunnel".into()),
        };
    };
    let say = |status, reason, message| Condition { kind: "WaypointAccepted", status, reason, message };
    if let Some((field, text)) = trouble {
        return say(false, "Invalid", format!("{field}: {text}"));
    }
    let (ns, name) = (policy.metadata.namespace.as_str(), target.name.as_str());
    let what = match target.kind.as_str() {
        "GatewayClass" => format!("GatewayClass {name}"),
        kind => format!("{kind} {ns}/{name}"),
    };
    if let Some(alias) = objects.service(ns, name).filter(|s| target.kind == "Service" && service::is_alias(s)) {
        let text = service::alias_text(alias, "target", ns);
        return say(false, "TargetNotFound", format!("{path}: {text}"));
    }
    // What is there: with labels that may bind it, or a waypoint itself.
    let found = match target.kind.as_str() {
        "Service" => objects.service(ns, name).map(|s| Some(&s.metadata.labels)),
        "ServiceEntry" => {
            let mut all = objects.entries_of.get(ns).into_iter().flatten();
            all.find(|s| s.metadata.name == name).map(|s| Some(&s.metadata.labels))
        }
        "Gateway" => objects.gateways.get(&(ns, name)).map(|_| None),
        _ => objects.classes.get(name).map(|_| None),
    };
    let labels = match found {
        None => return say(false, "TargetNotFound", format!("{path}: {what} not found [KARST-0307]")),
        Some(None) => return say(true, "Accepted", format!("attached to {what}")),
        Some(Some(labels)) => labels,
    };
    match waypoint::binding(objects, ns, labels, waypoint::Traffic::Service) {
        waypoint::Binding::To(g, _) => {
            say(true, "Accepted", format!("bound to {}/{}", g.metadata.namespace, g.metadata.name))
        }
        waypoint::Binding::None => {
            let text = format!("{path}: {what} uses no waypoint: label it istio.io/use-waypoint [KARST-0701]");
            say(false, "AncestorNotBound", text)
        }
        waypoint::Binding::Refused(_, why) => say(false, "AncestorNotBound", format!("{path}: {why}")),
    }
}

/// Can a waypoint be as it is written?
fn accepted_waypoint(objects: &Objects<'_>, gateway: &Gateway) -> Condition {
    let say = |status, reason, message| Condition { kind: "Accepted", status, reason, message };
    let wrong = |(l, (_, text)): (&Listener, (&str, String))| format!("listener {:?}: {text}", l.name);
    let bad = gateway.spec.listeners.iter().find_map(|l| Some((l, waypoint::wrong_listener(l)?))).map(wrong);
    match (deploy::parameters(objects, gateway), bad) {
        (Err(text), _) => say(false, "InvalidParameters", format!("spec.infrastructure.parametersRef: {text}")),
        (Ok(()), None) => say(true, "Accepted", "Resource accepted".into()),
        // Those that can be are there.
        (Ok(()), Some(text)) => say(waypoint::has_listener(gateway), "ListenersNotValid", text),
    }
}

fn gateway(objects: &Objects<'_>, gateway: &Gateway, now: &str) -> Option<Write> {
    let meta = &gateway.metadata;
    let deployment = objects.deployments.get(&(meta.namespace.as_str(), meta.name.as_str()));
    let ready = deployment.is_some_and(|d| d.status.available_replicas > 0);
    let given = deploy::given(gateway);
    let host = given
        .map_or_else(|| format!("{}.{}.svc.{}", meta.name, meta.namespace, objects.mesh.cluster_domain), String::from);
    let service = objects.service(&meta.namespace, &meta.name);
    let foreign = service.is_some_and(|s| !s.metadata.labels.contains_key(MANAGED));
    let ready = given.is_some() || (ready && service.is_some() && !foreign);
    let say = |kind, status, reason, message: String| Condition { kind, status, reason, message };
    let accepted = accepted_waypoint(objects, gateway);
    // A waypoint without a running pod is not ready: what is bound to it must not be sent there.
    let programmed = if !accepted.status {
        say("Programmed", false, "Invalid", "see Accepted".into())
    } else if ready {
        let text = format!("Resource programmed, assigned to service(s) {host}:{}", waypoint::PORT);
        say("Programmed", true, "Programmed", text)
    } else if foreign {
        let text = format!(
            "Service {}/{} is not managed by Karst: rename the Gateway [KARST-0511]",
            meta.namespace, meta.name
        );
        say("Programmed", false, "AddressNotUsable", text)
    } else {
        say("Programmed", false, "AddressNotAssigned", format!("Service {host} has no available pod yet [KARST-0510]"))
    };
    // What was ready once stays known: its pods may come and go, and an edit that is wrong takes no policy out of force.
    let there = given.is_some() || (service.is_some() && !foreign);
    let programmed_before = programmed.status || (!gateway.status.addresses.is_empty() && there);
    let addresses = if programmed_before { json!([{ "type": "Hostname", "value": host }]) } else { json!([]) };
    let same_address =
        gateway.status.addresses.iter().map(|a| a.value.as_str()).eq(programmed_before.then_some(host.as_str()));
    let own = [accepted, programmed];
    let mut unchanged = same_address && same(&own, &gateway.status.conditions, meta.generation);
    let mut listeners = Vec::new();
    for listener in &gateway.spec.listeners {
        let none = || "No errors found".to_string();
        let [accepted, programmed] = match waypoint::wrong_listener(listener) {
            None => [say("Accepted", true, "Accepted", none()), say("Programmed", true, "Programmed", none())],
            Some((reason, text)) => {
                [say("Accepted", false, reason, text.clone()), say("Programmed", false, "Invalid", text)]
            }
        };
        let wanted = [
            accepted,
            programmed,
            say("Conflicted", false, "NoConflicts", none()),
            say("ResolvedRefs", true, "ResolvedRefs", none()),
        ];
        let have = gateway.status.listeners.iter().find(|s| s.name == listener.name).map_or(&[][..], |s| &s.conditions);
        unchanged &= same(&wanted, have, meta.generation);
        let conditions = conditions(&wanted, have, meta.generation, now);
        listeners.push(
            json!({ "name": listener.name, "attachedRoutes": 0, "supportedKinds": [], "conditions": conditions }),
        );
    }
    if unchanged {
        return None;
    }
    let conditions = conditions(&own, &gateway.status.conditions, meta.generation, now);
    let status = json!({ "addresses": addresses, "conditions": conditions, "listeners": listeners });
    Some(Write { to: reference(GATEWAY_API, "Gateway", meta), manager: "istio.io/gateway-controller", status })
}
