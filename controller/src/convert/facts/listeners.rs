//! Everything that gateways listen on, the pods that serve it, and which hosts of routes go with which of it.
//!
//! Ports of listeners and servers are those of the Services that select the pods, which listen where the Services send what comes there.
//! What servers of Istio's API take without TLS at one port of a pod shares its virtual hosts, whichever Gateways they are of.

use crate::convert::{
    facts::{
        client_tls,
        export::Export,
        frontend_tls,
        gateway::{by_label, is_ingress, of_pod, selected},
        host::{closeness, common, full_host, full_name},
        listener::{GatewayListener, ListenerParent, conflicts, listener, server, unasked},
        listener_set, session, topology, waypoint, workload,
    },
    objects::{GATEWAY, LISTENER_SET, MESH, Objects, VIRTUAL, address, age},
};
use karst_api::route::ListenerProtocol as Protocol;
use karst_manifest::{gatewayapi::ParentRef, kinds::*, mesh_config::TlsDefaults};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    sync::Arc,
};

/// What shares virtual hosts: a server of Istio's API, or all servers for requests without TLS at one port of like pods (Istio
/// merges these over all Gateways). Pods of each namespace have their own: routes are exported to namespaces.
#[derive(Clone, PartialEq)]
pub(crate) struct VirtualHostScope {
    /// The names of the virtual hosts begin so. It stays when Gateways come and go: what is served goes on to be.
    routes: String,
    /// That of the pods.
    namespace: String,
    /// Indices into all listeners.
    listeners: Vec<usize>,
}

/// A listener at a pod.
pub(crate) struct Served {
    pub(crate) listener: usize,
    /// Where the pod listens.
    pub(crate) port: u16,
    /// What the names of its virtual hosts begin with.
    pub(crate) routes: String,
}

/// A front that its pods cannot be reached at, or have no port for.
pub(crate) struct Unmapped {
    pub(crate) listener: usize,
    /// Its port is none of the Services' that select the pods, or another front has the pods' port.
    pub(crate) reason: &'static str,
    pub(crate) text: String,
}

const NOT_IN_SERVICE: &str = "PortNotInService";
pub(crate) const TAKEN: &str = "PortConflict";

/// Everything that gateways listen on.
#[derive(Default)]
pub(crate) struct GatewayListeners {
    pub(crate) all: Vec<GatewayListener>,
    /// Those of each Gateway of Gateway API, and of each ListenerSet that a Gateway allows, by `Kind/namespace/name`.
    of: HashMap<String, Range<usize>>,
    /// Those that sets add to a Gateway, by its `namespace/name`.
    added: HashMap<String, Range<usize>>,
    pub(crate) scopes: Vec<VirtualHostScope>,
    /// Of the pods of gateways, by [`address`].
    pub(crate) pods: HashMap<usize, Vec<Served>>,
    pub(crate) unmapped: Vec<Unmapped>,
}

