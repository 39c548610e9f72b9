//! Gateway API's routes, of services and of gateways.

use crate::convert::{
    compilation::{
        provider,
        routes::{
            cache::ClosedBy,
            filter,
            scalar::{MILLION, exact, header, header_name, optional_duration, per_million, regex},
            session,
            table::{Api, Precision, Ranked, RankedTcp, Tables},
        },
    },
    facts::{
        grant::{granted, is_parent},
        hosts::Hosts,
        service,
    },
    objects::{FieldError, GATEWAY, GATEWAY_API, ISTIO_NETWORKING, Objects, VIRTUAL, age},
};
use karst_api::route as ir;
use karst_core::operators;
use karst_manifest::{gatewayapi::*, kinds::*};
use std::{cmp::Reverse, collections::BTreeMap, ops::RangeInclusive, sync::Arc};

/// Answered for a destination that does not exist: Gateway API asks for 500, Envoy answers 503.
const NO_BACKEND: u32 = 500;
/// gRPC's UNAVAILABLE: the application has not acted on the call.
const GRPC_UNAVAILABLE: u32 = 14;

/// The services that a route is for.
pub(crate) fn targets(
    objects: &Objects<'_>,
    hosts: &Hosts,
    kind: &'static str,
    ns: &str,
    names: &[String],
    parents: &[ParentRef],
) -> Vec<Arc<str>> {
    let convert = Convert { objects, hosts, kind, ns, names, parents };
    parents.iter().flat_map(|p| convert.parents(p)).map(|(key, _)| key).collect()
}

pub(crate) fn http(objects: &Objects<'_>, route: &HTTPRoute, hosts: &Hosts, tables: &mut Tables) -> Vec<FieldError> {
    let convert =
        Convert::new((objects, hosts), "HTTPRoute", &route.metadata, &route.spec.hostnames, &route.spec.parent_refs);
    let (mut rules, mut bad) = (vec![], vec![]);
    for (index, rule) in route.spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        let read = |(j, m): (usize, &RouteMatch)| matching(m, &format!("{at}.matches[{j}]"), &mut bad);
        let matches = rule.matches.iter().enumerate().map(read).collect();
        rules.extend(convert.rule(rule, matches, (&at, &route.metadata.name, index), &mut bad));
    }
    rules.extend(convert.unread(route.spec.is_unread, &route.metadata.name, &mut bad));
    convert.attach(&route.metadata, tables, &rules, &[], false);
    bad
}

pub(crate) fn grpc(objects: &Objects<'_>, route: &GRPCRoute, hosts: &Hosts, tables: &mut Tables) -> Vec<FieldError> {
    let convert =
        Convert::new((objects, hosts), "GRPCRoute", &route.metadata, &route.spec.hostnames, &route.spec.parent_refs);
    let (mut rules, mut bad) = (vec![], vec![]);
    for (index, rule) in route.spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        let read = |(j, m): (usize, &GrpcMatch)| grpc_matching(m, &format!("{at}.matches[{j}]"), &mut bad);
        let matches = rule.matches.iter().enumerate().map(read).collect();
        let same = RouteRule {
            name: rule.name.clone(),
            filters: rule.filters.clone(),
            backend_refs: rule.backend_refs.clone(),
            session_persistence: rule.session_persistence.clone(),
            ..Default::default()
        };
        rules.extend(convert.rule(&same, matches, (&at, &route.metadata.name, index), &mut bad));
    }
    rules.extend(convert.unread(route.spec.is_unread, &route.metadata.name, &mut bad));
    convert.attach(&route.metadata, tables, &rules, &[], false);
    bad
}

/// What of rules is not in force, while the rest is: whole rules (`spec.rules[1]`), or single backends of theirs
/// (`spec.rules[1].backendRefs[0]`), by their fields, and what is wrong with each.
pub(crate) fn dropped(bad: &[FieldError]) -> BTreeMap<&str, &FieldError> {
    // The first of each is told.
    let one = |b: &'_ FieldError| -> Option<usize> {
        let rule = b.0.starts_with("spec.rules[").then(|| b.0.find(']'))?? + 1;
        let backend = b.0[rule..].strip_prefix(".backendRefs[").and_then(|rest| rest.find(']'));
        Some(backend.map_or(rule, |end| rule + ".backendRefs[".len() + end + 1))
    };
    bad.iter().rev().filter_map(|b| Some((&b.0[..one(b)?], b))).collect()
}

