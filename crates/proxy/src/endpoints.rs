//! Which endpoints of a service could be used, and who is a waypoint: the same for both proxies.

use crate::state::{Gateway, GatewayTo, Mode, Scope2, Service, Snapshot, Workload};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

/// Is this workload the gateway that is named?
pub fn is_waypoint(s: &Snapshot, w: &Workload, g: &Gateway) -> bool {
    match &g.to {
        GatewayTo::Address(ip) => {
            w.ips.contains(ip)
                || s.service(*ip, &w.namespace).is_some_and(|svc| w.services.iter().any(|(k, _)| *k == svc.key))
        }
        GatewayTo::Service(key) => w.services.iter().any(|(k, _)| k == key),
    }
}

/// The pods of a waypoint, and where they take tunnels. `like`: the address family that is preferred.
pub fn waypoints(
    s: &Snapshot,
    source: &Workload,
    g: &Gateway,
    like: IpAddr,
) -> impl Iterator<Item = (Arc<Workload>, SocketAddr)> {
    let service = match &g.to {
        GatewayTo::Service(key) => s.services.get(key),
        GatewayTo::Address(ip) => s.service(*ip, &source.namespace),
    };
    let own = match &g.to {
        GatewayTo::Address(ip) => s.workload(*ip).map(|w| (w.clone(), SocketAddr::new(*ip, g.port))),
        GatewayTo::Service(_) => None,
    };
    let port = g.port;
    let behind =
        service.filter(|_| own.is_none()).map(|svc| candidates(s, source, svc, SocketAddr::new(like, port), &[]));
    let behind = behind.into_iter().flatten().filter(|(w, ..)| !w.ips.is_empty());
    own.into_iter().chain(behind.map(move |(w, a, _)| (w, SocketAddr::new(a.ip(), port))))
}

/// Endpoints that could be used, with the best place only: workload, address, rank. An
/// endpoint that is known by name only has the unspecified address. `tried` are left out.
pub fn candidates(
    s: &Snapshot,
    source: &Workload,
    svc: &Service,
    to: SocketAddr,
    tried: &[Arc<str>],
) -> Vec<(Arc<Workload>, SocketAddr, usize)> {
    let Some(all) = s.endpoints.get(&svc.key) else { return vec![] };
    let mut out = Vec::with_capacity(all.len());
    let mut best = 0;
    for (uid, ports) in all {
        if tried.contains(uid) {
            continue;
        }
        let Some(w) = s.workloads.get(uid) else { continue };
        if svc.only_healthy && !w.healthy {
            continue;
        }
        let rank = svc.scopes.iter().take_while(|x| matches(**x, source, w)).count();
        if svc.mode == Mode::Strict && rank < svc.scopes.len() {
            continue;
        }
        // Without any: its name is resolved when it has been chosen.
        let ip = match same_family(&w.ips, to.ip()) {
            Some(ip) => ip,
            None if !w.hostname.is_empty() => Ipv4Addr::UNSPECIFIED.into(),
            None => continue,
        };
        let named = ports.iter().find(|(p, _)| *p == to.port()).map(|(_, t)| *t);
        let target = match named.or_else(|| svc.ports.iter().find(|(p, _)| *p == to.port()).map(|(_, t)| *t)) {
            Some(0) => continue, // a named port that this endpoint does not have
            Some(t) => t,
            None => to.port(),
        };
        if svc.mode == Mode::Failover && rank > best {
            best = rank;
        }
        out.push((w.clone(), SocketAddr::new(ip, target), rank));
    }
    if svc.mode == Mode::Failover {
        out.retain(|(.., r)| *r == best);
    }
    out
}

fn matches(x: Scope2, a: &Workload, b: &Workload) -> bool {
    match x {
        Scope2::Region => a.region == b.region,
        Scope2::Zone => a.zone == b.zone,
        Scope2::Subzone => a.subzone == b.subzone,
        Scope2::Node => a.node == b.node,
        Scope2::Cluster => a.cluster == b.cluster,
        Scope2::Network => a.network == b.network,
    }
}

/// The address of the family that was dialled, else the other.
fn same_family(ips: &[IpAddr], like: IpAddr) -> Option<IpAddr> {
    ips.iter().find(|i| i.is_ipv4() == like.is_ipv4()).or(ips.first()).copied()
}
