//! What a decision depends on and is not told yet, where the control plane tells only what is asked for: pure functions of one
//! snapshot, as the plan is.
//!
//! What must always hold: where nothing is needed any more, the plan is the one that would be made if everything was told (the test
//! compares them), so what is unknown is never taken for what is outside of the mesh.

use crate::{
    plan::Plan,
    state::{Gateway, GatewayTo, Name, OwnPod, Service, Snapshot, Workload},
};
use karst_proxy::endpoints::is_waypoint;
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

/// What the plan of a connection depends on and is not told. Empty: it is the plan of who is told everything. (Otherwise it may be
/// any, and is not followed.)
pub fn needs(snapshot: &Snapshot, source: &Workload, to: SocketAddr, plan: &Plan) -> Vec<Name> {
    let mut needed = needs_of_choice(snapshot, source, to);
    if needed.is_empty() {
        needed.extend(needs_of_plain(snapshot, plan));
    }
    needed
}

/// What [`crate::plan::plan`] depends on and is not told.
fn needs_of_choice(snapshot: &Snapshot, source: &Workload, to: SocketAddr) -> Vec<Name> {
    if snapshot.asked().is_none() || source.ips.contains(&to.ip()) {
        return vec![];
    }
    let address = Name::Address(to.ip());
    if !snapshot.is_told(&address) {
        return vec![address];
    }
    let mut needed = Needed { snapshot, source, names: BTreeSet::new() };
    // With its endpoints: whoever answers for its address tells of them.
    if let Some(service) = snapshot.service(to.ip(), &source.namespace) {
        needed.service(service, Through::Nothing);
    } else if let Some(gateway) = snapshot.workload(to.ip()).and_then(|workload| workload.waypoint.as_ref()) {
        needed.gateway(gateway);
    }
    needed.untold()
}

/// What is to be told before a connection goes somewhere as it is: nobody of the mesh may be there.
fn needs_of_plain(snapshot: &Snapshot, plan: &Plan) -> Option<Name> {
    let Plan::Plain { to, .. } = plan else { return None };
    Some(Name::Address(to.ip())).filter(|name| !snapshot.is_told(name))
}

/// What logs and metrics of a connection to a pod of ours say besides: who the client is, and by which service it came.
pub fn labels(snapshot: &Snapshot, own: &OwnPod<'_>, client: IpAddr) -> Vec<Name> {
    let Some(own) = snapshot.asked().and_then(|_| snapshot.own_pod(own)) else { return vec![] };
    let mut needed = Needed { snapshot, source: own, names: BTreeSet::from([Name::Address(client)]) };
    for (key, _) in &own.services {
        needed.names.insert(Name::Resource(key.clone()));
        let service = snapshot.services.get(key);
        service.into_iter().flat_map(|service| &service.waypoints).for_each(|(gateway, _)| needed.named(gateway));
    }
    own.waypoint.iter().for_each(|gateway| needed.named(gateway));
    needed.untold()
}

struct Needed<'a> {
    snapshot: &'a Snapshot,
    source: &'a Workload,
    names: BTreeSet<Name>,
}

/// How a service comes to be called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Through {
    /// By itself.
    Nothing,
    /// An endpoint of another one was written by its address; none of its own leads further.
    Service,
}

