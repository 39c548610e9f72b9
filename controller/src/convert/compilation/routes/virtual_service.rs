//! Istio's VirtualService, for calls within the mesh and for gateways.

mod fields;

use crate::convert::{
    compilation::routes::{
        delegate, fault, filter,
        scalar::{MILLION, header_name, optional_duration, per_million},
        table::{self, Api, Precision, Ranked, RankedTcp, Tables},
    },
    facts::{
        export::Export,
        host::{self, closeness},
        hosts::Hosts,
        listener,
    },
    objects::{FieldError, MESH, Objects, age},
};
use fields::{cors, direct, headers, redirect, retries, rewrite, set_authority, tell, text, value};
use karst_api::route as ir;
use karst_core::claims;
use karst_manifest::{extension::HTTPFilter, kinds::*, traffic::*};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

const NO_CLUSTER: u32 = 503;

/// Depth of delegation (Istio: 1; more is a loop or a mistake).
const DELEGATES: usize = 1;

pub(crate) fn is_for_mesh(service: &VirtualService) -> bool {
    service.spec.gateways.is_empty() || service.spec.gateways.iter().any(|g| g == MESH)
}

/// The services that it is for, and how closely its host fits each.
fn services(service: &VirtualService, hosts: &Hosts) -> BTreeMap<Arc<str>, usize> {
    let mut out = BTreeMap::new();
    for host in service.spec.hosts.iter().filter(|_| is_for_mesh(service)) {
        for key in hosts.all(host, &service.metadata.namespace) {
            let best = out.entry(key).or_insert(0);
            *best = closeness(host).max(*best);
        }
    }
    out
}

/// Every destination, with the path of its field.
pub(crate) fn destinations(spec: &VirtualServiceSpec) -> Vec<(String, &VsDestination)> {
    fn of<'a>(at: &str, all: &'a [VsRoute]) -> impl Iterator<Item = (String, &'a VsDestination)> {
        all.iter().enumerate().map(move |(j, r)| (format!("{at}.route[{j}].destination"), &r.destination))
    }
    let mut out = vec![];
    for (i, http) in spec.http.iter().enumerate() {
        let at = format!("spec.http[{i}]");
        out.extend(of(&at, &http.route));
        let mirrors = http.mirrors.iter().enumerate();
        out.extend(mirrors.map(|(j, m)| (format!("{at}.mirrors[{j}].destination"), &m.destination)));
        out.extend(http.mirror.iter().map(|m| (format!("{at}.mirror"), m)));
    }
    let tcp = spec.tcp.iter().enumerate().map(|(i, t)| (format!("spec.tcp[{i}]"), &t.route));
    let tls = spec.tls.iter().enumerate().map(|(i, t)| (format!("spec.tls[{i}]"), &t.route));
    for (at, all) in tcp.chain(tls) {
        out.extend(of(&at, all));
    }
    out
}

/// The services and the virtual hosts of gateways that it is for.
pub(crate) fn targets(objects: &Objects<'_>, service: &VirtualService, hosts: &Hosts) -> Vec<Arc<str>> {
    let mut all: BTreeSet<Arc<str>> = services(service, hosts).into_keys().collect();
    all.extend(hosts.listeners.bound(objects, service).into_iter().map(|b| b.key));
    all.into_iter().collect()
}

/// Rules, in order.
#[derive(Clone, Default)]
struct Entries {
    http: Vec<ir::HttpRule>,
    tcp: Vec<ir::TcpRule>,
    tls: Vec<ir::TcpRule>,
}

