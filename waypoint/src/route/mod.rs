//! Routes as they are compiled from what the control plane sends.

pub mod bucket;
pub mod compression;
pub mod error;
pub mod limit;
pub mod matcher;
pub mod operators;
pub mod sequence;
pub mod table;
pub mod wire;
