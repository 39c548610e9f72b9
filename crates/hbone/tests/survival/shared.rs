//! Memory that outlives the process that writes to it: a memfd, with some numbers and a ring of bytes.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd},
    ptr, slice,
    sync::atomic::{AtomicU64, Ordering::Release},
};

/// Where the ring begins.
const PAGE: usize = 4096;
/// Bytes of the ring: the arena of a worker (`copy::ARENA`).
pub const RING: usize = 1 << 20;

/// How far a direction has come, in bytes.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    /// From the one socket.
    Taken,
    /// To the other.
    Given,
    /// The other end need not be sent it again.
    Acknowledged,
}

pub struct Shared {
    memory: *mut u8,
    _file: File,
}

impl Shared {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the name ends with a zero.
        let fd = unsafe { libc::memfd_create(c"survival".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is open, and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len((PAGE + RING) as u64)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping, of all of a file that nobody makes shorter.
        let memory = unsafe { libc::mmap(ptr::null_mut(), PAGE + RING, protection, flags, file.as_raw_fd(), 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { memory: memory.cast(), _file: file })
    }

    pub fn note(&self, which: Number, value: u64) {
        // SAFETY: in the first page, aligned, and used in no other way.
        let number = unsafe { AtomicU64::from_ptr(self.memory.cast::<u64>().add(which as usize)) };
        number.store(value, Release);
    }

    /// The ring from this byte of the stream on, as far as it is in one piece.
    pub fn at(&mut self, offset: u64, most: usize) -> &mut [u8] {
        let start = (offset % RING as u64) as usize;
        let length = most.min(RING - start);
        // SAFETY: within the mapping, behind the numbers; nobody else has it as long as this borrow lasts.
        unsafe { slice::from_raw_parts_mut(self.memory.add(PAGE + start), length) }
    }

    /// Keeps bytes of the stream, no more than the ring has.
    pub fn keep(&mut self, offset: u64, bytes: &[u8]) {
        let first = self.at(offset, bytes.len());
        let length = first.len();
        first.copy_from_slice(&bytes[..length]);
        let rest = &bytes[length..];
        self.at(offset + length as u64, rest.len()).copy_from_slice(rest);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` has made; nothing borrows it any more.
        unsafe { libc::munmap(self.memory.cast(), PAGE + RING) };
    }
}
