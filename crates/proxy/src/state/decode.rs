//! Workloads and services as the control plane sends them.

use super::{
    baggage::Baggage,
    model::{Gateway, GatewayTo, LocalityScope, Membership, Mode, ObjectKind, Service, UdpPort, Workload},
    texts::{self, text},
};
use bytes::Bytes;
use karst_api::workload::{self as pb, gateway_address::Destination};
use karst_core::{
    Cidr, Identity, IdentityError,
    addr::{CidrError, ip_from_bytes},
};
use prost::Message;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

/// Why a resource of the control plane cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    #[error("not an istio.workload.Address: {0}")]
    Address(prost::DecodeError),
    #[error("is neither workload nor service")]
    NoType,
    #[error("workload without uid")]
    NoUid,
    #[error("workload {uid}: {fault}")]
    Workload { uid: String, fault: FieldError },
    #[error("service {hostname}: {fault}")]
    Service { hostname: String, fault: FieldError },
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[error("not a karst.route.v1.PodRanges: {0}")]
    PodRanges(prost::DecodeError),
    #[error(transparent)]
    PodRange(#[from] CidrError),
}

/// What is wrong with a field of a workload or a service.
#[derive(Debug, thiserror::Error)]
pub enum FieldError {
    #[error("an address has {0} bytes")]
    AddressLength(usize),
    #[error("prefix length {0}")]
    PrefixLength(u32),
    #[error("load balancing mode {0} is not known")]
    Mode(i32),
    #[error("tunnel protocol {0} is not supported")]
    TunnelProtocol(i32),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("not a karst.route.v1.Pod: {0}")]
    Pod(prost::DecodeError),
}

/// What is wrong with the address of a gateway or waypoint.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("gateway address is malformed")]
    Address,
    #[error("gateway destination is not known")]
    Destination,
    #[error("gateway port {0}")]
    Port(u32),
}

pub(super) fn service(service: pb::Service, network: &str) -> Result<Service, ResourceError> {
    use pb::load_balancing as lb;
    let wrong = |fault| ResourceError::Service { hostname: service.hostname.clone(), fault };
    let (mut vips, mut ranges) = (Vec::new(), Vec::new());
    for address in service.addresses.iter().filter(|address| *address.network == *network) {
        let ip =
            ip_from_bytes(&address.address).ok_or_else(|| wrong(FieldError::AddressLength(address.address.len())))?;
        match address.length {
            None => vips.push(ip),
            Some(length) => {
                let range = u8::try_from(length).ok().and_then(|length| Cidr::new(ip, length));
                ranges.push(range.ok_or_else(|| wrong(FieldError::PrefixLength(length)))?);
            }
        }
    }
    let mut waypoints = Vec::new();
    for waypoint in &service.weighted_waypoints {
        waypoints.extend(gateway(waypoint.destination.as_ref())?.map(|g| (g, waypoint.weight)));
    }
    if waypoints.is_empty() {
        waypoints.extend(gateway(service.waypoint.as_ref())?.map(|g| (g, 1)));
    }
    vips.shrink_to_fit();
    let balancing = service.load_balancing.unwrap_or_default();
    let mode = match lb::Mode::try_from(balancing.mode) {
        Ok(lb::Mode::UnspecifiedMode) => Mode::Any,
        Ok(lb::Mode::Strict) => Mode::Strict,
        Ok(lb::Mode::Failover) => Mode::Failover,
        Ok(lb::Mode::Passthrough) => Mode::Passthrough,
        Err(_) => return Err(wrong(FieldError::Mode(balancing.mode))),
    };
    let scope = |n: &i32| match lb::Scope::try_from(*n) {
        Ok(lb::Scope::Region) => Some(LocalityScope::Region),
        Ok(lb::Scope::Zone) => Some(LocalityScope::Zone),
        Ok(lb::Scope::Subzone) => Some(LocalityScope::Subzone),
        Ok(lb::Scope::Node) => Some(LocalityScope::Node),
        Ok(lb::Scope::Cluster) => Some(LocalityScope::Cluster),
        Ok(lb::Scope::Network) => Some(LocalityScope::Network),
        Ok(lb::Scope::UnspecifiedScope) | Err(_) => None,
    };
    Ok(Service {
        key: format!("{}/{}", service.namespace, service.hostname).into(),
        name: service.name.into(),
        namespace: text(&service.namespace),
        hostname: service.hostname.into(),
        vips,
        ranges,
        only_family: match pb::IpFamilies::try_from(service.ip_families) {
            Ok(pb::IpFamilies::Ipv4Only) => Some(Ipv4Addr::UNSPECIFIED.into()),
            Ok(pb::IpFamilies::Ipv6Only) => Some(Ipv6Addr::UNSPECIFIED.into()),
            Ok(pb::IpFamilies::Automatic | pb::IpFamilies::Dual) | Err(_) => None,
        },
        ports: ports(&service.ports),
        udp_ports: service.karst_udp_ports.iter().filter_map(|p| u16::try_from(*p).ok()).collect(),
        protocols: protocols(&service.ports),
        grpc_web: service.karst_grpc_web_ports.iter().filter_map(|port| u16::try_from(*port).ok()).collect(),
        sans: service.subject_alt_names.iter().filter_map(|x| x.parse().ok()).collect(),
        waypoints,
        mode,
        scopes: balancing.routing_preference.iter().filter_map(scope).collect(),
        only_healthy: balancing.health_policy == lb::HealthPolicy::OnlyHealthy as i32,
        canonical: service.canonical,
        private: service.visibility != pb::Visibility::Public as i32,
        ingress_waypoint: service.ingress_use_waypoint,
        affinity: Some(service.karst_session_affinity_seconds)
            .filter(|n| *n > 0)
            .map(|n| Duration::from_secs(n.into())),
    })
}

