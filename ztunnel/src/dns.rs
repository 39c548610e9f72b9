//! placeholder until the DNS proxy below
use crate::inpod::LocalPod;
use std::{net::UdpSocket, sync::Arc};
/// Orders.
pub enum Order {
    Add(Arc<LocalPod>, UdpSocket),
    Del(String),
}
/// Runs.
pub async fn run(mut rx: tokio::sync::mpsc::Receiver<Order>, _s: Arc<crate::worker::Shared>) {
    while rx.recv().await.is_some() {}
}
