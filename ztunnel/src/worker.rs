//! A data plane worker: one thread, one runtime, its own tunnels, buffers and registry of connections. A connection is
//! placed when it is accepted ([`karst_proxy::crew`]) and then stays with its worker.

use crate::{
    affinity::Affinity,
    client::Caller,
    config::Config,
    conns::Conns,
    gate::Gate,
    inbound,
    inpod::{Listeners, LocalPod, LocalPods},
    metrics::Metrics,
    outbound,
    plan::Balance,
    secrets::Secrets,
    state::{Snapshot, Workload},
};
use arc_swap::ArcSwap;
use karst_core::limits;
use karst_hbone::Settings;
use karst_proxy::{
    crew::{Crew, Running},
    dial::Dialer,
    nobody::Nobody,
    unreachable::Unreachable,
    untold::{Question, Told, Wait},
};
use karst_rt::{accept::accept, drain, socket::Keepalive};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

/// Listeners that a restarted agent has replaced are served this long, for what is left in their queues.
const OLD_LISTENERS: Duration = Duration::from_secs(5);
/// How often byte counts of open connections are added to the metrics.
const FLUSH: Duration = Duration::from_secs(2);

/// What all workers and the control thread share.
pub struct Shared {
    pub config: Config,
    /// Announces each new snapshot.
    pub state: watch::Receiver<Arc<Snapshot>>,
    /// Has the first configuration arrived? Until then nothing is accepted: what comes waits in the listeners' queues, or is
    /// served by the ztunnel that this one is to replace.
    pub configured: watch::Receiver<bool>,
    /// Is there a control plane that tells of changes? (A file that is followed counts as one.)
    pub stream: watch::Receiver<bool>,
    /// To the control plane: who is at an address?
    pub questions: mpsc::Sender<Question>,
    pub pods: ArcSwap<LocalPods>,
    /// How much of the process's descriptors connections may take.
    pub budget: Budget,
    pub secrets: Secrets,
    pub metrics: Arc<Metrics>,
    /// How many tunnels there may be to all pods together.
    pub gate: Gate,
    /// Which endpoints clients stay with.
    pub affinity: Affinity,
    pub crew: Crew<Order>,
}

impl Shared {
    /// Waits for the first configuration.
    pub async fn configured(&self) {
        if self.configured.clone().wait_for(|c| *c).await.is_err() {
            // The control thread has ended, and the process is about to.
            std::future::pending::<()>().await;
        }
    }
}

/// How many connections may be open, so that no pod uses up the descriptors of its neighbours, and accepting always goes on.
pub struct Budget {
    per_pod: usize,
    all: usize,
    open: AtomicUsize,
}

impl Budget {
    /// That of a process with so many descriptors.
    pub fn of(descriptors: u64) -> Self {
        let (per_pod, all) = (limits::connections_per_pod(descriptors), limits::connections(descriptors));
        Self { per_pod, all, open: AtomicUsize::new(0) }
    }
    /// A place for a connection of a pod, if there is one left: of its direction, of the pod, of all.
    pub fn place<'a>(&'a self, pod: &'a LocalPod, d: Direction) -> Option<Place<'a>> {
        let usage = &pod.usage;
        let direction = match d {
            Direction::Inbound => &usage.inbound,
            Direction::Outbound => &usage.outbound,
        };
        Some(Place {
            _direction: Place::take(direction, limits::connections_of_direction(self.per_pod))?,
            _own: Place::take(&usage.connections, self.per_pod)?,
            _all: Place::take(&self.open, self.all)?,
        })
    }
}

/// Who has opened a connection: somebody else, or the pod.
#[derive(Clone, Copy, Debug)]
pub enum Direction {
    /// To the pod.
    Inbound,
    /// From the pod.
    Outbound,
}

/// A connection's place in the budget, given back when dropped.
pub struct Place<'a> {
    _direction: Taking<'a>,
    _own: Taking<'a>,
    _all: Taking<'a>,
}

/// Counts down when dropped, over all workers.
struct Taking<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(n: &'a AtomicUsize, limit: usize) -> Option<Taking<'a>> {
        let before = n.fetch_add(1, Relaxed);
        let taken = Taking(n);
        (before < limit).then_some(taken)
    }
}
impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One of the four listeners of a pod.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// What the pod connects to.
    Outbound,
    /// What is inside the pod, a container or a virtual machine, connects to.
    Forwarded,
    /// Captured plaintext to the pod.
    Plaintext,
    /// Tunnels to the pod.
    Tunnel,
}