fn ports(ports: &[pb::Port]) -> Vec<(u16, u16)> {
    let port = |n: u32| u16::try_from(n).ok();
    ports.iter().filter_map(|p| Some((port(p.service_port)?, port(p.target_port)?))).collect()
}

/// A number that is none of a port is left out, and so is nothing called there.
fn udp_ports(ports: pb::UdpPortList) -> Vec<UdpPort> {
    let one = |p: pb::UdpPort| {
        let (port, target) = (u16::try_from(p.service_port).ok()?, u16::try_from(p.target_port).ok()?);
        Some(UdpPort { port, target, closed: p.closed.into() })
    };
    ports.ports.into_iter().filter_map(one).collect()
}

fn protocols(ports: &[pb::Port]) -> Vec<(u16, pb::AppProtocol)> {
    ports.iter().filter_map(|p| Some((u16::try_from(p.service_port).ok()?, p.app_protocol()))).collect()
}

fn gateway(address: Option<&pb::GatewayAddress>) -> Result<Option<Gateway>, GatewayError> {
    let Some(address) = address else { return Ok(None) };
    let to = match &address.destination {
        Some(Destination::Hostname(h)) => GatewayTo::Service(text(&format!("{}/{}", h.namespace, h.hostname))),
        Some(Destination::Address(a)) => GatewayTo::Address(ip_from_bytes(&a.address).ok_or(GatewayError::Address)?),
        // Something is asked for that we do not understand: it must not be passed by.
        None => return Err(GatewayError::Destination),
    };
    let port = match address.hbone_mtls_port {
        0 => karst_hbone::PORT,
        n => u16::try_from(n).map_err(|_| GatewayError::Port(n))?,
    };
    Ok(Some(Gateway { to, port }))
}

