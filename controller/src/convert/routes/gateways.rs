//! Gateways: what their pods listen on, from Gateway API's Gateway and Istio's, and which hosts of routes go with which of it.
//!
//! Ports of both are those of the Services that select the pods, which listen where the Services send what comes there. What
//! servers of Istio's API take without TLS at one port of a pod shares its virtual hosts, whichever Gateways they are of.

use super::{
    Export, GATEWAY, MESH, Objects, access, address, age, closeness, destination_rule, full_host, ir, telemetry,
};
use crate::convert::{GATEWAY_API, check, deploy, granted_secret, problem, selects, waypoint, workload};
use ir::ListenerProtocol as Protocol;
pub(crate) use karst_manifest::kinds::GATEWAY_NAME;
use karst_manifest::{Problem, gatewayapi::ParentRef, kinds::*, parse::Located, traffic::GwServer};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// What names of virtual hosts begin with: no name of a service does.
pub(crate) const VIRTUAL: char = '~';

/// One thing that a gateway listens on.
pub(crate) struct GatewayListener {
    /// `Gateway/namespace/name/listener`; the names of its virtual hosts begin with it.
    pub(crate) id: String,
    parent: ListenerParent,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) hosts: Vec<String>,
    /// TLS that ends here.
    pub(crate) terminates_tls: bool,
    /// Its clients are to show certificates, and it is of Gateway API, where that cannot be.
    asks: bool,
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
    min_tls13: bool,
    redirect: bool,
}

/// Whose it is.
enum ListenerParent {
    Api { namespace: String, gateway: String, listener: String, allowed: RouteNamespaces },
    Istio { namespace: String, gateway: String, server: usize, from: Vec<(String, String)> },
}

impl GatewayListener {
    /// One for requests without TLS, to begin with.
    fn new(id: String, parent: ListenerParent, port: u16, hosts: Vec<String>) -> Self {
        Self {
            id,
            parent,
            port,
            protocol: Protocol::Http,
            hosts,
            terminates_tls: false,
            asks: false,
            kinds: vec![],
            refused: None,
            conflict: None,
            unresolved: None,
            certificates: vec![],
            client: ir::ClientCertificate::None,
            client_names: vec![],
            min_tls13: false,
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
            modern: self.min_tls13,
        }
    }

    /// The resource with the routes for a host, of those whose names begin so.
    fn key(&self, routes: &str, host: &str) -> Arc<str> {
        let host = if self.protocol == Protocol::Tcp { "*" } else { host };
        format!("{routes}/{host}").into()
    }

    /// For people.
    fn name(&self) -> String {
        match &self.parent {
            ListenerParent::Api { namespace, gateway, listener, .. } => {
                format!("listener {listener} of Gateway {namespace}/{gateway}")
            }
            ListenerParent::Istio { namespace, gateway, server, .. } => {
                format!("spec.servers[{server}] of Gateway {namespace}/{gateway}")
            }
        }
    }

    /// What the names of the virtual hosts of a listener of Gateway API begin with.
    fn routes(&self) -> String {
        format!("{VIRTUAL}{}", self.id)
    }

    /// Does it take anything?
    pub(crate) fn works(&self) -> bool {
        self.refused.is_none()
            && self.conflict.is_none()
            && (self.unresolved.is_none() || !self.certificates.is_empty())
    }
}

/// What shares virtual hosts: a server of Istio's API, or all servers for requests without TLS at one port of like pods (Istio
/// merges these over all Gateways). Pods of each namespace have their own: routes are exported to namespaces.
#[derive(Clone, PartialEq)]
pub(in crate::convert) struct VirtualHostScope {
    /// The names of the virtual hosts begin so. It stays when Gateways come and go: what is served goes on to be.
    routes: String,
    /// That of the pods.
    namespace: String,
    /// Indices into all listeners.
    listeners: Vec<usize>,
}

/// A listener at a pod.
struct Served {
    listener: usize,
    /// Where the pod listens.
    port: u16,
    /// What the names of its virtual hosts begin with.
    routes: String,
}

/// A front that its pods cannot be reached at, or have no port for.
pub(crate) struct Unmapped {
    listener: usize,
    /// Its port is none of the Services' that select the pods, or another front has the pods' port.
    pub(crate) reason: &'static str,
    pub(crate) text: String,
}

const NOT_IN_SERVICE: &str = "PortNotInService";
const TAKEN: &str = "PortConflict";

/// Everything that gateways listen on.
#[derive(Default)]
pub(crate) struct GatewayListeners {
    all: Vec<GatewayListener>,
    pub(super) scopes: Vec<VirtualHostScope>,
    /// Of the pods of gateways, by [`address`].
    pods: HashMap<usize, Vec<Served>>,
    unmapped: Vec<Unmapped>,
}

/// Do gateways take a VirtualService?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// None takes any of its hosts.
    No,
    /// One would, but it is exported to none of their pods.
    NotExported,
    Yes,
}

