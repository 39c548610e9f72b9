//! YAML files and their documents, as JSON.

use serde::Deserialize;
use serde_json::Value;

/// A text that is no YAML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not YAML: {0}")]
pub struct YamlError(String);

/// The one document of a text; null if it is empty.
///
/// # Errors
/// If it is not YAML, or has several documents.
pub fn read_one(text: &str) -> Result<Value, YamlError> {
    let mut documents = read_all(text)?.into_iter();
    let first = documents.next().unwrap_or_default();
    if documents.next().is_some() {
        return Err(YamlError("several documents where one is wanted; remove the lines ---".into()));
    }
    Ok(first)
}

/// All documents that are not empty.
///
/// # Errors
/// If the text is not YAML.
pub fn read_all(text: &str) -> Result<Vec<Value>, YamlError> {
    let mut documents = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = serde_yaml_ng::Value::deserialize(document).map_err(|error| YamlError(error.to_string()))?;
        let value = json(value)?;
        if !value.is_null() {
            documents.push(value);
        }
    }
    Ok(documents)
}

/// Keys that are numbers or truth values become texts, as Kubernetes' reader does.
fn json(value: serde_yaml_ng::Value) -> Result<Value, YamlError> {
    use serde_yaml_ng::Value as Yaml;
    Ok(match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => value.into(),
        Yaml::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), ..) => number.into(),
            (None, Some(number), _) => number.into(),
            (None, None, number) => number.into(),
        },
        Yaml::String(text) => text.into(),
        Yaml::Sequence(items) => items.into_iter().map(json).collect::<Result<_, _>>()?,
        Yaml::Mapping(entries) => {
            let mut object = serde_json::Map::new();
            for (key, value) in entries {
                let key = match json(key)? {
                    Value::String(text) => text,
                    Value::Array(_) | Value::Object(_) => return Err(YamlError("a key is a list or a map".into())),
                    other => other.to_string(),
                };
                object.insert(key, json(value)?);
            }
            Value::Object(object)
        }
        Yaml::Tagged(tagged) => json(tagged.value)?,
    })
}
