//! What a proxy knows of the mesh as JSON (`/config_dump`), and back: so that what a running proxy would do can be asked without it.

mod read;
mod write;

pub use read::{DumpError, section, snapshot, text, told_besides};
pub use write::{Mesh, mesh, names};
