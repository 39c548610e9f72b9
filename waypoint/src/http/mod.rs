//! One HTTP request, from its canonical form to its answer.

mod answer;
pub mod body;
pub mod codec;
mod cors;
mod deadline;
mod destination;
pub mod entry;
mod fault;
mod finish;
pub mod handle;
mod headers;
mod mirror;
pub mod names;
mod permits;
mod rate_limit;
mod redirect;
pub mod reply;
pub mod retry;
#[cfg(test)]
mod tests;
pub mod values;
