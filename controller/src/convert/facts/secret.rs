//! Certificates and keys in Secrets, in Kubernetes' form or in Istio's.

use crate::{
    convert::{facts::grant::granted_secret, objects::Objects},
    pem::{PairError, check_pair},
};
use karst_api::route as ir;
use karst_manifest::kinds::*;

/// The authority's certificates in a Secret, in Kubernetes' form or in Istio's.
pub(crate) fn ca_bundle(secret: &Secret) -> Option<Vec<u8>> {
    secret.get("ca.crt").or_else(|| secret.get("cacert"))
}

/// The lists of certificates that the authority has revoked, in Kubernetes' form or in Istio's.
pub(crate) fn ca_lists(secret: &Secret) -> Option<Vec<u8>> {
    secret.get("ca.crl").or_else(|| secret.get("crl"))
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

/// Why a reference leads to no certificate. Each kind of reference has reasons of its own for these.
pub(crate) enum ReferenceError {
    /// It is to another namespace, which does not permit it.
    NotPermitted(String),
    /// It is to nothing that is there, or to nothing that can be used.
    Invalid(String),
}

/// The certificate and key that an object of this kind and namespace refers to.
pub(crate) fn referenced(
    objects: &Objects<'_>,
    (kind, ns): (&str, &str),
    reference: &SecretRef,
) -> Result<ir::KeyPair, ReferenceError> {
    let (of, name) = (reference.namespace.as_deref().unwrap_or(ns), reference.name.as_str());
    if !matches!(reference.group.as_deref(), None | Some(""))
        || !matches!(reference.kind.as_deref(), None | Some("Secret"))
    {
        return Err(ReferenceError::Invalid(format!("{name:?} is not a Secret [KARST-0310]")));
    }
    if of != ns && !granted_secret(objects, kind, ns, of, name) {
        let text = format!(
            "reference to Secret {of}/{name} is not permitted: create a ReferenceGrant from {kind} in its namespace [KARST-0309]"
        );
        return Err(ReferenceError::NotPermitted(text));
    }
    let missing = || ReferenceError::Invalid(format!("Secret {of}/{name} not found [KARST-0503]"));
    let secret = objects.secrets.get(&(of, name)).ok_or_else(missing)?;
    key_pair(secret).map_err(|e| ReferenceError::Invalid(e.to_string()))
}
