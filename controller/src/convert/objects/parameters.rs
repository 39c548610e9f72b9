//! What ConfigMaps with parameters say: overlays for what is deployed, merged as Kubernetes' strategic merge patch does, and as in
//! Istio. Pure.

use karst_manifest::kinds::{ConfigMap, PARAMETERS};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};

/// Label of a ConfigMap in the root namespace: parameters of all Gateways of a class; their own come after (Istio's name).
const CLASS_DEFAULTS: &str = "gateway.istio.io/defaults-for-class";
/// What an overlay does not decide about: which object it is, and what came of it.
const FIXED: [&str; 3] = ["apiVersion", "kind", "status"];
/// Directives that would remove what makes the object ours.
const WHOLE: [&str; 2] = ["$patch", "$retainKeys"];

/// Why a text is no overlay.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub(crate) enum OverlayError {
    #[error("is not valid YAML: {0} [KARST-0708]")]
    NotYaml(String),
    #[error("is not an object [KARST-0708]")]
    NoObject,
    #[error("{0} is not a map [KARST-0708]")]
    NoMap(&'static str),
    #[error("metadata.{0} is not a map of strings: quote numbers, true and false [KARST-0708]")]
    NoMapOfTexts(String),
    #[error("{0} is supported only within spec, labels and annotations [KARST-0708]")]
    Whole(&'static str),
    #[error("{at}: unsupported $patch {patch}: use merge, replace or delete [KARST-0708]")]
    UnknownPatch { at: String, patch: Value },
    #[error("{at}: an item lacks {key} [KARST-0708]")]
    NoKey { at: String, key: &'static str },
}

/// Why what a ConfigMap says cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[error("{from}: data.{key}: {why}")]
pub(crate) struct ParametersError {
    from: String,
    key: &'static str,
    why: OverlayError,
}

/// What one ConfigMap says.
#[derive(Clone, Debug)]
pub(crate) struct Parameters {
    /// Which, in words.
    pub(crate) from: String,
    pub(crate) overlays: BTreeMap<&'static str, Overlay>,
}

/// What is changed of an object: of its metadata labels and annotations alone, which are maps of texts; its `spec` stays a map.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Overlay(pub(crate) Value);

impl Parameters {
    pub(crate) fn read(map: &ConfigMap, from: String) -> Result<Self, ParametersError> {
        let mut overlays = BTreeMap::new();
        for key in PARAMETERS {
            let Some(text) = map.data.get(key) else { continue };
            let overlay = Overlay::read(text);
            let overlay = overlay.map_err(|why| ParametersError { from: from.clone(), key, why })?;
            overlays.insert(key, overlay);
        }
        Ok(Self { from, overlays })
    }

    pub(crate) fn of_kind(&self, kind: &str) -> Option<(&'static str, &Overlay)> {
        self.overlays.iter().find(|(key, _)| key.eq_ignore_ascii_case(kind)).map(|(key, o)| (*key, o))
    }
}

impl Overlay {
    fn read(text: &str) -> Result<Self, OverlayError> {
        let parsed: Value = serde_yaml_ng::from_str(text).map_err(|e| OverlayError::NotYaml(e.to_string()))?;
        let mut overlay = match parsed {
            Value::Null => Map::new(),
            Value::Object(o) => o,
            _ => return Err(OverlayError::NoObject),
        };
        overlay.retain(|k, _| !FIXED.contains(&k.as_str()));
        let mut meta = match overlay.remove("metadata") {
            None => Map::new(),
            Some(Value::Object(meta)) => meta,
            Some(_) => return Err(OverlayError::NoMap("metadata")),
        };
        for directive in WHOLE {
            if overlay.contains_key(directive) || meta.contains_key(directive) {
                return Err(OverlayError::Whole(directive));
            }
        }
        // Its name and whose it is are not to be changed, and the rest is the API server's.
        meta.retain(|k, _| matches!(k.as_str(), "labels" | "annotations"));
        for (key, value) in &mut meta {
            match value {
                Value::Null => *value = json!({ "$patch": "replace" }),
                Value::Object(all) if all.values().all(|v| v.is_string() || v.is_null()) => {}
                _ => {
                    return Err(OverlayError::NoMapOfTexts(key.clone()));
                }
            }
        }
        if !meta.is_empty() {
            overlay.insert("metadata".into(), Value::Object(meta));
        }
        let is_map = |spec: &Value| spec.is_object() && spec.get("$patch").is_none_or(|p| p != "delete");
        if overlay.get("spec").is_some_and(|spec| !is_map(spec)) {
            return Err(OverlayError::NoMap("spec"));
        }
        let all = Value::Object(overlay);
        check(&all, &[])?;
        Ok(Self(all))
    }
}

/// ConfigMaps with parameters of classes, by the class.
#[derive(Default)]
pub(crate) struct Classes<'a>(HashMap<&'a str, &'a ConfigMap>);

impl<'a> Classes<'a> {
    /// Takes one, if it is one. Of several for a class the first by name counts.
    pub(crate) fn add(&mut self, root: &str, map: &'a ConfigMap) {
        let meta = &map.metadata;
        let Some(class) = meta.labels.get(CLASS_DEFAULTS).filter(|_| meta.namespace == root) else { return };
        let first = self.0.entry(class).or_insert(map);
        if meta.name < first.metadata.name {
            *first = map;
        }
    }

    /// What they say, or why it cannot be used.
    pub(crate) fn read(&self) -> HashMap<&'a str, Result<Parameters, ParametersError>> {
        let name = |c: &ConfigMap| format!("ConfigMap {}/{}, of the class", c.metadata.namespace, c.metadata.name);
        self.0.iter().map(|(class, c)| (*class, Parameters::read(c, name(c)))).collect()
    }
}

/// The field by which the items of a list are told apart (`patchMergeKey` of Kubernetes' types); none: the list is replaced. The
/// path is without the places in lists.
fn merge_key(path: &[&str]) -> Option<&'static str> {
    match path {
        // Of a Service, and of a ServiceAccount.
        ["spec", "ports"] => Some("port"),
        ["secrets"] => Some("name"),
        ["spec", "template", "spec", of_pod @ ..] => match of_pod {
            ["containers" | "initContainers", of_container] => match *of_container {
                "env" => Some("name"),
                "ports" => Some("containerPort"),
                "volumeMounts" => Some("mountPath"),
                "volumeDevices" => Some("devicePath"),
                _ => None,
            },
            [
                "containers" | "initContainers" | "volumes" | "imagePullSecrets" | "resourceClaims" | "schedulingGates",
            ] => Some("name"),
            ["hostAliases"] => Some("ip"),
            ["topologySpreadConstraints"] => Some("topologyKey"),
            _ => None,
        },
        _ => None,
    }
}

