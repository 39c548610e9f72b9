//! Every socket of the data plane is made here, so that its namespace, mark, exemption and options are decided in
//! one place.
#![allow(
    unsafe_code,
    reason = "setsockopt and getsockopt with options that socket2 does not have, bpf(2) for the exemption"
)]

use crate::{apart::Apart, netns::Netns};
use karst_core::limits;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::net::TcpStream;

pub use crate::mark::{MARK_APP, MARK_CAPTURE, MARK_ZTUNNEL};

/// The right to exempt sockets from redirection: a descriptor of the agent's socket storage map. An application
/// cannot have one, whatever its capabilities inside its pod.
#[derive(Clone, Debug)]
pub struct Exempt(Arc<OwnedFd>);

impl Exempt {
    /// Takes the map's descriptor.
    pub fn new(map: OwnedFd) -> Self {
        Self(Arc::new(map))
    }
    /// Exempts a socket for as long as it lives.
    ///
    /// # Errors
    /// Those of `bpf(BPF_MAP_UPDATE_ELEM)`.
    pub fn set(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            map: u32,
            pad: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let (key, value) = (socket.as_raw_fd(), 1u32);
        let attr = Attr {
            map: self.0.as_raw_fd() as u32,
            pad: 0,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        const BPF_MAP_UPDATE_ELEM: i32 = 2;
        // SAFETY: `attr` is the update form of union bpf_attr; key and value outlive the call.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, &raw const attr, size_of::<Attr>()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Exempt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The index of `lo`, the same in every namespace (the kernel's LOOPBACK_IFINDEX); by name it would be looked up.
const LOOPBACK: i32 = 1;

/// Ports for sockets with another host's address: below what clients use for themselves (Linux 32768 and up, others 49152
/// and up). The application's end of such a connection would else take the packets of one that the client itself makes
/// from the same port, as plaintext.
const FOREIGN_PORTS: std::ops::Range<u16> = 2048..32_768;
/// A port may be taken, towards the same application, by a connection that is open or has just ended.
const PORT_TRIES: usize = 64;

fn next_foreign_port() -> u16 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static START: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    // Not where the process before this one started.
    let start = *START.get_or_init(|| {
        std::process::id()
            ^ std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos())
    });
    let span = u32::from(FOREIGN_PORTS.end - FOREIGN_PORTS.start);
    let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % span;
    FOREIGN_PORTS.start + offset as u16
}

/// Sets an option whose value is a number.
pub(crate) fn setopt(socket: &Socket, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the kernel reads four bytes of `value`.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(crate) fn transparent(socket: &Socket, v6: bool) -> io::Result<()> {
    setopt(socket, libc::SOL_IP, libc::IP_TRANSPARENT, 1)?;
    if v6 { setopt(socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1) } else { Ok(()) }
}

/// For connections that stay on `lo`: a node may be set to a congestion control that paces (BBR), whose timers cost more
/// than the sending where there is no bottleneck to find. Failure is of no consequence.
fn unpaced(socket: &Socket) {
    let _ = socket.set_tcp_congestion(b"reno");
}

/// Has this socket a congestion control that paces? If it cannot be told it counts as one.
fn is_paced(socket: &Socket) -> bool {
    socket.tcp_congestion().map_or(true, |name| name.starts_with(b"bbr"))
}

/// Where the sockets of redirected connections are bound: the dummy address of RFC 7600, which no host has and no packet is sent
/// to. Redirection gives them connections whatever their address is; by address nobody can reach them, so that nothing that
/// leads back to the pod ends at ztunnel's own listener.
pub const NOWHERE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 0, 8);

/// Binds a socket for redirected traffic to [`NOWHERE`] and a port. The port is of no importance to redirection; it is a fixed
/// one, so that everybody knows which an application cannot have, or any other if an application has it already.
fn bind_nowhere(socket: &Socket, v6: bool, port: u16) -> io::Result<()> {
    // Another agent's socket, before or after this one, is no obstacle.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    let nowhere: IpAddr = if v6 { NOWHERE.to_ipv6_mapped().into() } else { NOWHERE.into() };
    let at = |port| SockAddr::from(SocketAddr::new(nowhere, port));
    match socket.bind(&at(port)) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => socket.bind(&at(0)),
        r => r,
    }
}

