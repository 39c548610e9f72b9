//! Workloads, services and policies in istioctl's columns.

use super::dump::{Dump, list, text};
use crate::output::{Cell, Table, Tone};
use serde_json::Value;

/// A row for each address of a workload.
pub fn workloads(chosen: &[&Value], dump: &Dump) -> Table {
    let mut table = Table::new(&["NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"]);
    for workload in chosen {
        let mut ips = list(workload, "workloadIps");
        if ips.is_empty() {
            ips.push("");
        }
        for ip in ips {
            table.row([
                text(workload, "namespace").into(),
                text(workload, "name").into(),
                ip.into(),
                text(workload, "node").into(),
                dump.waypoint(workload).into(),
                text(workload, "protocol").into(),
            ]);
        }
    }
    table
}

/// A row for each service, with how many of its endpoints are healthy.
pub fn services(chosen: &[&Value], dump: &Dump) -> Table {
    let mut table = Table::new(&["NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"]);
    for service in chosen {
        // `network/address`; the network is mostly empty.
        let vips: Vec<&str> =
            list(service, "vips").into_iter().map(|vip| vip.rsplit_once('/').map_or(vip, |(_, ip)| ip)).collect();
        table.row([
            text(service, "namespace").into(),
            text(service, "name").into(),
            vips.join(",").into(),
            dump.waypoint(service).into(),
            endpoints(service, dump),
        ]);
    }
    table
}

fn endpoints(service: &Value, dump: &Dump) -> Cell {
    let all = service.get("endpoints").and_then(Value::as_object);
    let uids = all.into_iter().flatten().map(|(_, endpoint)| text(endpoint, "workloadUid"));
    let healthy = |uid: &&str| dump.workload(uid).is_some_and(|workload| text(workload, "status") == "Healthy");
    let (total, healthy) = (uids.clone().count(), uids.filter(healthy).count());
    let tone = match healthy {
        _ if healthy == total => Tone::Plain,
        0 => Tone::Bad,
        _ => Tone::Warning,
    };
    Cell::new(format!("{healthy}/{total}"), tone)
}

/// A row for each policy.
pub fn policies(chosen: &[&Value]) -> Table {
    let mut table = Table::new(&["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"]);
    for policy in chosen {
        table.row(["namespace", "name", "action", "scope"].map(|field| Cell::from(text(policy, field))));
    }
    table
}

/// The policies for a workload: action, `name.namespace`, rules. None if the workload is not known.
pub fn policies_of(dump: &Dump, namespace: &str, name: &str) -> Option<Vec<(String, String, Vec<Value>)>> {
    let is_it = |one: &&Value| text(one, "namespace") == namespace && text(one, "name") == name;
    let named = list(dump.workloads.iter().find(is_it)?, "authorizationPolicies");
    let is_for = |policy: &&Value| match text(policy, "scope") {
        "Global" => true,
        "Namespace" => text(policy, "namespace") == namespace,
        _ => named.contains(&format!("{}/{}", text(policy, "namespace"), text(policy, "name")).as_str()),
    };
    let one = |policy: &Value| {
        let rules = policy.get("rules").and_then(Value::as_array).cloned().unwrap_or_default();
        (
            text(policy, "action").to_uppercase(),
            format!("{}.{}", text(policy, "name"), text(policy, "namespace")),
            rules,
        )
    };
    Some(dump.policies.iter().filter(is_for).map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As ztunnel/src/admin.rs writes it.
    const PAGE: &str = r#"{
      "workloads": [
        {"uid": "c//Pod/shop/web-0", "name": "web-0", "namespace": "shop", "workloadIps": ["10.0.0.1", "fd00::1"], "node": "n1",
         "authorizationPolicies": ["shop/deny"], "protocol": "HBONE", "waypoint": {"destination": "shop/waypoint.shop.svc.cluster.local", "hboneMtlsPort": 15008},
         "status": "Healthy"},
        {"uid": "c//Pod/shop/web-1", "name": "web-1", "namespace": "shop", "workloadIps": ["10.0.0.2"], "node": "n2",
         "protocol": "TCP", "waypoint": null, "status": "Unhealthy"},
        {"uid": "c//Pod/a/a", "name": "a", "namespace": "a", "workloadIps": [], "node": "n2", "protocol": "TCP",
         "waypoint": {"destination": "/10.9.9.9"}, "status": "Healthy"}],
      "services": {"k": {"name": "waypoint", "namespace": "shop", "hostname": "waypoint.shop.svc.cluster.local",
        "vips": ["/10.1.0.1", "/fd01::1"], "ports": {"80": 8080},
        "endpoints": {"x": {"workloadUid": "c//Pod/shop/web-0", "port": {"80": 8080}},
                      "y": {"workloadUid": "c//Pod/shop/web-1", "port": {}}}, "waypoint": null}},
      "policies": [{"name": "deny", "namespace": "shop", "scope": "WorkloadSelector", "action": "Deny", "rules": []}],
      "certificates": [], "workloadState": {}, "config": {}}"#;

    #[test]
    fn tables_are_istios() {
        let dump = Dump::parse(PAGE, "test").unwrap();
        let all: Vec<&Value> = dump.workloads.iter().collect();
        let expected = "\
NAMESPACE   POD NAME   ADDRESS    NODE   WAYPOINT   PROTOCOL
a           a          -          n2     NA         TCP
shop        web-0      10.0.0.1   n1     waypoint   HBONE
shop        web-0      fd00::1    n1     waypoint   HBONE
shop        web-1      10.0.0.2   n2     None       TCP
";
        assert_eq!(workloads(&all, &dump).render(false), expected);
        let all: Vec<&Value> = dump.services.iter().collect();
        let expected = "\
NAMESPACE   SERVICE NAME   SERVICE VIP          WAYPOINT   ENDPOINTS
shop        waypoint       10.1.0.1,fd01::1     None       1/2
";
        assert_eq!(
            services(&all, &dump).render(false),
            expected.replace("     None", "   None").replace("VIP          W", "VIP        W")
        );
        let all: Vec<&Value> = dump.policies.iter().collect();
        let expected = "\
NAMESPACE   POLICY NAME   ACTION   SCOPE
shop        deny          Deny     WorkloadSelector
";
        assert_eq!(policies(&all).render(false), expected);
    }

    #[test]
    fn a_policy_with_a_selector_is_for_those_that_name_it() {
        let dump = Dump::parse(PAGE, "test").unwrap();
        assert_eq!(policies_of(&dump, "shop", "web-0"), Some(vec![("DENY".into(), "deny.shop".into(), vec![])]));
        assert_eq!((policies_of(&dump, "shop", "web-1"), policies_of(&dump, "shop", "x")), (Some(vec![]), None));
    }

    #[test]
    fn what_is_no_dump_is_refused() {
        assert!(Dump::parse("not json", "x").unwrap_err().to_string().starts_with("x: not a dump of ztunnel: "));
    }
}
