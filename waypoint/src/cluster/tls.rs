//! TLS to a destination's endpoints (Istio's ClientTLSSettings): how it is spoken, and whose certificates count.

use crate::{
    downstream::gateway::Pair,
    snapshot::Snapshot,
    tls_parameters::{self, ParametersError},
};
use karst_api::route as ir;
use karst_hbone::revocation::{ListError, Lists};
use prost::Message;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::CryptoProvider,
    server::ParsedCertificate,
};
use rustls_pki_types::{
    CertificateDer, ServerName, UnixTime,
    pem::{self, PemObject},
};
use std::sync::Arc;
use webpki::{CertRevocationList, EndEntityCert, KeyUsage, RevocationOptionsBuilder};

/// How TLS is spoken, the name in the hello, and who looks at the endpoint's certificate.
pub type Config = (Arc<ClientConfig>, ServerName<'static>, Arc<Verifier>);

/// All that decides about it: rules, host name, our own certificate.
pub fn rules(snapshot: &Snapshot, tls: &ir::ClientTls, host: &str) -> Arc<[u8]> {
    let shown = match own(snapshot, tls) {
        Ok(pair) => pair.and_then(|(chain, _)| chain.first()).map(|leaf| leaf.to_vec()).unwrap_or_default(),
        // While it cannot be, what cannot be made is not made again; then it is another.
        Err(error) => error.to_string().into_bytes(),
    };
    let spoken = parameters(snapshot).map(Message::encode_to_vec).unwrap_or_default();
    [&tls.encode_to_vec()[..], host.as_bytes(), &shown, &spoken].concat().into()
}

/// What TLS is spoken with; None: with what the library has by default.
fn parameters(snapshot: &Snapshot) -> Option<&ir::TlsParameters> {
    snapshot.gateway.as_ref()?.backend_parameters.as_ref()
}

/// What we show by these rules. None: nothing.
fn own<'a>(snapshot: &'a Snapshot, tls: &ir::ClientTls) -> Result<Option<&'a Pair>, RulesError> {
    let gateway = snapshot.gateway.as_ref();
    if !tls.credential.is_empty() {
        let found = gateway.and_then(|g| g.credentials.get(&tls.credential));
        return found.map(Some).ok_or_else(|| RulesError::NoCredential(tls.credential.clone()));
    }
    match gateway.and_then(|g| g.backend_certificate.as_ref()).filter(|_| tls.by_gateway) {
        None => Ok(None),
        Some(Ok(pair)) => Ok(Some(pair)),
        Some(Err(why)) => Err(RulesError::Broken(why.0.clone())),
    }
}

/// Why TLS cannot be spoken by the rules of a destination.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The control plane says that they cannot be kept.
    #[error("{0}")]
    Broken(String),
    /// A name that no certificate has.
    #[error("{0:?} is neither a DNS name nor an address")]
    Name(String),
    /// The authorities cannot be read.
    #[error("the CA certificates are not PEM: {0}")]
    Roots(pem::Error),
    /// There are none.
    #[error("there is no CA certificate")]
    NoRoots,
    /// What they have revoked cannot be read.
    #[error("revocation lists: {0}")]
    Lists(#[source] Box<ListError>),
    /// We have nothing to show.
    #[error("Secret {0} has not been received")]
    NoCredential(String),
    /// A cipher suite or a curve of a later version.
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    /// TLS cannot use what we have.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// TLS by the rules of a destination.
///
/// # Errors
/// Why it cannot be spoken.
pub fn config(snapshot: &Snapshot, tls: &ir::ClientTls, host: &str) -> Result<Config, RulesError> {
    if !tls.broken.is_empty() {
        return Err(RulesError::Broken(tls.broken.clone()));
    }
    let name = |n: &str| ServerName::try_from(n.to_string()).map_err(|_| RulesError::Name(n.into()));
    let sni = name(if tls.sni.is_empty() { host } else { &tls.sni })?;
    let (uris, dns): (Vec<&String>, Vec<&String>) = tls.names.iter().partition(|n| n.contains("://"));
    let uris: Vec<String> = uris.into_iter().cloned().collect();
    let mut names = dns.into_iter().map(|n| name(n)).collect::<Result<Vec<_>, _>>()?;
    if tls.names.is_empty() {
        names.push(sni.clone());
    }
    let mut roots = RootCertStore::empty();
    match tls.roots.is_empty() {
        true => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        false => {
            let all = CertificateDer::pem_slice_iter(&tls.roots).collect::<Result<Vec<_>, _>>();
            let all = all.map_err(RulesError::Roots)?;
            if roots.add_parsable_certificates(all).0 == 0 {
                return Err(RulesError::NoRoots);
            }
        }
    }
    let provider = Arc::new(tls_parameters::provider(parameters(snapshot))?);
    let mut lists = vec![];
    for list in &tls.lists {
        lists.extend(Lists::read(list).map_err(|e| RulesError::Lists(Box::new(e)))?.into_inner());
    }
    let unverified = tls.unverified;
    let verifier = Arc::new(Verifier { names, uris, roots, lists, provider: provider.clone(), unverified });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone());
    let config = match own(snapshot, tls)? {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key())?,
    };
    Ok((Arc::new(config), sni, verifier))
}

