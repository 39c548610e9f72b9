//! Who may call.

pub mod access;
pub mod error;
pub mod external;
pub mod generations;
pub mod jwt;
pub mod token_cache;
