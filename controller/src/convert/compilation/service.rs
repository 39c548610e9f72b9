//! Services and ServiceEntries to `istio.workload.Service` (reference control-plane §2.5).

use crate::{
    convert::{
        facts::{
            service::{Automatic, automatic, hostname, is_alias, is_grpc_web, is_hidden, is_private, protocol, tcp},
            udp, validate, waypoint,
        },
        objects::{Objects, age, problem},
    },
    model::Model,
};
use karst_api::{
    workload as pb,
    workload::{
        IpFamilies, LoadBalancing, NetworkAddress, Port,
        load_balancing::{HealthPolicy, Mode, Scope},
    },
};
use karst_core::{Cidr, addr::ip_to_bytes};
use karst_manifest::{Problem, Resolution, kinds::*};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
};

/// The key of a service: `namespace/hostname`.
pub(crate) fn key(service: &pb::Service) -> String {
    format!("{}/{}", service.namespace, service.hostname)
}

pub(crate) fn compile(objects: &Objects<'_>, model: &mut Model, problems: &mut Vec<Problem>) {
    for s in objects.services.values().flatten().filter(|s| !is_alias(s)) {
        let svc = kubernetes(objects, s);
        model.services.insert(key(&svc), svc);
    }
    let automatic = automatic(objects);
    let mut of_entries = vec![];
    for (at, service_entry) in &objects.service_entries {
        problems
            .extend(validate::service_entry(service_entry).into_iter().map(|(field, text)| problem(at, field, text)));
        if is_hidden(service_entry) {
            continue;
        }
        if service_entry.spec.hosts.is_empty() {
            problems.push(problem(at, "spec.hosts", "is empty: specify at least one host [KARST-0010]"));
        }
        for host in &service_entry.spec.hosts {
            if host == "*" {
                problems.push(problem(
                    at,
                    "spec.hosts",
                    "\"*\" alone is not allowed: specify a host, or a wildcard such as *.example.com [KARST-0022]",
                ));
                continue;
            }
            match entry(objects, service_entry, host, &automatic) {
                Ok(svc) => of_entries.push((age(&service_entry.metadata), *at, svc)),
                // The same for every host of the entry.
                Err((field, message)) => {
                    problems.push(problem(at, field, message));
                    break;
                }
            }
        }
    }
    of_entries.sort_by(|a, b| a.0.cmp(&b.0));
    let mut merged: BTreeMap<String, pb::Service> = BTreeMap::new();
    for (_, at, svc) in of_entries {
        match merged.entry(key(&svc)) {
            Entry::Vacant(v) => {
                v.insert(svc);
            }
            Entry::Occupied(mut first) => {
                if let Err(e) = merge(first.get_mut(), svc) {
                    problems.push(problem(at, "spec.hosts", e.to_string()));
                }
            }
        }
    }
    for (key, svc) in merged {
        // A Kubernetes service of the same name in the namespace wins.
        model.services.entry(key).or_insert(svc);
    }
}

/// A younger ServiceEntry of a host that cannot be one service with the older one.
#[derive(Debug, thiserror::Error)]
#[error(
    "{host} is also a host of ServiceEntry {older}, which is older and has a different {field}: only the older one is in force [KARST-0210]"
)]
struct Unlike {
    host: String,
    older: String,
    field: &'static str,
}

/// Adds what a younger ServiceEntry of the same host and namespace says: its ports and addresses. (Each endpoint has the ports of
/// its own entry.)
fn merge(first: &mut pb::Service, other: pb::Service) -> Result<(), Unlike> {
    let unlike = [
        (first.load_balancing != other.load_balancing, "resolution"),
        (first.visibility != other.visibility, "exportTo"),
    ];
    if let Some((_, field)) = unlike.iter().find(|(differs, _)| *differs) {
        return Err(Unlike { host: other.hostname, older: format!("{}/{}", first.namespace, first.name), field });
    }
    for p in other.ports {
        if first.ports.iter().all(|q| q.service_port != p.service_port) {
            let is_web = other.karst_grpc_web_ports.contains(&p.service_port);
            first.karst_grpc_web_ports.extend(is_web.then_some(p.service_port));
            first.ports.push(p);
        }
    }
    let new: Vec<_> = other.addresses.into_iter().filter(|a| !first.addresses.contains(a)).collect();
    first.addresses.extend(new);
    let new: Vec<_> = other.subject_alt_names.into_iter().filter(|n| !first.subject_alt_names.contains(n)).collect();
    first.subject_alt_names.extend(new);
    Ok(())
}

