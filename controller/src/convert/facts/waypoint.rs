//! Which waypoint an object is bound to, or why not (reference control-plane §2.6).

use crate::convert::{
    finding,
    objects::{MANAGED, Objects},
};
use karst_api::workload::{
    GatewayAddress, NamespacedHostname, NetworkAddress, WeightedWaypoint, gateway_address::Destination,
};
use karst_core::addr::ip_to_bytes;
use karst_manifest::kinds::{Gateway, Labels, Listener, Meta, RouteNamespaces};

const USE: &str = "istio.io/use-waypoint";
const USE_NS: &str = "istio.io/use-waypoint-namespace";
const FOR: &str = "istio.io/waypoint-for";
const CANARY: &str = "istio.io/use-waypoint-canary";
const CANARY_NS: &str = "istio.io/use-waypoint-canary-namespace";
/// An annotation: per cent, 0 to 100.
const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
/// HBONE port of waypoints (fixed in Istio).
pub(crate) const PORT: u16 = 15008;
/// And its protocol.
const PROTOCOL: &str = "HBONE";
/// Controller name of the classes whose gateways are waypoints (Istio's).
pub(crate) const CONTROLLER: &str = "istio.io/mesh-controller";

/// What is bound.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    Service,
    Workload,
}

/// What came of an object's labels.
pub(crate) enum Binding<'a> {
    /// It names no waypoint.
    None,
    /// Bound.
    To(&'a Gateway, GatewayAddress),
    /// Istio's reason, and ours in words.
    Refused(&'static str, String),
}

/// Istio's reason, and ours in words.
type Reason = (&'static str, String);

/// The waypoint of an object with these labels, if it has one that is ready and takes this traffic.
pub(crate) fn of(objects: &Objects<'_>, namespace: &str, labels: &Labels, traffic: Traffic) -> Option<GatewayAddress> {
    match binding(objects, namespace, labels, traffic) {
        Binding::To(_, a) => Some(a),
        Binding::None | Binding::Refused(..) => None,
    }
}

/// The waypoints of a service and the weight of each, if a second one gets a part of its requests.
pub(crate) fn weighted(objects: &Objects<'_>, meta: &Meta) -> Vec<WeightedWaypoint> {
    let Some(Ok(c)) = canary(objects, meta) else { return vec![] };
    let one = |a, weight| WeightedWaypoint { destination: Some(a), weight };
    [one(c.first, 100 - c.weight), one(c.address, c.weight)].into_iter().filter(|w| w.weight > 0).collect()
}

/// A second waypoint.
pub(crate) struct Canary<'a> {
    pub(crate) gateway: &'a Gateway,
    address: GatewayAddress,
    /// Address of the first.
    first: GatewayAddress,
    /// Its part of a hundred.
    pub(crate) weight: u32,
}

/// The waypoint that gets a part of what is for a service, or why it gets none; none where none is asked for, or the service has
/// no first waypoint.
pub(crate) fn canary<'a>(objects: &Objects<'a>, meta: &Meta) -> Option<Result<Canary<'a>, Reason>> {
    let Binding::To(primary, first) = binding(objects, &meta.namespace, &meta.labels, Traffic::Service) else {
        return None;
    };
    // Where the first stands, there stands all about the second.
    let from =
        if meta.labels.contains_key(USE) { meta } else { &objects.namespaces.get(meta.namespace.as_str())?.metadata };
    let name = from.labels.get(CANARY).filter(|n| *n != "none" && !n.is_empty())?;
    let ns = from.labels.get(CANARY_NS).map_or(meta.namespace.as_str(), String::as_str);
    let given = from.annotations.get(CANARY_WEIGHT).map(String::as_str).unwrap_or_default();
    let Some(weight) = given.parse::<u32>().ok().filter(|w| *w <= 100) else {
        let text = format!("annotation {CANARY_WEIGHT}: invalid weight {given:?}: use 0 to 100 [KARST-0706]");
        return Some(Err(("CanaryInvalidWeight", text)));
    };
    if (primary.metadata.namespace.as_str(), primary.metadata.name.as_str()) == (ns, name.as_str()) {
        let text = format!("{CANARY}: {ns}/{name} is the primary waypoint itself: use another one [KARST-0706]");
        return Some(Err(("CanarySameAsPrimary", text)));
    }
    match named(objects, ns, name, &meta.namespace, Traffic::Service) {
        Ok((gateway, address)) => Some(Ok(Canary { gateway, address, first, weight })),
        Err((reason, text)) => Some(Err((reason, format!("canary: {text}")))),
    }
}

