//! Which endpoints of a service could be used, and who is a waypoint: the same for both proxies.
//!
//! What must always hold: an endpoint at a member's address is the member ([`Snapshot::member`]), so that no choice between
//! endpoints leads to plaintext between members; those that are about to end are used only where there is no healthy one; an
//! endpoint has the ports that it lists, and what has no such port is never called at that number; what an object has written for
//! an endpoint's address is the address of another host, never one that leads back to whoever calls it (loopback).

use crate::state::{Gateway, GatewayTo, LocalityScope, Mode, Service, Snapshot, Workload};
use karst_core::addr::is_host;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

/// Is this workload the gateway that is named?
pub fn is_waypoint(snapshot: &Snapshot, workload: &Workload, gateway: &Gateway) -> bool {
    match &gateway.to {
        GatewayTo::Address(ip) => {
            workload.ips.contains(ip)
                || snapshot
                    .service(*ip, &workload.namespace)
                    .is_some_and(|svc| workload.services.iter().any(|(k, _)| *k == svc.key))
        }
        GatewayTo::Service(key) => workload.services.iter().any(|(k, _)| k == key),
    }
}

/// The pods of a waypoint, and where they take tunnels. `preferred_family`: the address family that is preferred.
pub fn waypoints(
    snapshot: &Snapshot,
    source: &Workload,
    gateway: &Gateway,
    preferred_family: IpAddr,
) -> impl Iterator<Item = (Arc<Workload>, SocketAddr)> {
    let service = match &gateway.to {
        GatewayTo::Service(key) => snapshot.services.get(key),
        GatewayTo::Address(ip) => snapshot.service(*ip, &source.namespace),
    };
    let own = match &gateway.to {
        GatewayTo::Address(ip) => snapshot.workload(*ip).map(|w| (w.clone(), SocketAddr::new(*ip, gateway.port))),
        GatewayTo::Service(_) => None,
    };
    let port = gateway.port;
    // The tunnel's port, whatever the service calls it.
    let any = |_: &Workload, _: &[(u16, u16)]| Some(port);
    let behind = service
        .filter(|_| own.is_none())
        .map(|svc| candidates_at(snapshot, source, svc, SocketAddr::new(preferred_family, port), &[], |_| true, any));
    let behind = behind.into_iter().flatten().filter(|(w, ..)| !w.ips.is_empty());
    own.into_iter().chain(behind.map(move |(w, a, _)| (w, SocketAddr::new(a.ip(), port))))
}

/// Endpoints that could be used, with the best place only: workload, address, rank. An
/// endpoint that is known by name only has the unspecified address. `tried` are left out.
pub fn candidates(
    snapshot: &Snapshot,
    source: &Workload,
    svc: &Service,
    to: SocketAddr,
    tried: &[Arc<str>],
) -> Vec<(Arc<Workload>, SocketAddr, usize)> {
    candidates_of(snapshot, source, svc, to, tried, |_| true)
}

/// The same among the endpoints that fit (a subset's).
pub fn candidates_of(
    snapshot: &Snapshot,
    source: &Workload,
    svc: &Service,
    to: SocketAddr,
    tried: &[Arc<str>],
    fits: impl Fn(&Workload) -> bool,
) -> Vec<(Arc<Workload>, SocketAddr, usize)> {
    candidates_at(snapshot, source, svc, to, tried, fits, |_, listed| target(svc, listed, to.port()))
}

/// The same for datagrams to a UDP port of a service. Those that are closed to who has no identity are none: no tunnel carries
/// datagrams, and so nobody has one.
pub fn udp_candidates(
    snapshot: &Snapshot,
    source: &Workload,
    svc: &Service,
    to: SocketAddr,
) -> Vec<(Arc<Workload>, SocketAddr, usize)> {
    let at = |w: &Workload, _: &[(u16, u16)]| w.udp_port(&svc.key, to.port()).map(|p| p.target).filter(|t| *t > 0);
    let fits = |w: &Workload| w.closed_to_datagrams(&svc.key, to.port()).is_none();
    let mut all = candidates_at(snapshot, source, svc, to, &[], fits, at);
    // A name is not looked up for a datagram; and of whom nobody has told, or who stands behind a Service's address, it is not known
    // whether he is a member.
    let is_known =
        |ip: IpAddr| !ip.is_unspecified() && !snapshot.is_untold(ip) && snapshot.cluster_service(ip).is_none();
    all.retain(|(_, address, _)| is_known(address.ip()));
    all
}

