//! Certificates of authorities, and the lists of what they have revoked, that objects refer to: `ca.crt` and `ca.crl` of a ConfigMap, or
//! of a Secret.

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

/// Why the contents of a ConfigMap or Secret cannot be used; each with what it is called.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentsError {
    #[error("{0}: data[\"ca.crt\"] is missing [KARST-0504]")]
    NoRoots(String),
    #[error("{0}: data[\"ca.crt\"]: {1} [KARST-0505]")]
    Roots(String, RootsError),
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

/// What a ConfigMap or Secret holds, and what it is called.
struct Found {
    name: String,
    roots: Option<Vec<u8>>,
    lists: Option<Vec<u8>>,
}

/// What a reference (group, kind, name) in a namespace leads to.
pub(crate) fn authorities(objects: &Objects<'_>, ns: &str, target: (&str, &str, &str)) -> Result<Authorities, CaError> {
    checked(found(objects, ns, target)?).map_err(|e| CaError::Reference(e.to_string()))
}

/// Of a Secret, or what is wrong with it.
pub(crate) fn of_secret(secret: &Secret) -> Result<Authorities, ContentsError> {
    let meta = &secret.metadata;
    let name = format!("Secret {}/{}", meta.namespace, meta.name);
    checked(Found { name, roots: ca_bundle(secret), lists: ca_lists(secret) })
}

fn found(objects: &Objects<'_>, ns: &str, (group, kind, name): (&str, &str, &str)) -> Result<Found, CaError> {
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
        _ => return Err(CaError::Kind(format!("unsupported kind {kind:?}: use ConfigMap or Secret [KARST-0310]"))),
    };
    Ok(Found { name: called, roots, lists })
}

fn checked(found: Found) -> Result<Authorities, ContentsError> {
    let roots = roots(&found.name, found.roots)?;
    // Without a list that is there somebody would be let in who is on it.
    if let Some(Err(e)) = found.lists.as_deref().map(Lists::read) {
        return Err(ContentsError::Lists(found.name, e));
    }
    Ok(Authorities { roots, lists: found.lists.into_iter().collect() })
}

fn roots(name: &str, found: Option<Vec<u8>>) -> Result<Vec<u8>, ContentsError> {
    let mut pem = found.ok_or_else(|| ContentsError::NoRoots(name.into()))?;
    check_roots(&pem).map_err(|e| ContentsError::Roots(name.into(), e))?;
    if !pem.ends_with(b"\n") {
        // Another may follow.
        pem.push(b'\n');
    }
    Ok(pem)
}
