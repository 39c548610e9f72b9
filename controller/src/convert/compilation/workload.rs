//! Pods, WorkloadEntries and inline endpoints to `istio.workload.Workload` (reference control-plane §2.2 to §2.4).

use crate::{
    convert::{
        compilation::policy::Policies,
        facts::{
            endpoint::Owners,
            service,
            udp::{self, UdpPorts},
            validate, waypoint,
            workload::{entry_ports, is_one, labels_of, memberships, memberships_of_entry, slice_ports, takes_tunnels},
        },
        objects::{Mesh, Objects, problem},
    },
    model::{Model, PodInfo},
};
use karst_api::{
    route as ir,
    workload::{self as pb, Locality, NetworkMode, TunnelProtocol, WorkloadStatus, WorkloadType},
};
use karst_core::addr::ip_to_bytes;
use karst_manifest::{Problem, Resolution, enrol, kinds::*, parse::Located};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// A workload's extension with those of its labels that anything asks for.
pub(crate) fn labels(objects: &Objects<'_>, labels: &Labels) -> Vec<pb::Extension> {
    let asked = |(k, _): &(&String, &String)| objects.label_keys.contains(k.as_str());
    let labels: BTreeMap<_, _> = labels.iter().filter(asked).map(|(k, v)| (k.clone(), v.clone())).collect();
    if labels.is_empty() {
        return vec![];
    }
    let value = prost::Message::encode_to_vec(&ir::Labels { labels });
    let config = prost_types::Any { type_url: karst_api::LABELS_TYPE.into(), value };
    vec![pb::Extension { name: "karst.labels".into(), config: Some(config) }]
}

pub(crate) fn pod_infos(objects: &Objects<'_>) -> imbl::OrdMap<String, Arc<PodInfo>> {
    objects.pods.iter().map(|p| pod_info(p)).map(|(k, f)| (k, Arc::new(f))).collect()
}

pub(crate) fn pod_info(pod: &Pod) -> (String, PodInfo) {
    let facts = PodInfo {
        uid: pod.metadata.uid.clone(),
        namespace: pod.metadata.namespace.clone(),
        service_account: enrol::service_account(pod).into(),
        node: pod.spec.node_name.clone(),
        live: !enrol::is_done(pod),
        ips: enrol::ips(pod),
    };
    (format!("{}/{}", pod.metadata.namespace, pod.metadata.name), facts)
}

/// The uid of a pod's workload.
pub(crate) fn uid(mesh: &Mesh, pod: &Pod) -> String {
    format!("{}//Pod/{}/{}", mesh.cluster_id, pod.metadata.namespace, pod.metadata.name)
}

pub(crate) fn compile(
    objects: &Objects<'_>,
    policies: &Policies,
    owners: &Owners<'_>,
    model: &mut Model,
    problems: &mut Vec<Problem>,
) {
    for p in objects.pods.iter().filter(|p| is_one(p)) {
        let w = pod(objects, p, policies, owners);
        model.workloads.insert(w.uid.clone(), Arc::new(w));
    }
    for (at, entry) in &objects.workload_entries {
        let uid = format!(
            "{}/networking.istio.io/WorkloadEntry/{}/{}",
            objects.mesh.cluster_id, entry.metadata.namespace, entry.metadata.name
        );
        let labels = labels_of(entry);
        problems.extend(
            validate::workload_entry(&entry.spec, "spec").into_iter().map(|(field, text)| problem(at, field, text)),
        );
        match external(objects, uid, &entry.metadata, &entry.spec, &labels, policies) {
            Some(_) if validate::is_nobodys(&entry.spec.address) || owners.is_known(objects, &entry.spec, true) => {}
            Some(mut workload) => {
                workload.services = memberships_of_entry(objects, &entry.metadata.namespace, &labels, &entry.spec);
                let ports = udp::of_entry(objects, &entry.metadata.namespace, &labels, &entry.spec);
                workload.karst_udp_services = datagrams(policies, &entry.metadata.namespace, &labels, ports);
                owners.entry(objects, entry, &mut workload.services);
                model.workloads.insert(workload.uid.clone(), Arc::new(workload));
            }
            None => problems.push(problem(
                at,
                "spec.address",
                "is missing: specify an IP address or a host name [KARST-0010]",
            )),
        }
    }
    for (at, se) in &objects.service_entries {
        inline_endpoints(objects, at, se, (policies, owners), model, problems);
    }
    slice_endpoints(objects, policies, owners, model);
}

