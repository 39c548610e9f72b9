//! A worker at work: its commands, the listeners of its pods, and what serves a connection that they accept.

use crate::{
    client::Caller,
    conns::Conns,
    inbound,
    inpod::{AddError, Listeners, LocalPod},
    outbound,
    state::Snapshot,
    worker::{Command, Served, Shared, Taken, Way, Worker},
};
use karst_core::limits;
use karst_proxy::{dial::Dialer, unreachable::Unreachable, workers::ConnectionGuard};
use karst_rt::{accept::accept, drain};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

/// Listeners that a restarted agent has replaced are served this long, for what is left in their queues.
const OLD_LISTENERS: Duration = Duration::from_secs(5);
/// How often byte counts of open connections are added to the metrics.
const FLUSH: Duration = Duration::from_secs(2);

/// Runs a worker on the calling thread until the drain is over.
pub fn run(
    shared: Arc<Shared>,
    number: usize,
    mut commands: mpsc::Receiver<Command>,
    drain: drain::Watch,
) -> std::io::Result<()> {
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(61).build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&rt, async move {
        let (settings, keepalive) = (shared.config.hbone(), shared.config.keepalive_settings());
        let resolv_conf = shared.config.resolv_conf.clone();
        let w = Rc::new(Worker {
            conns: Conns::new(shared.metrics.clone(), shared.config.access_log),
            dialer: Dialer::new(shared.secrets.clone(), settings.clone(), keepalive, resolv_conf),
            unreachable: Unreachable::new(limits::AVOID),
            keepalive,
            settings,
            shared,
            number,
            drain: drain.clone(),
            seed: Cell::new(rand::random()),
            pods: RefCell::default(),
        });
        tokio::task::spawn_local(recheck(w.clone(), w.shared.state.clone()));
        let mut state = w.shared.state.clone();
        let mut flush = tokio::time::interval(FLUSH);
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut graceful, mut forced) = (drain.clone(), drain.clone());
        let (mut draining, mut changed) = (false, false);
        let mut done = tokio::time::interval(Duration::from_millis(20));
        loop {
            tokio::select! {
                o = commands.recv(), if !commands.is_closed() => match o {
                    Some(o) => w.clone().run_command(o),
                    None => break,
                },
                Ok(()) = state.changed() => changed = true,
                _ = flush.tick() => {
                    w.conns.flush();
                    if std::mem::take(&mut changed) {
                        // Their workloads are gone, and so will be their peers.
                        w.dialer.retire(&w.snapshot());
                    }
                }
                () = graceful.reached(drain::Phase::Graceful), if !draining => {
                    draining = true;
                    for p in w.pods.borrow().values() {
                        p.stop.start(drain::Phase::Graceful);
                    }
                }
                _ = done.tick(), if draining => if w.idle() {
                    // What another worker has handed over since is still served; what it would hand over now, it keeps.
                    commands.close();
                    while let Some(o) = commands.recv().await {
                        w.clone().run_command(o);
                    }
                    if w.idle() {
                        break;
                    }
                },
                () = forced.reached(drain::Phase::Forced) => break,
            }
        }
    });
    drop(local); // connections that are still open end here, and say so in the log
    Ok(())
}

/// Ends connections that are no longer allowed when policies change.
async fn recheck(w: Rc<Worker>, mut state: watch::Receiver<Arc<Snapshot>>) {
    while state.changed().await.is_ok() {
        let s = state.borrow_and_update().clone();
        w.conns.recheck(&s).await;
    }
}

impl Worker {
    fn run_command(self: Rc<Self>, o: Command) {
        match o {
            Command::Add { pod, listeners, done } => {
                let _ = done.send(self.add(pod, listeners));
            }
            Command::Del { uid } => {
                if let Some(p) = self.pods.borrow_mut().remove(&uid) {
                    p.stop.start(drain::Phase::Graceful);
                    self.dialer.retire_pod(&uid);
                }
            }
            Command::Take(t) => self.take(*t),
            Command::Dump(to) => {
                let _ = to.send(self.conns.dump());
            }
        }
    }

