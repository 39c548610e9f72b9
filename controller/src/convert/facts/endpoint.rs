//! Endpoints that objects name by address: entries of EndpointSlices and ServiceEntries, and WorkloadEntries. One rule for all of
//! them: an endpoint whose address is a known workload's *is* that workload, with its identity, its policies and its tunnel. What
//! no workload is known of is an endpoint of its own, which is spoken to as it is.
//!
//! What must always hold: no workload is made for an address that a pod has. `convert::tests::endpoints_by_address_are_…` shows the
//! rule, and `compiler::tests` that it holds whatever comes and goes.

use crate::convert::{
    facts::{
        service,
        workload::{self, Memberships, entry_ports, join, memberships_of_entry, slice_ports},
    },
    objects::Objects,
};
use karst_manifest::{enrol, kinds::*};
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

/// An endpoint that an object names.
#[derive(Clone, Copy)]
pub(crate) enum Named<'a> {
    /// Of a slice of a service.
    Slice(&'a EndpointSlice, &'a Service, &'a Endpoint),
    /// Of a ServiceEntry.
    Inline(&'a ServiceEntry, &'a WorkloadEntrySpec),
    /// A WorkloadEntry.
    Entry(&'a WorkloadEntry),
}

/// Whose the endpoints are that objects name.
#[derive(Default)]
pub(crate) struct Owners<'a> {
    /// Endpoints of this network at these addresses.
    at: HashMap<IpAddr, Vec<Named<'a>>>,
    /// Addresses of pods among them.
    pods: HashSet<IpAddr>,
    /// Addresses among them of WorkloadEntries that take tunnels.
    members: HashSet<IpAddr>,
    /// Endpoints that refer to a pod (namespace and name) and have the address of nobody.
    referring: HashMap<(&'a str, &'a str), Vec<Named<'a>>>,
    /// Pods that endpoints refer to.
    referred: HashSet<(&'a str, &'a str)>,
}

/// The pods that could decide about more than their own workload: those at addresses that objects name, and those that slices
/// refer to whose service selects nothing.
#[derive(Default)]
pub(crate) struct Watched {
    addresses: HashSet<IpAddr>,
    pods: HashSet<(String, String)>,
}

impl Watched {
    /// Does an endpoint hang on this pod?
    pub(crate) fn has(&self, pod: &Pod) -> bool {
        let m = &pod.metadata;
        enrol::ips(pod).iter().any(|ip| self.addresses.contains(ip))
            || self.pods.contains(&(m.namespace.clone(), m.name.clone()))
    }
}

