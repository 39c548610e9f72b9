//! Reconciliation: what the manifests ask for against what is in force. One task, one change at a time.
//!
//! Enrolment: listeners, then ztunnel's acknowledgement, then redirection, then the report that lets the controller
//! announce HBONE. If no ztunnel answers, redirection is set up all the same: a labelled pod's traffic waits, it never
//! passes unencrypted. Leaving runs the other way round, and peers are given time to hear of it first.

mod closed;

use crate::{
    config::Config,
    events::{self, Event, EventError, Request},
    install::Install,
    kubelet::{self, Kubelet},
    local::{self, Counts, Followed, Following},
    metrics, namespaces,
    records::{self, Record},
    sockets::PodSockets,
    source::{Report, of_node},
    unmeshed::Unmeshed,
    zds::{self, Hub},
};
use anyhow::Context;
use karst_api::zds::WorkloadInfo;
use karst_ebpf::{Node, PodConfig};
use karst_kube::{Kube, ObjectSource, Source};
use karst_manifest::{Dir, Object, State, enrol, kinds::Namespace, kinds::Pod};
use karst_rt::{netlink::Watch, netns::Netns};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    os::fd::AsFd,
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::sync::{Notify, mpsc};

/// Annotation that says, in directory mode, where a pod's network namespace is.
const NETNS: &str = "karst.io/netns";
/// Annotation that names devices of the pod that lead to what is inside of it (Istio's).
const INNER_DEVICES: &str = "ambient.istio.io/reroute-virtual-interfaces";
/// After its report is withdrawn, a leaving pod stays redirected this long, so that its peers have heard.
const LEAVE_DELAY: Duration = Duration::from_millis(300);
/// A restarted agent gives the running ztunnel this long to connect before it moves the slots to its own listeners.
const PEER_WAIT: Duration = Duration::from_secs(2);
/// A failed enrolment is tried again after this long.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, PartialEq)]
struct Desired {
    info: WorkloadInfo,
    /// metadata.uid as the API server has it.
    uid: String,
    config: PodConfig,
    /// Where its network namespace is; empty: found by the uid of its processes.
    netns: PathBuf,
    /// Connections from before its redirection are to be closed.
    close: bool,
}

/// What came of an enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joined {
    /// Redirected, and ztunnel serves it.
    Served,
    /// Redirected, but no ztunnel serves it yet.
    Waits,
    /// Another network stack has its addresses.
    Closed,
}

/// A pod that the CNI plugin has announced: the API server learns its addresses later.
struct Announced {
    pod: Pod,
    ips: Vec<IpAddr>,
    at: Instant,
}

/// An announced pod that the watch does not show after this long is gone.
const ANNOUNCED_LIMIT: Duration = Duration::from_secs(60);

struct Active {
    desired: Desired,
    netns: Netns,
    /// Kept open: they must outlive ztunnel.
    sockets: Rc<PodSockets>,
    /// Keeps the pod's programs up to date; none before it is redirected.
    following: Option<Following>,
}

/// The agent's state, shared with the metrics page.
pub struct Agent {
    config: Config,
    report: Report,
    /// The node's programs.
    pub node: Rc<RefCell<Node>>,
    active: RefCell<HashMap<String, Active>>,
    /// By uid.
    announced: RefCell<HashMap<String, Announced>>,
    /// Pods whose listeners ztunnel has had in its first snapshot, before they were put in force.
    prepared: RefCell<HashMap<String, Active>>,
    /// Connections to ztunnel.
    pub hub: Rc<Hub>,
    /// Connections from before their pods were redirected.
    pub unmeshed: Unmeshed,
    closed: RefCell<HashMap<String, closed::Closed>>,
    /// Reconciliation is to be done though nothing has changed in what is asked for.
    again: Notify,
}

