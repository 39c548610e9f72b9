//! Certificates and keys in Secrets, in Kubernetes' form or in Istio's.

use karst_api::route as ir;
use karst_manifest::kinds::*;

/// The authority's certificates in a Secret, in Kubernetes' form or in Istio's.
pub(crate) fn ca_bundle(s: &Secret) -> Option<Vec<u8>> {
    s.get("ca.crt").or_else(|| s.get("cacert"))
}

/// Certificate and key of a Secret, in Kubernetes' form or in Istio's.
pub(crate) fn key_pair(s: &Secret) -> Result<ir::KeyPair, String> {
    let name = format!("Secret {}/{}", s.metadata.namespace, s.metadata.name);
    let get =
        |a, b| s.get(a).or_else(|| s.get(b)).ok_or_else(|| format!("{name}: data[{a:?}] is missing [KARST-0504]"));
    let (chain, key) = (get("tls.crt", "cert")?, get("tls.key", "key")?);
    crate::pem::check_pair(&chain, &key).map_err(|e| format!("{name}: {e} [KARST-0505]"))?;
    Ok(ir::KeyPair { chain, key })
}
