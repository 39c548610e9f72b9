//! A real Kubernetes on this machine: control plane and nodes in namespaces of their own, from package registries alone.
//!
//! The network namespace `karst-cp` holds etcd, API server, controller manager and scheduler, and a bridge; each node has
//! its own network, mount, pid, uts and ipc namespaces with containerd, kubelet and kube-proxy. Nothing leaves the
//! machine, and nothing listens on the machine's own addresses. State lies under `target/cluster`.

mod build;
pub mod image;
mod node;
mod process;

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use process::Processes;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// What to do with the cluster.
#[derive(Subcommand)]
pub enum What {
    /// Build what is missing and start the cluster.
    Up {
        /// Nodes, 1 to 9.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
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
    /// Run helm against it.
    #[command(trailing_var_arg = true, disable_help_flag = true)]
    Helm {
        #[arg(allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

const NETNS: &str = "karst-cp";
const API: &str = "172.31.0.1";
/// Both families; the first is that of Services that do not ask for another.
const SERVICES: &str = "10.96.0.0/16,fd00:31:96::/112";
const PODS: &str = "10.244.0.0/16,fd00:31:244::/48";
/// The control plane's address in the other family.
const API6: &str = "fd00:31::1";
/// Addresses that tests give to Services of type LoadBalancer.
pub const BALANCED: &str = "10.98.0.0/16";

/// One of them.
pub fn balanced(n: u32) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from(0x0a62_0000 + n)
}
/// Values that kubelet changes for the whole machine; put back at the end.
const SYSCTLS: [&str; 3] = ["vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"];

/// Runs the command.
pub fn run(what: What) -> Result<()> {
    let c = Cluster::new()?;
    match what {
        What::Up { nodes } => c.up(nodes),
        What::Down => c.down(),
        What::Status => c.status(),
        What::StopNode { node } => c.stop_node(node),
        What::StartNode { node } => c.start_node(node),
        What::Kubectl { args } => c.tool("kubectl", &args),
        What::Helm { args } => c.tool("helm", &args),
    }
}

/// A fresh cluster with the charts installed.
pub fn for_tests() -> Result<()> {
    let c = Cluster::new()?;
    c.down()?;
    c.up(2)?;
    let p = Progress(Instant::now());
    let charts = std::path::absolute("charts/ambient")?.display().to_string();
    let args = ["install", "ambient", &charts, "-n", "istio-system", "--create-namespace", "--wait", "--timeout=90s"];
    let out = c.command("helm").args(args).output().context("helm")?;
    if !out.status.success() {
        c.show_logs();
        bail!("helm {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
    }
    p.say("helm has installed the charts");
    Ok(())
}

/// Where everything is.
pub struct Cluster {
    /// Built programs.
    pub bin: PathBuf,
    /// State of the running cluster; absent if none runs.
    pub run: PathBuf,
}

struct Progress(Instant);
impl Progress {
    fn say(&self, what: &str) {
        println!("[{:5.1} s] {what}", self.0.elapsed().as_secs_f64());
    }
}

impl Cluster {
    /// The cluster of this checkout.
    pub fn new() -> Result<Self> {
        let base = std::path::absolute("target/cluster")?;
        Ok(Self { bin: base.join("bin"), run: base.join("run") })
    }

    fn pki(&self) -> PathBuf {
        self.run.join("pki")
    }
    fn log(&self) -> PathBuf {
        self.run.join("log")
    }
    fn processes(&self) -> Processes {
        Processes::new(&self.run.join("pids"))
    }
    fn nodes(&self) -> u8 {
        fs::read_to_string(self.run.join("nodes")).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
    }

    /// Starts it. A second call says what runs.
    pub fn up(&self, nodes: u8) -> Result<()> {
        if self.run.exists() {
            println!("a cluster is there already (cargo xtask cluster down removes it):");
            return self.status();
        }
        crate::setup::cluster()?;
        let p = Progress(Instant::now());
        build::run(&self.bin)?;
        p.say("Kubernetes, etcd, CoreDNS and helm are built");
        crate::build()?;
        let ours = crate::images::write()?;
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

    /// How a shell reaches the cluster.
    fn shell_line(&self) -> String {
        format!(
            "nsenter --net=/run/netns/{NETNS} env KUBECONFIG={} {} get nodes",
            self.pki().join("admin.kubeconfig").display(),
            self.bin.join("kubectl").display()
        )
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

    fn network(&self, nodes: u8) -> Result<()> {
        ip(&format!("netns add {NETNS}"))?;
        ip(&format!("-n {NETNS} link set lo up"))?;
        ip(&format!("-n {NETNS} link add br0 type bridge"))?;
        ip(&format!("-n {NETNS} addr add {API}/24 dev br0"))?;
        ip(&format!("-n {NETNS} addr add {API6}/64 dev br0 nodad"))?;
        ip(&format!("-n {NETNS} link set br0 up"))?;
        forward(NETNS)?;
        (1..=nodes).try_for_each(|i| self.plug_in(i))
    }

    /// A node's network, on the bridge.
    fn plug_in(&self, i: u8) -> Result<()> {
        let ns = node::netns(i);
        ip(&format!("netns add {ns}"))?;
        ip(&format!("-n {ns} link set lo up"))?;
        ip(&format!("-n {NETNS} link add veth-n{i} type veth peer name eth0 netns {ns}"))?;
        ip(&format!("-n {NETNS} link set veth-n{i} master br0 up"))?;
        ip(&format!("-n {ns} addr add {}/24 dev eth0", node::address(i)))?;
        ip(&format!("-n {ns} addr add {}/64 dev eth0 nodad", node::address6(i)))?;
        ip(&format!("-n {ns} link set eth0 up"))?;
        ip(&format!("-n {ns} route add default via {API}"))?;
        ip(&format!("-n {ns} -6 route add default via {API6}"))?;
        forward(&ns)
    }

    fn control_plane(&self, nodes: u8, p: &Progress) -> Result<()> {
        let pki = self.pki().display().to_string();
        let names: Vec<String> = (1..=nodes).map(|i| format!("{}={}", node::name(i), node::address(i))).collect();
        let mut args = vec!["pki", &pki, API, "10.96.0.1"];
        args.extend(names.iter().map(String::as_str));
        sh(&self.bin.join("kube").display().to_string(), &args)?;
        let start = |name: &str, args: &[&str]| -> Result<()> {
            let bin = self.bin.join(name).display().to_string();
            let mut all = vec![format!("--net=/run/netns/{NETNS}"), bin];
            all.extend(args.iter().map(|a| a.replace("{pki}", &pki).replace("{run}", &self.run.display().to_string())));
            self.processes().start(name, "nsenter", &all, &[], &self.log().join(format!("{name}.log")))
        };
        start(
            "etcd",
            &[
                "--name=e",
                "--data-dir={run}/etcd",
                "--unsafe-no-fsync",
                "--listen-client-urls=http://127.0.0.1:2379",
                "--advertise-client-urls=http://127.0.0.1:2379",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--initial-advertise-peer-urls=http://127.0.0.1:2380",
                "--initial-cluster=e=http://127.0.0.1:2380",
            ],
        )?;
        start(
            "kube-apiserver",
            &[
                "--etcd-servers=http://127.0.0.1:2379",
                &format!("--advertise-address={API}"),
                &format!("--bind-address={API}"),
                "--secure-port=6443",
                "--tls-cert-file={pki}/apiserver.crt",
                "--tls-private-key-file={pki}/apiserver.key",
                "--client-ca-file={pki}/ca.crt",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                "--service-account-key-file={pki}/sa.pub",
                "--service-account-signing-key-file={pki}/sa.key",
                &format!("--service-cluster-ip-range={SERVICES}"),
                "--enable-aggregator-routing=true",
                "--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
                "--kubelet-client-key={pki}/apiserver-kubelet-client.key",
                "--kubelet-preferred-address-types=InternalIP",
                "--requestheader-client-ca-file={pki}/ca.crt",
                "--requestheader-allowed-names=front-proxy-client",
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                "--proxy-client-cert-file={pki}/front-proxy-client.crt",
                "--proxy-client-key-file={pki}/front-proxy-client.key",
            ],
        )?;
        self.until("the API server", 60, || Ok(self.output(&["get", "--raw=/readyz"])?.is_some_and(|t| t == "ok")))?;
        p.say("API server ready");
        start(
            "kube-controller-manager",
            &[
                "--kubeconfig={pki}/kube-controller-manager.kubeconfig",
                "--authentication-kubeconfig={pki}/kube-controller-manager.kubeconfig",
                "--authorization-kubeconfig={pki}/kube-controller-manager.kubeconfig",
                "--service-account-private-key-file={pki}/sa.key",
                "--root-ca-file={pki}/ca.crt",
                "--use-service-account-credentials=true",
                "--cluster-signing-cert-file={pki}/ca.crt",
                "--cluster-signing-key-file={pki}/ca.key",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                "--allocate-node-cidrs=true",
                &format!("--cluster-cidr={PODS}"),
                &format!("--service-cluster-ip-range={SERVICES}"),
                "--node-monitor-grace-period=20s",
            ],
        )?;
        start(
            "kube-scheduler",
            &[
                "--kubeconfig={pki}/kube-scheduler.kubeconfig",
                "--authentication-kubeconfig={pki}/kube-scheduler.kubeconfig",
                "--authorization-kubeconfig={pki}/kube-scheduler.kubeconfig",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
            ],
        )
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

    /// A command of kubectl or helm, prepared.
    pub fn command(&self, tool: &str) -> Command {
        self.inside(&self.bin.join(tool))
    }
    /// A program that finds the cluster as kubectl does, in the control plane's network namespace.
    pub fn inside(&self, program: &Path) -> Command {
        let mut c = Command::new("nsenter");
        c.arg(format!("--net=/run/netns/{NETNS}")).arg(program);
        c.env("KUBECONFIG", self.pki().join("admin.kubeconfig"));
        c
    }
    /// Lets the control plane's namespace reach addresses of Services, by the first node.
    pub fn route_to_services(&self, range: &str) -> Result<()> {
        sh("ip", &["-n", NETNS, "route", "replace", range, "via", &node::address(1)])
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

    fn tool(&self, name: &str, args: &[String]) -> Result<()> {
        ensure!(self.run.exists(), "no cluster runs: cargo xtask cluster up");
        let status = self.command(name).args(args).status().with_context(|| format!("cannot start {name}"))?;
        ensure!(status.success(), "{name} failed");
        Ok(())
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
        let p = Progress(Instant::now());
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

/// To a node's pods, by the node.
fn route(ns: &str, cidrs: &[String], i: u8) -> Result<()> {
    for cidr in cidrs {
        let via = if cidr.contains(':') { node::address6(i) } else { node::address(i) };
        sh("ip", &["-n", ns, "route", "replace", cidr, "via", &via])?;
    }
    Ok(())
}
fn ip(args: &str) -> Result<()> {
    sh("ip", &args.split(' ').collect::<Vec<_>>())
}
fn forward(ns: &str) -> Result<()> {
    let both = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
    sh("nsenter", &[&[&*format!("--net=/run/netns/{ns}"), "sysctl", "-qw"], &both[..]].concat())
}

fn sh(program: &str, args: &[&str]) -> Result<()> {
    let out = Command::new(program).args(args).output().with_context(|| format!("cannot start {program}"))?;
    ensure!(out.status.success(), "{program} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}

/// Writes a file that others must be able to run.
fn write_script(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}
