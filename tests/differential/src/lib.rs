//! Oracles for differential tests, and what feeds them. The product is in the tests only (`tests/`): nothing here uses
//! it.
//!
//! - [`naive`]: AuthorizationPolicies, evaluated straight on the values as users write them.
//! - [`readings`]: what applications make of a path, and what servers make of an authority.
//! - [`random`]: policies and calls, such that they often meet; [`shrink`]: a small case out of a large one.
//! - [`forwarded`]: which of the addresses in X-Forwarded-For is the client's.
//! - [`meshes`]: manifests of one mesh; [`worlds`]: small random meshes, and calls in them.

pub mod forwarded;
pub mod meshes;
pub mod naive;
pub mod random;
pub mod readings;
pub mod shrink;
pub mod worlds;

/// The seed of a run (`SEED`), so that one that has failed can be repeated. (By default always the same one: CI does
/// not fail by chance.)
pub fn seed() -> u64 {
    std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1)
}

/// How many cases a run has (`CASES`).
pub fn cases() -> usize {
    std::env::var("CASES").ok().and_then(|s| s.parse().ok()).unwrap_or(100_000)
}
