//! Routes and backends of services, from Gateway API and from Istio's API, in one form (`karst.route.v1`).
//!
//! Who decides about a service (docs/routes.md):
//! - Routes of the service's own namespace, or of the root namespace, are for all callers (VirtualServices: for those of the
//!   namespaces that they are exported to); those of another namespace are for callers of that namespace only, and for these in
//!   place of the others.
//! - Gateway API's routes stand before VirtualServices, exact before general, then old before new. Of VirtualServices those with
//!   the longest host for the service count; their rules stay in order, older VirtualServices before newer ones, but for rules
//!   that match everything: these come last, and end their own VirtualService. The first rule that matches is it.

mod access;
pub(super) mod backend_tls;
mod delegate;
mod destination_rule;
mod filter;
mod gateway_api;
pub(super) mod gateways;
mod table;
pub(super) mod telemetry;
pub(super) mod tokens;
pub(super) mod unserved;
mod virtual_service;

pub(super) use filter::{find as http_filter, is_one as is_http_filter};
pub(super) use gateway_api::{dropped, granted, is_parent, is_rule, unexecuted, warnings};

pub(super) use table::age;

use super::{FieldError, Objects, problem, service};
use crate::model::Model;
use karst_api::{route as ir, workload::Visibility};
use karst_core::operators;
use karst_manifest::{Problem, gatewayapi::ParentRef, kinds::*, parse::Located};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};
use table::{Api, Precision, Ranked, RankedTcp, Tables, closeness};

/// Answered for a destination that does not exist: Gateway API asks for 500, Envoy answers 503.
const NO_BACKEND: u32 = 500;
const NO_CLUSTER: u32 = 503;
const MILLION: u32 = 1_000_000;
/// What a parent is that names no kind.
const GATEWAY: &str = "Gateway";

/// What calls within the mesh are called where a VirtualService names gateways.
pub(super) const MESH: &str = "mesh";

/// Whom an object of Istio's API is for (`exportTo`).
struct Export<'a> {
    namespace: &'a str,
    /// Namespaces, `.` for its own, `*` for all.
    to: &'a [String],
}

impl<'a> Export<'a> {
    fn of_virtual_service(objects: &Objects<'a>, v: &'a VirtualService) -> Self {
        Self::new(&v.metadata, &v.spec.export_to, &objects.mesh.virtual_services_are_for)
    }

    fn of_destination_rule(objects: &Objects<'a>, d: &'a DestinationRule) -> Self {
        Self::new(&d.metadata, &d.spec.export_to, &objects.mesh.destination_rules_are_for)
    }

    fn new(m: &'a Meta, own: &'a [String], default: &'a [String]) -> Self {
        Self { namespace: &m.namespace, to: if own.is_empty() { default } else { own } }
    }

    fn is_for_all(&self) -> bool {
        self.to.iter().any(|t| t == "*")
    }

    /// Is it for clients of this namespace?
    fn is_for(&self, namespace: &str) -> bool {
        self.is_for_all() || self.namespaces().any(|n| n == namespace)
    }

    /// The namespaces that it names.
    fn namespaces(&self) -> impl Iterator<Item = &'a str> {
        let own = self.namespace;
        let named = self.to.iter().filter(|t| *t != "*" && *t != "~");
        named.map(move |t| if t == "." { own } else { t.as_str() })
    }
}

/// The services by host name, to find what objects name.
pub(super) struct Hosts {
    by_host: HashMap<String, Vec<Arc<str>>>,
    /// Those that only their own namespace knows.
    private: HashSet<Arc<str>>,
    ports: HashMap<Arc<str>, Vec<u32>>,
    /// What Services of type ExternalName stand for, by their host names.
    aliases: BTreeMap<String, String>,
    domain: String,
    listeners: Arc<gateways::GatewayListeners>,
}

/// Names after names that are followed: more is a circle or a mistake.
const ALIASES: usize = 8;

/// The hosts that Services of type ExternalName stand for, by their own host names.
fn aliases(objects: &Objects<'_>) -> BTreeMap<String, String> {
    let all = objects.services.values().flatten().filter(|s| service::is_alias(s));
    let host = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
    all.map(|s| (service::hostname(objects, s), host(&s.spec.external_name))).collect()
}

