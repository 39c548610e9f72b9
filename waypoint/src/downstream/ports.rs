//! The ports of a gateway: they are open while something is configured for them. Those of connections; and what those of datagrams
//! ([`crate::downstream::udp::ports`]) have in common with them.

use crate::{downstream::gateway::Gateway, snapshot::Snapshot};
use karst_rt::drain;
use std::{
    collections::BTreeMap,
    io,
    net::{Ipv6Addr, TcpListener},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// A port that cannot be had is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);
/// A gateway that is to end takes new connections for so long, at most half of the drain: those who send them hear of it late.
pub const LEAVING: Duration = Duration::from_secs(3);
/// Ports that are open, and what is open there.
pub type Open<S> = Arc<BTreeMap<u16, Arc<S>>>;
/// The ports that are open.
pub type Ports = Open<TcpListener>;

/// Keeps the ports open that the newest state has. Some time into the drain, at most half of `limit`, nobody new is taken.
pub async fn open(
    state: watch::Receiver<Arc<Snapshot>>,
    ports: watch::Sender<Ports>,
    mut drain: drain::Watch,
    limit: Duration,
) {
    let wanted = |gateway: &Gateway| gateway.ports.keys().copied().collect::<Vec<u16>>();
    let listen = |port: u16| karst_rt::socket::listener((Ipv6Addr::UNSPECIFIED, port).into());
    // The drain is not over while clients still come.
    if keep(state, &ports, &mut drain, "TCP", wanted, listen).await == Ended::Drain {
        if !ports.borrow().is_empty() {
            tokio::time::sleep(LEAVING.min(limit / 2)).await;
        }
        ports.send_replace(Ports::default());
    }
}

/// Why ports are not opened and closed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The process is to end.
    Drain,
    /// Nobody tells of a state any more.
    State,
}

/// Keeps ports open: those that are `wanted` of the newest state, until the drain.
pub async fn keep<S>(
    mut state: watch::Receiver<Arc<Snapshot>>,
    ports: &watch::Sender<Open<S>>,
    drain: &mut drain::Watch,
    protocol: &str,
    wanted: impl Fn(&Gateway) -> Vec<u16>,
    listen: impl Fn(u16) -> io::Result<S>,
) -> Ended {
    let mut failed: BTreeMap<u16, String> = BTreeMap::new();
    loop {
        let wanted = state.borrow_and_update().gateway.as_ref().map(|gateway| wanted(gateway)).unwrap_or_default();
        let old = ports.borrow().clone();
        let (mut now, mut bad) = (BTreeMap::new(), BTreeMap::new());
        for port in wanted {
            if let Some(socket) = old.get(&port) {
                now.insert(port, socket.clone());
                continue;
            }
            match listen(port) {
                Ok(socket) => {
                    tracing::info!(port, protocol, "listening");
                    now.insert(port, Arc::new(socket));
                }
                Err(e) => {
                    let e = e.to_string();
                    if failed.get(&port) != Some(&e) {
                        tracing::error!(port, protocol, error = e, "cannot listen; trying again");
                    }
                    bad.insert(port, e);
                }
            }
        }
        failed = bad;
        for port in old.keys().filter(|port| !now.contains_key(port)) {
            tracing::info!(port, protocol, "closed: nothing is configured for it");
        }
        if !now.keys().eq(old.keys()) {
            ports.send_replace(Arc::new(now));
        }
        // What is closed is closed when nobody holds it any more.
        drop(old);
        tokio::select! {
            c = state.changed() => if c.is_err() { return Ended::State },
            () = tokio::time::sleep(RETRY), if !failed.is_empty() => {}
            () = drain.reached(drain::Phase::Graceful) => return Ended::Drain,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_api::route as ir;
    use std::cell::Cell;

    fn listening(ports: &[u32]) -> Arc<Snapshot> {
        let listeners = ports.iter().map(|port| ir::Listener { port: *port, ..Default::default() }).collect();
        let gateway = Gateway::new(&ir::Gateway { listeners, ..Default::default() }).unwrap();
        Arc::new(Snapshot { gateway: Some(Arc::new(gateway)), ..Snapshot::new("") })
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_is_open_while_it_is_wanted_and_tried_again_while_it_cannot_be_had() {
        let (tell, state) = watch::channel(listening(&[80, 81]));
        let (ports, open) = watch::channel(Open::<u16>::default());
        let (drain, mut drains) = drain::new();
        let is_taken = Cell::new(true);
        let listen = |port: u16| match port == 81 && is_taken.get() {
            true => Err(io::Error::from(io::ErrorKind::AddrInUse)),
            false => Ok(port),
        };
        let are_open = || open.borrow().keys().copied().collect::<Vec<_>>();
        let steps = async {
            tokio::time::sleep(RETRY / 2).await;
            assert_eq!(are_open(), [80]);
            let first = open.borrow()[&80].clone();
            is_taken.set(false);
            tokio::time::sleep(RETRY).await;
            assert_eq!(are_open(), [80, 81]);
            assert!(Arc::ptr_eq(&first, &open.borrow()[&80]), "what is open stays as it is");
            tell.send_replace(listening(&[81]));
            tokio::time::sleep(RETRY).await;
            assert_eq!(are_open(), [81]);
            drain.start(drain::Phase::Graceful);
        };
        let wanted = |gateway: &Gateway| gateway.ports.keys().copied().collect::<Vec<u16>>();
        let (ended, ()) = tokio::join!(keep(state, &ports, &mut drains, "TCP", wanted, listen), steps);
        assert_eq!((ended, are_open()), (Ended::Drain, vec![81]), "whoever has opened them closes them");
    }
}
