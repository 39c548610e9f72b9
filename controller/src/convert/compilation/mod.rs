//! From the objects and what follows from them to the model.

mod access;
mod expression;
mod gateway;
mod logs;
pub(crate) mod model;
mod node;
mod peer;
pub(crate) mod policy;
pub(crate) mod provider;
pub(crate) mod routes;
mod scope;
mod service;
pub(crate) mod telemetry;
pub(crate) mod tokens;
mod traces;
pub(crate) mod workload;
