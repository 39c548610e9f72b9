//! What follows from the objects and is needed by several: compilation, statuses and deployment only read it, so that they
//! cannot differ about it.

pub(crate) mod attached;
pub(crate) mod backend_certificate;
pub(crate) mod backend_tls;
pub(crate) mod ca_certificates;
pub(crate) mod client_tls;
pub(crate) mod condition;
pub(crate) mod endpoint;
pub(crate) mod export;
pub(crate) mod frontend_tls;
pub(crate) mod gateway;
pub(crate) mod grant;
pub(crate) mod host;
pub(crate) mod hosts;
pub(crate) mod listener;
pub(crate) mod listener_filters;
pub(crate) mod listener_set;
pub(crate) mod listeners;
pub(crate) mod policy;
pub(crate) mod routability;
pub(crate) mod secret;
pub(crate) mod service;
pub(crate) mod session;
pub(crate) mod topology;
pub(crate) mod udp;
pub(crate) mod validate;
pub(crate) mod waypoint;
pub(crate) mod workload;