/// Who answers must have one of the names.
#[derive(Debug)]
pub struct Verifier {
    names: Vec<ServerName<'static>>,
    uris: Vec<String>,
    roots: RootCertStore,
    /// Which certificates are revoked; none: no lists are kept.
    lists: Vec<CertRevocationList<'static>>,
    provider: Arc<CryptoProvider>,
    unverified: bool,
}

impl Verifier {
    /// Looks up the whole chain. Of an issuer without a list nothing is known, and who is not known is not called.
    fn look_up(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        let lists: Vec<&CertRevocationList<'_>> = self.lists.iter().collect();
        let Ok(revocation) = RevocationOptionsBuilder::new(&lists) else { return Ok(()) };
        let cert = EndEntityCert::try_from(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let (usage, revocation) = (KeyUsage::server_auth(), Some(revocation.build()));
        let verified = cert.verify_for_usage(algorithms, &self.roots.roots, chain, now, usage, revocation, None);
        verified.map(drop).map_err(|e| match e {
            webpki::Error::CertRevoked => CertificateError::Revoked,
            _ => CertificateError::UnknownRevocationStatus,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _sni: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.unverified {
            return Ok(ServerCertVerified::assertion());
        }
        let cert = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&cert, &self.roots, chain, now, algorithms)?;
        self.look_up(leaf, chain, now)?;
        let mut last = rustls::Error::InvalidCertificate(CertificateError::NotValidForName);
        for n in &self.names {
            match verify_server_name(&cert, n) {
                Ok(()) => return Ok(ServerCertVerified::assertion()),
                Err(e) => last = e,
            }
        }
        // One of them will do, as it is written.
        match !self.uris.is_empty() && karst_hbone::tls::uris_of(leaf).iter().any(|u| self.uris.contains(u)) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(last),
        }
    }
    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(m, c, d, &self.provider.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(m, c, d, &self.provider.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::{
        downstream::gateway::Gateway,
        testing::pki::{self, Authority, authority},
    };
    use rcgen::{CertificateParams, KeyPair};

    fn pair(name: &str) -> ir::KeyPair {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec![name.to_string()]).unwrap().self_signed(&key).unwrap();
        ir::KeyPair { chain: cert.pem().into(), key: key.serialize_pem().into() }
    }

    fn snapshot(backend_certificate: Option<ir::BackendCertificate>) -> Snapshot {
        let credentials = [("c".to_string(), pair("named"))].into();
        let gateway = ir::Gateway { backend_certificate, credentials, ..Default::default() };
        let mut snapshot = Snapshot::new("");
        snapshot.gateway = Some(Arc::new(Gateway::new(&gateway).unwrap()));
        snapshot
    }

    #[test]
    fn endpoints_that_are_revoked_or_cannot_be_looked_up_are_not_called() {
        let (ca, other) = (authority("a"), authority("b"));
        let list = |of: &Authority| pki::list(of, 7).pem().unwrap().into_bytes();
        let called = |lists: Vec<Vec<u8>>, serial: u64| {
            let leaf = pki::certificate(&ca, "x", serial);
            let tls = ir::ClientTls { sni: "x".into(), roots: ca.pem().into(), lists, ..Default::default() };
            let (_, name, verifier) = config(&Snapshot::new(""), &tls, "h").map_err(|e| e.to_string())?;
            let verified = verifier.verify_server_cert(&leaf, &[], &name, &[], UnixTime::now());
            verified.map(drop).map_err(|e| e.to_string())
        };
        assert_eq!([7, 8].map(|serial| called(vec![], serial)), [Ok(()), Ok(())]);
        assert_eq!(called(vec![list(&ca), list(&other)], 8), Ok(()));
        assert!(called(vec![list(&ca)], 7).unwrap_err().contains("Revoked"));
        assert!(called(vec![list(&other)], 8).unwrap_err().contains("UnknownRevocationStatus"));
        assert!(called(vec![b"none".to_vec()], 8).unwrap_err().starts_with("revocation lists: "));
    }

    #[test]
    fn tls_to_endpoints_is_spoken_as_the_mesh_says() {
        let tls = ir::ClientTls { sni: "x".into(), ..Default::default() };
        let of = |cipher_suites: &[&str], curves: &[&str]| {
            let all = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            let parameters = ir::TlsParameters { cipher_suites: all(cipher_suites), curves: all(curves) };
            let gateway = ir::Gateway { backend_parameters: Some(parameters), ..Default::default() };
            let mut snapshot = Snapshot::new("");
            snapshot.gateway = Some(Arc::new(Gateway::new(&gateway).unwrap()));
            snapshot
        };
        let provider = |s: &Snapshot| config(s, &tls, "h").map(|(config, ..)| config.crypto_provider().clone());
        let groups = |p: &CryptoProvider| p.kx_groups.iter().map(|g| format!("{:?}", g.name())).collect::<Vec<_>>();
        let (without, with) = (Snapshot::new(""), of(&["ECDHE-RSA-AES256-GCM-SHA384"], &["P-384", "X25519"]));
        assert_eq!(provider(&without).unwrap().cipher_suites.len(), 9);
        let with_them = provider(&with).unwrap();
        // Three of TLS 1.3, and the one that is named.
        assert_eq!(with_them.cipher_suites.len(), 4);
        assert_eq!(groups(&with_them), ["secp384r1", "X25519"]);
        assert!(rules(&without, &tls, "h") != rules(&with, &tls, "h"));
        assert_eq!(provider(&of(&[], &["P-521"])).unwrap_err().to_string(), "unknown curve \"P-521\"");
    }

    #[test]
    fn a_gateway_shows_its_certificate_only_where_a_policy_makes_tls() {
        let of_policy = ir::ClientTls { sni: "x".into(), by_gateway: true, ..Default::default() };
        let of_rule = ir::ClientTls { sni: "x".into(), ..Default::default() };
        let named = ir::ClientTls { credential: "c".into(), ..of_rule.clone() };
        let own = |name: &str| Some(ir::BackendCertificate { pair: Some(pair(name)), ..Default::default() });
        let shows = |s: &Snapshot, tls: &ir::ClientTls| {
            config(s, tls, "h")
                .map(|(config, ..)| config.client_auth_cert_resolver.has_certs())
                .map_err(|e| e.to_string())
        };
        let (without, with) = (snapshot(None), snapshot(own("one")));
        assert_eq!([&of_policy, &of_rule, &named].map(|t| shows(&without, t)), [Ok(false), Ok(false), Ok(true)]);
        assert_eq!([&of_policy, &of_rule, &named].map(|t| shows(&with, t)), [Ok(true), Ok(false), Ok(true)]);
        let why = "Gateway a/g: spec.tls.backend.clientCertificateRef: Secret a/c not found [KARST-0503]";
        let broken = snapshot(Some(ir::BackendCertificate { pair: None, broken: why.into() }));
        assert_eq!([&of_policy, &of_rule].map(|t| shows(&broken, t)), [Err(why.to_string()), Ok(false)]);
        // What was made with one certificate, or without, is not used when there is another.
        let all = [&without, &with, &broken, &snapshot(own("two"))].map(|s| rules(s, &of_policy, "h"));
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        assert_eq!(rules(&without, &of_rule, "h"), rules(&with, &of_rule, "h"));
    }
}
