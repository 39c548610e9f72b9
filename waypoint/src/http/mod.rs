//! One HTTP request, from its canonical form to its answer.

pub mod body;
pub mod codec;
pub mod entry;
pub mod handle;
pub mod reply;
pub mod values;
