//! The profiles: IstioOperators that come with the program.

use super::{SpecError, operator};
use crate::chart::nearest;
use serde_json::{Map, Value};

/// Names and texts, default first.
const PROFILES: [(&str, &str); 9] = [
    ("default", include_str!("../../profiles/default.yaml")),
    ("ambient", include_str!("../../profiles/ambient.yaml")),
    ("demo", include_str!("../../profiles/demo.yaml")),
    ("empty", include_str!("../../profiles/empty.yaml")),
    ("minimal", include_str!("../../profiles/minimal.yaml")),
    ("openshift", include_str!("../../profiles/openshift.yaml")),
    ("preview", include_str!("../../profiles/preview.yaml")),
    ("remote", include_str!("../../profiles/remote.yaml")),
    ("stable", include_str!("../../profiles/stable.yaml")),
];

/// Their names.
pub fn names() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|(name, _)| *name)
}

/// A profile's text, as `profile dump` prints it.
///
/// # Errors
/// If there is none of this name.
pub fn text(name: &str) -> Result<&'static str, SpecError> {
    PROFILES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text).ok_or_else(|| SpecError::Profile {
        name: name.into(),
        nearest: nearest(name, names()).map(String::from),
        known: names().collect::<Vec<_>>().join(", "),
    })
}

/// A profile's spec.
///
/// # Errors
/// If there is none of this name.
pub fn spec(name: &str) -> Result<Map<String, Value>, SpecError> {
    operator::read(&format!("profile {name}"), text(name)?)
}
