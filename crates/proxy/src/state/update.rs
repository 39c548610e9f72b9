//! What the control plane tells of addresses becomes part of the state.

use super::{
    decode::{self, ResourceError},
    model::{Service, Workload},
    snapshot::Snapshot,
};
use imbl::HashMap;
use karst_api::{route::PodRanges, workload as pb};
use karst_core::{Cidr, addr::CidrError};
use prost::Message;
use std::sync::Arc;

impl Snapshot {
    /// Takes in one address resource.
    ///
    /// # Errors
    /// If it cannot be read; the state is then as before.
    pub fn put_address(&mut self, name: &str, bytes: &[u8]) -> Result<(), ResourceError> {
        match pb::Address::decode(bytes).map_err(ResourceError::Address)?.r#type {
            Some(pb::address::Type::Workload(w)) => {
                let w = decode::workload(w)?;
                self.remove_address(name);
                self.add_workload(w);
            }
            Some(pb::address::Type::Service(s)) => {
                let s = decode::service(s, &self.network)?;
                self.remove_address(name);
                self.add_service(s);
            }
            None => return Err(ResourceError::NoType),
        }
        Ok(())
    }
    /// Removes an address resource.
    pub fn remove_address(&mut self, name: &str) {
        if let Some(workload) = self.workloads.remove(name) {
            forget(&mut self.by_name, &format!("{}/{}", workload.namespace, workload.name), name);
            for ip in &workload.ips {
                forget(&mut self.by_ip, ip, name);
            }
            for (key, _) in &workload.services {
                let is_empty = self.endpoints.get_mut(key).is_some_and(|endpoints| {
                    endpoints.remove(name);
                    endpoints.is_empty()
                });
                // A service without endpoints is another thing than one that is not known.
                if is_empty && !self.services.contains_key(key) {
                    self.endpoints.remove(key);
                }
            }
        }
        if let Some(service) = self.services.remove(name) {
            for ip in &service.vips {
                forget(&mut self.by_vip, ip, name);
            }
            forget(&mut self.by_host, &service.hostname, name);
            self.ranges.retain(|(_, k)| **k != *name);
            if self.endpoints.get(name).is_some_and(|endpoints| endpoints.is_empty()) {
                self.endpoints.remove(name);
            }
        }
    }
    fn add_workload(&mut self, workload: Workload) {
        let uid = workload.uid.clone();
        if workload.is_pod() {
            self.by_name.entry(format!("{}/{}", workload.namespace, workload.name)).or_default().push(uid.clone());
        }
        // A host network pod shares its node's address, which is nobody's in particular.
        if !workload.host_network && workload.network == self.network {
            for ip in &workload.ips {
                self.by_ip.entry(*ip).or_default().push(uid.clone());
            }
        }
        for (key, ports) in &workload.services {
            self.endpoints.entry(key.clone()).or_default().insert(uid.clone(), ports.as_slice().into());
        }
        self.workloads.insert(uid, Arc::new(workload));
    }
    /// For who serves what is sent to single pods (a waypoint): a workload that is bound to a waypoint gets a service that stands for
    /// it alone, without name or address; one that is not has none any more.
    pub fn add_workload_service(&mut self, uid: &str) {
        let key = Service::workload_service(uid);
        self.services.remove(&key);
        self.endpoints.remove(&key);
        let Some(workload) = self.workloads.get(uid) else { return };
        let Some(gateway) = workload.waypoint.clone() else { return };
        let service = Service::of_workload(workload, gateway);
        let ports: &[(u16, u16)] = &[];
        self.endpoints.entry(key.clone()).or_default().insert(workload.uid.clone(), ports.into());
        self.services.insert(key, Arc::new(service));
    }
    fn add_service(&mut self, service: Service) {
        for ip in &service.vips {
            self.by_vip.entry(*ip).or_default().push(service.key.clone());
        }
        self.by_host.entry(service.hostname.clone()).or_default().push(service.key.clone());
        self.ranges.extend(service.ranges.iter().map(|c| (*c, service.key.clone())));
        self.services.insert(service.key.clone(), Arc::new(service));
    }
    /// Takes in what a node's pods have their addresses from.
    ///
    /// # Errors
    /// If it cannot be read; the state is then as before.
    pub fn put_pod_ranges(&mut self, node: &str, bytes: &[u8]) -> Result<(), ResourceError> {
        let told = PodRanges::decode(bytes).map_err(ResourceError::PodRanges)?;
        let new: Result<Vec<Cidr>, CidrError> = told.ranges.iter().map(|t| t.parse()).collect();
        self.pod_ranges.put(node, &new?);
        Ok(())
    }
    /// Removes what a node's pods have had their addresses from.
    pub fn remove_pod_ranges(&mut self, node: &str) {
        self.pod_ranges.put(node, &[]);
    }
}

fn forget<K: Clone + Eq + std::hash::Hash>(index: &mut HashMap<K, Vec<Arc<str>>>, key: &K, name: &str) {
    if let Some(names) = index.get_mut(key) {
        names.retain(|x| **x != *name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use crate::testing::{pod, service, snapshot};
    use std::net::IpAddr;

    #[test]
    fn indices_follow_changes() {
        let mut s = snapshot(
            vec![pod("a", "10.0.0.1", &[("ns/s.ns.svc.cluster.local", &[(80, 8080)])])],
            vec![service("s", "10.96.0.1", &[(80, 8080)])],
        );
        let ip = |x: &str| x.parse::<IpAddr>().unwrap();
        assert!(s.workload(ip("10.0.0.1")).is_some() && s.service(ip("10.96.0.1"), "x").is_some());
        assert_eq!(s.endpoints.get("ns/s.ns.svc.cluster.local").unwrap().len(), 1);
        let moved = pod("a", "10.0.0.2", &[]);
        s.put_address(
            &moved.uid.clone(),
            &pb::Address { r#type: Some(pb::address::Type::Workload(moved)) }.encode_to_vec(),
        )
        .unwrap();
        assert!(s.workload(ip("10.0.0.1")).is_none() && s.workload(ip("10.0.0.2")).is_some());
        assert_eq!(s.endpoints.get("ns/s.ns.svc.cluster.local").unwrap().len(), 0);
        s.remove_address("ns/s.ns.svc.cluster.local");
        assert!(s.service(ip("10.96.0.1"), "x").is_none());
        assert!(s.endpoints.is_empty());
    }

    /// Where addresses come and go by what is asked for, a process would grow with each.
    #[test]
    fn nothing_is_left_of_what_is_gone_in_whatever_order_it_goes() {
        let key = "ns/s.ns.svc.cluster.local";
        let names = ["Kubernetes//Pod/ns/a", "Kubernetes//Pod/ns/b", key];
        for order in [[0, 1, 2], [2, 0, 1], [0, 2, 1]] {
            let pods = [("a", "10.0.0.1"), ("b", "10.0.0.2")].map(|(name, ip)| pod(name, ip, &[(key, &[(80, 8080)])]));
            let mut s = snapshot(pods.to_vec(), vec![service("s", "10.96.0.1", &[(80, 8080)])]);
            order.iter().for_each(|at| s.remove_address(names[*at]));
            assert!(s.workloads.is_empty() && s.by_name.is_empty() && s.by_ip.is_empty() && s.endpoints.is_empty());
            assert!(s.services.is_empty() && s.by_vip.is_empty() && s.by_host.is_empty(), "{order:?}");
        }
    }
}
