//! CRDs that somebody else has installed (`istioctl install`, another release of helm's): used as they are, unless they lack what
//! this release needs. Those of another revision of karst's are brought to this release if they are older ([`upgraded`]).
//! `karst check` and `karst install` ask the same functions.

use super::{
    ClusterError, Target,
    access::name,
    standing::{Standing, Whose, standing},
};
use crate::{
    chart::{ChartError, Charts, Release},
    manifest::{COMPONENT, MANAGED, OURS, OWNER, OWNER_NAMESPACE, REVISION, Stage, owner},
};
use serde_json::{Map, Value};

/// Labels that say whose an object is, and as what.
const STANDING: [&str; 6] = [OURS, OWNER, OWNER_NAMESPACE, COMPONENT, MANAGED, REVISION];
/// The group of policies: a field that is dropped, at any depth, is a condition that does not count.
const SECURITY: &str = "security.istio.io";

/// What one lacks of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lacks {
    /// Without these it cannot be used: versions that it does not serve, and fields of `spec` itself; of policies all fields of
    /// `spec`. The API server would drop such a field, and a policy without its `targetRefs`, say, is one for all.
    pub needed: Vec<String>,
    /// It can be used without these: fields further down of what is no policy, which the API server drops.
    pub dropped: Vec<String>,
}

impl Lacks {
    /// Compares one with ours.
    pub fn of(ours: &Value, theirs: &Value) -> Self {
        let mut lacks = Self::default();
        let is_policy = ours["spec"]["group"] == SECURITY;
        for version in served(ours) {
            let same = served(theirs).find(|other| other["name"] == version["name"]);
            match same {
                Some(same) => {
                    let schema = |version: &Value| version["schema"]["openAPIV3Schema"].clone();
                    lacks.compare(&schema(version), &schema(same), "", is_policy);
                }
                None => lacks.needed.push(format!("version {}", version["name"].as_str().unwrap_or_default())),
            }
        }
        // Versions mostly lack the same.
        for paths in [&mut lacks.needed, &mut lacks.dropped] {
            paths.sort();
            paths.dedup();
        }
        lacks
    }

    fn compare(&mut self, ours: &Value, theirs: &Value, path: &str, is_policy: bool) {
        // What it does not know here is kept; what it knows may drop fields of its own.
        let keeps = theirs["x-kubernetes-preserve-unknown-fields"] == true;
        for (name, field) in ours["properties"].as_object().into_iter().flatten() {
            // What every object has need not be written.
            if path.is_empty() && ["apiVersion", "kind", "metadata"].contains(&&**name) {
                continue;
            }
            let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match theirs["properties"].get(name) {
                Some(same) => self.compare(field, same, &inner, is_policy),
                None if keeps => {}
                None if path.is_empty() || path == "spec" || (is_policy && path.starts_with("spec.")) => {
                    self.needed.push(inner);
                }
                None => self.dropped.push(inner),
            }
        }
        for (key, sign) in [("items", "[]"), ("additionalProperties", ".*")] {
            if ours[key].is_object() && theirs[key].is_object() {
                self.compare(&ours[key], &theirs[key], &format!("{path}{sign}"), is_policy);
            }
        }
    }
}

fn served(crd: &Value) -> impl Iterator<Item = &Value> {
    crd["spec"]["versions"].as_array().into_iter().flatten().filter(|version| version["served"] == true)
}

/// A CRD of ours that is there, and is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// Its name.
    pub name: String,
    /// Whose it is, as a verb with its object.
    pub whose: String,
    /// What it lacks.
    pub lacks: Lacks,
}

impl Used {
    pub(super) fn of(object: &Value, there: &Value, whose: String) -> Self {
        Self { name: name(object).into(), whose, lacks: Lacks::of(object, there) }
    }

    /// What an installation does with it.
    pub fn line(&self) -> String {
        let without = match self.lacks.dropped.as_slice() {
            [] => String::new(),
            dropped => format!(", without {}", dropped.join(", ")),
        };
        format!("= CustomResourceDefinition {} ({}; used as it is{without})", self.name, self.whose)
    }

    /// Why it cannot be used.
    pub fn refusal(&self) -> Option<ClusterError> {
        let needed = &self.lacks.needed;
        (!needed.is_empty()).then(|| ClusterError::Lacking {
            object: format!("CustomResourceDefinition {}", self.name),
            whose: self.whose.clone(),
            needed: needed.join(", "),
        })
    }
}

/// A CRD that is karst's as this release has it, if it is older: revisions share it, and the API server would drop what only the
/// newer one knows. It stays whose it is, whose next upgrade or removal finds it by its labels. None: it lacks nothing, or has
/// something that ours does not have.
pub(super) fn upgraded(ours: &Value, there: &Value) -> Option<Value> {
    if Lacks::of(ours, there) == Lacks::default() || Lacks::of(there, ours) != Lacks::default() {
        return None;
    }
    let mut object = ours.clone();
    for key in STANDING {
        if let Some(label) = there["metadata"]["labels"].get(key) {
            object["metadata"]["labels"][key] = label.clone();
        }
    }
    Some(object)
}

