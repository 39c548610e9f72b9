//! Routes: `proxy-config routes`.

use super::{View, view::protocol};
use crate::{
    downstream::gateway::Listener,
    route::{
        matcher::StringMatcher,
        rule::{ClaimMatch, Rule},
        table::Table,
    },
};
use karst_api::route::ListenerProtocol;
use serde_json::{Value, json};

/// Where Istio's routes find the claims of a verified token.
const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";
const JWT_PAYLOAD: &str = "payload";

/// The section of the dump.
pub fn section(view: &View<'_>) -> Value {
    let all = if view.config.is_gateway() { of_gateway(view) } else { of_services(view) };
    let one = |(name, virtual_hosts): (String, Vec<Value>)| {
        json!({ "route_config": {
            "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            "name": name, "virtual_hosts": virtual_hosts,
        } })
    };
    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
        "dynamic_route_configs": all.into_iter().map(one).collect::<Vec<_>>(),
    })
}

/// For every port of the services behind a waypoint where requests are looked at.
fn of_services(view: &View<'_>) -> Vec<(String, Vec<Value>)> {
    let mut out = vec![];
    for service in view.services().into_iter().filter(|service| view.is_own(service)) {
        for (port, _) in service.ports.iter().filter(|(port, _)| protocol(service, *port) == "http") {
            let default = view.cluster_name(service, *port, "");
            let hosts = match view.snapshot.routes.get(&service.key) {
                Some(routes) => routes
                    .tables()
                    .map(|(namespace, table)| {
                        // A namespace's own rules are for its callers alone; the host's name says whose they are.
                        let whose = namespace.map_or(String::new(), |namespace| format!("|{namespace}"));
                        let name = format!("inbound|http|{port}{whose}");
                        virtual_host(&name, &["*"], rules(view, table, *port, Some(&default)))
                    })
                    .collect(),
                None => vec![virtual_host(&format!("inbound|http|{port}"), &["*"], vec![to_cluster(&default)])],
            };
            out.push((default, hosts));
        }
    }
    out
}

/// For every listener of a gateway that takes requests.
fn of_gateway(view: &View<'_>) -> Vec<(String, Vec<Value>)> {
    let ports = view.snapshot.gateway.iter().flat_map(|gateway| gateway.ports.values());
    let listeners = ports.flat_map(|port| port.listeners());
    let takes = |listener: &&std::sync::Arc<Listener>| match listener.protocol {
        ListenerProtocol::Http | ListenerProtocol::Https => true,
        ListenerProtocol::Tls | ListenerProtocol::Tcp => false,
    };
    listeners.filter(takes).map(|listener| (listener.route_name().to_string(), virtual_hosts(view, listener))).collect()
}

fn virtual_hosts(view: &View<'_>, listener: &Listener) -> Vec<Value> {
    let port = listener.called();
    let mut out: Vec<(&str, Value)> = tables(view, listener)
        .map(|(host, table)| (host, virtual_host(&format!("{host}:{port}"), &[host], rules(view, table, port, None))))
        .collect();
    out.sort_by_key(|(host, _)| *host);
    out.into_iter().map(|(_, value)| value).collect()
}

/// The virtual hosts of a listener.
pub fn tables<'a>(view: &'a View<'_>, listener: &'a Listener) -> impl Iterator<Item = (&'a str, &'a Table)> {
    view.snapshot.hosts.iter().filter_map(|(key, routes)| {
        let host = key.strip_prefix(listener.route_name())?.strip_prefix('/')?;
        Some((host, routes.table("")))
    })
}

fn virtual_host(name: &str, domains: &[&str], routes: Vec<Value>) -> Value {
    json!({ "name": name, "domains": domains, "routes": routes })
}

fn to_cluster(cluster: &str) -> Value {
    json!({ "match": { "prefix": "/" }, "route": { "cluster": cluster } })
}

/// The rules in order; without any, what happens then.
fn rules(view: &View<'_>, table: &Table, port: u16, default: Option<&str>) -> Vec<Value> {
    match table.rules(port) {
        [] => default.map(to_cluster).into_iter().collect(),
        all => all.iter().map(|rule| route(view, rule, port)).collect(),
    }
}

