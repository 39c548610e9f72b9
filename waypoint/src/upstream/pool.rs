//! Connections to endpoints that are kept: of HTTP/1.1 for the next request, of HTTP/2 for several at a time. None gets a further
//! request on a tunnel whose peer is going away: that would wait for it, and then cut it.

use crate::{cluster::endpoint_set::EndpointSet, http::body::Counted, upstream::settings::Announced};
use hyper::client::conn::{http1, http2};
use karst_api::route as ir;
use karst_core::limits;
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

/// Idle connections to an endpoint that one worker keeps for as long as its rules say.
const IDLE: usize = 64;
/// And so many for [`SURPLUS_IDLE`]: of many requests at a time those that end together leave as many connections, which the next ones
/// want. (As many as Envoy has to an endpoint where no rule says otherwise.)
const MAX_IDLE: usize = 1024;
/// Idle connections kept by one worker.
const ALL_IDLE: usize = 4096;
/// A connection without requests is closed after this time where no rule says otherwise (Istio: an hour).
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// The same of one that is one client's (PROXY protocol): its next request comes soon, or not at all.
const IDLE_OF_ONE: Duration = Duration::from_secs(60);
/// Those beyond [`IDLE`]: what a rush has opened goes soon.
const SURPLUS_IDLE: Duration = limits::POOL_SURPLUS_IDLE;
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
                    // The last one that comes is the next one that is used: surplus is what lies above, and goes first.
                    let timeout = if idle.len() < IDLE { timeout } else { timeout.min(SURPLUS_IDLE) };
                    if idle.len() < MAX_IDLE {
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

#[cfg(test)]
mod tests {
    use super::*;
    use hyper_util::rt::TokioIo;
    use tokio::{
        io::DuplexStream,
        task::{LocalSet, spawn_local},
        time::advance,
    };

    /// A connection to somebody who says nothing.
    async fn open() -> (Sender1, DuplexStream) {
        let (near, far) = tokio::io::duplex(64);
        let (send, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        spawn_local(connection);
        (send, far)
    }

    /// 512 clients at a time had most of their requests on connections of their own: of those that ended together 64 were kept.
    #[tokio::test(start_paused = true)]
    async fn what_a_rush_has_opened_is_kept_for_the_next_requests_and_then_goes() {
        let run = async {
            let (pool, key): (Rc<Pool>, PoolKey) = (Rc::default(), ("pod".into(), ([10, 0, 0, 1], 80).into(), None));
            let release = |send: Sender1| {
                let (pool, pool_key) = (pool.clone(), key.clone());
                ConnectionDisposition::Reuse { pool, pool_key, send, requests: 1, tunnel: None, idle: IDLE_TIMEOUT }
                    .release();
            };
            let kept = || pool.h1.borrow().get(&key).map_or(0, Vec::len);
            let (mut sends, mut ends) = (vec![], vec![]);
            for _ in 0..MAX_IDLE + 10 {
                let (send, end) = open().await;
                sends.push(send);
                ends.push(end);
            }
            sends.into_iter().for_each(release);
            assert_eq!(kept(), MAX_IDLE, "and no more");
            advance(SURPLUS_IDLE - SWEEP).await;
            pool.sweep();
            assert_eq!(kept(), MAX_IDLE);
            // A rush that goes on has all of them again, and again for as long.
            let taken: Vec<Sender1> = std::iter::from_fn(|| pool.take(&key)).map(|idle| idle.send).collect();
            assert_eq!((taken.len(), kept()), (MAX_IDLE, 0));
            taken.into_iter().for_each(release);
            advance(SURPLUS_IDLE - SWEEP).await;
            pool.sweep();
            assert_eq!(kept(), MAX_IDLE);
            advance(2 * SWEEP).await;
            pool.sweep();
            assert_eq!(kept(), IDLE, "it is over");
            advance(IDLE_TIMEOUT).await;
            pool.sweep();
            assert_eq!(kept(), 0);
        };
        LocalSet::new().run_until(run).await;
    }
}
