//! Pods: network namespaces behind a node's bridge.

use super::process::in_netns;
use crate::net::{ip_in, namespace, veth};
use anyhow::Result;
use karst_rt::netns::Netns;
use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

/// A pod to be made.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Node, from 0.
    pub node: usize,
    /// Service account.
    pub account: String,
    /// Labels.
    pub labels: Vec<(String, String)>,
    /// Annotations.
    pub annotations: Vec<(String, String)>,
}

impl PodSpec {
    /// A pod with an account of its own name and the label `app` of its name.
    pub fn new(namespace: &str, name: &str, node: usize) -> Self {
        Self {
            name: name.into(),
            namespace: namespace.into(),
            node,
            account: name.into(),
            labels: vec![("app".into(), name.into())],
            annotations: vec![],
        }
    }
    /// Another label.
    pub fn label(mut self, k: &str, v: &str) -> Self {
        self.labels.retain(|(x, _)| x != k);
        self.labels.push((k.into(), v.into()));
        self
    }
    /// Another annotation.
    pub fn annotation(mut self, k: &str, v: &str) -> Self {
        self.annotations.push((k.into(), v.into()));
        self
    }
    /// Another account.
    pub fn account(mut self, a: &str) -> Self {
        self.account = a.into();
        self
    }
}

/// A pod that exists.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What it was made from.
    pub spec: PodSpec,
    /// Name of its network namespace.
    pub ns: String,
    /// IPv4 address.
    pub ip: IpAddr,
    /// IPv6 address.
    pub ip6: IpAddr,
    /// metadata.uid.
    pub uid: String,
    pub(super) netns: Netns,
    /// Its number on the node, by which its addresses are, and its device on the node.
    pub(super) number: u8,
    pub(super) device: String,
}

impl Pod {
    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
    /// An address of the pod.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.ip, port).into()
    }
    /// An IPv6 address of the pod.
    pub fn at6(&self, port: u16) -> SocketAddr {
        (self.ip6, port).into()
    }
    /// Connects from the pod, as an application would.
    pub fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.netns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(8)))?
    }
    /// What a container or virtual machine inside the pod has for a network: a namespace of its own, whose `eth0` is the far end of
    /// a device of the pod's. It has these addresses, and the way out by the first ones of their networks.
    pub fn inside(&self, device: &str, v4: [u8; 4], v6: [u16; 8]) -> Pod {
        let ns = format!("{}-{device}", self.ns);
        let (ip, ip6) = (IpAddr::from(v4), IpAddr::from(v6));
        let gateway = |mut a: [u16; 8]| {
            a[7] = 1;
            IpAddr::from(a)
        };
        let make = || -> Result<()> {
            namespace(&ns)?;
            veth(&self.ns, device, &ns, "eth0")?;
            ip_in(&ns, &format!("addr add {ip}/24 dev eth0"))?;
            ip_in(&ns, &format!("addr add {ip6}/64 dev eth0 nodad"))?;
            ip_in(&ns, &format!("route add default via {}", IpAddr::from([v4[0], v4[1], v4[2], 1])))?;
            ip_in(&ns, &format!("-6 route add default via {}", gateway(v6))).map(|_| ())
        };
        make().expect("a container's network");
        let netns = Netns::open(format!("/run/netns/{ns}")).expect("the namespace was made");
        let (uid, number, device) = (self.uid.clone(), self.number, device.into());
        Pod { spec: self.spec.clone(), ns, ip, ip6, uid, netns, number, device }
    }
    /// A program in the pod's network namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        in_netns(&self.ns, program)
    }
}
