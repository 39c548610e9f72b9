//! Calls that std, tokio and socket2 do not have, and sockets and processes for the tests.

use socket2::SockRef;
use std::{
    io, mem,
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::ExitStatusExt,
    },
    process::ExitStatus,
    ptr,
    time::Duration,
};

/// A process of a test ends after so many seconds, should the test have ended without it.
const LIFE: libc::c_uint = 30;

/// Two ends of a connection on `lo`: the one that has connected, and the one that was accepted. Without delay and not paced, as ours.
pub fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    for end in [&near, &far] {
        end.set_nodelay(true).unwrap();
        let _ = SockRef::from(end).set_tcp_congestion(b"reno");
    }
    (near, far)
}

fn counted(count: isize) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub fn recv(socket: &impl AsRawFd, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the kernel writes no more than the buffer's length.
    let count = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
    counted(count)
}

pub fn send(socket: &impl AsRawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel reads no more than the length.
    let count = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
    counted(count)
}

/// Takes what was seen by `MSG_PEEK` out of a TCP socket, without a copy.
pub fn consume(socket: &impl AsRawFd, mut count: usize) -> io::Result<()> {
    while count > 0 {
        // SAFETY: with `MSG_TRUNC` TCP writes nothing.
        let taken = unsafe { libc::recv(socket.as_raw_fd(), ptr::null_mut(), count, libc::MSG_TRUNC) };
        match counted(taken)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            taken => count -= taken,
        }
    }
    Ok(())
}

/// From now on each `MSG_PEEK` sees what comes after the one before. TCP has it since Linux 6.10, of IPv6 since 6.12.
pub fn peek_ahead(socket: &impl AsRawFd) -> io::Result<()> {
    let offset: libc::c_int = 0;
    let length = size_of_val(&offset) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `offset`.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, (&raw const offset).cast(), length)
    };
    done(result)
}

/// Moves bytes into a pipe or out of one; it may wait.
pub fn splice(from: RawFd, to: RawFd, most: usize) -> io::Result<usize> {
    // SAFETY: no offsets; the kernel checks the descriptors.
    let count = unsafe { libc::splice(from, ptr::null_mut(), to, ptr::null_mut(), most, 0) };
    counted(count)
}

/// Says that nothing more comes.
pub fn end(socket: RawFd) -> io::Result<()> {
    // SAFETY: the kernel checks the descriptor.
    let result = unsafe { libc::shutdown(socket, libc::SHUT_WR) };
    done(result)
}

/// Ends a connection by a reset, however many descriptors there are of its socket.
pub fn reset(socket: &impl AsRawFd) -> io::Result<()> {
    let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `nobody`.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) };
    done(result)
}

/// Bytes that wait: to be read (`FIONREAD`, of sockets and pipes) or to be acknowledged (`TIOCOUTQ`).
pub fn queued(of: &impl AsRawFd, which: libc::Ioctl) -> u64 {
    let mut count: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    let result = unsafe { libc::ioctl(of.as_raw_fd(), which, &raw mut count) };
    assert_eq!(result, 0);
    count as u64
}

/// What `TCP_INFO` says, as far as it is of use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    pub state: u8,
    /// `tcpi_bytes_acked`, since Linux 4.1.
    pub acked: u64,
    /// `tcpi_bytes_received`, since Linux 4.1.
    pub received: u64,
}

pub fn counters(socket: &impl AsRawFd) -> Counters {
    // `struct tcp_info` up to `tcpi_bytes_received`: its state is the first byte, and these two are the last words.
    let mut info = [0u64; 17];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes no more than `length` bytes.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut length)
    };
    assert_eq!((result, length as usize), (0, size_of_val(&info)));
    Counters { state: info[0].to_ne_bytes()[0], acked: info[15], received: info[16] }
}

/// CPU time of the calling thread.
pub fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Waits for a signal that ends the process.
pub fn wait_for_the_end() -> ! {
    loop {
        // SAFETY: no preconditions.
        unsafe { libc::pause() };
    }
}

/// Closes what a process has beside these descriptors and the standard ones. To be called in a new process: what others of its parent's
/// threads had open is none of its business, and nor is the parent's own end of what is between them. Streams of Unix sockets stay: two
/// of them are tokio's own, for signals, and every runtime of this process reads them.
pub fn close_all_but(own: &[RawFd]) {
    const MOST: RawFd = 1024;
    for fd in (3..MOST).filter(|fd| !own.contains(fd)) {
        let option = |name| {
            let (mut value, mut length) = (0 as libc::c_int, size_of::<libc::c_int>() as libc::socklen_t);
            // SAFETY: the value has the length that is said.
            let done =
                unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length) };
            (done == 0).then_some(value)
        };
        if option(libc::SO_DOMAIN) != Some(libc::AF_UNIX) || option(libc::SO_TYPE) != Some(libc::SOCK_STREAM) {
            // SAFETY: nobody uses it.
            unsafe { libc::close(fd) };
        }
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_close_range, MOST as libc::c_uint, libc::c_uint::MAX, 0) };
}

fn limit_life() {
    // SAFETY: no preconditions.
    unsafe { libc::alarm(LIFE) };
}

/// A process that does nothing but share the calling one's table of descriptors: what is opened or closed in one is so in the other, and
/// what is open stays open until both have ended.
pub fn share_descriptors() -> libc::pid_t {
    let flags = libc::c_long::from(libc::CLONE_FILES | libc::SIGCHLD);
    const NONE: libc::c_long = 0;
    // SAFETY: as `fork`, since the memory is not shared. The new process takes no lock and allocates nothing.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, NONE, NONE, NONE, NONE) };
    if pid == 0 {
        limit_life();
        wait_for_the_end();
    }
    pid as libc::pid_t
}

/// Ends a process that is no child of this one.
pub fn kill(pid: libc::pid_t) {
    // -1 would be every process there is.
    assert!(pid > 1, "{pid}");
    // SAFETY: no preconditions.
    let result = unsafe { libc::kill(pid, libc::SIGKILL) };
    assert_eq!(result, 0);
}

/// A child. It is killed, and waited for, when this is dropped.
pub struct Process(libc::pid_t);

impl Process {
    /// Forks. The work must be calls of the system and nothing else: other threads, which may hold a lock, are not in the new process.
    pub fn fork(work: impl FnOnce() -> i32) -> Self {
        // SAFETY: see above; the new process ends here.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            limit_life();
            let code = work();
            // SAFETY: no preconditions. What the test would do at its end is not done.
            unsafe { libc::_exit(code) };
        }
        Self::started(pid)
    }

    /// See [`share_descriptors`].
    pub fn with_our_descriptors() -> Self {
        Self::started(share_descriptors())
    }

    fn started(pid: libc::pid_t) -> Self {
        assert!(pid > 0, "{}", io::Error::last_os_error());
        Self(pid)
    }

    pub fn kill(self) {
        drop(self);
    }

    /// Waits until it has ended; its exit code.
    pub fn end(self) -> Option<i32> {
        let status = self.wait();
        mem::forget(self);
        status.code()
    }

    fn wait(&self) -> ExitStatus {
        let mut status = 0;
        // SAFETY: the kernel writes one int.
        unsafe { libc::waitpid(self.0, &raw mut status, 0) };
        ExitStatus::from_raw(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: a child that nobody has waited for yet, so its number is nobody else's.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        self.wait();
    }
}
