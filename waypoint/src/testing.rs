//! A worker without its process, whose control plane is the test, and members of the mesh on the loopback network. No root is needed.
//!
//! What tests hand to tokio and hyper has one type, whatever is in it: each type more is another copy of their code to compile.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
#![cfg_attr(not(test), allow(dead_code, reason = "the differential tests need some of it"))]

#[cfg(test)]
pub(crate) mod pki;

use crate::{
    cluster::endpoint_set::Clusters,
    config::Config,
    downstream::{
        continued::Place,
        gate::Gate,
        ports,
        stream::{self, Io},
    },
    snapshot::Snapshot,
    spans::{
        export,
        queue::{Batch, Queue},
    },
    telemetry::metrics::Metrics,
    upstream::{connector::Connector, follow, reopen},
    worker::{Shared, Worker},
};
use clap::Parser;
use http::{HeaderMap, Response};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use karst_core::Identity;
use karst_hbone::{
    Settings,
    parking::{self, Parking},
    server,
};
use karst_proxy::{
    secrets::Secrets,
    state::{self, Workload},
    testing::Ca,
    untold::Asker,
    workers::WorkerPool,
};
use karst_rt::{
    drain::{self, Drain},
    socket::NetnsConnector,
};
use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    pin::Pin,
    rc::Rc,
    sync::Arc,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::spawn_local,
};
#[cfg(test)]
use tokio::{
    runtime::Builder,
    task::LocalSet,
    time::{Duration, timeout},
};

/// The name of the worker's own workload, in the namespace `ns`.
pub(crate) const OWN: &str = "own";

/// A worker, and what it is told by.
pub(crate) struct Plane {
    pub(crate) worker: Rc<Worker>,
    pub(crate) state: watch::Sender<Arc<Snapshot>>,
    pub(crate) asker: Asker,
    spans: mpsc::Receiver<Batch>,
    logs: mpsc::Receiver<Batch>,
    _drain: Drain,
    _other: (watch::Sender<bool>, watch::Sender<bool>, watch::Sender<ports::Ports>),
}

impl Plane {
    /// A worker that knows this mesh, itself among it.
    pub(crate) fn start(ca: &Ca, mesh: state::Snapshot) -> Self {
        let secrets = |own: &Identity| Secrets::fixed([ca.credentials(own)]);
        Self::of(
            Snapshot { mesh, ..Snapshot::new("") },
            "waypoint",
            secrets,
            Connector::Network(NetnsConnector::host()),
        )
    }

    fn of(s: Snapshot, role: &str, secrets: impl FnOnce(&Identity) -> Secrets, connector: Connector) -> Self {
        Self::named(s, role, ["ns", OWN, OWN], secrets, connector)
    }

    /// `own`: namespace, name and account of the pod.
    fn named(
        s: Snapshot,
        role: &str,
        [namespace, pod, account]: [&str; 3],
        secrets: impl FnOnce(&Identity) -> Secrets,
        connector: Connector,
    ) -> Self {
        let own = ["--pod-name", pod, "--pod-namespace", namespace, "--account", account];
        let args = ["karst-waypoint", "proxy", role].into_iter().chain(own);
        let config = Config::parse_from(args);
        let identity = config.identity().unwrap();
        let state = watch::Sender::new(Arc::new(s));
        let (configured, stream) = (watch::Sender::new(true), watch::Sender::new(true));
        let ports = watch::Sender::new(ports::Ports::default());
        let (questions, asker) = Asker::new("");
        let metrics = Arc::<Metrics>::default();
        let (spans_queue, spans) = Queue::new(metrics.spans.clone());
        let (logs_queue, logs) = Queue::new(metrics.logs.clone());
        let (parking, parked): (Parking<Place>, _) = parking::new();
        spawn_local(parking::run(parked));
        let shared = Shared {
            secrets: secrets(&identity),
            clusters: Clusters::new(config.is_gateway()),
            config,
            identity,
            state: state.subscribe(),
            configured: configured.subscribe(),
            stream: stream.subscribe(),
            questions,
            metrics,
            quota: crate::quota::table::Table::default(),
            spans: spans_queue,
            logs: logs_queue,
            gate: Gate::new(1024),
            workers: WorkerPool::new(1).0,
            parking,
            ports: ports.subscribe(),
            // No port is ever opened here.
            udp_ports: watch::channel(Default::default()).1,
            flows: karst_proxy::flows::Books::new(1, true),
            taps: karst_proxy::tap::Taps::new("own"),
        };
        let (drain, watch) = drain::new();
        let (following, orders) = follow::orders();
        let worker = Worker::new(Arc::new(shared), 0, watch, connector, following);
        spawn_local(reopen::run(Rc::downgrade(&worker), orders));
        Self { worker, state, asker, spans, logs, _drain: drain, _other: (configured, stream, ports) }
    }

    /// Tells of another mesh.
    pub(crate) fn tell(&self, mesh: state::Snapshot) {
        self.state.send_replace(Arc::new(Snapshot { mesh, ..Snapshot::new("") }));
    }
}

