//! Memory that outlives the process that writes to it, as long as somebody has a descriptor of it.
#![allow(unsafe_code, reason = "memfd_create, mmap, fallocate")]

use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::AtomicU64,
};

/// Words in a file of memory. Those that nobody has written are 0, and take none.
#[derive(Debug)]
pub struct Memory {
    words: NonNull<AtomicU64>,
    count: usize,
    file: File,
}

// SAFETY: the mapping is nobody else's and lasts as long as this; all there is in it are atomics.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// So many words.
    ///
    /// # Errors
    /// Those of `memfd_create`, `ftruncate` and `mmap`.
    pub fn new(count: usize) -> io::Result<Self> {
        // SAFETY: the name ends with a zero.
        let fd = unsafe { libc::memfd_create(c"karst-connections".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is open, and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        let length = count * size_of::<AtomicU64>();
        file.set_len(length as u64)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, of all of a file that nobody makes shorter while this process lives.
        let memory = unsafe { libc::mmap(ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { words, count, file })
    }

    /// All of them.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped from a page's beginning on, so many, for as long as this lives; any bytes are an atomic's.
        unsafe { slice::from_raw_parts(self.words.as_ptr(), self.count) }
    }

    /// Gives back the pages that are all of these words'; they are 0 again. Failure is of no consequence and passed over.
    pub fn forget(&self, words: Range<usize>) {
        let page = crate::process::page_size() as usize / size_of::<AtomicU64>();
        let (first, end) = (words.start.next_multiple_of(page), words.end / page * page);
        if first >= end || end > self.count {
            return;
        }
        let [offset, length] = [first, end - first].map(|count| (count * size_of::<AtomicU64>()) as libc::off_t);
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the descriptor is open; what is mapped of the file stays mapped.
        unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) };
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` has made; nothing borrows it any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::fs::MetadataExt, sync::atomic::Ordering::Relaxed};

    #[test]
    fn what_is_not_used_takes_no_memory() {
        let memory = Memory::new(1 << 20).unwrap();
        let used = || memory.file.metadata().unwrap().blocks();
        assert_eq!(used(), 0);
        for word in memory.words().iter().step_by(64) {
            word.store(7, Relaxed);
        }
        let all = used();
        assert!(all >= (8 << 20) / 512, "{all}");
        memory.forget(1..(1 << 20));
        assert!(used() <= all / 100, "{} of {all}", used());
        assert_eq!(memory.words()[0].load(Relaxed), 7, "its page is not only theirs");
        assert_eq!(memory.words()[64 * 100].load(Relaxed), 0);
        // No page, and more than there is.
        memory.forget(5..5);
        memory.forget(0..usize::MAX);
        assert_eq!(memory.words()[0].load(Relaxed), 7);
    }
}
