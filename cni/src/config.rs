//! The agent's knobs. Environment variables are read here and nowhere else.

use clap::Parser;
use karst_rt::log::Format;
use std::{net::SocketAddr, path::PathBuf};

/// Karst's node agent.
#[derive(Clone, Debug, Parser)]
#[command(name = "karst-cni", version)]
pub struct Config {
    /// Name of this node, as in the pods' spec.nodeName.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node: String,
    /// Where objects come from: dir:PATH, a directory of manifests.
    #[arg(long, env = "KARST_SOURCE", default_value = "", value_name = "dir:PATH")]
    pub source: String,
    /// Socket on which ztunnel is served (Istio's INPOD_UDS).
    #[arg(long, env = "INPOD_UDS", default_value = "/var/run/ztunnel/ztunnel.sock")]
    pub zds: PathBuf,
    /// Directory on a bpffs for this node's programs and maps. Nodes that share a kernel need one each.
    #[arg(long, env = "KARST_BPF_DIR", default_value = "/sys/fs/bpf/karst")]
    pub bpf_dir: PathBuf,
    /// Directory for what is known of enrolled pods, kept over restarts of the agent.
    #[arg(long, env = "KARST_RUN_DIR", default_value = "/var/run/karst-cni")]
    pub run_dir: PathBuf,
    /// Root of cgroup2. Default: where it is mounted.
    #[arg(long, env = "KARST_CGROUP")]
    pub cgroup: Option<PathBuf>,
    /// Metrics and health.
    #[arg(long, env = "KARST_CNI_METRICS", default_value = "127.0.0.1:15014")]
    pub metrics: SocketAddr,
    /// Also capture DNS (Istio's default).
    #[arg(long, env = "AMBIENT_DNS_CAPTURE", default_value_t = true, action = clap::ArgAction::Set)]
    pub dns_capture: bool,
    /// text or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Filter, as info or debug.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_level: String,
    /// Print the redirected pods and their counters, then exit.
    #[arg(long)]
    pub status: bool,
    /// Remove all redirection of this node, then exit.
    #[arg(long)]
    pub cleanup: bool,
}

impl Config {
    /// The directory of manifests.
    pub fn manifests(&self) -> anyhow::Result<PathBuf> {
        match self.source.strip_prefix("dir:") {
            Some(p) if !p.is_empty() => Ok(p.into()),
            _ => anyhow::bail!("--source {:?}: use dir:PATH, the directory of manifests", self.source),
        }
    }
    /// The root of cgroup2.
    pub fn cgroup_root(&self) -> anyhow::Result<PathBuf> {
        if let Some(p) = &self.cgroup {
            return Ok(p.clone());
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let mut fields = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
        match fields.find(|f| f.get(2) == Some(&"cgroup2")).and_then(|f| f.get(1).map(PathBuf::from)) {
            Some(p) => Ok(p),
            None => anyhow::bail!(
                "no cgroup2 is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) or set --cgroup"
            ),
        }
    }
}
