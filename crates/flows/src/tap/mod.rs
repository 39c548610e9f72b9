//! What is told to who looks on live (`karst tap`, `karst top`): each finished request, each connection that opens or ends, with
//! why it was refused or failed.
//!
//! - [`Event`] is one of them as a proxy has it, borrowed: nothing is copied for those that nobody wants to see.
//! - [`Filter`] is what a looker wants, as the query of a proxy's page `/tap`.
//! - [`Record`] is one that is sent, in fields like those of Hubble's flows; [`Line`] is a line of the stream.

mod event;
mod filter;
mod record;

pub use event::{Direction, Event, Peer, Phase, Request, Verdict};
pub use filter::{Filter, FilterError, Kind, Status, StatusError, Who, WhoError};
pub use record::{End, Endpoint, Http, Line, PolicyName, Record};
