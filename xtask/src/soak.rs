//! `cargo xtask soak`: faults on top of each other, under load, by a schedule that a seed replays (tests/world/src/bin/karst-soak). Its
//! short form is a stage of `cargo xtask test`.

use crate::tools::bin;
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::{
    path::PathBuf,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

/// What it runs.
pub const PROGRAMS: &[&str] = &["karst-soak", "ztunnel", "karst-cni", "karst-controller", "karst-waypoint"];

/// How long, and by which schedule.
#[derive(Args)]
pub struct What {
    /// How long, in minutes; memory is judged from 20 on.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..))]
    minutes: u32,
    /// Which schedule of faults; without it, each run has another one, and says which. The same length and seed make the same
    /// faults at the same times.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Also write the table, all faults and the failed calls as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// In place of it, the long forms of the tests in network namespaces (those that are `#[ignore]`d).
    #[arg(long, conflicts_with_all = ["minutes", "seed", "report"])]
    pub long_tests: bool,
    /// Of these only what has this in its name.
    #[arg(long, requires = "long_tests", value_name = "TEST")]
    pub only: Option<String>,
}

impl What {
    /// As the stage of `cargo xtask test` wants it: always the same faults, so that it says something of a change. Other ones are for
    /// the hour.
    pub fn for_tests() -> Self {
        Self { minutes: 5, seed: Some(5), report: None, long_tests: false, only: None }
    }
}

/// Runs it. The programs are built.
pub fn run(what: &What) -> Result<()> {
    let (minutes, seed) = (what.minutes, what.seed.unwrap_or_else(by_chance));
    let again = format!("cargo xtask soak --minutes {minutes} --seed {seed}");
    println!("{again}");
    let logs = std::path::absolute("target/soak")?;
    let mut args = vec![format!("--minutes={minutes}"), format!("--seed={seed}"), format!("--logs={}", logs.display())];
    if let Some(report) = &what.report {
        args.push(format!("--report={}", std::path::absolute(report)?.display()));
    }
    let status = Command::new(bin("karst-soak")?).args(args).status().context("cannot start the soak")?;
    ensure!(status.success(), "the soak has failed ({status}); the same faults at the same times: {again}");
    Ok(())
}

/// Short enough to be typed.
fn by_chance() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_micros() as u64 % 1_000_000_000)
}
