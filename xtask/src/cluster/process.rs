//! Processes that outlive this one: started, found again and stopped by pid and start time.

use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A directory with a file for each process: its pid and when it started, as the kernel says it.
pub struct Processes(PathBuf);

impl Processes {
    /// Those noted in the directory.
    pub fn new(dir: &Path) -> Self {
        Self(dir.into())
    }

    /// Starts one in its own session, its output in a file.
    pub fn start(&self, name: &str, program: &str, args: &[String], env: &[(&str, String)], log: &Path) -> Result<()> {
        fs::create_dir_all(&self.0)?;
        let out = fs::File::create(log)?;
        let child = Command::new("setsid")
            .arg(program)
            .args(args)
            .envs(env.iter().map(|(k, v)| (*k, v)))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = child.id();
        let started = start_time(pid).unwrap_or_default();
        fs::write(self.0.join(name), format!("{pid} {started}"))?;
        Ok(())
    }

    /// Names, and whether each runs.
    pub fn list(&self) -> Vec<(String, bool)> {
        let mut all: Vec<_> = fs::read_dir(&self.0)
            .into_iter()
            .flatten()
            .flatten()
            .map(|f| {
                let name = f.file_name().to_string_lossy().into_owned();
                let alive = self.pid(&name).is_some();
                (name, alive)
            })
            .collect();
        all.sort();
        all
    }
    /// The first that has ended.
    pub fn dead(&self) -> Option<String> {
        self.list().into_iter().find(|(_, alive)| !alive).map(|(n, _)| n)
    }
    /// The pid, if it is still that process.
    pub fn pid(&self, name: &str) -> Option<u32> {
        let text = fs::read_to_string(self.0.join(name)).ok()?;
        let (pid, started) = text.split_once(' ')?;
        let pid = pid.parse().ok()?;
        (start_time(pid)? == started).then_some(pid)
    }

    /// Ends one and everything in its pid namespace, without a word; false if it does not run.
    pub fn kill(&self, name: &str) -> Result<bool> {
        let Some(pid) = self.pid(name) else { return Ok(false) };
        for p in child(pid).into_iter().chain([pid]) {
            signal("KILL", p);
        }
        let end = Instant::now() + Duration::from_secs(5);
        while self.pid(name).is_some() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        fs::remove_file(self.0.join(name))?;
        Ok(true)
    }

    /// Ends all: nodes first, so that their containers end while the control plane is there.
    pub fn stop_all(&self) {
        let (nodes, rest): (Vec<String>, Vec<String>) =
            self.list().into_iter().map(|(n, _)| n).partition(|n| n.starts_with("node-"));
        for group in [nodes, rest] {
            for n in &group {
                if let Some(pid) = self.pid(n) {
                    // unshare(1) passes no signal on: a node's process 1 is its child.
                    signal("TERM", if n.starts_with("node-") { child(pid).unwrap_or(pid) } else { pid });
                }
            }
            let end = Instant::now() + Duration::from_secs(5);
            while group.iter().any(|n| self.pid(n).is_some()) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(50));
            }
            for n in &group {
                if let Some(pid) = self.pid(n) {
                    signal("KILL", pid);
                }
            }
        }
    }
}

fn signal(name: &str, pid: u32) {
    let _ = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).stderr(Stdio::null()).status();
}

/// The first child.
pub fn child(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Field 22 of stat; none for one that has ended, even if nobody has waited for it.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    (fields.next()? != "Z").then_some(())?;
    fields.nth(18).map(String::from)
}
