//! Gateways: what their pods listen on, from Gateway API's Gateway and Istio's, and which hosts of routes go with which of it.

use super::{GATEWAY, Index, MESH, access, destination_rule, ir, telemetry};
use crate::convert::{GATEWAY_API, check, deploy, granted_secret, problem, selects, waypoint};
use ir::ListenerProtocol as Protocol;
use karst_manifest::{Problem, gatewayapi::ParentRef, kinds::*, parse::Located, traffic::GwServer};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What names of virtual hosts begin with: no name of a service does.
pub(crate) const VIRTUAL: char = '~';
/// Label of the pods of a Gateway.
pub(crate) const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// One thing that a gateway listens on.
pub(crate) struct Front {
    /// `Gateway/namespace/name/listener`; the names of its virtual hosts begin with it.
    pub(crate) id: String,
    of: Of,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) hosts: Vec<String>,
    /// TLS that ends here.
    pub(crate) ends_tls: bool,
    /// Kinds of routes that may be attached.
    pub(crate) kinds: Vec<&'static str>,
    /// Why it cannot be as it is: a reason of Gateway API and the words.
    pub(crate) refused: Option<(&'static str, String)>,
    pub(crate) conflict: Option<(&'static str, String)>,
    /// Why what it refers to cannot be used.
    pub(crate) unresolved: Option<(&'static str, String)>,
    certificates: Vec<ir::KeyPair>,
    client: ir::ClientCertificate,
    client_names: Vec<String>,
    modern: bool,
    redirect: bool,
}

/// Whose it is.
enum Of {
    Api { namespace: String, gateway: String, listener: String, allowed: RouteNamespaces },
    Istio { namespace: String, gateway: String, server: usize, from: Vec<(String, String)> },
}

impl Front {
    /// One for requests without TLS, to begin with.
    fn new(id: String, of: Of, port: u16, hosts: Vec<String>) -> Self {
        Self {
            id,
            of,
            port,
            protocol: Protocol::Http,
            hosts,
            ends_tls: false,
            kinds: vec![],
            refused: None,
            conflict: None,
            unresolved: None,
            certificates: vec![],
            client: ir::ClientCertificate::None,
            client_names: vec![],
            modern: false,
            redirect: false,
        }
    }

    /// Its TLS, without what is found for each pod.
    fn tls(&self) -> ir::Tls {
        ir::Tls {
            certificates: self.certificates.clone(),
            client: self.client as i32,
            client_roots: vec![],
            client_names: self.client_names.clone(),
            modern: self.modern,
        }
    }

    /// The resource with the routes for a host.
    fn key(&self, host: &str) -> Arc<str> {
        let host = if self.protocol == Protocol::Tcp { "*" } else { host };
        format!("{VIRTUAL}{}/{host}", self.id).into()
    }

    /// Does it take anything?
    pub(crate) fn works(&self) -> bool {
        self.refused.is_none()
            && self.conflict.is_none()
            && (self.unresolved.is_none() || !self.certificates.is_empty())
    }
}

/// Everything that gateways listen on.
#[derive(Default)]
pub(crate) struct Fronts(Vec<Front>);

/// Is this Gateway one of ours that is no waypoint?
pub(crate) fn is_ingress(x: &Index<'_>, g: &Gateway) -> bool {
    match x.classes.get(g.spec.gateway_class_name.as_str()) {
        Some(c) => c.spec.controller_name == deploy::INGRESS,
        // In files the class need not stand beside it.
        None => deploy::INGRESS_CLASSES.contains(&g.spec.gateway_class_name.as_str()),
    }
}

/// Is this a pod of a gateway? Then it decides about more than its own workload.
pub(crate) fn is_gateway(x: &Index<'_>, p: &Pod) -> bool {
    let l = &p.metadata.labels;
    l.contains_key(GATEWAY_NAME) || x.istio_gateways.iter().any(|(_, g)| selected(g, l))
}

fn selected(g: &IstioGateway, labels: &Labels) -> bool {
    !g.spec.selector.is_empty() && selects(&g.spec.selector, labels)
}

impl Fronts {
    pub(crate) fn new(x: &Index<'_>) -> Self {
        let mut all = vec![];
        let mut gateways: Vec<_> = x.gateways.values().filter(|g| is_ingress(x, g)).collect();
        gateways.sort_by_key(|g| (&g.metadata.namespace, &g.metadata.name));
        for g in gateways {
            let start = all.len();
            all.extend(g.spec.listeners.iter().map(|l| listener(x, g, l)));
            conflicts(&mut all[start..]);
        }
        for (_, g) in &x.istio_gateways {
            all.extend(g.spec.servers.iter().enumerate().map(|(i, s)| server(g, s, i)));
        }
        Self(all)
    }

    /// Those of a Gateway of Gateway API, in the order of its listeners.
    pub(crate) fn of<'a>(&'a self, ns: &'a str, name: &'a str) -> impl Iterator<Item = &'a Front> {
        self.0
            .iter()
            .filter(move |f| matches!(&f.of, Of::Api { namespace, gateway, .. } if namespace == ns && gateway == name))
    }

    /// Where a route with these host names is attached by a reference: what it is attached to, and the hosts there. None: the
    /// reference is to no Gateway of ours. An error is a reason of Gateway API and the words.
    #[allow(clippy::type_complexity)]
    pub(crate) fn attached<'a>(
        &'a self,
        x: &Index<'_>,
        kind: &str,
        ns: &str,
        names: &[String],
        p: &ParentRef,
    ) -> Option<Result<Vec<(&'a Front, Vec<String>)>, (&'static str, String)>> {
        if p.group.as_deref().unwrap_or(GATEWAY_API) != GATEWAY_API || p.kind.as_deref().unwrap_or(GATEWAY) != GATEWAY {
            return None;
        }
        let of = p.namespace.as_deref().unwrap_or(ns);
        let g = x.gateways.get(&(of, p.name.as_str()))?;
        if !is_ingress(x, g) {
            return None;
        }
        Some(self.attach(x, kind, ns, names, p, of))
    }

    #[allow(clippy::type_complexity)]
    fn attach<'a>(
        &'a self,
        x: &Index<'_>,
        kind: &str,
        ns: &str,
        names: &[String],
        p: &ParentRef,
        of: &str,
    ) -> Result<Vec<(&'a Front, Vec<String>)>, (&'static str, String)> {
        let what = format!("Gateway {of}/{}", p.name);
        let named = |f: &&Front| {
            let Of::Api { namespace, gateway, listener, .. } = &f.of else { return false };
            let section = p.section_name.as_ref().is_none_or(|s| s == listener);
            namespace == of && *gateway == p.name && section && p.port.is_none_or(|n| n == f.port)
        };
        let mut found: Vec<&Front> = self.0.iter().filter(named).collect();
        if found.is_empty() {
            return Err(("NoMatchingParent", format!("{what} has no such listener: see sectionName and port")));
        }
        found.retain(|f| f.kinds.contains(&kind) && admits(x, f, ns));
        if found.is_empty() {
            let text = format!("no listener of {what} allows a {kind} of namespace {ns}: see its allowedRoutes");
            return Err(("NotAllowedByListeners", text));
        }
        let fits = |f: &'a Front| {
            let hosts: BTreeSet<String> = match names {
                [] => f.hosts.iter().cloned().collect(),
                _ => names.iter().flat_map(|n| f.hosts.iter().filter_map(move |h| common(h, n))).collect(),
            };
            (!hosts.is_empty()).then(|| (f, hosts.into_iter().collect::<Vec<_>>()))
        };
        let all: Vec<_> = found.into_iter().filter_map(fits).collect();
        if all.is_empty() {
            let text = format!("no listener of {what} is for any of {names:?}");
            return Err(("NoMatchingListenerHostname", text));
        }
        Ok(all)
    }

    /// The resources with the routes of what is attached.
    pub(super) fn keys(&self, x: &Index<'_>, kind: &str, ns: &str, names: &[String], p: &ParentRef) -> Vec<Arc<str>> {
        let Some(Ok(all)) = self.attached(x, kind, ns, names, p) else { return vec![] };
        all.iter().flat_map(|(f, hosts)| hosts.iter().map(|h| f.key(h))).collect()
    }

    /// Where a VirtualService is bound: by the gateway's full name, what it is bound to, and the resource for its routes.
    pub(super) fn bound<'a>(&'a self, v: &'a VirtualService) -> Vec<(String, &'a Front, Arc<str>)> {
        let ns = v.metadata.namespace.as_str();
        let mut out: Vec<(String, &Front, Arc<str>)> = vec![];
        for name in v.spec.gateways.iter().filter(|g| *g != MESH) {
            let full = full_name(name, ns);
            for f in &self.0 {
                let Of::Istio { namespace, gateway, from, .. } = &f.of else { continue };
                if full.split_once('/') != Some((namespace, gateway)) {
                    continue;
                }
                let open = from.iter().filter(|(of, _)| of == "*" || of == ns || (of == "." && namespace == ns));
                for host in open.flat_map(|(_, h)| v.spec.hosts.iter().filter_map(|n| common(h, n))) {
                    let key = f.key(&host);
                    if !out.iter().any(|(_, _, k)| *k == key) {
                        out.push((full.clone(), f, key));
                    }
                }
            }
        }
        out
    }
}

