//! What becomes of a call from A to B, step by step, and which object decided each step: `karst explain`.
//!
//! Nothing is decided here. The controller compiles the objects ([`karst_controller::offline`]), ztunnel's plan and policies are
//! asked ([`karst_ztunnel::plan`], [`karst_policy`]), and so are the waypoint's routes, policies and endpoints
//! ([`karst_waypoint::decision`]); this crate puts the questions in the order in which a connection comes to them, and finds the
//! object behind each answer. Proven by tests/differential/tests/truth.rs: on random worlds it says what the proxies do.
//!
//! - [`World`]: the objects, compiled; [`Call`]: what is asked about.
//! - [`explain`]: the answer, an [`Explanation`]; [`text::render`]: the same for people.
//! - [`flows`]: what proxies have seen, judged.
//! - [`World::observe_ztunnel`], [`World::observe_proxy`]: to judge by what running proxies know; [`compare`]: where they differ.

mod answer;
mod call;
mod diagnosis;
mod differences;
mod enter;
mod fix;
pub mod flows;
mod gateways;
mod l4;
mod l7;
mod network;
mod objects;
mod observed;
mod parties;
mod peer;
mod question;
mod settings;
pub mod text;
mod walk;
mod way;
mod world;

pub use answer::{Arrival, Cause, Explanation, Fix, Object, Outcome, Proxy, ProxyKind, Stage, Step, Verdict};
pub use call::{Call, Head};
pub use differences::{Comparison, Difference, compare};
pub use network::NetworkPolicy;
pub use observed::ObservedError;
pub use parties::PartyError;
pub use question::explain;
pub use world::{Enrolment, World, WorldError};
