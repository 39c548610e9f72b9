//! Clocks of processes, which can be wrong (`programs/shifted_clock.rs`).

use super::World;
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

impl World {
    /// Builds the library that processes are started with. One for each world: worlds of other processes may be building theirs.
    pub(super) fn build_clock(&self) -> Result<()> {
        fs::create_dir_all(self.dir.join("clocks"))?;
        let out = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
            .args(["--edition=2024", "-O", "-C", "panic=abort", "--crate-type=cdylib", "-o"])
            .arg(self.clock_library())
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/shifted_clock.rs"))
            .output()
            .context("cannot start rustc")?;
        ensure!(out.status.success(), "shifted clock: {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    }

    fn clock_library(&self) -> PathBuf {
        self.dir.join("clocks/libclock.so")
    }

    /// By how much the processes of a network namespace are wrong: nanoseconds, eight bytes.
    fn clock_file(&self, ns: &str) -> Result<(PathBuf, fs::File)> {
        let path = self.dir.join("clocks").join(ns);
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
        Ok((path, file))
    }

    /// What a process of a network namespace is started with.
    pub(super) fn clock_env(&self, ns: &str) -> Result<Vec<(String, String)>> {
        if !self.options.clocks {
            return Ok(vec![]);
        }
        let (path, file) = self.clock_file(ns)?;
        if file.metadata()?.len() == 0 {
            file.write_all_at(&0i64.to_ne_bytes(), 0)?;
        }
        let (library, path) = (self.clock_library().display().to_string(), path.display().to_string());
        Ok(vec![("LD_PRELOAD".into(), library), ("KARST_WORLD_CLOCK".into(), path)])
    }

    /// The time of day of a namespace's processes is wrong by so much from now on. (Needs [`super::Options::clocks`].)
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_clock(&self, ns: &str, wrong_by_ms: i64) -> Result<()> {
        let (_, file) = self.clock_file(ns)?;
        file.write_all_at(&(wrong_by_ms * 1_000_000).to_ne_bytes(), 0).context("a clock")
    }

    /// The network namespace of the controller.
    pub fn control_ns(&self) -> String {
        self.ns("control")
    }
}
