//! The statuses of routes that are attached to services or gateways (Gateway API: RouteParentStatus): whether they are in force there, and
//! whether what they refer to is there and may be referred to. Entries of other controllers stay as they are.

use crate::convert::{
    compilation::routes::{cache::Cache, filter, gateway_api},
    facts::{grant, listeners::GatewayListeners, service, waypoint},
    finding,
    objects::{FieldError, GATEWAY_API, ISTIO_NETWORKING, OWN_GROUP, Objects},
    status::condition::{Condition, Write, as_they_are, conditions, reference, same},
};
use karst_manifest::{
    gatewayapi::{BackendRef, ExtensionRef, Filter, ParentRef, RouteStatus},
    kinds::{GRPCRoute, HTTPRoute, Meta, Object, Service, ServiceEntry, ServicePort, TCPRoute, TLSRoute, UDPRoute},
    parse::Located,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Some rules are in force, and some are not.
const PARTLY: &str = "PartiallyInvalid";
/// Who writes (Istio's name).
pub(crate) const CONTROLLER: &str = "istio.io/gateway-controller";

/// A route of whichever kind.
pub(crate) struct Route<'a> {
    pub(crate) at: &'a Located,
    pub(crate) kind: &'static str,
    pub(crate) meta: &'a Meta,
    pub(crate) names: &'a [String],
    pub(crate) parents: &'a [ParentRef],
    /// Backends of all rules, those of mirrors among them.
    pub(crate) refs: Vec<&'a BackendRef>,
    filters: Vec<&'a Filter>,
    /// The backends of each of its rules.
    rules: Vec<&'a [BackendRef]>,
    /// What is wrong with rules, or not executed of them.
    bad: Vec<FieldError>,
    status: &'a RouteStatus,
}

impl Route<'_> {
    /// The Services that it may send to, by namespace and name: backends of its rules and of their mirrors, and whom its filters ask.
    pub(crate) fn services(&self, objects: &Objects<'_>) -> BTreeSet<(String, String)> {
        let of = |backend: &&BackendRef| match target(backend) {
            (ISTIO_NETWORKING, "Hostname") => service::of_hostname(objects, &backend.name)
                .map(|(namespace, name)| (namespace.to_string(), name.to_string())),
            ("" | "core", "Service") if is_permitted(objects, self.kind, self.meta, self.parents, backend) => {
                Some((backend.namespace.clone().unwrap_or(self.meta.namespace.clone()), backend.name.clone()))
            }
            _ => None,
        };
        self.refs.iter().filter_map(of).collect()
    }
}