/// A gateway's name with its namespace.
pub(super) fn full_name(name: &str, ns: &str) -> String {
    if name.contains('/') { name.to_string() } else { format!("{ns}/{name}") }
}

/// What both names stand for: the narrower one.
fn common(a: &str, b: &str) -> Option<String> {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let covers = |wide: &str, x: &str| {
        wide == "*" || wide == x || wide.strip_prefix('*').is_some_and(|s| x.len() > s.len() && x.ends_with(s))
    };
    match (covers(&a, &b), covers(&b, &a)) {
        (true, _) => Some(b),
        (_, true) => Some(a),
        _ => None,
    }
}

fn admits(x: &Index<'_>, f: &Front, namespace: &str) -> bool {
    let Of::Api { namespace: own, allowed, .. } = &f.of else { return false };
    waypoint::allows(x, allowed, own, namespace)
}

fn listener(x: &Index<'_>, g: &Gateway, l: &Listener) -> Front {
    let m = &g.metadata;
    let tls = l.tls.clone().unwrap_or_default();
    let passes = tls.mode.as_deref() == Some("Passthrough");
    let of = Of::Api {
        namespace: m.namespace.clone(),
        gateway: m.name.clone(),
        listener: l.name.clone(),
        allowed: l.allowed_routes.namespaces.clone(),
    };
    let host = l.hostname.clone().filter(|h| !h.is_empty()).unwrap_or("*".into());
    let mut f = Front::new(format!("Gateway/{}/{}/{}", m.namespace, m.name, l.name), of, l.port, vec![host]);
    let supported: &[&'static str] = match l.protocol.as_str() {
        "HTTP" => &["HTTPRoute", "GRPCRoute"],
        "HTTPS" => {
            (f.protocol, f.ends_tls) = (Protocol::Https, true);
            &["HTTPRoute", "GRPCRoute"]
        }
        "TLS" => {
            (f.protocol, f.ends_tls) = (Protocol::Tls, !passes);
            if passes { &["TLSRoute"] } else { &["TLSRoute", "TCPRoute"] }
        }
        "TCP" => {
            f.protocol = Protocol::Tcp;
            &["TCPRoute"]
        }
        other => {
            let text = format!("protocol {other:?} is none of HTTP, HTTPS, TLS, TCP");
            f.refused = Some(("UnsupportedProtocol", text));
            &[]
        }
    };
    f.kinds = supported.to_vec();
    if !l.allowed_routes.kinds.is_empty() {
        let asked = |k: &RouteKind| {
            let group = k.group.as_deref().unwrap_or(GATEWAY_API) == GATEWAY_API;
            supported.iter().find(|s| group && **s == k.kind).copied()
        };
        f.kinds = l.allowed_routes.kinds.iter().filter_map(asked).collect();
        if f.kinds.len() < l.allowed_routes.kinds.len() {
            let text = format!("allowedRoutes.kinds: a listener of protocol {} takes {supported:?}", l.protocol);
            f.unresolved = Some(("InvalidRouteKinds", text));
        }
    }
    if f.ends_tls {
        for r in &tls.certificate_refs {
            match pair(x, &m.namespace, r) {
                Ok(p) => f.certificates.push(p),
                Err(e) => f.unresolved = Some(e),
            }
        }
        if tls.certificate_refs.is_empty() {
            f.unresolved = Some(("InvalidCertificateRef", "tls.certificateRefs is empty: name a Secret".into()));
        }
    }
    f
}

