//! `cargo xtask dashboards`: the alerts by promtool, the queries of dashboards (Istio's, ours, Kiali's) by a Prometheus, and traces by a
//! Jaeger, on a fresh local cluster while a shop is visited. A command of its own: from cold, Prometheus alone builds for 11 to 19
//! minutes on two cores.
//!
//! What is installed and what must be seen is tests/e2e/tests/stages/dashboards.rs and traces.rs.

use crate::{
    cluster::{self, Cluster},
    promtool,
    tools::cargo,
};
use anyhow::Result;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// What is done with the cluster.
#[derive(Args)]
pub(crate) struct What {
    /// Leave the cluster running.
    #[arg(long)]
    keep: bool,
    /// Only this part; the other's programs are not built.
    #[arg(long, value_enum)]
    only: Option<Part>,
}

impl What {
    /// Both parts.
    pub(crate) fn for_tests() -> Self {
        Self { keep: false, only: None }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Prometheus: alerts, and queries of dashboards.
    Metrics,
    /// Jaeger: every hop of a visit, and visits without a collector.
    Traces,
}

impl Part {
    /// Its test, of tests/e2e/tests/cluster.rs.
    fn test(self) -> &'static str {
        match self {
            Part::Metrics => "s4_with_prometheus_the_dashboards_have_data",
            Part::Traces => "s4_with_jaeger_a_trace_has_every_hop",
        }
    }

    /// Builds what its test installs; gives the file of the image.
    fn image(self, cluster: &Cluster) -> Result<PathBuf> {
        match self {
            Part::Metrics => cluster.prometheus(),
            Part::Traces => cluster.jaeger(),
        }
    }
}

/// Runs it.
pub(crate) fn run(what: &What) -> Result<()> {
    let cluster = Cluster::new()?;
    let parts: Vec<Part> = match what.only {
        Some(part) => vec![part],
        None => Part::value_variants().to_vec(),
    };
    // Before anything runs beside it.
    let images = parts.iter().map(|part| part.image(&cluster)).collect::<Result<Vec<_>>>()?;
    if parts.contains(&Part::Metrics) {
        promtool::run(&cluster)?;
    }
    cluster::for_tests()?;
    cluster.load(&images)?;
    let all = ["test", "--release", "--workspace", "--locked", "--test", "cluster", "--", "--ignored", "--nocapture"];
    let tests: Vec<&str> = parts.iter().map(|part| part.test()).collect();
    let result = cargo(&[&all[..], &["--test-threads=1", "--exact"], &tests[..]].concat(), &[]);
    cluster.end(result, what.keep)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::ensure;

    /// cargo is content with a name that no test has.
    #[test]
    fn the_tests_are_there_and_run_only_when_asked_for() -> Result<()> {
        let tests = std::fs::read_to_string(crate::root().join("tests/e2e/tests/cluster.rs"))?;
        let lines: Vec<&str> = tests.lines().collect();
        for part in Part::value_variants() {
            let test = part.test();
            let at = lines.iter().position(|line| *line == format!("fn {test}() {{"));
            let before = at.and_then(|at| lines.get(at.checked_sub(1)?)).copied().unwrap_or_default();
            ensure!(before.starts_with("#[ignore"), "{test}: {before:?}");
        }
        Ok(())
    }
}
