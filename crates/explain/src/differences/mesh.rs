//! Workloads, services and policies: those of a proxy's page beside what the objects compile to.

use super::difference::Difference;
use crate::{
    answer::{Explanation, Stage},
    world::World,
};
use karst_policy::Policy;
use karst_proxy::{
    dump::{section, text},
    state::{Service, Workload},
};
use serde_json::Value;
use std::collections::BTreeSet;

/// Where a ztunnel's page differs, in what decides about this call.
pub(super) fn of_ztunnel(world: &World, answer: &Explanation, dump: &Value) -> Vec<Difference> {
    let mut out = of_mesh(world, answer, dump);
    policies(world, dump, &mut out);
    out
}

/// The same of a waypoint or gateway, which has other policies.
pub(super) fn of_mesh(world: &World, answer: &Explanation, dump: &Value) -> Vec<Difference> {
    let mut out = vec![];
    // A ztunnel that asks for what is called has not missed what it lacks.
    let is_partial = dump["onDemand"].is_object();
    let mut concerned: BTreeSet<String> = answer.endpoints.iter().map(|e| e.workload.clone()).collect();
    let pods =
        answer.steps.iter().filter(|s| matches!(s.step, Stage::Source | Stage::Plan)).filter_map(|s| s.object.as_ref());
    concerned.extend(pods.filter(|o| o.kind == "Pod").map(|o| format!("{}/{}", o.namespace, o.name)));
    let of = |workload: &Workload| format!("{}/{}", workload.namespace, workload.name);
    for workload in world.mesh.workloads.values().filter(|w| concerned.contains(&of(w))) {
        let named = |v: &&Value| text(v, "namespace") == &*workload.namespace && text(v, "name") == &*workload.name;
        let known = section(dump, "workloads").into_iter().find(named);
        if known.is_none() && is_partial {
            continue;
        }
        of_workload(&of(workload), workload, known, &mut out);
    }
    if let Some(service) = answer.service.as_ref().and_then(|key| world.mesh.services.get(key.as_str())) {
        let key = &*service.key;
        let named = |v: &&Value| format!("{}/{}", text(v, "namespace"), text(v, "hostname")) == key;
        let known = section(dump, "services").into_iter().find(named);
        if known.is_some() || !is_partial {
            of_service(world, service, known, &mut out);
        }
    }
    out
}

fn list(value: &Value) -> String {
    let mut all: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    all.sort_unstable();
    all.join(", ")
}

fn sorted<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let mut all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    all.sort();
    all.join(", ")
}

fn compare(subject: &str, fields: Vec<(&str, String, String)>, out: &mut Vec<Difference>) {
    let differs = fields.into_iter().filter(|(_, compiled, proxy)| compiled != proxy);
    out.extend(differs.map(|(field, compiled, proxy)| Difference {
        subject: subject.into(),
        field: field.into(),
        compiled,
        proxy,
    }));
}

fn missing(subject: String, out: &mut Vec<Difference>) {
    out.push(Difference { subject, field: String::new(), compiled: "there".into(), proxy: String::new() });
}

fn of_workload(name: &str, workload: &Workload, known: Option<&Value>, out: &mut Vec<Difference>) {
    let subject = format!("workload {name}");
    let Some(known) = known else { return missing(subject, out) };
    let protocol = if workload.hbone { "HBONE" } else { "TCP" };
    let status = if workload.healthy { "Healthy" } else { "Unhealthy" };
    let fields = vec![
        ("workloadIps", sorted(&workload.ips), list(&known["workloadIps"])),
        ("protocol", protocol.into(), text(known, "protocol").into()),
        ("status", status.into(), text(known, "status").into()),
        ("serviceAccount", workload.identity.service_account().into(), text(known, "serviceAccount").into()),
        ("authorizationPolicies", sorted(&workload.policies), list(&known["authorizationPolicies"])),
    ];
    compare(&subject, fields, out);
}

