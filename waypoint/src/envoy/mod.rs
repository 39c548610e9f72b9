//! What is known, in the words of Envoy's admin pages (ProtoJSON of `envoy.admin.v3`), because istioctl and Kiali decode those. It is
//! made of the snapshot that requests are served from, so that what they print is what happens.
//!
//! They are summaries: names, matches and destinations, as far as they reach a column. The whole is on `/config_dump/karst`. Private
//! keys are never in them.

pub mod clusters;
pub mod dump;
pub mod listeners;
pub mod routes;
pub mod secrets;
mod view;

pub use view::View;
