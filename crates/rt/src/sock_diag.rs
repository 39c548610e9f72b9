//! TCP sockets of a network namespace as the kernel lists them (sock_diag), and their end by force.
//!
//! What comes from the kernel is read whole or refused: a list that is cut off is an error, never a shorter list. No bytes
//! make the reader panic (`no_bytes_make_it_panic`).

use crate::netlink;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    fmt,
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

// include/uapi/linux: netlink.h, sock_diag.h, inet_diag.h.
const NETLINK_SOCK_DIAG: i32 = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_MULTI: u16 = 2;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const INET_DIAG_MARK: u16 = 15;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
/// Bits of an attribute's type that are no part of it (nested, byte order).
const NLA_TYPE_MASK: u16 = 0x3fff;
/// struct nlmsghdr.
const HEADER: usize = 16;
/// struct inet_diag_sockid.
const ID: usize = 48;
/// struct inet_diag_msg.
const MESSAGE: usize = 72;

/// The kernel fills at most 32 KiB at once; what fills this whole may have been cut off.
const BUFFER: usize = 64 << 10;
/// The kernel answers at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which sockets are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum States {
    /// Connections that may still carry something.
    Open,
    /// Listeners.
    Listening,
}

impl States {
    /// A bit for each state.
    fn bits(self) -> u32 {
        match self {
            // ESTABLISHED (1), SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2 (5), CLOSE_WAIT (8), LAST_ACK (9), CLOSING (11).
            Self::Open => 0b1011_0011_1110,
            Self::Listening => 1 << 10,
        }
    }
}

/// A TCP socket: a listener, or one end of a connection. Addresses of IPv4 mapped into IPv6, as dual-stack sockets have them, are
/// shown as IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// This end.
    pub local: SocketAddr,
    /// The other end; unspecified for a listener.
    pub remote: SocketAddr,
    /// The device that it is bound to (SO_BINDTODEVICE); 0 is none.
    pub device: u32,
    /// The kernel's cookie of the socket: never used again while the kernel runs.
    pub cookie: u64,
    /// SO_MARK; 0 without CAP_NET_ADMIN.
    pub mark: u32,
    /// Is it in the socket storage map that was asked for?
    pub stored: bool,
    family: u8,
    id: [u8; ID],
}

/// A socket of the kernel's sock_diag, for one network namespace.
#[derive(Debug)]
pub struct SockDiag(Socket);

impl SockDiag {
    /// Asks about the calling thread's network namespace, also when the thread has left it.
    ///
    /// # Errors
    /// Those of the socket calls.
    pub fn open() -> io::Result<Self> {
        let socket =
            Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW.cloexec(), Some(Protocol::from(NETLINK_SOCK_DIAG)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // From here on nobody but the kernel can answer; else whoever has CAP_NET_ADMIN in the pod could.
        socket.connect(&netlink::address(0)?)?;
        Ok(Self(socket))
    }

    /// Shows the TCP sockets in these states, of both families. With a socket storage map each says whether it is in there (CAP_BPF
    /// is needed).
    ///
    /// # Errors
    /// Those of netlink; ENOENT from a kernel without CONFIG_INET_DIAG; `InvalidData` for an answer that cannot be read. Sockets may
    /// have been shown before. A kernel without IPv6 has no sockets of that family.
    pub fn each(&self, states: States, map: Option<BorrowedFd<'_>>, mut see: impl FnMut(TcpSocket)) -> io::Result<()> {
        self.dump(libc::AF_INET as u8, states, map, &mut see)?;
        match self.dump(libc::AF_INET6 as u8, states, map, &mut see) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EAFNOSUPPORT)) => Ok(()),
            other => other,
        }
    }

    /// Ends a connection at once: the peer gets a reset, the application ECONNABORTED. One that is gone already is no error.
    ///
    /// # Errors
    /// Those of netlink: EOPNOTSUPP from a kernel without CONFIG_INET_DIAG_DESTROY.
    pub fn destroy(&self, connection: &TcpSocket) -> io::Result<()> {
        let packet =
            request(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, connection.family, States::Open, &connection.id, None);
        match self.ask(&packet, &mut |_| {}) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    fn dump(
        &self,
        family: u8,
        states: States,
        map: Option<BorrowedFd<'_>>,
        see: &mut dyn FnMut(TcpSocket),
    ) -> io::Result<()> {
        let map = map.map(|m| m.as_raw_fd() as u32);
        let packet = request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family, states, &[0; ID], map);
        self.ask(&packet, see)
    }

    fn ask(&self, packet: &[u8], see: &mut dyn FnMut(TcpSocket)) -> io::Result<()> {
        self.0.send(packet)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = (&self.0).read(&mut buffer)?;
            let answer = buffer.get(..length).filter(|_| length < BUFFER).ok_or(Fault::CutOff)?;
            if read(answer, see)? == Progress::Done {
                return Ok(());
            }
        }
    }
}

