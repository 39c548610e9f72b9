//! A thread with its tunnels, its streams and its connections to endpoints. A stream is served where there is least to do,
//! whichever worker its tunnel hangs on: one busy client does not use up one core.

use crate::{
    authz::{access::Denial, external::kept::Answers, jwt},
    cluster::{
        balance,
        endpoint_set::{Clusters, DynamicEndpoint, EndpointSet},
        key::{ClusterKey, ClusterKeyRef},
    },
    config::Config,
    downstream::{
        conns::{self, Conns},
        context::{Downstream, DownstreamTarget},
        continued::Place,
        gate::Gate,
        ports::Ports,
        stream, udp,
        upgrade::Upgrade,
    },
    http::encoders::Encoders,
    logs,
    quota::{lease::Leases, table::Table},
    snapshot::Snapshot,
    spans::{self, queue::Queue},
    telemetry::{
        metrics::Metrics,
        sink::{Sink, Ways},
    },
    upstream::{
        address::is_usable,
        connector::Connector,
        follow,
        pool::{self, Pool},
    },
};
use http::request::Parts;
use karst_core::{Identity, authority::Authority, limits};
use karst_flows::{Decision, Reporter, Seen};
use karst_hbone::{Settings, parking::Parking, server::Connect};
use karst_proxy::{
    dial::Dialer,
    flows::{Books, Recorder},
    nobody::Nobody,
    secrets::Secrets,
    state::Workload,
    tap::Taps,
    untold::{Question, Told, Wait},
    workers::{ConnectionGuard, WorkerPool},
};
use karst_rt::{
    admission::{InUse, Source},
    clock, drain,
    limited::Limited,
    socket::Keepalive,
    turns::Shares,
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::RandomState,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::SystemTime,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

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
    pub metrics: Arc<Metrics>,
    /// Of rate limits that replicas count together, the buckets that are kept here.
    pub quota: Table,
    pub clusters: Clusters,
    /// How many connections there may be.
    pub gate: Gate,
    pub workers: WorkerPool<Job>,
    /// Connections that wait for their next stream.
    pub parking: Parking<Place>,
    /// The ports of a gateway.
    pub ports: watch::Receiver<Ports>,
    /// Those of datagrams.
    pub udp_ports: watch::Receiver<udp::ports::Ports>,
    /// What was seen lately.
    pub flows: Books,
    /// Takes the spans of requests that are traced.
    pub spans: Queue,
    /// Takes the access log for collectors.
    pub logs: Queue,
    /// Who looks on.
    pub taps: Arc<Taps>,
}

/// A CONNECT to be served.
pub struct Job {
    pub connect: Connect,
    pub peer: Identity,
    pub from: SocketAddr,
    /// Its tunnel is not idle.
    pub in_use: Option<InUse>,
    pub running: ConnectionGuard,
}

/// What the control plane says whose pod we are.
fn own_name(shared: &Shared, snapshot: &Snapshot) -> Rc<str> {
    shared.config.own_pod(&snapshot.mesh).map_or(&*shared.config.pod_name, |own| &*own.workload_name).into()
}

/// Endpoints by destination, as one snapshot has them.
#[derive(Default)]
struct Sets {
    of: Option<Arc<Snapshot>>,
    by_key: hashbrown::HashMap<ClusterKey, Rc<EndpointSet>, RandomState>,
    /// Those that follow from what is called: also by name or address.
    called: HashMap<(ClusterKey, String), Rc<EndpointSet>>,
}

/// A snapshot, counted within a worker: what all workers share is counted once, when it changes.
#[allow(clippy::redundant_allocation, reason = "the outer count is the worker's own, the inner one is of all of them")]
pub type Latest = Rc<Arc<Snapshot>>;