/// All routes but those that are settled.
pub(crate) fn all<'a>(
    objects: &Objects<'a>,
    compiled: &'a Cache,
    mut is_settled: impl FnMut(&Located) -> bool,
) -> Vec<Route<'a>> {
    let mut out = vec![];
    macro_rules! add {
        ($routes:ident, $kind:literal, $names:expr, $filters:expr) => {
            for &(at, route) in &objects.$routes {
                if is_settled(at) {
                    continue;
                }
                let (meta, status) = (&route.metadata, &route.status);
                let (names, of_rules): (&'a [String], Vec<&'a [Filter]>) = ($names(route), $filters(route));
                let rules: Vec<&'a [BackendRef]> = route.spec.rules.iter().map(|r| &r.backend_refs[..]).collect();
                let mut bad = compiled.bad(route).to_vec();
                bad.extend(gateway_api::unexecuted($kind, of_rules.iter().copied().zip(rules.iter().copied())));
                let filters: Vec<&Filter> = of_rules.into_iter().flatten().collect();
                let mirrors = filters.iter().filter_map(|f| Some(&f.request_mirror.as_ref()?.backend_ref));
                let asked = filters.iter().filter_map(|f| Some(&f.external_auth.as_ref()?.backend_ref));
                let refs = route.spec.rules.iter().flat_map(|r| &r.backend_refs).chain(mirrors).chain(asked).collect();
                let parents = &route.spec.parent_refs[..];
                out.push(Route { at, kind: $kind, meta, names, parents, refs, filters, rules, bad, status });
            }
        };
    }
    let filters = |r: &'a HTTPRoute| r.spec.rules.iter().map(|r| &r.filters[..]).collect();
    add!(http_routes, "HTTPRoute", |r: &'a HTTPRoute| &r.spec.hostnames[..], filters);
    let filters = |r: &'a GRPCRoute| r.spec.rules.iter().map(|r| &r.filters[..]).collect();
    add!(grpc_routes, "GRPCRoute", |r: &'a GRPCRoute| &r.spec.hostnames[..], filters);
    add!(tcp_routes, "TCPRoute", |_: &'a TCPRoute| &[][..], |_: &'a TCPRoute| vec![]);
    add!(tls_routes, "TLSRoute", |r: &'a TLSRoute| &r.spec.hostnames[..], |_: &'a TLSRoute| vec![]);
    add!(udp_routes, "UDPRoute", |_: &'a UDPRoute| &[][..], |_: &'a UDPRoute| vec![]);
    for route in &mut out {
        if let Object::UDPRoute(object) = &route.at.object {
            route.bad.extend(gateway_api::closed_to_datagrams(objects, object, &compiled.closed));
        }
    }
    out
}

/// Of each what is to be written, if it differs.
pub(crate) fn compile(
    objects: &Objects<'_>,
    listeners: &GatewayListeners,
    routes: &[Route<'_>],
    now: &str,
) -> Vec<Option<Write>> {
    routes.iter().map(|r| one(objects, listeners, r, now)).collect()
}

fn one(objects: &Objects<'_>, listeners: &GatewayListeners, route: &Route<'_>, now: &str) -> Option<Write> {
    let &Route { at: _, kind, meta, names, parents, ref refs, ref filters, ref rules, ref bad, status: have } = route;
    let unread = unread(kind, rules, bad);
    let resolved = extensions(objects, meta, filters)
        .unwrap_or_else(|| resolved(objects, kind, meta, parents, refs.iter().copied()));
    let mut unchanged = true;
    let mut all: Vec<Value> = vec![];
    let mut ours = 0;
    for parent in parents {
        let at_gateway = listeners.attached(objects, kind, &meta.namespace, names, parent).map(|r| match r {
            Ok(_) => ("Accepted", "Route was valid".to_string()),
            Err(e) => e,
        });
        let Some(mut accepted) = at_gateway.or_else(|| accepted(objects, kind, meta, parent)) else { continue };
        let is_attached = accepted.0 == "Accepted";
        if let Some(Unread { all: true, text }) = &unread
            && is_attached
        {
            accepted = ("UnsupportedValue", text.clone());
        }
        let say = |(reason, message): &(&'static str, String), kind, good: &str| Condition {
            kind,
            status: *reason == good,
            reason,
            message: message.clone(),
        };
        let mut wanted = vec![say(&accepted, "Accepted", "Accepted"), say(&resolved, "ResolvedRefs", "ResolvedRefs")];
        wanted.extend(executed(objects, meta, parent).filter(|_| kind != gateway_api::UDP));
        if let Some(Unread { all: false, text }) = &unread
            && is_attached
        {
            let message = format!("Dropped Rule {text}");
            wanted.push(Condition { kind: PARTLY, status: true, reason: "UnsupportedValue", message });
        }
        let before = have.parents.iter().find(|s| s.controller_name == CONTROLLER && s.parent_ref == *parent);
        let there = before.map_or(&[][..], |s| &s.conditions);
        let is_over = |kind| there.iter().any(|c| c.kind == kind) && !wanted.iter().any(|c| c.kind == kind);
        let over = [PARTLY, finding::RESOLVED_WAYPOINTS].into_iter().any(is_over);
        unchanged &= before.is_some() && !over && same(&wanted, there, meta.generation);
        ours += 1;
        all.push(json!({
            "parentRef": parent, "controllerName": CONTROLLER,
            "conditions": conditions(&wanted, there, meta.generation, now),
        }));
    }
    let stale = have.parents.iter().filter(|s| s.controller_name == CONTROLLER).count() != ours;
    if unchanged && !stale {
        return None;
    }
    // The list is written whole: what others have said stays.
    for s in have.parents.iter().filter(|s| s.controller_name != CONTROLLER) {
        let conditions = as_they_are(&s.conditions);
        all.push(json!({ "parentRef": s.parent_ref, "controllerName": s.controller_name, "conditions": conditions }));
    }
    Some(Write { to: reference(GATEWAY_API, kind, meta), manager: CONTROLLER, status: json!({ "parents": all }) })
}

/// Rules, or backends of theirs, that are not in force, since something in them cannot be read or is not executed.
struct Unread {
    /// There are no other rules.
    all: bool,
    /// Which, and what is wrong with each.
    text: String,
}

/// Of how many things in a route that are not in force a condition says what is wrong with them.
const SAID: usize = 16;

fn unread(kind: &str, rules: &[&[BackendRef]], bad: &[FieldError]) -> Option<Unread> {
    let dropped = gateway_api::dropped(bad);
    // A condition's message has at most 32,768 characters: one that is longer could never be written.
    let mut text: Vec<String> = dropped.values().take(SAID).map(|(field, text)| format!("{field}: {text}")).collect();
    if let Some(more) = dropped.len().checked_sub(SAID).filter(|more| *more > 0) {
        text.push(format!("and {more} more"));
    }
    let effect = match kind {
        gateway_api::UDP => "their datagrams are dropped",
        _ => "matching requests are answered with 500",
    };
    let text = format!("{}; {effect}", text.join("; "));
    // A rule none of whose backends is in force serves nothing, either. (Those of a weight of 0 receive nothing anyway.)
    let is_dropped = |(i, backends): (usize, &&[BackendRef])| {
        let rule = format!("spec.rules[{i}]");
        let mut weighted = backends.iter().enumerate().filter(|(_, b)| b.weight != Some(0)).peekable();
        let has_none = weighted.peek().is_none();
        let lost = |j: usize| dropped.contains_key(&*format!("{rule}.backendRefs[{j}]"));
        dropped.contains_key(&*rule) || (!has_none && weighted.all(|(j, _)| lost(j)))
    };
    let all = rules.iter().enumerate().all(is_dropped);
    (!dropped.is_empty()).then_some(Unread { all, text })
}

/// Is the route in force at this parent? None: the parent is no service.
fn accepted(objects: &Objects<'_>, kind: &str, meta: &Meta, parent: &ParentRef) -> Option<(&'static str, String)> {
    let ns = parent.namespace.as_deref().unwrap_or(&meta.namespace);
    let ports: Option<Vec<u16>> =
        match (parent.group.as_deref().unwrap_or(GATEWAY_API), parent.kind.as_deref().unwrap_or("")) {
            ("" | "core", "Service") => match objects.service(ns, &parent.name) {
                Some(s) if service::is_alias(s) => {
                    return Some(("NoMatchingParent", service::alias_text(s, "parent", &meta.namespace)));
                }
                s => s.map(|s| s.spec.ports.iter().map(|p| p.port).collect()),
            },
            (ISTIO_NETWORKING, "ServiceEntry") => {
                let mut all = objects.entries_of.get(ns).into_iter().flatten();
                let found = all.find(|e| e.metadata.name == parent.name);
                found.map(|e| e.spec.ports.iter().map(|p| p.number).collect())
            }
            _ => return None,
        };
    let what = || format!("{} {ns}/{}", parent.kind.as_deref().unwrap_or("Service"), parent.name);
    if kind == gateway_api::UDP {
        let text = "the mesh carries no datagrams: attach the route to a Gateway with a listener of protocol UDP";
        return Some(("NoMatchingParent", format!("a UDPRoute cannot be attached to {}: {text} [KARST-0310]", what())));
    }
    Some(match (ports, parent.port) {
        (None, _) => ("NoMatchingParent", format!("{} not found [KARST-0307]", what())),
        (Some(all), Some(port)) if !all.contains(&port) => {
            ("NoMatchingParent", format!("{} has no port {port} [KARST-0308]", what()))
        }
        (Some(_), _) => ("Accepted", "Route was valid".into()),
    })
}

/// The Service or ServiceEntry that a parent is. None: it is something else, or is not there.
pub(crate) fn of_mesh<'a>(objects: &Objects<'a>, meta: &Meta, parent: &ParentRef) -> Option<&'a Meta> {
    let ns = parent.namespace.as_deref().unwrap_or(&meta.namespace);
    match (parent.group.as_deref().unwrap_or(GATEWAY_API), parent.kind.as_deref().unwrap_or("")) {
        ("" | "core", "Service") => {
            let service = objects.service(ns, &parent.name).filter(|s| !service::is_alias(s))?;
            Some(&service.metadata)
        }
        (ISTIO_NETWORKING, "ServiceEntry") => {
            let mut all = objects.entries_of.get(ns)?.iter().copied();
            all.find(|e| e.metadata.name == parent.name).map(|e| &e.metadata)
        }
        _ => None,
    }
}

