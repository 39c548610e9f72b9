//! What objects of several kinds have: metadata, conditions, selectors and references.
#![allow(missing_docs, reason = "names and meaning are those of the Kubernetes, Gateway and Istio APIs")]

pub use crate::labels::Labels;
use serde::Deserialize;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// Counts the changes of the spec; 0 where nobody counts (in files).
    pub generation: i64,
    pub labels: Labels,
    pub annotations: Labels,
    pub creation_timestamp: Option<String>,
    pub deletion_timestamp: Option<String>,
    pub owner_references: Vec<OwnerReference>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OwnerReference {
    pub kind: String,
    pub name: String,
    pub controller: bool,
}

/// The conditions that controllers write.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Status {
    pub conditions: Vec<StatusCondition>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StatusCondition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    #[serde(deserialize_with = "generation")]
    pub observed_generation: i64,
    pub last_transition_time: String,
}

/// A number, as Kubernetes writes it, or a text, as protobuf's JSON has numbers of 64 bits (Istio's own statuses).
fn generation<'de, D: serde::Deserializer<'de>>(d: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Text(String),
    }
    Ok(match Either::deserialize(d)? {
        Either::Number(n) => n,
        Either::Text(t) => t.parse().unwrap_or_default(),
    })
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    pub match_labels: Labels,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetRef {
    pub group: String,
    pub kind: String,
    pub name: String,
    pub namespace: Option<String>,
}
impl TargetRef {
    /// Those of an object, and the path of the field that says so.
    pub(crate) fn all<'a>(one: Option<&'a Self>, many: &'a [Self]) -> impl Iterator<Item = (String, &'a Self)> {
        let many = many.iter().enumerate().map(|(i, t)| (format!("spec.targetRefs[{i}]"), t));
        one.into_iter().map(|t| ("spec.targetRef".to_string(), t)).chain(many)
    }
}
