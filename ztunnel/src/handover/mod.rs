//! Open connections go over to the ztunnel that comes next: a rollout breaks none.
//!
//! - [`desk`]: where a connection of a process that leaves asks whether its successor would take it.
//! - [`give`]: that process's talk with its successor. [`take`]: the successor's part. They meet at the node agent.
//! - [`pieces`], [`table`]: what is said, and what a successor keeps until a connection is its own; pure.
//! - [`end`]: what is said of a connection.
//! - [`incoming`], [`resume`]: a connection that arrives, and how a worker goes on with it.
//!
//! What must always hold: of two processes exactly one reads and writes a connection's sockets. The one that leaves does until it
//! has sent `go`, and never after; the other one does from when it has received that, and never before. All that was read and not
//! yet taken by the other side is in what is sent before. A stream to another node comes to its end first, both ways (docs/hbone.md
//! §10), so that nothing is on its way; its socket then waits in [`crate::parking`], or for the stream that the successor opens. Who carries nothing on (the successor refuses, dies, or there is none)
//! leaves the connection where it is, until the drain ends. Proven by the tests of [`table`] (random bytes, ends and deaths), of
//! `karst_hbone::copy` and by tests/world (`handover`).

pub mod desk;
pub mod end;
pub mod give;
pub mod incoming;
pub mod pieces;
pub mod resume;
pub mod table;
pub mod take;
