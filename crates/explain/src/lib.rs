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
//! - [`differences`]: where a proxy's dump says otherwise.

mod answer;
mod call;
mod dump;
mod fix;
pub mod flows;
mod l4;
mod l7;
mod objects;
mod parties;
mod peer;
mod question;
pub mod text;
mod walk;
mod way;
mod world;

pub use answer::{Arrival, Cause, Explanation, Fix, Object, Outcome, Stage, Step, Verdict};
pub use call::{Call, Head};
pub use dump::{Difference, differences};
pub use parties::PartyError;
pub use question::explain;
pub use world::{Enrolment, World, WorldError};
