//! A byte stream to an endpoint: through a tunnel to a member of the mesh, whose identity must be the workload's; as it is to others.

use crate::{
    cluster::{endpoint::LbEndpoint, endpoint_set::EndpointSet},
    downstream::stream::Io,
    upstream::{
        address::is_usable,
        connector::Connector,
        error::{ConnectError, Lent},
        tls::{self, Speaks},
    },
    worker::Worker,
};
use karst_core::{Identity, limits};
use karst_hbone::pool::Lease;
use karst_proxy::{
    dial::{self, Candidate, Target},
    state::Workload,
    untold::Told,
};
use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// One attempt to reach a destination: by which endpoint, and for whom.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    pub set: &'a EndpointSet,
    pub member: &'a LbEndpoint,
    /// The client.
    pub from: SocketAddr,
    /// Is there another endpoint that would be tried if this one does not answer?
    pub has_other: &'a dyn Fn() -> bool,
    /// Set while the attempt waits for the control plane's word and not for the endpoint: its end then says nothing of that.
    pub held: &'a Cell<bool>,
}

impl<'a> Attempt<'a> {
    /// What is learnt of the endpoint counts where there are others.
    fn candidate(&self) -> Option<Candidate<'a>> {
        let Attempt { set, member, has_other, .. } = *self;
        (set.members.len() > 1).then_some(Candidate { endpoint: &*member.state, has_other })
    }
}

/// Opens a byte stream to an endpoint. Its rules say how long that may take; the control plane's word has its own time.
///
/// # Errors
/// See [`ConnectError`].
pub async fn open(w: &Rc<Worker>, a: &Attempt<'_>, speaks: Speaks) -> Result<(Io, Option<Lease>), ConnectError> {
    let s = a.set;
    let limit = match s.policy.limits.as_ref().map_or(0, |l| l.connect_timeout_ms) {
        0 => limits::CONNECT_TIMEOUT,
        ms => Duration::from_millis(ms),
    };
    let late = || {
        if let Some(c) = a.candidate() {
            c.endpoint.avoid();
        }
        ConnectError::Timeout
    };
    let began = Instant::now();
    let (address, workload) = match a.member.address.ip().is_unspecified() {
        // Rare, and large: not in every request's task.
        true => tokio::time::timeout(limit, Box::pin(found(w, a))).await.map_err(|_| late())??,
        false => (a.member.address, a.member.workload.clone()),
    };
    let limit = limit.saturating_sub(began.elapsed());
    let workload = told(w, a, address.ip(), workload).await?;
    let whole = async {
        let (io, lease) = connect(w, a, address, workload).await?;
        match s.policy.tls.as_ref().filter(|_| speaks != Speaks::Tls) {
            None => Ok((io, lease)),
            Some(t) => {
                let io = Box::pin(tls::shake(&w.snapshot(), s, t, io, speaks)).await;
                Ok((io?, lease))
            }
        }
    };
    tokio::time::timeout(limit, whole).await.map_err(|_| late())?
}

/// Why a member is not called with our identity: its policies may let us in for the sake of its own services' routes and policies,
/// past which nobody is to come by us, neither by what he calls nor by endpoints that he writes.
pub fn lent(s: &EndpointSet, workload: &Workload) -> Option<Lent> {
    if !workload.hbone {
        return None;
    }
    let host = s.host.clone();
    if s.dynamic_endpoint.is_some() {
        return Some(Lent::Dynamic { host });
    }
    // A waypoint is asked, not called.
    let foreign = s.via_waypoint.is_none() && workload.namespace != s.service.namespace;
    foreign.then(|| Lent::Namespace { host, namespace: workload.namespace.clone(), name: workload.name.clone() })
}

/// Where the name of an endpoint leads, and to whom.
async fn found(w: &Worker, a: &Attempt<'_>) -> Result<(SocketAddr, Arc<Workload>), ConnectError> {
    let m = a.member;
    let mut ips = w.dialer.lookup(&m.workload.hostname, true).await?;
    let snapshot = w.snapshot();
    let own = w.own(&snapshot).map(|own| &**own);
    ips.retain(|ip| is_usable(&snapshot.mesh, own, *ip));
    if ips.is_empty() {
        return Err(ConnectError::NoAddress(m.workload.hostname.clone()));
    }
    let ip = ips[w.random(ips.len() as u64) as usize];
    // A name may lead to a member of the mesh: then it is spoken to as one.
    let workload = snapshot.mesh.workload(ip).unwrap_or(&m.workload).clone();
    Ok((SocketAddr::new(ip, m.address.port()), workload))
}

/// Is it spoken to without a tunnel? (A waypoint takes tunnels whatever it is itself.)
fn is_plain(s: &EndpointSet, workload: &Workload) -> bool {
    !workload.hbone && s.via_waypoint.is_none()
}

/// Who an endpoint is, once it is known who is at its address.
async fn told(w: &Worker, a: &Attempt<'_>, ip: IpAddr, workload: Arc<Workload>) -> Result<Arc<Workload>, ConnectError> {
    if !is_plain(a.set, &workload) || !w.shared.state.borrow().mesh.is_untold(ip) {
        return Ok(workload);
    }
    a.held.set(true);
    // Rare, and large: not in every request's task.
    let told = Box::pin(w.told(ip)).await;
    a.held.set(false);
    match told {
        Told::Known => Ok(w.snapshot().mesh.member(&workload, ip).clone()),
        Told::Nobody => Ok(workload),
        Told::Nothing => Err(ConnectError::Untold(ip)),
    }
}

async fn connect(
    w: &Rc<Worker>,
    a: &Attempt<'_>,
    address: SocketAddr,
    workload: Arc<Workload>,
) -> Result<(Io, Option<Lease>), ConnectError> {
    let s = a.set;
    if let Some(why) = lent(s, &workload) {
        return Err(why.into());
    }
    #[allow(clippy::infallible_destructuring_match, reason = "tests have another connector")]
    let network = match &w.connector {
        Connector::Network(n) => n,
        #[cfg(test)]
        Connector::Memory(m) => return m.open(address).map(|io| (io, None)),
    };
    if is_plain(s, &workload) {
        let tcp = w.dialer.connect(network, None, address, a.candidate()).await?;
        return Ok((Io::socket(tcp), None));
    }
    // A waypoint says itself where it takes tunnels.
    let port = if s.via_waypoint.is_some() { address.port() } else { karst_hbone::PORT };
    // Who answers must be that workload, or who the service says it is.
    let others = s.service.sans.iter().filter(|_| s.via_waypoint.is_none());
    let expected: Vec<Identity> = [workload.identity.clone()].into_iter().chain(others.cloned()).collect();
    let target = Target {
        connector: network,
        pod: "",
        own: &w.shared.identity,
        peer: &workload,
        address: SocketAddr::new(address.ip(), port),
        expected: &expected,
        authority: &s.via_waypoint.clone().unwrap_or_else(|| address.to_string()),
        headers: dial::headers(s.baggage.as_ref(), a.from, Some(&s.service.hostname)),
    };
    let o = w.dialer.tunnel(&target, a.candidate()).await?;
    Ok((Io::tunnel(o.send, o.recv, w.lingering.clone()), Some(o.lease)))
}
