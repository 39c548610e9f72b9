//! What is deployed for Gateways.

mod gateway;
mod overlay;
mod privilege;

pub(crate) use gateway::{classes, compile, given, name, owner, parameters};
