//! What is to be known of Services and ServiceEntries by all that refer to them, automatic addresses among it.

use crate::convert::{facts::waypoint, objects::Objects};
use karst_api::workload::AppProtocol;
use karst_manifest::{Resolution, kinds::*};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The host name of a Kubernetes service.
pub(crate) fn hostname(objects: &Objects<'_>, service: &Service) -> String {
    format!("{}.{}.svc.{}", service.metadata.name, service.metadata.namespace, objects.mesh.cluster_domain)
}

/// The Kubernetes service that has a host name, by namespace and name, if there is one.
pub(crate) fn of_hostname<'h>(objects: &Objects<'_>, host: &'h str) -> Option<(&'h str, &'h str)> {
    let own = host.strip_suffix(objects.mesh.cluster_domain.as_str())?.strip_suffix(".svc.")?;
    let (name, namespace) = own.split_once('.')?;
    objects.service(namespace, name).filter(|service| !is_alias(service)).map(|_| (namespace, name))
}

/// Is it another name for a host, and no service of its own?
pub(crate) fn is_alias(service: &Service) -> bool {
    service.spec.kind == "ExternalName"
}

/// A Service of type ExternalName is no backend, no parent and no target: it would lead past ReferenceGrants, and out of the cluster
/// (Gateway API: implementations should not support it, CVE-2021-25740). What it stands for is told in its own namespace (`reader`).
pub(crate) fn alias_text(service: &Service, role: &str, reader: &str) -> String {
    let Service { metadata: Meta { name, namespace, .. }, spec, .. } = service;
    let other = match namespace == reader {
        true => format!("{:?} itself", spec.external_name),
        false => "the host that it stands for".into(),
    };
    format!(
        "Service {namespace}/{name} has type ExternalName, which is not supported as a {role}: refer to {other} [KARST-0321]"
    )
}