/// Runs the agent until it is told to stop.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let object_source = config.object_source()?;
    anyhow::ensure!(
        !config.node.is_empty(),
        "--node (NODE_NAME) is missing: the name of this node, as in spec.nodeName"
    );
    let (mut source, report, kube) = match object_source {
        ObjectSource::Dir(d) => (Source::Dir(Dir::watch(&d)?), Report::Dir(d), None),
        ObjectSource::Kubernetes => {
            let kube = Kube::connect().await?;
            (of_node(&kube, &config.node).await, Report::Kubernetes(kube.clone()), Some(kube))
        }
    };
    let host = Netns::current().context("cannot open this process's network namespace")?;
    let (kubelet, probers) = Kubelet::new(config.probes.clone(), config.cgroup_root()?);
    let node = Node::open(&config.bpf_dir, &config.cgroup_root()?, &host, probers)?;
    let exempt = node.exempt_map().try_clone()?;
    let hub = Hub::start(&config.zds, exempt)
        .with_context(|| format!("cannot serve ZDS at {} (--zds)", config.zds.display()))?;
    let mut metrics_at = Some(karst_rt::admin::bind(config.metrics, "--metrics").await?);
    let install = config.install();
    let agent = Rc::new(Agent {
        config,
        report,
        node: Rc::new(RefCell::new(node)),
        active: RefCell::default(),
        announced: RefCell::default(),
        prepared: RefCell::default(),
        hub,
        unmeshed: Unmeshed::default(),
        closed: RefCell::default(),
        again: Notify::new(),
    });
    let probed = agent.clone();
    let set_probers = move |p| Ok(probed.node.borrow_mut().set_probers(p)?);
    tokio::task::spawn_local(kubelet::look_after(kubelet, set_probers));
    // What the plugin knows without us.
    let named = install.as_ref().map(|_| namespaces::Kept::start(&agent.config.events, agent.config.hold_all));
    agent.prepare(&source.read());
    agent.hub.open();
    if !agent.node.borrow().pinned_pods()?.is_empty() {
        // ztunnel may be serving these pods; let it have the new listeners before connections are sent there.
        agent.hub.wait_peer(PEER_WAIT).await;
    }
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut reported = BTreeSet::new();
    let mut first = true;
    // Without Kubernetes no plugin calls; the channel then stays silent.
    let (_silent, none) = mpsc::channel(1);
    let mut calls = none;
    let mut looking_after = None;
    loop {
        let state = source.read();
        for p in &state.problems {
            let text = p.to_string();
            if reported.insert(text.clone()) {
                tracing::warn!("{text}");
            }
        }
        if let Some(n) = &named {
            n.update(&state);
        }
        let failed = agent.reconcile(&state).await;
        if std::mem::take(&mut first) {
            tokio::task::spawn_local(agent.clone().look_after_pods());
            // Ready, and open to the plugin, once what runs is redirected.
            tokio::task::spawn_local(metrics::serve(metrics_at.take().context("bound once")?, agent.clone()));
            if let Some(i) = &install {
                calls = events::listen(&agent.config.events)
                    .with_context(|| format!("cannot listen at {} (--events)", agent.config.events.display()))?;
                i.program()?;
                looking_after = Some(tokio::task::spawn_local(look_after(i.clone())));
            }
            tracing::info!(node = agent.config.node, source = agent.config.source, zds = %agent.config.zds.display(), "node agent is up");
        }
        let retry = async {
            match failed {
                true => tokio::time::sleep(RETRY).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = source.changed() => {}
            () = retry => {}
            () = agent.again.notified() => {}
            Some(e) = calls.recv() => {
                if let Some(k) = &kube {
                    agent.announced(k, e).await;
                }
            }
            _ = term.recv() => break,
        }
    }
    if let (Some(i), Some(k)) = (&install, &kube)
        && removed_for_good(k, &agent.config).await
    {
        // First, or it would put back what is removed.
        if let Some(task) = looking_after {
            task.abort();
            let _ = task.await;
        }
        i.remove().context("cannot remove the CNI plugin")?;
        namespaces::remove(&agent.config.events);
        let all: Vec<String> = agent.active.borrow().keys().cloned().collect();
        agent.leave(&all).await;
        return cleanup(&agent.config);
    }
    // Links and maps stay pinned: the next agent takes over.
    tracing::info!("node agent stops; redirection stays in force");
    Ok(())
}

async fn look_after(i: Install) {
    if let Err(e) = i.look_after().await {
        tracing::error!(error = format!("{e:#}"), "the CNI configuration is not looked after any more");
    }
}

