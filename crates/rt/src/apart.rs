//! Listeners of applications that do not answer on `lo`: bound to a device (SO_BINDTODEVICE), so that they see nothing that comes by
//! another one; or with a mark of their own (SO_MARK), which their answers carry instead of the mark that keeps them on `lo`.
//!
//! The kernel is asked (sock_diag) only when an application has not answered, and then seldom; nothing is asked for connections
//! that are in order.

use crate::{
    netns::Netns,
    socket::{MARK_APP, MARK_CAPTURE},
};
use karst_core::limits;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// `lo` in every network namespace.
const LO: u32 = 1;
/// Listeners of one pod that are remembered; the application of another is called as usual.
const MAX: usize = 256;
/// The kernel answers at once.
const PATIENCE: Duration = Duration::from_secs(1);

// include/uapi/linux: sock_diag.h, inet_diag.h, netlink.h.
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const REQUEST: usize = 56;
/// struct inet_diag_msg.
const ANSWER: usize = 72;
const INET_DIAG_MARK: u16 = 15;
const LISTENING: u32 = 1 << 10;

/// A listener that answers elsewhere.
#[derive(Clone, Debug, PartialEq)]
struct Listener {
    ip: IpAddr,
    port: u16,
}

/// The listeners of a pod's applications that answer elsewhere, as they were when last looked at.
#[derive(Debug, Default)]
pub struct Apart(Mutex<Option<(Instant, Vec<Listener>)>>);

impl Apart {
    /// Does the application at `dst` answer elsewhere? `suspect`: it has not answered; else it is looked at only if it was one that
    /// does.
    pub fn is_apart(&self, netns: &Netns, dst: SocketAddr, suspect: bool) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (fresh, was) = match &*known {
            None => (false, false),
            Some((at, all)) => (at.elapsed() < limits::APART_FOR, holds(all, dst)),
        };
        if fresh || !(suspect || was) {
            return was;
        }
        match ask(netns) {
            Ok(all) => {
                let is = holds(&all, dst);
                *known = Some((Instant::now(), all));
                is
            }
            Err(e) => {
                tracing::warn!(error = %e, "the listeners of a pod's applications cannot be read");
                *known = Some((Instant::now(), vec![]));
                false
            }
        }
    }
}

fn holds(all: &[Listener], dst: SocketAddr) -> bool {
    let ip = dst.ip().to_canonical();
    all.iter().any(|l| {
        // The IPv6 wildcard mostly takes both families.
        let any = l.ip == Ipv6Addr::UNSPECIFIED || (ip.is_ipv4() && l.ip == Ipv4Addr::UNSPECIFIED);
        l.port == dst.port() && (any || l.ip == ip)
    })
}

fn ask(netns: &Netns) -> io::Result<Vec<Listener>> {
    let (family, kind) = (Domain::from(libc::AF_NETLINK), Type::RAW.cloexec());
    let mut s = netns.run(|| Socket::new(family, kind, Some(Protocol::from(NETLINK_SOCK_DIAG))))??;
    s.set_read_timeout(Some(PATIENCE))?;
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        s.send(&request(family as u8))?;
        let mut buf = vec![0; 32 << 10];
        loop {
            let n = s.read(&mut buf)?;
            if n == 0 || read(buf.get(..n).unwrap_or_default(), &mut all)? {
                break;
            }
        }
    }
    Ok(all)
}

/// Asks for all TCP listeners of a family.
fn request(family: u8) -> Vec<u8> {
    let length = (HEADER + REQUEST) as u32;
    let mut b = Vec::with_capacity(HEADER + REQUEST);
    b.extend(length.to_ne_bytes());
    b.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    b.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    b.extend([1u32, 0].map(u32::to_ne_bytes).concat());
    b.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    b.extend(LISTENING.to_ne_bytes());
    b.resize(HEADER + REQUEST, 0);
    b
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    b.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}
fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    b.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// Takes the listeners that answer elsewhere out of a packet. True: there will be no other.
fn read(packet: &[u8], all: &mut Vec<Listener>) -> io::Result<bool> {
    let mut rest = packet;
    while let (Some(length), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
        let length = length as usize;
        let body = rest.get(HEADER..length).unwrap_or_default();
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                return match u32_at(body, 0).map_or(0, u32::cast_signed) {
                    0 => Ok(true),
                    // A kernel without IPv6, or that does not show listeners of it.
                    e if e == -libc::ENOENT || e == -libc::EAFNOSUPPORT => Ok(true),
                    e => Err(io::Error::from_raw_os_error(-e)),
                };
            }
            SOCK_DIAG_BY_FAMILY => all.extend(listener(body).filter(|_| all.len() < MAX)),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4).max(HEADER)..).unwrap_or_default();
    }
    Ok(false)
}

