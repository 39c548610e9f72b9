//! Why a gateway does not take a host: routes that name it and are not attached to it.

use crate::{answer::Outcome, call::Call, way::Way, world::World};
use karst_manifest::{
    Object as Read,
    gatewayapi::{HTTPRoute, ParentRef},
    kinds::{Gateway, Labels, Listener, ListenerSet, Meta},
};

/// Says what is known of the routes and listeners that might have been meant.
pub(super) fn not_taken(world: &World, call: &Call, way: &mut Way) {
    let Some(cause) = way.answer.cause else { return };
    let on_the_way = way.answer.steps.iter().filter_map(|s| s.object.as_ref());
    let gateway = on_the_way.filter(|o| o.kind == "Gateway").find_map(|o| {
        match &world.objects.get("Gateway", &o.namespace, &o.name)?.object {
            Read::Gateway(gateway) => Some(gateway),
            _ => None,
        }
    });
    let Some(gateway) = gateway else { return };
    let name = way.destination.name.clone();
    let host = call.request.as_ref().and_then(|head| head.host.clone()).unwrap_or(name);
    let of_it = format!("Gateway {}/{}", gateway.metadata.namespace, gateway.metadata.name);
    let mut said: Vec<String> = vec![];
    let its = sets(world, gateway);
    let of_sets: Vec<String> = its.iter().map(|set| called(set)).collect();
    for problem in world.compiled.problems.iter().filter(|p| p.object == of_it || of_sets.contains(&p.object)) {
        said.push(format!("{}: {}: {}", problem.object, problem.field, problem.message));
    }
    let unused = world.compiled.no_effect.iter().filter(|one| one.kind == "ListenerSet");
    let unused = unused.filter(|one| of_sets.contains(&format!("ListenerSet {}/{}", one.namespace, one.name)));
    said.extend(unused.map(|one| format!("ListenerSet {}/{}: {}", one.namespace, one.name, one.text)));
    for located in world.objects.all("HTTPRoute") {
        if let Read::HTTPRoute(route) = &located.object {
            let parents = route.spec.parent_refs.iter().enumerate();
            said.extend(parents.filter_map(|(number, parent)| {
                let named = Named::of(gateway, &its, parent, &route.metadata.namespace)?;
                detached(world, &named, route, (number, parent), &host)
            }));
        }
    }
    if !said.is_empty() && way.answer.steps.iter().any(|s| s.outcome == Outcome::Refuse) {
        way.explain_refusal(cause, &said.join("; "));
    }
}

/// The ListenerSets that add to a Gateway.
fn sets<'a>(world: &'a World, gateway: &Gateway) -> Vec<&'a ListenerSet> {
    let all = world.objects.all("ListenerSet").filter_map(|located| match &located.object {
        Read::ListenerSet(set) => Some(&**set),
        _ => None,
    });
    let meta = &gateway.metadata;
    let is_its = |set: &&ListenerSet| {
        let of = world.objects.gateway_of_set(&set.metadata.namespace, &set.metadata.name);
        of == Some((meta.namespace.as_str(), meta.name.as_str()))
    };
    all.filter(is_its).collect()
}

fn called(set: &ListenerSet) -> String {
    format!("ListenerSet {}/{}", set.metadata.namespace, set.metadata.name)
}

/// What a route names: a Gateway, or a ListenerSet that adds to it.
struct Named<'a> {
    kind: &'static str,
    namespace: &'a str,
    listeners: &'a [Listener],
}

impl<'a> Named<'a> {
    /// None: the reference is to something else.
    fn of(gateway: &'a Gateway, sets: &[&'a ListenerSet], parent: &ParentRef, own: &str) -> Option<Self> {
        let place = parent.namespace.as_deref().unwrap_or(own);
        let is = |meta: &Meta| (place, &parent.name) == (&*meta.namespace, &meta.name);
        match parent.kind.as_deref().unwrap_or("Gateway") {
            "Gateway" if is(&gateway.metadata) => Some(Self {
                kind: "Gateway",
                namespace: &gateway.metadata.namespace,
                listeners: &gateway.spec.listeners,
            }),
            "ListenerSet" => {
                let set = sets.iter().find(|set| is(&set.metadata))?;
                let (namespace, listeners) = (&set.metadata.namespace, &set.spec.listeners);
                Some(Self { kind: "ListenerSet", namespace, listeners })
            }
            _ => None,
        }
    }
}

/// Why a route that names them is not attached to these listeners, or not for this host.
fn detached(
    world: &World,
    of: &Named<'_>,
    route: &HTTPRoute,
    (number, parent): (usize, &ParentRef),
    host: &str,
) -> Option<String> {
    let of_route = format!("HTTPRoute {}/{}", route.metadata.namespace, route.metadata.name);
    let at = format!("{of_route}: spec.parentRefs[{number}]");
    let named = |name: &String| of.listeners.iter().any(|listener| listener.name == *name);
    if let Some(section) = parent.section_name.as_ref().filter(|name| !named(name)) {
        let all: Vec<&str> = of.listeners.iter().map(|listener| listener.name.as_str()).collect();
        let (kind, all) = (of.kind, all.join(", "));
        return Some(format!("{at}.sectionName: the {kind} has no listener {section}; it has {all}"));
    }
    let wanted = |name: &String| parent.section_name.as_ref().is_none_or(|section| section == name);
    let listeners = || of.listeners.iter().filter(|listener| wanted(&listener.name));
    let empty = Labels::new();
    let around = world.objects.namespace(&route.metadata.namespace).map_or(&empty, |n| &n.metadata.labels);
    let admits = |listener: &Listener| match &*listener.allowed_routes.namespaces.from {
        "All" => true,
        "Selector" => listener.allowed_routes.namespaces.selector.as_ref().is_some_and(|s| s.selects(around)),
        "None" => false,
        _ => route.metadata.namespace == of.namespace,
    };
    if !listeners().any(admits) {
        return Some(format!(
            "{at}: no listener takes routes of namespace {} (allowedRoutes.namespaces.from)",
            route.metadata.namespace
        ));
    }
    let hosts = &route.spec.hostnames;
    let covers = |own: &String| own == host || own.strip_prefix('*').is_some_and(|end| host.ends_with(end));
    if !hosts.is_empty() && !hosts.iter().any(covers) {
        return Some(format!("{of_route}: spec.hostnames has {}, not {host}", hosts.join(", ")));
    }
    None
}
