//! A waypoint or gateway in memory, for the tests of those who say what one would do (feature `fuzz`): the worker, the CONNECT's target, the
//! request path and the byte streams of the product, with endpoints in this process. Members take what comes in plaintext here:
//! tunnels to them are not what is compared. Clients and endpoints speak HTTP/1.1.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use crate::{
    control::{GATEWAY, WAYPOINT},
    downstream::{
        context::{Downstream, DownstreamTarget},
        requests, sniff,
        stream::Io,
        tcp::connect_tcp,
        tunnel,
    },
    snapshot::Snapshot,
    testing::{LINES, worker_named},
    upstream::connector::{Connector, memory::Memory},
    worker::Worker,
};
use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use karst_api::{GATEWAY_TYPE, workload::AppProtocol};
use karst_core::Identity;
use karst_proxy::xds::ApplyResource;
use std::{cell::RefCell, collections::BTreeSet, convert::Infallible, net::SocketAddr, rc::Rc, sync::Arc};
use tokio::task::{LocalSet, spawn_local};

/// What has become of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The CONNECT was refused with this status.
    Connect(u16),
    /// A request was answered with this status; where it had gone; the line of the access log.
    Request(u16, Option<SocketAddr>, String),
    /// A stream of bytes was carried there, or nowhere: for these details.
    Bytes(Option<SocketAddr>, String),
}

/// Type, name and bytes of what the control plane tells.
pub type Told<'a> = (&'a str, &'a str, &'a [u8]);

/// A waypoint that has been told, and takes calls.
pub struct Live {
    runtime: tokio::runtime::Runtime,
    tasks: LocalSet,
    worker: Rc<Worker>,
    seen: Seen,
}