/// The Gateways that a VirtualService names, and its hosts.
struct Named<'a> {
    namespace: &'a str,
    gateways: Vec<String>,
    hosts: Vec<String>,
}

impl<'a> Named<'a> {
    fn of(objects: &Objects<'_>, v: &'a VirtualService) -> Self {
        let namespace = v.metadata.namespace.as_str();
        let hosts = v.spec.hosts.iter().map(|h| full_host(h, namespace, &objects.mesh.cluster_domain)).collect();
        let gateways = v.spec.gateways.iter().filter(|g| *g != MESH).map(|g| full_name(g, namespace)).collect();
        Self { namespace, gateways, hosts }
    }

    /// Those of its hosts that a server takes, if it is one of this Gateway.
    fn hosts_at(&self, f: &GatewayListener, full: &str) -> impl Iterator<Item = String> {
        let (namespace, from): (&str, &[(String, String)]) = match &f.parent {
            ListenerParent::Istio { namespace, gateway, from, .. }
                if full.split_once('/') == Some((namespace, gateway)) =>
            {
                (namespace, from)
            }
            ListenerParent::Istio { .. } | ListenerParent::Api { .. } => ("", &[]),
        };
        let own = self.namespace;
        let open = from.iter().filter(move |(of, _)| of == "*" || of == own || (of == "." && namespace == own));
        open.flat_map(|(_, h)| self.hosts.iter().filter_map(|n| common(h, n)))
    }
}

/// Where a VirtualService is bound.
pub(super) struct Bound<'a> {
    /// Full name of the gateway.
    pub(super) gateway: String,
    pub(super) listener: &'a GatewayListener,
    /// The resource for its routes.
    pub(super) key: Arc<str>,
}

/// Is this Gateway one of ours that is no waypoint?
pub(crate) fn is_ingress(objects: &Objects<'_>, g: &Gateway) -> bool {
    match objects.classes.get(g.spec.gateway_class_name.as_str()) {
        Some(c) => c.spec.controller_name == deploy::INGRESS,
        // In files the class need not stand beside it.
        None => deploy::INGRESS_CLASSES.contains(&g.spec.gateway_class_name.as_str()),
    }
}

/// Is this a pod of a gateway? Then it decides about more than its own workload.
pub(crate) fn is_gateway(objects: &Objects<'_>, p: &Pod) -> bool {
    let l = &p.metadata.labels;
    l.contains_key(GATEWAY_NAME) || objects.istio_gateways.iter().any(|(_, g)| selected(g, l))
}

fn selected(g: &IstioGateway, labels: &Labels) -> bool {
    !g.spec.selector.is_empty() && selects(&g.spec.selector, labels)
}

impl GatewayListeners {
    fn new(objects: &Objects<'_>) -> Self {
        let mut all = vec![];
        let mut gateways: Vec<_> = objects.gateways.values().filter(|g| is_ingress(objects, g)).collect();
        gateways.sort_by_key(|g| (&g.metadata.namespace, &g.metadata.name));
        for g in gateways {
            let start = all.len();
            all.extend(g.spec.listeners.iter().map(|l| listener(objects, g, l)));
            let own = &mut all[start..];
            unasked(own);
            conflicts(own);
        }
        // Of servers that cannot share a port the older one counts.
        let mut istio: Vec<_> = objects.istio_gateways.iter().map(|(_, g)| *g).collect();
        istio.sort_by_key(|g| age(&g.metadata));
        for g in istio {
            all.extend(g.spec.servers.iter().enumerate().map(|(i, s)| server(g, s, i)));
        }
        Self { all, ..Self::default() }
    }

