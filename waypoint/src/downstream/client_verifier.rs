//! Who looks at the certificates that clients show where TLS ends at a gateway, and whose count.

use karst_api::route as ir;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    server::{
        VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{
    CertificateDer, UnixTime,
    pem::{self, PemObject},
};
use std::sync::Arc;

/// Why nobody can look at certificates of clients.
#[derive(Debug, thiserror::Error)]
pub enum VerifierError {
    /// A wish of a later version.
    #[error("client certificate {0}")]
    Wish(i32),
    /// The authorities cannot be read.
    #[error("CA certificates of clients: {0}")]
    Roots(pem::Error),
    /// There are none.
    #[error("CA certificates of clients: {0}")]
    Build(#[from] VerifierBuilderError),
}

/// What is asked of clients.
#[derive(Clone, Debug)]
pub struct ClientAuth {
    /// Asks for certificates, and looks at them.
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// Where `verifier` takes whatever is shown: who knows whether it counts.
    strict: Option<Arc<dyn ClientCertVerifier>>,
}

impl ClientAuth {
    /// As a listener says. None: nothing is asked.
    ///
    /// # Errors
    /// What of it cannot be used.
    pub fn new(tls: &ir::Tls, provider: &Arc<CryptoProvider>) -> Result<Option<Self>, VerifierError> {
        let wanted = ir::ClientCertificate::try_from(tls.client).map_err(|_| VerifierError::Wish(tls.client))?;
        let takes_none = match wanted {
            ir::ClientCertificate::None => return Ok(None),
            ir::ClientCertificate::Required => false,
            ir::ClientCertificate::Optional | ir::ClientCertificate::Unverified => true,
        };
        let all = CertificateDer::pem_slice_iter(&tls.client_roots).collect::<Result<Vec<_>, _>>();
        let mut roots = RootCertStore::empty();
        // One that cannot be used signs for nobody; the others are not worse for it.
        roots.add_parsable_certificates(all.map_err(VerifierError::Roots)?);
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        if takes_none {
            builder = builder.allow_unauthenticated();
        }
        let verifier = builder.build()?;
        Ok(Some(match wanted {
            ir::ClientCertificate::Unverified => {
                Self { verifier: Arc::new(Anything(verifier.clone())), strict: Some(verifier) }
            }
            ir::ClientCertificate::None | ir::ClientCertificate::Optional | ir::ClientCertificate::Required => {
                Self { verifier, strict: None }
            }
        }))
    }

    /// Has somebody whom we trust signed what a client has shown in a handshake that `verifier` has let pass?
    pub fn counts(&self, certificates: &[CertificateDer<'_>], now: UnixTime) -> bool {
        match (&self.strict, certificates) {
            (_, []) => false,
            (None, [_, ..]) => true,
            (Some(strict), [leaf, chain @ ..]) => strict.verify_client_cert(leaf, chain, now).is_ok(),
        }
    }
}

/// Takes whatever is shown, and nothing as well. (That who shows it has its key is proven nevertheless.)
#[derive(Debug)]
struct Anything(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Anything {
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }
    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn client(ca: &CertifiedIssuer<'static, KeyPair>) -> CertificateDer<'static> {
        let params = CertificateParams::new(vec!["client".to_string()]).unwrap();
        params.signed_by(&KeyPair::generate().unwrap(), ca).unwrap().der().clone()
    }

    fn auth(client: ir::ClientCertificate, roots: &str) -> Result<Option<ClientAuth>, VerifierError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ir::Tls { client: client as i32, client_roots: roots.as_bytes().to_vec(), ..Default::default() };
        ClientAuth::new(&tls, &provider)
    }

    #[test]
    fn whose_certificates_are_taken_and_whose_count() {
        use ir::ClientCertificate as Wanted;
        let (trusted, other) = (authority(), authority());
        let (right, wrong) = (client(&trusted), client(&other));
        let now = UnixTime::now();
        for (wanted, mandatory, takes_wrong) in
            [(Wanted::Required, true, false), (Wanted::Optional, false, false), (Wanted::Unverified, false, true)]
        {
            let auth = auth(wanted, &trusted.pem()).unwrap().unwrap();
            let takes = |cert: &CertificateDer<'_>| auth.verifier.verify_client_cert(cert, &[], now).is_ok();
            assert!(auth.verifier.offer_client_auth() && !auth.verifier.root_hint_subjects().is_empty());
            assert_eq!(auth.verifier.client_auth_mandatory(), mandatory, "{wanted:?}");
            assert_eq!((takes(&right), takes(&wrong)), (true, takes_wrong), "{wanted:?}");
            assert!(auth.counts(std::slice::from_ref(&right), now) && !auth.counts(&[], now), "{wanted:?}");
            // What was let pass elsewhere has been looked at.
            assert!(!takes_wrong || !auth.counts(std::slice::from_ref(&wrong), now), "{wanted:?}");
        }
        assert!(auth(Wanted::None, "").unwrap().is_none());
    }

    #[test]
    fn without_an_authority_nobody_is_asked_in_vain() {
        use ir::ClientCertificate as Wanted;
        for wanted in [Wanted::Required, Wanted::Optional, Wanted::Unverified] {
            let no_pem = "-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n";
            let no_certificate = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
            for roots in ["", no_pem, no_certificate] {
                let error = auth(wanted, roots).unwrap_err().to_string();
                assert!(error.starts_with("CA certificates of clients: "), "{wanted:?} {roots:?}: {error}");
            }
        }
        // One of several is enough.
        let good = format!("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n{}", authority().pem());
        assert!(auth(Wanted::Required, &good).unwrap().is_some());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let later = ir::Tls { client: 9, ..Default::default() };
        assert_eq!(ClientAuth::new(&later, &provider).unwrap_err().to_string(), "client certificate 9");
    }
}
