//! Where a Gateway that is no waypoint is reached, and which of the addresses that it asks for it does not have (Gateway API:
//! spec.addresses; of where they are reached from, GEP-5093). Each that it asks for has one of its own, or none. Of its Service one
//! address of the load balancer (`loadBalancerIP`) and one of the cluster (`clusterIP`) can be asked for; what it has counts.

use crate::convert::{
    deploy,
    facts::{
        routability::{self, CLUSTER, IP, Routability, SENTINEL, cluster_ips},
        service,
    },
    objects::{MANAGED, Objects},
};
use karst_manifest::kinds::{Gateway, GatewayAddress, Service};
use std::{collections::BTreeMap, net::IpAddr};

/// Where a Gateway is reached, and what it lacks of what it asks for.
pub(crate) struct Reached {
    /// One for each that it asks for and has; all that it has, if it asks for none.
    pub(crate) addresses: Vec<GatewayAddress>,
    /// Why it is not, or not yet, reached: a reason of Gateway API for the condition Programmed, and the words.
    pub(crate) unreached: Option<(&'static str, String)>,
    /// None: nobody is served there yet, and it is not told where that will be.
    pub(crate) assigned: Option<Assigned>,
}

/// Which of the addresses that a Gateway asks for it has. Of the others it is said why.
pub(crate) enum Assigned {
    All,
    Part(String),
    Nothing(String),
}

const HOSTNAME: &str = "Hostname";
const NOT_USABLE: &str = "AddressNotUsable";
const NOT_ASSIGNED: &str = "AddressNotAssigned";

impl Reached {
    fn nowhere(reason: &'static str, text: String) -> Self {
        let assigned = Some(Assigned::Nothing(text.clone()));
        Self { addresses: vec![], unreached: Some((reason, text)), assigned }
    }

    fn at(addresses: Vec<GatewayAddress>) -> Self {
        Self { addresses, unreached: None, assigned: Some(Assigned::All) }
    }

    /// At those of the offers that are asked for. `why` says of one that is not among them what to do.
    fn among(asked: &[GatewayAddress], offers: Vec<Offer>, why: impl Fn(&GatewayAddress) -> String) -> Self {
        let (addresses, lost) = assign(asked, offers);
        if lost.is_empty() {
            return Self::at(addresses);
        }
        let all = lost.iter().map(|(place, address)| format!("spec.addresses[{place}]: {}", why(address)));
        let text = all.collect::<Vec<_>>().join("; ");
        // Who names an address wants that one; of others those that are there serve (GEP-5093).
        let is_named = |address: &GatewayAddress| {
            !address.value.is_empty() && routability::asked(address) == Some(Routability::Default)
        };
        let unreached = match (lost.iter().any(|(_, address)| is_named(address)), addresses.is_empty()) {
            (true, _) => Some((NOT_USABLE, text.clone())),
            (false, true) => Some((NOT_ASSIGNED, text.clone())),
            (false, false) => None,
        };
        let assigned = if addresses.is_empty() { Assigned::Nothing(text) } else { Assigned::Part(text) };
        Self { addresses, unreached, assigned: Some(assigned) }
    }
}

/// An address that a Gateway has.
struct Offer {
    kind: &'static str,
    value: String,
    /// It is a cluster IP, or stands for such only.
    is_cluster: bool,
    /// Who does not say from where it is to be reached may have it.
    by_default: bool,
}

impl Offer {
    fn fits(&self, asked: &GatewayAddress) -> bool {
        let is_in_reach = match routability::asked(asked) {
            Some(Routability::Default | Routability::Sentinel) => self.by_default,
            Some(Routability::Cluster) => self.is_cluster,
            None => false,
        };
        is_in_reach && self.kind == kind(asked) && (asked.value.is_empty() || is_same(&self.value, &asked.value))
    }

