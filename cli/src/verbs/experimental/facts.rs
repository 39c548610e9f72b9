//! Objects as `describe` looks them up, and what follows from them for a pod or a service.

use crate::{
    cluster::{Cluster, Resource},
    problem::Problem,
};
use kube::{ResourceExt, api::DynamicObject};
use serde_json::Value;
use std::collections::BTreeMap;

const VIRTUAL_SERVICE: Resource = Resource::new("networking.istio.io", "v1", "VirtualService", "virtualservices");
const DESTINATION_RULE: Resource = Resource::new("networking.istio.io", "v1", "DestinationRule", "destinationrules");
const HTTP_ROUTE: Resource = Resource::new("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes");
const LISTENER_SET: Resource = Resource::new("gateway.networking.k8s.io", "v1", "ListenerSet", "listenersets");
const GATEWAY: Resource = Resource::new("gateway.networking.k8s.io", "v1", "Gateway", "gateways");
const AUTHORIZATION: Resource =
    Resource::new("security.istio.io", "v1", "AuthorizationPolicy", "authorizationpolicies");
const PEER: Resource = Resource::new("security.istio.io", "v1", "PeerAuthentication", "peerauthentications");

/// Labels.
pub type Labels = BTreeMap<String, String>;

/// What is there.
#[derive(Debug, Default)]
pub struct Facts {
    pub root_namespace: String,
    pub namespaces: Vec<DynamicObject>,
    pub services: Vec<DynamicObject>,
    pub virtual_services: Vec<DynamicObject>,
    pub destination_rules: Vec<DynamicObject>,
    pub http_routes: Vec<DynamicObject>,
    /// Of Gateway API.
    pub gateways: Vec<DynamicObject>,
    /// What adds listeners to these.
    pub listener_sets: Vec<DynamicObject>,
    pub authorization: Vec<DynamicObject>,
    pub peers: Vec<DynamicObject>,
}

impl Facts {
    /// Reads them: services of a namespace, the rest of all.
    pub async fn read(cluster: &Cluster, namespace: &str) -> Result<Self, Problem> {
        let list = async |resource, place: Option<&str>| {
            cluster.list(resource, place, "").await.map(Option::unwrap_or_default)
        };
        Ok(Self {
            root_namespace: cluster.istio_namespace.clone(),
            namespaces: list(Resource::NAMESPACE, None).await?,
            services: list(Resource::SERVICE, Some(namespace)).await?,
            virtual_services: list(VIRTUAL_SERVICE, None).await?,
            destination_rules: list(DESTINATION_RULE, None).await?,
            http_routes: list(HTTP_ROUTE, None).await?,
            gateways: list(GATEWAY, None).await?,
            listener_sets: list(LISTENER_SET, None).await?,
            authorization: list(AUTHORIZATION, None).await?,
            peers: list(PEER, None).await?,
        })
    }

    /// Labels of a namespace.
    pub fn namespace_label(&self, namespace: &str, label: &str) -> Option<&str> {
        let found = self.namespaces.iter().find(|one| one.name_any() == namespace)?;
        found.labels().get(label).map(String::as_str)
    }

    /// The waypoint that an object of a namespace uses (`namespace/name`), by its labels, else its namespace's.
    pub fn waypoint(&self, namespace: &str, labels: &Labels) -> Option<String> {
        const USE: &str = "istio.io/use-waypoint";
        const PLACE: &str = "istio.io/use-waypoint-namespace";
        let own = |label: &str| labels.get(label).map(String::as_str);
        let (name, place) = match own(USE) {
            Some(name) => (name, own(PLACE)),
            None => (self.namespace_label(namespace, USE)?, self.namespace_label(namespace, PLACE)),
        };
        (name != "none").then(|| format!("{}/{name}", place.unwrap_or(namespace)))
    }

    /// The services of a namespace whose selectors fit these labels.
    pub fn services_of(&self, namespace: &str, labels: &Labels) -> Vec<&DynamicObject> {
        let fits = |service: &&DynamicObject| {
            let selector = texts(service.data.pointer("/spec/selector"));
            service.namespace().as_deref() == Some(namespace) && !selector.is_empty() && selects(&selector, labels)
        };
        self.services.iter().filter(fits).collect()
    }

