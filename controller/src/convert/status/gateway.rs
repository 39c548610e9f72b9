//! The statuses of Gateways that are no waypoints (Gateway API: GatewayStatus): where they are reached, and what came of each
//! listener.

use crate::convert::{
    deploy,
    facts::{gateway, listener::GatewayListener, listeners::GatewayListeners, service},
    objects::{GATEWAY_API, MANAGED, Objects},
    status::{
        condition::{Condition, Write, conditions, reference, same},
        route::Route,
    },
};
use karst_manifest::kinds::{Gateway, GatewayAddress, Listener, Service};
use serde_json::{Value, json};

/// All that differ.
pub(crate) fn compile(
    objects: &Objects<'_>,
    listeners: &GatewayListeners,
    routes: &[Route<'_>],
    now: &str,
) -> Vec<Write> {
    let mut all: Vec<_> = objects.gateways.values().filter(|g| gateway::is_ingress(objects, g)).collect();
    all.sort_by_key(|g| (&g.metadata.namespace, &g.metadata.name));
    all.into_iter().filter_map(|g| one(objects, listeners, routes, g, now)).collect()
}

/// Routes that are attached to a listener.
fn attached(
    objects: &Objects<'_>,
    listeners: &GatewayListeners,
    routes: &[Route<'_>],
    listener: &GatewayListener,
) -> usize {
    let to = |r: &&Route<'_>| {
        r.parents.iter().any(|p| match listeners.attached(objects, r.kind, &r.meta.namespace, r.names, p) {
            Some(Ok(all)) => all.iter().any(|(a, _)| a.id == listener.id),
            _ => false,
        })
    };
    routes.iter().filter(to).count()
}

fn condition(kind: &'static str, status: bool, reason: &'static str, message: impl Into<String>) -> Condition {
    Condition { kind, status, reason, message: message.into() }
}

/// Why a listener is not accepted.
fn refusal(listeners: &GatewayListeners, listener: &GatewayListener) -> Option<(&'static str, String)> {
    let taken = || {
        let text = listeners.taken_port(listener)?;
        Some(("PortUnavailable", format!("port {} {text}", listener.port)))
    };
    listener.refused.clone().or_else(|| listener.conflict.clone()).or_else(taken)
}

fn listener(listener: &GatewayListener, refusal: &Option<(&'static str, String)>) -> [Condition; 4] {
    const NONE: &str = "No errors found";
    let bad = |kind, found: &Option<(&'static str, String)>, good| match found {
        Some((reason, text)) => condition(kind, false, reason, text.clone()),
        None => condition(kind, true, good, NONE),
    };
    let conflicted = match &listener.conflict {
        Some((reason, text)) => condition("Conflicted", true, reason, text.clone()),
        None => condition("Conflicted", false, "NoConflicts", NONE),
    };
    let programmed = if listener.works() && refusal.is_none() {
        condition("Programmed", true, "Programmed", NONE)
    } else {
        condition("Programmed", false, "Invalid", "see the other conditions")
    };
    [
        bad("Accepted", refusal, "Accepted"),
        programmed,
        conflicted,
        bad("ResolvedRefs", &listener.unresolved, "ResolvedRefs"),
    ]
}

/// Where it is reached, or why it is not yet.
fn addresses(
    objects: &Objects<'_>,
    gateway: &Gateway,
    name: &str,
) -> Result<Vec<GatewayAddress>, (&'static str, String)> {
    let meta = &gateway.metadata;
    let address = |kind: &str, value: &str| GatewayAddress { kind: kind.into(), value: value.into() };
    if let Some(host) = deploy::given(gateway) {
        let mut services = objects.services.values().flatten();
        let service = services.find(|s| service::hostname(objects, s) == host);
        let lacks = |s: &Service| {
            let has = |l: &&Listener| {
                let is_protocol: fn(&str) -> bool = if l.protocol == "UDP" { service::udp } else { service::tcp };
                s.spec.ports.iter().any(|p| p.port == l.port && is_protocol(&p.protocol))
            };
            gateway.spec.listeners.iter().find(|l| !has(l)).map(|l| l.port)
        };
        return match service.and_then(|s| lacks(s)) {
            Some(port) => Err((
                "AddressNotUsable",
                format!("port {port} not found for hostname {host}: add the port to that Service [KARST-0509]"),
            )),
            None => Ok(vec![address("Hostname", host)]),
        };
    }
    let what = format!("Service {}/{name}", meta.namespace);
    let service = objects
        .service(&meta.namespace, name)
        .ok_or_else(|| ("AddressNotAssigned", format!("{what} does not exist yet [KARST-0510]")))?;
    if !service.metadata.labels.contains_key(MANAGED) {
        return Err(("AddressNotUsable", format!("{what} is not managed by Karst: rename the Gateway [KARST-0511]")));
    }
    let available =
        objects.deployments.get(&(meta.namespace.as_str(), name)).map_or(0, |d| d.status.available_replicas);
    let found = published(service, &format!("{name}.{}.svc.{}", meta.namespace, objects.mesh.cluster_domain));
    let found: Vec<_> = found.into_iter().map(|(kind, value)| address(kind, &value)).collect();
    if found.is_empty() {
        let text = format!(
            "{what} of type LoadBalancer has no address yet: the cluster needs a load balancer controller, or annotate the Gateway with networking.istio.io/service-type: ClusterIP [KARST-0510]"
        );
        return Err(("AddressNotAssigned", text));
    }
    let asked =
        gateway.spec.addresses.iter().find(|a| matches!(a.kind.as_str(), "" | "IPAddress") && !a.value.is_empty());
    if let Some(a) = asked.filter(|a| !found.iter().any(|f| f.value == a.value)) {
        return Err(("AddressNotUsable", format!("{what} was not assigned the address {} [KARST-0510]", a.value)));
    }
    if available == 0 {
        return Err(("Pending", format!("Deployment {}/{name} has no available pod yet [KARST-0510]", meta.namespace)));
    }
    Ok(found)
}

fn published(service: &Service, host: &str) -> Vec<(&'static str, String)> {
    let mut all: Vec<(&'static str, String)> =
        service.spec.external_ips.iter().map(|i| ("IPAddress", i.clone())).collect();
    for i in &service.status.load_balancer.ingress {
        all.push(if i.ip.is_empty() { ("Hostname", i.hostname.clone()) } else { ("IPAddress", i.ip.clone()) });
    }
    if all.is_empty() && service.spec.kind != "LoadBalancer" {
        all.push(("Hostname", host.to_string()));
    }
    all
}

fn one(
    objects: &Objects<'_>,
    listeners: &GatewayListeners,
    routes: &[Route<'_>],
    gateway: &Gateway,
    now: &str,
) -> Option<Write> {
    let meta = &gateway.metadata;
    let name = deploy::name(objects, gateway);
    let mine: Vec<&GatewayListener> = listeners.of(&meta.namespace, &meta.name).collect();
    let other = gateway.spec.addresses.iter().find(|a| !matches!(a.kind.as_str(), "" | "IPAddress" | "Hostname"));
    let refusals: Vec<_> = mine.iter().map(|f| refusal(listeners, f)).collect();
    let working = refusals.iter().filter(|r| r.is_none()).count();
    let parameters =
        deploy::parameters(objects, gateway).err().map(|e| format!("spec.infrastructure.parametersRef: {e}"));
    let accepted = match (other, working) {
        // What is asked for there is not known: nothing is run without it.
        _ if parameters.is_some() => condition("Accepted", false, "InvalidParameters", parameters.unwrap_or_default()),
        (Some(address), _) => condition(
            "Accepted",
            false,
            "UnsupportedAddress",
            format!("unsupported address type {:?}: use IPAddress or Hostname [KARST-0513]", address.kind),
        ),
        (None, 0) => condition(
            "Accepted",
            false,
            "ListenersNotValid",
            "none of its listeners is valid: see their conditions [KARST-0514]",
        ),
        (None, n) if n < mine.len() => condition(
            "Accepted",
            true,
            "ListenersNotValid",
            "some of its listeners are not valid: see their conditions [KARST-0514]",
        ),
        (None, _) => condition("Accepted", true, "Accepted", "Resource accepted"),
    };
    let found = addresses(objects, gateway, &name);
    let programmed = match &found {
        _ if !accepted.status => condition("Programmed", false, "Invalid", "see Accepted"),
        Ok(_) => condition(
            "Programmed",
            true,
            "Programmed",
            format!("Resource programmed, served by Deployment {}/{name}", meta.namespace),
        ),
        Err((reason, text)) => condition("Programmed", false, reason, text.clone()),
    };
    // What was reached once stays known: its pods may come and go.
    let pending = matches!(&found, Err(("Pending", _)));
    let addresses = found.unwrap_or_else(|_| if pending { gateway.status.addresses.clone() } else { vec![] });
    let own = [accepted, programmed];
    let mut unchanged = addresses == gateway.status.addresses
        && same(&own, &gateway.status.conditions, meta.generation)
        && gateway.status.listeners.len() == mine.len();
    let mut statuses: Vec<Value> = vec![];
    for ((spec, facts), refusal) in gateway.spec.listeners.iter().zip(&mine).zip(&refusals) {
        let wanted = listener(facts, refusal);
        let before = gateway.status.listeners.iter().find(|s| s.name == spec.name);
        let have = before.map_or(&[][..], |s| &s.conditions);
        let count = attached(objects, listeners, routes, facts);
        let kinds: Vec<Value> = facts.kinds.iter().map(|k| json!({ "group": GATEWAY_API, "kind": k })).collect();
        unchanged &= same(&wanted, have, meta.generation)
            && before.is_some_and(|b| {
                b.attached_routes as usize == count && b.supported_kinds.iter().map(|k| &k.kind).eq(&facts.kinds)
            });
        statuses.push(json!({
            "name": spec.name, "attachedRoutes": count, "supportedKinds": kinds,
            "conditions": conditions(&wanted, have, meta.generation, now),
        }));
    }
    if unchanged {
        return None;
    }
    let addresses: Vec<Value> = addresses.iter().map(|a| json!({ "type": a.kind, "value": a.value })).collect();
    let status = json!({
        "addresses": addresses, "listeners": statuses,
        "conditions": conditions(&own, &gateway.status.conditions, meta.generation, now),
    });
    Some(Write { to: reference(GATEWAY_API, "Gateway", meta), manager: "istio.io/gateway-controller", status })
}
