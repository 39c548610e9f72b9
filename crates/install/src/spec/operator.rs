//! IstioOperator: which keys it has, and how several of them become one.

use super::SpecError;
use crate::{chart, chart::nearest, documents};
use serde_json::{Map, Value};

/// Keys of `spec`. What is in `values` and in `meshConfig` the charts judge.
const KEYS: [&str; 10] = [
    "profile",
    "hub",
    "tag",
    "namespace",
    "revision",
    "components",
    "values",
    "unvalidatedValues",
    "meshConfig",
    "compatibilityVersion",
];
/// Keys of `spec.components`.
pub(super) const COMPONENTS: [&str; 6] = ["base", "pilot", "cni", "ztunnel", "ingressGateways", "egressGateways"];
const COMPONENT_KEYS: [&str; 7] = ["enabled", "namespace", "hub", "tag", "k8s", "name", "label"];

/// Reads an IstioOperator; several documents are laid over each other.
///
/// # Errors
/// If the text is something else, or has a key that there is not.
pub fn read(file: &str, text: &str) -> Result<Map<String, Value>, SpecError> {
    let documents = documents::read_all(text).map_err(|error| SpecError::File { file: file.into(), error })?;
    let mut spec = Map::new();
    for document in documents {
        let kind = document["kind"].as_str().unwrap_or_default();
        if kind != "IstioOperator" {
            return Err(SpecError::Kind { file: file.into(), kind: kind.into() });
        }
        if let Some(Value::Object(own)) = document.get("spec").cloned() {
            check(&format!("{file}: spec"), &own)?;
            over(&mut spec, own);
        }
    }
    Ok(spec)
}

/// Lays one spec over another. Gateways are found by their name; other lists are replaced.
pub fn over(base: &mut Map<String, Value>, mut above: Map<String, Value>) {
    if let (Some(Value::Object(known)), Some(Value::Object(given))) =
        (base.get_mut("components"), above.get_mut("components"))
    {
        for kind in ["ingressGateways", "egressGateways"] {
            let Some(Value::Array(list)) = known.get_mut(kind) else { continue };
            match given.remove(kind) {
                Some(Value::Array(gateways)) => add_gateways(list, gateways),
                // Replaces the list, as any other value does.
                Some(other) => {
                    given.insert(kind.into(), other);
                }
                None => {}
            }
        }
    }
    chart::merge(base, above);
}

fn add_gateways(known: &mut Vec<Value>, given: Vec<Value>) {
    for gateway in given {
        match (known.iter_mut().find(|one| one["name"] == gateway["name"]), gateway) {
            (Some(Value::Object(one)), Value::Object(gateway)) => chart::merge(one, gateway),
            (_, gateway) => known.push(gateway),
        }
    }
}

/// Refuses keys that there are not.
pub(super) fn check(at: &str, spec: &Map<String, Value>) -> Result<(), SpecError> {
    keys(at, spec, &KEYS)?;
    let Some(components) = spec.get("components") else { return Ok(()) };
    let at = format!("{at}.components");
    let components = map(&at, components)?;
    keys(&at, components, &COMPONENTS)?;
    for (name, component) in components {
        let at = format!("{at}.{name}");
        if name.ends_with("Gateways") {
            let Value::Array(gateways) = component else {
                return Err(SpecError::Value { at, wanted: "a list is wanted", got: component.to_string() });
            };
            for (index, gateway) in gateways.iter().enumerate() {
                one(&format!("{at}[{index}]"), gateway)?;
                if !gateway["name"].is_string() {
                    let at = format!("{at}[{index}].name");
                    return Err(SpecError::Value {
                        at,
                        wanted: "a gateway has a name",
                        got: gateway["name"].to_string(),
                    });
                }
            }
        } else {
            one(&at, component)?;
        }
    }
    Ok(())
}

fn one(at: &str, component: &Value) -> Result<(), SpecError> {
    let component = map(at, component)?;
    keys(at, component, &COMPONENT_KEYS)?;
    match component.get("enabled") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(other) => Err(SpecError::Value {
            at: format!("{at}.enabled"),
            wanted: "true or false is wanted",
            got: other.to_string(),
        }),
    }
}

pub(super) fn map<'v>(at: &str, value: &'v Value) -> Result<&'v Map<String, Value>, SpecError> {
    let wanted = "a map is wanted";
    value.as_object().ok_or_else(|| SpecError::Value { at: at.into(), wanted, got: value.to_string() })
}

pub(super) fn keys(at: &str, map: &Map<String, Value>, known: &[&str]) -> Result<(), SpecError> {
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(SpecError::Key {
            at: format!("{at}.{key}"),
            nearest: nearest(key, known.iter().copied()).map(String::from),
            hint: String::new(),
        }),
    }
}