/// The UDP ports of a workload with these labels, and what closes each to who has no identity.
fn datagrams(
    policies: &Policies,
    namespace: &str,
    labels: &Labels,
    services: Vec<(String, UdpPorts)>,
) -> HashMap<String, pb::UdpPortList> {
    let port = |(port, target): (u16, u16)| pb::UdpPort {
        service_port: port.into(),
        target_port: target.into(),
        closed: policies.closed_to_datagrams(namespace, labels, target).unwrap_or_default(),
    };
    let one =
        |(key, ports): (String, UdpPorts)| (key, pb::UdpPortList { ports: ports.into_iter().map(port).collect() });
    services.into_iter().map(one).collect()
}

pub(crate) fn pod(objects: &Objects<'_>, pod: &Pod, policies: &Policies, owners: &Owners<'_>) -> pb::Workload {
    let meta = &pod.metadata;
    let native = takes_tunnels(&meta.labels);
    let redirected = objects.enrolled.contains(&format!("{}/{}", meta.namespace, meta.name))
        || meta.annotations.get("ambient.istio.io/redirection").is_some_and(|v| v == "enabled");
    let ends = meta.deletion_timestamp.is_some();
    let ready = enrol::is_ready(pod) && !ends;
    let mut extensions = labels(objects, &meta.labels);
    if ends && enrol::is_ready(pod) {
        extensions.push(karst_api::draining());
    }
    extensions.extend(which(meta));
    let mut services = memberships(objects, pod);
    owners.pod(objects, pod, &mut services);
    let (workload_name, canonical_name, canonical_revision) = names(pod);
    pb::Workload {
        uid: uid(objects.mesh, pod),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        addresses: enrol::ips(pod).iter().map(|ip| ip_to_bytes(*ip).into()).collect(),
        network: objects.mesh.network.clone(),
        tunnel_protocol: if native || redirected { TunnelProtocol::Hbone } else { TunnelProtocol::None } as i32,
        trust_domain: if objects.mesh.trust_domain == "cluster.local" {
            String::new()
        } else {
            objects.mesh.trust_domain.clone()
        },
        service_account: enrol::service_account(pod).into(),
        waypoint: waypoint::of(objects, &meta.namespace, &meta.labels, waypoint::Traffic::Workload),
        node: pod.spec.node_name.clone(),
        canonical_name,
        canonical_revision,
        workload_type: WorkloadType::Pod as i32,
        workload_name,
        native_tunnel: native,
        authorization_policies: policies.of(&meta.namespace, &meta.labels),
        karst_dry_run_policies: policies.dry_runs(&meta.namespace, &meta.labels),
        status: if ready { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy } as i32,
        cluster_id: objects.mesh.cluster_id.clone(),
        services,
        locality: locality(objects, &pod.spec.node_name),
        network_mode: if pod.spec.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard } as i32,
        extensions,
        karst_udp_services: datagrams(policies, &meta.namespace, &meta.labels, udp::of_pod(objects, pod)),
        ..Default::default()
    }
}

/// A workload's extension that says which pod it is: one that is made anew has the name, and another uid.
fn which(meta: &Meta) -> Option<pb::Extension> {
    if meta.uid.is_empty() {
        return None;
    }
    let value = prost::Message::encode_to_vec(&karst_api::route::Pod { uid: meta.uid.clone() });
    let config = prost_types::Any { type_url: karst_api::POD_TYPE.into(), value };
    Some(pb::Extension { name: "karst.pod".into(), config: Some(config) })
}

