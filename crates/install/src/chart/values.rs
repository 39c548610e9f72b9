//! How values are laid over each other, as Helm does it.

use super::Chart;
use serde_json::{Map, Value};

/// Lays `over` upon `base`: maps are merged, everything else is replaced, also by null.
pub fn merge(base: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Object(below)), Value::Object(above)) => merge(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// The values that a chart is rendered with: its own below those that are given, and so for each dependency under its
/// name, with `global` handed down. A null that is given removes a default.
pub(super) fn coalesce(chart: &Chart, mut given: Map<String, Value>) -> Map<String, Value> {
    fill(&mut given, &chart.values);
    for dependency in &chart.dependencies {
        let mut own = match given.remove(&dependency.name) {
            Some(Value::Object(own)) => own,
            _ => Map::new(),
        };
        let mut global = match own.remove("global") {
            Some(Value::Object(global)) => global,
            _ => Map::new(),
        };
        if let Some(Value::Object(from_above)) = given.get("global") {
            merge(&mut global, from_above.clone());
        }
        own.insert("global".into(), Value::Object(global));
        given.insert(dependency.name.clone(), Value::Object(coalesce(dependency, own)));
    }
    given
}

fn fill(given: &mut Map<String, Value>, defaults: &Map<String, Value>) {
    for (key, default) in defaults {
        match (given.get_mut(key), default) {
            (None, default) => {
                given.insert(key.clone(), default.clone());
            }
            (Some(Value::Null), _) => {
                given.remove(key);
            }
            (Some(Value::Object(given)), Value::Object(default)) => fill(given, default),
            (Some(_), _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_merged_and_lists_replaced() {
        let object = |value: Value| match value {
            Value::Object(entries) => entries,
            _ => Map::new(),
        };
        let mut base = object(serde_json::json!({"a": {"b": 1, "c": [1, 2]}, "d": 1}));
        merge(&mut base, object(serde_json::json!({"a": {"c": [3]}, "d": null})));
        assert_eq!(Value::Object(base), serde_json::json!({"a": {"b": 1, "c": [3]}, "d": null}));
    }
}
