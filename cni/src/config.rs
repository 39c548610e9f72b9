//! The agent's options. Environment variables are read here and nowhere else.

use clap::Parser;
use karst_kube::ObjectSource;
use karst_rt::log::Format;
use std::{net::SocketAddr, path::PathBuf};

/// Karst's node agent.
#[derive(Clone, Debug, Parser)]
#[command(name = "karst-cni", version)]
pub struct Config {
    /// Name of this node, as in spec.nodeName of its pods.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node: String,
    /// Source of objects: kubernetes (in a cluster, or by KUBECONFIG), or dir:PATH, a directory of manifests.
    #[arg(long, env = "KARST_SOURCE", default_value = "", value_name = "kubernetes|dir:PATH")]
    pub source: String,
    /// Socket that serves ztunnel (Istio's INPOD_UDS).
    #[arg(long, env = "INPOD_UDS", default_value = "/var/run/ztunnel/ztunnel.sock")]
    pub zds: PathBuf,
    /// Directory on a bpffs for this node's programs and maps. Nodes that share a kernel need separate directories.
    #[arg(long, env = "KARST_BPF_DIR", default_value = "/sys/fs/bpf/karst")]
    pub bpf_dir: PathBuf,
    /// Directory for the state of enrolled pods, which survives restarts of the agent.
    #[arg(long, env = "KARST_RUN_DIR", default_value = "/var/run/karst-cni")]
    pub run_dir: PathBuf,
    /// Root of cgroup2; by default, where it is mounted.
    #[arg(long, env = "KARST_CGROUP")]
    pub cgroup: Option<PathBuf>,
    /// Address that serves metrics and health.
    #[arg(long, env = "KARST_CNI_METRICS", default_value = "127.0.0.1:15014")]
    pub metrics: SocketAddr,
    /// Capture DNS queries (Istio's default).
    #[arg(long, env = "AMBIENT_DNS_CAPTURE", default_value_t = true, action = clap::ArgAction::Set)]
    pub dns_capture: bool,
    /// Socket that serves the CNI plugin.
    #[arg(long, env = "KARST_CNI_EVENTS", default_value = crate::events::SOCKET)]
    pub events: PathBuf,
    /// The container runtime's directory of CNI plugins; without it the plugin is not installed.
    #[arg(long, env = "KARST_CNI_BIN_DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// The container runtime's directory of CNI configurations.
    #[arg(long, env = "KARST_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Namespaces (comma-separated) whose pods start without waiting for the agent.
    #[arg(long, env = "EXCLUDED_NAMESPACES", value_delimiter = ',', default_value = "kube-system")]
    pub excluded_namespaces: Vec<String>,
    /// While the agent is down, hold new pods in all namespaces except the excluded ones, even in those known to be outside the mesh.
    /// For clusters where pods join the mesh one by one.
    #[arg(long, env = "KARST_HOLD_ALL", default_value_t = false, action = clap::ArgAction::Set)]
    pub hold_all: bool,
    /// Connections from the node's own network to its pods that are treated as probes, exempt from policies: those of the kubelet, if
    /// its cgroup is found, otherwise all (auto); all; none; or those of one cgroup, given by its path in cgroup2.
    #[arg(long, env = "KARST_PROBES", default_value = "auto", value_name = "auto|all|none|CGROUP")]
    pub probes: crate::kubelet::Probes,
    /// Close connections that were open before their pod was redirected (otherwise they continue in plaintext); the annotation
    /// karst.io/close-unmeshed-connections of a pod overrides this.
    #[arg(long, env = "KARST_CLOSE_UNMESHED_CONNECTIONS", default_value_t = false, action = clap::ArgAction::Set)]
    pub close_unmeshed_connections: bool,
    /// Namespace of the agent's own DaemonSet.
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system")]
    pub namespace: String,
    /// Name of the agent's own DaemonSet: if it no longer exists when the agent is stopped, all redirection is removed. If empty, it
    /// never is.
    #[arg(long, env = "KARST_DAEMON_SET", default_value = "")]
    pub daemon_set: String,
    /// Log format: text or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Log level or filter, for example info or debug.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_level: String,
    /// Print the redirected pods and their counters, then exit.
    #[arg(long)]
    pub status: bool,
    /// Remove all redirection on this node, then exit.
    #[arg(long)]
    pub cleanup: bool,
    /// Check that this kernel has everything that Karst needs (like the subcommand check), then exit; the exit status is not zero if
    /// something is missing.
    #[arg(long)]
    pub check: bool,
    /// What to do instead of running the agent.
    #[command(subcommand)]
    pub action: Option<Action>,
}

/// What can be done instead of running the agent.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Action {
    /// Say what of Karst's needs this kernel has and lacks; exit status 1 if it lacks something.
    Check,
    /// Show live what the programs of this node's pods drop or pass by, and why: where did the packet go?
    Trace(crate::trace::How),
}

impl Config {
    /// Where objects come from.
    pub fn object_source(&self) -> anyhow::Result<ObjectSource> {
        self.source.parse()
    }
    /// Where the plugin is put, if it is.
    pub fn install(&self) -> Option<crate::install::Install> {
        self.cni_bin_dir.clone().map(|bin_dir| crate::install::Install {
            bin_dir,
            conf_dir: self.cni_conf_dir.clone(),
            exclude: self.excluded_namespaces.clone(),
        })
    }
    /// The root of cgroup2.
    pub fn cgroup_root(&self) -> anyhow::Result<PathBuf> {
        if let Some(root) = &self.cgroup {
            return Ok(root.clone());
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let fields = mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>());
        let roots = fields.filter(|f| f.get(2) == Some(&"cgroup2")).filter_map(|f| f.get(1).map(PathBuf::from));
        // In a container: the node's, mounted under /host, and not the container's own part.
        match roots.min_by_key(|root| !root.starts_with("/host")) {
            Some(p) => Ok(p),
            None => anyhow::bail!(
                "no cgroup2 is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) or set --cgroup"
            ),
        }
    }
}
