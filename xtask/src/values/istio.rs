//! Each key that Istio's own charts have is in the table: itself, a key above it, or, of an empty object, one below it. The charts are
//! those of the Go module that the tests' istioctl is built from (`cargo xtask cluster programs`).

use super::table::Table;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{collections::BTreeSet, fs, iter, path::Path};

/// Where Istio's charts are, once something was built from its module.
const CHARTS: &str = "target/cluster/bin/istio-charts";

/// Our charts that Istio has, too, and the folder of Istio's.
const FOLDERS: [(&str, &str); 5] = [
    ("base", "base"),
    ("istiod", "istio-control/istio-discovery"),
    ("cni", "istio-cni"),
    ("ztunnel", "ztunnel"),
    ("gateway", "gateway"),
];

/// Below this are the defaults of Istio's charts, so that its profiles lie above them and below what users set.
const DEFAULTS: &str = "_internal_defaults_do_not_set";

/// Looks at all keys of Istio's charts, if these are there.
pub(super) fn run(table: &Table) -> Result<()> {
    let charts = Path::new(CHARTS);
    if !charts.is_dir() {
        println!("NOT CHECKED: the keys of Istio's charts, which `cargo xtask cluster programs` brings to {CHARTS}");
        return Ok(());
    }
    let (mut number, mut faults) = (0, vec![]);
    for (chart, folder) in FOLDERS {
        let path = charts.join(folder).join("values.yaml");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let values: Value = serde_yaml_ng::from_str(&text).with_context(|| path.display().to_string())?;
        let mut all = vec![];
        leaves(values.get(DEFAULTS).unwrap_or(&values), "", &mut all);
        number += all.len();
        let keys: BTreeSet<&str> = table.of(chart).map(|row| row.key.as_str()).collect();
        faults.extend(all.iter().filter(|leaf| !is_known(&keys, leaf)).map(|leaf| format!("{chart}: {leaf}")));
    }
    println!("{number} keys of Istio's charts");
    ensure!(faults.is_empty(), "charts/values.tsv lacks keys of Istio's charts:\n{}", faults.join("\n"));
    Ok(())
}

/// The paths below `path` of all that is no object, or an empty one.
fn leaves(value: &Value, path: &str, all: &mut Vec<String>) {
    match value.as_object().filter(|fields| !fields.is_empty()) {
        Some(fields) => {
            for (name, below) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(below, &path, all);
            }
        }
        None => all.push(path.to_string()),
    }
}

fn is_known(keys: &BTreeSet<&str>, leaf: &str) -> bool {
    let mut path = iter::successors(Some(leaf), |key| key.rsplit_once('.').map(|(above, _)| above));
    let below = format!("{leaf}.");
    path.any(|key| keys.contains(key)) || keys.iter().any(|key| key.starts_with(&below))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_key_is_known_by_itself_by_one_above_it_and_by_one_below_it() {
        let values = json!({ "a": { "b": 1, "d": {} }, "c": { "x": [1], "y": { "z": null } }, "e": {}, "ab": "" });
        let mut all = vec![];
        leaves(&values, "", &mut all);
        assert_eq!(all, ["a.b", "a.d", "ab", "c.x", "c.y.z", "e"]);
        let keys = BTreeSet::from(["a.b", "c", "e.f"]);
        let unknown: Vec<&String> = all.iter().filter(|leaf| !is_known(&keys, leaf)).collect();
        assert_eq!(unknown, ["a.d", "ab"]);
    }
}
