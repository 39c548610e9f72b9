//! Cargo, and what it has built.

use crate::{images, setup};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// One of our programs, built beside this one.
pub(crate) fn bin(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("where this program is")?;
    Ok(own.with_file_name(name))
}

/// What `cargo test` switches on by itself, as dependencies of tests. Whatever is built beside the tests is built with it too, or
/// cargo would compile tokio, and all that stands on it, twice. What is released or measured is built without
/// ([`build_plain`], [`build_shipped`]).
pub(crate) const TESTED: [&str; 2] =
    ["--features", "karst-proxy/testing,karst-ztunnel/fuzz,karst-waypoint/fuzz,karst-controller/fuzz"];

/// Builds everything, as the tests want it.
pub(crate) fn build() -> Result<()> {
    setup::run()?;
    cargo(&[&["build", "--release", "--workspace", "--locked"], &TESTED[..]].concat(), &[])
}

/// Some programs, and no tests or benchmarks. Under `--workspace`, or cargo would choose other features for the cryptography.
pub(crate) fn build_only(programs: &[&str]) -> Result<()> {
    setup::run()?;
    let mut args = vec!["build", "--release", "--workspace", "--locked"];
    args.extend(TESTED);
    programs.iter().for_each(|p| args.extend(["--bin", p]));
    cargo(&args, &[])
}

/// Says how long a build from cold will take, if it is one: if this program is not there. `minutes`: on two cores. (How far it has
/// come, cargo says.)
pub(crate) fn announce(program: &str, minutes: usize) -> Result<()> {
    if !bin(program)?.is_file() {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        println!("building from cold: about {} minutes on {cores} cores", estimate(minutes, cores));
    }
    Ok(())
}

/// From two cores to others. More than eight wait for the longest chain of crates.
fn estimate(minutes: usize, cores: usize) -> usize {
    (2 * minutes).div_ceil(cores.clamp(1, 8))
}

/// Builds everything without what tests switch on, as Cargo.toml says.
pub(crate) fn build_plain() -> Result<()> {
    setup::run()?;
    optimize();
    cargo(&["build", "--release", "--workspace", "--locked"], &[])
}

/// Cargo's profile of what is released and measured.
pub(crate) const SHIPPED: &str = "shipped";

/// Builds some programs as they are released.
pub(crate) fn build_shipped(programs: &[&str]) -> Result<()> {
    setup::run()?;
    let mut args = vec!["build", "--profile", SHIPPED, "--workspace", "--locked"];
    programs.iter().for_each(|program| args.extend(["--bin", program]));
    cargo(&args, &[])
}

/// Where those are.
pub(crate) fn shipped() -> Result<PathBuf> {
    beside(&bin("xtask")?)
}

/// The folder of the profile [`SHIPPED`], by a program of another one: TARGET-FOLDER/TRIPLE/PROFILE/PROGRAM.
fn beside(program: &Path) -> Result<PathBuf> {
    Ok(program.ancestors().nth(2).context("the target folder")?.join(SHIPPED))
}

/// Are the cluster's images of what is released?
static SHIPS: AtomicBool = AtomicBool::new(false);

/// From now on the cluster's images hold what is released: something is measured there.
pub(crate) fn ship() {
    SHIPS.store(true, Relaxed);
}

/// Builds what the cluster's images hold; gives the folder of it.
pub(crate) fn build_for_images() -> Result<PathBuf> {
    if SHIPS.load(Relaxed) {
        build_shipped(&images::programs())?;
        return shipped();
    }
    build()?;
    bin("")
}

/// How the release profile is built for tests and the demo: what they prove does not depend on speed, and from cold this takes two
/// thirds of the time. (Figures are those of [`SHIPPED`].)
const QUICK: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
];

/// Is the release profile built as Cargo.toml says?
static OPTIMIZED: AtomicBool = AtomicBool::new(false);

/// From now on the release profile is built as Cargo.toml says: something is measured, or for others.
pub(crate) fn optimize() {
    OPTIMIZED.store(true, Relaxed);
}

/// What is to be set when cargo builds the release profile: [`QUICK`], unless this is to be optimized; and what the environment says is
/// left as it is.
pub(crate) fn quick() -> Vec<(&'static str, &'static str)> {
    let wanted = !OPTIMIZED.load(Relaxed);
    QUICK.into_iter().filter(|(name, _)| wanted && std::env::var_os(name).is_none()).collect()
}

/// Runs cargo, with these variables set.
pub(crate) fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let quick = if args.contains(&"--release") { quick() } else { vec![] };
    let status = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(args)
        .envs(quick)
        .envs(env.iter().copied())
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "cargo {} failed", args.join(" "));
    Ok(())
}

/// A command of this program that runs beside others, on what they leave of the cores. Whoever drops it ends it.
pub(crate) struct Aside {
    child: Child,
    log: PathBuf,
}

impl Aside {
    /// Starts one; its output goes to `log`.
    pub(crate) fn start(args: &[&str], log: &Path) -> Result<Self> {
        if let Some(dir) = log.parent() {
            fs::create_dir_all(dir)?;
        }
        let out = fs::File::create(log).with_context(|| format!("{}", log.display()))?;
        let own = std::env::current_exe().context("where this program is")?;
        let mut command = Command::new("nice");
        command.arg("-n19").arg(own).args(args).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        // A group of its own: what it has started ends with it.
        let child = command.process_group(0).spawn().context("cannot start nice")?;
        Ok(Self { child, log: log.into() })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It has failed; its output is shown.
    pub(crate) fn wait(mut self) -> Result<()> {
        let status = self.child.wait()?;
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        ensure!(status.success(), "{said}it has failed ({status})");
        print!("{said}");
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = Command::new("kill").args(["--", &format!("-{}", self.child.id())]).status();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn what_is_released_is_beside_what_runs_this() {
        let program = Path::new("target/x86_64-unknown-linux-gnu/release/xtask");
        assert_eq!(beside(program).unwrap(), Path::new("target/x86_64-unknown-linux-gnu/shipped"));
    }

    #[test]
    fn estimates_follow_the_number_of_cores() {
        assert_eq!([1, 2, 4, 8, 64].map(|cores| estimate(9, cores)), [18, 9, 5, 3, 3]);
    }
}
