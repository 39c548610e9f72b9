//! CPU time and memory of processes in pods, by /proc.

use anyhow::{Context, Result};
use karst_e2e::Pod;
use std::{fs, path::PathBuf};

/// A process in a pod.
pub struct Process(PathBuf);

impl Process {
    /// The one that runs this program (15 bytes of its name count).
    pub fn of(pod: &Pod, program: &str) -> Result<Self> {
        let (group, uid) = (format!("pod{}", pod.uid), pod.uid.replace('-', "_"));
        let name = &program[..program.len().min(15)];
        let mut all = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
        let is_it = |at: &PathBuf| {
            let its = fs::read_to_string(at.join("cgroup")).is_ok_and(|its| its.contains(&group) || its.contains(&uid));
            its && fs::read_to_string(at.join("comm")).is_ok_and(|its| its.trim() == name)
        };
        let found =
            all.find(is_it).with_context(|| format!("{program} does not run in {}/{}", pod.namespace, pod.name));
        Ok(Self(found?))
    }

    /// The one with this number.
    pub fn by_id(number: u32) -> Self {
        Self(PathBuf::from(format!("/proc/{number}")))
    }

    /// Seconds of CPU that it has used, user and system.
    pub fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(self.0.join("stat"))?;
        // The name may have blanks; what follows it is fields 3 and on.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3).and_then(|f| f.parse::<f64>().ok()).context("stat");
        Ok((ticks(14)? + ticks(15)?) / karst_rt::process::ticks_per_second() as f64)
    }

    /// Its resident memory, MiB.
    pub fn memory(&self) -> Result<f64> {
        self.mebibytes("VmRSS:")
    }

    /// The most that it has ever had, MiB.
    pub fn peak(&self) -> Result<f64> {
        self.mebibytes("VmHWM:")
    }

    fn mebibytes(&self, what: &str) -> Result<f64> {
        let status = fs::read_to_string(self.0.join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(what)).with_context(|| what.to_string())?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn what_this_process_uses_is_found() {
        let own = Process::by_id(std::process::id());
        let (now, most) = (own.memory().unwrap(), own.peak().unwrap());
        assert!(now > 0.5 && most >= now, "{now} {most}");
        assert!(own.cpu().unwrap() < 3600.0 && Process::by_id(0).cpu().is_err());
    }
}
