//! What the node proxy and the layer 7 proxy share: what is known of the mesh, certificates, and the way to the control
//! plane.
//!
//! - [`state`]: workloads, services and policies as one immutable snapshot.
//! - [`secrets`]: certificates, fetched when first needed and renewed in time.
//! - [`demand`]: the names that are followed, where the control plane tells only what is asked for.
//! - [`dial`]: the way to an endpoint; [`mod@unreachable`]: those that are avoided for a while.
//! - [`endpoints`]: which endpoints of a service could be used, and who is a waypoint.
//! - [`workers`]: the workers of a process as they see each other.
//! - [`bootstrap`]: between options and workers, and between the signal to stop and the end.
//! - [`discovery`]: metrics of the way to the control plane.
//! - [`dump`]: what is known of the mesh as JSON, and back.
//! - [`dry_run`]: what policies in dry run would have done, counted.
//! - [`labels`]: of Istio's traffic metrics.
//! - [`options`]: those that both have.
//! - [`flows`]: what was seen lately, for `karst policy`.
//! - [`followed`]: a file that is read again when it changes; [`revocation`]: the one with revocation lists.
//! - [`remote`]: how the control plane is reached.
//! - [`resolve`]: endpoints that are known by name only.
//! - [`series`]: those of a metric, by labels and by key.
//! - [`tap`]: who looks on live.
//! - [`trace`]: a span's place in its trace, on requests and CONNECTs.
//! - [`traffic`]: Istio's metrics of connections.
//! - [`xds`]: the one writer of the state; [`trim`]: memory that a large update or a flood has freed.
//! - [`untold`]: addresses of which the control plane has not told yet; [`nobody`]: those at which it knows of nobody.

pub mod bootstrap;
pub mod demand;
pub mod dial;
pub mod discovery;
pub mod dry_run;
pub mod dump;
pub mod endpoints;
pub mod flows;
pub mod followed;
pub mod labels;
pub mod nobody;
pub mod options;
mod refusals;
pub mod remote;
pub mod requests;
pub mod resolve;
pub mod revocation;
pub mod secrets;
pub mod series;
#[allow(missing_docs, reason = "most fields are those of the wire, one to one")]
pub mod state;
pub mod tap;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod trace;
pub mod traffic;
pub mod trim;
pub mod unreachable;
pub mod untold;
pub mod workers;
pub mod xds;
