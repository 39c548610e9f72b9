//! Connections to a gateway's ports, from anywhere.

use crate::{
    cluster::key::ClusterKey,
    downstream::{
        busy::Busy,
        context::{Downstream, DownstreamTarget, Entered},
        gateway::Listener,
        hello::{HELLO, hello, preface},
        ports::Ports,
        proxy_header, requests,
        stream::{Io, Reset},
        tcp,
    },
    route::tcp::TcpRule,
    snapshot::Snapshot,
    telemetry::flag::ResponseFlag,
    upstream::tls::Speaks,
    worker::Worker,
};
use karst_api::route::ListenerProtocol;
use karst_core::{canonical, limits, proxy_protocol::Origin};
use karst_rt::{
    accept,
    admission::{Ended, Permit, Source},
    drain,
    on_wake::OnWake,
    turns,
};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr, TcpListener},
    pin::pin,
    rc::Rc,
    sync::Arc,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

/// Accepts on the open ports, in a worker.
pub async fn accept(worker: Rc<Worker>, mut ports: watch::Receiver<Ports>) {
    let mut tasks: HashMap<u16, (Arc<TcpListener>, tokio::task::JoinHandle<()>)> = HashMap::new();
    loop {
        let now = ports.borrow_and_update().clone();
        tasks.retain(|number, (listener, task)| {
            let same = now.get(number).is_some_and(|n| Arc::ptr_eq(n, listener));
            if !same {
                task.abort();
            }
            same
        });
        for (number, listener) in now.iter() {
            if tasks.contains_key(number) {
                continue;
            }
            let own = listener.try_clone().and_then(tokio::net::TcpListener::from_std);
            match own {
                Ok(own) => {
                    let task = tokio::task::spawn_local(port(worker.clone(), own, *number));
                    tasks.insert(*number, (listener.clone(), task));
                }
                Err(e) => tracing::error!(port = number, error = %e, "cannot accept"),
            }
        }
        drop(now);
        if ports.changed().await.is_err() {
            return;
        }
    }
}

async fn port(worker: Rc<Worker>, listener: tokio::net::TcpListener, port: u16) {
    let mut accepted = 0;
    loop {
        let (socket, from) = accept::accept(&listener).await;
        let from = canonical(from);
        accepted += 1;
        if accepted % limits::ACCEPTS == 0 {
            // However many more there are: those that are open have their turn.
            tokio::task::yield_now().await;
        }
        let Ok(permit) = worker.shared.gate.greeting(from.ip()) else { continue };
        let (open, worker) = (worker.connection(), worker.clone());
        let share = worker.callers.of(Source::address(from.ip(), false));
        let task = async move {
            turns::spend(limits::TURN_ACCEPT);
            let mut forced = worker.drain.clone();
            let arrived = tokio::select! {
                arrived = arrive(&worker, socket, from, port, permit) => arrived,
                () = forced.reached(drain::Phase::Forced) => None,
            };
            let Some(arrived) = arrived else { return };
            let client = arrived.direct.map(|_| worker.callers.of(Source::address(arrived.from.ip(), false)));
            let rest = Box::pin(async move {
                // Its task is polled several times for each request.
                let forced = pin!(forced.reached(drain::Phase::Forced));
                let mut forced = OnWake::new(forced);
                tokio::select! {
                    biased;
                    () = connection(&worker, arrived, port) => {}
                    () = &mut forced => {}
                }
                drop(open);
            });
            match client {
                // All of a proxy's connections have one address: from here on it is in the turn of the client that was named.
                Some(share) => {
                    tokio::task::spawn_local(turns::of(Some(share), rest));
                }
                None => rest.await,
            }
        };
        tokio::task::spawn_local(turns::of(Some(share), Box::pin(task)));
    }
}

/// A connection of which it is known whose it is.
struct Arrived {
    snapshot: Arc<Snapshot>,
    io: Io,
    permit: Permit,
    /// The client.
    from: SocketAddr,
    to: IpAddr,
    /// The proxy that has named the client, if one has.
    direct: Option<IpAddr>,
}

