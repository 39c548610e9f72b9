//! Which services a workload belongs to, and at which ports.

use crate::convert::{
    facts::service::{self, tcp, udp},
    objects::{Objects, selects},
};
use karst_api::workload::{Port, PortList};
use karst_manifest::{enrol, kinds::*};
use std::collections::{BTreeMap, HashMap};

/// Is this pod a workload? One that has ended, or has no address yet, is none.
pub(crate) fn is_one(pod: &Pod) -> bool {
    !enrol::is_done(pod) && !enrol::ips(pod).is_empty()
}

/// The labels of a WorkloadEntry's endpoint.
pub(crate) fn labels_of(entry: &WorkloadEntry) -> Labels {
    let mut labels = entry.metadata.labels.clone();
    labels.extend(entry.spec.labels.clone());
    labels
}

/// Does a workload with these labels take tunnels by itself?
pub(crate) fn takes_tunnels(labels: &Labels) -> bool {
    labels.get("networking.istio.io/tunnel").is_some_and(|v| v.contains("http"))
}

/// The services that a pod belongs to by its labels, and at which ports. (Those of services without selector say their slices.)
pub(crate) fn memberships(objects: &Objects<'_>, pod: &Pod) -> Memberships {
    let mut out = HashMap::new();
    for service in objects.services.get(&*pod.metadata.namespace).into_iter().flatten().filter(|s| is_behind(pod, s)) {
        let ports = service.spec.ports.iter().filter_map(|sp| {
            let target = target_port(pod, sp)?;
            let app = service::protocol(sp.app_protocol.as_deref(), &sp.name);
            Some(Port { service_port: u32::from(sp.port), target_port: u32::from(target), app_protocol: app as i32 })
        });
        out.insert(
            format!("{}/{}", service.metadata.namespace, service::hostname(objects, service)),
            PortList { ports: ports.collect() },
        );
    }
    for entry in objects.entries_of.get(&*pod.metadata.namespace).into_iter().flatten() {
        let Some(sel) = entry.spec.workload_selector.as_ref().filter(|w| !w.labels.is_empty()) else { continue };
        if selects(&sel.labels, &pod.metadata.labels) {
            for h in &entry.spec.hosts {
                // Another ServiceEntry of the host has other ports.
                join(&mut out, format!("{}/{h}", entry.metadata.namespace), entry_ports(entry, &BTreeMap::new()));
            }
        }
    }
    out
}

/// Does a Service of its namespace select this pod?
pub(crate) fn is_behind(pod: &Pod, service: &Service) -> bool {
    !service.spec.selector.is_empty() && selects(&service.spec.selector, &pod.metadata.labels)
}

/// Where a pod gets what comes to a port of a Service that selects it.
pub(crate) fn target_port(pod: &Pod, sp: &ServicePort) -> Option<u16> {
    target(pod, sp, tcp)
}

/// The same of a UDP port.
pub(crate) fn udp_target_port(pod: &Pod, sp: &ServicePort) -> Option<u16> {
    target(pod, sp, udp)
}

fn target(pod: &Pod, sp: &ServicePort, is_protocol: fn(&str) -> bool) -> Option<u16> {
    match &sp.target_port {
        _ if !is_protocol(&sp.protocol) => None,
        None => Some(sp.port),
        Some(IntOrString::Int(n)) => Some(*n),
        Some(IntOrString::String(name)) => name.parse().ok().or_else(|| named_port(pod, name, is_protocol)),
    }
}

fn named_port(pod: &Pod, name: &str, is_protocol: fn(&str) -> bool) -> Option<u16> {
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
    let mut ports = pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
    ports.find(|cp| cp.name == name && is_protocol(&cp.protocol)).map(|cp| cp.container_port)
}

/// Ports of a ServiceEntry on an endpoint: by the endpoint's port of that name, else targetPort, else the number.
pub(crate) fn entry_ports(entry: &ServiceEntry, own: &BTreeMap<String, u16>) -> PortList {
    let ports = entry.spec.ports.iter().map(|p| Port {
        service_port: u32::from(p.number),
        target_port: u32::from(own.get(&p.name).copied().or(p.target_port).unwrap_or(p.number)),
        app_protocol: service::protocol(Some(&p.protocol), &p.name) as i32,
    });
    PortList { ports: ports.collect() }
}

/// The services that a WorkloadEntry belongs to by its labels.
pub(crate) fn memberships_of_entry(
    objects: &Objects<'_>,
    ns: &str,
    labels: &Labels,
    entry: &WorkloadEntrySpec,
) -> Memberships {
    let mut out = HashMap::new();
    for service_entry in objects.entries_of.get(ns).into_iter().flatten() {
        if service_entry
            .spec
            .workload_selector
            .as_ref()
            .is_some_and(|s| !s.labels.is_empty() && selects(&s.labels, labels))
        {
            for h in &service_entry.spec.hosts {
                join(&mut out, format!("{ns}/{h}"), entry_ports(service_entry, &entry.ports));
            }
        }
    }
    let services = objects.services.get(ns).into_iter().flatten();
    for service in services.filter(|s| !s.spec.selector.is_empty() && selects(&s.spec.selector, labels)) {
        let ports = service.spec.ports.iter().filter(|p| tcp(&p.protocol)).map(|port| {
            let target = match &port.target_port {
                Some(IntOrString::Int(n)) => *n,
                Some(IntOrString::String(n)) => entry.ports.get(n).copied().unwrap_or(port.port),
                None => entry.ports.get(&port.name).copied().unwrap_or(port.port),
            };
            Port {
                service_port: u32::from(port.port),
                target_port: u32::from(target),
                app_protocol: service::protocol(port.app_protocol.as_deref(), &port.name) as i32,
            }
        });
        out.insert(format!("{ns}/{}", service::hostname(objects, service)), PortList { ports: ports.collect() });
    }
    out
}

/// Services of a workload: ports by key.
pub(crate) type Memberships = HashMap<String, PortList>;

/// Makes a workload an endpoint of a service. What it already is at a port stays.
pub(crate) fn join(services: &mut Memberships, key: String, ports: PortList) {
    let there = services.entry(key).or_default();
    for p in ports.ports {
        if there.ports.iter().all(|q| q.service_port != p.service_port) {
            there.ports.push(p);
        }
    }
}

/// The ports that a slice gives to its endpoints, which it finds by the names of the service's. A port that the slice names
/// without a number is the service's own.
pub(crate) fn slice_ports(slice: &EndpointSlice, service: &Service) -> PortList {
    let ports = service.spec.ports.iter().filter(|p| tcp(&p.protocol)).filter_map(|sp| {
        let fits =
            |p: &&EndpointPort| p.name.as_deref().unwrap_or("") == sp.name && tcp(p.protocol.as_deref().unwrap_or(""));
        let target = match (slice.ports.iter().find(fits)?.port, &sp.target_port) {
            (Some(n), _) => u32::from(n),
            (None, Some(IntOrString::Int(n))) => u32::from(*n),
            (None, None) => u32::from(sp.port),
            (None, Some(IntOrString::String(name))) => u32::from(name.parse::<u16>().ok()?),
        };
        let app = service::protocol(sp.app_protocol.as_deref(), &sp.name);
        Some(Port { service_port: u32::from(sp.port), target_port: target, app_protocol: app as i32 })
    });
    PortList { ports: ports.collect() }
}
