//! TCP connections of a network namespace, as the kernel lists them (sock_diag), and their end by force. All in the calling
//! thread's network namespace.

use karst_ebpf_common::{MARK_CAPTURE, MARK_MASK, MARK_ZTUNNEL};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
};

// linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
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
/// States of a connection that may still carry something, a bit each: ESTABLISHED (1), SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2 (5),
/// CLOSE_WAIT (8), LAST_ACK (9), CLOSING (11).
const OPEN: u32 = 0b1011_0011_1110;
const HEADER: usize = 16;
/// struct inet_diag_sockid.
const ID: usize = 48;
/// struct inet_diag_msg.
const MESSAGE: usize = 72;

/// An open TCP connection, from one of its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// The kernel's cookie of the socket: never used again while the kernel runs.
    pub cookie: u64,
    /// SO_MARK.
    pub mark: u32,
    /// Is it a socket of ztunnel's (in the map that was asked for)?
    pub exempt: bool,
    family: u8,
    id: [u8; ID],
}

impl Connection {
    /// Does it bypass the mesh: opened before the pod was redirected, towards somebody else? What the connect hooks have captured and
    /// what ztunnel has accepted is marked, ztunnel's other sockets are exempt, and what stays in the pod (`own`) is nobody's business.
    pub fn is_unmeshed(&self, own: &[IpAddr]) -> bool {
        let mark = self.mark & MARK_MASK;
        let inside = |a: &SocketAddr| a.ip().is_loopback() || own.contains(&a.ip());
        !self.exempt
            && mark != MARK_CAPTURE
            && mark != MARK_ZTUNNEL
            && !inside(&self.remote)
            && !self.local.ip().is_loopback()
    }
}

/// The open TCP connections of the calling thread's namespace, both families. With the map of exempt sockets each says whether it is
/// in there (CAP_BPF is needed).
///
/// # Errors
/// Those of netlink. A kernel without IPv6 has no connections of that family.
pub fn connections(exempt: Option<BorrowedFd<'_>>) -> io::Result<Vec<Connection>> {
    let s = Socket::new(NETLINK_SOCK_DIAG)?;
    let mut out = Vec::new();
    dump(&s, libc::AF_INET as u8, exempt, &mut out)?;
    match dump(&s, libc::AF_INET6 as u8, exempt, &mut out) {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EAFNOSUPPORT)) => Err(e),
        _ => Ok(out),
    }
}

/// Ends a connection at once: the peer gets a reset, the application ECONNABORTED. One that is gone already is none.
///
/// # Errors
/// Those of netlink: EOPNOTSUPP from a kernel without CONFIG_INET_DIAG_DESTROY.
pub fn destroy(c: &Connection) -> io::Result<()> {
    let s = Socket::new(NETLINK_SOCK_DIAG)?;
    s.send_to(
        &request(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, c.family, OPEN, &c.id, None),
        &NetlinkAddr::new(0, 0),
        0,
    )?;
    let (answer, _) = s.recv_from_full()?;
    match take(&answer, &mut Vec::new()) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other.map(drop),
    }
}

fn dump(s: &Socket, family: u8, exempt: Option<BorrowedFd<'_>>, out: &mut Vec<Connection>) -> io::Result<()> {
    let map = exempt.map(|m| m.as_raw_fd() as u32);
    let packet = request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family, OPEN, &[0; ID], map);
    s.send_to(&packet, &NetlinkAddr::new(0, 0), 0)?;
    loop {
        let (answer, _) = s.recv_from_full()?;
        if take(&answer, out)? {
            return Ok(());
        }
    }
}

/// A request as the kernel wants it: header, struct inet_diag_req_v2, and the map whose storages are asked for.
fn request(kind: u16, flags: u16, family: u8, states: u32, id: &[u8; ID], map: Option<u32>) -> Vec<u8> {
    let mut p = vec![0; 4];
    for v in [kind, flags] {
        p.extend(v.to_ne_bytes());
    }
    p.extend(1u32.to_ne_bytes());
    p.extend(0u32.to_ne_bytes());
    p.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    p.extend(states.to_ne_bytes());
    p.extend(id);
    if let Some(fd) = map {
        // One attribute inside of another, four bytes each before its content.
        for v in [12, INET_DIAG_REQ_SK_BPF_STORAGES, 8, SK_DIAG_BPF_STORAGE_REQ_MAP_FD] {
            p.extend(v.to_ne_bytes());
        }
        p.extend(fd.to_ne_bytes());
    }
    let length = (p.len() as u32).to_ne_bytes();
    p.splice(..4, length);
    p
}

