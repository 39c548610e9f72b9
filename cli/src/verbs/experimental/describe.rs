//! `x describe pod|service`: what the mesh does for it, by the objects that are there.

use super::{
    description::{
        ContainerPort, Destination, MutualTls, PodDescription, PolicyDescription, RouteDescription, RuleDescription,
        ServiceDescription, ServicePort, TrafficPolicy,
    },
    facts::{Facts, Labels, list, selects, texts},
    membership::membership,
};
use crate::{cluster::Resource, output::Format, problem::Problem, session::Session};
use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::DynamicObject};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Display;

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
  karst x describe service web -n shop -o json

It says what the objects mean; `karst ztunnel-config` and `karst proxy-config` show what the proxies have.")]
pub struct Named {
    /// NAME or NAME.NAMESPACE
    name: String,
    /// Accepted for compatibility: pods outside of the mesh are always described
    #[arg(long = "ignoreUnmeshed", hide = true)]
    ignore_unmeshed: bool,
    /// Output format: a text, json or yaml
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Describe {
    /// Prints it.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let cluster = session.cluster().await?;
        match self {
            Self::Pod(named) => {
                let pod = cluster.pod(&named.name).await?;
                let facts = Facts::read(&cluster, &pod.namespace().unwrap_or_default()).await?;
                show(session, named.output, &of_pod(&pod, &facts))
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
                show(session, named.output, &of_service(&service, &facts, None))
            }
        }
    }
}

/// Prints it as it is for programs, or as text.
fn show(session: &mut Session<'_>, format: Format, described: &(impl Serialize + Display)) -> Result<(), Problem> {
    match format.encode(described)? {
        Some(encoded) => session.text(&encoded),
        None => session.text(&described.to_string()),
    }
}

fn of_pod(pod: &Pod, facts: &Facts) -> PodDescription {
    let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
    let labels: &Labels = pod.labels();
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| {
        let declared = container.ports.iter().flatten();
        declared.map(move |port| ContainerPort { port: port.container_port, container: container.name.clone() })
    });
    let mut warnings = vec![];
    if !crate::cluster::is_ready(pod) {
        warnings.push(format!("the pod is not ready: `kubectl -n {namespace} describe pod {name}` says why"));
    }
    let own = labels.contains_key("istio.io/use-waypoint");
    let services = facts.services_of(&namespace, labels);
    let (mode, by) = facts.mutual_tls(&namespace, labels);
    PodDescription {
        service_account: account.unwrap_or_else(|| "default".into()),
        ports: ports.collect(),
        mesh: membership(pod, facts),
        warnings,
        waypoint: own.then(|| facts.waypoint(&namespace, labels)).flatten(),
        services: services.into_iter().map(|service| of_service(service, facts, Some(labels))).collect(),
        authorization_policies: facts.policies_for(&namespace, labels).into_iter().map(policy).collect(),
        mutual_tls: MutualTls { mode, by },
        name,
        namespace,
    }
}

/// A service; of a pod, with the subsets that its labels fit.
fn of_service(service: &DynamicObject, facts: &Facts, labels: Option<&Labels>) -> ServiceDescription {
    let (name, namespace) = (service.name_any(), service.namespace().unwrap_or_default());
    let waypoint = facts.waypoint(&namespace, service.labels());
    let (routes, http_routes) = (facts.routes_to(service), facts.http_routes_to(service));
    let mut warnings = vec![];
    if waypoint.is_none() && (!routes.is_empty() || !http_routes.is_empty()) {
        warnings.push(format!(
            "its routes have no effect within the mesh, since it uses no waypoint: \
             `karst waypoint apply -n {namespace} --enroll-namespace`"
        ));
    }
    let virtual_service =
        |one: &DynamicObject| RouteDescription { destinations: destinations(one), ..route(one, facts) };
    ServiceDescription {
        name,
        namespace,
        ports: list(service.data.pointer("/spec/ports")).iter().map(port).collect(),
        waypoint,
        warnings,
        destination_rules: facts.rules_for(service).into_iter().map(|one| rule(one, labels)).collect(),
        virtual_services: routes.into_iter().map(virtual_service).collect(),
        http_routes: http_routes.into_iter().map(|one| route(one, facts)).collect(),
        authorization_policies: facts.policies_for_service(service).into_iter().map(policy).collect(),
    }
}

/// Without destinations.
fn route(route: &DynamicObject, facts: &Facts) -> RouteDescription {
    RouteDescription {
        name: route.name_any(),
        namespace: route.namespace().unwrap_or_default(),
        exposed_on: facts.exposing(route),
        destinations: vec![],
    }
}

