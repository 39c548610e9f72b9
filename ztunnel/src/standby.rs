//! Standing by: a ztunnel that knows the mesh, has the certificates of its node's pods and, from Karst's agent, their listeners,
//! and serves nothing before the supervisor says so.
//!
//! What must always hold: before that, no port is opened and no connection is taken; and without a supervisor there is nothing to
//! stand by for, so the process ends. Proven by the tests below and by tests/world (`restarts`).

use crate::{
    config::Config,
    inpod::{AddError, LocalPod, Pods, stand_by},
    listeners::Listeners,
    state::Snapshot,
    worker::Shared,
};
use karst_core::Identity;
use karst_proxy::{
    bootstrap::Signals,
    secrets::{CaClient, Manager},
};
use karst_rt::{clock::Instant, seqpacket::Packets};
use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::time::{MissedTickBehavior, interval};

/// How often it is looked whether pods of this node have come or gone.
const LOOK: Duration = Duration::from_millis(250);
/// More than any order has.
const MAX_ORDER: usize = 16;

/// What the supervisor says to a process that it has started; nothing to one that was started by others.
pub struct Orders(Option<Packets>);

/// To serve.
#[derive(Debug)]
struct Order {
    /// How many processes have crashed before.
    crashes: u32,
    /// Who holds the open connections of the last one, if they may go on.
    holder: Option<OwnedFd>,
}

impl Orders {
    /// Those of the supervisor, on standard input.
    ///
    /// # Errors
    /// Standard input cannot be waited for.
    pub fn of(config: &Config) -> io::Result<Self> {
        if !config.is_supervised() {
            return Ok(Self(None));
        }
        Ok(Self(Some(Packets::from_fd(io::stdin().as_fd().try_clone_to_owned()?)?)))
    }

    /// Waits for the order to serve. None: the supervisor is gone.
    async fn serve(&mut self) -> Option<Order> {
        let Some(input) = &self.0 else { return std::future::pending().await };
        let (said, passed) = input.recv(MAX_ORDER).await.ok()?;
        let crashes = u32::from_le_bytes(said.try_into().ok()?);
        Some(Order { crashes, holder: passed.into_iter().next() })
    }

    /// Waits until the supervisor is gone. Nothing is lost when this is dropped.
    pub async fn ended(&mut self) {
        let Some(input) = &self.0 else { return std::future::pending().await };
        while input.recv(MAX_ORDER).await.is_ok_and(|(said, _)| !said.is_empty()) {}
    }
}

/// The agent's pods, with their listeners, of which nothing is accepted yet.
#[derive(Default)]
pub struct Held(HashMap<String, (LocalPod, Listeners)>);

impl Held {
    /// Lets them be served.
    pub async fn hand_over(self, pods: &mut impl Pods, since: Instant) {
        let count = self.0.len();
        for (pod, listeners) in self.0.into_values() {
            let key = pod.key.clone();
            if let Err(e) = pods.add(pod, Some(listeners)).await {
                // The agent sends it again.
                tracing::warn!(pod = key, error = %e, "pod is not served yet");
            }
        }
        tracing::info!(pods = count, ms = since.elapsed().as_millis() as u64, "pods that were held are served");
    }
}

impl Pods for Held {
    async fn add(&mut self, pod: LocalPod, listeners: Option<Listeners>) -> Result<(), AddError> {
        // Without listeners there is nothing to hold.
        if let Some(listeners) = listeners {
            self.0.insert(pod.uid.clone(), (pod, listeners));
        }
        Ok(())
    }
    fn is_waiting(&self) -> bool {
        false
    }
    async fn retry(&mut self) {}
    async fn del(&mut self, uid: &str) {
        self.0.remove(uid);
    }
    async fn snapshot(&mut self, uids: &[String]) {
        self.0.retain(|uid, _| uids.contains(uid));
    }
    // What it has sent stays good: it holds the listeners itself, or its successor will send others.
    fn lost(&mut self) {}
}

/// What there is when the order to serve comes.
pub struct Takeover {
    /// How many processes have crashed before.
    pub crashes: u32,
    /// Who holds the open connections of the last one, if they may go on.
    pub holder: Option<OwnedFd>,
    /// When it came.
    pub at: Instant,
    /// Pods that can be served at once.
    pub held: Held,
}