fn names(pod: &Pod) -> (String, String, String) {
    let meta = &pod.metadata;
    let first = |keys: &[&str]| keys.iter().find_map(|k| meta.labels.get(k)).cloned();
    let owner = meta.owner_references.iter().find(|o| o.controller);
    let from_owner = match owner {
        Some(o) if o.kind == "ReplicaSet" => {
            let hash = meta.labels.get("pod-template-hash").map(|h| format!("-{h}"));
            hash.and_then(|h| o.name.strip_suffix(h.as_str()).map(String::from)).unwrap_or_else(|| o.name.clone())
        }
        Some(o) => o.name.clone(),
        None => meta.name.clone(),
    };
    let workload = first(&["service.istio.io/workload-name"]).unwrap_or(from_owner);
    let name = first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
        .unwrap_or_else(|| workload.clone());
    let revision = first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
        .unwrap_or_else(|| "latest".into());
    (workload, name, revision)
}

fn locality(objects: &Objects<'_>, node: &str) -> Option<Locality> {
    let l = &objects.nodes.get(node)?.metadata.labels;
    let get = |k: &str| l.get(k).cloned().unwrap_or_default();
    let out = Locality {
        region: get("topology.kubernetes.io/region"),
        zone: get("topology.kubernetes.io/zone"),
        subzone: get("topology.istio.io/subzone"),
    };
    (out != Locality::default()).then_some(out)
}

fn external(
    objects: &Objects<'_>,
    uid: String,
    meta: &Meta,
    entry: &WorkloadEntrySpec,
    labels: &Labels,
    policies: &Policies,
) -> Option<pb::Workload> {
    if entry.address.is_empty() {
        return None;
    }
    let ip: Option<IpAddr> = entry.address.parse().ok();
    let network = if entry.network.is_empty() { objects.mesh.network.clone() } else { entry.network.clone() };
    let native = takes_tunnels(labels);
    let mut places = entry.locality.split('/').map(String::from);
    let locality = (!entry.locality.is_empty()).then(|| Locality {
        region: places.next().unwrap_or_default(),
        zone: places.next().unwrap_or_default(),
        subzone: places.next().unwrap_or_default(),
    });
    Some(pb::Workload {
        uid,
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        addresses: ip.map(|ip| ip_to_bytes(ip).into()).into_iter().collect(),
        hostname: if ip.is_none() { entry.address.clone() } else { String::new() },
        network,
        tunnel_protocol: if native { TunnelProtocol::Hbone } else { TunnelProtocol::None } as i32,
        trust_domain: if objects.mesh.trust_domain == "cluster.local" {
            String::new()
        } else {
            objects.mesh.trust_domain.clone()
        },
        service_account: if entry.service_account.is_empty() {
            "default".into()
        } else {
            entry.service_account.clone()
        },
        waypoint: waypoint::of(objects, &meta.namespace, labels, waypoint::Traffic::Workload),
        canonical_name: labels.get("app").cloned().unwrap_or_else(|| meta.name.clone()),
        canonical_revision: labels.get("version").cloned().unwrap_or_else(|| "latest".into()),
        workload_type: WorkloadType::Pod as i32,
        workload_name: meta.name.clone(),
        native_tunnel: native,
        authorization_policies: policies.of(&meta.namespace, labels),
        karst_dry_run_policies: policies.dry_runs(&meta.namespace, labels),
        status: WorkloadStatus::Healthy as i32,
        cluster_id: objects.mesh.cluster_id.clone(),
        locality,
        capacity: (entry.weight > 0).then_some(entry.weight),
        ..Default::default()
    })
}

