//! Reconciliation: what the manifests ask for against what is in force. One task, one change at a time.
//!
//! Enrolment: listeners, then ztunnel's acknowledgement, then redirection, then the report that lets the controller
//! announce HBONE. If no ztunnel answers, redirection is set up all the same: a labelled pod's traffic waits, it never
//! passes unencrypted. Leaving runs the other way round, and peers are given time to hear of it first.

use crate::{
    config::Config,
    metrics,
    records::{self, Record},
    sockets::PodSockets,
    zds::{self, Hub},
};
use anyhow::Context;
use karst_api::zds::WorkloadInfo;
use karst_ebpf::{Node, PodConfig};
use karst_manifest::{Dir, Object, enrol, kinds::Namespace, kinds::Pod, status};
use karst_rt::netns::Netns;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

/// Annotation that says, in directory mode, where a pod's network namespace is.
const NETNS: &str = "karst.io/netns";
/// After its report is withdrawn, a leaving pod stays redirected this long, so that its peers have heard.
const LEAVE_DELAY: Duration = Duration::from_millis(300);
/// A restarted agent gives the running ztunnel this long to connect before it moves the slots to its own listeners.
const PEER_WAIT: Duration = Duration::from_secs(2);
/// A failed enrolment is tried again after this long.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, PartialEq)]
struct Desired {
    info: WorkloadInfo,
    config: PodConfig,
    netns: PathBuf,
}

struct Active {
    desired: Desired,
    netns: Netns,
    /// Kept open: they must outlive ztunnel.
    sockets: Rc<PodSockets>,
}

/// The agent's state, shared with the metrics page.
pub struct Agent {
    config: Config,
    manifests: PathBuf,
    /// The node's programs.
    pub node: RefCell<Node>,
    active: RefCell<HashMap<String, Active>>,
    /// Pods whose listeners ztunnel has had in its first snapshot, before they were put in force.
    prepared: RefCell<HashMap<String, Active>>,
    /// Connections to ztunnel.
    pub hub: Rc<Hub>,
}

/// Runs the agent until it is told to stop.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let manifests = config.manifests()?;
    anyhow::ensure!(
        !config.node.is_empty(),
        "--node (NODE_NAME) is missing: the name of this node, as in spec.nodeName"
    );
    let mut dir = Dir::watch(&manifests)?;
    let host = Netns::current().context("cannot open this process's network namespace")?;
    let node = Node::open(&config.bpf_dir, &config.cgroup_root()?, &host)?;
    let exempt = node.exempt_map().try_clone()?;
    let hub = Hub::start(&config.zds, exempt)
        .with_context(|| format!("cannot serve ZDS at {} (--zds)", config.zds.display()))?;
    let metrics_at = karst_rt::admin::bind(config.metrics, "--metrics").await?;
    let agent = Rc::new(Agent {
        config,
        manifests,
        node: RefCell::new(node),
        active: RefCell::default(),
        prepared: RefCell::default(),
        hub,
    });
    tokio::task::spawn_local(metrics::serve(metrics_at, agent.clone()));
    agent.prepare(&dir.read());
    agent.hub.open();
    if !agent.node.borrow().pinned_pods()?.is_empty() {
        // ztunnel may be serving these pods; let it have the new listeners before connections are sent there.
        agent.hub.wait_peer(PEER_WAIT).await;
    }
    tracing::info!(node = agent.config.node, manifests = %agent.manifests.display(), zds = %agent.config.zds.display(), "node agent is up");
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut reported = BTreeSet::new();
    loop {
        let state = dir.read();
        for p in &state.problems {
            let text = p.to_string();
            if reported.insert(text.clone()) {
                tracing::warn!("{text}");
            }
        }
        let failed = agent.reconcile(&state).await;
        let retry = async {
            match failed {
                true => tokio::time::sleep(RETRY).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = dir.changed() => {}
            () = retry => {}
            _ = term.recv() => {
                // Links and maps stay pinned: the next agent takes over.
                tracing::info!("node agent stops; redirection stays in force");
                return Ok(());
            }
        }
    }
}

