//! What is listened on: `proxy-config listeners`, and the policies in it for `x authz check`.

use super::{View, routes, view::protocol};
use crate::{
    authz::{
        access::Access,
        external::provider::{Protocol, Provider},
    },
    downstream::gateway::{Filter, Listener},
};
use karst_api::route::{AccessAction, ListenerProtocol};
use karst_proxy::state::Service;
use serde_json::{Value, json};
use std::{fmt::Write, net::SocketAddr};

const HTTP: &str = "envoy.filters.network.http_connection_manager";
const TCP: &str = "envoy.filters.network.tcp_proxy";

/// The section of the dump.
pub fn section(view: &View<'_>) -> Value {
    let one = |listener: Value| json!({ "name": listener["name"], "active_state": { "listener": listener } });
    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
        "dynamic_listeners": all(view).into_iter().map(one).collect::<Vec<_>>(),
    })
}

/// `/listeners`, a line for each.
pub fn text(view: &View<'_>) -> String {
    let mut out = String::new();
    for listener in all(view) {
        let address = &listener["address"]["socket_address"];
        if let (Some(name), Some(ip), Some(port)) =
            (listener["name"].as_str(), address["address"].as_str(), address["port_value"].as_u64())
        {
            let _ = writeln!(out, "{name}::{ip}:{port}");
        }
    }
    out
}

fn all(view: &View<'_>) -> Vec<Value> {
    let gateway = view.snapshot.gateway.iter().flat_map(|gateway| &gateway.ports);
    let mut out: Vec<Value> = gateway
        .map(|(port, listeners)| {
            let chains = listeners.listeners().iter().map(|listener| gateway_chain(view, listener)).collect();
            let address = SocketAddr::new(view.config.hbone.ip(), *port);
            listener(&format!("{}_{port}", address.ip()), Some(address), chains)
        })
        .collect();
    let datagrams = view.snapshot.gateway.iter().flat_map(|gateway| gateway.udp.keys());
    out.extend(datagrams.map(|port| udp(view, *port)));
    if !view.config.is_gateway() {
        let tunnels = json!({ "name": "connect_terminate", "filters": [http("connect_terminate", &[], None)] });
        out.push(listener("connect_terminate", Some(view.config.hbone), vec![tunnels]));
        // What comes out of the tunnels: it has no address of its own.
        out.push(listener("main_internal", None, service_chains(view)));
    }
    out
}

fn udp(view: &View<'_>, port: u16) -> Value {
    let address = SocketAddr::new(view.config.hbone.ip(), port);
    let mut out = listener(&format!("{}_{port}_udp", address.ip()), Some(address), vec![]);
    out["address"]["socket_address"]["protocol"] = json!("UDP");
    out["listener_filters"] = json!([{ "name": "envoy.filters.udp_listener.udp_proxy" }]);
    out
}

fn listener(name: &str, address: Option<SocketAddr>, chains: Vec<Value>) -> Value {
    let mut out = json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": name, "filter_chains": chains,
    });
    match address {
        Some(at) => {
            out["address"] = json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } });
        }
        None => out["internal_listener"] = json!({}),
    }
    out
}

fn service_chains(view: &View<'_>) -> Vec<Value> {
    let mut out = vec![];
    for service in view.services().into_iter().filter(|service| view.is_own(service)) {
        for (port, _) in &service.ports {
            let name = view.cluster_name(service, *port, "");
            let filter = match protocol(service, *port) {
                "http" => http(&name, &[], view.snapshot.access_to(service)),
                _ => tcp(&name, &name),
            };
            out.push(json!({
                "name": name, "filter_chain_match": addresses(service, *port), "filters": [filter],
            }));
        }
    }
    out
}

fn addresses(service: &Service, port: u16) -> Value {
    let range = |ip: &std::net::IpAddr| json!({ "address_prefix": ip.to_string(), "prefix_len": if ip.is_ipv4() { 32 } else { 128 } });
    json!({ "prefix_ranges": service.vips.iter().map(range).collect::<Vec<_>>(), "destination_port": port })
}