/// Do gateways take a VirtualService?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
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
    fn of(objects: &Objects<'_>, service: &'a VirtualService) -> Self {
        let namespace = service.metadata.namespace.as_str();
        let hosts = service.spec.hosts.iter().map(|h| full_host(h, namespace, &objects.mesh.cluster_domain)).collect();
        let gateways = service.spec.gateways.iter().filter(|g| *g != MESH).map(|g| full_name(g, namespace)).collect();
        Self { namespace, gateways, hosts }
    }

    /// Those of its hosts that a server takes, if it is one of this Gateway.
    fn hosts_at(&self, listener: &GatewayListener, full: &str) -> impl Iterator<Item = String> {
        let (namespace, from): (&str, &[(String, String)]) = match &listener.parent {
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
pub(crate) struct Bound<'a> {
    /// Full name of the gateway.
    pub(crate) gateway: String,
    pub(crate) listener: &'a GatewayListener,
    /// The resource for its routes.
    pub(crate) key: Arc<str>,
}

impl GatewayListeners {
    fn new(objects: &Objects<'_>) -> Self {
        let mut out = Self::default();
        let mut gateways: Vec<_> = objects.gateways.values().filter(|g| is_ingress(objects, g)).collect();
        gateways.sort_by_key(|g| (&g.metadata.namespace, &g.metadata.name));
        let sets = listener_set::by_gateway(objects);
        for g in gateways {
            let name = (g.metadata.namespace.as_str(), g.metadata.name.as_str());
            out.merge(objects, g, sets.get(&name).map_or(&[], Vec::as_slice));
        }
        // Of servers that cannot share a port the older one counts.
        let mut istio: Vec<_> = objects.istio_gateways.iter().map(|(_, g)| *g).collect();
        istio.sort_by_key(|g| age(&g.metadata));
        for g in istio {
            out.all.extend(g.spec.servers.iter().enumerate().map(|(i, s)| server(g, s, i)));
        }
        out
    }

    /// The listeners of a Gateway, then those of its sets as far as it allows these.
    fn merge(&mut self, objects: &Objects<'_>, of: &Gateway, sets: &[&ListenerSet]) {
        let (meta, start, mut asked) = (&of.metadata, self.all.len(), frontend_tls::Ports::default());
        self.all.extend(of.spec.listeners.iter().map(|l| listener(objects, of, None, l, &mut asked)));
        let own = self.all.len();
        self.of.insert(parent_key(GATEWAY, &meta.namespace, &meta.name), start..own);
        let allows = |s: &&ListenerSet| listener_set::refusal(objects, of, &s.metadata.namespace).is_none();
        for set in sets.iter().copied().filter(allows) {
            let first = self.all.len();
            self.all.extend(set.spec.listeners.iter().map(|l| {
                let mut added = listener(objects, of, Some(set), l, &mut asked);
                added.refused = added.refused.or_else(|| listener_set::unavailable(l.port));
                added
            }));
            let key = parent_key(LISTENER_SET, &set.metadata.namespace, &set.metadata.name);
            self.of.insert(key, first..self.all.len());
        }
        self.added.insert(format!("{}/{}", meta.namespace, meta.name), own..self.all.len());
        let merged = &mut self.all[start..];
        unasked(merged);
        let (own, added) = merged.split_at_mut(own - start);
        conflicts(own);
        listener_set::conflicts(own, added);
        // One in conflict is not served, either, nor is one that there is no port for.
        unasked(&mut self.all[start..]);
    }

    /// The same, with the pods that they are served by.
    pub(crate) fn with_pods(objects: &Objects<'_>) -> Self {
        let mut out = Self::new(objects);
        if out.is_idle(objects) {
            return out;
        }
        let (named, mut scopes) = (by_label(objects), BTreeMap::<String, VirtualHostScope>::new());
        let mut unmapped: BTreeMap<usize, Unmapped> = BTreeMap::new();
        for pod in &objects.pods {
            let meta = &pod.metadata;
            let selecting = objects.istio_gateways.iter().filter(|(_, g)| selected(g, &meta.labels));
            let istio: BTreeSet<(&str, &str)> =
                selecting.map(|(_, g)| (g.metadata.namespace.as_str(), g.metadata.name.as_str())).collect();
            if istio.is_empty() && !meta.labels.contains_key(GATEWAY_NAME) {
                continue;
            }
            let own = of_pod(&named, pod).map(|g| (g.metadata.namespace.as_str(), g.metadata.name.as_str()));
            let its = |f: &GatewayListener| match &f.parent {
                ListenerParent::Api { namespace, gateway, .. } => own == Some((namespace.as_str(), gateway.as_str())),
                ListenerParent::Istio { namespace, gateway, .. } => {
                    istio.contains(&(namespace.as_str(), gateway.as_str()))
                }
            };
            let (mut served, mut classes) = (vec![], BTreeMap::new());
            for (index, listener) in out.all.iter().enumerate().filter(|(_, f)| f.works() && its(f)) {
                let (ports, problem) = ports(objects, pod, listener.port, listener.udp);
                if let Some(text) = problem {
                    unmapped.entry(index).or_insert(Unmapped { listener: index, reason: NOT_IN_SERVICE, text });
                }
                for port in ports {
                    // On one port only one of: requests, TLS, bytes. The first decides.
                    let own = (port, listener.udp);
                    let (class, first) = *classes.entry(own).or_insert((class(listener.protocol), index));
                    if class != self::class(listener.protocol) {
                        let other = out.all.get(first).map_or(String::new(), GatewayListener::name);
                        let text = format!(
                            "maps to port {port} of pod {}/{}, which {other} already uses with another protocol: use another port [KARST-0507]",
                            meta.namespace, meta.name
                        );
                        unmapped.entry(index).or_insert(Unmapped { listener: index, reason: TAKEN, text });
                        continue;
                    }
                    let routes = match (&listener.parent, listener.protocol) {
                        (ListenerParent::Api { .. }, _) => listener.routes(),
                        (ListenerParent::Istio { .. }, Protocol::Http) => {
                            format!("{VIRTUAL}istio-http/{}/{:x}/{port}", meta.namespace, fingerprint(objects, pod))
                        }
                        (ListenerParent::Istio { .. }, Protocol::Https | Protocol::Tls | Protocol::Tcp) => {
                            format!("{}/{}", listener.routes(), meta.namespace)
                        }
                    };
                    if matches!(listener.parent, ListenerParent::Istio { .. }) {
                        let new = || VirtualHostScope {
                            routes: routes.clone(),
                            namespace: meta.namespace.clone(),
                            listeners: vec![],
                        };
                        let scope = scopes.entry(routes.clone()).or_insert_with(new);
                        if !scope.listeners.contains(&index) {
                            scope.listeners.push(index);
                        }
                    }
                    served.push(Served { listener: index, port, routes });
                }
            }
            leave_out_unlike(&out.all, meta, &mut served, &mut unmapped);
            leave_out_later(&out.all, meta, &mut served, &mut unmapped);
            let asks = |listener: &GatewayListener| listener.is_filtered || listener.asks_in_vain;
            let asking: Vec<(usize, u16)> = out
                .all
                .iter()
                .enumerate()
                .filter(|(_, listener)| asks(listener) && !listener.udp && its(listener))
                .flat_map(|(index, listener)| {
                    let (ports, _) = ports(objects, pod, listener.port, false);
                    ports.into_iter().map(move |port| (index, port))
                })
                .collect();
            leave_out_unasked(&out.all, meta, &asking, &mut served, &mut unmapped);
            out.pods.insert(address(*pod), served);
        }
        out.scopes = scopes.into_values().collect();
        // In the order of the listeners, whatever pods came first.
        out.scopes.iter_mut().for_each(|p| p.listeners.sort_unstable());
        out.unmapped = unmapped.into_values().collect();
        out
    }

    /// Is there nothing that a gateway's pod could be told?
    pub(crate) fn is_idle(&self, objects: &Objects<'_>) -> bool {
        let shown = |d: &DestinationRule| client_tls::credentials(d).next().is_some();
        let for_pods =
            |g: &Gateway| waypoint::is_waypoint(objects, g) && waypoint::takes(objects, g, waypoint::Traffic::Workload);
        self.all.is_empty()
            && objects.telemetry.is_empty()
            && !objects.has_mesh_wide_telemetry()
            && objects.mesh_config.tls_defaults == TlsDefaults::default()
            && !objects.gateways.values().copied().any(for_pods)
            && !objects.gateways.values().any(|g| topology::is_at_waypoint(objects, g))
            && !session::in_use(objects)
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
    pub(crate) fn taken_port(&self, listener: &GatewayListener) -> Option<&str> {
        let it = |u: &&Unmapped| u.reason == TAKEN && self.all.get(u.listener).is_some_and(|o| o.id == listener.id);
        self.unmapped.iter().find(it).map(|u| u.text.as_str())
    }

    /// The own ones of a Gateway of Gateway API, in the order of its listeners.
    pub(crate) fn of(&self, ns: &str, name: &str) -> &[GatewayListener] {
        self.of_parent(GATEWAY, ns, name).unwrap_or_default()
    }

    /// Those of a ListenerSet, in their order; none if no Gateway of ours allows it.
    pub(crate) fn of_set(&self, ns: &str, name: &str) -> &[GatewayListener] {
        self.of_parent(LISTENER_SET, ns, name).unwrap_or_default()
    }

    /// Those that sets add to a Gateway, as far as they are accepted.
    pub(crate) fn added<'a>(&'a self, of: &Gateway) -> impl Iterator<Item = &'a GatewayListener> + use<'a> {
        let range = self.added.get(&format!("{}/{}", of.metadata.namespace, of.metadata.name));
        let all = range.and_then(|range| self.all.get(range.clone())).unwrap_or_default();
        all.iter().filter(|l| l.refused.is_none() && l.conflict.is_none())
    }

    /// None: it is not there, or not allowed.
    fn of_parent(&self, kind: &str, ns: &str, name: &str) -> Option<&[GatewayListener]> {
        self.all.get(self.of.get(&parent_key(kind, ns, name))?.clone())
    }

    /// Where a route with these host names is attached by a reference: what it is attached to, and the hosts there. None: the
    /// reference is to no Gateway of ours, nor to a ListenerSet of one. An error is a reason of Gateway API and the words.
    #[allow(clippy::type_complexity, reason = "the type says what is attached, or the reason and the words")]
    pub(crate) fn attached<'a>(
        &'a self,
        objects: &Objects<'_>,
        kind: &str,
        ns: &str,
        names: &[String],
        parent: &ParentRef,
    ) -> Option<Result<Vec<(&'a GatewayListener, Vec<String>)>, (&'static str, String)>> {
        let g = listener_set::gateway_of(objects, ns, parent)?;
        if !is_ingress(objects, g) {
            return None;
        }
        Some(self.attach(objects, kind, ns, names, parent))
    }

    #[allow(clippy::type_complexity, reason = "the type says what is attached, or the reason and the words")]
    fn attach<'a>(
        &'a self,
        objects: &Objects<'_>,
        kind: &str,
        ns: &str,
        names: &[String],
        parent: &ParentRef,
    ) -> Result<Vec<(&'a GatewayListener, Vec<String>)>, (&'static str, String)> {
        let (of, parent_kind) = (parent.namespace.as_deref().unwrap_or(ns), parent.kind.as_deref().unwrap_or(GATEWAY));
        let what = format!("{parent_kind} {of}/{}", parent.name);
        let Some(listeners) = self.of_parent(parent_kind, of, &parent.name) else {
            let text = format!("{what} is not allowed by its Gateway: see its status [KARST-0518]");
            return Err(("NoMatchingParent", text));
        };
        let named = |f: &&GatewayListener| {
            let ListenerParent::Api { listener, .. } = &f.parent else { return false };
            let section = parent.section_name.as_ref().is_none_or(|s| s == listener);
            section && parent.port.is_none_or(|n| n == f.port)
        };
        let mut found: Vec<&GatewayListener> = listeners.iter().filter(named).collect();
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
        let fits = |listener: &'a GatewayListener| {
            let hosts: BTreeSet<String> = match names {
                [] => listener.hosts.iter().cloned().collect(),
                _ => names.iter().flat_map(|n| listener.hosts.iter().filter_map(move |h| common(h, n))).collect(),
            };
            (!hosts.is_empty()).then(|| (listener, hosts.into_iter().collect::<Vec<_>>()))
        };
        let all: Vec<_> = found.into_iter().filter_map(fits).collect();
        if all.is_empty() {
            let text = format!("no listener of {what} matches any of the host names {names:?} [KARST-0314]");
            return Err(("NoMatchingListenerHostname", text));
        }
        Ok(all)
    }

    /// The resources with the routes of what is attached, and how closely the route's own names fit each.
    pub(crate) fn keys(
        &self,
        objects: &Objects<'_>,
        kind: &str,
        ns: &str,
        names: &[String],
        parent: &ParentRef,
    ) -> Vec<(Arc<str>, usize)> {
        let Some(Ok(all)) = self.attached(objects, kind, ns, names, parent) else { return vec![] };
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
    pub(crate) fn bound<'a>(&'a self, objects: &Objects<'_>, service: &VirtualService) -> Vec<Bound<'a>> {
        let (export, named) = (Export::of_virtual_service(objects, service), Named::of(objects, service));
        let mut out: Vec<Bound<'a>> = vec![];
        for full in &named.gateways {
            for scope in self.scopes.iter().filter(|p| export.is_for(&p.namespace)) {
                for listener in scope.listeners.iter().filter_map(|i| self.all.get(*i)) {
                    for host in named.hosts_at(listener, full) {
                        let key = listener.key(&scope.routes, &host);
                        if !out.iter().any(|b| b.key == key && std::ptr::eq(b.listener, listener)) {
                            out.push(Bound { gateway: full.clone(), listener, key });
                        }
                    }
                }
            }
        }
        out
    }

    /// Does a Gateway that it names take one of its hosts, and may the pods of one that does have its routes? (Where there are no
    /// pods yet, they may.)
    pub(crate) fn taken(&self, objects: &Objects<'_>, service: &VirtualService) -> Taken {
        let (export, named) = (Export::of_virtual_service(objects, service), Named::of(objects, service));
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

/// Listeners of Gateway API that end TLS at one port of a pod, whatever ports clients call, are not told apart there: where they ask
/// different certificates of clients, who calls the one would be served as the other asks. Of a Gateway's own none of them is; one
/// that a ListenerSet adds gives way to those before it.
fn leave_out_unlike(
    all: &[GatewayListener],
    pod: &Meta,
    served: &mut Vec<Served>,
    unmapped: &mut BTreeMap<usize, Unmapped>,
) {
    let asking = |s: &Served| {
        let listener = all.get(s.listener)?;
        (listener.terminates_tls && matches!(listener.parent, ListenerParent::Api { .. })).then_some(listener)
    };
    // Of each port the first that asks, and of the Gateway's own the first that asks otherwise: there may be thousands.
    let mut ports: BTreeMap<u16, (&GatewayListener, Option<&GatewayListener>)> = BTreeMap::new();
    for one in served.iter() {
        let Some(own) = asking(one) else { continue };
        let (first, other) = ports.entry(one.port).or_insert((own, None));
        if own.set().is_none() && other.is_none() && !first.asks_like(own) {
            *other = Some(own);
        }
    }
    served.retain(|one| {
        let (Some(own), Some((first, other))) = (asking(one), ports.get(&one.port)) else { return true };
        let unlike = match (first.asks_like(own), other) {
            (true, None) => return true,
            (true, Some(other)) => other,
            (false, _) => first,
        };
        let text = format!(
            "maps to port {} of pod {}/{}, as {} does, which asks other certificates of its clients: use another port of the pod [KARST-0507]",
            one.port,
            pod.namespace,
            pod.name,
            unlike.name()
        );
        unmapped.entry(one.listener).or_insert(Unmapped { listener: one.listener, reason: TAKEN, text });
        false
    });
}

/// Of servers of Istio's Gateways for one host at one port of a pod the oldest speaks TLS with clients. One that asks other
/// certificates of them cannot be beside it. (Istio leaves out whichever comes second.)
fn leave_out_later(
    all: &[GatewayListener],
    pod: &Meta,
    served: &mut Vec<Served>,
    unmapped: &mut BTreeMap<usize, Unmapped>,
) {
    let mut first: HashMap<(u16, &str), &GatewayListener> = HashMap::new();
    let mut later: BTreeSet<(usize, u16)> = BTreeSet::new();
    for one in served.iter() {
        let ends_tls = |l: &&GatewayListener| l.terminates_tls && matches!(l.parent, ListenerParent::Istio { .. });
        let Some(own) = all.get(one.listener).filter(ends_tls) else { continue };
        let unlike = |host: &&String| {
            let first = first.get(&(one.port, host.as_str()));
            first.is_some_and(|other| (other.client, &other.client_names) != (own.client, &own.client_names))
        };
        let Some(host) = own.hosts.iter().find(unlike) else {
            for host in &own.hosts {
                first.entry((one.port, host.as_str())).or_insert(own);
            }
            continue;
        };
        let other = first.get(&(one.port, host.as_str())).map_or(String::new(), |other| other.name());
        let text = format!(
            "at port {} of pod {}/{} {other} has {host:?}, too, and asks other certificates of its clients: use another host [KARST-0508]",
            one.port, pod.namespace, pod.name
        );
        unmapped.entry(one.listener).or_insert(Unmapped { listener: one.listener, reason: TAKEN, text });
        later.insert((one.listener, one.port));
    }
    served.retain(|s| !later.contains(&(s.listener, s.port)));
}

/// Two ports that clients call may lead to one of a pod. What a listener that is not served there would have taken with certificates, or
/// through filters, is taken there without them by no other one of its Gateway, as at one port that they call ([`unasked`]: with the same
/// regard for sets, and for who keeps a name). `asking`: the listeners that ask for either, and their ports of this pod.
fn leave_out_unasked(
    all: &[GatewayListener],
    pod: &Meta,
    asking: &[(usize, u16)],
    served: &mut Vec<Served>,
    unmapped: &mut BTreeMap<usize, Unmapped>,
) {
    // One that is left out may have had filters itself.
    let mut before = usize::MAX;
    while !asking.is_empty() && served.len() < before {
        before = served.len();
        leave_out_unasked_once(all, pod, asking, served, unmapped);
    }
}

fn leave_out_unasked_once(
    all: &[GatewayListener],
    pod: &Meta,
    asking: &[(usize, u16)],
    served: &mut Vec<Served>,
    unmapped: &mut BTreeMap<usize, Unmapped>,
) {
    let known: BTreeSet<(usize, u16)> = served.iter().map(|one| (one.listener, one.port)).collect();
    let is_kept = |lost: &GatewayListener, port: u16| {
        let here = served.iter().filter(|one| one.port == port).filter_map(|one| all.get(one.listener));
        lost.conflict.is_some() && here.map(GatewayListener::place).any(|place| place == lost.place())
    };
    let lost: Vec<(&GatewayListener, String, u16)> = asking
        .iter()
        .filter(|one| !known.contains(*one))
        .filter_map(|(index, port)| Some((all.get(*index)?, *port)))
        .filter(|one| !is_kept(one.0, one.1))
        .map(|(lost, port)| (lost, lost.hosts[0].to_ascii_lowercase(), port))
        .collect();
    if lost.is_empty() {
        return;
    }
    served.retain(|one| {
        let of_api = |own: &&GatewayListener| !own.udp && matches!(own.parent, ListenerParent::Api { .. });
        let Some(own) = all.get(one.listener).filter(of_api) else { return true };
        let takes = |(lost, host, port): &&(&GatewayListener, String, u16)| {
            let is_concerned = lost.set().is_none() || lost.set() == own.set();
            let are_bytes = [own.protocol, lost.protocol].contains(&Protocol::Tcp);
            let is_like = are_bytes || class(own.protocol) == class(lost.protocol);
            *port == one.port && is_concerned && is_like && own.goes_past(lost.is_filtered, host)
        };
        let Some((lost, host, _)) = lost.iter().find(takes) else { return true };
        let (name, port) = (lost.name(), one.port);
        let why = match lost.is_filtered {
            true => format!(
                "has filters for {host:?} and is not served: this listener would accept the same requests without them: correct that one, or use another port of the pod [KARST-0029]"
            ),
            false => format!(
                "requires client certificates for {host:?} by a field that is not supported: this listener would accept the same clients without a certificate: use another port of the pod [KARST-0506]"
            ),
        };
        let text = format!("maps to port {port} of pod {}/{}, as {name} does, which {why}", pod.namespace, pod.name);
        unmapped.entry(one.listener).or_insert(Unmapped { listener: one.listener, reason: TAKEN, text });
        false
    });
}

/// What one port of a pod takes: requests, TLS, or bytes.
fn class(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Http => 0,
        Protocol::Https | Protocol::Tls => 1,
        Protocol::Tcp => 2,
    }
}

/// Of the labels by which Services and Gateways select a pod: pods that are alike in these have the same servers at the same
/// ports. Others (a rollout's pod-template-hash, a StatefulSet's pod-name) decide about nothing. (That it is not of the servers
/// themselves keeps the name when a Gateway comes or goes.)
fn fingerprint(objects: &Objects<'_>, pod: &Pod) -> u64 {
    let meta = &pod.metadata;
    let here = objects.services.get(meta.namespace.as_str()).into_iter().flatten();
    let services = here.filter(|s| workload::is_behind(pod, s)).map(|s| &s.spec.selector);
    let gateways =
        objects.istio_gateways.iter().filter(|(_, g)| selected(g, &meta.labels)).map(|(_, g)| &g.spec.selector);
    let asked: BTreeMap<_, _> = services.chain(gateways).flatten().collect();
    let text: String = asked.into_iter().flat_map(|(k, v)| [k, "=", v, "\n"]).collect();
    xxhash_rust::xxh64::xxh64(text.as_bytes(), 0)
}

/// Label of Services whose ports say nothing about those of Gateways (Istio's).
const NO_TRANSLATION: &str = "experimental.istio.io/disable-gateway-port-translation";

/// Where a pod listens for a port of a gateway: where the Services that select it send what comes to that port; at the port itself,
/// if none of them has it (Istio's resolvePorts). With what is to be told, if nothing is sent there either.
fn ports(objects: &Objects<'_>, pod: &Pod, port: u16, udp: bool) -> (Vec<u16>, Option<String>) {
    let meta = &pod.metadata;
    let target = |sp: &ServicePort| match udp {
        true => workload::udp_target_port(pod, sp),
        false => workload::target_port(pod, sp),
    };
    let here = objects.services.get(meta.namespace.as_str()).into_iter().flatten();
    let selecting: Vec<&&Service> = here.filter(|s| workload::is_behind(pod, s)).collect();
    let translating = selecting.iter().filter(|s| s.metadata.labels.get(NO_TRANSLATION).is_none_or(|v| v != "true"));
    let own = translating.flat_map(|s| &s.spec.ports).filter(|sp| sp.port == port);
    let found: BTreeSet<u16> = own.filter_map(target).filter(|n| *n > 0).collect();
    if !found.is_empty() {
        return (found.into_iter().collect(), None);
    }
    let sent = selecting.iter().flat_map(|s| &s.spec.ports).any(|sp| target(sp) == Some(port));
    let text = selecting.first().filter(|_| !sent).map(|s| {
        format!(
            "no Service that selects pod {}/{} has port {port} or targets it: add the port to Service {}, or use one of its ports [KARST-0509]",
            meta.namespace, meta.name, s.metadata.name
        )
    });
    (vec![port], text)
}

/// Does a listener take routes of this namespace? "Same" is that of the object that it stands in.
fn admits(objects: &Objects<'_>, listener: &GatewayListener, namespace: &str) -> bool {
    let ListenerParent::Api { namespace: gateway, set, allowed, .. } = &listener.parent else { return false };
    let own = set.as_ref().map_or(gateway, |set| &set.namespace);
    waypoint::allows(objects, allowed, own, namespace)
}

/// What listeners stand in.
fn parent_key(kind: &str, ns: &str, name: &str) -> String {
    format!("{kind}/{ns}/{name}")
}
