//! A mesh in network namespaces, with the real agent, ztunnel and controller processes.
//!
//! A world is a fabric (a bridge), nodes on it, pods behind each node's own bridge, and a controller. Everything is in
//! namespaces that the world made and removes again; several worlds can stand side by side. Pods are network namespaces
//! in which tests run whatever they like: processes ([`Pod::command`]) or sockets of their own ([`Pod::connect`]).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

pub mod app;
pub mod held;
pub mod http;
pub mod http2;
pub mod istio;
pub mod load;
pub mod net;
pub mod pki;
pub mod sniff;
pub mod soak;
pub mod web;
mod world;

pub use load::{Load, Loaded};
pub use world::{Node, Options, Pod, PodSpec, World, bin, kill, static_client, stop, wait_for};
