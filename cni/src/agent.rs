//! The node agent proper.
//!
//! - [`desired`]: what the manifests ask for; pure.
//! - [`enrol`]: bringing a pod in, and taking it out; [`closed`]: pods that cannot be redirected.
//! - [`recover`]: what earlier agents have left.
//! - [`run`]: the loop over all of it; its state is in [`state`].

mod closed;
mod desired;
mod enrol;
mod recover;
mod run;
mod state;

pub use recover::cleanup;
pub use run::run;
pub use state::Agent;