/// Reads a listener, if it is one that answers elsewhere.
fn listener(b: &[u8]) -> Option<Listener> {
    let family = i32::from(*b.first()?);
    let port = u16::from_be(u16_at(b, 4)?);
    let device = u32_at(b, 40)?;
    let ip: IpAddr = if family == libc::AF_INET {
        <[u8; 4]>::try_from(b.get(8..12)?).ok()?.into()
    } else {
        IpAddr::from(<[u8; 16]>::try_from(b.get(8..24)?).ok()?).to_canonical()
    };
    let mut rest = b.get(ANSWER..).unwrap_or_default();
    let mut mark = 0;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        if kind == INET_DIAG_MARK {
            mark = u32_at(rest, 4)?;
        }
        rest = rest.get(usize::from(length).next_multiple_of(4).max(4)..).unwrap_or_default();
    }
    let apart = (device != 0 && device != LO) || ![0, MARK_CAPTURE, MARK_APP].contains(&mark);
    apart.then_some(Listener { ip, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(family: i32, ip: &[u8], port: u16, device: u32, mark: u32) -> Vec<u8> {
        let mut b = vec![family as u8, 10, 0, 0];
        b.extend(port.to_be_bytes());
        b.extend([0, 0]);
        b.extend(ip);
        b.resize(40, 0);
        b.extend(device.to_ne_bytes());
        b.resize(ANSWER, 0);
        // Another attribute before it, of a length that is no multiple of four.
        b.extend([5u16, 8].map(u16::to_ne_bytes).concat());
        b.extend([1, 0, 0, 0]);
        b.extend([8, INET_DIAG_MARK].map(u16::to_ne_bytes).concat());
        b.extend(mark.to_ne_bytes());
        let mut out = ((HEADER + b.len()) as u32).to_ne_bytes().to_vec();
        out.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        out.resize(HEADER, 0);
        out.extend(b);
        out
    }
    fn end(kind: u16, code: i32) -> Vec<u8> {
        let mut out = (HEADER as u32 + 4).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.resize(HEADER, 0);
        out.extend(code.to_ne_bytes());
        out
    }

    #[test]
    fn listeners_that_answer_elsewhere_are_found() {
        let mut all = vec![];
        let packet = [
            message(libc::AF_INET6, &[0; 16], 80, 0, 0),
            message(libc::AF_INET6, &[0; 16], 81, 2, 0),
            message(libc::AF_INET, &[10, 0, 0, 1], 82, 0, 7),
            message(libc::AF_INET, &[0; 4], 83, LO, 0),
            message(libc::AF_INET, &[0; 4], 84, 0, MARK_CAPTURE),
            message(libc::AF_INET, &[0; 4], 85, 0, MARK_APP),
        ]
        .concat();
        assert!(!read(&packet, &mut all).unwrap());
        assert_eq!(all.len(), 2);
        let is = |dst: &str| holds(&all, dst.parse().unwrap());
        assert!(is("10.0.0.1:81") && is("[fd00::1]:81") && is("10.0.0.1:82") && is("[::ffff:10.0.0.1]:82"));
        assert!(!is("10.0.0.1:80") && !is("10.0.0.2:82") && !is("[fd00::1]:82") && !is("10.0.0.1:83"));
    }

    #[test]
    fn the_end_is_understood_and_what_is_cut_off_is_no_panic() {
        assert!(read(&end(NLMSG_DONE, 0), &mut vec![]).unwrap());
        assert!(read(&end(NLMSG_ERROR, -libc::ENOENT), &mut vec![]).unwrap());
        assert!(read(&end(NLMSG_ERROR, -libc::EPERM), &mut vec![]).is_err());
        let whole = message(libc::AF_INET6, &[0; 16], 81, 2, 0);
        for n in 0..whole.len() {
            let _ = read(&whole[..n], &mut vec![]);
        }
        let mut endless = whole;
        endless[..4].copy_from_slice(&0u32.to_ne_bytes());
        let _ = read(&endless, &mut vec![]);
    }

    #[test]
    fn the_kernel_says_who_listens() {
        // Without privileges marks are not shown; that a listener in order is none of these is.
        let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let all = ask(&Netns::current().unwrap());
        if let Ok(all) = all {
            assert!(!holds(&all, l.local_addr().unwrap()));
        }
    }
}
