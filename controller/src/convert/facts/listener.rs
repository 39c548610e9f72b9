//! One thing that a gateway listens on: what a listener of Gateway API, or a server of Istio's Gateway, says, and why it cannot be as it
//! is.

use crate::convert::{
    facts::{grant::granted_secret, host::common, secret::key_pair, topology, validate},
    objects::{GATEWAY_API, INGRESS_CLASSES, Objects, VIRTUAL},
};
use karst_api::route as ir;
use karst_api::route::ListenerProtocol as Protocol;
use karst_manifest::{ServerTlsMode, kinds::*, traffic::GwServer};
use std::sync::Arc;

/// One thing that a gateway listens on.
pub(crate) struct GatewayListener {
    /// `Gateway/namespace/name/listener`; the names of its virtual hosts begin with it.
    pub(crate) id: String,
    pub(crate) parent: ListenerParent,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) hosts: Vec<String>,
    /// TLS that ends here.
    pub(crate) terminates_tls: bool,
    /// Its clients are to show certificates, and it is of Gateway API, where that cannot be.
    pub(crate) asks: bool,
    /// Kinds of routes that may be attached.
    pub(crate) kinds: Vec<&'static str>,
    /// Why it cannot be as it is: a reason of Gateway API and the words.
    pub(crate) refused: Option<(&'static str, String)>,
    pub(crate) conflict: Option<(&'static str, String)>,
    /// Why what it refers to cannot be used.
    pub(crate) unresolved: Option<(&'static str, String)>,
    pub(crate) certificates: Vec<ir::KeyPair>,
    pub(crate) client: ir::ClientCertificate,
    pub(crate) client_names: Vec<String>,
    pub(crate) min_tls13: bool,
    pub(crate) redirect: bool,
    /// Requests of gRPC-Web become gRPC.
    pub(crate) grpc_web: bool,
}

/// Whose it is.
pub(crate) enum ListenerParent {
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
            grpc_web: false,
        }
    }

    /// Its TLS, without what is found for each pod.
    pub(crate) fn tls(&self) -> ir::Tls {
        ir::Tls {
            certificates: self.certificates.clone(),
            client: self.client as i32,
            client_roots: vec![],
            client_names: self.client_names.clone(),
            modern: self.min_tls13,
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
            ListenerParent::Api { namespace, gateway, listener, .. } => {
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

    /// Does it take anything?
    pub(crate) fn works(&self) -> bool {
        self.refused.is_none()
            && self.conflict.is_none()
            && (self.unresolved.is_none() || !self.certificates.is_empty())
    }
}

/// Option of a listener's `tls`: what is asked of clients (Istio's; SIMPLE is nothing).
const TERMINATE_MODE: &str = "gateway.istio.io/tls-terminate-mode";
/// The reason of a listener that would take requests without the certificates that are asked for.
const UNSUPPORTED: &str = "UnsupportedValue";

/// The field that asks clients of a listener for certificates.
fn client_certificates(gateway: &Gateway, listener: &Listener) -> Option<String> {
    let frontend = &gateway.spec.tls.frontend;
    let at_port = frontend.per_port.iter().position(|p| p.port == listener.port);
    let tls = at_port.and_then(|n| frontend.per_port.get(n)).map_or(&frontend.default, |p| &p.tls);
    if tls.validation.is_some() {
        let of = at_port.map_or("default".into(), |n| format!("perPort[{n}].tls"));
        return Some(format!("spec.tls.frontend.{of}.validation"));
    }
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
    let passes = |l: &Listener| l.tls.as_ref().is_some_and(|t| t.mode.as_deref() == Some("Passthrough"));
    let ends = |l: &&Listener| l.protocol == "HTTPS" || (l.protocol == "TLS" && !passes(l));
    let one =
        |l: &Listener| Some(format!("spec.listeners[{}]: {}", l.name, refusal(&client_certificates(gateway, l)?)));
    all.extend(gateway.spec.listeners.iter().filter(ends).filter_map(one));
    all
}

fn refusal(field: &str) -> String {
    format!(
        "{field}: client certificates are not supported for listeners of Gateway API, so the listener is rejected: remove the field, or use Istio's Gateway with tls.mode MUTUAL [KARST-0506]"
    )
}

/// What a listener would have taken with certificates, another at its port with a wider name does not take without.
pub(crate) fn unasked(all: &mut [GatewayListener]) {
    let asking: Vec<(u16, String, String)> =
        all.iter().filter(|f| f.asks).map(|f| (f.port, f.hosts[0].to_ascii_lowercase(), f.id.clone())).collect();
    for candidate in all.iter_mut().filter(|f| f.terminates_tls && f.refused.is_none()) {
        let takes = |(port, host, _): &&(u16, String, String)| {
            *port == candidate.port && common(&candidate.hosts[0], host).as_ref() == Some(host)
        };
        if let Some((_, host, id)) = asking.iter().find(takes) {
            let listener = id.rsplit('/').next().unwrap_or(id);
            let text = format!(
                "listener {listener} requires client certificates for {host:?}, which is not supported, and this listener would accept the same clients without a certificate: use another port [KARST-0506]"
            );
            candidate.refused = Some((UNSUPPORTED, text));
        }
    }
}

pub(crate) fn listener(objects: &Objects<'_>, gateway: &Gateway, spec: &Listener) -> GatewayListener {
    let meta = &gateway.metadata;
    let tls = spec.tls.clone().unwrap_or_default();
    let passes = tls.mode.as_deref() == Some("Passthrough");
    let parent = ListenerParent::Api {
        namespace: meta.namespace.clone(),
        gateway: meta.name.clone(),
        listener: spec.name.clone(),
        allowed: spec.allowed_routes.namespaces.clone(),
    };
    let host = spec.hostname.clone().filter(|h| !h.is_empty()).unwrap_or("*".into());
    let mut listener = GatewayListener::new(
        format!("Gateway/{}/{}/{}", meta.namespace, meta.name, spec.name),
        parent,
        spec.port,
        vec![host],
    );
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
        other => {
            let text = format!("unsupported protocol {other:?}: use HTTP, HTTPS, TLS or TCP [KARST-0016]");
            listener.refused = Some(("UnsupportedProtocol", text));
            &[]
        }
    };
    if listener.terminates_tls
        && let Some(field) = client_certificates(gateway, spec)
    {
        listener.asks = true;
        listener.refused = Some((UNSUPPORTED, refusal(&field)));
    }
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
            match pair(objects, &meta.namespace, r) {
                Ok(p) => listener.certificates.push(p),
                Err(e) => listener.unresolved = Some(e),
            }
        }
        if tls.certificate_refs.is_empty() {
            listener.unresolved =
                Some(("InvalidCertificateRef", "tls.certificateRefs is empty: specify a Secret [KARST-0504]".into()));
        }
    }
    listener
}

