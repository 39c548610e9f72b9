//! The layer 7 proxy: accepts tunnels for the services that are bound to it, routes their requests, and sends them on.
//!
//! - [`downstream`]: clients' connections; [`worker`]: a thread with its tunnels.
//! - [`mod@http`]: one request from its canonical form to its answer.
//! - [`route`]: the compiled routes; [`authz`]: who may call.
//! - [`cluster`]: the endpoints of a destination, and the choice among them; [`upstream`]: connections to them.
//! - [`telemetry`]: what is told of requests and connections.
//! - [`snapshot`]: what is known at one time; [`control`]: who writes it; [`config`], [`admin`]: the process.

mod admin;
mod authz;
mod clock;
mod cluster;
mod config;
mod control;
mod downstream;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod http;
mod route;
mod snapshot;
mod telemetry;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod upstream;
mod worker;

use anyhow::Context;
use clap::Parser;
use karst_api::ads;
use karst_proxy::{remote::NodeMetadata, revocation, secrets, untold, workers::WorkerPool};
use karst_rt::{drain, ready::Ready};
use std::sync::Arc;
use tokio::sync::watch;

/// The process: reads its options, serves until it is told to stop.
pub fn main() -> std::process::ExitCode {
    karst_rt::process::tune_allocator();
    let config = config::Config::parse();
    match run(config) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("karst-waypoint: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(config: config::Config) -> anyhow::Result<()> {
    karst_rt::log::start(config.log_format, &config.log_level).map_err(anyhow::Error::msg)?;
    let descriptors =
        karst_rt::process::raise_descriptor_limit().context("cannot raise the limit of open descriptors")?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), workers = config.worker_count(), "waypoint starts");
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&rt, serve(config, descriptors))
}

async fn serve(config: config::Config, descriptors: u64) -> anyhow::Result<()> {
    let ready = Ready::default();
    let identity = config.identity()?;
    let (xds, ca) = config.remotes()?;
    let (state_tx, state) = watch::channel(Arc::new(snapshot::Snapshot::new(&config.network)));
    let (stream_tx, stream) = watch::channel(true);
    let (configured_tx, configured) = watch::channel(false);
    let mut manager = secrets::Manager::new(ca, config.secret_ttl, config.cluster_id.clone(), stream.clone())
        .enforcing(revocation::start(config.crl.clone(), &ready));
    manager.keep(&identity);
    // Ports first: a process that cannot have them must not become ready.
    let listener = karst_rt::socket::listener(config.hbone)
        .with_context(|| format!("cannot listen on {}; choose another address with HBONE_ADDR", config.hbone))?;
    let admin_at = karst_rt::admin::bind(config.admin, "ADMIN_ADDR").await?;
    let stats_at = karst_rt::admin::bind(config.stats, "STATS_ADDR").await?;
    let ready_at = karst_rt::admin::bind(config.readiness, "READINESS_ADDR").await?;
    let (ports_tx, ports) = watch::channel(downstream::ports::Ports::default());
    let (questions, asker) = untold::Asker::new(&config.network);
    let (workers, receivers) = WorkerPool::new(config.worker_count());
    let shared = Arc::new(worker::Shared {
        identity,
        state,
        configured,
        stream,
        questions,
        secrets: manager.secrets(),
        metrics: Arc::default(),
        clusters: cluster::endpoint_set::Clusters::new(config.is_gateway()),
        gate: downstream::gate::Gate::new(descriptors),
        workers,
        ports,
        config: config.clone(),
    });
    let (drain, watch) = drain::new();
    let mut threads = Vec::new();
    for (i, rx) in receivers.into_iter().enumerate() {
        let (shared, watch, l) = (shared.clone(), watch.clone(), listener.try_clone()?);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{i}"))
            .spawn(move || downstream::accept::run(shared, i, l, rx, watch));
        threads.push(thread.context("cannot start a worker thread")?);
    }
    drop(listener);
    let pages = Arc::new(admin::Pages { shared: shared.clone(), ready: ready.clone() });
    tokio::task::spawn_local(karst_rt::admin::serve(admin_at, pages.clone().admin()));
    tokio::task::spawn_local(karst_rt::admin::serve(stats_at, pages.clone().stats()));
    tokio::task::spawn_local(karst_rt::admin::serve(ready_at, pages.readiness()));
    let certificate = ready.block("certificate");
    let (mut own, id) = (shared.secrets.clone(), shared.identity.clone());
    tokio::task::spawn_local(async move {
        while own.get(&id, std::time::Duration::from_secs(60)).await.is_none() {}
        drop(certificate);
    });
    let types = if config.is_gateway() { control::GATEWAY } else { control::WAYPOINT };
    tokio::task::spawn_local(downstream::ports::open(
        shared.state.clone(),
        ports_tx,
        watch.clone(),
        config.drain_limit(),
    ));
    drop(watch);
    let discovery = shared.metrics.discovery.clone();
    let writer = control::StateWriter::new(xds, state_tx, &ready, types, (configured_tx, stream_tx), discovery, asker);
    let node = node(&config);
    tokio::task::spawn_local(async move { karst_xds::client::run(writer, node, types).await });

    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut int = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    loop {
        tokio::select! {
            id = manager.wanted() => manager.keep(&id),
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
    }
    let limit = config.drain_limit();
    tracing::info!(limit_s = limit.as_secs(), "draining: no new connections, open ones may finish");
    drain.start(drain::Phase::Graceful);
    if tokio::time::timeout(limit, drain.finished()).await.is_err() {
        tracing::info!("drain timeout: closing open connections");
        drain.start(drain::Phase::Forced);
    }
    for t in threads {
        let _ = tokio::task::spawn_blocking(move || t.join()).await;
    }
    tracing::info!("waypoint stops");
    // The log is written by a thread of its own.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    Ok(())
}

/// How we introduce ourselves to the control plane.
fn node(config: &config::Config) -> ads::Node {
    let me = NodeMetadata {
        kind: if config.is_gateway() { "router" } else { "waypoint" },
        pod: &config.pod_name,
        namespace: &config.pod_namespace,
        account: Some(&config.account),
        ip: &config.instance_ip,
        node: &config.node,
        cluster: &config.cluster_id,
        domain: &config.cluster_domain,
    };
    me.node()
}
