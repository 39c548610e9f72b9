//! Certificates and keys that users give, in PEM: can they be used?

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// Are these certificates, in PEM, that can have signed others?
///
/// # Errors
/// What is wrong.
pub fn check_roots(pem: &[u8]) -> Result<(), String> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    let mut roots = rustls::RootCertStore::empty();
    match roots.add_parsable_certificates(all).0 {
        0 => Err("there is no certificate in it".into()),
        _ => Ok(()),
    }
}

/// Are these, in PEM, a certificate chain and the key that goes with it?
///
/// # Errors
/// What is wrong.
pub fn check_pair(chain: &[u8], key: &[u8]) -> Result<(), String> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(|e| format!("certificate: {e}"))?;
    if chain.is_empty() {
        return Err("certificate: there is none in it".into());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("key: {e}"))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map(drop).map_err(|e| e.to_string())
}
