//! One of them.

use serde::Serialize;

/// Something that a proxy knows otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Whom it is about: `workload ns/name`, `service ns/host`, `policy ns/name`.
    pub subject: String,
    /// Which of its fields; empty: all of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What the objects compile to; empty: it is not among them.
    pub compiled: String,
    /// What the proxy knows; empty: nothing.
    pub proxy: String,
}