/// A worker's state.
pub struct Worker {
    pub shared: Arc<Shared>,
    pub number: usize,
    pub settings: Settings,
    pub dialer: Dialer,
    /// Addresses of nobody's that have been called.
    nobody: Rc<Nobody>,
    /// Where connections to endpoints are made from.
    pub connector: Connector,
    pub upstream: Rc<Pool>,
    pub drain: drain::Watch,
    pub lingering: stream::Lingering,
    /// Opens the next streams of connections to endpoints.
    pub following: follow::Orders,
    pub conns: Rc<Conns>,
    /// For answers that are compressed.
    pub encoders: Rc<Encoders>,
    seed: Cell<u64>,
    /// Tunnels and, at a gateway, connections.
    open: Rc<Cell<usize>>,
    /// Each caller's share of this worker.
    pub callers: Shares<Source>,
    sets: RefCell<Sets>,
    /// See [`Worker::latest`].
    state: RefCell<watch::Receiver<Arc<Snapshot>>>,
    latest: RefCell<Latest>,
    /// Our own workload's name in it, else our pod's.
    own_name: RefCell<Rc<str>>,
    pub sink: Rc<Sink>,
    pub flows: Recorder,
    /// Those that were verified lately. Borrowed only while a request's are looked at.
    pub tokens: RefCell<jwt::Cache>,
    /// What providers of external authorization have answered lately. Borrowed only while one is looked for or kept.
    pub answers: RefCell<Answers>,
    /// Of buckets that other replicas keep.
    pub leases: Leases,
    /// See [`Worker::limited`].
    lines: RefCell<Limited>,
}

impl Worker {
    /// A worker, with the tasks that keep its connections. Runs in a `LocalSet`.
    pub fn new(
        shared: Arc<Shared>,
        number: usize,
        drain: drain::Watch,
        connector: Connector,
        following: follow::Orders,
    ) -> Rc<Self> {
        let settings = shared.config.tunnels();
        let (lingering, ended) = mpsc::unbounded_channel();
        tokio::task::spawn_local(stream::linger(ended));
        let upstream: Rc<Pool> = Rc::default();
        let (secrets, resolv_conf) = (shared.secrets.clone(), shared.config.resolv_conf.clone());
        let (spans, logs, taps) = (shared.spans.of_worker(number), shared.logs.of_worker(number), shared.taps.clone());
        let (state, ways) = (shared.state.clone(), Ways { spans, logs, taps });
        let sink = Rc::new(Sink::new(shared.config.clone(), state, shared.metrics.clone(), ways));
        tokio::task::spawn_local(spans::recorder::flush_in_time(sink.spans.clone()));
        tokio::task::spawn_local(logs::recorder::flush_in_time(sink.logs.clone()));
        let mut state = shared.state.clone();
        let latest = Rc::new(state.borrow_and_update().clone());
        let own_name = RefCell::new(own_name(&shared, &latest));
        let worker = Rc::new(Self {
            dialer: Dialer::new(secrets, settings.clone(), Some(Keepalive::default()), resolv_conf),
            nobody: Nobody::new(limits::MAX_NOBODY),
            connector,
            settings,
            flows: shared.flows.recorder(),
            tokens: RefCell::new(jwt::Cache::new(shared.metrics.tokens.clone())),
            answers: RefCell::default(),
            leases: Leases::default(),
            lines: RefCell::default(),
            callers: Shares::new(limits::MAX_CALLERS, shared.gate.turns.clone()),
            shared,
            number,
            upstream,
            drain,
            lingering,
            following,
            conns: Rc::default(),
            encoders: Rc::default(),
            seed: Cell::new(rand::random()),
            open: Rc::default(),
            sets: RefCell::default(),
            state: RefCell::new(state),
            latest: RefCell::new(latest),
            own_name,
            sink,
        });
        tokio::task::spawn_local({
            let (pool, worker) = (worker.upstream.clone(), Rc::downgrade(&worker));
            async move {
                let mut turn = tokio::time::interval(pool::SWEEP);
                loop {
                    turn.tick().await;
                    pool.sweep();
                    if let Some(worker) = worker.upgrade() {
                        worker.let_go();
                    }
                }
            }
        });
        worker
    }

    /// Lets go of what is not in force any more. Requests do so when they come: a worker that has none would keep the routes and the
    /// mesh as they were at its last one, and much of the newest snapshot is then there twice.
    fn let_go(&self) {
        let newest = self.latest();
        let mut sets = self.sets.borrow_mut();
        if sets.of.as_ref().is_some_and(|of| !Arc::ptr_eq(of, &*newest)) {
            *sets = Sets::default();
        }
        self.leases.let_go(&newest);
    }

    /// Is nothing under way, and can nothing come?
    pub fn is_idle(&self) -> bool {
        self.shared.workers.running(self.number) == 0 && self.open.get() == 0 && self.shared.ports.borrow().is_empty()
    }