/// Filters that are not executed where they stand: those of types that are not known, and those of single backends that are executed
/// for whole rules only. What they are for is answered 500: requests do not go on without them.
pub(crate) fn unexecuted<'a>(
    route: &str,
    rules: impl Iterator<Item = (&'a [Filter], &'a [BackendRef])>,
) -> Vec<FieldError> {
    let mut out = vec![];
    let is_known = |kind: &str| KNOWN.contains(&kind) || (kind == EXTERNAL_AUTH && route == HTTP);
    for (index, (filters, backends)) in rules.enumerate() {
        let unknown = |(j, f): (usize, &Filter)| {
            let text = unsupported(&f.kind);
            (!is_known(&f.kind)).then(|| (format!("spec.rules[{index}].filters[{j}]"), text))
        };
        out.extend(filters.iter().enumerate().filter_map(unknown));
        for (place, backend) in backends.iter().enumerate() {
            let wrong = |(filter_index, f): (usize, &Filter)| {
                let text = match f.kind.as_str() {
                    kind if IN_BACKENDS.contains(&kind) => return None,
                    kind if is_known(kind) => {
                        format!(
                            "filters of type {kind} are not supported for a single backend: move it to the filters of the rule [KARST-0029]"
                        )
                    }
                    kind => unsupported(kind),
                };
                Some((format!("spec.rules[{index}].backendRefs[{place}].filters[{filter_index}]"), text))
            };
            out.extend(backend.filters.iter().enumerate().filter_map(wrong));
        }
    }
    out
}

fn unsupported(kind: &str) -> String {
    format!("unsupported filter type {kind:?} [KARST-0016]")
}

/// Types of filters that are executed for one backend.
const IN_BACKENDS: [&str; 3] = ["RequestHeaderModifier", "ResponseHeaderModifier", "URLRewrite"];
/// And for a rule.
const KNOWN: [&str; 7] =
    [IN_BACKENDS[0], IN_BACKENDS[1], IN_BACKENDS[2], "RequestMirror", "RequestRedirect", "ExtensionRef", "CORS"];

/// And for a rule of an HTTPRoute.
const EXTERNAL_AUTH: &str = "ExternalAuth";
const HTTP: &str = "HTTPRoute";

pub(crate) fn tcp(objects: &Objects<'_>, route: &TCPRoute, hosts: &Hosts, tables: &mut Tables) -> Vec<FieldError> {
    let convert = Convert::new((objects, hosts), "TCPRoute", &route.metadata, &[], &route.spec.parent_refs);
    convert.bytes(&route.metadata, &route.spec.rules, route.spec.is_unread, tables)
}

pub(crate) fn tls(objects: &Objects<'_>, route: &TLSRoute, hosts: &Hosts, tables: &mut Tables) -> Vec<FieldError> {
    let convert =
        Convert::new((objects, hosts), "TLSRoute", &route.metadata, &route.spec.hostnames, &route.spec.parent_refs);
    convert.bytes(&route.metadata, &route.spec.rules, route.spec.is_unread, tables)
}

/// Routes of datagrams. No service has any: the mesh carries none.
pub(crate) const UDP: &str = "UDPRoute";

pub(crate) fn udp(objects: &Objects<'_>, route: &UDPRoute, hosts: &Hosts, tables: &mut Tables) -> Vec<FieldError> {
    let convert = Convert::new((objects, hosts), UDP, &route.metadata, &[], &route.spec.parent_refs);
    convert.bytes(&route.metadata, &route.spec.rules, route.spec.is_unread, tables)
}

/// Backends of a route of datagrams that take none, by what closes each (`closed`, by service and port).
pub(crate) fn closed_to_datagrams(
    objects: &Objects<'_>,
    route: &UDPRoute,
    closed: &BTreeMap<(String, u32), ClosedBy>,
) -> Vec<FieldError> {
    let (mut out, own) = (vec![], &*route.metadata.namespace);
    for (index, rule) in route.spec.rules.iter().enumerate() {
        for (place, backend) in rule.backend_refs.iter().enumerate() {
            let ns = backend.namespace.as_deref().unwrap_or(own);
            // What others guard themselves by is told to nobody else.
            if ns != own && !granted(objects, UDP, own, (ns, "", "Service", &backend.name)) {
                continue;
            }
            let Some(service) = objects.service(ns, &backend.name) else { continue };
            let key = format!("{ns}/{}", service::hostname(objects, service));
            let by =
                closed.iter().find(|((k, port), _)| *k == key && backend.port.is_none_or(|p| u32::from(p) == *port));
            let Some((_, by)) = by else { continue };
            let name = &backend.name;
            let text = match by {
                ClosedBy::Policies(by) => {
                    let by = if ns == own { by.as_str() } else { "policies of its namespace" };
                    format!(
                        "the endpoints of Service {ns}/{name} require mutual TLS, which datagrams do not have, by {by}: its datagrams are dropped; make the port PERMISSIVE (portLevelMtls), and allow it in AuthorizationPolicies [KARST-0322]"
                    )
                }
                ClosedBy::Gateway => format!(
                    "the endpoints of Service {ns}/{name} are gateways, between which datagrams might circulate without end: its datagrams are dropped; name the Service of the application [KARST-0323]"
                ),
            };
            out.push((format!("spec.rules[{index}].backendRefs[{place}]"), text));
        }
    }
    out
}

