//! What a proxy has lately seen, in a compact book: who has called what, what policies said of it, how often and when. For
//! `karst policy test` and `karst policy suggest`.
//!
//! - [`Seen`] is one connection or request as it is noted, [`Flow`] what is kept of all that are alike.
//! - [`Book`] is the book of one worker: bounded, the flow that was not seen for the longest time goes first, and a flow that is
//!   known costs one hash and no allocation. [`merge`] makes one list of those of several workers.
//! - [`tap`] is what is told, live, to who looks on.
//! - [`path`] makes templates of paths, in the form that policies have (`/orders/{*}`).
//!
//! Pure: no I/O, no clock, no lock.

mod book;
mod flow;
pub mod path;
pub mod tap;

pub use book::Book;
pub use flow::{Decision, Destination, Example, Flow, Key, Page, Reporter, Request, Seen, Source, Verdict, merge};
