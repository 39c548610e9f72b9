//! Byte streams: connections that are carried to an endpoint as they are.

use crate::{
    clock,
    cluster::{balance, endpoint_set::EndpointSet},
    downstream::{
        conns,
        context::Downstream,
        stream::{Io, Reset},
    },
    route::tcp::TcpRule,
    snapshot::Snapshot,
    telemetry::{
        carried::{Carried, Metered},
        flag::ResponseFlag,
        request_log::RequestLog,
    },
    upstream::{
        open::{self, Attempt},
        tls::Speaks,
    },
    worker::Worker,
};
use karst_hbone::pool::Lease;
use std::{cell::Cell, future::pending, rc::Rc, sync::Arc, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// Endpoints tried for one connection.
const TRIES: usize = 3;
/// So often within its idle timeout a connection is looked at: it ends by a quarter too late, and no byte sets a timer.
const LOOKS: u32 = 4;

/// Carries bytes to an endpoint.
pub async fn tcp(worker: &Rc<Worker>, downstream: &Downstream, mut io: Io) {
    match connect_tcp(worker, downstream).await {
        Ok(to) => relay(io, to).await,
        // It is told when it is dropped.
        Err(_) => io.reset(),
    }
}

/// A byte stream to an endpoint, its place on a tunnel, who ends it when a policy forbids it, and what is to be told of it.
pub struct TcpRelay {
    pub io: Io,
    lease: Option<Lease>,
    guard: conns::Guard,
    /// It ends when nothing has passed for so long; zero: it does not.
    idle: Duration,
    pub record: Box<RequestLog>,
}

/// A byte stream to an endpoint, by the service's rules for connections.
///
/// # Errors
/// The record says why there is none.
pub async fn connect_tcp(worker: &Rc<Worker>, downstream: &Downstream) -> Result<TcpRelay, Box<RequestLog>> {
    let snapshot = worker.snapshot();
    let mut record = downstream.connection(&worker.sink, &snapshot);
    let Some(service) = downstream.service() else { return Err(record) };
    let access = snapshot.access_to(service);
    let dry_runs = &worker.shared.metrics.dry_runs;
    let denied = access.and_then(|access| downstream.authorize(dry_runs, access, downstream.from.ip(), None));
    worker.note(downstream, None, denied.as_ref(), record.time);
    if let Some(by) = denied {
        record.details = by.details.into();
        return Err(record.failed(ResponseFlag::None, &by.error));
    }
    let rule =
        snapshot.routes.get(&service.key).and_then(|r| r.table(downstream.namespace()).find_tcp(&downstream.tcp()));
    if let Some(rule) = rule {
        record.route.clone_from(&rule.origin);
    }
    let own = &*worker.shared.config.pod_namespace;
    let key = match rule.map(TcpRule::choose) {
        // One whose destinations get nothing does not leave it to whoever would be called without the rule.
        Some(chosen) => {
            let Some(destination) = chosen.filter(|destination| destination.refuse_status == 0) else {
                return Err(record.failed(ResponseFlag::NoCluster, "no destination"));
            };
            let (service, subset) = (destination.service.as_str().into(), destination.subset.as_str().into());
            downstream.key(own, &snapshot, &service, destination.port as u16, &subset).to_key()
        }
        None => downstream.key(own, &snapshot, &service.key, downstream.port, &Arc::default()).to_key(),
    };
    let Some(set) = worker.destination(&snapshot, downstream, key.as_ref(), downstream.tcp().sni) else {
        return Err(record.failed(ResponseFlag::NoCluster, "no such destination"));
    };
    let speaks = if downstream.hello.is_some() { Speaks::Tls } else { Speaks::Anything };
    open(worker, &snapshot, downstream, set, speaks, record).await
}

/// A byte stream to one of the endpoints; some are tried. `judged`: by whose policies the call was let in.
///
/// # Errors
/// The record says why there is none.
pub async fn open(
    worker: &Rc<Worker>,
    judged: &Snapshot,
    downstream: &Downstream,
    set: Rc<EndpointSet>,
    speaks: Speaks,
    mut record: Box<RequestLog>,
) -> Result<TcpRelay, Box<RequestLog>> {
    record.destination = Some(set.chosen.clone());
    let mut tried = vec![];
    while tried.len() < TRIES {
        let Some(index) = worker.choose(&set, None, &tried, clock::now()) else { break };
        let member = &set.members[index];
        record.workload = Some((member.workload.clone(), member.address));
        let has_other = || tried.len() + 1 < TRIES && balance::has_other(&set, index, &tried);
        let held = Cell::default();
        let (from, to) = (downstream.from, downstream.called());
        let attempt = Attempt { set: &set, member, from, to, has_other: &has_other, held: &held, trace: &|| None };
        let error = match open::open(worker, &attempt, speaks).await {
            Ok((io, lease)) => {
                // It counts as an answer: what failed before it was not in a row.
                set.record_outcome(member, Some(200));
                let guard = worker.register(judged, downstream, None);
                let idle = Duration::from_millis(set.policy.limits.as_ref().map_or(0, |l| l.tcp_idle_ms));
                return Ok(TcpRelay { io, lease, guard, idle, record: record.failed(ResponseFlag::None, "") });
            }
            Err(error) => error,
        };
        worker.limited("connection failed", |left_out| {
            tracing::warn!(
                target: "access",
                service = %set.service.hostname,
                endpoint = %member.address,
                error = %error,
                left_out,
                "connection failed"
            );
        });
        if error.is_of_endpoint() {
            set.record_outcome(member, None);
        }
        record = record.failed(ResponseFlag::ConnectFailure, &error.to_string());
        if !error.may_retry() {
            return Err(record);
        }
        tried.push(index);
    }
    if tried.is_empty() {
        record = record.failed(ResponseFlag::NoHealthy, "no endpoint");
    }
    Err(record)
}

/// Carries bytes both ways until both have ended, nothing passes for too long, or a policy forbids it; then it is told, also where this
/// is given up.
pub async fn relay<I>(client: I, to: TcpRelay)
where
    I: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let TcpRelay { io: mut upstream, lease, guard, idle, mut record } = to;
    let carried = record.established();
    let mut downstream = Metered::new(client, carried.clone());
    let ended = tokio::select! {
        r = tokio::io::copy_bidirectional(&mut downstream, &mut upstream) => {
            r.map(drop).map_err(|e| record.error = e.to_string())
        }
        by = guard.forbidden() => Err((record.error, record.details) = (by.error, by.details.into())),
        () = silence(&carried, idle) => {
            record.error = format!("idle for {} ms", idle.as_millis());
            Err(())
        }
    };
    match ended {
        Ok(()) => drop((downstream.shutdown().await, upstream.shutdown().await)),
        // Without an end before it: nobody is to take what is truncated for complete.
        Err(()) => {
            downstream.io.reset();
            upstream.reset();
        }
    }
    drop((lease, record));
}

/// Ends when nothing has passed for so long; zero: never.
async fn silence(carried: &Carried, idle: Duration) {
    if idle.is_zero() {
        return pending().await;
    }
    let passed = || (carried.received.get(), carried.sent.get());
    let (mut before, mut silent) = (passed(), 0);
    while silent < LOOKS {
        tokio::time::sleep(idle / LOOKS).await;
        let now = passed();
        silent = if now == before { silent + 1 } else { 0 };
        before = now;
    }
}
