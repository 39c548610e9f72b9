//! Parameters of a Gateway (`spec.infrastructure.parametersRef`): ConfigMaps with overlays for what is deployed for it, merged as
//! Kubernetes' strategic merge patch does, and as in Istio. Pure.

use super::Index;
use karst_manifest::kinds::{ConfigMap, Gateway, PARAMETERS};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Label of a ConfigMap in the root namespace: parameters of all Gateways of a class; their own come after (Istio's name).
const CLASS_DEFAULTS: &str = "gateway.istio.io/defaults-for-class";
/// What an overlay does not decide about: which object it is, whose, and what came of it.
const FIXED: [&str; 3] = ["apiVersion", "kind", "status"];
const FIXED_META: [&str; 4] = ["name", "namespace", "uid", "ownerReferences"];

/// The overlays of a Gateway, by their key; those of its class first.
#[derive(Debug, Default)]
pub(super) struct Overlays(Vec<BTreeMap<&'static str, Value>>);

impl Overlays {
    /// Those of a Gateway.
    ///
    /// # Errors
    /// Why they cannot be used.
    pub(super) fn of(x: &Index<'_>, g: &Gateway) -> Result<Self, String> {
        let class = g.spec.gateway_class_name.as_str();
        let root = x.mesh.root_namespace.as_str();
        let defaults = x
            .config_maps
            .values()
            .filter(|c| {
                c.metadata.namespace == root && c.metadata.labels.get(CLASS_DEFAULTS).is_some_and(|l| l == class)
            })
            .min_by_key(|c| &c.metadata.name);
        let mut out = vec![];
        if let Some(c) = defaults {
            out.push(read(c).map_err(|e| format!("ConfigMap {root}/{}, of the class: {e}", c.metadata.name))?);
        }
        if let Some(r) = &g.spec.infrastructure.parameters_ref {
            if !matches!(r.group.as_str(), "" | "core") || r.kind != "ConfigMap" {
                return Err(format!("kind {:?} of group {:?} cannot be: name a ConfigMap", r.kind, r.group));
            }
            let ns = g.metadata.namespace.as_str();
            let found = x.config_maps.get(&(ns, r.name.as_str()));
            let c = found.ok_or_else(|| format!("there is no ConfigMap {ns}/{}", r.name))?;
            out.push(read(c).map_err(|e| format!("ConfigMap {ns}/{}: {e}", r.name))?);
        }
        Ok(Self(out))
    }

    /// Is there one with this key?
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|o| o.contains_key(key))
    }

    /// Changes an object of this kind.
    pub(super) fn apply(&self, kind: &str, object: &mut Value) {
        let is = |key: &str| key.eq_ignore_ascii_case(kind);
        for (_, overlay) in self.0.iter().flatten().filter(|(key, _)| is(key)) {
            merge(object, overlay.clone(), &[]);
        }
    }
}

/// The overlays in a ConfigMap.
fn read(c: &ConfigMap) -> Result<BTreeMap<&'static str, Value>, String> {
    let mut out = BTreeMap::new();
    for key in PARAMETERS {
        let Some(text) = c.data.get(key) else { continue };
        let mut v: Value = serde_yaml_ng::from_str(text).map_err(|e| format!("data.{key} is no YAML: {e}"))?;
        if v.is_null() {
            v = json!({});
        }
        let Value::Object(o) = &mut v else { return Err(format!("data.{key} is no object")) };
        o.retain(|k, _| !FIXED.contains(&k.as_str()));
        if let Some(Value::Object(meta)) = o.get_mut("metadata") {
            meta.retain(|k, _| !FIXED_META.contains(&k.as_str()));
        }
        check(&v, &[]).map_err(|e| format!("data.{key}: {e}"))?;
        out.insert(key, v);
    }
    Ok(out)
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
fn check(v: &Value, path: &[&str]) -> Result<(), String> {
    let at = || path.join(".");
    match v {
        Value::Object(o) => {
            if let Some(p) = o.get("$patch")
                && !matches!(p.as_str(), Some("merge" | "replace" | "delete"))
            {
                return Err(format!("{}: $patch: {p} is none of merge, replace, delete", at()));
            }
            for (k, v) in o {
                check(v, &[path, &[k.as_str()]].concat())?;
            }
        }
        Value::Array(items) => {
            for i in items {
                let directive = i.get("$patch").is_some_and(|p| p == "replace");
                if let Some(key) = merge_key(path)
                    && !directive
                    && i.get(key).is_none()
                {
                    return Err(format!("{}: an item has no {key}", at()));
                }
                check(i, path)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Merges an overlay that was checked.
fn merge(base: &mut Value, overlay: Value, path: &[&str]) {
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
    for (k, v) in overlay.into_iter().filter(|(k, _)| !k.starts_with("$setElementOrder/")) {
        if let Some(name) = k.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(all)), Value::Array(gone)) = (base.get_mut(name), v) {
                all.retain(|x| !gone.contains(x));
            }
        } else if v.is_null() || v.get("$patch").is_some_and(|p| p == "delete") {
            base.remove(&k);
        } else {
            merge(base.entry(k.clone()).or_insert(Value::Null), v, &[path, &[k.as_str()]].concat());
        }
    }
}

fn list(base: &mut Value, items: Vec<Value>, key: &str, path: &[&str]) {
    let is = |i: &Value, directive: &str| i.get("$patch").is_some_and(|p| p == directive);
    if !base.is_array() || items.iter().any(|i| is(i, "replace") && i.get(key).is_none()) {
        *base = json!([]);
    }
    let Value::Array(all) = base else { return };
    for i in items.into_iter().filter(|i| i.get(key).is_some()) {
        let same = all.iter().position(|b| b.get(key) == i.get(key));
        match same {
            Some(n) if is(&i, "delete") => drop(all.remove(n)),
            Some(n) => merge(&mut all[n], i, path),
            None if is(&i, "delete") => {}
            None => {
                let mut new = Value::Null;
                merge(&mut new, i, path);
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
        let of = |key: &str, text: &str| {
            let data = [(key.to_string(), text.to_string())].into();
            read(&ConfigMap { data, ..ConfigMap::default() })
        };
        for (text, want) in [
            ("spec: [", "data.deployment is no YAML"),
            ("[]", "data.deployment is no object"),
            (
                "spec: {template: {spec: {containers: [{image: x}]}}}",
                "spec.template.spec.containers: an item has no name",
            ),
            ("spec: {$patch: remove}", "$patch"),
        ] {
            let e = of("deployment", text).unwrap_err();
            assert!(e.contains(want), "{e}");
        }
        let fine =
            of("service", "apiVersion: v1\nkind: Pod\nmetadata: {name: other, namespace: n, labels: {a: b}}").unwrap();
        assert_eq!(fine["service"], json!({ "metadata": { "labels": { "a": "b" } } }));
        assert_eq!(of("service", "").unwrap()["service"], json!({}));
    }
}
