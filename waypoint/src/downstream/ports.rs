//! The ports of a gateway: they are open while something is configured for them.

use crate::snapshot::Snapshot;
use karst_rt::drain;
use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, TcpListener},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// A port that cannot be had is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);
/// A gateway that is to end takes new connections for so long, at most half of the drain: those who send them hear of it late.
pub const LEAVING: Duration = Duration::from_secs(3);
/// The ports that are open.
pub type Ports = Arc<BTreeMap<u16, Arc<TcpListener>>>;

/// Keeps the ports open that the newest state has. Some time into the drain, at most half of `limit`, nobody new is taken.
pub async fn open(
    mut state: watch::Receiver<Arc<Snapshot>>,
    ports: watch::Sender<Ports>,
    mut drain: drain::Watch,
    limit: Duration,
) {
    let mut failed: BTreeMap<u16, String> = BTreeMap::new();
    loop {
        let wanted: Vec<u16> = state.borrow_and_update().gateway.iter().flat_map(|g| g.ports.keys().copied()).collect();
        let old = ports.borrow().clone();
        let mut now = BTreeMap::new();
        let mut bad = BTreeMap::new();
        for port in wanted {
            if let Some(l) = old.get(&port) {
                now.insert(port, l.clone());
                continue;
            }
            match karst_rt::socket::listener((Ipv6Addr::UNSPECIFIED, port).into()) {
                Ok(l) => {
                    tracing::info!(port, "listening");
                    now.insert(port, Arc::new(l));
                }
                Err(e) => {
                    let e = e.to_string();
                    if failed.get(&port) != Some(&e) {
                        tracing::error!(port, error = e, "cannot listen; trying again");
                    }
                    bad.insert(port, e);
                }
            }
        }
        failed = bad;
        for port in old.keys().filter(|port| !now.contains_key(port)) {
            tracing::info!(port, "closed: nothing is configured for it");
        }
        if !now.keys().eq(old.keys()) {
            ports.send_replace(Arc::new(now));
        }
        // What is closed is closed when nobody holds it any more.
        drop(old);
        tokio::select! {
            c = state.changed() => if c.is_err() { return },
            () = tokio::time::sleep(RETRY), if !failed.is_empty() => {}
            () = drain.reached(drain::Phase::Graceful) => {
                if !ports.borrow().is_empty() {
                    tokio::time::sleep(LEAVING.min(limit / 2)).await;
                }
                ports.send_replace(Ports::default());
                return;
            }
        }
    }
}
