//! A worker at work: its commands, the listeners of its pods, and what serves a connection that they accept.

use crate::{
    client::Caller,
    conns::Conns,
    handover::resume,
    inbound,
    inpod::{AddError, LocalPod},
    listeners::{Listeners, Redirection, started},
    outbound,
    state::Snapshot,
    worker::{Command, Served, Shared, Taken, Way, Worker},
};
use karst_core::limits;
use karst_proxy::{dial::Dialer, unreachable::Unreachable, workers::ConnectionGuard};
use karst_rt::{accept::accept, drain, nat, socket, turns};
use std::{
    cell::{Cell, RefCell},
    os::fd::{AsFd, BorrowedFd},
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
    // Connections that are still open at its end say so in the log.
    karst_rt::local::run(async move {
        let (settings, keepalive) = (shared.config.hbone(), shared.config.keepalive_settings());
        let resolv_conf = shared.config.resolv_conf.clone();
        let worker = Rc::new(Worker {
            conns: Conns::new(shared.metrics.clone(), shared.taps.clone(), shared.config.access_log),
            dialer: Dialer::new(shared.secrets.clone(), settings.clone(), keepalive, resolv_conf),
            unreachable: Unreachable::new(limits::AVOID),
            keepalive,
            settings,
            flows: shared.flows.recorder(),
            region: shared.table.as_ref().and_then(|table| table.region(number)),
            shared,
            number,
            drain: drain.clone(),
            seed: Cell::new(rand::random()),
            pods: RefCell::default(),
        });
        tokio::task::spawn_local(recheck(worker.clone(), worker.shared.state.clone()));
        let mut state = worker.shared.state.clone();
        let mut flush = tokio::time::interval(FLUSH);
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut graceful, mut forced) = (drain.clone(), drain.clone());
        let (mut draining, mut changed) = (false, false);
        let mut done = tokio::time::interval(Duration::from_millis(20));
        loop {
            tokio::select! {
                o = commands.recv(), if !commands.is_closed() => match o {
                    Some(o) => worker.clone().run_command(o),
                    None => break,
                },
                Ok(()) = state.changed() => changed = true,
                _ = flush.tick() => {
                    worker.conns.flush();
                    karst_hbone::release_unneeded();
                    if let Some(region) = &worker.region {
                        region.release_unneeded();
                    }
                    if std::mem::take(&mut changed) {
                        // Their workloads are gone, and so will be their peers.
                        worker.dialer.retire(&worker.snapshot());
                    }
                }
                () = graceful.reached(drain::Phase::Graceful), if !draining => {
                    draining = true;
                    for served in worker.pods.borrow().values() {
                        served.stop.start(drain::Phase::Graceful);
                    }
                }
                _ = done.tick(), if draining => if worker.idle() {
                    // What another worker has handed over since is still served; what it would hand over now, it keeps.
                    commands.close();
                    while let Some(command) = commands.recv().await {
                        worker.clone().run_command(command);
                    }
                    if worker.idle() {
                        break;
                    }
                },
                () = forced.reached(drain::Phase::Forced) => break,
            }
        }
    })
}

/// Ends connections that are no longer allowed when policies change.
async fn recheck(worker: Rc<Worker>, mut state: watch::Receiver<Arc<Snapshot>>) {
    while state.changed().await.is_ok() {
        // What comes from here on means another pass.
        state.mark_unchanged();
        worker.conns.recheck(|| state.borrow().clone()).await;
    }
}

/// A listener of a pod's, before anything is accepted.
enum Queue {
    /// The agent's: it listens.
    Agents(TcpListener),
    /// Our own, which may have to wait until it listens. Not to be registered before: the runtime would take it for closed.
    Ours(std::net::TcpListener),
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Agents(listener) => listener.as_fd(),
            Self::Ours(socket) => socket.as_fd(),
        }
    }
}

impl Queue {
    /// Waits until it listens.
    async fn start(self, pod: &str) -> std::io::Result<TcpListener> {
        match self {
            Self::Agents(listener) => Ok(listener),
            Self::Ours(socket) => {
                let what = socket.local_addr().map_or("a listener".into(), |at| format!("port {}", at.port()));
                started(pod, &what, || nat::start(&socket)).await;
                TcpListener::from_std(socket)
            }
        }
    }
}

