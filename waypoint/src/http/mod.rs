//! One HTTP request, from its canonical form to its answer.

pub mod body;
pub mod codec;
mod cors;
mod deadline;
pub mod entry;
pub mod handle;
mod headers;
mod permits;
pub mod reply;
pub mod retry;
#[cfg(test)]
mod tests;
pub mod values;
