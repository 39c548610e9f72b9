//! Reconciliation: what the manifests ask for against what is in force. One task, one change at a time.

use super::{
    recover::{cleanup, removed_for_good},
    state::{Agent, Joined},
};
use crate::{
    config::Config,
    events::{self, Event},
    handover::Broker,
    install::Install,
    kubelet::{self, Kubelet},
    metrics, namespaces,
    source::{Report, of_node},
    zds::Hub,
};
use anyhow::Context;
use karst_ebpf::Node;
use karst_kube::{Kube, ObjectSource, Source};
use karst_manifest::{Dir, Problem, State};
use karst_rt::{clock::Instant, netns::Netns};
use std::{collections::BTreeSet, rc::Rc, time::Duration};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};

/// A restarted agent gives the running ztunnel this long to connect before it moves the slots to its own listeners.
const PEER_WAIT: Duration = Duration::from_secs(2);
/// A failed enrolment is tried again after this long.
const RETRY: Duration = Duration::from_millis(500);

/// Runs the agent until it is told to stop.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let Started { agent, mut source, kube, metrics_at } = start(config).await?;
    let install = agent.config.install();
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
    let mut metrics_at = Some(metrics_at);
    let mut plugin = Plugin::default();
    loop {
        let state = source.read();
        report(&state.problems, &mut reported);
        if let Some(named) = &named {
            named.update(&state);
        }
        let failed = agent.reconcile(&state).await;
        if let Some(listener) = metrics_at.take() {
            tokio::task::spawn_local(agent.clone().look_after_pods());
            // Ready, and open to the plugin, once what runs is redirected.
            tokio::task::spawn_local(metrics::serve(listener, agent.clone()));
            if let Some(install) = &install {
                plugin = Plugin::start(&agent.config, install)?;
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
            event = plugin.call() => {
                if let Some(kube) = &kube {
                    agent.announced(kube, event).await;
                }
            }
            _ = term.recv() => break,
        }
    }
    if let (Some(install), Some(kube)) = (&install, &kube)
        && removed_for_good(kube, &agent.config).await
    {
        plugin.stop().await;
        install.remove().context("cannot remove the CNI plugin")?;
        namespaces::remove(&agent.config.events);
        let all: Vec<String> = agent.active.borrow().keys().cloned().collect();
        agent.leave(&all).await;
        return cleanup(&agent.config);
    }
    // Links and maps stay pinned: the next agent takes over.
    tracing::info!("node agent is stopping; redirection stays in force");
    Ok(())
}

/// What the loop begins with.
struct Started {
    agent: Rc<Agent>,
    source: Source,
    /// The API server, if objects come from there.
    kube: Option<Kube>,
    metrics_at: TcpListener,
}

/// Connects to where objects come from, loads the node's programs, and serves ZDS.
async fn start(config: Config) -> anyhow::Result<Started> {
    let object_source = config.object_source()?;
    anyhow::ensure!(
        !config.node.is_empty(),
        "--node (NODE_NAME) is missing: the name of this node, as in spec.nodeName"
    );
    let (source, report, kube) = match object_source {
        ObjectSource::Dir(dir) => (Source::Dir(Dir::watch(&dir)?), Report::Dir(dir), None),
        ObjectSource::Kubernetes => {
            let kube = Kube::connect().await?;
            (of_node(&kube, &config.node).await, Report::of_node(&kube, &config.node), Some(kube))
        }
    };
    let host = Netns::current().context("cannot open this process's network namespace")?;
    let (kubelet, probers) = Kubelet::new(config.probes.clone(), config.cgroup_root()?);
    let node = Node::open(&config.bpf_dir, &config.cgroup_root()?, &host, probers)?;
    let exempt = node.exempt_map().try_clone()?;
    let hub = Hub::start(&config.zds, exempt)
        .with_context(|| format!("cannot serve ZDS at {} (--zds)", config.zds.display()))?;
    let at = karst_api::zds_handover(&config.zds);
    if let Err(e) = Broker::start(&at) {
        // Nothing else depends on it: a ztunnel that leaves drains, as ever.
        tracing::warn!(path = %at.display(), error = %e, "open connections cannot go over to a new ztunnel");
    }
    let metrics_at = karst_rt::admin::bind(config.metrics, "--metrics").await?;
    let agent = Agent::new(config, report, node, hub);
    let probed = agent.clone();
    let set_probers = move |probers| Ok(probed.node.borrow_mut().set_probers(probers)?);
    tokio::task::spawn_local(kubelet::look_after(kubelet, set_probers));
    Ok(Started { agent, source, kube, metrics_at })
}

