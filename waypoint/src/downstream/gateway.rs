//! What a gateway listens on, compiled: which listener a name belongs to, the routes for it, and the TLS that ends here.

use crate::{
    authz::{
        access::Access,
        error::AccessError,
        external::provider::{Provider, ProviderError},
    },
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
use imbl::OrdMap;
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
    /// Nobody is told of who may sign them.
    #[error("client authorities {0:?} are missing")]
    NoAuthorities(String),
    /// A cipher suite or a curve of a later version.
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    /// No version of TLS is left.
    #[error("TLS 1.3 only and TLS 1.2 only")]
    Versions,
    /// Nobody can ask who is to be asked about its requests.
    #[error("filter: external authorization: {0}")]
    Filter(#[from] ProviderError),
    /// Filters of connections, or of something else that a later version knows.
    #[error("filters that are not of requests")]
    Filters,
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

/// One port.
#[derive(Debug, Default)]
pub struct Port {
    listeners: Vec<Arc<Listener>>,
    /// The host names of those that cannot be used. They are nobody else's: another listener may ask less of clients.
    closed: Vec<Vec<String>>,
    /// Of the listeners, and then of those that are closed.
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

/// What each request of a listener passes before one of its routes is chosen.
#[derive(Debug)]
pub enum Filter {
    /// Somebody is asked whether it goes on, and how.
    ExternalAuth(Arc<Provider>),
    /// It does not: the filter cannot be executed.
    Refuse,
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
    /// In this order.
    filters: Box<[Filter]>,
    /// What it asks of clients, as a number: listeners with the same one ask the same.
    asks: usize,
    /// It serves nobody without a certificate that counts.
    requires_certificate: bool,
    /// The port that clients call.
    called: u16,
    /// The certificates that it shows, in PEM, for the admin page.
    chains: Vec<Vec<u8>>,
}

/// Who may sign certificates of clients: authorities of the gateway that have a name, or (an older controller's) the listener's own.
#[derive(PartialEq)]
enum Signers<'a> {
    Named(&'a str),
    Own { roots: &'a [u8], lists: &'a [Vec<u8>] },
}

/// What listeners that end TLS ask of clients.
#[derive(PartialEq)]
struct Asked<'a> {
    client: i32,
    signers: Signers<'a>,
    names: &'a [String],
}

/// What is asked, and who looks at what is shown: once for all listeners that ask the same, since what is revoked may be much.
type Asking<'a> = Vec<(Option<Asked<'a>>, Option<ClientAuth>)>;

impl<'a> Asked<'a> {
    fn of(tls: &'a ir::Tls) -> Self {
        // Who is asked for nothing is asked the same everywhere.
        if tls.client == ir::ClientCertificate::None as i32 {
            return Self { client: tls.client, signers: Signers::Own { roots: &[], lists: &[] }, names: &[] };
        }
        let signers = match tls.client_authorities.as_str() {
            "" => Signers::Own { roots: &tls.client_roots, lists: &tls.client_lists },
            name => Signers::Named(name),
        };
        Self { client: tls.client, signers, names: &tls.client_names }
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
    #[cfg(any(test, feature = "fuzz"))]
    pub fn new(gateway: &ir::Gateway) -> Result<Self, GatewayError> {
        whole(Self::closing(gateway, true)?)
    }

    /// The same without keys.
    ///
    /// # Errors
    /// As [`Gateway::new`].
    #[cfg(test)]
    pub fn outline(gateway: &ir::Gateway) -> Result<Self, GatewayError> {
        whole(Self::closing(gateway, false)?)
    }

    /// Compiles; each part that cannot be used is closed, and the rest is in force: such a listener takes nobody, such policies let
    /// nobody in, such a certificate is shown to no endpoint; of such telemetry nothing is in force. And the first that is wrong. Without
    /// keys (`has_keys`), for who only asks what it would do, nothing can be shown to clients or endpoints.
    ///
    /// # Errors
    /// What else cannot be used: then nothing is to be.
    pub fn closing(gateway: &ir::Gateway, has_keys: bool) -> Result<(Self, Option<GatewayError>), GatewayError> {
        let (mut wrong, mut asked, mut ports) = (vec![], Asking::new(), BTreeMap::<u16, Port>::new());
        for said in &gateway.listeners {
            match Listener::new(gateway, said, has_keys, &mut asked) {
                Ok((port, listener)) => ports.entry(port).or_default().listeners.push(Arc::new(listener)),
                Err(error) => {
                    wrong.push(GatewayError::Listener { origin: said.origin.clone(), error });
                    if let Some(port) = port_number(said.port) {
                        ports.entry(port).or_default().closed.push(said.hosts.clone());
                    }
                }
            }
        }
        ports.retain(|_, port| !port.listeners.is_empty());
        ports.values_mut().for_each(Port::index);
        let mut udp = BTreeMap::new();
        for said in &gateway.udp {
            match UdpListener::new(said) {
                // Two of one port have been told apart before; the first counts.
                Ok((port, listener)) => {
                    udp.entry(port).or_insert(listener);
                }
                Err(error) => wrong.push(GatewayError::Listener { origin: said.origin.clone(), error }),
            }
        }
        let unread = |name: &str, error| GatewayError::Credential { name: name.into(), error };
        let mut credentials = BTreeMap::new();
        for (name, pair) in gateway.credentials.iter().filter(|_| has_keys) {
            match read(pair) {
                Ok(pair) => drop(credentials.insert(name.clone(), pair)),
                Err(error) => wrong.push(unread(name, error)),
            }
        }
        let own = gateway.backend_certificate.as_ref().filter(|own| has_keys || own.pair.is_none());
        let backend_certificate = own.map(|own| match own.pair.as_ref().map(read) {
            Some(Ok(pair)) => Ok(pair),
            Some(Err(error)) => {
                let text = error.to_string();
                wrong.push(unread("spec.tls.backend", error));
                Err(BrokenCertificate(text))
            }
            None => Err(BrokenCertificate(own.broken.clone())),
        });
        let access = gateway.access.as_ref().map(|access| {
            Access::new(access).unwrap_or_else(|error| {
                wrong.push(error.into());
                Access::closed()
            })
        });
        let telemetry = gateway.telemetry.as_ref().and_then(|said| match Telemetry::new(said) {
            Ok(telemetry) => Some(Arc::new(telemetry)),
            // What is told of requests decides about none, and policies do not wait for it.
            Err(error) => {
                wrong.push(error.into());
                None
            }
        });
        let topology = Topology::new(gateway.topology.as_ref())?;
        let backend_parameters = gateway.backend_parameters.clone();
        let session_keys: &[ir::SessionKey] = if has_keys { &gateway.session_keys } else { &[] };
        let session_keys = SessionKeys::new(session_keys)?;
        let own = Self {
            ports,
            udp,
            access,
            credentials,
            backend_certificate,
            telemetry,
            topology,
            backend_parameters,
            session_keys,
        };
        Ok((own, wrong.into_iter().next()))
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

/// A gateway of which nothing is closed.
#[cfg(any(test, feature = "fuzz"))]
fn whole((gateway, wrong): (Gateway, Option<GatewayError>)) -> Result<Gateway, GatewayError> {
    wrong.map_or(Ok(gateway), Err)
}

/// None: it is no number of a port.
fn port_number(number: u32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port > 0)
}

/// Where a listener is, and the port that clients call.
fn ports(port: u32, called: u32) -> Result<(u16, u16), ListenerError> {
    let own = port_number(port).ok_or(ListenerError::Port(port))?;
    match u16::try_from(called) {
        Ok(0) => Ok((own, own)),
        Ok(called) => Ok((own, called)),
        Err(_) => Err(ListenerError::Port(called)),
    }
}

impl Port {
    fn index(&mut self) {
        let open = self.listeners.iter().map(|l| l.hosts.as_slice());
        self.by_host = ByHost::new(open.chain(self.closed.iter().map(Vec::as_slice)));
    }

    /// All that take anything, in order.
    pub fn listeners(&self) -> &[Arc<Listener>] {
        &self.listeners
    }

    /// The listeners for a name (that of a request, or of a TLS hello): of those that it fits, the ones with the longest
    /// name of their own, in order; none, if one of them is closed.
    pub fn find<'a>(&'a self, name: Option<&str>) -> impl Iterator<Item = &'a Arc<Listener>> + use<'a> {
        let places = self.by_host.find(name);
        let is_closed = places.iter().any(|place| *place >= self.listeners.len());
        let open: &[usize] = if is_closed { &[] } else { places };
        open.iter().filter_map(move |place| self.listeners.get(*place))
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

impl UdpListener {
    /// Compiles, with the port that it is at.
    fn new(said: &ir::UdpListener) -> Result<(u16, Self), ListenerError> {
        let (port, called) = ports(said.port, said.called)?;
        let routes = format!("{}/*", said.routes).into();
        Ok((port, Self { origin: said.origin.clone(), routes, called }))
    }
}

impl Listener {
    /// Compiles, with the port that it is at.
    fn new<'a>(
        gateway: &'a ir::Gateway,
        said: &'a ir::Listener,
        has_keys: bool,
        asked: &mut Asking<'a>,
    ) -> Result<(u16, Self), ListenerError> {
        let (port, called) = ports(said.port, said.called)?;
        let protocol = protocol(said)?;
        if protocol == ListenerProtocol::Https && said.tls.is_none() {
            return Err(ListenerError::NoTls);
        }
        let tls = said.tls.as_ref().filter(|_| has_keys);
        let own = said.tls.as_ref().map(Asked::of);
        let requires_certificate = own.as_ref().is_some_and(|own| own.client == ir::ClientCertificate::Required as i32);
        let known = asked.iter().position(|(known, _)| *known == own);
        let (asks, clients) = match known.and_then(|asks| Some((asks, asked.get(asks)?.1.clone()))) {
            Some(known) => known,
            None => {
                let clients = tls.map(|tls| client_auth(gateway, tls)).transpose()?.flatten();
                asked.push((own, clients.clone()));
                (asked.len() - 1, clients)
            }
        };
        let tls = tls.map(|tls| Tls::new(tls, protocol, clients)).transpose()?;
        let listener = Self {
            origin: said.origin.clone(),
            routes: said.routes.clone(),
            protocol,
            hosts: said.hosts.clone(),
            terminates_tls: said.tls.is_some(),
            tls,
            redirect: said.redirect,
            grpc_web: said.grpc_web,
            filters: filters(said.filters.as_ref())?,
            asks,
            requires_certificate,
            called,
            chains: said.tls.iter().flat_map(|tls| &tls.certificates).map(|pair| pair.chain.clone()).collect(),
        };
        Ok((port, listener))
    }

    /// The names of its virtual hosts begin so, before a slash.
    pub fn route_name(&self) -> &str {
        &self.routes
    }

    /// What its requests pass before one of its routes is chosen, in this order.
    pub fn filters(&self) -> &[Filter] {
        &self.filters
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
    pub fn routes<'a>(&self, hosts: &'a OrdMap<Arc<str>, Arc<Routes>>, name: &str) -> Option<&'a Routes> {
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

/// What is spoken; the number says, too, whether there are filters: who knows of none is to close the listener.
fn protocol(said: &ir::Listener) -> Result<ListenerProtocol, ListenerError> {
    let flag = if said.filters.is_some() { ir::ListenerFlag::Filtered } else { ir::ListenerFlag::None };
    let known = ListenerProtocol::try_from(said.protocol.wrapping_sub(flag as i32));
    let known = known.map_err(|_| ListenerError::Protocol(said.protocol))?;
    let has_requests = matches!(known, ListenerProtocol::Http | ListenerProtocol::Https);
    match said.filters.as_ref().is_none_or(|filters| has_requests && !filters.requests.is_empty()) {
        true => Ok(known),
        false => Err(ListenerError::Filters),
    }
}

fn filters(said: Option<&ir::ListenerFilters>) -> Result<Box<[Filter]>, ListenerError> {
    let one = |filter: &ir::ListenerFilter| match &filter.authorization {
        Some(provider) => Ok(Filter::ExternalAuth(Arc::new(Provider::new(provider)?))),
        None => Ok(Filter::Refuse),
    };
    said.into_iter().flat_map(|said| &said.requests).map(one).collect()
}

/// What a listener asks of clients. (Which cipher suites it has does not matter for that.)
fn client_auth(gateway: &ir::Gateway, tls: &ir::Tls) -> Result<Option<ClientAuth>, ListenerError> {
    let (roots, lists): (&[u8], &[Vec<u8>]) = match Asked::of(tls).signers {
        Signers::Own { roots, lists } => (roots, lists),
        Signers::Named(name) => {
            let told = gateway.client_authorities.get(name);
            let told = told.ok_or_else(|| ListenerError::NoAuthorities(name.into()))?;
            (&told.roots, &told.lists)
        }
    };
    Ok(ClientAuth::new(tls.client, roots, lists, &Arc::new(tls_parameters::provider(None)?))?)
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
            let clients = client_auth(&ir::Gateway::default(), &listener).unwrap();
            let mut tls = Tls::new(&listener, ListenerProtocol::Tls, clients).unwrap();
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
                client_authorities: "ca".into(),
                ..Default::default()
            };
            let protocol = ListenerProtocol::Https as i32;
            ir::Listener { tls: Some(tls), protocol, ..listener(origin, &[origin]) }
        };
        let (required, optional) = (ir::ClientCertificate::Required, ir::ClientCertificate::Optional);
        let none = ir::ClientCertificate::None;
        let listeners = [("a", required), ("b", optional), ("c", required), ("d", none)];
        let listeners: Vec<ir::Listener> = listeners.map(|(origin, client)| asking(origin, client)).into();
        let authorities = ir::ClientAuthorities { roots: own.cert.pem().into(), lists: vec![] };
        let client_authorities = [("ca".to_string(), authorities)].into();
        let told = ir::Gateway { listeners, client_authorities, ..Default::default() };
        let g = Gateway::new(&told).unwrap();
        let all = g.ports[&80].listeners();
        let clients = |index: usize| all[index].tls.as_ref().unwrap().clients.as_ref().map(|c| c.verifier.clone());
        let [Some(a), Some(b), Some(c), None] = [0, 1, 2, 3].map(clients) else { panic!("{all:?}") };
        assert!(Arc::ptr_eq(&a, &c) && !Arc::ptr_eq(&a, &b));
        assert!(all[0].asks_like(&all[2]) && !all[0].asks_like(&all[1]) && !all[1].asks_like(&all[3]));
        assert_eq!([0, 1, 2, 3].map(|i: usize| all[i].requires_certificate()), [true, false, true, false]);
        // Whose certificates count is not known: only who asks for none is served.
        let untold = ir::Gateway { client_authorities: Default::default(), ..told.clone() };
        let (g, wrong) = Gateway::closing(&untold, true).unwrap();
        assert_eq!(wrong.unwrap().to_string(), "a: client authorities \"ca\" are missing");
        assert_eq!(g.ports[&80].listeners().iter().map(|l| &*l.origin).collect::<Vec<_>>(), ["d"]);
        // An older controller's listeners have roots of their own.
        let mut older = untold;
        for tls in older.listeners.iter_mut().filter_map(|l| l.tls.as_mut()) {
            (tls.client_authorities, tls.client_roots) = (String::new(), own.cert.pem().into());
        }
        let g = Gateway::new(&older).unwrap();
        assert!(g.ports[&80].listeners()[0].tls.as_ref().unwrap().clients.is_some());
    }

    /// A collector's protocol of a newer controller, say.
    #[test]
    fn telemetry_that_cannot_be_used_holds_up_no_policy() {
        let collector = ir::Collector { service: "ns/c".into(), port: 4317, protocol: 9, ..Default::default() };
        let export = ir::LogExport { collector: Some(collector), ..Default::default() };
        let gateway = ir::Gateway {
            listeners: vec![listener("a", &["*"])],
            telemetry: Some(ir::Telemetry { log_exports: vec![export], ..Default::default() }),
            access: Some(ir::Access::default()),
            ..Default::default()
        };
        let (g, wrong) = Gateway::closing(&gateway, true).unwrap();
        assert!(g.telemetry.is_none() && g.access.is_some() && g.ports.contains_key(&80));
        let wrong = wrong.unwrap().to_string();
        assert!(wrong.starts_with("telemetry: access log: "), "{wrong}");
    }

    /// A listener of a newer controller: its names are not served by one with a wider name, which may ask for less.
    #[test]
    fn a_listener_that_cannot_be_used_is_closed_and_the_others_are_in_force() {
        let own = rcgen::generate_simple_self_signed(vec!["gateway".to_string()]).unwrap();
        let pair = ir::KeyPair { chain: own.cert.pem().into(), key: own.signing_key.serialize_pem().into() };
        let https = |origin: &str, port: u32, hosts: &[&str]| {
            let tls = Some(ir::Tls { certificates: vec![pair.clone()], ..Default::default() });
            let protocol = ListenerProtocol::Https as i32;
            ir::Listener { port, protocol, tls, ..listener(origin, hosts) }
        };
        let tls = |listener: &mut ir::Listener, change: fn(&mut ir::Tls)| change(listener.tls.as_mut().unwrap());
        let (mut suite, mut curve) = (https("suite", 443, &["a.com", "*.b.com"]), https("curve", 8443, &["*"]));
        tls(&mut suite, |tls| {
            let cipher_suites = vec!["NEW".into()];
            tls.parameters = Some(ir::TlsParameters { cipher_suites, ..Default::default() });
        });
        tls(&mut curve, |tls| {
            tls.parameters = Some(ir::TlsParameters { curves: vec!["NEW".into()], ..Default::default() });
        });
        let later = ir::Listener { protocol: 9, ..listener("later", &["*"]) };
        let nowhere = ir::Listener { port: 0, ..listener("nowhere", &["*"]) };
        let listeners = vec![suite, https("wide", 443, &["*"]), curve, later, nowhere];
        let udp = |origin: &str, port| ir::UdpListener { origin: origin.into(), port, ..Default::default() };
        let credentials = [("bad", ir::KeyPair::default()), ("good", pair.clone())];
        let gateway = ir::Gateway {
            listeners,
            udp: vec![udp("none", 0), udp("dns", 53)],
            credentials: credentials.map(|(name, pair)| (name.to_string(), pair)).into(),
            backend_certificate: Some(ir::BackendCertificate {
                pair: Some(ir::KeyPair::default()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let (g, wrong) = Gateway::closing(&gateway, true).unwrap();
        assert_eq!(wrong.unwrap().to_string(), "suite: unknown cipher suite \"NEW\"");
        assert_eq!(g.ports.keys().copied().collect::<Vec<_>>(), [443], "where none is left nobody is taken");
        let found = |name: Option<&'static str>| g.ports[&443].find(name).map(|l| &*l.origin).collect::<Vec<_>>();
        for (name, want) in [
            (Some("b.com"), &["wide"][..]),
            (Some("c.com"), &["wide"]),
            (None, &["wide"]),
            (Some("a.com"), &[]),
            (Some("x.b.com"), &[]),
        ] {
            assert_eq!(found(name), want, "{name:?}");
        }
        assert_eq!(g.udp.keys().copied().collect::<Vec<_>>(), [53]);
        assert_eq!(g.credentials.keys().collect::<Vec<_>>(), ["good"]);
        assert!(g.backend_certificate.unwrap().unwrap_err().0.starts_with("key: "));
        assert!(Gateway::new(&gateway).is_err());
    }

    /// The number of its protocol says that there are filters, so that who does not know the field closes the listener; and whichever
    /// of the two is missing does.
    #[test]
    fn a_listener_with_filters_says_so_twice() {
        let provider = ir::AuthzProvider { service: "ns/authz".into(), port: 80, ..Default::default() };
        let filter = |authorization| ir::ListenerFilter { authorization };
        let filters = |requests| Some(ir::ListenerFilters { requests });
        let flag = ir::ListenerFlag::Filtered as i32;
        let read = |protocol: i32, filters: Option<ir::ListenerFilters>| {
            let said = ir::Listener { protocol, filters, ..listener("l", &["*"]) };
            let gateway = Gateway::new(&ir::Gateway { listeners: vec![said], ..Default::default() });
            let (port, listener) = gateway.map_err(|e| e.to_string())?.ports.pop_first().ok_or("closed")?;
            assert_eq!((port, listener.protocol()), (80, ListenerProtocol::Http));
            let one =
                |filter: &Filter| matches!(filter, Filter::ExternalAuth(provider) if &*provider.service == "ns/authz");
            Ok::<_, String>(listener.listeners()[0].filters().iter().map(one).collect::<Vec<bool>>())
        };
        assert_eq!(read(0, None), Ok(vec![]));
        assert_eq!(read(flag, filters(vec![filter(Some(provider.clone())), filter(None)])), Ok(vec![true, false]));
        assert_eq!(read(flag, None), Err(format!("l: protocol {flag}")));
        assert_eq!(read(0, filters(vec![filter(Some(provider.clone()))])), Err("l: protocol 0".into()));
        // Nobody asks about connections, nor by filters of a kind that is not known.
        let unknown = Err("l: filters that are not of requests".to_string());
        for protocol in [ListenerProtocol::Tls, ListenerProtocol::Tcp] {
            let of_bytes = filters(vec![filter(Some(provider.clone()))]);
            assert_eq!(read(flag + protocol as i32, of_bytes), unknown, "{protocol:?}");
        }
        assert_eq!(read(flag, filters(vec![])), unknown);
        let later = ir::AuthzProvider { protocol: 99, ..provider };
        let wrong = read(flag, filters(vec![filter(Some(later))]));
        assert_eq!(wrong, Err("l: filter: external authorization: protocol 99".into()));
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
