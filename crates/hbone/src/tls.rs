//! Mutual TLS 1.3 between workloads. A peer is who its certificate's one URI SAN says, if the chain leads to our roots;
//! anything else about the certificate (subject, DNS names) is ignored. Proven by `tests/identity.rs` (T22).

use crate::{
    revocation::{CertificateId, Refusal, Revocation, Role, Standing},
    stream,
};
use karst_core::Identity;
use karst_rt::clock;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime, pem::PemObject};
use std::{net::IpAddr, sync::Arc, time::SystemTime};

/// Sessions remembered for resumption, per identity and role.
const SESSIONS: usize = 512;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The chain or roots from the CA cannot be read.
    #[error("certificate from the CA: {0}")]
    Certificate(String),
    /// The peer's certificate names no workload.
    #[error("peer certificate: {0}")]
    Peer(String),
    /// TLS itself.
    #[error("TLS: {0}")]
    Tls(#[from] Error),
    /// What a resumed session remembers of the peer does not count any more.
    #[error("resumed session: {0}")]
    Resumed(Error),
    /// The peer's certificates do not count.
    #[error("peer certificate: {0}")]
    Refused(#[from] Refusal),
}

impl TlsError {
    /// The alert that tells the peer.
    pub fn alert(&self) -> u8 {
        let alert = match self {
            TlsError::Resumed(Error::InvalidCertificate(e)) => AlertDescription::from(e.clone()),
            TlsError::Certificate(_)
            | TlsError::Peer(_)
            | TlsError::Tls(_)
            | TlsError::Resumed(_)
            | TlsError::Refused(_) => AlertDescription::CertificateUnknown,
        };
        alert.into()
    }
}

/// The clock that peers' certificates are judged by: that of everything else.
#[derive(Debug)]
struct WallClock;

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(clock::since_epoch()))
    }
}

/// The certificates of one identity, ready for use in both roles. Made once per certificate, not per connection.
pub struct Credentials {
    /// Whose they are.
    pub identity: Identity,
    /// For accepting tunnels.
    pub server: Arc<ServerConfig>,
    /// For opening tunnels.
    pub client: Arc<ClientConfig>,
    /// Validity of the leaf.
    pub not_before: SystemTime,
    /// Validity of the leaf.
    pub not_after: SystemTime,
    /// Serial number of the leaf, hexadecimal.
    pub serial: String,
    /// The chain and the roots, PEM, for the admin page.
    pub pem: Vec<String>,
    /// Our own chain, as revocation lists name it.
    chain: Vec<CertificateId>,
    verifier: Arc<Verifier>,
}

/// The cryptography that is offered: TLS 1.3, AES-GCM, hybrid post-quantum key exchange first.
pub fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::{cipher_suite as cs, kx_group as kx};
    Arc::new(CryptoProvider {
        cipher_suites: vec![cs::TLS13_AES_256_GCM_SHA384, cs::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![kx::X25519MLKEM768, kx::X25519, kx::SECP256R1, kx::SECP384R1],
        ..aws_lc_rs::default_provider()
    })
}

impl Credentials {
    /// As [`Credentials::enforcing`], without revocation lists.
    ///
    /// # Errors
    /// The same.
    pub fn new(identity: Identity, chain: &[String], key: PrivateKeyDer<'static>) -> Result<Self, TlsError> {
        Self::enforcing(identity, chain, key, Revocation::none())
    }

    /// From the CA's answer: leaf, intermediates, and last the roots, all PEM.
    ///
    /// # Errors
    /// If something in it cannot be read, or the leaf is not for `identity` (a confused CA must not give one workload
    /// another's name).
    pub fn enforcing(
        identity: Identity,
        chain: &[String],
        key: PrivateKeyDer<'static>,
        revocation: Revocation,
    ) -> Result<Self, TlsError> {
        let bad = |e: String| TlsError::Certificate(e);
        let (roots_pem, certs_pem) = chain.split_last().ok_or_else(|| bad("empty chain".into()))?;
        let read = |pem: &str| {
            CertificateDer::pem_slice_iter(pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| bad(e.to_string()))
        };
        let mut certs = Vec::new();
        for pem in certs_pem {
            certs.extend(read(pem)?);
        }
        let leaf = certs.first().ok_or_else(|| bad("no leaf".into()))?;
        let found = identity_of(leaf)?;
        if found != identity {
            return Err(bad(format!("is for {found}, but {identity} was requested")));
        }
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|e| bad(e.to_string()))?;
        let time = |t: i64| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(t.max(0) as u64);
        let (not_before, not_after) =
            (time(parsed.validity().not_before.timestamp()), time(parsed.validity().not_after.timestamp()));
        let serial = parsed.raw_serial_as_string().replace(':', "");
        let mut roots = RootCertStore::empty();
        for root in read(roots_pem)? {
            roots.add(root)?;
        }
        if roots.is_empty() {
            return Err(bad("no root".into()));
        }
        let provider = provider();
        let own = CertificateId::of_chain(&certs)?;
        let trust_domain = identity.trust_domain().into();
        let verifier = Arc::new(Verifier { roots, trust_domain, provider: provider.clone(), revocation });
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier.clone())
            .with_single_cert(certs.clone(), key.clone_key())?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        server.session_storage = rustls::server::ServerSessionMemoryCache::new(SESSIONS);
        server.send_tls13_tickets = 1;
        server.enable_secret_extraction = true; // for `record`
        server.time_provider = Arc::new(WallClock);
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous() // there is no host name to check: the SPIFFE id is, by `expect`
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_auth_cert(certs, key)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        client.enable_sni = false;
        client.enable_secret_extraction = true;
        client.time_provider = Arc::new(WallClock);
        client.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(Self {
            identity,
            server: Arc::new(server),
            client: Arc::new(client),
            not_before,
            not_after,
            serial,
            pem: chain.to_vec(),
            chain: own,
            verifier,
        })
    }

    /// Who the peer of a handshake is, and the watch over its certificates. A resumed session is judged as a new one would be: the
    /// certificate that it remembers may have ended or been revoked since, and rustls does not look.
    ///
    /// # Errors
    /// If it has shown no certificate, or one that does not count (any more).
    pub fn admit(&self, role: Role, shown: &stream::Peer) -> Result<(Identity, Standing), TlsError> {
        let all = shown.certificates.as_deref().unwrap_or_default();
        let identity = peer_identity(Some(all))?;
        if let (true, [leaf, chain @ ..]) = (shown.resumed, all) {
            let clock = match role {
                Role::Client => &self.server.time_provider,
                Role::Server => &self.client.time_provider,
            };
            let now = clock.current_time().ok_or(Error::FailedToGetCurrentTime)?;
            self.verifier.check(leaf, chain, now, role).map_err(TlsError::Resumed)?;
        }
        let standing = self.verifier.revocation.standing(role, identity.clone(), all)?;
        Ok((identity, standing))
    }

    /// Is our own chain revoked?
    pub fn revoked(&self) -> Option<Refusal> {
        self.verifier.revocation.revoked(&self.chain)
    }

    /// Waits until our own chain is revoked.
    pub async fn until_revoked(&self) -> Refusal {
        self.verifier.revocation.until_revoked(&self.chain).await
    }
}