/// Says what is wrong in the manifests, each thing once.
fn report(problems: &[Problem], reported: &mut BTreeSet<String>) {
    for problem in problems {
        let text = problem.to_string();
        if reported.insert(text.clone()) {
            tracing::warn!("{text}");
        }
    }
}

/// The CNI plugin, while it is installed: its calls, and what keeps it in place.
#[derive(Default)]
struct Plugin {
    /// None: no plugin calls.
    calls: Option<mpsc::Receiver<Event>>,
    looking_after: Option<JoinHandle<()>>,
}

impl Plugin {
    fn start(config: &Config, install: &Install) -> anyhow::Result<Self> {
        let calls = events::listen(&config.events)
            .with_context(|| format!("cannot listen at {} (--events)", config.events.display()))?;
        let has_program = install.program_or_older()?;
        let looking_after = tokio::task::spawn_local(look_after(install.clone(), has_program));
        Ok(Self { calls: Some(calls), looking_after: Some(looking_after) })
    }

    /// Its next call; without a plugin, or once nobody listens any more, there is none.
    async fn call(&mut self) -> Event {
        if let Some(calls) = &mut self.calls
            && let Some(event) = calls.recv().await
        {
            return event;
        }
        std::future::pending().await
    }

    /// Leaves its configuration alone from now on: what is removed would be put back.
    async fn stop(&mut self) {
        if let Some(task) = self.looking_after.take() {
            task.abort();
            let _ = task.await;
        }
    }
}

async fn look_after(install: Install, has_program: bool) {
    if let Err(e) = install.look_after(has_program).await {
        tracing::error!(error = format!("{e:#}"), "the CNI configuration is no longer maintained");
    }
}

impl Agent {
    /// Brings everything in line with the manifests. True: something failed and should be tried again.
    async fn reconcile(&self, state: &State) -> bool {
        let (desired, mut failed) = self.desired(state);
        self.forget_strangers(&desired, state).await;
        let gone: Vec<String> = self.active.borrow().keys().filter(|k| !desired.contains_key(*k)).cloned().collect();
        self.leave(&gone).await;
        self.retain_closed(&desired);
        // Where the report failed, or somebody has taken it away.
        let lacking = self.report.lacking(state);
        for (key, pod) in &desired {
            if self.closed.borrow().contains_key(key) {
                continue;
            }
            let known = self.active.borrow().get(key).map(|a| a.desired.clone());
            let started = Instant::now();
            let result = match known {
                Some(known) if known == *pod => {
                    if !lacking.contains(pod.uid.as_str()) {
                        continue;
                    }
                    let named = (&*pod.info.namespace, &*pod.info.name, &*pod.uid);
                    self.report.set(&self.config.node, named, true).await.map(|()| Joined::Served)
                }
                _ => self.join(key, pod).await,
            };
            match result {
                Ok(Joined::Closed) => {}
                Ok(Joined::Served | Joined::Waits) => {
                    tracing::info!(pod = key, ms = started.elapsed().as_millis() as u64, "pod is redirected");
                }
                Err(e) => {
                    failed = true;
                    tracing::warn!(pod = key, error = format!("{e:#}"), "pod cannot be redirected yet");
                    // One that is redirected, and is only not shown as that, is in the mesh.
                    if !self.active.borrow().contains_key(key) {
                        let text = format!("the pod is not in the mesh yet, and this is tried again: {e:#}");
                        self.report.warn((&pod.info.namespace, &pod.info.name, &pod.uid), "RedirectionFailed", text);
                    }
                }
            }
        }
        failed
    }
}