impl Entries {
    /// Those for the connections of a listener, or for its requests, as they are at its port.
    fn at(&self, listener: &listener::GatewayListener, hosts: &Hosts) -> Self {
        use ir::ListenerProtocol::{Http, Https, Tcp, Tls};
        let port = u32::from(listener.port);
        let here = |ports: &[u32]| ports.is_empty() || ports.contains(&port);
        let (http, tcp): (&[ir::HttpRule], &[ir::TcpRule]) = match listener.protocol {
            Http | Https => (&self.http, &[]),
            Tls if !listener.terminates_tls => (&[], &self.tls),
            Tls | Tcp => (&[], &self.tcp),
        };
        // The port has chosen the listener, and what is called is that port, wherever the pod listens.
        let called = |d: &mut ir::Destination| {
            if d.port == 0 && d.refuse_status == 0 {
                d.port = port;
                d.refuse_status = if hosts.has_port(&d.service, port) { 0 } else { NO_CLUSTER };
            }
        };
        let http = http.iter().filter(|r| here(&r.ports)).cloned().map(|mut r| {
            r.ports.clear();
            r.destinations.iter_mut().chain(r.mirrors.iter_mut().filter_map(|m| m.to.as_mut())).for_each(called);
            r
        });
        let tcp = tcp.iter().filter(|r| here(&r.ports)).cloned().map(|mut r| {
            r.ports.clear();
            r.destinations.iter_mut().for_each(called);
            r
        });
        Self { http: http.collect(), tcp: tcp.collect(), tls: vec![] }
    }

    /// Adds what is not there yet.
    fn add(&mut self, other: Self) {
        fn new<T: PartialEq>(to: &mut Vec<T>, from: Vec<T>) {
            let new: Vec<_> = from.into_iter().filter(|r| !to.contains(r)).collect();
            to.extend(new);
        }
        new(&mut self.http, other.http);
        new(&mut self.tcp, other.tcp);
        new(&mut self.tls, other.tls);
    }
}

/// The rules for one place: the mesh, or a gateway.
#[derive(Default)]
struct Rules {
    read: Entries,
    /// For matches that cannot be read: what is left of each is refused, behind all other rules. What they are for is nobody's by
    /// default.
    last: Entries,
}

impl Rules {
    /// Those for the callers of a service with these ports.
    fn of_service(&self, ports: &[u32]) -> Self {
        let http = table::reached(self.read.http.clone(), ports);
        Self { read: Entries { http, ..self.read.clone() }, last: self.last.clone() }
    }

    /// Those at a front.
    fn at(&self, listener: &listener::GatewayListener, hosts: &Hosts) -> Self {
        let mut read = self.read.at(listener, hosts);
        read.http = table::reached(read.http, &[]);
        Self { read, last: self.last.at(listener, hosts) }
    }

    fn add(&mut self, other: Self) {
        self.read.add(other.read);
        self.last.add(other.last);
    }

    /// With their place among those of others.
    fn ranked(self, service: &VirtualService, closeness: usize) -> table::Rules {
        let mut all = ranked(service, closeness, self.read, false);
        all.extend(ranked(service, closeness, self.last, true));
        all
    }
}

/// What cannot be read is refused where it matches, and told.
fn rules(objects: &Objects<'_>, service: &VirtualService, hosts: &Hosts, place: &str) -> (Rules, Vec<FieldError>) {
    let (mut bad, mut out) = (vec![], Rules::default());
    let (spec, ns) = (&service.spec, service.metadata.namespace.as_str());
    let (own, inherited) = (service.metadata.name.as_str(), vec![]);
    let convert = Convert { objects, ns, name: own, inherited, hosts, place };
    let name = format!("VirtualService {ns}/{own}");
    if spec.is_unread {
        return (unread(spec, &name), bad);
    }
    for (i, h) in spec.http.iter().enumerate() {
        convert.http(h, &format!("spec.http[{i}]"), (&name, i, 0), &mut out, &mut bad);
    }
    for (i, t) in spec.tcp.iter().enumerate() {
        convert.tcp(t, &format!("spec.tcp[{i}]"), &format!("{name} tcp[{i}]"), &mut out, &mut bad);
    }
    for (i, t) in spec.tls.iter().enumerate() {
        convert.tls(t, &format!("spec.tls[{i}]"), &format!("{name} tls[{i}]"), &mut out, &mut bad);
    }
    (out, bad)
}