impl Worker {
    fn run_command(self: Rc<Self>, command: Command) {
        match command {
            Command::Add { pod, listeners, done } => {
                let _ = done.send(self.add(pod, listeners));
            }
            Command::Del { uid } => {
                if let Some(served) = self.pods.borrow_mut().remove(&uid) {
                    served.stop.start(drain::Phase::Graceful);
                    self.conns.leave(&served.pod);
                    self.dialer.retire_pod(&uid);
                }
            }
            Command::Take(t) => self.take(*t),
            Command::Resume(incoming) => resume::begin(self, *incoming),
            Command::Dump(to) => {
                let _ = to.send(self.conns.dump());
            }
        }
    }

    fn add(self: Rc<Self>, pod: Arc<LocalPod>, listeners: Listeners) -> Result<(), AddError> {
        let queue = |socket: std::net::TcpListener| match pod.redirection {
            Redirection::Nat => Ok(Queue::Ours(socket)),
            Redirection::Lookup => TcpListener::from_std(socket)
                .map(Queue::Agents)
                .map_err(|error| AddError::Listener { pod: pod.key.clone(), error }),
        };
        let (outbound, plaintext, hbone) =
            (queue(listeners.outbound)?, queue(listeners.plaintext)?, queue(listeners.hbone)?);
        let forward = listeners.forward.map(queue).transpose()?;
        let dns = listeners.dns_tcp.into_iter().map(queue).collect::<Result<Vec<_>, _>>()?;
        let served = Served::new(pod.clone());
        self.conns.serve(&pod);
        let old = self.pods.borrow_mut().insert(pod.uid.clone(), served.clone());
        if let Some(old) = old {
            tokio::task::spawn_local(async move {
                tokio::time::sleep(OLD_LISTENERS).await;
                old.stop.start(drain::Phase::Graceful);
            });
        }
        self.clone().listen(outbound, served.clone(), Way::Outbound);
        self.clone().listen(plaintext, served.clone(), Way::Plaintext);
        for queries in dns {
            self.clone().listen(queries, served.clone(), Way::Outbound);
        }
        if let Some(forwarded) = forward {
            self.clone().listen(forwarded, served.clone(), Way::Forwarded);
        }
        self.listen(hbone, served, Way::Tunnel);
        Ok(())
    }

