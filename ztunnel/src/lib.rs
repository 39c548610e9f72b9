//! The node proxy: carries its pods' TCP over HBONE, and enforces L4 policy.

mod admin;
mod affinity;
mod choose;
mod client;
mod config;
mod conn;
mod connect;
mod conns;
mod control;
mod dns;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod gate;
mod handover;
mod inbound;
mod inpod;
mod istio;
#[cfg(test)]
mod joined;
mod listeners;
mod local;
pub mod mesh_config;
mod metrics;
pub mod needs;
mod outbound;
mod outcome;
mod parking;
pub mod plan;
mod queries;
mod relay;
mod serve;
mod shares;
mod signals;
mod standby;
mod supervisor;
mod survival;
mod tapped;
mod worker;

use anyhow::Context;
use arc_swap::ArcSwap;
use clap::Parser;
use control::PodManager;
use karst_api::ads;
use karst_core::Identity;
use karst_proxy::{
    bootstrap::{self, Pages, Signals, Threads},
    demand::Book,
    flows::Books,
    options::worker_count,
    remote::NodeMetadata,
    revocation, secrets, state,
    tap::Taps,
    trim, untold,
    xds::StateWriter,
};
use karst_rt::{drain, ready::Ready};
use prost_types::value::Kind;
use standby::{Orders, Takeover};
use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    process::ExitCode,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::sync::{Notify, mpsc, watch};

/// Orders that may wait for a worker.
const DNS_ORDERS: usize = 256;

/// The process: reads its options, serves until it is told to stop; or looks after those that do.
pub fn main() -> ExitCode {
    let config = config::Config::parse();
    if config.supervises() {
        return supervisor::run(config).unwrap_or_else(|e| bootstrap::exit("ztunnel", Err(e)));
    }
    karst_rt::process::tune_allocator();
    bootstrap::exit("ztunnel", run(config))
}

fn run(config: config::Config) -> anyhow::Result<()> {
    let config = config.adopt()?;
    // First: before there is another thread, a key, or a signal that ends it.
    let kept = config.outlives().then(|| survival::keep(worker_count(config.workers))).transpose();
    if config.is_supervised() {
        karst_rt::signals::unblock().context("cannot unblock signals")?;
    }
    let descriptors = bootstrap::prepare(config.log.log_format, &config.log.log_level)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        workers = worker_count(config.workers),
        descriptors,
        standby = config.standby,
        "ztunnel starts"
    );
    let kept = kept.unwrap_or_else(|e| {
        tracing::error!(error = %e, "KARST_SURVIVE_KILL: open connections cannot be kept; a crash will cut them");
        None
    });
    if config.survive_kill && !config.is_supervised() {
        tracing::warn!("KARST_SURVIVE_KILL has no effect without KARST_WARM_SPARE");
    }
    if kept.is_some() {
        survival::tell_of_kernel();
    }
    bootstrap::control_thread(serve(config, descriptors, kept))?
}

