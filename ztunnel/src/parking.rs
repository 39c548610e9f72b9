//! Connections of this node's pods that wait for their next stream ([`karst_hbone::parking`]): sockets, each of which is reset if nobody
//! goes on with it.

pub use karst_hbone::parking::{Bound, new, run};

use karst_hbone::{
    continuation::Token,
    copy::{Interrupted, Reached},
};
use tokio::sync::oneshot;

/// All of them, for the workers.
pub type Parking = karst_hbone::parking::Parking<Parked>;

/// A connection that waits; if it is dropped, it is reset.
pub struct Parked {
    cut: Option<Interrupted>,
    /// Dropped when it does not wait any more.
    _waits: Option<oneshot::Sender<()>>,
}

impl Parked {
    /// It waits from now on.
    pub fn new(cut: Interrupted) -> Self {
        Self { cut: Some(cut), _waits: None }
    }
    /// How far it has come, if its tunnel has broken.
    pub fn reached(&self) -> Option<Reached> {
        self.cut.as_ref().and_then(|cut| cut.reached)
    }
    /// It goes on.
    pub fn take(mut self) -> Option<Interrupted> {
        self.cut.take()
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Some(cut) = self.cut.take() {
            cut.reset();
        }
    }
}

/// Keeps a connection for its next stream. What it gives ends when the connection does not wait any more.
pub async fn park(parking: &Parking, token: Token, bound: Bound, cut: Interrupted) -> oneshot::Receiver<()> {
    let (waits, gone) = oneshot::channel();
    parking.park(token, bound, Parked { cut: Some(cut), _waits: Some(waits) }).await;
    gone
}
