//! Licences, sources, banned crates and advisories, by cargo-deny (deny.toml).

use anyhow::{Context, Result, bail, ensure};
use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const PROGRAM: &str = "target/tools/bin/cargo-deny";
/// The advisories' database is a git repository; where the network swallows packets nobody waits for longer.
const FETCH: Duration = Duration::from_secs(60);

/// The checks that need no network.
pub fn run() -> Result<()> {
    let status = Command::new(PROGRAM)
        .args(["--log-level=error", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"])
        .status()
        .context("cannot start cargo-deny")?;
    ensure!(status.success(), "cargo-deny found what deny.toml does not allow");
    Ok(())
}

/// Known vulnerabilities, where the database of advisories can be had; else it is said that nothing was checked. An old database
/// of this machine counts (cargo-deny takes none that is older than 90 days).
pub fn advisories() -> Result<()> {
    let fetched = fetch()?;
    // Nobody is asked for the database a second time.
    let out = Command::new(PROGRAM)
        .args([
            "--log-level=error",
            "--color=never",
            "check",
            "--disable-fetch",
            "--hide-inclusion-graph",
            "advisories",
        ])
        .output()
        .context("cannot start cargo-deny")?;
    let said = String::from_utf8_lossy(&out.stderr);
    match verdict(fetched, out.status.success(), &said) {
        Verdict::Clean => println!("no advisory is known of any crate"),
        Verdict::Found => {
            eprint!("{said}");
            bail!(
                "there are advisories of crates in Cargo.lock: update them, or say in deny.toml why one does not matter"
            );
        }
        Verdict::NotChecked => println!(
            "NOT CHECKED: advisories. Their database (https://github.com/RustSec/advisory-db) cannot be reached from here, and no recent copy is in $CARGO_HOME/advisory-dbs; run this where it can be reached"
        ),
        Verdict::Failed => {
            eprint!("{said}");
            bail!("cargo-deny could not check advisories");
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Clean,
    Found,
    /// There is no database, and it cannot be fetched.
    NotChecked,
    /// There is one, and still it did not work.
    Failed,
}

/// What a check has shown. What it finds of crates it reports with a code in brackets, as `error[vulnerability]`; what keeps it
/// from checking is said without one.
fn verdict(fetched: bool, success: bool, said: &str) -> Verdict {
    match (success, said.contains("error["), fetched) {
        (true, _, _) => Verdict::Clean,
        (false, true, _) => Verdict::Found,
        (false, false, false) => Verdict::NotChecked,
        (false, false, true) => Verdict::Failed,
    }
}

/// Gets the database; false if it cannot be had.
fn fetch() -> Result<bool> {
    let mut child = Command::new(PROGRAM)
        .args(["--log-level=error", "fetch", "db"])
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start cargo-deny")?;
    let end = Instant::now() + FETCH;
    while Instant::now() < end {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    child.kill()?;
    child.wait()?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_checked_is_never_called_clean() {
        let found = "error[vulnerability]: something\n";
        for (fetched, success, said, wanted) in [
            (true, true, "advisories ok\n", Verdict::Clean),
            (false, true, "advisories ok\n", Verdict::Clean), // by a copy of this machine
            (true, false, found, Verdict::Found),
            (false, false, found, Verdict::Found),
            (false, false, "failed to load advisory database\n", Verdict::NotChecked),
            (true, false, "failed to load advisory database\n", Verdict::Failed),
            (false, false, "", Verdict::NotChecked),
        ] {
            assert_eq!(verdict(fetched, success, said), wanted, "{fetched} {success} {said}");
        }
    }
}