async fn serve(config: config::Config, descriptors: u64, kept: Option<survival::Kept>) -> anyhow::Result<()> {
    let mut orders = Orders::of(&config).context("the supervisor's orders, on standard input")?;
    let mut signals = Signals::new()?;
    let ready = Ready::default();
    let metrics = Arc::new(metrics::Metrics::default());
    let (questions, asker) = untold::Asker::new(&config.place.network);
    let nothing = || state::Snapshot::new(&config.place.network).with_root(config.root_namespace());
    let (first, asker) = match &config.local_xds {
        Some(path) => (local::read(path, &config.place.network)?, asker),
        None if config.on_demand => {
            let (pages, counts) = (state::Pages::default(), metrics.discovery.demand.clone());
            (nothing().on_demand(pages.clone()), asker.on_demand(Book::new(pages, counts)))
        }
        None => (nothing(), asker),
    };
    let (state_tx, state) = watch::channel(Arc::new(first));
    let (configured_tx, configured) = watch::channel(config.local_xds.is_some());
    let (stream_tx, stream) = watch::channel(true);
    let (xds, ca) = config.remotes()?;
    let mut secrets =
        secrets::Manager::new(ca, config.certificates.secret_ttl, config.place.cluster_id.clone(), stream.clone())
            .enforcing(revocation::start(config.crl.clone(), &ready));
    let (workers, receivers) = karst_proxy::workers::WorkerPool::new(worker_count(config.workers));
    let (parking, parked) = parking::new::<parking::Parked>();
    tokio::task::spawn_local(parking::run(parked));
    let (table, holder) = kept.map(survival::Kept::parts).unzip();
    if let Some(holder) = holder {
        tokio::task::spawn_local(survival::watch(holder));
    }
    let shared = Arc::new(worker::Shared {
        config: config.clone(),
        state: state.clone(),
        configured,
        stream,
        questions,
        pods: ArcSwap::default(),
        budget: worker::Budget::of(descriptors),
        secrets: secrets.secrets(),
        metrics: metrics.clone(),
        gate: gate::Gate::of_node(descriptors),
        affinity: affinity::Affinity::default(),
        outbound: mesh_config::start(config.outbound_traffic_policy, config.mesh_config.clone()),
        desk: handover::desk::Desk::default(),
        parking,
        table,
        flows: Books::new(receivers.len(), config.flows.flows),
        taps: Taps::new(&*config.place.node),
        workers,
    });
    let told = (configured_tx, stream_tx);
    match config.local_xds.clone() {
        Some(path) => {
            let network = config.place.network.clone();
            tokio::task::spawn_local(async move {
                let _open = told;
                local::follow(&path, &network, state_tx).await;
            });
        }
        None => {
            let needed = (&ready, control::needed(config.on_demand));
            let writer = StateWriter::new(xds, state_tx, needed, told, metrics.discovery.clone(), asker);
            let node = node(&config);
            tokio::task::spawn_local(async move { karst_xds::client::run(writer, node, control::TYPES).await });
        }
    }
    let mut takeover = None;
    if config.standby {
        takeover = standby::wait(&mut orders, &mut signals, &shared, &mut secrets).await;
        if takeover.is_none() {
            tracing::info!("standing by ends");
            bootstrap::last_lines().await;
            return Ok(());
        }
    }
    let crashes = takeover.as_ref().map(|takeover| takeover.crashes).or(config.crashes);
    metrics.crashes.store(crashes.unwrap_or_default().into(), Relaxed);
    // Before anything else is opened: the one before has the ports of the pages until this is done.
    let taken = match takeover.as_mut().and_then(|takeover| takeover.holder.take()) {
        Some(holder) => Some(survival::take(holder).await),
        None => None,
    };
    // Ports first: a process that cannot have them must not take connections.
    let ports = Pages::bind(config.admin, config.stats, config.readiness).await?;
    let (drain, watch) = drain::new();
    let mut threads = Threads::default();
    for (i, rx) in receivers.into_iter().enumerate() {
        let (shared, watch) = (shared.clone(), watch.clone());
        threads.start(move || serve::run(shared, i, rx, watch))?;
    }
    drop(watch);
    let quit = Arc::new(Notify::new());
    let pages = Arc::new(admin::Pages { shared: shared.clone(), ready: ready.clone(), quit: quit.clone() });
    ports.serve(pages.clone().admin(), pages.clone().stats(), pages.readiness());

    let looked_at = shared.clone();
    tokio::task::spawn_local(async move { trim::after_floods(|| shares::tide(&looked_at)).await });
    let (dns_tx, dns_rx) = mpsc::channel(DNS_ORDERS);
    tokio::task::spawn_local(dns::run(dns_rx, shared.clone()));
    let (changed, complete) = (Arc::new(Notify::new()), Rc::new(Cell::new(false)));
    let mut keeper = PodManager {
        shared: shared.clone(),
        pods: HashMap::new(),
        waiting: HashMap::new(),
        blocker: Some(ready.block("first snapshot of the node agent")),
        dns: dns_tx,
        changed: changed.clone(),
        complete: complete.clone(),
    };
    let zds = config.zds.clone();
    let agent = tokio::task::spawn_local(async move {
        if let Some(Takeover { held, at, .. }) = takeover {
            held.hand_over(&mut keeper, at).await;
        }
        inpod::run(&zds, keeper).await;
    });
    if let Some(taken) = taken {
        let shared = shared.clone();
        tokio::task::spawn_local(async move { survival::revive::revive(&shared, taken).await });
    }
    let (meeting, instance) = (karst_api::zds_handover(&config.zds), rand::random());
    let taker = config.hand_over.then(|| {
        let (path, shared) = (meeting.clone(), shared.clone());
        tokio::task::spawn_local(async move { handover::take::take(&path, instance, shared).await })
    });
    let mut limit = config.drain_limit();
    loop {
        tokio::select! {
            () = changed.notified() => {
                let ours = identities(&shared);
                if complete.get() {
                    secrets.retain(&ours);
                }
                ours.iter().for_each(|i| secrets.keep(i));
            }
            i = secrets.wanted() => if identities(&shared).contains(&i) { secrets.keep(&i) },
            () = signals.stop() => break,
            () = quit.notified() => break,
            () = orders.ended() => {
                // In a container the kernel would have ended us with it.
                limit = Duration::ZERO;
                break;
            }
        }
    }
    tracing::info!(limit_s = limit.as_secs(), "draining: no new connections, open ones may finish");
    agent.abort();
    let drained = bootstrap::drain(&drain, limit, || tracing::info!("drain timeout: closing open connections"));
    match taker {
        Some(taker) => {
            taker.abort();
            tokio::select! {
                () = drained => {}
                // It goes on for ever.
                () = handover::give::give(&meeting, instance, &shared.desk, &drain) => {}
            }
        }
        None => drained.await,
    }
    threads.join().await;
    tracing::info!("ztunnel stops");
    bootstrap::last_lines().await;
    Ok(())
}

/// The identities of this node's pods.
fn identities(shared: &worker::Shared) -> HashSet<Identity> {
    let td = &shared.config.certificates.trust_domain;
    shared.pods.load().values().filter_map(|p| Identity::new(td, &p.namespace, &p.account).ok()).collect()
}

/// How we introduce ourselves to the control plane.
fn node(config: &config::Config) -> ads::Node {
    let me = NodeMetadata {
        kind: "ztunnel",
        pod: &config.pod_name,
        namespace: &config.pod_namespace,
        account: None,
        ip: &config.instance_ip,
        node: &config.place.node,
        cluster: &config.place.cluster_id,
        domain: &config.place.cluster_domain,
    };
    let mut node = me.node();
    // What is marked as a dry run is not enforced here, so we may be told of it.
    node.client_features.push(karst_xds::DRY_RUN.into());
    if config.on_demand {
        node.client_features.push(karst_xds::ON_DEMAND.into());
    }
    if config.standby {
        let yes = prost_types::Value { kind: Some(Kind::StringValue("true".into())) };
        node.metadata.get_or_insert_default().fields.insert(karst_api::SPARE.into(), yes);
    }
    node
}
