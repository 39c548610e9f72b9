//! The listeners of one pod, opened in its namespace and held here, so that they outlive ztunnel.

use karst_core::limits::port;
use karst_ebpf::Listeners;
use karst_rt::{
    netns::Netns,
    socket::{self, MARK_CAPTURE, MARK_ZTUNNEL},
};
use std::{io, os::fd::OwnedFd};

/// The five sockets.
pub struct PodSockets {
    /// HBONE.
    pub hbone: OwnedFd,
    /// Captured inbound plaintext.
    pub plaintext: OwnedFd,
    /// Captured outbound.
    pub outbound: OwnedFd,
    /// DNS over UDP.
    pub dns: OwnedFd,
    /// What the pod would forward outwards.
    pub forward: OwnedFd,
}

impl PodSockets {
    /// Opens them in the pod's namespace.
    pub fn open(netns: &Netns) -> io::Result<Self> {
        netns.run(|| {
            Ok(Self {
                hbone: socket::redirect_listener(MARK_ZTUNNEL, port::HBONE)?.into(),
                plaintext: socket::redirect_listener(MARK_ZTUNNEL, port::PLAINTEXT)?.into(),
                outbound: socket::redirect_listener(MARK_CAPTURE, port::OUTBOUND)?.into(),
                dns: socket::redirect_udp(port::DNS)?.into(),
                // Its clients are behind the pod's devices, and answers must not stay on `lo`.
                forward: socket::redirect_listener(MARK_ZTUNNEL, port::OUTBOUND)?.into(),
            })
        })?
    }
    /// As the loader wants them.
    pub fn listeners(&self) -> Listeners<'_> {
        Listeners {
            hbone: &self.hbone,
            plaintext: &self.plaintext,
            outbound: &self.outbound,
            dns: &self.dns,
            forward: &self.forward,
        }
    }
}
