//! Istio's Gateways and ServiceEntries.

use super::objects::{Item, Objects};
use crate::analysis::{Level, Message};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The same certificate in several Gateways of the same pods (IST0138): a browser reuses a connection of one for hosts of the other.
pub(super) fn certificates(objects: &Objects) -> Vec<Message> {
    let mut users: BTreeMap<(String, String), Vec<&Item>> = BTreeMap::new();
    for gateway in objects.of("Gateway", "networking.istio.io") {
        let selector = format!("{:?}", gateway.labels("/spec/selector"));
        let credentials: BTreeSet<&str> = gateway
            .list("/spec/servers")
            .iter()
            .filter_map(|server| server.pointer("/tls/credentialName").and_then(Value::as_str))
            .filter(|name| !name.is_empty())
            .collect();
        for credential in credentials {
            users.entry((selector.clone(), credential.to_owned())).or_default().push(gateway);
        }
    }
    let mut out = vec![];
    for ((_, credential), gateways) in users.iter().filter(|(_, gateways)| gateways.len() > 1) {
        for gateway in gateways {
            let others: Vec<String> = gateways
                .iter()
                .filter(|other| other.origin() != gateway.origin())
                .map(|other| format!("{}/{}", other.namespace(), other.name()))
                .collect();
            let message = format!(
                "spec.servers: the certificate {credential} is also {}'s: a browser that reuses its connection gets \
                 404 for hosts of the other; put these servers in one Gateway",
                others.join(" and ")
            );
            out.push(gateway.say("IST0138", Level::Warning, message));
        }
    }
    out
}

/// The same host and port with several protocols (IST0177).
pub(super) fn service_entries(objects: &Objects) -> Vec<Message> {
    let mut seen: BTreeMap<(&str, u64), Vec<(&Item, String)>> = BTreeMap::new();
    for entry in objects.of("ServiceEntry", "networking.istio.io") {
        for port in entry.list("/spec/ports") {
            let number = port.get("number").and_then(Value::as_u64).unwrap_or_default();
            let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_ascii_uppercase();
            for host in entry.list("/spec/hosts").iter().filter_map(Value::as_str) {
                seen.entry((host, number)).or_default().push((entry, protocol.clone()));
            }
        }
    }
    let mut out = vec![];
    for ((host, port), all) in &seen {
        let protocols: BTreeSet<&str> = all.iter().map(|(_, protocol)| protocol.as_str()).collect();
        let Some((first, _)) = all.first().filter(|_| protocols.len() > 1) else { continue };
        let names: BTreeSet<String> =
            all.iter().map(|(item, _)| format!("{}/{}", item.namespace(), item.name())).collect();
        let names: Vec<String> = names.into_iter().collect();
        let protocols: Vec<&str> = protocols.into_iter().collect();
        let message = format!(
            "spec.ports: port {port} of {host} is {} in {}: give it one protocol",
            protocols.join(" and "),
            names.join(", ")
        );
        out.push(first.say("IST0177", Level::Warning, message));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::codes;

    #[test]
    fn a_certificate_is_of_one_gateway() {
        let gateway = |name: &str, credential: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: n}}\nspec: {{selector: \
                 {{istio: ingressgateway}}, servers: [{{tls: {{credentialName: {credential}}}}}]}}\n---\n"
            )
        };
        let said = codes(&(gateway("a", "x") + &gateway("b", "x")));
        assert_eq!(said.iter().map(|(code, _)| code.as_str()).collect::<Vec<_>>(), ["IST0138"; 2]);
        assert_eq!(codes(&(gateway("a", "x") + &gateway("b", "y"))), []);
    }

    #[test]
    fn a_port_has_one_protocol() {
        let entry = |name: &str, protocol: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: n}}\nspec: {{hosts: \
                 [a.example], ports: [{{number: 80, name: p, protocol: {protocol}}}]}}\n---\n"
            )
        };
        assert_eq!(codes(&(entry("a", "HTTP") + &entry("b", "TCP")))[0].0, "IST0177");
        assert_eq!(codes(&(entry("a", "HTTP") + &entry("b", "http"))), []);
    }
}
