//! What a gateway listens on, compiled: which listener a name belongs to, the routes for it, and the TLS that ends here.

use crate::{
    authz::{access::Access, error::AccessError},
    downstream::{
        by_host::ByHost,
        client_cert,
        client_verifier::{ClientAuth, VerifierError},
        topology::{Topology, TopologyError},
    },
    route::table::Routes,
    session::keys::{KeyError, SessionKeys},
    telemetry::rules::{Telemetry, TelemetryError},
    tls_parameters::{self, ParametersError},
};
use http::HeaderValue;
use imbl::HashMap;
use karst_api::route::{self as ir, ListenerProtocol};
use rustls::{
    HandshakeKind, ServerConfig, ServerConnection,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, ServerName,
    pem::{self, PemObject},
};
use std::{collections::BTreeMap, sync::Arc};

/// All of it.
#[derive(Debug, Default)]
pub struct Gateway {
    pub ports: BTreeMap<u16, Port>,
    /// What takes datagrams.
    pub udp: BTreeMap<u16, UdpListener>,
    /// Who may send anything through it.
    pub access: Option<Access>,
    /// What we may show to endpoints, by name.
    pub credentials: BTreeMap<String, Pair>,
    /// What we show to endpoints where a BackendTLSPolicy makes TLS, or why it cannot be. None: nothing.
    pub backend_certificate: Option<Result<Pair, BrokenCertificate>>,
    /// What is told of requests; none: the standard.
    pub telemetry: Option<Arc<Telemetry>>,
    /// Who in front of it is believed.
    pub topology: Topology,
    /// What TLS is spoken with to endpoints.
    pub backend_parameters: Option<ir::TlsParameters>,
    /// What sessions are sealed with.
    pub session_keys: SessionKeys,
}

/// Certificates, the leaf first, and the leaf's key.
pub type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// There is no certificate of the gateway's own for endpoints, for a reason that the control plane tells.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct BrokenCertificate(pub String);

/// What a gateway cannot do that it is told to.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Of one listener.
    #[error("{origin}: {error}")]
    Listener { origin: String, error: ListenerError },
    /// Of what it may show to endpoints.
    #[error("credential {name}: {error}")]
    Credential { name: String, error: KeyPairError },
    /// Of what it tells.
    #[error("telemetry: {0}")]
    Telemetry(#[from] TelemetryError),
    /// Of who may send anything through it.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Of who in front of it is believed.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// Of what sessions are sealed with.
    #[error(transparent)]
    SessionKey(#[from] KeyError),
}

/// What cannot be listened for.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// It is no number of a port.
    #[error("port {0}")]
    Port(u32),
    /// A protocol of a later version.
    #[error("protocol {0}")]
    Protocol(i32),
    /// There is nothing to speak HTTPS with.
    #[error("HTTPS without TLS")]
    NoTls,
    /// There is nothing to speak TLS with.
    #[error("TLS without a certificate")]
    NoCertificate,
    /// A certificate that cannot be read.
    #[error(transparent)]
    KeyPair(#[from] KeyPairError),
    /// A key that is not the certificate's, or that TLS cannot use.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// Certificates of clients that nobody can look at.
    #[error(transparent)]
    Clients(#[from] VerifierError),
    /// A cipher suite or a curve of a later version.
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    /// No version of TLS is left.
    #[error("TLS 1.3 only and TLS 1.2 only")]
    Versions,
}

/// Why a certificate and its key cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum KeyPairError {
    /// The certificate.
    #[error("certificate: {0}")]
    Certificate(pem::Error),
    /// The key.
    #[error("key: {0}")]
    Key(pem::Error),
}

fn read(p: &ir::KeyPair) -> Result<Pair, KeyPairError> {
    let chain = CertificateDer::pem_slice_iter(&p.chain).collect::<Result<_, _>>();
    let chain = chain.map_err(KeyPairError::Certificate)?;
    Ok((chain, PrivateKeyDer::from_pem_slice(&p.key).map_err(KeyPairError::Key)?))
}

/// The gateway's own certificate for endpoints, or why there is none.
fn backend_certificate(own: &ir::BackendCertificate) -> Result<Result<Pair, BrokenCertificate>, GatewayError> {
    match &own.pair {
        Some(pair) => {
            let bad = |error| GatewayError::Credential { name: "spec.tls.backend".into(), error };
            read(pair).map(Ok).map_err(bad)
        }
        None => Ok(Err(BrokenCertificate(own.broken.clone()))),
    }
}

/// One port.
#[derive(Debug, Default)]
pub struct Port {
    listeners: Vec<Arc<Listener>>,
    by_host: ByHost,
}

/// One listener for datagrams.
#[derive(Debug)]
pub struct UdpListener {
    pub origin: String,
    /// The resource with its rules.
    pub routes: Arc<str>,
    /// The port that clients call.
    pub called: u16,
}

/// One listener.
#[derive(Debug)]
pub struct Listener {
    pub origin: String,
    /// The names of its virtual hosts begin so.
    routes: String,
    pub protocol: ListenerProtocol,
    hosts: Vec<String>,
    /// Does TLS end here?
    pub terminates_tls: bool,
    /// With what it ends; None also where the keys are not known.
    pub tls: Option<Tls>,
    /// Requests without TLS are sent to https.
    pub redirect: bool,
    /// Requests of gRPC-Web become gRPC.
    grpc_web: bool,
    /// What it asks of clients, as a number: listeners with the same one ask the same.
    asks: usize,
    /// It serves nobody without a certificate that counts.
    requires_certificate: bool,
    /// The port that clients call.
    called: u16,
    /// The certificates that it shows, in PEM, for the admin page.
    chains: Vec<Vec<u8>>,
}

/// What listeners that end TLS ask of clients.
#[derive(PartialEq)]
struct Asked<'a> {
    client: i32,
    roots: &'a [u8],
    lists: &'a [Vec<u8>],
    names: &'a [String],
}