/// Does a waypoint execute the route for this parent? None: the parent is no service, or is not there.
fn executed(objects: &Objects<'_>, meta: &Meta, parent: &ParentRef) -> Option<Condition> {
    let own = of_mesh(objects, meta, parent)?;
    let say = |status, reason, message| Condition { kind: finding::RESOLVED_WAYPOINTS, status, reason, message };
    Some(match waypoint::executing(objects, &own.namespace, &own.labels, &parent.name) {
        Ok(text) => say(true, finding::RESOLVED_WAYPOINTS, text),
        Err((reason, text)) => say(false, reason.name(), text),
    })
}

/// What is wrong with the filters that it names.
fn extensions(objects: &Objects<'_>, meta: &Meta, filters: &[&Filter]) -> Option<(&'static str, String)> {
    let mut named = filters.iter().filter_map(|f| f.extension_ref.as_ref().filter(|_| f.kind == "ExtensionRef"));
    let wrong = |r: &ExtensionRef| {
        let ns = &meta.namespace;
        Some(match filter::find(objects, ns, r).map(filter::compile) {
            Some(Ok(_)) => return None,
            Some(Err((field, text))) => ("InvalidFilter", format!("HTTPFilter {ns}/{}: {field}: {text}", r.name)),
            None if filter::is_one(r) => {
                ("FilterNotFound", format!("HTTPFilter {ns}/{} not found [KARST-0307]", r.name))
            }
            None => {
                let (kind, name) = (&r.kind, &r.name);
                let text =
                    format!("{kind} {name:?} is not a supported filter: use HTTPFilter of {OWN_GROUP} [KARST-0310]");
                ("InvalidKind", text)
            }
        })
    };
    named.find_map(wrong)
}

