//! Delta xDS: the server that the controller runs and the client that proxies run.
//!
//! A [`Resources`] value is an immutable snapshot; what a subscriber is sent is always the difference between what it
//! holds and the newest snapshot, so a slow subscriber skips intermediate states and never queues them.

pub mod client;
pub mod server;
mod snapshot;

pub use snapshot::{Entry, Resources, Set, version};
