//! A real Kubernetes on this machine: control plane and nodes in namespaces of their own, from package registries alone.
//!
//! The network namespace `karst-cp` holds etcd, API server, controller manager and scheduler, and a bridge; each node has
//! its own network, mount, pid, uts and ipc namespaces with containerd, kubelet and kube-proxy. Nothing leaves the
//! machine, and nothing listens on the machine's own addresses. State lies under `target/cluster`.

mod access;
mod build;
mod control_plane;
pub mod image;
mod network;
mod node;
mod process;
pub mod shell;

pub use access::Cluster;

use crate::report::Progress;
use access::NETNS;
use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use network::route;
use shell::{ip, sh};
use std::{fs, path::PathBuf};

/// What to do with the cluster.
#[derive(Subcommand)]
pub enum What {
    /// Build what is missing and start the cluster.
    Up {
        /// Nodes, 1 to 9.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
    },
    /// Anew, with the charts installed and all that the tests on it want: for `cargo test --test cluster`.
    ForTests,
    /// Build what runs on it and is not ours: Kubernetes and what its tests use, from Go modules.
    Programs {
        /// Also Prometheus and Jaeger.
        #[arg(long)]
        dashboards: bool,
    },
    /// Stop it and remove everything that it made.
    Down,
    /// Say what runs.
    Status,
    /// A node loses its power: its processes end at once, its network is gone.
    StopNode {
        /// Which, from 1.
        #[arg(value_parser = clap::value_parser!(u8).range(1..=9))]
        node: u8,
    },
    /// A node that was stopped boots again, with what was on its disks.
    StartNode {
        /// Which, from 1.
        #[arg(value_parser = clap::value_parser!(u8).range(1..=9))]
        node: u8,
    },
    /// Run kubectl against it.
    #[command(trailing_var_arg = true, disable_help_flag = true)]
    Kubectl {
        #[arg(allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run Istio's istioctl against it (built at the first call).
    #[command(trailing_var_arg = true, disable_help_flag = true)]
    Istioctl {
        #[arg(allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build Istio's own node agent and load its image into the nodes, for its chart at target/cluster/bin/istio-charts/istio-cni.
    IstioAgent,
    /// Build Istio's own control plane and load its image into the nodes, for its chart at
    /// target/cluster/bin/istio-charts/istio-control/istio-discovery.
    Istiod,
    /// Build Prometheus and promtool (target/cluster/bin) and load the image registry.local/prometheus:1 into the nodes.
    Prometheus,
    /// Build Jaeger (target/cluster/bin) and load the image registry.local/jaeger:1 into the nodes.
    Jaeger,
    /// Build Open Policy Agent's engine as a provider of external authorization and load the image registry.local/opa:1 into the nodes.
    Opa,
    /// Run helm against it.
    #[command(trailing_var_arg = true, disable_help_flag = true)]
    Helm {
        #[arg(allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

/// Addresses that tests give to Services of type LoadBalancer.
pub const BALANCED: &str = "10.98.0.0/16";

/// The `n`th of them.
pub fn balanced(n: u32) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from(0x0a62_0000 + n)
}

/// Is it one of them?
pub fn is_balanced(ip: std::net::Ipv4Addr) -> bool {
    ip.octets()[..2] == [10, 98]
}

/// Values that kubelet changes for the whole machine; put back at the end.
const SYSCTLS: [&str; 3] = ["vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"];

/// Runs the command.
pub fn run(what: What) -> Result<()> {
    let c = Cluster::new()?;
    match what {
        What::Up { nodes } => c.up(nodes),
        What::ForTests => for_tests(),
        What::Programs { dashboards } => {
            crate::setup::cluster()?;
            build::run(&c.bin)?;
            build::istioctl(&c.bin)?;
            build::registry(&c.bin)?;
            build::opa(&c.bin)?;
            build::istio_agent(&c.bin, &c.run.join("images"))?;
            if dashboards {
                c.prometheus()?;
                c.jaeger()?;
            }
            Ok(())
        }
        What::Down => c.down(),
        What::Status => c.status(),
        What::StopNode { node } => c.stop_node(node),
        What::StartNode { node } => c.start_node(node),
        What::Kubectl { args } => c.tool("kubectl", &args),
        What::Istioctl { args } => {
            build::istioctl(&c.bin)?;
            c.tool("istioctl", &args)
        }
        What::IstioAgent => {
            let image = build::istio_agent(&c.bin, &c.run.join("images"))?;
            c.load(&[image])
        }
        What::Istiod => {
            let image = build::istiod(&c.bin, &c.run.join("images"))?;
            c.load(&[image])
        }
        What::Prometheus => {
            let image = c.prometheus()?;
            c.load(&[image])
        }
        What::Jaeger => {
            let image = c.jaeger()?;
            c.load(&[image])
        }
        What::Opa => c.load(&[build::opa(&c.bin)?]),
        What::Helm { args } => c.tool("helm", &args),
    }
}

/// A fresh cluster with the charts installed.
pub fn for_tests() -> Result<()> {
    let c = Cluster::new()?;
    c.down()?;
    c.up(2)?;
    let p = Progress::new();
    let charts = std::path::absolute("charts/ambient")?.display().to_string();
    let args = ["install", "ambient", &charts, "-n", "istio-system", "--create-namespace", "--wait", "--timeout=90s"];
    let out = c.command("helm").args(args).output().context("helm")?;
    if !out.status.success() {
        c.show_logs();
        bail!("helm {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
    }
    p.say("helm has installed the charts");
    build::istioctl(&c.bin)?;
    p.say("istioctl is built");
    build::registry(&c.bin)?;
    p.say("the registry of the tests is built");
    c.load(&[build::opa(&c.bin)?])?;
    p.say("Open Policy Agent is built");
    Ok(())
}

impl Cluster {
    /// Starts it. A second call says what runs.
    pub fn up(&self, nodes: u8) -> Result<()> {
        if self.run.exists() {
            println!("a cluster is there already (cargo xtask cluster down removes it):");
            return self.status();
        }
        crate::setup::cluster()?;
        let p = Progress::new();
        build::run(&self.bin)?;
        p.say("Kubernetes, etcd, CoreDNS and helm are built");
        let programs = crate::tools::build_for_images()?;
        let ours = crate::images::write(&programs)?;
        p.say("Karst's images are built");
        fs::create_dir_all(self.run.join("images"))?;
        fs::create_dir_all(self.log())?;
        let mut images = build::images(&self.bin, &self.run.join("images"))?;
        images.extend(ours);
        if let Err(e) = self.start(nodes, &images, &p) {
            eprintln!("{e:#}\nthe cluster's logs: {}", self.log().display());
            bail!("the cluster does not start (cargo xtask cluster down removes what is there)");
        }
        println!("try: cargo xtask cluster kubectl get pods -A -o wide");
        println!("or:  {}", self.shell_line());
        Ok(())
    }

    /// Builds Prometheus and promtool; gives the file of Prometheus' image.
    pub fn prometheus(&self) -> Result<PathBuf> {
        build::prometheus(&self.bin)
    }

    /// Builds Jaeger; gives the file of its image.
    pub fn jaeger(&self) -> Result<PathBuf> {
        build::jaeger(&self.bin)
    }

    /// Loads images into every node, if a cluster runs.
    pub fn load(&self, images: &[PathBuf]) -> Result<()> {
        for i in 1..=self.nodes() {
            for image in images {
                node::load(self, i, image)?;
            }
            println!("{} images loaded into node {}", images.len(), node::name(i));
        }
        Ok(())
    }

    fn start(&self, nodes: u8, images: &[PathBuf], p: &Progress) -> Result<()> {
        fs::write(self.run.join("nodes"), nodes.to_string())?;
        let saved: String = SYSCTLS
            .iter()
            .map(|s| format!("{s} {}\n", fs::read_to_string(format!("/proc/sys/{s}")).unwrap_or_default().trim()))
            .collect();
        fs::write(self.run.join("sysctls"), saved)?;
        self.network(nodes).context("network namespaces")?;
        self.control_plane(nodes, p)?;
        for i in 1..=nodes {
            node::start(self, i, images)?;
        }
        p.say("nodes started");
        self.join(nodes)?;
        p.say("nodes ready");
        fs::write(self.run.join("coredns.yaml"), include_str!("../cluster/coredns.yaml"))?;
        self.kubectl(&["apply", "-f", &self.run.join("coredns.yaml").display().to_string()])?;
        self.kubectl(&["-n", "kube-system", "rollout", "status", "deploy/coredns", "--timeout=60s"])?;
        p.say("CoreDNS ready");
        Ok(())
    }

    /// Gives each node its part of the pod network, and waits until all are ready.
    fn join(&self, nodes: u8) -> Result<()> {
        for i in 1..=nodes {
            let cidrs = self.pods_of(i)?;
            node::write_cni(self, i, &cidrs)?;
            route(NETNS, &cidrs, i)?;
            for j in (1..=nodes).filter(|j| *j != i) {
                route(&node::netns(j), &cidrs, i)?;
            }
        }
        self.until("the default service account", 60, || {
            Ok(self.output(&["get", "serviceaccount", "default", "-o", "name"])?.is_some())
        })?;
        self.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=60s"])
    }

    /// A node's parts of the pod network, one of each family.
    fn pods_of(&self, i: u8) -> Result<Vec<String>> {
        let mut cidrs = vec![];
        let query = ["get", "node", &node::name(i), "-o", "jsonpath={.spec.podCIDRs[*]}"];
        self.until("a node's part of the pod network", 60, || {
            cidrs = self.output(&query)?.unwrap_or_default().split_whitespace().map(String::from).collect();
            Ok(cidrs.len() == 2)
        })?;
        Ok(cidrs)
    }

    fn stop_node(&self, i: u8) -> Result<()> {
        ensure!(i <= self.nodes(), "there is no node {}: {} run", node::name(i), self.nodes());
        ensure!(node::kill(self, i)?, "node {} does not run", node::name(i));
        ip(&format!("netns del {}", node::netns(i)))?;
        node::remove_cgroups(&node::name(i));
        println!("node {} is without power", node::name(i));
        Ok(())
    }

    fn start_node(&self, i: u8) -> Result<()> {
        ensure!(i <= self.nodes(), "there is no node {}: {} were started", node::name(i), self.nodes());
        ensure!(!node::runs(self, i), "node {} runs", node::name(i));
        self.plug_in(i)?;
        for j in (1..=self.nodes()).filter(|j| *j != i) {
            route(&node::netns(i), &self.pods_of(j)?, j)?;
        }
        node::forget(self, i)?;
        node::start(self, i, &[])?;
        println!("node {} boots", node::name(i));
        Ok(())
    }

    /// Lets the control plane's namespace reach addresses of Services, by the first node.
    pub fn route_to_services(&self, range: &str) -> Result<()> {
        sh("ip", &["-n", NETNS, "route", "replace", range, "via", &node::address(1)])
    }

    /// Says what runs.
    pub fn status(&self) -> Result<()> {
        if !self.run.exists() {
            println!("no cluster runs");
            return Ok(());
        }
        for (name, alive) in self.processes().list() {
            println!("{name:<26} {}", if alive { "runs" } else { "has ended" });
        }
        let _ = self.command("kubectl").args(["get", "nodes", "-o", "wide"]).status();
        println!("{}", self.shell_line());
        Ok(())
    }

    /// Stops everything and removes what it made.
    pub fn down(&self) -> Result<()> {
        if !self.run.exists() {
            println!("no cluster runs");
            return Ok(());
        }
        let p = Progress::new();
        let nodes = self.nodes();
        self.processes().stop_all();
        for i in 1..=nodes {
            node::remove_cgroups(&node::name(i));
            let _ = sh("ip", &["netns", "del", &node::netns(i)]);
        }
        let _ = sh("ip", &["netns", "del", NETNS]);
        let saved = fs::read_to_string(self.run.join("sysctls")).unwrap_or_default();
        for (name, value) in saved.lines().filter_map(|l| l.split_once(' ')) {
            fs::write(format!("/proc/sys/{name}"), value).with_context(|| format!("cannot put back {name}"))?;
        }
        fs::remove_dir_all(&self.run).with_context(|| format!("cannot remove {}", self.run.display()))?;
        p.say("the cluster is gone");
        Ok(())
    }
}