impl<'a> Asked<'a> {
    fn of(tls: &'a ir::Tls) -> Self {
        // Who is asked for nothing is asked the same everywhere.
        if tls.client == ir::ClientCertificate::None as i32 {
            return Self { client: tls.client, roots: &[], lists: &[], names: &[] };
        }
        Self { client: tls.client, roots: &tls.client_roots, lists: &tls.client_lists, names: &tls.client_names }
    }
}

/// TLS that ends here.
#[derive(Debug)]
pub struct Tls {
    pub server: Arc<ServerConfig>,
    /// One of them must be a name of the client's certificate, if there are any.
    names: Vec<String>,
    /// What is asked of clients.
    clients: Option<ClientAuth>,
    /// What is shown to clients.
    keys: Arc<Keys>,
}

impl Gateway {
    /// Compiles.
    ///
    /// # Errors
    /// What cannot be used, and of which listener.
    pub fn new(gateway: &ir::Gateway) -> Result<Self, GatewayError> {
        Self::compile(gateway, true)
    }

    /// The same of one whose policies cannot be read: nobody is let in.
    ///
    /// # Errors
    /// As [`Gateway::new`], of the rest.
    pub fn without_policies(gateway: &ir::Gateway) -> Result<Self, GatewayError> {
        let rest = ir::Gateway { access: None, ..gateway.clone() };
        Ok(Self { access: Some(Access::closed()), ..Self::new(&rest)? })
    }

    /// The same of one of whose listeners it cannot be read what they ask of clients: these are not there.
    ///
    /// # Errors
    /// As [`Gateway::new`], of the rest.
    pub fn without_unread_clients(gateway: &ir::Gateway) -> Result<Self, GatewayError> {
        let is_read = |listener: &&ir::Listener| listener.tls.as_ref().is_none_or(|tls| client_auth(tls).is_ok());
        let listeners = gateway.listeners.iter().filter(is_read).cloned().collect();
        Self::new(&ir::Gateway { listeners, ..gateway.clone() })
    }

    /// The same without keys, for who only asks what it would do: nothing can be shown to clients or endpoints.
    ///
    /// # Errors
    /// As [`Gateway::new`].
    pub fn outline(gateway: &ir::Gateway) -> Result<Self, GatewayError> {
        Self::compile(gateway, false)
    }

