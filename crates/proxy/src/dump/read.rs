//! A snapshot from the lists of `/config_dump`, ours or that of Istio's ztunnel: each a list, or an object by names.

use crate::state::{Mark, Name, Pages, ResourceError, Snapshot};
use karst_api::{route as ir, workload as pb};
use karst_core::addr::ip_to_bytes;
use karst_policy::Policy;
use prost::Message;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

/// Why a dump cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// There is nothing of what a ztunnel writes.
    #[error("it has neither workloads nor services: save the page /config_dump of a ztunnel")]
    NotADump,
    /// A value of an object is not what it must be.
    #[error("{object}: {field}: unexpected value {value}: save the page again, from a proxy of this version")]
    Field {
        /// The object.
        object: String,
        /// Its field.
        field: &'static str,
        /// What is there.
        value: String,
    },
    /// An object that the proxy itself would refuse.
    #[error(transparent)]
    Resource(#[from] ResourceError),
}

/// What the proxy knew. `root`: the namespace whose policies are for all.
///
/// # Errors
/// It is no dump, or something in it cannot be read.
pub fn snapshot(dump: &Value, root: &str) -> Result<Snapshot, DumpError> {
    if dump.get("workloads").is_none() && dump.get("services").is_none() {
        return Err(DumpError::NotADump);
    }
    let services = section(dump, "services");
    let mut out = Snapshot::new(&network(dump, &services)).with_root(root);
    let mut members: HashMap<&str, HashMap<String, pb::PortList>> = HashMap::new();
    for service in &services {
        let key = format!("{}/{}", text(service, "namespace"), text(service, "hostname"));
        for (uid, endpoint) in service["endpoints"].as_object().into_iter().flatten() {
            let list = pb::PortList { ports: ports(endpoint.get("port"), None) };
            members.entry(uid.as_str()).or_default().insert(key.clone(), list);
        }
        let address = pb::Address { r#type: Some(pb::address::Type::Service(read_service(service)?)) };
        out.put_address(&key, &address.encode_to_vec())?;
    }
    for workload in section(dump, "workloads") {
        let uid = text(workload, "uid");
        let own = members.remove(uid).unwrap_or_default();
        let address = pb::Address { r#type: Some(pb::address::Type::Workload(read_workload(workload, own)?)) };
        out.put_address(uid, &address.encode_to_vec())?;
    }
    for policy in section(dump, "policies") {
        let read: Policy = serde_json::from_value(policy.clone()).map_err(|e| DumpError::Field {
            object: format!("policy {}/{}", text(policy, "namespace"), text(policy, "name")),
            field: "rules",
            value: e.to_string(),
        })?;
        out.put_policy(&read.key(), read);
    }
    for (node, all) in dump["podRanges"].as_object().into_iter().flatten() {
        let ranges = strings(all);
        out.put_pod_ranges(node, &ir::PodRanges { ranges }.encode_to_vec())?;
    }
    if let Some(names) = dump["onDemand"]["names"].as_array() {
        let pages = Pages::default();
        out = out.on_demand(pages.clone());
        for name in names.iter().filter_map(Value::as_str) {
            out.put_name(Name::of_wire(name, out.network()), Mark::new(&pages));
        }
    }
    Ok(out)
}

/// The objects of a section: a list, or an object by names (Istio's has been both).
pub fn section<'a>(dump: &'a Value, name: &str) -> Vec<&'a Value> {
    match &dump[name] {
        Value::Array(all) => all.iter().collect(),
        Value::Object(all) => all.values().collect(),
        _ => vec![],
    }
}

/// A field's text; empty if it is none.
pub fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
}

/// The proxy's network: told, or (Istio's ztunnel) that of the addresses of its services.
fn network(dump: &Value, services: &[&Value]) -> String {
    if let Some(told) = dump["network"].as_str() {
        return told.into();
    }
    let mut addresses = services.iter().flat_map(|service| strings(&service["vips"]));
    addresses.next().and_then(|vip| vip.split_once('/').map(|(network, _)| network.to_string())).unwrap_or_default()
}

/// `network/address[/length]`.
fn address(object: &str, field: &'static str, written: &str) -> Result<pb::NetworkAddress, DumpError> {
    let bad = || DumpError::Field { object: object.into(), field, value: written.into() };
    let (network, rest) = written.split_once('/').unwrap_or(("", written));
    let (ip, length) = match rest.split_once('/') {
        Some((ip, length)) => (ip, Some(length.parse::<u32>().map_err(|_| bad())?)),
        None => (rest, None),
    };
    let ip: IpAddr = ip.parse().map_err(|_| bad())?;
    Ok(pb::NetworkAddress { network: network.into(), address: ip_to_bytes(ip), length })
}