/// A test, or a task of one.
type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Starts a task on this thread.
pub(crate) fn spawn(task: impl Future + 'static) {
    let task: Task<'static> = Box::pin(async move {
        let _ = task.await;
    });
    spawn_local(task);
}

/// Runs a test on this thread.
#[cfg(test)]
pub(crate) fn run(test: impl Future<Output = ()>) {
    finish(Builder::new_current_thread().enable_all(), Duration::from_secs(60), Box::pin(test));
}

/// The same on paused time, which goes on when everybody waits for it; there is no network.
#[cfg(test)]
pub(crate) fn run_paused(test: impl Future<Output = ()>) {
    let patience = Duration::from_secs(3600);
    finish(Builder::new_current_thread().enable_time().start_paused(true), patience, Box::pin(test));
}

#[cfg(test)]
fn finish(runtime: &mut Builder, patience: Duration, test: Task<'_>) {
    runtime.build().unwrap().block_on(async {
        let tasks = LocalSet::new();
        tasks.run_until(timeout(patience, test)).await.unwrap();
    });
}

thread_local! {
    /// The lines of the access log that this thread has written.
    pub(crate) static LINES: RefCell<Vec<String>> = const { RefCell::new(vec![]) };
}

/// A worker in this role (`waypoint`, `router`), whose state stays as it is. It has no certificate.
pub(crate) fn worker(s: Snapshot, role: &str) -> Rc<Worker> {
    worker_by(s, role, Connector::Network(NetnsConnector::host()))
}

/// As [`worker`], with endpoints from elsewhere.
pub(crate) fn worker_by(s: Snapshot, role: &str, connector: Connector) -> Rc<Worker> {
    undrained(worker_and_drain(s, role, connector))
}

/// The same, with what it is told by, and who begins its drain.
pub(crate) fn worker_and_drain(s: Snapshot, role: &str, connector: Connector) -> Kept {
    kept(Plane::of(s, role, |_| Secrets::fixed([]), connector))
}

/// A proxy in this role whose pod has this namespace, name and account.
#[cfg(feature = "fuzz")]
pub(crate) fn worker_named(s: Snapshot, role: &str, own: [&str; 3], connector: Connector) -> Rc<Worker> {
    undrained(kept(Plane::named(s, role, own, |_| Secrets::fixed([]), connector)))
}

/// A worker, what it is told by, and who begins its drain.
type Kept = (Rc<Worker>, watch::Sender<Arc<Snapshot>>, Drain);

fn kept(Plane { worker, state, spans, logs, _drain, .. }: Plane) -> Kept {
    for queue in [spans, logs] {
        let (never, stop) = tokio::sync::oneshot::channel();
        spawn(export::run(worker.clone(), queue, stop));
        std::mem::forget(never);
    }
    (worker, state, _drain)
}

fn undrained((worker, _, drain): Kept) -> Rc<Worker> {
    // It never begins.
    std::mem::forget(drain);
    worker
}

/// A member that takes tunnels at its address, and answers every request by its name. Counts them.
pub(crate) async fn member(ca: &Ca, w: &Workload) -> Rc<Cell<usize>> {
    member_told(ca, w, |_| {}).await
}

/// The same, which gives the headers of each CONNECT away.
pub(crate) async fn member_told(ca: &Ca, w: &Workload, told: impl Fn(&HeaderMap) + 'static) -> Rc<Cell<usize>> {
    member_by(ca, w, Rc::new(told)).await
}

async fn member_by(ca: &Ca, w: &Workload, told: Rc<dyn Fn(&HeaderMap)>) -> Rc<Cell<usize>> {
    let l = TcpListener::bind((w.ips[0], karst_hbone::PORT)).await.unwrap();
    let (creds, requests) = (Rc::new(ca.credentials(&w.identity)), Rc::new(Cell::new(0)));
    let (name, count) = (w.name.clone(), requests.clone());
    spawn(async move {
        let (lingering, ended) = mpsc::unbounded_channel();
        spawn(stream::linger(ended));
        while let Ok((s, _)) = l.accept().await {
            let (creds, lingering, name, count) = (creds.clone(), lingering.clone(), name.clone(), count.clone());
            let told = told.clone();
            spawn(async move {
                let Ok((tunnel, _)) = server::handshake(s, &creds).await else { return };
                let ((_drain, watch), settings) = (drain::new(), Settings::default());
                let on_stream = |mut c: server::Connect| {
                    told(c.request.headers());
                    let Ok(send) = c.respond.send_response(Response::new(()), false) else { return };
                    let io = TokioIo::new(Io::tunnel(send, c.request.into_body(), lingering.clone()));
                    let (name, count) = (name.clone(), count.clone());
                    let answer = service_fn(move |_| {
                        count.set(count.get() + 1);
                        let body = crate::http::reply::ResponseBody::local(name.to_string());
                        async move { Ok::<_, Infallible>(Response::new(body)) }
                    });
                    spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, answer));
                };
                let _ = server::serve(tunnel, &settings, watch, on_stream).await;
            });
        }
    });
    requests
}
