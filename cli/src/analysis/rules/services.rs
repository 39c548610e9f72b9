//! Ports of Services.

use super::objects::Objects;
use crate::analysis::{Level, Message};
use std::collections::BTreeSet;

/// Prefixes of port names that say a protocol.
const PROTOCOLS: [&str; 14] = [
    "http", "http2", "https", "http3", "grpc", "grpc-web", "tcp", "tls", "udp", "quic", "mongo", "mysql", "redis",
    "hbone",
];

/// Ports of members' services of which nobody says what is spoken there (IST0118).
pub(super) fn ports(objects: &Objects) -> Vec<Message> {
    let members: BTreeSet<&str> = objects
        .of("Namespace", "")
        .filter(|one| one.text("/metadata/labels/istio.io~1dataplane-mode") == "ambient")
        .map(|one| one.name())
        .collect();
    let mut out = vec![];
    for service in objects.of("Service", "").filter(|service| members.contains(service.namespace())) {
        for port in service.list("/spec/ports") {
            let text = |field: &str| port.get(field).and_then(serde_json::Value::as_str).unwrap_or_default();
            let name = text("name");
            let is_said = PROTOCOLS
                .iter()
                .any(|known| name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')));
            if is_said || !text("appProtocol").is_empty() || !["", "TCP"].contains(&text("protocol")) {
                continue;
            }
            let number = port.get("port").and_then(serde_json::Value::as_u64).unwrap_or_default();
            let shown = if name.is_empty() { "without a name".to_owned() } else { format!("{name:?}") };
            let message = format!(
                "spec.ports: port {number} ({shown}) does not say its protocol: call it http-..., grpc-... or \
                 tcp-..., or set appProtocol"
            );
            out.push(service.say("IST0118", Level::Info, message));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::codes;

    #[test]
    fn a_port_of_a_member_says_its_protocol() {
        let world = |mode: &str, port: &str| {
            format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: n, labels: {{istio.io/dataplane-mode: {mode}}}}}\n---\n\
                 apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: n}}\nspec: {{ports: [{port}]}}\n"
            )
        };
        let said = |mode: &str, port: &str| codes(&world(mode, port)).len();
        assert_eq!(said("ambient", "{name: web, port: 80}"), 1);
        assert_eq!(said("ambient", "{port: 80}"), 1);
        for fine in ["{name: http, port: 80}", "{name: grpc-api, port: 80}", "{name: web, port: 80, appProtocol: http}"]
        {
            assert_eq!(said("ambient", fine), 0, "{fine}");
        }
        assert_eq!(said("none", "{name: web, port: 80}"), 0, "not a member");
    }
}
