//! The few writes: everything by server-side apply, so that several replicas may do the same.

mod apply;
mod pods;
mod secrets;
mod webhook;

pub use apply::Ref;
pub use webhook::WebhookState;
