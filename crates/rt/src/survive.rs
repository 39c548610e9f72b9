//! Open connections outlive a process that is killed (docs/survival.md): the parts that know nothing of what the connections are for.
//!
//! - [`holder`]: a process that shares the descriptors of the one that serves, and so keeps them open.
//! - [`table`], [`entry`]: which descriptors belong to which connection, in memory that outlives the process.
//! - [`progress`]: how far a connection has come, as the kernel knows. [`settle`]: what follows from that.
//! - [`ahead`]: bytes that are looked at and stay in their socket until the other side has them.
//! - [`claim`]: what the next process does with all of it.
//!
//! Always true: nothing that the dead process has written is believed. An entry says which descriptors to look at; what they are and
//! how far they have come is asked of the kernel, and what does not fit together is reset. Proven by the tests here, and by
//! `crates/hbone/tests/survival` with processes that are killed.

pub mod ahead;
pub mod claim;
pub mod entry;
pub mod holder;
mod memory;
pub mod progress;
pub mod settle;
pub mod table;
