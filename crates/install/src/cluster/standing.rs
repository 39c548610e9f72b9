//! Whose an object is that has the name of one of ours.

use super::{ClusterError, Target, access::display, remove::owner_of};
use serde_json::Value;
use std::fmt;

/// Whether an installation may change an object that is there.
#[derive(Debug)]
pub(super) enum Standing {
    /// karst has made it as the same installation, or a release of helm's that is gone, as CRDs outlive theirs.
    Free,
    /// It is somebody's.
    Other(Whose),
}

/// Whose an object is.
#[derive(Debug)]
pub(super) enum Whose {
    /// Another installation of karst's.
    Karst(String),
    /// A release of helm's, as NAMESPACE/NAME.
    Helm(String),
    /// Somebody's who has not said so.
    Nobody,
}

impl Whose {
    /// Why it is not changed.
    pub(super) fn refusal(&self, object: &Value) -> ClusterError {
        let object = display(object);
        match self {
            Self::Helm(release) => ClusterError::Helm { objects: object, release: release.clone() },
            Self::Karst(_) | Self::Nobody => ClusterError::Foreign { object, whose: self.to_string() },
        }
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Karst(other) => write!(f, "is karst's, as {other}"),
            Self::Helm(release) => write!(f, "belongs to helm's release {release}"),
            Self::Nobody => f.write_str("was not installed by karst"),
        }
    }
}

/// Whose is an object that is there?
///
/// # Errors
/// The API server cannot be asked.
pub(super) async fn standing(target: &Target, there: &Value, owner: &str) -> Result<Standing, ClusterError> {
    match owner_of(there) {
        Some(same) if same == owner => return Ok(Standing::Free),
        Some(other) => return Ok(Standing::Other(Whose::Karst(other.into()))),
        None => {}
    }
    let Some((namespace, name)) = helm_release(there) else { return Ok(Standing::Other(Whose::Nobody)) };
    let labels = format!("owner=helm,name={name}");
    match target.list("v1", "Secret", Some(&namespace), &labels).await?.is_empty() {
        true => Ok(Standing::Free),
        false => Ok(Standing::Other(Whose::Helm(format!("{namespace}/{name}")))),
    }
}

/// The release that helm has noted on an object: namespace and name.
fn helm_release(object: &Value) -> Option<(String, String)> {
    let metadata = &object["metadata"];
    if metadata["labels"]["app.kubernetes.io/managed-by"] != "Helm" {
        return None;
    }
    let note = |key: &str| metadata["annotations"][format!("meta.helm.sh/release-{key}")].as_str();
    Some((note("namespace").unwrap_or_default().into(), note("name")?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn helms_objects_are_known_by_their_annotations() {
        let object = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": {
            "meta.helm.sh/release-name": "istiod", "meta.helm.sh/release-namespace": "istio-system"}}});
        assert_eq!(helm_release(&object), Some(("istio-system".into(), "istiod".into())));
        assert_eq!(helm_release(&json!({"metadata": {}})), None);
    }
}
