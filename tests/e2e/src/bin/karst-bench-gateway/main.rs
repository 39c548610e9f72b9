//! `cargo xtask bench gateway-api`: the ten tests of gateway-api-bench, written anew, on the local cluster with Karst's charts. What is
//! not as there is in docs/performance.md. Backends are outside the mesh; clients are where the API server is, and ask the gateway's pod.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

mod api;
mod attached;
mod backend;
mod envoy;
mod failover;
mod http;
mod https;
mod listeners;
mod load;
mod objects;
mod options;
mod probe;
mod report;
mod traffic;
mod usage;
mod world;

use anyhow::{Result, ensure};
use options::Options;
use report::Report;
use world::World;

/// A test: its name, and how it is run.
type Test = (&'static str, fn(&mut World, &Options, &mut Report) -> Result<()>);

/// In this order: those that come last leave more behind.
const TESTS: [Test; 10] = [
    ("architecture", world::architecture),
    ("attached routes", attached::alone),
    ("attached routes together", attached::together),
    ("propagation", probe::alone),
    ("route changes", probe::changes),
    ("traffic", traffic::run),
    ("failover", failover::run),
    ("listener sets", listeners::run),
    ("route scale", load::scale),
    ("propagation under load", probe::under_load),
];

fn main() -> Result<()> {
    let options = Options::new(std::env::args().skip(1))?;
    let mut report = Report::new();
    let mut world = World::start(&report)?;
    for (name, test) in TESTS.iter().filter(|(name, _)| options.runs(name)) {
        report.say(&format!("==> {name}"));
        if let Err(error) = test(&mut world, &options, &mut report) {
            report.left_out(name, &format!("failed: {error:#}"), true);
        }
    }
    let missed = report.print();
    if let Some(to) = options.report() {
        report.write(&to)?;
    }
    ensure!(missed == 0, "{missed} aims are not met");
    Ok(())
}