/// A connection that another worker has accepted.
pub struct Taken {
    pub pod: Arc<LocalPod>,
    pub way: Way,
    pub stream: std::net::TcpStream,
    pub from: std::net::SocketAddr,
    pub running: Running,
}

/// Orders for a worker.
pub enum Order {
    /// Serve a pod.
    Add { pod: Arc<LocalPod>, listeners: Listeners, done: oneshot::Sender<Result<(), String>> },
    /// Stop serving a pod; open connections go on.
    Del { uid: String },
    /// Serve a connection that another worker has accepted.
    Take(Box<Taken>),
    /// Describe the open connections.
    Dump(oneshot::Sender<Vec<serde_json::Value>>),
}

/// A worker's state.
pub struct Worker {
    pub shared: Arc<Shared>,
    /// Which of the crew it is.
    number: usize,
    pub conns: Rc<Conns>,
    pub dialer: Dialer,
    /// Endpoints that could not be reached a moment ago.
    pub unreachable: Unreachable,
    pub settings: Settings,
    pub keepalive: Option<Keepalive>,
    pub drain: drain::Watch,
    seed: Cell<u64>,
    pods: RefCell<HashMap<String, Rc<Served>>>,
}

/// A pod as this worker serves it.
pub struct Served {
    pub pod: Arc<LocalPod>,
    /// Addresses of nobody's that it has called.
    nobody: Rc<Nobody>,
    stop: drain::Drain,
}

impl Served {
    fn new(pod: Arc<LocalPod>) -> Rc<Self> {
        let (stop, _) = drain::new();
        Rc::new(Self { pod, nobody: Nobody::new(limits::MAX_NOBODY_OF_POD), stop })
    }

    /// Watches for the pod's own end of service.
    pub fn watch(&self) -> drain::Watch {
        self.stop.watch()
    }
}