    /// As the status has it. `asked`: what asks for it, if something does.
    fn told(self, asked: Option<&GatewayAddress>) -> GatewayAddress {
        let routability = match asked.and_then(routability::asked) {
            Some(Routability::Sentinel) => SENTINEL,
            Some(Routability::Default | Routability::Cluster) | None if self.is_cluster => CLUSTER,
            Some(Routability::Default | Routability::Cluster) | None => "",
        };
        GatewayAddress { kind: self.kind.into(), value: self.value, routability: Some(routability.into()) }
    }
}

/// A distinct one of the offers for each address that is asked for, in this order; and those that there is none for, with their places.
fn assign(asked: &[GatewayAddress], mut offers: Vec<Offer>) -> (Vec<GatewayAddress>, Vec<(usize, &GatewayAddress)>) {
    let mut order: Vec<(usize, &GatewayAddress)> = asked.iter().enumerate().collect();
    // Who asks for more is first.
    order.sort_by_key(|(_, a)| (a.value.is_empty(), routability::asked(a) != Some(Routability::Cluster)));
    let mut found = BTreeMap::new();
    for (place, address) in order {
        if let Some(at) = offers.iter().position(|offer| offer.fits(address)) {
            found.insert(place, offers.remove(at).told(Some(address)));
        }
    }
    let lost = asked.iter().enumerate().filter(|(place, _)| !found.contains_key(place)).collect();
    (found.into_values().collect(), lost)
}

/// An address of a type that is not known.
pub(crate) fn unsupported(gateway: &Gateway) -> Option<&GatewayAddress> {
    gateway.spec.addresses.iter().find(|a| !matches!(kind(a), IP | HOSTNAME))
}

/// Why a type of address is refused.
pub(crate) fn unsupported_text(kind: &str) -> String {
    format!("unsupported address type {kind:?}: use {IP} or {HOSTNAME} [KARST-0513]")
}

/// The addresses by which a Gateway is reached. `name`: of what is deployed for it; `ports`: those of its own listeners, and
/// whether each is one of UDP.
pub(crate) fn of(objects: &Objects<'_>, gateway: &Gateway, name: &str, ports: &[(u16, bool)]) -> Reached {
    let mut reached = match deploy::given(gateway) {
        Some(_) => elsewhere(objects, gateway, ports),
        None => deployed(objects, gateway, name),
    };
    if !objects.has_routability {
        reached.addresses.iter_mut().for_each(|address| address.routability = None);
    }
    reached
}

/// Where we run it: at its Service.
fn deployed(objects: &Objects<'_>, gateway: &Gateway, name: &str) -> Reached {
    let meta = &gateway.metadata;
    let what = format!("Service {}/{name}", meta.namespace);
    let Some(service) = objects.service(&meta.namespace, name) else {
        let text = match routability::cluster_ip(objects, gateway, name) {
            Some(ip) => format!(
                "{what} does not exist yet: if that lasts, the API server does not give it the cluster IP {ip} [KARST-0510]"
            ),
            None => format!("{what} does not exist yet [KARST-0510]"),
        };
        return Reached::nowhere(NOT_ASSIGNED, text);
    };
    if !service.metadata.labels.contains_key(MANAGED) {
        let text = format!("{what} is not managed by Karst: rename the Gateway [KARST-0511]");
        return Reached::nowhere(NOT_USABLE, text);
    }
    let mut reached = at_service(objects, &gateway.spec.addresses, &what, service);
    let deployment = objects.deployments.get(&(meta.namespace.as_str(), name));
    if reached.unreached.is_none() && deployment.is_none_or(|d| d.status.available_replicas == 0) {
        let text = format!("Deployment {}/{name} has no available pod yet [KARST-0510]", meta.namespace);
        reached.unreached = Some(("Pending", text));
        // What was reached once stays known: its pods may come and go.
        if gateway.status.addresses.is_empty() {
            (reached.addresses, reached.assigned) = (vec![], None);
        }
    }
    reached
}

/// What of the addresses that are asked for a Service of ours has. `what`: the Service, in words.
fn at_service(objects: &Objects<'_>, asked: &[GatewayAddress], what: &str, service: &Service) -> Reached {
    let (outside, inside) = (outside(service), inside(service, service::hostname(objects, service)));
    if !asked.is_empty() {
        let offers = outside.into_iter().chain(inside).collect();
        return Reached::among(asked, offers, |address| lacking(objects, what, service, address));
    }
    // Its name is told where it is all that there is.
    let all = match outside.is_empty() && service.spec.kind != BALANCED {
        true => inside.into_iter().filter(|offer| offer.kind == HOSTNAME).collect(),
        false => outside,
    };
    match all.is_empty() {
        true => Reached::nowhere(NOT_ASSIGNED, unbalanced(what)),
        false => Reached::at(all.into_iter().map(|offer| offer.told(None)).collect()),
    }
}

const BALANCED: &str = "LoadBalancer";

fn unbalanced(what: &str) -> String {
    format!(
        "{what} of type {BALANCED} has no address yet: the cluster needs a load balancer controller, or annotate the Gateway with networking.istio.io/service-type: ClusterIP [KARST-0510]"
    )
}

/// Where somebody else runs it: at the host names that the Gateway gives, each of which may be that of a Service here.
fn elsewhere(objects: &Objects<'_>, gateway: &Gateway, ports: &[(u16, bool)]) -> Reached {
    if let Some(text) = lacks_port(objects, gateway, ports) {
        return Reached::nowhere(NOT_USABLE, text);
    }
    let services = named_services(objects, gateway);
    let hosts = gateway.spec.addresses.iter().filter(|a| kind(a) == HOSTNAME && !a.value.is_empty());
    let is_cluster =
        |host: &str| services.iter().any(|(name, service)| *name == host && !cluster_ips(service).is_empty());
    let mut offers: Vec<Offer> = hosts.map(|a| own(HOSTNAME, a.value.clone(), is_cluster(&a.value))).collect();
    for (_, service) in &services {
        offers.extend(outside(service));
        offers.extend(cluster_ips(service).into_iter().map(|ip| own(IP, ip.to_string(), true)));
    }
    Reached::among(&gateway.spec.addresses, offers, unnamed)
}

fn own(kind: &'static str, value: String, is_cluster: bool) -> Offer {
    Offer { kind, value, is_cluster, by_default: true }
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

/// Why an address cannot be had, whoever runs the Gateway.
fn impossible(asked: &GatewayAddress) -> Option<String> {
    if !matches!(kind(asked), IP | HOSTNAME) {
        return Some(unsupported_text(kind(asked)));
    }
    let routability = asked.routability.as_deref().unwrap_or_default();
    let text = || format!("unsupported routability {routability:?}: use {CLUSTER}, or remove it [KARST-0016]");
    routability::asked(asked).is_none().then(text)
}

/// Why a Service does not have an address that is asked for, and what to do.
fn lacking(objects: &Objects<'_>, what: &str, service: &Service, asked: &GatewayAddress) -> String {
    if let Some(text) = impossible(asked) {
        return text;
    }
    let (type_, kind) = (service.spec.kind.as_str(), kind(asked));
    if routability::asked(asked) == Some(Routability::Cluster) {
        return match asked.value.parse::<IpAddr>().map(|ip| routability::obtainable(objects, service, ip)) {
            Ok(Err(e)) => e.to_string(),
            Ok(Ok(())) | Err(_) => format!(
                "{what} has no cluster IP for it, or another entry has it: remove it from spec.addresses [KARST-0510]"
            ),
        };
    }
    match (asked.value.as_str(), type_) {
        ("", BALANCED) if service.status.load_balancer.ingress.is_empty() => unbalanced(what),
        ("", _) => {
            format!("{what} has no address of type {kind}: remove it from spec.addresses, or use another [KARST-0510]")
        }
        (lost, "ClusterIP" | "NodePort") => format!(
            "{what} of type {type_} cannot have the address {lost}: remove it from spec.addresses, or the annotation networking.istio.io/service-type [KARST-0510]"
        ),
        (lost, _) => format!(
            "{what} was not assigned the address {lost}: use one that the load balancer controller can assign (spec.loadBalancerIP takes one) [KARST-0510]"
        ),
    }
}

/// Why a Gateway that somebody else runs does not have an address.
fn unnamed(asked: &GatewayAddress) -> String {
    if let Some(text) = impossible(asked) {
        return text;
    }
    let (which, of) = match (asked.value.as_str(), routability::asked(asked)) {
        ("", _) => (kind(asked), "address"),
        (value, Some(Routability::Cluster)) => (value, "cluster IP"),
        (value, _) => (value, "address"),
    };
    format!(
        "{which} is no {of} of a Service that spec.addresses names by its host name: remove it, or name that Service [KARST-0510]"
    )
}

fn kind(address: &GatewayAddress) -> &str {
    if address.kind.is_empty() { IP } else { &address.kind }
}

/// Addresses may be written in several ways.
fn is_same(one: &str, other: &str) -> bool {
    match (one.parse::<IpAddr>(), other.parse::<IpAddr>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one.eq_ignore_ascii_case(other),
    }
}

/// What leads to a Service from outside of the cluster.
fn outside(service: &Service) -> Vec<Offer> {
    let mut all: Vec<_> = service.spec.external_ips.iter().map(|ip| own(IP, ip.clone(), false)).collect();
    for i in &service.status.load_balancer.ingress {
        all.push(if i.ip.is_empty() { own(HOSTNAME, i.hostname.clone(), false) } else { own(IP, i.ip.clone(), false) });
    }
    all
}

/// What leads to a Service within the cluster; who has a load balancer has it on request. Its name stands for its cluster IPs.
fn inside(service: &Service, host: String) -> Vec<Offer> {
    let (ips, by_default) = (cluster_ips(service), service.spec.kind != BALANCED);
    let name = Offer { by_default, ..own(HOSTNAME, host, !ips.is_empty()) };
    let ips = ips.into_iter().map(|ip| Offer { by_default, ..own(IP, ip.to_string(), true) });
    ips.chain([name]).collect()
}
