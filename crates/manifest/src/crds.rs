//! The CRDs of the kinds in [`crate::traffic`] are made from their types: `KARST_BLESS=1 cargo test -p karst-manifest crds`
//! writes them; without it the test says whether what is committed is what the types say.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use crate::{
    extension::HttpFilterSpec,
    security::RequestAuthenticationSpec,
    telemetry::TelemetrySpec,
    traffic::{DestinationRuleSpec, IstioGatewaySpec, VirtualServiceSpec},
};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use std::{fs, path::PathBuf};

struct Crd {
    group: &'static str,
    versions: &'static [&'static str],
    source: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    description: &'static str,
    columns: &'static [(&'static str, &'static str)],
    spec: Value,
}

/// Kubernetes wants schemas without references, without "or nothing", and closes objects by itself.
fn structural(v: &mut Value) {
    if *v == Value::Bool(true) {
        *v = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    }
    let Value::Object(m) = v else { return };
    for gone in ["$schema", "title", "default", "format"] {
        m.remove(gone);
    }
    if m.get("additionalProperties") == Some(&Value::Bool(false)) {
        m.remove("additionalProperties");
    }
    // Option<T>.
    if let Some(Value::Array(t)) = m.get_mut("type") {
        t.retain(|t| t != "null");
        let only = t.remove(0);
        m.insert("type".into(), only);
    }
    if let Some(Value::Array(mut any)) = m.remove("anyOf") {
        any.retain(|a| a["type"] != "null");
        let Value::Object(one) = any.remove(0) else { unreachable!() };
        for (k, v) in one {
            m.entry(k).or_insert(v);
        }
        return structural(v);
    }
    if !m.contains_key("type") {
        m.insert("type".into(), "object".into());
        m.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
    }
    if let Some(Value::Object(p)) = m.get_mut("properties") {
        p.values_mut().for_each(structural);
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(x) = m.get_mut(inner) {
            structural(x);
        }
    }
}

fn schema<T: schemars::JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|s| s.inline_subschemas = true);
    let mut v = serde_json::to_value(settings.into_generator().into_root_schema_for::<T>()).unwrap();
    v.as_object_mut().unwrap().remove("components");
    structural(&mut v);
    v
}

const ISTIO: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const TELEMETRY: &str = "telemetry.istio.io";

fn crds() -> Vec<Crd> {
    let mut vs = schema::<VirtualServiceSpec>();
    // Old names that users' manifests still have; the webhook warns of them.
    let http = &mut vs["properties"]["http"]["items"]["properties"];
    for (old, new) in
        [("mirror_percent", "mirrorPercent"), ("mirror_percentage", "mirrorPercentage"), ("cors_policy", "corsPolicy")]
    {
        http[old] = http[new].clone();
    }
    let mut dr = schema::<DestinationRuleSpec>();
    dr["required"] = json!(["host"]);
    vec![
        Crd {
            group: ISTIO,
            versions: &["v1", "v1beta1", "v1alpha3"],
            source: "traffic.rs",
            kind: "VirtualService",
            plural: "virtualservices",
            short: "vs",
            description: "Routes requests to services.",
            columns: &[("Gateways", ".spec.gateways"), ("Hosts", ".spec.hosts")],
            spec: vs,
        },
        Crd {
            group: ISTIO,
            versions: &["v1", "v1beta1", "v1alpha3"],
            source: "traffic.rs",
            kind: "DestinationRule",
            plural: "destinationrules",
            short: "dr",
            description: "Configures load balancing, connection pools, outlier detection and TLS for requests to a service, and its subsets.",
            columns: &[("Host", ".spec.host")],
            spec: dr,
        },
        Crd {
            group: ISTIO,
            versions: &["v1", "v1beta1", "v1alpha3"],
            source: "traffic.rs",
            kind: "Gateway",
            plural: "gateways",
            short: "gw",
            description: "Configures the servers of gateways.",
            columns: &[],
            spec: schema::<IstioGatewaySpec>(),
        },
        Crd {
            group: SECURITY,
            versions: &["v1", "v1beta1"],
            source: "security.rs",
            kind: "RequestAuthentication",
            plural: "requestauthentications",
            short: "ra",
            description: "Configures which JSON Web Tokens are accepted.",
            columns: &[],
            spec: schema::<RequestAuthenticationSpec>(),
        },
        Crd {
            group: TELEMETRY,
            versions: &["v1", "v1alpha1"],
            source: "telemetry.rs",
            kind: "Telemetry",
            plural: "telemetries",
            short: "telemetry",
            description: "Configures metrics, access logs and traces of proxies.",
            columns: &[],
            spec: schema::<TelemetrySpec>(),
        },
        Crd {
            group: "karst.io",
            versions: &["v1alpha1"],
            source: "extension.rs",
            kind: "HTTPFilter",
            plural: "httpfilters",
            short: "hf",
            description: "Injects faults into, and limits the rate of, requests to services or routes.",
            columns: &[],
            spec: schema::<HttpFilterSpec>(),
        },
    ]
}

