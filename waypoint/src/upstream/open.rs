//! A byte stream to an endpoint: through a tunnel to a member of the mesh, whose identity must be the workload's; as it is to others.

use crate::{
    cluster::{endpoint::LbEndpoint, endpoint_set::EndpointSet},
    downstream::{continued::Next, stream::Io},
    upstream::{
        address::{is_usable, is_usable_as_written},
        connector::Connector,
        error::{ConnectError, Lent},
        follow::{Follows, Way},
        tls::{self, Speaks},
    },
    worker::Worker,
};
use karst_api::route as ir;
use karst_core::{
    Identity, limits,
    proxy_protocol::{self, Version},
};
use karst_hbone::{
    continuation,
    pool::{Lease, Opened},
};
use karst_proxy::{
    dial::{self, Candidate, Target},
    state::Workload,
    trace::SpanContext,
    untold::Told,
};
use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{io::AsyncWriteExt, time::Instant};

/// One attempt to reach a destination: by which endpoint, and for whom.
#[derive(Clone, Copy)]
pub struct Attempt<'a> {
    pub set: &'a EndpointSet,
    pub member: &'a LbEndpoint,
    /// The client.
    pub from: SocketAddr,
    /// What it has called.
    pub to: SocketAddr,
    /// Is there another endpoint that would be tried if this one does not answer?
    pub has_other: &'a dyn Fn() -> bool,
    /// Set while the attempt waits for the control plane's word and not for the endpoint: its end then says nothing of that.
    pub held: &'a Cell<bool>,
    /// The span of the request that it is for, where that is sampled and told of. Asked when a tunnel's stream is opened: requests
    /// that come later on the same connection are not its trace's.
    pub trace: &'a dyn Fn() -> Option<SpanContext>,
}

impl<'a> Attempt<'a> {
    /// What is learnt of the endpoint counts where there are others.
    fn candidate(&self) -> Option<Candidate<'a>> {
        let Attempt { set, member, has_other, .. } = *self;
        (set.members.len() > 1).then_some(Candidate { endpoint: &*member.state, has_other })
    }

    /// What the connection begins with, where its destination is to be told who the client is (PROXY protocol).
    fn proxy_header(&self) -> Option<Vec<u8>> {
        let version = match self.set.policy.proxy_protocol() {
            ir::ProxyProtocol::NoHeader => return None,
            ir::ProxyProtocol::V1 => Version::V1,
            ir::ProxyProtocol::V2 => Version::V2,
        };
        Some(proxy_protocol::write(version, self.from, self.to))
    }

    /// What tells connections to the same endpoint apart. One that says who the client is, is used for no other.
    pub fn partition(&self) -> Option<Arc<[u8]>> {
        match self.proxy_header() {
            None => self.set.pool_partition.clone(),
            Some(header) => {
                let rest = self.set.pool_partition.as_deref().unwrap_or_default();
                // The header says itself where it ends.
                Some([&header[..], rest].concat().into())
            }
        }
    }
}

/// Opens a byte stream to an endpoint. Its rules say how long that may take; the control plane's word has its own time.
///
/// # Errors
/// See [`ConnectError`].
pub async fn open(
    worker: &Rc<Worker>,
    attempt: &Attempt<'_>,
    speaks: Speaks,
) -> Result<(Io, Option<Lease>), ConnectError> {
    let set = attempt.set;
    let limit = match set.policy.limits.as_ref().map_or(0, |l| l.connect_timeout_ms) {
        0 => limits::CONNECT_TIMEOUT,
        ms => Duration::from_millis(ms),
    };
    let late = || {
        if let Some(candidate) = attempt.candidate() {
            candidate.endpoint.avoid();
        }
        ConnectError::Timeout
    };
    let began = Instant::now();
    let (address, workload) = match attempt.member.address.ip().is_unspecified() {
        // Rare, and large: not in every request's task.
        true => tokio::time::timeout(limit, Box::pin(found(worker, attempt))).await.map_err(|_| late())??,
        false => (attempt.member.address, by_address(worker, attempt)?),
    };
    let limit = limit.saturating_sub(began.elapsed());
    let workload = told(worker, attempt, address.ip(), workload).await?;
    let whole = async {
        let (mut io, lease) = connect(worker, attempt, address, workload).await?;
        if let Some(header) = attempt.proxy_header() {
            io.write_all(&header).await.map_err(ConnectError::ProxyHeader)?;
        }
        match set.policy.tls.as_ref().filter(|_| speaks != Speaks::Tls) {
            None => Ok((io, lease)),
            Some(t) => {
                let io = Box::pin(tls::shake(&worker.snapshot(), set, t, io, speaks)).await;
                Ok((io?, lease))
            }
        }
    };
    tokio::time::timeout(limit, whole).await.map_err(|_| late())?
}

/// Why a member is not called with our identity: its policies may let us in for the sake of its own services' routes and policies,
/// past which nobody is to come by us, neither by what he calls nor by endpoints that he writes.
pub fn lent(set: &EndpointSet, workload: &Workload) -> Option<Lent> {
    if !workload.hbone {
        return None;
    }
    let host = set.host.clone();
    if set.dynamic_endpoint.is_some() {
        return Some(Lent::Dynamic { host });
    }
    // A waypoint is asked, not called.
    let foreign = set.via_waypoint.is_none() && workload.namespace != set.service.namespace;
    foreign.then(|| Lent::Namespace { host, namespace: workload.namespace.clone(), name: workload.name.clone() })
}

