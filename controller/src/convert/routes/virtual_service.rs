//! Istio's VirtualService, for calls within the mesh and for gateways.

use super::{
    Age, Bad, Hosts, Index, MESH, MILLION, NO_CLUSTER, Precision, Ranked, Tables, age, duration, exact, gateways,
    header, header_name, ir, optional_duration, per_million, regex,
};
use karst_manifest::{kinds::*, traffic::*};
use std::collections::BTreeMap;

/// Depth of delegation (Istio: 1; more is a loop or a mistake).
const DELEGATES: usize = 1;

fn is_for_mesh(v: &VirtualService) -> bool {
    v.spec.gateways.is_empty() || v.spec.gateways.iter().any(|g| g == MESH)
}

/// The services that it is for.
fn services(v: &VirtualService, hosts: &Hosts) -> Vec<std::sync::Arc<str>> {
    if !is_for_mesh(v) {
        return vec![];
    }
    v.spec.hosts.iter().flat_map(|h| hosts.all(h, &v.metadata.namespace)).collect()
}

/// The services and the virtual hosts of gateways that it is for.
pub(super) fn targets(v: &VirtualService, hosts: &Hosts) -> Vec<std::sync::Arc<str>> {
    let mut all = services(v, hosts);
    all.extend(hosts.fronts.bound(v).into_iter().map(|(_, _, k)| k));
    all
}

/// The rules for one place: the mesh, or a gateway.
#[derive(Default)]
struct Rules {
    http: Vec<ir::HttpRule>,
    tcp: Vec<ir::TcpRule>,
    tls: Vec<ir::TcpRule>,
}

fn rules(x: &Index<'_>, v: &VirtualService, hosts: &Hosts, place: &str) -> Result<Rules, Vec<Bad>> {
    let (mut bad, mut out) = (vec![], Rules::default());
    let (spec, ns) = (&v.spec, v.metadata.namespace.as_str());
    let c = Convert { x, ns, hosts, place };
    let name = format!("VirtualService {ns}/{}", v.metadata.name);
    for (i, h) in spec.http.iter().enumerate() {
        match c.http(h, &format!("spec.http[{i}]"), &name, i, 0) {
            Ok(r) => out.http.extend(r),
            Err(b) => bad.push(b),
        }
    }
    for (i, t) in spec.tcp.iter().enumerate() {
        match c.tcp(t, &format!("spec.tcp[{i}]"), &format!("{name} tcp[{i}]")) {
            Ok(r) => out.tcp.extend(r),
            Err(b) => bad.push(b),
        }
    }
    for (i, t) in spec.tls.iter().enumerate() {
        match c.tls(t, &format!("spec.tls[{i}]"), &format!("{name} tls[{i}]")) {
            Ok(r) => out.tls.extend(r),
            Err(b) => bad.push(b),
        }
    }
    if bad.is_empty() { Ok(out) } else { Err(bad) }
}

