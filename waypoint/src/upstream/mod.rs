//! Connections to endpoints, and requests on them.

pub mod address;
pub mod error;
pub mod open;
pub mod pool;
pub mod send;
#[cfg(test)]
mod tests;
pub mod tls;
