//! TLS to a destination's endpoints (Istio's ClientTLSSettings): how it is spoken, and whose certificates count.

use crate::snapshot::Snapshot;
use karst_api::route as ir;
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

/// How TLS is spoken, the name in the hello, and who looks at the endpoint's certificate.
pub type Config = (Arc<ClientConfig>, ServerName<'static>, Arc<Verifier>);

/// All that decides about it: rules, host name, our own certificate.
pub fn rules(snapshot: &Snapshot, tls: &ir::ClientTls, host: &str) -> Arc<[u8]> {
    let own = snapshot.gateway.as_ref().and_then(|g| g.credentials.get(&tls.credential));
    let leaf = own.and_then(|(chain, _)| chain.first()).map_or(&[][..], |c| c);
    [&tls.encode_to_vec()[..], host.as_bytes(), leaf].concat().into()
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
    /// We have nothing to show.
    #[error("Secret {0} has not been received")]
    NoCredential(String),
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
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Verifier { names, uris, roots, provider: provider.clone(), unverified: tls.unverified });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone());
    let config = if tls.credential.is_empty() {
        builder.with_no_client_auth()
    } else {
        let own = snapshot.gateway.as_ref().and_then(|g| g.credentials.get(&tls.credential));
        let (chain, key) = own.ok_or_else(|| RulesError::NoCredential(tls.credential.clone()))?;
        builder.with_client_auth_cert(chain.clone(), key.clone_key())?
    };
    Ok((Arc::new(config), sni, verifier))
}

/// Who answers must have one of the names.
#[derive(Debug)]
pub struct Verifier {
    names: Vec<ServerName<'static>>,
    uris: Vec<String>,
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
    unverified: bool,
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