/// What stands for an object that cannot be read as a whole.
fn unread(spec: &VirtualServiceSpec, origin: &str) -> Rules {
    let request = || ir::HttpRule { origin: origin.into(), r#match: Some(ir::Match::default()), ..refused() };
    let connection = |sni: &[&str]| ir::TcpRule {
        origin: origin.into(),
        sni: sni.iter().map(ToString::to_string).collect(),
        destinations: nowhere(),
        ..Default::default()
    };
    let last = Entries {
        http: spec.http.iter().map(|_| request()).collect(),
        tcp: spec.tcp.iter().map(|_| connection(&[])).collect(),
        tls: spec.tls.iter().map(|_| connection(&["*"])).collect(),
    };
    Rules { read: Entries::default(), last }
}

/// Of several destinations at least one gets something.
fn weighted(all: &[ir::Destination], at: &str) -> Result<(), FieldError> {
    match !all.is_empty() && all.iter().all(|d| d.weight == 0) {
        true => Err((format!("{at}.route"), "all weights are 0: at least one must be greater [KARST-0303]".into())),
        false => Ok(()),
    }
}

/// What is done in place of a rule that cannot be executed.
fn refused() -> ir::HttpRule {
    let response = Some(ir::DirectResponse { status: NO_CLUSTER, body: vec![] });
    ir::HttpRule { response, ..Default::default() }
}

/// Where connections go that are refused.
fn nowhere() -> Vec<ir::Destination> {
    vec![ir::Destination { weight: 1, refuse_status: NO_CLUSTER, ..Default::default() }]
}

pub(crate) fn compile(
    objects: &Objects<'_>,
    service: &VirtualService,
    hosts: &Hosts,
    tables: &mut Tables,
) -> Vec<FieldError> {
    let mut bad = vec![];
    let (spec, ns) = (&service.spec, service.metadata.namespace.as_str());
    if let Some(i) = spec.hosts.iter().position(|h| h == "*").filter(|_| is_for_mesh(service)) {
        let text = "\"*\" alone is not supported within the mesh: specify services, or a wildcard such as *.svc.cluster.local [KARST-0301]";
        bad.push((format!("spec.hosts[{i}]"), text.into()));
    }
    // Another's delegate has no hosts.
    if spec.hosts.is_empty() && (!spec.gateways.is_empty() || !spec.tcp.is_empty()) {
        bad.push(("spec.hosts".into(), "is empty: specify the services that the routes apply to [KARST-0010]".into()));
    }
    if !bad.is_empty() {
        return bad;
    }
    let mut places: BTreeMap<String, Rules> = BTreeMap::new();
    let names = if spec.gateways.is_empty() { &[MESH.to_string()][..] } else { &spec.gateways };
    for g in names {
        let place = if g == MESH { g.clone() } else { host::full_name(g, ns) };
        let (read, wrong) = rules(objects, service, hosts, &place);
        // The same for each place.
        bad.extend(wrong.into_iter().filter(|b| !bad.contains(b)).collect::<Vec<_>>());
        places.insert(place, read);
    }
    let export = Export::of_virtual_service(objects, service);
    if let Some(r) = places.get(MESH) {
        for (key, closeness) in services(service, hosts) {
            let rules = r.of_service(hosts.ports(&key)).ranked(service, closeness);
            tables.exported(objects, &key, &export, |t| t.extend(rules.clone()));
        }
    }
    // Bound to several gateways of a place, its rules are there once.
    let mut at_gateways: BTreeMap<Arc<str>, Rules> = BTreeMap::new();
    for b in hosts.listeners.bound(objects, service) {
        let Some(r) = places.get(&b.gateway) else { continue };
        at_gateways.entry(b.key).or_default().add(r.at(b.listener, hosts));
    }
    for (key, rules) in at_gateways {
        tables.of(objects, &key, ns).extend(rules.ranked(service, usize::MAX));
    }
    bad
}

/// Rules with their place among those of others.
fn ranked(service: &VirtualService, closeness: usize, all: Entries, is_last: bool) -> table::Rules {
    let (api, age) = (Api::Istio, age(&service.metadata));
    let request = |(place, rule): (usize, ir::HttpRule)| Ranked {
        is_last,
        api,
        closeness,
        precision: Precision::default(),
        age: age.clone(),
        place,
        rule,
    };
    let connection = |rule: ir::TcpRule| RankedTcp { is_last, api, closeness, age: age.clone(), rule };
    table::Rules {
        http: all.http.into_iter().enumerate().map(request).collect(),
        tcp: all.tls.into_iter().chain(all.tcp).map(connection).collect(),
    }
}

/// A match, or what of it can be read, and its ports.
struct Matched {
    ports: Vec<u32>,
    m: ir::Match,
    is_read: bool,
}

struct Convert<'a> {
    objects: &'a Objects<'a>,
    ns: &'a str,
    name: &'a str,
    /// Filters of the route that delegates to this object.
    inherited: Vec<&'a HTTPFilter>,
    hosts: &'a Hosts,
    /// `mesh`, or a gateway's full name.
    place: &'a str,
}