/// Reads one answer of the kernel's; true: it was the last.
fn take(answer: &[u8], out: &mut Vec<Connection>) -> io::Result<bool> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "sock_diag: a message is shorter than it says");
    let mut rest = answer;
    while !rest.is_empty() {
        let length = u32_at(rest, 0).ok_or_else(short)? as usize;
        let message = rest.get(..length).filter(|m| m.len() >= HEADER).ok_or_else(short)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let body = message.get(HEADER..).unwrap_or_default();
        match u16_at(message, 4).ok_or_else(short)? {
            // Both begin with an error number, 0 for none.
            NLMSG_ERROR | NLMSG_DONE => {
                return match u32_at(body, 0).map_or(0, |n| n as i32) {
                    n if n < 0 => Err(io::Error::from_raw_os_error(-n)),
                    _ => Ok(true),
                };
            }
            SOCK_DIAG_BY_FAMILY => out.push(connection(body).ok_or_else(short)?),
            _ => {}
        }
    }
    Ok(false)
}

/// struct inet_diag_msg and its attributes.
fn connection(body: &[u8]) -> Option<Connection> {
    let family = *body.first()?;
    let id: [u8; ID] = body.get(4..4 + ID)?.try_into().ok()?;
    let (mut mark, mut exempt) = (0, false);
    let mut rest = body.get(MESSAGE..)?;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let value = rest.get(4..usize::from(length))?;
        match kind & NLA_TYPE_MASK {
            INET_DIAG_MARK => mark = u32_at(value, 0)?,
            INET_DIAG_SK_BPF_STORAGES => exempt = true,
            _ => {}
        }
        rest = rest.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    }
    let end =
        |port: usize, ip: usize| Some(SocketAddr::new(address(family, id.get(ip..ip + 16)?)?, port_at(&id, port)?));
    let (low, high) = (u32_at(&id, 40)?, u32_at(&id, 44)?);
    Some(Connection {
        local: end(0, 4)?,
        remote: end(2, 20)?,
        cookie: (u64::from(high) << 32) | u64::from(low),
        mark,
        exempt,
        family,
        id,
    })
}

