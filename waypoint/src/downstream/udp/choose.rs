//! Where a session leads: the listener's rule, one of its destinations, an endpoint of that.

use crate::{
    clock,
    cluster::{
        endpoint::EndpointStats,
        endpoint_set::EndpointSet,
        key::{ClusterKey, ClusterKeyRef},
    },
    downstream::{context::Downstream, gateway::UdpListener, udp::counts::Dropped},
    route::tcp::TcpRule,
    snapshot::Snapshot,
    worker::Worker,
};
use karst_api::route as ir;
use karst_proxy::{endpoints, state::Service};
use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// Where a session leads.
pub struct Way {
    /// Where the rule comes from.
    pub route: String,
    pub set: Rc<EndpointSet>,
    /// The endpoint, by its place.
    pub index: usize,
}

/// Why datagrams lead nowhere.
#[derive(Debug)]
pub struct NoWay {
    pub why: Dropped,
    /// More of that, for the log.
    pub text: &'static str,
    /// Of whom.
    pub of: Arc<str>,
}

impl From<Dropped> for NoWay {
    fn from(why: Dropped) -> Self {
        Self { why, text: "", of: Arc::default() }
    }
}

/// The endpoint that a session has. (Not its set: that would keep all endpoints of however old a state.)
pub struct SessionEndpoint {
    pub key: ClusterKey,
    pub uid: Arc<str>,
    pub address: SocketAddr,
    pub state: Arc<EndpointStats>,
}

impl SessionEndpoint {
    /// Counts for the balancing of others until it is dropped.
    pub fn of(way: &Way) -> Self {
        let member = &way.set.members[way.index];
        member.state.active.fetch_add(1, Relaxed);
        let (uid, address, state) = (member.workload.uid.clone(), member.address, member.state.clone());
        Self { key: way.set.key.clone(), uid, address, state }
    }
}

impl Drop for SessionEndpoint {
    fn drop(&mut self) {
        self.state.active.fetch_sub(1, Relaxed);
    }
}

/// The rule of a listener. Of several routes the oldest is the only one.
fn rule<'a>(snapshot: &'a Snapshot, listener: &UdpListener, downstream: &Downstream) -> Option<&'a TcpRule> {
    snapshot.hosts.get(&*listener.routes)?.table("").find_tcp(&downstream.tcp())
}

/// The port of a service that is meant. Where none is named it is the only one.
fn port(service: &Service, destination: &ir::Destination) -> Option<u16> {
    match (u16::try_from(destination.port).ok()?, &service.udp_ports[..]) {
        (0, [only]) => Some(*only),
        (0, _) => None,
        (port, _) => Some(port),
    }
}

/// The endpoints of a service's port, as they are called from here.
fn set(
    worker: &Worker,
    snapshot: &Arc<Snapshot>,
    service: &Service,
    port: u16,
    called: IpAddr,
) -> Option<Rc<EndpointSet>> {
    let own = &*worker.shared.config.pod_namespace;
    let backend = snapshot.backend_by_client(&service.key);
    let client = backend.filter(|b| b.has_client(own)).map_or("", |_| own);
    let subset: Arc<str> = Arc::default();
    let key = ClusterKeyRef { service: &service.key, port, subset: &subset, client, udp: true };
    worker.set(snapshot, key, called)
}

/// What gateways send to this service is to go through its waypoint, which takes no datagrams.
fn goes_through_waypoint(service: &Service) -> bool {
    service.ingress_waypoint && !service.waypoints.is_empty()
}

/// Chooses, for a session that begins.
///
/// # Errors
/// Why there is no way.
pub fn choose(
    worker: &Worker,
    snapshot: &Arc<Snapshot>,
    listener: &UdpListener,
    downstream: &Downstream,
) -> Result<Way, NoWay> {
    let rule = rule(snapshot, listener, downstream).ok_or(Dropped::NoRoute)?;
    let destination = rule.choose();
    let destination = destination.filter(|d| d.refuse_status == 0).ok_or(Dropped::NoDestination)?;
    let service = snapshot.mesh.services.get(&*destination.service).ok_or(Dropped::NoDestination)?;
    let port = port(service, destination).ok_or(Dropped::NoDestination)?;
    let closed = |text, of: &Arc<str>| NoWay { why: Dropped::Closed, text, of: of.clone() };
    if goes_through_waypoint(service) {
        return Err(closed("istio.io/ingress-use-waypoint is set, and no waypoint takes datagrams", &service.key));
    }
    let set = set(worker, snapshot, service, port, downstream.to).ok_or(Dropped::NoDestination)?;
    // What is to be spoken to by TLS is not spoken to without.
    if set.policy.tls.is_some() {
        return Err(closed(
            "a DestinationRule or BackendTLSPolicy asks for TLS, which datagrams do not have",
            &service.key,
        ));
    }
    let Some(index) = worker.choose(&set, None, &[], clock::now()) else {
        return Err(match endpoints::closed_to_datagrams(&snapshot.mesh, service, port) {
            Some(of) if set.members.is_empty() => closed("endpoints require mutual TLS, which no datagram has", &of),
            _ => NoWay { why: Dropped::NoEndpoint, text: "no endpoint", of: service.key.clone() },
        });
    };
    Ok(Way { route: rule.origin.clone(), set, index })
}

/// May a session that was opened by an older state go on? Not if its endpoint has left or is closed, or if the listener's rule does
/// not lead there any more.
pub fn stands(
    worker: &Worker,
    snapshot: &Arc<Snapshot>,
    listener: &UdpListener,
    downstream: &Downstream,
    held: &SessionEndpoint,
) -> bool {
    let key = &held.key;
    let Some(rule) = rule(snapshot, listener, downstream) else { return false };
    let Some(service) = snapshot.mesh.services.get(&key.service) else { return false };
    let leads = |d: &ir::Destination| {
        d.refuse_status == 0 && d.weight > 0 && *d.service == *key.service && port(service, d) == Some(key.port)
    };
    if !rule.destinations.iter().any(leads) || goes_through_waypoint(service) {
        return false;
    }
    let Some(set) = set(worker, snapshot, service, key.port, downstream.to) else { return false };
    set.policy.tls.is_none() && set.members.iter().any(|m| m.address == held.address && m.workload.uid == held.uid)
}
