//! A worker without its process, whose control plane is the test, and members of the mesh on the loopback network. No root is needed.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
#![cfg_attr(not(test), allow(dead_code, reason = "the differential tests need some of it"))]

use crate::{
    cluster::endpoint_set::Clusters,
    config::Config,
    downstream::{
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
    upstream::connector::Connector,
    worker::{Shared, Worker},
};
use clap::Parser;
use http::{HeaderMap, Response};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use karst_core::Identity;
use karst_hbone::{Settings, server};
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
    rc::Rc,
    sync::Arc,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::spawn_local,
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
            ports: ports.subscribe(),
            // No port is ever opened here.
            udp_ports: watch::channel(Default::default()).1,
            flows: karst_proxy::flows::Books::new(1, true),
            taps: karst_proxy::tap::Taps::new("own"),
        };
        let (drain, watch) = drain::new();
        let worker = Worker::new(Arc::new(shared), 0, watch, connector);
        Self { worker, state, asker, spans, logs, _drain: drain, _other: (configured, stream, ports) }
    }

    /// Tells of another mesh.
    pub(crate) fn tell(&self, mesh: state::Snapshot) {
        self.state.send_replace(Arc::new(Snapshot { mesh, ..Snapshot::new("") }));
    }
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
    worker_told(s, role, connector).0
}

/// The same, and what it is told by.
pub(crate) fn worker_told(s: Snapshot, role: &str, connector: Connector) -> (Rc<Worker>, watch::Sender<Arc<Snapshot>>) {
    kept(Plane::of(s, role, |_| Secrets::fixed([]), connector))
}

/// A proxy in this role whose pod has this namespace, name and account.
#[cfg(feature = "fuzz")]
pub(crate) fn worker_named(s: Snapshot, role: &str, own: [&str; 3], connector: Connector) -> Rc<Worker> {
    kept(Plane::named(s, role, own, |_| Secrets::fixed([]), connector)).0
}

fn kept(Plane { worker, state, spans, logs, _drain, .. }: Plane) -> (Rc<Worker>, watch::Sender<Arc<Snapshot>>) {
    for queue in [spans, logs] {
        let (never, stop) = tokio::sync::oneshot::channel();
        spawn_local(export::run(worker.clone(), queue, stop));
        std::mem::forget(never);
    }
    // It never begins.
    std::mem::forget(_drain);
    (worker, state)
}

/// A member that takes tunnels at its address, and answers every request by its name. Counts them.
pub(crate) async fn member(ca: &Ca, w: &Workload) -> Rc<Cell<usize>> {
    member_told(ca, w, |_| {}).await
}

/// The same, which gives the headers of each CONNECT away.
pub(crate) async fn member_told(ca: &Ca, w: &Workload, told: impl Fn(&HeaderMap) + 'static) -> Rc<Cell<usize>> {
    let told = Rc::new(told);
    let l = TcpListener::bind((w.ips[0], karst_hbone::PORT)).await.unwrap();
    let (creds, requests) = (Rc::new(ca.credentials(&w.identity)), Rc::new(Cell::new(0)));
    let (name, count) = (w.name.clone(), requests.clone());
    spawn_local(async move {
        let (lingering, ended) = mpsc::unbounded_channel();
        spawn_local(stream::linger(ended));
        while let Ok((s, _)) = l.accept().await {
            let (creds, lingering, name, count) = (creds.clone(), lingering.clone(), name.clone(), count.clone());
            let told = told.clone();
            spawn_local(async move {
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
                    spawn_local(hyper::server::conn::http1::Builder::new().serve_connection(io, answer));
                };
                let _ = server::serve(tunnel, &settings, watch, on_stream).await;
            });
        }
    });
    requests
}