fn gateway(object: &str, value: &Value) -> Result<Option<pb::GatewayAddress>, DumpError> {
    use pb::gateway_address::Destination;
    let Some(written) = value["destination"].as_str() else { return Ok(None) };
    let destination = match address(object, "waypoint", written) {
        Ok(address) => Destination::Address(address),
        Err(e) => {
            let (namespace, hostname) = written.split_once('/').ok_or(e)?;
            let (namespace, hostname) = (namespace.into(), hostname.into());
            Destination::Hostname(pb::NamespacedHostname { namespace, hostname })
        }
    };
    let hbone_mtls_port = value["hboneMtlsPort"].as_u64().and_then(|port| u32::try_from(port).ok()).unwrap_or_default();
    Ok(Some(pb::GatewayAddress { destination: Some(destination), hbone_mtls_port }))
}

fn ports(value: Option<&Value>, protocols: Option<&Value>) -> Vec<pb::Port> {
    let one = |(port, target): (&String, &Value)| {
        let protocol = protocols.and_then(|all| all[port.as_str()].as_str());
        let protocol = protocol.and_then(pb::AppProtocol::from_str_name).unwrap_or(pb::AppProtocol::Unknown);
        Some(pb::Port {
            service_port: port.parse().ok()?,
            target_port: u32::try_from(target.as_u64()?).ok()?,
            app_protocol: protocol as i32,
        })
    };
    let all = value.and_then(Value::as_object).into_iter().flatten();
    let mut all: Vec<pb::Port> = all.filter_map(one).collect();
    all.sort_by_key(|port| port.service_port);
    all
}

fn read_service(value: &Value) -> Result<pb::Service, DumpError> {
    use pb::load_balancing::{HealthPolicy, Mode, Scope};
    let object = format!("service {}/{}", text(value, "namespace"), text(value, "hostname"));
    let mut addresses = vec![];
    for (field, all) in [("vips", &value["vips"]), ("cidrVips", &value["cidrVips"])] {
        for written in strings(all) {
            addresses.push(address(&object, field, &written)?);
        }
    }
    let mut weighted_waypoints = vec![];
    for one in value["weightedWaypoints"].as_array().into_iter().flatten() {
        let weight = one["weight"].as_u64().and_then(|weight| u32::try_from(weight).ok()).unwrap_or(1);
        weighted_waypoints.push(pb::WeightedWaypoint { destination: gateway(&object, one)?, weight });
    }
    let balancing = &value["loadBalancer"];
    let mode = match text(balancing, "mode") {
        "Strict" => Mode::Strict,
        "Failover" => Mode::Failover,
        "Passthrough" => Mode::Passthrough,
        _ => Mode::UnspecifiedMode,
    };
    let scope = |name: &String| match name.as_str() {
        "Region" => Some(Scope::Region as i32),
        "Zone" => Some(Scope::Zone as i32),
        "Subzone" => Some(Scope::Subzone as i32),
        "Node" => Some(Scope::Node as i32),
        "Cluster" => Some(Scope::Cluster as i32),
        "Network" => Some(Scope::Network as i32),
        _ => None,
    };
    let health = match text(balancing, "healthPolicy") {
        "AllowAll" => HealthPolicy::AllowAll,
        _ => HealthPolicy::OnlyHealthy,
    };
    let is_private = value["private"].as_bool().unwrap_or_default();
    Ok(pb::Service {
        name: text(value, "name").into(),
        namespace: text(value, "namespace").into(),
        hostname: text(value, "hostname").into(),
        addresses,
        ports: ports(value.get("ports"), value.get("appProtocols")),
        subject_alt_names: strings(&value["subjectAltNames"]),
        waypoint: gateway(&object, &value["waypoint"])?,
        weighted_waypoints,
        load_balancing: Some(pb::LoadBalancing {
            routing_preference: strings(&balancing["routingPreferences"]).iter().filter_map(scope).collect(),
            mode: mode as i32,
            health_policy: health as i32,
        }),
        canonical: value["canonical"].as_bool().unwrap_or_default(),
        ingress_use_waypoint: value["ingressUseWaypoint"].as_bool().unwrap_or_default(),
        visibility: if is_private { pb::Visibility::Namespace } else { pb::Visibility::Public } as i32,
        karst_session_affinity_seconds: value["sessionAffinitySeconds"]
            .as_u64()
            .and_then(|seconds| u32::try_from(seconds).ok())
            .unwrap_or_default(),
        karst_grpc_web_ports: value["grpcWebPorts"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| u32::try_from(port.as_u64()?).ok())
            .collect(),
        ..pb::Service::default()
    })
}