/// Why nothing is reached by a host name.
#[derive(Debug, thiserror::Error)]
enum HostError {
    #[error("no Service or ServiceEntry has the host {0} [KARST-0307]")]
    NotFound(String),
    #[error("host {host} has no port {port} [KARST-0308]")]
    NoPort { host: String, port: u16 },
}

/// Is a host there that is referred to by its name, and does it have the port?
fn hostname(objects: &Objects<'_>, meta: &Meta, backend: &BackendRef) -> Result<(), HostError> {
    let own = |s: &&&Service| !service::is_alias(s) && service::hostname(objects, s) == backend.name;
    let services = objects.services.values().flatten().filter(own);
    let mut ports: Vec<Vec<u16>> = services.map(|s| s.spec.ports.iter().map(|p| p.port).collect()).collect();
    let own = |e: &ServiceEntry| e.metadata.namespace == meta.namespace || !service::is_private(e);
    let entries = objects.service_entries.iter().filter(|(_, e)| e.spec.hosts.contains(&backend.name) && own(e));
    ports.extend(entries.map(|(_, e)| e.spec.ports.iter().map(|p| p.number).collect()));
    match backend.port {
        _ if ports.is_empty() => Err(HostError::NotFound(backend.name.clone())),
        Some(port) if !ports.iter().flatten().any(|p| *p == port) => {
            Err(HostError::NoPort { host: backend.name.clone(), port })
        }
        _ => Ok(()),
    }
}