/// Why an endpoint of a service is closed to datagrams without an identity, if one is.
pub fn closed_to_datagrams(snapshot: &Snapshot, svc: &Service, port: u16) -> Option<Arc<str>> {
    let endpoints = snapshot.endpoints.get(&svc.key)?;
    endpoints.keys().filter_map(|uid| snapshot.workloads.get(uid)).find_map(|told| {
        told.udp_port(&svc.key, port)?;
        let member = told.ips.first().map_or(told, |ip| snapshot.member(told, *ip));
        member.closed_to_datagrams(&svc.key, port)
    })
}

/// Endpoints of a service that are about to end and serve still, for clients that are there already. (Where it has no others, they
/// are among the candidates, too.)
pub fn ending(
    snapshot: &Snapshot,
    source: &Workload,
    svc: &Service,
    to: SocketAddr,
    fits: impl Fn(&Workload) -> bool,
) -> Vec<(Arc<Workload>, SocketAddr, usize)> {
    let target = |_: &Workload, listed: &[(u16, u16)]| target(svc, listed, to.port());
    gather(snapshot, source, svc, to.ip(), &[], |w| w.draining, (&fits, &target))
}

/// The same as [`candidates_of`] at ports that follow from those that an endpoint lists.
fn candidates_at(
    snapshot: &Snapshot,
    source: &Workload,
    svc: &Service,
    to: SocketAddr,
    tried: &[Arc<str>],
    fits: impl Fn(&Workload) -> bool,
    target: impl Fn(&Workload, &[(u16, u16)]) -> Option<u16>,
) -> Vec<(Arc<Workload>, SocketAddr, usize)> {
    let well = gather(snapshot, source, svc, to.ip(), tried, |w| is_well(svc, w), (&fits, &target));
    if !well.is_empty() || !svc.only_healthy {
        return well;
    }
    gather(snapshot, source, svc, to.ip(), tried, serves, (&fits, &target))
}

/// The endpoint's own port for one of the service, by the ports that it lists; one that lists none has the service's. None: it
/// has none for it (a named port that its containers lack; a port of another ServiceEntry of the host).
fn target(svc: &Service, listed: &[(u16, u16)], port: u16) -> Option<u16> {
    let of = if listed.is_empty() { &svc.ports[..] } else { listed };
    match of.iter().find(|(p, _)| *p == port) {
        Some((_, target)) => Some(*target).filter(|t| *t > 0),
        // A workload by itself has all ports.
        None => svc.is_workload_service().then_some(port),
    }
}

/// The endpoints of a service whose addresses may be told: those that are well, else those that serve until they end.
pub fn serving<'a>(snapshot: &'a Snapshot, svc: &Service) -> Vec<&'a Arc<Workload>> {
    let endpoints = snapshot.endpoints.get(&svc.key);
    let all = move || endpoints.into_iter().flat_map(|e| e.keys()).filter_map(move |u| snapshot.workloads.get(u));
    let well: Vec<_> = all().filter(|w| is_well(svc, w)).collect();
    if well.is_empty() { all().filter(|w| serves(w)).collect() } else { well }
}

/// By the service's health policy.
fn is_well(svc: &Service, workload: &Workload) -> bool {
    workload.healthy || !svc.only_healthy
}

/// Will it answer, if only until it ends?
fn serves(workload: &Workload) -> bool {
    workload.healthy || workload.draining
}

fn gather(
    snapshot: &Snapshot,
    source: &Workload,
    svc: &Service,
    preferred_family: IpAddr,
    tried: &[Arc<str>],
    state: impl Fn(&Workload) -> bool,
    (fits, target): (&impl Fn(&Workload) -> bool, &impl Fn(&Workload, &[(u16, u16)]) -> Option<u16>),
) -> Vec<(Arc<Workload>, SocketAddr, usize)> {
    let Some(all) = snapshot.endpoints.get(&svc.key) else { return vec![] };
    // Who calls a gateway by IPv6 may be led to a service of IPv4 only.
    let family = svc.only_family.unwrap_or(preferred_family);
    let mut out = Vec::with_capacity(all.len());
    let mut best = 0;
    for (uid, ports) in all {
        let Some(told) = snapshot.workloads.get(uid) else { continue };
        // Without any: its name is resolved when it has been chosen.
        let (workload, ip) = match same_family(&told.ips, family) {
            Some(ip) if !told.is_pod() && !is_host(ip) => continue,
            Some(ip) => (snapshot.member(told, ip), ip),
            None if !told.hostname.is_empty() => (told, Ipv4Addr::UNSPECIFIED.into()),
            None => continue,
        };
        if workload.uid != told.uid && all.get(&workload.uid).is_some_and(|own| target(workload, own).is_some()) {
            continue; // the member is an endpoint in its own right
        }
        // An endpoint that was written by its address has a state of its own besides.
        if tried.contains(&workload.uid) || !state(told) || !state(workload) || !fits(workload) {
            continue;
        }
        let rank = svc.scopes.iter().take_while(|x| matches(**x, source, workload)).count();
        if svc.mode == Mode::Strict && rank < svc.scopes.len() {
            continue;
        }
        let Some(target) = target(told, ports) else { continue };
        if svc.mode == Mode::Failover && rank > best {
            best = rank;
        }
        out.push((workload.clone(), SocketAddr::new(ip, target), rank));
    }
    if svc.mode == Mode::Failover {
        out.retain(|(.., r)| *r == best);
    }
    out
}

