//! `cargo xtask bench`.

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use std::{path::PathBuf, process::Command};

/// What to measure.
#[derive(Subcommand)]
pub enum What {
    /// The L4 data path: bulk, request/response, new connections, CPU, memory.
    L4 {
        /// Also write the rows as JSON.
        #[arg(long)]
        report: Option<PathBuf>,
        /// Rounds; medians are taken over them.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Seconds of each measurement.
        #[arg(long, default_value_t = 3.0)]
        secs: f64,
        /// Only cases whose name contains this.
        #[arg(long, default_value = "")]
        only: String,
        /// Also measure another ztunnel binary, in a world of its own beside ours, as variant `other`.
        #[arg(long, value_name = "PATH")]
        ztunnel: Option<PathBuf>,
    },
    /// The controller: memory, time to be in sync, delay from a pod's change to its push.
    #[command(disable_help_flag = true)]
    Controller {
        /// What `karst-bench-controller --help` lists.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

/// Runs it.
pub fn run(w: What) -> Result<()> {
    let (report, rounds, secs, only, ztunnel) = match w {
        What::L4 { report, rounds, secs, only, ztunnel } => (report, rounds, secs, only, ztunnel),
        What::Controller { args } => {
            let status = Command::new(crate::bin("karst-bench-controller")?).args(args).status();
            ensure!(status.context("cannot start the benchmark")?.success(), "the benchmark failed");
            return Ok(());
        }
    };
    let mut c = Command::new(crate::bin("karst-bench")?);
    c.arg(format!("--rounds={rounds}")).arg(format!("--secs={secs}")).arg(format!("--only={only}"));
    if let Some(r) = report {
        c.arg(format!("--report={}", std::path::absolute(r)?.display()));
    }
    if let Some(z) = ztunnel {
        let path = std::path::absolute(&z)?;
        ensure!(path.is_file(), "--ztunnel: {} is no file", path.display());
        c.arg(format!("--ztunnel={}", path.display()));
    }
    ensure!(c.status().context("cannot start the benchmark")?.success(), "the benchmark failed");
    Ok(())
}
