//! Clocks of processes, which can be wrong: those of the product, built with the feature `testing` of `karst-rt`. (They are linked
//! statically: nothing can be put before their C library.)

use super::World;
use anyhow::{Context, Result};
use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Where the files are, in a world's directory.
const CLOCKS: &str = "clocks";

impl World {
    /// By how much the processes of a clock are wrong: nanoseconds, eight bytes.
    fn clock_file(&self, clock: &str) -> PathBuf {
        self.dir.join(CLOCKS).join(clock)
    }

    /// The clock of a network namespace: a pod has that of its node.
    fn clock_of<'a>(&'a self, ns: &'a str) -> &'a str {
        let pod = self.pods.values().find(|pod| pod.ns == ns);
        pod.and_then(|pod| self.nodes.get(pod.spec.node)).map_or(ns, |node| &node.ns)
    }

    /// What a process of a network namespace is started with.
    pub(super) fn clock_env(&self, ns: &str) -> Result<Vec<(String, String)>> {
        if !self.options.clocks {
            return Ok(vec![]);
        }
        let path = self.clock_file(self.clock_of(ns));
        if !path.exists() {
            fs::create_dir_all(self.dir.join(CLOCKS))?;
            fs::write(&path, 0i64.to_ne_bytes()).context("a clock")?;
        }
        Ok(vec![("KARST_WORLD_CLOCK".into(), path.display().to_string())])
    }

    /// The time of day of a node (its network namespace), with the waypoints and gateways on it, or of the controller
    /// ([`World::control_ns`]) is wrong by so much from now on.
    ///
    /// # Errors
    /// There is no such clock ([`super::Options::clocks`]).
    pub fn set_clock(&self, ns: &str, wrong_by_ms: i64) -> Result<()> {
        let file =
            fs::OpenOptions::new().write(true).open(self.clock_file(ns)).with_context(|| format!("clock {ns}"))?;
        // Each reader sees all of it or nothing.
        file.write_all_at(&(wrong_by_ms * 1_000_000).to_ne_bytes(), 0).context("a clock")
    }

    /// Does a process go by a clock that can be set? It has it open since it asked for the time.
    pub fn goes_by_clock(&self, pid: u32, ns: &str) -> bool {
        let Ok(clock) = self.clock_file(ns).canonicalize() else { return false };
        let is_it = |fd: fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|to| to == clock);
        fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")).into_iter().flatten().flatten().any(is_it)
    }

    /// The network namespace of the controller.
    pub fn control_ns(&self) -> String {
        self.ns("control")
    }
}
