//! What the eBPF programs and user space agree on: map keys and values, slots, flags, marks.
//!
//! The layout of everything here is versioned by [`LAYOUT`]: maps of another layout are never reused. The sizes
//! are asserted below, so that a change cannot go unnoticed.
#![no_std]
#![forbid(unsafe_code)]

/// Version of the maps' layout; part of their pin path. Raise it with any change to a type below.
pub const LAYOUT: u32 = 3;

/// Mark of ztunnel's listeners and DNS sockets. It exempts nothing by itself (any pod with CAP_NET_RAW can set a
/// mark); it only keeps their replies out of the capture rules.
pub const MARK_ZTUNNEL: u32 = 0x539;
/// Mark of flows that the pod's routing rules deliver to `lo`.
pub const MARK_CAPTURE: u32 = 0x111;
/// Mark of ztunnel's connections to the pod's own application in a client's name, which go over `lo`, too. The application's
/// accepted sockets inherit it, and are bound to `lo` by it.
pub const MARK_APP: u32 = 0x112;
/// Bits of the packet mark that are ours (Istio uses the same mask).
pub const MARK_MASK: u32 = 0xfff;
/// The HBONE port.
pub const HBONE_PORT: u16 = 15008;
/// Addresses that one pod may have.
pub const MAX_POD_IPS: usize = 4;
/// Addresses of a pod's network namespace that its programs know; those beyond are told apart by [`OwnFlow`] alone.
pub const MAX_LOCAL: u32 = 1024;
/// Devices of a pod's network namespace that carry one of the pod's addresses.
pub const MAX_UPLINKS: u32 = 16;
/// Devices of a pod's network namespace between which traffic is forwarded, and judged; what comes by others is dropped by the guard.
pub const MAX_FORWARDED: u32 = 128;

/// Slots of a pod's `LISTENERS` map.
pub mod slot {
    /// ztunnel's HBONE listener.
    pub const HBONE: u32 = 0;
    /// ztunnel's listener for captured inbound plaintext.
    pub const PLAINTEXT: u32 = 1;
    /// ztunnel's listener for captured outbound TCP.
    pub const OUTBOUND: u32 = 2;
    /// ztunnel's DNS socket (UDP).
    pub const DNS: u32 = 3;
    /// ztunnel's listener for what the pod would forward outwards: connections of its containers or virtual machines.
    pub const FORWARD: u32 = 4;
    /// Number of slots.
    pub const COUNT: u32 = 5;
}

/// Per-pod flags, in the pod program's read-only data.
pub mod flag {
    /// Inbound plaintext is not captured (`ambient.istio.io/bypass-inbound-capture`).
    pub const NO_INBOUND: u32 = 1;
    /// DNS is not captured (`ambient.istio.io/dns-capture: "false"`).
    pub const NO_DNS: u32 = 2;
    /// The guard trusts [`super::MARK_ZTUNNEL`] (only for a ztunnel that cannot exempt its sockets: Istio's).
    pub const TRUST_MARK: u32 = 4;
    /// Inbound plaintext is captured on every device and for every address of the pod's, not only where the mesh's addresses are
    /// (`karst.io/capture-all-devices`).
    pub const ALL_DEVICES: u32 = 8;
    /// Frames of other protocols than IP and ARP may leave, and frames with a VLAN tag (`karst.io/allow-other-protocols`). IP behind a
    /// tag is judged as any other.
    pub const OTHER_PROTOCOLS: u32 = 16;
    /// Nothing of TCP passes, in or out: another network stack has the pod's addresses, where nobody can judge.
    pub const CLOSED: u32 = 128;
}

/// Who on the node may probe its pods, past every policy: one of these, or the id of a cgroup.
pub mod prober {
    /// Nobody. (No cgroup has this id.)
    pub const NONE: u64 = 0;
    /// Every process in the node's own network namespace.
    pub const ALL: u64 = u64::MAX;
}

