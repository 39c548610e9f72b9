//! Datagrams, many in one system call: sockets that tell to which address of the host each was sent, so that answers can come from
//! there, and sockets that are connected to one peer.
#![allow(unsafe_code, reason = "recvmmsg and sendmmsg with IP_PKTINFO and IPV6_PKTINFO")]

use crate::{
    buffer::Buffer,
    socket::{setopt, without_ipv6},
};
use karst_core::{canonical, limits::UDP_BATCH};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    cell::RefCell,
    io,
    mem::zeroed,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    ops::Range,
    os::fd::AsRawFd,
};
use tokio::{io::Interest, net::UdpSocket};

/// Room for one datagram: none is longer (jumbograms apart, which are cut, and dropped).
const DATAGRAM: usize = 1 << 16;
/// Room for what the kernel tells of one datagram: the address that it was sent to, and the count of those that were lost.
const CONTROL: usize = 128;
/// Bytes that may wait at one socket, as the kernel counts them.
const QUEUE: usize = 4 << 20;
/// The option by which the kernel tells how many datagrams it had no room for; the same on all architectures that we have.
const SO_RXQ_OVFL: i32 = 40;

/// Sockets at one port of the host, for both families (or for those that the kernel has). The kernel gives all datagrams between two
/// ends to one of them.
///
/// # Errors
/// Those of the socket calls.
pub fn listeners(port: u16, count: usize) -> io::Result<Vec<std::net::UdpSocket>> {
    let at = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let all = |at| (0..count).map(|_| listener(at)).collect::<io::Result<Vec<_>>>();
    all(at).or_else(|e| without_ipv6(at, &e).map_or(Err(e), all))
}

fn listener(at: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if at.is_ipv6() {
        socket.set_only_v6(false)?;
        // Of datagrams of IPv4, too: with addresses that are mapped.
        setopt(&socket, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
    } else {
        setopt(&socket, libc::SOL_IP, libc::IP_PKTINFO, 1)?;
    }
    setopt(&socket, libc::SOL_SOCKET, SO_RXQ_OVFL, 1)?;
    // As far as the system lets it be (net.core.rmem_max).
    let _ = socket.set_recv_buffer_size(QUEUE);
    socket.set_reuse_port(true)?;
    socket.bind(&SockAddr::from(at))?;
    Ok(socket.into())
}

/// What is known of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Bytes.
    pub length: usize,
    /// Who has sent it. None: the kernel does not say.
    pub from: Option<SocketAddr>,
    /// The address of this host that it was sent to. None: the socket is connected, and does not ask.
    pub to: Option<IpAddr>,
    /// How many datagrams the socket had no room for, since it was made and modulo 2^32. None: the kernel does not say, since there
    /// were none.
    pub lost: Option<u32>,
    /// It is all there.
    pub is_whole: bool,
}

const NOTHING: Datagram = Datagram { length: 0, from: None, to: None, lost: None, is_whole: true };

/// Room for what is received at once. One is enough for all sockets of a thread.
pub struct Batch {
    bytes: Buffer,
    datagrams: [Datagram; UDP_BATCH],
}

impl Default for Batch {
    /// Its pages are the system's until they are written to.
    fn default() -> Self {
        Self { bytes: Buffer::new(UDP_BATCH * DATAGRAM), datagrams: [NOTHING; UDP_BATCH] }
    }
}

/// What became of datagrams that were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Those that have gone.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those for which there was no room or no way.
    pub lost: u64,
    /// The peer's host has said before that nobody is at the port.
    pub refused: bool,
}

#[repr(align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

impl Batch {
    /// Those that were received last.
    pub fn datagrams(&self, count: usize) -> &[Datagram] {
        &self.datagrams[..count.min(UDP_BATCH)]
    }

    /// The bytes of one of them.
    pub fn bytes(&self, index: usize) -> &[u8] {
        &self.bytes[index * DATAGRAM..][..self.datagrams[index].length.min(DATAGRAM)]
    }

