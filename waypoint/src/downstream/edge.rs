//! The ports of a gateway: they are open while something is configured for them, and take what comes from anywhere.

use crate::{
    cluster::endpoint_set::ClusterKey,
    downstream::{
        gate::Busy,
        gateway::Listener,
        serve::{self, Downstream, DownstreamTarget},
        stream::{Io, Reset},
    },
    route::table::TcpRule,
    snapshot::Snapshot,
    telemetry::flag::ResponseFlag,
    upstream::tls::Speaks,
    worker::{SampleKind, Worker},
};
use karst_api::route::ListenerProtocol;
use karst_core::{authority, canonical, limits};
use karst_rt::{
    accept,
    admission::{Ended, Permit},
    drain,
};
use rustls::server::Acceptor;
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    net::{Ipv6Addr, SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

/// A client must have greeted, and TLS must be done, within this time from the accept on.
pub const HELLO: Duration = Duration::from_secs(10);
/// Longest hello of TLS, bytes: one record of the largest size and what a client may put before.
const MAX_HELLO: usize = 64 << 10;
/// A port that cannot be had is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);
/// A gateway that is to end takes new connections for so long, at most half of the drain: those who send them hear of it late.
const LEAVING: Duration = Duration::from_secs(3);
/// The ports that are open.
pub type Ports = Arc<BTreeMap<u16, Arc<TcpListener>>>;

/// Keeps the ports open that the newest state has. Some time into the drain, at most half of `limit`, nobody new is taken.
pub async fn open(
    mut state: watch::Receiver<Arc<Snapshot>>,
    ports: watch::Sender<Ports>,
    mut drain: drain::Watch,
    limit: Duration,
) {
    let mut failed: BTreeMap<u16, String> = BTreeMap::new();
    loop {
        let wanted: Vec<u16> = state.borrow_and_update().gateway.iter().flat_map(|g| g.ports.keys().copied()).collect();
        let old = ports.borrow().clone();
        let mut now = BTreeMap::new();
        let mut bad = BTreeMap::new();
        for p in wanted {
            if let Some(l) = old.get(&p) {
                now.insert(p, l.clone());
                continue;
            }
            match karst_rt::socket::listener((Ipv6Addr::UNSPECIFIED, p).into()) {
                Ok(l) => {
                    tracing::info!(port = p, "listening");
                    now.insert(p, Arc::new(l));
                }
                Err(e) => {
                    let e = e.to_string();
                    if failed.get(&p) != Some(&e) {
                        tracing::error!(port = p, error = e, "cannot listen; trying again");
                    }
                    bad.insert(p, e);
                }
            }
        }
        failed = bad;
        for p in old.keys().filter(|p| !now.contains_key(p)) {
            tracing::info!(port = p, "closed: nothing is configured for it");
        }
        if !now.keys().eq(old.keys()) {
            ports.send_replace(Arc::new(now));
        }
        // What is closed is closed when nobody holds it any more.
        drop(old);
        tokio::select! {
            c = state.changed() => if c.is_err() { return },
            () = tokio::time::sleep(RETRY), if !failed.is_empty() => {}
            () = drain.reached(drain::Phase::Graceful) => {
                if !ports.borrow().is_empty() {
                    tokio::time::sleep(LEAVING.min(limit / 2)).await;
                }
                ports.send_replace(Ports::default());
                return;
            }
        }
    }
}

/// Accepts on the open ports, in a worker.
pub async fn accept(w: Rc<Worker>, mut ports: watch::Receiver<Ports>) {
    let mut tasks: HashMap<u16, (Arc<TcpListener>, tokio::task::JoinHandle<()>)> = HashMap::new();
    loop {
        let now = ports.borrow_and_update().clone();
        tasks.retain(|p, (l, task)| {
            let same = now.get(p).is_some_and(|n| Arc::ptr_eq(n, l));
            if !same {
                task.abort();
            }
            same
        });
        for (p, l) in now.iter() {
            if tasks.contains_key(p) {
                continue;
            }
            let own = l.try_clone().and_then(tokio::net::TcpListener::from_std);
            match own {
                Ok(own) => {
                    let task = tokio::task::spawn_local(port(w.clone(), own, *p));
                    tasks.insert(*p, (l.clone(), task));
                }
                Err(e) => tracing::error!(port = p, error = %e, "cannot accept"),
            }
        }
        drop(now);
        if ports.changed().await.is_err() {
            return;
        }
    }
}

async fn port(w: Rc<Worker>, listener: tokio::net::TcpListener, port: u16) {
    loop {
        let (s, from) = accept::accept(&listener).await;
        let from = canonical(from);
        let Ok(permit) = w.shared.gate.greeting(from.ip()) else { continue };
        let (open, w) = (w.connection(), w.clone());
        tokio::task::spawn_local(async move {
            let mut forced = w.drain.clone();
            tokio::select! {
                () = connection(&w, s, from, port, permit) => {}
                () = forced.reached(drain::Phase::Forced) => {}
            }
            drop(open);
        });
    }
}

async fn connection(w: &Rc<Worker>, tcp: TcpStream, from: SocketAddr, port: u16, permit: Permit) {
    let _ = tcp.set_nodelay(true);
    let to = tcp.local_addr().map_or(from.ip(), |a| canonical(a).ip());
    let s = w.snapshot();
    let Some(p) = s.gateway.as_ref().and_then(|g| g.ports.get(&port)) else { return };
    let gate = &w.shared.gate;
    let ended = |e: Ended| {
        gate.counts.greetings.note(e);
        tracing::debug!(peer = %from, port, error = %e, "no greeting");
    };
    // From here on it is one of those that have greeted.
    let call = |tls: Option<Rc<str>>, permit| {
        let permit = gate
            .connection(permit, from.ip())
            .inspect_err(|e| tracing::debug!(peer = %from, port, error = %e, "connection refused"));
        let target = DownstreamTarget::Gateway(tls);
        Some(Downstream { peer: None, from, source: None, target, port, to, hello: None, permit: Some(permit.ok()?) })
    };
    match p.protocol() {
        ListenerProtocol::Http => {
            let mut io = Io::socket(tcp);
            match permit.within(HELLO, preface(&mut io)).await {
                Ok(Some(http2)) => {
                    let Some(downstream) = call(None, permit) else { return };
                    serve::requests(w, Rc::new(downstream), io, http2).await;
                }
                Ok(None) => {}
                Err(e) => ended(e),
            }
        }
        ListenerProtocol::Tcp => {
            let Some(l) = p.find(None).next() else { return };
            let Some(downstream) = call(None, permit) else { return };
            bytes(w, &s, &downstream, l, ("*", Speaks::Anything), Io::socket(tcp)).await;
        }
        ListenerProtocol::Https | ListenerProtocol::Tls => {
            if let Err(e) = permit.first_byte(&tcp, limits::FIRST_BYTE_TIMEOUT).await {
                return ended(e);
            }
            let mut io = Io::socket(tcp);
            let sni = match permit.within(HELLO, hello(&mut io)).await {
                Ok(Ok(sni)) => sni,
                Ok(Err(_)) => return tracing::debug!(peer = %from, port, "no TLS"),
                Err(e) => return ended(e),
            };
            let Some(l) = p.find(sni.as_deref()).next().cloned() else {
                return tracing::info!(target: "access", peer = %from, port, sni, "no listener is for this name");
            };
            let name = sni.clone().unwrap_or_default();
            let Some(tls) = &l.tls else {
                let Some(downstream) = call(sni.map(Into::into), permit) else { return };
                return bytes(w, &s, &downstream, &l, (&name, Speaks::Tls), io).await;
            };
            let io = match permit.within(HELLO, TlsAcceptor::from(tls.server.clone()).accept(io)).await {
                Ok(Ok(io)) => io,
                Ok(Err(e)) => {
                    return tracing::info!(target: "access", peer = %from, port, sni, error = %e, "TLS failed");
                }
                Err(e) => return ended(e),
            };
            if let Err(e) = tls.still_valid(io.get_ref().1) {
                return tracing::info!(target: "access", peer = %from, port, sni, error = %e, "TLS failed: resumed session");
            }
            if !tls.admits(io.get_ref().1.peer_certificates()) {
                return tracing::info!(target: "access", peer = %from, port, sni, "the client's certificate has none of the names that may come in");
            }
            if l.protocol == ListenerProtocol::Tls {
                let Some(downstream) = call(sni.map(Into::into), permit) else { return };
                return bytes(w, &s, &downstream, &l, (&name, Speaks::Anything), io).await;
            }
            let http2 = io.get_ref().1.alpn_protocol() == Some(b"h2");
            // What the name has chosen is asked for once more with each request.
            let Some(downstream) = call(Some(name.into()), permit) else { return };
            drop(s);
            serve::requests(w, Rc::new(downstream), io, http2).await;
        }
    }
}

/// Is HTTP/2 spoken, without TLS? None: nothing is.
async fn preface(io: &mut Io) -> Option<bool> {
    let mut first = Vec::with_capacity(serve::PREFACE.len());
    let mut buf = [0; 1024];
    while first.is_empty() || (first.len() < serve::PREFACE.len() && serve::PREFACE.starts_with(&first)) {
        match io.read(&mut buf).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => first.extend_from_slice(&buf[..n]),
        }
    }
    let http2 = first.starts_with(serve::PREFACE);
    io.unread(first.into());
    Some(http2)
}