fn gateway_chain(view: &View<'_>, listener: &Listener) -> Value {
    let access = view.snapshot.gateway.as_ref().and_then(|gateway| gateway.access.as_ref());
    let filter = match listener.protocol {
        ListenerProtocol::Http | ListenerProtocol::Https => http(listener.route_name(), listener.filters(), access),
        ListenerProtocol::Tls | ListenerProtocol::Tcp => tcp(listener.route_name(), &first_destination(view, listener)),
    };
    let named: Vec<&String> = listener.hosts().iter().filter(|host| *host != "*").collect();
    let secure = listener.tls.is_some() || listener.protocol == ListenerProtocol::Tls;
    let matching = match (secure, named.is_empty()) {
        (true, false) => json!({ "server_names": named, "transport_protocol": "tls" }),
        (true, true) => json!({ "transport_protocol": "tls" }),
        (false, _) => json!({}), // by the host of the request
    };
    json!({ "name": listener.origin, "filter_chain_match": matching, "filters": [filter] })
}

/// Where the first of a listener's rules for connections goes; empty: nowhere.
fn first_destination(view: &View<'_>, listener: &Listener) -> String {
    let mut rules = routes::tables(view, listener).flat_map(|(_, table)| table.tcp_rules());
    rules.find_map(|rule| rule.destinations.first()).map_or(String::new(), |to| {
        let port = u16::try_from(to.port).unwrap_or_default();
        view.destination(&to.service, port, listener.called(), &to.subset)
    })
}

fn tcp(name: &str, cluster: &str) -> Value {
    json!({ "name": TCP, "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name, "cluster": cluster,
    } })
}

/// `own`: filters of the listener.
fn http(routes: &str, own: &[Filter], access: Option<&Access>) -> Value {
    let asked = own.iter().filter_map(|filter| match filter {
        Filter::ExternalAuth(provider) => Some(external(provider)),
        Filter::Refuse => None,
    });
    let mut filters: Vec<Value> = asked.chain(access.into_iter().flat_map(policies)).collect();
    filters.push(json!({ "name": "envoy.filters.http.router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
    } }));
    json!({ "name": HTTP, "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": routes, "rds": { "route_config_name": routes }, "http_filters": filters,
    } })
}

/// A filter for each action that policies have. Their rules are named and not written out: Envoy's words cannot carry all of ours.
fn policies(access: &Access) -> Vec<Value> {
    let of = |action: AccessAction, name: &str| {
        let mut rules = serde_json::Map::new();
        for (policy, _, count) in access.enforced().filter(|(_, of, _)| *of == action) {
            let (namespace, policy) = policy.split_once('/').unwrap_or(("", policy));
            for rule in 0..count {
                rules.insert(format!("ns[{namespace}]-policy[{policy}]-rule[{rule}]"), json!({}));
            }
        }
        (!rules.is_empty()).then(|| {
            json!({ "name": "envoy.filters.http.rbac", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                "rules": { "action": name, "policies": rules },
            } })
        })
    };
    let own = [(AccessAction::Audit, "LOG"), (AccessAction::Deny, "DENY"), (AccessAction::Allow, "ALLOW")];
    let own = own.into_iter().filter_map(|(action, name)| of(action, name));
    access.providers().iter().map(|provider| external(provider)).chain(own).collect()
}

/// A filter that asks a provider of external authorization.
fn external(provider: &Provider) -> Value {
    let (_, host) = provider.service.split_once('/').unwrap_or(("", &provider.service));
    let cluster = format!("outbound|{}||{host}", provider.port);
    let timeout = format!("{}s", provider.timeout.as_secs_f64());
    let (key, service) = match &provider.protocol {
        Protocol::Grpc(_) => ("grpc_service", json!({ "envoy_grpc": { "cluster_name": cluster }, "timeout": timeout })),
        Protocol::Http(rules) => {
            let uri = format!("http://{host}:{}", provider.port);
            let server = json!({ "uri": uri, "cluster": cluster, "timeout": timeout });
            ("http_service", json!({ "server_uri": server, "path_prefix": rules.path_prefix }))
        }
    };
    json!({ "name": "envoy.filters.http.ext_authz", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        "failure_mode_allow": provider.fail_open,
        "status_on_error": { "code": provider.status_on_error.as_u16() },
        key: service,
    } })
}
