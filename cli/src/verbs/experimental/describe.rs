//! `x describe pod|service`: what the mesh does for it, by the objects that are there.

use super::{
    facts::{Facts, Labels, list, texts},
    membership::membership,
};
use crate::{cluster::Resource, problem::Problem, session::Session};
use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::DynamicObject};
use serde_json::Value;
use std::fmt::Write;

/// The verbs of `x describe`.
#[derive(Debug, Subcommand)]
pub enum Describe {
    /// Explain what the mesh does for a pod
    #[command(alias = "po", alias = "pods")]
    Pod(Named),
    /// Explain what the mesh does for a service
    #[command(alias = "svc", alias = "services")]
    Service(Named),
}

/// What is described.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst x describe pod web-0.shop
  karst x describe service web -n shop

It says what the objects mean; `karst ztunnel-config` and `karst proxy-config` show what the proxies have.")]
pub struct Named {
    /// NAME or NAME.NAMESPACE
    name: String,
    /// Accepted for compatibility: pods outside of the mesh are always described
    #[arg(long = "ignoreUnmeshed", hide = true)]
    ignore_unmeshed: bool,
}

impl Describe {
    /// Prints it.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let cluster = session.cluster().await?;
        match self {
            Self::Pod(named) => {
                let pod = cluster.pod(&named.name).await?;
                let facts = Facts::read(&cluster, &pod.namespace().unwrap_or_default()).await?;
                session.text(&of_pod(&pod, &facts))
            }
            Self::Service(named) => {
                let name = cluster.pod_name(&named.name);
                let resource = Resource::SERVICE;
                let Some(service) = cluster.object(resource, Some(&name.namespace), &name.name).await? else {
                    return Err(Problem::new(format!(
                        "service {} in namespace {}: not found",
                        name.name, name.namespace
                    ))
                    .next(format!("`kubectl -n {} get services` lists those that are there", name.namespace)));
                };
                let facts = Facts::read(&cluster, &name.namespace).await?;
                let mut text = String::new();
                of_service(&mut text, &service, &facts, None);
                session.text(&text)
            }
        }
    }
}

fn of_pod(pod: &Pod, facts: &Facts) -> String {
    let (name, place) = (pod.name_any(), pod.namespace().unwrap_or_default());
    let mut text = format!("Pod: {name}.{place}\n");
    let labels: &Labels = pod.labels();
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
    let _ = writeln!(text, "   Service account: {account}");
    let ports: Vec<String> = pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .flat_map(|container| {
            container.ports.iter().flatten().map(|port| format!("{} ({})", port.container_port, container.name))
        })
        .collect();
    let _ =
        writeln!(text, "   Pod ports: {}", if ports.is_empty() { "none declared".into() } else { ports.join(", ") });
    let _ = writeln!(text, "   Mesh: {}", membership(pod, facts));
    if !crate::cluster::is_ready(pod) {
        let _ = writeln!(text, "   WARNING: the pod is not ready: `kubectl -n {place} describe pod {name}` says why");
    }
    if let Some(waypoint) =
        labels.contains_key("istio.io/use-waypoint").then(|| facts.waypoint(&place, labels)).flatten()
    {
        let _ = writeln!(text, "   Waypoint for its own addresses: {waypoint}");
    }
    let _ = writeln!(text, "--------------------");
    let services = facts.services_of(&place, labels);
    if services.is_empty() {
        let _ = writeln!(text, "No service selects this pod.\n--------------------");
    }
    for service in services {
        of_service(&mut text, service, facts, Some(labels));
        let _ = writeln!(text, "--------------------");
    }
    policies(&mut text, "Authorization policies", &facts.policies_for(&place, labels));
    let (mode, whose) = facts.mutual_tls(&place, labels);
    let _ = writeln!(text, "Effective PeerAuthentication:\n   Workload mTLS mode: {mode} (by {whose})");
    text
}

