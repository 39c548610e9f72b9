//! Accept errors, told apart: those of one connection are passed over at once; those that will not go away by
//! themselves (descriptors used up) get a pause, so that no core spins (T60). Where descriptors are used up, connections are
//! still taken, and reset: so nobody waits in a queue for nothing, and whatever holds the descriptors can come to its end.

use karst_core::limits::ACCEPT_PAUSE;
use std::{cell::RefCell, fs::File, io, net::SocketAddr, time::Duration};
use tokio::net::{TcpListener, TcpStream};

/// What to do after an accept error.
pub fn pause_after(error: &io::Error) -> Option<Duration> {
    match error.raw_os_error() {
        Some(libc::ECONNABORTED | libc::EINTR | libc::EPERM | libc::EPROTO | libc::ENETDOWN | libc::EHOSTUNREACH) => {
            None
        }
        _ => Some(ACCEPT_PAUSE),
    }
}

thread_local! {
    /// A descriptor kept for the time when there are no others.
    static RESERVE: RefCell<Option<File>> = const { RefCell::new(None) };
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Takes a connection from the queue with the descriptor that was kept for this, and resets it. False: there was nothing to
/// take it with, or another worker has.
async fn refuse_one(listener: &TcpListener) -> bool {
    let kept = RESERVE.with_borrow_mut(Option::take).is_some();
    let taken = match kept {
        true => tokio::time::timeout(Duration::from_millis(1), listener.accept()).await,
        false => return false,
    };
    let refused = match taken {
        Ok(Ok((s, _))) => {
            crate::socket::reset_on_close(&s);
            true
        }
        Ok(Err(_)) | Err(_) => false,
    };
    RESERVE.with_borrow_mut(|r| *r = spare());
    refused
}

/// Waits for a connection; errors are classified, logged (once a second at most) and survived.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut quiet_until = tokio::time::Instant::now();
    // Put by while there are some left; and again, if there were none the last time.
    RESERVE.with_borrow_mut(|r| {
        if r.is_none() {
            *r = spare();
        }
    });
    loop {
        match listener.accept().await {
            Ok((s, a)) => return (s, karst_core::canonical(a)),
            Err(e) => {
                if let Some(pause) = pause_after(&e) {
                    if tokio::time::Instant::now() >= quiet_until {
                        tracing::warn!(error = %e, "cannot accept connections; retrying (raise the descriptor limit if this lasts)");
                        quiet_until = tokio::time::Instant::now() + Duration::from_secs(1);
                    }
                    let full = matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
                    if !(full && refuse_one(listener).await) {
                        tokio::time::sleep(pause).await;
                    }
                }
            }
        }
    }
}
