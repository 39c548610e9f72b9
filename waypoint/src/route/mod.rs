//! Routes as they are compiled from what the control plane sends.

pub mod bucket;
pub mod change;
pub mod compression;
pub mod cors;
pub mod destination;
pub mod error;
mod index;
pub mod input;
pub mod limit;
pub mod matcher;
pub mod operators;
pub mod rule;
pub mod sequence;
pub mod table;
pub mod tcp;
pub mod wire;