    fn listen(self: Rc<Self>, queue: Queue, served: Rc<Served>, way: Way) {
        // Inherited by what it accepts: five calls less for each connection.
        socket::without_delay(&queue);
        if let Some(keepalive) = &self.keepalive {
            socket::keepalive(&queue, keepalive);
        }
        let share = served.share_of(way).clone();
        let accepting = async move {
            let mut stop = served.watch();
            tokio::select! {
                () = stop.reached(drain::Phase::Graceful) => return,
                () = self.shared.configured() => {}
            }
            let listener = tokio::select! {
                () = stop.reached(drain::Phase::Graceful) => return,
                started = queue.start(&served.pod.key) => match started {
                    Ok(listener) => listener,
                    Err(e) => {
                        return tracing::error!(pod = served.pod.key, error = %e, "a listener of the pod's is not served");
                    }
                },
            };
            let mut accepted = 0;
            loop {
                tokio::select! {
                    biased;
                    () = stop.reached(drain::Phase::Graceful) => return,
                    (s, from) = accept(&listener) => {
                        turns::spend(limits::TURN_ACCEPT);
                        self.clone().place(way, &served, s, from);
                    }
                }
                accepted += 1;
                if accepted % limits::ACCEPTS == 0 {
                    // However long the queue is, other listeners are asked, too.
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::task::spawn_local(turns::of(Some(share), Box::pin(accepting)));
    }

    /// Serves a connection that was just accepted, here or where there is less to do.
    fn place(self: Rc<Self>, way: Way, served: &Rc<Served>, tcp: TcpStream, from: std::net::SocketAddr) {
        let workers = &self.shared.workers;
        let here = match workers.pick_less_loaded(self.number) {
            None => tcp,
            Some(other) => {
                let Ok(stream) = tcp.into_std() else { return };
                let running = workers.start(other);
                let taken = Taken { pod: served.pod.clone(), way, stream, from, running };
                let Err(Command::Take(back)) = workers.dispatch(other, Command::Take(Box::new(taken))) else { return };
                let Ok(tcp) = TcpStream::from_std(back.stream) else { return };
                tcp
            }
        };
        let running = workers.start(self.number);
        self.serve(running, way, served.clone(), here, from);
    }

    fn take(self: Rc<Self>, taken: Taken) {
        let Taken { pod, way, stream, from, running } = taken;
        // Not ours (any more, or yet): then it is served like those that are open when a pod leaves.
        let served = self.pods.borrow().get(&pod.uid).cloned().unwrap_or_else(|| {
            let served = Served::new(pod);
            served.stop.start(drain::Phase::Graceful);
            served
        });
        match TcpStream::from_std(stream) {
            Ok(s) => self.serve(running, way, served, s, from),
            Err(e) => tracing::warn!(peer = %from, error = %e, "a connection cannot be served"),
        }
    }

    fn serve(
        self: Rc<Self>,
        running: ConnectionGuard,
        way: Way,
        served: Rc<Served>,
        tcp: TcpStream,
        from: std::net::SocketAddr,
    ) {
        let share = served.share_of(way).clone();
        let whose = (&share, from.ip());
        match way {
            Way::Outbound => {
                let inside = served.pod.redirection.is_from_inside(&tcp);
                let caller = if inside { Caller::Inside } else { Caller::Pod };
                Self::run(whose, running, outbound::serve(self, served, tcp, (from, caller)))
            }
            Way::Forwarded => Self::run(whose, running, outbound::serve(self, served, tcp, (from, Caller::Inside))),
            Way::Plaintext => Self::run(whose, running, inbound::plaintext(self, served, tcp, from)),
            Way::Tunnel => Self::run(whose, running, inbound::tunnel(self, served, tcp, from)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_proxy::testing::snapshot;

    /// Others have their turn in between, however long the queue of a listener is.
    #[tokio::test]
    async fn a_long_queue_is_taken_a_few_at_a_time() {
        const MANY: usize = 5 * limits::ACCEPTS;
        let run = async {
            // Nothing is known of the pod: what is accepted ends.
            let (worker, _open) = outbound::tests::worker(snapshot(vec![], vec![]));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let to = listener.local_addr().unwrap();
            let clients: Vec<_> = (0..MANY).map(|_| std::net::TcpStream::connect(to).unwrap()).collect();
            let served = Served::new(LocalPod::test("client", "client", "uid"));
            worker.clone().listen(Queue::Agents(listener), served, Way::Outbound);
            let accepted = || {
                let page = karst_rt::exposition::page(|page| worker.shared.metrics.render(page));
                let ends = page.lines().filter(|line| line.starts_with("karst_connections_ended_total{"));
                let ended = ends.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum::<usize>();
                ended + worker.shared.workers.running(0)
            };
            let (mut before, mut turns) = (0_usize, 0);
            while before < clients.len() {
                tokio::task::yield_now().await;
                let now = accepted();
                assert!(now <= before + limits::ACCEPTS, "{before} {now}");
                (before, turns) = (now, turns + 1);
                assert!(turns < 10_000, "{before}");
            }
        };
        tokio::task::LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn what_a_pods_listeners_accept_is_kept_alive() {
        let run = async {
            let (worker, _open) = outbound::tests::worker(snapshot(vec![], vec![]));
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let same = listener.try_clone().unwrap();
            let served = Served::new(LocalPod::test("client", "client", "uid"));
            worker.listen(Queue::Ours(listener), served, Way::Outbound);
            let _client = std::net::TcpStream::connect(same.local_addr().unwrap()).unwrap();
            let (accepted, _) = same.accept().unwrap();
            let accepted = socket2::SockRef::from(&accepted);
            assert!(accepted.keepalive().unwrap() && accepted.tcp_nodelay().unwrap());
        };
        tokio::task::LocalSet::new().run_until(run).await;
    }
}
