//! Sockets for pods whose connections the kernel's NAT brings to us (`REDIRECT`), as Istio's node agent has it: ports of the pod's
//! own, marked with Istio's packet mark, which its rules let pass. Where a connection was to go is kept by connection tracking.
//!
//! Two processes may have the same ports at once (SO_REUSEPORT) while one takes over from the other: see [`start`].
#![allow(unsafe_code, reason = "setsockopt(SO_ATTACH_REUSEPORT_CBPF), which socket2 does not have")]

use crate::{
    mark::MARK_ZTUNNEL,
    socket::{transparent, without_ipv6},
};
use karst_core::{canonical, limits};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, AsRawFd},
};
use tokio::net::TcpStream;

/// A listener at a port of the calling thread's namespace; an IPv6 wildcard takes both families, or those that the kernel has.
/// Accepted sockets inherit [`MARK_ZTUNNEL`]. If another process has the port, it goes on to get all connections until [`start`];
/// else they wait in this one's queue from now on.
///
/// # Errors
/// Those of the socket calls; `AddrInUse` if a process has the port that does not share it (SO_REUSEPORT) or is another user's.
/// CAP_NET_ADMIN is needed.
pub fn listener(at: SocketAddr) -> io::Result<TcpListener> {
    match bound(at) {
        Err(e) => without_ipv6(at, &e).map_or(Err(e), bound),
        r => r,
    }
}

fn bound(at: SocketAddr) -> io::Result<TcpListener> {
    let taken = is_taken(at, Type::STREAM);
    let socket = shared(at, Type::STREAM, Protocol::TCP)?;
    socket.set_tcp_nodelay(true)?; // inherited by accepted sockets
    // Rules that bring connections by TPROXY leave their destination as it was.
    transparent(&socket, at.is_ipv6())?;
    socket.bind(&SockAddr::from(at))?;
    if !taken {
        socket.listen(limits::BACKLOG)?;
    }
    Ok(socket.into())
}

/// A UDP socket for a port of the calling thread's namespace, with the mark as [`listener`]. If another process has the port, it
/// goes on to get all datagrams until [`start_udp`].
///
/// # Errors
/// As [`listener`].
pub fn udp(at: SocketAddr) -> io::Result<UdpSocket> {
    let taken = is_taken(at, Type::DGRAM);
    let socket = shared(at, Type::DGRAM, Protocol::UDP)?;
    if !taken {
        socket.bind(&SockAddr::from(at))?;
    }
    Ok(socket.into())
}

/// Has anybody the port, shared or not?
fn is_taken(at: SocketAddr, kind: Type) -> bool {
    let alone = || {
        let socket = Socket::new(Domain::for_address(at), kind.cloexec(), None)?;
        if at.is_ipv6() {
            socket.set_only_v6(!at.ip().is_unspecified())?;
        }
        // Connections that a listener has left behind are none. (Of UDP sockets this would be sharing.)
        socket.set_reuse_address(kind == Type::STREAM)?;
        socket.bind(&SockAddr::from(at))
    };
    alone().is_err()
}

/// From now on this listener gets what is new, and no other process that has its port. To be called when
/// what comes can be served. A second call changes nothing.
///
/// # Errors
/// Those of `listen` and `setsockopt`.
pub fn start(listener: &impl AsFd) -> io::Result<()> {
    SockRef::from(listener).listen(limits::BACKLOG)?;
    prefer_newest(listener)
}

/// The same for a UDP socket, which gets this address if it has none yet.
///
/// # Errors
/// Those of `bind` and `setsockopt`.
pub fn start_udp(socket: &impl AsFd, at: SocketAddr) -> io::Result<()> {
    let inner = SockRef::from(socket);
    if inner.local_addr()?.as_socket().is_none_or(|bound| bound.port() == 0) {
        inner.bind(&SockAddr::from(at))?;
    }
    prefer_newest(socket)
}

/// Does an error say that the namespace, or its kernel, does not have an address of this family?
pub fn is_without_family(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

fn shared(at: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), kind.nonblocking().cloexec(), Some(protocol))?;
    if at.is_ipv6() {
        socket.set_only_v6(!at.ip().is_unspecified())?;
    }
    socket.set_mark(MARK_ZTUNNEL)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    Ok(socket)
}

