//! A thread with its tunnels, its streams and its connections to endpoints. A stream is served where there is least to do,
//! whichever worker its tunnel hangs on: one busy client does not use up one core.

use crate::{
    cluster::{
        balance,
        endpoint_set::{ClusterKey, Clusters, DynamicEndpoint, EndpointSet},
    },
    config::Config,
    downstream::{
        conns::{self, Conns},
        edge,
        gate::Gate,
        serve::{self, Downstream},
        stream,
    },
    snapshot::Snapshot,
    telemetry::metrics::{self, Metrics, Series},
    upstream::send,
};
use h2::server::SendResponse;
use karst_core::{Identity, authority::Authority, canonical, limits};
use karst_hbone::{
    Settings,
    server::{self, Connect},
    stream::TlsStream,
};
use karst_proxy::{
    dial::Dialer,
    nobody::Nobody,
    secrets::Secrets,
    state::Workload,
    untold::{Question, Told, Wait},
    workers::{ConnectionGuard, WorkerPool},
};
use karst_rt::{
    admission::{Ended, InUse, Permit},
    drain,
    socket::{Keepalive, NetnsConnector},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::Instant,
};

/// How often tunnels are looked through for those whose workloads have gone.
const RETIRE: Duration = Duration::from_secs(2);

/// What all workers and the control thread share.
pub struct Shared {
    pub config: Config,
    pub identity: Identity,
    pub state: watch::Receiver<Arc<Snapshot>>,
    /// Has everything arrived once? Before, nothing is accepted: what comes waits in the listener's queue.
    pub configured: watch::Receiver<bool>,
    /// Is there a control plane that tells of changes?
    pub stream: watch::Receiver<bool>,
    /// To the control plane: who is at an address?
    pub questions: mpsc::Sender<Question>,
    pub secrets: Secrets,
    pub metrics: Metrics,
    pub clusters: Clusters,
    /// How many connections there may be.
    pub gate: Gate,
    pub workers: WorkerPool<Job>,
    /// The ports of a gateway.
    pub ports: watch::Receiver<edge::Ports>,
}

/// A CONNECT to be served.
pub struct Job {
    pub connect: Connect,
    pub peer: Identity,
    pub from: SocketAddr,
    /// Its tunnel is not idle.
    in_use: Option<InUse>,
    running: ConnectionGuard,
}

/// Endpoints by destination, as one snapshot has them.
#[derive(Default)]
struct Sets {
    of: Option<Arc<Snapshot>>,
    by_key: HashMap<ClusterKey, Rc<EndpointSet>>,
    /// Those that follow from what is called: also by name or address.
    called: HashMap<(ClusterKey, String), Rc<EndpointSet>>,
}

/// What is decided by turns; each has its own, or one decision would follow from the other.
#[derive(Clone, Copy, Debug)]
pub enum SampleKind {
    Weight,
    Delay,
    Abort,
    Mirror,
}

/// A worker's state.
pub struct Worker {
    pub shared: Arc<Shared>,
    number: usize,
    pub settings: Settings,
    pub dialer: Dialer,
    /// Addresses of nobody's that have been called.
    nobody: Rc<Nobody>,
    /// Where connections to endpoints are made from.
    pub connector: NetnsConnector,
    pub upstream: Rc<send::Pool>,
    pub drain: drain::Watch,
    pub lingering: stream::Lingering,
    conns: Rc<Conns>,
    seed: Cell<u64>,
    samples: [Cell<u64>; 4],
    /// Tunnels and, at a gateway, connections.
    open: Rc<Cell<usize>>,
    sets: RefCell<Sets>,
    series: RefCell<HashMap<metrics::Key, Arc<Series>>>,
}

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
                    Some(j) => w.serve(j),
                    None => break,
                },
                _ = retire.tick() => if std::mem::take(&mut changed) {
                    w.dialer.retire(&w.snapshot().mesh);
                },
                r = configured.wait_for(|c| *c), if !open => open = r.is_ok(),
                Ok(()) = state.changed() => changed = true,
                (s, from) = karst_rt::accept::accept(&listener), if open && !draining => w.accept(s, from),
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

impl Worker {
    /// A worker, with the tasks that keep its connections. Runs in a `LocalSet`.
    pub fn new(shared: Arc<Shared>, number: usize, drain: drain::Watch) -> Rc<Self> {
        let settings = shared.config.tunnels();
        let (lingering, ended) = mpsc::unbounded_channel();
        tokio::task::spawn_local(stream::linger(ended));
        let upstream: Rc<send::Pool> = Rc::default();
        tokio::task::spawn_local({
            let pool = upstream.clone();
            async move {
                let mut turn = tokio::time::interval(send::SWEEP);
                loop {
                    turn.tick().await;
                    pool.sweep();
                }
            }
        });
        let (secrets, resolv_conf) = (shared.secrets.clone(), shared.config.resolv_conf.clone());
        Rc::new(Self {
            dialer: Dialer::new(secrets, settings.clone(), Some(Keepalive::default()), resolv_conf),
            nobody: Nobody::new(limits::MAX_NOBODY),
            connector: NetnsConnector::host(),
            settings,
            shared,
            number,
            upstream,
            drain,
            lingering,
            conns: Rc::default(),
            seed: Cell::new(rand::random()),
            samples: std::array::from_fn(|_| Cell::new(rand::random())),
            open: Rc::default(),
            sets: RefCell::default(),
            series: RefCell::default(),
        })
    }