fn read_workload(value: &Value, services: HashMap<String, pb::PortList>) -> Result<pb::Workload, DumpError> {
    let object = format!("workload {}/{}", text(value, "namespace"), text(value, "name"));
    let bad =
        |field: &'static str, value: &str| DumpError::Field { object: object.clone(), field, value: value.into() };
    let mut addresses = vec![];
    for written in strings(&value["workloadIps"]) {
        let ip: IpAddr = written.parse().map_err(|_| bad("workloadIps", &written))?;
        addresses.push(ip_to_bytes(ip).into());
    }
    let tunnel = match text(value, "protocol") {
        "HBONE" => pb::TunnelProtocol::Hbone,
        "TCP" | "" => pb::TunnelProtocol::None,
        other => return Err(bad("protocol", other)),
    };
    let is_healthy = text(value, "status") == "Healthy";
    let status = if is_healthy { pb::WorkloadStatus::Healthy } else { pb::WorkloadStatus::Unhealthy };
    let kind = match text(value, "workloadType") {
        "deployment" => pb::WorkloadType::Deployment,
        "cronjob" => pb::WorkloadType::Cronjob,
        "job" => pb::WorkloadType::Job,
        _ => pb::WorkloadType::Pod,
    };
    let place = &value["locality"];
    let place = |field: &str| text(place, field).to_string();
    let is_on_host = text(value, "networkMode") == "HostNetwork";
    Ok(pb::Workload {
        uid: text(value, "uid").into(),
        name: text(value, "name").into(),
        namespace: text(value, "namespace").into(),
        addresses,
        hostname: text(value, "hostname").into(),
        network: text(value, "network").into(),
        tunnel_protocol: tunnel as i32,
        trust_domain: text(value, "trustDomain").into(),
        service_account: text(value, "serviceAccount").into(),
        waypoint: gateway(&object, &value["waypoint"])?,
        node: text(value, "node").into(),
        canonical_name: text(value, "canonicalName").into(),
        canonical_revision: text(value, "canonicalRevision").into(),
        workload_type: kind as i32,
        workload_name: text(value, "workloadName").into(),
        native_tunnel: value["nativeTunnel"].as_bool().unwrap_or_default(),
        authorization_policies: strings(&value["authorizationPolicies"]),
        status: status as i32,
        cluster_id: text(value, "clusterId").into(),
        services,
        locality: Some(pb::Locality { region: place("region"), zone: place("zone"), subzone: place("subzone") }),
        network_mode: if is_on_host { pb::NetworkMode::HostNetwork } else { pb::NetworkMode::Standard } as i32,
        extensions: extensions(value),
        capacity: value["capacity"].as_u64().and_then(|number| u32::try_from(number).ok()),
        karst_dry_run_policies: strings(&value["dryRunPolicies"]),
        ..pb::Workload::default()
    })
}

fn extensions(value: &Value) -> Vec<pb::Extension> {
    let labels = value["labels"].as_object().into_iter().flatten();
    let labels = labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_string()))).collect();
    told_besides(text(value, "podUid"), value["draining"].as_bool().unwrap_or_default(), labels)
}

