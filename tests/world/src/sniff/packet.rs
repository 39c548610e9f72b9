//! What socket2 has no words for.

use socket2::Socket;
use std::{io, mem::size_of, os::fd::AsRawFd};

/// A receive buffer of this size, whatever the system's limit is.
#[allow(unsafe_code, reason = "setsockopt(2)")]
pub(super) fn force_buffer(socket: &Socket, bytes: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let (fd, value) = (socket.as_raw_fd(), (&raw const bytes).cast());
    // SAFETY: the descriptor is open, and the option is an int that lives until the call returns.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many frames have found no room in it since this was asked last.
#[allow(unsafe_code, reason = "getsockopt(2)")]
pub(super) fn lost(socket: &Socket) -> io::Result<u64> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    let (fd, value) = (socket.as_raw_fd(), (&raw mut stats).cast());
    // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes to `stats`.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, value, &raw mut length) };
    if result == 0 { Ok(stats.tp_drops.into()) } else { Err(io::Error::last_os_error()) }
}
