//! What `analyze` and `validate` say: statements of the rule book with Istio's codes, from files and from the cluster.

mod message;
mod source;

pub use message::{Level, Message, Suppression, table_line};
pub use source::{Input, files, from_cluster, read, stored};
