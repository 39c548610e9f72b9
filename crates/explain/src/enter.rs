//! What a gateway's pod does with a connection: its listener, then the routes of the listener's virtual hosts.

use crate::{
    answer::{Cause, Object, Outcome, ProxyKind, Stage},
    call::Call,
    gateways::{GatewayPod, fits},
    l4::step,
    l7,
    way::Way,
    world::World,
};
use karst_waypoint::decision::{Entering, Entrance, Listening};
use std::net::SocketAddr;

/// The Gateway behind a listener's origin, `Gateway/ns/name/listener`, or that of a ListenerSet, which adds to a Gateway.
fn object(world: &World, origin: &str) -> Option<Object> {
    let mut parts = origin.split('/');
    let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    let (namespace, name) = match kind {
        "ListenerSet" => world.objects.gateway_of_set(namespace, name)?,
        _ => (namespace, name),
    };
    let of_kubernetes = world.objects.named("Gateway", namespace, name);
    of_kubernetes.or_else(|| world.objects.named("IstioGateway", namespace, name))
}

/// Goes on at a gateway's pod, at the port that it listens on.
pub(crate) fn enter(world: &World, way: &mut Way, call: &Call, pod: &GatewayPod, at: SocketAddr) {
    way.meet(ProxyKind::Gateway, format!("{}/{}", pod.workload.namespace, pod.workload.name));
    let gateway = world.gateway(&pod.workload);
    let name = way.destination.name.clone();
    let host = call.request.as_ref().and_then(|head| head.host.clone()).unwrap_or(name);
    let bare = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(&*host, |(host, _)| host);
    let here: Vec<&Listening> = pod.listening.iter().filter(|l| l.port == at.port()).collect();
    let has_tls = here.iter().any(|l| l.has_tls);
    let server_name = has_tls.then(|| call.server_name.as_deref().unwrap_or(bare));
    let from = SocketAddr::new(way.source.ip, 0);
    let best = here.iter().filter_map(|l| Some((l, fits(l, server_name.unwrap_or(bare))?))).max_by_key(|(_, r)| *r);
    let listener = best.map(|(l, _)| l.origin.clone());
    let of_listener = listener.as_deref().or(pod.listening.first().map(|l| &*l.origin)).or(Some(&*pod.gateway));
    let gateway_object = of_listener.and_then(|origin| object(world, origin));
    let shown = listener.clone().unwrap_or_default();
    match gateway.enter(Entering { port: at.port(), from, to: at.ip(), server_name }) {
        Entrance::Closed => {
            let ports: Vec<String> = pod.listening.iter().map(|l| l.called.to_string()).collect();
            let why = match ports.is_empty() {
                true => format!("{} has no listener that is in force", pod.workload.name),
                false => format!("{} listens on {}, not on {}", pod.workload.name, ports.join(", "), at.port()),
            };
            way.refuse(Stage::Gateway, gateway_object, why, Cause::NoListener);
        }
        Entrance::NoListener => {
            let why = format!("no listener at port {} has the name {}", at.port(), server_name.unwrap_or("*"));
            way.refuse(Stage::Gateway, gateway_object, why, Cause::NoListener);
        }
        Entrance::Requests(called) => {
            let tls = if has_tls { "TLS ends here" } else { "no TLS" };
            let why = match &listener {
                Some(_) => format!("listener {shown} takes {bare} at port {}, {tls}", at.port()),
                None => format!("port {} is open, {tls}; no listener there is for {bare}", at.port()),
            };
            way.push(step(Stage::Gateway, Outcome::Pass, gateway_object, why));
            let head = call.request.clone().unwrap_or_default();
            l7::requested(world, way, &gateway, &called, &head, (&host, &pod.workload));
        }
        Entrance::Bytes(decision, origin) => {
            let why = format!("listener {origin} carries bytes, and routes and rules for HTTP cannot see requests");
            way.push(step(Stage::Gateway, Outcome::Pass, gateway_object, why));
            l7::decided(world, way, &gateway, decision, (&pod.workload, false));
        }
    }
}
