//! What an installation would change: found by dry runs of the API server, so that its defaults are no differences.

use super::{
    ClusterError, Target,
    access::{display, name},
    crds::{self, Lacks, Used},
    standing::{Standing, Whose, standing},
};
use crate::{
    manifest::{Manifest, Stage},
    spec::Kind,
};
use serde_json::Value;

/// What happens to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is made.
    Create(String),
    /// These fields of it change.
    Update(String, Vec<String>),
    /// It is no longer wanted.
    Remove(String),
}

/// All changes.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// In the order in which they are made.
    pub changes: Vec<Change>,
    /// Objects that stay as they are.
    pub same: usize,
    /// CRDs that are somebody else's, and are used as they are.
    pub used: Vec<Used>,
    /// CRDs of another revision of karst's that are older, as they are to be: applied by themselves, and not as this installation's.
    pub shared: Vec<Value>,
}

impl Changes {
    /// Compares a manifest with the cluster; `obsolete` are objects that are removed.
    ///
    /// # Errors
    /// If the API server cannot be asked, or some of the objects are not this installation's and `force` is not given. A CRD
    /// that is somebody else's is one only if it lacks what is needed, and is no older one of karst's.
    pub async fn find(
        target: &Target,
        manifest: &Manifest,
        obsolete: &[Value],
        force: bool,
    ) -> Result<Self, ClusterError> {
        let mut found = Self::default();
        for object in manifest.objects() {
            let Some(there) = target.get(object).await? else {
                found.changes.push(Change::Create(display(object)));
                continue;
            };
            if !force && let Standing::Other(whose) = standing(target, &there, &manifest.owner).await? {
                if Stage::of(object) != Stage::Crd {
                    return Err(whose.refusal(object));
                }
                found.others_crd(target, object, &there, &whose).await?;
                continue;
            }
            found.note(target, &kept(object, Some(&there)), &there).await?;
        }
        if manifest.left.iter().any(|name| name == Kind::Base.key()) {
            found.shared_crds(target, manifest, force).await?;
        }
        found.changes.extend(obsolete.iter().map(|object| Change::Remove(display(object))));
        Ok(found)
    }

    /// Notes what changes when an object that is there is applied.
    async fn note(&mut self, target: &Target, object: &Value, there: &Value) -> Result<(), ClusterError> {
        let after = target.apply(object, false).await?;
        let fields = differences(there, &after);
        if fields.is_empty() {
            self.same += 1;
        } else {
            self.changes.push(Change::Update(display(object), fields));
        }
        Ok(())
    }

    /// What becomes of a CRD that is somebody else's.
    async fn others_crd(
        &mut self,
        target: &Target,
        object: &Value,
        there: &Value,
        whose: &Whose,
    ) -> Result<(), ClusterError> {
        if matches!(whose, Whose::Karst(_))
            && let Some(upgraded) = crds::upgraded(object, there)
        {
            return self.share(target, upgraded, there).await;
        }
        let used = Used::of(object, there, whose.to_string());
        if let Some(refusal) = used.refusal() {
            return Err(refusal);
        }
        self.used.push(used);
        Ok(())
    }

    /// A further revision leaves the component `base` to the one that has it, and needs its CRDs as new as it is itself: the API
    /// server would drop a field that they lack, and a policy without it may mean another. One that is not there is left to
    /// `base`, whose values may leave it out.
    async fn shared_crds(&mut self, target: &Target, manifest: &Manifest, force: bool) -> Result<(), ClusterError> {
        // They are in the program, and a test reads them.
        for mut object in crds::ours().unwrap_or_default() {
            let Some(there) = target.get(&object).await? else { continue };
            if Lacks::of(&object, &there) == Lacks::default() {
                continue;
            }
            manifest.label(&mut object, Kind::Base);
            match standing(target, &there, &manifest.owner).await? {
                Standing::Other(whose) if !force => self.others_crd(target, &object, &there, &whose).await?,
                // Its own from before, nobody's any more, or asked for in so many words.
                Standing::Other(_) | Standing::Free => {
                    let wanted = crds::upgraded(&object, &there).unwrap_or(object);
                    self.share(target, wanted, &there).await?;
                }
            }
        }
        Ok(())
    }

    async fn share(&mut self, target: &Target, wanted: Value, there: &Value) -> Result<(), ClusterError> {
        self.note(target, &wanted, there).await?;
        self.shared.push(wanted);
        Ok(())
    }