    fn compile(gateway: &ir::Gateway, has_keys: bool) -> Result<Self, GatewayError> {
        let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
        let mut asked: Vec<(Option<Asked<'_>>, Option<ClientAuth>)> = vec![];
        for listener in &gateway.listeners {
            let bad = |error: ListenerError| GatewayError::Listener { origin: listener.origin.clone(), error };
            let port = u16::try_from(listener.port)
                .ok()
                .filter(|p| *p > 0)
                .ok_or_else(|| bad(ListenerError::Port(listener.port)))?;
            let called = u16::try_from(listener.called).map_err(|_| bad(ListenerError::Port(listener.called)))?;
            let protocol = ListenerProtocol::try_from(listener.protocol)
                .map_err(|_| bad(ListenerError::Protocol(listener.protocol)))?;
            if protocol == ListenerProtocol::Https && listener.tls.is_none() {
                return Err(bad(ListenerError::NoTls));
            }
            let tls = listener.tls.as_ref().filter(|_| has_keys);
            let own = listener.tls.as_ref().map(Asked::of);
            let requires_certificate =
                own.as_ref().is_some_and(|own| own.client == ir::ClientCertificate::Required as i32);
            let known = asked.iter().position(|(known, _)| *known == own);
            let (asks, clients) = match known.and_then(|asks| Some((asks, asked.get(asks)?.1.clone()))) {
                Some(known) => known,
                None => {
                    // For all that ask the same: what is revoked may be much.
                    let clients = tls.map(client_auth).transpose().map_err(bad)?.flatten();
                    asked.push((own, clients.clone()));
                    (asked.len() - 1, clients)
                }
            };
            let tls = tls.map(|t| Tls::new(t, protocol, clients)).transpose().map_err(bad)?;
            ports.entry(port).or_default().listeners.push(Arc::new(Listener {
                origin: listener.origin.clone(),
                routes: listener.routes.clone(),
                protocol,
                hosts: listener.hosts.clone(),
                terminates_tls: listener.tls.is_some(),
                tls,
                redirect: listener.redirect,
                grpc_web: listener.grpc_web,
                asks,
                requires_certificate,
                called: if called == 0 { port } else { called },
                chains: listener.tls.iter().flat_map(|tls| &tls.certificates).map(|pair| pair.chain.clone()).collect(),
            }));
        }
        ports.values_mut().for_each(|p| p.by_host = ByHost::new(p.listeners.iter().map(|l| l.hosts.as_slice())));
        let mut udp = BTreeMap::new();
        for listener in &gateway.udp {
            let bad =
                |port| GatewayError::Listener { origin: listener.origin.clone(), error: ListenerError::Port(port) };
            let port = u16::try_from(listener.port).ok().filter(|p| *p > 0).ok_or_else(|| bad(listener.port))?;
            let called = u16::try_from(listener.called).map_err(|_| bad(listener.called))?;
            // Two of one port have been told apart before; the first counts.
            udp.entry(port).or_insert_with(|| UdpListener {
                origin: listener.origin.clone(),
                routes: format!("{}/*", listener.routes).into(),
                called: if called == 0 { port } else { called },
            });
        }
        let pair = |(name, k): (&String, &ir::KeyPair)| {
            read(k).map(|k| (name.clone(), k)).map_err(|error| GatewayError::Credential { name: name.clone(), error })
        };
        let credentials = gateway.credentials.iter().filter(|_| has_keys).map(pair).collect::<Result<_, _>>()?;
        let own = gateway.backend_certificate.as_ref().filter(|own| has_keys || own.pair.is_none());
        let backend_certificate = own.map(backend_certificate).transpose()?;
        let telemetry = gateway.telemetry.as_ref().map(Telemetry::new).transpose();
        let telemetry = telemetry?.map(Arc::new);
        let topology = Topology::new(gateway.topology.as_ref())?;
        let access = gateway.access.as_ref().map(Access::new).transpose()?;
        let backend_parameters = gateway.backend_parameters.clone();
        let session_keys: &[ir::SessionKey] = if has_keys { &gateway.session_keys } else { &[] };
        let session_keys = SessionKeys::new(session_keys)?;
        Ok(Self {
            ports,
            udp,
            access,
            credentials,
            backend_certificate,
            telemetry,
            topology,
            backend_parameters,
            session_keys,
        })
    }

    /// Nothing is listened on, and nobody may call anything.
    pub fn closed() -> Self {
        Self { access: Some(Access::closed()), ..Self::default() }
    }

    /// For the admin page.
    pub fn describe(&self) -> serde_json::Value {
        let one = |l: &Arc<Listener>| serde_json::json!({ "origin": l.origin, "protocol": l.protocol.as_str_name(), "hosts": l.hosts, "endsTls": l.terminates_tls });
        let port = |(p, x): (&u16, &Port)| (p.to_string(), x.listeners.iter().map(one).collect::<Vec<_>>().into());
        let udp = |(p, l): (&u16, &UdpListener)| {
            let one = serde_json::json!({ "origin": l.origin, "protocol": "UDP", "called": l.called });
            (format!("udp/{p}"), serde_json::Value::from(vec![one]))
        };
        let all = self.ports.iter().map(port).chain(self.udp.iter().map(udp));
        all.collect::<serde_json::Map<_, serde_json::Value>>().into()
    }
}

impl Port {
    /// All of it, in order.
    pub fn listeners(&self) -> &[Arc<Listener>] {
        &self.listeners
    }

    /// The listeners for a name (that of a request, or of a TLS hello): of those that it fits, the ones with the longest
    /// name of their own, in order.
    pub fn find<'a>(&'a self, name: Option<&'a str>) -> impl Iterator<Item = &'a Arc<Listener>> {
        self.by_host.find(name).iter().filter_map(move |place| self.listeners.get(*place))
    }

    /// The port that clients call, who do not know where we listen.
    pub fn called(&self) -> Option<u16> {
        self.listeners.first().map(|l| l.called)
    }

    /// Do requests of gRPC-Web become gRPC here? One of its listeners says so for all (Istio: its servers share their filters).
    pub fn takes_grpc_web(&self) -> bool {
        self.listeners.iter().any(|listener| listener.grpc_web)
    }

