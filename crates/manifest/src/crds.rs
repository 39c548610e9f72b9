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
fn structural(schema: &mut Value) {
    if *schema == Value::Bool(true) {
        *schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    }
    let Value::Object(fields) = schema else { return };
    for gone in ["$schema", "title", "default", "format"] {
        fields.remove(gone);
    }
    if fields.get("additionalProperties") == Some(&Value::Bool(false)) {
        fields.remove("additionalProperties");
    }
    // Option<T>.
    if let Some(Value::Array(t)) = fields.get_mut("type") {
        t.retain(|t| t != "null");
        let only = t.remove(0);
        fields.insert("type".into(), only);
    }
    if let Some(Value::Array(mut any)) = fields.remove("anyOf") {
        any.retain(|a| a["type"] != "null");
        let Value::Object(one) = any.remove(0) else { unreachable!() };
        for (key, schema) in one {
            fields.entry(key).or_insert(schema);
        }
        return structural(schema);
    }
    if !fields.contains_key("type") {
        fields.insert("type".into(), "object".into());
        fields.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(structural);
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(x) = fields.get_mut(inner) {
            structural(x);
        }
    }
}

fn schema<T: schemars::JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|s| s.inline_subschemas = true);
    let mut schema = serde_json::to_value(settings.into_generator().into_root_schema_for::<T>()).unwrap();
    schema.as_object_mut().unwrap().remove("components");
    structural(&mut schema);
    schema
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
            description: "Faults, rate limits, size limits and compression for requests to services or routes.",
            columns: &[],
            spec: schema::<HttpFilterSpec>(),
        },
    ]
}

fn text(crd: &Crd) -> String {
    let columns: Vec<Value> = crd
        .columns
        .iter()
        .map(|(n, p)| json!({ "name": n, "type": "string", "jsonPath": p }))
        .chain([json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" })])
        .collect();
    let version = |name: &str| {
        json!({
            "name": name, "served": true, "storage": name == crd.versions[0],
            "subresources": { "status": {} },
            "additionalPrinterColumns": columns,
            "schema": { "openAPIV3Schema": {
                "type": "object", "description": crd.description,
                "properties": { "spec": crd.spec, "status": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
            } },
        })
    };
    let versions: Vec<Value> = crd.versions.iter().map(|v| version(v)).collect();
    let (labels, category) = match crd.group {
        ISTIO | SECURITY | TELEMETRY => (json!({ "app": "istio-pilot", "chart": "istio" }), "istio-io"),
        _ => (json!({ "app": "istiod" }), "karst-io"),
    };
    let doc = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{}", crd.plural, crd.group),
            "labels": labels,
            "annotations": { "helm.sh/resource-policy": "keep" },
        },
        "spec": {
            "group": crd.group, "scope": "Namespaced",
            "names": {
                "kind": crd.kind, "listKind": format!("{}List", crd.kind), "plural": crd.plural,
                "singular": crd.kind.to_lowercase(), "shortNames": [crd.short], "categories": [category],
            },
            "versions": versions,
        },
    });
    format!(
        "# Made from crates/manifest/src/{}; see crates/manifest/src/crds.rs.\n{}",
        crd.source,
        serde_yaml_ng::to_string(&doc).unwrap()
    )
}

#[test]
fn crds_are_what_the_types_say() {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/base/files/crds"));
    for crd in crds() {
        let (path, want) = (dir.join(format!("{}.yaml", crd.plural)), text(&crd));
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
    fn walk(schema: &Value, at: &str) {
        let Value::Object(fields) = schema else { panic!("{at}: {schema}") };
        assert!(fields.get("type").is_some_and(Value::is_string), "{at}: {schema}");
        for key in ["$ref", "anyOf", "oneOf", "default", "title"] {
            assert!(!fields.contains_key(key), "{at}: {key}");
        }
        let none = Map::new();
        for (key, schema) in fields.get("properties").and_then(Value::as_object).unwrap_or(&none) {
            walk(schema, &format!("{at}.{key}"));
        }
        for key in ["items", "additionalProperties"] {
            if let Some(schema) = fields.get(key) {
                walk(schema, &format!("{at}.{key}"));
            }
        }
    }
    for crd in crds() {
        walk(&crd.spec, crd.kind);
    }
}
