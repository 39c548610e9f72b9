//! Installs Karst without helm: the charts in `charts` are the one source of what is installed, and this renders them as
//! Helm does, applies the objects in a safe order, waits for them, and removes what is no longer wanted.

pub mod chart;
pub mod cluster;
pub mod documents;
pub mod manifest;
pub mod spec;
pub mod template;