/// The name in a TLS hello. What has been read is read again by whom the connection is for.
///
/// # Errors
/// What comes is no TLS.
pub async fn hello(io: &mut Io) -> Result<Option<String>, String> {
    let mut first = Vec::with_capacity(2048);
    let found = read_hello(io, &mut first).await;
    io.unread(first.into());
    found
}

async fn read_hello(io: &mut Io, first: &mut Vec<u8>) -> Result<Option<String>, String> {
    let mut acceptor = Acceptor::default();
    let mut buf = vec![0; 4096];
    loop {
        let n = io.read(&mut buf).await.map_err(|e| e.to_string())?;
        if n == 0 || first.len() + n > MAX_HELLO {
            return Err("no hello".into());
        }
        first.extend_from_slice(&buf[..n]);
        let mut rest = &buf[..n];
        while !rest.is_empty() {
            acceptor.read_tls(&mut rest).map_err(|e| e.to_string())?;
            if let Some(a) = acceptor.accept().map_err(|(e, _)| e.to_string())? {
                // As authorities are written, or a last dot would make another name of it.
                let own = |n: &str| authority::name(n).map_or_else(|| n.to_ascii_lowercase(), Cow::into_owned);
                return Ok(a.client_hello().server_name().map(own));
            }
        }
    }
}

