//! Builds the routes and backends of all services and virtual hosts, out of the objects that contribute to each.

use crate::{
    convert::{
        compilation::{
            access,
            routes::{
                backend_tls, backend_traffic,
                cache::{Cache, ClosedBy, Context},
                destination_rule, filter, gateway_api, session,
                table::Tables,
                virtual_service,
            },
            tokens,
        },
        facts::{hosts::Hosts, listeners::GatewayListeners, policy::Judged, service, session::by_labels, udp},
        objects::{FieldError, Objects, address, problem, source_labels},
    },
    model::Model,
};
use karst_api::route as ir;
use karst_manifest::{Problem, gatewayapi::ParentRef, kinds::*, parse::Located};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

/// An object with routes.
enum Source<'a> {
    Istio(&'a VirtualService),
    Http(&'a HTTPRoute),
    Grpc(&'a GRPCRoute),
    Tcp(&'a TCPRoute),
    Tls(&'a TLSRoute),
    Udp(&'a UDPRoute),
}

impl<'a> Source<'a> {
    /// None: it has no routes.
    fn of(object: &'a Object) -> Option<Self> {
        match object {
            Object::VirtualService(v) => Some(Self::Istio(v)),
            Object::HTTPRoute(r) => Some(Self::Http(r)),
            Object::GRPCRoute(r) => Some(Self::Grpc(r)),
            Object::TCPRoute(r) => Some(Self::Tcp(r)),
            Object::TLSRoute(r) => Some(Self::Tls(r)),
            Object::UDPRoute(r) => Some(Self::Udp(r)),
            _ => None,
        }
    }

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

    /// Which kind comes before which.
    fn place(&self) -> u8 {
        match self {
            Source::Istio(_) => 0,
            Source::Http(_) => 1,
            Source::Grpc(_) => 2,
            Source::Tcp(_) => 3,
            Source::Tls(_) => 4,
            Source::Udp(_) => 5,
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

/// The UDP ports of services that have endpoints, all of which take no datagrams of gateways; and why one of them does not. (Who is
/// not captured takes everything, unless it is a gateway.)
fn closed_to_datagrams(objects: &Objects<'_>, model: &Model) -> BTreeMap<(String, u32), ClosedBy> {
    let mut all: BTreeMap<(String, u32), Option<ClosedBy>> = BTreeMap::new();
    let mut note = |key: &str, port: u32, why: Option<ClosedBy>| {
        let other = all.entry((key.to_string(), port)).or_insert_with(|| why.clone());
        // One that is open is enough; of those that close it the first by name is told.
        *other = match (other.take(), why) {
            (Some(one), Some(two)) => Some(one.min(two)),
            _ => None,
        };
    };
    for workload in model.workloads.values() {
        let is_captured = workload.tunnel_protocol != 0;
        for (key, list) in &workload.karst_udp_services {
            for port in &list.ports {
                let why = (is_captured && !port.closed.is_empty()).then(|| ClosedBy::Policies(port.closed.clone()));
                note(key, port.service_port, why);
            }
        }
    }
    for pod in &objects.pods {
        for (key, ports) in udp::of_gateway(objects, pod) {
            ports.iter().for_each(|(port, _)| note(&key, (*port).into(), Some(ClosedBy::Gateway)));
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
    let none = none && objects.backend_tls.is_empty() && objects.backend_traffic.is_empty();
    let none = none && objects.request.is_empty() && objects.routes_are_empty();
    if none && !attached && !by_name && !by_labels(objects) {
        *cache = Cache::default();
        return;
    }
    let hosts = Hosts::new(objects, model, listeners);
    model.access = access::compile(objects, &hosts, policies).into_iter().collect();
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
    let start = problems.len();
    for ((at, source), keys) in sources.iter().zip(&targets) {
        let bad = match old.bad.remove(&source.address()) {
            Some(b) if keys.iter().all(same) => b,
            _ => source.convert(objects, &hosts, &mut tables),
        };
        report(problems, at, &bad);
        cache.bad.insert(source.address(), bad);
    }
    cache.told = start..problems.len();
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
    cache.targets = sources.iter().zip(targets).map(|((_, source), keys)| (source.address(), keys)).collect();
    model.routes = cache.tables.iter().map(|(k, (_, r))| (k.to_string(), r.clone())).collect();
    cache.closed = closed_to_datagrams(objects, model);
    for (at, r) in &objects.udp_routes {
        report(problems, at, &gateway_api::closed_to_datagrams(objects, r, &cache.closed));
    }
    for (at, r) in &objects.request {
        report(problems, at, &tokens::problems(objects, r));
    }
    for (at, f) in &objects.http_filters {
        report(problems, at, &filter::attach(objects, f, &hosts, model));
    }
    let (mut backends, bad) = destination_rule::compile(objects, &hosts, old.rules, &mut cache.rules);
    for (at, bad) in bad {
        report(problems, at, &bad);
    }
    for (at, b) in backend_tls::compile(objects, &hosts, &mut backends) {
        report(problems, at, &[b]);
    }
    for (_, e) in objects.service_entries.iter().filter(|(_, e)| service::is_by_name(e)) {
        for host in e.spec.hosts.iter().filter_map(|h| hosts.own(h, &e.metadata.namespace)) {
            Arc::make_mut(backends.entry(host.to_string()).or_default()).by_name = true;
        }
    }
    for (key, session) in session::of_services(objects, &hosts, problems) {
        Arc::make_mut(backends.entry(key).or_default()).session = Some(session);
    }
    // After the labels, before which they come.
    for (at, b) in backend_traffic::compile(objects, &hosts, &mut backends) {
        report(problems, at, &[b]);
    }
    model.backends = backends.into_iter().collect();
    cache.hosts = Some(hosts);
}

fn report(problems: &mut Vec<Problem>, at: &Located, bad: &[FieldError]) {
    problems.extend(bad.iter().map(|(field, message)| problem(at, field, message)));
}

/// Does an object decide about routes, and about nothing else? What another delegates to is part of that one; what binds clients
/// to endpoints asks for keys, and what looks at clients' labels asks for these.
pub(crate) fn is_alone(object: &Object) -> bool {
    match object {
        Object::VirtualService(v) => !v.spec.hosts.is_empty() && source_labels(v).next().is_none(),
        Object::HTTPRoute(r) => r.spec.rules.iter().all(|rule| rule.session_persistence.is_none()),
        Object::GRPCRoute(r) => r.spec.rules.iter().all(|rule| rule.session_persistence.is_none()),
        Object::TCPRoute(_) | Object::TLSRoute(_) => true,
        _ => false,
    }
}

/// Can routes be compiled by what was compiled last ([`edit`])? What filters do to all requests of a service is not kept apart.
pub(crate) fn can_edit(objects: &Objects<'_>, cache: &Cache) -> bool {
    cache.hosts.is_some() && objects.http_filters.is_empty()
}

/// Takes in objects that [`is_alone`], where nothing has changed but these and pods: only the services and virtual hosts that they are
/// for, or were for, get other routes. Does the same as [`compile`]. True: some routes are others.
pub(crate) fn edit(
    objects: &Objects<'_>,
    (gone, new): (&[Arc<Located>], &[Arc<Located>]),
    model: &mut Model,
    problems: &mut Vec<Problem>,
    cache: &mut Cache,
) -> bool {
    let Some(hosts) = cache.hosts.take() else { return false };
    let (mut affected, mut added) = (HashSet::new(), HashSet::new());
    for source in gone.iter().filter_map(|o| Source::of(&o.object)) {
        cache.bad.remove(&source.address());
        affected.extend(cache.targets.remove(&source.address()).into_iter().flatten());
    }
    for source in new.iter().filter_map(|o| Source::of(&o.object)) {
        let keys = source.targets(objects, &hosts);
        affected.extend(keys.iter().cloned());
        cache.targets.insert(source.address(), keys);
        added.insert(source.address());
    }
    let sources = sources(objects);
    let mut contributors: BTreeMap<Arc<str>, Vec<usize>> = affected.iter().map(|key| (key.clone(), vec![])).collect();
    let mut tables = Tables::default();
    // In the order of all: of rules that are alike in everything else the first is the first.
    for (_, source) in &sources {
        let address = source.address();
        let keys = cache.targets.get(&address).map_or(&[][..], Vec::as_slice);
        if !added.contains(&address) && !keys.iter().any(|key| affected.contains(key)) {
            continue;
        }
        for key in keys {
            if let Some(all) = contributors.get_mut(key) {
                all.push(address);
            }
        }
        let bad = source.convert(objects, &hosts, &mut tables);
        cache.bad.insert(address, bad);
    }
    let mut routes = tables.routes(|key| !affected.contains(key));
    let mut is_other = false;
    for (key, contributing) in contributors {
        // Objects that are all wrong contribute nothing.
        let now = routes.remove(&key).filter(|_| !contributing.is_empty());
        is_other |= put(key, (contributing, now), model, cache);
    }
    let mut told = vec![];
    for (at, source) in &sources {
        report(&mut told, at, cache.bad.get(&source.address()).map_or(&[], Vec::as_slice));
    }
    let end = cache.told.start + told.len();
    drop(problems.splice(cache.told.clone(), told));
    cache.told.end = end;
    cache.hosts = Some(hosts);
    is_other
}

/// Puts the routes of a service or of a virtual host in the place of those before, with the objects that contribute to them. None: it
/// has none. True: they are others.
fn put(
    key: Arc<str>,
    (contributing, now): (Vec<usize>, Option<ir::Routes>),
    model: &mut Model,
    cache: &mut Cache,
) -> bool {
    let before = model.routes.get(&*key).cloned();
    let Some(now) = now else {
        model.routes.remove(&*key);
        cache.tables.remove(&key);
        return before.is_some();
    };
    let same = before.filter(|before| **before == now);
    let is_other = same.is_none();
    let now = same.unwrap_or_else(|| Arc::new(now));
    if is_other {
        model.routes.insert(key.to_string(), now.clone());
    }
    cache.tables.insert(key, (contributing, now));
    is_other
}

/// What a route of Gateway API is known by. None: it is something else, or one that a proxy's datagrams go by.
pub(crate) fn route_address(object: &Object) -> Option<usize> {
    match Source::of(object)? {
        Source::Istio(_) | Source::Udp(_) => None,
        source => Some(source.address()),
    }
}

/// What becomes of the services and virtual hosts that some routes are for, or were for.
pub(crate) struct Step {
    gone: Vec<usize>,
    new: HashMap<usize, Vec<Arc<str>>>,
    /// Of each service or virtual host who contributes to its routes, and these.
    routes: Vec<(Arc<str>, Vec<usize>, Option<ir::Routes>)>,
}

impl Step {
    /// The same as [`edit`] without a look at other routes than those of the same services and virtual hosts, and nothing is taken in
    /// yet. All are routes of Gateway API that [`is_alone`]; `known` are those that were compiled, by [`route_address`]. None: it is
    /// not to be found out so, since others contribute, or something is wrong with a route, which is told in the order of all.
    pub(crate) fn find(
        objects: &Objects<'_>,
        (gone, new): (&[Arc<Located>], &[Arc<Located>]),
        cache: &Cache,
        known: &HashMap<usize, Arc<Located>>,
    ) -> Option<Self> {
        let hosts = cache.hosts.as_ref()?;
        let mut affected: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut out = Self { gone: vec![], new: HashMap::new(), routes: vec![] };
        for object in gone {
            let address = route_address(&object.object)?;
            if !cache.bad.get(&address)?.is_empty() {
                return None;
            }
            affected.extend(cache.targets.get(&address)?.iter().cloned());
            out.gone.push(address);
        }
        for object in new {
            let (address, source) = (route_address(&object.object)?, Source::of(&object.object)?);
            let keys = source.targets(objects, hosts);
            affected.extend(keys.iter().cloned());
            out.new.insert(address, keys);
        }
        // In the order of all, as far as it counts: none of one kind is like another in all that decides about the order of rules.
        let mut members: BTreeMap<(u8, &str, &str), Source<'_>> = BTreeMap::new();
        let contributing = affected.iter().filter_map(|key| cache.tables.get(key)).flat_map(|(all, _)| all);
        let mut there = vec![];
        for address in contributing.filter(|address| !out.gone.contains(address)) {
            there.push(known.get(address)?);
        }
        for object in there.into_iter().chain(new) {
            let (source, meta) = (Source::of(&object.object)?, object.object.meta());
            members.insert((source.place(), meta.namespace.as_str(), meta.name.as_str()), source);
        }
        let mut contributors: BTreeMap<Arc<str>, Vec<usize>> = affected.into_iter().map(|key| (key, vec![])).collect();
        let mut tables = Tables::default();
        for source in members.values() {
            let address = source.address();
            for key in out.new.get(&address).or_else(|| cache.targets.get(&address))? {
                if let Some(all) = contributors.get_mut(key) {
                    all.push(address);
                }
            }
            if !source.convert(objects, hosts, &mut tables).is_empty() {
                return None;
            }
        }
        let mut compiled = tables.routes(|key| !contributors.contains_key(key));
        out.routes = contributors
            .into_iter()
            .map(|(key, all)| {
                let now = compiled.remove(&key).filter(|_| !all.is_empty());
                (key, all, now)
            })
            .collect();
        Some(out)
    }

    /// Takes in what was found. Gives the services and virtual hosts that have other routes.
    pub(crate) fn take_in(self, model: &mut Model, cache: &mut Cache) -> Vec<String> {
        for address in self.gone {
            cache.bad.remove(&address);
            cache.targets.remove(&address);
        }
        for (address, keys) in self.new {
            cache.bad.insert(address, vec![]);
            cache.targets.insert(address, keys);
        }
        let mut changed = vec![];
        for (key, contributing, now) in self.routes {
            let name = key.to_string();
            if put(key, (contributing, now), model, cache) {
                changed.push(name);
            }
        }
        changed
    }
}
