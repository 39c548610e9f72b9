//! What is needed to go on with a connection to an endpoint whose proxy is replaced (docs/hbone.md §10): kept beside its stream, and
//! given to the worker's task ([`super::reopen`]) once that is interrupted.

use crate::downstream::continued::{Next, NextStream, Resume};
use http::HeaderMap;
use karst_core::Identity;
use karst_hbone::continuation::Token;
use karst_proxy::state::Workload;
use std::{net::SocketAddr, sync::Arc};
use tokio::sync::{mpsc, oneshot};

/// Orders that may wait for the worker's task; beyond, connections wait until they can give theirs.
const ORDERS: usize = 256;

/// Where a stream goes, and what it is opened with.
pub struct Way {
    pub peer: Arc<Workload>,
    pub address: SocketAddr,
    /// Who may answer.
    pub expected: Vec<Identity>,
    pub authority: String,
    /// Without the trace of the request that the first stream was opened for.
    pub headers: HeaderMap,
}

/// A connection wants its next stream.
pub struct Order {
    pub way: Arc<Way>,
    pub token: Token,
    pub next: oneshot::Sender<Next>,
}

/// To the worker's task.
pub type Orders = mpsc::Sender<Order>;

/// For a worker, and what its task receives.
pub fn orders() -> (Orders, mpsc::Receiver<Order>) {
    mpsc::channel(ORDERS)
}

/// We have opened the stream, and open the next one.
pub struct Follows {
    pub way: Arc<Way>,
    pub orders: Orders,
}

impl Resume for Follows {
    fn next(&self, token: Token) -> NextStream {
        let (way, orders) = (self.way.clone(), self.orders.clone());
        Box::pin(async move {
            let (next, arrives) = oneshot::channel();
            orders.send(Order { way, token, next }).await.ok()?;
            arrives.await.ok()
        })
    }
}