impl Hosts {
    fn new(objects: &Objects<'_>, model: &Model, listeners: &Arc<gateways::GatewayListeners>) -> Self {
        let mut by_host: HashMap<String, Vec<Arc<str>>> = HashMap::new();
        let (mut private, mut ports) = (HashSet::new(), HashMap::new());
        for (key, s) in &model.services {
            let key: Arc<str> = key.as_str().into();
            ports.insert(key.clone(), numbers(s));
            if is_private(s) {
                private.insert(key.clone());
            }
            by_host.entry(s.hostname.clone()).or_default().push(key);
        }
        let (aliases, domain) = (aliases(objects), objects.mesh.cluster_domain.clone());
        Self { by_host, private, ports, aliases, domain, listeners: listeners.clone() }
    }

    /// The ports of a service.
    fn ports(&self, key: &str) -> &[u32] {
        self.ports.get(key).map_or(&[], Vec::as_slice)
    }

    /// Can a destination have this port of a service? 0: whichever is called.
    fn has_port(&self, key: &str, port: u32) -> bool {
        port == 0 || self.ports(key).contains(&port)
    }

    /// The full name that an object of this namespace means.
    fn full(&self, host: &str, namespace: &str) -> String {
        full_host(host, namespace, &self.domain)
    }

    /// The service that a host name means, the namespace's own first.
    fn find(&self, host: &str, namespace: &str) -> Option<&Arc<str>> {
        let full = self.full(host, namespace);
        let keys = self.by_host.get(&full).or_else(|| self.by_host.get(&self.longer(&full)?))?;
        self.seen(keys, namespace)
    }

    /// `name.namespace` and `name.namespace.svc` are used, too.
    fn longer(&self, full: &str) -> Option<String> {
        match full.split('.').collect::<Vec<_>>()[..] {
            [n, ns] | [n, ns, "svc"] => Some(format!("{n}.{ns}.svc.{}", self.domain)),
            _ => None,
        }
    }

    /// Of services with one host name the one that an object of this namespace means.
    fn seen<'k>(&self, keys: &'k [Arc<str>], namespace: &str) -> Option<&'k Arc<str>> {
        keys.iter().find(|k| is_of(k, namespace)).or_else(|| keys.iter().find(|k| self.is_seen(k, namespace)))
    }

    /// The service that a destination of Istio's API leads to: a Service of type ExternalName stands for the one that it names
    /// (Istio: GetDestinationCluster). It is no service of its own: rules for its host name are for nobody.
    fn destination(&self, host: &str, namespace: &str) -> Option<&Arc<str>> {
        self.find(host, namespace).or_else(|| {
            let mut name = self.alias(host, namespace)?;
            for _ in 0..ALIASES {
                if let Some(keys) = self.by_host.get(name) {
                    return self.seen(keys, namespace);
                }
                name = self.aliases.get(name)?;
            }
            None
        })
    }

    /// What a Service of type ExternalName stands for.
    fn alias(&self, host: &str, namespace: &str) -> Option<&String> {
        let full = self.full(host, namespace);
        self.aliases.get(&full).or_else(|| self.aliases.get(&self.longer(&full)?))
    }

    /// May an object of this namespace mean it?
    fn is_seen(&self, key: &Arc<str>, namespace: &str) -> bool {
        is_of(key, namespace) || !self.private.contains(key)
    }

    /// The same, with those of the name in other namespaces (ServiceEntries of one host).
    fn every(&self, host: &str, namespace: &str) -> Vec<Arc<str>> {
        if host.starts_with('*') {
            return self.all(host, namespace);
        }
        let Some(one) = self.find(host, namespace) else { return vec![] };
        let name = one.split_once('/').map_or("", |(_, name)| name);
        let all = self.by_host.get(name).into_iter().flatten();
        all.filter(|k| self.is_seen(k, namespace)).cloned().collect()
    }

    /// All services that a host name, maybe with a wildcard, means.
    fn all(&self, host: &str, namespace: &str) -> Vec<Arc<str>> {
        match host.strip_prefix('*') {
            None => self.find(host, namespace).into_iter().cloned().collect(),
            Some(suffix) => {
                let fits = |h: &str| h == host || (h.len() > suffix.len() && h.ends_with(suffix));
                let keys = self.by_host.iter().filter(|(h, _)| fits(h)).flat_map(|(_, k)| k);
                let mut all: Vec<_> = keys.filter(|k| self.is_seen(k, namespace)).cloned().collect();
                all.sort();
                all
            }
        }
    }
}

/// Does only its own namespace know it?
fn is_private(s: &karst_api::workload::Service) -> bool {
    s.visibility == Visibility::Namespace as i32
}