    /// Writes a line of the log that callers cause by connecting again and again, unless this worker has had too many for the same
    /// reason. `write` is given how many were left out before it, if there were some.
    pub fn limited(&self, reason: &'static str, write: impl FnOnce(Option<u64>)) {
        let passed = self.lines.borrow_mut().pass(reason, clock::Instant::now());
        if let Some(left_out) = passed {
            write((left_out > 0).then_some(left_out));
        }
    }

    /// One more connection, counted until dropped.
    pub fn connection(&self) -> Open {
        self.open.set(self.open.get() + 1);
        Open(self.open.clone())
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.state.borrow().clone()
    }

    /// The same for a request, with a count of this worker's: while nothing has changed it touches nothing that others write.
    pub fn latest(&self) -> Latest {
        self.renew();
        self.latest.borrow().clone()
    }

    fn renew(&self) {
        // Where there is nobody any more who would tell of a change, it is asked for each time.
        if self.state.borrow().has_changed().unwrap_or(true) {
            let new = self.state.borrow_mut().borrow_and_update().clone();
            self.own_name.replace(own_name(&self.shared, &new));
            self.latest.replace(Rc::new(new));
        }
    }

    /// Registers a byte stream that was let in by the policies of a snapshot.
    pub fn register(&self, judged: &Snapshot, downstream: &Downstream, request: Option<Box<Upgrade>>) -> conns::Guard {
        self.conns.add(judged, &self.snapshot(), downstream, request, &self.shared.metrics.closed_by_policy)
    }

    /// Notes what policies have said of a request, or of a connection that is carried as it is, in the book of flows. `came`: when it
    /// came.
    pub fn note(
        &self,
        downstream: &Downstream,
        request: Option<(&Parts, &str)>,
        denied: Option<&Denial>,
        came: SystemTime,
    ) {
        if downstream.is_at_gateway() {
            // Its name may have become known since.
            self.renew();
        }
        let own = self.own_name.borrow();
        let seen = || {
            let config = &self.shared.config;
            let (reporter, namespace, workload, service, pod) = match &downstream.target {
                // A pod that is called by its address, through the waypoint.
                DownstreamTarget::Service(s) if s.is_workload_service() => {
                    (Reporter::Waypoint, &*s.namespace, &*s.name, "", &*s.name)
                }
                DownstreamTarget::Service(s) => (Reporter::Waypoint, &*s.namespace, "", &*s.key, ""),
                DownstreamTarget::Gateway(_) => {
                    (Reporter::Gateway, &*config.pod_namespace, &**own, "", &*config.pod_name)
                }
            };
            Seen {
                reporter,
                identity: downstream.peer.as_ref(),
                from: downstream.from.ip(),
                namespace,
                workload,
                service,
                to: SocketAddr::new(downstream.to, downstream.port),
                pod,
                request: request.map(|(parts, host)| karst_flows::Request {
                    method: parts.method.as_str(),
                    path: parts.uri.path(),
                    host,
                }),
                decision: match denied {
                    None => Decision::Allowed,
                    Some(by) if by.policy.is_empty() => Decision::NotAllowed,
                    Some(by) => Decision::DeniedBy(&by.policy),
                },
            }
        };
        self.flows.note(|| came, seen);
    }