fn inline_endpoints(
    objects: &Objects<'_>,
    at: &Located,
    se: &ServiceEntry,
    (policies, owners): (&Policies, &Owners<'_>),
    model: &mut Model,
    problems: &mut Vec<Problem>,
) {
    let meta = &se.metadata;
    let mut endpoints = se.spec.endpoints.clone();
    let dns = se.spec.resolution().is_dns();
    if endpoints.is_empty() && dns && se.spec.workload_selector.is_none() {
        // Each host resolves to itself.
        endpoints =
            se.spec.hosts.iter().map(|h| WorkloadEntrySpec { address: h.clone(), ..Default::default() }).collect();
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let mut uid = format!(
            "{}/networking.istio.io/ServiceEntry/{}/{}/{}",
            objects.mesh.cluster_id, meta.namespace, meta.name, endpoint.address
        );
        // At one address there may be several, at different ports.
        if !endpoint.ports.is_empty() && endpoints.iter().filter(|other| other.address == endpoint.address).count() > 1
        {
            let ports: Vec<String> = endpoint.ports.iter().map(|(name, port)| format!("{name}={port}")).collect();
            uid = format!("{uid}/{}", ports.join(","));
        }
        if se.spec.resolution() == Resolution::Static && endpoint.address.parse::<IpAddr>().is_err() {
            let text = format!(
                "{:?} is not an IP address, which resolution STATIC requires: use an IP address, or set spec.resolution to DNS [KARST-0203]",
                endpoint.address
            );
            problems.push(problem(at, format!("spec.endpoints[{index}].address"), text));
            continue;
        }
        let Some(mut workload) = external(objects, uid, meta, endpoint, &endpoint.labels, policies) else {
            problems.push(problem(
                at,
                format!("spec.endpoints[{index}].address"),
                "is missing: specify an IP address or a host name [KARST-0010]",
            ));
            continue;
        };
        if validate::is_nobodys(&endpoint.address) || owners.is_known(objects, endpoint, false) {
            continue;
        }
        for h in &se.spec.hosts {
            workload.services.insert(format!("{}/{h}", meta.namespace), entry_ports(se, &endpoint.ports));
        }
        model.workloads.insert(workload.uid.clone(), Arc::new(workload));
    }
}

/// EndpointSlice entries that are nobody's whom we know: external addresses behind a service.
fn slice_endpoints(objects: &Objects<'_>, policies: &Policies, owners: &Owners<'_>, model: &mut Model) {
    for slice in objects.slices.iter().filter(|s| s.address_type != "FQDN") {
        let Some(service) = slice.metadata.labels.get("kubernetes.io/service-name") else { continue };
        let Some(svc) = objects.service(&slice.metadata.namespace, service) else { continue };
        // One that refers to a pod is that pod, or nobody.
        for endpoint in slice.endpoints.iter().filter(|e| e.target_ref.as_ref().is_none_or(|t| t.kind != "Pod")) {
            for address in &endpoint.addresses {
                let Ok(ip) = address.parse::<IpAddr>() else { continue };
                if validate::is_nobodys(address) || owners.is_known_at(ip, false) {
                    continue;
                }
                let conditions = &endpoint.conditions;
                let status = if conditions.is_ready() { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy };
                let workload = pb::Workload {
                    uid: format!(
                        "{}/discovery.k8s.io/EndpointSlice/{}/{}/{address}",
                        objects.mesh.cluster_id, slice.metadata.namespace, slice.metadata.name
                    ),
                    name: slice.metadata.name.clone(),
                    namespace: slice.metadata.namespace.clone(),
                    addresses: vec![ip_to_bytes(ip).into()],
                    network: objects.mesh.network.clone(),
                    status: status as i32,
                    cluster_id: objects.mesh.cluster_id.clone(),
                    network_mode: NetworkMode::HostNetwork as i32,
                    services: HashMap::from([(
                        format!("{}/{}", slice.metadata.namespace, service::hostname(objects, svc)),
                        slice_ports(slice, svc),
                    )]),
                    extensions: conditions.is_draining().then(karst_api::draining).into_iter().collect(),
                    karst_udp_services: datagrams(
                        policies,
                        &slice.metadata.namespace,
                        &Labels::default(),
                        udp::of_slice(objects, slice, svc),
                    ),
                    ..Default::default()
                };
                model.workloads.insert(workload.uid.clone(), Arc::new(workload));
            }
        }
    }
}
