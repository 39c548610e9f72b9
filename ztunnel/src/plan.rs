//! Where a connection goes: a pure function of one snapshot (reference ztunnel §4.3, §4.4).

use crate::{
    affinity,
    state::{Gateway, Mode, Service, Snapshot, Workload},
};
use karst_core::{Identity, addr::is_host, limits};
use karst_proxy::endpoints::{candidates, is_waypoint, waypoints};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// Ports that are ztunnel's own in a pod: a call to them would be a loop.
pub const OWN_PORTS: [u16; 4] = limits::port::ALL;

/// What to do with an outbound connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Through a tunnel to a workload.
    Tunnel(Tunnel),
    /// As it is.
    Plain {
        /// Where to.
        to: SocketAddr,
        /// The workload there, if it is known.
        workload: Option<Arc<Workload>>,
        /// The service that was called.
        service: Option<Arc<Service>>,
    },
    /// As [`Plan::Plain`], but to an address of a pod range of which nobody has told: it may be a member's, so it is held
    /// until that is known ([`karst_proxy::untold`]), and only then plain ([`Plan::nobody`]).
    Untold {
        /// Where to.
        to: SocketAddr,
        /// The endpoint that was written by this address.
        workload: Option<Arc<Workload>>,
        /// The service that was called.
        service: Option<Arc<Service>>,
    },
    /// To an endpoint that is known by a host name: resolve it, then ask [`resolved`].
    Resolve(ByName),
    /// Not at all.
    Refuse(Refusal),
}

impl Plan {
    /// As it is, or held if nobody has told who is there.
    fn plain(
        snapshot: &Snapshot,
        to: SocketAddr,
        workload: Option<Arc<Workload>>,
        service: Option<Arc<Service>>,
    ) -> Self {
        match snapshot.is_untold(to.ip()) {
            true => Plan::Untold { to, workload, service },
            false => Plan::Plain { to, workload, service },
        }
    }
    /// The control plane knows of nobody at the address: what was held for that goes as it is.
    pub fn nobody(self) -> Self {
        match self {
            Plan::Untold { to, workload, service } => Plan::Plain { to, workload, service },
            other @ (Plan::Tunnel(_) | Plan::Plain { .. } | Plan::Resolve(_) | Plan::Refuse(_)) => other,
        }
    }

    /// Does it lead through a waypoint?
    pub fn is_by_waypoint(&self) -> bool {
        matches!(self, Plan::Tunnel(tunnel) if tunnel.waypoint)
    }

    /// The endpoint that it leads to, or will once it is known who is there.
    pub fn leads_to(&self) -> Option<&Arc<str>> {
        match self {
            Plan::Tunnel(t) if t.service.is_some() || t.waypoint => Some(&t.peer.uid),
            Plan::Plain { workload: Some(x), service: Some(_), .. }
            | Plan::Untold { workload: Some(x), service: Some(_), .. } => Some(&x.uid),
            Plan::Resolve(name) => Some(&name.workload.uid),
            Plan::Tunnel(_) | Plan::Plain { .. } | Plan::Untold { .. } | Plan::Refuse(_) => None,
        }
    }

    /// The endpoint of a service, or pod of a waypoint, that was chosen.
    pub fn endpoint(&self) -> Option<Arc<str>> {
        match self {
            Plan::Tunnel(t) if t.service.is_some() || t.waypoint => Some(t.peer.uid.clone()),
            Plan::Plain { workload: Some(x), service: Some(_), .. } => Some(x.uid.clone()),
            Plan::Tunnel(_) | Plan::Plain { .. } | Plan::Untold { .. } | Plan::Resolve(_) | Plan::Refuse(_) => None,
        }
    }
}

/// An endpoint without addresses (a ServiceEntry's with resolution DNS).
#[derive(Clone, Debug, PartialEq)]
pub struct ByName {
    /// The endpoint; its host name is not empty.
    pub workload: Arc<Workload>,
    /// Its port.
    pub port: u16,
    /// The service that was called.
    pub service: Arc<Service>,
    /// Which family the application has used.
    pub ipv4: bool,
}

/// A tunnel and what to ask for in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Tunnel {
    /// Who ends the tunnel: the destination, or a waypoint.
    pub peer: Arc<Workload>,
    /// Where the tunnel goes.
    pub address: SocketAddr,
    /// The CONNECT authority.
    pub target: SocketAddr,
    /// Who may answer.
    pub expected: Vec<Identity>,
    /// The service that was called.
    pub service: Option<Arc<Service>>,
    /// Does a waypoint end it?
    pub waypoint: bool,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// To a port that is ztunnel's own in the pod.
    OwnPort,
    /// To the pod's own address, which its kernel should have kept to itself.
    OwnAddress,
    /// The client's address is not one of the pod's.
    NotItsAddress,
    /// It came to a pod whose kernel would send it away again: the destination is neither the pod's nor inside of it.
    NotInside,
    /// To an address of a pod range, and the control plane has not said who is there.
    Untold,
    /// The control plane, which tells only what is asked for, has not said what is there ([`crate::needs`]).
    NotTold,
    /// To an address that nobody in the mesh has, and the mesh allows only others ([`crate::mesh_config`]).
    NotInRegistry,
    /// The service does not have this port.
    NoPort,
    /// The service has no endpoint that could be used.
    NoEndpoint,
    /// The waypoint is not known or not ready.
    NoWaypoint,
    /// The address or name of an endpoint leads to this host itself, to nobody or to many, to a service of names again, to a
    /// service that the client may not see, or through one service to another.
    BadAddress,
}

