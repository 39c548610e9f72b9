//! Tunnels of the mesh: a worker's loop that takes them, and serves their streams or gives them to a worker that has less to do.

use crate::{
    downstream::{edge, tunnel::stream, udp},
    snapshot::Snapshot,
    upstream::{connector::Connector, follow, reopen},
    worker::{Job, Shared, Worker},
};
use http::{Response, StatusCode};
use karst_core::{Identity, canonical, limits};
use karst_hbone::{server, stream::TlsStream};
use karst_rt::{
    admission::{Ended, Permit, Source},
    drain,
    on_wake::OnWake,
    socket::NetnsConnector,
    turns,
};
use std::{
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

/// How often tunnels are looked through for those whose workloads have gone.
const RETIRE: Duration = Duration::from_secs(2);

/// Runs a worker on the calling thread until the drain is over.
///
/// # Errors
/// If the runtime cannot be made.
pub fn run(
    shared: Arc<Shared>,
    number: usize,
    listener: std::net::TcpListener,
    mut jobs: mpsc::Receiver<Job>,
    drain: drain::Watch,
) -> std::io::Result<()> {
    karst_rt::local::run(async move {
        let listener = TcpListener::from_std(listener)?;
        let (following, orders) = follow::orders();
        let network = Connector::Network(NetnsConnector::host());
        let worker = Worker::new(shared, number, drain.clone(), network, following);
        tokio::task::spawn_local(reopen::run(Rc::downgrade(&worker), orders));
        tokio::task::spawn_local(edge::accept(worker.clone(), worker.shared.ports.clone()));
        tokio::task::spawn_local(udp::serve::serve(worker.clone(), worker.shared.udp_ports.clone()));
        tokio::task::spawn_local(recheck(worker.clone(), worker.shared.state.clone()));
        let (mut graceful, mut forced) = (drain.clone(), drain);
        let mut done = tokio::time::interval(Duration::from_millis(20));
        let mut retire = tokio::time::interval(RETIRE);
        retire.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut state = worker.shared.state.clone();
        let mut changed = false;
        let mut draining = false;
        let mut configured = worker.shared.configured.clone();
        let mut open = false;
        let mut accepted = 0;
        loop {
            tokio::select! {
                job = jobs.recv() => match job {
                    Some(job) => serve(&worker, job),
                    None => break,
                },
                _ = retire.tick() => {
                    karst_hbone::release_unneeded();
                    if std::mem::take(&mut changed) {
                        worker.dialer.retire(&worker.snapshot().mesh);
                    }
                }
                r = configured.wait_for(|c| *c), if !open => open = r.is_ok(),
                Ok(()) = state.changed() => changed = true,
                (s, from) = karst_rt::accept::accept(&listener), if open && !draining => {
                    accept(&worker, s, from);
                    accepted += 1;
                    if accepted % limits::ACCEPTS == 0 {
                        // However many more there are.
                        tokio::task::yield_now().await;
                    }
                }
                () = graceful.reached(drain::Phase::Graceful), if !draining => draining = true,
                _ = done.tick(), if draining => if worker.is_idle() {
                    break;
                },
                () = forced.reached(drain::Phase::Forced) => break,
            }
        }
        Ok(())
    })?
}

/// Ends streams that are no longer allowed when policies change.
async fn recheck(worker: Rc<Worker>, mut state: watch::Receiver<Arc<Snapshot>>) {
    while state.changed().await.is_ok() {
        // What comes from here on means another pass.
        state.mark_unchanged();
        worker.conns.recheck(|| state.borrow().clone(), &worker.shared.metrics.closed_by_policy).await;
    }
}

fn accept(worker: &Rc<Worker>, socket: TcpStream, from: SocketAddr) {
    let (open, worker, from) = (worker.connection(), worker.clone(), canonical(from));
    let known = worker.snapshot().mesh.workload(from.ip()).is_some();
    let share = worker.callers.of(Source::address(from.ip(), known));
    let task = async move {
        turns::spend(limits::TURN_ACCEPT);
        tunnel(&worker, socket, from).await;
        drop(open);
    };
    tokio::task::spawn_local(turns::of(Some(share), Box::pin(task)));
}

async fn tunnel(worker: &Rc<Worker>, socket: TcpStream, from: SocketAddr) {
    let _ = socket.set_nodelay(true);
    // Boxed, and gone when the tunnel is there.
    let (stream, peer, permit) = match Box::pin(admitted(worker, socket, from)).await {
        Ok(Some(x)) => x,
        Ok(None) => return,
        Err(e) => return tracing::debug!(peer = %from, error = %e, "tunnel refused"),
    };
    let workers = &worker.shared.workers;
    let on_stream = |connect| {
        let Some(in_use) = permit.in_use() else { return refuse(worker, connect) };
        let to = workers.pick_less_loaded(worker.number).unwrap_or(worker.number);
        let job = Job { connect, peer: peer.clone(), from, in_use: Some(in_use), running: workers.start(to) };
        if to == worker.number {
            return serve(worker, job);
        }
        if let Err(mut back) = workers.dispatch(to, job) {
            back.running = workers.start(worker.number);
            serve(worker, back);
        }
    };
    let served = server::serve_until(stream, &worker.settings, worker.drain.clone(), permit.evicted(), on_stream).await;
    if let Err(e) = served {
        if matches!(e, server::ServerError::Evicted) {
            worker.shared.gate.counts.tunnels.note(Ended::Evicted);
        }
        tracing::debug!(peer = %peer, error = %e, "tunnel ended");
    }
}

/// A tunnel's start: until its peer has shown who it is, it has one of the places for those who have not.
async fn admitted(
    worker: &Worker,
    socket: TcpStream,
    from: SocketAddr,
) -> Result<Option<(TlsStream, Identity, Rc<Permit>)>, Ended> {
    let gate = &worker.shared.gate;
    let known = worker.snapshot().mesh.workload(from.ip()).is_some();
    let permit = gate.handshake(from.ip(), known)?;
    let note = |e: &Ended| gate.counts.handshakes.note(*e);
    permit.first_byte(&socket, limits::FIRST_BYTE_TIMEOUT).await.inspect_err(note)?;
    let done = permit.within(limits::HANDSHAKE_TIMEOUT, handshake(worker, socket, from)).await.inspect_err(note)?;
    let Some((stream, peer)) = done else { return Ok(None) };
    Ok(Some((stream, peer, gate.tunnel(permit, from.ip())?)))
}

async fn handshake(worker: &Worker, socket: TcpStream, from: SocketAddr) -> Option<(TlsStream, Identity)> {
    let mut secrets = worker.shared.secrets.clone();
    let Some(creds) = secrets.get(&worker.shared.identity, limits::HOLD_TIMEOUT).await else {
        worker.limited("no certificate", |left_out| {
            tracing::warn!(peer = %from, left_out, "tunnel refused: no certificate yet");
        });
        return None;
    };
    let failed = |e: &server::ServerError| {
        worker.limited("tunnel failed", |left_out| {
            tracing::info!(peer = %from, error = %e, left_out, "tunnel failed");
        });
    };
    server::handshake(socket, &creds).await.inspect_err(failed).ok()
}

/// Its caller has as many streams as it may.
fn refuse(worker: &Worker, connect: server::Connect) {
    worker.shared.gate.refused_streams.fetch_add(1, Relaxed);
    let (mut respond, mut response) = (connect.respond, Response::new(()));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    if respond.send_response(response, true).is_err() {
        respond.send_reset(h2::Reason::REFUSED_STREAM);
    }
}

fn serve(worker: &Rc<Worker>, job: Job) {
    let share = worker.callers.of(Source::address(job.from.ip(), true));
    let worker = worker.clone();
    let task = async move {
        let Job { connect, peer, from, in_use, running } = job;
        let mut forced = worker.drain.clone();
        let forced = pin!(forced.reached(drain::Phase::Forced));
        let mut forced = OnWake::new(forced);
        tokio::select! {
            biased;
            () = stream(worker.clone(), connect, peer, from, in_use) => {}
            () = &mut forced => {}
        }
        drop(running);
    };
    tokio::task::spawn_local(turns::of(Some(share), Box::pin(task)));
}
