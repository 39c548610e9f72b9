//! Connections to the node's pods: by tunnel, and as captured plaintext.

use crate::{
    conn::Conn,
    conns::Guard,
    handover::end::offer,
    inpod::LocalPod,
    metrics::Reporter,
    outcome::Outcome,
    parking::{self, Bound, Parked},
    plan::{OWN_PORTS, Refusal},
    relay, signals,
    state::{OwnPod, Service, Snapshot, Workload},
    worker::{Direction, Served, Worker},
};
use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::{HeaderMap, Method, Response, StatusCode};
use karst_api::handover::Offer;
use karst_core::{Identity, addr::is_host, authority::Authority, canonical, limits};
use karst_flows::{Decision, Seen};
use karst_hbone::{
    continuation::{self, Said, Token},
    copy::{self, Pair, Tunnel},
    lasting::{self, Acks, Asked, Joint},
    server,
    stream::TlsStream,
};
use karst_policy::{Connection, Policy, Verdict, Would, authorize, dry_run};
use karst_proxy::trace;
use karst_rt::{
    admission::{Counts, Ended, InUse, Permit, Source},
    clock, drain, socket,
};
use std::{
    net::{IpAddr, SocketAddr},
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};
use tokio::net::TcpStream;

/// Captured plaintext.
pub async fn plaintext(worker: Rc<Worker>, served: Rc<Served>, tcp: TcpStream, from: SocketAddr) {
    let Some((to, _place)) = worker.admit(&served, &tcp, Direction::Inbound) else { return };
    if from.ip() == to.ip() || served.pod.ips.contains(&from.ip()) {
        // The pod's own call, to an address that nobody has heard of yet: it is to be made again, and will not come here.
        return socket::reset_on_close(&tcp);
    }
    // Its client's share of the pod's connections: of the client that has the most, the oldest gives way when all are taken.
    let source = Source::address(from.ip(), worker.knows(from.ip()));
    let share = match Permit::admit(&[&served.pod.usage.plaintext], &source) {
        Ok(s) => s,
        Err(e) => {
            worker.shared.metrics.plaintext.note(e);
            return socket::reset_on_close(&tcp);
        }
    };
    let _in_use = share.in_use();
    let request = InboundRequest { from, to, hbone: None, identity: None, service: None };
    let (guard, ready) = open(&worker, &served.pod, request).await;
    let app = match ready {
        Ok(app) => app,
        Err(o) => {
            socket::reset_on_close(&tcp);
            return guard.end(&o);
        }
    };
    guard.established();
    signals::inbound(worker.shared.requests(), || worker.snapshot(), &guard);
    let outcome = {
        let mut pair = Pair::new(tcp, app);
        let offer = || offer(guard.conn(), &served.pod.uid, false);
        let bytes = pin!(relay::plain(&worker, &guard, &guard.conn().counts, &mut pair, &offer));
        tokio::select! {
            o = bytes => o,
            () = share.evicted() => {
                worker.shared.metrics.plaintext.note(Ended::Evicted);
                Outcome::GaveWay
            }
        }
    };
    guard.end(&outcome);
}

/// A tunnel to one of our pods.
pub async fn tunnel(worker: Rc<Worker>, served: Rc<Served>, tcp: TcpStream, from: SocketAddr) {
    let Ok(to) = tcp.local_addr().map(canonical) else { return };
    // Boxed, and gone when the tunnel is there.
    let Some((stream, peer, permit)) = Box::pin(admitted(&worker, &served, tcp, from)).await else { return };
    // Its peer is known: from here on it is in the pod's turn.
    let carried = carry(worker.clone(), served.clone(), stream, (peer, permit), (from, to));
    worker.task(&served.share, from.ip(), carried);
}

/// A tunnel that is there.
async fn carry(
    worker: Rc<Worker>,
    served: Rc<Served>,
    stream: TlsStream,
    (peer, permit): (Identity, Rc<Permit>),
    (from, to): (SocketAddr, SocketAddr),
) {
    let stop = served.watch();
    let settings = worker.settings.beside(served.pod.usage.gate.tunnels.len().saturating_sub(1));
    let (w2, p2, place2) = (worker.clone(), served.clone(), permit.clone());
    // Of the streams whose connections outlive the tunnel.
    let acks = worker.outlives_tunnels().then(Rc::<Acks>::default);
    let own = acks.clone();
    let on_stream = move |c: server::Connect| {
        if let Some(acks) = own.as_ref().filter(|_| lasting::asked(c.request.headers()) == Asked::Acks) {
            let mut leaves = p2.watch();
            let leaving = async move { leaves.reached(drain::Phase::Graceful).await };
            // Nobody's connection: what leaves does not wait for it.
            tokio::task::spawn_local(acks.clone().serve(c, leaving));
            return;
        }
        let connection = connect(w2.clone(), p2.clone(), c, (from, to), (peer.clone(), own.clone()), place2.in_use());
        w2.task(&p2.share, from.ip(), connection);
    };
    let ended = server::serve_until(stream, &settings, stop, permit.evicted(), on_stream).await;
    // Before the tasks of its streams hear of it. What has to give way, or is not allowed any more, does not come back.
    if let Some(acks) = acks {
        match &ended {
            Err(server::ServerError::Http2(e)) if !e.is_io() => acks.close(),
            Err(server::ServerError::Evicted | server::ServerError::Revoked(_)) => acks.close(),
            _ => acks.break_off(),
        }
    }
    if let Err(e) = ended {
        if matches!(e, server::ServerError::Evicted) {
            worker.shared.metrics.tunnels.note(Ended::Evicted);
        }
        tracing::debug!(target: "access", pod = served.pod.key, peer = %from, error = %e, "tunnel ended");
    }
}