/// IPv4 mapped into IPv6, as dual-stack sockets have it, comes out as IPv4.
fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    if i32::from(family) == libc::AF_INET {
        let v4: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
        return Some(IpAddr::from(v4));
    }
    let v6: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
    Some(IpAddr::from(v6).to_canonical())
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(b.get(at..at + 2)?.try_into().ok()?))
}
fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?))
}
fn port_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

    /// A message of a dump, as the kernel writes it.
    fn message(family: i32, local: SocketAddr, remote: SocketAddr, cookie: u64, mark: u32, exempt: bool) -> Vec<u8> {
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(a) if family == libc::AF_INET => [&a.octets()[..], &[0; 12]].concat(),
            IpAddr::V4(a) => a.to_ipv6_mapped().octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        let mut b = vec![family as u8, 1, 0, 0];
        b.extend(local.port().to_be_bytes());
        b.extend(remote.port().to_be_bytes());
        b.extend(octets(local.ip()));
        b.extend(octets(remote.ip()));
        b.extend([0; 4]);
        b.extend((cookie as u32).to_ne_bytes());
        b.extend(((cookie >> 32) as u32).to_ne_bytes());
        b.extend([0; 20]);
        assert_eq!(b.len(), MESSAGE);
        // SHUTDOWN, one byte and three of padding.
        b.extend([5, 0, 8, 0, 3, 0, 0, 0]);
        b.extend([8, 0, INET_DIAG_MARK as u8, 0]);
        b.extend(mark.to_ne_bytes());
        if exempt {
            b.extend([8, 0, INET_DIAG_SK_BPF_STORAGES as u8, 0x80, 4, 0, 1, 0x80]);
        }
        let mut m = ((HEADER + b.len()) as u32).to_ne_bytes().to_vec();
        m.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        m.extend([2, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        m.extend(b);
        m
    }
    fn end(code: i32) -> Vec<u8> {
        let mut m = 20u32.to_ne_bytes().to_vec();
        m.extend(NLMSG_DONE.to_ne_bytes());
        m.extend([2, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        m.extend(code.to_ne_bytes());
        m
    }
    fn at(s: &str) -> SocketAddr {
        s.parse().unwrap()
    }

    #[test]
    fn answers_are_read_and_cut_ones_are_refused() {
        let (a, b) = (at("10.0.0.5:40000"), at("10.0.1.7:8080"));
        let answer = [
            message(libc::AF_INET, a, b, 0x1_0000_0002, 7, false),
            message(libc::AF_INET6, a, b, 3, MARK_CAPTURE, true),
            message(libc::AF_INET6, at("[fd00::5]:1"), at("[fd00::6]:2"), 4, 0, false),
            end(0),
        ]
        .concat();
        let mut out = vec![];
        assert!(take(&answer, &mut out).unwrap());
        let seen: Vec<_> = out.iter().map(|c| (c.local, c.remote, c.cookie, c.mark, c.exempt)).collect();
        assert_eq!(seen[0], (a, b, 0x1_0000_0002, 7, false));
        assert_eq!(seen[1], (a, b, 3, MARK_CAPTURE, true), "a dual-stack socket is known by its IPv4 addresses");
        assert_eq!(seen[2], (at("[fd00::5]:1"), at("[fd00::6]:2"), 4, 0, false));
        for cut in 1..message(libc::AF_INET, a, b, 1, 0, false).len() {
            assert!(take(&answer[..cut], &mut vec![]).is_err(), "{cut}");
        }
        assert_eq!(take(&end(-libc::EPERM), &mut vec![]).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn what_bypasses_the_mesh() {
        let own: [IpAddr; 2] = [Ipv4Addr::new(10, 0, 0, 5).into(), "fd00::5".parse().unwrap()];
        let is = |local: &str, remote: &str, mark: u32, exempt: bool| {
            let mut out = vec![];
            take(&message(libc::AF_INET6, at(local), at(remote), 1, mark, exempt), &mut out).unwrap();
            out[0].is_unmeshed(&own)
        };
        assert!(is("10.0.0.5:40000", "10.0.1.7:8080", 0, false));
        assert!(is("[fd00::5]:8080", "[fd00::9]:40000", 0, false), "those that came in as well");
        assert!(is("10.0.0.5:40000", "10.0.1.7:8080", 0x7, false), "a mark of the application's own");
        assert!(!is("10.0.0.5:40000", "10.0.1.7:8080", MARK_CAPTURE, false), "captured");
        assert!(!is("10.0.0.5:40000", "10.0.1.7:8080", 0xf000 | MARK_CAPTURE, false), "captured, with bits of others");
        assert!(!is("10.0.0.5:15008", "10.0.1.7:40000", MARK_ZTUNNEL, false), "accepted by ztunnel");
        assert!(!is("10.0.0.5:40000", "10.0.1.7:15008", 0, true), "made by ztunnel");
        assert!(!is("10.0.0.5:40000", "10.0.0.5:8080", 0, false), "with itself");
        assert!(!is("127.0.0.1:40000", "127.0.0.1:8080", 0, false));
        assert!(!is("[::1]:40000", "[::1]:8080", 0, false));
    }

    #[test]
    fn requests_have_the_kernels_layout() {
        let plain = request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 2, OPEN, &[0; ID], None);
        assert_eq!((plain.len(), u32_at(&plain, 0)), (HEADER + 8 + ID, Some(72)));
        let with_map = request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 2, OPEN, &[0; ID], Some(9));
        assert_eq!(u32_at(&with_map, 0), Some(84));
        assert_eq!((u16_at(&with_map, 72), u16_at(&with_map, 74)), (Some(12), Some(2)));
        assert_eq!((u16_at(&with_map, 76), u16_at(&with_map, 78), u32_at(&with_map, 80)), (Some(8), Some(1), Some(9)));
    }

    /// The kernel itself: our own connections are in its list. (Listing needs no privilege, ending does.)
    #[test]
    fn the_kernel_lists_what_is_open() {
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let Ok(l) = TcpListener::bind((ip, 0)) else { continue };
            let c = TcpStream::connect(l.local_addr().unwrap()).unwrap();
            let (ours, theirs) = (c.local_addr().unwrap(), c.peer_addr().unwrap());
            let find =
                |of: SocketAddr| connections(None).unwrap().into_iter().find(|c| c.local == of && c.remote.port() != 0);
            let seen = find(ours).expect("our end is listed");
            assert_eq!(seen.remote, theirs);
            assert!(find(theirs).is_some(), "its other end is listed, too");
            assert_eq!(find(ours).unwrap().cookie, seen.cookie);
            drop((c, l));
        }
    }
}
