//! Fields that are taken and have no effect: told when an object is applied, and by `check`. What else may be written is used or
//! refused: `every_field_is_used_told_or_refused` goes through all of them. Settings only: a condition without effect would be one
//! that always holds, so it is refused, or what stands under it has no effect.

use serde_json::Value;

const NONE: &str = "has no effect in this version [KARST-0030]";

/// Kind (its name in `karst_manifest::kinds::KINDS`), path, and what is said. `[]` are the items of a list, `*` is any key; a path
/// that begins with `…` is the end of one.
const FIELDS: &[(&str, &str, &str)] = &[
    ("VirtualService", "spec.http[].mirror_percent", "is deprecated; use mirrorPercentage: {value: …} [KARST-0031]"),
    ("VirtualService", "spec.http[].mirror_percentage", "is deprecated; use mirrorPercentage [KARST-0031]"),
    ("VirtualService", "spec.http[].cors_policy", "is deprecated; use corsPolicy [KARST-0031]"),
    ("VirtualService", "spec.http[].match[].statPrefix", NONE),
    ("VirtualService", "spec.http[].retries.retryRemoteLocalities", NONE),
    ("VirtualService", "spec.http[].fault.delay.exponentialDelay", NONE),
    ("VirtualService", "spec.http[].fault.abort.http2Error", NONE),
    ("VirtualService", "spec.tcp[].route[].headers", "has no effect: only HTTP requests have headers [KARST-0030]"),
    ("VirtualService", "spec.tls[].route[].headers", "has no effect: only HTTP requests have headers [KARST-0030]"),
    (
        "DestinationRule",
        "spec.workloadSelector",
        "is not supported in this version: the whole rule has no effect [KARST-0030]",
    ),
    ("DestinationRule", "…connectionPool.tcp.tcpKeepalive", NONE),
    ("DestinationRule", "…connectionPool.tcp.maxConnectionDuration", NONE),
    ("DestinationRule", "…connectionPool.http.h2UpgradePolicy", NONE),
    ("DestinationRule", "…connectionPool.http.useClientProtocol", NONE),
    ("IstioGateway", "spec.servers[].port.targetPort", NONE),
    ("IstioGateway", "spec.servers[].defaultEndpoint", NONE),
    (
        "RequestAuthentication",
        "spec.jwtRules[].timeout",
        "has no effect in this version: fetching keys always times out after 5s [KARST-0030]",
    ),
    (
        "Telemetry",
        "spec.metrics[].reportingInterval",
        "has no effect: metrics are always up to date when they are scraped [KARST-0030]",
    ),
    ("HTTPFilter", "spec.fault.delay.exponentialDelay", NONE),
    ("HTTPFilter", "spec.fault.abort.http2Error", NONE),
    (
        "GatewayClass",
        "spec.parametersRef",
        "has no effect: specify a ConfigMap in the parametersRef of each Gateway [KARST-0030]",
    ),
    ("Gateway", "spec.defaultScope", NONE),
    ("HTTPRoute", "spec.useDefaultGateways", NONE),
    ("HTTPRoute", "spec.rules[].backendRefs[].filters[].requestMirror", IN_RULE),
    ("HTTPRoute", "spec.rules[].backendRefs[].filters[].requestRedirect", IN_RULE),
    ("HTTPRoute", "spec.rules[].backendRefs[].filters[].cors", IN_RULE),
    ("HTTPRoute", "spec.rules[].backendRefs[].filters[].externalAuth", IN_RULE),
    ("GRPCRoute", "spec.useDefaultGateways", NONE),
    ("GRPCRoute", "spec.rules[].backendRefs[].filters[].requestMirror", IN_RULE),
    ("TCPRoute", "spec.useDefaultGateways", NONE),
    ("TLSRoute", "spec.useDefaultGateways", NONE),
    ("UDPRoute", "spec.useDefaultGateways", NONE),
    ("BackendTLSPolicy", "spec.options", NONE),
];

const IN_RULE: &str = "is not supported for a single backend, whose requests are answered with 500: move it to the filters of the rule [KARST-0029]";

/// What is said of an object as it is written.
pub fn warnings(kind: &str, object: &Value) -> Vec<String> {
    let of_kind = FIELDS.iter().filter(|(k, ..)| *k == kind);
    let fields: Vec<(Vec<&str>, bool, &str)> =
        of_kind.map(|(_, path, text)| (segments(path.trim_start_matches('…')), path.starts_with('…'), *text)).collect();
    let mut out = vec![];
    if !fields.is_empty() {
        walk(object.get("spec").unwrap_or(&Value::Null), "spec".into(), &mut vec!["spec"], &fields, &mut out);
    }
    out
}

/// The steps of a path; those into a list are `[]`.
fn segments(path: &str) -> Vec<&str> {
    fn step(path: &str) -> Vec<&str> {
        path.strip_suffix("[]").map_or_else(|| vec![path], |name| vec![name, "[]"])
    }
    path.split('.').flat_map(step).collect()
}

fn walk<'a>(
    value: &'a Value,
    shown: String,
    path: &mut Vec<&'a str>,
    fields: &[(Vec<&str>, bool, &str)],
    out: &mut Vec<String>,
) {
    if is_nothing(value) {
        return;
    }
    let is = |(steps, end, _): &&(Vec<&str>, bool, &str)| {
        let at = if *end { path.len().saturating_sub(steps.len()) } else { 0 };
        path.len() - at == steps.len() && path[at..].iter().zip(steps).all(|(p, s)| *s == "*" || p == s)
    };
    if let Some((.., text)) = fields.iter().find(is) {
        out.push(format!("{shown}: {text}"));
        return;
    }
    match value {
        Value::Object(all) => {
            for (k, value) in all {
                path.push(k);
                walk(value, format!("{shown}.{k}"), path, fields, out);
                path.pop();
            }
        }
        Value::Array(all) => {
            path.push("[]");
            for (i, value) in all.iter().enumerate() {
                walk(value, format!("{shown}[{i}]"), path, fields, out);
            }
            path.pop();
        }
        _ => {}
    }
}

/// What says the same as if it was not there.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        // An empty object may ask for a feature with all its defaults.
        Value::Object(_) | Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests;
