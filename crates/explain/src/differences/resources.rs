//! Routes, policies and rules of destinations: what a waypoint or gateway was told beside what the objects compile to.

use super::difference::Difference;
use crate::{answer::Explanation, observed::Told, world::World};
use karst_api::{ACCESS_TYPE, BACKEND_TYPE, GATEWAY_TYPE, ROUTES_TYPE, VIRTUAL_HOST_TYPE, route as ir};
use karst_proxy::endpoints::is_waypoint;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// Parts of a resource by the object that they come from, each encoded.
type Parts = BTreeMap<String, Vec<Vec<u8>>>;

/// Where a waypoint or gateway has been told otherwise.
pub(super) fn of_proxy(world: &World, answer: &Explanation, pod: &str, told: &[Told]) -> Vec<Difference> {
    let is_gateway = world.gateways().iter().any(|g| format!("{}/{}", g.workload.namespace, g.workload.name) == pod);
    let types: &[&str] =
        if is_gateway { &[BACKEND_TYPE, VIRTUAL_HOST_TYPE] } else { &[ACCESS_TYPE, BACKEND_TYPE, ROUTES_TYPE] };
    let mut services: BTreeSet<String> = answer.service.iter().cloned().collect();
    let workloads = answer.endpoints.iter().filter_map(|e| world.mesh.workload(e.address.ip()));
    services.extend(workloads.flat_map(|w| &w.services).map(|(key, _)| key.to_string()));
    // Routes and policies are told to the waypoint of a service only.
    let own = world.mesh.workloads.values().find(|w| format!("{}/{}", w.namespace, w.name) == pod);
    let is_bound = |key: &str| {
        let both = own.zip(world.mesh.services.get(key));
        both.is_some_and(|(own, service)| service.waypoints.iter().any(|(g, _)| is_waypoint(&world.mesh, own, g)))
    };
    let listened = listened(world, pod);
    let concerns = |type_url: &str, name: &str| match type_url {
        GATEWAY_TYPE => name == pod,
        VIRTUAL_HOST_TYPE => {
            types.contains(&type_url) && name.rsplit_once('/').is_some_and(|(routes, _)| listened.contains(routes))
        }
        ACCESS_TYPE | ROUTES_TYPE => types.contains(&type_url) && services.contains(name) && is_bound(name),
        _ => types.contains(&type_url) && services.contains(name),
    };
    let mut both: BTreeMap<(&str, &str), [Option<&[u8]>; 2]> = BTreeMap::new();
    for resource in world.compiled.resources.iter().filter(|r| concerns(r.type_url, &r.name)) {
        both.entry((resource.type_url, &resource.name)).or_default()[0] = Some(&resource.bytes);
    }
    for resource in told.iter().filter(|r| concerns(&r.type_url, &r.name)) {
        both.entry((&resource.type_url, &resource.name)).or_default()[1] = Some(&resource.bytes);
    }
    let mut out = vec![];
    for ((type_url, name), [compiled, proxy]) in both {
        of_resource(type_url, name, &parts(type_url, compiled), &parts(type_url, proxy), &mut out);
    }
    out
}

/// What the listeners of a gateway's pod call their routes: it is told of no other virtual hosts.
fn listened(world: &World, pod: &str) -> BTreeSet<String> {
    let own = world.compiled.resources.iter().filter(|r| r.type_url == GATEWAY_TYPE && r.name == pod);
    let gateways = own.filter_map(|r| ir::Gateway::decode(&*r.bytes).ok());
    gateways
        .flat_map(|g| g.listeners.into_iter().map(|l| l.routes).chain(g.udp.into_iter().map(|l| l.routes)))
        .collect()
}

fn of_resource(type_url: &str, name: &str, compiled: &Parts, proxy: &Parts, out: &mut Vec<Difference>) {
    let what = match type_url {
        ACCESS_TYPE => "policies of",
        BACKEND_TYPE => "rules of destination",
        GATEWAY_TYPE => "listeners of",
        VIRTUAL_HOST_TYPE => "routes of host",
        _ => "routes of",
    };
    let all: BTreeSet<&String> = compiled.keys().chain(proxy.keys()).collect();
    for field in all {
        let (compiled, proxy) = match (compiled.get(field), proxy.get(field)) {
            (Some(one), Some(other)) if one == other => continue,
            (Some(_), Some(_)) => ("as it is written now", "another version"),
            (Some(_), None) => ("there", ""),
            (None, _) => ("", "there"),
        };
        let subject = format!("{what} {name}");
        out.push(Difference { subject, field: field.clone(), compiled: compiled.into(), proxy: proxy.into() });
    }
}

fn parts(type_url: &str, bytes: Option<&[u8]>) -> Parts {
    let mut out = Parts::new();
    let Some(bytes) = bytes else { return out };
    let mut add = |origin: String, bytes: Vec<u8>| out.entry(origin).or_default().push(bytes);
    match type_url {
        ROUTES_TYPE | VIRTUAL_HOST_TYPE => {
            let routes = ir::Routes::decode(bytes).unwrap_or_default();
            let tables = routes.consumers.iter().filter_map(|c| c.table.as_ref()).chain(&routes.producer);
            for table in tables {
                table.http.iter().for_each(|rule| add(rule.origin.clone(), rule.encode_to_vec()));
                table.tcp.iter().for_each(|rule| add(rule.origin.clone(), rule.encode_to_vec()));
            }
            routes.limits.iter().for_each(|limit| add(format!("HTTPFilter {}", limit.name), limit.encode_to_vec()));
            routes.fault.iter().for_each(|fault| add("fault of an HTTPFilter".into(), fault.encode_to_vec()));
            let compression = routes.compression.iter();
            compression.for_each(|rule| add("compression of an HTTPFilter".into(), rule.encode_to_vec()));
            if routes.max_body_bytes > 0 {
                add("size limit of an HTTPFilter".into(), routes.max_body_bytes.to_be_bytes().to_vec());
            }
        }
        ACCESS_TYPE => {
            let access = ir::Access::decode(bytes).unwrap_or_default();
            let named = |policy: &ir::AccessPolicy| format!("AuthorizationPolicy {}", policy.name);
            access.policies.iter().for_each(|policy| add(named(policy), policy.encode_to_vec()));
            let named = |token: &ir::Jwt| format!("RequestAuthentication {}", token.name);
            access.tokens.iter().for_each(|token| add(named(token), token.encode_to_vec()));
        }
        GATEWAY_TYPE => {
            let gateway = ir::Gateway::decode(bytes).unwrap_or_default();
            for mut listener in gateway.listeners {
                // Keys are not shown, and what is not shown cannot be compared.
                let pairs = listener.tls.iter_mut().flat_map(|tls| &mut tls.certificates);
                pairs.for_each(|pair| pair.key.clear());
                add(listener.origin.clone(), listener.encode_to_vec());
            }
        }
        _ => add("DestinationRule, BackendTLSPolicy or XBackendTrafficPolicy".into(), bytes.to_vec()),
    }
    out
}