impl Needed<'_> {
    /// Where a service leads: to its waypoints, or its endpoints, or through these to the services that are at their addresses.
    fn service(&mut self, service: &Service, through: Through) {
        let (snapshot, source) = (self.snapshot, self.source);
        service.waypoints.iter().for_each(|(gateway, _)| self.gateway(gateway));
        if !service.waypoints.is_empty() && !service.waypoints.iter().any(|(g, _)| is_waypoint(snapshot, source, g)) {
            return;
        }
        self.members(service);
        if through == Through::Nothing {
            let behind = written(snapshot, service).filter_map(|ip| snapshot.cluster_service(ip));
            behind.filter(|other| other.key != service.key).for_each(|other| self.service(other, Through::Service));
        }
    }

    /// A waypoint, its pods, and who they are.
    fn gateway(&mut self, gateway: &Gateway) {
        self.named(gateway);
        let service = match &gateway.to {
            GatewayTo::Service(key) => self.snapshot.services.get(key),
            GatewayTo::Address(ip) => self.snapshot.service(*ip, &self.source.namespace),
        };
        if let Some(service) = service {
            self.members(service);
        }
    }

    /// What a gateway is named by.
    fn named(&mut self, gateway: &Gateway) {
        self.names.insert(match &gateway.to {
            GatewayTo::Service(key) => Name::Resource(key.clone()),
            GatewayTo::Address(ip) => Name::Address(*ip),
        });
    }

    /// Who is at the addresses that somebody has written as endpoints: a member of the mesh may be.
    fn members(&mut self, service: &Service) {
        self.names.extend(written(self.snapshot, service).map(Name::Address));
    }

    fn untold(self) -> Vec<Name> {
        self.names.into_iter().filter(|name| !self.snapshot.is_told(name)).collect()
    }
}