/// A service; of a pod, with the subsets that its labels fit.
fn of_service(text: &mut String, service: &DynamicObject, facts: &Facts, labels: Option<&Labels>) {
    let (name, place) = (service.name_any(), service.namespace().unwrap_or_default());
    let _ = writeln!(text, "Service: {name}.{place}");
    for port in list(service.data.pointer("/spec/ports")) {
        let _ = writeln!(text, "   Port: {}", port_text(&port));
    }
    let waypoint = facts.waypoint(&place, service.labels());
    let _ = writeln!(text, "   Waypoint: {}", waypoint.as_deref().unwrap_or("none"));
    let routes = facts.routes_to(service);
    let http_routes = facts.http_routes_to(service);
    if waypoint.is_none() && (!routes.is_empty() || !http_routes.is_empty()) {
        let _ = writeln!(
            text,
            "   WARNING: its routes have no effect within the mesh, since it uses no waypoint: \
             `karst waypoint apply -n {place} --enroll-namespace`"
        );
    }
    for rule in facts.rules_for(service) {
        let _ = writeln!(
            text,
            "DestinationRule: {}.{} for {:?}",
            rule.name_any(),
            rule.namespace().unwrap_or_default(),
            host(rule)
        );
        subsets(text, rule, labels);
        traffic_policy(text, rule);
    }
    for route in routes {
        let _ = writeln!(text, "VirtualService: {}.{}", route.name_any(), route.namespace().unwrap_or_default());
        exposed(text, facts, route);
        for destination in destinations(route) {
            let _ = writeln!(text, "   {destination}");
        }
    }
    for route in http_routes {
        let _ = writeln!(text, "HTTPRoute: {}.{}", route.name_any(), route.namespace().unwrap_or_default());
        exposed(text, facts, route);
    }
    policies(text, "Authorization policies at the waypoint", &facts.policies_for_service(service));
}

fn exposed(text: &mut String, facts: &Facts, route: &DynamicObject) {
    for gateway in facts.exposing(route) {
        let _ = writeln!(text, "   Exposed on Gateway {gateway}");
    }
}

/// In istioctl's words.
fn traffic_policy(text: &mut String, rule: &DynamicObject) {
    let Some(policy) = rule.data.pointer("/spec/trafficPolicy").and_then(Value::as_object) else {
        let _ = writeln!(text, "   No Traffic Policy");
        return;
    };
    if let Some(tls) = policy.get("tls") {
        let _ = writeln!(text, "   Traffic Policy TLS Mode: {}", tls["mode"].as_str().unwrap_or("DISABLE"));
    }
    let parts = [
        ("loadBalancer", "load balancer"),
        ("connectionPool", "connection pool"),
        ("outlierDetection", "outlier detection"),
        ("portLevelSettings", "port level settings"),
    ];
    let named: Vec<&str> = parts.iter().filter(|(key, _)| policy.contains_key(*key)).map(|(_, name)| *name).collect();
    if !named.is_empty() {
        let _ = writeln!(text, "   Traffic Policy: {}", named.join(", "));
    }
}

/// Which requests a rule of a VirtualService is for: all that is looked at besides the path is only named.
fn requests(rule: &Value) -> String {
    let matches = list(rule.get("match"));
    if matches.is_empty() {
        return "all requests".into();
    }
    let one = |condition: &Value| {
        let uri = |how: &str| condition.pointer(&format!("/uri/{how}")).and_then(Value::as_str);
        let path = uri("exact")
            .map(str::to_owned)
            .or_else(|| uri("prefix").map(|path| format!("{path}*")))
            .or_else(|| uri("regex").map(|pattern| format!("regex {pattern}")));
        let fields = condition.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        let others: Vec<&str> = fields.filter(|name| !["uri", "name", "ignoreUriCase"].contains(name)).collect();
        match (path, others.is_empty()) {
            (Some(path), true) => path,
            (Some(path), false) => format!("{path} by {}", others.join(", ")),
            (None, true) => "any".into(),
            (None, false) => format!("by {}", others.join(", ")),
        }
    };
    matches.iter().map(one).collect::<Vec<_>>().join(" or ")
}