    /// Receives what is there: so many datagrams.
    ///
    /// # Errors
    /// Those of `recvmmsg`; `WouldBlock` if there is nothing.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // SAFETY: all-zero sockaddr_in6, iovec and mmsghdr are valid.
        let (mut names, mut parts, mut messages): (
            [libc::sockaddr_in6; UDP_BATCH],
            [libc::iovec; UDP_BATCH],
            [libc::mmsghdr; UDP_BATCH],
        ) = unsafe { (zeroed(), zeroed(), zeroed()) };
        let mut controls = [Control([0; CONTROL]); UDP_BATCH];
        for (index, room) in self.bytes.chunks_exact_mut(DATAGRAM).enumerate() {
            parts[index] = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: DATAGRAM };
            let header = &mut messages[index].msg_hdr;
            header.msg_name = (&raw mut names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
            header.msg_iov = &raw mut parts[index];
            header.msg_iovlen = 1;
            header.msg_control = controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL;
        }
        // SAFETY: every pointer in `messages` is to a local or to `bytes`, which outlive the call, with the length beside it.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                UDP_BATCH as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (index, message) in messages.iter().enumerate().take(count) {
            let (to, lost) = told(&message.msg_hdr);
            self.datagrams[index] = Datagram {
                length: message.msg_len as usize,
                from: if message.msg_hdr.msg_namelen == 0 { None } else { address(&names[index]) },
                to,
                lost,
                is_whole: message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0,
            };
        }
        Ok(count)
    }

    /// Sends some of what was received last; over a socket that is not connected, to this destination.
    fn send(&self, socket: &UdpSocket, range: Range<usize>, to: Option<&Destination>) -> Sent {
        let mut sent = Sent::default();
        // SAFETY: all-zero iovec and mmsghdr are valid.
        let (mut parts, mut messages): ([libc::iovec; UDP_BATCH], [libc::mmsghdr; UDP_BATCH]) =
            unsafe { (zeroed(), zeroed()) };
        let all = range.start..range.end.min(UDP_BATCH);
        for (index, (part, message)) in all.clone().zip(parts.iter_mut().zip(&mut messages)) {
            let bytes = self.bytes(index);
            // Nothing of all this is written to.
            *part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            let header = &mut message.msg_hdr;
            header.msg_iov = std::ptr::from_mut(part);
            header.msg_iovlen = 1;
            if let Some(to) = to {
                header.msg_name = (&raw const to.name).cast_mut().cast();
                header.msg_namelen = to.name_length;
                header.msg_control = to.control.0.as_ptr().cast_mut().cast();
                header.msg_controllen = to.control_length;
            }
        }
        let (mut at, mut told_of_way) = (0, false);
        while at < all.len() {
            let rest = &mut messages[at..all.len()];
            // SAFETY: every pointer in `messages` is to a local, to `bytes`, or into `to`; all outlive the call.
            let gone = unsafe {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, flags)
            };
            if let Ok(gone) = usize::try_from(gone) {
                sent.datagrams += gone as u64;
                let gone_of = all.clone().skip(at).take(gone);
                sent.bytes += gone_of.map(|index| self.bytes(index).len() as u64).sum::<u64>();
                at += gone.max(1);
                continue;
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // These are of an earlier one: this one has not been tried.
                Some(libc::ECONNREFUSED) if !sent.refused => sent.refused = true,
                _ if to.is_none() && is_of_way(&error) && !told_of_way => told_of_way = true,
                Some(libc::EAGAIN | libc::ENOBUFS) => {
                    sent.lost += (all.len() - at) as u64;
                    break;
                }
                // Too long for the way, or there is none: it is this one's alone.
                _ => {
                    sent.lost += 1;
                    at += 1;
                }
            }
        }
        sent
    }
}

/// Where a datagram goes, and from which address of this host, as the kernel takes them.
struct Destination {
    /// Of IPv4: the other kind of address, which is shorter and no stricter aligned.
    name: libc::sockaddr_in6,
    name_length: u32,
    control: Control,
    control_length: usize,
}

impl Destination {
    /// `is_ipv6`: the socket is of that family, and has addresses of IPv4 mapped.
    fn new(is_ipv6: bool, to: SocketAddr, from: IpAddr) -> Self {
        // SAFETY: an all-zero sockaddr_in6 is valid.
        let name = unsafe { zeroed() };
        let mut out = Self { name, name_length: 0, control: Control([0; CONTROL]), control_length: 0 };
        if is_ipv6 {
            let (ip, scope) = match to {
                SocketAddr::V4(to) => (to.ip().to_ipv6_mapped(), 0),
                SocketAddr::V6(to) => (*to.ip(), to.scope_id()),
            };
            out.name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            out.name.sin6_port = to.port().to_be();
            out.name.sin6_addr.s6_addr = ip.octets();
            out.name.sin6_scope_id = scope;
            out.name_length = size_of::<libc::sockaddr_in6>() as u32;
            let from = match from {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: from.octets() }, ipi6_ifindex: 0 };
            out.put((libc::SOL_IPV6, libc::IPV6_PKTINFO), info);
        } else if let (IpAddr::V4(ip), IpAddr::V4(from)) = (to.ip().to_canonical(), from.to_canonical()) {
            let address = |ip: Ipv4Addr| libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
            let name = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: to.port().to_be(),
                sin_addr: address(ip),
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_in6 is longer than a sockaddr_in, and aligned as strictly.
            unsafe { (&raw mut out.name).cast::<libc::sockaddr_in>().write(name) };
            out.name_length = size_of::<libc::sockaddr_in>() as u32;
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address(from), ipi_addr: address(from) };
            out.put((libc::SOL_IP, libc::IP_PKTINFO), info);
        }
        out
    }

    /// The one control message.
    fn put<T: Copy>(&mut self, (level, kind): (i32, i32), value: T) {
        const { assert!(size_of::<T>() + 64 <= CONTROL) };
        // SAFETY: an all-zero msghdr is valid; the buffer is aligned for cmsghdr and has room for one with this value.
        unsafe {
            let mut message: libc::msghdr = zeroed();
            message.msg_control = self.control.0.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(size_of::<T>() as u32) as usize;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as usize;
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
            self.control_length = message.msg_controllen;
        }
    }
}