/// The addresses that somebody has written as endpoints of a service.
fn written<'a>(snapshot: &'a Snapshot, service: &Service) -> impl Iterator<Item = IpAddr> + use<'a> {
    let endpoints = snapshot.endpoints.get(&service.key).into_iter().flat_map(|all| all.keys());
    let known = endpoints.filter_map(move |uid| snapshot.workloads.get(uid));
    known.filter(|w| !w.hbone && !w.is_pod()).flat_map(|w| w.ips.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Balance, plan};
    use karst_api::workload as pb;
    use karst_core::addr::ip_to_bytes;
    use karst_proxy::{
        state::{Mark, Pages},
        testing::{pod, service},
    };
    use prost::Message;
    use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
    use std::{collections::BTreeMap, sync::Arc, time::Duration};

    /// The same choice for the same list.
    struct Fixed(u64);
    impl Balance for Fixed {
        fn random(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) % n.max(1)
        }
        fn load(&self, _: &str) -> u64 {
            0
        }
        fn bound(&self, _: &str, _: &Arc<str>, _: u16, _: Duration) -> Option<Arc<str>> {
            None
        }
    }

    /// All resources of a mesh by their names, each with the names by which it is found (docs/architecture.md, control plane).
    type World = BTreeMap<String, (pb::address::Type, Vec<String>)>;

    fn put_service(world: &mut World, service: pb::Service) {
        let key = format!("{}/{}", service.namespace, service.hostname);
        let ip = |a: &pb::NetworkAddress| karst_core::addr::ip_from_bytes(&a.address).unwrap();
        let mut names: Vec<String> = service
            .addresses
            .iter()
            .filter(|a| a.length.is_none())
            .map(|a| format!("{}/{}", a.network, ip(a)))
            .collect();
        names.push(format!("~host/{}", service.hostname));
        if service.addresses.iter().any(|a| a.length.is_some()) {
            names.push("~unnamed".into());
        }
        world.insert(key, (pb::address::Type::Service(service), names));
    }

    fn put_workload(world: &mut World, workload: pb::Workload) {
        let ip = |bytes: &[u8]| karst_core::addr::ip_from_bytes(bytes).unwrap();
        let mut names: Vec<String> =
            workload.addresses.iter().map(|a| format!("{}/{}", workload.network, ip(a))).collect();
        names.extend(workload.services.keys().cloned());
        names.push(format!("~node/{}", workload.node));
        world.insert(workload.uid.clone(), (pb::address::Type::Workload(workload), names));
    }

    /// What a controller tells to who asks for these names: what they name, and the members of that.
    fn told<'a>(world: &'a World, names: &BTreeSet<String>) -> BTreeMap<&'a String, &'a pb::address::Type> {
        let direct: BTreeSet<&String> = world
            .iter()
            .filter(|(name, (_, other))| names.contains(*name) || other.iter().any(|name| names.contains(name)))
            .map(|(name, _)| name)
            .collect();
        let is_told =
            |name: &String, other: &Vec<String>| direct.contains(name) || other.iter().any(|g| direct.contains(g));
        let all = world.iter().filter(|(name, (_, other))| is_told(name, other));
        all.map(|(name, (resource, _))| (name, resource)).collect()
    }

    fn put(snapshot: &mut Snapshot, resources: &BTreeMap<&String, &pb::address::Type>) {
        for (name, resource) in resources {
            let address = pb::Address { r#type: Some((*resource).clone()) };
            snapshot.put_address(name, &address.encode_to_vec()).unwrap();
        }
    }

    fn random_world(random: &mut StdRng) -> World {
        let mut world = World::new();
        let keys: Vec<String> = (0..4).map(|n| format!("ns/s{n}.ns.svc.cluster.local")).collect();
        let gateway = |random: &mut StdRng| {
            use pb::gateway_address::Destination;
            let destination = match random.random_range(0..6) {
                0 => {
                    let (namespace, hostname) = keys.choose(random).unwrap().split_once('/').unwrap();
                    Destination::Hostname(pb::NamespacedHostname {
                        namespace: namespace.into(),
                        hostname: hostname.into(),
                    })
                }
                1 => {
                    let ips = ["10.96.0.0", "10.96.0.1", "10.0.0.3", "10.9.9.9"];
                    let ip = ips.choose(random).unwrap();
                    let address = ip_to_bytes(ip.parse().unwrap());
                    Destination::Address(pb::NetworkAddress { address, ..Default::default() })
                }
                _ => return None,
            };
            Some(pb::GatewayAddress { destination: Some(destination), hbone_mtls_port: 15008 })
        };
        for n in 0..4u8 {
            let mut one = service(&format!("s{n}"), &format!("10.96.0.{}", random.random_range(0..4)), &[(80, 8080)]);
            one.waypoint = gateway(random);
            one.visibility = i32::from(random.random_range(0..4) == 0);
            one.canonical = random.random();
            let mode = random.random_range(0..4);
            one.load_balancing = Some(pb::LoadBalancing {
                mode,
                routing_preference: vec![pb::load_balancing::Scope::Node as i32],
                health_policy: 0,
            });
            if random.random_range(0..5) == 0 {
                one.addresses[0].length = Some(24);
            }
            put_service(&mut world, one);
        }
        for n in 0..8u8 {
            let services: Vec<&String> = keys.iter().filter(|_| random.random_range(0..3) == 0).collect();
            let ports: Vec<(&str, &[(u32, u32)])> =
                services.iter().map(|key| (key.as_str(), &[(80, 8080)][..])).collect();
            // An entry may have been written by a pod's address, or a service's.
            let is_pod = n < 5;
            let ip = match random.random_range(0..3) {
                _ if is_pod => format!("10.0.0.{n}"),
                0 => format!("10.96.0.{}", random.random_range(0..4)),
                _ => format!("10.0.0.{}", random.random_range(0..8)),
            };
            let mut one = pod(&format!("w{n}"), &ip, &ports);
            one.node = format!("n{}", random.random_range(0..2));
            one.tunnel_protocol = i32::from(random.random_range(0..3) > 0);
            one.waypoint = gateway(random);
            one.status = i32::from(random.random_range(0..4) == 0);
            if !is_pod {
                one.uid = format!("Kubernetes/networking.istio.io/WorkloadEntry/ns/w{n}");
            }
            put_workload(&mut world, one);
        }
        world
    }

    /// However little was known at first: in the end the plan is that of a ztunnel that is told everything, and whatever the first
    /// plan could have been was not made before.
    #[test]
    fn what_is_asked_for_leads_to_the_plan_of_who_knows_all() {
        let mut random = StdRng::seed_from_u64(18);
        let (mut asked_once, mut asked_more, mut tunnels, mut plain) = (0, 0, 0, 0);
        for round in 0..1500 {
            let world = random_world(&mut random);
            let mut all = Snapshot::new("");
            put(&mut all, &world.iter().map(|(name, (resource, _))| (name, resource)).collect());
            let ranges = karst_api::route::PodRanges { ranges: vec!["10.0.0.0/29".into()] }.encode_to_vec();
            all.put_pod_ranges("n", &ranges).unwrap();
            let pages = Pages::default();
            let mut some = Snapshot::new("").on_demand(pages.clone());
            some.put_pod_ranges("n", &ranges).unwrap();
            let mut names = BTreeSet::from(["~node/n0".to_string(), "~unnamed".to_string()]);
            put(&mut some, &told(&world, &names));
            for _ in 0..6 {
                let sources: Vec<_> =
                    some.workloads.values().filter(|w| &*w.node == "n0" && w.is_pod()).cloned().collect();
                let Some(source) = sources.choose(&mut random) else { continue };
                let ip = match random.random_range(0..3) {
                    0 => format!("10.0.0.{}", random.random_range(0..9)),
                    1 => format!("10.96.0.{}", random.random_range(0..6)),
                    _ => "192.0.2.1".into(),
                };
                let to: SocketAddr = format!("{ip}:80").parse().unwrap();
                let seed = random.random();
                let mut rounds = 0;
                let found = loop {
                    let found = plan(&some, source, to, &[], &mut Fixed(seed));
                    let needed = needs(&some, source, to, &found);
                    if needed.is_empty() {
                        break found;
                    }
                    rounds += 1;
                    assert!(rounds < 9, "it does not end: {needed:?}");
                    names.extend(needed.iter().map(|name| name.wire("")));
                    put(&mut some, &told(&world, &names));
                    needed.into_iter().for_each(|name| some.put_name(name, Mark::new(&pages)));
                };
                assert_eq!(found, plan(&all, source, to, &[], &mut Fixed(seed)), "round {round}: {source:?} to {to}");
                asked_once += usize::from(rounds == 1);
                asked_more += usize::from(rounds > 1);
                tunnels += usize::from(matches!(found, Plan::Tunnel(_)));
                plain += usize::from(matches!(found, Plan::Plain { .. }));
            }
        }
        assert!(
            [asked_once, asked_more, tunnels, plain].iter().all(|n| *n > 200),
            "{asked_once} {asked_more} {tunnels} {plain}"
        );
    }

    #[test]
    fn who_is_told_everything_needs_nothing() {
        let s = karst_proxy::testing::snapshot(vec![pod("a", "10.0.0.1", &[])], vec![]);
        let a = s.workload([10, 0, 0, 1].into()).unwrap().clone();
        let to = "192.0.2.1:80".parse().unwrap();
        let found = plan(&s, &a, to, &[], &mut Fixed(0));
        assert!(matches!(found, Plan::Plain { .. }) && needs(&s, &a, to, &found).is_empty());
        let own = OwnPod { namespace: "ns", name: "a", account: "a", uid: None };
        assert!(labels(&s, &own, [10, 0, 0, 9].into()).is_empty());
    }

    #[test]
    fn logs_and_metrics_name_the_client_and_the_services_of_the_pod() {
        let (key, pages) = ("ns/s.ns.svc.cluster.local", Pages::default());
        let mut s = Snapshot::new("").on_demand(pages.clone());
        let own = OwnPod { namespace: "ns", name: "a", account: "a", uid: None };
        assert!(labels(&s, &own, [10, 0, 0, 9].into()).is_empty(), "it is not told of itself yet");
        let a = pb::Address { r#type: Some(pb::address::Type::Workload(pod("a", "10.0.0.1", &[(key, &[(80, 80)])]))) };
        s.put_address("Kubernetes//Pod/ns/a", &a.encode_to_vec()).unwrap();
        let client = Name::Address([10, 0, 0, 9].into());
        assert_eq!(labels(&s, &own, [10, 0, 0, 9].into()), [client.clone(), Name::Resource(key.into())]);
        s.put_name(client, Mark::new(&pages));
        assert_eq!(labels(&s, &own, [10, 0, 0, 9].into()), [Name::Resource(key.into())]);
    }
}
