//! Delta xDS: the server that the controller runs and the client that proxies run.
//!
//! A [`Resources`] value is an immutable snapshot; what a subscriber is sent is always the difference between what it
//! holds and the newest snapshot, so a slow subscriber skips intermediate states and never queues them.

pub mod client;
pub mod server;
mod snapshot;

/// A client feature of ours (`Node.client_features`): an update may come in parts, all but the last of them marked with
/// [`MORE`]. The server then needs no large buffer for each stream. Others get each update whole.
pub const PARTS: &str = "karst.parts";
/// `system_version_info` of a response that is not the last part of its update.
pub const MORE: &str = "more";

/// A client feature of ours: policies in dry run are understood, and never enforced. Only subscribers that say so are told of
/// them: another one (an older ztunnel of Istio's) would pass over the mark and enforce them.
pub const DRY_RUN: &str = "karst.dry-run";

pub use snapshot::{Entry, Resources, Set, version};
