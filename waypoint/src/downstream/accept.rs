//! Tunnels of the mesh: a worker's loop that takes them, and serves their streams or gives them to a worker that has less to do.

use crate::{
    downstream::{edge, tunnel::stream},
    snapshot::Snapshot,
    worker::{Job, Shared, Worker},
};
use karst_core::{Identity, canonical, limits};
use karst_hbone::{server, stream::TlsStream};
use karst_rt::{
    admission::{Ended, Permit},
    drain,
};
use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};
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
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(61).build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&rt, async move {
        let listener = TcpListener::from_std(listener)?;
        let w = Worker::new(shared, number, drain.clone());
        tokio::task::spawn_local(edge::accept(w.clone(), w.shared.ports.clone()));
        tokio::task::spawn_local(recheck(w.clone(), w.shared.state.clone()));
        let (mut graceful, mut forced) = (drain.clone(), drain);
        let mut done = tokio::time::interval(Duration::from_millis(20));
        let mut retire = tokio::time::interval(RETIRE);
        retire.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut state = w.shared.state.clone();
        let mut changed = false;
        let mut draining = false;
        let mut configured = w.shared.configured.clone();
        let mut open = false;
        loop {
            tokio::select! {
                j = jobs.recv() => match j {
                    Some(j) => serve(&w, j),
                    None => break,
                },
                _ = retire.tick() => if std::mem::take(&mut changed) {
                    w.dialer.retire(&w.snapshot().mesh);
                },
                r = configured.wait_for(|c| *c), if !open => open = r.is_ok(),
                Ok(()) = state.changed() => changed = true,
                (s, from) = karst_rt::accept::accept(&listener), if open && !draining => accept(&w, s, from),
                () = graceful.reached(drain::Phase::Graceful), if !draining => draining = true,
                _ = done.tick(), if draining => if w.is_idle() {
                    break;
                },
                () = forced.reached(drain::Phase::Forced) => break,
            }
        }
        Ok::<_, std::io::Error>(())
    })?;
    drop(local);
    Ok(())
}

/// Ends streams that are no longer allowed when policies change.
async fn recheck(w: Rc<Worker>, mut state: watch::Receiver<Arc<Snapshot>>) {
    while state.changed().await.is_ok() {
        let s = state.borrow_and_update().clone();
        w.conns.recheck(&s, &w.shared.metrics.closed_by_policy).await;
    }
}

fn accept(w: &Rc<Worker>, s: TcpStream, from: SocketAddr) {
    let (open, w) = (w.connection(), w.clone());
    tokio::task::spawn_local(async move {
        tunnel(&w, s, canonical(from)).await;
        drop(open);
    });
}

async fn tunnel(w: &Rc<Worker>, s: TcpStream, from: SocketAddr) {
    let _ = s.set_nodelay(true);
    // Boxed, and gone when the tunnel is there.
    let (stream, peer, permit) = match Box::pin(admitted(w, s, from)).await {
        Ok(Some(x)) => x,
        Ok(None) => return,
        Err(e) => return tracing::debug!(peer = %from, error = %e, "tunnel refused"),
    };
    let workers = &w.shared.workers;
    let on_stream = |connect| {
        let to = workers.pick_less_loaded(w.number).unwrap_or(w.number);
        let job = Job { connect, peer: peer.clone(), from, in_use: permit.in_use(), running: workers.start(to) };
        if to == w.number {
            return serve(w, job);
        }
        if let Err(mut back) = workers.dispatch(to, job) {
            back.running = workers.start(w.number);
            serve(w, back);
        }
    };
    let served = server::serve_until(stream, &w.settings, w.drain.clone(), permit.evicted(), on_stream).await;
    if let Err(e) = served {
        if matches!(e, server::ServerError::Evicted) {
            w.shared.gate.counts.tunnels.note(Ended::Evicted);
        }
        tracing::debug!(peer = %peer, error = %e, "tunnel ended");
    }
}

/// A tunnel's start: until its peer has shown who it is, it has one of the places for those who have not.
async fn admitted(
    w: &Worker,
    s: TcpStream,
    from: SocketAddr,
) -> Result<Option<(TlsStream, Identity, Rc<Permit>)>, Ended> {
    let gate = &w.shared.gate;
    let known = w.snapshot().mesh.workload(from.ip()).is_some();
    let permit = gate.handshake(from.ip(), known)?;
    let note = |e: &Ended| gate.counts.handshakes.note(*e);
    permit.first_byte(&s, limits::FIRST_BYTE_TIMEOUT).await.inspect_err(note)?;
    let done = permit.within(limits::HANDSHAKE_TIMEOUT, handshake(w, s, from)).await.inspect_err(note)?;
    let Some((stream, peer)) = done else { return Ok(None) };
    Ok(Some((stream, peer, gate.tunnel(permit, from.ip())?)))
}

async fn handshake(w: &Worker, s: TcpStream, from: SocketAddr) -> Option<(TlsStream, Identity)> {
    let mut secrets = w.shared.secrets.clone();
    let Some(creds) = secrets.get(&w.shared.identity, limits::HOLD_TIMEOUT).await else {
        tracing::warn!(peer = %from, "tunnel refused: we have no certificate yet");
        return None;
    };
    let failed = |e: &server::ServerError| tracing::info!(peer = %from, error = %e, "tunnel failed");
    server::handshake(s, &creds).await.inspect_err(failed).ok()
}

fn serve(w: &Rc<Worker>, j: Job) {
    let w = w.clone();
    tokio::task::spawn_local(async move {
        let Job { connect, peer, from, in_use, running } = j;
        let mut forced = w.drain.clone();
        tokio::select! {
            () = stream(w.clone(), connect, peer, from) => {}
            () = forced.reached(drain::Phase::Forced) => {}
        }
        drop((in_use, running));
    });
}