/// Where a datagram was sent to, and how many were lost, as the kernel tells beside it.
fn told(message: &libc::msghdr) -> (Option<IpAddr>, Option<u32>) {
    let (mut to, mut lost) = (None, None);
    // SAFETY: the kernel has filled the control buffer, and each value is read unaligned from a message of its type.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let value = libc::CMSG_DATA(header);
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                    let info = value.cast::<libc::in6_pktinfo>().read_unaligned();
                    to = Some(IpAddr::from(info.ipi6_addr.s6_addr).to_canonical());
                }
                (libc::SOL_IP, libc::IP_PKTINFO) => {
                    let info = value.cast::<libc::in_pktinfo>().read_unaligned();
                    to = Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()));
                }
                (libc::SOL_SOCKET, SO_RXQ_OVFL) => lost = Some(value.cast::<u32>().read_unaligned()),
                _ => {}
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    (to, lost)
}

/// An address that the kernel has written. Those of IPv4 are never mapped.
fn address(name: &libc::sockaddr_in6) -> Option<SocketAddr> {
    match i32::from(name.sin6_family) {
        libc::AF_INET => {
            // SAFETY: the kernel says that it is the other kind of address, which is shorter and no stricter aligned.
            let name = unsafe { std::ptr::from_ref(name).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::new(ip.into(), u16::from_be(name.sin_port)))
        }
        libc::AF_INET6 => {
            let (ip, port) = (Ipv6Addr::from(name.sin6_addr.s6_addr), u16::from_be(name.sin6_port));
            Some(match ip.to_ipv4_mapped() {
                Some(ip) => SocketAddr::new(ip.into(), port),
                // Answers to an address of one link need to know which.
                None => SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into(),
            })
        }
        _ => None,
    }
}

/// A socket of [`listeners`], in a worker.
pub struct Front {
    socket: UdpSocket,
    is_ipv6: bool,
}

impl Front {
    /// Takes one.
    ///
    /// # Errors
    /// If the socket cannot be registered with the runtime.
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let is_ipv6 = socket.local_addr()?.is_ipv6();
        Ok(Self { socket: UdpSocket::from_std(socket)?, is_ipv6 })
    }

    /// Waits for datagrams: so many.
    ///
    /// # Errors
    /// Those of `recvmmsg`.
    pub async fn receive(&self, batch: &RefCell<Batch>) -> io::Result<usize> {
        self.socket.async_io(Interest::READABLE, || batch.borrow_mut().receive(&self.socket)).await
    }

    /// Sends some of what was received last to a client, from the address of this host that it calls.
    pub fn send(&self, batch: &Batch, range: Range<usize>, to: SocketAddr, from: IpAddr) -> Sent {
        batch.send(&self.socket, range, Some(&Destination::new(self.is_ipv6, to, from)))
    }
}

