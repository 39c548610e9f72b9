//! What docs/survival.md builds on: the kernel knows how far a connection has come, whatever becomes of the process that carries it.
//!
//! - [`kernel`]: what is asked of it, and what it says. [`kills`]: processes that carry bytes are killed, and others go on.
//! - [`goes_on`]: the same with the product's own parts, as ztunnel has them. [`tunnels`]: and with a tunnel, of which one end lives on.
//! - [`bulk`], [`ways`]: what it costs to carry bytes so that this is possible. [`descriptors`]: what it costs a connection to have
//!   its sockets held by another process.
#![allow(
    missing_docs,
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's failure is a panic; calls for sockets, processes and memory that std does not have"
)]

mod bulk;
mod descriptors;
mod figures;
mod goes_on;
mod kernel;
mod kills;
mod pattern;
mod shared;
mod sys;
mod tunnels;
mod ways;

#[test]
#[ignore = "measures: cargo test --release -p karst-hbone --test survival -- --ignored --nocapture"]
fn what_survival_costs() {
    bulk::measure();
    descriptors::measure();
}