fn text(c: &Crd) -> String {
    let columns: Vec<Value> = c
        .columns
        .iter()
        .map(|(n, p)| json!({ "name": n, "type": "string", "jsonPath": p }))
        .chain([json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" })])
        .collect();
    let version = |name: &str| {
        json!({
            "name": name, "served": true, "storage": name == c.versions[0],
            "subresources": { "status": {} },
            "additionalPrinterColumns": columns,
            "schema": { "openAPIV3Schema": {
                "type": "object", "description": c.description,
                "properties": { "spec": c.spec, "status": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
            } },
        })
    };
    let versions: Vec<Value> = c.versions.iter().map(|v| version(v)).collect();
    let (labels, category) = match c.group {
        ISTIO | SECURITY | TELEMETRY => (json!({ "app": "istio-pilot", "chart": "istio" }), "istio-io"),
        _ => (json!({ "app": "istiod" }), "karst-io"),
    };
    let doc = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{}", c.plural, c.group),
            "labels": labels,
            "annotations": { "helm.sh/resource-policy": "keep" },
        },
        "spec": {
            "group": c.group, "scope": "Namespaced",
            "names": {
                "kind": c.kind, "listKind": format!("{}List", c.kind), "plural": c.plural,
                "singular": c.kind.to_lowercase(), "shortNames": [c.short], "categories": [category],
            },
            "versions": versions,
        },
    });
    format!(
        "# Made from crates/manifest/src/{}; see crates/manifest/src/crds.rs.\n{}",
        c.source,
        serde_yaml_ng::to_string(&doc).unwrap()
    )
}

#[test]
fn crds_are_what_the_types_say() {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/base/crds"));
    for c in crds() {
        let (path, want) = (dir.join(format!("{}.yaml", c.plural)), text(&c));
        if std::env::var_os("KARST_BLESS").is_some() {
            fs::write(&path, &want).unwrap();
        }
        let is = fs::read_to_string(&path).unwrap_or_default();
        assert!(is == want, "{} is not what the types say: run with KARST_BLESS=1", path.display());
    }
}

/// Nothing is left that Kubernetes does not take.
#[test]
fn schemas_are_structural() {
    fn walk(v: &Value, at: &str) {
        let Value::Object(m) = v else { panic!("{at}: {v}") };
        assert!(m.get("type").is_some_and(Value::is_string), "{at}: {v}");
        for k in ["$ref", "anyOf", "oneOf", "default", "title"] {
            assert!(!m.contains_key(k), "{at}: {k}");
        }
        let none = Map::new();
        for (k, v) in m.get("properties").and_then(Value::as_object).unwrap_or(&none) {
            walk(v, &format!("{at}.{k}"));
        }
        for k in ["items", "additionalProperties"] {
            if let Some(v) = m.get(k) {
                walk(v, &format!("{at}.{k}"));
            }
        }
    }
    for c in crds() {
        walk(&c.spec, c.kind);
    }
}
