//! Routes as they are compiled from what the control plane sends.

pub mod error;
pub mod limit;
pub mod matcher;
pub mod operators;
pub mod table;
pub mod wire;