    /// The same, with the pods that they are served by.
    pub(crate) fn with_pods(objects: &Objects<'_>) -> Self {
        let mut out = Self::new(objects);
        if out.is_idle(objects) {
            return out;
        }
        let (named, mut scopes) = (by_label(objects), BTreeMap::<String, VirtualHostScope>::new());
        let mut unmapped: BTreeMap<usize, Unmapped> = BTreeMap::new();
        for p in &objects.pods {
            let m = &p.metadata;
            let selecting = objects.istio_gateways.iter().filter(|(_, g)| selected(g, &m.labels));
            let istio: BTreeSet<(&str, &str)> =
                selecting.map(|(_, g)| (g.metadata.namespace.as_str(), g.metadata.name.as_str())).collect();
            if istio.is_empty() && !m.labels.contains_key(GATEWAY_NAME) {
                continue;
            }
            let own = of_pod(&named, p).map(|g| (g.metadata.namespace.as_str(), g.metadata.name.as_str()));
            let its = |f: &GatewayListener| match &f.parent {
                ListenerParent::Api { namespace, gateway, .. } => own == Some((namespace.as_str(), gateway.as_str())),
                ListenerParent::Istio { namespace, gateway, .. } => {
                    istio.contains(&(namespace.as_str(), gateway.as_str()))
                }
            };
            let (mut served, mut classes) = (vec![], BTreeMap::new());
            for (i, f) in out.all.iter().enumerate().filter(|(_, f)| f.works() && its(f)) {
                let (ports, problem) = ports(objects, p, f.port);
                if let Some(text) = problem {
                    unmapped.entry(i).or_insert(Unmapped { listener: i, reason: NOT_IN_SERVICE, text });
                }
                for port in ports {
                    // On one port only one of: requests, TLS, bytes. The first decides.
                    let (class, first) = *classes.entry(port).or_insert((class(f.protocol), i));
                    if class != self::class(f.protocol) {
                        let other = out.all.get(first).map_or(String::new(), GatewayListener::name);
                        let text = format!(
                            "maps to port {port} of pod {}/{}, which {other} already uses with another protocol: use another port [KARST-0507]",
                            m.namespace, m.name
                        );
                        unmapped.entry(i).or_insert(Unmapped { listener: i, reason: TAKEN, text });
                        continue;
                    }
                    let routes = match (&f.parent, f.protocol) {
                        (ListenerParent::Api { .. }, _) => f.routes(),
                        (ListenerParent::Istio { .. }, Protocol::Http) => {
                            format!("{VIRTUAL}istio-http/{}/{:x}/{port}", m.namespace, fingerprint(objects, p))
                        }
                        (ListenerParent::Istio { .. }, Protocol::Https | Protocol::Tls | Protocol::Tcp) => {
                            format!("{}/{}", f.routes(), m.namespace)
                        }
                    };
                    if matches!(f.parent, ListenerParent::Istio { .. }) {
                        let new = || VirtualHostScope {
                            routes: routes.clone(),
                            namespace: m.namespace.clone(),
                            listeners: vec![],
                        };
                        let scope = scopes.entry(routes.clone()).or_insert_with(new);
                        if !scope.listeners.contains(&i) {
                            scope.listeners.push(i);
                        }
                    }
                    served.push(Served { listener: i, port, routes });
                }
            }
            out.pods.insert(address(*p), served);
        }
        out.scopes = scopes.into_values().collect();
        // In the order of the listeners, whatever pods came first.
        out.scopes.iter_mut().for_each(|p| p.listeners.sort_unstable());
        out.unmapped = unmapped.into_values().collect();
        out
    }

    /// Is there nothing that a gateway's pod could be told?
    fn is_idle(&self, objects: &Objects<'_>) -> bool {
        let shown = |d: &DestinationRule| destination_rule::credentials(d).next().is_some();
        let for_pods =
            |g: &Gateway| waypoint::is_waypoint(objects, g) && waypoint::takes(objects, g, waypoint::Traffic::Workload);
        self.all.is_empty()
            && objects.telemetry.is_empty()
            && !objects.gateways.values().copied().any(for_pods)
            && !objects.destination_rules.iter().any(|(_, d)| shown(d))
    }