pub(super) fn compile(x: &Index<'_>, v: &VirtualService, hosts: &Hosts, tables: &mut Tables) -> Vec<Bad> {
    let mut bad = vec![];
    let (spec, ns) = (&v.spec, v.metadata.namespace.as_str());
    if let Some(i) = spec.hosts.iter().position(|h| h == "*").filter(|_| is_for_mesh(v)) {
        let text =
            "\"*\" alone cannot be routed within the mesh: name services, or a wildcard such as *.svc.cluster.local";
        bad.push((format!("spec.hosts[{i}]"), text.into()));
    }
    // Another's delegate has no hosts.
    if spec.hosts.is_empty() && (!spec.gateways.is_empty() || !spec.tcp.is_empty()) {
        bad.push(("spec.hosts".into(), "is empty: name the services that the routes are for".into()));
    }
    let mut places: BTreeMap<String, Rules> = BTreeMap::new();
    let names = if spec.gateways.is_empty() { &[MESH.to_string()][..] } else { &spec.gateways };
    for g in names {
        let place = if g == MESH { g.clone() } else { gateways::full_name(g, ns) };
        match rules(x, v, hosts, &place) {
            Ok(r) => drop(places.insert(place, r)),
            Err(b) => bad.extend(b.into_iter().filter(|b| !bad.contains(b)).collect::<Vec<_>>()),
        }
    }
    if !bad.is_empty() {
        return bad;
    }
    let a = age(&v.metadata);
    let mut add = |key: &std::sync::Arc<str>, http: &[ir::HttpRule], tcp: &[ir::TcpRule]| {
        let t = tables.of(x, key, ns);
        t.http.extend(http.iter().enumerate().map(|(place, rule)| Ranked {
            api: 1,
            precision: Precision::default(),
            age: a.clone(),
            place,
            rule: rule.clone(),
        }));
        t.tcp.extend(tcp.iter().map(|r| -> (Age, ir::TcpRule) { (a.clone(), r.clone()) }));
    };
    if let Some(r) = places.get(MESH) {
        let bytes: Vec<_> = r.tls.iter().chain(&r.tcp).cloned().collect();
        services(v, hosts).iter().for_each(|key| add(key, &r.http, &bytes));
    }
    for (gateway, f, key) in hosts.fronts.bound(v) {
        use ir::ListenerProtocol::{Http, Https, Tcp, Tls};
        let Some(r) = places.get(&gateway) else { continue };
        match f.protocol {
            Http | Https => add(&key, &r.http, &[]),
            Tls if !f.ends_tls => add(&key, &[], &r.tls),
            Tls | Tcp => add(&key, &[], &r.tcp),
        }
    }
    bad
}

struct Convert<'a> {
    x: &'a Index<'a>,
    ns: &'a str,
    hosts: &'a Hosts,
    /// `mesh`, or a gateway's full name.
    place: &'a str,
}

