//! Authorization: what a policy may look at ([`attribute`]), what its values mean ([`StringMatch`], [`PathPattern`]), what a
//! policy for connections is ([`model`]) and what it says of one ([`authorize`], [`dry_run`]).
//!
//! Pure and total: no I/O, no clock. What is unknown denies. Proven by the differential test against a naive
//! evaluator in `tests/differential.rs` (T1D) and by the table tests beside the code.

pub mod attribute;
pub mod eval;
pub mod model;
pub mod path;
pub mod pattern;
pub mod value;

pub use attribute::Attribute;
pub use eval::{Connection, Verdict, Would, authorize, dry_run};
pub use model::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch};
pub use path::{Path, Readings};
pub use pattern::PathPattern;
pub use value::ValueError;
