//! What is known of the mesh: one immutable snapshot, replaced by one writer, read without a lock.
//!
//! - `model`: workloads, services and gateways; `decode`: from what the control plane sends; `baggage`: the header.
//! - `members`: the endpoints of a service; `texts`: what many workloads have in common.
//! - `snapshot`: the state and its indices, and what is asked of it; `policies`: those that apply to a workload.
//! - `asked`: which names are told, where not everything is; `ranges`: what pods have their addresses from.
//! - `update`: how one address resource or the pod ranges of a node become part of it.

mod asked;
mod baggage;
mod decode;
mod members;
mod model;
mod policies;
mod ranges;
mod snapshot;
#[cfg(test)]
mod testing;
mod texts;
mod update;

pub use asked::{Asked, Mark, Name, Pages};
pub use decode::{FieldError, GatewayError, ResourceError};
pub use members::Endpoints;
pub use model::{
    Announced, Gateway, GatewayTo, LocalityScope, Membership, Mode, ObjectKind, OwnPod, Ports, Service, UdpPort,
    Workload,
};
pub use ranges::PodRanges;
pub use snapshot::Snapshot;