fn route(view: &View<'_>, rule: &Rule, called: u16) -> Value {
    let mut out = json!({ "name": rule.origin, "match": matching(rule) });
    if let Some(config) = config_path(&rule.origin) {
        out["metadata"] = json!({ "filter_metadata": { "istio": { "config": config } } });
    }
    if let Some(redirect) = &rule.redirect {
        out["redirect"] = json!({ "host_redirect": redirect.authority, "scheme_redirect": redirect.scheme });
    } else if let Some(response) = &rule.response {
        out["direct_response"] = json!({ "status": response.status });
    } else {
        let name =
            |to: &crate::route::destination::Destination| view.destination(&to.service, to.port, called, &to.subset);
        out["route"] = match &rule.destinations[..] {
            [one] => json!({ "cluster": name(one) }),
            several => {
                let weighted = several.iter().map(|to| json!({ "name": name(to), "weight": to.weight }));
                json!({ "weighted_clusters": { "clusters": weighted.collect::<Vec<_>>() } })
            }
        };
        if rule.timeout_ms > 0 {
            out["route"]["timeout"] = format!("{}.{:03}s", rule.timeout_ms / 1000, rule.timeout_ms % 1000).into();
        }
    }
    out
}

fn matching(rule: &Rule) -> Value {
    let mut out = match &rule.path {
        Some(StringMatcher::Exact(path)) => json!({ "path": path }),
        Some(StringMatcher::Prefix(path)) => json!({ "prefix": path }),
        Some(StringMatcher::PathSegments(path)) if !path.is_empty() => json!({ "path_separated_prefix": path }),
        Some(StringMatcher::Regex(pattern)) => json!({ "safe_regex": { "regex": pattern.as_str() } }),
        Some(StringMatcher::PathSegments(_) | StringMatcher::Present) | None => json!({ "prefix": "/" }),
    };
    if rule.ignore_case {
        out["case_sensitive"] = false.into();
    }
    let method = rule.method.iter().map(|value| header(":method", value, false));
    let headers: Vec<Value> =
        method.chain(rule.headers.iter().map(|(name, value, invert)| header(name.as_str(), value, *invert))).collect();
    if !headers.is_empty() {
        out["headers"] = headers.into();
    }
    if !rule.claims().is_empty() {
        out["dynamic_metadata"] = rule.claims().iter().map(claim).collect::<Vec<_>>().into();
    }
    out
}

fn header(name: &str, value: &StringMatcher, invert: bool) -> Value {
    let mut out = json!({ "name": name });
    match text(value) {
        Some(text) => out["string_match"] = text,
        None => out["present_match"] = true.into(),
    }
    if invert {
        out["invert_match"] = true.into();
    }
    out
}

/// As Istio has conditions on claims: of the payload that the JWT filter has verified, a text, or one of a list.
fn claim(claim: &ClaimMatch) -> Value {
    let keys = [JWT_PAYLOAD].into_iter().chain(claim.path.iter().map(String::as_str));
    let path: Vec<Value> = keys.map(|key| json!({ "key": key })).collect();
    let one = match text(&claim.value) {
        Some(text) => json!({ "string_match": text }),
        None => json!({ "present_match": true }),
    };
    let either = json!([one.clone(), { "list_match": { "one_of": one } }]);
    let value = json!({ "or_match": { "value_matchers": either } });
    let mut out = json!({ "filter": JWT_FILTER, "path": path, "value": value });
    if claim.invert {
        out["invert"] = true.into();
    }
    out
}

/// None: any text.
fn text(value: &StringMatcher) -> Option<Value> {
    match value {
        StringMatcher::Exact(text) => Some(json!({ "exact": text })),
        StringMatcher::Prefix(text) | StringMatcher::PathSegments(text) => Some(json!({ "prefix": text })),
        StringMatcher::Regex(pattern) => Some(json!({ "safe_regex": { "regex": pattern.as_str() } })),
        StringMatcher::Present => None,
    }
}

/// The path of the object that a rule comes from (`Kind namespace/name rest`), as istioctl reads it for its columns VIRTUAL SERVICE
/// and DESTINATION RULE: it shows paths of Istio's group only, so that routes of Gateway API have that, too.
pub(super) fn config_path(origin: &str) -> Option<String> {
    let mut words = origin.split(' ');
    let (kind, (namespace, name)) = (words.next()?, words.next()?.split_once('/')?);
    let kind = match kind {
        "VirtualService" => "virtual-service",
        "DestinationRule" => "destination-rule",
        "HTTPRoute" => "http-route",
        "GRPCRoute" => "grpc-route",
        _ => return None,
    };
    Some(format!("/apis/networking.istio.io/v1/namespaces/{namespace}/{kind}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_of_a_rule_is_found_in_its_origin() {
        for (origin, path) in [
            ("VirtualService a/b http[0]", Some("/apis/networking.istio.io/v1/namespaces/a/virtual-service/b")),
            ("HTTPRoute a/b rule 1", Some("/apis/networking.istio.io/v1/namespaces/a/http-route/b")),
            ("Service a/b", None),
            ("", None),
        ] {
            assert_eq!(config_path(origin).as_deref(), path, "{origin}");
        }
    }
}
