//! Certificates and keys that users give, in PEM: can they be used?

use rustls::sign::CertifiedKey;
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};

/// Why nobody can be verified by certificates.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// It is not PEM.
    #[error("{0}")]
    Pem(#[from] pem::Error),
    /// It is PEM of something else.
    #[error("there is no certificate in it")]
    None,
}

/// Why nobody can be identified by a certificate and a key.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The chain is not PEM.
    #[error("certificate: {0}")]
    Certificate(pem::Error),
    /// The chain is PEM of something else.
    #[error("certificate: there is none in it")]
    NoCertificate,
    /// There is no key.
    #[error("key: {0}")]
    Key(pem::Error),
    /// They do not go together, or cannot be used.
    #[error("{0}")]
    Pair(#[from] rustls::Error),
}

/// Are these certificates, in PEM, that can have signed others?
///
/// # Errors
/// What is wrong.
pub fn check_roots(pem: &[u8]) -> Result<(), RootsError> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    let mut roots = rustls::RootCertStore::empty();
    match roots.add_parsable_certificates(all).0 {
        0 => Err(RootsError::None),
        _ => Ok(()),
    }
}

/// Are these, in PEM, a certificate chain and the key that goes with it?
///
/// # Errors
/// What is wrong.
pub fn check_pair(chain: &[u8], key: &[u8]) -> Result<(), PairError> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(PairError::Certificate)?;
    if chain.is_empty() {
        return Err(PairError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(PairError::Key)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Ok(CertifiedKey::from_der(chain, key, &provider).map(drop)?)
}