impl<'a> Convert<'a> {
    /// The filters for an entry: its own, and those of whoever delegates to it.
    fn filters(&self, route: &VsHttp) -> Vec<&'a HTTPFilter> {
        let own = filter::of_virtual_service(self.objects, (self.ns, self.name, &route.name));
        self.inherited.iter().copied().chain(own).collect()
    }

    /// Is a match with these gateways meant for here?
    fn is_here(&self, gateways: &[String]) -> bool {
        gateways.is_empty()
            || gateways
                .iter()
                .any(|g| if g == MESH { self.place == MESH } else { host::full_name(g, self.ns) == self.place })
    }

    /// The rules of one entry, one for each of its matches. It holds whole or not at all, as Gateway API has it ("Dropped Rule"): of
    /// one of whose matches cannot be read, the others are refused, too, wherever they are meant for. What its author put together
    /// is not executed in part, and what is told names a rule that is not in force. `origin`: the object, the entry's place in it, the depth of delegation.
    fn http(&self, route: &VsHttp, at: &str, origin: (&str, usize, usize), out: &mut Rules, bad: &mut Vec<FieldError>) {
        if let Some(d) = &route.delegate {
            return self.delegated(route, d, at, origin, out, bad);
        }
        let before = bad.len();
        let matches = self.matches(route, at, bad);
        let is_whole = bad.len() == before;
        let filters = self.filters(route);
        for one in matches {
            let rule = match is_whole.then(|| self.action(route, at, &one.m, bad)) {
                Some(Ok(rule)) => filter::extended(rule, &filters).unwrap_or_else(refused),
                Some(Err(b)) => {
                    tell(bad, b);
                    refused()
                }
                None => refused(),
            };
            push(out, one, rule, route, origin);
        }
    }

    /// What an entry matches here.
    fn matches(&self, rule: &VsHttp, at: &str, bad: &mut Vec<FieldError>) -> Vec<Matched> {
        let mut out = vec![];
        for (i, m) in rule.matches.iter().enumerate() {
            let matched = self.matching(m, &format!("{at}.match[{i}]"), bad);
            if self.is_here(&m.gateways) {
                out.push(matched);
            }
        }
        if rule.matches.is_empty() {
            out.push(Matched { ports: vec![], m: ir::Match::default(), is_read: true });
        }
        out
    }

    fn action(
        &self,
        rule: &VsHttp,
        at: &str,
        matched: &ir::Match,
        bad: &mut Vec<FieldError>,
    ) -> Result<ir::HttpRule, FieldError> {
        let kinds = [!rule.route.is_empty(), rule.redirect.is_some(), rule.direct_response.is_some()];
        if kinds.iter().filter(|k| **k).count() != 1 {
            return Err((
                at.into(),
                "must set exactly one of route, redirect, directResponse, delegate [KARST-0015]".into(),
            ));
        }
        let mut compiled = ir::HttpRule {
            timeout_ms: optional_duration(rule.timeout.as_deref(), || format!("{at}.timeout"))?,
            ..Default::default()
        };
        if let Some(x) = &rule.redirect {
            compiled.redirect = Some(redirect(x, at)?);
        }
        if let Some(d) = &rule.direct_response {
            compiled.response = Some(direct(d, at)?);
        }
        for (i, weighted) in rule.route.iter().enumerate() {
            let at = format!("{at}.route[{i}]");
            // The only one takes everything, whatever its weight.
            let weight = if rule.route.len() == 1 && weighted.weight == 0 { 100 } else { weighted.weight };
            compiled.destinations.push(self.destination(
                &weighted.destination,
                weighted.headers.as_ref(),
                weight,
                &at,
                bad,
            )?);
        }
        weighted(&compiled.destinations, at)?;
        if let Some(w) = &rule.rewrite {
            compiled.rewrite = Some(rewrite(w, matched, at)?);
        }
        if let Some(x) = &rule.headers {
            let (request, answer, authority) = headers(x, at, bad);
            (compiled.request, compiled.answer) = (request, answer);
            set_authority(&mut compiled.rewrite, authority);
        }
        for (i, mirrored) in rule.mirrors.iter().enumerate() {
            let at = format!("{at}.mirrors[{i}]");
            let part = mirrored
                .percentage
                .as_ref()
                .map_or(Ok(MILLION), |p| per_million(p.value, &format!("{at}.percentage")))?;
            let to = Some(self.destination(&mirrored.destination, None, 1, &at, bad)?);
            compiled.mirrors.push(ir::Mirror { to, per_million: part });
        }
        if let Some(mirrored) = &rule.mirror {
            let part = match (&rule.mirror_percentage, rule.mirror_percent) {
                (Some(p), _) => per_million(p.value, &format!("{at}.mirrorPercentage"))?,
                (None, Some(p)) => per_million(f64::from(p), &format!("{at}.mirrorPercent"))?,
                (None, None) => MILLION,
            };
            let to = Some(self.destination(mirrored, None, 1, &format!("{at}.mirror"), bad)?);
            compiled.mirrors.push(ir::Mirror { to, per_million: part });
        }
        compiled.fault = rule.fault.as_ref().map(|f| fault::compile(f, at)).transpose()?;
        compiled.cors = rule.cors_policy.as_ref().map(|c| cors(c, at)).transpose()?;
        compiled.retry = match &rule.retries {
            None => Some(ir::Retry::istio()),
            Some(x) if x.attempts == 0 => None,
            Some(x) => Some(retries(x, at)?),
        };
        Ok(compiled)
    }

    fn delegated(
        &self,
        rule: &VsHttp,
        delegate: &VsDelegate,
        at: &str,
        origin: (&str, usize, usize),
        out: &mut Rules,
        bad: &mut Vec<FieldError>,
    ) {
        let wrong = if !rule.route.is_empty() || rule.redirect.is_some() || rule.direct_response.is_some() {
            Some((at.to_string(), "must set exactly one of route, redirect, directResponse, delegate [KARST-0015]"))
        } else if origin.2 >= DELEGATES {
            Some((format!("{at}.delegate"), "a delegate must not delegate to another VirtualService [KARST-0302]"))
        } else {
            None
        };
        // What is wrong with its matches is wrong whether the delegate is there or not, and is not asked of the delegate's.
        let before = bad.len();
        bad.extend(wrong.map(|(field, text)| (field, text.into())));
        let matches = self.matches(rule, at, bad);
        if bad.len() > before {
            matches.into_iter().for_each(|m| push(out, m, refused(), rule, origin));
            return;
        }
        let root = self.full(rule);
        let ns = if delegate.namespace.is_empty() { self.ns } else { &delegate.namespace };
        let mut found = self.objects.virtual_services.iter().map(|(_, v)| v);
        let is_it = |v: &&&VirtualService| {
            let named = v.metadata.namespace == ns && v.metadata.name == delegate.name && v.spec.hosts.is_empty();
            named && Export::of_virtual_service(self.objects, v).is_for(self.ns)
        };
        // It may come later.
        let Some(delegated) = found.find(is_it) else { return };
        let (objects, hosts, place) = (self.objects, self.hosts, self.place);
        let inner = Convert { objects, ns, name: &delegate.name, inherited: self.filters(rule), hosts, place };
        let name = format!("VirtualService {ns}/{}", delegate.name);
        for (index, leaf) in delegated.spec.http.iter().enumerate() {
            if let Some(merged) = delegate::merge(&root, &inner.full(leaf)) {
                let at = format!("{at}.delegate.http[{index}]");
                inner.http(&merged, &at, (&name, index, origin.2 + 1), out, bad);
            }
        }
    }

    /// An entry with full names of mirrors and gateways, which mean the same in another namespace.
    fn full(&self, rule: &VsHttp) -> VsHttp {
        let mut out = rule.clone();
        let mirrors = out.mirrors.iter_mut().map(|m| &mut m.destination).chain(&mut out.mirror);
        for d in mirrors.filter(|d| !d.host.is_empty()) {
            d.host = self.hosts.full(&d.host, self.ns);
        }
        for g in out.matches.iter_mut().flat_map(|m| &mut m.gateways).filter(|g| *g != MESH) {
            *g = host::full_name(g, self.ns);
        }
        out
    }

    /// A match; what of it cannot be read is left out, and told.
    fn matching(&self, matching: &VsMatch, at: &str, bad: &mut Vec<FieldError>) -> Matched {
        let mut wrong = vec![];
        let mut one = |t: &Option<StringMatch>, f: &str| -> Option<ir::Text> {
            let read = text(t.as_ref()?, &format!("{at}.{f}"));
            read.map_err(|b| wrong.push(b)).ok().filter(|t| t.kind.is_some())
        };
        let mut out = ir::Match {
            path: one(&matching.uri, "uri"),
            ignore_path_case: matching.ignore_uri_case,
            method: one(&matching.method, "method"),
            scheme: one(&matching.scheme, "scheme"),
            authority: one(&matching.authority, "authority"),
            source_labels: matching.source_labels.to_map(),
            source_namespace: matching.source_namespace.clone(),
            ..Default::default()
        };
        for (list, field, invert) in
            [(&matching.headers, "headers", false), (&matching.without_headers, "withoutHeaders", true)]
        {
            for (name, t) in list {
                let at = format!("{at}.{field}[{name}]");
                let value = match value(t, &at) {
                    Ok(v) => v,
                    Err(b) => {
                        wrong.push(b);
                        continue;
                    }
                };
                if let Some(path) = claims::path(name) {
                    match path {
                        Ok(path) => {
                            out.headers.push(ir::Named { name: claims::name(&path), value: Some(value), invert })
                        }
                        Err(e) => wrong.push((at, format!("{name:?} {e}"))),
                    }
                    continue;
                }
                // Pseudo headers are matched like the fields of their own.
                match name.as_str() {
                    ":method" if !invert => out.method = Some(value),
                    ":authority" if !invert => out.authority = Some(value),
                    ":path" if !invert => out.path = Some(value),
                    ":scheme" if !invert => out.scheme = Some(value),
                    // The same to proxies, which look at the authority for both.
                    ":authority" => {
                        out.headers.push(ir::Named { name: "host".into(), value: Some(value), invert });
                    }
                    _ => match header_name(name, at) {
                        Ok(name) => out.headers.push(ir::Named { name, value: Some(value), invert }),
                        Err(b) => wrong.push(b),
                    },
                }
            }
        }
        for (name, t) in &matching.query_params {
            match value(t, &format!("{at}.queryParams[{name}]")) {
                Ok(value) => out.query.push(ir::Named { name: name.clone(), value: Some(value), invert: false }),
                Err(b) => wrong.push(b),
            }
        }
        let is_read = wrong.is_empty();
        bad.extend(wrong);
        Matched { ports: ports(matching.port), m: out, is_read }
    }

    fn destination(
        &self,
        destination: &VsDestination,
        header_rules: Option<&VsHeaders>,
        weight: u32,
        at: &str,
        bad: &mut Vec<FieldError>,
    ) -> Result<ir::Destination, FieldError> {
        if destination.host.is_empty() {
            return Err((format!("{at}.destination.host"), "is empty: specify a service [KARST-0010]".into()));
        }
        let found = self.hosts.destination(&destination.host, self.ns);
        let port = match (u32::from(destination.port.number), found.map(|key| self.hosts.ports(key))) {
            // The only one that it has (Istio); of several the one that is called.
            (0, Some([only])) => *only,
            (named, _) => named,
        };
        // A port that the service does not have is no destination, whatever listens there.
        let usable = found.is_some_and(|key| self.hosts.has_port(key, port));
        let (request, answer, authority) = match header_rules {
            Some(h) => headers(h, at, bad),
            None => (None, None, String::new()),
        };
        let mut rewrite = None;
        set_authority(&mut rewrite, authority);
        Ok(ir::Destination {
            service: found.map(ToString::to_string).unwrap_or_else(|| destination.host.clone()),
            port,
            subset: destination.subset.clone(),
            weight,
            request,
            answer,
            refuse_status: if usable { 0 } else { NO_CLUSTER },
            rewrite,
            ..Default::default()
        })
    }

    fn destinations(
        &self,
        route: &[VsRoute],
        at: &str,
        bad: &mut Vec<FieldError>,
    ) -> Result<Vec<ir::Destination>, FieldError> {
        let mut out = vec![];
        for (i, d) in route.iter().enumerate() {
            let weight = if route.len() == 1 && d.weight == 0 { 100 } else { d.weight };
            out.push(self.destination(&d.destination, None, weight, &format!("{at}.route[{i}]"), bad)?);
        }
        if out.is_empty() {
            return Err((format!("{at}.route"), "is empty: specify a destination [KARST-0010]".into()));
        }
        weighted(&out, at)?;
        Ok(out)
    }

    /// Where connections go: nowhere, if that cannot be read.
    fn connections(&self, route: &[VsRoute], at: &str, bad: &mut Vec<FieldError>) -> Vec<ir::Destination> {
        self.destinations(route, at, bad).unwrap_or_else(|b| {
            bad.push(b);
            nowhere()
        })
    }

    fn tcp(&self, route: &VsTcp, at: &str, origin: &str, out: &mut Rules, bad: &mut Vec<FieldError>) {
        let destinations = self.connections(&route.route, at, bad);
        let all = [VsTcpMatch::default()];
        let matches = if route.matches.is_empty() { &all[..] } else { &route.matches };
        let read = |(i, m): (usize, &VsTcpMatch)| {
            subnets(&m.destination_subnets, &m.source_subnet, &format!("{at}.match[{i}]"))
        };
        let read: Vec<_> = matches.iter().enumerate().map(read).collect();
        let destinations = if read.iter().all(Vec::is_empty) { destinations } else { nowhere() };
        for (matching, wrong) in matches.iter().zip(read) {
            let is_read = wrong.is_empty();
            bad.extend(wrong);
            if self.is_here(&matching.gateways) {
                let to = if is_read { &mut out.read.tcp } else { &mut out.last.tcp };
                let clients = (&matching.source_labels, &*matching.source_namespace);
                to.push(tcp_rule(origin, matching.port, clients, &destinations, vec![]));
            }
        }
    }

    fn tls(&self, route: &VsTls, at: &str, origin: &str, out: &mut Rules, bad: &mut Vec<FieldError>) {
        let destinations = self.connections(&route.route, at, bad);
        if route.matches.is_empty() {
            bad.push((format!("{at}.match"), "is empty: specify sniHosts [KARST-0010]".into()));
            let (origin, sni) = (origin.into(), vec!["*".into()]);
            out.last.tls.push(ir::TcpRule { origin, sni, destinations: nowhere(), ..Default::default() });
        }
        let read = |(i, m): (usize, &VsTlsMatch)| {
            let at = format!("{at}.match[{i}]");
            let mut wrong = subnets(&m.destination_subnets, "", &at);
            let mut sni: Vec<String> = m.sni_hosts.iter().map(|h| h.to_ascii_lowercase()).collect();
            if sni.is_empty() {
                wrong.push((format!("{at}.sniHosts"), "is empty: specify at least one host [KARST-0010]".into()));
                sni.push("*".into());
            }
            (wrong, sni)
        };
        let read: Vec<_> = route.matches.iter().enumerate().map(read).collect();
        let destinations = if read.iter().all(|(wrong, _)| wrong.is_empty()) { destinations } else { nowhere() };
        for (matching, (wrong, sni)) in route.matches.iter().zip(read) {
            let is_read = wrong.is_empty();
            bad.extend(wrong);
            if self.is_here(&matching.gateways) {
                let to = if is_read { &mut out.read.tls } else { &mut out.last.tls };
                let clients = (&matching.source_labels, &*matching.source_namespace);
                to.push(tcp_rule(origin, matching.port, clients, &destinations, sni));
            }
        }
    }
}