fn rule(rule: &DynamicObject, labels: Option<&Labels>) -> RuleDescription {
    let all = list(rule.data.pointer("/spec/subsets"));
    let names = |wanted: &dyn Fn(&Value) -> bool| -> Vec<String> {
        let name = |subset: &Value| subset.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        all.iter().filter(|subset| wanted(subset)).map(name).collect()
    };
    let fits = |subset: &Value, labels: &Labels| selects(&texts(subset.get("labels")), labels);
    let (subsets, matching_subsets, non_matching_subsets) = match labels {
        None => (names(&|_| true), vec![], vec![]),
        Some(labels) => (vec![], names(&|one| fits(one, labels)), names(&|one| !fits(one, labels))),
    };
    RuleDescription {
        name: rule.name_any(),
        namespace: rule.namespace().unwrap_or_default(),
        host: rule.data.pointer("/spec/host").and_then(Value::as_str).unwrap_or_default().to_owned(),
        subsets,
        matching_subsets,
        non_matching_subsets,
        traffic_policy: traffic_policy(rule),
    }
}

/// In istioctl's words.
fn traffic_policy(rule: &DynamicObject) -> Option<TrafficPolicy> {
    let policy = rule.data.pointer("/spec/trafficPolicy")?.as_object()?;
    let parts = [
        ("loadBalancer", "load balancer"),
        ("connectionPool", "connection pool"),
        ("outlierDetection", "outlier detection"),
        ("portLevelSettings", "port level settings"),
    ];
    Some(TrafficPolicy {
        tls_mode: policy.get("tls").map(|tls| tls["mode"].as_str().unwrap_or("DISABLE").to_owned()),
        sets: parts.iter().filter(|(key, _)| policy.contains_key(*key)).map(|(_, name)| *name).collect(),
    })
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

fn port(port: &Value) -> ServicePort {
    let text = |field: &str| port.get(field).and_then(Value::as_str).unwrap_or_default();
    let number = port.get("port").and_then(Value::as_u64).unwrap_or_default();
    let target = port.get("targetPort").map(|target| target.as_str().map_or_else(|| target.to_string(), str::to_owned));
    let protocol = match (text("appProtocol"), text("name")) {
        ("", "") => "auto-detected: name the port (http-..., tcp-...) or set appProtocol".to_owned(),
        ("", name) => format!("by its name {name:?}"),
        (protocol, _) => format!("appProtocol {protocol}"),
    };
    ServicePort { port: number, target_port: target.unwrap_or_else(|| number.to_string()), protocol }
}

/// Each destination of a virtual service, with its weight.
fn destinations(route: &DynamicObject) -> Vec<Destination> {
    let mut out = vec![];
    for protocol in ["http", "tls", "tcp"] {
        for (index, rule) in list(route.data.pointer(&format!("/spec/{protocol}"))).iter().enumerate() {
            let requests = requests(rule);
            for target in list(rule.get("route")) {
                let text = |at: &str| target.pointer(at).and_then(Value::as_str).unwrap_or_default();
                out.push(Destination {
                    rule: format!("{protocol}[{index}]"),
                    requests: requests.clone(),
                    host: text("/destination/host").to_owned(),
                    subset: Some(text("/destination/subset")).filter(|subset| !subset.is_empty()).map(str::to_owned),
                    weight: target.get("weight").and_then(Value::as_u64),
                });
            }
        }
    }
    out
}

fn policy(policy: &DynamicObject) -> PolicyDescription {
    PolicyDescription {
        name: policy.name_any(),
        namespace: policy.namespace().unwrap_or_default(),
        action: policy.data.pointer("/spec/action").and_then(Value::as_str).unwrap_or("ALLOW").to_owned(),
        rules: list(policy.data.pointer("/spec/rules")).len(),
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
        let described = of_pod(&pod, &facts());
        assert_eq!(described.to_string(), expected);
        let encoded = serde_json::to_value(&described).unwrap();
        let service = &encoded["services"][0];
        assert_eq!(encoded["mutualTls"], json!({ "mode": "STRICT", "by": "default.istio-system" }));
        assert_eq!(service["ports"], json!([{ "port": 80, "targetPort": "8080", "protocol": "by its name \"http\"" }]));
        assert_eq!(service["destinationRules"][0]["matchingSubsets"], json!(["v1"]));
        assert_eq!(
            service["virtualServices"][0]["destinations"][1],
            json!({ "rule": "http[1]", "requests": "all requests", "host": "web", "subset": "v1", "weight": 90 })
        );
        assert_eq!(service["httpRoutes"][0]["exposedOn"], json!(["edge/gw (192.0.2.1)"]));
        assert!(service["waypoint"].is_null() && encoded.get("warnings").is_none(), "{encoded}");
    }

    #[test]
    fn of_a_service_all_subsets_are_named() {
        let facts = facts();
        let described = of_service(&facts.services[0], &facts, None);
        assert!(
            described.to_string().contains("\n   Subsets: v1, v2\n   Traffic Policy TLS Mode: SIMPLE\n"),
            "{described}"
        );
    }
}
