//! Connections to endpoints that are kept: of HTTP/1.1 for the next request, of HTTP/2 for several at a time. None gets a further
//! request on a tunnel whose peer is going away: that would wait for it, and then cut it.

use crate::{cluster::endpoint_set::EndpointSet, http::body::Counted, upstream::settings::Announced};
use hyper::client::conn::{http1, http2};
use karst_api::route as ir;
use karst_hbone::pool::{Lease, TunnelState};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Idle connections kept for an endpoint by one worker.
const IDLE: usize = 64;
/// Idle connections kept by one worker.
const ALL_IDLE: usize = 4096;
/// A connection without requests is closed after this time where no rule says otherwise (Istio: an hour).
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// The same of one that is one client's (PROXY protocol): its next request comes soon, or not at all.
const IDLE_OF_ONE: Duration = Duration::from_secs(60);
/// Between two looks at those that are kept.
pub const SWEEP: Duration = Duration::from_secs(1);

/// A worker's connections.
#[derive(Default)]
pub struct Pool {
    pub h1: RefCell<HashMap<PoolKey, Vec<Idle>>>,
    pub h2: RefCell<HashMap<PoolKey, Vec<Shared>>>,
}

/// An end of connections: whose, where, with which TLS of ours, and for which client if it says so. (What was opened by other rules
/// for TLS is not used again.)
pub type PoolKey = (Arc<str>, SocketAddr, Option<Arc<[u8]>>);
/// Sends on a connection of HTTP/1.1.
pub type Sender1 = http1::SendRequest<Counted>;
/// Sends on a connection of HTTP/2.
pub type Sender2 = http2::SendRequest<Counted>;

/// One that no request uses.
pub struct Idle {
    pub send: Sender1,
    /// Requests that it has had.
    pub requests: u32,
    /// What it is on, if that is a tunnel.
    pub tunnel: Option<TunnelState>,
    /// Kept so long.
    until: Instant,
}

/// One of HTTP/2.
#[derive(Clone)]
pub struct Shared {
    pub send: Sender2,
    pub active: Rc<Cell<usize>>,
    /// What the endpoint says that it takes.
    pub announced: Rc<Announced>,
    /// What it is on, if that is a tunnel.
    pub tunnel: Option<TunnelState>,
    /// Without requests it is kept so long.
    pub until: Rc<Cell<Instant>>,
}

/// Is a connection on a tunnel that is going away?
pub fn is_leaving(tunnel: Option<&TunnelState>) -> bool {
    tunnel.is_some_and(TunnelState::is_leaving)
}

impl Pool {
    /// A connection of HTTP/1.1 that was kept for the next request: the one that was used last.
    pub fn take(&self, key: &PoolKey) -> Option<Idle> {
        let mut all = self.h1.borrow_mut();
        let kept = all.get_mut(key)?;
        std::iter::from_fn(|| kept.pop()).find(|idle| !is_leaving(idle.tunnel.as_ref()))
    }

    /// Gives no further request a connection to an endpoint that was opened before. Those that have requests go on with them.
    pub fn forget(&self, workload: &str, at: SocketAddr) {
        let is_other = |(uid, address, _): &PoolKey| (&**uid, *address) != (workload, at);
        self.h1.borrow_mut().retain(|key, _| is_other(key));
        self.h2.borrow_mut().retain(|key, _| is_other(key));
    }

    /// Closes what has been idle for too long, and forgets endpoints without connections.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut left = ALL_IDLE;
        self.h1.borrow_mut().retain(|_, all| {
            all.retain(|i| i.until > now && !i.send.is_closed() && !is_leaving(i.tunnel.as_ref()));
            // Those that were used last are at the end.
            all.drain(..all.len().saturating_sub(left));
            left -= all.len();
            !all.is_empty()
        });
        self.h2.borrow_mut().retain(|_, all| {
            let is_kept = |c: &Shared| c.until.get() > now && !is_leaving(c.tunnel.as_ref());
            all.retain(|c| !c.send.is_closed() && (c.active.get() > 0 || is_kept(c)));
            !all.is_empty()
        });
    }
}

/// How long a destination's connections are kept without requests.
pub fn idle_timeout(s: &EndpointSet) -> Duration {
    match s.policy.limits.as_ref().map_or(0, |l| l.idle_timeout_ms) {
        0 if s.policy.proxy_protocol() != ir::ProxyProtocol::NoHeader => IDLE_OF_ONE,
        0 => IDLE_TIMEOUT,
        ms => Duration::from_millis(ms),
    }
}

/// What becomes of a connection after the answer.
pub enum ConnectionDisposition {
    /// To be kept for the next request, once the answer has been read.
    Reuse {
        pool: Rc<Pool>,
        pool_key: PoolKey,
        send: Sender1,
        requests: u32,
        tunnel: Option<TunnelState>,
        idle: Duration,
    },
    /// One of several on the connection.
    Multiplexed(#[allow(dead_code, reason = "held for its drop, which gives the place back")] InFlight),
    /// Ends with the answer, or lives on as something else.
    Close(#[allow(dead_code, reason = "held for its drop, which gives the place back")] Option<Lease>),
}

impl ConnectionDisposition {
    /// The answer has been read to its end.
    pub fn release(self) {
        match self {
            ConnectionDisposition::Reuse { pool, pool_key, send, requests, tunnel, idle: timeout } => {
                if !send.is_closed() {
                    let mut all = pool.h1.borrow_mut();
                    let idle = all.entry(pool_key).or_default();
                    if idle.len() >= IDLE {
                        idle.retain(|i| !i.send.is_closed());
                    }
                    if idle.len() < IDLE {
                        idle.push(Idle { send, requests, tunnel, until: Instant::now() + timeout });
                    }
                }
            }
            other => drop(other),
        }
    }
}

/// A request on a shared connection, counted until dropped.
pub struct InFlight {
    requests: Rc<Cell<usize>>,
    until: Rc<Cell<Instant>>,
    idle: Duration,
}

impl InFlight {
    /// One more on it.
    pub fn new(c: &Shared, idle: Duration) -> Self {
        c.active.set(c.active.get() + 1);
        Self { requests: c.active.clone(), until: c.until.clone(), idle }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.requests.set(self.requests.get().saturating_sub(1));
        self.until.set(Instant::now() + self.idle);
    }
}
