//! Go's text/template with the functions of sprig that charts use, as Helm renders them.
//!
//! Charts are input: a malformed one is an error with a name and a line, never a panic, and time, depth and output are
//! bounded ([`limits::Limits`]). `tests/helm.rs` renders our charts by Helm, too, and compares.

mod error;
mod eval;
mod format;
mod functions;
mod lex;
mod limits;
mod parse;
mod set;
#[cfg(test)]
mod tests;
mod value;
mod yaml;

pub use error::{Fault, TemplateError};
pub use set::Templates;
pub(crate) use value::integer;
pub use value::{Map, Value};
pub use yaml::to_yaml;
