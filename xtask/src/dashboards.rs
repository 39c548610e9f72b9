//! `cargo xtask dashboards`: the alerts by promtool, and the queries of dashboards (Istio's, ours, Kiali's) by a Prometheus on a fresh
//! local cluster while a shop is visited. A command of its own: from cold, Prometheus builds for 11 to 19 minutes on two cores.
//!
//! What is installed and what must be seen is tests/e2e/tests/stages/dashboards.rs.

use crate::{
    cluster::{self, Cluster},
    promtool,
    tools::cargo,
};
use anyhow::Result;
use clap::Args;

/// What is done with the cluster.
#[derive(Args)]
pub(crate) struct What {
    /// Leave the cluster running.
    #[arg(long)]
    keep: bool,
}

/// The test, of tests/e2e/tests/cluster.rs.
const TEST: &str = "s4_with_prometheus_the_dashboards_have_data";

/// Runs it.
pub(crate) fn run(what: &What) -> Result<()> {
    let cluster = Cluster::new()?;
    // Before anything runs beside it.
    let image = cluster.prometheus()?;
    promtool::run(&cluster)?;
    cluster::for_tests()?;
    cluster.load(&[image])?;
    let all = ["test", "--release", "--workspace", "--locked", "--test", "cluster", "--", "--ignored", "--nocapture"];
    let result = cargo(&[&all[..], &["--exact", TEST]].concat(), &[]);
    if result.is_err() {
        cluster.show_logs();
    }
    if what.keep {
        println!("the cluster runs on: {}", cluster.shell_line());
        return result;
    }
    cluster.down()?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::ensure;

    /// cargo is content with a name that no test has.
    #[test]
    fn the_test_is_there_and_runs_only_when_asked_for() -> Result<()> {
        let tests = std::fs::read_to_string(crate::root().join("tests/e2e/tests/cluster.rs"))?;
        let lines: Vec<&str> = tests.lines().collect();
        let at = lines.iter().position(|line| *line == format!("fn {TEST}() {{"));
        let before = at.and_then(|at| lines.get(at.checked_sub(1)?)).copied().unwrap_or_default();
        ensure!(before.starts_with("#[ignore"), "{TEST}: {before:?}");
        Ok(())
    }
}
