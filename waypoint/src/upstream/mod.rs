//! Connections to endpoints, and requests on them.

pub mod address;
pub mod connector;
pub mod error;
pub mod follow;
pub mod open;
pub mod own;
pub mod pool;
pub mod reopen;
pub mod send;
pub mod settings;
#[cfg(test)]
mod tests;
pub mod tls;