/// The protocol by `appProtocol`, else by the port name's prefix (Istio's protocol selection).
pub(crate) fn protocol(app: Option<&str>, name: &str) -> AppProtocol {
    let text = match app {
        Some(a) => a.to_ascii_lowercase(),
        None => name.split('-').next().unwrap_or("").to_ascii_lowercase(),
    };
    match text.as_str() {
        "http" | "http1" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" | "grpc-web" => AppProtocol::Grpc,
        "tcp" | "mongo" | "mysql" | "redis" => AppProtocol::Tcp,
        "tls" | "https" | "kubernetes.io/wss" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

/// Do browsers call it by gRPC-Web? By `appProtocol`, else by the port's name (`grpc-web`, `grpc-web-NAME`).
pub(crate) fn is_grpc_web(app: Option<&str>, name: &str) -> bool {
    match app {
        Some(app) => app.eq_ignore_ascii_case("grpc-web"),
        None => {
            let name = name.to_ascii_lowercase();
            name == "grpc-web" || name.starts_with("grpc-web-")
        }
    }
}

pub(crate) fn tcp(protocol: &str) -> bool {
    matches!(protocol, "" | "TCP")
}

pub(crate) fn udp(protocol: &str) -> bool {
    protocol == "UDP"
}

/// Are its endpoints what the host of each request resolves to?
pub(crate) fn is_by_name(entry: &ServiceEntry) -> bool {
    entry.spec.resolution() == Resolution::DynamicDns
}

/// Does only its own namespace know it? (Istio's ambient mode passes `exportTo` over, so that everybody could redirect the hosts of
/// others by an entry that says it is private.)
pub(crate) fn is_private(entry: &ServiceEntry) -> bool {
    !entry.spec.export_to.is_empty() && entry.spec.export_to.iter().all(|n| n == "." || *n == entry.metadata.namespace)
}
/// Does nobody know it?
pub(crate) fn is_hidden(entry: &ServiceEntry) -> bool {
    !entry.spec.export_to.is_empty() && entry.spec.export_to.iter().all(|n| n == "~")
}

/// Why nobody can be reached by this entry: only a waypoint can do what it asks for.
pub(crate) fn missing_waypoint(objects: &Objects<'_>, entry: &ServiceEntry) -> Option<&'static str> {
    let m = &entry.metadata;
    let bound = || waypoint::of(objects, &m.namespace, &m.labels, waypoint::Traffic::Service).is_some();
    (is_by_name(entry) && !bound()).then_some(
        "resolution DYNAMIC_DNS requires a waypoint, which resolves the host of each request: label the entry istio.io/use-waypoint [KARST-0209]",
    )
}

/// Addresses that we give, by namespace and name of the ServiceEntry, and host.
pub(crate) type Automatic<'a> = BTreeMap<(&'a str, &'a str, &'a str), Vec<IpAddr>>;

/// Addresses of hosts of ServiceEntries that name none: one of each family, as in Istio. Those that a status tells stay, so that
/// nothing that has been given changes hands; others follow from the name's hash, so that they are the same at each compile
/// (and in directory mode, where there is no status to keep them in).
pub(crate) fn automatic<'a>(objects: &Objects<'a>) -> Automatic<'a> {
    let mut out = Automatic::new();
    let mut taken = BTreeSet::new();
    let all = || objects.service_entries.iter().flat_map(|&(_, e)| e.spec.hosts.iter().map(move |h| (e, h.as_str())));
    let wanting = || all().filter(|(e, h)| wants_addresses(e, h));
    for (entry, host) in wanting() {
        let told =
            entry.status.addresses.iter().filter(|a| a.host == host).filter_map(|a| a.value.parse::<IpAddr>().ok());
        for ip in told {
            let given: &mut Vec<IpAddr> =
                out.entry((&entry.metadata.namespace, &entry.metadata.name, host)).or_default();
            let first = given.iter().all(|g| g.is_ipv4() != ip.is_ipv4());
            if is_automatic(ip) && first && taken.insert(ip) {
                given.push(ip);
            }
        }
    }
    for (e, h) in wanting() {
        let given = out.entry((&e.metadata.namespace, &e.metadata.name, h)).or_default();
        let name = format!("{}/{h}", e.metadata.namespace);
        for ipv4 in [true, false] {
            if given.iter().all(|g| g.is_ipv4() != ipv4) {
                given.extend(allocate(&name, ipv4, &mut taken));
            }
        }
        given.sort();
    }
    out
}

/// Does this host of a ServiceEntry get addresses from us?
fn wants_addresses(entry: &ServiceEntry, host: &str) -> bool {
    let auto = entry.metadata.labels.get("networking.istio.io/enable-autoallocate-ip").is_none_or(|v| v != "false");
    let none = entry.spec.resolution() == Resolution::None;
    // A wildcard stands for an address where the waypoint behind it finds the name again.
    let named = host != "*" && (!host.starts_with('*') || is_by_name(entry));
    entry.spec.addresses.is_empty() && !none && auto && named && !is_hidden(entry)
}

/// Istio's ranges for automatic allocation: 240.240.0.0/16 and 2001:2::/48.
fn is_automatic(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets().starts_with(&[240, 240]),
        IpAddr::V6(ip) => ip.segments().starts_with(&[0x2001, 2, 0]),
    }
}

/// An address of one of these ranges, by the name's hash; the next one that is free. None: all are taken.
fn allocate(name: &str, ipv4: bool, taken: &mut BTreeSet<IpAddr>) -> Option<IpAddr> {
    let hash = xxhash_rust::xxh64::xxh64(name.as_bytes(), 0);
    let at = |offset: u16| -> IpAddr {
        if ipv4 {
            let [a, b] = ((hash % 65_000) as u16).wrapping_add(offset).max(1).to_be_bytes();
            return Ipv4Addr::new(240, 240, a, b).into();
        }
        let low = u128::from(hash.wrapping_add(u64::from(offset)).max(1));
        Ipv6Addr::from_bits(u128::from(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0)) | low).into()
    };
    (0..=u16::MAX).map(at).find(|ip| taken.insert(*ip))
}
