//! Why a gateway does not take a host: routes that name it and are not attached to it.

use crate::{answer::Outcome, call::Call, way::Way, world::World};
use karst_manifest::{
    Object as Read,
    gatewayapi::{HTTPRoute, ParentRef},
    kinds::{Gateway, Labels},
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
    for problem in world.compiled.problems.iter().filter(|p| p.object == of_it) {
        said.push(format!("{of_it}: {}: {}", problem.field, problem.message));
    }
    for located in world.objects.all("HTTPRoute") {
        if let Read::HTTPRoute(route) = &located.object {
            let parents = route.spec.parent_refs.iter().enumerate();
            said.extend(
                parents.filter_map(|(number, parent)| detached(world, gateway, route, (number, parent), &host)),
            );
        }
    }
    if !said.is_empty() && way.answer.steps.iter().any(|s| s.outcome == Outcome::Refuse) {
        way.explain_refusal(cause, &said.join("; "));
    }
}

/// Why a route that names the Gateway is not attached to it, or not for this host.
fn detached(
    world: &World,
    gateway: &Gateway,
    route: &HTTPRoute,
    (number, parent): (usize, &ParentRef),
    host: &str,
) -> Option<String> {
    let place = parent.namespace.as_deref().unwrap_or(&route.metadata.namespace);
    let is_gateway = parent.kind.as_deref().is_none_or(|kind| kind == "Gateway");
    if !is_gateway || (place, &parent.name) != (&*gateway.metadata.namespace, &gateway.metadata.name) {
        return None;
    }
    let of_route = format!("HTTPRoute {}/{}", route.metadata.namespace, route.metadata.name);
    let at = format!("{of_route}: spec.parentRefs[{number}]");
    let named = |name: &String| gateway.spec.listeners.iter().any(|listener| listener.name == *name);
    if let Some(section) = parent.section_name.as_ref().filter(|name| !named(name)) {
        let all: Vec<&str> = gateway.spec.listeners.iter().map(|listener| listener.name.as_str()).collect();
        return Some(format!("{at}.sectionName: the Gateway has no listener {section}; it has {}", all.join(", ")));
    }
    let wanted = |name: &String| parent.section_name.as_ref().is_none_or(|section| section == name);
    let listeners = || gateway.spec.listeners.iter().filter(|listener| wanted(&listener.name));
    let empty = Labels::new();
    let around = world.objects.namespace(&route.metadata.namespace).map_or(&empty, |n| &n.metadata.labels);
    let admits = |listener: &karst_manifest::kinds::Listener| match &*listener.allowed_routes.namespaces.from {
        "All" => true,
        "Selector" => listener.allowed_routes.namespaces.selector.selects(around),
        "None" => false,
        _ => route.metadata.namespace == gateway.metadata.namespace,
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
