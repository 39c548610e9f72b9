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
    pub answer: oneshot::Sender<Result<(), String>>,
}

/// Listens; what comes goes into the channel.
pub fn listen(path: &Path) -> std::io::Result<mpsc::Receiver<Event>> {
    if let Some(d) = path.parent() {
        std::fs::create_dir_all(d)?;
    }
    let l = seqpacket::Listener::bind(path)?;
    let (tx, rx) = mpsc::channel(64);
    tokio::task::spawn_local(async move {
        loop {
            match l.accept().await {
                Ok(c) => {
                    tokio::task::spawn_local(one(c, tx.clone()));
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

async fn one(c: seqpacket::Packets, tx: mpsc::Sender<Event>) {
    let result = async {
        let (bytes, mut fds) = c.recv(MAX).await.map_err(|e| e.to_string())?;
        let request: Request = serde_json::from_slice(&bytes).map_err(|e| format!("request: {e}"))?;
        let netns = fds.pop().map(Netns::from_fd).ok_or("the request has no network namespace")?;
        let (answer, answered) = oneshot::channel();
        tx.send(Event { request, netns, answer }).await.map_err(|_| "the agent is stopping")?;
        answered.await.unwrap_or_else(|_| Err("the agent is stopping".into()))
    };
    let answer = Answer { error: result.await.err() };
    if let Ok(bytes) = serde_json::to_vec(&answer) {
        // The plugin may have given up; it will be called again.
        let _ = c.send(&bytes, &[]).await;
    }
}
