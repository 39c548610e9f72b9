//! External authorization (Envoy's ext_authz): a provider is asked whether a request may go on, and what it is to go on with. Here
//! are the questions and answers as values; who reads bodies, sends questions and waits is [`crate::http`]'s `external`.
//!
//! What must hold: a provider that says no is believed, however badly it says it; one that says yes is believed only if all of its
//! answer can be understood and done. Everything else is no answer, and closes unless the provider is `failOpen`.

pub mod answer;
pub mod counts;
pub mod grpc;
pub mod kept;
pub mod plain;
pub mod prepare;
pub mod provider;
pub mod question;