fn kubernetes(objects: &Objects<'_>, service: &Service) -> pb::Service {
    let spec = &service.spec;
    let mut ips: Vec<&String> = spec.cluster_ips.iter().collect();
    if ips.is_empty() {
        ips.push(&spec.cluster_ip);
    }
    let addresses = ips.iter().filter_map(|i| i.parse::<IpAddr>().ok()).map(|ip| address(objects, ip, None)).collect();
    let ports = spec.ports.iter().filter(|p| tcp(&p.protocol)).map(|port| Port {
        service_port: u32::from(port.port),
        target_port: match &port.target_port {
            // Its slices say so, for each endpoint.
            _ if spec.selector.is_empty() => 0,
            None => u32::from(port.port),
            Some(IntOrString::Int(n)) => u32::from(*n),
            Some(IntOrString::String(_)) => 0,
        },
        app_protocol: protocol(port.app_protocol.as_deref(), &port.name) as i32,
    });
    let ip_families = match spec.ip_families.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["IPv4"] => IpFamilies::Ipv4Only,
        ["IPv6"] => IpFamilies::Ipv6Only,
        [_, _] => IpFamilies::Dual,
        _ => IpFamilies::Automatic,
    };
    pb::Service {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        hostname: hostname(objects, service),
        addresses,
        ports: ports.collect(),
        waypoint: waypoint::of(
            objects,
            &service.metadata.namespace,
            &service.metadata.labels,
            waypoint::Traffic::Service,
        ),
        weighted_waypoints: waypoint::weighted(objects, &service.metadata),
        load_balancing: balancing(objects, service),
        ip_families: ip_families as i32,
        canonical: true,
        ingress_use_waypoint: ingress_use_waypoint(objects, service),
        karst_session_affinity_seconds: session_affinity(&service.spec),
        karst_udp_ports: udp::numbers(objects, service),
        karst_grpc_web_ports: spec
            .ports
            .iter()
            .filter(|port| tcp(&port.protocol) && is_grpc_web(port.app_protocol.as_deref(), &port.name))
            .map(|port| u32::from(port.port))
            .collect(),
        ..Default::default()
    }
}

fn ingress_use_waypoint(objects: &Objects<'_>, service: &Service) -> bool {
    const KEY: &str = "istio.io/ingress-use-waypoint";
    let ns = objects.namespaces.get(service.metadata.namespace.as_str()).map(|n| &n.metadata.labels);
    service.metadata.labels.get(KEY).or_else(|| ns.and_then(|l| l.get(KEY))).is_some_and(|v| v == "true")
}

/// How long a client stays with its endpoint; 0: not at all. (Kubernetes: 1 to 86,400 seconds, if none are given 10,800.)
fn session_affinity(spec: &ServiceSpec) -> u32 {
    const DEFAULT: u32 = 10_800;
    const MAX: u32 = 86_400;
    match spec.session_affinity.as_str() {
        "ClientIP" => {
            let own = spec.session_affinity_config.client_ip.timeout_seconds;
            own.filter(|n| *n > 0).unwrap_or(DEFAULT).min(MAX)
        }
        _ => 0,
    }
}

