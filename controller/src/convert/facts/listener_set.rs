//! ListenerSets (Gateway API, GEP-1713): which Gateway each one adds listeners to, whether that allows it, and whose listeners count
//! before whose.

use crate::convert::{
    facts::{gateway, listener::GatewayListener, waypoint},
    objects::{GATEWAY, GATEWAY_API, LISTENER_SET, Objects},
};
use karst_api::route::ListenerProtocol as Protocol;
use karst_manifest::{gatewayapi::ParentRef, kinds::*};
use std::collections::{HashMap, HashSet};

/// Ports of a gateway's pod that the proxy has for itself: its pages, tunnels (from its replicas), its metrics, its readiness. Who may
/// add listeners does not decide about these.
const OWN_PORTS: [u16; 4] = [15000, waypoint::PORT, 15020, 15021];

/// Ports that a Gateway's Service may have (as many as an EndpointSlice is documented to). Each is one of each node, too, of which a
/// cluster has 2768 by default: who may add listeners does not get all of these.
const MAX_SERVICE_PORTS: usize = 100;
/// One of them is for the readiness of the pods.
const MAX_PORTS: usize = MAX_SERVICE_PORTS - 1;

/// Gateway API's reason for a port that cannot be had.
const PORT_UNAVAILABLE: &str = "PortUnavailable";

/// The sets of each Gateway, by its namespace and name; those first whose listeners count first (Gateway API: the oldest, then by
/// `namespace/name`).
pub(crate) fn by_gateway<'a>(objects: &Objects<'a>) -> HashMap<(&'a str, &'a str), Vec<&'a ListenerSet>> {
    let mut out: HashMap<_, Vec<&ListenerSet>> = HashMap::new();
    for (_, set) in objects.listener_sets.values().copied() {
        if let Some(gateway) = parent(objects, set) {
            let meta = &gateway.metadata;
            out.entry((meta.namespace.as_str(), meta.name.as_str())).or_default().push(set);
        }
    }
    let order = |set: &&ListenerSet| {
        let meta = &set.metadata;
        let time = meta.creation_timestamp.clone();
        (time.is_none(), time, format!("{}/{}", meta.namespace, meta.name))
    };
    out.values_mut().for_each(|sets| sets.sort_by_cached_key(order));
    out
}

/// The Gateway that a set names. None: it is not there, or something else is named.
pub(crate) fn parent<'a>(objects: &Objects<'a>, set: &ListenerSet) -> Option<&'a Gateway> {
    let to = &set.spec.parent_ref;
    if to.group.as_deref().unwrap_or(GATEWAY_API) != GATEWAY_API || to.kind.as_deref().unwrap_or(GATEWAY) != GATEWAY {
        return None;
    }
    let namespace = to.namespace.as_deref().unwrap_or(&set.metadata.namespace);
    objects.gateways.get(&(namespace, to.name.as_str())).copied()
}

/// The Gateway that a reference of a route leads to, by itself or by a ListenerSet. None: it is not there, or of another kind.
pub(crate) fn gateway_of<'a>(objects: &Objects<'a>, ns: &str, to: &ParentRef) -> Option<&'a Gateway> {
    if to.group.as_deref().unwrap_or(GATEWAY_API) != GATEWAY_API {
        return None;
    }
    let name = (to.namespace.as_deref().unwrap_or(ns), to.name.as_str());
    match to.kind.as_deref().unwrap_or(GATEWAY) {
        GATEWAY => objects.gateways.get(&name).copied(),
        LISTENER_SET => parent(objects, objects.listener_sets.get(&name)?.1),
        _ => None,
    }
}