/// Is it told of the way, and not of who is there? (By ICMP: a part of it takes shorter datagrams only. Once it is told the kernel
/// cuts those that follow.)
fn is_of_way(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// A socket that is connected to one peer.
pub struct Connected(UdpSocket);

impl Connected {
    /// To this peer, from the address that routing chooses.
    ///
    /// # Errors
    /// Those of the socket calls.
    pub fn to(peer: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(peer), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        socket.connect(&SockAddr::from(peer))?;
        Ok(Self(UdpSocket::from_std(socket.into())?))
    }

    /// Our end.
    pub fn local(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok().map(canonical)
    }

    /// Waits for datagrams: so many.
    ///
    /// # Errors
    /// Those of `recvmmsg`: `ConnectionRefused` if the peer's host has said that nobody is at the port.
    pub async fn receive(&self, batch: &RefCell<Batch>) -> io::Result<usize> {
        // A refusal makes the socket neither readable nor closed: it is an error of its own.
        let something = Interest::READABLE | Interest::ERROR;
        loop {
            match self.0.async_io(something, || batch.borrow_mut().receive(&self.0)).await {
                Err(e) if is_of_way(&e) => {}
                received => return received,
            }
        }
    }

    /// Sends some of what was received last.
    pub fn send(&self, batch: &Batch, range: Range<usize>) -> Sent {
        batch.send(&self.0, range, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn front() -> (Front, u16) {
        let sockets = listeners(0, 1).unwrap();
        let port = sockets[0].local_addr().unwrap().port();
        (Front::new(sockets.into_iter().next().unwrap()).unwrap(), port)
    }

    fn client(own: &str, to: &str, port: u16) -> std::net::UdpSocket {
        let socket = std::net::UdpSocket::bind((own, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect((to, port)).unwrap();
        socket
    }

    /// A client that has connected takes answers of the address that it has called only.
    #[tokio::test]
    async fn answers_come_from_the_address_that_was_called() {
        let (front, port) = front().await;
        let batch = RefCell::new(Batch::default());
        for (own, to) in [("127.0.0.1", "127.0.0.7"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
            let client = client(own, to, port);
            client.send(b"question").unwrap();
            assert_eq!(front.receive(&batch).await.unwrap(), 1);
            let got = batch.borrow().datagrams(1)[0];
            let want = Datagram {
                length: 8,
                from: Some(client.local_addr().unwrap()),
                to: Some(to.parse().unwrap()),
                lost: None,
                is_whole: true,
            };
            assert_eq!(Datagram { lost: None, ..got }, want);
            assert_eq!(batch.borrow().bytes(0), b"question");
            let sent = front.send(&batch.borrow(), 0..1, got.from.unwrap(), got.to.unwrap());
            assert_eq!(sent, Sent { datagrams: 1, bytes: 8, ..Sent::default() });
            let mut answer = [0; 16];
            assert_eq!(client.recv(&mut answer).unwrap(), 8, "{to}");
        }
    }

    #[tokio::test]
    async fn many_are_received_and_sent_at_once() {
        let (front, port) = front().await;
        let batch = RefCell::new(Batch::default());
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let upstream = Connected::to(server.local_addr().unwrap()).unwrap();
        let client = client("127.0.0.1", "127.0.0.1", port);
        for n in 0..UDP_BATCH + 3 {
            client.send(&vec![n as u8; n]).unwrap();
        }
        let mut lengths = vec![];
        while lengths.len() < UDP_BATCH + 3 {
            let count = front.receive(&batch).await.unwrap();
            let sent = upstream.send(&batch.borrow(), 0..count);
            assert_eq!((sent.datagrams as usize, sent.lost), (count, 0));
            for _ in 0..count {
                let mut room = [0; 64];
                let (length, from) = server.recv_from(&mut room).unwrap();
                assert!(room[..length].iter().all(|b| usize::from(*b) == length));
                assert_eq!(Some(from), upstream.local());
                lengths.push(length);
            }
        }
        assert_eq!(lengths, (0..UDP_BATCH + 3).collect::<Vec<_>>());
    }

    /// Sockets of one port share what comes, and all of one client's comes to one of them.
    #[tokio::test]
    async fn a_client_stays_with_its_socket() {
        let first = listeners(0, 1).unwrap().remove(0);
        let port = first.local_addr().unwrap().port();
        let mut fronts = vec![Front::new(first).unwrap()];
        fronts.extend(listeners(port, 3).unwrap().into_iter().map(|s| Front::new(s).unwrap()));
        let batch = RefCell::new(Batch::default());
        let client = client("127.0.0.1", "127.0.0.1", port);
        for _ in 0..8 {
            client.send(b"x").unwrap();
        }
        let mut counts = vec![];
        for front in &fronts {
            let mut count = 0;
            let wait = Duration::from_millis(50);
            while let Ok(Ok(more)) = tokio::time::timeout(wait, front.receive(&batch)).await {
                count += more;
            }
            counts.push(count);
        }
        counts.sort_unstable();
        assert_eq!(counts, [0, 0, 0, 8]);
    }

    /// No loopback has such a way: what decides is looked at.
    #[test]
    fn a_way_that_takes_less_is_no_refusal() {
        let told = [libc::EMSGSIZE, libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::EAGAIN];
        assert_eq!(told.map(|code| is_of_way(&io::Error::from_raw_os_error(code))), [true, false, false, false]);
    }

    #[tokio::test]
    async fn a_port_without_anybody_is_told() {
        let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (front, port) = front().await;
        let batch = RefCell::new(Batch::default());
        client("127.0.0.1", "127.0.0.1", port).send(b"x").unwrap();
        front.receive(&batch).await.unwrap();
        let upstream = Connected::to(nobody).unwrap();
        assert_eq!(upstream.send(&batch.borrow(), 0..1).datagrams, 1);
        let error = upstream.receive(&batch).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
