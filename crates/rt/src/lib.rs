//! What every Karst process needs, and the only place (beside `ebpf/`) with unsafe code: sockets, network
//! namespaces, descriptor passing; also clocks, draining, log output, the small HTTP server of the admin pages and the pages of metrics.

pub mod accept;
pub mod admin;
pub mod admission;
mod apart;
pub mod backoff;
pub mod buffer;
pub mod clock;
pub mod drain;
pub mod error;
pub mod exposition;
pub mod limited;
pub mod local;
pub mod log;
mod mark;
pub mod nat;
pub mod netlink;
pub mod netns;
pub mod on_wake;
pub mod outlined;
pub mod process;
pub mod process_metrics;
pub mod ready;
pub mod repeated;
pub mod seqpacket;
pub mod signals;
pub mod sock_diag;
pub mod socket;
pub mod splice;
pub mod survive;
pub mod turns;
pub mod udp;
