//! Opens the next streams of connections whose endpoints' proxies were replaced ([`super::follow`]): a task of each worker.

use crate::{
    downstream::continued::Next,
    upstream::{
        connector::Connector,
        follow::{Order, Way},
    },
    worker::Worker,
};
use karst_hbone::{
    continuation::{self, Token},
    pool::Opened,
};
use karst_proxy::dial::{DialError, Target};
use std::{
    rc::{Rc, Weak},
    sync::atomic::Ordering::Relaxed,
};
use tokio::sync::{mpsc, oneshot};

/// Why a connection does not go on.
#[derive(Debug, thiserror::Error)]
enum ReopenError {
    /// Another workload may have its address.
    #[error("the endpoint is gone")]
    Gone,
    #[error(transparent)]
    Dial(#[from] DialError),
}

/// The task. Runs in a `LocalSet`.
pub async fn run(worker: Weak<Worker>, mut orders: mpsc::Receiver<Order>) {
    while let Some(order) = orders.recv().await {
        let Some(worker) = worker.upgrade() else { return };
        tokio::task::spawn_local(reopen(worker, order));
    }
}

async fn reopen(worker: Rc<Worker>, Order { way, token, mut next }: Order) {
    let opened = tokio::select! {
        opened = again(&worker, &way, &token) => opened,
        // The connection has ended.
        () = next.closed() => return,
    };
    let Opened { lease, send, recv, .. } = match opened {
        Ok(opened) => opened,
        Err(e) => {
            return tracing::info!(
                target: "access",
                endpoint = %way.address,
                error = %e,
                "a connection is reset: the endpoint's proxy was replaced, and the next one does not go on with it"
            );
        }
    };
    worker.shared.metrics.followed.fetch_add(1, Relaxed);
    // The place on the tunnel is this thread's, and is given back when the connection has ended, or goes on in yet another stream.
    let (held, gone) = oneshot::channel::<()>();
    if next.send(Next { send, recv, held: Box::new(held) }).is_ok() {
        let _ = gone.await;
    }
    drop(lease);
}

async fn again(worker: &Worker, way: &Way, token: &Token) -> Result<Opened, ReopenError> {
    #[allow(clippy::infallible_destructuring_match, reason = "tests have another connector")]
    let connector = match &worker.connector {
        Connector::Network(network) => network,
        #[cfg(any(test, feature = "fuzz"))]
        Connector::Memory(_) => return Err(ReopenError::Gone),
    };
    let known = worker.snapshot().mesh.workloads.get(&way.peer.uid).cloned();
    let peer = known.filter(|known| known.identity == way.peer.identity).ok_or(ReopenError::Gone)?;
    let headers = || {
        let mut headers = way.headers.clone();
        continuation::name(&mut headers, token);
        headers
    };
    let target = Target {
        connector,
        pod: "",
        own: &worker.shared.identity,
        peer: &peer,
        address: way.address,
        expected: &way.expected,
        authority: &way.authority,
        headers: &headers,
    };
    Ok(worker.dialer.again(&target).await?)
}
