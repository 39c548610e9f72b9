//! JSON Web Key Sets: what of them proxies may have.

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet};

/// Why a set cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeySetError {
    #[error("is not a valid JSON Web Key Set: {0} [KARST-0122]")]
    Invalid(serde_json::Error),
    #[error("contains no usable public key: use RSA, EC or OKP [KARST-0122]")]
    NoPublicKey,
    #[error("{0}")]
    Unwritable(serde_json::Error),
}

/// The public keys of a set. A secret (oct) is told to nobody: every proxy that held it could sign with it.
///
/// # Errors
/// It is no set, or has none that can be used.
pub(crate) fn public_keys(jwks: &str) -> Result<String, KeySetError> {
    let mut set: JwkSet = serde_json::from_str(jwks).map_err(KeySetError::Invalid)?;
    let secret = |k: &Jwk| matches!(k.algorithm, AlgorithmParameters::OctetKey(_));
    set.keys.retain(|k| !secret(k) && jsonwebtoken::DecodingKey::from_jwk(k).is_ok());
    if set.keys.is_empty() {
        return Err(KeySetError::NoPublicKey);
    }
    serde_json::to_string(&set).map_err(KeySetError::Unwritable)
}