/// A pod as ZDS tells of it.
fn wire(d: &Desired, netns: &Netns, sockets: &Rc<PodSockets>) -> zds::Pod {
    zds::Pod { uid: d.config.uid.clone(), info: d.info.clone(), netns: netns.clone(), sockets: sockets.clone() }
}

/// Removes all redirection of the node.
pub fn cleanup(config: &Config) -> anyhow::Result<()> {
    let dir = config.run_dir.join("pods");
    let records = records::load(&dir);
    Node::remove_all(&config.bpf_dir)?;
    for r in &records {
        if let Ok(n) = Netns::open(&r.netns) {
            n.run(|| karst_ebpf::net::remove(&r.ips))
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
    async fn reconcile(&self, state: &karst_manifest::State) -> bool {
        let (desired, mut failed) = self.desired(state);
        self.forget_strangers(&desired).await;
        let gone: Vec<String> = self.active.borrow().keys().filter(|k| !desired.contains_key(*k)).cloned().collect();
        self.leave(&gone).await;
        for (key, d) in &desired {
            let known = self.active.borrow().get(key).map(|a| a.desired.clone());
            let started = Instant::now();
            let result = match known {
                Some(k) if k == *d => continue,
                _ => self.join(key, d).await,
            };
            match result {
                Ok(()) => tracing::info!(pod = key, ms = started.elapsed().as_millis() as u64, "pod is redirected"),
                Err(e) => {
                    failed = true;
                    tracing::warn!(pod = key, error = format!("{e:#}"), "pod cannot be redirected yet");
                }
            }
        }
        failed
    }

    fn desired(&self, state: &karst_manifest::State) -> (BTreeMap<String, Desired>, bool) {
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
        for o in &state.objects {
            let Object::Pod(p) = &o.object else { continue };
            let ns = namespaces.get(p.metadata.namespace.as_str()).copied();
            if p.spec.node_name != self.config.node || !enrol::wanted(ns, p) || enrol::ips(p).is_empty() {
                continue;
            }
            match self.one(p) {
                Ok(d) => {
                    out.insert(format!("{}/{}", p.metadata.namespace, p.metadata.name), d);
                }
                Err(e) => {
                    tracing::warn!(
                        "{}:{}: Pod {}/{}: {e}",
                        o.file.display(),
                        o.line,
                        p.metadata.namespace,
                        p.metadata.name
                    );
                    failed = true;
                }
            }
        }
        (out, failed)
    }

    fn one(&self, p: &Pod) -> Result<Desired, String> {
        let a = &p.metadata.annotations;
        let flag = |k: &str, default: bool| match a.get(k).map(String::as_str) {
            None | Some("") => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(format!("metadata.annotations[{k}]: {other:?} is neither \"true\" nor \"false\"")),
        };
        let netns = a.get(NETNS).ok_or_else(|| format!("metadata.annotations[{NETNS}]: is missing; in directory mode it names the pod's network namespace, such as /run/netns/x"))?;
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
            // A bpffs knows no dots in names.
            uid: uid.replace(['.', '/'], "+"),
            ips: enrol::ips(p),
            bypass_inbound: flag("ambient.istio.io/bypass-inbound-capture", false)?,
            bypass_dns: !flag("ambient.istio.io/dns-capture", self.config.dns_capture)?,
            trust_mark: false,
        };
        Ok(Desired { info, config, netns: netns.into() })
    }

    /// Opens the listeners of all pods and notes them for the first snapshot. What fails here is tried again by `join`.
    fn prepare(&self, state: &karst_manifest::State) {
        for (key, d) in self.desired(state).0 {
            let Ok(netns) = Netns::open(&d.netns) else { continue };
            let Ok(sockets) = PodSockets::open(&netns).map(Rc::new) else { continue };
            self.hub.register(wire(&d, &netns, &sockets));
            self.prepared.borrow_mut().insert(key, Active { desired: d, netns, sockets });
        }
    }

    async fn join(&self, key: &str, d: &Desired) -> anyhow::Result<()> {
        let prepared = self.prepared.borrow_mut().remove(key).filter(|p| p.desired == *d);
        let known = prepared.is_some();
        let (netns, sockets) = match prepared {
            Some(p) => (p.netns, p.sockets),
            None => {
                let netns = Netns::open(&d.netns)
                    .with_context(|| format!("cannot open the network namespace {}", d.netns.display()))?;
                let sockets = PodSockets::open(&netns)
                    .context("cannot open the pod's listeners (CAP_NET_ADMIN and CAP_SYS_ADMIN are needed)")?;
                (netns, Rc::new(sockets))
            }
        };
        let record = Record {
            uid: d.config.uid.clone(),
            namespace: d.info.namespace.clone(),
            name: d.info.name.clone(),
            netns: d.netns.display().to_string(),
            ips: d.config.ips.clone(),
        };
        records::save(&self.records(), &record)
            .with_context(|| format!("cannot write to {} (--run-dir)", self.records().display()))?;
        let served = if known { Ok(true) } else { self.hub.add(wire(d, &netns, &sockets)).await };
        if let Err(e) = &served {
            tracing::warn!(pod = key, error = e, "ztunnel cannot serve the pod yet; its connections will wait");
        }
        self.node.borrow_mut().enrol(&netns, &d.config, &sockets.listeners())?;
        self.active.borrow_mut().insert(key.into(), Active { desired: d.clone(), netns, sockets });
        status::write(&self.manifests, &self.config.node, &d.info.namespace, &d.info.name, true)
            .context("cannot report the pod's status")
    }

    async fn leave(&self, keys: &[String]) {
        if keys.is_empty() {
            return;
        }
        for k in keys {
            self.report_gone(k);
        }
        tokio::time::sleep(LEAVE_DELAY).await;
        for k in keys {
            let Some(a) = self.active.borrow_mut().remove(k) else { continue };
            let c = &a.desired.config;
            if let Err(e) = self.node.borrow_mut().release(&a.netns, c) {
                tracing::warn!(pod = k, error = %e, "redirection could not be removed completely");
            }
            self.hub.del(&c.uid);
            records::remove(&self.records(), &c.uid);
            tracing::info!(pod = k, "pod is no longer redirected");
        }
    }

    fn report_gone(&self, key: &str) {
        if let Some((ns, name)) = key.split_once('/')
            && let Err(e) = status::write(&self.manifests, &self.config.node, ns, name, false)
        {
            tracing::warn!(pod = key, error = %e, "cannot withdraw the pod's status");
        }
    }

    /// Takes out what an earlier agent enrolled and nobody asks for any more.
    async fn forget_strangers(&self, desired: &BTreeMap<String, Desired>) {
        let keep: BTreeSet<String> = desired.keys().cloned().collect();
        let wanted: BTreeSet<&str> = desired.values().map(|d| d.config.uid.as_str()).collect();
        let ours: BTreeSet<String> = self.active.borrow().values().map(|a| a.desired.config.uid.clone()).collect();
        let active: BTreeSet<String> = self.active.borrow().keys().cloned().collect();
        let all: BTreeSet<String> = keep.union(&active).cloned().collect();
        let _ = status::retain(&self.manifests, &self.config.node, &all);
        let records: HashMap<String, Record> =
            records::load(&self.records()).into_iter().map(|r| (r.uid.clone(), r)).collect();
        let pinned = self.node.borrow().pinned_pods().unwrap_or_default();
        for uid in pinned.iter().filter(|u| !wanted.contains(u.as_str()) && !ours.contains(*u)) {
            let r = records.get(uid);
            let netns = r.and_then(|r| Netns::open(&r.netns).ok());
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

    /// Redirected pods: key and pin name.
    pub fn pods(&self) -> Vec<(String, String)> {
        self.active.borrow().iter().map(|(k, a)| (k.clone(), a.desired.config.uid.clone())).collect()
    }
}

/// The pod's name for a pin, from the records.
pub fn name_of(run_dir: &Path, uid: &str) -> String {
    let r = records::load(&run_dir.join("pods")).into_iter().find(|r| r.uid == uid);
    r.map_or_else(|| uid.to_string(), |r| format!("{}/{}", r.namespace, r.name))
}
