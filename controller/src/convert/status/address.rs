//! Where a Gateway that is no waypoint is reached, and which of the addresses that it asks for it does not have (Gateway API:
//! spec.addresses). Of its Service one address can be asked for (`loadBalancerIP`); what the load balancer has given counts.

use crate::convert::{
    deploy,
    facts::service,
    objects::{MANAGED, Objects},
};
use karst_manifest::kinds::{Gateway, GatewayAddress, Service};
use std::net::IpAddr;

/// Why a Gateway is not, or not yet, reached as it asks.
pub(crate) struct Unreached {
    /// Of Gateway API, for the condition Programmed.
    pub(crate) reason: &'static str,
    pub(crate) text: String,
    /// The addresses that it has all the same.
    pub(crate) bound: Vec<GatewayAddress>,
}

impl Unreached {
    fn nowhere(reason: &'static str, text: String) -> Self {
        Self { reason, text, bound: vec![] }
    }
}

const HOSTNAME: &str = "Hostname";
const IP: &str = "IPAddress";
const NOT_USABLE: &str = "AddressNotUsable";
const NOT_ASSIGNED: &str = "AddressNotAssigned";

/// An address of a type that is not known.
pub(crate) fn unsupported(gateway: &Gateway) -> Option<&GatewayAddress> {
    gateway.spec.addresses.iter().find(|a| !matches!(kind(a), IP | HOSTNAME))
}

/// The addresses by which a Gateway is reached. `name`: of what is deployed for it; `ports`: those of its own listeners, and
/// whether each is one of UDP.
///
/// # Errors
/// Why it is not, or not as it asks.
pub(crate) fn of(
    objects: &Objects<'_>,
    gateway: &Gateway,
    name: &str,
    ports: &[(u16, bool)],
) -> Result<Vec<GatewayAddress>, Unreached> {
    if deploy::given(gateway).is_some() {
        return elsewhere(objects, gateway, ports);
    }
    let meta = &gateway.metadata;
    let what = format!("Service {}/{name}", meta.namespace);
    let service = objects
        .service(&meta.namespace, name)
        .ok_or_else(|| Unreached::nowhere(NOT_ASSIGNED, format!("{what} does not exist yet [KARST-0510]")))?;
    if !service.metadata.labels.contains_key(MANAGED) {
        let text = format!("{what} is not managed by Karst: rename the Gateway [KARST-0511]");
        return Err(Unreached::nowhere(NOT_USABLE, text));
    }
    let found = published(service, &format!("{name}.{}.svc.{}", meta.namespace, objects.mesh.cluster_domain));
    let is_there = |value: &str| found.iter().any(|f| is_same(&f.value, value));
    let asked = gateway.spec.addresses.iter().filter(|a| !a.value.is_empty());
    let lost: Vec<&str> = asked.map(|a| a.value.as_str()).filter(|value| !is_there(value)).collect();
    if !lost.is_empty() {
        let text = lacking(&what, service, &lost);
        return Err(Unreached { reason: NOT_USABLE, text, bound: found });
    }
    if found.is_empty() {
        let text = format!(
            "{what} of type LoadBalancer has no address yet: the cluster needs a load balancer controller, or annotate the Gateway with networking.istio.io/service-type: ClusterIP [KARST-0510]"
        );
        return Err(Unreached::nowhere(NOT_ASSIGNED, text));
    }
    // Without a value: any address of the type.
    let mut any = gateway.spec.addresses.iter().filter(|a| a.value.is_empty()).map(kind);
    if let Some(kind) = any.find(|kind| found.iter().all(|f| f.kind != *kind)) {
        let text =
            format!("{what} has no address of type {kind}: remove it from spec.addresses, or use another [KARST-0510]");
        return Err(Unreached { reason: NOT_ASSIGNED, text, bound: found });
    }
    let deployment = objects.deployments.get(&(meta.namespace.as_str(), name));
    if deployment.is_none_or(|d| d.status.available_replicas == 0) {
        let text = format!("Deployment {}/{name} has no available pod yet [KARST-0510]", meta.namespace);
        // What was reached once stays known: its pods may come and go.
        return Err(Unreached { reason: "Pending", text, bound: gateway.status.addresses.clone() });
    }
    Ok(found)
}

