//! `cargo xtask bench gateway-api`: the cluster, and what it needs; who measures is tests/e2e/src/bin/karst-bench-gateway.

use crate::{
    cluster::{self, Cluster},
    tools::{build_shipped, shipped},
};
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::{path::PathBuf, process::Command};

/// How to measure.
#[derive(Args)]
pub struct How {
    /// Use the cluster that runs, with the charts that are installed there, and leave it; else a fresh one is made and removed.
    #[arg(long)]
    keep: bool,
    /// Also write the rows as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Only tests whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Routes of the tests of attached routes (gateway-api-bench: 100; published with 1,000).
    #[arg(long, default_value_t = 1000)]
    attached_routes: usize,
    /// Routes of the tests of propagation (published: 3,000).
    #[arg(long, default_value_t = 3000)]
    probe_routes: usize,
    /// Changes of one route under load.
    #[arg(long, default_value_t = 20)]
    changes: usize,
    /// Namespaces of the tests with many routes.
    #[arg(long, default_value_t = 50)]
    namespaces: usize,
    /// Apps in each of them, with a Service, a pod and a route each.
    #[arg(long, default_value_t = 100)]
    apps: usize,
    /// Changes of pods and routes among them whose CPU time is measured.
    #[arg(long, default_value_t = 1000)]
    load_changes: usize,
    /// Namespaces of the test of ListenerSets (published: 50).
    #[arg(long, default_value_t = 10)]
    set_namespaces: usize,
    /// ListenerSets in each of them (published: 50).
    #[arg(long, default_value_t = 50)]
    sets: usize,
    /// Routes of each ListenerSet (published: 16).
    #[arg(long, default_value_t = 2)]
    set_routes: usize,
    /// Without an Envoy beside, where the same test can be given to it (traffic, route scale, failover).
    #[arg(long)]
    without_envoy: bool,
    /// Rounds of failover; in each an endpoint is bad and well again.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that it is bad, and well.
    #[arg(long, default_value_t = 22)]
    secs: usize,
}

/// Runs it.
pub fn run(how: &How) -> Result<()> {
    let cluster = Cluster::new()?;
    if !how.keep {
        cluster::for_tests()?;
    }
    let result = measure(&cluster, how);
    if how.keep { result } else { cluster.end(result, false) }
}

fn measure(cluster: &Cluster, how: &How) -> Result<()> {
    build_shipped(&["karst-bench-gateway", "meshbench"])?;
    cluster.kubectl(&["apply", "--server-side", "-f", &cluster.bin.join("gateway-api.yaml").display().to_string()])?;
    // The controller sees the kinds soon, and makes its classes.
    for until in ["create", "condition=Accepted"] {
        cluster.kubectl(&["wait", &format!("--for={until}"), "--timeout=60s", "gatewayclass/istio"])?;
    }
    let mut bench = Command::new(shipped()?.join("karst-bench-gateway"));
    // It stops nodes and starts them.
    bench.args(how.args()?).env("KARST_XTASK", std::env::current_exe()?);
    let status = bench.status();
    ensure!(status.context("cannot start the benchmark")?.success(), "the benchmark failed, or missed an aim");
    Ok(())
}

impl How {
    fn args(&self) -> Result<Vec<String>> {
        let numbers = [
            ("attached-routes", self.attached_routes),
            ("probe-routes", self.probe_routes),
            ("changes", self.changes),
            ("namespaces", self.namespaces),
            ("apps", self.apps),
            ("load-changes", self.load_changes),
            ("set-namespaces", self.set_namespaces),
            ("sets", self.sets),
            ("set-routes", self.set_routes),
            ("rounds", self.rounds),
            ("secs", self.secs),
        ];
        let mut args: Vec<String> = numbers.iter().map(|(name, number)| format!("--{name}={number}")).collect();
        args.extend(self.only.as_ref().map(|only| format!("--only={only}")));
        if !self.without_envoy {
            args.push(format!("--envoy={}", crate::setup::envoy()?.display()));
        }
        if let Some(report) = &self.report {
            args.push(format!("--report={}", std::path::absolute(report)?.display()));
        }
        Ok(args)
    }
}