/// Of the sockets that share a port, the second one gets what is new from now on, if there is a second one: it is the one that
/// came last, since two processes at most share a port, and a socket that is closed gives its place to the last. So nothing waits
/// in the queue of the process that is about to go, where closing would reset it. While a socket is alone it gets everything.
///
/// # Errors
/// Those of `setsockopt`.
fn prefer_newest(socket: &impl AsFd) -> io::Result<()> {
    const SECOND: u32 = 1;
    let mut code = [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: SECOND }];
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    // SAFETY: the kernel reads a sock_fprog of this size, and copies the instruction that it points to; both outlive the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as u32,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where a connection was to go before NAT; its own local address if none has changed it (or it came by TPROXY).
///
/// # Errors
/// Those of `getsockname` and `getsockopt`.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = canonical(stream.local_addr()?);
    let socket = SockRef::from(stream);
    let before = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    match before {
        Ok(at) => Ok(at.as_socket().map_or(local, canonical)),
        // The connection is not tracked; or nothing is tracked at all in this namespace.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOPROTOOPT)) => Ok(local),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream as Client;

    /// Without the mark, which needs a privilege.
    fn sharing(at: SocketAddr) -> TcpListener {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&at.into()).unwrap();
        socket.listen(64).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.into()
    }

    fn waiting(listener: &TcpListener) -> usize {
        std::iter::from_fn(|| listener.accept().ok()).count()
    }

    #[test]
    fn what_is_new_goes_to_the_newest_and_to_who_is_left() {
        let call = |at| (0..32).map(|_| Client::connect(at).unwrap()).collect::<Vec<_>>();
        let first = sharing("127.0.0.1:0".parse().unwrap());
        let at = first.local_addr().unwrap();
        prefer_newest(&first).unwrap();
        let _alone = call(at);
        assert_eq!(waiting(&first), 32, "there is no second one");
        let second = sharing(at);
        let _both = call(at);
        assert_eq!((waiting(&first), waiting(&second)), (0, 32));
        drop(first);
        let _left = call(at);
        assert_eq!(waiting(&second), 32);
        // The one that is left is the first now.
        let third = sharing(at);
        prefer_newest(&third).unwrap();
        let _again = call(at);
        assert_eq!((waiting(&second), waiting(&third)), (0, 32));
    }

    #[test]
    fn a_port_is_taken_by_who_listens() {
        let first = sharing("127.0.0.1:0".parse().unwrap());
        let at = first.local_addr().unwrap();
        let client = Client::connect(at).unwrap();
        assert!(is_taken(at, Type::STREAM), "though it is shared");
        let (accepted, _) = first.accept().unwrap();
        drop(first);
        assert!(!is_taken(at, Type::STREAM), "what was accepted does not count");
        drop((client, accepted));
        let queries = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = queries.local_addr().unwrap();
        assert!(is_taken(at, Type::DGRAM));
        drop(queries);
        assert!(!is_taken(at, Type::DGRAM));
    }

    /// One that has bound a port and does not listen yet leaves the other's connections alone.
    #[test]
    fn nothing_is_taken_over_before_the_start() {
        let first = sharing("127.0.0.1:0".parse().unwrap());
        let at = first.local_addr().unwrap();
        start(&first).unwrap();
        let second = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        second.set_reuse_port(true).unwrap();
        second.bind(&at.into()).unwrap();
        let second = TcpListener::from(second);
        let call = || (0..16).map(|_| Client::connect(at).unwrap()).collect::<Vec<_>>();
        let _before = call();
        assert_eq!(waiting(&first), 16);
        start(&second).unwrap();
        let _after = call();
        assert_eq!((waiting(&first), waiting(&second)), (0, 16));
    }

    #[tokio::test]
    async fn without_nat_the_destination_is_the_local_address() {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = tokio::net::TcpListener::bind(at).await else { continue };
            let at = listener.local_addr().unwrap();
            let _client = Client::connect(at).unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            assert_eq!(original_destination(&accepted).unwrap(), at);
        }
    }
}