/// Why a Gateway of ours does not take the listeners of a set in this namespace.
pub(crate) fn refusal(objects: &Objects<'_>, of: &Gateway, namespace: &str) -> Option<String> {
    let meta = &of.metadata;
    let name = format!("{}/{}", meta.namespace, meta.name);
    if waypoint::is_waypoint(objects, of) {
        return Some(format!(
            "Gateway {name} is a waypoint, whose listeners are its own: use a Gateway of class istio [KARST-0518]"
        ));
    }
    let allowed = &of.spec.allowed_listeners.namespaces;
    let is_allowed = match allowed.from.as_str() {
        "All" => true,
        "Same" => meta.namespace == namespace,
        "Selector" => allowed.selector.as_ref().is_some_and(|selector| {
            objects.namespaces.get(namespace).is_some_and(|n| selector.selects(&n.metadata.labels))
        }),
        // None is the default; what is not known lets nobody in.
        _ => false,
    };
    (!is_allowed).then(|| {
        format!(
            "Gateway {name} does not allow ListenerSets of namespace {namespace}: set its spec.allowedListeners.namespaces [KARST-0518]"
        )
    })
}

/// Is it a Gateway of ours, of whose sets we speak?
pub(crate) fn is_ours(objects: &Objects<'_>, of: &Gateway) -> bool {
    gateway::is_ingress(objects, of) || waypoint::is_waypoint(objects, of)
}

/// Of the listeners that sets add to a Gateway, in their order, those have a conflict that want what one before them has: one of the
/// Gateway's own, or of a set before. Who has it keeps it. And those are refused for whose ports its Service has no room.
pub(crate) fn conflicts(own: &[GatewayListener], added: &mut [GatewayListener]) {
    let mut taken: HashMap<(u16, bool), Port> = HashMap::new();
    // One of the Gateway's own that is in conflict with another is nobody else's chance.
    for listener in own.iter().filter(|l| l.refused.is_none()) {
        taken.entry((listener.port, listener.udp)).or_default().take(listener);
    }
    let mut ports: HashSet<(u16, bool)> = own.iter().map(|l| (l.port, l.udp)).collect();
    for listener in added.iter_mut().filter(|l| l.refused.is_none()) {
        let at = (listener.port, listener.udp);
        if ports.len() >= MAX_PORTS && !ports.contains(&at) {
            let text = format!(
                "the Service of the Gateway has {MAX_SERVICE_PORTS} ports already: use one of these, or another Gateway [KARST-0509]"
            );
            listener.refused = Some((PORT_UNAVAILABLE, text));
            continue;
        }
        ports.insert(at);
        let port = taken.entry((listener.port, listener.udp)).or_default();
        listener.conflict = port.conflict(listener);
        if listener.conflict.is_none() {
            port.take(listener);
        }
    }
}

/// What is taken of a port.
#[derive(Default)]
struct Port {
    protocols: Vec<Protocol>,
    hosts: HashSet<String>,
}

impl Port {
    fn take(&mut self, listener: &GatewayListener) {
        if !self.protocols.contains(&listener.protocol) {
            self.protocols.push(listener.protocol);
        }
        self.hosts.extend(listener.hosts.iter().map(|h| h.to_ascii_lowercase()));
    }

    fn conflict(&self, listener: &GatewayListener) -> Option<(&'static str, String)> {
        let is_web = |p: Protocol| matches!(p, Protocol::Https | Protocol::Tls);
        let goes = |p: &Protocol| *p == listener.protocol || (is_web(*p) && is_web(listener.protocol));
        if !self.protocols.iter().all(goes) {
            let text = format!("port {} is also used with another protocol [KARST-0507]", listener.port);
            return Some(("ProtocolConflict", text));
        }
        let host = listener.hosts.iter().find(|h| self.hosts.contains(&h.to_ascii_lowercase()));
        let host = host.or(listener.hosts.first().filter(|_| self.protocols.contains(&Protocol::Tcp)))?;
        let text = format!("another listener already handles {host:?} on port {} [KARST-0508]", listener.port);
        Some(("HostnameConflict", text))
    }
}

/// Why a listener cannot be added to a Gateway, whatever else is there: Gateway API's reason, and the words.
pub(crate) fn unavailable(port: u16) -> Option<(&'static str, String)> {
    let text = || format!("port {port} is the proxy's own: use another port [KARST-0509]");
    OWN_PORTS.contains(&port).then(|| (PORT_UNAVAILABLE, text()))
}