fn of_service(world: &World, service: &Service, known: Option<&Value>, out: &mut Vec<Difference>) {
    let subject = format!("service {}", service.key);
    let Some(known) = known else { return missing(subject, out) };
    let ports = sorted(service.ports.iter().map(|(port, target)| format!("{port}:{target}")));
    let known_ports =
        sorted(known["ports"].as_object().into_iter().flatten().map(|(port, target)| format!("{port}:{target}")));
    // By the name in the Kubernetes cluster: the identifier before it is that of the controller's own options.
    let last = |uid: &str| uid.split_once('/').map_or(uid, |(_, rest)| rest).to_string();
    let endpoints = world.mesh.endpoints.get(&service.key);
    let endpoints = sorted(endpoints.into_iter().flatten().map(|(uid, _)| last(uid)));
    let known_endpoints = sorted(known["endpoints"].as_object().into_iter().flatten().map(|(uid, _)| last(uid)));
    let waypoint = |there: bool| if there { "bound" } else { "none" }.to_string();
    let fields = vec![
        ("ports", ports, known_ports),
        ("endpoints", endpoints, known_endpoints),
        ("waypoint", waypoint(!service.waypoints.is_empty()), waypoint(!known["waypoint"].is_null())),
    ];
    compare(&subject, fields, out);
}

fn policies(world: &World, dump: &Value, out: &mut Vec<Difference>) {
    let known: Vec<Policy> =
        section(dump, "policies").into_iter().filter_map(|v| serde_json::from_value(v.clone()).ok()).collect();
    let shown = |policy: &Policy| serde_json::to_string(&policy.rules).unwrap_or_default();
    let mut all: Vec<&Policy> = world.mesh.policies.values().map(|p| &**p).collect();
    all.sort_by_key(|p| p.key());
    for policy in &all {
        let subject = format!("policy {}", policy.key());
        match known.iter().find(|k| k.key() == policy.key()) {
            None => missing(subject, out),
            Some(same) if same == *policy => {}
            Some(other) => {
                let fields = vec![
                    ("action", format!("{:?}", policy.action), format!("{:?}", other.action)),
                    ("scope", format!("{:?}", policy.scope), format!("{:?}", other.scope)),
                    ("rules", shown(policy), shown(other)),
                ];
                compare(&subject, fields, out);
            }
        }
    }
    for other in known.iter().filter(|k| all.iter().all(|p| p.key() != k.key())) {
        let subject = format!("policy {}", other.key());
        out.push(Difference { subject, field: String::new(), compiled: String::new(), proxy: "there".into() });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::{Call, Enrolment, explain};
    use karst_manifest::{State, parse};
    use serde_json::json;
    use std::{path::Path, sync::Arc};

    const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: {rules: [{from: [{source: {namespaces: [shop]}}]}]}
";

    #[test]
    fn a_proxy_that_has_not_heard_is_told_of() {
        let objects = parse::file(Path::new("f.yaml"), OBJECTS).unwrap().into_iter().map(Arc::new).collect();
        let world = World::new(State { objects, ..State::default() }, Enrolment::Expected).unwrap();
        let call = Call { from: "pod/web-1.shop".into(), to: "web.shop".into(), ..Call::default() };
        let answer = explain(&world, &call).unwrap();
        let policy = serde_json::to_value(&*world.mesh.policies["shop/p"]).unwrap();
        let mut dump = json!({
            "workloads": [{
                "uid": "c//Pod/shop/web-1", "name": "web-1", "namespace": "shop", "workloadIps": ["10.0.0.1"],
                "protocol": "HBONE", "status": "Healthy", "serviceAccount": "web", "authorizationPolicies": [],
            }],
            "services": [{
                "namespace": "shop", "hostname": "web.shop.svc.cluster.local", "ports": { "80": 8080 },
                "endpoints": { "c//Pod/shop/web-1": {} }, "waypoint": null,
            }],
            "policies": [policy],
        });
        assert_eq!(of_ztunnel(&world, &answer, &dump), []);
        dump["workloads"][0]["status"] = "Unhealthy".into();
        dump["services"][0]["waypoint"] = json!({ "destination": "/10.96.0.2" });
        dump["policies"] = json!({});
        let all = of_ztunnel(&world, &answer, &dump);
        let told: Vec<_> = all.iter().map(|d| (&*d.subject, &*d.field, &*d.compiled, &*d.proxy)).collect();
        let expected = [
            ("workload shop/web-1", "status", "Healthy", "Unhealthy"),
            ("service shop/web.shop.svc.cluster.local", "waypoint", "none", "bound"),
            ("policy shop/p", "", "there", ""),
        ];
        assert_eq!(told, expected);
    }
}