/// Where the name of an endpoint leads, and to whom.
async fn found(worker: &Worker, attempt: &Attempt<'_>) -> Result<(SocketAddr, Arc<Workload>), ConnectError> {
    let member = attempt.member;
    let mut ips = worker.dialer.lookup(&member.workload.hostname, true).await?;
    let snapshot = worker.snapshot();
    let own = worker.own(&snapshot).map(|own| &**own);
    ips.retain(|ip| is_usable(&snapshot.mesh, own, *ip));
    if ips.is_empty() {
        return Err(ConnectError::NoAddress(member.workload.hostname.clone()));
    }
    let ip = ips[worker.random(ips.len() as u64) as usize];
    // A name may lead to a member of the mesh: then it is spoken to as one.
    let workload = snapshot.mesh.workload(ip).unwrap_or(&member.workload).clone();
    Ok((SocketAddr::new(ip, member.address.port()), workload))
}

/// Who an endpoint is that is told by its address. What takes tunnels shows itself who it is, and a pod's address is the kubelet's word;
/// any other was written by somebody.
fn by_address(worker: &Worker, attempt: &Attempt<'_>) -> Result<Arc<Workload>, ConnectError> {
    let LbEndpoint { workload, address, .. } = attempt.member;
    if !workload.is_pod() && is_plain(attempt.set, workload) {
        let snapshot = worker.snapshot();
        if !is_usable_as_written(&snapshot.mesh, worker.own(&snapshot).map(|own| &**own), address.ip()) {
            return Err(ConnectError::NoAddress(address.ip().to_string().into()));
        }
    }
    Ok(workload.clone())
}

/// Is it spoken to without a tunnel? (A waypoint takes tunnels whatever it is itself.)
fn is_plain(set: &EndpointSet, workload: &Workload) -> bool {
    !workload.hbone && set.via_waypoint.is_none()
}

/// Who an endpoint is, once it is known who is at its address.
async fn told(
    worker: &Worker,
    attempt: &Attempt<'_>,
    ip: IpAddr,
    workload: Arc<Workload>,
) -> Result<Arc<Workload>, ConnectError> {
    if !is_plain(attempt.set, &workload) || !worker.shared.state.borrow().mesh.is_untold(ip) {
        return Ok(workload);
    }
    attempt.held.set(true);
    // Rare, and large: not in every request's task.
    let told = Box::pin(worker.told(ip)).await;
    attempt.held.set(false);
    match told {
        Told::Known => Ok(worker.snapshot().mesh.member(&workload, ip).clone()),
        Told::Nobody => Ok(workload),
        Told::Nothing => Err(ConnectError::Untold(ip)),
    }
}

async fn connect(
    worker: &Rc<Worker>,
    attempt: &Attempt<'_>,
    address: SocketAddr,
    workload: Arc<Workload>,
) -> Result<(Io, Option<Lease>), ConnectError> {
    let set = attempt.set;
    if let Some(why) = lent(set, &workload) {
        return Err(why.into());
    }
    #[allow(clippy::infallible_destructuring_match, reason = "tests have another connector")]
    let network = match &worker.connector {
        Connector::Network(n) => n,
        #[cfg(any(test, feature = "fuzz"))]
        Connector::Memory(m) => return m.open(address).map(|io| (io, None)),
    };
    if is_plain(set, &workload) {
        let tcp = worker.dialer.connect(network, None, address, attempt.candidate()).await?;
        return Ok((Io::watched(tcp), None));
    }
    // A waypoint says itself where it takes tunnels.
    let port = if set.via_waypoint.is_some() { address.port() } else { karst_hbone::PORT };
    // Who answers must be that workload, or who the service says it is.
    let others = set.service.sans.iter().filter(|_| set.via_waypoint.is_none());
    let expected: Vec<Identity> = [workload.identity.clone()].into_iter().chain(others.cloned()).collect();
    let (address, authority) =
        (SocketAddr::new(address.ip(), port), set.via_waypoint.clone().unwrap_or_else(|| address.to_string()));
    let headers = |trace| dial::headers(set.baggage.as_ref(), attempt.from, Some(&set.service.hostname), trace);
    // A waypoint does not leave in the middle of a connection.
    let may_continue = set.via_waypoint.is_none();
    let first = || {
        let mut first = headers((attempt.trace)());
        if may_continue {
            continuation::announce(&mut first);
        }
        first
    };
    let opened = {
        let target = Target {
            connector: network,
            pod: "",
            own: &worker.shared.identity,
            peer: &workload,
            address,
            expected: &expected,
            authority: &authority,
            headers: &first,
        };
        worker.dialer.tunnel(&target, attempt.candidate()).await?
    };
    let Opened { lease, send, recv, continues, .. } = opened;
    let lingering = worker.lingering.clone();
    if !(continues && may_continue) {
        return Ok((Io::tunnel(send, recv, lingering), Some(lease)));
    }
    let way = Arc::new(Way { peer: workload, address, expected, authority, headers: headers(None) });
    let follows = Box::new(Follows { way, orders: worker.following.clone() });
    // Its place is the caller's.
    let first = Next { send, recv, held: Box::new(()) };
    Ok((Io::continuing(first, true, follows, lingering), Some(lease)))
}
