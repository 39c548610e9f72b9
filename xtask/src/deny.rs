//! Licences, sources and banned crates, by cargo-deny (deny.toml).

use anyhow::{Context, Result, ensure};
use std::process::Command;

/// The checks that need no network. Advisories need a database from the internet: `cargo deny check advisories`.
pub fn run() -> Result<()> {
    let status = Command::new("target/tools/bin/cargo-deny")
        .args(["--log-level=error", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"])
        .status()
        .context("cannot start cargo-deny")?;
    ensure!(status.success(), "cargo-deny found what deny.toml does not allow");
    Ok(())
}
