//! The alerts of the chart istiod, by promtool (built beside Prometheus): it reads the rules, and each alert fires when it should, and
//! only then. Run by `cargo xtask dashboards`.

use crate::{cluster::Cluster, docs::ALERTS};
use anyhow::{Context, Result, ensure};
use std::process::Command;

/// What alerts are tried on.
const TESTS: &str = "xtask/prometheus/alerts.test.yaml";

/// Runs both.
pub(crate) fn run(cluster: &Cluster) -> Result<()> {
    let promtool = cluster.bin.join("promtool");
    for args in [&["check", "rules", "--lint=all", "--lint-fatal", ALERTS][..], &["test", "rules", TESTS]] {
        let out = Command::new(&promtool).args(args).output().with_context(|| promtool.display().to_string())?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "promtool {}:\n{said}", args.join(" "));
        println!("{}", said.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::{collections::BTreeSet, fs};

    /// promtool does not say which alerts no test is about.
    #[test]
    fn every_alert_has_a_test() -> Result<()> {
        let read = |path: &str| -> Result<Value> {
            Ok(serde_yaml_ng::from_str(&fs::read_to_string(crate::root().join(path)).context(path.to_string())?)?)
        };
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let (rules, tests) = (read(ALERTS)?, read(TESTS)?);
        let alerts: BTreeSet<String> = list(&rules["groups"])
            .iter()
            .flat_map(|group| list(&group["rules"]))
            .map(|rule| rule["alert"].to_string())
            .collect();
        let fired: BTreeSet<String> = list(&tests["tests"])
            .iter()
            .flat_map(|test| list(&test["alert_rule_test"]))
            .filter(|test| !list(&test["exp_alerts"]).is_empty())
            .map(|test| test["alertname"].to_string())
            .collect();
        assert_eq!(alerts, fired);
        Ok(())
    }
}