/// The waypoint that executes what is said of the requests to a service with these labels; or why there is none.
pub(crate) fn executing(
    objects: &Objects<'_>,
    namespace: &str,
    labels: &Labels,
    what: &str,
) -> Result<String, (finding::Reason, String)> {
    use finding::Reason::{MissingUseWaypointLabel, WaypointNotBound};
    match binding(objects, namespace, labels, Traffic::Service) {
        Binding::To(g, _) => Ok(format!("bound to waypoint {}/{}", g.metadata.namespace, g.metadata.name)),
        Binding::None => {
            let text = format!(
                "{what} uses no waypoint, so this has no effect: label the service or its namespace {USE} [KARST-0701]"
            );
            Err((MissingUseWaypointLabel, text))
        }
        Binding::Refused(_, why) => Err((WaypointNotBound, format!("{what}: {why}"))),
    }
}

/// Do these labels say something about a waypoint themselves?
pub(crate) fn is_own(labels: &Labels) -> bool {
    labels.contains_key(USE)
}

/// What comes of an object's labels and its namespace's.
pub(crate) fn binding<'a>(objects: &Objects<'a>, namespace: &str, labels: &Labels, traffic: Traffic) -> Binding<'a> {
    if labels.contains_key(MANAGED) {
        return Binding::None;
    }
    // The object's own label counts alone, even if it names a waypoint that is not ready.
    let own = labels.contains_key(USE);
    let from = match objects.namespaces.get(namespace) {
        _ if own => labels,
        Some(n) => &n.metadata.labels,
        None => return Binding::None,
    };
    let Some(name) = from.get(USE).filter(|n| *n != "none" && !n.is_empty()) else { return Binding::None };
    let ns = from.get(USE_NS).map_or(namespace, String::as_str);
    match named(objects, ns, name, namespace, traffic) {
        Ok((g, a)) => Binding::To(g, a),
        // What the namespace says is meant for those whom it suits.
        Err((OTHER_TRAFFIC, _)) if !own => Binding::None,
        Err((reason, text)) => Binding::Refused(reason, text),
    }
}

/// Istio's reason of a waypoint that is not for this traffic.
pub(crate) const OTHER_TRAFFIC: &str = "UnsupportedTrafficType";

/// The waypoint of this name for something in a namespace, or why it is not for that.
fn named<'a>(
    objects: &Objects<'a>,
    ns: &str,
    name: &str,
    namespace: &str,
    traffic: Traffic,
) -> Result<(&'a Gateway, GatewayAddress), Reason> {
    let not_ready = |why: &str| Err(("WaypointIsNotReady", format!("waypoint {ns}/{name} {why}")));
    let Some(gateway) = objects.gateways.get(&(ns, name)) else {
        return not_ready(
            "does not exist: create a Gateway of that name with gatewayClassName istio-waypoint [KARST-0702]",
        );
    };
    if !is_waypoint(objects, gateway) {
        return not_ready(&format!(
            "is not a waypoint: its class is {:?}, not istio-waypoint [KARST-0702]",
            gateway.spec.gateway_class_name
        ));
    }
    if !takes(objects, gateway, traffic) {
        let text = format!(
            "waypoint {ns}/{name} does not accept this traffic: label the Gateway {FOR}={}, or all [KARST-0703]",
            if traffic == Traffic::Service { "service" } else { "workload" }
        );
        return Err((OTHER_TRAFFIC, text));
    }
    if !admits(objects, gateway, namespace) {
        let text = format!(
            "waypoint {ns}/{name} does not allow namespace {namespace}: check allowedRoutes.namespaces of its HBONE listener [KARST-0704]"
        );
        return Err(("AttachmentDenied", text));
    }
    match address(objects, gateway) {
        Some(a) => Ok((gateway, a)),
        None if !has_listener(gateway) => not_ready("has no listener with protocol HBONE on port 15008 [KARST-0702]"),
        None => not_ready("has no address yet [KARST-0702]"),
    }
}