/// Stands by until the order to serve comes. None: the process is to end instead.
pub async fn wait<A: CaClient + 'static>(
    orders: &mut Orders,
    signals: &mut Signals,
    shared: &Shared,
    secrets: &mut Manager<A>,
) -> Option<Takeover> {
    let mut held = Held::default();
    let Order { crashes, holder } = {
        let path = karst_api::zds_standby(&shared.config.zds);
        let mut order = pin!(orders.serve());
        let mut agent = pin!(stand_by(&path, &mut held));
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut seen, mut ours, mut ready) = (None::<Arc<Snapshot>>, HashSet::new(), false);
        loop {
            tokio::select! {
                biased;
                order = &mut order => break order?,
                () = signals.stop() => return None,
                _ = look.tick() => {
                    let now = shared.state.borrow().clone();
                    if seen.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, &now)) {
                        ours = identities(&now, &shared.config);
                        secrets.retain(&ours);
                        ours.iter().for_each(|identity| secrets.keep(identity));
                        seen = Some(now);
                    }
                    let complete = || ours.iter().all(|identity| shared.secrets.now(identity).is_some());
                    if !ready && *shared.configured.borrow() && complete() {
                        ready = true;
                        tracing::info!(certificates = ours.len(), "spare is ready to take over");
                    }
                }
                // It goes on for ever.
                () = &mut agent => return None,
            }
        }
    };
    Some(Takeover { crashes, holder, at: Instant::now(), held })
}

/// The identities of the pods of this node that are in the mesh, as the control plane says: what the agent says comes too late
/// where there is no standing by at it. (Waypoints and gateways have certificates of their own.)
fn identities(snapshot: &Snapshot, config: &Config) -> HashSet<Identity> {
    let node = &*config.place.node;
    let is_ours = |identity: &Identity| identity.trust_domain() == config.certificates.trust_domain;
    let pods = snapshot.workloads.values().filter(|pod| !node.is_empty() && &*pod.node == node);
    let pods = pods.filter(|pod| pod.hbone && !pod.native_tunnel && is_ours(&pod.identity));
    pods.map(|pod| pod.identity.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use karst_proxy::testing::{pod, snapshot};
    use std::net::TcpListener;

    #[tokio::test]
    async fn an_order_is_a_number_and_the_end_is_none() {
        for holders in [0, 1] {
            let (supervisor, input) = Packets::pair().unwrap();
            let mut orders = Orders(Some(Packets::from_fd(input).unwrap()));
            let holder = TcpListener::bind("127.0.0.1:0").unwrap();
            supervisor.send(&7u32.to_le_bytes(), &vec![holder.as_fd(); holders]).await.unwrap();
            let order = orders.serve().await.unwrap();
            assert_eq!((order.crashes, order.holder.is_some()), (7, holders == 1));
            let still = tokio::time::timeout(Duration::from_millis(20), orders.ended()).await;
            assert!(still.is_err(), "it is there");
            supervisor.send(b"more", &[]).await.unwrap();
            drop(supervisor);
            orders.ended().await;
            assert!(orders.serve().await.is_none());
        }
    }

    #[tokio::test]
    async fn who_has_no_supervisor_never_hears_of_its_end() {
        let mut orders = Orders::of(&Config::parse_from(["ztunnel"])).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), orders.ended()).await.is_err());
    }

    #[test]
    fn certificates_are_for_the_nodes_own_pods_in_the_mesh() {
        let config = Config::parse_from(["ztunnel", "--node", "here"]);
        let of = |name: &str, ip: &str, node: &str| {
            let mut pod = pod(name, ip, &[]);
            pod.node = node.into();
            pod.trust_domain = "cluster.local".into();
            pod
        };
        let mut waypoint = of("waypoint", "10.0.0.3", "here");
        waypoint.native_tunnel = true;
        let mut outside = of("outside", "10.0.0.4", "here");
        outside.tunnel_protocol = 0;
        let mut foreign = of("foreign", "10.0.0.5", "here");
        foreign.trust_domain = "example.com".into();
        let near = of("near", "10.0.0.1", "here");
        let all = snapshot(vec![near, of("far", "10.0.0.2", "there"), waypoint, outside, foreign], vec![]);
        let names = |config: &Config| {
            let mut names: Vec<_> =
                identities(&all, config).iter().map(|identity| identity.service_account().to_string()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&config), ["near"]);
        assert!(names(&Config::parse_from(["ztunnel"])).is_empty(), "a node without a name has no pods");
    }

    fn local(uid: &str) -> LocalPod {
        Arc::into_inner(LocalPod::test(uid, "a", uid)).unwrap()
    }

    fn listeners() -> Listeners {
        let tcp = || TcpListener::bind("127.0.0.1:0").unwrap();
        Listeners { outbound: tcp(), plaintext: tcp(), hbone: tcp(), dns: vec![], forward: None, dns_tcp: vec![] }
    }

    #[tokio::test]
    async fn what_is_held_is_what_the_agent_said_last() {
        let mut held = Held::default();
        for uid in ["a", "b", "c"] {
            held.add(local(uid), Some(listeners())).await.unwrap();
        }
        held.add(local("bare"), None).await.unwrap();
        held.del("a").await;
        held.lost();
        // The next agent does not know one of them.
        held.add(local("b"), Some(listeners())).await.unwrap();
        held.snapshot(&["b".to_string()]).await;
        let mut served = Held::default();
        held.hand_over(&mut served, Instant::now()).await;
        assert_eq!(served.0.into_keys().collect::<Vec<_>>(), ["b"]);
    }
}
