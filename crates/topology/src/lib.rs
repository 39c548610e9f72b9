//! Who talks to whom: a graph of workloads and services with rates, errors, latencies and refusals, from the counters that
//! proxies show to Prometheus, read every few seconds. No Prometheus is needed.
//!
//! - [`text`] reads Prometheus' text format. [`Topology`] takes the pages in, and gives [`Graph`] and [`History`].
//! - `series`: what each series has grown by since it was last read. `place`: between whom a series is.
//! - `cell`: what is counted in a period, and quantiles. `edge`: which reporters count, so that no request counts twice.
//! - `history`: the last hour, in bounded memory. `refusal`: what policies have refused, from the books of flows, or the metrics.
//! - [`View`]: what somebody sees who may look into some namespaces only.
//!
//! Pure: no I/O, no clock, no lock. Whoever calls says what time it is.

mod cell;
mod edge;
mod graph;
mod history;
mod place;
mod refusal;
mod series;
pub mod text;
mod topology;
mod view;

pub use graph::{Edge, Graph, Mtls, Node};
pub use history::{History, MAX_ROWS, Point, SLOT};
pub use place::Kind;
pub use refusal::Refusal;
pub use topology::Topology;
pub use view::{Sight, View, namespaces};

#[cfg(test)]
mod tests;
