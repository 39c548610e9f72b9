//! Building, changing and removing worlds.

mod cleanup;
mod clocks;
mod disk;
mod gateways;
mod manifests;
mod pod;
mod pods;
mod process;
mod processes;
mod start;
mod wait;

pub use pod::{Pod, PodSpec};
pub use process::{bin, kill, static_client, stop};
pub use wait::wait_for;

use crate::{http, istio, net::ip_in, sniff::Sniffer};
use anyhow::{Context, Result};
use karst_rt::netns::Netns;
use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Child,
    sync::Mutex,
    time::Duration,
};

const CONTROLLER: &str = "10.66.0.100";

/// How a world is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of nodes, 1 to 4.
    pub nodes: usize,
    /// Arguments for ztunnel, in addition.
    pub ztunnel: Vec<String>,
    /// Environment for ztunnel, in addition.
    pub ztunnel_env: Vec<(String, String)>,
    /// Arguments for the controller, in addition.
    pub controller: Vec<String>,
    /// Arguments for the agents, in addition. (A world has no kubelet: without `--probes` all of a node's processes may probe.)
    pub agent: Vec<String>,
    /// The ztunnel binary; None: ours.
    pub ztunnel_bin: Option<PathBuf>,
    /// How many descriptors ztunnel may have open; None: as many as this process.
    pub ztunnel_descriptors: Option<u64>,
    /// Istio's node agents in place of ours, with rules by this program.
    pub istio: Option<istio::Rules>,
    /// A disk of so many MiB for the logs and the agents' state, which can be filled ([`World::fill_disk`]).
    pub disk_mib: Option<u32>,
    /// The time of day of each node, with its waypoints and gateways, and of the controller can be set ([`World::set_clock`]).
    pub clocks: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 2,
            ztunnel: vec![],
            ztunnel_env: vec![],
            controller: vec![],
            agent: vec![],
            ztunnel_bin: None,
            ztunnel_descriptors: None,
            istio: None,
            disk_mib: None,
            clocks: false,
        }
    }
}

/// A node.
pub struct Node {
    /// Name, as in spec.nodeName.
    pub name: String,
    /// Its network namespace.
    pub ns: String,
    /// Same, to enter.
    pub netns: Netns,
    agent: Option<Child>,
    pub(crate) istio: Option<istio::IstioAgent>,
    ztunnel: Option<Child>,
}

/// A file of manifests that was written or, without a text, erased.
type Held = (String, Option<String>);

/// A world.
pub struct World {
    /// Directory with manifests, logs, sockets, keys.
    pub dir: PathBuf,
    /// Nodes.
    pub nodes: Vec<Node>,
    pub(crate) options: Options,
    prefix: String,
    controller: Option<Child>,
    /// By pod.
    waypoints: BTreeMap<String, Child>,
    fabric: Netns,
    pods: BTreeMap<String, Pod>,
    next_pod: Vec<u8>,
    /// While the API server stalls: what is held back.
    held: Mutex<Option<Vec<Held>>>,
}

impl World {
    fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// A page of a process on a node.
    pub fn get(&self, node: usize, port: u16, path: &str) -> Result<(u16, String)> {
        let s = self.nodes[node].netns.run(|| http::connect(SocketAddr::from(([127, 0, 0, 1], port))))??;
        Ok(http::get(s, path)?)
    }

    /// Metrics of a node's ztunnel whose line starts with `name` and holds all of `parts`: their sum.
    pub fn metric(&self, node: usize, name: &str, parts: &[&str]) -> f64 {
        let (_, page) = self.get(node, 15020, "/metrics").expect("metrics page");
        let lines = page.lines().filter(|l| l.starts_with(name) && parts.iter().all(|p| l.contains(p)));
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// What a node's pods send to another node's pods is lost without a word, as if the node was gone; or is not any more.
    pub fn lose(&self, node: usize, to: usize, lost: bool) {
        let ns = &self.nodes[node].ns;
        let way = |dst: String, via: String| match lost {
            true => format!("route replace blackhole {dst}"),
            false => format!("route replace {dst} via {via}"),
        };
        ip_in(ns, &way(format!("10.77.{to}.0/24"), format!("10.66.0.{}", to + 1))).expect("IPv4 route");
        ip_in(ns, &format!("-6 {}", way(format!("fd77:{to}::/64"), format!("fd66::{}", to + 1)))).expect("IPv6 route");
    }

    /// A node's link to the others and to the controller is pulled out, or put in again.
    pub fn unplug(&self, node: usize, out: bool) -> Result<()> {
        let master = if out { "nomaster" } else { "master br0" };
        ip_in(&self.ns("fabric"), &format!("link set node{node} {master}")).map(|_| ())
    }

    /// Does a node reach the controller, within a moment?
    ///
    /// # Errors
    /// The node's network namespace cannot be entered.
    pub fn reaches_controller(&self, node: usize) -> Result<bool> {
        let controller = SocketAddr::new(CONTROLLER.parse()?, 15012);
        let connect = || TcpStream::connect_timeout(&controller, Duration::from_millis(300));
        Ok(self.nodes[node].netns.run(connect)?.is_ok())
    }

    /// A sniffer between the nodes.
    pub fn sniffer(&self, marker: &[u8]) -> Sniffer {
        Sniffer::start(&self.fabric, marker)
    }

    /// A log file's text.
    pub fn log_text(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join("logs").join(name)).unwrap_or_default()
    }

    /// Copies the logs as they are now to a directory, which is made.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn copy_logs(&self, to: &Path) -> Result<()> {
        fs::create_dir_all(to).with_context(|| to.display().to_string())?;
        for file in fs::read_dir(self.dir.join("logs"))? {
            let file = file?;
            fs::copy(file.path(), to.join(file.file_name())).with_context(|| file.path().display().to_string())?;
        }
        Ok(())
    }

    /// Everything stays when the world goes: for people who want to look.
    pub fn keep(mut self) -> PathBuf {
        let dir = self.dir.clone();
        for n in &mut self.nodes {
            n.agent.take();
            n.ztunnel.take();
        }
        self.controller.take();
        self.waypoints.clear();
        std::mem::forget(self);
        dir
    }
}