fn matches(scope: LocalityScope, one: &Workload, other: &Workload) -> bool {
    match scope {
        LocalityScope::Region => one.region == other.region,
        LocalityScope::Zone => one.zone == other.zone,
        LocalityScope::Subzone => one.subzone == other.subzone,
        LocalityScope::Node => one.node == other.node,
        LocalityScope::Cluster => one.cluster == other.cluster,
        LocalityScope::Network => one.network == other.network,
    }
}

/// The address of the family that was dialled, else the other.
fn same_family(ips: &[IpAddr], preferred_family: IpAddr) -> Option<IpAddr> {
    ips.iter().find(|i| i.is_ipv4() == preferred_family.is_ipv4()).or(ips.first()).copied()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use crate::testing::{pod, service, snapshot};
    use karst_api::workload as pb;
    use std::collections::HashMap;

    const S: &str = "ns/s.ns.svc.cluster.local";

    /// An endpoint that was written by its address.
    fn written(ip: &str, port: u32) -> pb::Workload {
        let mut w = pod(&format!("written-{}", ip.replace(':', "-")), ip, &[(S, &[(80, port)])]);
        w.uid = format!("Kubernetes/networking.istio.io/ServiceEntry/ns/s/{ip}");
        w.tunnel_protocol = 0;
        w
    }
    fn draining(mut w: pb::Workload) -> pb::Workload {
        w.status = 1;
        w.extensions.push(karst_api::draining());
        w
    }
    fn unhealthy(mut w: pb::Workload) -> pb::Workload {
        w.status = 1;
        w
    }
    /// Name, target and whether it is a member.
    fn found(mut pods: Vec<pb::Workload>, svc: pb::Service, tried: &[&str]) -> Vec<String> {
        pods.push(pod("c", "10.0.0.9", &[]));
        let s = snapshot(pods, vec![svc]);
        let c = s.workload("10.0.0.9".parse().unwrap()).unwrap();
        let tried: Vec<Arc<str>> = tried.iter().map(|t| format!("Kubernetes//Pod/ns/{t}").into()).collect();
        let all = candidates(&s, c, s.services.get(S).unwrap(), "10.96.0.1:80".parse().unwrap(), &tried);
        all.iter().map(|(w, a, _)| format!("{} {a} {}", w.name, if w.hbone { "member" } else { "plain" })).collect()
    }
    fn svc() -> pb::Service {
        service("s", "10.96.0.1", &[(80, 8080)])
    }

    #[test]
    fn an_endpoint_at_a_members_address_is_the_member() {
        let member = || pod("m", "10.0.0.1", &[]);
        assert_eq!(found(vec![member(), written("10.0.0.1", 90)], svc(), &[]), ["m 10.0.0.1:90 member"]);
        assert_eq!(found(vec![member(), written("10.0.0.1", 90)], svc(), &["m"]), [""; 0], "it has been tried");
        assert_eq!(found(vec![member(), written("10.0.0.2", 90)], svc(), &[]), ["written-10.0.0.2 10.0.0.2:90 plain"]);
        // Both are the member: once, as it says itself.
        let own = pod("m", "10.0.0.1", &[(S, &[(80, 70)])]);
        assert_eq!(found(vec![own, written("10.0.0.1", 90)], svc(), &[]), ["m 10.0.0.1:70 member"]);
        // Its state counts, and what was written of it.
        assert_eq!(found(vec![unhealthy(member()), written("10.0.0.1", 90)], svc(), &[]), [""; 0]);
        assert_eq!(found(vec![member(), unhealthy(written("10.0.0.1", 90))], svc(), &[]), [""; 0]);
        // A slice's endpoint is in nobody's index (as a host network pod), and is looked up all the same.
        let slice = || pb::Workload { network_mode: 1, ..written("10.0.0.1", 90) };
        assert_eq!(found(vec![member(), slice()], svc(), &[]), ["m 10.0.0.1:90 member"]);
        // The same address in another network is another one's.
        let far = pb::Workload { network: "far".into(), ..written("10.0.0.1", 90) };
        assert_eq!(found(vec![member(), far], svc(), &[]), ["written-10.0.0.1 10.0.0.1:90 plain"]);
        // A pod outside of the mesh stays one, whoever claims its address for a tunnel.
        let mut outside = pod("o", "10.0.0.1", &[(S, &[(80, 90)])]);
        outside.tunnel_protocol = 0;
        let mut claim = written("10.0.0.1", 90);
        (claim.tunnel_protocol, claim.services) = (1, Default::default());
        assert_eq!(found(vec![outside, claim], svc(), &[]), ["o 10.0.0.1:90 plain"]);
    }

    /// Loopback would be whoever calls, with all that listens there for nobody else.
    #[test]
    fn what_is_written_is_the_address_of_another_host() {
        for nobody in ["127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"] {
            let slice = pb::Workload { network_mode: 1, ..written(nobody, 15000) };
            assert_eq!(found(vec![written(nobody, 15000)], svc(), &[]), [""; 0], "{nobody}");
            assert_eq!(
                found(vec![slice, written("10.0.0.2", 90)], svc(), &[]).len(),
                1,
                "{nobody}: others are there still"
            );
            let ends = draining(written(nobody, 15000));
            assert_eq!(found(vec![ends], svc(), &[]), [""; 0], "{nobody}, about to end");
            // Not by datagrams either.
            let mut udp = written(nobody, 53);
            let ports = vec![pb::UdpPort { service_port: 80, target_port: 53, closed: String::new() }];
            udp.karst_udp_services = [(S.to_string(), pb::UdpPortList { ports })].into();
            let s = snapshot(vec![udp, pod("c", "10.0.0.9", &[])], vec![svc()]);
            let c = s.workload("10.0.0.9".parse().unwrap()).unwrap();
            assert!(udp_candidates(&s, c, s.services.get(S).unwrap(), "10.96.0.1:80".parse().unwrap()).is_empty());
        }
    }

    /// Whoever calls, and by whatever family he has come to a gateway.
    #[test]
    fn a_service_of_one_family_has_endpoints_of_that() {
        let mut both = pod("p", "10.0.0.1", &[(S, &[(80, 8080)])]);
        both.addresses.push(karst_core::addr::ip_to_bytes("fd00::1".parse().unwrap()).into());
        for (families, by_ipv4, by_ipv6) in [
            (pb::IpFamilies::Automatic, "10.0.0.1:8080", "[fd00::1]:8080"),
            (pb::IpFamilies::Dual, "10.0.0.1:8080", "[fd00::1]:8080"),
            (pb::IpFamilies::Ipv4Only, "10.0.0.1:8080", "10.0.0.1:8080"),
            (pb::IpFamilies::Ipv6Only, "[fd00::1]:8080", "[fd00::1]:8080"),
        ] {
            let svc = pb::Service { ip_families: families as i32, ..svc() };
            let s = snapshot(vec![both.clone(), pod("c", "10.0.0.9", &[])], vec![svc]);
            let c = s.workload("10.0.0.9".parse().unwrap()).unwrap();
            for (to, want) in [("10.96.0.1:80", by_ipv4), ("[fd00::60]:80", by_ipv6)] {
                let found = candidates(&s, c, s.services.get(S).unwrap(), to.parse().unwrap(), &[]);
                assert_eq!(found.iter().map(|f| f.1.to_string()).collect::<Vec<_>>(), [want], "{families:?} {to}");
            }
        }
        // One that has no address of it is called at what it has.
        let svc = pb::Service { ip_families: pb::IpFamilies::Ipv6Only as i32, ..svc() };
        assert_eq!(found(vec![pod("p", "10.0.0.1", &[(S, &[(80, 8080)])])], svc, &[]), ["p 10.0.0.1:8080 member"]);
    }

    #[test]
    fn an_endpoint_has_the_ports_that_it_lists() {
        let both = || service("s", "10.96.0.1", &[(80, 8080), (443, 8443)]);
        let at = |name: &str, ip: &str, ports: &[(u32, u32)]| pod(name, ip, &[(S, ports)]);
        // As two ServiceEntries of one host have them.
        let pods = || vec![at("web", "10.0.0.1", &[(80, 81)]), at("tls", "10.0.0.2", &[(443, 444)])];
        assert_eq!(found(pods(), both(), &[]), ["web 10.0.0.1:81 member"]);
        // One that lists none has the service's.
        assert_eq!(found(vec![at("any", "10.0.0.1", &[])], both(), &[]), ["any 10.0.0.1:8080 member"]);
        // Nobody is called at a number that the service does not have.
        let other = service("s", "10.96.0.1", &[(443, 8443)]);
        assert_eq!(found(pods().split_off(1), other.clone(), &[]), [""; 0]);
        assert_eq!(found(vec![at("any", "10.0.0.1", &[])], other, &[]), [""; 0]);
        // A member that lists the port is its own endpoint there; elsewhere what was written of it counts.
        let member = || at("m", "10.0.0.1", &[(443, 444)]);
        assert_eq!(found(vec![member(), written("10.0.0.1", 90)], both(), &[]), ["m 10.0.0.1:90 member"]);
        // A waypoint takes tunnels at the port that is said, whatever its service lists.
        let s = snapshot(vec![pod("c", "10.0.0.9", &[]), at("w", "10.0.0.3", &[(80, 80)])], vec![svc()]);
        let g = Gateway { to: GatewayTo::Service(S.into()), port: 15008 };
        let c = s.workload("10.0.0.9".parse().unwrap()).unwrap();
        let all: Vec<_> = waypoints(&s, c, &g, "10.96.0.1".parse().unwrap()).map(|(_, a)| a.to_string()).collect();
        assert_eq!(all, ["10.0.0.3:15008"]);
    }

    /// Ports of UDP are their own, and who is closed to what has no identity is no endpoint.
    #[test]
    fn datagrams_go_to_who_may_have_them() {
        let udp = |port: u32, target: u32, closed: &str| -> HashMap<String, pb::UdpPortList> {
            let one = pb::UdpPort { service_port: port, target_port: target, closed: closed.into() };
            [(S.to_string(), pb::UdpPortList { ports: vec![one] })].into()
        };
        let at = |name: &str, ip: &str, port: u32, closed: &str| pb::Workload {
            karst_udp_services: udp(port, 5353, closed),
            ..pod(name, ip, &[(S, &[(53, 53)])])
        };
        let found = |pods: Vec<pb::Workload>| {
            let s = snapshot(pods.into_iter().chain([pod("c", "10.0.0.9", &[])]).collect(), vec![svc()]);
            let c = s.workload("10.0.0.9".parse().unwrap()).unwrap();
            let service = s.services.get(S).unwrap();
            let all = udp_candidates(&s, c, service, "10.96.0.1:53".parse().unwrap());
            let all: Vec<_> = all.iter().map(|(w, a, _)| format!("{} {a}", w.name)).collect();
            (all.join(", "), closed_to_datagrams(&s, service, 53).unwrap_or_default().to_string())
        };
        let is = |all: &str, closed: &str| (all.to_string(), closed.to_string());
        let open = at("a", "10.0.0.1", 53, "");
        assert_eq!(found(vec![open.clone()]), is("a 10.0.0.1:5353", ""));
        assert_eq!(found(vec![at("a", "10.0.0.1", 54, "")]), is("", ""), "its TCP port 53 is another");
        let strict = at("b", "10.0.0.2", 53, "STRICT");
        assert_eq!(found(vec![open, strict.clone()]), is("a 10.0.0.1:5353", "STRICT"));
        assert_eq!(found(vec![strict.clone()]), is("", "STRICT"));
        // Who is not captured guards nothing.
        assert_eq!(found(vec![pb::Workload { tunnel_protocol: 0, ..strict.clone() }]), is("b 10.0.0.2:5353", ""));
        // Whoever writes a member by its address does not open it.
        let mut slice =
            pb::Workload { karst_udp_services: udp(53, 5353, ""), network_mode: 1, ..written("10.0.0.2", 53) };
        let member = pod("b", "10.0.0.2", &[]);
        let by_other = "the endpoint is a member of the mesh by another object";
        assert_eq!(found(vec![member, slice.clone()]), is("", by_other));
        assert_eq!(found(vec![strict, slice.clone()]), is("", "STRICT"));
        // Nor who writes the address of a Service, behind which it may be.
        slice.addresses = vec![karst_core::addr::ip_to_bytes([10, 96, 0, 7].into()).into()];
        assert_eq!(found(vec![slice.clone()]), is("written-10.0.0.2 10.96.0.7:5353", ""));
        let kubernetes = pb::Service { canonical: true, ..service("k", "10.96.0.7", &[(53, 53)]) };
        let s = snapshot(vec![slice.clone(), pod("c", "10.0.0.9", &[])], vec![svc(), kubernetes]);
        let c = s.workload("10.0.0.9".parse().unwrap()).unwrap();
        assert!(udp_candidates(&s, c, s.services.get(S).unwrap(), "10.96.0.1:53".parse().unwrap()).is_empty());
        slice.addresses = vec![];
        slice.hostname = "a.example".into();
        assert_eq!(found(vec![slice]), is("", ""), "no name is looked up");
    }

    #[test]
    fn those_that_end_serve_where_nobody_else_does() {
        let at = |name: &str, ip: &str| pod(name, ip, &[(S, &[(80, 80)])]);
        let (a, b, c) = (at("a", "10.0.0.1"), at("b", "10.0.0.2"), at("d", "10.0.0.3"));
        let all = |a, b, c| found(vec![a, b, c], svc(), &[]);
        assert_eq!(all(a.clone(), draining(b.clone()), unhealthy(c.clone())), ["a 10.0.0.1:80 member"]);
        let two = ["a 10.0.0.1:80 member", "b 10.0.0.2:80 member"];
        assert_eq!(all(draining(a.clone()), draining(b.clone()), unhealthy(c.clone())), two);
        assert_eq!(all(unhealthy(a.clone()), unhealthy(b.clone()), unhealthy(c.clone())), [""; 0]);
        // The healthy one has just failed.
        assert_eq!(found(vec![a.clone(), draining(b.clone())], svc(), &["a"]), ["b 10.0.0.2:80 member"]);
        // The port counts: a healthy endpoint without it is none.
        let other = pod("a", "10.0.0.1", &[(S, &[(80, 0)])]);
        assert_eq!(found(vec![other, draining(b.clone())], svc(), &[]), ["b 10.0.0.2:80 member"]);
        // The node's own only (internalTrafficPolicy: Local), and the near ones first.
        let near = |mut w: pb::Workload| {
            w.node = "n".into();
            w
        };
        let places = |mode: i32| {
            let mut s = svc();
            s.load_balancing = Some(pb::LoadBalancing { routing_preference: vec![4], mode, health_policy: 0 });
            s
        };
        let run = |mode: i32, b: pb::Workload| {
            let s = snapshot(vec![near(pod("c", "10.0.0.9", &[])), a.clone(), near(b)], vec![places(mode)]);
            let c = s.workload("10.0.0.9".parse().unwrap()).unwrap();
            let all = candidates(&s, c, s.services.get(S).unwrap(), "10.96.0.1:80".parse().unwrap(), &[]);
            all.iter().map(|(w, ..)| w.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(run(1, draining(b.clone())), ["b"], "no other on this node");
        assert_eq!(run(2, draining(b.clone())), ["a"], "a healthy one elsewhere");
        // Who is there already may stay.
        let s = snapshot(
            vec![pod("c", "10.0.0.9", &[]), a.clone(), draining(b.clone()), unhealthy(c.clone())],
            vec![svc()],
        );
        let (own, to) = (s.workload("10.0.0.9".parse().unwrap()).unwrap(), "10.96.0.1:80".parse().unwrap());
        let of = |fits| ending(&s, own, s.services.get(S).unwrap(), to, |_| fits);
        let names: Vec<_> = of(true).iter().map(|(w, a, _)| format!("{} {a}", w.name)).collect();
        assert_eq!((names, of(false).len()), (vec!["b 10.0.0.2:80".to_string()], 0));
        // Who wants all gets all.
        let mut everybody = svc();
        everybody.load_balancing = Some(pb::LoadBalancing { health_policy: 1, ..Default::default() });
        assert_eq!(found(vec![a, draining(b), unhealthy(c)], everybody, &[]).len(), 3);
        // What the extension says counts only of what is not healthy.
        let mut well = at("a", "10.0.0.1");
        well.extensions.push(karst_api::draining());
        let s = snapshot(vec![well], vec![]);
        assert!(s.workloads.values().all(|w| w.healthy && !w.draining));
    }
}
