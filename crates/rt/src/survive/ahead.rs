//! Looks at what waits in a TCP socket, each time at what comes after the look before (`SO_PEEK_OFF`): the bytes stay where they are until
//! somebody else has them. TCP has it since Linux 6.10, and of IPv6 sockets, which ours mostly are, since 6.12.
#![allow(unsafe_code, reason = "setsockopt(SO_PEEK_OFF)")]

use socket2::{Domain, Socket, Type};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::OnceLock,
};

/// From now on the first `MSG_PEEK` sees what waits, and each one after it what comes behind. What is taken out of the socket meanwhile
/// (`progress::take`) makes no difference.
///
/// # Errors
/// Those of `setsockopt`: `EOPNOTSUPP` where the kernel does not have it.
pub fn look_ahead(socket: BorrowedFd<'_>) -> io::Result<()> {
    let offset: libc::c_int = 0;
    let length = size_of_val(&offset) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `offset`.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, (&raw const offset).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Does the kernel have it, of sockets of both families? It is asked once.
pub fn is_supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    // Without IPv6 there are no sockets of it to be asked for.
    let has = |domain| Socket::new(domain, Type::STREAM, None).map(|socket| look_ahead(socket.as_fd()).is_ok());
    *SUPPORTED.get_or_init(|| has(Domain::IPV4).unwrap_or(false) && has(Domain::IPV6).unwrap_or(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::survive::progress::{progress, take};
    use std::{
        io::{Read, Write},
        net::{Shutdown, TcpListener, TcpStream},
        time::Duration,
    };

    #[test]
    fn each_look_sees_what_comes_after_the_one_before() {
        if !is_supported() {
            // Older kernels: nothing of this is used there.
            return;
        }
        let listener = TcpListener::bind("[::1]:0").or_else(|_| TcpListener::bind("127.0.0.1:0")).unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        look_ahead(far.as_fd()).unwrap();
        let mut buffer = [0; 4];
        near.write_all(b"abcdefgh").unwrap();
        assert_eq!((far.peek(&mut buffer).unwrap(), &buffer), (4, b"abcd"));
        // What is taken is what was seen first, and the next look goes on where the last one has ended.
        take(far.as_fd(), 2).unwrap();
        assert_eq!((far.peek(&mut buffer).unwrap(), &buffer), (4, b"efgh"));
        let now = progress(far.as_fd()).unwrap().unwrap();
        assert_eq!((now.taken, now.waiting), (2, 6));
        // Another process begins anew, with what has not been taken; the end is seen again and again.
        near.shutdown(Shutdown::Write).unwrap();
        for _ in 0..2 {
            look_ahead(far.as_fd()).unwrap();
            assert_eq!((far.peek(&mut buffer).unwrap(), &buffer), (4, b"cdef"));
            assert_eq!((far.peek(&mut buffer).unwrap(), &buffer[..2]), (2, &b"gh"[..]));
            assert_eq!((far.peek(&mut buffer).unwrap(), far.peek(&mut buffer).unwrap()), (0, 0));
        }
        let mut rest = String::new();
        (&far).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "cdefgh");
    }
}
