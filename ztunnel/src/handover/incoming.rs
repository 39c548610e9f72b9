//! A connection that the process before would pass on, or has left when it was killed, on its way to a worker.

use super::pieces::Moved;
use karst_api::handover::{Answer, Offer};
use karst_proxy::workers::ConnectionGuard;
use tokio::sync::{mpsc, oneshot};

/// For a worker.
pub struct Incoming {
    /// What is asked.
    pub offered: Offered,
    /// Counts for that worker.
    pub running: ConnectionGuard,
}

/// A connection that is offered.
pub struct Offered {
    /// Its number.
    pub id: u64,
    /// What is said of it.
    pub offer: Offer,
    /// Where the answer goes.
    pub answers: mpsc::Sender<Answer>,
    /// The connection itself, once it is ours; an error: it stays where it is.
    pub arrives: oneshot::Receiver<Moved>,
    /// Whose it was.
    pub origin: Origin,
}

/// Whose a connection was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A process that leaves.
    HandOver,
    /// A process that was killed. It has come already, and nobody else goes on with it.
    Crash,
}