impl Refusal {
    /// For logs.
    pub fn text(self) -> &'static str {
        match self {
            Refusal::OwnPort => "the destination is a port of ztunnel itself",
            Refusal::OwnAddress => "the destination is the calling pod itself",
            Refusal::NotItsAddress => "the source address is not the pod's",
            Refusal::NotInside => "the destination is neither the pod's nor inside of it",
            Refusal::Untold => {
                "the destination is in a node's pod range, and the controller did not say in time which workload has it"
            }
            Refusal::NotTold => {
                "XDS_ON_DEMAND: the controller did not say in time what is at the destination, which was not called before"
            }
            Refusal::NotInRegistry => {
                "outboundTrafficPolicy is REGISTRY_ONLY, and the destination is neither a service nor a workload of the mesh: declare it in a ServiceEntry"
            }
            Refusal::NoPort => "the service does not have this port",
            Refusal::NoEndpoint => "no healthy upstream: the service has no usable endpoint",
            Refusal::NoWaypoint => "the waypoint is unknown or not ready",
            Refusal::BadAddress => "the endpoint's address or host name has no usable address",
        }
    }
}

/// What a choice between endpoints goes by, besides the snapshot.
pub trait Balance {
    /// A number below `n`.
    fn random(&mut self, n: u64) -> u64;
    /// Open connections to a workload.
    fn load(&self, uid: &str) -> u64;
    /// The endpoint that a client is to stay with, if it was sent to one of this service port within the timeout.
    fn bound(&self, client: &str, service: &Arc<str>, port: u16, timeout: Duration) -> Option<Arc<str>>;
}

/// Always this draw: for who asks what could be chosen. Nobody has connections, and nobody is to stay with an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Draw(pub u64);

impl Balance for Draw {
    fn random(&mut self, n: u64) -> u64 {
        self.0 % n.max(1)
    }
    fn load(&self, _: &str) -> u64 {
        0
    }
    fn bound(&self, _: &str, _: &Arc<str>, _: u16, _: Duration) -> Option<Arc<str>> {
        None
    }
}

/// Decides. `tried`: endpoints that have just failed.
pub fn plan(
    snapshot: &Snapshot,
    source: &Workload,
    to: SocketAddr,
    tried: &[Arc<str>],
    balance: &mut impl Balance,
) -> Plan {
    if source.ips.contains(&to.ip()) {
        // What a pod sends to itself never leaves its kernel: if it comes here, it would come again.
        let own_port = OWN_PORTS.contains(&to.port());
        return Plan::Refuse(if own_port { Refusal::OwnPort } else { Refusal::OwnAddress });
    }
    if let Some(svc) = snapshot.service(to.ip(), &source.namespace) {
        return to_service(snapshot, source, (svc, Called::Itself), to, tried, balance);
    }
    let Some(workload) = snapshot.workload(to.ip()) else { return Plan::plain(snapshot, to, None, None) };
    if let Some(g) = &workload.waypoint
        && !is_waypoint(snapshot, source, g)
    {
        return via(snapshot, source, std::slice::from_ref(&(g.clone(), 1)), to, None, tried, balance);
    }
    direct(snapshot, workload, to, None)
}

/// How a service comes to be asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Called {
    /// The client has called it.
    Itself,
    /// An endpoint of another one was written by its address.
    ByEndpoint,
}

fn to_service(
    snapshot: &Snapshot,
    source: &Workload,
    (svc, called): (&Arc<Service>, Called),
    to: SocketAddr,
    tried: &[Arc<str>],
    balance: &mut impl Balance,
) -> Plan {
    // A waypoint calls its own services without coming back to itself.
    let others: Vec<_> = svc.waypoints.iter().filter(|(g, _)| !is_waypoint(snapshot, source, g)).cloned().collect();
    if !svc.waypoints.is_empty() && others.len() == svc.waypoints.len() {
        return via(snapshot, source, &others, to, Some(svc.clone()), tried, balance);
    }
    if svc.mode == Mode::Passthrough {
        return match snapshot.workload(to.ip()) {
            Some(w) => direct(snapshot, w, to, Some(svc.clone())),
            None => Plan::plain(snapshot, to, None, Some(svc.clone())),
        };
    }
    if !svc.ports.iter().any(|(p, _)| *p == to.port()) {
        return Plan::Refuse(Refusal::NoPort);
    }
    match endpoint(snapshot, source, svc, to, tried, balance) {
        Some((w, target)) if w.ips.is_empty() => {
            Plan::Resolve(ByName { workload: w, port: target.port(), service: svc.clone(), ipv4: to.is_ipv4() })
        }
        Some((w, target)) if w.hbone => direct(snapshot, &w, target, Some(svc.clone())),
        Some((w, target)) => match behind(snapshot, source, target.ip()) {
            Ok(Some(other)) if other.key != svc.key => match called {
                Called::Itself => to_service(snapshot, source, (other, Called::ByEndpoint), target, tried, balance),
                // Or it could go on in a circle.
                Called::ByEndpoint => Plan::Refuse(Refusal::BadAddress),
            },
            Ok(Some(_) | None) => direct(snapshot, &w, target, Some(svc.clone())),
            Err(refusal) => Plan::Refuse(refusal),
        },
        None => Plan::Refuse(Refusal::NoEndpoint),
    }
}

