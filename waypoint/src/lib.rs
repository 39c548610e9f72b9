//! The layer 7 proxy: accepts tunnels for the services that are bound to it, routes their requests, and sends them on.
//!
//! - [`downstream`]: clients' connections; [`worker`]: a thread with its tunnels.
//! - [`mod@http`]: one request from its canonical form to its answer.
//! - [`quota`]: rate limits that replicas count together.
//! - [`route`]: the compiled routes; [`authz`]: who may call; [`session`]: who comes back to the same endpoint.
//! - [`cluster`]: the endpoints of a destination, and the choice among them; [`upstream`]: connections to them.
//! - [`tls_parameters`]: what TLS is spoken with, on both sides.
//! - [`telemetry`]: what is told of requests and connections; [`spans`]: traces, and their way to a collector; [`logs`]: the access log for
//!   collectors.
//! - [`snapshot`]: what is known at one time; [`control`]: who writes it; [`config`], [`admin`]: the process.

mod admin;
mod authz;
mod clock;
mod cluster;
mod config;
mod control;
pub mod decision;
mod downstream;
mod envoy;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod http;
#[cfg(feature = "fuzz")]
pub mod live;
mod logs;
mod quota;
mod route;
mod session;
mod snapshot;
mod spans;
mod telemetry;
#[cfg(any(test, feature = "fuzz"))]
mod testing;
#[cfg(test)]
mod tests;
mod tls_parameters;
mod upstream;
mod worker;

use anyhow::Context;
use clap::Parser;
use karst_proxy::{
    bootstrap::{self, Pages, Signals, Threads},
    flows::Books,
    options::worker_count,
    revocation, secrets,
    tap::Taps,
    trim, untold,
    workers::WorkerPool,
    xds::StateWriter,
};
use karst_rt::{drain, ready::Ready};
use std::sync::{Arc, atomic::Ordering::Relaxed};
use tokio::sync::watch;

/// The process: reads its options, serves until it is told to stop.
pub fn main() -> std::process::ExitCode {
    karst_rt::process::tune_allocator();
    bootstrap::exit("karst-waypoint", run(config::Config::parse()))
}

fn run(config: config::Config) -> anyhow::Result<()> {
    let descriptors = bootstrap::prepare(config.log.log_format, &config.log.log_level)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), workers = worker_count(config.workers), "waypoint starts");
    bootstrap::control_thread(serve(config, descriptors))?
}

async fn serve(config: config::Config, descriptors: u64) -> anyhow::Result<()> {
    let ready = Ready::default();
    let identity = config.identity()?;
    let (xds, ca) = config.remotes()?;
    let (state_tx, state) = watch::channel(Arc::new(snapshot::Snapshot::new(&config.place.network)));
    let (stream_tx, stream) = watch::channel(true);
    let (configured_tx, configured) = watch::channel(false);
    let mut manager =
        secrets::Manager::new(ca, config.certificates.secret_ttl, config.place.cluster_id.clone(), stream.clone())
            .enforcing(revocation::start(config.crl.clone(), &ready));
    manager.keep(&identity);
    // Ports first: a process that cannot have them must not become ready.
    let listener = karst_rt::socket::listener(config.hbone)
        .with_context(|| format!("cannot listen on {}; choose another address with HBONE_ADDR", config.hbone))?;
    let addresses = Pages::bind(config.admin, config.stats, config.readiness).await?;
    let (ports_tx, ports) = watch::channel(downstream::ports::Ports::default());
    let (udp_ports_tx, udp_ports) = watch::channel(downstream::udp::ports::Ports::default());
    let (questions, asker) = untold::Asker::new(&config.place.network);
    let (workers, receivers) = WorkerPool::new(worker_count(config.workers));
    let metrics = Arc::<telemetry::metrics::Metrics>::default();
    let (spans, ended_spans) = spans::queue::Queue::new(metrics.spans.clone());
    let (logs, ended_logs) = spans::queue::Queue::new(metrics.logs.clone());
    let (parking, parked) = karst_hbone::parking::new::<downstream::continued::Place>();
    tokio::task::spawn_local(karst_hbone::parking::run(parked));
    let shared = Arc::new(worker::Shared {
        identity,
        state,
        configured,
        stream,
        questions,
        secrets: manager.secrets(),
        metrics,
        quota: quota::table::Table::default(),
        clusters: cluster::endpoint_set::Clusters::new(config.is_gateway()),
        gate: downstream::gate::Gate::new(descriptors),
        flows: Books::new(receivers.len(), config.flows.flows),
        taps: Taps::new(&*config.pod_name),
        workers,
        parking,
        ports,
        udp_ports,
        spans,
        logs,
        config: config.clone(),
    });
    let (drain, watch) = drain::new();
    let mut threads = Threads::default();
    for (i, rx) in receivers.into_iter().enumerate() {
        let (shared, watch, l) = (shared.clone(), watch.clone(), listener.try_clone()?);
        threads.start(move || downstream::accept::run(shared, i, l, rx, watch))?;
    }
    drop(listener);
    let pages = Arc::new(admin::Pages { shared: shared.clone(), ready: ready.clone() });
    addresses.serve(pages.clone().admin(), pages.clone().stats(), pages.readiness());
    let exporter = spans::export::start(shared.clone(), [ended_spans, ended_logs]);
    let certificate = ready.block("certificate");
    let (mut own, id) = (shared.secrets.clone(), shared.identity.clone());
    tokio::task::spawn_local(async move {
        while own.get(&id, std::time::Duration::from_secs(60)).await.is_none() {}
        drop(certificate);
    });
    let looked_at = shared.clone();
    tokio::task::spawn_local(async move {
        let gate = &looked_at.gate;
        trim::after_floods(|| (gate.open(), gate.turns.load(Relaxed))).await;
    });
    let types = if config.is_gateway() { control::GATEWAY } else { control::WAYPOINT };
    tokio::task::spawn_local(downstream::ports::open(
        shared.state.clone(),
        ports_tx,
        watch.clone(),
        config.drain_limit(),
    ));
    tokio::task::spawn_local(downstream::udp::ports::open(
        shared.state.clone(),
        udp_ports_tx,
        watch.clone(),
        worker_count(config.workers),
    ));
    drop(watch);
    let (needed, said) = (control::needed(types), (configured_tx, stream_tx));
    let writer = StateWriter::new(xds, state_tx, (&ready, &needed), said, shared.metrics.discovery.clone(), asker);
    let node = config.node();
    tokio::task::spawn_local(async move { karst_xds::client::run(writer, node, types).await });

    let mut signals = Signals::new()?;
    loop {
        tokio::select! {
            id = manager.wanted() => manager.keep(&id),
            () = signals.stop() => break,
        }
    }
    let limit = config.drain_limit();
    tracing::info!(limit_s = limit.as_secs(), "draining: no new connections, open ones may finish");
    bootstrap::drain(&drain, limit, || tracing::info!("drain timeout: closing open connections")).await;
    threads.join().await;
    exporter.finish().await;
    tracing::info!("waypoint stops");
    bootstrap::last_lines().await;
    Ok(())
}
