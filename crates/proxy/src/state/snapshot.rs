//! The state and its indices, and what is asked of it.

use super::{
    asked::{Asked, Mark, Name, Pages},
    members::Endpoints,
    model::{ObjectKind, OwnPod, Service, Workload},
    ranges::PodRanges,
};
use imbl::OrdMap;
use karst_core::Cidr;
use karst_policy::Policy;
use std::{net::IpAddr, sync::Arc};

/// The namespace whose policies are for all, if nothing else is said.
const ROOT_NAMESPACE: &str = "istio-system";

/// One immutable state.
#[derive(Clone, Default)]
pub struct Snapshot {
    pub workloads: OrdMap<Arc<str>, Arc<Workload>>,
    /// Pods by `namespace/name`; several if other clusters have some of that name. See [`Snapshot::own_pod`].
    pub by_name: OrdMap<String, Vec<Arc<str>>>,
    pub by_ip: OrdMap<IpAddr, Vec<Arc<str>>>,
    pub services: OrdMap<Arc<str>, Arc<Service>>,
    pub by_vip: OrdMap<IpAddr, Vec<Arc<str>>>,
    pub by_host: OrdMap<Arc<str>, Vec<Arc<str>>>,
    pub ranges: Vec<(Cidr, Arc<str>)>,
    /// Service key to endpoints: uid to (service port, target port).
    pub endpoints: OrdMap<Arc<str>, Endpoints>,
    pub policies: OrdMap<Arc<str>, Arc<Policy>>,
    pub globals: Vec<Arc<Policy>>,
    pub by_namespace: OrdMap<Arc<str>, Vec<Arc<Policy>>>,
    /// What pods have their addresses from, by node.
    pub pod_ranges: PodRanges,
    /// The names of which is told. None: of everything.
    asked: Option<Asked>,
    pub(super) network: Arc<str>,
    pub(super) root: Arc<str>,
}

impl AsRef<Snapshot> for Snapshot {
    fn as_ref(&self) -> &Snapshot {
        self
    }
}

impl Snapshot {
    /// An empty state of a network.
    pub fn new(network: &str) -> Self {
        Self { network: network.into(), root: ROOT_NAMESPACE.into(), ..Self::default() }
    }
    /// The same with another root namespace.
    pub fn with_root(self, namespace: &str) -> Self {
        Self { root: namespace.into(), ..self }
    }

    /// The same, of a control plane that tells what is asked for ([`crate::demand`]).
    pub fn on_demand(self, pages: Pages) -> Self {
        Self { asked: Some(Asked::new(pages)), ..self }
    }

    /// The names of which is told. None: of everything.
    pub fn asked(&self) -> Option<&Asked> {
        self.asked.as_ref()
    }
    /// Is it told what there is of a name? If not, nothing may be decided by what is known of it.
    pub fn is_told(&self, name: &Name) -> bool {
        self.asked.as_ref().is_none_or(|asked| asked.has(name))
    }
    /// From now on it is told what there is of a name.
    pub fn put_name(&mut self, name: Name, mark: Arc<Mark>) {
        if let Some(asked) = &mut self.asked {
            asked.put(name, mark);
        }
    }
    /// From now on it is not.
    pub fn remove_name(&mut self, name: &Name) {
        if let Some(asked) = &mut self.asked {
            asked.remove(name);
        }
    }
    /// Is there anything of a name?
    pub fn has(&self, name: &Name) -> bool {
        match name {
            Name::Address(ip) => self.by_ip.contains_key(ip) || self.by_vip.contains_key(ip),
            Name::Resource(name) => self.workloads.contains_key(name) || self.services.contains_key(name),
            Name::Host(host) => self.by_host.contains_key(host),
        }
    }

