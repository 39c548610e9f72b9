//! Alerts and dashboards: what they ask for is in docs/metrics.md, and docs/alerts.md has a section for each alert.

use super::names::PREFIXES;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{collections::BTreeSet, fs};

/// The rules of the chart.
pub(crate) const ALERTS: &str = "charts/istiod/files/alerts.yaml";
const RUNBOOK: &str = "docs/alerts.md";
const DASHBOARDS: &str = "samples/addons/dashboards.yaml";
/// What begins the heading of an alert's section.
const HEADING: &str = "## Karst";
/// What histograms add to their names.
const SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];

/// Faults, each with the fix. `metrics`: those of docs/metrics.md.
pub(super) fn check(metrics: &BTreeSet<String>) -> Result<Vec<String>> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_string());
    let mut faults = alerts(&read(ALERTS)?, &read(RUNBOOK)?, metrics).context(ALERTS)?;
    faults.extend(dashboards(&read(DASHBOARDS)?, metrics).context(DASHBOARDS)?);
    Ok(faults)
}

fn alerts(rules: &str, page: &str, metrics: &BTreeSet<String>) -> Result<Vec<String>> {
    let rules: Value = serde_yaml_ng::from_str(rules)?;
    let groups = rules["groups"].as_array().context("no groups")?;
    let all: Vec<&Value> = groups.iter().filter_map(|group| group["rules"].as_array()).flatten().collect();
    ensure!(!all.is_empty(), "no rules");
    let mut faults = vec![];
    let mut sections: BTreeSet<&str> = page.lines().filter(|line| line.starts_with(HEADING)).map(|h| &h[3..]).collect();
    for rule in all {
        let name = rule["alert"].as_str().context("a rule without the name of an alert")?;
        let notes = &rule["annotations"];
        let line = |key: &str| notes[key].as_str().is_some_and(|text| !text.is_empty() && !text.contains('\n'));
        if !line("summary") || !line("action") {
            faults.push(format!("{ALERTS}: {name} has no summary or no action of one line"));
        }
        if notes["runbook"] != format!("{RUNBOOK}#{}", name.to_lowercase()) {
            faults.push(format!("{ALERTS}: {name}: its runbook is not {RUNBOOK}#{}", name.to_lowercase()));
        }
        if !sections.remove(name) {
            faults.push(format!("{RUNBOOK}: there is no section \"## {name}\": add it"));
        }
        let expression = rule["expr"].as_str().context("a rule without an expression")?;
        faults.extend(unknown(expression, metrics).map(|why| format!("{ALERTS}: {name}: {why}")));
    }
    faults.extend(sections.iter().map(|name| format!("{RUNBOOK}: there is no alert {name}: remove its section")));
    Ok(faults)
}

fn dashboards(config_map: &str, metrics: &BTreeSet<String>) -> Result<Vec<String>> {
    let object: Value = serde_yaml_ng::from_str(config_map)?;
    let files = object["data"].as_object().context("no data")?;
    let mut faults = vec![];
    let mut seen = BTreeSet::new();
    for (file, text) in files {
        let dashboard: Value = serde_json::from_str(text.as_str().unwrap_or_default()).context(file.clone())?;
        if !seen.insert(dashboard["uid"].to_string()) {
            faults.push(format!("{DASHBOARDS}: {file}: another one has its uid"));
        }
        for panel in dashboard["panels"].as_array().context("no panels")? {
            let fault = |why: &str| format!("{DASHBOARDS}: {file}: {}: {why}", panel["title"]);
            let targets = panel["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
            if targets.is_empty() || panel["title"].as_str().is_none_or(str::is_empty) {
                faults.push(fault("a panel needs a title and queries"));
            }
            for target in targets {
                faults.extend(unknown(target["expr"].as_str().unwrap_or_default(), metrics).map(|why| fault(&why)));
            }
        }
    }
    Ok(faults)
}

/// What is wrong with an expression's metrics.
fn unknown(expression: &str, metrics: &BTreeSet<String>) -> Option<String> {
    let asked = asked(expression);
    if asked.is_empty() {
        return Some(format!("{expression:?} names no metric of the mesh"));
    }
    let base = |name: &str| SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix)).map(String::from);
    let is_known = |name: &String| metrics.contains(name) || base(name).is_some_and(|base| metrics.contains(&base));
    asked.into_iter().find(|name| !is_known(name)).map(|name| format!("{name} is not in docs/metrics.md"))
}

/// The metrics of an expression: words with the prefixes of ours, outside of texts.
fn asked(expression: &str) -> BTreeSet<String> {
    let outside = expression.split('"').step_by(2);
    let words = outside.flat_map(|part| part.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    words.filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix))).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> BTreeSet<String> {
        ["karst_closed_pods", "istio_request_bytes"].map(String::from).into()
    }

    fn rules(expr: &str, runbook: &str) -> String {
        format!(
            "groups: [{{name: g, rules: [{{alert: KarstClosed, expr: '{expr}', annotations: {{summary: s, action: a, runbook: '{runbook}'}}}}]}}]"
        )
    }

    #[test]
    fn an_alert_has_a_section_a_runbook_and_known_metrics() {
        let good = rules("karst_closed_pods > 0", "docs/alerts.md#karstclosed");
        let of = |rules: &str, page: &str| alerts(rules, page, &metrics()).unwrap();
        assert_eq!(of(&good, "# Alerts\n\n## KarstClosed\ntext\n"), [""; 0]);
        let missing = of(&good, "## KarstOther\n");
        assert_eq!(missing.len(), 2, "{missing:?}");
        assert!(missing[0].contains("no section \"## KarstClosed\"") && missing[1].contains("no alert KarstOther"));
        let wrong = of(&rules("karst_gone > 0", "docs/x.md"), "## KarstClosed\n");
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].contains("its runbook is not") && wrong[1].contains("karst_gone is not in"));
        assert!(alerts("groups: []", "", &metrics()).is_err());
    }

    #[test]
    fn a_panel_asks_for_known_metrics() {
        let of = |expr: &str| {
            let json =
                serde_json::json!({"uid": "u", "panels": [{"title": "t", "targets": [{"expr": expr}]}]}).to_string();
            let object = serde_json::json!({"data": {"a.json": json}}).to_string();
            dashboards(&object, &metrics()).unwrap()
        };
        assert_eq!(of("rate(istio_request_bytes_sum{a=\"istio_x\"}[1m])"), [""; 0], "a histogram's, and a text");
        assert!(of("istio_gone_total")[0].contains("istio_gone_total is not in docs/metrics.md"));
        assert!(of("up")[0].contains("names no metric of the mesh"));
        assert!(dashboards("data: {a.json: '{'}", &metrics()).is_err());
    }

    /// The files themselves.
    #[test]
    fn alerts_and_dashboards_are_in_order() -> Result<()> {
        let root = crate::root();
        let read = |path: &str| fs::read_to_string(root.join(path)).with_context(|| path.to_string());
        let metrics = super::super::names::first_column(&read("docs/metrics.md")?);
        let mut faults = alerts(&read(ALERTS)?, &read(RUNBOOK)?, &metrics)?;
        faults.extend(dashboards(&read(DASHBOARDS)?, &metrics)?);
        assert_eq!(faults, [""; 0]);
        Ok(())
    }
}