/// A request as the kernel wants it: header, struct inet_diag_req_v2, and the map whose storages are asked for.
fn request(kind: u16, flags: u16, family: u8, states: States, id: &[u8; ID], map: Option<u32>) -> Vec<u8> {
    let mut packet = vec![0; 4];
    for value in [kind, flags] {
        packet.extend(value.to_ne_bytes());
    }
    packet.extend(1u32.to_ne_bytes());
    packet.extend(0u32.to_ne_bytes());
    packet.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    packet.extend(states.bits().to_ne_bytes());
    packet.extend(id);
    if let Some(fd) = map {
        // One attribute inside of another, four bytes each before its content.
        for value in [12, INET_DIAG_REQ_SK_BPF_STORAGES, 8, SK_DIAG_BPF_STORAGE_REQ_MAP_FD] {
            packet.extend(value.to_ne_bytes());
        }
        packet.extend(fd.to_ne_bytes());
    }
    let length = (packet.len() as u32).to_ne_bytes();
    packet.splice(..4, length);
    packet
}

/// Is there more to read?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    More,
    Done,
}

/// Why an answer is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The kernel refuses, with this error number.
    Kernel(i32),
    /// A message or an attribute ends before it should.
    CutOff,
    /// A socket of a family that was not asked for.
    Family(u8),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(code) => io::Error::from_raw_os_error(*code).fmt(f),
            Self::CutOff => f.write_str("sock_diag: a message or an attribute is cut off"),
            Self::Family(n) => write!(f, "sock_diag: a socket of address family {n}"),
        }
    }
}
impl std::error::Error for Fault {}
impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Kernel(code) => Self::from_raw_os_error(code),
            Fault::CutOff | Fault::Family(_) => Self::new(io::ErrorKind::InvalidData, fault),
        }
    }
}

/// Reads one datagram of the kernel's: one or more messages.
fn read(datagram: &[u8], see: &mut dyn FnMut(TcpSocket)) -> Result<Progress, Fault> {
    let (mut rest, mut progress) = (datagram, Progress::More);
    loop {
        let length = u32_at(rest, 0).ok_or(Fault::CutOff)? as usize;
        let message = rest.get(..length).ok_or(Fault::CutOff)?;
        let body = message.get(HEADER..).ok_or(Fault::CutOff)?;
        let kind = u16_at(message, 4).ok_or(Fault::CutOff)?;
        let flags = u16_at(message, 6).ok_or(Fault::CutOff)?;
        match kind {
            // Error number 0: an acknowledgement.
            NLMSG_ERROR => return ended(u32_at(body, 0).ok_or(Fault::CutOff)?),
            // A list may fail on its way; the number may be missing.
            NLMSG_DONE => return ended(u32_at(body, 0).unwrap_or(0)),
            SOCK_DIAG_BY_FAMILY => {
                see(socket(body)?);
                if flags & NLM_F_MULTI == 0 {
                    progress = Progress::Done;
                }
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(progress);
        }
    }
}

/// What an error number says, which the kernel writes negative.
fn ended(code: u32) -> Result<Progress, Fault> {
    match code.cast_signed() {
        0.. => Ok(Progress::Done),
        n => Err(Fault::Kernel(n.saturating_neg())),
    }
}

/// struct inet_diag_msg and its attributes.
fn socket(body: &[u8]) -> Result<TcpSocket, Fault> {
    let family = *body.first().ok_or(Fault::CutOff)?;
    let id: [u8; ID] = array_at(body, 4).ok_or(Fault::CutOff)?;
    let mut rest = body.get(MESSAGE..).ok_or(Fault::CutOff)?;
    let (mut mark, mut stored) = (0, false);
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let length = usize::from(length);
        let value = rest.get(4..length).ok_or(Fault::CutOff)?;
        match kind & NLA_TYPE_MASK {
            INET_DIAG_MARK => mark = u32_at(value, 0).ok_or(Fault::CutOff)?,
            INET_DIAG_SK_BPF_STORAGES => stored = true,
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let end = |port: usize, ip: usize| {
        let ip = match i32::from(family) {
            libc::AF_INET => array_at(&id, ip).map(|b: [u8; 4]| b.into()),
            libc::AF_INET6 => array_at(&id, ip).map(|b: [u8; 16]| IpAddr::from(b).to_canonical()),
            _ => return Err(Fault::Family(family)),
        };
        let port = u16_at(&id, port).map(u16::from_be);
        Ok(SocketAddr::new(ip.ok_or(Fault::CutOff)?, port.ok_or(Fault::CutOff)?))
    };
    let word = |at| u32_at(&id, at).map(u64::from).ok_or(Fault::CutOff);
    Ok(TcpSocket {
        local: end(0, 4)?,
        remote: end(2, 20)?,
        device: u32_at(&id, 36).ok_or(Fault::CutOff)?,
        cookie: (word(44)? << 32) | word(40)?,
        mark,
        stored,
        family,
        id,
    })
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_ne_bytes)
}
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests;