/// The Kubernetes Service whose address an endpoint was written by, or its name leads to: what is behind it may be members.
///
/// # Errors
/// This client may not see it, so nothing is known of whom it would reach.
fn behind<'a>(snapshot: &'a Snapshot, source: &Workload, ip: IpAddr) -> Result<Option<&'a Arc<Service>>, Refusal> {
    match snapshot.cluster_service(ip) {
        Some(svc) if svc.private && *svc.namespace != *source.namespace => Err(Refusal::BadAddress),
        found => Ok(found),
    }
}

/// Goes on once an endpoint's name is resolved. What the mesh knows at that address counts more than the name: a member is
/// reached through a tunnel, a service by its own rules. The pod itself (loopback) is never meant.
pub fn resolved(
    snapshot: &Snapshot,
    source: &Workload,
    name: &ByName,
    ip: IpAddr,
    tried: &[Arc<str>],
    balance: &mut impl Balance,
) -> Plan {
    let ip = ip.to_canonical();
    if !is_host(ip) || behind(snapshot, source, ip).is_err() {
        return Plan::Refuse(Refusal::BadAddress);
    }
    let to = SocketAddr::new(ip, name.port);
    match plan(snapshot, source, to, tried, balance) {
        Plan::Plain { workload: None, service: None, .. } | Plan::Untold { workload: None, service: None, .. } => {
            direct(snapshot, &name.workload, to, Some(name.service.clone()))
        }
        Plan::Resolve(_) => Plan::Refuse(Refusal::BadAddress),
        other @ (Plan::Tunnel(_) | Plan::Plain { .. } | Plan::Untold { .. } | Plan::Refuse(_)) => other,
    }
}

fn direct(snapshot: &Snapshot, workload: &Arc<Workload>, target: SocketAddr, service: Option<Arc<Service>>) -> Plan {
    if !workload.hbone {
        return Plan::plain(snapshot, target, Some(workload.clone()), service);
    }
    let mut expected = vec![workload.identity.clone()];
    expected.extend(service.iter().flat_map(|s| s.sans.iter().cloned()));
    Plan::Tunnel(Tunnel {
        peer: workload.clone(),
        address: SocketAddr::new(target.ip(), karst_hbone::PORT),
        target,
        expected,
        service,
        waypoint: false,
    })
}

/// To a pod of one of these waypoints; those that were tried are left out as long as there are others.
fn via(
    snapshot: &Snapshot,
    source: &Workload,
    all: &[(Gateway, u32)],
    to: SocketAddr,
    service: Option<Arc<Service>>,
    tried: &[Arc<str>],
    balance: &mut impl Balance,
) -> Plan {
    let total: u64 = all.iter().map(|(_, w)| u64::from(*w)).sum();
    let mut at = if total == 0 { 0 } else { balance.random(total) };
    let chosen = all.iter().find(|(_, w)| {
        let hit = at < u64::from(*w);
        at = at.saturating_sub(u64::from(*w));
        hit
    });
    let Some((g, _)) = chosen.or(all.first()) else { return Plan::Refuse(Refusal::NoWaypoint) };
    let mut found: Vec<_> = waypoints(snapshot, source, g, to.ip()).collect();
    if found.iter().any(|(w, _)| !tried.contains(&w.uid)) {
        found.retain(|(w, _)| !tried.contains(&w.uid));
    }
    match found.pick(balance) {
        Some((w, address)) => Plan::Tunnel(Tunnel {
            expected: vec![w.identity.clone()],
            peer: w,
            address,
            target: to,
            service,
            waypoint: true,
        }),
        None => Plan::Refuse(Refusal::NoWaypoint),
    }
}

trait Pick {
    fn pick(self, b: &mut impl Balance) -> Option<(Arc<Workload>, SocketAddr)>;
}
impl Pick for Vec<(Arc<Workload>, SocketAddr)> {
    fn pick(mut self, balance: &mut impl Balance) -> Option<(Arc<Workload>, SocketAddr)> {
        let n = self.len() as u64;
        if n == 0 { None } else { Some(self.swap_remove(balance.random(n) as usize)) }
    }
}

/// The endpoint that a client is to stay with, if it calls a service with session affinity. (It may be gone.)
pub fn bound(snapshot: &Snapshot, source: &Workload, to: SocketAddr, balance: &impl Balance) -> Option<Arc<str>> {
    let svc = snapshot.service(to.ip(), &source.namespace)?;
    balance.bound(&source.uid, &svc.key, to.port(), svc.affinity?)
}

/// The service with session affinity whose endpoint was chosen, and this endpoint.
pub fn binds(plan: &Plan) -> Option<(&Arc<Service>, &Arc<Workload>)> {
    let (service, endpoint) = match plan {
        Plan::Tunnel(t) if !t.waypoint => (t.service.as_ref()?, &t.peer),
        Plan::Plain { workload: Some(w), service: Some(s), .. } => (s, w),
        Plan::Tunnel(_) | Plan::Plain { .. } | Plan::Untold { .. } | Plan::Resolve(_) | Plan::Refuse(_) => return None,
    };
    service.affinity.is_some().then_some((service, endpoint))
}

