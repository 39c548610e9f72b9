//! YAML, JSON, base64 and hashes.

use super::arguments::Arguments;
use crate::template::{Fault, Value};
use crate::{documents, template::yaml::to_yaml};
use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

pub(super) fn call(arguments: &Arguments<'_>) -> Option<Result<Value, Fault>> {
    Some(match arguments.function {
        "toYaml" | "toYamlPretty" => arguments.borrowed(0).map(|value| Value::text(to_yaml(&value.to_json()))),
        "toJson" | "mustToJson" | "toRawJson" => {
            arguments.borrowed(0).map(|value| Value::text(value.to_json().to_string()))
        }
        "toPrettyJson" => arguments
            .borrowed(0)
            .map(|value| Value::text(serde_json::to_string_pretty(&value.to_json()).unwrap_or_default())),
        "fromYaml" => arguments.text(0).map(|text| read(documents::read_one(text))),
        "fromJson" => arguments.text(0).map(|text| read(serde_json::from_str(text))),
        "b64enc" => arguments.text(0).map(|text| Value::text(STANDARD.encode(text))),
        "b64dec" => arguments.text(0).map(|text| match STANDARD.decode(text) {
            Ok(bytes) => Value::text(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => Value::text(error.to_string()),
        }),
        "sha256sum" => arguments.text(0).map(|text| {
            let digest = Sha256::digest(text.as_bytes());
            Value::text(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        }),
        _ => return None,
    })
}

/// Helm gives a map with the key Error for what cannot be read.
fn read<E: std::fmt::Display>(parsed: Result<serde_json::Value, E>) -> Value {
    match parsed {
        Ok(json) => Value::from_json(&json),
        Err(error) => Value::map(BTreeMap::from([("Error".to_string(), Value::text(error.to_string()))])),
    }
}