/// Is the agent being uninstalled, rather than restarted or upgraded? Then its DaemonSet is gone, or even its right to ask.
async fn removed_for_good(kube: &Kube, config: &Config) -> bool {
    if config.daemon_set.is_empty() {
        return false;
    }
    match kube.daemon_set_remains(&config.namespace, &config.daemon_set).await {
        Ok(remains) => !remains,
        Err(e) => {
            tracing::warn!(error = format!("{e:#}"), "cannot tell whether this is the end; redirection stays in force");
            false
        }
    }
}

/// Opens a pod's network namespace.
fn open(d: &Desired) -> anyhow::Result<Netns> {
    if d.netns.as_os_str().is_empty() {
        return Netns::of_pod(&d.uid, &d.config.ips)
            .context("cannot look for the pod's processes (CAP_SYS_PTRACE is needed)")?
            .context("no process of the pod runs yet");
    }
    Netns::open(&d.netns).with_context(|| format!("cannot open the network namespace {}", d.netns.display()))
}

/// A pod as ZDS tells of it.
fn wire(d: &Desired, netns: &Netns, sockets: &Rc<PodSockets>) -> zds::Pod {
    zds::Pod {
        uid: d.config.uid.clone(),
        info: d.info.clone(),
        ips: d.config.ips.clone(),
        netns: netns.clone(),
        sockets: sockets.clone(),
        bypass_dns: d.config.bypass_dns,
    }
}

/// Removes all redirection of the node.
pub fn cleanup(config: &Config) -> anyhow::Result<()> {
    let dir = config.run_dir.join("pods");
    let records = records::load(&dir);
    Node::remove_all(&config.bpf_dir)?;
    for r in &records {
        let netns = if r.netns.is_empty() { Netns::of_pod(&r.uid, &r.ips)? } else { Netns::open(&r.netns).ok() };
        if let Some(n) = netns {
            n.run(|| karst_ebpf::remove_from_netns(&r.ips))
                .and_then(|r| r)
                .with_context(|| format!("routing of pod {}/{}", r.namespace, r.name))?;
        }
        records::remove(&dir, &r.uid);
    }
    println!("removed the redirection of {} pods and all programs under {}", records.len(), config.bpf_dir.display());
    Ok(())
}

impl Agent {
    fn records(&self) -> PathBuf {
        self.config.run_dir.join("pods")
    }

    /// Brings everything in line with the manifests. True: something failed and should be tried again.
    async fn reconcile(&self, state: &State) -> bool {
        let (desired, mut failed) = self.desired(state);
        self.forget_strangers(&desired, state).await;
        let gone: Vec<String> = self.active.borrow().keys().filter(|k| !desired.contains_key(*k)).cloned().collect();
        self.leave(&gone).await;
        self.retain_closed(&desired);
        // Where the report failed, or somebody has taken it away.
        let lacking = self.report.lacking(state);
        for (key, d) in &desired {
            if self.closed.borrow().contains_key(key) {
                continue;
            }
            let known = self.active.borrow().get(key).map(|a| a.desired.clone());
            let started = Instant::now();
            let result = match known {
                Some(k) if k == *d => {
                    if !lacking.contains(d.uid.as_str()) {
                        continue;
                    }
                    let pod = (&*d.info.namespace, &*d.info.name, &*d.uid);
                    self.report.set(&self.config.node, pod, true).await.map(|()| Joined::Served)
                }
                _ => self.join(key, d).await,
            };
            match result {
                Ok(Joined::Closed) => {}
                Ok(Joined::Served | Joined::Waits) => {
                    tracing::info!(pod = key, ms = started.elapsed().as_millis() as u64, "pod is redirected");
                }
                Err(e) => {
                    failed = true;
                    tracing::warn!(pod = key, error = format!("{e:#}"), "pod cannot be redirected yet");
                }
            }
        }
        failed
    }