impl Live {
    /// `own`: namespace, pod and account of the waypoint.
    pub fn new(own: [&str; 3], told: &[Told<'_>]) -> Self {
        Self::of("waypoint", WAYPOINT, own, told)
    }

    /// A gateway that has been told, and takes calls.
    pub fn gateway(own: [&str; 3], told: &[Told<'_>]) -> Self {
        Self::of("router", GATEWAY, own, told)
    }

    fn of(role: &str, types: &[&str], own: [&str; 3], told: &[Told<'_>]) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tasks = LocalSet::new();
        let (worker, seen) = tasks.block_on(&runtime, async { worker(role, types, own, told) });
        Self { runtime, tasks, worker, seen }
    }

    /// Makes one request to a gateway's port, without TLS. Status 0: it does not listen there.
    pub fn enter(&self, to: SocketAddr, from: SocketAddr, head: http::Request<()>) -> Answer {
        self.tasks.block_on(&self.runtime, async {
            let snapshot = self.worker.snapshot();
            if !snapshot.gateway.as_ref().is_some_and(|gateway| gateway.ports.contains_key(&to.port())) {
                return Answer::Connect(0);
            }
            let (target, port) = (DownstreamTarget::Gateway(None), to.port());
            let to = to.ip();
            let (peer, source, hello, permit) = (None, None, None, None);
            let (entered, written) = Default::default();
            let downstream = Downstream { peer, from, source, target, port, to, hello, permit, entered, written };
            request(&self.worker, downstream, true, head, &self.seen).await
        })
    }

    /// Makes one call, by a CONNECT for an authority. `head`: of a request; None: bytes are sent.
    pub fn call(&self, authority: &str, peer: Identity, from: SocketAddr, head: Option<http::Request<()>>) -> Answer {
        self.tasks.block_on(&self.runtime, async {
            let (worker, snapshot) = (&self.worker, self.worker.snapshot());
            let uri = http::Uri::builder().authority(authority).build().unwrap();
            let connect = http::Request::connect(uri).body(()).unwrap();
            let own = worker.own(&snapshot).map(|own| &**own);
            let downstream = match tunnel::target(&snapshot, own, &connect, peer, from) {
                Ok(downstream) => downstream,
                Err((status, _)) => return Answer::Connect(status.as_u16()),
            };
            let protocols = downstream.service().map(|s| s.protocols.clone()).unwrap_or_default();
            let spoken = protocols.iter().find(|(port, _)| *port == downstream.port).map(|(_, a)| *a);
            let is_bytes = matches!(spoken, Some(AppProtocol::Tcp | AppProtocol::Tls));
            match head.filter(|_| !is_bytes) {
                Some(head) => {
                    let declared = !matches!(spoken, None | Some(AppProtocol::Unknown));
                    request(worker, downstream, declared, head, &self.seen).await
                }
                None => bytes(worker, downstream).await,
            }
        })
    }
}

type Seen = Rc<RefCell<Vec<SocketAddr>>>;

fn worker(role: &str, types: &[&str], own: [&str; 3], told: &[Told<'_>]) -> (Rc<Worker>, Seen) {
    let mut snapshot = Snapshot::new("");
    let name = format!("{}/{}", own[0], own[1]);
    for (type_url, resource, bytes) in told.iter().filter(|(t, ..)| types.contains(t)) {
        if *type_url != GATEWAY_TYPE || *resource == name {
            // What is refused is in force as the product has it in force.
            let _ = snapshot.put(type_url, resource, bytes);
        }
    }
    let seen = Seen::default();
    let memory = Rc::<Memory>::default();
    let mut listening = BTreeSet::new();
    let all: Vec<_> = snapshot.mesh.workloads.iter().map(|(uid, w)| (uid.clone(), w.clone())).collect();
    for (uid, workload) in all {
        let ports = workload.services.iter().flat_map(|(_, ports)| ports).map(|(_, target)| *target);
        let of_services = snapshot.mesh.services.values().flat_map(|s| s.ports.iter().map(|(port, _)| *port));
        for port in ports.chain(of_services).chain([80, 8080]) {
            listening.extend(workload.ips.iter().map(|ip| SocketAddr::new(*ip, port)));
        }
        let mut plain = (*workload).clone();
        plain.hbone = false;
        snapshot.mesh.workloads.insert(uid, Arc::new(plain));
    }
    for at in listening {
        let seen = seen.clone();
        memory.listen(at, move |io| {
            let seen = seen.clone();
            let answer = service_fn(move |_: http::Request<Incoming>| {
                seen.borrow_mut().push(at);
                async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
            });
            spawn_local(async move {
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server.serve_connection(TokioIo::new(io), answer).await;
            });
        });
    }
    (worker_named(snapshot, role, own, Connector::Memory(memory)), seen)
}

async fn request(
    worker: &Rc<Worker>,
    downstream: Downstream,
    declared: bool,
    head: http::Request<()>,
    seen: &Seen,
) -> Answer {
    LINES.take();
    seen.borrow_mut().clear();
    let (client, server) = tokio::io::duplex(64 << 10);
    let own = worker.clone();
    spawn_local(async move {
        let (downstream, io) = (Rc::new(downstream), Io::memory(server));
        match downstream.is_at_gateway() {
            true => requests::requests(&own, downstream, io, false).await,
            false => sniff::http(&own, downstream, io, declared).await,
        }
    });
    let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
    spawn_local(conn);
    let response = send.send_request(head.map(|()| Empty::<Bytes>::new())).await.unwrap();
    let status = response.status().as_u16();
    let _ = response.into_body().collect().await;
    let at = seen.borrow().last().copied();
    Answer::Request(status, at, LINES.take().pop().unwrap_or_default())
}

async fn bytes(worker: &Rc<Worker>, downstream: Downstream) -> Answer {
    match connect_tcp(worker, &downstream).await {
        Ok(relay) => Answer::Bytes(relay.record.workload.as_ref().map(|(_, at)| *at), String::new()),
        Err(record) => {
            let why = format!("{} {} {}", record.flag.text(), record.details, record.error);
            record.forget();
            Answer::Bytes(None, why)
        }
    }
}
