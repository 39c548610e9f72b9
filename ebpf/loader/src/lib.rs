//! Loads the eBPF programs, pins their links and maps, attaches them to pods, and replaces them in place.
//!
//! What must always hold: once a pod is enrolled, there is no moment in which its connections pass unredirected;
//! programs are exchanged by BPF_LINK_UPDATE (or a filter's replacement), slots by one map write, and nothing detaches when a process dies,
//! because links and maps are pinned. Proven by tests/world (`restarts`, `capture`).
//!
//! Pin layout, one directory per node (several nodes may share a kernel):
//! `maps-v<LAYOUT>/{ENROLLED,POD_IPS,PROBES,OWN_FLOWS,EXEMPT,PROBE_CGROUP,PROBE_SOCKETS,TRACE,TRACED,EVENTS}`,
//! `links/{connect4,connect6,probes}`,
//! `pods/<uid>/{lookup,guard-<device>}` (`guard-<device>:<index>` where one that was renamed has its place) and
//! `pods/<uid>/v<LAYOUT>/{LISTENERS,COUNTS,LOCAL,UPLINKS,FORWARDED}`.

pub mod check;
mod config;
mod error;
mod forward;
mod guard;
mod maps;
pub mod net;
mod node;
mod pod;
mod sys;
pub mod trace;

pub use config::{Listeners, PodConfig};
pub use error::Error;
pub use guard::Guarding;
pub use karst_ebpf_common::{Counter, MARK_MASK};
pub use node::{Node, Probers, pinned_pods};
pub use pod::{PodState, pod_state, remove_from_netns};
