//! From objects to the model. Pure: the same objects give the same model, whatever the order of events.
//! Rules: Istio's workload discovery (reference control-plane §2), with the differences that docs/architecture.md lists.

pub mod check;
mod compiler;
mod condition;
pub mod deploy;
mod endpoint;
mod facts;
pub mod finding;
mod gateway_status;
mod model;
mod no_effect;
mod node;
mod objects;
mod overlay;
mod peer;
mod policy;
mod policy_status;
mod privilege;
mod route_status;
mod routes;
mod service;
mod status;
mod waypoint;
mod workload;
mod writes;

pub use compiler::{Change, Compiler};
pub(crate) use facts::listener::warnings as of_gateway;
pub use model::{closing, compile};
pub(crate) use objects::{MANAGED, VIRTUAL};
pub use objects::{Mesh, Template};
#[cfg(test)]
pub(crate) use routes::unserved::around;
pub(crate) use routes::unserved::{all as findings, alone, with_view};
pub use writes::Writes;

#[cfg(test)]
pub(crate) mod tests;
