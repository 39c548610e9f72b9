//! Buffers that are large, and of which mostly little is used: their pages are the system's until they are written to, and again when
//! they are dropped. The allocator clears all of what it hands out for the second time, so that all of it is resident, and keeps what it
//! gets back.
#![allow(unsafe_code, reason = "mmap, madvise and munmap of memory that is nobody else's")]

use std::{
    io,
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
    slice,
};

/// Bytes.
#[derive(Debug)]
pub struct Buffer(Place);

#[derive(Debug)]
enum Place {
    Mapped(Mapped),
    /// Of the allocator.
    Heap(Vec<u8>),
}

impl Buffer {
    /// So many bytes, which are 0. Where the process can have no mapping more (vm.max_map_count) they are the allocator's.
    pub fn new(length: usize) -> Self {
        Self(Mapped::new(length).map_or_else(|_| Place::Heap(vec![0; length]), Place::Mapped))
    }
}

impl Default for Buffer {
    /// An empty one, which takes nothing.
    fn default() -> Self {
        Self(Place::Heap(Vec::new()))
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Place::Heap(bytes))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Place::Mapped(mapped) => mapped.bytes(),
            Place::Heap(bytes) => bytes,
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Place::Mapped(mapped) => mapped.bytes_mut(),
            Place::Heap(bytes) => bytes,
        }
    }
}

/// A mapping of no file.
#[derive(Debug)]
struct Mapped {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is nobody else's and lasts as long as this; all there is in it are bytes.
unsafe impl Send for Mapped {}
// SAFETY: as above, and it is written to only by who has it for himself.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// So many bytes, at least one.
    fn new(length: usize) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, wherever there is room.
        let memory = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A few bytes are not to make 2 MiB resident. Kernels without such pages refuse, which is as good.
        // SAFETY: the mapping from above.
        unsafe { libc::madvise(memory, length, libc::MADV_NOHUGEPAGE) };
        let start = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped, so many, for as long as this lives; any byte is a u8.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has it meanwhile.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` has made; nothing borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of it that are resident.
    fn resident(buffer: &Buffer) -> usize {
        let mut pages = vec![0; buffer.len().div_ceil(crate::process::page_size() as usize)];
        let start = buffer.as_ptr().cast_mut().cast();
        // SAFETY: the buffer is mapped from a page's beginning on, and there is a byte for each of its pages.
        let result = unsafe { libc::mincore(start, buffer.len(), pages.as_mut_ptr()) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    #[test]
    fn only_what_is_written_to_is_resident_also_the_second_time() {
        const LENGTH: usize = 1 << 20;
        for round in 0..3 {
            let mut buffer = Buffer::new(LENGTH);
            assert!(matches!(buffer.0, Place::Mapped(_)));
            assert_eq!((buffer.len(), resident(&buffer)), (LENGTH, 0), "{round}");
            buffer[..10].fill(7);
            buffer[LENGTH - 1] = 7;
            assert_eq!(resident(&buffer), 2, "{round}");
            assert_eq!((buffer[9], buffer[10], buffer[LENGTH - 1]), (7, 0, 7));
            buffer.fill(7);
        }
    }

    #[test]
    fn a_buffer_may_be_of_any_length() {
        assert!(Buffer::default().is_empty() && Buffer::new(0).is_empty());
        assert_eq!(*Buffer::from(vec![1, 2]), [1, 2]);
    }
}
