//! The cluster, as a command line reaches it: the API server, and through it the loopback ports of pods. No kubectl.

mod connect;
mod exec;
mod failure;
mod follow;
mod forward;
mod objects;
mod pods;
mod rights;

pub use connect::Cluster;
pub use exec::Executed;
pub use failure::failed;
pub use objects::Resource;
pub use pods::{PodName, is_ready, node_of, uid_of};
