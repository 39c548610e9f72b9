//! JSON Web Key Sets: what of them proxies may have.

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet};

/// The public keys of a set. A secret (oct) is told to nobody: every proxy that held it could sign with it.
///
/// # Errors
/// It is no set, or has none that can be used.
pub(crate) fn public_keys(jwks: &str) -> Result<String, String> {
    let mut set: JwkSet =
        serde_json::from_str(jwks).map_err(|e| format!("is not a valid JSON Web Key Set: {e} [KARST-0122]"))?;
    let secret = |k: &Jwk| matches!(k.algorithm, AlgorithmParameters::OctetKey(_));
    set.keys.retain(|k| !secret(k) && jsonwebtoken::DecodingKey::from_jwk(k).is_ok());
    if set.keys.is_empty() {
        return Err("contains no usable public key: use RSA, EC or OKP [KARST-0122]".into());
    }
    serde_json::to_string(&set).map_err(|e| e.to_string())
}