/// Where somebody else runs it: at the host names that the Gateway gives, each of which may be that of a Service here.
fn elsewhere(
    objects: &Objects<'_>,
    gateway: &Gateway,
    ports: &[(u16, bool)],
) -> Result<Vec<GatewayAddress>, Unreached> {
    if let Some(text) = lacks_port(objects, gateway, ports) {
        return Err(Unreached::nowhere(NOT_USABLE, text));
    }
    let services = named_services(objects, gateway);
    let all = gateway.spec.addresses.iter().filter(|a| !a.value.is_empty());
    let (hosts, ips): (Vec<_>, Vec<_>) = all.partition(|a| kind(a) == HOSTNAME);
    let owned = |value: &str| services.iter().any(|(_, s)| ips_of(s).any(|ip| is_same(ip, value)));
    let bound: Vec<_> = hosts.iter().map(|a| address(HOSTNAME, &a.value)).collect();
    let (ours, lost): (Vec<_>, Vec<_>) = ips.into_iter().partition(|a| owned(&a.value));
    if let Some(lost) = lost.first() {
        let text = format!(
            "{} is no address of a Service that spec.addresses names by its host name: remove it, or name that Service [KARST-0510]",
            lost.value
        );
        return Err(Unreached { reason: NOT_USABLE, text, bound });
    }
    Ok(bound.into_iter().chain(ours.into_iter().map(|a| address(IP, &a.value))).collect())
}

/// The Services here by whose host names somebody else runs a Gateway.
fn named_services<'a, 'b>(objects: &Objects<'a>, gateway: &'b Gateway) -> Vec<(&'b str, &'a Service)> {
    let named = |host: &str| {
        let mut services = objects.services.values().flatten();
        services.find(|s| service::hostname(objects, s) == host).copied()
    };
    let hosts = gateway.spec.addresses.iter().filter(|a| kind(a) == HOSTNAME && !a.value.is_empty());
    hosts.filter_map(|a| Some((a.value.as_str(), named(&a.value)?))).collect()
}

/// Which of these ports (and whether it is one of UDP) a Service does not have by whose host name somebody else runs the Gateway, and
/// what to do.
pub(crate) fn lacks_port(objects: &Objects<'_>, gateway: &Gateway, ports: &[(u16, bool)]) -> Option<String> {
    named_services(objects, gateway).into_iter().find_map(|(host, service)| {
        let has = |(port, udp): (u16, bool)| {
            let is_protocol: fn(&str) -> bool = if udp { service::udp } else { service::tcp };
            service.spec.ports.iter().any(|p| p.port == port && is_protocol(&p.protocol))
        };
        let (port, _) = ports.iter().find(|port| !has(**port))?;
        Some(format!("port {port} not found for hostname {host}: add the port to that Service [KARST-0509]"))
    })
}

/// What a Service lacks of what is asked for, and what to do.
fn lacking(what: &str, service: &Service, lost: &[&str]) -> String {
    let lost = lost.join(", ");
    match service.spec.kind.as_str() {
        kind @ ("ClusterIP" | "NodePort") => format!(
            "{what} of type {kind} cannot have the address {lost}: remove it from spec.addresses, or the annotation networking.istio.io/service-type [KARST-0510]"
        ),
        _ => format!(
            "{what} was not assigned the address {lost}: use one that the load balancer controller can assign (spec.loadBalancerIP takes one) [KARST-0510]"
        ),
    }
}

fn kind(address: &GatewayAddress) -> &str {
    if address.kind.is_empty() { IP } else { &address.kind }
}

fn address(kind: &str, value: &str) -> GatewayAddress {
    GatewayAddress { kind: kind.into(), value: value.into() }
}

/// Addresses may be written in several ways.
fn is_same(one: &str, other: &str) -> bool {
    match (one.parse::<IpAddr>(), other.parse::<IpAddr>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one.eq_ignore_ascii_case(other),
    }
}

fn ips_of(service: &Service) -> impl Iterator<Item = &str> {
    let given = service.status.load_balancer.ingress.iter().map(|i| i.ip.as_str());
    let own = service.spec.cluster_ips.iter().chain([&service.spec.cluster_ip]).chain(&service.spec.external_ips);
    given.chain(own.map(String::as_str)).filter(|ip| !ip.is_empty())
}

fn published(service: &Service, host: &str) -> Vec<GatewayAddress> {
    let mut all: Vec<_> = service.spec.external_ips.iter().map(|i| address(IP, i)).collect();
    for i in &service.status.load_balancer.ingress {
        all.push(if i.ip.is_empty() { address(HOSTNAME, &i.hostname) } else { address(IP, &i.ip) });
    }
    if all.is_empty() && service.spec.kind != "LoadBalancer" {
        all.push(address(HOSTNAME, host));
    }
    all
}