/// It has not come as far as to greet.
fn ended(worker: &Worker, from: SocketAddr, port: u16, e: Ended) {
    worker.shared.gate.counts.greetings.note(e);
    tracing::debug!(peer = %from, port, error = %e, "no greeting");
}

/// Takes a connection from `peer`, which may be a proxy that names its client. None: it has ended.
async fn arrive(
    worker: &Worker,
    socket: TcpStream,
    peer: SocketAddr,
    port: u16,
    mut permit: Permit,
) -> Option<Arrived> {
    let _ = socket.set_nodelay(true);
    let own = socket.local_addr().map_or(peer.ip(), |a| canonical(a).ip());
    let snapshot = worker.snapshot();
    let gateway = snapshot.gateway.as_ref()?;
    let protocol = gateway.ports.get(&port)?.protocol();
    let has_header = gateway.topology.proxy_protocol;
    // The client speaks first.
    if (has_header || matches!(protocol, ListenerProtocol::Https | ListenerProtocol::Tls))
        && let Err(e) = permit.first_byte(&socket, limits::FIRST_BYTE_TIMEOUT).await
    {
        ended(worker, peer, port, e);
        return None;
    }
    let mut io = Io::socket(socket);
    let (mut from, mut to, mut direct) = (peer, own, None);
    if has_header {
        match permit.within(HELLO, proxy_header::origin(&mut io)).await {
            Ok(Ok(Origin::Client { from: client, to: called })) => {
                (from, to, direct) = (client, called.ip(), Some(peer.ip()));
                if let Err(e) = worker.shared.gate.named(&mut permit, client.ip()) {
                    ended(worker, from, port, e);
                    return None;
                }
            }
            Ok(Ok(Origin::Sender)) => {}
            Ok(Err(e)) => {
                worker.limited("PROXY header", |left_out| {
                    tracing::info!(target: "access", peer = %peer, port, error = %e, left_out, "connection closed");
                });
                return None;
            }
            Err(e) => {
                ended(worker, peer, port, e);
                return None;
            }
        }
    }
    Some(Arrived { snapshot, io, permit, from, to, direct })
}

