//! The UDP ports of a gateway: they are open while something is configured for them.

use crate::{
    downstream::{
        gateway::Gateway,
        ports::{Open, keep},
    },
    snapshot::Snapshot,
};
use karst_rt::drain;
use std::{net::UdpSocket, sync::Arc};
use tokio::sync::watch;

/// The ports that are open: a socket for each worker, so that all of a client's datagrams come to one of them.
pub type Ports = Open<Vec<UdpSocket>>;

/// Keeps the ports open that the newest state has, for so many workers. From the drain on it changes nothing: the workers take no new
/// sessions, and those that are open may finish.
pub async fn open(
    state: watch::Receiver<Arc<Snapshot>>,
    ports: watch::Sender<Ports>,
    mut drain: drain::Watch,
    workers: usize,
) {
    let wanted = |gateway: &Gateway| gateway.udp.keys().copied().collect::<Vec<u16>>();
    let listen = |port: u16| karst_rt::udp::listeners(port, workers);
    keep(state, &ports, &mut drain, "UDP", wanted, listen).await;
}
