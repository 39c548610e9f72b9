//! Unix SOCK_SEQPACKET with descriptor passing: the transport of ZDS.
#![allow(unsafe_code, reason = "sendmsg and recvmsg with SCM_RIGHTS, poll")]

use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    fs::Permissions,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep},
};

/// Descriptors that one packet may carry.
pub const MAX_FDS: usize = 16;
/// Connections that may wait at a listener.
const BACKLOG: i32 = 16;
/// A listener whose queue is full is given up after this time: it accepts nobody.
const FULL_FOR: Duration = Duration::from_secs(5);
/// Meanwhile it is tried so often: the kernel does not tell when there is room.
const FULL_LOOK: Duration = Duration::from_millis(20);

/// A listening socket.
pub struct Listener(AsyncFd<Socket>);
/// A connection.
pub struct Packets(AsyncFd<Socket>);

impl Listener {
    /// Binds and listens at a path; a stale socket file is replaced. Only this user and root may connect, whatever the umask: who does
    /// is given descriptors of pods.
    ///
    /// # Errors
    /// Those of `bind` and `chmod`; `AddrInUse` if another process listens there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking().cloexec(), None)?;
        let addr = SockAddr::unix(path)?;
        if path.exists() {
            let probe = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking().cloexec(), None)?;
            // One whose queue is full is there, too.
            if probe.connect(&addr).map_or_else(|e| e.kind() == io::ErrorKind::WouldBlock, |()| true) {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("another process listens at {}", path.display()),
                ));
            }
            std::fs::remove_file(path)?;
        }
        socket.bind(&addr)?;
        // Before it listens nobody can connect.
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        socket.listen(BACKLOG)?;
        Ok(Self(register(socket)?))
    }
    /// Waits for a connection.
    ///
    /// # Errors
    /// Those of `accept`.
    pub async fn accept(&self) -> io::Result<Packets> {
        let (socket, _) = self.0.async_io(Interest::READABLE, |s| s.accept()).await?;
        socket.set_nonblocking(true)?;
        Ok(Packets(register(socket)?))
    }
}

impl Packets {
    /// Connects to a path. Where the listener's queue is full, a place in it is waited for; the thread is not.
    ///
    /// # Errors
    /// Those of `connect`; `TimedOut` if nobody is accepted there.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking().cloexec(), None)?;
        let (address, until) = (SockAddr::unix(path)?, Instant::now() + FULL_FOR);
        loop {
            match socket.connect(&address) {
                Ok(()) => return Ok(Self(register(socket)?)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => sleep(FULL_LOOK).await,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
                Err(e) => return Err(e),
            }
        }
    }
    /// Two ends that are connected to each other: one to keep, and one to pass on.
    ///
    /// # Errors
    /// Those of `socketpair`.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (own, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        own.set_nonblocking(true)?;
        Ok((Self(register(own)?), other.into()))
    }
    /// An end that somebody has passed on.
    ///
    /// # Errors
    /// Those of `fcntl` and `epoll_ctl`.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(fd);
        socket.set_nonblocking(true)?;
        Ok(Self(register(socket)?))
    }
    /// Sends one packet with descriptors.
    ///
    /// # Errors
    /// Those of `sendmsg`.
    pub async fn send(&self, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.0.async_io(Interest::WRITABLE, |s| send(s, data, fds)).await
    }
    /// Receives one packet of at most `max` bytes; an empty one is the end.
    ///
    /// # Errors
    /// Those of `recvmsg`; `InvalidData` if the packet or its descriptors did not fit.
    pub async fn recv(&self, max: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        self.0.async_io(Interest::READABLE, |s| recv(s, max)).await
    }
}

/// One end of a pair, where there is no runtime. Nothing is waited for but an end.
#[derive(Debug)]
pub struct Channel(Socket);

impl Channel {
    /// Two ends that are connected to each other: one to keep, and one to pass on.
    ///
    /// # Errors
    /// Those of `socketpair`.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (own, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        own.set_nonblocking(true)?;
        Ok((Self(own), other.into()))
    }
    /// An end that somebody has passed on.
    ///
    /// # Errors
    /// Those of `fcntl`.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let socket = Socket::from(fd);
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }
    /// Sends one packet with descriptors.
    ///
    /// # Errors
    /// Those of `sendmsg`; `WouldBlock` if there is no room.
    pub fn send(&self, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(&self.0, data, fds)
    }
    /// Receives one packet of at most `max` bytes; an empty one is the end.
    ///
    /// # Errors
    /// Those of `recvmsg`; `WouldBlock` if there is none; `InvalidData` if the packet or its descriptors did not fit.
    pub fn recv(&self, max: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        recv(&self.0, max)
    }
    /// Waits until nobody has the other end any more. False: somebody still has after this time. Packets are lost.
    pub fn ended(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            match recv(&self.0, 1) {
                Ok((data, _)) if data.is_empty() => return true,
                // More may have come. Whoever never stops is waited for no longer than others.
                Ok(_) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::WouldBlock) => {}
                Err(_) => return true,
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let limit = libc::c_int::try_from(left.as_millis() + 1).unwrap_or(libc::c_int::MAX);
            // SAFETY: one pollfd, which outlives the call.
            unsafe { libc::poll(&raw mut poll, 1, limit) };
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a Socket owns its descriptor and names the same one for its whole life.
    Ok(unsafe { AsyncFd::register(socket)? })
}

#[repr(align(8))]
struct Control([u8; 24 + MAX_FDS * 4]);

