//! Who may call.

pub mod access;
pub mod jwt;
