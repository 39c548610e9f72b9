//! One CONNECT: may it come here, and what is spoken on it.

use crate::{
    downstream::{
        context::{ClientHello, Downstream, DownstreamTarget, Written},
        hello::{HELLO, hello},
        sniff,
        stream::Io,
        tcp::tcp,
    },
    quota::keeper,
    snapshot::Snapshot,
    worker::Worker,
};
use h2::server::SendResponse;
use http::{Method, StatusCode};
use karst_api::workload::AppProtocol;
use karst_core::{Identity, authority::Authority};
use karst_hbone::server::Connect;
use karst_proxy::{
    endpoints::is_waypoint,
    state::{Service, Workload},
};
use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

/// Serves a stream of a tunnel to its end.
pub async fn stream(worker: Rc<Worker>, connect: Connect, peer: Identity, from: SocketAddr) {
    let Connect { request, mut respond } = connect;
    if keeper::is_asked(&request, &peer, &worker.shared.identity) {
        let Ok(send) = respond.send_response(http::Response::new(()), false) else { return };
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
            tracing::info!(target: "access", peer = %from, error = why, "CONNECT refused");
            return refuse(&mut respond, status);
        }
    };
    let Ok(send) = respond.send_response(http::Response::new(()), false) else { return };
    let mut io = Io::tunnel(send, request.into_body(), worker.lingering.clone());
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
pub fn refuse(respond: &mut SendResponse<bytes::Bytes>, status: http::StatusCode) {
    let mut response = http::Response::new(());
    *response.status_mut() = status;
    let _ = respond.send_response(response, true);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_api::workload::{self as pb, GatewayAddress, NamespacedHostname, gateway_address::Destination};
    use karst_proxy::testing::{pod, service, snapshot};

    const PORTS: &[(u32, u32)] = &[(80, 8080)];

    /// A service that is bound to the waypoint of this name.
    fn bound(name: &str, vip: &str, waypoint: &str) -> pb::Service {
        let hostname = format!("{waypoint}.ns.svc.cluster.local");
        let destination = Destination::Hostname(NamespacedHostname { namespace: "ns".into(), hostname });
        let waypoint = Some(GatewayAddress { destination: Some(destination), hbone_mtls_port: 15008 });
        pb::Service { waypoint, ..service(name, vip, PORTS) }
    }

    /// Whatever a member asks for: only services, and pods, that are bound to this waypoint, at their ports.
    #[test]
    fn only_what_is_bound_to_it_is_served() {
        let waypoint = |name: &str, ip: &str| {
            let key = format!("ns/{name}.ns.svc.cluster.local");
            pod(name, ip, &[(key.as_str(), &[(15008, 15008)][..])])
        };
        let mut alone = pod("alone", "10.0.0.3", &[]);
        alone.waypoint = bound("x", "10.96.0.99", "w").waypoint;
        let pods = vec![waypoint("w", "10.0.0.1"), waypoint("v", "10.0.0.2"), alone, pod("free", "10.0.0.4", &[])];
        let services = vec![
            bound("ours", "10.96.0.1", "w"),
            bound("theirs", "10.96.0.2", "v"),
            service("free", "10.96.0.3", PORTS),
            service("w", "10.96.0.8", &[(15008, 15008)]),
            service("v", "10.96.0.9", &[(15008, 15008)]),
        ];
        let mut mesh = snapshot(pods, services);
        for name in ["alone", "free"] {
            mesh.add_workload_service(&format!("Kubernetes//Pod/ns/{name}"));
        }
        let known = Snapshot { mesh, ..Snapshot::new("") };
        let own = known.mesh.workload("10.0.0.1".parse().unwrap()).cloned();
        let peer: Identity = "spiffe://cluster.local/ns/ns/sa/client".parse().unwrap();
        let ask = |method: Method, authority: &str, own: Option<&Workload>| {
            let uri = http::Uri::builder().authority(authority).build().unwrap();
            let request = http::Request::builder().method(method).uri(uri).body(()).unwrap();
            let from = "10.0.0.5:4000".parse().unwrap();
            target(&known, own, &request, peer.clone(), from).map_or_else(|(status, _)| status.as_u16(), |_| 200)
        };
        for (authority, status) in [
            ("10.96.0.1:80", 200),
            ("ours.ns.svc.cluster.local:80", 200),
            ("10.96.0.1:81", 404),
            // Another waypoint's, or nobody's: whoever decides there would be passed by.
            ("10.96.0.2:80", 403),
            ("theirs.ns.svc.cluster.local:80", 403),
            ("10.96.0.3:80", 403),
            ("10.0.0.3:9000", 200),
            ("10.0.0.4:9000", 404),
            // Nor ourselves, nor anybody by whatever the waypoint could reach.
            ("10.0.0.1:15000", 404),
            ("127.0.0.1:15000", 404),
            ("192.0.2.1:80", 404),
            ("10.96.0.1", 400),
        ] {
            assert_eq!(ask(Method::CONNECT, authority, own.as_deref()), status, "{authority}");
        }
        assert_eq!(ask(Method::GET, "10.96.0.1:80", own.as_deref()), 404);
        assert_eq!(ask(Method::CONNECT, "10.96.0.1:80", None), 503, "nobody has told who we are");
    }
}
