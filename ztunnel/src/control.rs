//! The control thread's parts: what is subscribed (xDS), and the keeper of the pods (ZDS).

use crate::{
    inpod::{AddError, LocalPod, LocalPods, Pods},
    listeners::{Listeners, Redirection, Wanted, same_netns},
    worker::{Command, Shared},
};
use karst_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, POD_RANGES_TYPE};
use karst_rt::ready::Blocker;
use std::{
    collections::HashMap,
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
    /// Those whose listeners could not be opened, by uid.
    pub waiting: HashMap<String, LocalPod>,
    /// Until the agent's first snapshot is complete.
    pub blocker: Option<Blocker>,
    pub dns: mpsc::Sender<crate::dns::Order>,
    /// Tells which identities are needed.
    pub changed: Arc<tokio::sync::Notify>,
}

impl PodManager {
    fn count_waiting(&self) {
        self.shared.metrics.pods_waiting.store(self.waiting.len() as u64, Relaxed);
    }

    fn publish(&self) {
        self.shared.metrics.pods.store(self.pods.len() as i64, Relaxed);
        self.shared.pods.store(Arc::new(self.pods.clone()));
        self.changed.notify_one();
    }

    /// Is it one that we serve by listeners of our own, in the same namespace and under the same account?
    fn is_served(&self, pod: &LocalPod) -> bool {
        self.pods.get(&pod.uid).is_some_and(|known| {
            known.redirection == Redirection::Nat
                && (&known.namespace, &known.name, &known.account) == (&pod.namespace, &pod.name, &pod.account)
                && same_netns(&known.connector, &pod.connector)
        })
    }

    /// Serves a pod by listeners of our own. If they cannot be opened it is tried again later.
    async fn open(&mut self, pod: LocalPod) -> Result<(), AddError> {
        let config = &self.shared.config;
        let wanted = Wanted { dns: config.dns, ipv6: config.ipv6 };
        let opened = pod.connector.netns.as_ref().map(|netns| Listeners::open(netns, wanted));
        match opened {
            Some(Ok(listeners)) => {
                // The agent tells the pod's owner that it is in the mesh when we have acknowledged it.
                let started = if *self.shared.configured.borrow() { listeners.start() } else { Ok(()) };
                match started {
                    Ok(()) => self.serve(pod, listeners).await,
                    Err(error) => {
                        let key = pod.key.clone();
                        self.waiting.insert(pod.uid.clone(), pod);
                        Err(AddError::Listener { pod: key, error })
                    }
                }
            }
            Some(Err(e)) => {
                self.waiting.insert(pod.uid.clone(), pod);
                Err(e.into())
            }
            // An agent's pod has a namespace: the request would have been refused.
            None => Ok(()),
        }
    }

    async fn serve(&mut self, pod: LocalPod, listeners: Listeners) -> Result<(), AddError> {
        let uid = pod.uid.clone();
        let done = self.start(pod, listeners).await;
        // Some workers may serve it: nobody would ever tell them that it is gone.
        if done.is_err() && !self.pods.contains_key(&uid) {
            self.withdraw(&uid).await;
        }
        done
    }

    /// Tells the workers that a pod is not ours any more.
    async fn withdraw(&self, uid: &str) {
        for worker in self.shared.workers.commands() {
            let _ = worker.send(Command::Del { uid: uid.into() }).await;
        }
    }

    async fn start(&mut self, mut pod: LocalPod, listeners: Listeners) -> Result<(), AddError> {
        if let Some(before) = self.pods.get(&pod.uid) {
            pod.usage = before.usage.clone();
        }
        let pod = Arc::new(pod);
        let mut waits = Vec::new();
        for worker in self.shared.workers.commands() {
            let own = listeners.for_worker().map_err(AddError::Descriptors)?;
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
}

impl Pods for PodManager {
    async fn add(&mut self, pod: LocalPod, listeners: Option<Listeners>) -> Result<(), AddError> {
        self.waiting.remove(&pod.uid);
        let done = match listeners {
            Some(listeners) => self.serve(pod, listeners).await,
            // An agent that we have connected to once more tells of all its pods.
            None if self.is_served(&pod) => Ok(()),
            None => self.open(pod).await,
        };
        self.count_waiting();
        done
    }
    fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
    async fn retry(&mut self) {
        for (_, pod) in std::mem::take(&mut self.waiting) {
            let key = pod.key.clone();
            if let Err(e) = self.open(pod).await {
                tracing::warn!(pod = key, error = %e, "pod is still not served");
            }
        }
        self.count_waiting();
    }
    async fn del(&mut self, uid: &str) {
        self.waiting.remove(uid);
        self.count_waiting();
        let Some(gone) = self.pods.remove(uid) else { return };
        self.withdraw(uid).await;
        let _ = self.dns.send(crate::dns::Order::Del(uid.into())).await;
        self.shared.metrics.pods_stopped.fetch_add(1, Relaxed);
        tracing::info!(pod = gone.key, "pod is no longer served");
        self.publish();
    }
    async fn snapshot(&mut self, uids: &[String]) {
        self.waiting.retain(|uid, _| uids.contains(uid));
        self.count_waiting();
        let gone: Vec<String> = self.pods.keys().filter(|u| !uids.contains(u)).cloned().collect();
        for uid in gone {
            self.del(&uid).await;
        }
        self.blocker = None;
    }
    fn lost(&mut self) {}
}
