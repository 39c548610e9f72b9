//! Routes and backends of services, from Gateway API and from Istio's API, in one form (`karst.route.v1`).
//!
//! Who decides about a service (docs/routes.md):
//! - Routes of the service's own namespace, or of the root namespace, are for all callers (VirtualServices: for those of the
//!   namespaces that they are exported to); those of another namespace are for callers of that namespace only, and for these in
//!   place of the others.
//! - Gateway API's routes stand before VirtualServices, exact before general, then old before new. Of VirtualServices those with
//!   the longest host for the service count; their rules stay in order, older VirtualServices before newer ones, but for rules
//!   that match everything: these come last, and end their own VirtualService. The first rule that matches is it.

pub(crate) mod backend_tls;
pub(crate) mod backend_traffic;
pub(crate) mod build;
pub(crate) mod cache;
mod delegate;
mod destination_rule;
mod fault;
pub(crate) mod filter;
pub(crate) mod gateway_api;
pub(crate) mod scalar;
mod session;
mod table;
pub(crate) mod virtual_service;