fn numbers(s: &karst_api::workload::Service) -> Vec<u32> {
    s.ports.iter().map(|p| p.service_port).collect()
}

/// The full host name that an object of this namespace means.
fn full_host(host: &str, namespace: &str, domain: &str) -> String {
    if host.contains('.') || host.starts_with('*') {
        return host.to_ascii_lowercase();
    }
    format!("{host}.{namespace}.svc.{domain}")
}

/// Is it a service of this namespace, by its key?
fn is_of(key: &str, namespace: &str) -> bool {
    key.strip_prefix(namespace).is_some_and(|k| k.starts_with('/'))
}

/// Labels that subsets or rules ask for: only these are told to proxies.
pub(super) fn label_keys<'a>(objects: &Objects<'a>) -> BTreeSet<&'a str> {
    let mut keys = BTreeSet::new();
    for (_, d) in &objects.destination_rules {
        keys.extend(d.spec.subsets.iter().flat_map(|s| s.labels.keys()).map(String::as_str));
    }
    let policies = objects.destination_rules.iter().flat_map(|(_, d)| d.spec.all_policies());
    for l in policies.filter_map(|p| p.load_balancer.as_ref()?.locality_lb_setting.as_ref()) {
        keys.extend(l.failover_priority.iter().map(|p| p.split_once('=').map_or(p.as_str(), |(k, _)| k)));
    }
    for (_, v) in &objects.virtual_services {
        let http = v.spec.http.iter().flat_map(|h| &h.matches).flat_map(|m| m.source_labels.keys());
        let tcp = v.spec.tcp.iter().flat_map(|h| &h.matches).flat_map(|m| m.source_labels.keys());
        let tls = v.spec.tls.iter().flat_map(|h| &h.matches).flat_map(|m| m.source_labels.keys());
        keys.extend(http.chain(tcp).chain(tls).map(String::as_str));
    }
    keys
}

/// A workload's extension with those of its labels that anything asks for.
pub(super) fn labels(x: &Objects<'_>, labels: &Labels) -> Vec<karst_api::workload::Extension> {
    let asked = |(k, _): &(&String, &String)| x.label_keys.contains(k.as_str());
    let labels: BTreeMap<_, _> = labels.iter().filter(asked).map(|(k, v)| (k.clone(), v.clone())).collect();
    if labels.is_empty() {
        return vec![];
    }
    let value = prost::Message::encode_to_vec(&ir::Labels { labels });
    let config = prost_types::Any { type_url: karst_api::LABELS_TYPE.into(), value };
    vec![karst_api::workload::Extension { name: "karst.labels".into(), config: Some(config) }]
}

/// What was compiled last time. An object that is the same one, among the same services, is not converted again: of thousands
/// of routes only those of the services are whose rules have changed. (Who compiles keeps the objects of last time until
/// the next is done, so that an address stands for one object.)
#[derive(Default)]
pub(super) struct Cache {
    context: Context,
    /// What is wrong with an object.
    bad: HashMap<usize, Vec<FieldError>>,
    /// The objects that contribute to a service, and what came of them.
    tables: HashMap<Arc<str>, (Vec<usize>, Arc<ir::Routes>)>,
    rules: destination_rule::Cache,
}

/// What conversions depend on besides their object.
#[derive(Default, PartialEq)]
struct Context {
    /// With their ports, and whether only their own namespace knows them.
    services: Vec<(String, Vec<u32>, bool)>,
    /// What other names of services stand for.
    aliases: BTreeMap<String, String>,
    /// ReferenceGrants, ServiceEntries, HTTPFilters, VirtualServices without hosts, Istio's Gateways.
    others: Vec<usize>,
    /// What shares the virtual hosts of gateways.
    scopes: Vec<gateways::VirtualHostScope>,
}

impl Cache {
    /// What is wrong with an object that was compiled.
    pub(super) fn bad<T>(&self, object: &T) -> &[FieldError] {
        self.bad.get(&address(object)).map_or(&[], Vec::as_slice)
    }

    /// Objects are at other addresses, and what was compiled of them would be the same: only their statuses are others.
    pub(super) fn renamed(&mut self, now: &HashMap<usize, usize>) {
        for (old, new) in now {
            if let Some(bad) = self.bad.remove(old) {
                self.bad.insert(*new, bad);
            }
        }
        self.tables.values_mut().for_each(|(c, _)| rename(c, now));
        rename(&mut self.context.others, now);
        self.rules.renamed(now);
    }
}