    fn desired(&self, state: &State) -> (BTreeMap<String, Desired>, bool) {
        let namespaces: HashMap<&str, &Namespace> = state
            .objects
            .iter()
            .filter_map(|o| match &o.object {
                Object::Namespace(n) => Some((n.metadata.name.as_str(), &**n)),
                _ => None,
            })
            .collect();
        let mut out = BTreeMap::new();
        let mut failed = false;
        let mut shown = HashSet::new();
        let mut records: Option<Vec<Record>> = None;
        let mut recorded = |uid: &str| -> Option<Record> {
            let known = records.get_or_insert_with(|| records::load(&self.records()));
            known.iter().find(|r| r.uid == uid).cloned()
        };
        for o in &state.objects {
            let Object::Pod(p) = &o.object else { continue };
            shown.insert(p.metadata.uid.as_str());
            let ns = namespaces.get(p.metadata.namespace.as_str()).copied();
            if p.spec.node_name != self.config.node || !self.wanted(ns, p) {
                continue;
            }
            let mut ips = enrol::ips(p);
            let mut announced = self.announced.borrow_mut();
            if !ips.is_empty() {
                announced.remove(&p.metadata.uid);
            } else if let Some(a) = announced.get(&p.metadata.uid) {
                ips.clone_from(&a.ips);
            } else if let Some(r) = recorded(&p.metadata.uid) {
                // Announced to the agent before this one.
                ips.clone_from(&r.ips);
            } else {
                continue;
            }
            match self.one(p, ips) {
                Ok(d) => {
                    out.insert(format!("{}/{}", p.metadata.namespace, p.metadata.name), d);
                }
                Err(e) => {
                    let file = if o.line > 0 { format!("{}:{}: ", o.file.display(), o.line) } else { String::new() };
                    tracing::warn!("{file}Pod {}/{}: {e}", p.metadata.namespace, p.metadata.name);
                    failed = true;
                }
            }
        }
        // Announced before the watch shows them.
        self.announced.borrow_mut().retain(|_, a| a.at.elapsed() < ANNOUNCED_LIMIT);
        for a in self.announced.borrow().values() {
            let key = format!("{}/{}", a.pod.metadata.namespace, a.pod.metadata.name);
            if !out.contains_key(&key)
                && !shown.contains(a.pod.metadata.uid.as_str())
                && let Ok(d) = self.one(&a.pod, a.ips.clone())
            {
                out.insert(key, d);
            }
        }
        (out, failed)
    }

    fn wanted(&self, ns: Option<&Namespace>, p: &Pod) -> bool {
        enrol::wanted(ns, p) && !self.config.excluded_namespaces.contains(&p.metadata.namespace)
    }

    fn one(&self, p: &Pod, ips: Vec<IpAddr>) -> Result<Desired, String> {
        let a = &p.metadata.annotations;
        let flag = |k: &str, default: bool| match a.get(k).map(String::as_str) {
            None | Some("") => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(format!("metadata.annotations[{k}]: {other:?} is neither \"true\" nor \"false\"")),
        };
        let netns = match &self.report {
            Report::Kubernetes(_) => PathBuf::new(),
            Report::Dir(_) => a.get(NETNS).map(PathBuf::from).ok_or_else(|| format!("metadata.annotations[{NETNS}]: is missing; in directory mode it names the pod's network namespace, such as /run/netns/x"))?,
        };
        let uid = if p.metadata.uid.is_empty() {
            format!("{}_{}", p.metadata.namespace, p.metadata.name)
        } else {
            p.metadata.uid.clone()
        };
        let info = WorkloadInfo {
            name: p.metadata.name.clone(),
            namespace: p.metadata.namespace.clone(),
            service_account: enrol::service_account(p).into(),
        };
        let config = PodConfig {
            uid: karst_core::zds_uid(&uid),
            closed: false,
            ips,
            bypass_inbound: flag("ambient.istio.io/bypass-inbound-capture", false)?,
            bypass_dns: !flag("ambient.istio.io/dns-capture", self.config.dns_capture)?,
            trust_mark: false,
            all_devices: flag("karst.io/capture-all-devices", false)?,
            other_protocols: flag("karst.io/allow-other-protocols", false)?,
            inner_devices: local::devices(a.get(INNER_DEVICES).map_or("", String::as_str))
                .map_err(|e| format!("metadata.annotations[{INNER_DEVICES}]: {e}"))?,
        };
        let close = flag("karst.io/close-unmeshed-connections", self.config.close_unmeshed_connections)?;
        Ok(Desired { info, uid: p.metadata.uid.clone(), config, netns, close })
    }

    /// Opens the listeners of all pods and notes them for the first snapshot. What fails here is tried again by `join`.
    fn prepare(&self, state: &State) {
        for (key, d) in self.desired(state).0 {
            let Ok(netns) = open(&d) else { continue };
            let Ok(sockets) = PodSockets::open(&netns).map(Rc::new) else { continue };
            self.hub.register(wire(&d, &netns, &sockets));
            let prepared = Active { desired: d, netns, sockets, following: None };
            self.prepared.borrow_mut().insert(key, prepared);
        }
    }

