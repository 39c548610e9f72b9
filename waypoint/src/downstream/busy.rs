//! Connections from outside on which something goes on: these do not give way to others.

use crate::downstream::context::Downstream;
use karst_rt::admission::{InUse, Permit};
use std::rc::Rc;

/// A connection from outside on which something goes on until this is dropped.
pub struct Busy {
    permit: Rc<Permit>,
    _in_use: Option<InUse>,
}

impl Busy {
    /// None: the call has come by a tunnel, whose place it is.
    pub fn on(downstream: &Downstream) -> Option<Self> {
        downstream.permit.as_ref().map(|p| Self { permit: p.clone(), _in_use: p.in_use() })
    }

    /// Does something until its end, or until the connection has to give way.
    pub async fn keep_busy(of: Option<Self>, f: impl Future<Output = ()>) {
        match of {
            None => f.await,
            Some(b) => tokio::select! {
                () = f => {}
                () = b.permit.evicted() => {}
            },
        }
    }
}
