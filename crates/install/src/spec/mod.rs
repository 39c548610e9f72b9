//! What is to be installed: profile, files and `--set`, as the components with the values of their charts.

mod components;
mod error;
mod operator;
pub mod profile;
mod set;
#[cfg(test)]
mod tests;
mod wanted;

pub use components::{Component, Kind};
pub use error::SpecError;
pub use wanted::{Spec, Wanted};