/// Serves a connection. What was in force when it came is not kept for it.
async fn connection(worker: &Rc<Worker>, arrived: Arrived, port: u16) {
    let Arrived { snapshot, mut io, permit, from, to, direct } = arrived;
    let Some(listeners) = snapshot.gateway.as_ref().and_then(|g| g.ports.get(&port)) else { return };
    let gate = &worker.shared.gate;
    let ended = |e| ended(worker, from, port, e);
    // From here on it is one of those that have greeted. Places are the client's: all of a proxy's connections have one address.
    let call = |tls: Option<Rc<str>>, permit, entered: Entered| {
        let permit = gate
            .connection(permit, from.ip())
            .inspect_err(|e| tracing::debug!(peer = %from, port, error = %e, "connection refused"));
        let target = DownstreamTarget::Gateway(tls);
        let (permit, entered) = (Some(permit.ok()?), Entered { direct, ..entered });
        let (source, hello, written) = (None, None, Default::default());
        Some(Downstream { peer: None, from, source, target, port, to, hello, permit, entered, written })
    };
    match listeners.protocol() {
        ListenerProtocol::Http => match permit.within(HELLO, preface(&mut io)).await {
            Ok(Some(http2)) => {
                let Some(downstream) = call(None, permit, Entered::default()) else { return };
                drop(snapshot);
                requests::requests(worker, Rc::new(downstream), io, http2).await;
            }
            Ok(None) => {}
            Err(e) => ended(e),
        },
        ListenerProtocol::Tcp => {
            let Some(listener) = listeners.find(None).next().cloned() else { return };
            let Some(downstream) = call(None, permit, Entered::default()) else { return };
            bytes(worker, snapshot, &downstream, &listener, ("*", Speaks::Anything), io).await;
        }
        ListenerProtocol::Https | ListenerProtocol::Tls => {
            let sni = match permit.within(HELLO, hello(&mut io)).await {
                Ok(Ok(sni)) => sni,
                Ok(Err(_)) => return tracing::debug!(peer = %from, port, "no TLS"),
                Err(e) => return ended(e),
            };
            let Some(listener) = listeners.find(sni.as_deref()).next().cloned() else {
                return worker.limited("no listener", |left_out| {
                    tracing::info!(target: "access", peer = %from, port, sni, left_out, "no listener matches this name");
                });
            };
            let name = sni.clone().unwrap_or_default();
            let Some(tls) = &listener.tls else {
                let Some(downstream) = call(sni.map(Into::into), permit, Entered::default()) else { return };
                return bytes(worker, snapshot, &downstream, &listener, (&name, Speaks::Tls), io).await;
            };
            turns::spend(limits::TURN_HANDSHAKE);
            let io = match permit.within(HELLO, TlsAcceptor::from(tls.server.clone()).accept(io)).await {
                Ok(Ok(io)) => io,
                Ok(Err(e)) => {
                    return worker.limited("TLS failed", |left_out| {
                        tracing::info!(target: "access", peer = %from, port, sni, error = %e, left_out, "TLS failed");
                    });
                }
                Err(e) => return ended(e),
            };
            if let Err(e) = tls.still_valid(io.get_ref().1) {
                return worker.limited("resumed session", |left_out| {
                    tracing::info!(target: "access", peer = %from, port, sni, error = %e, left_out, "TLS failed: resumed session");
                });
            }
            if !tls.admits(io.get_ref().1.peer_certificates()) {
                return worker.limited("client's certificate", |left_out| {
                    tracing::info!(target: "access", peer = %from, port, sni, left_out, "the client's certificate has none of the allowed names");
                });
            }
            if listener.protocol == ListenerProtocol::Tls {
                let Some(downstream) = call(sni.map(Into::into), permit, Entered::default()) else { return };
                return bytes(worker, snapshot, &downstream, &listener, (&name, Speaks::Anything), io).await;
            }
            let http2 = io.get_ref().1.alpn_protocol() == Some(b"h2");
            // What the name has chosen is asked for once more with each request.
            let shown = io.get_ref().1.peer_certificates();
            let certificate = tls.forwarded(sni.as_deref(), shown);
            let entered = Entered { certificate, unproven: !tls.has_proof(shown), ..Entered::default() };
            let Some(downstream) = call(Some(name.into()), permit, entered) else { return };
            drop(snapshot);
            requests::requests(worker, Rc::new(downstream), io, http2).await;
        }
    }
}

/// Carries bytes to where the listener's routes say.
pub async fn bytes<I>(
    worker: &Rc<Worker>,
    snapshot: Arc<Snapshot>,
    downstream: &Downstream,
    listener: &Listener,
    (name, speaks): (&str, Speaks),
    io: I,
) where
    I: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let busy = Busy::on(downstream);
    // It is told when it is dropped, whatever becomes of it.
    let mut record = downstream.connection(&worker.sink, &snapshot);
    record.route.clone_from(&listener.origin);
    let dry_runs = &worker.shared.metrics.dry_runs;
    let denied = snapshot
        .gateway
        .as_ref()
        .and_then(|g| downstream.authorize(dry_runs, g.access.as_ref()?, downstream.from.ip(), None));
    worker.note(downstream, None, denied.as_ref(), record.time);
    if let Some(by) = denied {
        record.details = by.details.into();
        return drop(record.failed(ResponseFlag::None, &by.error));
    }
    let Some(rule) = listener.routes(&snapshot.hosts, name).and_then(|r| r.table("").find_tcp(&downstream.tcp()))
    else {
        return drop(record.failed(ResponseFlag::NoRoute, "no route"));
    };
    record.route.clone_from(&rule.origin);
    let Some(key) = destination(worker, &snapshot, downstream, rule) else {
        return drop(record.failed(ResponseFlag::NoCluster, "no destination"));
    };
    let Some(set) = worker.destination(&snapshot, downstream, key.as_ref(), downstream.tcp().sni) else {
        return drop(record.failed(ResponseFlag::NoCluster, "no such destination"));
    };
    let opened = tcp::open(worker, &snapshot, downstream, set, speaks, record).await;
    drop(snapshot);
    if let Ok(to) = opened {
        Busy::keep_busy(busy, tcp::relay(io, to)).await;
        worker.shared.gate.note_evicted(downstream.permit.as_deref());
    }
}

