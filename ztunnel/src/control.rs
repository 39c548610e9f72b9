//! The control thread's parts: the writer of the state (xDS), and the keeper of the pods (ZDS).

use crate::{
    inpod::{AddError, Listeners, LocalPod, LocalPods, Pods},
    metrics::Metrics,
    state::Snapshot,
    worker::{Command, Shared},
};
use karst_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, POD_RANGES_TYPE, convert};
use karst_proxy::{
    remote::{ControlPlaneClient, RemoteError},
    untold::Asker,
};
use karst_rt::ready::{Blocker, Ready};
use karst_xds::client::{StreamEnd, Update, XdsSubscriber};
use std::{
    collections::HashMap,
    net::{TcpListener, UdpSocket},
    sync::{Arc, atomic::Ordering::Relaxed},
};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::Channel;

/// Types that are subscribed, in the order in which they are answered. The ranges of pods before the addresses: what is not told
/// there is then known to be missing.
pub const TYPES: &[&str] = &[AUTHORIZATION_TYPE, POD_RANGES_TYPE, ADDRESS_TYPE];
/// Those that must have arrived once. (istiod does not answer for the ranges of pods.)
const NEEDED: &[&str] = &[AUTHORIZATION_TYPE, ADDRESS_TYPE];

/// The one writer of the state.
pub struct StateWriter {
    pub remote: ControlPlaneClient,
    pub state: watch::Sender<Arc<Snapshot>>,
    pub metrics: Arc<Metrics>,
    /// Until each needed type has arrived once.
    pub missing: HashMap<&'static str, Blocker>,
    /// Says when nothing is missing any more.
    pub configured: watch::Sender<bool>,
    /// Says whether there is a control plane.
    pub stream: watch::Sender<bool>,
    /// Asks who is at an address.
    pub asker: Asker,
}

impl StateWriter {
    /// A writer whose readiness waits for the first answers.
    pub fn new(
        remote: ControlPlaneClient,
        state: watch::Sender<Arc<Snapshot>>,
        metrics: Arc<Metrics>,
        ready: &Ready,
        (configured, stream): (watch::Sender<bool>, watch::Sender<bool>),
        asker: Asker,
    ) -> Self {
        let missing = NEEDED.iter().map(|t| (*t, ready.block(&format!("first configuration of {t}")))).collect();
        Self { remote, state, metrics, missing, configured, stream, asker }
    }
}

impl XdsSubscriber for StateWriter {
    type Error = RemoteError;
    fn apply(&mut self, update: Update) -> Vec<(String, String)> {
        let mut refused = Vec::new();
        // Cheap: the maps inside are persistent.
        let mut snapshot = (**self.state.borrow()).clone();
        if update.type_url == ADDRESS_TYPE {
            for (name, _, bytes) in &update.changed {
                if let Err(e) = snapshot.put_address(name, bytes) {
                    refused.push((name.clone(), e.to_string()));
                }
            }
            for name in &update.removed {
                snapshot.remove_address(name);
            }
        } else if update.type_url == POD_RANGES_TYPE {
            for (name, _, bytes) in &update.changed {
                if let Err(e) = snapshot.put_pod_ranges(name, bytes) {
                    refused.push((name.clone(), e.to_string()));
                }
            }
            for name in &update.removed {
                snapshot.remove_pod_ranges(name);
            }
        } else {
            for (name, _, bytes) in &update.changed {
                match convert::policy(bytes) {
                    Ok(p) => snapshot.put_policy(name, p),
                    Err(e) => refused.push((name.clone(), e.to_string())),
                }
            }
            for name in &update.removed {
                snapshot.remove_policy(name);
            }
        }
        self.state.send_replace(Arc::new(snapshot));
        if !update.more {
            self.missing.remove(update.type_url.as_str());
        }
        if self.missing.is_empty() {
            self.configured.send_if_modified(|c| !std::mem::replace(c, true));
        }
        refused
    }
    fn token(&self) -> Result<String, RemoteError> {
        self.remote.bearer()
    }
    fn connect(&self) -> impl Future<Output = Result<Channel, RemoteError>> {
        self.remote.channel()
    }
    fn headers(&self) -> Vec<(String, String)> {
        vec![("clusterid".into(), self.remote.cluster_id.clone())]
    }
    fn connected(&self) {
        self.stream.send_replace(true);
    }
    async fn wanted(&mut self) -> (&'static str, Vec<String>) {
        (ADDRESS_TYPE, self.asker.names().await)
    }
    fn answered(&mut self, names: &[String]) {
        self.asker.answered(names);
    }
    fn ended(&self, why: StreamEnd) {
        self.stream.send_replace(false);
        self.asker.forget();
        self.metrics.discovery.ended(why);
    }
    fn received(&self, type_url: &str, bytes: usize) {
        self.metrics.discovery.received(type_url, bytes);
    }
}

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