impl Convert<'_> {
    /// Is a match with these gateways meant for here?
    fn is_here(&self, gateways: &[String]) -> bool {
        gateways.is_empty()
            || gateways
                .iter()
                .any(|g| if g == MESH { self.place == MESH } else { gateways::full_name(g, self.ns) == self.place })
    }

    /// The rules of one entry: one for each of its matches.
    fn http(&self, h: &VsHttp, at: &str, origin: &str, n: usize, depth: usize) -> Result<Vec<ir::HttpRule>, Bad> {
        let name = if h.name.is_empty() { format!("{origin} http[{n}]") } else { format!("{origin} {}", h.name) };
        let mut matches = vec![];
        for (i, m) in h.matches.iter().enumerate() {
            let at = format!("{at}.match[{i}]");
            let ports = if m.port == 0 { vec![] } else { vec![u32::from(m.port)] };
            let converted = self.matching(m, &at)?;
            if self.is_here(&m.gateways) {
                matches.push((ports, converted));
            }
        }
        if h.matches.is_empty() {
            matches.push((vec![], ir::Match::default()));
        }
        if let Some(d) = &h.delegate {
            return self.delegated(h, d, &matches, at, depth);
        }
        let mut out = Vec::with_capacity(matches.len());
        for (ports, m) in matches {
            let mut r = self.action(h, at, &m)?;
            r.origin.clone_from(&name);
            r.ports = ports;
            r.r#match = Some(m);
            out.push(r);
        }
        Ok(out)
    }

    fn action(&self, h: &VsHttp, at: &str, m: &ir::Match) -> Result<ir::HttpRule, Bad> {
        let kinds = [!h.route.is_empty(), h.redirect.is_some(), h.direct_response.is_some()];
        if kinds.iter().filter(|k| **k).count() != 1 {
            return Err((at.into(), "must have exactly one of route, redirect, directResponse, delegate".into()));
        }
        let mut r = ir::HttpRule {
            timeout_ms: optional_duration(h.timeout.as_deref(), || format!("{at}.timeout"))?,
            ..Default::default()
        };
        if let Some(x) = &h.redirect {
            r.redirect = Some(redirect(x, at)?);
        }
        if let Some(d) = &h.direct_response {
            r.response = Some(direct(d, at)?);
        }
        for (i, d) in h.route.iter().enumerate() {
            let at = format!("{at}.route[{i}]");
            // The only one takes everything, whatever its weight.
            let weight = if h.route.len() == 1 && d.weight == 0 { 100 } else { d.weight };
            r.destinations.push(self.destination(&d.destination, d.headers.as_ref(), weight, &at)?);
        }
        if h.route.len() > 1 && r.destinations.iter().all(|d| d.weight == 0) {
            return Err((format!("{at}.route"), "all weights are 0: give one of them a weight".into()));
        }
        if let Some(w) = &h.rewrite {
            r.rewrite = Some(rewrite(w, m, at)?);
        }
        if let Some(x) = &h.headers {
            let (request, answer, authority) = headers(x, at)?;
            (r.request, r.answer) = (request, answer);
            set_authority(&mut r.rewrite, authority);
        }
        for (i, x) in h.mirrors.iter().enumerate() {
            let at = format!("{at}.mirrors[{i}]");
            let part =
                x.percentage.as_ref().map_or(Ok(MILLION), |p| per_million(p.value, &format!("{at}.percentage")))?;
            let to = Some(self.destination(&x.destination, None, 1, &at)?);
            r.mirrors.push(ir::Mirror { to, per_million: part });
        }
        if let Some(d) = &h.mirror {
            let part = match (&h.mirror_percentage, h.mirror_percent) {
                (Some(p), _) => per_million(p.value, &format!("{at}.mirrorPercentage"))?,
                (None, Some(p)) => per_million(f64::from(p), &format!("{at}.mirrorPercent"))?,
                (None, None) => MILLION,
            };
            let to = Some(self.destination(d, None, 1, &format!("{at}.mirror"))?);
            r.mirrors.push(ir::Mirror { to, per_million: part });
        }
        r.fault = h.fault.as_ref().map(|f| fault(f, at)).transpose()?;
        r.cors = h.cors_policy.as_ref().map(|c| cors(c, at)).transpose()?;
        r.retry = match &h.retries {
            None => Some(ir::Retry::istio()),
            Some(x) if x.attempts == 0 => None,
            Some(x) => Some(retries(x, at)?),
        };
        Ok(r)
    }

    fn delegated(
        &self,
        h: &VsHttp,
        d: &VsDelegate,
        matches: &[(Vec<u32>, ir::Match)],
        at: &str,
        depth: usize,
    ) -> Result<Vec<ir::HttpRule>, Bad> {
        if !h.route.is_empty() || h.redirect.is_some() || h.direct_response.is_some() {
            return Err((at.into(), "must have exactly one of route, redirect, directResponse, delegate".into()));
        }
        if depth >= DELEGATES {
            return Err((format!("{at}.delegate"), "a delegate must not delegate further".into()));
        }
        let ns = if d.namespace.is_empty() { self.ns } else { &d.namespace };
        let found = self.x.virtual_services.iter().map(|(_, v)| v);
        let Some(v) = found
            .into_iter()
            .find(|v| v.metadata.namespace == ns && v.metadata.name == d.name && v.spec.hosts.is_empty())
        else {
            // It may come later.
            return Ok(vec![]);
        };
        let inner = Convert { x: self.x, ns, hosts: self.hosts, place: self.place };
        let mut out = vec![];
        for (i, h) in v.spec.http.iter().enumerate() {
            let origin = format!("VirtualService {ns}/{}", d.name);
            for r in inner.http(h, &format!("{at}.delegate.http[{i}]"), &origin, i, depth + 1)? {
                for (ports, m) in matches {
                    let both = r.r#match.clone().unwrap_or_default();
                    let Some(both) = merge(m, &both) else { continue };
                    let Some(ports) = narrow(ports, &r.ports) else { continue };
                    out.push(ir::HttpRule { ports, r#match: Some(both), ..r.clone() });
                }
            }
        }
        Ok(out)
    }

    fn matching(&self, m: &VsMatch, at: &str) -> Result<ir::Match, Bad> {
        let one = |t: &Option<StringMatch>, f: &str| {
            t.as_ref().map(|t| text(t, &format!("{at}.{f}"))).transpose().map(|t| t.filter(|t| t.kind.is_some()))
        };
        let mut out = ir::Match {
            path: one(&m.uri, "uri")?,
            ignore_path_case: m.ignore_uri_case,
            method: one(&m.method, "method")?,
            scheme: one(&m.scheme, "scheme")?,
            authority: one(&m.authority, "authority")?,
            source_labels: m.source_labels.clone(),
            source_namespace: m.source_namespace.clone(),
            ..Default::default()
        };
        for (list, field, invert) in [(&m.headers, "headers", false), (&m.without_headers, "withoutHeaders", true)] {
            for (name, t) in list {
                let at = format!("{at}.{field}[{name}]");
                let value = text(t, &at)?;
                // Pseudo headers are matched like the fields of their own.
                match name.as_str() {
                    ":method" if !invert => out.method = Some(value),
                    ":authority" if !invert => out.authority = Some(value),
                    ":path" if !invert => out.path = Some(value),
                    ":scheme" if !invert => out.scheme = Some(value),
                    // The same to proxies, which look at the authority for both.
                    ":authority" => {
                        let value = Some(present(value));
                        out.headers.push(ir::Named { name: "host".into(), value, invert });
                    }
                    _ => {
                        let name = header_name(name, at)?;
                        out.headers.push(ir::Named { name, value: Some(present(value)), invert });
                    }
                }
            }
        }
        for (name, t) in &m.query_params {
            let value = Some(present(text(t, &format!("{at}.queryParams[{name}]"))?));
            out.query.push(ir::Named { name: name.clone(), value, invert: false });
        }
        Ok(out)
    }

    fn destination(
        &self,
        d: &VsDestination,
        h: Option<&VsHeaders>,
        weight: u32,
        at: &str,
    ) -> Result<ir::Destination, Bad> {
        if d.host.is_empty() {
            return Err((format!("{at}.destination.host"), "is empty: name a service".into()));
        }
        let found = self.hosts.find(&d.host, self.ns);
        let (request, answer, authority) = match h {
            Some(h) => headers(h, at)?,
            None => (None, None, String::new()),
        };
        let mut rewrite = None;
        set_authority(&mut rewrite, authority);
        Ok(ir::Destination {
            service: found.map(ToString::to_string).unwrap_or_else(|| d.host.clone()),
            port: u32::from(d.port.number),
            subset: d.subset.clone(),
            weight,
            request,
            answer,
            refuse_status: if found.is_some() { 0 } else { NO_CLUSTER },
            rewrite,
            ..Default::default()
        })
    }

    fn destinations(&self, route: &[VsRoute], at: &str) -> Result<Vec<ir::Destination>, Bad> {
        let mut out = vec![];
        for (i, d) in route.iter().enumerate() {
            let weight = if route.len() == 1 && d.weight == 0 { 100 } else { d.weight };
            out.push(self.destination(&d.destination, None, weight, &format!("{at}.route[{i}]"))?);
        }
        if out.is_empty() {
            return Err((format!("{at}.route"), "is empty: name a destination".into()));
        }
        Ok(out)
    }

    fn tcp(&self, t: &VsTcp, at: &str, origin: &str) -> Result<Vec<ir::TcpRule>, Bad> {
        let destinations = self.destinations(&t.route, at)?;
        let none = VsTcpMatch::default();
        let matches: Vec<&VsTcpMatch> = if t.matches.is_empty() { vec![&none] } else { t.matches.iter().collect() };
        let rule = |m: &&VsTcpMatch| ir::TcpRule {
            origin: origin.into(),
            ports: if m.port == 0 { vec![] } else { vec![u32::from(m.port)] },
            source_labels: m.source_labels.clone(),
            source_namespace: m.source_namespace.clone(),
            destinations: destinations.clone(),
            sni: vec![],
        };
        Ok(matches.iter().filter(|m| self.is_here(&m.gateways)).map(rule).collect())
    }

    fn tls(&self, t: &VsTls, at: &str, origin: &str) -> Result<Vec<ir::TcpRule>, Bad> {
        let destinations = self.destinations(&t.route, at)?;
        let mut out = vec![];
        if t.matches.is_empty() {
            return Err((format!("{at}.match"), "is empty: name sniHosts".into()));
        }
        for (i, m) in t.matches.iter().enumerate() {
            if m.sni_hosts.is_empty() {
                return Err((format!("{at}.match[{i}].sniHosts"), "is empty: name at least one host".into()));
            }
            if self.is_here(&m.gateways) {
                out.push(ir::TcpRule {
                    origin: origin.into(),
                    ports: if m.port == 0 { vec![] } else { vec![u32::from(m.port)] },
                    source_labels: m.source_labels.clone(),
                    source_namespace: m.source_namespace.clone(),
                    destinations: destinations.clone(),
                    sni: m.sni_hosts.iter().map(|h| h.to_ascii_lowercase()).collect(),
                });
            }
        }
        Ok(out)
    }
}

/// An empty match of a header or a query parameter means that it is there.
fn present(t: ir::Text) -> ir::Text {
    if t.kind.is_none() { ir::Text { kind: Some(ir::text::Kind::Present(true)) } } else { t }
}

fn text(t: &StringMatch, at: &str) -> Result<ir::Text, Bad> {
    use ir::text::Kind;
    let kind = match (&t.exact, &t.prefix, &t.regex) {
        (None, None, None) => None,
        (Some(e), None, None) => Some(Kind::Exact(e.clone())),
        (None, Some(p), None) => Some(Kind::Prefix(p.clone())),
        (None, None, Some(r)) => Some(Kind::Regex(regex(r, format!("{at}.regex"))?)),
        _ => return Err((at.into(), "must have only one of exact, prefix, regex".into())),
    };
    Ok(ir::Text { kind })
}

/// Both must hold; None where they cannot.
fn merge(a: &ir::Match, b: &ir::Match) -> Option<ir::Match> {
    use ir::text::Kind;
    let same = |a: &Option<ir::Text>, b: &Option<ir::Text>| match (a, b) {
        (Some(a), Some(b)) if a != b => None,
        (a, b) => Some(a.clone().or_else(|| b.clone())),
    };
    let path = match (a.path.as_ref().and_then(|p| p.kind.as_ref()), b.path.as_ref().and_then(|p| p.kind.as_ref())) {
        (Some(Kind::Prefix(p)), Some(Kind::Exact(q) | Kind::Prefix(q))) if q.starts_with(p) => b.path.clone(),
        _ => same(&a.path, &b.path)?,
    };
    let mut out = ir::Match {
        path,
        ignore_path_case: a.ignore_path_case || b.ignore_path_case,
        method: same(&a.method, &b.method)?,
        scheme: same(&a.scheme, &b.scheme)?,
        authority: same(&a.authority, &b.authority)?,
        ..b.clone()
    };
    out.headers.extend(a.headers.iter().cloned());
    out.query.extend(a.query.iter().cloned());
    for (k, v) in &a.source_labels {
        if out.source_labels.insert(k.clone(), v.clone()).is_some_and(|old| old != *v) {
            return None;
        }
    }
    if !a.source_namespace.is_empty() {
        if !out.source_namespace.is_empty() && out.source_namespace != a.source_namespace {
            return None;
        }
        out.source_namespace.clone_from(&a.source_namespace);
    }
    Some(out)
}

fn narrow(a: &[u32], b: &[u32]) -> Option<Vec<u32>> {
    match (a, b) {
        ([], _) => Some(b.to_vec()),
        (_, []) => Some(a.to_vec()),
        _ => Some(a.iter().filter(|p| b.contains(p)).copied().collect::<Vec<_>>()).filter(|v| !v.is_empty()),
    }
}

type Changes = (Option<ir::HeaderChange>, Option<ir::HeaderChange>, String);

/// Changes of requests and answers, and the new authority, which Istio lets set as a header.
fn headers(h: &VsHeaders, at: &str) -> Result<Changes, Bad> {
    let mut authority = String::new();
    let mut change = |c: &VsHeaderChange, f: &str, request: bool| -> Result<Option<ir::HeaderChange>, Bad> {
        let mut out = ir::HeaderChange::default();
        for (k, v) in &c.set {
            if request && (k.eq_ignore_ascii_case("host") || k == ":authority") {
                authority.clone_from(v);
                continue;
            }
            out.set.push(header(k, v, format!("{at}.headers.{f}.set[{k}]"))?);
        }
        for (k, v) in &c.add {
            out.add.push(header(k, v, format!("{at}.headers.{f}.add[{k}]"))?);
        }
        for k in &c.remove {
            out.remove.push(header_name(k, format!("{at}.headers.{f}.remove"))?);
        }
        Ok((out != ir::HeaderChange::default()).then_some(out))
    };
    let request = change(&h.request, "request", true)?;
    let answer = change(&h.response, "response", false)?;
    Ok((request, answer, authority))
}

fn set_authority(r: &mut Option<ir::Rewrite>, authority: String) {
    if !authority.is_empty() {
        r.get_or_insert_default().authority = authority;
    }
}

fn rewrite(w: &VsRewrite, m: &ir::Match, at: &str) -> Result<ir::Rewrite, Bad> {
    use ir::{rewrite::Path, text::Kind};
    let path = match (&w.uri_regex_rewrite, w.uri.as_str()) {
        (Some(r), _) => Some(Path::Regex(ir::Regex {
            r#match: regex(&r.pattern, format!("{at}.rewrite.uriRegexRewrite.match"))?,
            rewrite: r.rewrite.clone(),
        })),
        (None, "") => None,
        // In place of what was matched: a prefix, or the whole.
        (None, uri) => Some(match m.path.as_ref().and_then(|p| p.kind.as_ref()) {
            Some(Kind::Exact(_) | Kind::Regex(_)) => Path::Full(uri.into()),
            _ => Path::Prefix(uri.into()),
        }),
    };
    Ok(ir::Rewrite { authority: w.authority.clone(), path })
}

fn redirect(r: &VsRedirect, at: &str) -> Result<ir::Redirect, Bad> {
    let at = format!("{at}.redirect");
    if !matches!(r.redirect_code, 0 | 301 | 302 | 303 | 307 | 308) {
        return Err((format!("{at}.redirectCode"), format!("{} is none of 301, 302, 303, 307, 308", r.redirect_code)));
    }
    if !matches!(r.derive_port.as_str(), "" | "FROM_PROTOCOL_DEFAULT" | "FROM_REQUEST_PORT") {
        return Err((
            format!("{at}.derivePort"),
            format!("{:?} is none of FROM_PROTOCOL_DEFAULT, FROM_REQUEST_PORT", r.derive_port),
        ));
    }
    Ok(ir::Redirect {
        code: u32::from(r.redirect_code),
        scheme: r.scheme.clone(),
        authority: r.authority.clone(),
        port: u32::from(r.port.unwrap_or(0)),
        request_port: r.derive_port == "FROM_REQUEST_PORT",
        path: (!r.uri.is_empty()).then(|| ir::redirect::Path::Full(r.uri.clone())),
    })
}

fn direct(d: &VsDirectResponse, at: &str) -> Result<ir::DirectResponse, Bad> {
    use base64::Engine;
    let at = format!("{at}.directResponse");
    if !(200..600).contains(&d.status) {
        return Err((format!("{at}.status"), format!("{} is no status: give one from 200 to 599", d.status)));
    }
    let body = match &d.body {
        None => vec![],
        Some(VsBody { string: Some(s), .. }) => s.clone().into_bytes(),
        Some(VsBody { bytes: Some(b), .. }) => base64::prelude::BASE64_STANDARD
            .decode(b)
            .map_err(|_| (format!("{at}.body.bytes"), "is no base64".to_string()))?,
        Some(_) => vec![],
    };
    Ok(ir::DirectResponse { status: u32::from(d.status), body })
}

pub(super) fn fault(f: &VsFault, at: &str) -> Result<ir::Fault, Bad> {
    let mut out = ir::Fault::default();
    // Without a percentage there is no fault (Istio).
    let part = |p: &Option<Percent>, old: Option<u32>, at: &str| match (p, old) {
        (Some(p), _) => per_million(p.value, at),
        (None, Some(p)) => per_million(f64::from(p), at),
        (None, None) => Ok(0),
    };
    if let Some(d) = &f.delay {
        let at = format!("{at}.fault.delay");
        let Some(t) = &d.fixed_delay else {
            return Err((
                format!("{at}.fixedDelay"),
                "is missing: exponentialDelay is not implemented (nor in Istio)".into(),
            ));
        };
        out.delay_ms = duration(t).map_err(|e| (format!("{at}.fixedDelay"), e))?;
        out.delay_per_million = part(&d.percentage, d.percent, &format!("{at}.percentage"))?;
    }
    if let Some(a) = &f.abort {
        let at = format!("{at}.fault.abort");
        match (a.http_status, &a.grpc_status) {
            (Some(s), _) if (200..600).contains(&s) => out.abort_status = u32::from(s),
            (Some(s), _) => {
                return Err((format!("{at}.httpStatus"), format!("{s} is no status: give one from 200 to 599")));
            }
            (None, Some(g)) => {
                let code = grpc_code(g).ok_or_else(|| {
                    (format!("{at}.grpcStatus"), format!("{g:?} is no gRPC status, such as UNAVAILABLE or 14"))
                })?;
                out.abort_grpc = Some(code);
            }
            (None, None) => return Err((at, "must have httpStatus or grpcStatus".into())),
        }
        out.abort_per_million = part(&a.percentage, a.percent, &format!("{at}.percentage"))?;
    }
    Ok(out)
}

fn grpc_code(text: &str) -> Option<u32> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let by_name = || NAMES.iter().position(|n| n.eq_ignore_ascii_case(text)).map(|n| n as u32);
    text.parse().ok().filter(|n| *n <= 16).or_else(by_name)
}

