//! One HTTP request, from its canonical form to its answer.

mod admit;
mod answer;
mod ask;
mod base64_text;
pub mod body;
mod call;
pub mod codec;
mod compression;
mod cors;
mod deadline;
mod destination;
pub mod encoders;
pub mod entry;
mod external;
mod fault;
mod finish;
pub mod forward;
pub(crate) mod forwarded;
mod grpc_web;
pub mod handle;
mod headers;
mod mirror;
pub mod names;
mod outgoing;
mod permits;
mod rate_limit;
mod redirect;
pub mod reply;
pub mod retry;
mod session;
mod side;
#[cfg(test)]
mod tests;
pub mod transform;
pub mod values;
pub(crate) mod virtual_host;
mod websocket;