/// With session affinity the one that the client was sent to before, or prefers. Else two at random, weighted by capacity, and of
/// these the one with fewer open connections.
fn endpoint(
    snapshot: &Snapshot,
    source: &Workload,
    svc: &Service,
    to: SocketAddr,
    tried: &[Arc<str>],
    balance: &mut impl Balance,
) -> Option<(Arc<Workload>, SocketAddr)> {
    let all = candidates(snapshot, source, svc, to, tried);
    if all.len() <= 1 {
        return all.into_iter().next().map(|(w, a, _)| (w, a));
    }
    if let Some(timeout) = svc.affinity {
        let before = balance.bound(&source.uid, &svc.key, to.port(), timeout);
        let before = before.and_then(|uid| all.iter().position(|(w, ..)| w.uid == uid));
        let i = before.or_else(|| affinity::prefer(&source.uid, &svc.key, all.iter().map(|(w, ..)| &**w)))?;
        return all.get(i).map(|(w, a, _)| (w.clone(), *a));
    }
    let total: u64 = all.iter().map(|(w, ..)| u64::from(w.capacity)).sum();
    let mut one = || {
        let mut at = balance.random(total.max(1));
        let hit = all.iter().position(|(w, ..)| {
            let c = u64::from(w.capacity);
            let hit = at < c;
            at = at.saturating_sub(c);
            hit
        });
        hit.unwrap_or(0)
    };
    let (x, y) = (one(), one());
    let busy =
        |i: usize| all.get(i).map_or(u64::MAX, |(w, ..)| balance.load(&w.uid) * 1000 / u64::from(w.capacity.max(1)));
    all.get(if busy(y) < busy(x) { y } else { x }).map(|(w, a, _)| (w.clone(), *a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_api::workload as pb;
    use karst_proxy::testing::{pod, service, snapshot};

    #[derive(Default)]
    struct Fixed(Vec<u64>, Vec<(&'static str, u64)>, Option<&'static str>);
    impl Balance for Fixed {
        fn random(&mut self, n: u64) -> u64 {
            if self.0.is_empty() { 0 } else { self.0.remove(0) % n }
        }
        fn load(&self, uid: &str) -> u64 {
            self.1.iter().find(|(u, _)| uid.ends_with(u)).map_or(0, |(_, n)| *n)
        }
        fn bound(&self, client: &str, service: &Arc<str>, port: u16, timeout: Duration) -> Option<Arc<str>> {
            assert_eq!((client, &**service, port), ("Kubernetes//Pod/ns/c", S, 80));
            assert_eq!(timeout, Duration::from_secs(60));
            self.2.map(|e| format!("Kubernetes//Pod/ns/{e}").into())
        }
    }
    fn fixed() -> Fixed {
        Fixed::default()
    }
    const S: &str = "ns/s.ns.svc.cluster.local";
    fn world() -> Snapshot {
        snapshot(
            vec![
                pod("c", "10.0.0.9", &[]),
                pod("a", "10.0.0.1", &[(S, &[(80, 8080)])]),
                pod("b", "10.0.0.2", &[(S, &[(80, 9090)])]),
            ],
            vec![service("s", "10.96.0.1", &[(80, 0)])],
        )
    }
    fn run(s: &Snapshot, to: &str, tried: &[Arc<str>], b: &mut Fixed) -> Plan {
        let c = s.workload("10.0.0.9".parse().unwrap()).unwrap().clone();
        plan(s, &c, to.parse().unwrap(), tried, b)
    }
    fn target(p: Plan) -> String {
        match p {
            Plan::Tunnel(t) => format!("{} by {}", t.target, t.address),
            Plan::Plain { to, .. } => format!("{to} plain"),
            Plan::Untold { to, .. } => format!("{to} held"),
            Plan::Resolve(n) => format!("{}:{} by name", n.workload.hostname, n.port),
            Plan::Refuse(r) => format!("{r:?}"),
        }
    }

    #[test]
    fn endpoints_known_by_name() {
        let entry = "ns/e.ns.svc.cluster.local";
        let mut named = pod("named", "10.0.0.3", &[(entry, &[(443, 8443)])]);
        (named.addresses, named.hostname, named.tunnel_protocol) = (vec![], "db.example".into(), 0);
        let mut lost = pod("lost", "10.0.0.4", &[(entry, &[(443, 1)])]);
        lost.addresses = vec![];
        let s = snapshot(
            vec![
                pod("c", "10.0.0.9", &[]),
                pod("a", "10.0.0.1", &[(S, &[(8443, 8080)])]),
                pod("m", "10.0.0.5", &[]),
                named,
                lost,
            ],
            vec![service("s", "10.96.0.1", &[(8443, 8080)]), service("e", "10.96.0.2", &[(443, 0)])],
        );
        let p = run(&s, "10.96.0.2:443", &[], &mut fixed());
        let Plan::Resolve(name) = p.clone() else { unreachable!("{p:?}") };
        assert_eq!(target(p), "db.example:8443 by name");
        let c = s.workload("10.0.0.9".parse().unwrap()).unwrap().clone();
        let at = |ip: &str| resolved(&s, &c, &name, ip.parse().unwrap(), &[], &mut fixed());
        match at("192.0.2.7") {
            Plan::Plain { to, workload, service } => {
                assert_eq!(to, "192.0.2.7:8443".parse().unwrap());
                assert_eq!((&*workload.unwrap().name, &*service.unwrap().name), ("named", "e"));
            }
            other => unreachable!("{other:?}"),
        }
        // A member of the mesh is never reached in the clear, whatever name leads there.
        assert_eq!(target(at("10.0.0.5")), "10.0.0.5:8443 by 10.0.0.5:15008");
        assert_eq!(target(at("10.96.0.1")), "10.0.0.1:8080 by 10.0.0.1:15008", "nor a service of members");
        for bad in ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "::ffff:127.0.0.1", "255.255.255.255"]
        {
            assert_eq!(target(at(bad)), "BadAddress", "{bad}");
        }
        let again = resolved(&s, &c, &ByName { port: 443, ..name }, "10.96.0.2".parse().unwrap(), &[], &mut fixed());
        assert_eq!(target(again), "BadAddress", "a name that leads to its own service");
    }

    /// Whatever object wrote the address: the tunnel, who must answer and the policies are the member's.
    #[test]
    fn endpoints_written_by_address_are_members() {
        let slice = |status: i32| {
            let mut w = pod("slice", "10.0.0.3", &[(S, &[(80, 9000)])]);
            w.uid = "Kubernetes/discovery.k8s.io/EndpointSlice/ns/slice/10.0.0.3".into();
            (w.tunnel_protocol, w.network_mode, w.service_account, w.status) = (0, 1, String::new(), status);
            w
        };
        let world = |member: pb::Workload, status: i32| {
            let services = vec![service("s", "10.96.0.1", &[(80, 0)])];
            snapshot(vec![pod("c", "10.0.0.9", &[]), member, slice(status)], services)
        };
        let s = world(pod("m", "10.0.0.3", &[]), 0);
        match run(&s, "10.96.0.1:80", &[], &mut fixed()) {
            Plan::Tunnel(t) => {
                assert_eq!((&*t.peer.name, t.target), ("m", "10.0.0.3:9000".parse().unwrap()));
                assert_eq!(t.expected, ["spiffe://cluster.local/ns/ns/sa/m".parse().unwrap()]);
            }
            other => unreachable!("{other:?}"),
        }
        // It has been tried; it is said to be down; it is about to end, as the only one.
        let m = ["Kubernetes//Pod/ns/m".into()];
        assert_eq!(target(run(&s, "10.96.0.1:80", &m, &mut fixed())), "NoEndpoint");
        assert_eq!(target(run(&world(pod("m", "10.0.0.3", &[]), 1), "10.96.0.1:80", &[], &mut fixed())), "NoEndpoint");
        let mut ends = pod("m", "10.0.0.3", &[]);
        (ends.status, ends.extensions) = (1, vec![karst_api::draining()]);
        let s = world(ends, 0);
        assert_eq!(target(run(&s, "10.96.0.1:80", &[], &mut fixed())), "10.0.0.3:9000 by 10.0.0.3:15008");
        // Nobody whom we know.
        let s = world(pod("m", "10.0.0.4", &[]), 0);
        assert_eq!(target(run(&s, "10.96.0.1:80", &[], &mut fixed())), "10.0.0.3:9000 plain");
    }

    /// Behind a Service's address there may be members: whoever writes it as an endpoint's, nothing is sent there as it is.
    #[test]
    fn an_endpoint_written_by_a_services_address_is_that_service() {
        let key = |name: &str| format!("ns/{name}.ns.svc.cluster.local");
        let written = |of: &str, ip: &str| {
            let mut w = pod(of, ip, &[(&*key(of), &[(80, 80)])]);
            w.uid = format!("Kubernetes/networking.istio.io/ServiceEntry/ns/{of}/{ip}");
            w.tunnel_protocol = 0;
            w
        };
        let kubernetes = |name: &str, vip: &str| pb::Service { canonical: true, ..service(name, vip, &[(80, 0)]) };
        let hidden = pb::Service {
            namespace: "other".into(),
            hostname: "p.other.svc.cluster.local".into(),
            visibility: pb::Visibility::Namespace as i32,
            ..kubernetes("p", "10.96.0.9")
        };
        let s = snapshot(
            vec![
                pod("c", "10.0.0.9", &[]),
                pod("a", "10.0.0.1", &[(&*key("k"), &[(80, 8080)])]),
                written("e", "10.96.0.1"),
                written("twice", "10.97.0.1"),
                written("round", "10.96.0.3"),
                written("back", "10.96.0.2"),
                written("to-hidden", "10.96.0.9"),
                written("own", "10.97.0.4"),
            ],
            vec![
                kubernetes("k", "10.96.0.1"),
                service("e", "10.97.0.1", &[(80, 0)]),
                service("twice", "10.97.0.2", &[(80, 0)]),
                // Slices of Services, which nobody keeps from naming each other.
                kubernetes("round", "10.96.0.2"),
                kubernetes("back", "10.96.0.3"),
                service("to-hidden", "10.97.0.3", &[(80, 0)]),
                service("own", "10.97.0.4", &[(80, 0)]),
                hidden,
            ],
        );
        let at = |to: &str, tried: &[Arc<str>]| target(run(&s, to, tried, &mut fixed()));
        assert_eq!(at("10.97.0.1:80", &[]), "10.0.0.1:8080 by 10.0.0.1:15008");
        assert_eq!(at("10.97.0.1:80", &["Kubernetes//Pod/ns/a".into()]), "NoEndpoint", "its endpoint has been tried");
        assert_eq!(at("10.96.0.2:80", &[]), "BadAddress", "round in a circle");
        assert_eq!(at("10.97.0.3:80", &[]), "BadAddress", "nobody says who is behind it");
        // What no Kubernetes Service has is an address as any other: that of another entry, or the entry's own.
        assert_eq!(at("10.97.0.2:80", &[]), "10.97.0.1:80 plain");
        assert_eq!(at("10.97.0.4:80", &[]), "10.97.0.4:80 plain");
        // Nor does a name lead past it.
        let named = Arc::new(Workload {
            hostname: "p.example".into(),
            ..(**s.workload("10.97.0.4".parse().unwrap()).unwrap()).clone()
        });
        let name =
            ByName { workload: named, port: 80, service: s.services.get(&*key("own")).unwrap().clone(), ipv4: true };
        let c = s.workload("10.0.0.9".parse().unwrap()).unwrap().clone();
        let at = |ip: &str| target(resolved(&s, &c, &name, ip.parse().unwrap(), &[], &mut fixed()));
        assert_eq!((at("10.96.0.1"), at("10.96.0.9")), ("10.0.0.1:8080 by 10.0.0.1:15008".into(), "BadAddress".into()));
    }

    #[test]
    fn what_is_called_is_looked_for_in_this_order() {
        let mut s = world();
        let mut plain = pod("p", "10.0.0.3", &[]);
        plain.tunnel_protocol = 0;
        {
            let x = plain;
            s.put_address(
                &x.uid.clone(),
                &prost::Message::encode_to_vec(&pb::Address { r#type: Some(pb::address::Type::Workload(x)) }),
            )
            .unwrap();
        }
        for (to, want) in [
            ("10.96.0.1:80", "10.0.0.1:8080 by 10.0.0.1:15008"),
            ("10.96.0.1:81", "NoPort"),
            ("10.0.0.2:1234", "10.0.0.2:1234 by 10.0.0.2:15008"),
            ("10.0.0.3:1234", "10.0.0.3:1234 plain"),
            ("192.0.2.1:443", "192.0.2.1:443 plain"),
            ("10.0.0.9:15008", "OwnPort"),
            ("10.0.0.9:80", "OwnAddress"),
        ] {
            assert_eq!(target(run(&s, to, &[], &mut fixed())), want, "{to}");
        }
    }

    #[test]
    fn what_may_be_a_members_address_is_held() {
        let slice = "ns/slice.ns.svc.cluster.local";
        let mut plain = pod("p", "10.0.0.3", &[]);
        plain.tunnel_protocol = 0;
        // An EndpointSlice's address, without a pod.
        let mut by_address = pod("by-address", "10.0.0.4", &[(slice, &[(80, 8080)])]);
        (by_address.tunnel_protocol, by_address.network_mode) = (0, pb::NetworkMode::HostNetwork as i32);
        by_address.uid = "Kubernetes/discovery.k8s.io/EndpointSlice/ns/slice/10.0.0.4".into();
        // A WorkloadEntry's, or a STATIC ServiceEntry's.
        let mut written = pod("written", "10.0.0.5", &[]);
        written.tunnel_protocol = 0;
        written.uid = "Kubernetes/networking.istio.io/WorkloadEntry/ns/written".into();
        let mut node = pod("on-host", "192.0.2.50", &[]);
        (node.tunnel_protocol, node.network_mode) = (0, pb::NetworkMode::HostNetwork as i32);
        let entry = "ns/e.ns.svc.cluster.local";
        let mut named = pod("named", "10.0.0.6", &[(entry, &[(443, 8443)])]);
        (named.addresses, named.hostname, named.tunnel_protocol) = (vec![], "db.example".into(), 0);
        let mut s = snapshot(
            vec![
                pod("c", "10.0.0.9", &[]),
                pod("a", "10.0.0.1", &[(S, &[(80, 8080)])]),
                plain,
                by_address,
                written,
                node,
                named,
            ],
            vec![
                service("s", "10.96.0.1", &[(80, 8080)]),
                service("slice", "10.96.0.2", &[(80, 8080)]),
                service("e", "10.96.0.3", &[(443, 0)]),
            ],
        );
        let ranges = karst_api::route::PodRanges { ranges: vec!["10.0.0.0/24".into(), "fd00::/64".into()] };
        s.put_pod_ranges("n", &prost::Message::encode_to_vec(&ranges)).unwrap();
        for (to, want) in [
            ("10.0.0.200:80", "10.0.0.200:80 held"),
            ("[fd00::200]:80", "[fd00::200]:80 held"),
            ("10.96.0.2:80", "10.0.0.4:8080 held"),
            ("10.0.0.5:80", "10.0.0.5:80 held"),
            // Whoever is known, and whatever is outside, waits for nobody.
            ("10.96.0.1:80", "10.0.0.1:8080 by 10.0.0.1:15008"),
            ("10.0.0.1:80", "10.0.0.1:80 by 10.0.0.1:15008"),
            ("10.0.0.3:80", "10.0.0.3:80 plain"),
            ("10.0.1.200:80", "10.0.1.200:80 plain"),
            ("192.0.2.50:80", "192.0.2.50:80 plain"),
            ("[fd01::1]:80", "[fd01::1]:80 plain"),
            ("10.0.0.9:80", "OwnAddress"),
        ] {
            let p = run(&s, to, &[], &mut fixed());
            assert_eq!(target(p.clone()), want, "{to}");
            assert_eq!(target(p.nobody()), want.replace("held", "plain"), "{to}, and nobody is there");
        }
        let Plan::Resolve(name) = run(&s, "10.96.0.3:443", &[], &mut fixed()) else { unreachable!() };
        let c = s.workload("10.0.0.9".parse().unwrap()).unwrap().clone();
        let at = |ip: &str| resolved(&s, &c, &name, ip.parse().unwrap(), &[], &mut fixed());
        assert_eq!(target(at("192.0.2.7")), "192.0.2.7:8443 plain");
        match at("10.0.0.200") {
            Plan::Untold { to, workload, service } => {
                assert_eq!(to, "10.0.0.200:8443".parse().unwrap());
                assert_eq!((&*workload.unwrap().name, &*service.unwrap().name), ("named", "e"));
            }
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn the_less_loaded_of_two_is_chosen_and_failed_ones_are_left_out() {
        let s = world();
        let mut b = Fixed(vec![0, 1], vec![("/a", 5), ("/b", 2)], None);
        assert_eq!(target(run(&s, "10.96.0.1:80", &[], &mut b)), "10.0.0.2:9090 by 10.0.0.2:15008");
        let tried = ["Kubernetes//Pod/ns/b".into()];
        let mut b = Fixed(vec![1, 1], vec![("/a", 5)], None);
        assert_eq!(target(run(&s, "10.96.0.1:80", &tried, &mut b)), "10.0.0.1:8080 by 10.0.0.1:15008");
        let tried = ["Kubernetes//Pod/ns/a".into(), "Kubernetes//Pod/ns/b".into()];
        assert_eq!(target(run(&s, "10.96.0.1:80", &tried, &mut fixed())), "NoEndpoint");
    }

    #[test]
    fn with_session_affinity_a_client_stays_while_its_endpoint_is_there() {
        let mut svc = service("s", "10.96.0.1", &[(80, 0)]);
        svc.karst_session_affinity_seconds = 60;
        let a = pod("a", "10.0.0.1", &[(S, &[(80, 8080)])]);
        let mut b = pod("b", "10.0.0.2", &[(S, &[(80, 8080)])]);
        let with =
            |b: &pb::Workload| snapshot(vec![pod("c", "10.0.0.9", &[]), a.clone(), b.clone()], vec![svc.clone()]);
        let s = with(&b);
        let bound = |e: Option<&'static str>, loads: Vec<(&'static str, u64)>| Fixed(vec![], loads, e);
        let to = |s: &Snapshot, tried: &[Arc<str>], mut by: Fixed| {
            let p = run(s, "10.96.0.1:80", tried, &mut by);
            let chosen = binds(&p).map(|(s, w)| (s.key.to_string(), w.name.to_string()));
            assert_eq!(chosen.is_some(), !matches!(p, Plan::Refuse(_)));
            chosen.inspect(|(s, _)| assert_eq!(s, S)).map_or_else(|| target(p), |(_, w)| w)
        };
        let preferred = to(&s, &[], bound(None, vec![]));
        let (_, other) = if preferred == "a" { ("a", "b") } else { ("b", "a") };
        // However busy it is, and whatever a new client would prefer.
        for _ in 0..3 {
            assert_eq!(to(&s, &[], bound(None, vec![("/a", 9), ("/b", 9)])), preferred);
            assert_eq!(to(&s, &[], bound(Some(other), vec![("/a", 9), ("/b", 9)])), other);
        }
        assert_eq!(to(&s, &[], bound(Some("gone"), vec![])), preferred);
        // It has just failed; it is not healthy any more; there is none.
        let failed = |e: &str| -> [Arc<str>; 1] { [format!("Kubernetes//Pod/ns/{e}").into()] };
        assert_eq!(to(&s, &failed(other), bound(Some(other), vec![])), preferred);
        b.status = 1;
        assert_eq!(to(&with(&b), &[], bound(Some("b"), vec![])), "a");
        assert_eq!(to(&with(&b), &failed("a"), bound(Some("a"), vec![])), "NoEndpoint");
        // What is asked by whoever leaves endpoints out that others could not reach.
        let c = s.workload("10.0.0.9".parse().unwrap()).unwrap().clone();
        let asked = |ip: &str| super::bound(&s, &c, format!("{ip}:80").parse().unwrap(), &bound(Some("b"), vec![]));
        assert_eq!(asked("10.96.0.1").as_deref(), Some("Kubernetes//Pod/ns/b"));
        assert_eq!(asked("10.0.0.1"), None, "a pod itself is no service");
    }

    #[test]
    fn only_endpoints_of_services_with_affinity_are_bound() {
        assert!(binds(&run(&world(), "10.96.0.1:80", &[], &mut fixed())).is_none(), "without affinity");
        assert!(binds(&run(&world(), "10.0.0.1:80", &[], &mut fixed())).is_none(), "no service");
        let mut s = with_waypoint(true);
        let (key, mut svc) = s.services.iter().next().map(|(k, v)| (k.clone(), (**v).clone())).unwrap();
        svc.affinity = Some(Duration::from_secs(60));
        s.services.insert(key, Arc::new(svc));
        assert!(binds(&run(&s, "10.96.0.1:80", &[], &mut fixed())).is_none(), "the waypoint chooses");
    }

    fn with_waypoint(ready: bool) -> Snapshot {
        let g = pb::GatewayAddress {
            destination: Some(pb::gateway_address::Destination::Address(pb::NetworkAddress {
                address: vec![10, 0, 0, 50],
                ..Default::default()
            })),
            hbone_mtls_port: 15008,
        };
        let mut svc = service("s", "10.96.0.1", &[(80, 8080)]);
        svc.waypoint = Some(g);
        let mut pods = vec![pod("c", "10.0.0.9", &[]), pod("a", "10.0.0.1", &[(S, &[(80, 8080)])])];
        if ready {
            pods.push(pod("w", "10.0.0.50", &[]));
        }
        snapshot(pods, vec![svc])
    }

    #[test]
    fn a_waypoint_is_never_passed_by() {
        assert_eq!(
            target(run(&with_waypoint(true), "10.96.0.1:80", &[], &mut fixed())),
            "10.96.0.1:80 by 10.0.0.50:15008"
        );
        assert_eq!(target(run(&with_waypoint(false), "10.96.0.1:80", &[], &mut fixed())), "NoWaypoint");
        let s = with_waypoint(true);
        let w = s.workload("10.0.0.50".parse().unwrap()).unwrap().clone();
        assert_eq!(
            target(plan(&s, &w, "10.96.0.1:80".parse().unwrap(), &[], &mut fixed())),
            "10.0.0.1:8080 by 10.0.0.1:15008"
        );
    }

    #[test]
    fn another_pod_of_the_waypoint_is_tried_if_there_is_one() {
        let key = "ns/wp.ns.svc.cluster.local";
        let mut svc = service("s", "10.96.0.1", &[(80, 0)]);
        let host = pb::NamespacedHostname { namespace: "ns".into(), hostname: "wp.ns.svc.cluster.local".into() };
        let destination = Some(pb::gateway_address::Destination::Hostname(host));
        svc.waypoint = Some(pb::GatewayAddress { destination, hbone_mtls_port: 15008 });
        let two = [("w1", "10.0.0.51"), ("w2", "10.0.0.52")].map(|(n, ip)| pod(n, ip, &[(key, &[(15008, 15008)])]));
        let s = snapshot(
            [pod("c", "10.0.0.9", &[])].into_iter().chain(two).collect(),
            vec![svc, service("wp", "10.96.0.50", &[(15008, 15008)])],
        );
        let uid = |n: &str| -> Arc<str> { format!("Kubernetes//Pod/ns/{n}").into() };
        let by = |tried: &[Arc<str>]| {
            let mut seen: Vec<_> =
                (0..8).map(|r| target(run(&s, "10.96.0.1:80", tried, &mut Fixed(vec![0, r], vec![], None)))).collect();
            seen.sort();
            seen.dedup();
            seen
        };
        let [first, second] = ["10.96.0.1:80 by 10.0.0.51:15008", "10.96.0.1:80 by 10.0.0.52:15008"];
        assert_eq!(by(&[]), [first, second]);
        assert_eq!(by(&[uid("w1")]), [second]);
        assert_eq!(by(&[uid("w2")]), [first]);
        assert_eq!(by(&[uid("w1"), uid("w2")]), [first, second], "it may be back");
    }

    #[test]
    fn places_and_health() {
        let mut svc = service("s", "10.96.0.1", &[(80, 8080)]);
        let mut near = pod("near", "10.0.0.1", &[(S, &[(80, 8080)])]);
        near.node = "n1".into();
        let mut far = pod("far", "10.0.0.2", &[(S, &[(80, 8080)])]);
        far.node = "n2".into();
        let mut c = pod("c", "10.0.0.9", &[]);
        c.node = "n1".into();
        let lb = |mode| Some(pb::LoadBalancing { routing_preference: vec![4], mode, health_policy: 0 });
        for (mode, near_ok, want) in
            [(2, true, "10.0.0.1"), (2, false, "10.0.0.2"), (1, true, "10.0.0.1"), (1, false, "NoEndpoint")]
        {
            svc.load_balancing = lb(mode);
            near.status = i32::from(!near_ok);
            let s = snapshot(vec![c.clone(), near.clone(), far.clone()], vec![svc.clone()]);
            for r in 0..4 {
                let got = target(run(&s, "10.96.0.1:80", &[], &mut Fixed(vec![r, r], vec![], None)));
                assert!(got.starts_with(want), "mode {mode} near {near_ok}: {got}");
            }
        }
    }
}
