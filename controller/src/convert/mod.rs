//! From objects to the model. Pure: the same objects give the same model, whatever the order of events.
//! Rules: Istio's workload discovery (reference control-plane §2), with the differences that docs/architecture.md lists.
//!
//! `objects` is what was applied; `facts` is what follows from it and several need; `compilation`, `status` and `deploy` read both, and
//! only what stands before them.

pub mod check;
mod compilation;
mod compiler;
pub mod deploy;
mod facts;
pub mod finding;
mod no_effect;
mod notices;
mod objects;
mod status;
mod unserved;
mod writes;

pub use compilation::model::{closing, compile};
pub(crate) use compilation::routes::scalar::duration;
pub use compiler::{Change, Compiler, Stepped, is_small};
pub(crate) use facts::{
    listener::{set_warnings as of_listener_set, warnings as of_gateway},
    policy::warnings as of_policy,
};
pub(crate) use objects::{MANAGED, Named, Revisions, VIRTUAL};
pub use objects::{Mesh, Revision, Template};
#[cfg(test)]
pub(crate) use unserved::around;
pub(crate) use unserved::{all as findings, alone, with_view};
pub use writes::Writes;

#[cfg(test)]
pub(crate) mod tests;