/// Values of headers that look as if they had operators, of the filters of rules and of their backends.
pub(crate) fn warnings<'a>(rules: impl Iterator<Item = (&'a [Filter], &'a [BackendRef])>) -> Vec<String> {
    let mut out = vec![];
    for (index, (filters, backends)) in rules.enumerate() {
        literals(filters, &format!("spec.rules[{index}]"), &mut out);
        for (j, b) in backends.iter().enumerate() {
            literals(&b.filters, &format!("spec.rules[{index}].backendRefs[{j}]"), &mut out);
        }
    }
    out
}

fn literals(filters: &[Filter], at: &str, out: &mut Vec<String>) {
    for (index, f) in filters.iter().enumerate() {
        let request = f.request_header_modifier.iter().map(|m| (m, "requestHeaderModifier"));
        let response = f.response_header_modifier.iter().map(|m| (m, "responseHeaderModifier"));
        for (m, field) in request.chain(response) {
            for (list, how) in [(&m.set, "set"), (&m.add, "add")] {
                out.extend(list.iter().enumerate().filter_map(|(j, h)| {
                    let e = operators::parse(&h.value).err()?;
                    Some(format!(
                        "{at}.filters[{index}].{field}.{how}[{j}]: {:?} {e}; the value is sent unchanged",
                        h.value
                    ))
                }));
            }
        }
    }
}

/// A gRPC method is a path.
fn grpc_matching(grpc_match: &GrpcMatch, at: &str, bad: &mut Vec<FieldError>) -> Matched {
    let method = grpc_match.method.as_ref();
    let kind = method.and_then(|g| g.kind.as_deref()).unwrap_or("Exact");
    let names = method.map_or((None, None), |g| (g.service.as_deref(), g.method.as_deref()));
    let path = match (kind, names) {
        (_, (None, None)) => None,
        ("Exact", (Some(s), Some(m))) => Some(("Exact", format!("/{s}/{m}"))),
        ("Exact", (Some(s), None)) => Some(("PathPrefix", format!("/{s}"))),
        ("Exact", (None, Some(m))) => Some(("RegularExpression", format!("/[^/]+/{}", regex::escape(m)))),
        ("RegularExpression", (s, m)) => {
            Some(("RegularExpression", format!("/{}/{}", s.unwrap_or("[^/]+"), m.unwrap_or("[^/]+"))))
        }
        (other, _) => {
            bad.push((
                format!("{at}.method.type"),
                format!("unsupported value {other:?}: use Exact or RegularExpression [KARST-0016]"),
            ));
            let headers = RouteMatch { headers: grpc_match.headers.clone(), ..Default::default() };
            return Matched { is_read: false, ..matching(&headers, at, bad) };
        }
    };
    let path = path.map(|(kind, value)| PathMatch { kind: Some(kind.into()), value: Some(value) });
    matching(&RouteMatch { path, headers: grpc_match.headers.clone(), ..Default::default() }, at, bad)
}

/// A match, or what of it can be read.
struct Matched {
    precision: Precision,
    m: ir::Match,
    is_read: bool,
}

/// A rule for one of its matches.
struct Converted {
    precision: Precision,
    rule: ir::HttpRule,
    /// It stands for a match that cannot be read: behind all others.
    is_last: bool,
}

struct Convert<'a> {
    objects: &'a Objects<'a>,
    hosts: &'a Hosts,
    kind: &'static str,
    ns: &'a str,
    /// Host names of the route.
    names: &'a [String],
    parents: &'a [ParentRef],
}

/// What the filters of a rule or of a backend say.
#[derive(Default)]
struct Filters {
    request: Option<ir::HeaderChange>,
    answer: Option<ir::HeaderChange>,
    mirrors: Vec<ir::Mirror>,
    redirect: Option<ir::Redirect>,
    rewrite: Option<ir::Rewrite>,
    cors: Option<ir::Cors>,
    authorization: Option<ir::AuthzProvider>,
    /// HTTPFilters.
    extensions: Vec<filter::Compiled>,
    /// A filter that is not known: the requests must not go on without it.
    unknown: bool,
}

