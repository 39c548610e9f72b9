//! The UDP ports of a gateway: they are open while something is configured for them.

use crate::snapshot::Snapshot;
use karst_rt::drain;
use std::{collections::BTreeMap, net::UdpSocket, sync::Arc, time::Duration};
use tokio::sync::watch;

/// A port that cannot be had is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// The ports that are open: a socket for each worker, so that all of a client's datagrams come to one of them.
pub type Ports = Arc<BTreeMap<u16, Arc<Vec<UdpSocket>>>>;

/// Keeps the ports open that the newest state has, for so many workers. From the drain on it changes nothing: the workers take no new
/// sessions, and those that are open may finish.
pub async fn open(
    mut state: watch::Receiver<Arc<Snapshot>>,
    ports: watch::Sender<Ports>,
    mut drain: drain::Watch,
    workers: usize,
) {
    let mut failed: BTreeMap<u16, String> = BTreeMap::new();
    loop {
        let wanted: Vec<u16> = state.borrow_and_update().gateway.iter().flat_map(|g| g.udp.keys().copied()).collect();
        let old = ports.borrow().clone();
        let (mut now, mut bad) = (BTreeMap::new(), BTreeMap::new());
        for port in wanted {
            if let Some(sockets) = old.get(&port) {
                now.insert(port, sockets.clone());
                continue;
            }
            match karst_rt::udp::listeners(port, workers) {
                Ok(sockets) => {
                    tracing::info!(port, "listening for UDP");
                    now.insert(port, Arc::new(sockets));
                }
                Err(e) => {
                    let e = e.to_string();
                    if failed.get(&port) != Some(&e) {
                        tracing::error!(port, error = e, "cannot listen for UDP; trying again");
                    }
                    bad.insert(port, e);
                }
            }
        }
        failed = bad;
        for port in old.keys().filter(|port| !now.contains_key(port)) {
            tracing::info!(port, "closed for UDP: nothing is configured for it");
        }
        if !now.keys().eq(old.keys()) {
            ports.send_replace(Arc::new(now));
        }
        // What is closed is closed when nobody holds it any more.
        drop(old);
        tokio::select! {
            c = state.changed() => if c.is_err() { return },
            () = tokio::time::sleep(RETRY), if !failed.is_empty() => {}
            () = drain.reached(drain::Phase::Graceful) => return,
        }
    }
}
