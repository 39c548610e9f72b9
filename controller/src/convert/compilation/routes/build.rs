//! Builds the routes and backends of all services and virtual hosts, out of the objects that contribute to each.

use crate::{
    convert::{
        compilation::{
            access,
            routes::{
                backend_tls,
                cache::{Cache, Context},
                destination_rule, filter, gateway_api, session,
                table::Tables,
                virtual_service,
            },
            tokens,
        },
        facts::{hosts::Hosts, listeners::GatewayListeners, policy::Judged, service, session::by_labels},
        objects::{FieldError, Objects, address, problem},
    },
    model::Model,
};
use karst_manifest::{Problem, gatewayapi::ParentRef, kinds::*, parse::Located};
use std::{collections::BTreeMap, sync::Arc};

/// An object with routes.
enum Source<'a> {
    Istio(&'a VirtualService),
    Http(&'a HTTPRoute),
    Grpc(&'a GRPCRoute),
    Tcp(&'a TCPRoute),
    Tls(&'a TLSRoute),
    Udp(&'a UDPRoute),
}

impl Source<'_> {
    fn address(&self) -> usize {
        match self {
            Source::Istio(v) => address(*v),
            Source::Http(r) => address(*r),
            Source::Grpc(r) => address(*r),
            Source::Tcp(r) => address(*r),
            Source::Tls(r) => address(*r),
            Source::Udp(r) => address(*r),
        }
    }

    /// The services that its rules are for.
    fn targets(&self, objects: &Objects<'_>, hosts: &Hosts) -> Vec<Arc<str>> {
        let parents = |m: &Meta, p: &[ParentRef], names: &[String], kind| {
            gateway_api::targets(objects, hosts, kind, &m.namespace, names, p)
        };
        match self {
            Source::Istio(v) => virtual_service::targets(objects, v, hosts),
            Source::Http(r) => parents(&r.metadata, &r.spec.parent_refs, &r.spec.hostnames, "HTTPRoute"),
            Source::Grpc(r) => parents(&r.metadata, &r.spec.parent_refs, &r.spec.hostnames, "GRPCRoute"),
            Source::Tcp(r) => parents(&r.metadata, &r.spec.parent_refs, &[], "TCPRoute"),
            Source::Tls(r) => parents(&r.metadata, &r.spec.parent_refs, &r.spec.hostnames, "TLSRoute"),
            Source::Udp(r) => parents(&r.metadata, &r.spec.parent_refs, &[], gateway_api::UDP),
        }
    }

    fn convert(&self, objects: &Objects<'_>, hosts: &Hosts, tables: &mut Tables) -> Vec<FieldError> {
        match self {
            Source::Istio(v) => virtual_service::compile(objects, v, hosts, tables),
            Source::Http(r) => gateway_api::http(objects, r, hosts, tables),
            Source::Grpc(r) => gateway_api::grpc(objects, r, hosts, tables),
            Source::Tcp(r) => gateway_api::tcp(objects, r, hosts, tables),
            Source::Tls(r) => gateway_api::tls(objects, r, hosts, tables),
            Source::Udp(r) => gateway_api::udp(objects, r, hosts, tables),
        }
    }
}

fn sources<'a>(objects: &Objects<'a>) -> Vec<(&'a Located, Source<'a>)> {
    let istio = objects.virtual_services.iter().map(|(at, v)| (*at, Source::Istio(v)));
    let http = objects.http_routes.iter().map(|(at, r)| (*at, Source::Http(r)));
    let grpc = objects.grpc_routes.iter().map(|(at, r)| (*at, Source::Grpc(r)));
    let tcp = objects.tcp_routes.iter().map(|(at, r)| (*at, Source::Tcp(r)));
    let tls = objects.tls_routes.iter().map(|(at, r)| (*at, Source::Tls(r)));
    let udp = objects.udp_routes.iter().map(|(at, r)| (*at, Source::Udp(r)));
    istio.chain(http).chain(grpc).chain(tcp).chain(tls).chain(udp).collect()
}

/// The UDP ports of services that have endpoints, all of which are closed to who has no identity; and what closes one of them. (Who is
/// not captured takes everything.)
fn closed_to_datagrams(model: &Model) -> BTreeMap<(String, u32), String> {
    let mut all: BTreeMap<(String, u32), Option<String>> = BTreeMap::new();
    for workload in model.workloads.values() {
        let is_captured = workload.tunnel_protocol != 0;
        for (key, list) in &workload.karst_udp_services {
            for port in &list.ports {
                let why = (is_captured && !port.closed.is_empty()).then(|| port.closed.clone());
                let other = all.entry((key.clone(), port.service_port)).or_insert_with(|| why.clone());
                // One that is open is enough; of those that close it the first by name is told.
                *other = match (other.take(), why) {
                    (Some(one), Some(two)) => Some(one.min(two)),
                    _ => None,
                };
            }
        }
    }
    all.into_iter().filter_map(|(key, why)| Some((key, why?))).collect()
}

pub(crate) fn compile(
    objects: &Objects<'_>,
    listeners: &Arc<GatewayListeners>,
    policies: &[(&Located, Judged<'_>)],
    model: &mut Model,
    problems: &mut Vec<Problem>,
    cache: &mut Cache,
) {
    let attached = objects.authorization.iter().any(|(_, p)| p.spec.targets().next().is_some());
    let by_name = objects.service_entries.iter().any(|(_, e)| service::is_by_name(e));
    let none =
        objects.virtual_services.is_empty() && objects.destination_rules.is_empty() && objects.http_filters.is_empty();
    let none = none && objects.backend_tls.is_empty() && objects.request.is_empty() && objects.routes_are_empty();
    if none && !attached && !by_name && !by_labels(objects) {
        *cache = Cache::default();
        return;
    }
    let hosts = Hosts::new(objects, model, listeners);
    model.access = access::compile(objects, &hosts, policies).into_iter().collect();
    let mut report = |at: &Located, bad: &[FieldError]| {
        problems.extend(bad.iter().map(|(field, message)| problem(at, field, message)));
    };
    let context = Context::new(objects, model, listeners);
    let mut old = std::mem::take(cache);
    if old.context != context {
        old = Cache::default();
    }
    cache.context = context;
    let sources = sources(objects);
    let targets: Vec<Vec<Arc<str>>> = sources.iter().map(|(_, s)| s.targets(objects, &hosts)).collect();
    let mut contributors: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
    for ((_, s), keys) in sources.iter().zip(&targets) {
        for k in keys {
            contributors.entry(k.clone()).or_default().push(s.address());
        }
    }
    let same = |k: &Arc<str>| old.tables.get(k).is_some_and(|(c, _)| contributors.get(k) == Some(c));
    let mut tables = Tables::default();
    for ((at, source), keys) in sources.iter().zip(&targets) {
        let bad = match old.bad.remove(&source.address()) {
            Some(b) if keys.iter().all(same) => b,
            _ => source.convert(objects, &hosts, &mut tables),
        };
        report(at, &bad);
        cache.bad.insert(source.address(), bad);
    }
    let mut routes = tables.routes(same);
    for (key, contributing) in contributors {
        let whole = match old.tables.remove(&key) {
            Some((o, r)) if o == contributing => Some(r),
            _ => routes.remove(&key).map(Arc::new),
        };
        // Objects that are all wrong contribute nothing.
        if let Some(r) = whole {
            cache.tables.insert(key, (contributing, r));
        }
    }
    model.routes = cache.tables.iter().map(|(k, (_, r))| (k.to_string(), r.clone())).collect();
    cache.closed = closed_to_datagrams(model);
    for (at, r) in &objects.udp_routes {
        report(at, &gateway_api::closed_to_datagrams(objects, r, &cache.closed));
    }
    for (at, r) in &objects.request {
        report(at, &tokens::problems(objects, r));
    }
    for (at, f) in &objects.http_filters {
        report(at, &filter::attach(objects, f, &hosts, model));
    }
    let (mut backends, bad) = destination_rule::compile(objects, &hosts, old.rules, &mut cache.rules);
    for (at, bad) in bad {
        report(at, &bad);
    }
    for (at, b) in backend_tls::compile(objects, &hosts, &mut backends) {
        report(at, &[b]);
    }
    for (_, e) in objects.service_entries.iter().filter(|(_, e)| service::is_by_name(e)) {
        for host in e.spec.hosts.iter().filter_map(|h| hosts.own(h, &e.metadata.namespace)) {
            Arc::make_mut(backends.entry(host.to_string()).or_default()).by_name = true;
        }
    }
    for (key, session) in session::of_services(objects, &hosts, problems) {
        Arc::make_mut(backends.entry(key).or_default()).session = Some(session);
    }
    model.backends = backends.into_iter().collect();
}