fn pair(x: &Index<'_>, ns: &str, r: &SecretRef) -> Result<ir::KeyPair, (&'static str, String)> {
    const BAD: &str = "InvalidCertificateRef";
    let of = r.namespace.as_deref().unwrap_or(ns);
    if !matches!(r.group.as_deref(), None | Some("")) || !matches!(r.kind.as_deref(), None | Some("Secret")) {
        return Err((BAD, format!("certificateRefs: {:?} is no Secret", r.name)));
    }
    if of != ns && !granted_secret(x, ns, of, &r.name) {
        let text = format!("Secret {of}/{} is in another namespace: it needs a ReferenceGrant there", r.name);
        return Err(("RefNotPermitted", text));
    }
    let secret = x.secrets.get(&(of, r.name.as_str()));
    let secret = secret.ok_or_else(|| (BAD, format!("there is no Secret {of}/{}", r.name)))?;
    key_pair(secret).map_err(|e| (BAD, e))
}

/// The authority's certificates in a Secret, in Kubernetes' form or in Istio's.
pub(super) fn authority(s: &Secret) -> Option<Vec<u8>> {
    s.get("ca.crt").or_else(|| s.get("cacert"))
}

/// Certificate and key of a Secret, in Kubernetes' form or in Istio's.
fn key_pair(s: &Secret) -> Result<ir::KeyPair, String> {
    let name = format!("Secret {}/{}", s.metadata.namespace, s.metadata.name);
    let get = |a, b| s.get(a).or_else(|| s.get(b)).ok_or_else(|| format!("{name}: data[{a:?}] is missing"));
    let (chain, key) = (get("tls.crt", "cert")?, get("tls.key", "key")?);
    crate::tls::check_pair(&chain, &key).map_err(|e| format!("{name}: {e}"))?;
    Ok(ir::KeyPair { chain, key })
}