pub(crate) fn send(socket: &Socket, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one packet"));
    }
    let mut control = Control([0; 24 + MAX_FDS * 4]);
    let mut iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: all-zero is a valid msghdr. The control buffer is aligned for cmsghdr and has room for MAX_FDS
    // descriptors; CMSG_FIRSTHDR and CMSG_DATA point into it. `data`, `iov` and `control` outlive the call.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        if !fds.is_empty() {
            let bytes = (fds.len() * 4) as u32;
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(bytes) as usize;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(bytes) as usize;
            for (i, fd) in fds.iter().enumerate() {
                libc::CMSG_DATA(header).cast::<i32>().add(i).write_unaligned(fd.as_raw_fd());
            }
        }
        if libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

fn recv(socket: &Socket, max: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut data = vec![0; max];
    let mut control = Control([0; 24 + MAX_FDS * 4]);
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: max };
    let mut fds = Vec::new();
    // SAFETY: as in `send`; every descriptor that the kernel delivers is taken into ownership at once.
    let (length, flags) = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len();
        let length = libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC);
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let count = ((*header).cmsg_len - libc::CMSG_LEN(0) as usize) / 4;
                for i in 0..count {
                    fds.push(OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<i32>().add(i).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        (length as usize, message.msg_flags)
    };
    if flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet is larger than the protocol allows"));
    }
    data.truncate(length);
    Ok((data, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_channel_waits_for_nothing_but_its_end() {
        let (own, other) = Channel::pair().unwrap();
        assert_eq!(own.recv(8).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let other = Channel::from_fd(other).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        own.send(b"take", &[file.as_fd()]).unwrap();
        let (data, fds) = other.recv(8).unwrap();
        assert_eq!((&data[..], fds.len()), (&b"take"[..], 1));
        assert!(!own.ended(Duration::from_millis(20)), "it is there");
        other.send(b"unread", &[]).unwrap();
        // Whoever says something without end is there, and is not waited for any longer.
        let (stop, told) = mpsc::channel();
        let ends = std::thread::spawn(move || {
            while told.try_recv() == Err(mpsc::TryRecvError::Empty) {
                let _ = other.send(b"more", &[]);
            }
            drop(other);
        });
        assert!(!own.ended(Duration::from_millis(20)));
        stop.send(()).unwrap();
        assert!(own.ended(Duration::from_secs(10)));
        ends.join().unwrap();
    }

    #[tokio::test]
    async fn an_end_that_was_passed_on_is_an_end() {
        let ((first, passed), (own, other)) = (Packets::pair().unwrap(), Packets::pair().unwrap());
        first.send(b"take this", &[other.as_fd()]).await.unwrap();
        drop(other);
        let (data, mut fds) = Packets::from_fd(passed).unwrap().recv(64).await.unwrap();
        assert_eq!((&data[..], fds.len()), (&b"take this"[..], 1));
        let other = Packets::from_fd(fds.remove(0)).unwrap();
        own.send(b"hello", &[]).await.unwrap();
        assert_eq!(other.recv(64).await.unwrap().0, b"hello");
        drop(other);
        assert!(own.recv(64).await.unwrap().0.is_empty() && own.send(b"x", &[]).await.is_err());
    }

    #[tokio::test]
    async fn packets_and_descriptors_arrive() {
        let dir = std::env::temp_dir().join(format!("karst-seq-{}", std::process::id()));
        let l = Listener::bind(&dir).unwrap();
        assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o600, "it is nobody else's");
        let a = Packets::connect(&dir).await.unwrap();
        let b = l.accept().await.unwrap();
        let f = std::fs::File::open("/proc/self/ns/net").unwrap();
        a.send(b"hello", &[f.as_fd(), f.as_fd()]).await.unwrap();
        let (data, fds) = b.recv(1024).await.unwrap();
        assert_eq!((&data[..], fds.len()), (&b"hello"[..], 2));
        a.send(&[7; 100], &[]).await.unwrap();
        assert_eq!(b.recv(50).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        // Last, because the probe for a live listener shows up as a connection.
        assert_eq!(Listener::bind(&dir).err().map(|e| e.kind()), Some(io::ErrorKind::AddrInUse));
        drop(a);
        assert!(b.recv(10).await.unwrap().0.is_empty());
        std::fs::remove_file(dir).unwrap();
    }

    /// The kernel lets a socket that may block wait for as long as that lasts, and a thread with it.
    #[tokio::test(start_paused = true)]
    async fn a_listener_that_accepts_nobody_is_given_up_and_waited_for_without_the_thread() {
        let path = std::env::temp_dir().join(format!("karst-full-{}", std::process::id()));
        let l = Listener::bind(&path).unwrap();
        let (mut waiting, began) = (vec![], Instant::now());
        let error = loop {
            match Packets::connect(&path).await {
                Ok(one) => waiting.push(one),
                Err(e) => break e,
            }
        };
        assert_eq!((error.kind(), began.elapsed() >= FULL_FOR), (io::ErrorKind::TimedOut, true));
        assert!(waiting.len() >= BACKLOG as usize, "{}", waiting.len());
        assert_eq!(Listener::bind(&path).err().map(|e| e.kind()), Some(io::ErrorKind::AddrInUse), "it is there");
        // Others of the thread go on meanwhile: here, who makes room.
        let room = async {
            sleep(FULL_FOR / 2).await;
            l.accept().await
        };
        let (room, connected) = tokio::join!(room, Packets::connect(&path));
        assert!(room.is_ok() && connected.is_ok());
        std::fs::remove_file(path).unwrap();
    }
}
