//! Where addresses of Gateways are reached from (`routability`, GEP-5093): what is asked for, and which cluster IP the Service of a
//! Gateway may ask for. What must hold: nothing is given in place of what is asked for. A Gateway all of whose addresses are asked for
//! within the cluster, or in a way that is not supported, has no load balancer.

use crate::convert::objects::Objects;
use karst_core::Cidr;
use karst_manifest::kinds::{Gateway, GatewayAddress, Service};
use std::net::IpAddr;

/// A cluster IP.
pub(crate) const CLUSTER: &str = "Cluster";
/// Reserved for tests of conformance: it is supported, and means nothing.
pub(crate) const SENTINEL: &str = "testing.x-k8s.io/sentinel";
/// The type of address that has the meaning for all implementations.
pub(crate) const IP: &str = "IPAddress";

/// Where an address is asked to be reached from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Routability {
    /// From wherever it is.
    Default,
    /// From within the cluster.
    Cluster,
    /// From wherever it is, and told so.
    Sentinel,
}

/// Why a Service cannot have a cluster IP that is asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterIpError {
    #[error("{0} is in no ServiceCIDR of the cluster: use an address of one, or remove value [KARST-0510]")]
    Outside(IpAddr),
    #[error("{0} is the cluster IP of Service {1}: use one that is free, or remove value [KARST-0510]")]
    Taken(IpAddr, String),
    #[error(
        "Service {1} has the cluster IP {0}, which cannot be changed: use that one, or delete the Service, which is then made anew [KARST-0510]"
    )]
    Fixed(IpAddr, String),
}

/// What an address asks for. None: what is not supported.
pub(crate) fn asked(address: &GatewayAddress) -> Option<Routability> {
    match address.routability.as_deref().unwrap_or_default() {
        "" => Some(Routability::Default),
        CLUSTER => Some(Routability::Cluster),
        SENTINEL => Some(Routability::Sentinel),
        _ => None,
    }
}

/// May an address be one that the load balancer assigns?
pub(crate) fn is_from_anywhere(address: &GatewayAddress) -> bool {
    matches!(asked(address), Some(Routability::Default | Routability::Sentinel))
}

/// Does a Gateway ask for addresses, and for none from outside of the cluster?
pub(crate) fn is_internal(gateway: &Gateway) -> bool {
    let all = &gateway.spec.addresses;
    !all.is_empty() && !all.iter().any(is_from_anywhere)
}

/// The cluster IPs of a Service.
pub(crate) fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let mut found = vec![];
    // The first stands in both fields; a headless Service has a word there.
    for text in [&service.spec.cluster_ip].into_iter().chain(&service.spec.cluster_ips) {
        match text.parse::<IpAddr>() {
            Ok(ip) if !found.contains(&ip) => found.push(ip),
            Ok(_) | Err(_) => {}
        }
    }
    found
}

/// The first cluster IP that a Gateway asks for by its value.
pub(crate) fn named(gateway: &Gateway) -> Option<IpAddr> {
    let is_one =
        |a: &&GatewayAddress| matches!(a.kind.as_str(), "" | IP) && matches!(asked(a), Some(Routability::Cluster));
    gateway.spec.addresses.iter().filter(is_one).find_map(|a| a.value.parse().ok())
}

/// The cluster IP that the Service of a Gateway asks for; a Service can ask for one. (With one that it cannot have the API server would
/// refuse the whole Service, its ports too.) `name`: the Service's.
pub(crate) fn cluster_ip(objects: &Objects<'_>, gateway: &Gateway, name: &str) -> Option<IpAddr> {
    let ip = named(gateway)?;
    match objects.service(&gateway.metadata.namespace, name) {
        // One that it has cannot be changed.
        Some(own) => own.spec.cluster_ip.parse::<IpAddr>().is_ok_and(|own| own == ip).then_some(ip),
        None => free(objects, ip).ok().map(|()| ip),
    }
}

/// Can a Service have a cluster IP that it does not have?
///
/// # Errors
/// Why not.
pub(crate) fn obtainable(objects: &Objects<'_>, service: &Service, ip: IpAddr) -> Result<(), ClusterIpError> {
    let meta = &service.metadata;
    match cluster_ips(service).into_iter().next() {
        Some(own) => Err(ClusterIpError::Fixed(own, format!("{}/{}", meta.namespace, meta.name))),
        None => free(objects, ip),
    }
}

/// Can a new Service have a cluster IP? An older API server does not tell its ranges: then it is to judge.
fn free(objects: &Objects<'_>, ip: IpAddr) -> Result<(), ClusterIpError> {
    let ranges = objects.service_cidrs.iter().flat_map(|all| &all.spec.cidrs);
    let ranges: Vec<Cidr> = ranges.filter_map(|text| text.parse().ok()).collect();
    if !ranges.is_empty() && !ranges.iter().any(|range| range.contains(ip)) {
        return Err(ClusterIpError::Outside(ip));
    }
    let mut others = objects.services.values().flatten();
    match others.find(|service| cluster_ips(service).contains(&ip)) {
        Some(other) => {
            let name = format!("{}/{}", other.metadata.namespace, other.metadata.name);
            Err(ClusterIpError::Taken(ip, name))
        }
        None => Ok(()),
    }
}