/// Directives that are known.
fn check(value: &Value, path: &[&str]) -> Result<(), OverlayError> {
    let at = || path.join(".");
    match value {
        Value::Object(object) => {
            if let Some(patch) = object.get("$patch")
                && !matches!(patch.as_str(), Some("merge" | "replace" | "delete"))
            {
                return Err(OverlayError::UnknownPatch { at: at(), patch: patch.clone() });
            }
            for (k, value) in object {
                check(value, &[path, &[k.as_str()]].concat())?;
            }
        }
        Value::Array(items) => {
            for item in items {
                let directive = item.get("$patch").is_some_and(|p| p == "replace");
                if let Some(key) = merge_key(path)
                    && !directive
                    && item.get(key).is_none()
                {
                    return Err(OverlayError::NoKey { at: at(), key });
                }
                check(item, path)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Merges an overlay that was checked.
pub(crate) fn merge(base: &mut Value, overlay: Value, path: &[&str]) {
    match overlay {
        Value::Object(overlay) => object(base, overlay, path),
        Value::Array(items) => match merge_key(path) {
            None => *base = Value::Array(items),
            Some(key) => list(base, items, key, path),
        },
        other => *base = other,
    }
}

fn object(base: &mut Value, mut overlay: Map<String, Value>, path: &[&str]) {
    let patch = overlay.remove("$patch");
    if patch.is_some_and(|p| p == "replace") || !base.is_object() {
        *base = json!({});
    }
    let Value::Object(base) = base else { return };
    if let Some(Value::Array(keys)) = overlay.remove("$retainKeys") {
        base.retain(|k, _| keys.iter().any(|x| x == k));
    }
    // The order means nothing in what is deployed.
    for (key, value) in overlay.into_iter().filter(|(k, _)| !k.starts_with("$setElementOrder/")) {
        if let Some(name) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(all)), Value::Array(gone)) = (base.get_mut(name), value) {
                all.retain(|x| !gone.contains(x));
            }
        } else if value.is_null() || value.get("$patch").is_some_and(|p| p == "delete") {
            base.remove(&key);
        } else {
            merge(base.entry(key.clone()).or_insert(Value::Null), value, &[path, &[key.as_str()]].concat());
        }
    }
}

fn list(base: &mut Value, items: Vec<Value>, key: &str, path: &[&str]) {
    let is = |i: &Value, directive: &str| i.get("$patch").is_some_and(|p| p == directive);
    if !base.is_array() || items.iter().any(|i| is(i, "replace") && i.get(key).is_none()) {
        *base = json!([]);
    }
    let Value::Array(all) = base else { return };
    for item in items.into_iter().filter(|i| i.get(key).is_some()) {
        let same = all.iter().position(|b| b.get(key) == item.get(key));
        match same {
            Some(n) if is(&item, "delete") => drop(all.remove(n)),
            Some(n) => merge(&mut all[n], item, path),
            None if is(&item, "delete") => {}
            None => {
                let mut new = Value::Null;
                merge(&mut new, item, path);
                all.push(new);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    fn merged(base: Value, overlay: &str) -> Value {
        let mut base = base;
        let overlay: Value = serde_yaml_ng::from_str(overlay).unwrap();
        check(&overlay, &[]).unwrap();
        merge(&mut base, overlay, &[]);
        base
    }

    /// What `kubectl patch --type strategic` makes of the same.
    #[test]
    fn overlays_are_merged_as_kubernetes_does() {
        let pod = |spec: Value| json!({ "spec": { "template": { "spec": spec } } });
        let base = pod(json!({
            "containers": [{ "name": "istio-proxy", "image": "i", "args": ["a"], "env": [{ "name": "A", "value": "1" }],
                "resources": { "requests": { "cpu": "100m" } } }],
            "volumes": [{ "name": "v", "emptyDir": {} }],
            "tolerations": [{ "key": "old" }],
        }));
        let overlay = "spec: {replicas: 3, template: {spec: {
            containers: [{name: istio-proxy, args: [b, c], env: [{name: B, value: '2'}, {name: A, value: '3'}], resources: {requests: {cpu: 200m}, limits: null}}, {name: more, image: m}],
            volumes: [{name: v, $patch: delete}, {name: w, emptyDir: {}}], tolerations: [{key: new}], nodeSelector: {disk: ssd}}}}";
        let mut want = pod(json!({
            "containers": [
                { "name": "istio-proxy", "image": "i", "args": ["b", "c"],
                    "env": [{ "name": "A", "value": "3" }, { "name": "B", "value": "2" }],
                    "resources": { "requests": { "cpu": "200m" } } },
                { "name": "more", "image": "m" },
            ],
            "volumes": [{ "name": "w", "emptyDir": {} }],
            "tolerations": [{ "key": "new" }], "nodeSelector": { "disk": "ssd" },
        }));
        want["spec"]["replicas"] = json!(3);
        assert_eq!(merged(base.clone(), overlay), want);
        let only = "spec: {template: {spec: {containers: [{$patch: replace}, {name: x}], tolerations: null}}}";
        let is = merged(base.clone(), only);
        assert_eq!(is["spec"]["template"]["spec"]["containers"], json!([{ "name": "x" }]));
        assert!(is["spec"]["template"]["spec"].get("tolerations").is_none());
        // Ports of a Service by their number; maps whole, where that is asked for.
        let service =
            json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "ports": [{ "port": 80, "name": "h" }] } });
        let is = merged(
            service,
            "metadata: {labels: {$patch: replace, c: d}}\nspec: {ports: [{port: 80, nodePort: 30080}, {port: 81}]}",
        );
        let want = json!({ "metadata": { "labels": { "c": "d" } }, "spec": { "ports": [{ "port": 80, "name": "h", "nodePort": 30080 }, { "port": 81 }] } });
        assert_eq!(is, want);
    }

    #[test]
    fn what_is_no_overlay_is_told() {
        for (text, want) in [
            ("spec: [", "is not valid YAML"),
            ("[]", "is not an object"),
            ("metadata: x", "metadata is not a map"),
            ("metadata:", "metadata is not a map"),
            ("metadata: {labels: x}", "metadata.labels is not a map"),
            ("metadata: {labels: {a: 1}}", "metadata.labels is not a map"),
            ("metadata: {annotations: [a]}", "metadata.annotations is not a map"),
            ("metadata: {$patch: replace}", "$patch is supported only within"),
            ("$retainKeys: [spec]", "$retainKeys is supported only within"),
            ("spec: x", "spec is not a map"),
            ("spec: {$patch: delete}", "spec is not a map"),
            (
                "spec: {template: {spec: {containers: [{image: x}]}}}",
                "spec.template.spec.containers: an item lacks name",
            ),
            ("spec: {$patch: remove}", "$patch"),
        ] {
            let e = Overlay::read(text).unwrap_err().to_string();
            assert!(e.contains(want), "{text}: {e}");
        }
        let of = |text: &str| Overlay::read(text).unwrap().0;
        let fine = of("apiVersion: v1\nkind: Pod\nmetadata: {name: other, namespace: n, labels: {a: b}}");
        assert_eq!(fine, json!({ "metadata": { "labels": { "a": "b" } } }));
        assert_eq!(of(""), json!({}));
    }
}
