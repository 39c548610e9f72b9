//! What plugin and agent say to each other: one request with the pod's network namespace, one answer.

use karst_rt::{netns::Netns, seqpacket};
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, path::Path};
use tokio::sync::{mpsc, oneshot};

/// Where the agent listens.
pub const SOCKET: &str = "/var/run/istio-cni/pluginevent.sock";
const MAX: usize = 16 << 10;

/// A new pod, from the plugin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid; empty from runtimes that do not pass it.
    pub uid: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Why the pod cannot start yet; none: it may.
    pub error: Option<String>,
}

/// A new pod, with the way to answer.
pub struct Event {
    /// The pod.
    pub request: Request,
    /// Its network namespace.
    pub netns: Netns,
    /// Takes the answer.
    pub answer: oneshot::Sender<Result<(), EventError>>,
}

/// Why a pod cannot start yet.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The plugin's request could not be read.
    #[error("{0}")]
    Receive(std::io::Error),
    /// It is none.
    #[error("request: {0}")]
    Invalid(serde_json::Error),
    /// It came without a descriptor.
    #[error("the request has no network namespace")]
    NoNetns,
    /// The pod could not be redirected.
    #[error("{0:#}")]
    Held(anyhow::Error),
    /// Nobody is there any more to redirect it.
    #[error("the agent is stopping")]
    Stopping,
}

/// Listens; what comes goes into the channel.
pub fn listen(path: &Path) -> std::io::Result<mpsc::Receiver<Event>> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let listener = seqpacket::Listener::bind(path)?;
    let (tx, rx) = mpsc::channel(64);
    tokio::task::spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok(connection) => {
                    tokio::task::spawn_local(serve(connection, tx.clone()));
                }
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept a call of the CNI plugin");
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
            }
        }
    });
    Ok(rx)
}

async fn serve(connection: seqpacket::Packets, tx: mpsc::Sender<Event>) {
    let result = async {
        let (bytes, mut fds) = connection.recv(MAX).await.map_err(EventError::Receive)?;
        let request: Request = serde_json::from_slice(&bytes).map_err(EventError::Invalid)?;
        let netns = fds.pop().map(Netns::from_fd).ok_or(EventError::NoNetns)?;
        let (answer, answered) = oneshot::channel();
        tx.send(Event { request, netns, answer }).await.map_err(|_| EventError::Stopping)?;
        answered.await.unwrap_or(Err(EventError::Stopping))
    };
    let answer = Answer { error: result.await.err().map(|e| e.to_string()) };
    if let Ok(bytes) = serde_json::to_vec(&answer) {
        // The plugin may have given up; it will be called again.
        let _ = connection.send(&bytes, &[]).await;
    }
}
