//! How far a connection has come, as the kernel tells whoever has a descriptor of its socket; and what such a descriptor keeps open.

use crate::sys::{self, Counters, Process, counters, pair, queued};
use socket2::SockRef;
use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::{fd::AsRawFd, unix::net::UnixStream},
    time::Duration,
};

/// States in which the peer's end has come (`include/net/tcp_states.h`): CLOSE_WAIT, LAST_ACK, CLOSING.
const ENDED: [u8; 3] = [8, 9, 11];
/// Nothing has come for this long.
const SILENCE: Duration = Duration::from_millis(100);
/// What must come has come by then.
const SOON: Duration = Duration::from_secs(10);

/// Bytes that were taken out of a socket. Nobody takes any meanwhile; they may come.
pub fn taken(socket: &impl AsRawFd) -> u64 {
    consistent(socket, libc::FIONREAD, |counters, waiting| {
        // The end counts as a byte that has come, and not as one that waits.
        counters.received - u64::from(ENDED.contains(&counters.state)) - waiting
    })
}

/// Bytes that a socket was given, and the SYN if it has connected, and the end if it was told of that. Nobody gives it any meanwhile; they
/// may be acknowledged.
pub fn given(socket: &impl AsRawFd) -> u64 {
    consistent(socket, libc::TIOCOUTQ, |counters, waiting| counters.acked + waiting)
}

/// Counters and a queue of the same moment: nothing has changed from before to after.
fn consistent(socket: &impl AsRawFd, queue: libc::Ioctl, figure: impl Fn(Counters, u64) -> u64) -> u64 {
    let mut before = counters(socket);
    loop {
        let waiting = queued(socket, queue);
        let after = counters(socket);
        if before == after {
            return figure(before, waiting);
        }
        before = after;
    }
}

#[test]
fn the_kernel_knows_how_far_a_connection_has_come() {
    let (mut near, mut far) = pair();
    assert_eq!([given(&near), given(&far)], [1, 0], "the SYN counts for the one that has connected");
    assert_eq!([taken(&near), taken(&far)], [0, 0]);
    near.write_all(&[7; 1000]).unwrap();
    far.read_exact(&mut [0; 300]).unwrap();
    assert_eq!((given(&near), taken(&far)), (1001, 300));
    assert_eq!(sys::recv(&far, &mut [0; 500], libc::MSG_PEEK).unwrap(), 500);
    assert_eq!(taken(&far), 300, "what was looked at is there");
    sys::consume(&far, 500).unwrap();
    assert_eq!(taken(&far), 800);
    near.shutdown(Shutdown::Write).unwrap();
    assert_eq!(given(&near), 1002, "the end counts");
    assert_eq!(far.read_to_end(&mut vec![]).unwrap(), 200);
    assert_eq!(taken(&far), 1000, "the peer's does not");
    // The other direction is another one.
    far.write_all(&[8; 50]).unwrap();
    near.read_exact(&mut [0; 20]).unwrap();
    assert_eq!((given(&far), taken(&near)), (50, 20));
}

fn hears_nothing(socket: &mut TcpStream) -> bool {
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket.read(&mut [0; 1]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn a_close_is_none_while_another_has_the_socket_and_a_reset_is_one() {
    let (mut near, far) = pair();
    let held = far.try_clone().unwrap();
    SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
    drop(far);
    assert!(hears_nothing(&mut near));
    sys::reset(&held).unwrap();
    assert_eq!(near.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

/// No descriptor was passed to the one that shares them.
#[test]
fn sockets_outlive_a_killed_process_that_shares_its_descriptors() {
    for is_shared in [false, true] {
        let (mut near, far) = pair();
        let (mut hears, says) = UnixStream::pair().unwrap();
        let owner = Process::fork(|| {
            let holder = if is_shared { sys::share_descriptors() } else { 0 };
            if sys::send(&says, &holder.to_ne_bytes()).is_err() {
                return 1;
            }
            sys::wait_for_the_end()
        });
        drop((far, says));
        let mut holder = [0; 4];
        hears.read_exact(&mut holder).unwrap();
        owner.kill();
        if is_shared {
            assert!(hears_nothing(&mut near));
            sys::kill(i32::from_ne_bytes(holder));
        }
        near.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(near.read(&mut [0; 1]).unwrap(), 0, "{is_shared}");
    }
}