    /// The virtual services with a destination that is a service.
    pub fn routes_to(&self, service: &DynamicObject) -> Vec<&DynamicObject> {
        self.virtual_services.iter().filter(|route| names_host(&route.data, service, route)).collect()
    }

    /// The HTTPRoutes that are attached to a service or send to it.
    pub fn http_routes_to(&self, service: &DynamicObject) -> Vec<&DynamicObject> {
        let (name, place) = (service.name_any(), service.namespace().unwrap_or_default());
        let refers = |route: &DynamicObject, one: &Value, default_kind: &str| {
            let field = |key: &str| one.get(key).and_then(Value::as_str);
            field("kind").unwrap_or(default_kind) == "Service"
                && field("name") == Some(&name)
                && field("namespace").map_or_else(|| route.namespace().unwrap_or_default(), str::to_owned) == place
        };
        let fits = |route: &&DynamicObject| {
            let rules = list(route.data.pointer("/spec/rules"));
            let mut backends = rules.iter().flat_map(|rule| list(rule.get("backendRefs")));
            list(route.data.pointer("/spec/parentRefs")).iter().any(|one| refers(route, one, "Gateway"))
                || backends.any(|one| refers(route, &one, "Service"))
        };
        self.http_routes.iter().filter(fits).collect()
    }

    /// The gateways by which a route lets in what comes from outside, each with its addresses.
    pub fn exposing(&self, route: &DynamicObject) -> Vec<String> {
        let own = route.namespace().unwrap_or_default();
        let of_istio = list(route.data.pointer("/spec/gateways"));
        let of_istio = of_istio.iter().filter_map(Value::as_str).filter(|name| *name != "mesh").map(|name| {
            let (place, name) = name.split_once('/').unwrap_or((own.as_str(), name));
            format!("{place}/{name}")
        });
        let parents = list(route.data.pointer("/spec/parentRefs"));
        let of_api = parents.iter().filter_map(|parent| {
            let field = |key: &str| parent.get(key).and_then(Value::as_str);
            let (place, name) = (field("namespace").unwrap_or(&own), field("name")?);
            let (place, name) = match field("kind").unwrap_or("Gateway") {
                "Gateway" => (place.to_owned(), name.to_owned()),
                "ListenerSet" => self.gateway_of_set(place, name)?,
                _ => return None,
            };
            let is_it = |one: &&DynamicObject| one.name_any() == name && one.namespace().as_deref() == Some(&*place);
            let addresses = list(self.gateways.iter().find(is_it)?.data.pointer("/status/addresses"));
            let addresses: Vec<&str> = addresses.iter().filter_map(|one| one.get("value")?.as_str()).collect();
            let at = if addresses.is_empty() { "it has no address yet".into() } else { addresses.join(", ") };
            Some(format!("{place}/{name} ({at})"))
        });
        // By its own name and by that of a set: once.
        let mut all: Vec<String> = of_istio.chain(of_api).collect();
        all.dedup();
        all
    }

    /// The Gateway that a ListenerSet adds listeners to: namespace and name.
    fn gateway_of_set(&self, place: &str, name: &str) -> Option<(String, String)> {
        let is_it = |one: &&DynamicObject| one.name_any() == name && one.namespace().as_deref() == Some(place);
        let set = self.listener_sets.iter().find(is_it)?;
        let field = |key: &str| set.data.pointer(&format!("/spec/parentRef/{key}")).and_then(Value::as_str);
        Some((field("namespace").unwrap_or(place).to_owned(), field("name")?.to_owned()))
    }

    /// The destination rules for a service.
    pub fn rules_for(&self, service: &DynamicObject) -> Vec<&DynamicObject> {
        let host = |rule: &DynamicObject| {
            rule.data.pointer("/spec/host").and_then(Value::as_str).is_some_and(|host| is_host(host, service, rule))
        };
        self.destination_rules.iter().filter(|rule| host(rule)).collect()
    }

