//! `values.schema.json`, as far as charts use JSON Schema: what a chart's schema has beyond that is refused by name, so that
//! nothing is passed over in silence.

use super::nearest::nearest;
use serde_json::Value;

/// A value that the schema does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {fault}")]
pub struct SchemaFault {
    /// As `a.b[0]`.
    pub path: String,
    /// What is wrong, and what would be right.
    pub fault: String,
}

/// Words of a schema that say nothing of values.
const REMARKS: [&str; 8] = ["$schema", "$id", "$defs", "definitions", "title", "description", "default", "examples"];

/// Everything that is wrong.
pub(super) fn check(schema: &Value, values: &Value) -> Vec<SchemaFault> {
    let mut checker = Checker { root: schema, faults: Vec::new() };
    checker.check(schema, values, "", 0);
    checker.faults
}

struct Checker<'s> {
    root: &'s Value,
    faults: Vec<SchemaFault>,
}

impl Checker<'_> {
    fn fault(&mut self, path: &str, fault: String) {
        let path = if path.is_empty() { "values" } else { path };
        self.faults.push(SchemaFault { path: path.into(), fault });
    }

    fn check(&mut self, schema: &Value, value: &Value, path: &str, depth: usize) {
        const DEEPEST: usize = 60;
        let Value::Object(words) = schema else {
            if schema == &Value::Bool(false) {
                self.fault(path, "is not allowed".into());
            }
            return;
        };
        if depth > DEEPEST {
            return self.fault(path, "is too deep".into());
        }
        for (word, says) in words {
            match word.as_str() {
                "type" => self.kind(says, value, path),
                "enum" => self.choice(says, value, path),
                "const" if says != value => self.fault(path, format!("must be {says}")),
                "pattern" => self.pattern(says, value, path),
                "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => self.range(word, says, value, path),
                "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
                    self.size(word, says, value, path);
                }
                "properties" => self.properties(says, value, path, depth),
                "additionalProperties" => self.additional(schema, says, value, path, depth),
                "required" => self.required(says, value, path),
                "items" => {
                    for (at, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(says, item, &format!("{path}[{at}]"), depth + 1);
                    }
                }
                "$ref" => self.reference(says, value, path, depth),
                "allOf" => {
                    for one in says.as_array().into_iter().flatten() {
                        self.check(one, value, path, depth + 1);
                    }
                }
                "anyOf" | "oneOf" => self.some(word, says, value, path, depth),
                "not" if self.holds(says, value, depth) => self.fault(path, "is not allowed".into()),
                "const" | "not" => {}
                "propertyNames" => {
                    for key in value.as_object().into_iter().flat_map(|object| object.keys()) {
                        self.check(says, &Value::from(key.as_str()), &join(path, key), depth + 1);
                    }
                }
                "patternProperties" => self.fault(path, "the chart's schema uses patternProperties".into()),
                remark if REMARKS.contains(&remark) => {}
                other => self.fault(path, format!("the chart's schema uses {other}, which is not understood here")),
            }
        }
    }

    fn holds(&self, schema: &Value, value: &Value, depth: usize) -> bool {
        let mut inner = Checker { root: self.root, faults: Vec::new() };
        inner.check(schema, value, "", depth + 1);
        inner.faults.is_empty()
    }

    fn reference(&mut self, says: &Value, value: &Value, path: &str, depth: usize) {
        let target = says.as_str().and_then(|text| text.strip_prefix('#')).and_then(|at| self.root.pointer(at));
        match target.cloned() {
            Some(schema) => self.check(&schema, value, path, depth + 1),
            None => self.fault(path, format!("the chart's schema refers to {says}, which is not there")),
        }
    }

    fn some(&mut self, word: &str, says: &Value, value: &Value, path: &str, depth: usize) {
        let schemas = says.as_array().map(Vec::as_slice).unwrap_or_default();
        let count = schemas.iter().filter(|schema| self.holds(schema, value, depth)).count();
        if count == 0 || (word == "oneOf" && count > 1) {
            self.fault(path, format!("{value} fits {count} of the {} forms that are possible", schemas.len()));
        }
    }

    fn kind(&mut self, says: &Value, value: &Value, path: &str) {
        let is = |kind: &Value| match kind.as_str() {
            Some("string") => value.is_string(),
            Some("number") => value.is_number(),
            Some("integer") => value.as_f64().is_some_and(|number| number.fract() == 0.0),
            Some("boolean") => value.is_boolean(),
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("null") => value.is_null(),
            _ => false,
        };
        let fits = match says {
            Value::Array(kinds) => kinds.iter().any(is),
            kind => is(kind),
        };
        if !fits {
            let wanted = says.to_string().replace(['"', '[', ']'], "").replace(',', " or ");
            self.fault(path, format!("{value} is not of type {wanted}"));
        }
    }

    fn choice(&mut self, says: &Value, value: &Value, path: &str) {
        let choices = says.as_array().map(Vec::as_slice).unwrap_or_default();
        if !choices.contains(value) {
            let list: Vec<String> = choices.iter().map(Value::to_string).collect();
            self.fault(path, format!("{value} is none of {}", list.join(", ")));
        }
    }

    fn pattern(&mut self, says: &Value, value: &Value, path: &str) {
        let (Some(pattern), Some(text)) = (says.as_str(), value.as_str()) else { return };
        match regex::Regex::new(pattern) {
            Ok(regex) if regex.is_match(text) => {}
            Ok(_) => self.fault(path, format!("{text:?} does not match {pattern}")),
            Err(_) => self.fault(path, format!("the chart's schema has the pattern {pattern:?}, which is none")),
        }
    }

    fn range(&mut self, word: &str, says: &Value, value: &Value, path: &str) {
        let (Some(limit), Some(number)) = (says.as_f64(), value.as_f64()) else { return };
        let (fits, text) = match word {
            "minimum" => (number >= limit, "at least"),
            "maximum" => (number <= limit, "at most"),
            "exclusiveMinimum" => (number > limit, "more than"),
            _ => (number < limit, "less than"),
        };
        if !fits {
            self.fault(path, format!("{value} must be {text} {says}"));
        }
    }

    fn size(&mut self, word: &str, says: &Value, value: &Value, path: &str) {
        let length = match value {
            Value::String(text) if word.ends_with("Length") => text.chars().count(),
            Value::Array(items) if word.ends_with("Items") => items.len(),
            Value::Object(entries) if word.ends_with("Properties") => entries.len(),
            _ => return,
        } as u64;
        let limit = says.as_u64().unwrap_or_default();
        if (word.starts_with("min") && length < limit) || (word.starts_with("max") && length > limit) {
            self.fault(path, format!("its length is {length}, and {word} is {limit}"));
        }
    }

    fn properties(&mut self, says: &Value, value: &Value, path: &str, depth: usize) {
        let (Some(known), Some(object)) = (says.as_object(), value.as_object()) else { return };
        for (key, value) in object {
            if let Some(schema) = known.get(key) {
                self.check(schema, value, &join(path, key), depth + 1);
            }
        }
    }

    fn additional(&mut self, schema: &Value, says: &Value, value: &Value, path: &str, depth: usize) {
        let Some(object) = value.as_object() else { return };
        let known = schema["properties"].as_object();
        for (key, value) in object {
            if known.is_some_and(|known| known.contains_key(key)) {
                continue;
            }
            if says != &Value::Bool(false) {
                self.check(says, value, &join(path, key), depth + 1);
                continue;
            }
            let names = known.into_iter().flat_map(|known| known.keys().map(String::as_str));
            let meant = nearest(key, names).map_or(String::new(), |name| format!("; did you mean {name}?"));
            self.fault(&join(path, key), format!("there is no such key{meant}"));
        }
    }

    fn required(&mut self, says: &Value, value: &Value, path: &str) {
        let Some(object) = value.as_object() else { return };
        for key in says.as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(key) {
                self.fault(&join(path, key), "is missing".into());
            }
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.into() } else { format!("{path}.{key}") }
}