fn destination(
    worker: &Rc<Worker>,
    snapshot: &Snapshot,
    downstream: &Downstream,
    rule: &TcpRule,
) -> Option<ClusterKey> {
    let destination = rule.choose()?;
    (destination.refuse_status == 0).then(|| {
        let own = &worker.shared.config.pod_namespace;
        let (service, subset) = (destination.service.as_str().into(), destination.subset.as_str().into());
        downstream.key(own, snapshot, &service, destination.port as u16, &subset).to_key()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::{
        downstream::gateway::Gateway,
        route::table::Routes,
        testing::{OWN, worker_by},
        upstream::{
            connector::{Connector, memory::Memory},
            pool,
        },
    };
    use karst_api::{route as ir, workload as pb};
    use karst_proxy::testing::{pod, service, snapshot};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::{LocalSet, spawn_local},
    };

    const KEY: &str = "ns/s.ns.svc.cluster.local";

    /// What a gateway with one listener knows that sends bytes to a service.
    fn state(protocol: ListenerProtocol) -> Snapshot {
        let listener = ir::Listener {
            routes: "l".into(),
            port: 80,
            protocol: protocol as i32,
            hosts: vec!["*".into()],
            ..Default::default()
        };
        let gateway = ir::Gateway { listeners: vec![listener], ..Default::default() };
        let to = ir::Destination { service: KEY.into(), port: 80, weight: 1, ..Default::default() };
        let table =
            ir::Table { tcp: vec![ir::TcpRule { destinations: vec![to], ..Default::default() }], ..Default::default() };
        let routes = ir::Routes { producer: Some(table), ..Default::default() };
        let app = pb::Workload { tunnel_protocol: 0, ..pod("app", "10.0.0.2", &[(KEY, &[(80, 8080)])]) };
        let mut state = Snapshot::new("");
        state.mesh = snapshot(vec![pod(OWN, "10.0.0.1", &[]), app], vec![service("s", "10.96.0.1", &[(80, 8080)])]);
        state.gateway = Some(Arc::new(Gateway::new(&gateway).unwrap()));
        state.hosts.insert("l/*".into(), Arc::new(Routes::new(&routes, None).unwrap()));
        state
    }

    /// Connections may last for days, while thousands of routes change.
    #[tokio::test(start_paused = true)]
    async fn an_open_connection_keeps_no_old_snapshot() {
        let run = async {
            for protocol in [ListenerProtocol::Http, ListenerProtocol::Tcp] {
                let memory = Rc::<Memory>::default();
                memory.listen(([10, 0, 0, 2], 8080).into(), |mut io| {
                    spawn_local(async move {
                        io.write_all(b"hello").await.unwrap();
                        std::future::pending::<()>().await;
                    });
                });
                let worker = worker_by(state(protocol), "router", Connector::Memory(memory));
                let old = Arc::new(state(protocol));
                let kept = Arc::downgrade(&old);
                let from = SocketAddr::from(([192, 0, 2, 1], 5));
                let (permit, (mut client, io)) =
                    (worker.shared.gate.greeting(from.ip()).unwrap(), tokio::io::duplex(4096));
                let (io, to) = (Io::memory(io), IpAddr::from([192, 0, 2, 9]));
                let arrived = Arrived { snapshot: old, io, permit, from, to, direct: None };
                let open = spawn_local(async move { connection(&worker, arrived, 80).await });
                client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
                // It is answered: by us, or by the endpoint.
                client.read_u8().await.unwrap();
                tokio::time::sleep(pool::SWEEP * 3).await;
                assert!(!open.is_finished() && kept.upgrade().is_none(), "{protocol:?}");
            }
        };
        LocalSet::new().run_until(run).await;
    }
}