    async fn join(&self, key: &str, d: &Desired) -> anyhow::Result<Joined> {
        let prepared = self.prepared.borrow_mut().remove(key).filter(|p| p.desired == *d);
        match prepared {
            None => self.join_in(key, d, open(d)?, None).await,
            Some(Active { netns, sockets, .. }) => self.join_in(key, d, netns, Some(sockets)).await,
        }
    }

    async fn join_in(
        &self,
        key: &str,
        d: &Desired,
        netns: Netns,
        prepared: Option<Rc<PodSockets>>,
    ) -> anyhow::Result<Joined> {
        if let Some(closed) = self.close_foreign(key, d, &netns).await? {
            return Ok(closed);
        }
        let (known, within) = (prepared.is_some(), netns.clone());
        let sockets = match prepared {
            Some(s) => s,
            None => {
                let sockets = PodSockets::open(&netns)
                    .context("cannot open the pod's listeners (CAP_NET_ADMIN and CAP_SYS_ADMIN are needed)")?;
                Rc::new(sockets)
            }
        };
        // What was open when it was redirected first.
        let unmeshed = records::one(&self.records(), &d.config.uid).and_then(|r| r.unmeshed);
        let mut record = Record { unmeshed, ..closed::record(d) };
        records::save(&self.records(), &record)
            .with_context(|| format!("cannot write to {} (--run-dir)", self.records().display()))?;
        let served = if known { Ok(true) } else { self.hub.add(wire(d, &netns, &sockets)).await };
        if let Err(e) = &served {
            tracing::warn!(pod = key, error = e.to_string(), "ztunnel cannot serve the pod yet; its connections will wait");
        }
        let watch = Watch::of(&netns).context("cannot follow the addresses of the pod's network namespace")?;
        let guarded = self.node.borrow_mut().enrol(&netns, &d.config, &sockets.listeners())?;
        let followed =
            Followed { node: self.node.clone(), key: key.into(), netns: netns.clone(), config: d.config.clone() };
        let following = Some(followed.follow(watch, guarded));
        let active = Active { desired: d.clone(), netns, sockets, following };
        self.active.borrow_mut().insert(key.into(), active);
        let serves = served == Ok(true);
        // At once: what is opened from here on is captured.
        self.unmeshed.redirected(key, &mut record, &within, self.node.borrow().exempt_map().as_fd(), d.close);
        records::save(&self.records(), &record)?;
        if d.close {
            self.unmeshed.look(&self.records(), serves);
        }
        self.report.set(&self.config.node, (&d.info.namespace, &d.info.name, &d.uid), true).await?;
        Ok(if serves { Joined::Served } else { Joined::Waits })
    }

    /// A new pod, before its first container starts.
    async fn announced(&self, kube: &Kube, e: Event) {
        let result = self.admit(kube, &e.request, e.netns).await;
        let pod = format!("{}/{}", e.request.namespace, e.request.name);
        match &result {
            Ok(Some(Joined::Closed)) => tracing::warn!(pod, "new pod is closed"),
            Ok(Some(_)) => tracing::info!(pod, "new pod is redirected"),
            Ok(None) => tracing::debug!(pod, "new pod is not of the mesh"),
            Err(e) => tracing::warn!(pod, error = format!("{e:#}"), "new pod is held"),
        }
        // The plugin may have given up; the runtime will call it again.
        let _ = e.answer.send(result.map(drop).map_err(EventError::Held));
    }

    async fn admit(&self, kube: &Kube, r: &Request, netns: Netns) -> anyhow::Result<Option<Joined>> {
        let (pod, ns) = tokio::join!(kube.pod(&r.namespace, &r.name), kube.namespace(&r.namespace));
        let pod = pod?.context("the API server does not know the pod")?;
        anyhow::ensure!(
            r.uid.is_empty() || r.uid == pod.metadata.uid,
            "the API server knows another pod of this name (uid {})",
            pod.metadata.uid
        );
        if !self.wanted(ns?.as_ref(), &pod) {
            return Ok(None);
        }
        let d = self.one(&pod, r.ips.clone()).map_err(anyhow::Error::msg)?;
        let key = format!("{}/{}", r.namespace, r.name);
        // A sandbox that is made anew, or another pod of the same name: what was there is over.
        let before = self.active.borrow_mut().remove(&key);
        if let Some(a) = before {
            self.hub.del(&a.desired.config.uid);
            self.node.borrow_mut().release(&a.netns, &a.desired.config)?;
        }
        let announced = Announced { pod, ips: r.ips.clone(), at: Instant::now() };
        self.announced.borrow_mut().insert(d.uid.clone(), announced);
        let joined = self.join_in(&key, &d, netns, None).await?;
        anyhow::ensure!(joined != Joined::Waits, "no ztunnel serves this node yet; the pod starts once one does");
        Ok(Some(joined))
    }