    fn accept(self: &Rc<Self>, s: TcpStream, from: SocketAddr) {
        let (open, w) = (self.connection(), self.clone());
        tokio::task::spawn_local(async move {
            w.tunnel(s, canonical(from)).await;
            drop(open);
        });
    }

    /// Is nothing under way, and can nothing come?
    fn is_idle(&self) -> bool {
        self.shared.workers.running(self.number) == 0 && self.open.get() == 0 && self.shared.ports.borrow().is_empty()
    }

    /// One more connection, counted until dropped.
    pub fn connection(&self) -> Open {
        self.open.set(self.open.get() + 1);
        Open(self.open.clone())
    }

    async fn tunnel(self: &Rc<Self>, s: TcpStream, from: SocketAddr) {
        let _ = s.set_nodelay(true);
        // Boxed, and gone when the tunnel is there.
        let (stream, peer, permit) = match Box::pin(self.admitted(s, from)).await {
            Ok(Some(x)) => x,
            Ok(None) => return,
            Err(e) => return tracing::debug!(peer = %from, error = %e, "tunnel refused"),
        };
        let workers = &self.shared.workers;
        let on_stream = |connect| {
            let to = workers.pick_less_loaded(self.number).unwrap_or(self.number);
            let job = Job { connect, peer: peer.clone(), from, in_use: permit.in_use(), running: workers.start(to) };
            if to == self.number {
                return self.serve(job);
            }
            if let Err(mut back) = workers.dispatch(to, job) {
                back.running = workers.start(self.number);
                self.serve(back);
            }
        };
        let served = server::serve_until(stream, &self.settings, self.drain.clone(), permit.evicted(), on_stream).await;
        if let Err(e) = served {
            if matches!(e, server::ServerError::Evicted) {
                self.shared.gate.counts.tunnels.note(Ended::Evicted);
            }
            tracing::debug!(peer = %peer, error = %e, "tunnel ended");
        }
    }

    /// A tunnel's start: until its peer has shown who it is, it has one of the places for those who have not.
    async fn admitted(
        &self,
        s: TcpStream,
        from: SocketAddr,
    ) -> Result<Option<(TlsStream, Identity, Rc<Permit>)>, Ended> {
        let gate = &self.shared.gate;
        let known = self.snapshot().mesh.workload(from.ip()).is_some();
        let permit = gate.handshake(from.ip(), known)?;
        let note = |e: &Ended| gate.counts.handshakes.note(*e);
        permit.first_byte(&s, limits::FIRST_BYTE_TIMEOUT).await.inspect_err(note)?;
        let done = permit.within(limits::HANDSHAKE_TIMEOUT, self.handshake(s, from)).await.inspect_err(note)?;
        let Some((stream, peer)) = done else { return Ok(None) };
        Ok(Some((stream, peer, gate.tunnel(permit, from.ip())?)))
    }

    async fn handshake(&self, s: TcpStream, from: SocketAddr) -> Option<(TlsStream, Identity)> {
        let mut secrets = self.shared.secrets.clone();
        let Some(creds) = secrets.get(&self.shared.identity, limits::HOLD_TIMEOUT).await else {
            tracing::warn!(peer = %from, "tunnel refused: we have no certificate yet");
            return None;
        };
        let failed = |e: &server::ServerError| tracing::info!(peer = %from, error = %e, "tunnel failed");
        server::handshake(s, &creds).await.inspect_err(failed).ok()
    }

    fn serve(self: &Rc<Self>, j: Job) {
        let w = self.clone();
        tokio::task::spawn_local(async move {
            let Job { connect, peer, from, in_use, running } = j;
            let mut forced = w.drain.clone();
            tokio::select! {
                () = serve::stream(w.clone(), connect, peer, from) => {}
                () = forced.reached(drain::Phase::Forced) => {}
            }
            drop((in_use, running));
        });
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.state.borrow().clone()
    }

    /// Registers a byte stream that was let in by the policies of a snapshot.
    pub fn register(
        &self,
        judged: &Snapshot,
        downstream: &Downstream,
        request: Option<Box<conns::Upgrade>>,
    ) -> conns::Guard {
        self.conns.add(judged, &self.snapshot(), downstream, request, &self.shared.metrics.closed_by_policy)
    }