/// A socket for both families; for IPv4 alone if the kernel has no IPv6 (`ipv6.disable=1`). Says whether it is for both.
fn dual_stack<T>(open: impl Fn(Domain) -> io::Result<T>) -> io::Result<(T, bool)> {
    match open(Domain::IPV6) {
        Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => open(Domain::IPV4).map(|s| (s, false)),
        r => r.map(|s| (s, true)),
    }
}

/// Where to listen instead, if all addresses were meant and the kernel has no IPv6.
pub(crate) fn without_ipv6(at: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let lacking = error.raw_os_error() == Some(libc::EAFNOSUPPORT) && at.ip() == Ipv6Addr::UNSPECIFIED;
    lacking.then(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), at.port()))
}

/// A listener for redirected connections of both families, in the calling thread's namespace; see [`NOWHERE`].
///
/// Accepted sockets inherit `mark`. What the kernel answers without a socket (in TIME_WAIT, or by a reset) carries the mark of
/// the packet it answers (`fwmark_reflect`), so it is to be [`MARK_CAPTURE`] where the peer is the pod's own application: its
/// answers must come back over `lo`. [`MARK_ZTUNNEL`] where the peer is elsewhere.
///
/// # Errors
/// Those of the socket calls; CAP_NET_ADMIN is needed.
pub fn redirect_listener(mark: u32, port: u16) -> io::Result<Socket> {
    let (socket, v6) =
        dual_stack(|family| Socket::new(family, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP)))?;
    if v6 {
        socket.set_only_v6(false)?;
    }
    socket.set_mark(mark)?;
    socket.set_tcp_nodelay(true)?; // inherited by accepted sockets, as is the next
    unpaced(&socket);
    transparent(&socket, v6)?;
    bind_nowhere(&socket, v6, port)?;
    socket.listen(limits::BACKLOG)?;
    Ok(socket)
}

/// A listener for whoever connects; an IPv6 wildcard takes both families, or those that the kernel has.
///
/// # Errors
/// Those of the socket calls.
pub fn listener(at: SocketAddr) -> io::Result<std::net::TcpListener> {
    match listen(at) {
        Err(e) => without_ipv6(at, &e).map_or(Err(e), listen),
        r => r,
    }
}

fn listen(at: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(at))?;
    socket.listen(limits::BACKLOG)?;
    Ok(socket.into())
}

/// A UDP socket for redirected DNS of both families, which reports the original destination with each datagram.
///
/// # Errors
/// Those of the socket calls; CAP_NET_ADMIN is needed.
pub fn redirect_udp(port: u16) -> io::Result<Socket> {
    let (socket, v6) =
        dual_stack(|family| Socket::new(family, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP)))?;
    socket.set_mark(MARK_ZTUNNEL)?;
    transparent(&socket, v6)?;
    setopt(&socket, libc::SOL_IP, libc::IP_RECVORIGDSTADDR, 1)?;
    if v6 {
        socket.set_only_v6(false)?;
        setopt(&socket, libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR, 1)?;
    }
    bind_nowhere(&socket, v6, port)?;
    Ok(socket)
}

/// A UDP socket bound to an address that need not be the pod's own: answers come from the address that was asked.
///
/// # Errors
/// Those of the socket calls.
pub fn udp_from(from: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(from), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    socket.set_mark(MARK_ZTUNNEL)?;
    socket.set_reuse_address(true)?;
    transparent(&socket, from.is_ipv6())?;
    socket.bind(&SockAddr::from(from))?;
    Ok(socket)
}

