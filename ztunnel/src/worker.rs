//! A data plane worker: one thread, one runtime, its own tunnels, buffers and registry of connections. A connection is
//! placed when it is accepted ([`karst_proxy::workers`]) and then stays with its worker.

use crate::{
    affinity::Affinity,
    config::Config,
    conns::Conns,
    gate::Gate,
    handover::{desk::Desk, incoming::Incoming},
    inpod::{AddError, LocalPod, LocalPods},
    listeners::Listeners,
    mesh_config::Outbound,
    metrics::{Metrics, Reporter},
    needs,
    outcome::Outcome,
    parking::Parking,
    plan::Balance,
    secrets::Secrets,
    state::{Name, Snapshot, Workload},
};
use arc_swap::ArcSwap;
use karst_core::limits;
use karst_hbone::Settings;
use karst_proxy::{
    dial::Dialer,
    flows::{Books, Recorder},
    nobody::Nobody,
    requests::Table,
    tap::Taps,
    unreachable::Unreachable,
    untold::{self, Question, Told, Wait},
    workers::{ConnectionGuard, WorkerPool},
};
use karst_rt::{
    drain,
    socket::Keepalive,
    survive::{
        ahead,
        table::{self, Region},
    },
    turns::{self, Share},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

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
    /// May pods of the mesh call what it does not know?
    pub outbound: Outbound,
    pub workers: WorkerPool<Command>,
    /// Where open connections go when this process leaves.
    pub desk: Desk,
    /// Open connections that wait for their next stream.
    pub parking: Parking,
    /// Open connections that outlive this process, should it be killed.
    pub table: Option<Arc<table::Table>>,
    /// What was seen lately.
    pub flows: Books,
    /// Who looks on.
    pub taps: Arc<Taps>,
}

impl Shared {
    /// Where requests are counted that are seen in passing, if they are.
    pub fn requests(&self) -> Option<&Arc<Table>> {
        self.config.http_signals.then_some(&self.metrics.requests)
    }
    /// Asks the control plane, which tells only what is asked for, for what a pod's connection or query depends on. False: there is
    /// no answer in time. A pod's own wait for each other if they ask for much, and for nobody else's.
    pub async fn ask(&self, pod: &LocalPod, names: Vec<Name>, until: Instant) -> bool {
        let places = u32::try_from(names.len().min(limits::MAX_ASKING_OF_POD)).unwrap_or(1);
        let answered = async {
            let Ok(_places) = pod.usage.asking.acquire_many(places).await else {
                return std::future::pending().await;
            };
            untold::ask(names, &mut self.stream.clone(), &self.questions).await;
        };
        tokio::time::timeout_at(until, answered).await.is_ok()
    }

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
    /// How many the process may have.
    pub descriptors: u64,
    per_pod: usize,
    per_direction: usize,
    all: usize,
    open: AtomicUsize,
}