/// Listeners of one Gateway that cannot be told apart, or that cannot share a port.
fn conflicts(all: &mut [Front]) {
    let web = |p: Protocol| matches!(p, Protocol::Https | Protocol::Tls);
    for i in 0..all.len() {
        for j in 0..all.len() {
            let (a, b) = (&all[i], &all[j]);
            if i == j || a.port != b.port || a.refused.is_some() || b.refused.is_some() {
                continue;
            }
            let found = if a.protocol != b.protocol && !(web(a.protocol) && web(b.protocol)) {
                Some(("ProtocolConflict", format!("port {} is used with another protocol, too", a.port)))
            } else if a.hosts == b.hosts || a.protocol == Protocol::Tcp {
                Some(("HostnameConflict", format!("another listener is for {:?} on port {}, too", a.hosts[0], a.port)))
            } else {
                None
            };
            if found.is_some() {
                all[i].conflict = found;
            }
        }
    }
}

fn server(g: &IstioGateway, s: &GwServer, n: usize) -> Front {
    let m = &g.metadata;
    let tls = s.tls.clone().unwrap_or_default();
    let protocol = s.port.protocol.to_ascii_uppercase();
    let mode = tls.mode.as_deref().unwrap_or("PASSTHROUGH");
    let passes = mode == "PASSTHROUGH";
    let from: Vec<(String, String)> = s
        .hosts
        .iter()
        .map(|h| match h.split_once('/') {
            Some((ns, h)) => (ns.to_string(), h.to_ascii_lowercase()),
            None => ("*".to_string(), h.to_ascii_lowercase()),
        })
        .collect();
    let hosts = from.iter().map(|(_, h)| h.clone()).collect();
    let of = Of::Istio { namespace: m.namespace.clone(), gateway: m.name.clone(), server: n, from };
    let mut f = Front::new(format!("istio/{}/{}/{n}", m.namespace, m.name), of, s.port.number, hosts);
    f.client_names = tls.subject_alt_names;
    f.modern = tls.min_protocol_version.as_deref() == Some("TLSV1_3");
    f.redirect = tls.https_redirect;
    match protocol.as_str() {
        "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => {}
        "HTTPS" if !passes => (f.protocol, f.ends_tls) = (Protocol::Https, true),
        "HTTPS" | "TLS" => (f.protocol, f.ends_tls) = (Protocol::Tls, !passes),
        "TCP" | "MONGO" if s.tls.is_some() => (f.protocol, f.ends_tls) = (Protocol::Tls, !passes),
        "TCP" | "MONGO" => f.protocol = Protocol::Tcp,
        _ => {}
    }
    f.client = match mode {
        "MUTUAL" => ir::ClientCertificate::Required,
        "OPTIONAL_MUTUAL" => ir::ClientCertificate::Optional,
        _ => ir::ClientCertificate::None,
    };
    let bad = check::server(s, &format!("spec.servers[{n}]")).into_iter().next();
    f.refused = bad.map(|(field, text)| ("Invalid", format!("{field}: {text}")));
    f
}