    fn add(self: Rc<Self>, pod: Arc<LocalPod>, l: Listeners) -> Result<(), AddError> {
        let listener = |socket: std::net::TcpListener| {
            TcpListener::from_std(socket).map_err(|error| AddError::Listener { pod: pod.key.clone(), error })
        };
        let (outbound, plaintext, hbone) = (listener(l.outbound)?, listener(l.plaintext)?, listener(l.hbone)?);
        let forward = l.forward.map(listener).transpose()?;
        let p = Served::new(pod.clone());
        let old = self.pods.borrow_mut().insert(pod.uid.clone(), p.clone());
        if let Some(old) = old {
            tokio::task::spawn_local(async move {
                tokio::time::sleep(OLD_LISTENERS).await;
                old.stop.start(drain::Phase::Graceful);
            });
        }
        self.clone().listen(outbound, p.clone(), Way::Outbound);
        self.clone().listen(plaintext, p.clone(), Way::Plaintext);
        if let Some(l) = forward {
            self.clone().listen(l, p.clone(), Way::Forwarded);
        }
        self.listen(hbone, p, Way::Tunnel);
        Ok(())
    }

    fn listen(self: Rc<Self>, l: TcpListener, p: Rc<Served>, way: Way) {
        tokio::task::spawn_local(async move {
            let mut stop = p.watch();
            tokio::select! {
                () = stop.reached(drain::Phase::Graceful) => return,
                () = self.shared.configured() => {}
            }
            loop {
                tokio::select! {
                    biased;
                    () = stop.reached(drain::Phase::Graceful) => return,
                    (s, from) = accept(&l) => {
                        let _ = s.set_nodelay(true);
                        self.clone().place(way, &p, s, from);
                    }
                }
            }
        });
    }

    /// Serves a connection that was just accepted, here or where there is less to do.
    fn place(self: Rc<Self>, way: Way, p: &Rc<Served>, s: TcpStream, from: std::net::SocketAddr) {
        let workers = &self.shared.workers;
        let here = match workers.pick_less_loaded(self.number) {
            None => s,
            Some(other) => {
                let Ok(stream) = s.into_std() else { return };
                let running = workers.start(other);
                let taken = Taken { pod: p.pod.clone(), way, stream, from, running };
                let Err(Command::Take(back)) = workers.dispatch(other, Command::Take(Box::new(taken))) else { return };
                let Ok(s) = TcpStream::from_std(back.stream) else { return };
                s
            }
        };
        let running = workers.start(self.number);
        self.serve(running, way, p.clone(), here, from);
    }

    fn take(self: Rc<Self>, t: Taken) {
        let Taken { pod, way, stream, from, running } = t;
        // Not ours (any more, or yet): then it is served like those that are open when a pod leaves.
        let p = self.pods.borrow().get(&pod.uid).cloned().unwrap_or_else(|| {
            let p = Served::new(pod);
            p.stop.start(drain::Phase::Graceful);
            p
        });
        match TcpStream::from_std(stream) {
            Ok(s) => self.serve(running, way, p, s, from),
            Err(e) => tracing::warn!(peer = %from, error = %e, "a connection cannot be served"),
        }
    }

    fn serve(self: Rc<Self>, r: ConnectionGuard, way: Way, p: Rc<Served>, s: TcpStream, from: std::net::SocketAddr) {
        match way {
            Way::Outbound => Self::run(r, outbound::serve(self, p, s, (from, Caller::Pod))),
            Way::Forwarded => Self::run(r, outbound::serve(self, p, s, (from, Caller::Inside))),
            Way::Plaintext => Self::run(r, inbound::plaintext(self, p, s, from)),
            Way::Tunnel => Self::run(r, inbound::tunnel(self, p, s, from)),
        }
    }
}
