//! HBONE: HTTP/2 CONNECT in mutual TLS (docs/hbone.md is the specification).
//!
//! - [`tls`]: configurations and verification of peers; exactly one SPIFFE id, checked on both sides.
//! - [`names`]: what a certificate says of who has it, for those who are told of it.
//! - [`revocation`]: certificates that their authority has taken back, in handshakes and on open tunnels.
//! - [`record`], [`stream`]: the bytes of a tunnel, sealed and opened without needless copies.
//! - [`client`], [`server`]: HTTP/2 with the limits of `karst_core::limits`.
//! - [`pool`]: tunnels that are shared by the connections of one pod.
//! - [`frames`]: floods of frames that only ask for an answer, on any HTTP/2 connection.
//! - [`observed`]: a stream whose bytes are shown to somebody in passing.
//! - [`continuation`]: streams that go on in another process; [`parking`]: connections that wait for theirs. [`lasting`]: connections
//!   that outlive a tunnel that breaks.
//! - [`copy`]: bytes between a socket and a stream, or between two sockets; a buffer exists only while bytes move.

pub mod certificate;
pub mod client;
pub mod continuation;
pub mod copy;
pub mod frames;
pub mod lasting;
pub mod names;
pub mod observed;
pub mod parking;
pub mod pool;
pub mod record;
pub mod revocation;
pub mod server;
mod spare;
pub mod stream;
pub mod tls;

pub use karst_core::Identity;
use karst_core::limits;
use std::time::Duration;

/// The HBONE port.
pub const PORT: u16 = 15008;

/// Lets go of buffers and pipes that this thread keeps for the next use, and has not needed since the last time. To be called every few
/// seconds.
pub fn release_unneeded() {
    copy::release_unneeded();
    stream::release_unneeded();
}

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

impl Settings {
    /// Those of one more tunnel of a pod that has so many: they share the pod's buffers.
    #[must_use]
    pub fn beside(&self, tunnels: usize) -> Self {
        let connection_window = limits::connection_window(self.connection_window, tunnels);
        let mut settings = Self { connection_window, ..self.clone() };
        if connection_window < self.connection_window {
            // Several streams, as with large windows: one that stalls does not stop all.
            settings.stream_window = self.stream_window.min(connection_window / 4);
        }
        settings
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_become_smaller_together_and_only_where_there_are_many() {
        let settings = Settings::default();
        let windows = |tunnels| {
            let beside = settings.beside(tunnels);
            (beside.connection_window, beside.stream_window)
        };
        assert_eq!(windows(3), (settings.connection_window, settings.stream_window));
        assert_eq!(windows(15), (4 << 20, 1 << 20));
        assert_eq!(windows(100_000), (limits::LEAST_CONNECTION_WINDOW, 64 << 10));
        let own = Settings { connection_window: 1 << 20, stream_window: 1 << 20, ..settings };
        assert_eq!(own.beside(0).stream_window, 1 << 20, "as it was asked for");
    }
}