impl<'a> Convert<'a> {
    fn new(
        (objects, hosts): (&'a Objects<'a>, &'a Hosts),
        kind: &'static str,
        meta: &'a Meta,
        names: &'a [String],
        parents: &'a [ParentRef],
    ) -> Self {
        Self { objects, hosts, kind, ns: &meta.namespace, names, parents }
    }

    /// The rules of a route for connections.
    fn bytes(&self, meta: &Meta, all: &[TcpRouteRule], is_unread: bool, tables: &mut Tables) -> Vec<FieldError> {
        let (mut rules, mut bad) = (vec![], vec![]);
        for (index, rule) in all.iter().enumerate() {
            let mut destinations = vec![];
            for (j, backend) in rule.backend_refs.iter().enumerate() {
                let read = self.destination(backend, &format!("spec.rules[{index}].backendRefs[{j}]"));
                // Its share of the connections is refused.
                destinations.push(read.unwrap_or_else(|e| {
                    bad.push(e);
                    nowhere(backend.weight.unwrap_or(1))
                }));
            }
            // Nobody is to be called: not whoever would be without the route, either.
            if destinations.iter().all(|d| d.weight == 0) {
                destinations.push(nowhere(1));
            }
            let origin = format!("{} {}/{} rule {index}", self.kind, self.ns, meta.name);
            // At a gateway the listener's virtual host has chosen by name already.
            let sni = self.names.to_vec();
            rules.push(ir::TcpRule { origin, destinations, sni, ..Default::default() });
        }
        if self.unread(is_unread, &meta.name, &mut bad).is_some() {
            let origin = format!("{} {}/{}", self.kind, self.ns, meta.name);
            let sni = self.names.to_vec();
            rules.push(ir::TcpRule { origin, destinations: vec![nowhere(1)], sni, ..Default::default() });
        }
        self.attach(meta, tables, &[], &rules, is_unread);
        bad
    }

    /// What stands for a route that cannot be read as a whole.
    fn unread(&self, is_unread: bool, name: &str, bad: &mut Vec<FieldError>) -> Option<Converted> {
        if !is_unread {
            return None;
        }
        bad.push((
            "spec.rules[0]".into(),
            "the route cannot be read: see the controller's log for the reason [KARST-0319]".into(),
        ));
        let (origin, r#match) = (format!("{} {}/{name}", self.kind, self.ns), Some(ir::Match::default()));
        let rule = ir::HttpRule { origin, r#match, ..refused() };
        Some(Converted { precision: Precision::default(), rule, is_last: true })
    }

    /// Adds the rules to the services that are the route's parents; `is_last`: those for connections stand for what is not read.
    fn attach(&self, meta: &Meta, tables: &mut Tables, http: &[Converted], tcp: &[ir::TcpRule], is_last: bool) {
        let route_age = age(meta);
        for p in self.parents {
            let own: Vec<u32> = p.port.iter().map(|p| u32::from(*p)).collect();
            for (key, closeness) in self.parents(p) {
                // Of a gateway the port has chosen the listener.
                let ports = if key.starts_with(VIRTUAL) { vec![] } else { own.clone() };
                let table = tables.of(self.objects, &key, self.ns);
                table.http.extend(http.iter().enumerate().map(|(place, converted)| Ranked {
                    is_last: converted.is_last,
                    api: Api::Gateway,
                    closeness,
                    precision: converted.precision,
                    age: route_age.clone(),
                    place,
                    rule: ir::HttpRule { ports: ports.clone(), ..converted.rule.clone() },
                }));
                table.tcp.extend(tcp.iter().map(|rule| RankedTcp {
                    is_last,
                    api: Api::Gateway,
                    closeness,
                    age: route_age.clone(),
                    rule: ir::TcpRule { ports: ports.clone(), ..rule.clone() },
                }));
            }
        }
    }

    /// The services that a parent reference names, or the virtual hosts of the gateway that it names; and how closely the route's own
    /// names fit these.
    fn parents(&self, parent: &ParentRef) -> Vec<(Arc<str>, usize)> {
        if self.kind == UDP {
            return self.hosts.listeners.keys(self.objects, self.kind, self.ns, self.names, parent);
        }
        let ns = parent.namespace.as_deref().unwrap_or(self.ns);
        let services: Vec<Arc<str>> =
            match (parent.group.as_deref().unwrap_or(GATEWAY_API), parent.kind.as_deref().unwrap_or(GATEWAY)) {
                ("" | "core", "Service") => self.hosts.service(&parent.name, ns).into_iter().cloned().collect(),
                (ISTIO_NETWORKING, "ServiceEntry") => {
                    let all = self
                        .objects
                        .entries_of
                        .get(ns)
                        .into_iter()
                        .flatten()
                        .filter(|e| e.metadata.name == parent.name);
                    all.flat_map(|e| &e.spec.hosts).filter_map(|h| self.hosts.own(h, ns)).cloned().collect()
                }
                _ => return self.hosts.listeners.keys(self.objects, self.kind, self.ns, self.names, parent),
            };
        services.into_iter().map(|key| (key, 0)).collect()
    }

    /// A rule, for each of its matches. One that cannot be read is answered 500 where it matches; where that cannot be read either,
    /// for what is left of the match, behind all other rules: requests of an unread rule are nobody else's by default.
    fn rule(
        &self,
        route_rule: &RouteRule,
        mut matches: Vec<Matched>,
        (at, name, index): (&str, &str, usize),
        bad: &mut Vec<FieldError>,
    ) -> Vec<Converted> {
        let origin = format!(
            "{} {}/{name} {}",
            self.kind,
            self.ns,
            route_rule.name.clone().unwrap_or_else(|| format!("rule {index}"))
        );
        let bound = |rule: ir::HttpRule| -> Result<_, FieldError> {
            Ok(ir::HttpRule { session: self.session(route_rule, at, name)?, ..rule })
        };
        let mut rule = self.action(route_rule, at, bad).and_then(bound).unwrap_or_else(|e| {
            bad.push(e);
            refused()
        });
        if matches.iter().any(|m| !m.is_read) {
            rule = refused();
        }
        if matches.is_empty() {
            matches.push(matching(&RouteMatch::default(), at, bad));
        }
        let one = |m: Matched| Converted {
            precision: m.precision,
            rule: ir::HttpRule { origin: origin.clone(), r#match: Some(m.m), ..rule.clone() },
            is_last: !m.is_read,
        };
        matches.into_iter().map(one).collect()
    }

    /// How its clients come back to the same endpoints.
    fn session(&self, route_rule: &RouteRule, at: &str, name: &str) -> Result<Option<ir::Session>, FieldError> {
        let scope = || format!("{} {}/{name}", self.kind, self.ns);
        let persistence = route_rule.session_persistence.as_ref();
        persistence.map(|p| session::of_rule(p, scope(), &format!("{at}.sessionPersistence"))).transpose()
    }

    /// What a rule does. Of a backend that cannot be read its share of the requests is refused.
    fn action(&self, route_rule: &RouteRule, at: &str, bad: &mut Vec<FieldError>) -> Result<ir::HttpRule, FieldError> {
        let filters = self.filters(&route_rule.filters, at)?;
        let t = route_rule.timeouts.as_ref();
        let request_ms = optional_duration(t.and_then(|t| t.request.as_deref()), || format!("{at}.timeouts.request"))?;
        let backend_ms = optional_duration(t.and_then(|t| t.backend_request.as_deref()), || {
            format!("{at}.timeouts.backendRequest")
        })?;
        let mut destinations = vec![];
        for (i, backend) in route_rule.backend_refs.iter().enumerate() {
            let read = self.destination(backend, &format!("{at}.backendRefs[{i}]"));
            let destination = read.unwrap_or_else(|e| {
                bad.push(e);
                nowhere(backend.weight.unwrap_or(1))
            });
            destinations.push(ir::Destination { timeout_ms: backend_ms, ..destination });
        }
        let retry = match &route_rule.retry {
            None => ir::Retry { per_try_ms: backend_ms, ..ir::Retry::istio() },
            Some(retry) => retries(retry, backend_ms, &format!("{at}.retry"))?,
        };
        let rule = ir::HttpRule {
            redirect: filters.redirect,
            destinations,
            rewrite: filters.rewrite,
            request: filters.request,
            answer: filters.answer,
            mirrors: filters.mirrors,
            cors: filters.cors,
            timeout_ms: request_ms,
            retry: Some(retry),
            fault: filters.extensions.iter().find_map(|e| e.fault),
            max_body_bytes: filters.extensions.iter().fold(0, |most, e| filter::smaller(most, e.max_body_bytes)),
            compression: filters.extensions.iter().find_map(|e| e.compression.clone()),
            limits: filters.extensions.into_iter().flat_map(|e| e.limits).collect(),
            authorization: filters.authorization,
            ..Default::default()
        };
        if filters.unknown || (rule.redirect.is_none() && rule.destinations.iter().all(|d| d.weight == 0)) {
            return Ok(ir::HttpRule { redirect: None, response: refused().response, ..rule });
        }
        Ok(rule)
    }

    fn destination(&self, backend: &BackendRef, at: &str) -> Result<ir::Destination, FieldError> {
        let ns = backend.namespace.as_deref().unwrap_or(self.ns);
        let (group, kind) = (backend.group.as_deref().unwrap_or(""), backend.kind.as_deref().unwrap_or("Service"));
        let found = match (group, kind) {
            ("" | "core", "Service") => self.hosts.service(&backend.name, ns),
            // Istio's way to name any service by its host name.
            (ISTIO_NETWORKING, "Hostname") if self.kind != UDP => self.hosts.find(&backend.name, self.ns),
            _ => None,
        };
        let granted = kind == "Hostname"
            || ns == self.ns
            || (self.kind != UDP && is_parent(self.parents, self.ns, ns, &backend.name))
            || granted(self.objects, self.kind, self.ns, (ns, group, kind, &backend.name));
        let port = u32::from(backend.port.unwrap_or(0));
        // A port that the service does not have is no backend, whatever listens there.
        let found = found.filter(|key| match self.kind {
            UDP => self.hosts.has_udp_port(key, port),
            _ => self.hosts.has_port(key, port),
        });
        let filters = self.filters(&backend.filters, at)?;
        // These are executed for a whole rule only; requests do not go on without them.
        let whole = backend.filters.iter().any(|f| !IN_BACKENDS.contains(&f.kind.as_str()));
        let unexecuted = filters.unknown || whole;
        Ok(ir::Destination {
            service: found.map(ToString::to_string).unwrap_or_else(|| format!("{ns}/{}", backend.name)),
            port,
            weight: backend.weight.unwrap_or(1),
            request: filters.request,
            answer: filters.answer,
            rewrite: filters.rewrite,
            refuse_status: if found.is_some() && granted && !unexecuted { 0 } else { NO_BACKEND },
            ..Default::default()
        })
    }

    fn filters(&self, all: &[Filter], at: &str) -> Result<Filters, FieldError> {
        let mut out = Filters::default();
        for (i, filter) in all.iter().enumerate() {
            let at = format!("{at}.filters[{i}]");
            let lacks = |field: &str| {
                (format!("{at}.{field}"), format!("is required in a filter of type {} [KARST-0010]", filter.kind))
            };
            match filter.kind.as_str() {
                "RequestHeaderModifier" => {
                    let m = filter.request_header_modifier.as_ref().ok_or_else(|| lacks("requestHeaderModifier"))?;
                    out.request = Some(header_change(m, &format!("{at}.requestHeaderModifier"))?);
                }
                "ResponseHeaderModifier" => {
                    let m = filter.response_header_modifier.as_ref().ok_or_else(|| lacks("responseHeaderModifier"))?;
                    out.answer = Some(header_change(m, &format!("{at}.responseHeaderModifier"))?);
                }
                "RequestMirror" => {
                    let mirror = filter.request_mirror.as_ref().ok_or_else(|| lacks("requestMirror"))?;
                    let at = format!("{at}.requestMirror");
                    let part = match (mirror.percent, &mirror.fraction) {
                        (Some(p), _) => per_million(f64::from(p), &format!("{at}.percent"))?,
                        (None, Some(fraction)) => {
                            let of = fraction.denominator.unwrap_or(100);
                            if of == 0 || fraction.numerator > of {
                                let text = "the numerator must not exceed the denominator, and the denominator must not be 0 [KARST-0017]";
                                return Err((format!("{at}.fraction"), text.into()));
                            }
                            (u64::from(fraction.numerator) * u64::from(MILLION) / u64::from(of)) as u32
                        }
                        (None, None) => MILLION,
                    };
                    let to = Some(self.destination(&mirror.backend_ref, &format!("{at}.backendRef"))?);
                    out.mirrors.push(ir::Mirror { to, per_million: part });
                }
                "RequestRedirect" => {
                    let redirect = filter.request_redirect.as_ref().ok_or_else(|| lacks("requestRedirect"))?;
                    let path = redirect.path.as_ref().map(|p| modifier(p, &at)).transpose()?;
                    out.redirect = Some(ir::Redirect {
                        code: u32::from(redirect.status_code.unwrap_or(302)),
                        scheme: redirect.scheme.clone().unwrap_or_default(),
                        authority: redirect.hostname.clone().unwrap_or_default(),
                        port: u32::from(redirect.port.unwrap_or(0)),
                        // The listener's port stays, unless the scheme changes.
                        request_port: redirect.scheme.is_none(),
                        path: path.map(
                            |(full, p)| if full { ir::redirect::Path::Full(p) } else { ir::redirect::Path::Prefix(p) },
                        ),
                    });
                }
                "URLRewrite" => {
                    let url_rewrite = filter.url_rewrite.as_ref().ok_or_else(|| lacks("urlRewrite"))?;
                    let path = url_rewrite.path.as_ref().map(|p| modifier(p, &at)).transpose()?;
                    out.rewrite = Some(ir::Rewrite {
                        authority: url_rewrite.hostname.clone().unwrap_or_default(),
                        path: path.map(
                            |(full, p)| if full { ir::rewrite::Path::Full(p) } else { ir::rewrite::Path::Prefix(p) },
                        ),
                    });
                }
                "ExtensionRef" => {
                    let r = filter.extension_ref.as_ref().ok_or_else(|| lacks("extensionRef"))?;
                    // What is wrong with it is said where it stands; requests do not go on without it.
                    match filter::find(self.objects, self.ns, r).map(filter::compile) {
                        Some(Ok(c)) => out.extensions.push(c),
                        Some(Err(_)) | None => out.unknown = true,
                    }
                }
                "CORS" => out.cors = Some(cors(filter.cors.as_ref().ok_or_else(|| lacks("cors"))?)),
                EXTERNAL_AUTH if self.kind == HTTP => {
                    let auth = filter.external_auth.as_ref().ok_or_else(|| lacks("externalAuth"))?;
                    let at = format!("{at}.externalAuth");
                    // Several of them: nobody knows which is meant.
                    if out.authorization.is_some() {
                        return Err((at, "a rule can have only one filter of type ExternalAuth [KARST-0013]".into()));
                    }
                    let to = self.destination(&auth.backend_ref, &format!("{at}.backendRef"))?;
                    let asked = provider::of_filter(auth, &to, &at)?;
                    // The status says why (ResolvedRefs); requests do not go on unasked.
                    match (to.refuse_status, to.port) {
                        (0, 1..) => out.authorization = Some(asked),
                        _ => out.unknown = true,
                    }
                }
                _ => out.unknown = true,
            }
        }
        Ok(out)
    }
}

/// Status codes after which a request may be tried again (HTTPRouteRetryStatusCode).
const RETRIABLE: RangeInclusive<u32> = 400..=599;

/// When a request is tried again (HTTPRouteRetry): whenever no backend can have acted on it, and otherwise only after what the rule
/// names: its codes, and the time of an attempt. A connection that breaks after the request was sent is not among these.
fn retries(retry: &RouteRetry, per_try_ms: u64, at: &str) -> Result<ir::Retry, FieldError> {
    let backoff = optional_duration(retry.backoff.as_deref(), || format!("{at}.backoff"))?;
    if let Some((i, code)) = retry.codes.iter().enumerate().find(|(_, code)| !RETRIABLE.contains(*code)) {
        let text = format!(
            "{code} is out of range: must be between {} and {} [KARST-0017]",
            RETRIABLE.start(),
            RETRIABLE.end()
        );
        return Err((format!("{at}.codes[{i}]"), text));
    }
    Ok(ir::Retry {
        attempts: retry.attempts.unwrap_or(1),
        per_try_ms,
        backoff_ms: if backoff == 0 { 25 } else { backoff },
        codes: retry.codes.clone(),
        connect_failure: true,
        refused_stream: true,
        reset_before_request: true,
        attempt_timeout: true,
        grpc: vec![GRPC_UNAVAILABLE],
        ..Default::default()
    })
}

/// The origins that an entry of `allowOrigins` stands for, as browsers write them: in lower case, and mostly without the port that is
/// the scheme's own. `*` in a host stands for any text of it, dots included; alone, for every origin.
fn origins(entry: &str) -> Vec<ir::Text> {
    const ANY: &str = r"[^/:@\[\]]+";
    let entry = entry.to_ascii_lowercase();
    let Some((scheme, rest)) = entry.split_once("://") else { return vec![exact(entry.as_str())] };
    let own = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let (host, port) = match rest.rfind(':').map(|colon| rest.split_at(colon)) {
        Some((host, port)) if port.len() > 1 && port.bytes().skip(1).all(|b| b.is_ascii_digit()) => (host, port),
        _ => (rest, own),
    };
    if !host.contains('*') {
        let named = exact(format!("{scheme}://{host}{port}"));
        return if port == own { vec![named, exact(format!("{scheme}://{host}"))] } else { vec![named] };
    }
    let host = match host {
        "*" => format!(r"(?:{ANY}|\[[0-9a-f:.]+\])"),
        _ => host.split('*').map(regex::escape).collect::<Vec<_>>().join(ANY),
    };
    let optional = if port == own { "?" } else { "" };
    let pattern = format!("{}://{host}(?:{port}){optional}", regex::escape(scheme));
    vec![ir::Text { kind: Some(ir::text::Kind::Regex(pattern)) }]
}

fn cors(cors: &CorsFilter) -> ir::Cors {
    ir::Cors {
        origins: cors.allow_origins.iter().flat_map(|entry| origins(entry)).collect(),
        methods: cors.allow_methods.clone(),
        headers: cors.allow_headers.clone(),
        expose: cors.expose_headers.clone(),
        // 0 is none (its minimum is 1).
        max_age_s: Some(cors.max_age.filter(|seconds| *seconds > 0).unwrap_or(5)),
        credentials: cors.allow_credentials,
        forward_unmatched: false,
    }
}

/// Whether it is the full path, and the text.
fn modifier(modifier: &PathModifier, at: &str) -> Result<(bool, String), FieldError> {
    match (modifier.kind.as_str(), &modifier.replace_full_path, &modifier.replace_prefix_match) {
        ("ReplaceFullPath", Some(p), _) => Ok((true, p.clone())),
        ("ReplacePrefixMatch", _, Some(p)) => Ok((false, p.clone())),
        (other, ..) => {
            let text =
                format!("type {other:?} requires replaceFullPath or replacePrefixMatch, as the type says [KARST-0015]");
            Err((format!("{at}.path"), text))
        }
    }
}

/// In this API a value is sent as it is: a `%` that begins no operator is one ([`warnings`] tells).
fn header_change(modifier: &HeaderModifier, at: &str) -> Result<ir::HeaderChange, FieldError> {
    let one = |h: &HeaderValue, at: String| header(&h.name, &operators::literal(&h.value), at);
    let all = |v: &[HeaderValue], f: &str| -> Result<Vec<_>, FieldError> {
        v.iter().enumerate().map(|(i, h)| one(h, format!("{at}.{f}[{i}]"))).collect()
    };
    Ok(ir::HeaderChange {
        set: all(&modifier.set, "set")?,
        add: all(&modifier.add, "add")?,
        remove: modifier.remove.iter().map(|n| header_name(n, format!("{at}.remove"))).collect::<Result<_, _>>()?,
    })
}

/// Where the share of a backend goes that cannot be.
fn nowhere(weight: u32) -> ir::Destination {
    ir::Destination { weight, refuse_status: NO_BACKEND, ..Default::default() }
}

/// What is answered in place of a rule that cannot be executed.
fn refused() -> ir::HttpRule {
    let response = Some(ir::DirectResponse { status: NO_BACKEND, body: vec![] });
    ir::HttpRule { response, ..Default::default() }
}

/// A match; what of it cannot be read is left out, and told.
fn matching(route_match: &RouteMatch, at: &str, bad: &mut Vec<FieldError>) -> Matched {
    let before = bad.len();
    let path = path(route_match.path.as_ref(), &format!("{at}.path"));
    let (path, rank, length) = path.map(|(p, rank, length)| (Some(p), rank, length)).unwrap_or_else(|e| {
        bad.push(e);
        (None, 0, 0)
    });
    let mut out = ir::Match {
        path: path.map(|kind| ir::Text { kind: Some(kind) }),
        method: route_match.method.as_ref().map(exact),
        ..Default::default()
    };
    for (i, header) in route_match.headers.iter().enumerate() {
        let at = format!("{at}.headers[{i}]");
        let read = header_name(&header.name, format!("{at}.name"))
            .and_then(|name| Ok((name, text(header.kind.as_deref(), &header.value, &at)?)));
        match read {
            // Of several with one name only the first counts.
            Ok((name, _)) if out.headers.iter().any(|n| n.name == name) => {}
            Ok((name, value)) => out.headers.push(ir::Named { name, value: Some(value), invert: false }),
            Err(e) => bad.push(e),
        }
    }
    for (index, parameter) in route_match.query_params.iter().enumerate() {
        if out.query.iter().any(|n| n.name == parameter.name) {
            continue;
        }
        match text(parameter.kind.as_deref(), &parameter.value, &format!("{at}.queryParams[{index}]")) {
            Ok(value) => out.query.push(ir::Named { name: parameter.name.clone(), value: Some(value), invert: false }),
            Err(e) => bad.push(e),
        }
    }
    let precision = (rank, length, out.method.is_some(), out.headers.len(), out.query.len());
    Matched { precision: Precision(Reverse(precision)), m: out, is_read: bad.len() == before }
}

fn text(kind: Option<&str>, value: &str, at: &str) -> Result<ir::Text, FieldError> {
    match kind.unwrap_or("Exact") {
        "Exact" => Ok(exact(value)),
        "RegularExpression" => Ok(ir::Text { kind: Some(ir::text::Kind::Regex(regex(value, format!("{at}.value"))?)) }),
        other => Err((
            format!("{at}.type"),
            format!("unsupported value {other:?}: use Exact or RegularExpression [KARST-0016]"),
        )),
    }
}

/// A path, how exact its kind is, and its length.
fn path(path_match: Option<&PathMatch>, at: &str) -> Result<(ir::text::Kind, u8, usize), FieldError> {
    use ir::text::Kind;
    let value = path_match.and_then(|p| p.value.as_deref()).unwrap_or("/");
    let (path, rank) = match path_match.and_then(|p| p.kind.as_deref()).unwrap_or("PathPrefix") {
        "Exact" => (Kind::Exact(value.into()), 2),
        "RegularExpression" => (Kind::Regex(regex(value, format!("{at}.value"))?), 1),
        "PathPrefix" => (Kind::Segments(value.into()), 0),
        other => {
            let text = format!("unsupported value {other:?}: use Exact, PathPrefix or RegularExpression [KARST-0016]");
            return Err((format!("{at}.type"), text));
        }
    };
    if rank != 1 && !value.starts_with('/') {
        return Err((format!("{at}.value"), format!("{value:?} must begin with '/' [KARST-0113]")));
    }
    Ok((path, rank, value.len()))
}