/// What our own controller tells of a workload besides Istio's fields, as it sends it.
pub fn told_besides(pod_uid: &str, draining: bool, labels: BTreeMap<String, String>) -> Vec<pb::Extension> {
    let one = |type_url: &str, bytes: Vec<u8>| pb::Extension {
        name: String::new(),
        config: Some(prost_types::Any { type_url: type_url.into(), value: bytes }),
    };
    let mut out = vec![];
    if !pod_uid.is_empty() {
        out.push(one(karst_api::POD_TYPE, ir::Pod { uid: pod_uid.into() }.encode_to_vec()));
    }
    if draining {
        out.push(one(karst_api::DRAINING_TYPE, ir::Draining {}.encode_to_vec()));
    }
    if !labels.is_empty() {
        out.push(one(karst_api::LABELS_TYPE, ir::Labels { labels }.encode_to_vec()));
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::{
        dump::mesh,
        testing::{pod, service},
    };
    use serde_json::json;

    const WEB: &str = "ns/web.ns.svc.cluster.local";

    fn whole() -> Snapshot {
        let mut out = Snapshot::new("net").with_root("root");
        let mut web = service("web", "10.96.0.1", &[(80, 8080), (90, 0)]);
        web.addresses[0].network = "net".into();
        web.addresses.push(address("", "vips", "net/10.97.0.0/16").unwrap());
        web.ports[0].app_protocol = pb::AppProtocol::Http2 as i32;
        let waypoint = pb::GatewayAddress {
            destination: Some(pb::gateway_address::Destination::Address(address("", "", "net/10.96.0.2").unwrap())),
            hbone_mtls_port: 15008,
        };
        let named = pb::NamespacedHostname { namespace: "ns".into(), hostname: "w.ns.svc.cluster.local".into() };
        let other = pb::GatewayAddress {
            destination: Some(pb::gateway_address::Destination::Hostname(named)),
            hbone_mtls_port: 15008,
        };
        web.weighted_waypoints = vec![
            pb::WeightedWaypoint { destination: Some(waypoint.clone()), weight: 3 },
            pb::WeightedWaypoint { destination: Some(other), weight: 1 },
        ];
        web.load_balancing = Some(pb::LoadBalancing { routing_preference: vec![1, 2, 4], mode: 2, health_policy: 1 });
        (web.canonical, web.visibility, web.ingress_use_waypoint) = (true, 1, true);
        web.karst_session_affinity_seconds = 60;
        web.karst_grpc_web_ports = vec![80];
        web.subject_alt_names = vec!["spiffe://cluster.local/ns/ns/sa/other".into()];
        let mut one = pod("web-1", "10.0.0.1", &[(WEB, &[(80, 8080), (90, 9090)])]);
        (one.network, one.node, one.waypoint) = ("net".into(), "n".into(), Some(waypoint));
        one.locality = Some(pb::Locality { region: "r".into(), zone: "z".into(), subzone: String::new() });
        (one.status, one.capacity, one.workload_type) = (1, Some(7), 3);
        one.authorization_policies = vec!["ns/p".into()];
        one.karst_dry_run_policies = vec!["ns/d".into()];
        one.extensions = extensions(&json!({ "podUid": "a+b", "draining": true, "labels": { "app": "web" } }));
        let mut host = pod("host", "10.0.0.9", &[]);
        (host.network, host.network_mode, host.tunnel_protocol) = ("net".into(), 1, 0);
        for (name, one) in [
            (WEB.to_string(), pb::address::Type::Service(web)),
            (one.uid.clone(), pb::address::Type::Workload(one)),
            (host.uid.clone(), pb::address::Type::Workload(host)),
        ] {
            out.put_address(&name, &pb::Address { r#type: Some(one) }.encode_to_vec()).unwrap();
        }
        out.put_pod_ranges("n", &ir::PodRanges { ranges: vec!["10.0.0.0/24".into()] }.encode_to_vec()).unwrap();
        out
    }

    #[test]
    fn what_is_written_is_read_back() {
        let before = whole();
        let lists = mesh(&before);
        let dump = json!({
            "network": "net", "workloads": lists.workloads, "services": lists.services,
            "podRanges": lists.pod_ranges, "policies": [],
        });
        let after = snapshot(&dump, "root").unwrap();
        assert_eq!(after.workloads, before.workloads);
        assert_eq!(after.services, before.services);
        assert_eq!((after.endpoints, after.pod_ranges), (before.endpoints, before.pod_ranges));
        assert_eq!((after.by_ip, after.by_vip, after.ranges), (before.by_ip, before.by_vip, before.ranges));
    }

    #[test]
    fn what_was_asked_for_is_read_back() {
        let pages = Pages::default();
        let mut before = whole().on_demand(pages.clone());
        let names = [Name::Address([10, 0, 0, 7].into()), Name::Host("web".into()), Name::Resource(WEB.into())];
        names.iter().for_each(|name| before.put_name(name.clone(), Mark::new(&pages)));
        let (lists, asked) = (mesh(&before), super::super::names(before.asked().unwrap(), before.network()));
        assert_eq!(asked, json!({ "names": ["net/10.0.0.7", WEB, "~host/web"] }));
        let dump =
            json!({ "network": "net", "workloads": lists.workloads, "services": lists.services, "onDemand": asked });
        let after = snapshot(&dump, "root").unwrap();
        assert!(names.iter().all(|name| after.is_told(name)) && !after.is_told(&Name::Host("other".into())));
    }

    #[test]
    fn the_lists_of_istios_ztunnel_may_be_objects() {
        let lists = mesh(&whole());
        let by_name = |all: Vec<Value>| -> serde_json::Map<_, _> {
            all.into_iter().enumerate().map(|(number, one)| (number.to_string(), one)).collect()
        };
        let dump = json!({ "workloads": by_name(lists.workloads), "services": by_name(lists.services) });
        let after = snapshot(&dump, "root").unwrap();
        assert_eq!((after.network(), after.workloads.len()), ("net", 2));
        assert!(matches!(snapshot(&json!({ "version": {} }), "root"), Err(DumpError::NotADump)));
        let wrong = json!({ "services": [{ "namespace": "ns", "hostname": "h", "vips": ["net/x"] }] });
        let text = snapshot(&wrong, "root").map(drop).unwrap_err().to_string();
        assert!(text.starts_with("service ns/h: vips: unexpected value net/x"), "{text}");
    }
}