fn host(rule: &DynamicObject) -> &str {
    rule.data.pointer("/spec/host").and_then(Value::as_str).unwrap_or_default()
}

fn port_text(port: &Value) -> String {
    let text = |field: &str| port.get(field).and_then(Value::as_str).unwrap_or_default();
    let number = port.get("port").and_then(Value::as_u64).unwrap_or_default();
    let target = port.get("targetPort").map(|target| target.as_str().map_or_else(|| target.to_string(), str::to_owned));
    let hint = match (text("appProtocol"), text("name")) {
        ("", "") => "auto-detected: name the port (http-..., tcp-...) or set appProtocol".to_owned(),
        ("", name) => format!("by its name {name:?}"),
        (protocol, _) => format!("appProtocol {protocol}"),
    };
    format!("{number} -> {} ({hint})", target.unwrap_or_else(|| number.to_string()))
}

fn subsets(text: &mut String, rule: &DynamicObject, labels: Option<&Labels>) {
    let all = list(rule.data.pointer("/spec/subsets"));
    let name = |subset: &Value| subset.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some(labels) = labels else {
        let names: Vec<String> = all.iter().map(name).collect();
        if !names.is_empty() {
            let _ = writeln!(text, "   Subsets: {}", names.join(", "));
        }
        return;
    };
    let fits = |subset: &&Value| super::facts::selects(&texts(subset.get("labels")), labels);
    let (matching, others): (Vec<&Value>, Vec<&Value>) = all.iter().partition(fits);
    for (what, subsets) in [("Matching subsets", matching), ("Non-matching subsets", others)] {
        let names: Vec<String> = subsets.into_iter().map(name).collect();
        if !names.is_empty() {
            let _ = writeln!(text, "   {what}: {}", names.join(", "));
        }
    }
}

/// Each destination of a virtual service, with its weight.
fn destinations(route: &DynamicObject) -> Vec<String> {
    let mut out = vec![];
    for protocol in ["http", "tls", "tcp"] {
        for (index, rule) in list(route.data.pointer(&format!("/spec/{protocol}"))).iter().enumerate() {
            let condition = requests(rule);
            for target in list(rule.get("route")) {
                let text = |at: &str| target.pointer(at).and_then(Value::as_str).unwrap_or_default();
                let weight = target.get("weight").and_then(Value::as_u64).map(|weight| format!(", weight {weight}"));
                let subset = match text("/destination/subset") {
                    "" => String::new(),
                    subset => format!(" subset {subset}"),
                };
                out.push(format!(
                    "{protocol}[{index}] {condition}: {}{subset}{}",
                    text("/destination/host"),
                    weight.unwrap_or_default()
                ));
            }
        }
    }
    out
}