/// Group and kind of what a reference leads to.
fn target(backend: &BackendRef) -> (&str, &str) {
    (backend.group.as_deref().unwrap_or(""), backend.kind.as_deref().unwrap_or("Service"))
}

/// May a route refer to a backend of this namespace?
fn is_permitted(objects: &Objects<'_>, kind: &str, meta: &Meta, parents: &[ParentRef], backend: &BackendRef) -> bool {
    let (own, name) = (meta.namespace.as_str(), backend.name.as_str());
    let (ns, (group, to)) = (backend.namespace.as_deref().unwrap_or(own), target(backend));
    ns == own
        || (kind != gateway_api::UDP && grant::is_parent(parents, own, ns, name))
        || grant::granted(objects, kind, own, (ns, group, to, name))
}

/// Is what it refers to there, and may it be referred to?
fn resolved<'a>(
    objects: &Objects<'_>,
    kind: &'static str,
    meta: &Meta,
    parents: &[ParentRef],
    refs: impl Iterator<Item = &'a BackendRef>,
) -> (&'static str, String) {
    let of = if kind == gateway_api::UDP { "UDP " } else { "" };
    let is_protocol = |port: &ServicePort| match kind {
        gateway_api::UDP => service::udp(&port.protocol),
        _ => service::tcp(&port.protocol),
    };
    for backend in refs {
        let ns = backend.namespace.as_deref().unwrap_or(&meta.namespace);
        let (group, to) = target(backend);
        if group == ISTIO_NETWORKING && to == "Hostname" && kind != gateway_api::UDP {
            match hostname(objects, meta, backend) {
                Ok(()) => continue,
                Err(e) => return ("BackendNotFound", e.to_string()),
            }
        }
        if !matches!((group, to), ("" | "core", "Service")) {
            let kinds = if kind == gateway_api::UDP { "Service" } else { "Service or Hostname" };
            return (
                "InvalidKind",
                format!("{to} {:?} is not supported as a backend: use {kinds} [KARST-0310]", backend.name),
            );
        }
        if !is_permitted(objects, kind, meta, parents, backend) {
            return (
                "RefNotPermitted",
                format!(
                    "reference to Service {ns}/{} is not permitted: create a ReferenceGrant in its namespace [KARST-0309]",
                    backend.name
                ),
            );
        }
        match objects.service(ns, &backend.name) {
            None => return ("BackendNotFound", format!("Service {ns}/{} not found [KARST-0307]", backend.name)),
            Some(s) if service::is_alias(s) => {
                return ("BackendNotFound", service::alias_text(s, "backend", &meta.namespace));
            }
            Some(s) if backend.port.is_some_and(|p| !s.spec.ports.iter().any(|x| x.port == p && is_protocol(x))) => {
                return (
                    "BackendNotFound",
                    format!("Service {ns}/{} has no {of}port {} [KARST-0308]", backend.name, backend.port.unwrap_or(0)),
                );
            }
            Some(_) => {}
        }
    }
    ("ResolvedRefs", "All references resolved".into())
}