    /// Which servers of an Istio Gateway listen where no Service sends anything, or have no port, and what to do.
    pub(crate) fn unmapped<'a>(&'a self, ns: &'a str, name: &'a str) -> impl Iterator<Item = (usize, &'a Unmapped)> {
        self.unmapped.iter().filter_map(move |u| match &self.all.get(u.listener)?.parent {
            ListenerParent::Istio { namespace, gateway, server, .. } if namespace == ns && gateway == name => {
                Some((*server, u))
            }
            _ => None,
        })
    }

    /// Why a pod does not serve a listener of Gateway API: another one has its port there.
    pub(crate) fn taken_port(&self, f: &GatewayListener) -> Option<&str> {
        let it = |u: &&Unmapped| u.reason == TAKEN && self.all.get(u.listener).is_some_and(|o| o.id == f.id);
        self.unmapped.iter().find(it).map(|u| u.text.as_str())
    }

    /// Those of a Gateway of Gateway API, in the order of its listeners.
    pub(crate) fn of<'a>(&'a self, ns: &'a str, name: &'a str) -> impl Iterator<Item = &'a GatewayListener> {
        self.all
            .iter()
            .filter(move |f| matches!(&f.parent, ListenerParent::Api { namespace, gateway, .. } if namespace == ns && gateway == name))
    }

    /// Where a route with these host names is attached by a reference: what it is attached to, and the hosts there. None: the
    /// reference is to no Gateway of ours. An error is a reason of Gateway API and the words.
    #[allow(clippy::type_complexity, reason = "the type says what is attached, or the reason and the words")]
    pub(crate) fn attached<'a>(
        &'a self,
        objects: &Objects<'_>,
        kind: &str,
        ns: &str,
        names: &[String],
        p: &ParentRef,
    ) -> Option<Result<Vec<(&'a GatewayListener, Vec<String>)>, (&'static str, String)>> {
        if p.group.as_deref().unwrap_or(GATEWAY_API) != GATEWAY_API || p.kind.as_deref().unwrap_or(GATEWAY) != GATEWAY {
            return None;
        }
        let of = p.namespace.as_deref().unwrap_or(ns);
        let g = objects.gateways.get(&(of, p.name.as_str()))?;
        if !is_ingress(objects, g) {
            return None;
        }
        Some(self.attach(objects, kind, ns, names, p, of))
    }

    #[allow(clippy::type_complexity, reason = "the type says what is attached, or the reason and the words")]
    fn attach<'a>(
        &'a self,
        objects: &Objects<'_>,
        kind: &str,
        ns: &str,
        names: &[String],
        p: &ParentRef,
        of: &str,
    ) -> Result<Vec<(&'a GatewayListener, Vec<String>)>, (&'static str, String)> {
        let what = format!("Gateway {of}/{}", p.name);
        let named = |f: &&GatewayListener| {
            let ListenerParent::Api { namespace, gateway, listener, .. } = &f.parent else { return false };
            let section = p.section_name.as_ref().is_none_or(|s| s == listener);
            namespace == of && *gateway == p.name && section && p.port.is_none_or(|n| n == f.port)
        };
        let mut found: Vec<&GatewayListener> = self.all.iter().filter(named).collect();
        if found.is_empty() {
            return Err((
                "NoMatchingParent",
                format!("{what} has no matching listener: check sectionName and port [KARST-0312]"),
            ));
        }
        found.retain(|f| f.kinds.contains(&kind) && admits(objects, f, ns));
        if found.is_empty() {
            let text = format!(
                "no listener of {what} allows a {kind} from namespace {ns}: check its allowedRoutes [KARST-0313]"
            );
            return Err(("NotAllowedByListeners", text));
        }
        let fits = |f: &'a GatewayListener| {
            let hosts: BTreeSet<String> = match names {
                [] => f.hosts.iter().cloned().collect(),
                _ => names.iter().flat_map(|n| f.hosts.iter().filter_map(move |h| common(h, n))).collect(),
            };
            (!hosts.is_empty()).then(|| (f, hosts.into_iter().collect::<Vec<_>>()))
        };
        let all: Vec<_> = found.into_iter().filter_map(fits).collect();
        if all.is_empty() {
            let text = format!("no listener of {what} matches any of the host names {names:?} [KARST-0314]");
            return Err(("NoMatchingListenerHostname", text));
        }
        Ok(all)
    }

    /// The resources with the routes of what is attached, and how closely the route's own names fit each.
    pub(super) fn keys(
        &self,
        objects: &Objects<'_>,
        kind: &str,
        ns: &str,
        names: &[String],
        p: &ParentRef,
    ) -> Vec<(Arc<str>, usize)> {
        let Some(Ok(all)) = self.attached(objects, kind, ns, names, p) else { return vec![] };
        let fit = |f: &GatewayListener, host: &str| {
            let fits = |n: &&String| f.hosts.iter().any(|h| common(h, n).as_deref() == Some(host));
            names.iter().filter(fits).map(|n| closeness(n)).max().unwrap_or(0)
        };
        let of = |(f, hosts): &(&GatewayListener, Vec<String>)| -> Vec<(Arc<str>, usize)> {
            hosts.iter().map(|h| (f.key(&f.routes(), h), fit(f, h))).collect()
        };
        all.iter().flat_map(of).collect()
    }

    /// Where a VirtualService is bound, if it is exported to there.
    pub(super) fn bound<'a>(&'a self, objects: &Objects<'_>, v: &VirtualService) -> Vec<Bound<'a>> {
        let (export, named) = (Export::of_virtual_service(objects, v), Named::of(objects, v));
        let mut out: Vec<Bound<'a>> = vec![];
        for full in &named.gateways {
            for scope in self.scopes.iter().filter(|p| export.is_for(&p.namespace)) {
                for f in scope.listeners.iter().filter_map(|i| self.all.get(*i)) {
                    for host in named.hosts_at(f, full) {
                        let key = f.key(&scope.routes, &host);
                        if !out.iter().any(|b| b.key == key && std::ptr::eq(b.listener, f)) {
                            out.push(Bound { gateway: full.clone(), listener: f, key });
                        }
                    }
                }
            }
        }
        out
    }

    /// Does a Gateway that it names take one of its hosts, and may the pods of one that does have its routes? (Where there are no
    /// pods yet, they may.)
    pub(super) fn taken(&self, objects: &Objects<'_>, v: &VirtualService) -> Taken {
        let (export, named) = (Export::of_virtual_service(objects, v), Named::of(objects, v));
        let takes = |f: &GatewayListener| named.gateways.iter().any(|full| named.hosts_at(f, full).next().is_some());
        let listeners: BTreeSet<usize> = (0..).zip(&self.all).filter(|(_, f)| takes(f)).map(|(i, _)| i).collect();
        let mut scopes = self.scopes.iter().filter(|p| p.listeners.iter().any(|i| listeners.contains(i))).peekable();
        match (listeners.is_empty(), scopes.peek().is_none() || scopes.any(|p| export.is_for(&p.namespace))) {
            (true, _) => Taken::No,
            (false, false) => Taken::NotExported,
            (false, true) => Taken::Yes,
        }
    }
}

