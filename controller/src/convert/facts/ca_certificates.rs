//! Certificates of authorities, and the lists of what they have revoked, that objects refer to: `ca.crt` and `ca.crl` of a ConfigMap, or
//! of a Secret; or the certificates of a ClusterTrustBundle (GEP-5075), which has no lists.

use crate::{
    convert::{
        facts::secret::{ca_bundle, ca_lists},
        objects::Objects,
    },
    pem::{RootsError, check_roots},
};
use karst_hbone::revocation::{ListError, Lists};
use karst_manifest::kinds::*;

/// Why nobody can be verified by what is referred to. Each kind of reference has reasons of its own for these.
pub(crate) enum CaError {
    /// What is of this kind holds no certificates.
    Kind(String),
    /// It is not there, or cannot be used.
    Reference(String),
}

/// Why the contents of an object cannot be used; each with what it is called, and with the field.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentsError {
    #[error("{0}: {1} is missing [KARST-0504]")]
    NoRoots(String, &'static str),
    #[error("{0}: {1}: {2} [KARST-0505]")]
    Roots(String, &'static str, RootsError),
    #[error("{0}: data[\"ca.crl\"]: {1} [KARST-0505]")]
    Lists(String, ListError),
}

/// Who may sign certificates, and which of them count no more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Authorities {
    /// PEM, with a line break at the end.
    pub(crate) roots: Vec<u8>,
    /// Each has several lists in PEM, or one in DER; none: none are kept.
    pub(crate) lists: Vec<Vec<u8>>,
}

/// What an object holds, and what it is called.
struct Found {
    name: String,
    /// The field with the roots.
    field: &'static str,
    roots: Option<Vec<u8>>,
    lists: Option<Vec<u8>>,
}

/// The field of a ConfigMap or Secret.
const CA_CRT: &str = "data[\"ca.crt\"]";
/// And of a ClusterTrustBundle.
const TRUST_BUNDLE: &str = "spec.trustBundle";
const BUNDLE_GROUP: &str = "certificates.k8s.io";
const BUNDLE: &str = "ClusterTrustBundle";

/// Is this group and kind that of bundles, which are of the whole cluster: nobody has to grant a reference to one?
pub(crate) fn is_bundle(group: &str, kind: &str) -> bool {
    (group, kind) == (BUNDLE_GROUP, BUNDLE)
}

/// What a reference (group, kind, name) in a namespace leads to.
pub(crate) fn authorities(objects: &Objects<'_>, ns: &str, target: (&str, &str, &str)) -> Result<Authorities, CaError> {
    checked(found(objects, ns, target)?).map_err(|e| CaError::Reference(e.to_string()))
}

/// Of a Secret, or what is wrong with it.
pub(crate) fn of_secret(secret: &Secret) -> Result<Authorities, ContentsError> {
    let meta = &secret.metadata;
    let name = format!("Secret {}/{}", meta.namespace, meta.name);
    checked(Found { name, field: CA_CRT, roots: ca_bundle(secret), lists: ca_lists(secret) })
}

fn found(objects: &Objects<'_>, ns: &str, (group, kind, name): (&str, &str, &str)) -> Result<Found, CaError> {
    if is_bundle(group, kind) {
        return bundle(objects, name);
    }
    let called = format!("{kind} {ns}/{name}");
    let missing = || CaError::Reference(format!("{called} not found [KARST-0503]"));
    let (roots, lists) = match (group, kind) {
        ("" | "core", "ConfigMap") => {
            let map = objects.config_maps.get(&(ns, name)).ok_or_else(missing)?;
            (map.get("ca.crt"), map.get("ca.crl"))
        }
        ("" | "core", "Secret") => {
            let secret = objects.secrets.get(&(ns, name)).ok_or_else(missing)?;
            (ca_bundle(secret), ca_lists(secret))
        }
        _ => {
            let text = format!("unsupported kind {kind:?}: use ConfigMap, Secret or {BUNDLE} [KARST-0310]");
            return Err(CaError::Kind(text));
        }
    };
    Ok(Found { name: called, field: CA_CRT, roots, lists })
}

/// Of the whole cluster. An API server may not know the kind (GEP-5075 then asks for what is said of any other kind).
fn bundle(objects: &Objects<'_>, name: &str) -> Result<Found, CaError> {
    if objects.absent.contains(BUNDLE) {
        let text = format!(
            "{BUNDLE} is not served by the API server, or the controller may not read it: use ConfigMap or Secret, or enable {BUNDLE_GROUP} and upgrade the chart istiod [KARST-0310]"
        );
        return Err(CaError::Kind(text));
    }
    let called = format!("{BUNDLE} {name}");
    let Some(found) = objects.trust_bundles.get(name) else {
        return Err(CaError::Reference(format!("{called} not found [KARST-0503]")));
    };
    let pem = &found.spec.trust_bundle;
    let roots = (!pem.trim().is_empty()).then(|| pem.clone().into_bytes());
    Ok(Found { name: called, field: TRUST_BUNDLE, roots, lists: None })
}

fn checked(found: Found) -> Result<Authorities, ContentsError> {
    let roots = roots(&found.name, found.field, found.roots)?;
    // Without a list that is there somebody would be let in who is on it.
    if let Some(Err(e)) = found.lists.as_deref().map(Lists::read) {
        return Err(ContentsError::Lists(found.name, e));
    }
    Ok(Authorities { roots, lists: found.lists.into_iter().collect() })
}

fn roots(name: &str, field: &'static str, found: Option<Vec<u8>>) -> Result<Vec<u8>, ContentsError> {
    let mut pem = found.ok_or_else(|| ContentsError::NoRoots(name.into(), field))?;
    check_roots(&pem).map_err(|e| ContentsError::Roots(name.into(), field, e))?;
    if !pem.ends_with(b"\n") {
        // Another may follow.
        pem.push(b'\n');
    }
    Ok(pem)
}