    async fn leave(&self, keys: &[String]) {
        if keys.is_empty() {
            return;
        }
        for k in keys {
            self.report_gone(k).await;
        }
        tokio::time::sleep(LEAVE_DELAY).await;
        for k in keys {
            let Some(a) = self.active.borrow_mut().remove(k) else { continue };
            let c = &a.desired.config;
            if let Err(e) = self.node.borrow_mut().release(&a.netns, c) {
                tracing::warn!(pod = k, error = %e, "redirection could not be removed completely");
            }
            self.hub.del(&c.uid);
            self.unmeshed.forget(&c.uid);
            records::remove(&self.records(), &c.uid);
            tracing::info!(pod = k, "pod is no longer redirected");
        }
    }

    async fn report_gone(&self, key: &str) {
        let uid = self.active.borrow().get(key).map(|a| a.desired.uid.clone()).unwrap_or_default();
        if let Some((ns, name)) = key.split_once('/')
            && let Err(e) = self.report.set(&self.config.node, (ns, name, &uid), false).await
        {
            tracing::warn!(pod = key, error = format!("{e:#}"), "cannot withdraw the pod's status");
        }
    }

    /// Takes out what an earlier agent enrolled and nobody asks for any more.
    async fn forget_strangers(&self, desired: &BTreeMap<String, Desired>, state: &State) {
        let keep: BTreeSet<String> = desired.keys().cloned().collect();
        let wanted: BTreeSet<&str> = desired.values().map(|d| d.config.uid.as_str()).collect();
        let ours: BTreeSet<String> = self.active.borrow().values().map(|a| a.desired.config.uid.clone()).collect();
        let active: BTreeSet<String> = self.active.borrow().keys().cloned().collect();
        let all: BTreeSet<String> = keep.union(&active).cloned().collect();
        self.report.retain(&self.config.node, state, &all).await;
        let records: HashMap<String, Record> =
            records::load(&self.records()).into_iter().map(|r| (r.uid.clone(), r)).collect();
        let pinned = self.node.borrow().pinned_pods().unwrap_or_default();
        for uid in pinned.iter().filter(|u| !wanted.contains(u.as_str()) && !ours.contains(*u)) {
            let r = records.get(uid);
            let netns = match r {
                Some(r) if !r.netns.is_empty() => Netns::open(&r.netns).ok(),
                r => Netns::of_pod(uid, r.map_or(&[], |r| &r.ips[..])).ok().flatten(),
            };
            let done = match (r, netns) {
                (Some(r), Some(n)) => self.node.borrow_mut().release(&n, &r.config()),
                (r, _) => self.node.borrow_mut().forget(uid, r.map_or(&[], |r| &r.ips[..])),
            };
            match done {
                Ok(()) => tracing::info!(pod = uid, "removed the redirection that an earlier agent left"),
                Err(e) => {
                    tracing::warn!(pod = uid, error = %e, "cannot remove the redirection that an earlier agent left")
                }
            }
            records::remove(&self.records(), uid);
        }
    }

    /// Pods whose devices are followed, redirected or closed: key and numbers.
    pub fn guards(&self) -> Vec<(String, Rc<Counts>)> {
        let active = self.active.borrow();
        let followed = active.iter().filter_map(|(k, a)| Some((k.clone(), a.following.as_ref()?.counts.clone())));
        followed.chain(self.closed_guards()).collect()
    }

    /// Redirected pods: key and pin name.
    pub fn pods(&self) -> Vec<(String, String)> {
        self.active.borrow().iter().map(|(k, a)| (k.clone(), a.desired.config.uid.clone())).collect()
    }
}