fn balancing(objects: &Objects<'_>, service: &Service) -> Option<LoadBalancing> {
    const KEY: &str = "networking.istio.io/traffic-distribution";
    let ns = objects.namespaces.get(service.metadata.namespace.as_str()).and_then(|n| n.metadata.annotations.get(KEY));
    let own = Some(&service.spec.traffic_distribution).filter(|t| !t.is_empty());
    let distribution = own.or_else(|| service.metadata.annotations.get(KEY)).or(ns).map(String::as_str);
    let (mode, scopes): (Mode, &[Scope]) = if service.spec.internal_traffic_policy == "Local" {
        (Mode::Strict, &[Scope::Node])
    } else {
        match distribution {
            Some("PreferClose" | "PreferSameZone") => (Mode::Failover, &[Scope::Network, Scope::Region, Scope::Zone]),
            Some("PreferSameNode") => {
                (Mode::Failover, &[Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node])
            }
            _ => (Mode::UnspecifiedMode, &[]),
        }
    };
    let health =
        if service.spec.publish_not_ready_addresses { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    if mode == Mode::UnspecifiedMode && health == HealthPolicy::OnlyHealthy {
        return None;
    }
    Some(LoadBalancing {
        routing_preference: scopes.iter().map(|s| *s as i32).collect(),
        mode: mode as i32,
        health_policy: health as i32,
    })
}

fn address(objects: &Objects<'_>, ip: IpAddr, length: Option<u32>) -> NetworkAddress {
    NetworkAddress { network: objects.mesh.network.clone(), address: ip_to_bytes(ip), length }
}

fn entry(
    objects: &Objects<'_>,
    entry: &ServiceEntry,
    host: &str,
    automatic: &Automatic<'_>,
) -> Result<pb::Service, (String, String)> {
    let spec = &entry.spec;
    let mut addresses = Vec::new();
    for (i, a) in spec.addresses.iter().enumerate() {
        let c: Cidr = a.parse().map_err(|err| (format!("spec.addresses[{i}]"), format!("{err}")))?;
        addresses.push(address(objects, c.base(), (!c.is_single()).then(|| u32::from(c.prefix_len()))));
    }
    let none = match spec.resolution() {
        Resolution::None => true,
        Resolution::Static | Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns => false,
        Resolution::Unknown(other) => {
            return Err((
                "spec.resolution".into(),
                format!(
                    "unsupported value {other:?}: use NONE, STATIC, DNS, DNS_ROUND_ROBIN or DYNAMIC_DNS [KARST-0016]"
                ),
            ));
        }
    };
    if none && !spec.endpoints.is_empty() {
        return Err((
            "spec.endpoints".into(),
            "must be empty with resolution NONE: set spec.resolution to STATIC or DNS [KARST-0203]".into(),
        ));
    }
    if spec.workload_selector.is_some() && !spec.endpoints.is_empty() {
        return Err((
            "spec.endpoints".into(),
            "cannot be combined with workloadSelector: remove one of them [KARST-0014]".into(),
        ));
    }
    if let Some(given) = automatic.get(&(&*entry.metadata.namespace, &*entry.metadata.name, host)) {
        addresses.extend(given.iter().map(|ip| address(objects, *ip, None)));
    }
    let ports = spec.ports.iter().map(|p| Port {
        service_port: u32::from(p.number),
        target_port: u32::from(p.target_port.unwrap_or(p.number)),
        app_protocol: protocol(Some(&p.protocol), &p.name) as i32,
    });
    let load_balancing = none.then(|| LoadBalancing {
        routing_preference: vec![],
        mode: Mode::Passthrough as i32,
        health_policy: HealthPolicy::AllowAll as i32,
    });
    Ok(pb::Service {
        name: entry.metadata.name.clone(),
        namespace: entry.metadata.namespace.clone(),
        hostname: host.to_string(),
        addresses,
        ports: ports.collect(),
        subject_alt_names: spec.subject_alt_names.clone(),
        waypoint: waypoint::of(objects, &entry.metadata.namespace, &entry.metadata.labels, waypoint::Traffic::Service),
        weighted_waypoints: waypoint::weighted(objects, &entry.metadata),
        visibility: if is_private(entry) { pb::Visibility::Namespace } else { pb::Visibility::Public } as i32,
        load_balancing,
        karst_grpc_web_ports: spec
            .ports
            .iter()
            .filter(|port| is_grpc_web(Some(&port.protocol), &port.name))
            .map(|port| u32::from(port.number))
            .collect(),
        ..Default::default()
    })
}
