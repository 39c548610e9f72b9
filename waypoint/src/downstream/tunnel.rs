//! One CONNECT: may it come here, and what is spoken on it; or does a connection go on with it that another stream has begun.

use crate::{
    downstream::{
        context::{ClientHello, Downstream, DownstreamTarget, Written},
        continued::{Next, Place, Waits},
        hello::{HELLO, hello},
        sniff,
        stream::Io,
        tcp::tcp,
    },
    quota::keeper,
    snapshot::Snapshot,
    worker::Worker,
};
use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Method, Response, StatusCode};
use karst_api::workload::AppProtocol;
use karst_core::{Identity, authority::Authority};
use karst_hbone::{
    continuation::{self, Said, Token},
    parking::Bound,
    server::Connect,
};
use karst_proxy::{
    endpoints::is_waypoint,
    state::{Service, Workload},
};
use karst_rt::admission::InUse;
use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
};

/// Serves a stream of a tunnel to its end. `in_use`: its tunnel is not idle.
pub async fn stream(worker: Rc<Worker>, connect: Connect, peer: Identity, from: SocketAddr, mut in_use: Option<InUse>) {
    let Connect { request, mut respond } = connect;
    if keeper::is_asked(&request, &peer, &worker.shared.identity) {
        let Ok(send) = respond.send_response(Response::new(()), false) else { return };
        let io = Io::tunnel(send, request.into_body(), worker.lingering.clone());
        // Rare, and large: not in every stream's task.
        return Box::pin(keeper::serve(&worker.shared.quota, io, worker.drain.clone())).await;
    }
    let called = {
        let snapshot = worker.snapshot();
        target(&snapshot, worker.own(&snapshot).map(|own| &**own), &request, peer, from)
    };
    let mut downstream = match called {
        Ok(c) => c,
        Err((status, why)) => {
            worker.limited("CONNECT refused", |left_out| {
                tracing::info!(target: "access", peer = %from, error = why, left_out, "CONNECT refused");
            });
            return refuse(&mut respond, status);
        }
    };
    let lingering = worker.lingering.clone();
    let mut io = match (continuation::said(request.headers()), bound(&downstream)) {
        (Said::Nothing, _) | (Said::Knows, None) => {
            let Ok(send) = respond.send_response(Response::new(()), false) else { return };
            Io::tunnel(send, request.into_body(), lingering)
        }
        (Said::Knows, Some(bound)) => {
            let Ok(send) = respond.send_response(knows(), false) else { return };
            let waits = Waits { parking: worker.shared.parking.clone(), bound };
            let first = Next { send, recv: request.into_body(), held: Box::new(in_use.take()) };
            Io::continuing(first, false, Box::new(waits), lingering)
        }
        (Said::Token(_), None) => return refuse(&mut respond, StatusCode::BAD_REQUEST),
        // Rare: not in every stream's task.
        (Said::Token(token), Some(bound)) => {
            let stream = (respond, request.into_body());
            return Box::pin(goes_on(&worker, bound, token, stream, in_use)).await;
        }
    };
    let known =
        downstream.service().and_then(|s| s.protocols.iter().find(|(p, _)| *p == downstream.port)).map(|(_, a)| *a);
    match known.unwrap_or(AppProtocol::Unknown) {
        AppProtocol::Tcp => tcp(&worker, &downstream, io).await,
        AppProtocol::Tls => {
            // What is no TLS after all is carried as it is.
            match tokio::time::timeout(HELLO, hello(&mut io)).await {
                Ok(found) => downstream.hello = found.ok().map(|name| ClientHello { name }),
                Err(_) => return tracing::debug!(peer = %from, "no TLS in time"),
            }
            tcp(&worker, &downstream, io).await;
        }
        AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => {
            sniff::http(&worker, Rc::new(downstream), io, true).await
        }
        AppProtocol::Unknown => sniff::http(&worker, Rc::new(downstream), io, false).await,
    }
}

/// The answer to a CONNECT of a client that knows of continuation, as we do.
fn knows() -> Response<()> {
    let mut response = Response::new(());
    continuation::announce(response.headers_mut());
    response
}

