//! The control thread's parts: what is subscribed (xDS), and the keeper of the pods (ZDS).

use crate::{
    inpod::{AddError, LocalPod, LocalPods, Pods},
    listeners::{Listeners, Redirection, Wanted, same_netns},
    worker::{Command, Shared},
};
use karst_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, POD_RANGES_TYPE};
use karst_rt::ready::Blocker;
use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};
use tokio::sync::{mpsc, oneshot};

/// Types that are subscribed, in the order in which they are answered. The ranges of pods before the addresses: what is not told
/// there is then known to be missing.
pub const TYPES: &[&str] = &[AUTHORIZATION_TYPE, POD_RANGES_TYPE, ADDRESS_TYPE];
/// Those that must have arrived once. istiod does not answer for the ranges of pods; and what is asked of it by name, it does not
/// answer as is counted on here, so who tells on demand must show that it is ours.
pub const fn needed(on_demand: bool) -> &'static [&'static str] {
    if on_demand { TYPES } else { &[AUTHORIZATION_TYPE, ADDRESS_TYPE] }
}

/// Hands pods to the workers.
pub struct PodManager {
    pub shared: Arc<Shared>,
    pub pods: LocalPods,
    /// Those whose listeners, which are ours to open, are not all served, by uid.
    pub waiting: LocalPods,
    /// Until the agent's first snapshot is complete.
    pub blocker: Option<Blocker>,
    pub dns: mpsc::Sender<crate::dns::Order>,
    /// Tells which identities are needed.
    pub changed: Arc<tokio::sync::Notify>,
    /// The agent has told of all its pods: no other identities are needed.
    pub complete: Rc<Cell<bool>>,
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
    async fn open(&mut self, pod: Arc<LocalPod>) -> Result<(), AddError> {
        let config = &self.shared.config;
        let wanted = Wanted { dns: config.dns, ipv6: config.ipv6 };
        // An agent's pod has a namespace: the request would have been refused.
        let Some(netns) = &pod.connector.netns else { return Ok(()) };
        let opened = Listeners::open(netns, wanted).map_err(AddError::from);
        // The agent tells the pod's owner that it is in the mesh when we have acknowledged it.
        let started = opened.and_then(|listeners| {
            let started = if *self.shared.configured.borrow() { listeners.start() } else { Ok(()) };
            started.map(|()| listeners).map_err(|error| AddError::Listener { pod: pod.key.clone(), error })
        });
        match started {
            Ok(listeners) => self.serve(pod, listeners).await,
            Err(e) => {
                self.waiting.insert(pod.uid.clone(), pod);
                Err(e)
            }
        }
    }

    async fn serve(&mut self, pod: Arc<LocalPod>, listeners: Listeners) -> Result<(), AddError> {
        let done = self.start(&pod, listeners).await;
        if done.is_err() {
            // Some workers may serve it: nobody would ever tell them that it is gone.
            if !self.pods.contains_key(&pod.uid) {
                self.withdraw(&pod.uid).await;
            }
            // An agent that sends listeners sends them again. Istio's has none to send, and counts on us.
            if pod.redirection == Redirection::Nat {
                self.waiting.insert(pod.uid.clone(), pod);
            }
        }
        done
    }

    /// Tells the workers that a pod is not ours any more.
    async fn withdraw(&self, uid: &str) {
        for worker in self.shared.workers.commands() {
            let _ = worker.send(Command::Del { uid: uid.into() }).await;
        }
    }

