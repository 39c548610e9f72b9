//! Routes as they are compiled from what the control plane sends.

pub mod limit;
pub mod matcher;
pub mod operators;
pub mod table;