/// A tunnel's start: until its peer has shown who it is, it has one of the places for those who have not; then one of its peer's.
async fn admitted(
    worker: &Worker,
    served: &Served,
    tcp: TcpStream,
    from: SocketAddr,
) -> Option<(TlsStream, Identity, Rc<Permit>)> {
    let gates = [&worker.shared.gate, &served.pod.usage.gate];
    let known = worker.knows(from.ip());
    let ended = |counts: &Counts, e: Ended| {
        counts.note(e);
        tracing::debug!(target: "access", pod = served.pod.key, peer = %from, error = %e, "tunnel refused");
    };
    let result = async {
        let permit = Permit::admit(&gates.map(|g| &g.handshakes), &Source::address(from.ip(), known))?;
        permit.first_byte(&tcp, limits::FIRST_BYTE_TIMEOUT).await?;
        let done = permit.within(limits::HANDSHAKE_TIMEOUT, handshake(worker, served, tcp, from)).await?;
        Ok::<_, Ended>(done.map(|(stream, peer)| (stream, peer, permit)))
    };
    let (stream, peer, mut permit) = result.await.map_err(|e| ended(&worker.shared.metrics.handshakes, e)).ok()??;
    let moved = permit.move_to(&gates.map(|g| &g.tunnels), &Source::address(from.ip(), true));
    moved.map_err(|e| ended(&worker.shared.metrics.tunnels, e)).ok()?;
    Some((stream, peer, Rc::new(permit)))
}

async fn handshake(
    worker: &Worker,
    served: &Served,
    tcp: TcpStream,
    from: SocketAddr,
) -> Option<(TlsStream, Identity)> {
    let refused = |o: &Outcome| {
        let Some(left_out) = worker.conns.logs_refusal(o.reason()) else { return };
        let (left_out, reason) = (some(left_out), o.reason());
        let why = o.text().unwrap_or_default();
        tracing::warn!(target: "access", pod = served.pod.key, peer = %from, reason, left_out, "tunnel refused: {why}");
    };
    let Some((_, own)) = worker.workload(&served.pod).await else {
        refused(&Outcome::NoWorkload);
        return None;
    };
    let mut secrets = worker.shared.secrets.clone();
    let Some(creds) = secrets.get(&own.identity, limits::HOLD_TIMEOUT).await else {
        refused(&Outcome::NoIdentity);
        return None;
    };
    let done = server::handshake(tcp, &creds).await;
    let failed = |e: &server::ServerError| {
        let Some(left_out) = worker.conns.logs_refusal("handshake").map(some) else { return };
        tracing::info!(target: "access", pod = served.pod.key, peer = %from, error = %e, left_out, "tunnel failed");
    };
    done.inspect_err(failed).ok()
}

/// A number for the log, if there is something to count.
fn some(count: u64) -> Option<u64> {
    (count > 0).then_some(count)
}

