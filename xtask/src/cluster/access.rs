//! Where the cluster is, and how it is reached: directories, addresses, kubectl.

use super::process::Processes;
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The control plane's network namespace.
pub const NETNS: &str = "karst-cp";
/// Its address there.
pub const API: &str = "172.31.0.1";
/// Both families; the first is that of Services that do not ask for another.
pub const SERVICES: &str = "10.96.0.0/16,fd00:31:96::/112";
/// The pod network, of both families.
pub const PODS: &str = "10.244.0.0/16,fd00:31:244::/48";
/// The control plane's address in the other family.
pub const API6: &str = "fd00:31::1";

/// Where everything is.
pub struct Cluster {
    /// Built programs.
    pub bin: PathBuf,
    /// State of the running cluster; absent if none runs.
    pub run: PathBuf,
}

impl Cluster {
    /// The cluster of this checkout.
    pub fn new() -> Result<Self> {
        let base = std::path::absolute("target/cluster")?;
        Ok(Self { bin: base.join("bin"), run: base.join("run") })
    }

    /// Keys, certificates and kubeconfigs.
    pub fn pki(&self) -> PathBuf {
        self.run.join("pki")
    }
    /// The processes' logs.
    pub fn log(&self) -> PathBuf {
        self.run.join("log")
    }
    /// What runs of it.
    pub fn processes(&self) -> Processes {
        Processes::new(&self.run.join("pids"))
    }
    /// How many nodes were started.
    pub fn nodes(&self) -> u8 {
        fs::read_to_string(self.run.join("nodes")).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
    }

    /// How a shell reaches the cluster.
    pub fn shell_line(&self) -> String {
        format!(
            "nsenter --net=/run/netns/{NETNS} env KUBECONFIG={} {} get nodes",
            self.pki().join("admin.kubeconfig").display(),
            self.bin.join("kubectl").display()
        )
    }

    /// Waits, with a limit in seconds.
    pub fn until(&self, what: &str, limit: u64, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(limit);
        while !done()? {
            if let Some(dead) = self.processes().dead() {
                bail!(
                    "{dead} has ended while waiting for {what}; see {}",
                    self.log().join(format!("{dead}.log")).display()
                );
            }
            ensure!(Instant::now() < end, "{what}: not there after {limit} s");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// A command of kubectl or helm, prepared. They end before it is worth while to collect garbage.
    pub fn command(&self, tool: &str) -> Command {
        let mut c = self.inside(&self.bin.join(tool));
        c.envs([("GOGC", "off"), ("GOMEMLIMIT", "512MiB")]);
        c
    }
    /// A program that finds the cluster as kubectl does, in the control plane's network namespace.
    pub fn inside(&self, program: &Path) -> Command {
        let mut c = Command::new("nsenter");
        c.arg(format!("--net=/run/netns/{NETNS}")).arg(program);
        c.env("KUBECONFIG", self.pki().join("admin.kubeconfig"));
        c
    }
    /// kubectl, quiet unless it fails.
    pub fn kubectl(&self, args: &[&str]) -> Result<()> {
        let out = self.command("kubectl").args(args).output().context("kubectl")?;
        ensure!(
            out.status.success(),
            "kubectl {}: {}{}",
            args.join(" "),
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(())
    }
    /// What kubectl prints; none if it fails.
    pub fn output(&self, args: &[&str]) -> Result<Option<String>> {
        let out = self.command("kubectl").args(args).stderr(Stdio::null()).output().context("kubectl")?;
        Ok(out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned()))
    }

    /// What helps after a failure: pods, events and the last lines of our parts.
    pub fn show_logs(&self) {
        let show = |args: &[&str]| {
            println!("--- kubectl {}", args.join(" "));
            let _ = self.command("kubectl").args(args).status();
        };
        show(&["get", "pods", "-A", "-o", "wide"]);
        show(&["get", "events", "-A", "--field-selector=type=Warning"]);
        for l in ["app=istiod", "k8s-app=istio-cni-node", "app=ztunnel"] {
            show(&["-n", "istio-system", "logs", "-l", l, "--tail=40", "--prefix"]);
        }
    }

    /// After a run: shows what helps if it has failed, and removes the cluster, unless it is to stay.
    pub fn end(&self, result: Result<()>, keep: bool) -> Result<()> {
        if result.is_err() {
            self.show_logs();
        }
        match keep {
            true => println!("the cluster runs on: {}", self.shell_line()),
            false => self.down()?,
        }
        result
    }

    /// Runs kubectl or helm as it was called.
    pub fn tool(&self, name: &str, args: &[String]) -> Result<()> {
        ensure!(self.run.exists(), "no cluster runs: cargo xtask cluster up");
        let status = self.command(name).args(args).status().with_context(|| format!("cannot start {name}"))?;
        ensure!(status.success(), "{name} failed");
        Ok(())
    }
}
