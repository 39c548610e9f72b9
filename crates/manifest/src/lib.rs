//! The directory source: Kubernetes' and Istio's objects in YAML files, read as the API server would show them.
//!
//! - [`kinds`] has the fields that Karst uses, under their Kubernetes names. Fields that Karst does not use are passed
//!   over, except in security kinds, where an unknown field is an error: a misspelt condition must not vanish.
//! - [`dir`] reads a directory. A file counts as a whole: while any document in it is bad, the last good state of
//!   that file stays, and the problem names file, line, object, field and fix.
//! - [`code`] has the codes of refusals and warnings.
//! - [`enrol`] says which pods belong to the mesh.

mod authorization;
pub mod closed;
pub mod code;
#[cfg(test)]
mod crds;
pub mod dir;
pub mod enrol;
mod enumerations;
#[allow(missing_docs, reason = "names and meaning are those of the Kubernetes, Gateway and Istio APIs")]
pub mod extension;
mod gateway;
#[allow(missing_docs, reason = "names and meaning are those of the Kubernetes, Gateway and Istio APIs")]
pub mod gatewayapi;
pub mod kinds;
mod kubernetes;
mod labels;
pub mod mesh_config;
mod meta;
mod nulls;
pub mod parse;
#[allow(missing_docs, reason = "names and meaning are those of the Kubernetes, Gateway and Istio APIs")]
pub mod security;
mod service_entry;
pub mod status;
#[allow(missing_docs, reason = "names and meaning are those of the Kubernetes, Gateway and Istio APIs")]
pub mod telemetry;
#[allow(missing_docs, reason = "names and meaning are those of the Kubernetes, Gateway and Istio APIs")]
pub mod traffic;
pub mod unsupported;

pub use dir::{Dir, State};
pub use enumerations::{PolicyAction, Resolution, ServerTlsMode};
pub use kinds::Object;
pub use mesh_config::MeshConfig;
pub use parse::Problem;