/// The Secrets that a server of Istio's Gateway names are in the namespace of the pod.
fn credentials(
    x: &Index<'_>,
    s: &GwServer,
    n: usize,
    ns: &str,
    f: &Front,
    out: &mut ir::Tls,
) -> Result<(), (String, String)> {
    let t = s.tls.clone().unwrap_or_default();
    let field = |f: &str| format!("spec.servers[{n}].tls.{f}");
    let get = |name: &str| x.secrets.get(&(ns, name)).copied();
    let names: Vec<&String> =
        if t.credential_names.is_empty() { vec![&t.credential_name] } else { t.credential_names.iter().collect() };
    for name in &names {
        let secret = get(name).ok_or_else(|| {
            (
                field("credentialName"),
                format!("there is no Secret {ns}/{name}: it must be in the namespace of the gateway's pods"),
            )
        })?;
        out.certificates.push(key_pair(secret).map_err(|e| (field("credentialName"), e))?);
    }
    if f.client == ir::ClientCertificate::None {
        return Ok(());
    }
    let first = names[0].trim_end_matches("-cacert");
    let own = if t.ca_cert_credential_name.is_empty() {
        format!("{first}-cacert")
    } else {
        t.ca_cert_credential_name.clone()
    };
    let roots = get(&own).and_then(authority).or_else(|| get(first).and_then(authority));
    out.client_roots = roots.ok_or_else(|| {
        (
            field("credentialName"),
            format!(
                "neither Secret {ns}/{own} nor {ns}/{first} has data[\"ca.crt\"], which mode {} needs",
                t.mode.as_deref().unwrap_or_default()
            ),
        )
    })?;
    Ok(())
}

