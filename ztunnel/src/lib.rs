//! The node proxy: carries its pods' TCP over HBONE, and enforces L4 policy.

mod admin;
mod affinity;
mod client;
mod config;
mod conns;
mod control;
mod dns;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod gate;
mod inbound;
mod inpod;
mod local;
mod metrics;
mod outbound;
mod outcome;
mod plan;
mod serve;
mod worker;

use anyhow::Context;
use arc_swap::ArcSwap;
use clap::Parser;
use control::{PodManager, StateWriter};
use karst_api::ads;
use karst_core::Identity;
use karst_proxy::{remote::NodeMetadata, revocation, secrets, state, untold};
use karst_rt::{drain, ready::Ready};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tokio::sync::{Notify, mpsc, watch};

/// Orders that may wait for a worker.
const DNS_ORDERS: usize = 256;

/// The process: reads its options, serves until it is told to stop.
pub fn main() -> std::process::ExitCode {
    karst_rt::process::tune_allocator();
    let config = config::Config::parse();
    match run(config) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("ztunnel: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(config: config::Config) -> anyhow::Result<()> {
    karst_rt::log::start(config.log_format, &config.log_level).map_err(anyhow::Error::msg)?;
    let descriptors =
        karst_rt::process::raise_descriptor_limit().context("cannot raise the limit of open descriptors")?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), workers = config.worker_count(), descriptors, "ztunnel starts");
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&rt, serve(config, descriptors))
}

async fn serve(config: config::Config, descriptors: u64) -> anyhow::Result<()> {
    let ready = Ready::default();
    let metrics = Arc::new(metrics::Metrics::default());
    let first = match &config.local_xds {
        Some(path) => local::read(path, &config.network).map_err(anyhow::Error::msg)?,
        None => state::Snapshot::new(&config.network).with_root(config.root_namespace()),
    };
    let (state_tx, state) = watch::channel(Arc::new(first));
    let (configured_tx, configured) = watch::channel(config.local_xds.is_some());
    let (stream_tx, stream) = watch::channel(true);
    let (xds, ca) = config.control_plane().map_err(anyhow::Error::msg)?;
    let remote = |address: &str| config.remote(address);
    let mut secrets = secrets::Manager::new(remote(&ca), config.secret_ttl, config.cluster_id.clone(), stream.clone())
        .enforcing(revocation::start(config.crl.clone(), &ready));
    let (questions, asker) = untold::Asker::new(&config.network);
    let (workers, receivers) = karst_proxy::workers::WorkerPool::new(config.worker_count());
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
        workers,
    });
    // Ports first: a process that cannot have them must not take connections.
    let admin_at = karst_rt::admin::bind(config.admin, "ADMIN_ADDR").await?;
    let stats_at = karst_rt::admin::bind(config.stats, "STATS_ADDR").await?;
    let ready_at = karst_rt::admin::bind(config.readiness, "READINESS_ADDR").await?;
    let (drain, watch) = drain::new();
    let mut threads = Vec::new();
    for (i, rx) in receivers.into_iter().enumerate() {
        let (shared, watch) = (shared.clone(), watch.clone());
        let thread =
            std::thread::Builder::new().name(format!("worker-{i}")).spawn(move || serve::run(shared, i, rx, watch));
        threads.push(thread.context("cannot start a worker thread")?);
    }
    drop(watch);
    let quit = Arc::new(Notify::new());
    let pages = Arc::new(admin::Pages { shared: shared.clone(), ready: ready.clone(), quit: quit.clone() });
    tokio::task::spawn_local(karst_rt::admin::serve(admin_at, pages.clone().admin()));
    tokio::task::spawn_local(karst_rt::admin::serve(stats_at, pages.clone().stats()));
    tokio::task::spawn_local(karst_rt::admin::serve(ready_at, pages.readiness()));

    let (dns_tx, dns_rx) = mpsc::channel(DNS_ORDERS);
    tokio::task::spawn_local(dns::run(dns_rx, shared.clone()));
    let changed = Arc::new(Notify::new());
    let keeper = PodManager {
        shared: shared.clone(),
        pods: HashMap::new(),
        blocker: Some(ready.block("first snapshot of the node agent")),
        dns: dns_tx,
        changed: changed.clone(),
    };
    let zds = config.zds.clone();
    let agent = tokio::task::spawn_local(async move { inpod::run(&zds, keeper).await });
    match config.local_xds.clone() {
        Some(path) => {
            let network = config.network.clone();
            tokio::task::spawn_local(async move {
                let _open = (configured_tx, stream_tx);
                local::follow(&path, &network, state_tx).await;
            });
        }
        None => {
            let writer = StateWriter::new(remote(&xds), state_tx, metrics, &ready, (configured_tx, stream_tx), asker);
            let node = node(&config);
            tokio::task::spawn_local(async move { karst_xds::client::run(writer, node, control::TYPES).await });
        }
    }

    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut int = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    loop {
        tokio::select! {
            () = changed.notified() => {
                let ours = identities(&shared);
                secrets.retain(&ours);
                ours.iter().for_each(|i| secrets.keep(i));
            }
            i = secrets.wanted() => if identities(&shared).contains(&i) { secrets.keep(&i) },
            _ = term.recv() => break,
            _ = int.recv() => break,
            () = quit.notified() => break,
        }
    }
    let limit = config.drain_limit();
    tracing::info!(limit_s = limit.as_secs(), "draining: no new connections, open ones may finish");
    agent.abort();
    drain.start(drain::Phase::Graceful);
    if tokio::time::timeout(limit, drain.finished()).await.is_err() {
        tracing::info!("drain timeout: closing open connections");
        drain.start(drain::Phase::Forced);
    }
    for thread in threads {
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
    tracing::info!("ztunnel stops");
    // The log is written by a thread of its own.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    Ok(())
}

/// The identities of this node's pods.
fn identities(shared: &worker::Shared) -> HashSet<Identity> {
    let td = &shared.config.trust_domain;
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
        node: &config.node,
        cluster: &config.cluster_id,
        domain: &config.cluster_domain,
    };
    let mut node = me.node();
    // What is marked as a dry run is not enforced here, so we may be told of it.
    node.client_features.push(karst_xds::DRY_RUN.into());
    node
}
