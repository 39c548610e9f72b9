//! Delta xDS: the server that the controller runs and the client that proxies run.
//!
//! A [`Resources`] value is an immutable snapshot; what a subscriber is sent is always the difference between what it
//! holds and the newest snapshot, so a slow subscriber skips intermediate states and never queues them.

pub mod client;
mod hub;
mod interest;
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

/// A client feature of ours: the subscriber may ask for addresses by name, and counts on what Karst's controller answers to that:
/// the groups below, and removals of what nothing that it asks for names any more.
pub const ON_DEMAND: &str = "karst.on-demand";

/// Of addresses by name: before a host name, the group of the services of that host, in whatever namespace.
pub const HOST_GROUP: &str = "~host/";
/// Before a node's name, the group of its workloads: a subscriber of that node is in it without asking.
pub const NODE_GROUP: &str = "~node/";
/// The group of services that no name finds: by a range of addresses, or by a wildcard host. All who ask by name are in it.
pub const UNNAMED_GROUP: &str = "~unnamed";
/// Before the name or address of a waypoint, the group of what it executes for the services that are bound to it.
pub const WAYPOINT_GROUP: &str = "~waypoint/";
/// Before what a gateway's listener calls its routes, the group of their virtual hosts.
pub const LISTENER_GROUP: &str = "~listener/";

pub use hub::{Hub, Stream};
pub use snapshot::{Entry, Resources, Scopes, Set, version};