    /// The policies that are for a pod: by selector, or without selector and target in its namespace or the root
    /// namespace.
    pub fn policies_for(&self, namespace: &str, labels: &Labels) -> Vec<&DynamicObject> {
        self.authorization.iter().filter(|policy| self.is_for(policy, namespace, labels)).collect()
    }

    /// The policies that are for a service by its waypoint.
    pub fn policies_for_service(&self, service: &DynamicObject) -> Vec<&DynamicObject> {
        let name = service.name_any();
        let target = |policy: &DynamicObject| {
            let single = policy.data.pointer("/spec/targetRef").into_iter().cloned();
            let all: Vec<Value> = list(policy.data.pointer("/spec/targetRefs")).into_iter().chain(single).collect();
            all.iter().any(|one| {
                let field = |key: &str| one.get(key).and_then(Value::as_str).unwrap_or_default();
                field("kind") == "Service" && field("name") == name
            })
        };
        self.authorization.iter().filter(|policy| policy.namespace() == service.namespace() && target(policy)).collect()
    }

    fn is_for(&self, policy: &DynamicObject, namespace: &str, labels: &Labels) -> bool {
        let place = policy.namespace().unwrap_or_default();
        let has_target = ["/spec/targetRef", "/spec/targetRefs"].iter().any(|at| policy.data.pointer(at).is_some());
        let selector = texts(policy.data.pointer("/spec/selector/matchLabels"));
        !has_target && (place == namespace || place == self.root_namespace) && selects(&selector, labels)
    }

    /// The mode of mutual TLS for a pod, and whose it is: the most specific, the oldest of equals.
    pub fn mutual_tls(&self, namespace: &str, labels: &Labels) -> (String, String) {
        let rank = |policy: &DynamicObject| {
            let has_selector = !texts(policy.data.pointer("/spec/selector/matchLabels")).is_empty();
            (
                !has_selector,
                policy.namespace().as_deref() != Some(namespace),
                policy.creation_timestamp().map(|at| at.0.to_string()),
                policy.name_any(),
            )
        };
        let mut all: Vec<&DynamicObject> =
            self.peers.iter().filter(|policy| self.is_for(policy, namespace, labels)).collect();
        all.sort_by_key(|policy| rank(policy));
        for policy in all {
            let mode = policy.data.pointer("/spec/mtls/mode").and_then(Value::as_str).unwrap_or("UNSET");
            if mode != "UNSET" {
                return (mode.into(), format!("{}.{}", policy.name_any(), policy.namespace().unwrap_or_default()));
            }
        }
        ("PERMISSIVE".into(), "the default".into())
    }
}

/// Whether a selector fits labels. An empty one fits all.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// An object of texts.
pub fn texts(value: Option<&Value>) -> Labels {
    let all = value.and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// The values of a list.
pub fn list(value: Option<&Value>) -> Vec<Value> {
    value.and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Whether a host, as `by` writes it, is a service.
fn is_host(host: &str, service: &DynamicObject, by: &DynamicObject) -> bool {
    let (name, place) = (service.name_any(), service.namespace().unwrap_or_default());
    let short = host == name && by.namespace().as_deref() == Some(&place);
    let qualified = format!("{name}.{place}");
    short || host == qualified || host == format!("{qualified}.svc") || host.starts_with(&format!("{qualified}.svc."))
}

/// Whether any field named `host` below is a service, or one of `hosts`.
fn names_host(value: &Value, service: &DynamicObject, by: &DynamicObject) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(name, value)| match (name.as_str(), value) {
            ("host", Value::String(host)) => is_host(host, service, by),
            ("hosts", Value::Array(hosts)) => {
                hosts.iter().filter_map(Value::as_str).any(|host| is_host(host, service, by))
            }
            _ => names_host(value, service, by),
        }),
        Value::Array(all) => all.iter().any(|value| names_host(value, service, by)),
        _ => false,
    }
}
