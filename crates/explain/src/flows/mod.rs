//! What proxies have lately seen ([`karst_flows`]), judged by the objects of a world: `karst policy test` and `suggest`.
//!
//! Nothing is decided here either: connections are judged by [`karst_policy::authorize`], requests by the waypoint's policies.

mod compare;
mod judge;
mod rules;
mod selector;
mod suggest;

pub use compare::{Change, Comparison, Judged, compare};
pub use judge::{Judge, Judgement};
pub use suggest::{Replay, SuggestError, Suggestion, suggest};
