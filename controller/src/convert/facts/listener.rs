//! One thing that a gateway listens on: what a listener of Gateway API, or a server of Istio's Gateway, says, and why it cannot be as it
//! is.

use crate::convert::{
    facts::{
        ca_certificates::Authorities,
        frontend_tls::{self, ClientValidation},
        host::common,
        listener_filters,
        secret::{ReferenceError, referenced},
        topology, validate,
    },
    objects::{GATEWAY, GATEWAY_API, INGRESS_CLASSES, LISTENER_SET, Objects, VIRTUAL},
};
use karst_api::route as ir;
use karst_api::route::ListenerProtocol as Protocol;
use karst_core::tls::{CipherSuite, Version};
use karst_manifest::{ServerTlsMode, kinds::*, mesh_config::TlsDefaults, traffic::GwServer};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// What a listener asks for, which is not served, and without which nobody is to come in where it would have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unhonoured {
    /// Its clients are to show certificates.
    Certificates,
    /// Its requests are to pass these first.
    Filters,
}

/// One thing that a gateway listens on.
pub(crate) struct GatewayListener {
    /// `Gateway/namespace/name/listener`, or that of a ListenerSet; the names of its virtual hosts begin with it.
    pub(crate) id: String,
    pub(crate) parent: ListenerParent,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    /// It takes datagrams, which are routed as connections are: `protocol` is that of TCP.
    pub(crate) udp: bool,
    pub(crate) hosts: Vec<String>,
    /// TLS that ends here.
    pub(crate) terminates_tls: bool,
    /// Its clients are to show certificates, by a field that cannot be honoured.
    pub(crate) asks_in_vain: bool,
    /// Its requests are to pass something first, whether that can be or not.
    pub(crate) is_filtered: bool,
    /// Kinds of routes that may be attached.
    pub(crate) kinds: Vec<&'static str>,
    /// Why it cannot be as it is: a reason of Gateway API and the words.
    pub(crate) refused: Option<(&'static str, String)>,
    pub(crate) conflict: Option<(&'static str, String)>,
    /// Why what it refers to cannot be used.
    pub(crate) unresolved: Option<(&'static str, String)>,
    /// Who is asked about each of its requests, in order; None: nobody can be, and its requests are answered with 500.
    pub(crate) filters: Vec<Option<ir::AuthzProvider>>,
    /// Why somebody who is to be asked cannot be.
    pub(crate) unresolved_filter: Option<(&'static str, String)>,
    pub(crate) certificates: Vec<ir::KeyPair>,
    pub(crate) client: ir::ClientCertificate,
    /// Whose certificates of clients count, where that is not found for each pod.
    pub(crate) client_authorities: Arc<Authorities>,
    pub(crate) client_names: Vec<String>,
    pub(crate) min_version: Option<Version>,
    pub(crate) max_version: Option<Version>,
    /// Of TLS 1.2; none: what the mesh says.
    pub(crate) cipher_suites: Vec<String>,
    pub(crate) redirect: bool,
    /// Requests of gRPC-Web become gRPC.
    pub(crate) grpc_web: bool,
}

/// Whose it is.
pub(crate) enum ListenerParent {
    Api {
        namespace: String,
        gateway: String,
        /// The ListenerSet that adds it to the Gateway.
        set: Option<SetName>,
        listener: String,
        allowed: RouteNamespaces,
    },
    Istio {
        namespace: String,
        gateway: String,
        server: usize,
        from: Vec<(String, String)>,
    },
}

/// A ListenerSet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SetName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl GatewayListener {
    /// One for requests without TLS, to begin with.
    fn new(id: String, parent: ListenerParent, port: u16, hosts: Vec<String>) -> Self {
        Self {
            id,
            parent,
            port,
            protocol: Protocol::Http,
            udp: false,
            hosts,
            terminates_tls: false,
            asks_in_vain: false,
            is_filtered: false,
            kinds: vec![],
            refused: None,
            conflict: None,
            unresolved: None,
            filters: vec![],
            unresolved_filter: None,
            certificates: vec![],
            client: ir::ClientCertificate::None,
            client_authorities: Arc::default(),
            client_names: vec![],
            min_version: None,
            max_version: None,
            cipher_suites: vec![],
            redirect: false,
            grpc_web: false,
        }
    }

    /// Its TLS, without what is found for each pod, and without whose certificates of clients count. `defaults`: of the mesh, for what
    /// it does not say itself.
    pub(crate) fn tls(&self, defaults: &TlsDefaults) -> ir::Tls {
        let own = Some(&self.cipher_suites).filter(|own| !own.is_empty());
        let parameters = ir::TlsParameters {
            cipher_suites: own.unwrap_or(&defaults.cipher_suites).clone(),
            curves: defaults.ecdh_curves.clone(),
        };
        ir::Tls {
            certificates: self.certificates.clone(),
            client: self.client as i32,
            client_names: self.client_names.clone(),
            modern: self.min_version.or(defaults.min_version()) == Some(Version::V1_3),
            only_tls12: self.max_version == Some(Version::V1_2),
            parameters: (parameters != ir::TlsParameters::default()).then_some(parameters),
            ..Default::default()
        }
    }

    /// The resource with the routes for a host, of those whose names begin so.
    pub(crate) fn key(&self, routes: &str, host: &str) -> Arc<str> {
        let host = if self.protocol == Protocol::Tcp { "*" } else { host };
        format!("{routes}/{host}").into()
    }

    /// For people.
    pub(crate) fn name(&self) -> String {
        match &self.parent {
            ListenerParent::Api { set: Some(set), listener, .. } => {
                format!("listener {listener} of {LISTENER_SET} {}/{}", set.namespace, set.name)
            }
            ListenerParent::Api { namespace, gateway, listener, set: None, .. } => {
                format!("listener {listener} of Gateway {namespace}/{gateway}")
            }
            ListenerParent::Istio { namespace, gateway, server, .. } => {
                format!("spec.servers[{server}] of Gateway {namespace}/{gateway}")
            }
        }
    }

    /// What the names of the virtual hosts of a listener of Gateway API begin with.
    pub(crate) fn routes(&self) -> String {
        format!("{VIRTUAL}{}", self.id)
    }

    /// The ListenerSet that adds it to its Gateway.
    pub(crate) fn set(&self) -> Option<&SetName> {
        match &self.parent {
            ListenerParent::Api { set, .. } => set.as_ref(),
            ListenerParent::Istio { .. } => None,
        }
    }

    /// Does it ask the same certificates of clients?
    pub(crate) fn asks_like(&self, other: &Self) -> bool {
        #[cfg(test)]
        COMPARED.with(|count| count.set(count.get() + 1));
        (self.client, &self.client_authorities) == (other.client, &other.client_authorities)
    }

    /// Why something that it refers to cannot be used.
    pub(crate) fn lost(&self) -> Option<&(&'static str, String)> {
        self.unresolved.as_ref().or(self.unresolved_filter.as_ref())
    }

    /// Does it take anything?
    pub(crate) fn works(&self) -> bool {
        self.refused.is_none()
            && self.conflict.is_none()
            && (self.unresolved.is_none() || !self.certificates.is_empty())
    }

    /// What nobody is to come in without in its place. (Datagrams have no requests.)
    fn unhonoured(&self) -> Option<Unhonoured> {
        match self.is_filtered && !self.udp && !self.works() {
            true => Some(Unhonoured::Filters),
            false => self.asks_in_vain.then_some(Unhonoured::Certificates),
        }
    }

    /// What no other one of its Gateway has; in lower case.
    pub(crate) fn place(&self) -> (u16, String) {
        (self.port, self.hosts[0].to_ascii_lowercase())
    }

    /// Would it take what comes for a name (in lower case) without the filters (`of_filters`), or else the certificates, that another one
    /// asks for there, where no other one at its port has a narrower name? Of certificates who ends TLS says something; past filters goes
    /// whoever takes the bytes, which have no host.
    pub(crate) fn goes_past(&self, of_filters: bool, host: &str) -> bool {
        let own = if self.protocol == Protocol::Tcp { "*" } else { self.hosts[0].as_str() };
        (of_filters || self.terminates_tls) && common(own, host).as_deref() == Some(host)
    }
}

#[cfg(test)]
thread_local! {
    /// How often listeners of this thread have been compared: tests count the work, which others' ListenerSets decide about.
    pub(crate) static COMPARED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Option of a listener's `tls`: what is asked of clients (Istio's; SIMPLE is nothing).
const TERMINATE_MODE: &str = "gateway.istio.io/tls-terminate-mode";
/// Option of a listener's `tls`: cipher suites of TLS 1.2, separated by commas (Istio's).
const CIPHER_SUITES: &str = "gateway.istio.io/tls-cipher-suites";
/// The reason of a listener that would take what is not to be taken.
const UNSUPPORTED: &str = "UnsupportedValue";

/// The field of a listener that asks its clients for certificates in a way that cannot be honoured.
fn client_certificates(listener: &Listener) -> Option<String> {
    let own = listener.tls.as_ref()?;
    if own.frontend_validation.is_some() {
        return Some("tls.frontendValidation".into());
    }
    let mode = own.options.get(TERMINATE_MODE)?;
    (!matches!(mode.as_str(), "" | "SIMPLE")).then(|| format!("tls.options[{TERMINATE_MODE}]: {mode}"))
}

/// Listeners of a Gateway of ours that are refused whatever else is there, and an annotation that cannot be read: what is said as it
/// is written.
pub(crate) fn warnings(gateway: &Gateway) -> Vec<String> {
    let mut all = topology::warnings(gateway);
    if !INGRESS_CLASSES.contains(&gateway.spec.gateway_class_name.as_str()) {
        return all;
    }
    all.extend(refused(&gateway.spec.listeners));
    all
}

/// The same of a ListenerSet.
pub(crate) fn set_warnings(set: &ListenerSet) -> Vec<String> {
    refused(&set.spec.listeners).collect()
}

/// Those that ask for what cannot be honoured.
fn refused(all: &[Listener]) -> impl Iterator<Item = String> {
    let passes = |l: &Listener| l.tls.as_ref().is_some_and(|t| t.mode.as_deref() == Some("Passthrough"));
    let ends = move |l: &&Listener| l.protocol == "HTTPS" || (l.protocol == "TLS" && !passes(l));
    let asks = |l: &Listener| Some(format!("spec.listeners[{}]: {}", l.name, refusal(&client_certificates(l)?)));
    let filtered = |l: &Listener| Some(format!("spec.listeners[{}]: {}", l.name, listener_filters::refusal(l)?));
    all.iter().filter(ends).filter_map(asks).chain(all.iter().filter_map(filtered))
}

/// Options of listeners' TLS that nothing follows from: what is said as they are written.
pub(crate) fn idle_options(listeners: &[Listener]) -> Vec<String> {
    let of = |(index, listener): (usize, &Listener)| -> Vec<String> {
        let keys = listener.tls.iter().flat_map(|tls| tls.options.keys());
        let idle = keys.filter(|key| ![TERMINATE_MODE, CIPHER_SUITES].contains(&key.as_str()));
        idle.map(|key| format!("spec.listeners[{index}].tls.options[{key}]: has no effect [KARST-0030]")).collect()
    };
    listeners.iter().enumerate().flat_map(of).collect()
}

/// A cipher suite that an option names, and that cannot be spoken.
#[derive(Debug, thiserror::Error)]
#[error(
    "tls.options[{option}]: unsupported cipher suite {0:?}: use {known} [KARST-0016]",
    option = CIPHER_SUITES,
    known = CipherSuite::ALL.map(CipherSuite::name).join(", ")
)]
struct UnsupportedSuite(String);

/// The cipher suites that an option names.
fn cipher_suites(options: &Labels) -> Result<Vec<String>, UnsupportedSuite> {
    let Some(text) = options.get(CIPHER_SUITES) else { return Ok(vec![]) };
    let all: Vec<String> = text.split(',').map(|name| name.trim().to_string()).filter(|n| !n.is_empty()).collect();
    match all.iter().find(|name| CipherSuite::named(name).is_none()) {
        None => Ok(all),
        Some(name) => Err(UnsupportedSuite(name.clone())),
    }
}

fn refusal(field: &str) -> String {
    format!(
        "{field}: client certificates cannot be requested by this field, so the listener is rejected: use spec.tls.frontend of the Gateway [KARST-0506]"
    )
}

/// What a listener would have taken with certificates, or through filters, another at its port with a wider name does not take without.
/// What a ListenerSet asks concerns its own listeners only: it is not to take others' out of service. (Before conflicts are looked for,
/// and again after, for those that have one.)
pub(crate) fn unasked(all: &mut [GatewayListener]) {
    type Asking = ((u16, String), String, Unhonoured);
    let unhonoured = |l: &GatewayListener| l.unhonoured().is_some();
    if !all.iter().any(unhonoured) {
        return;
    }
    // Who keeps the place that another one wants, too, takes what is for it; no wider one does.
    let kept: HashSet<(u16, String)> = match all.iter().any(|l| unhonoured(l) && l.conflict.is_some()) {
        true => all.iter().filter(|l| l.works()).map(GatewayListener::place).collect(),
        false => HashSet::new(),
    };
    let mut asking: HashMap<Option<SetName>, Vec<Asking>> = HashMap::new();
    for (listener, what) in all.iter().filter_map(|l| Some((l, l.unhonoured()?))) {
        let place = listener.place();
        if listener.conflict.is_none() || !kept.contains(&place) {
            asking.entry(listener.set().cloned()).or_default().push((place, listener.id.clone(), what));
        }
    }
    let is_one = |l: &&mut GatewayListener| !l.udp && l.refused.is_none() && l.conflict.is_none();
    for candidate in all.iter_mut().filter(is_one) {
        let takes = |((port, host), id, what): &&Asking| {
            let is_at = *port == candidate.port && *id != candidate.id;
            is_at && candidate.goes_past(*what == Unhonoured::Filters, host)
        };
        let set = candidate.set().cloned();
        let of_set = set.is_some().then(|| asking.get(&set)).flatten();
        let mut concerning = asking.get(&None::<SetName>).into_iter().chain(of_set).flatten();
        if let Some(((_, host), id, what)) = concerning.find(takes) {
            let listener = id.rsplit('/').next().unwrap_or(id);
            let text = match what {
                Unhonoured::Certificates => format!(
                    "listener {listener} requires client certificates for {host:?} by a field that is not supported, and this listener would accept the same clients without a certificate: use another port [KARST-0506]"
                ),
                Unhonoured::Filters => format!(
                    "listener {listener} has filters for {host:?} and cannot be served, and this listener would accept the same requests without them: correct that one, or use another port [KARST-0029]"
                ),
            };
            candidate.refused = Some((UNSUPPORTED, text));
        }
    }
}

/// A listener of a Gateway, its own or one that a ListenerSet adds.
pub(crate) fn listener(
    objects: &Objects<'_>,
    gateway: &Gateway,
    set: Option<&ListenerSet>,
    spec: &Listener,
    asked: &mut frontend_tls::Ports,
) -> GatewayListener {
    // What stands in an object refers to what is around that object.
    let (kind, meta) = set.map_or((GATEWAY, &gateway.metadata), |set| (LISTENER_SET, &set.metadata));
    let tls = spec.tls.clone().unwrap_or_default();
    let passes = tls.mode.as_deref() == Some("Passthrough");
    let parent = ListenerParent::Api {
        namespace: gateway.metadata.namespace.clone(),
        gateway: gateway.metadata.name.clone(),
        set: set.map(|_| SetName { namespace: meta.namespace.clone(), name: meta.name.clone() }),
        listener: spec.name.clone(),
        allowed: spec.allowed_routes.namespaces.clone(),
    };
    let host = spec.hostname.clone().filter(|h| !h.is_empty()).unwrap_or("*".into());
    let id = format!("{kind}/{}/{}/{}", meta.namespace, meta.name, spec.name);
    let mut listener = GatewayListener::new(id, parent, spec.port, vec![host]);
    let supported: &[&'static str] = match spec.protocol.as_str() {
        "HTTP" => &["HTTPRoute", "GRPCRoute"],
        "HTTPS" => {
            (listener.protocol, listener.terminates_tls) = (Protocol::Https, true);
            &["HTTPRoute", "GRPCRoute"]
        }
        "TLS" => {
            (listener.protocol, listener.terminates_tls) = (Protocol::Tls, !passes);
            if passes { &["TLSRoute"] } else { &["TLSRoute", "TCPRoute"] }
        }
        "TCP" => {
            listener.protocol = Protocol::Tcp;
            &["TCPRoute"]
        }
        "UDP" => {
            (listener.protocol, listener.udp) = (Protocol::Tcp, true);
            &["UDPRoute"]
        }
        other => {
            let text = format!("unsupported protocol {other:?}: use HTTP, HTTPS, TLS, TCP or UDP [KARST-0016]");
            listener.refused = Some(("UnsupportedProtocol", text));
            &[]
        }
    };
    listener.kinds = supported.to_vec();
    if !spec.allowed_routes.kinds.is_empty() {
        let asked = |k: &RouteKind| {
            let group = k.group.as_deref().unwrap_or(GATEWAY_API) == GATEWAY_API;
            supported.iter().find(|s| group && **s == k.kind).copied()
        };
        listener.kinds = spec.allowed_routes.kinds.iter().filter_map(asked).collect();
        if listener.kinds.len() < spec.allowed_routes.kinds.len() {
            let text = format!(
                "allowedRoutes.kinds: a listener with protocol {} supports {supported:?} [KARST-0512]",
                spec.protocol
            );
            listener.unresolved = Some(("InvalidRouteKinds", text));
        }
    }
    if listener.terminates_tls {
        for r in &tls.certificate_refs {
            match pair(objects, (kind, &meta.namespace), r) {
                Ok(p) => listener.certificates.push(p),
                Err(e) => listener.unresolved = Some(e),
            }
        }
        if tls.certificate_refs.is_empty() {
            listener.unresolved =
                Some(("InvalidCertificateRef", "tls.certificateRefs is empty: specify a Secret [KARST-0504]".into()));
        }
        ask_clients(spec, || asked.at(objects, gateway, spec.port), &mut listener);
        match cipher_suites(&tls.options) {
            Ok(all) => listener.cipher_suites = all,
            Err(e) => listener.refused = Some((UNSUPPORTED, e.to_string())),
        }
    }
    pass_filters(objects, (kind, &meta.namespace), spec, &mut listener);
    listener
}

/// What its requests are to pass. While it cannot be served, for whatever reason, nobody else serves them without that ([`unasked`]).
fn pass_filters(objects: &Objects<'_>, by: (&str, &str), spec: &Listener, listener: &mut GatewayListener) {
    let found = listener_filters::of(objects, by, spec);
    listener.is_filtered = found.refused.is_some() || !found.asked.is_empty();
    listener.refused = found.refused.or(listener.refused.take());
    (listener.filters, listener.unresolved_filter) = (found.asked, found.unresolved);
}

/// What clients of a listener that ends TLS are to show: what is `asked` at its port.
fn ask_clients(spec: &Listener, asked: impl FnOnce() -> ClientValidation, listener: &mut GatewayListener) {
    if let Some(field) = client_certificates(spec) {
        listener.asks_in_vain = true;
        listener.refused = Some((UNSUPPORTED, refusal(&field)));
        return;
    }
    let asked = asked();
    (listener.client, listener.refused) = (asked.client, asked.refused);
    listener.client_authorities = asked.authorities;
    if listener.unresolved.is_none() {
        listener.unresolved = asked.unresolved;
    }
}

/// `by`: the kind and namespace of the object that refers to it.
fn pair(objects: &Objects<'_>, by: (&str, &str), reference: &SecretRef) -> Result<ir::KeyPair, (&'static str, String)> {
    referenced(objects, by, reference).map_err(|e| match e {
        ReferenceError::NotPermitted(text) => ("RefNotPermitted", text),
        ReferenceError::Invalid(text) => ("InvalidCertificateRef", text),
    })
}

/// Listeners of one Gateway that cannot be told apart, or that cannot share a port.
pub(crate) fn conflicts(all: &mut [GatewayListener]) {
    let web = |p: Protocol| matches!(p, Protocol::Https | Protocol::Tls);
    for index in 0..all.len() {
        for j in 0..all.len() {
            let (one, other) = (&all[index], &all[j]);
            // A number is a port of TCP and one of UDP.
            let is_same_port = one.port == other.port && one.udp == other.udp;
            if index == j || !is_same_port || one.refused.is_some() || other.refused.is_some() {
                continue;
            }
            let found = if one.protocol != other.protocol && !(web(one.protocol) && web(other.protocol)) {
                Some(("ProtocolConflict", format!("port {} is also used with another protocol [KARST-0507]", one.port)))
            } else if one.hosts == other.hosts || one.protocol == Protocol::Tcp {
                Some((
                    "HostnameConflict",
                    format!("another listener already handles {:?} on port {} [KARST-0508]", one.hosts[0], one.port),
                ))
            } else {
                None
            };
            if found.is_some() {
                all[index].conflict = found;
            }
        }
    }
}

pub(crate) fn server(gateway: &IstioGateway, server: &GwServer, index: usize) -> GatewayListener {
    let meta = &gateway.metadata;
    let tls = server.tls.clone().unwrap_or_default();
    let protocol = server.port.protocol.to_ascii_uppercase();
    let passes = tls.mode() == ServerTlsMode::Passthrough;
    let from: Vec<(String, String)> = server
        .hosts
        .iter()
        .map(|h| match h.split_once('/') {
            Some((ns, h)) => (ns.to_string(), h.to_ascii_lowercase()),
            None => ("*".to_string(), h.to_ascii_lowercase()),
        })
        .collect();
    let hosts = from.iter().map(|(_, h)| h.clone()).collect();
    let parent =
        ListenerParent::Istio { namespace: meta.namespace.clone(), gateway: meta.name.clone(), server: index, from };
    let mut listener = GatewayListener::new(
        format!("istio/{}/{}/{index}", meta.namespace, meta.name),
        parent,
        server.port.number,
        hosts,
    );
    listener.client = match (tls.mode(), tls.insecure_skip_verify == Some(true)) {
        (ServerTlsMode::Mutual, false) => ir::ClientCertificate::Required,
        (ServerTlsMode::Mutual, true) => ir::ClientCertificate::Any,
        (ServerTlsMode::OptionalMutual, false) => ir::ClientCertificate::Optional,
        (ServerTlsMode::OptionalMutual, true) => ir::ClientCertificate::Unverified,
        // One that is not known is refused below.
        (ServerTlsMode::Passthrough | ServerTlsMode::Simple | ServerTlsMode::Unknown(_), _) => {
            ir::ClientCertificate::None
        }
    };
    listener.client_names = tls.subject_alt_names;
    // What cannot be spoken is refused below.
    let version = |name: Option<String>| Version::named(&name.unwrap_or_default()).ok().flatten();
    listener.min_version = version(tls.min_protocol_version);
    listener.max_version = version(tls.max_protocol_version);
    listener.cipher_suites = tls.cipher_suites;
    listener.redirect = tls.https_redirect;
    match protocol.as_str() {
        "HTTP" | "HTTP2" | "GRPC" => {}
        "GRPC-WEB" => listener.grpc_web = true,
        "HTTPS" if !passes => (listener.protocol, listener.terminates_tls) = (Protocol::Https, true),
        "HTTPS" | "TLS" => (listener.protocol, listener.terminates_tls) = (Protocol::Tls, !passes),
        "TCP" | "MONGO" if server.tls.is_some() => {
            (listener.protocol, listener.terminates_tls) = (Protocol::Tls, !passes)
        }
        "TCP" | "MONGO" => listener.protocol = Protocol::Tcp,
        _ => {}
    }
    let bad = validate::server(server, &format!("spec.servers[{index}]")).into_iter().next();
    listener.refused = bad.map(|(field, text)| ("Invalid", format!("{field}: {text}")));
    listener
}
