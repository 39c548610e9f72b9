//! Open connections of the node's pods, in istioctl's columns.

use super::dump::{Dump, list, text};
use crate::output::Table;
use serde_json::Value;
use std::collections::HashMap;

/// Which connections are asked for.
pub struct Only<'a> {
    pub namespace: Option<&'a str>,
    pub direction: Option<&'a str>,
}

/// The pods that fit, with their connections that do.
pub fn states(dump: &Dump, only: &Only<'_>) -> Vec<Value> {
    let fits = |state: &&Value| {
        only.namespace.is_none_or(|name| state.pointer("/info/namespace").and_then(Value::as_str) == Some(name))
    };
    let mut chosen: Vec<Value> = dump.workload_state.values().filter(fits).cloned().collect();
    for state in &mut chosen {
        let Some(connections) = state.get_mut("connections").and_then(Value::as_object_mut) else { continue };
        connections.retain(|direction, _| only.direction.is_none_or(|wanted| wanted == direction));
    }
    chosen
}

/// A row for each connection.
pub fn table(states: &[Value], dump: &Dump, raw: bool) -> Table {
    let mut table = Table::new(&["WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL"]);
    let names = if raw { Names::default() } else { Names::of(dump) };
    for state in states {
        let info = |field: &str| state.pointer(&format!("/info/{field}")).and_then(Value::as_str).unwrap_or_default();
        let workload = format!("{}.{}", info("name"), info("namespace"));
        let connections = |direction: &str| {
            state.pointer(&format!("/connections/{direction}")).and_then(Value::as_array).into_iter().flatten()
        };
        let address = |connection: &Value, field: &str| names.address(text(connection, field));
        for open in connections("inbound") {
            let protocol = text(open, "protocol");
            let (local, remote) = (address(open, "actualDst"), address(open, "src"));
            table.row([
                workload.clone().into(),
                "Inbound".into(),
                local.into(),
                remote.into(),
                String::new().into(),
                protocol.into(),
            ]);
        }
        for open in connections("outbound") {
            let (local, remote, target) =
                (address(open, "src"), address(open, "actualDst"), address(open, "originalDst"));
            table.row([
                workload.clone().into(),
                "Outbound".into(),
                local.into(),
                remote.into(),
                target.into(),
                text(open, "protocol").into(),
            ]);
        }
    }
    table.sort();
    table
}

/// Names of addresses.
#[derive(Default)]
struct Names(HashMap<String, String>);

impl Names {
    fn of(dump: &Dump) -> Self {
        let mut names = HashMap::new();
        for workload in &dump.workloads {
            for ip in list(workload, "workloadIps") {
                let name = format!("{}.{}", text(workload, "name"), text(workload, "namespace"));
                // Pods of the host's network share an address: no name is better than a wrong one.
                if text(workload, "networkMode") != "HostNetwork" {
                    names.insert(ip.to_owned(), name);
                }
            }
        }
        for service in &dump.services {
            for vip in list(service, "vips") {
                let ip = vip.rsplit_once('/').map_or(vip, |(_, ip)| ip);
                names.insert(ip.to_owned(), text(service, "hostname").to_owned());
            }
        }
        Self(names)
    }

    /// `name:port` for `address:port`, if the address has a name.
    fn address(&self, text: &str) -> String {
        let Some((ip, port)) = text.rsplit_once(':') else { return text.to_owned() };
        let ip = ip.trim_start_matches('[').trim_end_matches(']');
        self.0.get(ip).map_or_else(|| text.to_owned(), |name| format!("{name}:{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As ztunnel/src/admin.rs and conns.rs write it.
    const PAGE: &str = r#"{
      "workloads": [{"uid": "u", "name": "web-0", "namespace": "shop", "workloadIps": ["10.0.0.1"]},
                    {"uid": "v", "name": "db-0", "namespace": "shop", "workloadIps": ["fd00::2"]}],
      "services": [{"name": "db", "namespace": "shop", "hostname": "db.shop.svc.cluster.local", "vips": ["/10.1.0.1"]}],
      "workloadState": {"u": {"state": "Up", "info": {"name": "web-0", "namespace": "shop"}, "connections": {
        "inbound": [{"src": "10.0.0.9:555", "originalDst": "10.0.0.1:80", "actualDst": "10.0.0.1:80", "protocol": "TCP"}],
        "outbound": [{"src": "10.0.0.1:777", "originalDst": "10.1.0.1:3306", "actualDst": "[fd00::2]:15008", "protocol": "HBONE"}]}}}}"#;

    #[test]
    fn both_directions_with_names() {
        let dump = Dump::parse(PAGE, "test").unwrap();
        let all = states(&dump, &Only { namespace: None, direction: None });
        let expected = "\
WORKLOAD     DIRECTION   LOCAL            REMOTE             REMOTE TARGET                    PROTOCOL
web-0.shop   Inbound     web-0.shop:80    10.0.0.9:555       -                                TCP
web-0.shop   Outbound    web-0.shop:777   db-0.shop:15008    db.shop.svc.cluster.local:3306   HBONE
";
        assert_eq!(
            table(&all, &dump, false).render(false),
            expected
                .replace("       -  ", "      -  ")
                .replace("REMOTE             REMOTE T", "REMOTE            REMOTE T")
                .replace("15008    db.", "15008   db.")
        );
        let raw = table(&all, &dump, true).render(false);
        assert!(raw.contains("[fd00::2]:15008") && raw.contains("10.1.0.1:3306"), "{raw}");
    }

    #[test]
    fn pods_and_directions_are_chosen() {
        let dump = Dump::parse(PAGE, "test").unwrap();
        let inbound = states(&dump, &Only { namespace: Some("shop"), direction: Some("inbound") });
        assert_eq!(table(&inbound, &dump, true).render(false).lines().count(), 2);
        assert!(states(&dump, &Only { namespace: Some("other"), direction: None }).is_empty());
    }
}
