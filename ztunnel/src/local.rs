//! The mesh from a file instead of a controller (`LOCAL_XDS_PATH`; reference ztunnel §2.5), and certificates from a directory
//! (`KARST_LOCAL_CERTS`). The file has the shape of `/config_dump`, so that a dump's lists can be put into one. It goes
//! through the same checks as what a controller sends, and is read again when it changes; an unreadable new version leaves the
//! last good state.

use crate::state::{ResourceError, Snapshot};
use bytes::Bytes;
use karst_api::workload::{self as pb, gateway_address::Destination, load_balancing as lb};
use karst_core::{
    Cidr,
    addr::{CidrError, ip_to_bytes},
};
use karst_policy::Policy;
use karst_proxy::dump::told_besides;
use prost::Message;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    net::{AddrParseError, IpAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
#[error("{} (LOCAL_XDS_PATH): {fault}", .path.display())]
pub struct FileError {
    path: PathBuf,
    fault: Fault,
}

/// What is wrong in it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its form.
    #[error(transparent)]
    Form(#[from] serde_yaml_ng::Error),
    /// An endpoint is nobody.
    #[error("service {service}: endpoints.{endpoint}: there is no workload {uid:?}")]
    NoWorkload {
        /// Whose endpoint.
        service: String,
        /// Its key.
        endpoint: String,
        /// Who it should be.
        uid: String,
    },
    /// A service.
    #[error("service {0}: {1}")]
    Service(String, ObjectError),
    /// A workload.
    #[error("workload {0:?}: {1}")]
    Workload(String, ObjectError),
}

/// What is wrong with a workload or a service.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Of a gateway or waypoint.
    #[error("destination {0:?} is neither NETWORK/ADDRESS nor NAMESPACE/HOST")]
    Destination(String),
    /// As a dump has it, and the service says nothing of it.
    #[error(
        "services: {0} does not list this workload among its endpoints; give the ports here, as \"{0}\": {{80: 8080}}"
    )]
    NoPorts(String),
    /// None that there is.
    #[error("unsupported workloadType {0:?}: use pod, deployment, job or cronjob")]
    WorkloadType(String),
    /// None that there is.
    #[error("appProtocols: unsupported protocol {0:?}: use HTTP11, HTTP2, GRPC, TCP, TLS or UNKNOWN")]
    AppProtocol(String),
    /// Not of the form.
    #[error("vips: {0:?} is not NETWORK/ADDRESS")]
    Vip(String),
    /// No address.
    #[error("vips: {0:?}: {1}")]
    VipAddress(String, AddrParseError),
    /// Not of the form.
    #[error("cidrVips: {0:?} is not NETWORK/RANGE")]
    CidrVip(String),
    /// No range.
    #[error("cidrVips: {0:?}: {1}")]
    CidrVipRange(String, CidrError),
    /// What a controller's would be refused for, too.
    #[error(transparent)]
    Resource(#[from] ResourceError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    workloads: Vec<Workload>,
    #[serde(default)]
    services: Vec<Service>,
    #[serde(default)]
    policies: Vec<Policy>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Workload {
    uid: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    service_account: String,
    #[serde(default)]
    workload_ips: Vec<IpAddr>,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    node: String,
    #[serde(default)]
    network: String,
    #[serde(default)]
    waypoint: Option<Gateway>,
    #[serde(default)]
    network_gateway: Option<Gateway>,
    #[serde(default)]
    trust_domain: String,
    #[serde(default)]
    workload_name: String,
    #[serde(default)]
    workload_type: String,
    #[serde(default)]
    canonical_name: String,
    #[serde(default)]
    canonical_revision: String,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    native_tunnel: bool,
    #[serde(default)]
    authorization_policies: Vec<String>,
    #[serde(default)]
    dry_run_policies: Vec<String>,
    #[serde(default)]
    status: Status,
    /// Ours: not healthy, and serves still.
    #[serde(default)]
    draining: bool,
    #[serde(default)]
    cluster_id: String,
    #[serde(default)]
    locality: Locality,
    #[serde(default)]
    capacity: Option<u32>,
    #[serde(default)]
    network_mode: NetworkMode,
    /// Ours: the pod's uid; if it is given, only the pod that has it is this workload.
    #[serde(default)]
    pod_uid: String,
    /// Ours: the pod's labels.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Service key (`namespace/hostname`) to service port to target port; or, as in a dump, only the keys (the service then
    /// lists the workload among its endpoints).
    #[serde(default)]
    services: Services,
}

/// Service port to target port.
type Ports = BTreeMap<PortKey, u16>;

/// A port as the key of a map: a number in YAML, a text in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "Key")]
struct PortKey(u16);

#[derive(Deserialize)]
#[serde(untagged)]
enum Key {
    Number(u16),
    Text(String),
}
#[derive(Debug, thiserror::Error)]
#[error("invalid port {0:?}")]
struct PortError(String);

impl TryFrom<Key> for PortKey {
    type Error = PortError;
    fn try_from(key: Key) -> Result<Self, PortError> {
        match key {
            Key::Number(number) => Ok(Self(number)),
            Key::Text(text) => text.parse().map(Self).map_err(|_| PortError(text)),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Services {
    Keys(Vec<String>),
    Ports(BTreeMap<String, Ports>),
}
impl Default for Services {
    fn default() -> Self {
        Services::Keys(Vec::new())
    }
}

#[derive(Clone, Copy, Default, Deserialize)]
enum Protocol {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "HBONE")]
    Hbone,
}
#[derive(Clone, Copy, Default, Deserialize)]
enum Status {
    #[default]
    Healthy,
    Unhealthy,
}
#[derive(Clone, Copy, Default, Deserialize)]
enum NetworkMode {
    #[default]
    Standard,
    HostNetwork,
}
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Locality {
    #[serde(default)]
    region: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    subzone: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Gateway {
    /// `network/address` or `namespace/hostname`.
    destination: String,
    #[serde(default)]
    hbone_mtls_port: u32,
}

/// A waypoint that has a part of a service's calls.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WeightedWaypoint {
    destination: String,
    #[serde(default)]
    hbone_mtls_port: u32,
    #[serde(default = "one")]
    weight: u32,
}
fn one() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Service {
    name: String,
    namespace: String,
    hostname: String,
    /// `network/address`.
    #[serde(default)]
    vips: Vec<String>,
    /// `network/range`.
    #[serde(default)]
    cidr_vips: Vec<String>,
    #[serde(default)]
    ports: Ports,
    #[serde(default)]
    endpoints: BTreeMap<String, Endpoint>,
    #[serde(default)]
    subject_alt_names: Vec<String>,
    #[serde(default)]
    waypoint: Option<Gateway>,
    /// Ours: all of its waypoints, where there are several.
    #[serde(default)]
    weighted_waypoints: Vec<WeightedWaypoint>,
    /// Ours: what is spoken at a service port, as the xDS API names it (`HTTP11`, `GRPC`).
    #[serde(default)]
    app_protocols: BTreeMap<PortKey, String>,
    /// Ours: service ports that browsers call by gRPC-Web, which waypoints turn into gRPC.
    #[serde(default)]
    grpc_web_ports: Vec<u16>,
    /// Ours: gateways send what is for it to its waypoint.
    #[serde(default)]
    ingress_use_waypoint: bool,
    #[serde(default)]
    load_balancer: Option<LoadBalancer>,
    #[serde(default)]
    canonical: bool,
    /// Seen from its own namespace only.
    #[serde(default)]
    private: bool,
    #[serde(default)]
    session_affinity_seconds: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Endpoint {
    workload_uid: String,
    #[serde(default)]
    port: Ports,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LoadBalancer {
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    routing_preferences: Vec<Scope>,
    #[serde(default)]
    health_policy: Health,
}
#[derive(Clone, Copy, Default, Deserialize)]
enum Mode {
    #[default]
    Standard,
    Strict,
    Failover,
    Passthrough,
}
#[derive(Clone, Copy, Deserialize)]
enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}
#[derive(Clone, Copy, Default, Deserialize)]
enum Health {
    #[default]
    OnlyHealthy,
    AllowAll,
}

impl Gateway {
    fn wire(&self) -> Result<pb::GatewayAddress, ObjectError> {
        let bad = || ObjectError::Destination(self.destination.clone());
        let (left, right) = self.destination.split_once('/').ok_or_else(bad)?;
        let to = match right.parse::<IpAddr>() {
            Ok(ip) => Destination::Address(address(left, ip, None)),
            Err(_) if !left.is_empty() && !right.is_empty() => {
                Destination::Hostname(pb::NamespacedHostname { namespace: left.into(), hostname: right.into() })
            }
            Err(_) => return Err(bad()),
        };
        Ok(pb::GatewayAddress { destination: Some(to), hbone_mtls_port: self.hbone_mtls_port })
    }
}

impl WeightedWaypoint {
    fn wire(&self) -> Result<pb::WeightedWaypoint, ObjectError> {
        let gateway = Gateway { destination: self.destination.clone(), hbone_mtls_port: self.hbone_mtls_port };
        Ok(pb::WeightedWaypoint { destination: Some(gateway.wire()?), weight: self.weight })
    }
}

fn address(network: &str, ip: IpAddr, length: Option<u32>) -> pb::NetworkAddress {
    pb::NetworkAddress { network: network.into(), address: ip_to_bytes(ip), length }
}

fn ports(ports: &Ports) -> Vec<pb::Port> {
    let one =
        |(s, t): (&PortKey, &u16)| pb::Port { service_port: s.0.into(), target_port: (*t).into(), app_protocol: 0 };
    ports.iter().map(one).collect()
}

impl Workload {
    fn wire(&self, by_service: &HashMap<&str, Vec<(&str, &Ports)>>) -> Result<pb::Workload, ObjectError> {
        let mut services: BTreeMap<String, pb::PortList> = BTreeMap::new();
        if let Services::Ports(p) = &self.services {
            services.extend(p.iter().map(|(k, v)| (k.clone(), pb::PortList { ports: ports(v) })));
        }
        for (key, p) in by_service.get(self.uid.as_str()).into_iter().flatten() {
            services.insert(key.to_string(), pb::PortList { ports: ports(p) });
        }
        if let Services::Keys(keys) = &self.services
            && let Some(key) = keys.iter().find(|key| !services.contains_key(*key))
        {
            return Err(ObjectError::NoPorts(key.clone()));
        }
        Ok(pb::Workload {
            uid: self.uid.clone(),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            addresses: self.workload_ips.iter().map(|ip| Bytes::from(ip_to_bytes(*ip))).collect(),
            hostname: self.hostname.clone(),
            network: self.network.clone(),
            tunnel_protocol: match self.protocol {
                Protocol::Tcp => pb::TunnelProtocol::None,
                Protocol::Hbone => pb::TunnelProtocol::Hbone,
            } as i32,
            trust_domain: self.trust_domain.clone(),
            service_account: self.service_account.clone(),
            waypoint: self.waypoint.as_ref().map(Gateway::wire).transpose()?,
            network_gateway: self.network_gateway.as_ref().map(Gateway::wire).transpose()?,
            node: self.node.clone(),
            canonical_name: self.canonical_name.clone(),
            canonical_revision: self.canonical_revision.clone(),
            workload_type: match self.workload_type.to_ascii_lowercase().as_str() {
                "deployment" => pb::WorkloadType::Deployment,
                "cronjob" => pb::WorkloadType::Cronjob,
                "job" => pb::WorkloadType::Job,
                "pod" | "" => pb::WorkloadType::Pod,
                other => return Err(ObjectError::WorkloadType(other.into())),
            } as i32,
            workload_name: self.workload_name.clone(),
            native_tunnel: self.native_tunnel,
            authorization_policies: self.authorization_policies.clone(),
            karst_dry_run_policies: self.dry_run_policies.clone(),
            status: match self.status {
                Status::Healthy => pb::WorkloadStatus::Healthy,
                Status::Unhealthy => pb::WorkloadStatus::Unhealthy,
            } as i32,
            cluster_id: self.cluster_id.clone(),
            services: services.into_iter().collect(),
            locality: Some(pb::Locality {
                region: self.locality.region.clone(),
                zone: self.locality.zone.clone(),
                subzone: self.locality.subzone.clone(),
            }),
            network_mode: match self.network_mode {
                NetworkMode::Standard => pb::NetworkMode::Standard,
                NetworkMode::HostNetwork => pb::NetworkMode::HostNetwork,
            } as i32,
            capacity: self.capacity,
            extensions: told_besides(&self.pod_uid, self.draining, self.labels.clone()),
            ..Default::default()
        })
    }
}

impl Service {
    fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.hostname)
    }
    fn wire(&self) -> Result<pb::Service, ObjectError> {
        let mut addresses = Vec::new();
        for vip in &self.vips {
            let (network, ip) = vip.split_once('/').ok_or_else(|| ObjectError::Vip(vip.clone()))?;
            let ip = ip.parse().map_err(|e| ObjectError::VipAddress(vip.clone(), e))?;
            addresses.push(address(network, ip, None));
        }
        for vip in &self.cidr_vips {
            let (network, range) = vip.split_once('/').ok_or_else(|| ObjectError::CidrVip(vip.clone()))?;
            let range: Cidr = range.parse().map_err(|e| ObjectError::CidrVipRange(vip.clone(), e))?;
            addresses.push(address(network, range.base(), Some(range.prefix_len().into())));
        }
        let scope = |s: &Scope| {
            (match s {
                Scope::Region => lb::Scope::Region,
                Scope::Zone => lb::Scope::Zone,
                Scope::Subzone => lb::Scope::Subzone,
                Scope::Node => lb::Scope::Node,
                Scope::Cluster => lb::Scope::Cluster,
                Scope::Network => lb::Scope::Network,
            }) as i32
        };
        let load_balancing = self.load_balancer.as_ref().map(|balancer| pb::LoadBalancing {
            routing_preference: balancer.routing_preferences.iter().map(scope).collect(),
            mode: match balancer.mode {
                Mode::Standard => lb::Mode::UnspecifiedMode,
                Mode::Strict => lb::Mode::Strict,
                Mode::Failover => lb::Mode::Failover,
                Mode::Passthrough => lb::Mode::Passthrough,
            } as i32,
            health_policy: match balancer.health_policy {
                Health::OnlyHealthy => lb::HealthPolicy::OnlyHealthy,
                Health::AllowAll => lb::HealthPolicy::AllowAll,
            } as i32,
        });
        let mut ports = ports(&self.ports);
        for port in &mut ports {
            let spoken =
                u16::try_from(port.service_port).ok().and_then(|number| self.app_protocols.get(&PortKey(number)));
            let Some(name) = spoken else { continue };
            let protocol =
                pb::AppProtocol::from_str_name(name).ok_or_else(|| ObjectError::AppProtocol(name.clone()))?;
            port.app_protocol = protocol as i32;
        }
        Ok(pb::Service {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            hostname: self.hostname.clone(),
            addresses,
            ports,
            subject_alt_names: self.subject_alt_names.clone(),
            waypoint: self.waypoint.as_ref().map(Gateway::wire).transpose()?,
            weighted_waypoints: self.weighted_waypoints.iter().map(WeightedWaypoint::wire).collect::<Result<_, _>>()?,
            ingress_use_waypoint: self.ingress_use_waypoint,
            load_balancing,
            canonical: self.canonical,
            visibility: if self.private { pb::Visibility::Namespace } else { pb::Visibility::Public } as i32,
            karst_session_affinity_seconds: self.session_affinity_seconds.unwrap_or(0),
            karst_grpc_web_ports: self.grpc_web_ports.iter().copied().map(u32::from).collect(),
            ..Default::default()
        })
    }
}

/// The state that a file describes.
///
/// # Errors
/// Names the object, its field, and what is wrong there.
pub fn parse(text: &str, network: &str) -> Result<Snapshot, Fault> {
    let yaml = serde_yaml_ng::Deserializer::from_str(text);
    // {Exact: x} is a choice, as in JSON.
    let file: File = serde_yaml_ng::with::singleton_map_recursive::deserialize(yaml)?;
    let mut by_workload: HashMap<&str, Vec<(&str, &Ports)>> = HashMap::new();
    let keys: Vec<String> = file.services.iter().map(Service::key).collect();
    for (service, key) in file.services.iter().zip(&keys) {
        for (name, endpoint) in &service.endpoints {
            let uid = &endpoint.workload_uid;
            if !file.workloads.iter().any(|w| w.uid == *uid) {
                return Err(Fault::NoWorkload { service: key.clone(), endpoint: name.clone(), uid: uid.clone() });
            }
            by_workload.entry(uid).or_default().push((key, &endpoint.port));
        }
    }
    let mut out = Snapshot::new(network);
    let mut put = |name: &str, address: pb::address::Type| {
        Ok(out.put_address(name, &pb::Address { r#type: Some(address) }.encode_to_vec())?)
    };
    for (service, key) in file.services.iter().zip(&keys) {
        let taken = service.wire().and_then(|wire| put(key, pb::address::Type::Service(wire)));
        taken.map_err(|e| Fault::Service(key.clone(), e))?;
    }
    for workload in &file.workloads {
        let uid = &workload.uid;
        let taken = workload.wire(&by_workload).and_then(|wire| put(uid, pb::address::Type::Workload(wire)));
        taken.map_err(|e| Fault::Workload(uid.clone(), e))?;
    }
    for policy in file.policies {
        out.put_policy(&policy.key(), policy);
    }
    Ok(out)
}

/// Reads the file.
///
/// # Errors
/// Names the file, and the place in it.
pub fn read(path: &Path, network: &str) -> Result<Snapshot, FileError> {
    let read = fs::read_to_string(path).map_err(Fault::from).and_then(|text| parse(&text, network));
    read.map_err(|fault| FileError { path: path.into(), fault })
}

/// Follows the file's changes.
pub async fn follow(path: &Path, network: &str, state: watch::Sender<Arc<Snapshot>>) {
    let stamp = || fs::metadata(path).and_then(|m| Ok((m.modified()?, m.len()))).ok();
    let mut seen: Option<(SystemTime, u64)> = stamp();
    loop {
        tokio::time::sleep(LOOK).await;
        let now = stamp();
        if now == seen {
            continue;
        }
        seen = now;
        match read(path, network) {
            Ok(s) => {
                tracing::info!(file = %path.display(), "the local configuration has changed");
                state.send_replace(Arc::new(s));
            }
            Err(e) => tracing::error!("{e}; the last good state stays"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;

    const FILE: &str = r#"
workloads:
- uid: cluster1//Pod/default/client
  name: client
  namespace: default
  serviceAccount: client
  workloadIps: ["10.0.0.1", "fd00::1"]
  protocol: HBONE
  node: a
- uid: cluster1//Pod/default/server
  name: server
  namespace: default
  workloadIps: ["10.0.0.2"]
  status: Unhealthy
  draining: true
  authorizationPolicies: [default/only-client]
  services:
    default/web.default.svc.cluster.local: {80: 8080}
services:
- name: web
  namespace: default
  hostname: web.default.svc.cluster.local
  vips: ["/10.96.0.1"]
  cidrVips: ["/10.97.0.0/16"]
  ports: {80: 8080}
  waypoint: {destination: /10.0.0.9}
  loadBalancer: {mode: Failover, routingPreferences: [Network, Region, Zone]}
  sessionAffinitySeconds: 600
policies:
- name: only-client
  namespace: default
  scope: WorkloadSelector
  action: Allow
  rules: [[[{principals: [{Exact: cluster.local/ns/default/sa/client}], destinationPorts: [8080], notSourceIps: [10.1.0.0/16]}]]]
"#;

    #[test]
    fn a_file_becomes_a_state() {
        let s = parse(FILE, "").unwrap();
        let own = crate::state::OwnPod { namespace: "default", name: "client", account: "client", uid: None };
        let client = s.own_pod(&own).unwrap();
        assert!(client.hbone && client.healthy && client.ips.len() == 2);
        let server = s.workload([10, 0, 0, 2].into()).unwrap();
        assert!(!server.healthy && server.draining && !server.hbone);
        assert_eq!(server.identity.to_string(), "spiffe://cluster.local/ns/default/sa/default");
        let web = s.service([10, 97, 3, 3].into(), "default").unwrap();
        assert_eq!((web.waypoints.len(), web.affinity), (1, Some(Duration::from_secs(600))));
        assert_eq!(s.endpoints[&web.key].len(), 1);
        let p = s.policies_of(server).unwrap();
        assert_eq!(p[0].rules[0].clauses[0].matches[0].destination_ports, [8080]);
    }

    /// Whatever a dump's lists have, a file may have, and it means the same.
    #[test]
    fn the_lists_of_a_dump_are_a_file() {
        use karst_proxy::{dump, testing};
        const WEB: &str = "ns/web.ns.svc.cluster.local";
        let mut web = testing::service("web", "10.96.0.1", &[(80, 8080)]);
        web.ports[0].app_protocol = pb::AppProtocol::Grpc as i32;
        let waypoint = Gateway { destination: "/10.0.0.9".into(), hbone_mtls_port: 15008 }.wire().unwrap();
        let weighted = |weight| pb::WeightedWaypoint { destination: Some(waypoint.clone()), weight };
        web.weighted_waypoints = vec![weighted(3), weighted(1)];
        web.ingress_use_waypoint = true;
        let mut pod = testing::pod("web-1", "10.0.0.7", &[(WEB, &[(80, 8080)])]);
        pod.extensions = told_besides("uid-1", true, BTreeMap::from([("app".into(), "web".into())]));
        let snapshot = testing::snapshot(vec![pod], vec![web]);
        let lists = |snapshot: &Snapshot| {
            let mesh = dump::mesh(snapshot);
            serde_json::json!({ "workloads": mesh.workloads, "services": mesh.services })
        };
        let wanted = lists(&snapshot);
        assert_eq!(wanted["services"][0]["weightedWaypoints"][0]["weight"], 3, "{wanted}");
        let read = parse(&wanted.to_string(), snapshot.network()).unwrap();
        assert_eq!(lists(&read), wanted);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("workloads: [{uid: a, colour: red}]", "colour"),
            ("workloads: [{uid: a, workloadIps: [10.0.0.300]}]", "workloadIps"),
            ("workloads: [{uid: a, protocol: HTTP}]", "HTTP"),
            (
                "workloads: [{uid: a, namespace: d, workloadType: car}]",
                "workload \"a\": unsupported workloadType \"car\"",
            ),
            ("workloads: [{uid: a, namespace: d, waypoint: {destination: x}}]", "destination \"x\""),
            ("workloads: [{uid: a, namespace: d, services: [d/h]}]", "d/h does not list this workload"),
            ("services: [{name: a, namespace: b, hostname: c, vips: [10.0.0.1]}]", "service b/c: vips"),
            ("services: [{name: a, namespace: b, hostname: c, cidrVips: [/10.0.0.1/99]}]", "service b/c: cidrVips"),
            ("services: [{name: a, namespace: b, hostname: c, endpoints: {x: {workloadUid: y}}}]", "no workload \"y\""),
            ("policies: [{name: a, namespace: b, scope: Planet, action: Deny, rules: []}]", "Planet"),
            ("policies: [{name: a, namespace: b, scope: Global, action: Deny, rules: [[[{ports: [1]}]]]}]", "ports"),
        ];
        for (text, part) in table {
            let e = parse(text, "").err().unwrap().to_string();
            assert!(e.contains(part), "{text}: {e}");
        }
    }
}
