//! HBONE: HTTP/2 CONNECT in mutual TLS (docs/hbone.md is the specification).
//!
//! - [`tls`]: configurations and verification of peers; exactly one SPIFFE id, checked on both sides.
//! - [`revocation`]: certificates that their authority has taken back, in handshakes and on open tunnels.
//! - [`record`], [`stream`]: the bytes of a tunnel, sealed and opened without needless copies.
//! - [`client`], [`server`]: HTTP/2 with the limits of `karst_core::limits`.
//! - [`pool`]: tunnels that are shared by the connections of one pod.
//! - [`frames`]: floods of frames that only ask for an answer, on any HTTP/2 connection.
//! - [`continuation`]: streams that go on in another process.
//! - [`copy`]: bytes between a socket and a stream, or between two sockets; a buffer exists only while bytes move.

pub mod certificate;
pub mod client;
pub mod continuation;
pub mod copy;
pub mod frames;
pub mod pool;
pub mod record;
pub mod revocation;
pub mod server;
pub mod stream;
pub mod tls;

pub use karst_core::Identity;
use std::time::Duration;

/// The HBONE port.
pub const PORT: u16 = 15008;

/// HTTP/2 settings that operators may change (Istio's HTTP2_* and POOL_* options).
#[derive(Clone, Debug)]
pub struct Settings {
    /// Receive window of a stream, bytes.
    pub stream_window: u32,
    /// Receive window of a connection, bytes.
    pub connection_window: u32,
    /// Largest frame accepted, bytes.
    pub max_frame: u32,
    /// Streams put on one tunnel before another is opened.
    pub pool_streams: usize,
    /// An unused tunnel is closed after this long.
    pub pool_idle: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        use karst_core::limits::*;
        Self {
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            max_frame: MAX_FRAME,
            pool_streams: POOL_STREAMS,
            pool_idle: POOL_IDLE,
        }
    }
}
