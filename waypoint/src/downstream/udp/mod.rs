//! Datagrams at a gateway's ports. A session is what goes between a client's address and port and the address that it calls: its
//! datagrams go to one endpoint, which it gets answers of, until it is silent for a while. No tunnel carries datagrams: they go to
//! endpoints as they are, and to none whose policies ask for an identity.
//!
//! - [`ports`]: the sockets, of each worker its own; [`serve`]: a worker's loop that reads one, and its table of sessions.
//! - [`choose`]: where a session leads; [`session`]: one from its first datagram to its end; [`counts`]: what is told of all.

pub mod choose;
pub mod counts;
pub mod ports;
pub mod serve;
pub mod session;
#[cfg(test)]
mod tests;