/// Carries bytes to where the listener's routes say.
pub async fn bytes<I>(
    w: &Rc<Worker>,
    s: &Arc<Snapshot>,
    downstream: &Downstream,
    l: &Listener,
    (name, speaks): (&str, Speaks),
    io: I,
) where
    I: AsyncRead + AsyncWrite + Reset + Unpin,
{
    let busy = Busy::on(downstream);
    // It is told when it is dropped, whatever becomes of it.
    let mut record = downstream.connection(w, s);
    record.route.clone_from(&l.origin);
    if let Some(by) = s.gateway.as_ref().and_then(|g| downstream.authorize(w, g.access.as_ref()?, None)) {
        record.details = by.details.into();
        return drop(record.failed(ResponseFlag::None, &by.error));
    }
    let Some(rule) = l.routes(&s.hosts, name).and_then(|r| r.table("").find_tcp(&downstream.tcp())) else {
        return drop(record.failed(ResponseFlag::NoRoute, "no route"));
    };
    record.route.clone_from(&rule.origin);
    let Some(key) = destination(w, s, downstream, rule) else {
        return drop(record.failed(ResponseFlag::NoCluster, "no destination"));
    };
    let Some(set) = w.destination(s, downstream, &key, downstream.tcp().sni) else {
        return drop(record.failed(ResponseFlag::NoCluster, "no such destination"));
    };
    if let Ok(to) = serve::open(w, s, downstream, set, speaks, record).await {
        Busy::keep_busy(busy, serve::relay(io, to)).await;
        w.shared.gate.note_evicted(downstream.permit.as_deref());
    }
}

fn destination(w: &Rc<Worker>, s: &Snapshot, downstream: &Downstream, rule: &TcpRule) -> Option<ClusterKey> {
    let d = rule.choose_weighted(w.sample(SampleKind::Weight, rule.total_weight()))?;
    (d.refuse_status == 0)
        .then(|| downstream.key(w, s, &d.service.as_str().into(), d.port as u16, &d.subset.as_str().into()))
}