fn rename(all: &mut [usize], now: &HashMap<usize, usize>) {
    for one in all {
        *one = now.get(one).copied().unwrap_or(*one);
    }
}

/// What an object is known by.
pub(super) fn address<T>(t: &T) -> usize {
    std::ptr::from_ref(t) as usize
}

impl Context {
    fn new(objects: &Objects<'_>, model: &Model, listeners: &gateways::GatewayListeners) -> Self {
        let grants = objects.grants.iter().map(|g| address(*g));
        let entries = objects.service_entries.iter().map(|(_, e)| address(*e));
        let filters = objects.http_filters.iter().map(|(_, f)| address(*f));
        let gateways = objects.istio_gateways.iter().map(|(_, g)| address(*g));
        let delegates =
            objects.virtual_services.iter().filter(|(_, v)| v.spec.hosts.is_empty()).map(|(_, v)| address(*v));
        Self {
            services: model.services.iter().map(|(k, s)| (k.clone(), numbers(s), is_private(s))).collect(),
            aliases: aliases(objects),
            others: grants.chain(entries).chain(delegates).chain(filters).chain(gateways).collect(),
            scopes: listeners.scopes.clone(),
        }
    }
}

/// An object with routes.
enum Source<'a> {
    Istio(&'a VirtualService),
    Http(&'a HTTPRoute),
    Grpc(&'a GRPCRoute),
    Tcp(&'a TCPRoute),
    Tls(&'a TLSRoute),
}

impl Source<'_> {
    fn address(&self) -> usize {
        match self {
            Source::Istio(v) => address(*v),
            Source::Http(r) => address(*r),
            Source::Grpc(r) => address(*r),
            Source::Tcp(r) => address(*r),
            Source::Tls(r) => address(*r),
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
        }
    }

    fn convert(&self, objects: &Objects<'_>, hosts: &Hosts, tables: &mut Tables) -> Vec<FieldError> {
        match self {
            Source::Istio(v) => virtual_service::compile(objects, v, hosts, tables),
            Source::Http(r) => gateway_api::http(objects, r, hosts, tables),
            Source::Grpc(r) => gateway_api::grpc(objects, r, hosts, tables),
            Source::Tcp(r) => gateway_api::tcp(objects, r, hosts, tables),
            Source::Tls(r) => gateway_api::tls(objects, r, hosts, tables),
        }
    }
}

fn sources<'a>(objects: &Objects<'a>) -> Vec<(&'a Located, Source<'a>)> {
    let istio = objects.virtual_services.iter().map(|(at, v)| (*at, Source::Istio(v)));
    let http = objects.http_routes.iter().map(|(at, r)| (*at, Source::Http(r)));
    let grpc = objects.grpc_routes.iter().map(|(at, r)| (*at, Source::Grpc(r)));
    let tcp = objects.tcp_routes.iter().map(|(at, r)| (*at, Source::Tcp(r)));
    let tls = objects.tls_routes.iter().map(|(at, r)| (*at, Source::Tls(r)));
    istio.chain(http).chain(grpc).chain(tcp).chain(tls).collect()
}

pub(super) fn compile(
    objects: &Objects<'_>,
    listeners: &Arc<gateways::GatewayListeners>,
    model: &mut Model,
    problems: &mut Vec<Problem>,
    cache: &mut Cache,
) {
    let attached = objects.authorization.iter().any(|(_, p)| p.spec.targets().next().is_some());
    let by_name = objects.service_entries.iter().any(|(_, e)| service::is_by_name(e));
    let none =
        objects.virtual_services.is_empty() && objects.destination_rules.is_empty() && objects.http_filters.is_empty();
    let none = none && objects.backend_tls.is_empty() && objects.request.is_empty() && objects.routes_are_empty();
    if none && !attached && !by_name {
        *cache = Cache::default();
        return;
    }
    let hosts = Hosts::new(objects, model, listeners);
    model.access = access::compile(objects, &hosts).into_iter().collect();
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
    for ((at, s), keys) in sources.iter().zip(&targets) {
        let bad = match old.bad.remove(&s.address()) {
            Some(b) if keys.iter().all(same) => b,
            _ => s.convert(objects, &hosts, &mut tables),
        };
        report(at, &bad);
        cache.bad.insert(s.address(), bad);
    }
    let mut routes = tables.routes(same);
    for (key, c) in contributors {
        let whole = match old.tables.remove(&key) {
            Some((o, r)) if o == c => Some(r),
            _ => routes.remove(&key).map(Arc::new),
        };
        // Objects that are all wrong contribute nothing.
        if let Some(r) = whole {
            cache.tables.insert(key, (c, r));
        }
    }
    model.routes = cache.tables.iter().map(|(k, (_, r))| (k.to_string(), r.clone())).collect();
    for (at, r) in &objects.request {
        report(at, &tokens::problems(objects, r));
    }
    for (at, f) in &objects.http_filters {
        report(at, &filter::attach(f, &hosts, model));
    }
    let (mut backends, bad) = destination_rule::compile(objects, &hosts, old.rules, &mut cache.rules);
    for (at, bad) in bad {
        report(at, &bad);
    }
    for (at, b) in backend_tls::compile(objects, &hosts, &mut backends) {
        report(at, &[b]);
    }
    for (_, e) in objects.service_entries.iter().filter(|(_, e)| service::is_by_name(e)) {
        for host in e.spec.hosts.iter().filter_map(|h| hosts.find(h, &e.metadata.namespace)) {
            Arc::make_mut(backends.entry(host.to_string()).or_default()).by_name = true;
        }
    }
    model.backends = backends.into_iter().collect();
}

/// A duration as Istio's API (`1.5s`, `100ms`, `1h30m`) and Gateway API write it, in milliseconds.
pub(super) fn duration(text: &str) -> Result<u64, String> {
    let wrong = || format!("invalid duration {text:?}: use for example 1.5s, 250ms or 1m [KARST-0020]");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let n: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |e| digits + e);
        total += n * match &rest[digits..unit] {
            "h" => 3_600_000.0,
            "m" => 60_000.0,
            "s" => 1000.0,
            "ms" => 1.0,
            "us" => 0.001,
            "ns" => 0.000_001,
            _ => return Err(wrong()),
        };
        rest = &rest[unit..];
    }
    // Ten years: more is a slip.
    if total > 3.2e11 { Err(wrong()) } else { Ok(total.ceil() as u64) }
}