    /// What is spoken on it first.
    pub fn protocol(&self) -> ListenerProtocol {
        self.listeners.first().map_or(ListenerProtocol::Http, |l| l.protocol)
    }
}

impl Listener {
    /// The names of its virtual hosts begin so, before a slash.
    pub fn route_name(&self) -> &str {
        &self.routes
    }

    /// The host names that it is for; none: all.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Does it ask the same certificates of clients as another one of its gateway?
    pub fn asks_like(&self, other: &Self) -> bool {
        self.asks == other.asks
    }

    /// Does it serve nobody without a certificate that counts?
    pub fn requires_certificate(&self) -> bool {
        self.requires_certificate
    }

    /// The port that clients call.
    pub fn called(&self) -> u16 {
        self.called
    }

    /// The certificates that it shows, in PEM.
    pub fn chains(&self) -> &[Vec<u8>] {
        &self.chains
    }

    /// The routes for a name, of those of all virtual hosts: of the name itself, else of the longest wildcard that it fits.
    pub fn routes<'a>(&self, hosts: &'a HashMap<Arc<str>, Arc<Routes>>, name: &str) -> Option<&'a Routes> {
        let mut key = String::with_capacity(self.routes.len() + name.len() + 2);
        let mut look = |wild: &str, rest: &str| {
            key.clear();
            for part in [&self.routes, "/", wild, rest] {
                key.push_str(part);
            }
            hosts.get(key.as_str()).map(|r| &**r)
        };
        if let Some(r) = look("", name).filter(|_| !name.starts_with('*')) {
            return Some(r);
        }
        let mut dots = name.match_indices('.').map(|(i, _)| &name[i..]);
        dots.find_map(|rest| look("*", rest)).or_else(|| look("*", ""))
    }
}

/// What a listener asks of clients. (Which cipher suites it has does not matter for that.)
fn client_auth(tls: &ir::Tls) -> Result<Option<ClientAuth>, ListenerError> {
    Ok(ClientAuth::new(tls, &Arc::new(tls_parameters::provider(None)?))?)
}

impl Tls {
    fn new(tls: &ir::Tls, protocol: ListenerProtocol, clients: Option<ClientAuth>) -> Result<Self, ListenerError> {
        let provider = Arc::new(tls_parameters::provider(tls.parameters.as_ref())?);
        let mut keys = vec![];
        for pair in &tls.certificates {
            let (chain, key) = read(pair)?;
            keys.push(Arc::new(CertifiedKey::from_der(chain, key, &provider)?));
        }
        if keys.is_empty() {
            return Err(ListenerError::NoCertificate);
        }
        let versions: &[&rustls::SupportedProtocolVersion] = match (tls.modern, tls.only_tls12) {
            (false, false) => &[&rustls::version::TLS13, &rustls::version::TLS12],
            (true, false) => &[&rustls::version::TLS13],
            (false, true) => &[&rustls::version::TLS12],
            (true, true) => return Err(ListenerError::Versions),
        };
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
        let builder = match &clients {
            None => builder.with_no_client_auth(),
            Some(clients) => builder.with_client_cert_verifier(clients.verifier.clone()),
        };
        let keys = Arc::new(Keys(keys));
        let mut server = builder.with_cert_resolver(keys.clone());
        // Who names suites names them in the order in which they are to be taken.
        server.ignore_client_order = tls.parameters.as_ref().is_some_and(|p| !p.cipher_suites.is_empty());
        if protocol == ListenerProtocol::Https {
            server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        }
        Ok(Self { server: Arc::new(server), names: tls.client_names.clone(), clients, keys })
    }