/// What each pod of a gateway listens on, by `namespace/name` of the pod.
pub(crate) fn compile(x: &Index<'_>, problems: &mut Vec<Problem>) -> BTreeMap<String, Arc<ir::Gateway>> {
    for (at, g) in &x.istio_gateways {
        problems.extend(check::istio_gateway(&g.spec).into_iter().map(|(field, text)| problem(at, field, text)));
    }
    let told_of = telemetry::usable(x, problems);
    let fronts = Fronts::new(x);
    let mut out = BTreeMap::new();
    let shown = |d: &DestinationRule| destination_rule::credentials(d).next().is_some();
    let for_pods = |g: &Gateway| waypoint::is_waypoint(x, g) && waypoint::takes(x, g, waypoint::Traffic::Workload);
    let none = fronts.0.is_empty() && x.telemetry.is_empty() && !x.gateways.values().copied().any(for_pods);
    if none && !x.destination_rules.iter().any(|(_, d)| shown(d)) {
        return out;
    }
    // A label is shorter than the longest name.
    let named: BTreeMap<(String, String), &Gateway> = x
        .gateways
        .values()
        .map(|g| ((g.metadata.namespace.clone(), deploy::shortened(&g.metadata.name)), *g))
        .collect();
    let mut told: BTreeSet<(String, String)> = BTreeSet::new();
    for f in &fronts.0 {
        let Of::Api { namespace, gateway, listener, .. } = &f.of else { continue };
        let at = x.gateways_at.get(&(namespace.as_str(), gateway.as_str()));
        for (_, text) in [&f.refused, &f.conflict, &f.unresolved].into_iter().flatten() {
            problems.extend(at.map(|at| problem(at, format!("spec.listeners[{listener}]"), text.clone())));
        }
    }
    for p in x.pods.iter().filter(|p| is_gateway(x, p)) {
        let (m, mut g) = (&p.metadata, ir::Gateway::default());
        let own = m.labels.get(GATEWAY_NAME).and_then(|n| named.get(&(m.namespace.clone(), n.clone())).copied());
        let mut mine: Vec<(&Front, ir::Tls)> = vec![];
        for f in fronts.0.iter().filter(|f| f.works()) {
            match &f.of {
                Of::Api { namespace, gateway, .. } => {
                    if own.is_some_and(|g| g.metadata.namespace == *namespace && g.metadata.name == *gateway) {
                        mine.push((f, f.tls()));
                    }
                }
                Of::Istio { namespace, gateway, server: n, .. } => {
                    let Some((at, i)) = istio(x, namespace, gateway) else { continue };
                    if !selected(i, &m.labels) {
                        continue;
                    }
                    let mut tls = f.tls();
                    if f.ends_tls
                        && let Err((field, text)) = credentials(x, &i.spec.servers[*n], *n, &m.namespace, f, &mut tls)
                    {
                        if told.insert((f.id.clone(), text.clone())) {
                            problems.push(problem(at, field, text));
                        }
                        continue;
                    }
                    mine.push((f, tls));
                }
            }
        }
        // On one port only one of: requests, TLS, bytes. The first decides.
        let class = |p: Protocol| match p {
            Protocol::Http => 0,
            Protocol::Https | Protocol::Tls => 1,
            Protocol::Tcp => 2,
        };
        let mut ports: BTreeMap<u16, u8> = BTreeMap::new();
        for (f, tls) in mine {
            if *ports.entry(f.port).or_insert(class(f.protocol)) != class(f.protocol) {
                continue;
            }
            g.listeners.push(ir::Listener {
                origin: f.id.clone(),
                routes: format!("{VIRTUAL}{}", f.id),
                port: u32::from(f.port),
                protocol: f.protocol as i32,
                hosts: f.hosts.clone(),
                tls: f.ends_tls.then_some(tls),
                redirect: f.redirect,
            });
        }
        if !g.listeners.is_empty() {
            g.access = access::of_pod(x, p, own, false);
        } else if own.is_some_and(for_pods) {
            g.access = access::of_pod(x, p, own, true);
        }
        // Those of its own namespace; who writes rules elsewhere does not decide where they are shown.
        let near = |d: &&DestinationRule| [&m.namespace, &x.mesh.root_namespace].contains(&&d.metadata.namespace);
        let rules = x.destination_rules.iter().map(|(_, d)| *d).filter(near);
        for name in rules.flat_map(destination_rule::credentials) {
            let pair = x.secrets.get(&(m.namespace.as_str(), name)).and_then(|s| key_pair(s).ok());
            g.credentials.extend(pair.map(|k| (name.to_string(), k)));
        }
        let client = own.is_none_or(|g| is_ingress(x, g));
        g.telemetry = telemetry::of_pod(x, &told_of, p, own, client);
        if g != ir::Gateway::default() {
            out.insert(format!("{}/{}", m.namespace, m.name), Arc::new(g));
        }
    }
    out
}

fn istio<'a>(x: &Index<'a>, ns: &str, name: &str) -> Option<(&'a Located, &'a IstioGateway)> {
    x.istio_gateways.iter().find(|(_, g)| g.metadata.namespace == ns && g.metadata.name == name).copied()
}