fn policies(text: &mut String, title: &str, all: &[&DynamicObject]) {
    if all.is_empty() {
        return;
    }
    let _ = writeln!(text, "{title}:");
    for policy in all {
        let action = policy.data.pointer("/spec/action").and_then(Value::as_str).unwrap_or("ALLOW");
        let rules = list(policy.data.pointer("/spec/rules")).len();
        let place = policy.namespace().unwrap_or_default();
        let _ = writeln!(text, "   {action} {}.{place} ({rules} rules)", policy.name_any());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    fn facts() -> Facts {
        let rule = json!({ "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "host": "web", "trafficPolicy": { "tls": { "mode": "SIMPLE" }, "loadBalancer": {} }, "subsets": [{ "name": "v1", "labels": { "version": "v1" } }, { "name": "v2", "labels": { "version": "v2" } }] } });
        let route = json!({ "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "hosts": ["web"], "gateways": ["mesh", "in"], "http": [
                { "match": [{ "uri": { "prefix": "/login" } }, { "headers": {} }], "route": [{ "destination": { "host": "web" } }] },
                { "route": [{ "destination": { "host": "web", "subset": "v1" }, "weight": 90 }] }] } });
        let attached = json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "parentRefs": [{ "name": "gw", "namespace": "edge" }], "rules": [{ "backendRefs": [{ "name": "web", "port": 80 }] }] } });
        let gateway = json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": { "name": "gw", "namespace": "edge" },
            "status": { "addresses": [{ "value": "192.0.2.1" }] } });
        let policy = |name: &str, place: &str, spec: Value| {
            object(json!({ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": { "name": name, "namespace": place }, "spec": spec }))
        };
        let peer = |name: &str, place: &str, spec: Value| {
            object(json!({ "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": { "name": name, "namespace": place }, "spec": spec }))
        };
        Facts {
            root_namespace: "istio-system".into(),
            namespaces: vec![object(
                json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop", "labels": { "istio.io/dataplane-mode": "ambient" } } }),
            )],
            services: vec![object(
                json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "shop" },
                "spec": { "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] } }),
            )],
            virtual_services: vec![object(route)],
            destination_rules: vec![object(rule)],
            http_routes: vec![object(attached)],
            gateways: vec![object(gateway)],
            listener_sets: vec![object(
                json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "ListenerSet", "metadata": { "name": "more", "namespace": "shop" },
                "spec": { "parentRef": { "name": "gw", "namespace": "edge" } } }),
            )],
            authorization: vec![
                policy("all", "istio-system", json!({ "action": "DENY", "rules": [{}] })),
                policy("web", "shop", json!({ "selector": { "matchLabels": { "app": "web" } }, "rules": [{}, {}] })),
                policy("db", "shop", json!({ "selector": { "matchLabels": { "app": "db" } } })),
                policy("at-waypoint", "shop", json!({ "targetRefs": [{ "kind": "Service", "name": "web" }] })),
            ],
            peers: vec![
                peer("default", "istio-system", json!({ "mtls": { "mode": "STRICT" } })),
                peer("unset", "shop", json!({})),
            ],
        }
    }

    #[test]
    fn a_route_at_a_listener_set_is_exposed_by_its_gateway() {
        let route = object(
            json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "parentRefs": [{ "kind": "ListenerSet", "name": "more" }, { "kind": "ListenerSet", "name": "none" }, { "kind": "Service", "name": "gw" }] } }),
        );
        assert_eq!(facts().exposing(&route), ["edge/gw (192.0.2.1)"]);
    }

    #[test]
    fn a_pod_with_service_rules_and_policies() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "web-0", "namespace": "shop", "labels": { "app": "web", "version": "v1" },
                "annotations": { "ambient.istio.io/redirection": "enabled" } },
            "spec": { "nodeName": "n1", "serviceAccountName": "web", "containers": [{ "name": "app", "ports": [{ "containerPort": 8080 }] }] },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        }))
        .unwrap();
        let expected = "\
Pod: web-0.shop
   Service account: web
   Pod ports: 8080 (app)
   Mesh: yes, by its namespace's label; ztunnel of node n1
--------------------
Service: web.shop
   Port: 80 -> 8080 (by its name \"http\")
   Waypoint: none
   WARNING: its routes have no effect within the mesh, since it uses no waypoint: `karst waypoint apply -n shop --enroll-namespace`
DestinationRule: web.shop for \"web\"
   Matching subsets: v1
   Non-matching subsets: v2
   Traffic Policy TLS Mode: SIMPLE
   Traffic Policy: load balancer
VirtualService: web.shop
   Exposed on Gateway shop/in
   http[0] /login* or by headers: web
   http[1] all requests: web subset v1, weight 90
HTTPRoute: web.shop
   Exposed on Gateway edge/gw (192.0.2.1)
Authorization policies at the waypoint:
   ALLOW at-waypoint.shop (0 rules)
--------------------
Authorization policies:
   DENY all.istio-system (1 rules)
   ALLOW web.shop (2 rules)
Effective PeerAuthentication:
   Workload mTLS mode: STRICT (by default.istio-system)
";
        assert_eq!(of_pod(&pod, &facts()), expected);
    }
}