/// What one port of a pod takes: requests, TLS, or bytes.
fn class(p: Protocol) -> u8 {
    match p {
        Protocol::Http => 0,
        Protocol::Https | Protocol::Tls => 1,
        Protocol::Tcp => 2,
    }
}

/// A gateway's name with its namespace, as Istio reads it: `name`, `namespace/name`, `./name`, `name.namespace` and what may follow
/// that (`.svc.cluster.local`).
pub(super) fn full_name(name: &str, ns: &str) -> String {
    if let Some((of, name)) = name.split_once('/') {
        return format!("{}/{name}", if of == "." { ns } else { of });
    }
    match name.split_once('.') {
        Some((name, rest)) => format!("{}/{name}", rest.split('.').next().unwrap_or(rest)),
        None => format!("{ns}/{name}"),
    }
}

/// Gateways by namespace and the label of their pods. (A label is shorter than the longest name.)
fn by_label<'a>(objects: &Objects<'a>) -> BTreeMap<(String, String), &'a Gateway> {
    let one = |g: &&'a Gateway| ((g.metadata.namespace.clone(), deploy::shortened(&g.metadata.name)), *g);
    objects.gateways.values().map(one).collect()
}

fn of_pod<'a>(named: &BTreeMap<(String, String), &'a Gateway>, p: &Pod) -> Option<&'a Gateway> {
    let label = p.metadata.labels.get(GATEWAY_NAME)?;
    named.get(&(p.metadata.namespace.clone(), label.clone())).copied()
}

/// Of the labels by which Services and Gateways select a pod: pods that are alike in these have the same servers at the same
/// ports. Others (a rollout's pod-template-hash, a StatefulSet's pod-name) decide about nothing. (That it is not of the servers
/// themselves keeps the name when a Gateway comes or goes.)
fn fingerprint(objects: &Objects<'_>, p: &Pod) -> u64 {
    let m = &p.metadata;
    let here = objects.services.get(m.namespace.as_str()).into_iter().flatten();
    let services = here.filter(|s| workload::is_behind(p, s)).map(|s| &s.spec.selector);
    let gateways = objects.istio_gateways.iter().filter(|(_, g)| selected(g, &m.labels)).map(|(_, g)| &g.spec.selector);
    let asked: BTreeMap<_, _> = services.chain(gateways).flatten().collect();
    let text: String = asked.into_iter().flat_map(|(k, v)| [k, "=", v, "\n"]).collect();
    xxhash_rust::xxh64::xxh64(text.as_bytes(), 0)
}

/// Label of Services whose ports say nothing about those of Gateways (Istio's).
const NO_TRANSLATION: &str = "experimental.istio.io/disable-gateway-port-translation";

