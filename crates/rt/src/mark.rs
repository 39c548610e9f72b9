//! Marks of sockets (SO_MARK), by which redirection and routing tell connections apart.

/// Mark of ztunnel's listeners and DNS sockets (Istio's packet mark, 1337).
pub const MARK_ZTUNNEL: u32 = 0x539;
/// Mark of connections that must go over `lo` (as `karst_ebpf_common::MARK_CAPTURE`).
pub const MARK_CAPTURE: u32 = 0x111;
/// Mark of connections to the pod's application in a client's name (as `karst_ebpf_common::MARK_APP`).
pub const MARK_APP: u32 = 0x112;