/// Runs a worker on the calling thread until the drain is over.
pub fn run(
    shared: Arc<Shared>,
    number: usize,
    mut orders: mpsc::Receiver<Order>,
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
        let mut state = w.shared.state.clone();
        let mut flush = tokio::time::interval(FLUSH);
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut graceful, mut forced) = (drain.clone(), drain.clone());
        let (mut draining, mut changed) = (false, false);
        let mut done = tokio::time::interval(Duration::from_millis(20));
        loop {
            tokio::select! {
                o = orders.recv(), if !orders.is_closed() => match o {
                    Some(o) => w.clone().order(o),
                    None => break,
                },
                r = state.changed() => {
                    if r.is_ok() {
                        let s = state.borrow_and_update().clone();
                        w.conns.recheck(&s);
                        changed = true;
                    }
                }
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
                    orders.close();
                    while let Some(o) = orders.recv().await {
                        w.clone().order(o);
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

impl Worker {
    fn order(self: Rc<Self>, o: Order) {
        match o {
            Order::Add { pod, listeners, done } => {
                let _ = done.send(self.add(pod, listeners));
            }
            Order::Del { uid } => {
                if let Some(p) = self.pods.borrow_mut().remove(&uid) {
                    p.stop.start(drain::Phase::Graceful);
                    self.dialer.retire_pod(&uid);
                }
            }
            Order::Take(t) => self.take(*t),
            Order::Dump(to) => {
                let _ = to.send(self.conns.dump());
            }
        }
    }

    fn add(self: Rc<Self>, pod: Arc<LocalPod>, l: Listeners) -> Result<(), String> {
        let listener =
            |s: std::net::TcpListener| TcpListener::from_std(s).map_err(|e| format!("listener of {}: {e}", pod.key));
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
        let crew = &self.shared.crew;
        let here = match crew.other(self.number) {
            None => s,
            Some(other) => {
                let Ok(stream) = s.into_std() else { return };
                let running = crew.start(other);
                let taken = Taken { pod: p.pod.clone(), way, stream, from, running };
                let Err(Order::Take(back)) = crew.hand(other, Order::Take(Box::new(taken))) else { return };
                let Ok(s) = TcpStream::from_std(back.stream) else { return };
                s
            }
        };
        let running = crew.start(self.number);
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

    fn serve(self: Rc<Self>, r: Running, way: Way, p: Rc<Served>, s: TcpStream, from: std::net::SocketAddr) {
        match way {
            Way::Outbound => Self::run(r, outbound::serve(self, p, s, (from, Caller::Pod))),
            Way::Forwarded => Self::run(r, outbound::serve(self, p, s, (from, Caller::Inside))),
            Way::Plaintext => Self::run(r, inbound::plaintext(self, p, s, from)),
            Way::Tunnel => Self::run(r, inbound::tunnel(self, p, s, from)),
        }
    }

    /// Runs a connection's task; counted from now on, not from when it is first polled.
    pub fn task(&self, f: impl Future<Output = ()> + 'static) {
        Self::run(self.shared.crew.start(self.number), f);
    }

    fn run(running: Running, f: impl Future<Output = ()> + 'static) {
        // Boxed, or the block would hold it twice: captured, and where it is awaited.
        let f = Box::pin(f);
        tokio::task::spawn_local(async move {
            f.await;
            drop(running);
        });
    }

    fn idle(&self) -> bool {
        self.shared.crew.running(self.number) == 0
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.state.borrow().clone()
    }

    /// What is known of a pod of ours; waits for it for a bounded time. While there is no control plane that could tell of
    /// it, what the agent says must do: the pod may have been started since, also under the name of another.
    pub async fn workload(&self, pod: &LocalPod) -> Option<(Arc<Snapshot>, Arc<Workload>)> {
        let s = self.snapshot();
        if let Some(w) = s.own_pod(&pod.own()) {
            let w = w.clone();
            return Some((s, w));
        }
        let (mut state, mut stream) = (self.shared.state.clone(), self.shared.stream.clone());
        let wait = async {
            loop {
                let s = state.borrow_and_update().clone();
                if let Some(w) = s.own_pod(&pod.own()) {
                    let w = w.clone();
                    return Some((s, w));
                }
                if !*stream.borrow_and_update() {
                    return Some((s, Arc::new(self.unannounced(pod)?)));
                }
                tokio::select! {
                    r = state.changed() => r.ok()?,
                    r = stream.changed() => r.ok()?,
                }
            }
        };
        tokio::time::timeout(limits::HOLD_TIMEOUT, wait).await.ok().flatten()
    }

    /// Waits until it is known who is at an address of a pod range that a pod calls, or that nobody is.
    pub async fn told(&self, p: &Served, ip: std::net::IpAddr, until: Instant) -> Told {
        let (state, stream) = (self.shared.state.clone(), self.shared.stream.clone());
        let questions = self.shared.questions.clone();
        p.nobody.told(ip, Wait { state, stream, questions, again: limits::ASK_AGAIN, until }).await
    }

    fn unannounced(&self, pod: &LocalPod) -> Option<Workload> {
        let c = &self.shared.config;
        let identity = karst_core::Identity::new(&c.trust_domain, &pod.namespace, &pod.account).ok()?;
        Some(Workload::unannounced(crate::state::Announced {
            namespace: &pod.namespace,
            name: &pod.name,
            identity,
            node: &c.node,
            cluster: &c.cluster_id,
            network: &c.network,
        }))
    }

    /// The start of every captured connection: where it goes, and its place among the pod's, if there is one left.
    pub fn admit<'a>(
        &'a self,
        p: &'a Served,
        tcp: &TcpStream,
        d: Direction,
    ) -> Option<(std::net::SocketAddr, Place<'a>)> {
        let to = tcp.local_addr().map(karst_core::canonical).ok()?;
        let Some(place) = self.shared.budget.place(&p.pod, d) else {
            self.refused();
            karst_rt::socket::reset_on_close(tcp);
            return None;
        };
        if let Some(k) = &self.keepalive {
            karst_rt::socket::keepalive(tcp, k);
        }
        Some((to, place))
    }

    /// A tunnel was refused at accept.
    pub fn refused(&self) {
        self.shared.metrics.tunnels_refused.fetch_add(1, Relaxed);
    }
}

/// Balancing by this worker's open connections.
pub struct ByLoad<'a>(pub &'a Worker);

impl Balance for ByLoad<'_> {
    fn random(&mut self, n: u64) -> u64 {
        // splitmix64: even enough for balancing, and without a lock.
        let s = self.0.seed.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.seed.set(s);
        let mut z = s;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }
    fn load(&self, uid: &str) -> u64 {
        self.0.conns.load(uid)
    }
    fn bound(&self, client: &str, service: &Arc<str>, port: u16, timeout: Duration) -> Option<Arc<str>> {
        self.0.shared.affinity.get(client, &(service.clone(), port), timeout, Instant::now())
    }
}