fn cors(c: &VsCors, at: &str) -> Result<ir::Cors, Bad> {
    let at = format!("{at}.corsPolicy");
    let mut origins = vec![];
    for (i, o) in c.allow_origins.iter().enumerate() {
        origins.push(text(o, &format!("{at}.allowOrigins[{i}]"))?);
    }
    // The old form: exact, or "*" for all.
    origins.extend(c.allow_origin.iter().map(|o| match o.as_str() {
        "*" => ir::Text { kind: Some(ir::text::Kind::Prefix(String::new())) },
        o => exact(o),
    }));
    let max_age = optional_duration(c.max_age.as_deref(), || format!("{at}.maxAge"))?;
    Ok(ir::Cors {
        origins,
        methods: c.allow_methods.clone(),
        headers: c.allow_headers.clone(),
        expose: c.expose_headers.clone(),
        max_age_s: c.max_age.is_some().then_some(max_age / 1000),
        credentials: c.allow_credentials,
        forward_unmatched: c.unmatched_preflights != "IGNORE",
    })
}

fn retries(r: &VsRetries, at: &str) -> Result<ir::Retry, Bad> {
    let at = format!("{at}.retries");
    let backoff = optional_duration(r.backoff.as_deref(), || format!("{at}.backoff"))?;
    let mut out = ir::Retry {
        attempts: r.attempts,
        per_try_ms: optional_duration(r.per_try_timeout.as_deref(), || format!("{at}.perTryTimeout"))?,
        backoff_ms: if backoff == 0 { 25 } else { backoff },
        same_host: r.retry_ignore_previous_hosts == Some(false),
        ..Default::default()
    };
    if r.retry_on.trim().is_empty() {
        let d = ir::Retry::istio();
        return Ok(ir::Retry { grpc: d.grpc, connect_failure: true, refused_stream: true, ..out });
    }
    for word in r.retry_on.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        match word {
            "5xx" => out.server_error = true,
            "gateway-error" => out.gateway_error = true,
            "reset" | "reset-before-request" => out.reset = true,
            "connect-failure" => out.connect_failure = true,
            "refused-stream" => out.refused_stream = true,
            "retriable-4xx" => out.retriable_4xx = true,
            // The list of codes is in the same field.
            "retriable-status-codes" | "retriable-headers" | "envoy-ratelimited" | "http3-post-connect-failure" => {}
            "cancelled" => out.grpc.push(1),
            "deadline-exceeded" => out.grpc.push(4),
            "resource-exhausted" => out.grpc.push(8),
            "internal" => out.grpc.push(13),
            "unavailable" => out.grpc.push(14),
            code => match code.parse() {
                Ok(c) if (100..600).contains(&c) => out.codes.push(c),
                _ => {
                    return Err((
                        format!("{at}.retryOn"),
                        format!(
                            "{word:?} is no condition; known are 5xx, gateway-error, reset, connect-failure, refused-stream, retriable-4xx, cancelled, deadline-exceeded, internal, resource-exhausted, unavailable, and status codes"
                        ),
                    ));
                }
            },
        }
    }
    Ok(out)
}