/// Adds a rule for a match, or for what is left of it.
fn push(
    out: &mut Rules,
    matched: Matched,
    rule: ir::HttpRule,
    route: &VsHttp,
    (object, index, _): (&str, usize, usize),
) {
    let origin =
        if route.name.is_empty() { format!("{object} http[{index}]") } else { format!("{object} {}", route.name) };
    let to = if matched.is_read { &mut out.read.http } else { &mut out.last.http };
    to.push(ir::HttpRule { origin, ports: matched.ports, r#match: Some(matched.m), ..rule });
}

/// A rule for connections to a port, from clients with these labels in this namespace, whose TLS hello has one of these names.
fn tcp_rule(
    origin: &str,
    port: u16,
    (labels, namespace): (&Labels, &str),
    destinations: &[ir::Destination],
    sni: Vec<String>,
) -> ir::TcpRule {
    ir::TcpRule {
        origin: origin.into(),
        ports: ports(port),
        source_labels: labels.to_map(),
        source_namespace: namespace.into(),
        destinations: destinations.to_vec(),
        sni,
    }
}

/// The port of a match; none: any.
fn ports(port: u16) -> Vec<u32> {
    if port == 0 { vec![] } else { vec![port.into()] }
}

/// Conditions on addresses. A match without them would be for others, too: one that has them cannot be read.
fn subnets(destination: &[String], source: &str, at: &str) -> Vec<FieldError> {
    let fields = [
        (!destination.is_empty(), "destinationSubnets", "match by port, or by the hosts of the VirtualService"),
        (!source.is_empty(), "sourceSubnet", "match by sourceNamespace or sourceLabels"),
    ];
    let wrong = fields.into_iter().filter(|(there, ..)| *there);
    wrong
        .map(|(_, field, fix)| {
            (format!("{at}.{field}"), format!("is not supported in this version: {fix} [KARST-0029]"))
        })
        .collect()
}
