//! The control thread's parts: what is subscribed (xDS), and the keeper of the pods (ZDS).

use crate::{
    inpod::{AddError, Listeners, LocalPod, LocalPods, Pods},
    worker::{Command, Shared},
};
use karst_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, POD_RANGES_TYPE};
use karst_rt::ready::Blocker;
use std::{
    net::{TcpListener, UdpSocket},
    sync::{Arc, atomic::Ordering::Relaxed},
};
use tokio::sync::{mpsc, oneshot};

/// Types that are subscribed, in the order in which they are answered. The ranges of pods before the addresses: what is not told
/// there is then known to be missing.
pub const TYPES: &[&str] = &[AUTHORIZATION_TYPE, POD_RANGES_TYPE, ADDRESS_TYPE];
/// Those that must have arrived once. (istiod does not answer for the ranges of pods.)
pub const NEEDED: &[&str] = &[AUTHORIZATION_TYPE, ADDRESS_TYPE];

/// Hands pods to the workers.
pub struct PodManager {
    pub shared: Arc<Shared>,
    pub pods: LocalPods,
    /// Until the agent's first snapshot is complete.
    pub blocker: Option<Blocker>,
    pub dns: mpsc::Sender<crate::dns::Order>,
    /// Tells which identities are needed.
    pub changed: Arc<tokio::sync::Notify>,
}

impl PodManager {
    fn publish(&self) {
        self.shared.metrics.pods.store(self.pods.len() as i64, Relaxed);
        self.shared.pods.store(Arc::new(self.pods.clone()));
        self.changed.notify_one();
    }
}

impl Pods for PodManager {
    async fn add(&mut self, pod: LocalPod, listeners: Listeners) -> Result<(), AddError> {
        let mut pod = pod;
        if let Some(before) = self.pods.get(&pod.uid) {
            pod.usage = before.usage.clone();
        }
        let pod = Arc::new(pod);
        let copy = |s: &TcpListener| s.try_clone().map_err(AddError::Descriptors);
        let mut waits = Vec::new();
        for worker in self.shared.workers.commands() {
            let own = Listeners {
                outbound: copy(&listeners.outbound)?,
                plaintext: copy(&listeners.plaintext)?,
                hbone: copy(&listeners.hbone)?,
                dns: UdpSocket::try_clone(&listeners.dns).map_err(AddError::Descriptors)?,
                forward: listeners.forward.as_ref().map(copy).transpose()?,
            };
            let (done, wait) = oneshot::channel();
            worker
                .send(Command::Add { pod: pod.clone(), listeners: own, done })
                .await
                .map_err(|_| AddError::WorkerStopped)?;
            waits.push(wait);
        }
        for reply in waits {
            reply.await.map_err(|_| AddError::WorkerStopped)??;
        }
        let _ = self.dns.send(crate::dns::Order::Add(pod.clone(), listeners.dns)).await;
        if self.pods.insert(pod.uid.clone(), pod.clone()).is_none() {
            self.shared.metrics.pods_started.fetch_add(1, Relaxed);
        }
        tracing::info!(pod = pod.key, account = pod.account, "pod is served");
        self.publish();
        Ok(())
    }
    async fn del(&mut self, uid: &str) {
        let Some(gone) = self.pods.remove(uid) else { return };
        for worker in self.shared.workers.commands() {
            let _ = worker.send(Command::Del { uid: uid.into() }).await;
        }
        let _ = self.dns.send(crate::dns::Order::Del(uid.into())).await;
        self.shared.metrics.pods_stopped.fetch_add(1, Relaxed);
        tracing::info!(pod = gone.key, "pod is no longer served");
        self.publish();
    }
    async fn snapshot(&mut self, uids: &[String]) {
        let gone: Vec<String> = self.pods.keys().filter(|u| !uids.contains(u)).cloned().collect();
        for uid in gone {
            self.del(&uid).await;
        }
        self.blocker = None;
    }
    fn lost(&mut self) {}
}