/// The workload that a certificate names.
///
/// # Errors
/// Unless it has exactly one URI SAN, and that is a SPIFFE id of our form (X509-SVID §2).
pub fn identity_of(cert: &CertificateDer<'_>) -> Result<Identity, TlsError> {
    use x509_parser::extensions::GeneralName;
    let bad = |e: &str| TlsError::Peer(e.to_string());
    let (rest, parsed) = x509_parser::parse_x509_certificate(cert).map_err(|_| bad("is not an X.509 certificate"))?;
    if !rest.is_empty() {
        return Err(bad("has bytes after its end"));
    }
    let san = parsed
        .subject_alternative_name()
        .map_err(|_| bad("has a malformed SAN extension"))?
        .ok_or_else(|| bad("has no SAN"))?;
    let mut uris = san.value.general_names.iter().filter_map(|n| match n {
        GeneralName::URI(u) => Some(*u),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else { return Err(bad("does not have exactly one URI SAN")) };
    uri.parse().map_err(|e| TlsError::Peer(format!("{e}")))
}

/// The URIs among a certificate's subject alternative names; none if it cannot be read.
pub fn uris_of(cert: &CertificateDer<'_>) -> Vec<String> {
    use x509_parser::extensions::GeneralName;
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(cert) else { return vec![] };
    let Ok(Some(san)) = parsed.subject_alternative_name() else { return vec![] };
    let uri = |n: &GeneralName<'_>| if let GeneralName::URI(uri) = n { Some((*uri).to_string()) } else { None };
    san.value.general_names.iter().filter_map(uri).collect()
}

/// The peer of an established session.
///
/// # Errors
/// If it has shown no certificate, or one without identity.
pub fn peer_identity(certs: Option<&[CertificateDer<'_>]>) -> Result<Identity, TlsError> {
    let leaf = certs.and_then(<[_]>::first).ok_or_else(|| TlsError::Peer("none was presented".into()))?;
    identity_of(leaf)
}

/// The name under which a session with a peer is remembered. No SNI is sent for it.
pub fn server_name(ip: IpAddr) -> ServerName<'static> {
    ServerName::IpAddress(ip.into())
}

#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    trust_domain: String,
    provider: Arc<CryptoProvider>,
    revocation: Revocation,
}

impl Verifier {
    /// All that is asked of a peer's certificates; whether it is the right workload is asked by who has called it.
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
    ) -> Result<(), Error> {
        let usage = match role {
            Role::Client => webpki::KeyUsage::client_auth(),
            Role::Server => webpki::KeyUsage::server_auth(),
        };
        let algorithms = self.provider.signature_verification_algorithms.all;
        let anchors: &[TrustAnchor<'_>] = &self.roots.roots;
        let end = webpki::EndEntityCert::try_from(leaf).map_err(refused)?;
        end.verify_for_usage(algorithms, anchors, chain, now, usage, None, None).map_err(refused)?;
        let id = identity_of(leaf).map_err(refused)?;
        if role == Role::Client && id.trust_domain() != self.trust_domain {
            return Err(refused(TlsError::Peer(format!("{id} is not in the trust domain {}", self.trust_domain))));
        }
        self.revocation.check(role, leaf, chain).map_err(|why| match why {
            // With the alert that says so.
            Refusal::Revoked(_) => Error::InvalidCertificate(CertificateError::Revoked),
            Refusal::Unknown | Refusal::Unreadable => Error::General(why.to_string()),
        })
    }
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// What both of rustls's traits ask in the same words: has the peer the key of the certificate that it shows?
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is not offered".into()))
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            rustls::crypto::verify_tls13_signature(
                message,
                certificate,
                signature,
                &self.provider.signature_verification_algorithms,
            )
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(leaf, chain, now, Role::Client)?;
        Ok(ClientCertVerified::assertion())
    }
    signatures!();
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Whether it is the right workload is checked after the handshake, which also covers resumed sessions.
        self.check(leaf, chain, now, Role::Server)?;
        Ok(ServerCertVerified::assertion())
    }
    signatures!();
}
