//! What the agent says of a pod that is to be redirected.

use std::{net::IpAddr, os::fd::OwnedFd};

/// What a pod's redirection needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct PodConfig {
    /// Directory name under which everything is pinned; unique on the node.
    pub uid: String,
    /// Another network stack has its addresses: no redirection, and nothing of TCP passes, in or out.
    pub closed: bool,
    /// The pod's addresses, at most [`MAX_POD_IPS`](karst_ebpf_common::MAX_POD_IPS).
    pub ips: Vec<IpAddr>,
    /// Plaintext to the pod is not captured (`ambient.istio.io/bypass-inbound-capture`).
    pub bypass_inbound: bool,
    /// DNS is not captured.
    pub bypass_dns: bool,
    /// Plaintext to the pod is captured on all devices, whatever address it is for (`karst.io/capture-all-devices`).
    pub all_devices: bool,
    /// Frames of other protocols than IP and ARP may leave, and frames with a VLAN tag (`karst.io/allow-other-protocols`).
    pub other_protocols: bool,
    /// Devices that count as inside the pod, whatever they are (`ambient.istio.io/reroute-virtual-interfaces`);
    /// bridges, tap and tun devices and WireGuard do by themselves.
    pub inner_devices: Vec<String>,
    /// Let sockets through by mark (only for a ztunnel that cannot exempt its own).
    pub trust_mark: bool,
}

/// The sockets that the slots lead to.
pub struct Listeners<'a> {
    /// HBONE.
    pub hbone: &'a OwnedFd,
    /// Captured inbound plaintext.
    pub plaintext: &'a OwnedFd,
    /// Captured outbound.
    pub outbound: &'a OwnedFd,
    /// DNS over UDP.
    pub dns: &'a OwnedFd,
    /// What the pod would forward outwards.
    pub forward: &'a OwnedFd,
}