/// Who may go on with a connection, and what for. None: who has not shown who it is, or calls no service.
fn bound(downstream: &Downstream) -> Option<Bound> {
    let (peer, service) = (downstream.peer.clone()?, downstream.service()?);
    Some(Bound { peer, from: downstream.from.ip(), owner: service.key.to_string(), to: downstream.called() })
}

/// A client's successor goes on with a connection: the stream is given to where that is, on whichever worker. It may come here by what
/// is known now, as a new one may; requests and connections are judged where they are.
async fn goes_on(
    worker: &Worker,
    bound: Bound,
    token: Token,
    (mut respond, recv): (SendResponse<Bytes>, RecvStream),
    in_use: Option<InUse>,
) {
    let found = worker.shared.parking.claim(token, bound).await;
    // One that has ended meanwhile is none.
    let Some(place) = found.filter(|place: &Place| !place.is_closed()) else {
        // The client asks again for some time: the connection may not have heard of it yet.
        return refuse(&mut respond, StatusCode::SERVICE_UNAVAILABLE);
    };
    let Ok(send) = respond.send_response(knows(), false) else { return };
    worker.shared.metrics.followed.fetch_add(1, Relaxed);
    if let Err(mut next) = place.send(Next { send, recv, held: Box::new(in_use) }) {
        // It has ended in this moment.
        next.send.send_reset(Reason::CANCEL);
    }
}

/// Which service is called, and whether it is bound to us. Whatever is not is refused: its own waypoint, or none, would have
/// decided otherwise.
pub fn target<B>(
    snapshot: &Snapshot,
    own: Option<&Workload>,
    request: &http::Request<B>,
    peer: Identity,
    from: SocketAddr,
) -> Result<Downstream, (StatusCode, &'static str)> {
    let bad = |why| (StatusCode::BAD_REQUEST, why);
    if request.method() != Method::CONNECT {
        return Err((StatusCode::NOT_FOUND, "the method is not CONNECT"));
    }
    let authority = request.uri().authority().ok_or(bad("CONNECT without authority"))?;
    let target = Authority::parse(authority.as_str().as_bytes()).map_err(|_| bad("the authority is not HOST:PORT"))?;
    let (host, port) = (target.host(), target.port().ok_or(bad("the authority is not HOST:PORT"))?);
    let own = own.ok_or((StatusCode::SERVICE_UNAVAILABLE, "the control plane has not sent this waypoint yet"))?;
    let unknown = (StatusCode::NOT_FOUND, "no such service");
    let ip: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    let ip = ip.map(|ip| ip.to_canonical());
    let service = match ip {
        Some(ip) => snapshot.mesh.service(ip, peer.namespace()),
        None => snapshot.mesh.host(host, peer.namespace()),
    };
    // A pod itself: only where that is bound to a waypoint.
    let pod = || snapshot.mesh.services.get(&Service::workload_service(&snapshot.mesh.workload(ip?)?.uid));
    let service = service.or_else(pod).ok_or(unknown)?.clone();
    if !service.waypoints.iter().any(|(g, _)| is_waypoint(&snapshot.mesh, own, g)) {
        return Err((StatusCode::FORBIDDEN, "the service is not bound to this waypoint"));
    }
    if !service.is_workload_service() && !service.ports.iter().any(|(p, _)| *p == port) {
        return Err((StatusCode::NOT_FOUND, "the service does not have this port"));
    }
    // An address proves nothing: the workload there must be whom the certificate names.
    let source = snapshot.mesh.workload(from.ip()).filter(|x| x.identity == peer).cloned();
    let to = ip.or(service.vips.first().copied()).unwrap_or(from.ip());
    Ok(Downstream {
        peer: Some(peer),
        from,
        source,
        target: DownstreamTarget::Service(service),
        port,
        to,
        hello: None,
        permit: None,
        entered: Default::default(),
        written: Written::of_connect(request.headers()),
    })
}

/// Refuses a CONNECT.
pub fn refuse(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    let _ = respond.send_response(response, true);
}

#[cfg(test)]
mod tests;