async fn connect(
    worker: Rc<Worker>,
    served: Rc<Served>,
    c: server::Connect,
    (from, to): (SocketAddr, SocketAddr),
    (peer, acks): (Identity, Option<Rc<Acks>>),
    in_use: Option<InUse>,
) {
    let server::Connect { request, mut respond } = c;
    let refuse = |respond: &mut SendResponse<Bytes>, o: &Outcome| {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(o.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        if respond.send_response(response, true).is_err() {
            respond.send_reset(Reason::REFUSED_STREAM);
        }
    };
    // First the peer's share of the pod's connections, then a place among all.
    let Some(_in_use) = in_use else {
        worker.refused(Direction::Inbound);
        return refuse(&mut respond, &Outcome::Limit);
    };
    let Some(_place) = worker.shared.budget.place(&served.pod, Direction::Inbound) else {
        worker.refused(Direction::Inbound);
        return refuse(&mut respond, &Outcome::Limit);
    };
    if worker.shared.config.on_demand {
        Box::pin(worker.introduce(&served.pod, from.ip())).await;
    }
    let (target, service) = match target(&worker.snapshot(), &served.pod.own(), &request, to) {
        Ok(t) => t,
        Err(o) => {
            let reason = o.reason();
            worker.shared.metrics.ends.note(Reporter::Destination, reason);
            if let Some(left_out) = worker.conns.logs_refusal(reason).map(some) {
                let (pod, error) = (&served.pod.key, o.text());
                tracing::info!(
                    target: "access", pod, peer = %from, identity = %peer, error, reason, left_out, "CONNECT refused"
                );
            }
            return refuse(&mut respond, &o);
        }
    };
    // One whose tunnel has broken goes on here also where nothing is handed over.
    let goes_on = acks.is_some() && matches!(lasting::asked(request.headers()), Asked::GoesOn(_));
    let knows = worker.shared.config.hand_over || goes_on;
    let continues = match continues(continuation::said(request.headers()), knows) {
        Ok(said) => said,
        Err(o) => {
            worker.shared.metrics.ends.note(Reporter::Destination, o.reason());
            return refuse(&mut respond, &o);
        }
    };
    let ask = InboundRequest { from, to: target, hbone: Some(target), identity: Some(peer), service };
    // A connection that another stream has begun, or a new one.
    let (guard, ready) = match continues {
        Said::Token(token) => Box::pin(resumed(&worker, &served.pod, ask, (&token, goes_on))).await,
        Said::Nothing | Said::Knows => {
            let (guard, ready) = open(&worker, &served.pod, ask).await;
            (guard, ready.map(App::New))
        }
    };
    // Read only now, and kept only where there is one: no connection's task is larger for it.
    if let Some(trace) = trace::of_connect(request.headers()) {
        let _ = guard.conn().trace.set(Box::new(trace));
    }
    let app = match ready {
        Ok(app) => app,
        Err(o) => {
            refuse(&mut respond, &o);
            return guard.end(&o);
        }
    };
    let mut response = Response::new(());
    if let Some(baggage) = guard.conn().destination.as_ref().and_then(|d| d.baggage().cloned()) {
        response.headers_mut().insert("baggage", baggage);
    }
    let may_continue = continues != Said::Nothing && worker.shared.config.hand_over;
    if may_continue {
        continuation::announce(response.headers_mut());
    }
    // Read only now, as above.
    let lasts = acks.as_ref().and_then(|acks| lasts(lasting::asked(request.headers()), continues, &app, acks));
    if let Some((token, _, ours)) = &lasts {
        lasting::answer(response.headers_mut(), token, *ours);
    }
    let send = match respond.send_response(response, false) {
        Ok(s) => s,
        // The tunnel has broken (again) meanwhile: another stream will come.
        Err(e) => {
            if let (App::Resumed(parked), Some((token, ..))) = (app, lasts) {
                Box::pin(park_again(&worker, &guard, parked, token)).await;
            }
            return guard.end(&Outcome::Broken(e.to_string()));
        }
    };
    guard.established();
    let joint = lasts.zip(acks).map(|((token, theirs, _), acks)| {
        let line = acks.line(send.stream_id());
        Box::new(Joint { token, line, theirs })
    });
    let stream = (send, request.into_body());
    let mut tunnel = match app {
        App::New(app) => {
            signals::inbound(worker.shared.requests(), || worker.snapshot(), &guard);
            let mut tunnel = Tunnel::new(app, stream, false, may_continue);
            if let Some(joint) = joint
                && let Err(e) = tunnel.outlive(*joint, 0)
            {
                drop(tunnel);
                return guard.end(&Outcome::Broken(e.to_string()));
            }
            tunnel
        }
        App::Resumed(parked) => {
            if parked.reached().is_some_and(|reached| reached.sent.is_none()) {
                worker.shared.metrics.survived.resumed.fetch_add(1, Relaxed);
                guard.resumed();
            }
            match parked.take().map(|cut| Tunnel::next(cut, stream, joint, may_continue)) {
                Some(Ok(tunnel)) => tunnel,
                Some(Err(e)) => return guard.end(&Outcome::Broken(e.to_string())),
                None => return guard.end(&Outcome::Drained),
            }
        }
    };
    let offer = || offer(guard.conn(), &served.pod.uid, true);
    let outcome = match relay::stream(&worker, &guard, &guard.conn().counts, &mut tunnel, &offer).await {
        // The peer has left, or the tunnel has broken, and somebody will ask for it.
        Ok(token) => Box::pin(park(&worker, &guard, &mut tunnel, token, &offer)).await,
        Err(outcome) => outcome,
    };
    drop(tunnel);
    guard.end(&outcome);
}

/// Does the connection outlive its tunnel: by which token it goes on, how far the client has come, and how far we have.
fn lasts(asked: Asked, continues: Said, app: &App, acks: &Acks) -> Option<(Token, u64, u64)> {
    match (asked, continues, app) {
        // A tunnel that leaves, and whose last such connection has ended: nothing is acknowledged there any more.
        (Asked::Lasts, ..) if acks.is_gone() => None,
        (Asked::Lasts, Said::Nothing | Said::Knows, App::New(_)) => Some((Token::new().ok()?, 0, 0)),
        (Asked::GoesOn(theirs), Said::Token(token), App::Resumed(parked)) => {
            Some((token, theirs, parked.reached()?.given))
        }
        (Asked::Nothing | Asked::Lasts | Asked::GoesOn(_) | Asked::Acks, ..) => None,
    }
}

/// What a CONNECT says of continuation, as far as it counts here (`knows`). A connection's rest is never taken for a new connection.
fn continues(said: Said, knows: bool) -> Result<Said, Outcome> {
    match (said, knows) {
        (said, true) => Ok(said),
        (Said::Nothing | Said::Knows, false) => Ok(Said::Nothing),
        // A 4xx: no later time, and no other endpoint, makes it better.
        (Said::Token(_), false) => Err(Outcome::BadRequest("connections are not continued here (KARST_HAND_OVER)")),
    }
}

/// The application of a stream.
enum App {
    /// It has had no byte yet.
    New(TcpStream),
    /// Of a stream before.
    Resumed(Parked),
}

/// The connection that goes on with a stream. It is judged as a new one is.
async fn resumed(
    worker: &Worker,
    pod: &Arc<LocalPod>,
    request: InboundRequest,
    (token, has_broken): (&Token, bool),
) -> (Guard, Result<App, Outcome>) {
    let (peer, from, to) = (request.identity.clone(), request.from.ip(), request.to);
    let parked = match peer {
        // It waits at our successor: the client is to ask there, at once.
        Some(_) if worker.drain.started() => None,
        Some(peer) => worker.shared.parking.claim(*token, Bound { peer, from, owner: pod.uid.clone(), to }).await,
        None => None,
    };
    let (guard, judged) = judged(worker, pod, request).await;
    let app = match (judged, parked) {
        (Err(outcome), _) => Err(outcome),
        // Where the one has come to an orderly end and the other has not, somebody has lost something.
        (Ok(()), Some(parked)) if parked.reached().is_some() != has_broken => {
            Err(Outcome::BadRequest("the connection was not interrupted in the way that the stream says"))
        }
        (Ok(()), Some(parked)) => Ok(App::Resumed(parked)),
        (Ok(()), None) => Err(Outcome::NotFound("no connection waits for this stream (any more)")),
    };
    (guard, app)
}

/// Keeps a connection whose stream was interrupted until the next one comes; or until this process leaves, too, and its successor
/// keeps it.
async fn park(worker: &Worker, guard: &Guard, tunnel: &mut Tunnel, token: Token, offer: &dyn Fn() -> Offer) -> Outcome {
    let Some(bound) = bound(guard) else { return Outcome::NoIdentity };
    let has_broken = tunnel.has_broken();
    let cut = match tunnel.interrupted() {
        Ok(cut) => cut,
        Err(e) => return Outcome::Broken(e.to_string()),
    };
    tunnel.release();
    if !has_broken {
        worker.shared.metrics.handed_over.followed.fetch_add(1, Relaxed);
    }
    let gone = parking::park(&worker.shared.parking, token, bound.clone(), cut).await;
    let mut drain = worker.drain.clone();
    tokio::select! {
        _ = gone => return Outcome::HandedOver,
        () = drain.reached(drain::Phase::HandOver) => {}
    }
    match worker.shared.parking.claim(token, bound).await {
        Some(parked) => relay::leave_cut(worker, guard, parked, token, offer).await,
        None => Outcome::HandedOver,
    }
}

/// Keeps a connection for its next stream that could not go on with this one.
async fn park_again(worker: &Worker, guard: &Guard, parked: Parked, token: Token) {
    if let (Some(bound), Some(cut)) = (bound(guard), parked.take()) {
        drop(parking::park(&worker.shared.parking, token, bound, cut).await);
    }
}

/// Who may go on with a connection that a tunnel has brought.
fn bound(guard: &Guard) -> Option<Bound> {
    let conn = guard.conn();
    let (peer, pod) = (conn.source_identity.clone()?, conn.pod.as_ref()?);
    Some(Bound { peer, from: conn.source_addr.ip(), owner: pod.uid.clone(), to: conn.destination_addr })
}

/// Where a CONNECT goes: always to this pod (docs/hbone.md §4).
pub fn target<B>(
    snapshot: &Snapshot,
    own: &OwnPod<'_>,
    request: &http::Request<B>,
    to: SocketAddr,
) -> Result<(SocketAddr, Option<Arc<Service>>), Outcome> {
    if request.method() != Method::CONNECT || request.extensions().get::<h2::ext::Protocol>().is_some() {
        return Err(Outcome::BadRequest("the method is not a plain CONNECT"));
    }
    let asked = request.uri().authority().ok_or(Outcome::BadRequest("CONNECT without authority"))?;
    let (host, port) = authority(asked.as_str()).ok_or(Outcome::BadRequest("the authority is not HOST:PORT"))?;
    let port = match host {
        Host::Ip(ip) if ip != to.ip() => {
            return Err(Outcome::BadRequest("the authority is not the address that the tunnel goes to"));
        }
        Host::Ip(_) => port,
        Host::Name(asked) => {
            let svc = snapshot
                .host(asked.host(), own.namespace)
                .ok_or(Outcome::NotFound("unknown host name in the authority"))?;
            let own = snapshot.own_pod(own).ok_or(Outcome::NoWorkload)?;
            let ports = own
                .services
                .iter()
                .find(|(k, _)| *k == svc.key)
                .map(|(_, p)| p)
                .ok_or(Outcome::NotFound("this pod is not an endpoint of the service"))?;
            let target = ports
                .iter()
                .find(|(p, _)| *p == port)
                .map(|(_, t)| *t)
                .ok_or(Outcome::NotFound("the service does not have this port"))?;
            return guard_port(target).map(|t| (SocketAddr::new(to.ip(), t), Some(svc.clone())));
        }
    };
    guard_port(port).map(|p| (SocketAddr::new(to.ip(), p), named(snapshot, own, request.headers())))
}

/// The service of the pod's that the client says it has called (`forwarded: for=...;host=NAME`). Any other name counts for nothing.
fn named(snapshot: &Snapshot, own: &OwnPod<'_>, headers: &HeaderMap) -> Option<Arc<Service>> {
    let mut pairs =
        headers.get(http::header::FORWARDED)?.to_str().ok()?.split([';', ',']).filter_map(|p| p.trim().split_once('='));
    let host = pairs.find(|(k, _)| k.eq_ignore_ascii_case("host")).map(|(_, v)| v.trim_matches('"'))?;
    let mut all = snapshot.own_pod(own)?.services.iter().filter_map(|(k, _)| snapshot.services.get(k));
    all.find(|x| *x.hostname == *host).cloned()
}

/// The service that a connection to a port of a workload is for, where nobody says: the first of its services that has this port
/// as a target (Istio's guess). For the log and metrics only: nothing is decided by it.
fn guess(snapshot: &Snapshot, own: &Workload, port: u16) -> Option<Arc<Service>> {
    own.services.iter().find_map(|(key, ports)| {
        let service = snapshot.services.get(key)?;
        let of_service = service.ports.iter().any(|(_, target)| *target == port);
        // A named port is the endpoint's.
        (of_service || ports.iter().any(|(_, target)| *target == port)).then(|| service.clone())
    })
}

fn guard_port(port: u16) -> Result<u16, Outcome> {
    if OWN_PORTS.contains(&port) { Err(Outcome::NotFound("the port is one of ztunnel's own")) } else { Ok(port) }
}

enum Host<'a> {
    Ip(IpAddr),
    Name(Authority<'a>),
}

/// Reads `ip:port`, `[ip6]:port` or `name:port`.
fn authority(text: &str) -> Option<(Host<'_>, u16)> {
    let authority = Authority::parse(text.as_bytes()).ok()?;
    let port = authority.port()?;
    let host = match authority.host().trim_matches(['[', ']']).parse() {
        Ok(ip) => Host::Ip(ip),
        Err(_) => Host::Name(authority),
    };
    Some((host, port))
}

/// What somebody wants of a pod.
pub struct InboundRequest {
    /// Who, by address.
    pub from: SocketAddr,
    /// Which application.
    pub to: SocketAddr,
    /// What the CONNECT asked for.
    pub hbone: Option<SocketAddr>,
    /// Who, as proven.
    pub identity: Option<Identity>,
    /// By which service; None: nobody has said.
    pub service: Option<Arc<Service>>,
}

/// Registers, authorizes, and connects to the application. The same for tunnels, plaintext and same-node connections.
pub async fn open(
    worker: &Worker,
    pod: &Arc<LocalPod>,
    request: InboundRequest,
) -> (Guard, Result<TcpStream, Outcome>) {
    let (from, to) = (request.from, request.to);
    let (guard, judged) = judged(worker, pod, request).await;
    if let Err(outcome) = judged {
        return (guard, Err(outcome));
    }
    let source_ip = worker.shared.config.orig_src.then_some(from.ip());
    let app = if pod.holds(to.ip()) {
        pod.connector.connect_app(to, source_ip, limits::CONNECT_TIMEOUT).await
    } else {
        // What the pod would have forwarded to a container or virtual machine of its own.
        let known = guard.conn().destination.as_ref().map_or(&[][..], |own| &own.ips);
        let own = if pod.ips.is_empty() { known } else { &pod.ips };
        if let Err(outcome) = is_inside(pod, own, to) {
            return (guard, Err(outcome));
        }
        pod.connector.connect(to, limits::CONNECT_TIMEOUT).await
    };
    (guard, app.map_err(|e| Outcome::Connect(e.to_string())))
}

/// Registers and authorizes.
async fn judged(worker: &Worker, pod: &Arc<LocalPod>, request: InboundRequest) -> (Guard, Result<(), Outcome>) {
    if worker.shared.config.on_demand {
        Box::pin(worker.introduce(pod, request.from.ip())).await;
    }
    let known = worker.workload(pod).await;
    let source = known.as_ref().and_then(|(s, _)| s.workload(request.from.ip()).cloned());
    // An address proves nothing: a source that has shown another identity is not the workload of that address.
    let source = source.filter(|s| request.identity.as_ref().is_none_or(|i| *i == s.identity));
    let service = request.service.or_else(|| known.as_ref().and_then(|(s, own)| guess(s, own, request.to.port())));
    let own: Option<Arc<Workload>> = known.map(|(_, own)| own);
    let check = Connection {
        source_identity: request.identity.clone(),
        source_ip: request.from.ip(),
        destination_ip: request.to.ip(),
        destination_port: request.to.port(),
    };
    let guard = worker.conns.add(Conn {
        reporter: Reporter::Destination,
        source_addr: request.from,
        destination_addr: request.to,
        hbone_addr: request.hbone,
        source,
        destination: own.clone(),
        service,
        mtls: request.identity.is_some(),
        source_identity: request.identity,
        check: Some(check.clone()),
        pod: Some(pod.clone()),
        counts: copy::Counts::default(),
        started: Instant::now(),
        trace: Default::default(),
    });
    if own.is_none() {
        return (guard, Err(Outcome::NoWorkload));
    }
    if let Some(refusal) = refusal(&check.source_ip, request.to) {
        return (guard, Err(Outcome::Refused(refusal)));
    }
    let judged = authorized(worker, pod, &check, &guard).await;
    note(worker, pod, &guard, judged.as_ref().err());
    (guard, judged)
}

/// Notes what policies have said, in the book of flows. (What was refused for another reason says nothing of policies.)
fn note(worker: &Worker, pod: &LocalPod, guard: &Guard, refused: Option<&Outcome>) {
    let decision = match refused {
        None | Some(Outcome::Denied(Verdict::Allow)) => Decision::Allowed,
        Some(Outcome::Denied(Verdict::DeniedBy(policy, _))) => Decision::DeniedBy(policy),
        Some(Outcome::Denied(Verdict::NotAllowed)) => Decision::NotAllowed,
        Some(_) => return,
    };
    let conn = guard.conn();
    worker.flows.note(clock::wall, || Seen {
        reporter: karst_flows::Reporter::Ztunnel,
        identity: conn.source_identity.as_ref(),
        from: conn.source_addr.ip(),
        namespace: &pod.namespace,
        workload: conn.destination.as_ref().map_or(&*pod.name, |own| &*own.workload_name),
        service: conn.service.as_ref().map_or("", |service| &*service.key),
        to: conn.destination_addr,
        pod: &pod.name,
        request: None,
        decision,
    });
}

/// Is an address inside the pod? Its kernel speaks to what is there from another address than those by which the mesh knows the
/// pod. Nobody is to get from outside to the outside with the pod's address.
fn is_inside(pod: &LocalPod, own: &[IpAddr], to: SocketAddr) -> Result<(), Outcome> {
    match pod.connector.source_to(to) {
        Ok(source) if is_host(source) && !own.is_empty() && !own.contains(&source) => Ok(()),
        Ok(_) => Err(Outcome::Refused(Refusal::NotInside)),
        Err(e) => Err(Outcome::Connect(e.to_string())),
    }
}

/// What no policy can allow: a client without an address of its own, ztunnel's own ports, and what is only the pod's own
/// (127.0.0.0/8, which Istio's rules bring from outside except for 127.0.0.1).
fn refusal(from: &IpAddr, to: SocketAddr) -> Option<Refusal> {
    if OWN_PORTS.contains(&to.port()) {
        return Some(Refusal::OwnPort);
    }
    if !is_host(to.ip()) {
        return Some(Refusal::NotInside);
    }
    (!is_host(*from)).then_some(Refusal::NotItsAddress)
}

/// Judges by the newest state; a policy that is named and not there is waited for. What policies in dry run would have done is
/// told of, and decides nothing.
async fn authorized(worker: &Worker, pod: &LocalPod, check: &Connection, guard: &Guard) -> Result<(), Outcome> {
    match judge(&worker.snapshot(), &pod.own(), || *worker.shared.stream.borrow(), check) {
        Ok(judged) => decided(judged, guard),
        // Apart: it is rare, and the connection's task would be as large.
        Err(_) => Box::pin(authorized_later(worker, pod, check, guard)).await,
    }
}

fn decided((verdict, dry_runs): Judged<'_>, guard: &Guard) -> Result<(), Outcome> {
    guard.dry_run(&dry_runs);
    if verdict.is_allow() { Ok(()) } else { Err(Outcome::Denied(verdict)) }
}

async fn authorized_later(worker: &Worker, pod: &LocalPod, check: &Connection, guard: &Guard) -> Result<(), Outcome> {
    let (mut state, mut stream) = (worker.shared.state.clone(), worker.shared.stream.clone());
    let deadline = tokio::time::Instant::now() + limits::HOLD_TIMEOUT;
    loop {
        let snapshot = state.borrow_and_update().clone();
        let told = *stream.borrow_and_update();
        let missing = match judge(&snapshot, &pod.own(), || told, check) {
            Ok(judged) => return decided(judged, guard),
            Err(missing) => missing,
        };
        let changed = async {
            tokio::select! {
                r = state.changed() => r.is_ok(),
                r = stream.changed() => r.is_ok(),
            }
        };
        if tokio::time::timeout_at(deadline, changed).await != Ok(true) {
            return Err(missing);
        }
    }
}

/// Do policies allow, by what is known now, what another process has allowed before? What is not known is not waited for.
///
/// # Errors
/// Why not.
pub fn still_allowed(worker: &Worker, pod: &LocalPod, check: &Connection) -> Result<(), Outcome> {
    let (told, snapshot) = (*worker.shared.stream.borrow(), worker.snapshot());
    let (verdict, _) = judge(&snapshot, &pod.own(), || told, check)?;
    if verdict.is_allow() { Ok(()) } else { Err(Outcome::Denied(verdict)) }
}

/// A verdict, and what policies in dry run would have done.
type Judged<'a> = (Verdict, Vec<(&'a Policy, Would)>);

