//! The control thread's parts: the writer of the state (xDS), and the keeper of the pods (ZDS).

use crate::{
    inpod::{Listeners, LocalPod, LocalPods, Pods},
    metrics::Metrics,
    state::Snapshot,
    worker::{Command, Shared},
};
use karst_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, POD_RANGES_TYPE, convert};
use karst_proxy::{remote::ControlPlaneClient, untold::Asker};
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
    type Error = String;
    fn apply(&mut self, u: Update) -> Vec<(String, String)> {
        let mut refused = Vec::new();
        // Cheap: the maps inside are persistent.
        let mut s = (**self.state.borrow()).clone();
        if u.type_url == ADDRESS_TYPE {
            for (name, _, bytes) in &u.changed {
                if let Err(e) = s.put_address(name, bytes) {
                    refused.push((name.clone(), e));
                }
            }
            for name in &u.removed {
                s.remove_address(name);
            }
        } else if u.type_url == POD_RANGES_TYPE {
            for (name, _, bytes) in &u.changed {
                if let Err(e) = s.put_pod_ranges(name, bytes) {
                    refused.push((name.clone(), e));
                }
            }
            for name in &u.removed {
                s.remove_pod_ranges(name);
            }
        } else {
            for (name, _, bytes) in &u.changed {
                match convert::policy(bytes) {
                    Ok(p) => s.put_policy(name, p),
                    Err(e) => refused.push((name.clone(), e.to_string())),
                }
            }
            for name in &u.removed {
                s.remove_policy(name);
            }
        }
        self.state.send_replace(Arc::new(s));
        if !u.more {
            self.missing.remove(u.type_url.as_str());
        }
        if self.missing.is_empty() {
            self.configured.send_if_modified(|c| !std::mem::replace(c, true));
        }
        refused
    }
    fn token(&self) -> Result<String, String> {
        self.remote.bearer()
    }
    fn connect(&self) -> impl Future<Output = Result<Channel, String>> {
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
    async fn add(&mut self, pod: LocalPod, l: Listeners) -> Result<(), String> {
        let mut pod = pod;
        if let Some(before) = self.pods.get(&pod.uid) {
            pod.usage = before.usage.clone();
        }
        let pod = Arc::new(pod);
        let copy = |s: &TcpListener| s.try_clone().map_err(|e| format!("descriptors: {e}"));
        let mut waits = Vec::new();
        for w in self.shared.workers.commands() {
            let own = Listeners {
                outbound: copy(&l.outbound)?,
                plaintext: copy(&l.plaintext)?,
                hbone: copy(&l.hbone)?,
                dns: UdpSocket::try_clone(&l.dns).map_err(|e| format!("descriptors: {e}"))?,
                forward: l.forward.as_ref().map(copy).transpose()?,
            };
            let (done, wait) = oneshot::channel();
            w.send(Command::Add { pod: pod.clone(), listeners: own, done })
                .await
                .map_err(|_| "a worker has stopped")?;
            waits.push(wait);
        }
        for r in waits {
            r.await.map_err(|_| "a worker has stopped")??;
        }
        let _ = self.dns.send(crate::dns::Order::Add(pod.clone(), l.dns)).await;
        if self.pods.insert(pod.uid.clone(), pod.clone()).is_none() {
            self.shared.metrics.pods_started.fetch_add(1, Relaxed);
        }
        tracing::info!(pod = pod.key, account = pod.account, "pod is served");
        self.publish();
        Ok(())
    }
    async fn del(&mut self, uid: &str) {
        let Some(p) = self.pods.remove(uid) else { return };
        for w in self.shared.workers.commands() {
            let _ = w.send(Command::Del { uid: uid.into() }).await;
        }
        let _ = self.dns.send(crate::dns::Order::Del(uid.into())).await;
        self.shared.metrics.pods_stopped.fetch_add(1, Relaxed);
        tracing::info!(pod = p.key, "pod is no longer served");
        self.publish();
    }
    async fn snapshot(&mut self, uids: &[String]) {
        let gone: Vec<String> = self.pods.keys().filter(|u| !uids.contains(u)).cloned().collect();
        for u in gone {
            self.del(&u).await;
        }
        self.blocker = None;
    }
    fn lost(&mut self) {}
}
