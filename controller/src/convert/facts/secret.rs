//! Certificates and keys in Secrets, in Kubernetes' form or in Istio's.

use crate::pem::{PairError, check_pair};
use karst_api::route as ir;
use karst_manifest::kinds::*;

/// The authority's certificates in a Secret, in Kubernetes' form or in Istio's.
pub(crate) fn ca_bundle(secret: &Secret) -> Option<Vec<u8>> {
    secret.get("ca.crt").or_else(|| secret.get("cacert"))
}

/// Why a Secret identifies nobody.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("Secret {secret}: data[{key:?}] is missing [KARST-0504]")]
    Missing { secret: String, key: &'static str },
    #[error("Secret {secret}: {why} [KARST-0505]")]
    Unusable { secret: String, why: PairError },
}

/// Certificate and key of a Secret, in Kubernetes' form or in Istio's.
pub(crate) fn key_pair(secret: &Secret) -> Result<ir::KeyPair, SecretError> {
    let name = || format!("{}/{}", secret.metadata.namespace, secret.metadata.name);
    let get = |key, other| {
        let value = secret.get(key).or_else(|| secret.get(other));
        value.ok_or_else(|| SecretError::Missing { secret: name(), key })
    };
    let (chain, key) = (get("tls.crt", "cert")?, get("tls.key", "key")?);
    check_pair(&chain, &key).map_err(|why| SecretError::Unusable { secret: name(), why })?;
    Ok(ir::KeyPair { chain, key })
}
