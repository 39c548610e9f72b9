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

/// The known name that is nearest to a wrong one, if it is near enough to be meant.
pub fn nearest<'k>(wrong: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let far = wrong.len() / 2 + 1;
    let found = known.into_iter().map(|name| (distance(wrong, name), name)).min()?;
    (found.0 <= far).then_some(found.1)
}

/// Letters to add, remove or replace (Levenshtein), without regard to case.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, from) in left.to_lowercase().chars().enumerate() {
        let mut next = vec![at + 1];
        for (column, to) in right.iter().enumerate() {
            let replaced = row.get(column).copied().unwrap_or_default() + usize::from(from != *to);
            let removed = row.get(column + 1).copied().unwrap_or_default() + 1;
            let added = next.last().copied().unwrap_or_default() + 1;
            next.push(replaced.min(removed).min(added));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_none_for_nonsense() {
        assert_eq!(nearest("replicaCont", ["replicaCount", "resources"]), Some("replicaCount"));
        assert_eq!(nearest("xyzzy", ["replicaCount", "resources"]), None);
        assert_eq!(nearest("anything", []), None);
    }

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
