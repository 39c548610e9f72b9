//! Who looks at the certificates that clients show where TLS ends at a gateway, and whose count.

use karst_api::route as ir;
use karst_hbone::revocation::{ListError, Lists, split};
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
    /// What they have revoked cannot be read.
    #[error("revocation lists of clients: {0}")]
    Lists(#[source] Box<ListError>),
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
    /// As a listener says, of certificates that these may have signed, in PEM, and have not revoked: each of `lists` has several in
    /// PEM, or one in DER. None: nothing is asked.
    ///
    /// # Errors
    /// What of it cannot be used.
    pub fn new(
        client: i32,
        roots: &[u8],
        lists: &[Vec<u8>],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Option<Self>, VerifierError> {
        let wanted = ir::ClientCertificate::try_from(client).map_err(|_| VerifierError::Wish(client))?;
        let takes_none = match wanted {
            ir::ClientCertificate::None => return Ok(None),
            ir::ClientCertificate::Required | ir::ClientCertificate::Any => false,
            ir::ClientCertificate::Optional | ir::ClientCertificate::Unverified => true,
        };
        let all = CertificateDer::pem_slice_iter(roots).collect::<Result<Vec<_>, _>>();
        let mut roots = RootCertStore::empty();
        // One that cannot be used signs for nobody; the others are not worse for it.
        roots.add_parsable_certificates(all.map_err(VerifierError::Roots)?);
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        // The whole chain is looked up; of an issuer without a list nothing is known, and who is not known stays out. A list stays in
        // force after its `nextUpdate`, as those of the mesh.
        let unread = |e| VerifierError::Lists(Box::new(e));
        for lists in lists {
            Lists::read(lists).map_err(unread)?;
            builder = builder.with_crls(split(lists).map_err(unread)?);
        }
        if takes_none {
            builder = builder.allow_unauthenticated();
        }
        let verifier = builder.build()?;
        Ok(Some(match wanted {
            ir::ClientCertificate::Unverified | ir::ClientCertificate::Any => {
                let any = Anything { strict: verifier.clone(), is_mandatory: !takes_none };
                Self { verifier: Arc::new(any), strict: Some(verifier) }
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

/// Takes whatever is shown. (That who shows it has its key is proven nevertheless.)
#[derive(Debug)]
struct Anything {
    /// Which looks at the rest.
    strict: Arc<dyn ClientCertVerifier>,
    /// Something must be.
    is_mandatory: bool,
}

impl ClientCertVerifier for Anything {
    fn client_auth_mandatory(&self) -> bool {
        self.is_mandatory
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.strict.root_hint_subjects()
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
        self.strict.verify_tls12_signature(message, cert, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.strict.verify_tls13_signature(message, cert, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.strict.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::testing::pki::{Authority, authority, certificate, list};

    fn client(of: &Authority, serial: u64) -> CertificateDer<'static> {
        certificate(of, "client", serial)
    }

    fn auth(client: ir::ClientCertificate, roots: &str) -> Result<Option<ClientAuth>, VerifierError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        ClientAuth::new(client as i32, roots.as_bytes(), &[], &provider)
    }

    #[test]
    fn whose_certificates_are_taken_and_whose_count() {
        use ir::ClientCertificate as Wanted;
        let (trusted, other) = (authority("a"), authority("b"));
        let (right, wrong) = (client(&trusted, 1), client(&other, 1));
        let now = UnixTime::now();
        for (wanted, mandatory, takes_wrong) in [
            (Wanted::Required, true, false),
            (Wanted::Optional, false, false),
            (Wanted::Unverified, false, true),
            (Wanted::Any, true, true),
        ] {
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
        for wanted in [Wanted::Required, Wanted::Optional, Wanted::Unverified, Wanted::Any] {
            let no_pem = "-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n";
            let no_certificate = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
            for roots in ["", no_pem, no_certificate] {
                let error = auth(wanted, roots).unwrap_err().to_string();
                assert!(error.starts_with("CA certificates of clients: "), "{wanted:?} {roots:?}: {error}");
            }
        }
        // One of several is enough.
        let good = format!("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n{}", authority("a").pem());
        assert!(auth(Wanted::Required, &good).unwrap().is_some());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        assert_eq!(ClientAuth::new(9, &[], &[], &provider).unwrap_err().to_string(), "client certificate 9");
    }

    #[test]
    fn who_is_revoked_does_not_count_nor_who_cannot_be_looked_up() {
        use ir::ClientCertificate as Wanted;
        let (ca, other) = (authority("a"), authority("b"));
        let auth = |wanted: Wanted, lists: Vec<Vec<u8>>| {
            let roots = [ca.pem(), other.pem()].concat();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            ClientAuth::new(wanted as i32, roots.as_bytes(), &lists, &provider)
        };
        let [revoked, good, unknown] = [client(&ca, 7), client(&ca, 8), client(&other, 7)];
        let now = UnixTime::now();
        let taken = |auth: &ClientAuth| {
            [&revoked, &good, &unknown].map(|cert| auth.verifier.verify_client_cert(cert, &[], now).is_ok())
        };
        let counting =
            |auth: &ClientAuth| [&revoked, &good, &unknown].map(|cert| auth.counts(std::slice::from_ref(cert), now));
        let (pem, der) = (list(&ca, 7).pem().unwrap().into_bytes(), list(&other, 9).der().to_vec());
        for (lists, want) in [
            (vec![], [true, true, true]),
            (vec![pem.clone()], [false, true, false]),
            (vec![pem.clone(), der], [false, true, true]),
            (vec![b"\n".to_vec()], [true, true, true]),
        ] {
            let strict = auth(Wanted::Required, lists.clone()).unwrap().unwrap();
            assert_eq!(taken(&strict), want);
            assert_eq!(taken(&auth(Wanted::Optional, lists.clone()).unwrap().unwrap()), want);
            let lax = auth(Wanted::Unverified, lists).unwrap().unwrap();
            assert_eq!((taken(&lax), counting(&lax)), ([true; 3], want));
        }
        for bad in [&b"nonsense"[..], &pem[..pem.len() / 2], ca.pem().as_bytes()] {
            let error = auth(Wanted::Required, vec![bad.to_vec()]).unwrap_err().to_string();
            assert!(error.starts_with("revocation lists of clients: "), "{error}");
        }
    }
}