impl<'a> Owners<'a> {
    /// From all objects.
    pub(crate) fn new(objects: &Objects<'a>) -> Self {
        let mut out = Self::default();
        let mut refer = vec![];
        let services: HashMap<(&str, &str), &'a Service> = objects
            .services
            .iter()
            .flat_map(|(ns, all)| all.iter().map(move |s| ((*ns, s.metadata.name.as_str()), *s)))
            .filter(|(_, s)| !service::is_alias(s))
            .collect();
        for slice in objects.slices.iter().copied().filter(|s| s.address_type != "FQDN") {
            let meta = &slice.metadata;
            let Some(name) = meta.labels.get("kubernetes.io/service-name") else { continue };
            let Some(svc) = services.get(&(meta.namespace.as_str(), name.as_str())).copied() else { continue };
            for endpoint in &slice.endpoints {
                let pod = endpoint.target_ref.as_ref().filter(|t| t.kind == "Pod");
                let pod = pod.map(|t| (meta.namespace.as_str(), t.name.as_str()));
                // Which pods a selector selects, pods say themselves.
                if pod.is_some() && !svc.spec.selector.is_empty() {
                    continue;
                }
                for ip in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                    let named = Named::Slice(slice, svc, endpoint);
                    out.at.entry(ip).or_default().push(named);
                    refer.extend(pod.map(|pod| (pod, ip, named)));
                }
                out.referred.extend(pod);
            }
        }
        for &(_, e) in &objects.service_entries {
            for w in &e.spec.endpoints {
                out.add(objects, w, Named::Inline(e, w));
            }
        }
        for &(_, e) in &objects.workload_entries {
            out.add(objects, &e.spec, Named::Entry(e));
        }
        for ip in
            objects.pods.iter().filter(|p| workload::is_one(p) && !p.spec.host_network).flat_map(|p| enrol::ips(p))
        {
            // A host network pod shares its node's address, which is nobody's in particular.
            if out.at.contains_key(&ip) {
                out.pods.insert(ip);
            }
        }
        for (_, e) in objects.workload_entries.iter().filter(|(_, e)| workload::takes_tunnels(&workload::labels_of(e)))
        {
            out.members.extend(local(objects, &e.spec));
        }
        for (pod, ip, named) in refer {
            if !out.is_known_at(ip, false) {
                out.referring.entry(pod).or_default().push(named);
            }
        }
        out
    }

    fn add(&mut self, objects: &Objects<'_>, entry: &'a WorkloadEntrySpec, named: Named<'a>) {
        if let Some(ip) = local(objects, entry) {
            self.at.entry(ip).or_default().push(named);
        }
    }

    /// Is an endpoint at this address a workload that is known without it? A WorkloadEntry that takes tunnels is one, but for a pod.
    pub(crate) fn is_known(&self, objects: &Objects<'_>, spec: &WorkloadEntrySpec, entry: bool) -> bool {
        local(objects, spec).is_some_and(|ip| self.is_known_at(ip, entry))
    }

    /// The same for an address of this network.
    pub(crate) fn is_known_at(&self, ip: IpAddr, entry: bool) -> bool {
        self.pods.contains(&ip) || (!entry && self.members.contains(&ip))
    }

    /// Adds the services whose endpoints this pod is by what objects name.
    pub(crate) fn pod(&self, objects: &Objects<'_>, pod: &Pod, services: &mut Memberships) {
        let meta = &pod.metadata;
        if !pod.spec.host_network {
            for ip in enrol::ips(pod) {
                self.extend(objects, self.at.get(&ip), true, services);
            }
        }
        self.extend(objects, self.referring.get(&(meta.namespace.as_str(), meta.name.as_str())), true, services);
    }

    /// The same for a WorkloadEntry that takes tunnels and stands where no pod does.
    pub(crate) fn entry(&self, objects: &Objects<'_>, entry: &WorkloadEntry, services: &mut Memberships) {
        if let Some(ip) = local(objects, &entry.spec).filter(|ip| self.members.contains(ip)) {
            self.extend(objects, self.at.get(&ip), false, services);
        }
    }

    fn extend(&self, objects: &Objects<'_>, of: Option<&Vec<Named<'a>>>, pod: bool, services: &mut Memberships) {
        for named in of.into_iter().flatten() {
            match named {
                Named::Slice(slice, service, e) => {
                    // What is neither ready nor serving is no endpoint, whatever its workload is otherwise.
                    let c = &e.conditions;
                    if c.is_ready() || c.is_draining() || service.spec.publish_not_ready_addresses {
                        let key = format!("{}/{}", service.metadata.namespace, service::hostname(objects, service));
                        join(services, key, slice_ports(slice, service));
                    }
                }
                Named::Inline(e, w) => {
                    for h in &e.spec.hosts {
                        join(services, format!("{}/{h}", e.metadata.namespace), entry_ports(e, &w.ports));
                    }
                }
                // Two WorkloadEntries that take tunnels at one address are two workloads.
                Named::Entry(e) if pod => {
                    let all = memberships_of_entry(objects, &e.metadata.namespace, &workload::labels_of(e), &e.spec);
                    for (key, ports) in all {
                        join(services, key, ports);
                    }
                }
                Named::Entry(_) => {}
            }
        }
    }

    /// Whom to look at anew when pods come, go or change.
    pub(crate) fn watched(&self) -> Watched {
        let own = |(ns, name): &(&str, &str)| (ns.to_string(), name.to_string());
        Watched { addresses: self.at.keys().copied().collect(), pods: self.referred.iter().map(own).collect() }
    }
}

/// The address of an endpoint, if it is one of this network.
fn local(objects: &Objects<'_>, entry: &WorkloadEntrySpec) -> Option<IpAddr> {
    let here = entry.network.is_empty() || entry.network == objects.mesh.network;
    entry.address.parse().ok().filter(|_| here)
}
