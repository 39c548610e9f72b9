//! What a soak is asked for.

use anyhow::{Context, Result, ensure};
use karst_world::soak::schedule::SHORTEST;
use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

/// What is asked for. `cargo xtask soak --help` explains it.
pub struct How {
    /// Of the run.
    pub length: Duration,
    /// Of the schedule.
    pub seed: u64,
    /// Where the report is written, too.
    pub report: Option<PathBuf>,
    /// Where the logs of a run that has failed are kept.
    pub logs: PathBuf,
}

impl How {
    /// From the command line.
    pub fn of(args: impl Iterator<Item = String>) -> Result<Self> {
        let (length, seed) = (Duration::from_secs(3600), by_chance());
        let mut how = Self { length, seed, report: None, logs: std::env::temp_dir().join("karst-soak") };
        for arg in args {
            let said = || format!("{arg}: use --minutes=N, --seed=N, --report=PATH, --logs=DIRECTORY");
            let (name, value) = arg.split_once('=').with_context(said)?;
            match name {
                "--minutes" => {
                    how.length = Duration::from_secs(60 * u64::from(value.parse::<u32>().with_context(said)?))
                }
                "--seed" => how.seed = value.parse().with_context(said)?,
                "--report" => how.report = Some(value.into()),
                "--logs" => how.logs = value.into(),
                _ => anyhow::bail!(said()),
            }
        }
        ensure!(how.length >= SHORTEST, "--minutes: at least {} are needed", SHORTEST.as_secs() / 60);
        Ok(how)
    }

    /// The command that makes the same faults at the same times.
    pub fn command(&self) -> String {
        format!("cargo xtask soak --minutes {} --seed {}", self.length.as_secs() / 60, self.seed)
    }
}

/// Short enough to be typed.
fn by_chance() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |since| since.as_micros() as u64 % 1_000_000_000)
}