    /// What `x-forwarded-client-cert` says of a client that has come by this name with these certificates. None: it has shown none.
    pub fn forwarded(&self, name: Option<&str>, certificates: Option<&[CertificateDer<'_>]>) -> Option<HeaderValue> {
        let first = certificates.and_then(<[_]>::first)?;
        let shown = self.keys.choose(name);
        let own = shown.and_then(|k| k.end_entity_cert().ok()).map(karst_hbone::tls::uris_of).unwrap_or_default();
        client_cert::of_certificate(&own, first)
    }

    /// Has a client shown something whose signer we trust? (Where a listener takes any certificate, it may be anybody's.)
    pub fn has_proof(&self, certificates: Option<&[CertificateDer<'_>]>) -> bool {
        let (Some(clients), Some(shown)) = (&self.clients, certificates) else { return false };
        self.server.time_provider.current_time().is_some_and(|now| clients.counts(shown, now))
    }

    /// A session that is resumed remembers the certificate of the first handshake, and rustls does not look at it again: it may
    /// have ended since.
    ///
    /// # Errors
    /// The client's certificate does not count any more.
    pub fn still_valid(&self, connection: &ServerConnection) -> Result<(), rustls::Error> {
        let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let Some(verifier) = self.clients.as_ref().filter(|_| resumed).map(|clients| &clients.verifier) else {
            return Ok(());
        };
        let now = self.server.time_provider.current_time().ok_or(rustls::Error::FailedToGetCurrentTime)?;
        match connection.peer_certificates() {
            Some([leaf, chain @ ..]) => verifier.verify_client_cert(leaf, chain, now).map(drop),
            Some([]) | None if verifier.client_auth_mandatory() => Err(rustls::Error::NoCertificatesPresented),
            Some([]) | None => Ok(()),
        }
    }

    /// May a client with these certificates come in? (Who signed them has been looked at.)
    pub fn admits(&self, certificates: Option<&[CertificateDer<'_>]>) -> bool {
        let Some(first) = certificates.and_then(<[_]>::first) else { return true };
        self.names.is_empty() || self.names.iter().any(|n| has_name(first, n))
    }
}

/// Is this a name of the certificate: a DNS name, or the SPIFFE id?
fn has_name(cert: &CertificateDer<'_>, name: &str) -> bool {
    if name.starts_with("spiffe://") {
        return karst_hbone::tls::identity_of(cert).is_ok_and(|i| i.to_string() == name);
    }
    let Ok(wanted) = ServerName::try_from(name) else { return false };
    webpki::EndEntityCert::try_from(cert).is_ok_and(|c| c.verify_is_valid_for_subject_name(&wanted).is_ok())
}

/// The certificates of a listener: the first whose names fit is shown, else the first.
#[derive(Debug)]
struct Keys(Vec<Arc<CertifiedKey>>);

impl Keys {
    /// What is shown to who asks for this name. A client that calls an address names nobody.
    fn choose(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let fits = |k: &&Arc<CertifiedKey>| name.is_some_and(|n| k.end_entity_cert().is_ok_and(|c| has_name(c, n)));
        self.0.iter().find(fits).or(self.0.first())
    }
}

impl ResolvesServerCert for Keys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name()).cloned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::snapshot::Snapshot;
    use rustls::RootCertStore;
    use rustls_pki_types::UnixTime;
    use std::{
        sync::atomic::{AtomicU64, Ordering::Relaxed},
        time::Duration,
    };
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn listener(origin: &str, hosts: &[&str]) -> ir::Listener {
        ir::Listener {
            origin: origin.into(),
            routes: format!("~{origin}"),
            port: 80,
            hosts: hosts.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn the_longest_name_that_fits_is_it() {
        let listeners = vec![
            listener("any", &["*"]),
            listener("wide", &["*.com"]),
            listener("shop", &["*.shop.com", "shop.com"]),
            listener("one", &["a.shop.com"]),
            listener("also-one", &["a.shop.com"]),
        ];
        let g = Gateway::new(&ir::Gateway { listeners, ..Default::default() }).unwrap();
        let found = |n: Option<&str>| -> Vec<String> { g.ports[&80].find(n).map(|l| l.origin.clone()).collect() };
        for (name, want) in [
            (Some("a.shop.com"), &["one", "also-one"][..]),
            (Some("b.shop.com"), &["shop"]),
            (Some("shop.com"), &["shop"]),
            (Some("x.y.com"), &["wide"]),
            (Some("com"), &["any"]),
            (Some(".com"), &["any"]),
            (None, &["any"]),
        ] {
            assert_eq!(found(name), want, "{name:?}");
        }
    }

    #[test]
    fn routes_are_found_by_name() {
        let mut s = Snapshot::new("");
        for host in ["a.com", "*.a.com", "*.b.a.com"] {
            s.hosts.insert(format!("~l/{host}").into(), Arc::default());
        }
        let g = Gateway::new(&ir::Gateway { listeners: vec![listener("l", &["*"])], ..Default::default() }).unwrap();
        let l = g.ports[&80].find(None).next().unwrap().clone();
        let which = |n: &str| {
            let r = l.routes(&s.hosts, n)?;
            s.hosts.iter().find(|(_, x)| std::ptr::eq(&***x, r)).map(|(k, _)| k.to_string())
        };
        for (name, want) in [
            ("a.com", Some("~l/a.com")),
            ("x.a.com", Some("~l/*.a.com")),
            ("x.b.a.com", Some("~l/*.b.a.com")),
            ("y.x.a.com", Some("~l/*.a.com")),
            ("*.a.com", Some("~l/*.a.com")),
            ("b.com", None),
            ("", None),
        ] {
            assert_eq!(which(name).as_deref(), want, "{name}");
        }
        s.hosts.insert("~l/*".into(), Arc::default());
        assert!(l.routes(&s.hosts, "b.com").is_some() && l.routes(&s.hosts, "").is_some());
    }

    #[derive(Debug)]
    struct Clock(AtomicU64);
    impl rustls::time_provider::TimeProvider for Clock {
        fn current_time(&self) -> Option<UnixTime> {
            Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Relaxed))))
        }
    }

    #[tokio::test]
    async fn a_resumed_session_ends_with_the_clients_certificate() {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
        let mut p = CertificateParams::new(vec![]).unwrap();
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(p, KeyPair::generate().unwrap()).unwrap();
        let pair = |name: &str, year| {
            let mut p = CertificateParams::new(vec![name.to_string()]).unwrap();
            p.not_after = rcgen::date_time_ymd(year, 1, 1);
            let key = KeyPair::generate().unwrap();
            (p.signed_by(&key, &ca).unwrap(), key)
        };
        let (server, client) = (pair("gateway", 3000), pair("client", 2030));
        let listener = ir::Tls {
            certificates: vec![ir::KeyPair { chain: server.0.pem().into(), key: server.1.serialize_pem().into() }],
            client: ir::ClientCertificate::Required as i32,
            client_roots: ca.pem().into(),
            ..Default::default()
        };
        // The end of 2029.
        let clock = Arc::new(Clock(AtomicU64::new(1_893_456_000 - 3600)));
        for version in rustls::ALL_VERSIONS {
            clock.0.store(1_893_456_000 - 3600, Relaxed);
            let mut tls = Tls::new(&listener, ListenerProtocol::Tls, client_auth(&listener).unwrap()).unwrap();
            Arc::get_mut(&mut tls.server).unwrap().time_provider = clock.clone();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let mut roots = RootCertStore::empty();
            roots.add(ca.der().clone()).unwrap();
            let own = PrivateKeyDer::Pkcs8(client.1.serialize_der().into());
            let mut config = rustls::ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots)
                .with_client_auth_cert(vec![client.0.der().clone()], own)
                .unwrap();
            config.time_provider = clock.clone();
            let config = Arc::new(config);
            let tls = &tls;
            let shake = async || {
                let (a, b) = tokio::io::duplex(1 << 16);
                let connect = async {
                    let c = tokio_rustls::TlsConnector::from(config.clone());
                    let mut c = c.connect(ServerName::try_from("gateway").unwrap(), a).await.unwrap();
                    // Reads the tickets.
                    let _ = c.read(&mut [0]).await;
                };
                let accept = async {
                    let mut s = tokio_rustls::TlsAcceptor::from(tls.server.clone()).accept(b).await.unwrap();
                    s.write_all(b"x").await.unwrap();
                    let c = s.get_ref().1;
                    (c.handshake_kind().unwrap(), tls.still_valid(c).map_err(|e| e.to_string()))
                };
                tokio::join!(connect, accept).1
            };
            assert_eq!(shake().await, (HandshakeKind::Full, Ok(())));
            assert_eq!(shake().await, (HandshakeKind::Resumed, Ok(())), "{version:?}");
            clock.0.fetch_add(2 * 3600, Relaxed);
            let (kind, valid) = shake().await;
            assert_eq!(kind, HandshakeKind::Resumed);
            assert!(valid.unwrap_err().contains("expired"), "{version:?}");
        }
    }

    /// What both have agreed on: version, cipher suite, what keys were exchanged by.
    fn agreed(server: &Arc<ServerConfig>, client: rustls::ClientConfig) -> Result<String, rustls::Error> {
        let name = ServerName::try_from("gateway").unwrap();
        let mut server = ServerConnection::new(server.clone())?;
        let mut client = rustls::ClientConnection::new(Arc::new(client), name)?;
        while client.is_handshaking() || server.is_handshaking() {
            let (mut sent, mut answered) = (Vec::<u8>::new(), Vec::<u8>::new());
            while client.wants_write() {
                client.write_tls(&mut sent).unwrap();
            }
            let mut sent = &sent[..];
            while !sent.is_empty() {
                server.read_tls(&mut sent).unwrap();
                server.process_new_packets()?;
            }
            while server.wants_write() {
                server.write_tls(&mut answered).unwrap();
            }
            let mut answered = &answered[..];
            while !answered.is_empty() {
                client.read_tls(&mut answered).unwrap();
                client.process_new_packets()?;
            }
        }
        let suite = server.negotiated_cipher_suite().unwrap().suite();
        let group = server.negotiated_key_exchange_group().unwrap().name();
        Ok(format!("{:?} {suite:?} {group:?}", server.protocol_version().unwrap()))
    }

    #[test]
    fn tls_is_spoken_as_a_listener_says() {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
        let mut p = CertificateParams::new(vec![]).unwrap();
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(p, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec!["gateway".to_string()]).unwrap().signed_by(&key, &ca).unwrap();
        let own = ir::KeyPair { chain: cert.pem().into(), key: key.serialize_pem().into() };
        let tls = |change: fn(&mut ir::Tls)| {
            let mut tls = ir::Tls { certificates: vec![own.clone()], ..Default::default() };
            change(&mut tls);
            Tls::new(&tls, ListenerProtocol::Https, None).map_err(|e| e.to_string())
        };
        let client = |versions: &[&'static rustls::SupportedProtocolVersion], curves: &[&str]| {
            let mut roots = RootCertStore::empty();
            roots.add(ca.der().clone()).unwrap();
            let curves = curves.iter().map(ToString::to_string).collect();
            let own = ir::TlsParameters { curves, ..Default::default() };
            rustls::ClientConfig::builder_with_provider(Arc::new(tls_parameters::provider(Some(&own)).unwrap()))
                .with_protocol_versions(versions)
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth()
        };
        fn suites(tls: &mut ir::Tls, names: &[&str]) {
            let cipher_suites = names.iter().map(ToString::to_string).collect();
            tls.parameters = Some(ir::TlsParameters { cipher_suites, ..Default::default() });
        }
        fn curves(tls: &mut ir::Tls, names: &[&str]) {
            let curves = names.iter().map(ToString::to_string).collect();
            tls.parameters = Some(ir::TlsParameters { curves, ..Default::default() });
        }
        let (old, new) = (&rustls::version::TLS12, &rustls::version::TLS13);
        // What a listener says, versions and curves of the client, what is spoken (starts with it; None: nothing).
        type Case<'a> =
            (fn(&mut ir::Tls), &'a [&'static rustls::SupportedProtocolVersion], &'a [&'a str], Option<&'a str>);
        let cases: &[Case<'_>] = &[
            (|_| {}, &[new, old], &[], Some("TLSv1_3 TLS13_AES_256_GCM_SHA384")),
            (|_| {}, &[old], &[], Some("TLSv1_2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384")),
            (|tls| tls.modern = true, &[new, old], &[], Some("TLSv1_3")),
            (|tls| tls.modern = true, &[old], &[], None),
            (|tls| tls.only_tls12 = true, &[new, old], &[], Some("TLSv1_2")),
            (|tls| tls.only_tls12 = true, &[new], &[], None),
            (
                |tls| suites(tls, &["ECDHE-ECDSA-AES128-GCM-SHA256"]),
                &[old],
                &[],
                Some("TLSv1_2 TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
            ),
            // In the order in which they are named.
            (
                |tls| suites(tls, &["ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES256-GCM-SHA384"]),
                &[old],
                &[],
                Some("TLSv1_2 TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
            ),
            // The certificate is another's.
            (|tls| suites(tls, &["ECDHE-RSA-AES128-GCM-SHA256"]), &[old], &[], None),
            // Of TLS 1.3 nothing is said.
            (|tls| suites(tls, &["ECDHE-RSA-AES128-GCM-SHA256"]), &[new, old], &[], Some("TLSv1_3")),
            (|tls| curves(tls, &["P-384"]), &[new], &[], Some("TLSv1_3 TLS13_AES_256_GCM_SHA384 secp384r1")),
            (
                |tls| curves(tls, &["P-384"]),
                &[old],
                &[],
                Some("TLSv1_2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 secp384r1"),
            ),
            (|tls| curves(tls, &["P-256", "P-256"]), &[new], &["P-256"], Some("TLSv1_3")),
            (|tls| curves(tls, &["P-256"]), &[new], &["X25519"], None),
        ];
        for (number, (change, versions, offered, want)) in cases.iter().enumerate() {
            let is = agreed(&tls(*change).unwrap().server, client(versions, offered)).ok();
            let fits = match (&is, want) {
                (Some(is), Some(want)) => is.starts_with(want),
                (is, want) => is.is_none() && want.is_none(),
            };
            assert!(fits, "{number}: {is:?}, not {want:?}");
        }
        assert!(!tls(|_| {}).unwrap().server.ignore_client_order);
        assert_eq!(
            tls(|tls| (tls.modern, tls.only_tls12) = (true, true)).unwrap_err(),
            "TLS 1.3 only and TLS 1.2 only"
        );
        assert_eq!(tls(|tls| suites(tls, &["AES128-SHA"])).unwrap_err(), "unknown cipher suite \"AES128-SHA\"");
        assert_eq!(tls(|tls| curves(tls, &["P-521"])).unwrap_err(), "unknown curve \"P-521\"");
    }

    #[test]
    fn without_keys_there_is_an_outline() {
        let tls = ir::Tls { certificates: vec![ir::KeyPair::default()], ..Default::default() };
        let protocol = ListenerProtocol::Https as i32;
        let listeners = vec![ir::Listener { tls: Some(tls), protocol, ..listener("Gateway/ns/g/l", &["*"]) }];
        let gateway = ir::Gateway { listeners, ..Default::default() };
        assert!(Gateway::new(&gateway).is_err());
        let outline = Gateway::outline(&gateway).unwrap();
        let only = &outline.ports[&80].listeners()[0];
        assert!(only.terminates_tls && only.tls.is_none());
    }

    /// Each that asks the same once had roots and lists of its own: a large list, times all listeners of the port.
    #[test]
    fn what_many_listeners_ask_is_read_once() {
        let own = rcgen::generate_simple_self_signed(vec!["gateway".to_string()]).unwrap();
        let pair = ir::KeyPair { chain: own.cert.pem().into(), key: own.signing_key.serialize_pem().into() };
        let asking = |origin: &str, client: ir::ClientCertificate| {
            let tls = ir::Tls {
                certificates: vec![pair.clone()],
                client: client as i32,
                client_roots: own.cert.pem().into(),
                ..Default::default()
            };
            let protocol = ListenerProtocol::Https as i32;
            ir::Listener { tls: Some(tls), protocol, ..listener(origin, &[origin]) }
        };
        let (required, optional) = (ir::ClientCertificate::Required, ir::ClientCertificate::Optional);
        let none = ir::ClientCertificate::None;
        let listeners = [("a", required), ("b", optional), ("c", required), ("d", none)];
        let listeners = listeners.map(|(origin, client)| asking(origin, client)).into();
        let g = Gateway::new(&ir::Gateway { listeners, ..Default::default() }).unwrap();
        let all = g.ports[&80].listeners();
        let clients = |index: usize| all[index].tls.as_ref().unwrap().clients.as_ref().map(|c| c.verifier.clone());
        let [Some(a), Some(b), Some(c), None] = [0, 1, 2, 3].map(clients) else { panic!("{all:?}") };
        assert!(Arc::ptr_eq(&a, &c) && !Arc::ptr_eq(&a, &b));
        assert!(all[0].asks_like(&all[2]) && !all[0].asks_like(&all[1]) && !all[1].asks_like(&all[3]));
        assert_eq!([0, 1, 2, 3].map(|i: usize| all[i].requires_certificate()), [true, false, true, false]);
    }

    #[test]
    fn a_number_is_a_port_of_both_protocols() {
        let dns = |port, called| ir::UdpListener { origin: "u".into(), routes: "~u".into(), port, called };
        let tcp = ir::Listener { port: 53, protocol: ListenerProtocol::Tcp as i32, ..listener("t", &["*"]) };
        let gateway = |udp| ir::Gateway { listeners: vec![tcp.clone()], udp: vec![udp], ..Default::default() };
        let read = Gateway::new(&gateway(dns(53, 0))).unwrap();
        let own = &read.udp[&53];
        assert_eq!((&*own.routes, own.called, read.ports.len()), ("~u/*", 53, 1));
        assert_eq!(read.describe()["udp/53"][0]["protocol"], "UDP");
        for (port, called) in [(0, 0), (1 << 16, 0), (53, 1 << 16)] {
            let e = Gateway::new(&gateway(dns(port, called))).unwrap_err().to_string();
            assert!(e.starts_with("u: port "), "{e}");
        }
    }

    #[test]
    fn a_gateway_has_the_session_keys_that_it_is_told() {
        let told = |bytes: usize| {
            let session_keys = vec![ir::SessionKey { secret: vec![7; bytes] }];
            ir::Gateway { session_keys, ..Default::default() }
        };
        assert!(!Gateway::new(&told(32)).unwrap().session_keys.is_empty());
        assert!(Gateway::new(&ir::Gateway::default()).unwrap().session_keys.is_empty());
        let e = Gateway::new(&told(31)).unwrap_err().to_string();
        assert_eq!(e, "a session key of 31 bytes: it must have 32");
        // Who only asks what it would do is told of none.
        assert!(Gateway::outline(&told(0)).unwrap().session_keys.is_empty());
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        for (change, want) in [
            ((|l: &mut ir::Listener| l.port = 0) as fn(&mut ir::Listener), "port 0"),
            (|l| l.protocol = 9, "protocol 9"),
            (|l| l.protocol = ListenerProtocol::Https as i32, "HTTPS without TLS"),
            (|l| l.tls = Some(ir::Tls::default()), "TLS without a certificate"),
            (|l| l.tls = Some(ir::Tls { certificates: vec![ir::KeyPair::default()], ..Default::default() }), "key"),
        ] {
            let mut l = listener("Gateway/ns/g/l", &["*"]);
            change(&mut l);
            let e = Gateway::new(&ir::Gateway { listeners: vec![l], ..Default::default() }).unwrap_err().to_string();
            assert!(e.starts_with("Gateway/ns/g/l: ") && e.contains(want), "{e}");
        }
    }
}