    async fn start(&mut self, pod: &Arc<LocalPod>, listeners: Listeners) -> Result<(), AddError> {
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
    async fn add(&mut self, mut pod: LocalPod, listeners: Option<Listeners>) -> Result<(), AddError> {
        let waited = self.waiting.remove(&pod.uid);
        // An agent that we have connected to once more tells of all its pods.
        if listeners.is_none() && waited.is_none() && self.is_served(&pod) {
            self.count_waiting();
            return Ok(());
        }
        if let Some(before) = self.pods.get(&pod.uid) {
            pod.usage = before.usage.clone();
        }
        let pod = Arc::new(pod);
        let done = match listeners {
            Some(listeners) => self.serve(pod, listeners).await,
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
        self.complete.set(true);
        self.changed.notify_one();
    }
    fn lost(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dns::Order, outbound::tests::worker};
    use karst_proxy::{testing::snapshot, workers::WorkerPool};
    use karst_rt::socket::NetnsConnector;
    use std::{collections::HashMap, io, net};
    use tokio::sync::mpsc::Receiver;

    fn manager() -> (PodManager, Vec<Receiver<Command>>, Receiver<Order>) {
        let (worker, _drain) = worker(snapshot(vec![], vec![]));
        let worker = std::rc::Rc::into_inner(worker).unwrap();
        let mut shared = Arc::into_inner(worker.shared).unwrap();
        let (workers, commands) = WorkerPool::new(2);
        shared.workers = workers;
        let (dns, orders) = mpsc::channel(8);
        let manager = PodManager {
            shared: Arc::new(shared),
            pods: HashMap::new(),
            waiting: HashMap::new(),
            blocker: None,
            dns,
            changed: Arc::default(),
            complete: Rc::default(),
        };
        (manager, commands, orders)
    }

    fn listeners() -> Listeners {
        let tcp = || net::TcpListener::bind("127.0.0.1:0").unwrap();
        Listeners { outbound: tcp(), plaintext: tcp(), hbone: tcp(), dns: vec![], forward: None, dns_tcp: vec![] }
    }

    fn pod(redirection: Redirection) -> Arc<LocalPod> {
        let pod = Arc::into_inner(LocalPod::test("a", "a", "uid-a")).unwrap();
        Arc::new(LocalPod { redirection, connector: NetnsConnector::host(), ..pod })
    }

    /// One that serves everything.
    async fn serves(mut commands: Receiver<Command>) -> Vec<String> {
        let mut seen = vec![];
        while let Some(command) = commands.recv().await {
            match command {
                Command::Add { pod, done, .. } => {
                    seen.push(format!("add {}", pod.uid));
                    let _ = done.send(Ok(()));
                }
                Command::Del { uid } => seen.push(format!("del {uid}")),
                Command::Take(_) | Command::Resume(_) | Command::Dump(_) => {}
            }
        }
        seen
    }

    /// One that has no descriptors left.
    async fn fails(mut commands: Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            if let Command::Add { pod, done, .. } = command {
                let error = io::Error::from_raw_os_error(24);
                let _ = done.send(Err(AddError::Listener { pod: pod.key.clone(), error }));
            }
        }
    }

    /// The first worker serves it, the second cannot: (is it tried again, what the first was told).
    async fn half_way(redirection: Redirection) -> (bool, Vec<String>) {
        let (mut manager, mut commands, _orders) = manager();
        let (second, first) = (commands.pop().unwrap(), commands.pop().unwrap());
        let work = async move {
            assert!(manager.serve(pod(redirection), listeners()).await.is_err());
            assert!(manager.pods.is_empty());
            let waits = manager.is_waiting();
            manager.del("uid-a").await;
            assert!(!manager.is_waiting(), "the agent has taken it away");
            drop(manager); // the workers end
            waits
        };
        let (waits, seen, ()) = tokio::join!(work, serves(first), fails(second));
        (waits, seen)
    }

    #[tokio::test]
    async fn a_pod_that_is_served_half_way_is_withdrawn_and_tried_again() {
        let told = vec!["add uid-a".to_owned(), "del uid-a".to_owned()];
        assert_eq!(half_way(Redirection::Nat).await, (true, told.clone()));
        assert_eq!(half_way(Redirection::Lookup).await, (false, told), "its agent sends the listeners again");
    }
}