/// Where a pod listens for a port of a gateway: where the Services that select it send what comes to that port; at the port itself,
/// if none of them has it (Istio's resolvePorts). With what is to be told, if nothing is sent there either.
fn ports(objects: &Objects<'_>, p: &Pod, port: u16) -> (Vec<u16>, Option<String>) {
    let m = &p.metadata;
    let here = objects.services.get(m.namespace.as_str()).into_iter().flatten();
    let selecting: Vec<&&Service> = here.filter(|s| workload::is_behind(p, s)).collect();
    let translating = selecting.iter().filter(|s| s.metadata.labels.get(NO_TRANSLATION).is_none_or(|v| v != "true"));
    let own = translating.flat_map(|s| &s.spec.ports).filter(|sp| sp.port == port);
    let found: BTreeSet<u16> = own.filter_map(|sp| workload::target_port(p, sp)).filter(|n| *n > 0).collect();
    if !found.is_empty() {
        return (found.into_iter().collect(), None);
    }
    let sent = selecting.iter().flat_map(|s| &s.spec.ports).any(|sp| workload::target_port(p, sp) == Some(port));
    let text = selecting.first().filter(|_| !sent).map(|s| {
        format!(
            "no Service that selects pod {}/{} has port {port} or targets it: add the port to Service {}, or use one of its ports [KARST-0509]",
            m.namespace, m.name, s.metadata.name
        )
    });
    (vec![port], text)
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

fn admits(objects: &Objects<'_>, f: &GatewayListener, namespace: &str) -> bool {
    let ListenerParent::Api { namespace: own, allowed, .. } = &f.parent else { return false };
    waypoint::allows(objects, allowed, own, namespace)
}

/// Option of a listener's `tls`: what is asked of clients (Istio's; SIMPLE is nothing).
const TERMINATE_MODE: &str = "gateway.istio.io/tls-terminate-mode";
/// The reason of a listener that would take requests without the certificates that are asked for.
const UNSUPPORTED: &str = "UnsupportedValue";

/// The field that asks clients of a listener for certificates.
fn client_certificates(g: &Gateway, l: &Listener) -> Option<String> {
    let frontend = &g.spec.tls.frontend;
    let at_port = frontend.per_port.iter().position(|p| p.port == l.port);
    let tls = at_port.and_then(|n| frontend.per_port.get(n)).map_or(&frontend.default, |p| &p.tls);
    if tls.validation.is_some() {
        let of = at_port.map_or("default".into(), |n| format!("perPort[{n}].tls"));
        return Some(format!("spec.tls.frontend.{of}.validation"));
    }
    let own = l.tls.as_ref()?;
    if own.frontend_validation.is_some() {
        return Some("tls.frontendValidation".into());
    }
    let mode = own.options.get(TERMINATE_MODE)?;
    (!matches!(mode.as_str(), "" | "SIMPLE")).then(|| format!("tls.options[{TERMINATE_MODE}]: {mode}"))
}

/// Listeners of a Gateway of ours that are refused whatever else is there: what is said as it is written.
pub(crate) fn warnings(g: &Gateway) -> Vec<String> {
    if !deploy::INGRESS_CLASSES.contains(&g.spec.gateway_class_name.as_str()) {
        return vec![];
    }
    let passes = |l: &Listener| l.tls.as_ref().is_some_and(|t| t.mode.as_deref() == Some("Passthrough"));
    let ends = |l: &&Listener| l.protocol == "HTTPS" || (l.protocol == "TLS" && !passes(l));
    let one = |l: &Listener| Some(format!("spec.listeners[{}]: {}", l.name, refusal(&client_certificates(g, l)?)));
    g.spec.listeners.iter().filter(ends).filter_map(one).collect()
}

fn refusal(field: &str) -> String {
    format!(
        "{field}: client certificates are not supported for listeners of Gateway API, so the listener is rejected: remove the field, or use Istio's Gateway with tls.mode MUTUAL [KARST-0506]"
    )
}

/// What a listener would have taken with certificates, another at its port with a wider name does not take without.
fn unasked(all: &mut [GatewayListener]) {
    let asking: Vec<(u16, String, String)> =
        all.iter().filter(|f| f.asks).map(|f| (f.port, f.hosts[0].to_ascii_lowercase(), f.id.clone())).collect();
    for f in all.iter_mut().filter(|f| f.terminates_tls && f.refused.is_none()) {
        let takes = |(port, host, _): &&(u16, String, String)| {
            *port == f.port && common(&f.hosts[0], host).as_ref() == Some(host)
        };
        if let Some((_, host, id)) = asking.iter().find(takes) {
            let listener = id.rsplit('/').next().unwrap_or(id);
            let text = format!(
                "listener {listener} requires client certificates for {host:?}, which is not supported, and this listener would accept the same clients without a certificate: use another port [KARST-0506]"
            );
            f.refused = Some((UNSUPPORTED, text));
        }
    }
}

fn listener(objects: &Objects<'_>, g: &Gateway, l: &Listener) -> GatewayListener {
    let m = &g.metadata;
    let tls = l.tls.clone().unwrap_or_default();
    let passes = tls.mode.as_deref() == Some("Passthrough");
    let parent = ListenerParent::Api {
        namespace: m.namespace.clone(),
        gateway: m.name.clone(),
        listener: l.name.clone(),
        allowed: l.allowed_routes.namespaces.clone(),
    };
    let host = l.hostname.clone().filter(|h| !h.is_empty()).unwrap_or("*".into());
    let mut f =
        GatewayListener::new(format!("Gateway/{}/{}/{}", m.namespace, m.name, l.name), parent, l.port, vec![host]);
    let supported: &[&'static str] = match l.protocol.as_str() {
        "HTTP" => &["HTTPRoute", "GRPCRoute"],
        "HTTPS" => {
            (f.protocol, f.terminates_tls) = (Protocol::Https, true);
            &["HTTPRoute", "GRPCRoute"]
        }
        "TLS" => {
            (f.protocol, f.terminates_tls) = (Protocol::Tls, !passes);
            if passes { &["TLSRoute"] } else { &["TLSRoute", "TCPRoute"] }
        }
        "TCP" => {
            f.protocol = Protocol::Tcp;
            &["TCPRoute"]
        }
        other => {
            let text = format!("unsupported protocol {other:?}: use HTTP, HTTPS, TLS or TCP [KARST-0016]");
            f.refused = Some(("UnsupportedProtocol", text));
            &[]
        }
    };
    if f.terminates_tls
        && let Some(field) = client_certificates(g, l)
    {
        f.asks = true;
        f.refused = Some((UNSUPPORTED, refusal(&field)));
    }
    f.kinds = supported.to_vec();
    if !l.allowed_routes.kinds.is_empty() {
        let asked = |k: &RouteKind| {
            let group = k.group.as_deref().unwrap_or(GATEWAY_API) == GATEWAY_API;
            supported.iter().find(|s| group && **s == k.kind).copied()
        };
        f.kinds = l.allowed_routes.kinds.iter().filter_map(asked).collect();
        if f.kinds.len() < l.allowed_routes.kinds.len() {
            let text = format!(
                "allowedRoutes.kinds: a listener with protocol {} supports {supported:?} [KARST-0512]",
                l.protocol
            );
            f.unresolved = Some(("InvalidRouteKinds", text));
        }
    }
    if f.terminates_tls {
        for r in &tls.certificate_refs {
            match pair(objects, &m.namespace, r) {
                Ok(p) => f.certificates.push(p),
                Err(e) => f.unresolved = Some(e),
            }
        }
        if tls.certificate_refs.is_empty() {
            f.unresolved =
                Some(("InvalidCertificateRef", "tls.certificateRefs is empty: specify a Secret [KARST-0504]".into()));
        }
    }
    f
}

fn pair(objects: &Objects<'_>, ns: &str, r: &SecretRef) -> Result<ir::KeyPair, (&'static str, String)> {
    const BAD: &str = "InvalidCertificateRef";
    let of = r.namespace.as_deref().unwrap_or(ns);
    if !matches!(r.group.as_deref(), None | Some("")) || !matches!(r.kind.as_deref(), None | Some("Secret")) {
        return Err((BAD, format!("certificateRefs: {:?} is not a Secret [KARST-0310]", r.name)));
    }
    if of != ns && !granted_secret(objects, ns, of, &r.name) {
        let text = format!(
            "reference to Secret {of}/{} is not permitted: create a ReferenceGrant in its namespace [KARST-0309]",
            r.name
        );
        return Err(("RefNotPermitted", text));
    }
    let secret = objects.secrets.get(&(of, r.name.as_str()));
    let secret = secret.ok_or_else(|| (BAD, format!("Secret {of}/{} not found [KARST-0503]", r.name)))?;
    key_pair(secret).map_err(|e| (BAD, e))
}

/// The authority's certificates in a Secret, in Kubernetes' form or in Istio's.
pub(super) fn ca_bundle(s: &Secret) -> Option<Vec<u8>> {
    s.get("ca.crt").or_else(|| s.get("cacert"))
}

/// Certificate and key of a Secret, in Kubernetes' form or in Istio's.
fn key_pair(s: &Secret) -> Result<ir::KeyPair, String> {
    let name = format!("Secret {}/{}", s.metadata.namespace, s.metadata.name);
    let get =
        |a, b| s.get(a).or_else(|| s.get(b)).ok_or_else(|| format!("{name}: data[{a:?}] is missing [KARST-0504]"));
    let (chain, key) = (get("tls.crt", "cert")?, get("tls.key", "key")?);
    crate::tls::check_pair(&chain, &key).map_err(|e| format!("{name}: {e} [KARST-0505]"))?;
    Ok(ir::KeyPair { chain, key })
}

/// Listeners of one Gateway that cannot be told apart, or that cannot share a port.
fn conflicts(all: &mut [GatewayListener]) {
    let web = |p: Protocol| matches!(p, Protocol::Https | Protocol::Tls);
    for i in 0..all.len() {
        for j in 0..all.len() {
            let (a, b) = (&all[i], &all[j]);
            if i == j || a.port != b.port || a.refused.is_some() || b.refused.is_some() {
                continue;
            }
            let found = if a.protocol != b.protocol && !(web(a.protocol) && web(b.protocol)) {
                Some(("ProtocolConflict", format!("port {} is also used with another protocol [KARST-0507]", a.port)))
            } else if a.hosts == b.hosts || a.protocol == Protocol::Tcp {
                Some((
                    "HostnameConflict",
                    format!("another listener already handles {:?} on port {} [KARST-0508]", a.hosts[0], a.port),
                ))
            } else {
                None
            };
            if found.is_some() {
                all[i].conflict = found;
            }
        }
    }
}

fn server(g: &IstioGateway, s: &GwServer, n: usize) -> GatewayListener {
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
    let parent = ListenerParent::Istio { namespace: m.namespace.clone(), gateway: m.name.clone(), server: n, from };
    let mut f = GatewayListener::new(format!("istio/{}/{}/{n}", m.namespace, m.name), parent, s.port.number, hosts);
    f.client_names = tls.subject_alt_names;
    f.min_tls13 = tls.min_protocol_version.as_deref() == Some("TLSV1_3");
    f.redirect = tls.https_redirect;
    match protocol.as_str() {
        "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => {}
        "HTTPS" if !passes => (f.protocol, f.terminates_tls) = (Protocol::Https, true),
        "HTTPS" | "TLS" => (f.protocol, f.terminates_tls) = (Protocol::Tls, !passes),
        "TCP" | "MONGO" if s.tls.is_some() => (f.protocol, f.terminates_tls) = (Protocol::Tls, !passes),
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
    x: &Objects<'_>,
    s: &GwServer,
    n: usize,
    ns: &str,
    f: &GatewayListener,
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
                format!("Secret {ns}/{name} not found: it must be in the namespace of the gateway's pods [KARST-0503]"),
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
    let roots = get(&own).and_then(ca_bundle).or_else(|| get(first).and_then(ca_bundle));
    out.client_roots = roots.ok_or_else(|| {
        (
            field("credentialName"),
            format!(
                "neither Secret {ns}/{own} nor {ns}/{first} has data[\"ca.crt\"], which mode {} requires [KARST-0504]",
                t.mode.as_deref().unwrap_or_default()
            ),
        )
    })?;
    Ok(())
}

/// What each pod of a gateway listens on, by `namespace/name` of the pod.
pub(crate) fn compile(
    objects: &Objects<'_>,
    listeners: &GatewayListeners,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Arc<ir::Gateway>> {
    for (at, g) in &objects.istio_gateways {
        problems.extend(check::istio_gateway(&g.spec).into_iter().map(|(field, text)| problem(at, field, text)));
        for (n, u) in listeners.unmapped(&g.metadata.namespace, &g.metadata.name) {
            problems.push(problem(at, format!("spec.servers[{n}].port.number"), &u.text));
        }
    }
    let told_of = telemetry::effective(objects, problems);
    let mut out = BTreeMap::new();
    if listeners.is_idle(objects) {
        return out;
    }
    let for_pods =
        |g: &Gateway| waypoint::is_waypoint(objects, g) && waypoint::takes(objects, g, waypoint::Traffic::Workload);
    let named = by_label(objects);
    let mut told: BTreeSet<(String, String)> = BTreeSet::new();
    for (i, f) in listeners.all.iter().enumerate() {
        let ListenerParent::Api { namespace, gateway, listener, .. } = &f.parent else { continue };
        let at = objects.gateways_at.get(&(namespace.as_str(), gateway.as_str()));
        for u in listeners.unmapped.iter().filter(|u| u.listener == i && u.reason == TAKEN) {
            problems.extend(at.map(|at| problem(at, format!("spec.listeners[{listener}].port"), &u.text)));
        }
        for (_, text) in [&f.refused, &f.conflict, &f.unresolved].into_iter().flatten() {
            problems.extend(at.map(|at| problem(at, format!("spec.listeners[{listener}]"), text.clone())));
        }
    }
    for p in &objects.pods {
        let Some(served) = listeners.pods.get(&address(*p)) else { continue };
        let (m, mut g) = (&p.metadata, ir::Gateway::default());
        let own = of_pod(&named, p);
        let mut mine: Vec<(&GatewayListener, &Served, ir::Tls)> = vec![];
        for served in served {
            let Some(f) = listeners.all.get(served.listener) else { continue };
            let mut tls = f.tls();
            if let ListenerParent::Istio { namespace, gateway, server: n, .. } = &f.parent
                && f.terminates_tls
                && let Some((at, i)) = istio(objects, namespace, gateway)
                && let Err((field, text)) = credentials(objects, &i.spec.servers[*n], *n, &m.namespace, f, &mut tls)
            {
                if told.insert((f.id.clone(), text.clone())) {
                    problems.push(problem(at, field, text));
                }
                continue;
            }
            mine.push((f, served, tls));
        }
        for (f, served, tls) in mine {
            g.listeners.push(ir::Listener {
                origin: f.id.clone(),
                routes: served.routes.clone(),
                port: u32::from(served.port),
                called: if served.port == f.port { 0 } else { u32::from(f.port) },
                protocol: f.protocol as i32,
                hosts: f.hosts.clone(),
                tls: f.terminates_tls.then_some(tls),
                redirect: f.redirect,
            });
        }
        if !g.listeners.is_empty() {
            g.access = access::of_pod(objects, p, own, false);
        } else if own.is_some_and(for_pods) {
            g.access = access::of_pod(objects, p, own, true);
        }
        // Those of its own namespace; who writes rules elsewhere does not decide where they are shown.
        let near = |d: &&DestinationRule| [&m.namespace, &objects.mesh.root_namespace].contains(&&d.metadata.namespace);
        let rules = objects.destination_rules.iter().map(|(_, d)| *d).filter(near);
        for name in rules.flat_map(destination_rule::credentials) {
            let pair = objects.secrets.get(&(m.namespace.as_str(), name)).and_then(|s| key_pair(s).ok());
            g.credentials.extend(pair.map(|k| (name.to_string(), k)));
        }
        let client = own.is_none_or(|g| is_ingress(objects, g));
        g.telemetry = telemetry::of_pod(objects, &told_of, p, own, client);
        if g != ir::Gateway::default() {
            out.insert(format!("{}/{}", m.namespace, m.name), Arc::new(g));
        }
    }
    out
}

fn istio<'a>(objects: &Objects<'a>, ns: &str, name: &str) -> Option<(&'a Located, &'a IstioGateway)> {
    objects.istio_gateways.iter().find(|(_, g)| g.metadata.namespace == ns && g.metadata.name == name).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_named_as_istio_reads_it() {
        for (name, full) in [
            ("gw", "own/gw"),
            ("./gw", "own/gw"),
            ("ns/gw", "ns/gw"),
            ("gw.ns", "ns/gw"),
            ("gw.ns.svc", "ns/gw"),
            ("gw.ns.svc.cluster.local", "ns/gw"),
        ] {
            assert_eq!(full_name(name, "own"), full, "{name}");
        }
    }
}
