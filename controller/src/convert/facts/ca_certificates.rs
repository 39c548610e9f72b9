//! Certificates of authorities that objects of Gateway API refer to: `ca.crt` of a ConfigMap, or of a Secret.

use crate::{
    convert::{facts::secret::ca_bundle, objects::Objects},
    pem::check_roots,
};

/// Why nobody can be verified by what is referred to. Each kind of reference has reasons of its own for these.
pub(crate) enum CaError {
    /// What is of this kind holds no certificates.
    Kind(String),
    /// It is not there, or cannot be used.
    Reference(String),
}

/// The certificates of a reference (group, kind, name) in a namespace, in PEM, with a line break at the end.
pub(crate) fn certificates(
    objects: &Objects<'_>,
    ns: &str,
    (group, kind, name): (&str, &str, &str),
) -> Result<Vec<u8>, CaError> {
    let missing = || CaError::Reference(format!("{kind} {ns}/{name} not found [KARST-0503]"));
    let found = match (group, kind) {
        ("" | "core", "ConfigMap") => {
            let map = objects.config_maps.get(&(ns, name)).ok_or_else(missing)?;
            map.data.get("ca.crt").map(|text| text.clone().into_bytes())
        }
        ("" | "core", "Secret") => ca_bundle(objects.secrets.get(&(ns, name)).ok_or_else(missing)?),
        _ => return Err(CaError::Kind(format!("unsupported kind {kind:?}: use ConfigMap or Secret [KARST-0310]"))),
    };
    let wrong = |why: &str| CaError::Reference(format!("{kind} {ns}/{name}: data[\"ca.crt\"]{why}"));
    let mut pem = found.ok_or_else(|| wrong(" is missing [KARST-0504]"))?;
    check_roots(&pem).map_err(|e| wrong(&format!(": {e} [KARST-0505]")))?;
    if !pem.ends_with(b"\n") {
        // Another may follow.
        pem.push(b'\n');
    }
    Ok(pem)
}