    /// Ourselves, as the control plane tells of us.
    pub fn own<'a>(&self, snapshot: &'a Snapshot) -> Option<&'a Arc<Workload>> {
        self.shared.config.own_pod(&snapshot.mesh)
    }

    /// The endpoints of a destination at the moment. None: there is no such service, port or subset.
    pub fn set(
        &self,
        snapshot: &Arc<Snapshot>,
        key: ClusterKeyRef<'_>,
        preferred_family: IpAddr,
    ) -> Option<Rc<EndpointSet>> {
        let mut cache = self.sets.borrow_mut();
        if !cache.of.as_ref().is_some_and(|old| Arc::ptr_eq(old, snapshot)) {
            *cache = Sets { of: Some(snapshot.clone()), ..Sets::default() };
        }
        if let Some(found) = cache.by_key.get(&key) {
            return Some(found.clone());
        }
        let key = key.to_key();
        let set = Rc::new(self.shared.clusters.set(snapshot, self.own(snapshot)?, &key, preferred_family)?);
        cache.by_key.insert(key, set.clone());
        Some(set)
    }

    /// As [`Worker::set`], for a call. `name`: what the request calls the host, or the TLS hello does; it counts where endpoints
    /// follow from it.
    pub fn destination(
        &self,
        snapshot: &Arc<Snapshot>,
        downstream: &Downstream,
        key: ClusterKeyRef<'_>,
        name: Option<&str>,
    ) -> Option<Rc<EndpointSet>> {
        /// Beyond, the table is begun anew.
        const MOST: usize = 1000;
        let set = self.set(snapshot, key, downstream.to)?;
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
                (
                    to.to_string(),
                    (its && is_usable(&snapshot.mesh, self.own(snapshot).map(|own| &**own), to)).then_some(to)?,
                )
            }
        };
        let mut cache = self.sets.borrow_mut();
        let key = (key.to_key(), host);
        if let Some(found) = cache.called.get(&key) {
            return Some(found.clone());
        }
        if cache.called.len() >= MOST {
            cache.called.clear();
        }
        let set = Rc::new(set.with_endpoint(snapshot, self.own(snapshot)?, &key.1, address));
        cache.called.insert(key, set.clone());
        Some(set)
    }

    /// See [`balance::choose`].
    pub fn choose(&self, set: &EndpointSet, hash: Option<u64>, tried: &[usize], now: u64) -> Option<usize> {
        balance::choose_at(now, set, hash, tried, &mut |n| self.random(n))
    }

    /// Waits until it is known who is at an address of a pod range, or that nobody is.
    pub async fn told(&self, ip: IpAddr) -> Told {
        let (state, stream) = (self.shared.state.clone(), self.shared.stream.clone());
        let (questions, until) = (self.shared.questions.clone(), Instant::now() + limits::HOLD_TIMEOUT);
        self.nobody.told(ip, Wait { state, stream, questions, again: limits::ASK_AGAIN, until }).await
    }

    /// A number below `bound`.
    pub fn random(&self, bound: u64) -> u64 {
        // splitmix64: even enough for balancing, and without a lock.
        let seed = self.seed.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.seed.set(seed);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }
}

/// An open connection.
pub struct Open(Rc<Cell<usize>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{OWN, Plane};
    use karst_proxy::testing::{Ca, pod, service, snapshot};
    use tokio::task::LocalSet;

    /// It has found endpoints for a request, and no other request comes.
    #[tokio::test(start_paused = true)]
    async fn a_worker_without_requests_keeps_no_old_snapshot() {
        let run = async {
            let service_key = "ns/s.ns.svc.cluster.local";
            let pods = vec![pod(OWN, "10.0.0.1", &[]), pod("a", "10.0.0.2", &[(service_key, &[(80, 8080)])])];
            let mesh = snapshot(pods, vec![service("s", "10.96.0.1", &[(80, 8080)])]);
            let plane = Plane::start(&Ca::mint(), mesh.clone());
            let (subset, client) = (Arc::default(), Arc::default());
            let key = ClusterKey { service: service_key.into(), port: 80, subset, client, udp: false };
            let old = plane.worker.snapshot();
            assert!(plane.worker.set(&old, key.as_ref(), [10, 96, 0, 1].into()).is_some());
            let kept = Arc::downgrade(&old);
            drop(old);
            plane.tell(mesh);
            assert!(kept.upgrade().is_some(), "the worker has it for its next request");
            tokio::time::sleep(pool::SWEEP * 3).await;
            assert!(kept.upgrade().is_none());
        };
        LocalSet::new().run_until(run).await;
    }

    /// The next line says how many were left out; other reasons have theirs.
    #[tokio::test(start_paused = true)]
    async fn a_flood_of_callers_does_not_fill_the_log() {
        let run = async {
            let plane = Plane::start(&Ca::mint(), snapshot(vec![pod(OWN, "10.0.0.1", &[])], vec![]));
            let told = RefCell::new(vec![]);
            let line = |reason| plane.worker.limited(reason, |left_out| told.borrow_mut().push((reason, left_out)));
            (0..3000).for_each(|_| line("TLS failed"));
            assert_eq!(told.take(), [("TLS failed", None); 1000]);
            line("no listener");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            line("TLS failed");
            assert_eq!(told.take(), [("no listener", None), ("TLS failed", Some(2000))]);
        };
        LocalSet::new().run_until(run).await;
    }
}
