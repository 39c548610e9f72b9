//! The agent's state: what is in force for which pod.

use super::desired::{Announced, Desired, Rules};
use crate::{
    config::Config,
    local::{Counts, Following},
    records::Records,
    sockets::PodSockets,
    source::Report,
    unmeshed::Unmeshed,
    zds::Hub,
};
use anyhow::Context;
use karst_ebpf::Node;
use karst_manifest::State;
use karst_rt::{clock::Instant, netns::Netns};
use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    rc::Rc,
};
use tokio::sync::Notify;

/// What came of an enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joined {
    /// Redirected, and ztunnel serves it.
    Served,
    /// Redirected, but no ztunnel serves it yet.
    Waits,
    /// Another network stack has its addresses.
    Closed,
}

/// A pod that is redirected, or is about to be.
pub(super) struct Active {
    pub(super) desired: Desired,
    pub(super) netns: Netns,
    /// Kept open: they must outlive ztunnel.
    pub(super) sockets: Rc<PodSockets>,
    /// Keeps the pod's programs up to date; none before it is redirected.
    pub(super) following: Option<Following>,
}

/// A pod that is closed.
pub(super) struct Closed {
    pub(super) desired: Desired,
    pub(super) netns: Netns,
    /// Guards what comes later.
    pub(super) following: Following,
}

/// The agent's state, shared with the metrics page.
pub struct Agent {
    pub(super) config: Config,
    pub(super) report: Report,
    /// The node's programs.
    pub node: Rc<RefCell<Node>>,
    /// By `namespace/name`.
    pub(super) active: RefCell<HashMap<String, Active>>,
    /// By uid.
    pub(super) announced: RefCell<HashMap<String, Announced>>,
    /// Pods whose listeners ztunnel has had in its first snapshot, before they were put in force.
    pub(super) prepared: RefCell<HashMap<String, Active>>,
    /// Connections to ztunnel.
    pub hub: Rc<Hub>,
    /// What the next agent must know of pods.
    pub(super) records: Records,
    /// Connections from before their pods were redirected.
    pub unmeshed: Unmeshed,
    pub(super) closed: RefCell<HashMap<String, Closed>>,
    /// Reconciliation is to be done though nothing has changed in what is asked for.
    pub(super) again: Notify,
}

impl Agent {
    /// An agent that knows of no pod yet.
    pub(super) fn new(config: Config, report: Report, node: Node, hub: Rc<Hub>) -> Rc<Self> {
        let records = Records::within(&config.run_dir);
        Rc::new(Self {
            config,
            report,
            node: Rc::new(RefCell::new(node)),
            active: RefCell::default(),
            announced: RefCell::default(),
            prepared: RefCell::default(),
            hub,
            records,
            unmeshed: Unmeshed::default(),
            closed: RefCell::default(),
            again: Notify::new(),
        })
    }

    /// Whether the CNI plugin is part of the node's network; none where it is not installed by this agent.
    pub fn plugin_is_chained(&self) -> Option<bool> {
        self.config.install().map(|install| install.is_chained())
    }

    pub(super) fn rules(&self) -> Rules<'_> {
        Rules {
            node: &self.config.node,
            excluded_namespaces: &self.config.excluded_namespaces,
            dns_capture: self.config.dns_capture,
            close_unmeshed: self.config.close_unmeshed_connections,
            annotated_netns: matches!(self.report, Report::Dir(_)),
        }
    }

    /// What is asked for, and whether some of it cannot be had. Forgets announcements that have done their work.
    pub(super) fn desired(&self, state: &State) -> (BTreeMap<String, Desired>, bool) {
        let now = Instant::now();
        let mut records: Option<HashMap<String, Vec<IpAddr>>> = None;
        let recorded = |uid: &str| -> Option<Vec<IpAddr>> {
            let read = || self.records.load().into_iter().map(|r| (r.uid, r.ips)).collect();
            records.get_or_insert_with(read).get(uid).cloned()
        };
        let mut announced = self.announced.borrow_mut();
        let selection = self.rules().select(state, &announced, now, recorded);
        announced.retain(|uid, pod| !selection.addressed.contains(uid) && !pod.is_over(now));
        for text in &selection.invalid {
            tracing::warn!("{text}");
        }
        (selection.pods, !selection.invalid.is_empty())
    }

    /// Pods whose devices are followed, redirected or closed: key and numbers.
    pub fn guards(&self) -> Vec<(String, Rc<Counts>)> {
        let (active, closed) = (self.active.borrow(), self.closed.borrow());
        let followed = active.iter().filter_map(|(key, pod)| Some((key, pod.following.as_ref()?)));
        let all = followed.chain(closed.iter().map(|(key, pod)| (key, &pod.following)));
        all.map(|(key, following)| (key.clone(), following.counts.clone())).collect()
    }

    /// Redirected pods: key and pin name.
    pub fn pods(&self) -> Vec<(String, String)> {
        self.active.borrow().iter().map(|(key, pod)| (key.clone(), pod.desired.config.uid.clone())).collect()
    }

    /// How many pods are closed.
    pub fn closed_pods(&self) -> usize {
        self.closed.borrow().len()
    }
}

/// Opens a pod's network namespace.
pub(super) fn open_netns(desired: &Desired) -> anyhow::Result<Netns> {
    if desired.netns.as_os_str().is_empty() {
        return Netns::of_pod(&desired.uid, &desired.config.ips)
            .context("cannot list the pod's processes (CAP_SYS_PTRACE is needed)")?
            .context("no process of the pod is running yet");
    }
    Netns::open(&desired.netns)
        .with_context(|| format!("cannot open the network namespace {}", desired.netns.display()))
}
