//! The statuses that are written to objects, where they differ from what is there.

mod address;
pub(crate) mod ancestors;
pub(crate) mod backend_tls;
pub(crate) mod backend_traffic;
mod condition;
pub(crate) mod gateway;
pub(crate) mod istio;
pub(crate) mod listener;
mod listener_set;
pub(crate) mod revision;
pub(crate) mod route;
pub(crate) mod settled;

pub(crate) use condition::Write;
