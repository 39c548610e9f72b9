//! Loads the eBPF programs, pins their links and maps, attaches them to pods, and replaces them in place.
//!
//! What must always hold: once a pod is enrolled, there is no moment in which its connections pass unredirected;
//! programs are exchanged by BPF_LINK_UPDATE, slots by one map write, and nothing detaches when a process dies,
//! because links and maps are pinned. Proven by tests/world (`restarts`, `capture`).
//!
//! Pin layout, one directory per node (several nodes may share a kernel):
//! `maps-v<LAYOUT>/{ENROLLED,POD_IPS,PROBES,OWN_FLOWS,EXEMPT}`, `links/{connect4,connect6,probes}`,
//! `pods/<uid>/{lookup,guard-<device>}` and `pods/<uid>/v<LAYOUT>/{LISTENERS,COUNTS,LOCAL,UPLINKS,FORWARDED}`.

mod error;
mod forward;
pub mod net;
mod node;
mod pod;
mod sys;

pub use error::Error;
pub use node::{Node, pinned_pods};
pub use pod::{Listeners, PodConfig, PodState, pod_state};