pub(super) fn workload(workload: pb::Workload) -> Result<Workload, ResourceError> {
    let or = |s: String, default: &str| if s.is_empty() { default.to_string() } else { s };
    let wrong = |fault| ResourceError::Workload { uid: workload.uid.clone(), fault };
    let ip = |bytes: &Bytes| ip_from_bytes(bytes).ok_or_else(|| wrong(FieldError::AddressLength(bytes.len())));
    let mut ips: Vec<IpAddr> = Vec::with_capacity(workload.addresses.len());
    for address in &workload.addresses {
        ips.push(ip(address)?);
    }
    let hbone = match pb::TunnelProtocol::try_from(workload.tunnel_protocol) {
        Ok(pb::TunnelProtocol::None) => false,
        Ok(pb::TunnelProtocol::Hbone) => true,
        Ok(pb::TunnelProtocol::LegacyIstioMtls) | Err(_) => {
            return Err(wrong(FieldError::TunnelProtocol(workload.tunnel_protocol)));
        }
    };
    if workload.uid.is_empty() {
        return Err(ResourceError::NoUid);
    }
    let trust_domain = or(workload.trust_domain, "cluster.local");
    let account = or(workload.service_account, "default");
    let identity = Identity::new(&trust_domain, &workload.namespace, &account).map_err(|e| wrong(e.into()))?;
    let identity = texts::identity(identity);
    let workload_type = match pb::WorkloadType::try_from(workload.workload_type) {
        Ok(pb::WorkloadType::Deployment) => "deployment",
        Ok(pb::WorkloadType::Cronjob) => "cronjob",
        Ok(pb::WorkloadType::Job) => "job",
        Ok(pb::WorkloadType::Pod) | Err(_) => "pod",
    };
    let place = workload.locality.unwrap_or_default();
    let cluster = or(workload.cluster_id, "Kubernetes");
    let pod_uid = pod_uid(&workload.extensions).map_err(wrong)?;
    let mut services: Vec<Membership> = workload.services.iter().map(|(k, v)| (text(k), ports(&v.ports))).collect();
    services.sort();
    let mut udp: Vec<(Arc<str>, Vec<UdpPort>)> =
        workload.karst_udp_services.into_iter().map(|(key, ports)| (key.into(), udp_ports(ports))).collect();
    udp.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(Workload {
        kind: ObjectKind::of(&workload.uid),
        uid: workload.uid.into(),
        pod_uid,
        name: workload.name.into(),
        namespace: text(&workload.namespace),
        ips,
        hostname: text(&workload.hostname),
        network: text(&workload.network),
        hbone,
        native_tunnel: workload.native_tunnel,
        identity,
        waypoint: gateway(workload.waypoint.as_ref())?,
        node: text(&workload.node),
        workload_name: text(&workload.workload_name),
        workload_type,
        canonical_name: text(&workload.canonical_name),
        canonical_revision: text(&workload.canonical_revision),
        policies: workload.authorization_policies.iter().map(|name| text(name)).collect(),
        dry_runs: workload.karst_dry_run_policies.iter().map(|name| text(name)).collect(),
        // An unknown status is not healthy.
        healthy: workload.status == pb::WorkloadStatus::Healthy as i32,
        draining: workload.status != pb::WorkloadStatus::Healthy as i32 && is_draining(&workload.extensions),
        cluster: text(&cluster),
        region: text(&place.region),
        zone: text(&place.zone),
        subzone: text(&place.subzone),
        host_network: workload.network_mode == pb::NetworkMode::HostNetwork as i32,
        capacity: workload.capacity.unwrap_or(1),
        services,
        udp,
        labels: labels(&workload.extensions),
        baggage: Baggage::default(),
    })
}

/// The extension of this type.
fn extension<'a>(all: &'a [pb::Extension], type_url: &str) -> Option<&'a [u8]> {
    let mut own = all.iter().filter_map(|e| e.config.as_ref()).filter(|c| c.type_url == type_url);
    own.next().map(|c| &c.value[..])
}

/// Does our own controller say that it serves until it ends?
fn is_draining(all: &[pb::Extension]) -> bool {
    extension(all, karst_api::DRAINING_TYPE).is_some()
}

/// The labels that our own controller tells.
fn labels(all: &[pb::Extension]) -> Arc<BTreeMap<String, String>> {
    let Some(config) = extension(all, karst_api::LABELS_TYPE) else { return texts::no_labels() };
    karst_api::route::Labels::decode(config).map(|l| Arc::new(l.labels)).unwrap_or_default()
}

/// Which pod it is, as our own controller tells.
fn pod_uid(all: &[pb::Extension]) -> Result<Arc<str>, FieldError> {
    let Some(config) = extension(all, karst_api::POD_TYPE) else { return Ok(text("")) };
    let pod = karst_api::route::Pod::decode(config).map_err(FieldError::Pod)?;
    Ok(karst_core::zds_uid(&pod.uid).into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use crate::testing::{pod, service, snapshot};

    #[test]
    fn session_affinity_has_a_timeout_or_is_none() {
        let mut other = service("s", "10.96.0.1", &[(80, 8080)]);
        let of =
            |s: pb::Service| snapshot(vec![], vec![s]).service("10.96.0.1".parse().unwrap(), "ns").unwrap().affinity;
        assert_eq!(of(other.clone()), None);
        other.karst_session_affinity_seconds = 10_800;
        assert_eq!(of(other), Some(Duration::from_secs(10_800)));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let mut w = pod("a", "10.0.0.1", &[]);
        w.tunnel_protocol = 9;
        assert!(workload(w).unwrap_err().to_string().contains("tunnel protocol"));
        let mut w = pod("a", "10.0.0.1", &[]);
        w.waypoint = Some(pb::GatewayAddress::default());
        assert!(workload(w).is_err());
        let mut w = pod("a", "10.0.0.1", &[]);
        w.service_account = "a/b".into();
        assert!(workload(w).is_err());
    }
}