    /// Names of CRDs that are not to be applied as this installation's ([`Manifest::leave`]).
    pub fn not_ours(&self) -> Vec<&str> {
        let used = self.used.iter().map(|used| used.name.as_str());
        used.chain(self.shared.iter().map(name)).collect()
    }

    /// A line for each change, and a sum.
    pub fn lines(&self) -> Vec<String> {
        let (mut created, mut updated, mut removed) = (0, 0, 0);
        let mut lines: Vec<String> = self
            .changes
            .iter()
            .map(|change| match change {
                Change::Create(object) => {
                    created += 1;
                    format!("+ {object}")
                }
                Change::Update(object, fields) => {
                    updated += 1;
                    format!("~ {object} ({})", fields.join(", "))
                }
                Change::Remove(object) => {
                    removed += 1;
                    format!("- {object}")
                }
            })
            .collect();
        lines.extend(self.used.iter().map(Used::line));
        lines.push(format!("{created} to create, {updated} to change, {removed} to remove, {} unchanged", self.same));
        lines
    }
}

/// A webhook's configuration with what the control plane has since written into it: whether it is in force. Other objects
/// as they are.
pub(super) fn kept(object: &Value, there: Option<&Value>) -> Value {
    let mut object = object.clone();
    let written = there.and_then(|there| there["webhooks"].as_array());
    let webhooks = object.get_mut("webhooks").and_then(Value::as_array_mut);
    if let (Some(webhooks), Some(written)) = (webhooks, written) {
        for webhook in webhooks {
            let Some(same) = written.iter().find(|other| other["name"] == webhook["name"]) else { continue };
            if webhook.get("failurePolicy").is_some() {
                webhook["failurePolicy"] = same["failurePolicy"].clone();
            }
        }
    }
    object
}

/// Paths that differ; at most five, the first of each list.
fn differences(before: &Value, after: &Value) -> Vec<String> {
    const MOST: usize = 5;
    let mut paths = Vec::new();
    compare(before, after, "", &mut paths);
    if paths.len() > MOST {
        let more = paths.len() - MOST;
        paths.truncate(MOST);
        paths.push(format!("{more} more"));
    }
    paths
}

fn compare(before: &Value, after: &Value, path: &str, paths: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(left), Value::Object(right)) => {
            let keys: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                if matches!(
                    path.as_str(),
                    "status" | "metadata.managedFields" | "metadata.resourceVersion" | "metadata.generation"
                ) {
                    continue;
                }
                compare(left.get(key).unwrap_or(&Value::Null), right.get(key).unwrap_or(&Value::Null), &path, paths);
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (at, (left, right)) in left.iter().zip(right).enumerate() {
                compare(left, right, &format!("{path}[{at}]"), paths);
            }
        }
        (left, right) if left != right => paths.push(path.into()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_that_differ_are_named_and_bookkeeping_is_not() {
        let before = json!({"metadata": {"resourceVersion": "1", "labels": {"a": "1"}}, "spec": {"list": [{"x": 1}], "n": 1},
            "status": {"ready": 0}});
        let after = json!({"metadata": {"resourceVersion": "2", "labels": {"a": "1", "b": "2"}}, "spec": {"list": [{"x": 2}],
            "n": 1}, "status": {"ready": 1}});
        assert_eq!(differences(&before, &after), ["metadata.labels.b", "spec.list[0].x"]);
        assert!(differences(&before, &before).is_empty());
        let many = json!({"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1});
        assert_eq!(differences(&json!({}), &many).last().unwrap(), "2 more");
    }

    #[test]
    fn a_webhook_in_force_stays_in_force() {
        let chart = json!({"kind": "X", "webhooks": [{"name": "a", "failurePolicy": "Ignore"}, {"name": "b"}]});
        let there =
            json!({"webhooks": [{"name": "a", "failurePolicy": "Fail"}, {"name": "b", "failurePolicy": "Fail"}]});
        let kept = kept(&chart, Some(&there));
        assert_eq!(kept["webhooks"][0]["failurePolicy"], "Fail");
        assert!(kept["webhooks"][1].get("failurePolicy").is_none(), "{kept}");
        assert_eq!(super::kept(&chart, None), chart);
        let other = json!({"kind": "CustomResourceDefinition", "spec": {}});
        assert_eq!(super::kept(&other, Some(&other)), other);
    }
}