    /// The network that we are in; may be empty.
    pub fn network(&self) -> &str {
        &self.network
    }
    /// The workload of an address of this network. Several on one: pods before HBONE before others.
    pub fn workload(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        let all = self.by_ip.get(&ip)?.iter().filter_map(|u| self.workloads.get(u));
        all.max_by_key(|w| (w.kind == ObjectKind::Pod, w.hbone))
    }
    /// Who an endpoint is. One that takes no tunnels may have been written by its address alone: if a member of this network has
    /// that address, it is the member, with its identity and policies, and nothing is sent there in plaintext.
    pub fn member<'a>(&'a self, endpoint: &'a Arc<Workload>, ip: IpAddr) -> &'a Arc<Workload> {
        if endpoint.hbone || endpoint.network != self.network {
            return endpoint;
        }
        self.workload(ip).filter(|w| w.hbone).unwrap_or(endpoint)
    }
    /// The Kubernetes Service that has this address, whoever may see it. What is sent to the address as it is may come to its pods in
    /// plaintext, members or not: the node's own balancing asks nobody.
    pub fn cluster_service(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        self.by_vip.get(&ip)?.iter().filter_map(|key| self.services.get(key)).find(|service| service.canonical)
    }
    /// What is told of a pod of ours. None: nothing, or only of another pod of that name: it is then not announced.
    pub fn own_pod(&self, pod: &OwnPod<'_>) -> Option<&Arc<Workload>> {
        let all = self.by_name.get(&format!("{}/{}", pod.namespace, pod.name))?;
        all.iter().filter_map(|u| self.workloads.get(u)).find(|w| pod.is(w))
    }
    /// May a pod have this address of which nobody has told? Then it may be a member's. An entry that somebody has written by the
    /// address (a STATIC endpoint, a WorkloadEntry, a slice's) says nothing of who is there, unless it takes tunnels.
    pub fn is_untold(&self, ip: IpAddr) -> bool {
        let mut all = self.by_ip.get(&ip).into_iter().flatten().filter_map(|u| self.workloads.get(u));
        !all.any(|w| w.is_pod() || w.hbone) && self.pod_ranges.contains(ip)
    }
    /// The service behind an address, as a client of this namespace sees it (reference ztunnel §4.3).
    pub fn service(&self, ip: IpAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        let visible = |s: &&Arc<Service>| !s.private || *s.namespace == *client_namespace;
        let by_vip = self.by_vip.get(&ip).into_iter().flatten().filter_map(|k| self.services.get(k)).filter(visible);
        if let Some(service) = by_vip.max_by_key(|s| (*s.namespace == *client_namespace, s.canonical)) {
            return Some(service);
        }
        let in_range = self.ranges.iter().filter(|(c, _)| c.contains(ip));
        let known = in_range.filter_map(|(c, k)| Some((c, self.services.get(k)?))).filter(|(_, s)| visible(s));
        known.max_by_key(|(c, s)| (*s.namespace == *client_namespace, c.prefix_len(), s.canonical)).map(|(_, s)| s)
    }
    /// The services of a host name, the client's namespace first.
    pub fn host(&self, name: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        let all = self.by_host.get(name)?.iter().filter_map(|k| self.services.get(k));
        all.filter(|s| !s.private || *s.namespace == *client_namespace)
            .max_by_key(|s| (*s.namespace == *client_namespace, s.canonical))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use crate::{
        state::{decode::workload, testing::with_uid},
        testing::{pod, snapshot},
    };
    use karst_api::{route::PodRanges, workload as pb};
    use prost::Message;

    #[test]
    fn a_pod_is_its_name_its_account_and_its_uid() {
        let own = |account, uid| OwnPod { namespace: "ns", name: "a", account, uid };
        let known = |s: &Snapshot, account, uid| s.own_pod(&own(account, uid)).is_some();
        let told = snapshot(vec![with_uid(pod("a", "10.0.0.1", &[]), "1.2/3")], vec![]);
        assert!(known(&told, "a", Some("1+2+3")), "as the agent writes it");
        assert!(known(&told, "a", None));
        assert!(!known(&told, "a", Some("4")), "made anew under its name");
        assert!(!known(&told, "b", Some("1+2+3")), "with another account");
        assert!(!known(&told, "b", None));
        // istiod does not tell the uid.
        let istio = snapshot(vec![pod("a", "10.0.0.1", &[])], vec![]);
        assert!(known(&istio, "a", Some("4")) && !known(&istio, "b", Some("4")));
        for (namespace, name) in [("ns", "b"), ("other", "a")] {
            let other = OwnPod { namespace, name, account: "a", uid: None };
            assert!(told.own_pod(&other).is_none());
            assert!(!other.is(told.workload([10, 0, 0, 1].into()).unwrap()));
        }
        let mut w = with_uid(pod("a", "10.0.0.1", &[]), "");
        w.extensions[0].config.as_mut().unwrap().value = vec![0xff];
        assert!(workload(w).unwrap_err().to_string().contains("not a karst.route.v1.Pod"));
    }

    #[test]
    fn entries_of_a_pods_name_are_not_the_pod() {
        let own = OwnPod { namespace: "ns", name: "a", account: "a", uid: None };
        let mut entry = pod("a", "10.0.0.2", &[]);
        entry.uid = "Kubernetes/networking.istio.io/WorkloadEntry/ns/a".into();
        assert!(snapshot(vec![entry.clone()], vec![]).own_pod(&own).is_none());
        let mut far = with_uid(pod("a", "10.0.0.3", &[]), "far");
        far.uid = "elsewhere//Pod/ns/a".into();
        let mut s = snapshot(vec![far, with_uid(pod("a", "10.0.0.1", &[]), "near"), entry.clone()], vec![]);
        let near = OwnPod { uid: Some("near"), ..own };
        assert_eq!(s.own_pod(&near).unwrap().ips, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        s.remove_address(&entry.uid);
        assert!(s.own_pod(&near).is_some(), "an entry that goes takes no pod of its name with it");
        s.remove_address("Kubernetes//Pod/ns/a");
        assert!(s.own_pod(&near).is_none());
    }

    #[test]
    fn addresses_of_pod_ranges_are_untold_until_they_are_told() {
        let ranges = |all: &[&str]| PodRanges { ranges: all.iter().map(ToString::to_string).collect() }.encode_to_vec();
        let ip = |x: &str| x.parse::<IpAddr>().unwrap();
        let mut s = snapshot(vec![pod("a", "10.0.0.1", &[])], vec![]);
        assert!(!s.is_untold(ip("10.0.0.2")), "nothing is known of ranges (istiod)");
        s.put_pod_ranges("n0", &ranges(&["10.0.0.0/24", "fd00::/64"])).unwrap();
        s.put_pod_ranges("n1", &ranges(&["10.0.1.0/24"])).unwrap();
        for (x, untold) in [
            ("10.0.0.1", false),
            ("10.0.0.2", true),
            ("10.0.1.2", true),
            ("10.0.2.2", false),
            ("fd00::7", true),
            ("fd01::7", false),
        ] {
            assert_eq!(s.is_untold(ip(x)), untold, "{x}");
        }
        assert!(s.put_pod_ranges("n1", &ranges(&["10.0.9.0/24", "x"])).is_err());
        assert!(s.is_untold(ip("10.0.1.2")) && !s.is_untold(ip("10.0.9.2")), "as before");
        s.put_pod_ranges("n0", &ranges(&["10.0.7.0/24"])).unwrap();
        s.remove_pod_ranges("n1");
        assert!(s.is_untold(ip("10.0.7.1")) && !s.is_untold(ip("10.0.0.2")) && !s.is_untold(ip("10.0.1.2")));
    }

    #[test]
    fn what_is_written_by_an_address_does_not_tell_who_is_there() {
        let entry = |name: &str, ip: &str, hbone: bool| {
            let mut w = pod(name, ip, &[]);
            (w.uid, w.tunnel_protocol) =
                (format!("Kubernetes/networking.istio.io/WorkloadEntry/ns/{name}"), i32::from(hbone));
            w
        };
        let outsider = |name: &str, ip: &str| pb::Workload { tunnel_protocol: 0, ..pod(name, ip, &[]) };
        let entries = vec![
            entry("static", "10.0.0.1", false),
            entry("far", "10.9.0.1", false),
            entry("vm", "10.0.0.2", true),
            outsider("out", "10.0.0.3"),
            entry("both", "10.0.0.3", false),
        ];
        let mut s = snapshot(entries, vec![]);
        s.put_pod_ranges("n", &PodRanges { ranges: vec!["10.0.0.0/24".into()] }.encode_to_vec()).unwrap();
        let untold = |s: &Snapshot, ip: &str| s.is_untold(ip.parse().unwrap());
        assert!(untold(&s, "10.0.0.1"), "the entry was there before the pod may be");
        assert!(!untold(&s, "10.9.0.1"), "no pod has this address");
        assert!(!untold(&s, "10.0.0.2"), "it takes tunnels");
        assert!(!untold(&s, "10.0.0.3"), "a pod outside of the mesh is told of");
        let told = pb::Address { r#type: Some(pb::address::Type::Workload(pod("new", "10.0.0.1", &[]))) };
        s.put_address("Kubernetes//Pod/ns/new", &told.encode_to_vec()).unwrap();
        assert!(!untold(&s, "10.0.0.1"));
    }
}
