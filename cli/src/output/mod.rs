//! How an answer is written: tables for people, JSON and YAML for programs.

mod format;
mod table;

pub use format::Format;
pub use table::{Cell, Table, Tone, age, shown};
