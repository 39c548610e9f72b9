//! The cluster's network: a bridge in the control plane's namespace, and a namespace of each node on it.

use super::{
    access::{API, API6, Cluster, NETNS},
    node,
    shell::{forward, ip, said, sh},
};
use anyhow::{Result, ensure};
use std::path::Path;

impl Cluster {
    /// Makes all of it.
    pub fn network(&self, nodes: u8) -> Result<()> {
        make(NETNS)?;
        ip(&format!("-n {NETNS} link add br0 type bridge"))?;
        ip(&format!("-n {NETNS} addr add {API}/24 dev br0"))?;
        ip(&format!("-n {NETNS} addr add {API6}/64 dev br0 nodad"))?;
        ip(&format!("-n {NETNS} link set br0 up"))?;
        forward(NETNS)?;
        (1..=nodes).try_for_each(|i| self.plug_in(i))
    }

    /// A node's network, on the bridge.
    pub fn plug_in(&self, i: u8) -> Result<()> {
        let ns = node::netns(i);
        make(&ns)?;
        ip(&format!("-n {NETNS} link add veth-n{i} type veth peer name eth0 netns {ns}"))?;
        ip(&format!("-n {NETNS} link set veth-n{i} master br0 up"))?;
        ip(&format!("-n {ns} addr add {}/24 dev eth0", node::address(i)))?;
        ip(&format!("-n {ns} addr add {}/64 dev eth0 nodad", node::address6(i)))?;
        ip(&format!("-n {ns} link set eth0 up"))?;
        ip(&format!("-n {ns} route add default via {API}"))?;
        ip(&format!("-n {ns} -6 route add default via {API6}"))?;
        forward(&ns)
    }
}

/// Makes a namespace with `lo` up, in place of one that a cluster left whose end nobody could wait for (a machine
/// that stopped, a checkout that is gone).
///
/// # Errors
/// If processes are in the old one: another checkout's cluster runs, and is left alone.
fn make(ns: &str) -> Result<()> {
    let here = Path::new(".");
    let exist = said("ip", &["netns", "list"], here)?;
    if exist.lines().any(|line| line.split_whitespace().next() == Some(ns)) {
        let processes = said("ip", &["netns", "pids", ns], here)?;
        let processes = processes.split_whitespace().collect::<Vec<_>>().join(", ");
        ensure!(
            processes.is_empty(),
            "network namespace {ns} is in use by processes {processes}: another cluster runs; take it down first"
        );
        ip(&format!("netns del {ns}"))?;
    }
    ip(&format!("netns add {ns}"))?;
    ip(&format!("-n {ns} link set lo up"))
}

/// To a node's pods, by the node.
pub fn route(ns: &str, cidrs: &[String], i: u8) -> Result<()> {
    for cidr in cidrs {
        let via = if cidr.contains(':') { node::address6(i) } else { node::address(i) };
        sh("ip", &["-n", ns, "route", "replace", cidr, "via", &via])?;
    }
    Ok(())
}
