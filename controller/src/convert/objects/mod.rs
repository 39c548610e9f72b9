//! What was applied, as all that is made from it looks it up.

mod age;
mod identity;
mod index;
mod labels;
mod mesh;
mod names;
pub(crate) mod parameters;
mod problem;
mod revision;
mod revisions;

pub(crate) use age::{Age, age};
pub(crate) use identity::{address, rename};
pub(crate) use index::{Objects, source_labels};
pub(crate) use labels::selects;
pub use mesh::{Mesh, Template};
pub(crate) use names::{
    GATEWAY, GATEWAY_API, GATEWAY_API_EXPERIMENTAL, INGRESS, INGRESS_CLASSES, ISTIO_NETWORKING, LISTENER_SET, MANAGED,
    MESH, OWN_GROUP, VIRTUAL,
};
pub(crate) use problem::{FieldError, problem};
pub use revision::Revision;
pub(crate) use revision::named;
pub(crate) use revisions::{Named, Revisions};
