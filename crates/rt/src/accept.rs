//! Accept errors, told apart: those of one connection are passed over at once; those that will not go away by
//! themselves (descriptors used up) get a pause, so that no core spins (T60).

use karst_core::limits::ACCEPT_PAUSE;
use std::{io, net::SocketAddr, time::Duration};
use tokio::net::{TcpListener, TcpStream};

/// What to do after an accept error.
pub fn pause_after(e: &io::Error) -> Option<Duration> {
    match e.raw_os_error() {
        Some(libc::ECONNABORTED | libc::EINTR | libc::EPERM | libc::EPROTO | libc::ENETDOWN | libc::EHOSTUNREACH) => {
            None
        }
        _ => Some(ACCEPT_PAUSE),
    }
}

/// Waits for a connection; errors are classified, logged (once a second at most) and survived.
pub async fn accept(l: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut quiet_until = tokio::time::Instant::now();
    loop {
        match l.accept().await {
            Ok((s, a)) => return (s, karst_core::canonical(a)),
            Err(e) => {
                if let Some(p) = pause_after(&e) {
                    if tokio::time::Instant::now() >= quiet_until {
                        tracing::warn!(error = %e, "cannot accept connections; retrying (raise the descriptor limit if this lasts)");
                        quiet_until = tokio::time::Instant::now() + Duration::from_secs(1);
                    }
                    tokio::time::sleep(p).await;
                }
            }
        }
    }
}
