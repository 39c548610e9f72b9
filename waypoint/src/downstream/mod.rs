//! Those who call: what is listened on, who may connect, and what is spoken on a connection.

pub mod conns;
pub mod edge;
pub mod gate;
pub mod gateway;
pub mod serve;
pub mod stream;