/// Why a waypoint cannot have this listener: Gateway API's reason, and the words.
pub(crate) fn wrong_listener(listener: &Listener) -> Option<Reason> {
    if listener.protocol != PROTOCOL {
        return Some((
            "UnsupportedProtocol",
            format!("protocol {:?}: a waypoint supports only {PROTOCOL} [KARST-0705]", listener.protocol),
        ));
    }
    let text = || format!("port {}: a waypoint listens only on {PORT} [KARST-0705]", listener.port);
    (listener.port != PORT).then(|| ("PortUnavailable", text()))
}

/// Has a waypoint a listener that it can have? (In files there need not be any.)
pub(crate) fn has_listener(gateway: &Gateway) -> bool {
    gateway.spec.listeners.is_empty() || gateway.spec.listeners.iter().any(|l| wrong_listener(l).is_none())
}

/// Is this Gateway a waypoint?
pub(crate) fn is_waypoint(objects: &Objects<'_>, gateway: &Gateway) -> bool {
    match objects.classes.get(gateway.spec.gateway_class_name.as_str()) {
        Some(c) => c.spec.controller_name == CONTROLLER,
        // In files the class need not stand beside it.
        None => gateway.spec.gateway_class_name.ends_with("-waypoint"),
    }
}

pub(crate) fn takes(objects: &Objects<'_>, gateway: &Gateway, traffic: Traffic) -> bool {
    let class =
        || objects.classes.get(gateway.spec.gateway_class_name.as_str()).and_then(|c| c.metadata.labels.get(FOR));
    let wanted = gateway.metadata.labels.get(FOR).or_else(class).map_or("service", String::as_str);
    matches!((wanted, traffic), ("all", _) | ("service", Traffic::Service) | ("workload", Traffic::Workload))
}

fn admits(objects: &Objects<'_>, gateway: &Gateway, namespace: &str) -> bool {
    let same = gateway.metadata.namespace == namespace;
    let Some(l) = gateway.spec.listeners.iter().find(|l| l.port == PORT || l.protocol == PROTOCOL) else { return same };
    allows(objects, &l.allowed_routes.namespaces, &gateway.metadata.namespace, namespace)
}

/// Does a listener of a Gateway in the namespace `own` admit what is in another (Gateway API: allowedRoutes.namespaces)?
pub(crate) fn allows(objects: &Objects<'_>, from: &RouteNamespaces, own: &str, namespace: &str) -> bool {
    match from.from.as_str() {
        "All" => true,
        "Selector" => from.selector.as_ref().is_some_and(|selector| {
            objects.namespaces.get(namespace).is_some_and(|n| selector.selects(&n.metadata.labels))
        }),
        "None" => false,
        _ => own == namespace,
    }
}

fn address(objects: &Objects<'_>, gateway: &Gateway) -> Option<GatewayAddress> {
    let by_name = gateway.status.addresses.iter().find(|a| a.kind == "Hostname");
    let destination = match by_name {
        Some(a) => Destination::Hostname(NamespacedHostname {
            namespace: gateway.metadata.namespace.clone(),
            hostname: a.value.clone(),
        }),
        None => {
            let ip = gateway.status.addresses.iter().find_map(|a| a.value.parse().ok())?;
            Destination::Address(NetworkAddress {
                network: objects.mesh.network.clone(),
                address: ip_to_bytes(ip),
                length: None,
            })
        }
    };
    Some(GatewayAddress { destination: Some(destination), hbone_mtls_port: u32::from(PORT) })
}