fn pair(objects: &Objects<'_>, ns: &str, reference: &SecretRef) -> Result<ir::KeyPair, (&'static str, String)> {
    const BAD: &str = "InvalidCertificateRef";
    let of = reference.namespace.as_deref().unwrap_or(ns);
    if !matches!(reference.group.as_deref(), None | Some(""))
        || !matches!(reference.kind.as_deref(), None | Some("Secret"))
    {
        return Err((BAD, format!("certificateRefs: {:?} is not a Secret [KARST-0310]", reference.name)));
    }
    if of != ns && !granted_secret(objects, ns, of, &reference.name) {
        let text = format!(
            "reference to Secret {of}/{} is not permitted: create a ReferenceGrant in its namespace [KARST-0309]",
            reference.name
        );
        return Err(("RefNotPermitted", text));
    }
    let secret = objects.secrets.get(&(of, reference.name.as_str()));
    let secret = secret.ok_or_else(|| (BAD, format!("Secret {of}/{} not found [KARST-0503]", reference.name)))?;
    key_pair(secret).map_err(|e| (BAD, e.to_string()))
}

/// Listeners of one Gateway that cannot be told apart, or that cannot share a port.
pub(crate) fn conflicts(all: &mut [GatewayListener]) {
    let web = |p: Protocol| matches!(p, Protocol::Https | Protocol::Tls);
    for index in 0..all.len() {
        for j in 0..all.len() {
            let (one, other) = (&all[index], &all[j]);
            if index == j || one.port != other.port || one.refused.is_some() || other.refused.is_some() {
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
    listener.client = match tls.mode() {
        ServerTlsMode::Mutual => ir::ClientCertificate::Required,
        ServerTlsMode::OptionalMutual => ir::ClientCertificate::Optional,
        // One that is not known is refused below.
        ServerTlsMode::Passthrough | ServerTlsMode::Simple | ServerTlsMode::Unknown(_) => ir::ClientCertificate::None,
    };
    listener.client_names = tls.subject_alt_names;
    listener.min_tls13 = tls.min_protocol_version.as_deref() == Some("TLSV1_3");
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
