//! What `analyze` and `validate` say: statements of the rule book with Istio's codes, from files and from the cluster.

mod message;
pub mod rules;
mod source;

pub use message::{Level, Message, Suppression, shown_as, table_line};
pub use source::{Input, Stored, all_stored, files, from_cluster, read, stored};
