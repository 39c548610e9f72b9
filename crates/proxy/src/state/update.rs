//! What the control plane tells of addresses becomes part of the state.

use super::{
    decode::{self, ResourceError},
    members::Endpoints,
    model::{Service, Workload},
    snapshot::Snapshot,
};
use imbl::OrdMap;
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
                self.take_out(name);
                self.add_workload(w);
            }
            Some(pb::address::Type::Service(s)) => {
                let s = decode::service(s, &self.network)?;
                self.take_out(name);
                self.add_service(s);
            }
            None => return Err(ResourceError::NoType),
        }
        Ok(())
    }
    /// Removes an address resource.
    pub fn remove_address(&mut self, name: &str) {
        self.take_out(name);
        self.forget_endpoints(name);
    }
    /// Of a service that is gone nothing is left, once it has no endpoints either. (One that is there and has lost them is known to
    /// have none.)
    fn forget_endpoints(&mut self, service: &str) {
        let has_none = self.endpoints.get(service).is_some_and(Endpoints::is_empty);
        if has_none && !self.services.contains_key(service) {
            self.endpoints.remove(service);
        }
    }
    fn take_out(&mut self, name: &str) {
        if let Some(workload) = self.workloads.remove(name) {
            forget(&mut self.by_name, &format!("{}/{}", workload.namespace, workload.name), name);
            for ip in &workload.ips {
                forget(&mut self.by_ip, ip, name);
            }
            for (key, _) in &workload.services {
                if let Some(endpoints) = self.endpoints.get_mut(key) {
                    endpoints.remove(name);
                }
                self.forget_endpoints(key);
            }
        }
        if let Some(service) = self.services.remove(name) {
            for ip in &service.vips {
                forget(&mut self.by_vip, ip, name);
            }
            forget(&mut self.by_host, &service.hostname, name);
            self.ranges.retain(|(_, k)| **k != *name);
        }
    }
    /// The key of a service as it is there already: the service, its endpoints, and all of their workloads have it.
    fn known_key(&self, key: &Arc<str>) -> Arc<str> {
        let of_endpoints = || self.endpoints.get_key_value(key).map(|(known, _)| known);
        let known = self.services.get_key_value(key).map(|(known, _)| known).or_else(of_endpoints);
        known.unwrap_or(key).clone()
    }
    fn add_workload(&mut self, mut workload: Workload) {
        let uid = workload.uid.clone();
        for (key, _) in &mut workload.services {
            *key = self.known_key(key);
        }
        if workload.is_pod() {
            push(&mut self.by_name, format!("{}/{}", workload.namespace, workload.name), &uid);
        }
        // A host network pod shares its node's address, which is nobody's in particular.
        if !workload.host_network && workload.network == self.network {
            for ip in &workload.ips {
                push(&mut self.by_ip, *ip, &uid);
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
    fn add_service(&mut self, mut service: Service) {
        service.key = self.known_key(&service.key);
        for ip in &service.vips {
            push(&mut self.by_vip, *ip, &service.key);
        }
        push(&mut self.by_host, service.hostname.clone(), &service.key);
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

/// Most names and addresses are one's only: a vector that grows by itself has room for four.
fn push<K: Clone + Ord>(index: &mut OrdMap<K, Vec<Arc<str>>>, key: K, name: &Arc<str>) {
    index.entry(key).or_insert_with(|| Vec::with_capacity(1)).push(name.clone());
}

fn forget<K: Clone + Ord>(index: &mut OrdMap<K, Vec<Arc<str>>>, key: &K, name: &str) {
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
        assert!(s.service(ip("10.96.0.1"), "x").is_none() && s.endpoints.is_empty());
        // A workload of a service that nobody has told of.
        let early = pod("b", "10.0.0.3", &[("ns/t.ns.svc.cluster.local", &[(80, 8080)])]);
        let bytes = pb::Address { r#type: Some(pb::address::Type::Workload(early.clone())) }.encode_to_vec();
        s.put_address(&early.uid, &bytes).unwrap();
        assert_eq!(s.endpoints.len(), 1);
        s.remove_address(&early.uid);
        assert!(s.endpoints.is_empty());
    }

    /// A gateway with thousands of routes knows as many services and pods.
    #[test]
    fn what_is_the_same_of_several_is_there_once() {
        const KEY: &str = "ns/s.ns.svc.cluster.local";
        let pods = ["a", "b"].map(|name| {
            let mut pod = pod(name, &format!("10.0.0.{}", name.as_bytes()[0]), &[(KEY, &[(80, 8080)])]);
            (pod.service_account, pod.node) = ("account".into(), "node".into());
            pod
        });
        let s = snapshot(pods.into(), vec![service("s", "10.96.0.1", &[(80, 8080)])]);
        let [a, b] = ["a", "b"].map(|name| &*s.workloads[&*format!("Kubernetes//Pod/ns/{name}")]);
        let shared = |one: fn(&Workload) -> &Arc<str>| Arc::ptr_eq(one(a), one(b));
        assert!(shared(|w| &w.namespace) && shared(|w| &w.node) && shared(|w| &w.cluster));
        assert!(shared(|w| &w.region) && shared(|w| &w.hostname) && shared(|w| &w.services[0].0));
        assert_eq!(a.identity.as_str().as_ptr(), b.identity.as_str().as_ptr());
        assert!(Arc::ptr_eq(&a.labels, &b.labels));
        let own = &s.services[KEY].key;
        let known = [&a.services[0].0, &s.by_vip.values().next().unwrap()[0], s.endpoints.keys().next().unwrap()];
        assert!(known.iter().all(|key| Arc::ptr_eq(key, own)));
        let one_each = s.by_ip.values().chain(s.by_name.values()).chain(s.by_vip.values()).chain(s.by_host.values());
        assert!(one_each.map(Vec::capacity).chain([a.ips.capacity()]).all(|room| room == 1));
        assert_eq!(a.baggage().unwrap(), "k8s.cluster.name=Kubernetes,k8s.namespace.name=ns");
        assert!(size_of::<Workload>() <= 464, "{}", size_of::<Workload>());
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
