//! What a gateway listens on, compiled: which listener a name belongs to, the routes for it, and the TLS that ends here.

use crate::{
    authz::{access::Access, error::AccessError},
    downstream::{
        client_cert,
        topology::{Topology, TopologyError},
    },
    route::table::Routes,
    telemetry::rules::{Telemetry, TelemetryError},
};
use http::HeaderValue;
use imbl::HashMap;
use karst_api::route::{self as ir, ListenerProtocol};
use rustls::{
    HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier, danger::ClientCertVerifier},
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
    /// Who may send anything through it.
    pub access: Option<Access>,
    /// What we may show to endpoints, by name.
    pub credentials: BTreeMap<String, Pair>,
    /// What is told of requests; none: the standard.
    pub telemetry: Option<Arc<Telemetry>>,
    /// Who in front of it is believed.
    pub topology: Topology,
}

/// Certificates, the leaf first, and the leaf's key.
pub type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

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
    /// A wish of a later version about certificates of clients.
    #[error("client certificate {0}")]
    ClientCertificate(i32),
    /// Authorities of clients that cannot be read.
    #[error("CA certificates of clients: {0}")]
    ClientRoots(Box<dyn std::error::Error + Send + Sync>),
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
    /// The port that clients call.
    called: u16,
    /// The certificates that it shows, in PEM, for the admin page.
    chains: Vec<Vec<u8>>,
}

/// TLS that ends here.
#[derive(Debug)]
pub struct Tls {
    pub server: Arc<ServerConfig>,
    /// One of them must be a name of the client's certificate, if there are any.
    names: Vec<String>,
    /// Who looks at the client's certificate.
    clients: Option<Arc<dyn ClientCertVerifier>>,
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

    /// The same without keys, for who only asks what it would do: nothing can be shown to clients or endpoints.
    ///
    /// # Errors
    /// As [`Gateway::new`].
    pub fn outline(gateway: &ir::Gateway) -> Result<Self, GatewayError> {
        Self::compile(gateway, false)
    }

    fn compile(gateway: &ir::Gateway, has_keys: bool) -> Result<Self, GatewayError> {
        let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
        for listener in &gateway.listeners {
            let bad = |error: ListenerError| GatewayError::Listener { origin: listener.origin.clone(), error };
            let port = u16::try_from(listener.port)
                .ok()
                .filter(|p| *p > 0)
                .ok_or_else(|| bad(ListenerError::Port(listener.port)))?;
            let called = u16::try_from(listener.called).map_err(|_| bad(ListenerError::Port(listener.called)))?;
            let protocol = ListenerProtocol::try_from(listener.protocol)
                .map_err(|_| bad(ListenerError::Protocol(listener.protocol)))?;
            let tls = listener.tls.as_ref().filter(|_| has_keys);
            let tls = tls.map(|t| Tls::new(t, protocol)).transpose().map_err(bad)?;
            if protocol == ListenerProtocol::Https && listener.tls.is_none() {
                return Err(bad(ListenerError::NoTls));
            }
            ports.entry(port).or_default().listeners.push(Arc::new(Listener {
                origin: listener.origin.clone(),
                routes: listener.routes.clone(),
                protocol,
                hosts: listener.hosts.clone(),
                terminates_tls: listener.tls.is_some(),
                tls,
                redirect: listener.redirect,
                called: if called == 0 { port } else { called },
                chains: listener.tls.iter().flat_map(|tls| &tls.certificates).map(|pair| pair.chain.clone()).collect(),
            }));
        }
        let pair = |(name, k): (&String, &ir::KeyPair)| {
            read(k).map(|k| (name.clone(), k)).map_err(|error| GatewayError::Credential { name: name.clone(), error })
        };
        let credentials = gateway.credentials.iter().filter(|_| has_keys).map(pair).collect::<Result<_, _>>()?;
        let telemetry = gateway.telemetry.as_ref().map(Telemetry::new).transpose();
        let telemetry = telemetry?.map(Arc::new);
        let topology = Topology::new(gateway.topology.as_ref())?;
        let access = gateway.access.as_ref().map(Access::new).transpose()?;
        Ok(Self { ports, access, credentials, telemetry, topology })
    }

