//! Connections to endpoints.

pub mod send;
pub mod tls;
