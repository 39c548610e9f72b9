//! Listeners in istioctl's columns, and the policies in them.

use super::envoy::{Dump, list, text};
use crate::output::{Cell, Table, Tone};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Listeners: of a waypoint a row for each chain by its name, of a gateway by its address.
pub fn table(dump: &Dump) -> Table {
    let is_waypoint = dump.listeners().any(|listener| listener.get("internal_listener").is_some());
    let head: &[&str] = if is_waypoint {
        &["LISTENER", "CHAIN", "MATCH", "DESTINATION"]
    } else {
        &["ADDRESSES", "PORT", "MATCH", "DESTINATION"]
    };
    let mut table = Table::new(head);
    for listener in dump.listeners() {
        let at = "/address/socket_address";
        let port = listener.pointer(&format!("{at}/port_value")).and_then(Value::as_u64).map(|port| port.to_string());
        // It has no chains: datagrams have nothing to match.
        if text(listener, &format!("{at}/protocol")) == "UDP" {
            let address = text(listener, &format!("{at}/address"));
            table.row([address.into(), port.unwrap_or_default().into(), "UDP".into(), "".into()]);
            continue;
        }
        for chain in list(listener, "/filter_chains") {
            let (first, second) = if is_waypoint {
                (text(listener, "/name"), text(chain, "/name").to_owned())
            } else {
                (text(listener, &format!("{at}/address")), port.clone().unwrap_or_default())
            };
            table.row([first.into(), second.into(), matching(chain).into(), destination(chain).into()]);
        }
    }
    table
}

/// What a chain takes.
fn matching(chain: &Value) -> String {
    let mut parts: Vec<String> = vec![];
    let names: Vec<&str> = list(chain, "/filter_chain_match/server_names").filter_map(Value::as_str).collect();
    if !names.is_empty() {
        parts.push(format!("SNI: {}", names.join(",")));
    }
    let ranges: Vec<&str> =
        list(chain, "/filter_chain_match/prefix_ranges").map(|range| text(range, "/address_prefix")).collect();
    let port = chain.pointer("/filter_chain_match/destination_port").and_then(Value::as_u64);
    match (ranges.is_empty(), port) {
        (false, Some(port)) => parts.push(format!("{}:{port}", ranges.join(","))),
        (false, None) => parts.push(ranges.join(",")),
        (true, Some(port)) => parts.push(format!("*:{port}")),
        (true, None) => {}
    }
    if parts.is_empty() { "ALL".into() } else { parts.join("; ") }
}

/// Where a chain leads.
fn destination(chain: &Value) -> String {
    for filter in list(chain, "/filters") {
        let (route, cluster) =
            (text(filter, "/typed_config/rds/route_config_name"), text(filter, "/typed_config/cluster"));
        match (route, cluster) {
            ("", "") => {}
            ("", cluster) => return format!("Cluster: {cluster}"),
            (route, _) => return format!("Route: {route}"),
        }
    }
    String::new()
}

/// A policy that a proxy enforces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Enforced {
    /// `ALLOW`, `DENY`, `LOG`.
    pub action: String,
    /// `name.namespace`.
    pub policy: String,
    /// How many rules it has.
    pub rules: usize,
}

/// The policies in the listeners, each once.
pub fn rules(dump: &Dump) -> Vec<Enforced> {
    let mut found: BTreeMap<(String, String), BTreeMap<String, ()>> = BTreeMap::new();
    let filters = dump
        .listeners()
        .flat_map(|listener| list(listener, "/filter_chains"))
        .flat_map(|chain| list(chain, "/filters"))
        .flat_map(|filter| std::iter::once(filter).chain(list(filter, "/typed_config/http_filters")));
    for filter in filters.filter(|filter| text(filter, "/name").ends_with(".rbac")) {
        let action = text(filter, "/typed_config/rules/action");
        let policies = filter.pointer("/typed_config/rules/policies").and_then(Value::as_object);
        for name in policies.into_iter().flatten().map(|(name, _)| name) {
            found.entry((action.to_owned(), policy(name))).or_default().insert(name.clone(), ());
        }
    }
    let one = |((action, policy), rules): ((String, String), BTreeMap<String, ()>)| Enforced {
        action,
        policy,
        rules: rules.len(),
    };
    found.into_iter().map(one).collect()
}

/// `name.namespace` of Istio's `ns[NAMESPACE]-policy[NAME]-rule[N]`.
fn policy(name: &str) -> String {
    let part = |key: &str| {
        let (_, rest) = name.split_once(&format!("{key}["))?;
        rest.split_once(']').map(|(value, _)| value)
    };
    match (part("policy"), part("ns")) {
        (Some(policy), Some(namespace)) => format!("{policy}.{namespace}"),
        _ => name.to_owned(),
    }
}

/// The policies as a table.
pub fn policies(dump: &Dump) -> Table {
    let mut table = Table::new(&["ACTION", "AuthorizationPolicy", "RULES"]);
    for enforced in rules(dump) {
        let tone = if enforced.action == "DENY" { Tone::Warning } else { Tone::Plain };
        table.row([Cell::new(enforced.action, tone), enforced.policy.into(), enforced.rules.to_string().into()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As waypoint/src/envoy/listeners.rs writes it.
    const PAGE: &str = r#"{"configs": [{"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump", "dynamic_listeners": [
      {"name": "connect_terminate", "active_state": {"listener": {"name": "connect_terminate",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15008}},
        "filter_chains": [{"name": "connect_terminate", "filters": [{"name": "envoy.filters.network.http_connection_manager",
          "typed_config": {"rds": {"route_config_name": "connect_terminate"}}}]}]}}},
      {"name": "main_internal", "active_state": {"listener": {"name": "main_internal", "internal_listener": {},
        "filter_chains": [{"name": "inbound-vip|80|http|web", "filter_chain_match": {"destination_port": 80,
          "prefix_ranges": [{"address_prefix": "10.1.0.1", "prefix_len": 32}]},
          "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
            "rds": {"route_config_name": "inbound-vip|80|http|web"}, "http_filters": [
              {"name": "envoy.filters.http.rbac", "typed_config": {"rules": {"action": "DENY",
                "policies": {"ns[shop]-policy[no]-rule[0]": {}, "ns[shop]-policy[no]-rule[1]": {}}}}},
              {"name": "envoy.filters.http.router"}]}}]}]}}}]}]}"#;

    #[test]
    fn a_waypoint_is_shown_by_chains() {
        let expected = "\
LISTENER            CHAIN                     MATCH         DESTINATION
connect_terminate   connect_terminate         ALL           Route: connect_terminate
main_internal       inbound-vip|80|http|web   10.1.0.1:80   Route: inbound-vip|80|http|web
";
        assert_eq!(table(&Dump::parse(PAGE, "test").unwrap()).render(false), expected);
    }

    #[test]
    fn policies_are_counted_once() {
        let dump = Dump::parse(PAGE, "test").unwrap();
        assert_eq!(rules(&dump), [Enforced { action: "DENY".into(), policy: "no.shop".into(), rules: 2 }]);
        assert_eq!(
            policies(&dump).render(false),
            "ACTION   AuthorizationPolicy   RULES\nDENY     no.shop               2\n"
        );
    }
}