/// The CRDs of a cluster that an installation would find and not change.
///
/// # Errors
/// If the API server cannot be asked.
pub async fn used(target: &Target) -> Result<Vec<Used>, ClusterError> {
    let mut found = vec![];
    // They are in the program, and a test reads them.
    for object in ours().unwrap_or_default() {
        let Some(there) = target.get(&object).await? else { continue };
        if let Standing::Other(whose) = standing(target, &there, &owner("")).await? {
            if matches!(whose, Whose::Karst(_)) && upgraded(&object, &there).is_some() {
                continue;
            }
            found.push(Used::of(&object, &there, whose.to_string()));
        }
    }
    Ok(found)
}

/// The CRDs of this release.
pub(super) fn ours() -> Result<Vec<Value>, ChartError> {
    let release =
        Release { name: "base".into(), namespace: "istio-system".into(), upgrade: false, kubernetes: "v1.34.0".into() };
    let rendered = Charts::embedded().get("base")?.render(&release, Map::new())?;
    Ok(rendered.objects.into_iter().filter(|object| Stage::of(object) == Stage::Crd).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn crd(schema: Value) -> Value {
        json!({"spec": {"versions": [{"name": "v1", "served": true, "schema": {"openAPIV3Schema": schema}}]}})
    }

    #[test]
    fn a_field_that_would_be_dropped_is_named_and_one_of_spec_is_needed() {
        let ours = crd(json!({"properties": {"kind": {}, "spec": {"properties": {
            "targetRefs": {}, "rules": {"items": {"properties": {"from": {}, "percent": {}}}}}}}}));
        let theirs = crd(json!({"properties": {"spec": {"properties": {
            "rules": {"items": {"properties": {"from": {}}}}, "more": {}}}}}));
        let lacks = Lacks::of(&ours, &theirs);
        assert_eq!(
            (lacks.needed, lacks.dropped),
            (vec!["spec.targetRefs".into()], vec!["spec.rules[].percent".into()])
        );
        assert_eq!(Lacks::of(&ours, &ours), Lacks::default());
        let all = crd(json!({"x-kubernetes-preserve-unknown-fields": true}));
        assert_eq!(Lacks::of(&ours, &all), Lacks::default());
        let some = crd(json!({"x-kubernetes-preserve-unknown-fields": true, "properties": {"spec": {}}}));
        assert_eq!(Lacks::of(&ours, &some).needed, ["spec.rules", "spec.targetRefs"]);
    }

    /// A newer revision beside an older one: both read the same CRDs.
    #[test]
    fn an_older_one_of_karsts_is_brought_to_this_release_and_stays_whose_it_is() {
        let with = |fields: Value, labels: Value| {
            let mut crd = crd(json!({"properties": {"spec": {"properties": fields}}}));
            crd["metadata"] = json!({"name": "x", "labels": labels});
            crd
        };
        let ours = with(json!({"a": {}, "b": {}}), json!({"app": "new", OURS: "installed-state-canary"}));
        let theirs = json!({"app": "old", OURS: "installed-state", REVISION: "default"});
        let older = with(json!({"a": {}}), theirs.clone());
        let upgraded = |there: &Value| super::upgraded(&ours, there);
        let wanted = json!({"app": "new", OURS: "installed-state", REVISION: "default"});
        assert_eq!(upgraded(&older), Some(with(json!({"a": {}, "b": {}}), wanted)));
        // Of the same release, of a newer one, and of one that has gone another way.
        for fields in [json!({"a": {}, "b": {}}), json!({"a": {}, "b": {}, "c": {}}), json!({"a": {}, "c": {}})] {
            assert_eq!(upgraded(&with(fields, theirs.clone())), None);
        }
        // A version that we no longer serve may have objects.
        let mut more = older;
        let mut version = more["spec"]["versions"][0].clone();
        version["name"] = "v1alpha1".into();
        more["spec"]["versions"].as_array_mut().unwrap().push(version);
        assert_eq!(upgraded(&more), None);
    }

    /// A rule without one of its conditions is for more than was meant.
    #[test]
    fn policies_need_every_field() {
        let of = |source: Value| {
            let mut all = crd(json!({"properties": {"spec": {"properties": {"rules": {"items": {"properties": {
                "from": {"items": {"properties": {"source": {"properties": source}}}}}}}}}}}));
            all["spec"]["group"] = SECURITY.into();
            all
        };
        let lacks = Lacks::of(&of(json!({"namespaces": {}, "notIpBlocks": {}})), &of(json!({"namespaces": {}})));
        assert_eq!(lacks.needed, ["spec.rules[].from[].source.notIpBlocks"]);
        assert!(lacks.dropped.is_empty());
    }

    #[test]
    fn a_version_that_is_not_served_is_needed() {
        let ours = crd(json!({}));
        let mut theirs = ours.clone();
        theirs["spec"]["versions"][0]["served"] = false.into();
        assert_eq!(Lacks::of(&ours, &theirs).needed, ["version v1"]);
    }

    #[test]
    fn all_of_ours_are_known() {
        let all = ours().unwrap();
        assert!(all.len() >= 15 && all.iter().all(|crd| served(crd).next().is_some()), "{}", all.len());
    }
}