    /// Nothing is listened on, and nobody may call anything.
    pub fn closed() -> Self {
        Self { access: Some(Access::closed()), ..Self::default() }
    }

    /// For the admin page.
    pub fn describe(&self) -> serde_json::Value {
        let one = |l: &Arc<Listener>| serde_json::json!({ "origin": l.origin, "protocol": l.protocol.as_str_name(), "hosts": l.hosts, "endsTls": l.terminates_tls });
        let port = |(p, x): (&u16, &Port)| (p.to_string(), x.listeners.iter().map(one).collect::<Vec<_>>().into());
        self.ports.iter().map(port).collect::<serde_json::Map<_, serde_json::Value>>().into()
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
        // One that is alone is looked at once.
        let best =
            if self.listeners.len() > 1 { self.listeners.iter().filter_map(|l| l.rank(name)).max() } else { None };
        self.listeners.iter().filter(move |l| match l.rank(name) {
            None => false,
            rank => best.is_none() || rank == best,
        })
    }

    /// The port that clients call, who do not know where we listen.
    pub fn called(&self) -> Option<u16> {
        self.listeners.first().map(|l| l.called)
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

    /// The port that clients call.
    pub fn called(&self) -> u16 {
        self.called
    }

    /// The certificates that it shows, in PEM.
    pub fn chains(&self) -> &[Vec<u8>] {
        &self.chains
    }

    fn rank(&self, name: Option<&str>) -> Option<usize> {
        self.hosts.iter().filter_map(|h| rank(h, name)).max()
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

/// How closely a listener's name fits; None: not.
fn rank(host: &str, name: Option<&str>) -> Option<usize> {
    match (host, name) {
        ("*", _) => Some(0),
        (_, None) => None,
        (h, Some(n)) if h == n => Some(usize::MAX),
        (h, Some(n)) => h.strip_prefix('*').filter(|s| n.len() > s.len() && n.ends_with(s)).map(str::len),
    }
}

impl Tls {
    fn new(tls: &ir::Tls, protocol: ListenerProtocol) -> Result<Self, ListenerError> {
        // Clients are not of the mesh: some have only TLS 1.2, which the mesh's own provider leaves out.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut keys = vec![];
        for pair in &tls.certificates {
            let (chain, key) = read(pair)?;
            keys.push(Arc::new(CertifiedKey::from_der(chain, key, &provider)?));
        }
        if keys.is_empty() {
            return Err(ListenerError::NoCertificate);
        }
        let versions: &[&rustls::SupportedProtocolVersion] =
            if tls.modern { &[&rustls::version::TLS13] } else { &[&rustls::version::TLS13, &rustls::version::TLS12] };
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
        let clients = clients(tls, &provider)?;
        let builder = match clients.clone() {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier),
        };
        let keys = Arc::new(Keys(keys));
        let mut server = builder.with_cert_resolver(keys.clone());
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

    /// A session that is resumed remembers the certificate of the first handshake, and rustls does not look at it again: it may
    /// have ended since.
    ///
    /// # Errors
    /// The client's certificate does not count any more.
    pub fn still_valid(&self, connection: &ServerConnection) -> Result<(), rustls::Error> {
        let Some(verifier) =
            self.clients.as_ref().filter(|_| connection.handshake_kind() == Some(HandshakeKind::Resumed))
        else {
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

fn clients(
    tls: &ir::Tls,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, ListenerError> {
    let wanted =
        ir::ClientCertificate::try_from(tls.client).map_err(|_| ListenerError::ClientCertificate(tls.client))?;
    if wanted == ir::ClientCertificate::None {
        return Ok(None);
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&tls.client_roots) {
        let root = certificate.map_err(|e| ListenerError::ClientRoots(e.into()))?;
        roots.add(root).map_err(|e| ListenerError::ClientRoots(e.into()))?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    if wanted == ir::ClientCertificate::Optional {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map(Some).map_err(|e| ListenerError::ClientRoots(e.into()))
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
            let mut tls = Tls::new(&listener, ListenerProtocol::Tls).unwrap();
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