/// By what is known now; Err says what is to be waited for. `told`: there is a control plane that will tell of a pod of which
/// nothing is known, or only of another that has had its name.
fn judge<'a>(
    snapshot: &'a Snapshot,
    pod: &OwnPod<'_>,
    told: impl FnOnce() -> bool,
    check: &Connection,
) -> Result<Judged<'a>, Outcome> {
    let policies = match snapshot.own_pod(pod) {
        Some(own) => snapshot.policies_of(own),
        None if told() => return Err(Outcome::NoWorkload),
        None => snapshot.policies_of_own(pod),
    };
    let policies = policies.map_err(Outcome::PolicyMissing)?;
    let dry_runs = dry_run(policies.iter().copied(), check);
    Ok((authorize(policies.into_iter(), check), dry_runs))
}

/// For the tests of `crates/explain`: what of [`open`]'s decisions forbids a call, where everything has been told. None: it is let in.
#[cfg(feature = "fuzz")]
pub fn forbids(
    snapshot: &Snapshot,
    own: &OwnPod<'_>,
    source_identity: Option<Identity>,
    source_ip: IpAddr,
    to: SocketAddr,
) -> Option<String> {
    if let Some(refusal) = refusal(&source_ip, to) {
        return Some(refusal.text().into());
    }
    let check = Connection { source_identity, source_ip, destination_ip: to.ip(), destination_port: to.port() };
    match judge(snapshot, own, || true, &check) {
        Ok((Verdict::Allow, _)) => None,
        Ok((Verdict::DeniedBy(policy, _), _)) => Some(policy.to_string()),
        Ok((Verdict::NotAllowed, _)) => Some(String::new()),
        Err(outcome) => Some(outcome.text().unwrap_or_default()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;

    #[test]
    fn a_pod_made_anew_is_judged_as_one_that_nobody_has_told_of() {
        use karst_policy::{Action, Scope};
        use karst_proxy::testing::{pod, snapshot};
        let check = Connection {
            source_identity: None,
            source_ip: [10, 0, 0, 9].into(),
            destination_ip: [10, 0, 0, 1].into(),
            destination_port: 80,
        };
        let policy = |name: &str, scope: Scope, action: Action| Policy {
            name: name.into(),
            namespace: "ns".into(),
            scope,
            action,
            rules: vec![],
            dry_run: false,
        };
        let own = |account| OwnPod { namespace: "ns", name: "a", account, uid: Some("1") };
        let text = |r: Result<Judged<'_>, Outcome>| match r {
            Ok((v, _)) => format!("{v:?}"),
            Err(o) => o.text().unwrap_or_default(),
        };
        let mut s = snapshot(vec![pod("a", "10.0.0.1", &[])], vec![]);
        assert_eq!(text(judge(&s, &own("a"), || true, &check)), "Allow");
        assert_eq!(text(judge(&s, &own("b"), || false, &check)), "Allow", "no policy, and nobody to tell");
        let waits = text(judge(&s, &own("b"), || true, &check));
        assert!(waits.contains("not known to the control plane"), "who could tell is waited for: {waits}");
        s.put_policy("ns/wide", policy("wide", Scope::Namespace, Action::Allow));
        assert_eq!(text(judge(&s, &own("b"), || false, &check)), "NotAllowed");
        s.put_policy("ns/some", policy("some", Scope::WorkloadSelector, Action::Allow));
        assert_eq!(text(judge(&s, &own("a"), || false, &check)), "NotAllowed", "some is not for it");
        let closed = text(judge(&s, &own("b"), || false, &check));
        assert!(closed.contains("ns/some"), "some may be for it: {closed}");
    }

    #[test]
    fn the_service_is_the_one_that_is_named_or_has_the_port() {
        use karst_proxy::testing::{pod, service, snapshot};
        let key = |name: &str| format!("ns/{name}.ns.svc.cluster.local");
        let (a, b, c) = (key("a"), key("b"), key("c"));
        // Port 80 of `b` is a named port, which this pod has at 8081.
        let own: &[(&str, &[(u32, u32)])] = &[(&a, &[(80, 8080)]), (&b, &[(80, 8081)]), (&c, &[(80, 8080)])];
        let services = vec![
            service("c", "10.96.0.3", &[(80, 8080)]),
            service("b", "10.96.0.2", &[(80, 0)]),
            service("a", "10.96.0.1", &[(80, 8080)]),
            service("other", "10.96.0.4", &[(80, 9090)]),
        ];
        let s = snapshot(vec![pod("p", "10.0.0.1", own)], services);
        let pod = OwnPod { namespace: "ns", name: "p", account: "p", uid: None };
        let w = s.own_pod(&pod).unwrap().clone();
        let name = |s: Option<Arc<Service>>| s.map_or("-".into(), |s| s.name.to_string());
        let guessed = |port| name(guess(&s, &w, port));
        assert_eq!([guessed(8080), guessed(8081), guessed(9090)], ["a", "b", "-"]);
        let asked = |forwarded: Option<&str>| {
            let mut r = http::Request::connect("10.0.0.1:8080");
            if let Some(f) = forwarded {
                r = r.header("forwarded", f);
            }
            let (to, service) = target(&s, &pod, &r.body(()).unwrap(), ([10, 0, 0, 1], 15008).into()).unwrap();
            assert_eq!(to, SocketAddr::from(([10, 0, 0, 1], 8080)));
            name(service)
        };
        assert_eq!(asked(None), "-");
        assert_eq!(asked(Some("for=\"10.0.0.9:1\"")), "-");
        assert_eq!(asked(Some("for=\"10.0.0.9:1\";host=c.ns.svc.cluster.local")), "c", "as our own ztunnel says it");
        assert_eq!(asked(Some("for=x; Host=\"c.ns.svc.cluster.local\";proto=http")), "c", "and others");
        assert_eq!(asked(Some("host=other.ns.svc.cluster.local")), "-", "the pod is no endpoint of that");
    }

    #[test]
    fn who_does_not_continue_does_not_begin_with_the_rest() {
        let token = Said::Token(Token::new().unwrap());
        for (said, knows, want) in [
            (Said::Nothing, true, Some(Said::Nothing)),
            (Said::Knows, true, Some(Said::Knows)),
            (token, true, Some(token)),
            (Said::Nothing, false, Some(Said::Nothing)),
            (Said::Knows, false, Some(Said::Nothing)),
            (token, false, None),
        ] {
            let got = continues(said, knows);
            let refused = got.as_ref().err().map(|o| (o.status(), o.may_retry()));
            assert_eq!(got.ok(), want, "{said:?} {knows}");
            assert_eq!(refused, want.is_none().then_some((400, false)), "{said:?} {knows}");
        }
    }

    #[test]
    fn authorities_of_connects_are_read() {
        let show = |a: &str| match authority(a) {
            None => "-".to_string(),
            Some((Host::Ip(ip), p)) => format!("{ip} {p}"),
            Some((Host::Name(asked), p)) => format!("name {} {p}", asked.host()),
        };
        for (a, want) in [
            ("10.0.0.1:80", "10.0.0.1 80"),
            ("[fd00::1]:80", "fd00::1 80"),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1 80"),
            ("a.b:80", "name a.b 80"),
            ("A.b.:80", "name a.b 80"),
            ("a b:80", "-"),
            ("*.b:80", "-"),
            ("10.0.0.1", "-"),
            ("10.0.0.1:0", "-"),
            ("10.0.0.1:65536", "-"),
            (":80", "-"),
            ("fd00::1:80", "-"),
            ("u@h:80", "-"),
            ("[10.0.0.1]:80", "-"),
        ] {
            assert_eq!(show(a), want, "{a}");
        }
    }
}