/// Per-pod counters: what the programs did, and why.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Inbound connections given to the HBONE listener.
    Hbone = 0,
    /// Inbound plaintext connections captured.
    Plaintext = 1,
    /// Outbound connections captured.
    Outbound = 2,
    /// DNS queries captured.
    Dns = 3,
    /// Left alone: loopback, the pod's own address, or ztunnel's connection to the application.
    Local = 4,
    /// Left alone: opened by the node itself (kubelet probes).
    Probe = 5,
    /// Left alone: the pod opts out of inbound capture.
    OptOut = 6,
    /// Refused: no listener in the slot.
    NoListener = 7,
    /// Dropped by the guard: a SYN that did not come from ztunnel.
    GuardDrop = 8,
    /// Passed by the guard: a SYN of ztunnel's.
    GuardPass = 9,
    /// Dropped by the guard: a TCP packet that cannot be parsed.
    GuardUnparsable = 10,
    /// Left alone: a connection of ztunnel's own that came back to its pod. Never redirected again, or it would never end.
    OwnFlow = 11,
    /// Left alone: came by a device that is not the mesh's, for an address that is not.
    OtherDevice = 12,
    /// Dropped by the guard: a frame that is neither IP nor ARP, or has a VLAN tag.
    GuardProtocol = 13,
    /// Captured: what the pod would have forwarded, in either direction.
    Forwarded = 14,
}

/// Number of [`Counter`]s.
pub const COUNTERS: u32 = 15;

impl Counter {
    /// All counters, in order.
    pub const ALL: [Counter; COUNTERS as usize] = [
        Counter::Hbone,
        Counter::Plaintext,
        Counter::Outbound,
        Counter::Dns,
        Counter::Local,
        Counter::Probe,
        Counter::OptOut,
        Counter::NoListener,
        Counter::GuardDrop,
        Counter::GuardPass,
        Counter::GuardUnparsable,
        Counter::OwnFlow,
        Counter::OtherDevice,
        Counter::GuardProtocol,
        Counter::Forwarded,
    ];
    /// Metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Counter::Hbone => "hbone",
            Counter::Plaintext => "plaintext",
            Counter::Outbound => "outbound",
            Counter::Dns => "dns",
            Counter::Local => "local",
            Counter::Probe => "probe",
            Counter::OptOut => "opt_out",
            Counter::NoListener => "no_listener",
            Counter::GuardDrop => "guard_drop",
            Counter::GuardPass => "guard_pass",
            Counter::GuardUnparsable => "guard_unparsable",
            Counter::OwnFlow => "own_flow",
            Counter::OtherDevice => "other_device",
            Counter::GuardProtocol => "guard_protocol",
            Counter::Forwarded => "forwarded",
        }
    }
}

/// An address as the programs compare it: IPv6, or IPv4 mapped into it; each word in network byte order.
pub type Addr = [u32; 4];

/// A flow that the node itself opened to a pod. Ports in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Source (the node).
    pub src: Addr,
    /// Destination (the pod).
    pub dst: Addr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

/// A flow that a socket of ztunnel's has opened in a pod's network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnFlow {
    /// Cookie of the network namespace, in two halves (no padding).
    pub netns: [u32; 2],
    /// The flow.
    pub flow: Flow,
}

/// How long after its connect call a flow of ztunnel's own is let through, in nanoseconds: longer than a connect may take.
pub const OWN_FLOW_WINDOW_NS: u64 = 30_000_000_000;

/// Bit of a flow's time in `OWN_FLOWS`: it is one to the application in a client's name ([`MARK_APP`]) and never leaves `lo`. What comes
/// with the same addresses and ports by another device is somebody else's, and judged.
pub const OWN_FLOW_ON_LO: u64 = 1;

/// How long after its connect call a node's flow is let through, in nanoseconds. Bounds what a later connection
/// with the same addresses and ports could gain.
pub const PROBE_WINDOW_NS: u64 = 10_000_000_000;

const _: () = assert!(size_of::<Flow>() == 36 && size_of::<OwnFlow>() == 44 && Counter::ALL.len() == COUNTERS as usize);

mod trace;
pub use trace::{TRACE_BYTES, TRACE_RATE, TRACE_WINDOW_SHIFT, TraceBudget, TraceRecord, TraceRequest};
