//! How far a connection has come, as the kernel tells whoever has a descriptor of its socket.
#![allow(unsafe_code, reason = "getsockopt(TCP_INFO), ioctl, recv(MSG_TRUNC)")]

use socket2::SockRef;
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

/// States of a socket (`include/net/tcp_states.h`) in which its numbers say all there is to know. Once it is closed (7) they do not: one
/// that was reset, and whose error somebody has read, looks like one that has come to its end.
const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSED: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

/// Readings of the same socket until two agree. What comes ends when its queue is full.
const READINGS: usize = 1000;

/// How far a socket has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that were taken out of it.
    pub taken: u64,
    /// Bytes that it was given; and one for the SYN, if it has connected.
    pub given: u64,
    /// Bytes that wait in it to be taken.
    pub waiting: u64,
    /// Its peer sends no more.
    pub peer_ended: bool,
    /// It was told that it is given no more.
    pub ended: bool,
}

/// That of a socket from which nobody takes and which nobody gives anything meanwhile; its peer may do as it likes. None: it is not open,
/// or something was taken from it that is not in its stream (urgent data).
///
/// # Errors
/// It is no TCP socket, or does not stand still.
pub fn progress(socket: BorrowedFd<'_>) -> io::Result<Option<Progress>> {
    let mut before = Counters::of(socket)?;
    for _ in 0..READINGS {
        let (waiting, unacknowledged) = (queued(socket, libc::FIONREAD)?, queued(socket, libc::TIOCOUTQ)?);
        let after = Counters::of(socket)?;
        if before == after {
            return Ok(before.with(waiting, unacknowledged));
        }
        before = after;
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Bytes that wait to be taken in a socket that has come to its end in both directions, so that [`progress`] tells nothing of it. Only for
/// who has read all errors of it: one that was read before looks as if there had been none.
///
/// # Errors
/// That of the socket; or it is not closed.
pub fn left_at_end(socket: BorrowedFd<'_>) -> io::Result<u64> {
    if Counters::of(socket)?.state != CLOSED {
        return Err(io::ErrorKind::NotConnected.into());
    }
    match SockRef::from(&socket).take_error()? {
        Some(error) => Err(error),
        None => waiting(socket),
    }
}

/// Takes bytes out of a TCP socket that was seen to have them (`MSG_PEEK`), without a copy.
///
/// # Errors
/// Those of `recv`; `UnexpectedEof` if there were fewer.
pub fn take(socket: BorrowedFd<'_>, mut count: usize) -> io::Result<()> {
    while count > 0 {
        let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
        // SAFETY: with `MSG_TRUNC` TCP writes nothing.
        let taken = unsafe { libc::recv(socket.as_raw_fd(), ptr::null_mut(), count, flags) };
        match usize::try_from(taken) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(taken) => count = count.saturating_sub(taken),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
    Ok(())
}

/// Bytes that wait in a socket or a pipe to be taken.
///
/// # Errors
/// Those of `ioctl`.
pub fn waiting(of: BorrowedFd<'_>) -> io::Result<u64> {
    queued(of, libc::FIONREAD)
}

fn queued(of: BorrowedFd<'_>, which: libc::Ioctl) -> io::Result<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    match unsafe { libc::ioctl(of.as_raw_fd(), which, &raw mut count) } {
        0 => Ok(u64::try_from(count).unwrap_or(0)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What `TCP_INFO` says, as far as it is of use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counters {
    state: u8,
    /// `tcpi_bytes_acked` and `tcpi_bytes_received`, since Linux 4.1.
    acked: u64,
    received: u64,
}

impl Counters {
    fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        // `struct tcp_info` up to `tcpi_bytes_received`: its state is the first byte, and these two are the last words.
        let mut info = [0u64; 17];
        let mut length = size_of_val(&info) as libc::socklen_t;
        let to = info.as_mut_ptr().cast();
        // SAFETY: the kernel writes no more than `length` bytes.
        let result =
            unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_TCP, libc::TCP_INFO, to, &raw mut length) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        if length as usize != size_of_val(&info) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let [first, .., acked, received] = info;
        Ok(Self { state: first.to_ne_bytes()[0], acked, received })
    }

    fn with(self, waiting: u64, unacknowledged: u64) -> Option<Progress> {
        let (peer_ended, ended) = match self.state {
            ESTABLISHED => (false, false),
            FIN_WAIT1 | FIN_WAIT2 => (false, true),
            CLOSE_WAIT => (true, false),
            LAST_ACK | CLOSING => (true, true),
            _ => return None,
        };
        // An end counts as a byte that has come, and not as one that waits; ours as one that was given.
        let taken = self.received.checked_sub(u64::from(peer_ended))?.checked_sub(waiting)?;
        let given = (self.acked + unacknowledged).checked_sub(u64::from(ended))?;
        Some(Progress { taken, given, waiting, peer_ended, ended })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        net::{Shutdown, TcpListener, TcpStream},
        os::fd::AsFd,
        time::Duration,
    };

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn of(socket: &TcpStream) -> Progress {
        progress(socket.as_fd()).unwrap().unwrap()
    }

    /// Waits until a socket has seen its peer's end.
    fn ended(socket: &TcpStream) -> Progress {
        for _ in 0..500 {
            let now = of(socket);
            if now.peer_ended {
                return now;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("its peer's end has not come");
    }

    #[test]
    fn the_numbers_are_of_bytes_and_ends_are_none() {
        let (mut near, mut far) = pair();
        assert_eq!((of(&near).given, of(&far).given), (1, 0), "the SYN counts for the one that has connected");
        near.write_all(&[7; 1000]).unwrap();
        far.read_exact(&mut [0; 300]).unwrap();
        assert_eq!((of(&near).given, of(&far).taken, of(&far).waiting), (1001, 300, 700));
        far.peek(&mut [0; 500]).unwrap();
        assert_eq!(of(&far).taken, 300, "what was looked at is there");
        take(far.as_fd(), 500).unwrap();
        assert_eq!((of(&far).taken, of(&far).waiting, waiting(far.as_fd()).unwrap()), (800, 200, 200));
        near.shutdown(Shutdown::Write).unwrap();
        let (said, heard) = (of(&near), ended(&far));
        assert!(said.ended && !said.peer_ended && heard.peer_ended && !heard.ended);
        assert_eq!((said.given, heard.taken, heard.waiting), (1001, 800, 200));
        take(far.as_fd(), 200).unwrap();
        assert_eq!(take(far.as_fd(), 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        // Looking at the end does not take it, and taking it changes nothing.
        assert_eq!((far.peek(&mut [0; 1]).unwrap(), of(&far).taken), (0, 1000));
        assert_eq!((far.read(&mut [0; 1]).unwrap(), of(&far).taken), (0, 1000));
        // Half closed: the other direction goes on.
        far.write_all(&[8; 50]).unwrap();
        near.read_exact(&mut [0; 50]).unwrap();
        assert_eq!((of(&far).given, of(&near).taken), (50, 50));
    }

    #[test]
    fn what_has_come_is_there_after_both_ends() {
        let (mut near, mut far) = pair();
        assert_eq!(left_at_end(near.as_fd()).unwrap_err().kind(), io::ErrorKind::NotConnected, "it is open");
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(far.read(&mut [0; 1]).unwrap(), 0);
        far.write_all(&[8; 50]).unwrap();
        drop(far);
        let closed = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            progress(near.as_fd()).unwrap().is_none()
        });
        assert!(closed);
        assert_eq!(left_at_end(near.as_fd()).unwrap(), 50);
        take(near.as_fd(), 20).unwrap();
        assert_eq!(left_at_end(near.as_fd()).unwrap(), 30);
        near.read_exact(&mut [0; 30]).unwrap();
        assert_eq!((near.read(&mut [0; 1]).unwrap(), left_at_end(near.as_fd()).unwrap()), (0, 0));
        // One that was reset has an error, once.
        let (near, far) = pair();
        SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
        drop(far);
        let failed = (0..500).find_map(|_| {
            std::thread::sleep(Duration::from_millis(1));
            let e = left_at_end(near.as_fd()).err()?;
            (e.kind() != io::ErrorKind::NotConnected).then_some(e)
        });
        assert_eq!(failed.unwrap().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn what_is_closed_or_no_connection_has_no_numbers() {
        let (near, far) = pair();
        socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
        drop(far);
        // Its error is read, and what is left of it looks like an end.
        let failed = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            near.take_error().unwrap().is_some()
        });
        assert!(failed && progress(near.as_fd()).unwrap().is_none());
        assert_eq!(take(near.as_fd(), 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(progress(file.as_fd()).is_err());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!matches!(progress(listener.as_fd()), Ok(Some(_))));
    }
}
