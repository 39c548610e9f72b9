//! What a proxy has lately seen, in a compact book: who has called what, what policies said of it, how often and when. For
//! `karst policy test` and `karst policy suggest`.
//!
//! - [`Seen`] is one connection or request as it is noted, [`Flow`] what is kept of all that are alike.
//! - [`Book`] is the book of one worker: bounded, the flow that was not seen for the longest time goes first, and a flow that is
//!   known costs no allocation, and a hash only if others came between. [`merge`] makes one list of those of several workers.
//! - [`tap`] is what is told, live, to who looks on.
//! - [`path`] makes templates of paths, in the form that policies have (`/orders/{*}`).
//! - [`DURATION_BOUNDS`] are the bounds of histograms of durations, as proxies count and pages read them.
//!
//! Pure: no I/O, no clock, no lock.

mod book;
mod flow;
mod packed;
pub mod path;
pub mod tap;

pub use book::Book;
pub use flow::{Decision, Destination, Example, Flow, Key, Page, Reporter, Request, Seen, Source, Verdict, merge};

/// Istio's bounds of durations, in milliseconds (`istio_request_duration_milliseconds`); what is longer is in a bucket of its own.
pub const DURATION_BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