    /// Ourselves, as the control plane tells of us.
    pub fn own<'a>(&self, s: &'a Snapshot) -> Option<&'a Arc<Workload>> {
        let c = &self.shared.config;
        let (namespace, name, account) = (&*c.pod_namespace, &*c.pod_name, &*c.account);
        s.mesh.own_pod(&karst_proxy::state::OwnPod { namespace, name, account, uid: None })
    }

    /// The endpoints of a destination at the moment. None: there is no such service, port or subset.
    pub fn set(&self, s: &Arc<Snapshot>, key: &ClusterKey, preferred_family: IpAddr) -> Option<Rc<EndpointSet>> {
        let mut cache = self.sets.borrow_mut();
        if !cache.of.as_ref().is_some_and(|old| Arc::ptr_eq(old, s)) {
            *cache = Sets { of: Some(s.clone()), ..Sets::default() };
        }
        if let Some(found) = cache.by_key.get(key) {
            return Some(found.clone());
        }
        let set = Rc::new(self.shared.clusters.set(s, self.own(s)?, key, preferred_family)?);
        cache.by_key.insert(key.clone(), set.clone());
        Some(set)
    }

    /// As [`Worker::set`], for a call. `name`: what the request calls the host, or the TLS hello does; it counts where endpoints
    /// follow from it.
    pub fn destination(
        &self,
        s: &Arc<Snapshot>,
        downstream: &Downstream,
        key: &ClusterKey,
        name: Option<&str>,
    ) -> Option<Rc<EndpointSet>> {
        /// Beyond, the table is begun anew.
        const MOST: usize = 1000;
        let set = self.set(s, key, downstream.to)?;
        let Some(dynamic_endpoint) = set.dynamic_endpoint else { return Some(set) };
        let (host, address) = match dynamic_endpoint {
            DynamicEndpoint::Name => {
                let name = Authority::parse(name?.as_bytes()).ok()?.host().to_string();
                // Only names that the entry stands for, and names they must be.
                let fits =
                    set.service.hostname.strip_prefix('*').is_some_and(|x| name.len() > x.len() && name.ends_with(x));
                let is_name = rustls_pki_types::DnsName::try_from(name.as_str()).is_ok();
                (name, (fits && is_name).then_some(Ipv4Addr::UNSPECIFIED.into())?)
            }
            DynamicEndpoint::Address => {
                let to = downstream.to;
                let its = set.service.vips.contains(&to) || set.service.ranges.iter().any(|c| c.contains(to));
                (to.to_string(), (its && send::is_usable(self, s, to)).then_some(to)?)
            }
        };
        let mut cache = self.sets.borrow_mut();
        let key = (key.clone(), host);
        if let Some(found) = cache.called.get(&key) {
            return Some(found.clone());
        }
        if cache.called.len() >= MOST {
            cache.called.clear();
        }
        let set = Rc::new(set.with_endpoint(s, self.own(s)?, &key.1, address));
        cache.called.insert(key, set.clone());
        Some(set)
    }

    /// See [`balance::choose`].
    pub fn choose(&self, set: &EndpointSet, hash: Option<u64>, tried: &[usize]) -> Option<usize> {
        balance::choose(set, hash, tried, |n| self.random(n))
    }

    /// Waits until it is known who is at an address of a pod range, or that nobody is.
    pub async fn told(&self, ip: IpAddr) -> Told {
        let (state, stream) = (self.shared.state.clone(), self.shared.stream.clone());
        let (questions, until) = (self.shared.questions.clone(), Instant::now() + limits::HOLD_TIMEOUT);
        self.nobody.told(ip, Wait { state, stream, questions, again: limits::ASK_AGAIN, until }).await
    }

    /// The series of a key, from this worker's table.
    pub fn series(&self, key: metrics::Key, labels: impl FnOnce(&metrics::Key) -> metrics::AllLabels) -> Arc<Series> {
        /// Beyond, the table is begun anew.
        const MOST: usize = 10_000;
        let mut all = self.series.borrow_mut();
        if let Some(s) = all.get(&key) {
            return s.clone();
        }
        if all.len() >= MOST {
            all.clear();
        }
        let s = self.shared.metrics.series(&key, labels);
        all.insert(key, s.clone());
        s
    }

    /// A number below `n`.
    pub fn random(&self, n: u64) -> u64 {
        // splitmix64: even enough for balancing, and without a lock.
        let s = self.seed.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.seed.set(s);
        let mut z = s;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }

    /// A number below `n`, each as often as every other, and evenly: of ten requests in a row with the weights 90 and 10 one
    /// goes to the second, not none or three. (Multiples of the golden ratio.)
    pub fn sample(&self, of: SampleKind, n: u64) -> u64 {
        let c = &self.samples[of as usize];
        let x = c.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        c.set(x);
        ((u128::from(x) * u128::from(n)) >> 64) as u64
    }

    /// True for so many of a million, evenly.
    pub fn chance(&self, of: SampleKind, per_million: u32) -> bool {
        per_million > 0 && self.sample(of, 1_000_000) < u64::from(per_million)
    }
}

/// An open connection.
pub struct Open(Rc<Cell<usize>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Refuses a CONNECT.
pub fn refuse(respond: &mut SendResponse<bytes::Bytes>, status: http::StatusCode) {
    let mut r = http::Response::new(());
    *r.status_mut() = status;
    let _ = respond.send_response(r, true);
}
