//! Pods, WorkloadEntries and inline endpoints to `istio.workload.Workload` (reference control-plane §2.2 to §2.4).

use crate::{
    convert::{
        compilation::policy::Policies,
        facts::{
            endpoint::Owners,
            service, validate, waypoint,
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
use karst_manifest::{Problem, enrol, kinds::*, parse::Located};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// A workload's extension with those of its labels that anything asks for.
pub(crate) fn labels(x: &Objects<'_>, labels: &Labels) -> Vec<pb::Extension> {
    let asked = |(k, _): &(&String, &String)| x.label_keys.contains(k.as_str());
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

pub(crate) fn pod_info(p: &Pod) -> (String, PodInfo) {
    let facts = PodInfo {
        uid: p.metadata.uid.clone(),
        namespace: p.metadata.namespace.clone(),
        service_account: enrol::service_account(p).into(),
        node: p.spec.node_name.clone(),
        live: !enrol::is_done(p),
        ips: enrol::ips(p),
    };
    (format!("{}/{}", p.metadata.namespace, p.metadata.name), facts)
}

/// The uid of a pod's workload.
pub(crate) fn uid(mesh: &Mesh, p: &Pod) -> String {
    format!("{}//Pod/{}/{}", mesh.cluster_id, p.metadata.namespace, p.metadata.name)
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
    for (at, e) in &objects.workload_entries {
        let uid = format!(
            "{}/networking.istio.io/WorkloadEntry/{}/{}",
            objects.mesh.cluster_id, e.metadata.namespace, e.metadata.name
        );
        let labels = labels_of(e);
        problems.extend(
            validate::workload_entry(&e.spec, "spec").into_iter().map(|(field, text)| problem(at, field, text)),
        );
        match external(objects, uid, &e.metadata, &e.spec, &labels, policies) {
            Some(_) if owners.is_known(objects, &e.spec, true) => {}
            Some(mut w) => {
                w.services = memberships_of_entry(objects, &e.metadata.namespace, &labels, &e.spec);
                owners.entry(objects, e, &mut w.services);
                model.workloads.insert(w.uid.clone(), Arc::new(w));
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
    slice_endpoints(objects, owners, model);
}

pub(crate) fn pod(objects: &Objects<'_>, p: &Pod, policies: &Policies, owners: &Owners<'_>) -> pb::Workload {
    let m = &p.metadata;
    let native = takes_tunnels(&m.labels);
    let redirected = objects.enrolled.contains(&format!("{}/{}", m.namespace, m.name))
        || m.annotations.get("ambient.istio.io/redirection").is_some_and(|v| v == "enabled");
    let ends = m.deletion_timestamp.is_some();
    let ready = enrol::is_ready(p) && !ends;
    let mut extensions = labels(objects, &m.labels);
    if ends && enrol::is_ready(p) {
        extensions.push(karst_api::draining());
    }
    extensions.extend(which(m));
    let mut services = memberships(objects, p);
    owners.pod(objects, p, &mut services);
    let (workload_name, canonical_name, canonical_revision) = names(p);
    pb::Workload {
        uid: uid(objects.mesh, p),
        name: m.name.clone(),
        namespace: m.namespace.clone(),
        addresses: enrol::ips(p).iter().map(|ip| ip_to_bytes(*ip).into()).collect(),
        network: objects.mesh.network.clone(),
        tunnel_protocol: if native || redirected { TunnelProtocol::Hbone } else { TunnelProtocol::None } as i32,
        trust_domain: if objects.mesh.trust_domain == "cluster.local" {
            String::new()
        } else {
            objects.mesh.trust_domain.clone()
        },
        service_account: enrol::service_account(p).into(),
        waypoint: waypoint::of(objects, &m.namespace, &m.labels, waypoint::Traffic::Workload),
        node: p.spec.node_name.clone(),
        canonical_name,
        canonical_revision,
        workload_type: WorkloadType::Pod as i32,
        workload_name,
        native_tunnel: native,
        authorization_policies: policies.of(&m.namespace, &m.labels),
        karst_dry_run_policies: policies.dry_runs(&m.namespace, &m.labels),
        status: if ready { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy } as i32,
        cluster_id: objects.mesh.cluster_id.clone(),
        services,
        locality: locality(objects, &p.spec.node_name),
        network_mode: if p.spec.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard } as i32,
        extensions,
        ..Default::default()
    }
}

/// A workload's extension that says which pod it is: one that is made anew has the name, and another uid.
fn which(m: &Meta) -> Option<pb::Extension> {
    if m.uid.is_empty() {
        return None;
    }
    let value = prost::Message::encode_to_vec(&karst_api::route::Pod { uid: m.uid.clone() });
    let config = prost_types::Any { type_url: karst_api::POD_TYPE.into(), value };
    Some(pb::Extension { name: "karst.pod".into(), config: Some(config) })
}

fn names(p: &Pod) -> (String, String, String) {
    let m = &p.metadata;
    let first = |keys: &[&str]| keys.iter().find_map(|k| m.labels.get(*k)).cloned();
    let owner = m.owner_references.iter().find(|o| o.controller);
    let from_owner = match owner {
        Some(o) if o.kind == "ReplicaSet" => {
            let hash = m.labels.get("pod-template-hash").map(|h| format!("-{h}"));
            hash.and_then(|h| o.name.strip_suffix(h.as_str()).map(String::from)).unwrap_or_else(|| o.name.clone())
        }
        Some(o) => o.name.clone(),
        None => m.name.clone(),
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
    m: &Meta,
    e: &WorkloadEntrySpec,
    labels: &Labels,
    policies: &Policies,
) -> Option<pb::Workload> {
    if e.address.is_empty() {
        return None;
    }
    let ip: Option<IpAddr> = e.address.parse().ok();
    let network = if e.network.is_empty() { objects.mesh.network.clone() } else { e.network.clone() };
    let native = takes_tunnels(labels);
    let mut places = e.locality.split('/').map(String::from);
    let locality = (!e.locality.is_empty()).then(|| Locality {
        region: places.next().unwrap_or_default(),
        zone: places.next().unwrap_or_default(),
        subzone: places.next().unwrap_or_default(),
    });
    Some(pb::Workload {
        uid,
        name: m.name.clone(),
        namespace: m.namespace.clone(),
        addresses: ip.map(|ip| ip_to_bytes(ip).into()).into_iter().collect(),
        hostname: if ip.is_none() { e.address.clone() } else { String::new() },
        network,
        tunnel_protocol: if native { TunnelProtocol::Hbone } else { TunnelProtocol::None } as i32,
        trust_domain: if objects.mesh.trust_domain == "cluster.local" {
            String::new()
        } else {
            objects.mesh.trust_domain.clone()
        },
        service_account: if e.service_account.is_empty() { "default".into() } else { e.service_account.clone() },
        waypoint: waypoint::of(objects, &m.namespace, labels, waypoint::Traffic::Workload),
        canonical_name: labels.get("app").cloned().unwrap_or_else(|| m.name.clone()),
        canonical_revision: labels.get("version").cloned().unwrap_or_else(|| "latest".into()),
        workload_type: WorkloadType::Pod as i32,
        workload_name: m.name.clone(),
        native_tunnel: native,
        authorization_policies: policies.of(&m.namespace, labels),
        karst_dry_run_policies: policies.dry_runs(&m.namespace, labels),
        status: WorkloadStatus::Healthy as i32,
        cluster_id: objects.mesh.cluster_id.clone(),
        locality,
        capacity: (e.weight > 0).then_some(e.weight),
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
    let m = &se.metadata;
    let mut endpoints = se.spec.endpoints.clone();
    let dns = matches!(se.spec.resolution.as_str(), "DNS" | "DNS_ROUND_ROBIN");
    if endpoints.is_empty() && dns && se.spec.workload_selector.is_none() {
        // Each host resolves to itself.
        endpoints =
            se.spec.hosts.iter().map(|h| WorkloadEntrySpec { address: h.clone(), ..Default::default() }).collect();
    }
    for (i, e) in endpoints.iter().enumerate() {
        let mut uid = format!(
            "{}/networking.istio.io/ServiceEntry/{}/{}/{}",
            objects.mesh.cluster_id, m.namespace, m.name, e.address
        );
        // At one address there may be several, at different ports.
        if !e.ports.is_empty() && endpoints.iter().filter(|other| other.address == e.address).count() > 1 {
            let ports: Vec<String> = e.ports.iter().map(|(name, port)| format!("{name}={port}")).collect();
            uid = format!("{uid}/{}", ports.join(","));
        }
        if se.spec.resolution == "STATIC" && e.address.parse::<IpAddr>().is_err() {
            let text = format!(
                "{:?} is not an IP address, which resolution STATIC requires: use an IP address, or set spec.resolution to DNS [KARST-0203]",
                e.address
            );
            problems.push(problem(at, format!("spec.endpoints[{i}].address"), text));
            continue;
        }
        let Some(mut w) = external(objects, uid, m, e, &e.labels, policies) else {
            problems.push(problem(
                at,
                format!("spec.endpoints[{i}].address"),
                "is missing: specify an IP address or a host name [KARST-0010]",
            ));
            continue;
        };
        if owners.is_known(objects, e, false) {
            continue;
        }
        for h in &se.spec.hosts {
            w.services.insert(format!("{}/{h}", m.namespace), entry_ports(se, &e.ports));
        }
        model.workloads.insert(w.uid.clone(), Arc::new(w));
    }
}

/// EndpointSlice entries that are nobody's whom we know: external addresses behind a service.
fn slice_endpoints(objects: &Objects<'_>, owners: &Owners<'_>, model: &mut Model) {
    for s in objects.slices.iter().filter(|s| s.address_type != "FQDN") {
        let Some(service) = s.metadata.labels.get("kubernetes.io/service-name") else { continue };
        let Some(svc) = objects.service(&s.metadata.namespace, service) else { continue };
        // One that refers to a pod is that pod, or nobody.
        for e in s.endpoints.iter().filter(|e| e.target_ref.as_ref().is_none_or(|t| t.kind != "Pod")) {
            for a in &e.addresses {
                let Ok(ip) = a.parse::<IpAddr>() else { continue };
                if owners.is_known_at(ip, false) {
                    continue;
                }
                let c = &e.conditions;
                let status = if c.is_ready() { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy };
                let w = pb::Workload {
                    uid: format!(
                        "{}/discovery.k8s.io/EndpointSlice/{}/{}/{a}",
                        objects.mesh.cluster_id, s.metadata.namespace, s.metadata.name
                    ),
                    name: s.metadata.name.clone(),
                    namespace: s.metadata.namespace.clone(),
                    addresses: vec![ip_to_bytes(ip).into()],
                    network: objects.mesh.network.clone(),
                    status: status as i32,
                    cluster_id: objects.mesh.cluster_id.clone(),
                    network_mode: NetworkMode::HostNetwork as i32,
                    services: HashMap::from([(
                        format!("{}/{}", s.metadata.namespace, service::hostname(objects, svc)),
                        slice_ports(s, svc),
                    )]),
                    extensions: c.is_draining().then(karst_api::draining).into_iter().collect(),
                    ..Default::default()
                };
                model.workloads.insert(w.uid.clone(), Arc::new(w));
            }
        }
    }
}
