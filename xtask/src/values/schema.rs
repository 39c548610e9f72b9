//! The schema of a chart's values. Types in the table: `string`, `bool`, `int>=N`, `percent`, `scalar`, `strings`,
//! `list`, `map`, `object`, `any`, `enum:A|B`, `re:PATTERN` and `json:SCHEMA`.

use super::table::{Row, Table, Verdict};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Charts that the umbrella consists of: what is global is for all of them.
const PARTS: [&str; 4] = ["base", "istiod", "cni", "ztunnel"];

#[derive(Default)]
struct Node<'a> {
    own: Option<&'a Row>,
    below: BTreeMap<&'a str, Node<'a>>,
}

/// The schema of a chart.
pub(super) fn of(table: &Table, chart: &str) -> Result<Value> {
    let mut root = Node::default();
    table.of(chart).for_each(|row| root.add(row));
    if chart == "ambient" {
        let rows = PARTS.iter().flat_map(|part| table.of(part));
        rows.filter(|row| row.key.starts_with("global.")).for_each(|row| root.add(row));
    }
    let mut schema = root.schema()?;
    // Parents of all charts may have keys of their own there.
    if let Some(global) = schema.pointer_mut("/properties/global").and_then(Value::as_object_mut) {
        global.insert("description".into(), "Shared with the other charts.".into());
        global.remove("additionalProperties");
    } else {
        schema["properties"]["global"] = json!({ "type": "object" });
    }
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    Ok(schema)
}

impl<'a> Node<'a> {
    fn add(&mut self, row: &'a Row) {
        let mut node = self;
        for name in row.key.split('.') {
            node = node.below.entry(name).or_default();
        }
        // A key may be noted with some values and refused with others: the one with a type says it.
        if node.own.is_none_or(|own| own.kind == "any") {
            node.own = Some(row);
        }
    }

    fn schema(&self) -> Result<Value> {
        let mut schema = match self.own {
            Some(row) => one(&row.kind).with_context(|| format!("type of {}", row.key))?,
            None => json!({ "type": "object", "additionalProperties": false }),
        };
        if let Some(row) = self.own.filter(|row| row.verdict == Verdict::Honoured) {
            schema["description"] = json!(row.text);
        }
        if !self.below.is_empty() {
            schema["type"] = json!("object");
            for (name, node) in &self.below {
                schema["properties"][name] = node.schema()?;
            }
        }
        Ok(schema)
    }
}

fn one(kind: &str) -> Result<Value> {
    let scalar = json!({ "type": ["string", "number", "boolean"] });
    Ok(match kind.split_once(':') {
        Some(("enum", values)) => json!({ "enum": values.split('|').collect::<Vec<_>>() }),
        Some(("re", pattern)) => json!({ "type": "string", "pattern": pattern }),
        Some(("json", schema)) => serde_json::from_str(schema)?,
        Some(_) => bail!("unknown type {kind:?}"),
        None => match kind {
            "any" => json!({}),
            "string" => json!({ "type": "string" }),
            "bool" => json!({ "type": "boolean" }),
            "percent" => json!({ "type": ["integer", "null"], "minimum": 1, "maximum": 100 }),
            "scalar" => scalar,
            "strings" => json!({ "type": "array", "items": { "type": "string" } }),
            "list" => json!({ "type": "array" }),
            "map" => json!({ "type": "object", "additionalProperties": scalar }),
            "object" => json!({ "type": "object" }),
            _ => match kind.strip_prefix("int>=") {
                Some(least) => json!({ "type": "integer", "minimum": least.parse::<i64>()? }),
                None => bail!("unknown type {kind:?}"),
            },
        },
    })
}
