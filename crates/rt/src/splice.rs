//! splice(2): moves bytes between sockets through a pipe, without a copy to user space.
#![allow(unsafe_code, reason = "pipe2, splice and fstat")]

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// Bytes that a pipe is asked to hold.
pub const PIPE_SIZE: usize = 1 << 20;

/// A pipe for splicing. Reused only when empty.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes inside.
    pub held: usize,
    /// See [`Pipe::named`]; 0: nobody has asked yet.
    id: Cell<u64>,
}

impl Pipe {
    /// A new, empty pipe.
    ///
    /// # Errors
    /// Those of `pipe2`.
    pub fn new() -> io::Result<Self> {
        let mut fds = [0; 2];
        // SAFETY: pipe2 fills two descriptors, owned from here on; the size is a wish that may fail.
        unsafe {
            if libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::fcntl(fds[1], libc::F_SETPIPE_SZ, PIPE_SIZE as i32);
            Ok(Self {
                read: OwnedFd::from_raw_fd(fds[0]),
                write: OwnedFd::from_raw_fd(fds[1]),
                held: 0,
                id: Cell::new(0),
            })
        }
    }
    /// A new one that holds these bytes; none, if they have no room in it.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn holding(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut pipe = Self::new()?;
        let written = File::from(pipe.write.try_clone()?).write_all(bytes);
        pipe.held = bytes.len();
        Ok(written.is_ok().then_some(pipe))
    }
    /// Takes what the socket has, `most` bytes and no more than the pipe's size. 0: end of stream.
    ///
    /// # Errors
    /// Those of `splice`; `WouldBlock` if the socket has nothing.
    pub fn fill(&mut self, from: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        let count = splice(from.as_raw_fd(), self.write.as_raw_fd(), most.min(PIPE_SIZE))?;
        self.held += count;
        Ok(count)
    }
    /// Gives what the pipe holds to the socket.
    ///
    /// # Errors
    /// Those of `splice`; `WouldBlock` if the socket takes nothing.
    pub fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let count = splice(self.read.as_raw_fd(), to.as_raw_fd(), self.held)?;
        self.held -= count.min(self.held);
        Ok(count)
    }
    /// Its end that is read, and which pipe it is: see [`id`].
    ///
    /// # Errors
    /// Those of `fstat`.
    pub fn named(&self) -> io::Result<(RawFd, u64)> {
        if self.id.get() == 0 {
            self.id.set(id(self.read.as_fd())?);
        }
        Ok((self.read.as_raw_fd(), self.id.get()))
    }
    /// Takes what the pipe holds into memory, for somebody who is not given the pipe.
    ///
    /// # Errors
    /// There is no descriptor left; then nothing was taken.
    pub fn take(&mut self) -> io::Result<Vec<u8>> {
        let mut from = File::from(self.read.try_clone()?);
        let mut bytes = vec![0; self.held];
        // All of it is there: neither does this wait, nor is it short.
        from.read_exact(&mut bytes)?;
        self.held = 0;
        Ok(bytes)
    }
}

/// Which pipe a descriptor is an end of, as the kernel tells it from all others: its inode.
///
/// # Errors
/// Those of `fstat`; `InvalidInput` if it is no pipe.
pub fn id(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel writes one `stat`.
    if unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it has been written.
    let stat = unsafe { stat.assume_init() };
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFIFO => Ok(stat.st_ino),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn splice(from: i32, to: i32, length: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: both descriptors are open for the whole of the call; no offsets.
    let moved = unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), length, flags) };
    if moved < 0 { Err(io::Error::last_os_error()) } else { Ok(moved as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_pipe_is_known_by_any_descriptor_of_it() {
        let (one, other) = (Pipe::new().unwrap(), Pipe::new().unwrap());
        let (fd, known) = one.named().unwrap();
        assert_eq!((fd, one.named().unwrap().1), (one.read.as_raw_fd(), known));
        let again = one.write.try_clone().unwrap();
        assert_eq!(id(again.as_fd()).unwrap(), known);
        assert!(known != 0 && other.named().unwrap().1 != known);
        let file = File::open("/dev/null").unwrap();
        assert_eq!(id(file.as_fd()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_pipe_holds_what_has_room_in_it() {
        let bytes: Vec<u8> = (0..PIPE_SIZE).map(|n| (n / 3) as u8).collect();
        let mut pipe = Pipe::holding(&bytes).unwrap().unwrap();
        assert_eq!(pipe.held, PIPE_SIZE);
        assert!(pipe.take().unwrap() == bytes);
        assert!(Pipe::holding(&[bytes, vec![0]].concat()).unwrap().is_none());
    }

    #[test]
    fn what_a_pipe_holds_can_be_taken_out() {
        let (mut one, other) = UnixStream::pair().unwrap();
        other.set_nonblocking(true).unwrap();
        let mut pipe = Pipe::new().unwrap();
        assert!(pipe.take().unwrap().is_empty());
        one.write_all(b"held by the pipe").unwrap();
        assert_eq!(pipe.fill(other.as_fd(), PIPE_SIZE).unwrap(), 16);
        assert_eq!((pipe.take().unwrap(), pipe.held), (b"held by the pipe".to_vec(), 0));
        one.write_all(b"more").unwrap();
        assert_eq!(pipe.fill(other.as_fd(), PIPE_SIZE).unwrap(), 4);
        assert_eq!(pipe.take().unwrap(), b"more");
    }
}
