//! Those who call: what is listened on, who may connect, and what is spoken on a connection.

pub mod accept;
pub mod busy;
pub mod by_host;
pub mod client_cert;
pub mod client_verifier;
pub mod conns;
pub mod context;
pub mod continued;
pub mod edge;
pub mod gate;
pub mod gateway;
pub mod hello;
pub mod ports;
pub mod proxy_header;
pub mod requests;
pub mod sniff;
pub mod stream;
pub mod tcp;
pub mod topology;
pub mod tunnel;
pub mod udp;
pub mod upgrade;
