//! Rate limits that all replicas of a waypoint or gateway count together. One replica keeps each bucket, found by hash over those
//! that are ready; the others lease tokens from it, several at a time, and ask for more before these are used up, so that a request
//! seldom waits. They ask over the mesh: a CONNECT on a tunnel, in mutual TLS, which only a peer with this proxy's own identity may open.
//!
//! What must always hold: a lease is taken out of the bucket when it is given, so while the keeper is reached, all replicas together
//! never let more through than the limit; while it is not, each counts for itself, as without sharing. Nothing waits longer than
//! [`karst_core::limits::QUOTA_WAIT`].
//!
//! - [`table`]: the buckets that are kept here, for all workers; [`keeper`]: who asks for them.
//! - [`lease`]: what a worker knows of buckets that others keep; [`link`]: how it asks. [`frame`]: what is sent.

pub mod counts;
pub mod frame;
pub mod keeper;
pub mod lease;
pub mod link;
pub mod table;