/// Where a connection is made from.
#[derive(Clone, Debug)]
pub struct NetnsConnector {
    /// The pod's namespace; None: the process's own (tests, dedicated mode).
    pub netns: Option<Netns>,
    /// Exempts the socket from redirection.
    pub exempt: Option<Exempt>,
    /// Listeners of its applications that answer elsewhere.
    apart: Arc<Apart>,
    /// Does the namespace give its sockets a congestion control that paces? As the first one had it.
    paced: Arc<OnceLock<bool>>,
}

impl NetnsConnector {
    /// The process's own namespace, nothing to exempt from.
    pub fn host() -> Self {
        Self { netns: None, exempt: None, apart: Arc::default(), paced: Arc::default() }
    }
    /// A pod's namespace.
    pub fn of_pod(netns: Netns, exempt: Option<Exempt>) -> Self {
        Self { netns: Some(netns), exempt, apart: Arc::default(), paced: Arc::default() }
    }

    /// A UDP socket for queries of ztunnel's own, connected to a resolver.
    ///
    /// # Errors
    /// Those of the socket calls; there is no way to it.
    pub fn udp(&self, to: SocketAddr) -> io::Result<Socket> {
        let make = || Socket::new(Domain::for_address(to), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP));
        let socket = match &self.netns {
            Some(n) => n.run(make)??,
            None => make()?,
        };
        self.let_out(&socket)?;
        socket.connect(&SockAddr::from(to))?;
        // Not before it has its port: the kernel gives one to several sockets that all let theirs be used again, and the answers
        // that come from one resolver to one port are all one socket's.
        socket.set_reuse_address(true)?;
        Ok(socket)
    }

    /// Exempts a socket from redirection: by the agent's map, or, where it has given none (Istio's), by the mark.
    fn let_out(&self, socket: &Socket) -> io::Result<()> {
        match &self.exempt {
            Some(exempt) => exempt.set(socket.as_fd()),
            None if self.netns.is_some() => socket.set_mark(MARK_ZTUNNEL),
            None => Ok(()),
        }
    }

    fn socket(&self, dst: SocketAddr) -> io::Result<Socket> {
        let make = || Socket::new(Domain::for_address(dst), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP));
        let socket = match &self.netns {
            Some(n) => n.run(make)??,
            None => make()?,
        };
        // Its port stays free for an application that listens there (and asks for the same, as servers do).
        socket.set_reuse_address(true)?;
        self.let_out(&socket)?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket)
    }

    /// Connects from the pod to another host, from the address that routing chooses.
    ///
    /// # Errors
    /// Those of `connect`; `TimedOut` after `limit`.
    pub async fn connect(&self, dst: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        finish(self.socket(dst)?, dst, limit).await
    }

    /// Connects from the pod to another host, from an address of the pod's that the application has chosen.
    ///
    /// # Errors
    /// Those of `bind` (`AddrNotAvailable`: it is not an address of the pod's) and `connect`; `TimedOut` after `limit`.
    pub async fn connect_from(&self, source: IpAddr, dst: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        let socket = self.socket(dst)?;
        if source.is_ipv4() == dst.is_ipv4() {
            // The port is chosen at connect: one serves for several destinations.
            setopt(&socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
            socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
        }
        finish(socket, dst, limit).await
    }

    /// Is it an address of the pod's own, as its kernel has it?
    pub fn is_local(&self, ip: IpAddr) -> bool {
        let at = SockAddr::from(SocketAddr::new(ip, 0));
        let bind = || {
            Socket::new(Domain::for_address(SocketAddr::new(ip, 0)), Type::DGRAM.cloexec(), Some(Protocol::UDP))
                .and_then(|s| s.bind(&at))
                .is_ok()
        };
        match &self.netns {
            Some(n) => n.run(bind).unwrap_or(false),
            None => bind(),
        }
    }

    /// The address from which the pod's kernel sends to another host.
    ///
    /// # Errors
    /// There is no way to it.
    pub fn source_to(&self, dst: SocketAddr) -> io::Result<IpAddr> {
        let socket = self.udp(dst)?;
        let at = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(at.ip().to_canonical())
    }

    /// Connects to the pod's own application so that it sees `source` as its peer, or the pod's own address if that is the
    /// source or none is given. A connection with a foreign source stays on `lo`, and the mark brings the answers back to us
    /// though they are addressed to somebody else. An application that listens on one device only, or with a mark of its own, does
    /// not answer there: it sees the pod's own address.
    ///
    /// # Errors
    /// Those of `connect`; `TimedOut` after `limit`; `InvalidInput` for a source that would make the client appear as the pod
    /// itself (loopback) or as nobody.
    pub async fn connect_app(&self, dst: SocketAddr, source: Option<IpAddr>, limit: Duration) -> io::Result<TcpStream> {
        if source.is_some_and(|ip| !karst_core::addr::is_host(ip)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the client's address is none of a host"));
        }
        let foreign = source.filter(|ip| *ip != dst.ip() && ip.is_ipv4() == dst.is_ipv4());
        let Some(ip) = foreign.filter(|_| !self.is_apart(dst, false)) else {
            return self.connect_own(dst, limit).await;
        };
        let mut last = None;
        for _ in 0..PORT_TRIES {
            let socket = self.socket(dst)?;
            if self.exempt.is_some() {
                socket.set_mark(MARK_APP)?;
                setopt(&socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, LOOPBACK)?;
                self.unpaced(&socket);
            }
            transparent(&socket, dst.is_ipv6())?;
            // One port serves for several destinations, as the socket's address may be used again.
            let done = match socket.bind(&SockAddr::from(SocketAddr::new(ip, next_foreign_port()))) {
                Ok(()) => {
                    let mut connecting = pin!(finish(socket, dst, limit));
                    match tokio::time::timeout(limits::APART_AFTER, &mut connecting).await {
                        Ok(done) => done,
                        Err(_) if self.is_apart(dst, true) => return self.connect_own(dst, limit).await,
                        Err(_) => connecting.await,
                    }
                }
                Err(e) => Err(e),
            };
            match done {
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && self.is_apart(dst, true) => {
                    return self.connect_own(dst, limit).await;
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {
                    last = Some(e)
                }
                done => return done,
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
    }

    /// Connects to the pod's own application from the pod's own address.
    async fn connect_own(&self, dst: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        let socket = self.socket(dst)?;
        self.unpaced(&socket);
        finish(socket, dst, limit).await
    }

    /// As [`unpaced`], which is a call less for each connection where nothing paces.
    fn unpaced(&self, socket: &Socket) {
        if *self.paced.get_or_init(|| is_paced(socket)) {
            unpaced(socket);
        }
    }

    /// Does the application answer elsewhere than on `lo`? `suspect`: it has not answered there.
    fn is_apart(&self, dst: SocketAddr, suspect: bool) -> bool {
        self.netns.as_ref().is_some_and(|n| self.apart.is_apart(n, dst, suspect))
    }
}

async fn finish(socket: Socket, dst: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    match socket.connect(&SockAddr::from(dst)) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(e) => return Err(e),
    }
    let decided = decision(&socket);
    let socket = TcpStream::from_std(socket.into())?;
    if decided == Some(Decided::Established) {
        return Ok(socket);
    }
    if decided.is_none() {
        match tokio::time::timeout(limit, socket.writable()).await {
            Ok(r) => r?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    match socket.take_error()? {
        Some(e) => Err(e),
        None => Ok(socket),
    }
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decided {
    Established,
    /// The socket has the error.
    Failed,
}

/// Has a connection been established, or failed, already? One within the host mostly has when `connect` returns: then there is
/// nothing to wait for, and no timer to set, here or around it (a short one wakes the runtime up for itself alone).
fn decision(socket: &Socket) -> Option<Decided> {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd, which outlives the call; with a timeout of 0 it does not wait.
    let decided = unsafe { libc::poll(&raw mut poll, 1, 0) == 1 };
    decided.then_some(match poll.revents {
        libc::POLLOUT => Decided::Established,
        _ => Decided::Failed,
    })
}

/// Keepalive, as Istio's KEEPALIVE_* options mean it.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// Idle time before the first probe.
    pub time: Duration,
    /// Between probes.
    pub interval: Duration,
    /// Probes without answer before the connection is dropped.
    pub retries: u32,
}

impl Default for Keepalive {
    /// Istio's.
    fn default() -> Self {
        Self { time: Duration::from_secs(180), interval: Duration::from_secs(180), retries: 9 }
    }
}

/// Sets keepalive on a stream, or on a listener for all that it accepts from now on (Linux's accepted sockets are copies of
/// it), which costs a connection nothing. Failure is of no consequence and passed over.
pub fn keepalive(socket: &impl AsFd, keepalive: &Keepalive) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(keepalive.time)
        .with_interval(keepalive.interval)
        .with_retries(keepalive.retries);
    let _ = SockRef::from(socket).set_tcp_keepalive(&keepalive);
}

/// So many transmissions in a row of the same bytes, each twice as long after the one before: the first takes 12 s at least, since Linux
/// waits for 200 ms or more before the second one.
const UNANSWERED: u8 = 6;

/// Is the host at the other end of a TCP socket gone, or cut off? It acknowledges nothing of what it is sent, for 12 s or more; the kernel
/// itself waits for some 15 minutes (`tcp_retries2`). One that takes nothing in, since its application reads nothing, closes its window, and
/// is there: probes of it are not counted (`TCP_USER_TIMEOUT` would count it as gone). When it acknowledges something does not matter: it
/// may do so with what it sends again itself, and hear nothing. False where nothing is under way, or the kernel does not tell.
pub fn is_lost(socket: &impl AsFd) -> bool {
    // SAFETY: all bits being zero is a value of it.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    let (fd, to) = (socket.as_fd().as_raw_fd(), (&raw mut info).cast());
    // SAFETY: the kernel writes no more than `length` bytes.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_TCP, libc::TCP_INFO, to, &raw mut length) };
    result == 0 && info.tcpi_retransmits >= UNANSWERED
}

/// Sends without delay, on all that a listener accepts from now on. Failure is of no consequence and passed over.
pub fn without_delay(listener: &impl AsFd) {
    let _ = SockRef::from(listener).set_tcp_nodelay(true);
}

/// Makes the next close a reset: the other side learns that the end was not orderly.
pub fn reset_on_close(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// A UDP socket that tells where each datagram was sent to.
pub struct OrigDst(tokio::io::unix::AsyncFd<std::net::UdpSocket>);

impl OrigDst {
    /// Takes a socket of [`redirect_udp`].
    ///
    /// # Errors
    /// If the socket cannot be registered with the runtime.
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // SAFETY: a UdpSocket owns its descriptor and names the same one for its whole life.
        Ok(Self(unsafe { tokio::io::unix::AsyncFd::register(socket)? }))
    }
    /// A datagram of at most `max` bytes, its source, and its original destination.
    ///
    /// # Errors
    /// Those of `recvmsg`.
    pub async fn recv(&self, max: usize) -> io::Result<(Vec<u8>, SocketAddr, SocketAddr)> {
        self.0.async_io(tokio::io::Interest::READABLE, |s| recv_orig_dst(s.as_raw_fd(), max)).await
    }
}

fn recv_orig_dst(fd: i32, max: usize) -> io::Result<(Vec<u8>, SocketAddr, SocketAddr)> {
    #[repr(align(8))]
    struct Control([u8; 256]);
    let v6 = |a: libc::sockaddr_in6| {
        karst_core::canonical(SocketAddr::new(Ipv6Addr::from(a.sin6_addr.s6_addr).into(), u16::from_be(a.sin6_port)))
    };
    let v4 = |a: libc::sockaddr_in| {
        SocketAddr::new(Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr)).into(), u16::from_be(a.sin_port))
    };
    let mut data = vec![0; max];
    let mut control = Control([0; 256]);
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: max };
    // SAFETY: all-zero sockaddr_in6 and msghdr are valid; every pointer in `message` is to a local that outlives the call;
    // the control buffer is aligned for cmsghdr, and each address is read unaligned from a message of its type.
    unsafe {
        let mut from: libc::sockaddr_in6 = std::mem::zeroed();
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len();
        let length = libc::recvmsg(fd, &raw mut message, 0);
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        data.truncate(length as usize);
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            let to = match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::SOL_IP, libc::IP_ORIGDSTADDR) => {
                    Some(v4(libc::CMSG_DATA(header).cast::<libc::sockaddr_in>().read_unaligned()))
                }
                (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR) => {
                    Some(v6(libc::CMSG_DATA(header).cast::<libc::sockaddr_in6>().read_unaligned()))
                }
                _ => None,
            };
            if let Some(to) = to {
                // Of an IPv4 socket it is the other kind of address, which is shorter and no stricter aligned.
                let from = match i32::from(from.sin6_family) {
                    libc::AF_INET => v4((&raw const from).cast::<libc::sockaddr_in>().read()),
                    _ => v6(from),
                };
                return Ok((data, from, to));
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "datagram without original destination"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_ipv6_there_is_ipv4() {
        let lacking = || io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
        let open = |family| if family == Domain::IPV6 { Err(lacking()) } else { Ok(family) };
        assert_eq!(dual_stack(open).unwrap(), (Domain::IPV4, false));
        assert_eq!(dual_stack(Ok).unwrap(), (Domain::IPV6, true));
        // Another error is one, and is not hidden by a second try.
        let denied = |_| Err::<(), _>(io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(dual_stack(denied).unwrap_err().raw_os_error(), Some(libc::EPERM));
        let at = |a: &str| without_ipv6(a.parse().unwrap(), &lacking()).map(|a| a.to_string());
        assert_eq!(at("[::]:80").as_deref(), Some("0.0.0.0:80"));
        assert_eq!((at("[::1]:80"), at("0.0.0.0:80")), (None, None));
        assert_eq!(without_ipv6("[::]:80".parse().unwrap(), &io::ErrorKind::AddrInUse.into()), None);
    }

    #[tokio::test]
    async fn datagrams_of_ipv4_sockets_have_a_source_and_a_destination() {
        let s = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        setopt(&Socket::from(s.try_clone().unwrap()), libc::SOL_IP, libc::IP_RECVORIGDSTADDR, 1).unwrap();
        let at = s.local_addr().unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"x", at).unwrap();
        let got = OrigDst::new(s).unwrap().recv(16).await.unwrap();
        assert_eq!(got, (b"x".to_vec(), client.local_addr().unwrap(), at));
    }

    #[tokio::test]
    async fn what_is_decided_at_once_is_not_waited_for() {
        let to = |l: &std::net::TcpListener| l.local_addr().unwrap();
        let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let open = |at| finish(NetnsConnector::host().socket(at).unwrap(), at, Duration::ZERO);
        assert_eq!(open(to(&l)).await.unwrap().peer_addr().unwrap(), to(&l));
        let nobody = to(&l);
        drop(l);
        assert_eq!(open(nobody).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        // A listener whose queue is full answers nobody.
        let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        full.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
        full.listen(0).unwrap();
        let at = full.local_addr().unwrap().as_socket().unwrap();
        let begin = || {
            let s = NetnsConnector::host().socket(at).unwrap();
            let _ = s.connect(&SockAddr::from(at));
            s
        };
        let all: Vec<Socket> = (0..4).map(|_| begin()).collect();
        assert_eq!((decision(&all[0]), decision(&all[3])), (Some(Decided::Established), None));
        assert_eq!(open(at).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    /// While connections and queries of ours are open, whatever ports they have. A test beside this one may have one of these ports: it
    /// is in the way without ours, too, and then ours has another.
    #[tokio::test]
    async fn applications_can_listen_at_the_ports_of_our_sockets() {
        let listens = |own: SocketAddr| {
            let all = SocketAddr::new(without_host(own), own.port());
            std::net::TcpListener::bind(own).map(drop).and_then(|()| std::net::TcpListener::bind(all)).is_ok()
        };
        let servers = ["127.0.0.1:0", "[::1]:0"].map(|at| std::net::TcpListener::bind(at).unwrap());
        for server in &servers {
            let to = server.local_addr().unwrap();
            let mut has_listened = false;
            for _ in 0..8 {
                let open = NetnsConnector::host().connect(to, Duration::from_secs(5)).await.unwrap();
                let own = open.local_addr().unwrap();
                has_listened = listens(own);
                drop(open);
                if has_listened {
                    break;
                }
                assert!(!listens(own), "{own}: our connection was in the way");
            }
            assert!(has_listened, "others have each port that was tried");
            let query = NetnsConnector::host().udp(to).unwrap();
            let own = query.local_addr().unwrap();
            let application = Socket::new(Domain::for_address(to), Type::DGRAM, None).unwrap();
            application.set_reuse_address(true).unwrap();
            application.bind(&own).unwrap();
        }
    }

    /// Who shares a port gets no answers, or another's. (Of 700 that the kernel may give the same one to, some have it.)
    #[test]
    fn queries_to_one_resolver_have_a_port_each() {
        let resolver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = resolver.local_addr().unwrap();
        let queries: Vec<_> = (0..700).map(|_| NetnsConnector::host().udp(to).unwrap()).collect();
        let port = |query: &Socket| query.local_addr().unwrap().as_socket().unwrap().port();
        let ports: std::collections::HashSet<u16> = queries.iter().map(port).collect();
        assert_eq!(ports.len(), queries.len());
    }

    /// The address that stands for all of a family.
    fn without_host(at: SocketAddr) -> IpAddr {
        if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
    }

    #[test]
    fn what_is_accepted_has_the_listeners_options() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let accepted = || {
            let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            listener.accept().unwrap().0
        };
        let before = accepted();
        assert!(!SockRef::from(&before).keepalive().unwrap() && !before.nodelay().unwrap());
        let wanted = Keepalive { time: Duration::from_secs(7), interval: Duration::from_secs(8), retries: 9 };
        keepalive(&listener, &wanted);
        without_delay(&listener);
        let after = accepted();
        let socket = SockRef::from(&after);
        assert!(socket.keepalive().unwrap() && after.nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), wanted.time);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), wanted.interval);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), wanted.retries);
    }

    #[test]
    fn only_what_is_paced_is_set_to_another_congestion_control() {
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let (untouched, set) = (socket(), socket());
        let default = untouched.tcp_congestion().unwrap();
        let connector = |paced: bool| NetnsConnector { paced: Arc::new(paced.into()), ..NetnsConnector::host() };
        connector(false).unpaced(&untouched);
        connector(true).unpaced(&set);
        assert_eq!(untouched.tcp_congestion().unwrap(), default);
        assert!(set.tcp_congestion().unwrap().starts_with(b"reno") && !is_paced(&set));
    }

    #[test]
    fn the_source_is_the_one_that_routing_chooses() {
        let to = "127.0.0.9:9".parse().unwrap();
        assert_eq!(NetnsConnector::host().source_to(to).unwrap(), IpAddr::from([127, 0, 0, 1]));
    }
}