impl Budget {
    /// That of a process with so many descriptors.
    pub fn of(descriptors: u64) -> Self {
        Self {
            descriptors,
            per_pod: limits::connections_per_pod(descriptors),
            per_direction: limits::connections_of_direction(descriptors),
            all: limits::connections(descriptors),
            open: AtomicUsize::new(0),
        }
    }
    /// A place for a connection of a pod, if there is one left: of its direction, of the pod, of all.
    pub fn place<'a>(&'a self, pod: &'a LocalPod, direction: Direction) -> Option<Place<'a>> {
        let usage = &pod.usage;
        let own = match direction {
            Direction::Inbound => &usage.inbound,
            Direction::Outbound => &usage.outbound,
        };
        Some(Place {
            _direction: Place::take(own, self.per_direction)?,
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
    fn take(count: &'a AtomicUsize, limit: usize) -> Option<Taking<'a>> {
        let before = count.fetch_add(1, Relaxed);
        let taken = Taking(count);
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
    pub running: ConnectionGuard,
}

/// Commands for a worker.
pub enum Command {
    /// Serve a pod.
    Add { pod: Arc<LocalPod>, listeners: Listeners, done: oneshot::Sender<Result<(), AddError>> },
    /// Stop serving a pod; open connections go on.
    Del { uid: String },
    /// Serve a connection that another worker has accepted.
    Take(Box<Taken>),
    /// Serve a connection that the process before would pass on.
    Resume(Box<Incoming>),
    /// Describe the open connections.
    Dump(oneshot::Sender<Vec<serde_json::Value>>),
}

/// A worker's state.
pub struct Worker {
    pub shared: Arc<Shared>,
    /// Its number in the pool.
    pub number: usize,
    pub conns: Rc<Conns>,
    pub dialer: Dialer,
    /// Endpoints that could not be reached a moment ago.
    pub unreachable: Unreachable,
    pub settings: Settings,
    pub keepalive: Option<Keepalive>,
    pub drain: drain::Watch,
    pub seed: Cell<u64>,
    pub pods: RefCell<HashMap<String, Rc<Served>>>,
    pub flows: Recorder,
    /// Its part of the table of connections that outlive this process.
    pub region: Option<Rc<Region>>,
}

/// A pod as this worker serves it.
pub struct Served {
    pub pod: Arc<LocalPod>,
    /// Addresses of nobody's that it has called.
    nobody: Rc<Nobody>,
    pub stop: drain::Drain,
    /// Its share of the worker.
    pub share: Rc<Share>,
    /// The share of those who knock: they have not shown who they are, and do not use up the pod's turn.
    pub knocking: Rc<Share>,
}

impl Served {
    /// With nothing open yet.
    pub fn new(pod: Arc<LocalPod>) -> Rc<Self> {
        let (stop, _) = drain::new();
        let [share, knocking] = [(); 2].map(|()| Share::new(pod.usage.turns.clone()));
        Rc::new(Self { pod, nobody: Nobody::new(limits::MAX_NOBODY_OF_POD), stop, share, knocking })
    }

    /// In whose turn connections of one of the listeners begin.
    pub fn share_of(&self, way: Way) -> &Rc<Share> {
        match way {
            Way::Outbound | Way::Forwarded | Way::Plaintext => &self.share,
            Way::Tunnel => &self.knocking,
        }
    }

    /// Watches for the pod's own end of service.
    pub fn watch(&self) -> drain::Watch {
        self.stop.watch()
    }
}

impl Worker {
    /// Do connections whose tunnel breaks go on, where the other side does the same? If this process is killed, its spare goes on with
    /// them.
    pub fn outlives_tunnels(&self) -> bool {
        self.region.is_some() && ahead::is_supported()
    }

    /// Runs the task of a connection that this peer has begun, in turn with those of other shares; counted from now on, not from when it
    /// is first polled.
    pub fn task(&self, share: &Rc<Share>, peer: IpAddr, connection: impl Future<Output = ()> + 'static) {
        Self::run((share, peer), self.shared.workers.start(self.number), connection);
    }

    /// Runs a task that is counted already.
    pub fn run(
        (share, peer): (&Rc<Share>, IpAddr),
        running: ConnectionGuard,
        connection: impl Future<Output = ()> + 'static,
    ) {
        // Boxed, or the block would hold it twice: captured, and where it is awaited.
        let connection = turns::of_peer(share.clone(), peer, Box::pin(connection));
        tokio::task::spawn_local(async move {
            connection.await;
            drop(running);
        });
    }

    /// Has it no connection left?
    pub fn idle(&self) -> bool {
        self.shared.workers.running(self.number) == 0
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.state.borrow().clone()
    }

    /// What is known of a pod of ours; waits for it for a bounded time. While there is no control plane that could tell of
    /// it, what the agent says must do: the pod may have been started since, also under the name of another.
    pub async fn workload(&self, pod: &LocalPod) -> Option<(Arc<Snapshot>, Arc<Workload>)> {
        let snapshot = self.snapshot();
        if let Some(workload) = snapshot.own_pod(&pod.own()) {
            let workload = workload.clone();
            return Some((snapshot, workload));
        }
        let (mut state, mut stream) = (self.shared.state.clone(), self.shared.stream.clone());
        let wait = async {
            loop {
                let snapshot = state.borrow_and_update().clone();
                if let Some(workload) = snapshot.own_pod(&pod.own()) {
                    let workload = workload.clone();
                    return Some((snapshot, workload));
                }
                if !*stream.borrow_and_update() {
                    return Some((snapshot, Arc::new(self.unannounced(pod)?)));
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
    pub async fn told(&self, served: &Served, ip: IpAddr, until: Instant) -> Told {
        let (state, stream) = (self.shared.state.clone(), self.shared.stream.clone());
        let questions = self.shared.questions.clone();
        served.nobody.told(ip, Wait { state, stream, questions, again: limits::ASK_AGAIN, until }).await
    }

    /// Where only what is asked for is told: asks what the log and the metrics of a connection to a pod of ours say, and waits a moment
    /// for it. Nothing is decided by that.
    pub async fn introduce(&self, pod: &LocalPod, client: IpAddr) {
        let names = needs::labels(&self.snapshot(), &pod.own(), client);
        if !names.is_empty() && *self.shared.stream.borrow() {
            self.shared.ask(pod, names, Instant::now() + limits::DEMAND_LABELS).await;
        }
    }

    /// Is an address one of the mesh's, as far as is known? For shares only.
    pub fn knows(&self, ip: IpAddr) -> bool {
        let snapshot = self.shared.state.borrow();
        snapshot.workload(ip).is_some() || (snapshot.asked().is_some() && snapshot.pod_ranges.contains(ip))
    }

    fn unannounced(&self, pod: &LocalPod) -> Option<Workload> {
        let config = &self.shared.config;
        let identity =
            karst_core::Identity::new(&config.certificates.trust_domain, &pod.namespace, &pod.account).ok()?;
        Some(Workload::unannounced(crate::state::Announced {
            namespace: &pod.namespace,
            name: &pod.name,
            identity,
            node: &config.place.node,
            cluster: &config.place.cluster_id,
            network: &config.place.network,
        }))
    }

    /// The start of every captured connection: where it goes, and its place among the pod's, if there is one left.
    pub fn admit<'a>(
        &'a self,
        served: &'a Served,
        tcp: &TcpStream,
        direction: Direction,
    ) -> Option<(std::net::SocketAddr, Place<'a>)> {
        let to = served.pod.redirection.destination(tcp).ok()?;
        let Some(place) = self.shared.budget.place(&served.pod, direction) else {
            self.refused(direction);
            karst_rt::socket::reset_on_close(tcp);
            return None;
        };
        Some((to, place))
    }

    /// A connection was refused because there are too many.
    pub fn refused(&self, direction: Direction) {
        let reporter = match direction {
            Direction::Inbound => Reporter::Destination,
            Direction::Outbound => Reporter::Source,
        };
        self.shared.metrics.tunnels_refused.fetch_add(1, Relaxed);
        self.shared.metrics.ends.note(reporter, Outcome::Limit.reason());
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
