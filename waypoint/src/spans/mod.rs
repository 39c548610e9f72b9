//! Traces (Istio's Telemetry `tracing`): which requests are traced, the spans of a request, and the way of these to a collector.
//! A request that is not traced makes one check; one that is writes its spans when it ends, and waits for nobody.
//!
//! - [`request`]: a request that is traced, by [`sampling`] and with the headers of [`context`]; [`rules`]: what is said of traces.
//! - [`tags`]: what its spans say; [`common`]: of this, what many have in common; [`names`]: of all that.
//! - [`writer`], [`encode`]: the forms that collectors take.
//! - [`recorder`]: a worker's spans; [`batches`], [`queue`], [`export`], [`call`]: their way from there, and that of the log's records
//!   ([`crate::logs`]); [`health`]: whether a collector takes any.

pub mod batches;
pub mod call;
pub mod common;
pub mod context;
pub mod encode;
pub mod export;
pub mod health;
pub mod names;
pub mod queue;
pub mod recorder;
pub mod request;
pub mod rules;
pub mod sampling;
pub mod tags;
pub mod writer;

#[cfg(test)]
mod tests;
