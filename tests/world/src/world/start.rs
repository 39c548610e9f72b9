//! Building a world: fabric, nodes, routes between them, and the processes.

use super::{CONTROLLER, Node, Options, World, cleanup::sweep};
use crate::net::{self, ip_in, namespace, sysctl, veth};
use anyhow::{Context, Result, ensure};
use karst_rt::netns::Netns;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

static WORLDS: AtomicU32 = AtomicU32::new(0);

impl World {
    /// Builds and starts a world.
    pub fn start(options: Options) -> Result<Self> {
        ensure!(
            fs::metadata("/proc/self/ns/net").is_ok() && is_root(),
            "worlds need root: they make network namespaces and load eBPF programs"
        );
        sweep();
        let id = WORLDS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("kw{}x{id}", std::process::id());
        let dir = std::env::temp_dir().join(format!("karst-world-{prefix}"));
        for d in ["manifests", "logs", "tokens"] {
            fs::create_dir_all(dir.join(d))?;
        }
        mount_bpffs()?;
        let fabric_ns = format!("{prefix}-fabric");
        namespace(&fabric_ns)?;
        ip_in(&fabric_ns, "link add br0 type bridge")?;
        ip_in(&fabric_ns, "link set br0 up")?;
        let fabric = Netns::open(format!("/run/netns/{fabric_ns}"))?;
        let mut w = Self {
            dir,
            nodes: vec![],
            options,
            prefix,
            controller: None,
            waypoints: BTreeMap::new(),
            fabric,
            pods: BTreeMap::new(),
            next_pod: vec![],
            held: Mutex::default(),
        };
        if let Some(mib) = w.options.disk_mib {
            w.mount_disk(mib)?;
        }
        let control = w.ns("control");
        namespace(&control)?;
        w.plug(&control, "control", &format!("{CONTROLLER}/16"), "fd66::100/64")?;
        for i in 0..w.options.nodes {
            w.add_node(i)?;
        }
        w.routes()?;
        w.write_base()?;
        w.start_controller()?;
        for i in 0..w.options.nodes {
            match w.options.istio {
                None => w.start_agent(i)?,
                Some(_) => w.start_istio_agent(i)?,
            }
            w.start_ztunnel(i)?;
        }
        for i in 0..w.options.nodes {
            w.wait_ztunnel(i);
        }
        Ok(w)
    }

    /// Connects a namespace to the fabric.
    fn plug(&self, ns: &str, port: &str, v4: &str, v6: &str) -> Result<()> {
        let fabric = self.ns("fabric");
        veth(&fabric, port, ns, "eth0")?;
        ip_in(&fabric, &format!("link set {port} master br0"))?;
        ip_in(ns, &format!("addr add {v4} dev eth0"))?;
        ip_in(ns, &format!("addr add {v6} dev eth0 nodad")).map(|_| ())
    }

    fn add_node(&mut self, i: usize) -> Result<()> {
        let ns = self.ns(&format!("node{i}"));
        namespace(&ns)?;
        self.plug(&ns, &format!("node{i}"), &format!("10.66.0.{}/16", i + 1), &format!("fd66::{}/64", i + 1))?;
        // With an address of its own, as CNI plugins give it: else it is the lowest of its ports', and changes when pods come.
        ip_in(&ns, &format!("link add cni0 address 0a:58:0a:4d:{i:02x}:01 type bridge"))?;
        ip_in(&ns, &format!("addr add 10.77.{i}.1/24 dev cni0"))?;
        ip_in(&ns, &format!("addr add fd77:{i}::1/64 dev cni0 nodad"))?;
        ip_in(&ns, "link set cni0 up")?;
        sysctl(&ns, "net.ipv4.ip_forward", "1")?;
        sysctl(&ns, "net.ipv6.conf.all.forwarding", "1")?;
        let netns = Netns::open(format!("/run/netns/{ns}"))?;
        self.nodes.push(Node { name: format!("node{i}"), ns, netns, agent: None, istio: None, ztunnel: None });
        self.next_pod.push(10);
        Ok(())
    }

    fn routes(&self) -> Result<()> {
        for (i, n) in self.nodes.iter().enumerate() {
            for j in (0..self.nodes.len()).filter(|j| *j != i) {
                ip_in(&n.ns, &format!("route add 10.77.{j}.0/24 via 10.66.0.{}", j + 1))?;
                ip_in(&n.ns, &format!("-6 route add fd77:{j}::/64 via fd66::{}", j + 1))?;
            }
            // Waypoints are pods, and talk to the controller.
            ip_in(&self.ns("control"), &format!("route add 10.77.{i}.0/24 via 10.66.0.{}", i + 1))?;
        }
        Ok(())
    }

    fn write_base(&self) -> Result<()> {
        let mut text = String::from("apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n");
        for (i, n) in self.nodes.iter().enumerate() {
            write!(
                text,
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {0}, labels: {{topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z{i}}}}}\nspec: {{podCIDRs: [10.77.{i}.0/24, 'fd77:{i}::/64']}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: ztunnel-{0}, namespace: istio-system, uid: zt-{0}}}\nspec: {{nodeName: {0}, serviceAccountName: ztunnel, hostNetwork: true}}\nstatus: {{phase: Running, podIP: 10.66.0.{1}, conditions: [{{type: Ready, status: 'True'}}]}}\n",
                n.name,
                i + 1
            )?;
        }
        self.write("base", &text)
    }
}

#[allow(unsafe_code, reason = "kill(2) and geteuid(2)")]
fn is_root() -> bool {
    // SAFETY: no preconditions.
    unsafe { libc::geteuid() == 0 }
}

fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    if !mounts.lines().any(|l| l.split(' ').nth(2) == Some("bpf") && l.contains(" /sys/fs/bpf ")) {
        net::run("mount", &["-t", "bpf", "bpf", "/sys/fs/bpf"]).context("cannot mount a bpffs")?;
    }
    fs::create_dir_all("/sys/fs/bpf/karst-test").context("bpffs")?;
    Ok(())
}
