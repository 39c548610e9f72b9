//! What TLS is spoken with, towards clients of a gateway and towards endpoints, as the control plane says it. Clients and endpoints
//! are not of the mesh: some have only TLS 1.2, which the mesh's own provider leaves out.

use karst_api::route as ir;
use karst_core::tls::{CipherSuite, Curve};
use rustls::{
    SupportedCipherSuite,
    crypto::{
        CryptoProvider, SupportedKxGroup,
        aws_lc_rs::{cipher_suite, default_provider, kx_group},
    },
};

/// What cannot be spoken: names of a later version.
#[derive(Debug, thiserror::Error)]
pub enum ParametersError {
    /// A cipher suite.
    #[error("unknown cipher suite {0:?}")]
    CipherSuite(String),
    /// What keys are exchanged by.
    #[error("unknown curve {0:?}")]
    Curve(String),
}

/// All that TLS takes from a library. What is not said is the library's default.
///
/// # Errors
/// What cannot be spoken.
pub fn provider(parameters: Option<&ir::TlsParameters>) -> Result<CryptoProvider, ParametersError> {
    let mut provider = default_provider();
    let Some(parameters) = parameters else { return Ok(provider) };
    if !parameters.cipher_suites.is_empty() {
        provider.cipher_suites.retain(|suite| matches!(suite, SupportedCipherSuite::Tls13(_)));
        for name in &parameters.cipher_suites {
            let named = CipherSuite::named(name).ok_or_else(|| ParametersError::CipherSuite(name.clone()))?;
            // One that is named twice is none more.
            if !provider.cipher_suites.contains(&suite(named)) {
                provider.cipher_suites.push(suite(named));
            }
        }
    }
    if !parameters.curves.is_empty() {
        let mut curves = vec![];
        for name in &parameters.curves {
            let curve = Curve::named(name).ok_or_else(|| ParametersError::Curve(name.clone()))?;
            if !curves.contains(&curve) {
                curves.push(curve);
            }
        }
        provider.kx_groups = curves.into_iter().map(group).collect();
    }
    Ok(provider)
}

fn suite(named: CipherSuite) -> SupportedCipherSuite {
    match named {
        CipherSuite::EcdsaAes256Gcm => cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdsaAes128Gcm => cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdsaChaCha20 => cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        CipherSuite::RsaAes256Gcm => cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::RsaAes128Gcm => cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::RsaChaCha20 => cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    }
}

fn group(curve: Curve) -> &'static dyn SupportedKxGroup {
    match curve {
        Curve::P256 => kx_group::SECP256R1,
        Curve::P384 => kx_group::SECP384R1,
        Curve::X25519 => kx_group::X25519,
        Curve::X25519MlKem768 => kx_group::X25519MLKEM768,
    }
}