/// An optional duration; a field that is not there is 0.
pub(super) fn optional_duration(text: Option<&str>, field: impl Fn() -> String) -> Result<u64, FieldError> {
    text.map_or(Ok(0), duration).map_err(|e| (field(), e))
}

/// A part of a million from a percentage.
fn per_million(percent: f64, field: &str) -> Result<u32, FieldError> {
    if (0.0..=100.0).contains(&percent) {
        return Ok((percent * 10_000.0).round() as u32);
    }
    Err((field.into(), format!("{percent} is out of range: must be between 0 and 100 [KARST-0018]")))
}

fn regex(text: &str, field: impl Into<String>) -> Result<String, FieldError> {
    match regex::Regex::new(&format!("^(?:{text})$")) {
        Ok(_) => Ok(text.to_string()),
        Err(e) => {
            let e = e.to_string();
            let last = e.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Err((field.into(), format!("invalid regular expression {text:?} (RE2 syntax): {last} [KARST-0023]")))
        }
    }
}

fn header_name(name: &str, field: impl Into<String>) -> Result<String, FieldError> {
    match http::HeaderName::from_bytes(name.as_bytes()) {
        Ok(n) => Ok(n.as_str().to_string()),
        Err(_) => Err((field.into(), format!("invalid header name {name:?} [KARST-0024]"))),
    }
}

fn header(name: &str, value: &str, field: impl Into<String>) -> Result<ir::Header, FieldError> {
    let field = field.into();
    let name = header_name(name, field.clone())?;
    if http::HeaderValue::from_str(value).is_err() {
        return Err((field, format!("invalid header value {value:?} [KARST-0024]")));
    }
    match operators::parse(value) {
        Ok(_) => Ok(ir::Header { name, value: value.into() }),
        Err(e) => Err((field, format!("{value:?} {e}"))),
    }
}

fn exact(s: impl Into<String>) -> ir::Text {
    ir::Text { kind: Some(ir::text::Kind::Exact(s.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (t, ms) in [("1.5s", 1500), ("100ms", 100), ("1h30m", 5_400_000), ("0s", 0), ("2s", 2000), ("0.5s", 500)] {
            assert_eq!(duration(t), Ok(ms), "{t}");
        }
        for t in ["", "5", "s", "1x", "1.2.3s", "-1s", "9999999h"] {
            assert!(duration(t).is_err(), "{t}");
        }
    }
}
