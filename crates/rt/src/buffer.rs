//! Buffers that are large, and of which mostly little is used: their pages are the system's until they are written to, and again when
//! they are dropped. The allocator clears all of what it hands out for the second time, so that all of it is resident, and keeps what it
//! gets back.

use memmap2::{Advice, MmapMut};
use std::{
    io,
    ops::{Deref, DerefMut},
};

/// Bytes.
#[derive(Debug)]
pub struct Buffer(Place);

#[derive(Debug)]
enum Place {
    Mapped(MmapMut),
    /// Of the allocator.
    Heap(Vec<u8>),
}

impl Buffer {
    /// So many bytes, which are 0. Where the process can have no mapping more (vm.max_map_count) they are the allocator's.
    pub fn new(length: usize) -> Self {
        Self(map(length).map_or_else(|_| Place::Heap(vec![0; length]), Place::Mapped))
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
            Place::Mapped(mapped) => mapped,
            Place::Heap(bytes) => bytes,
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Place::Mapped(mapped) => mapped,
            Place::Heap(bytes) => bytes,
        }
    }
}

/// A mapping of no file.
fn map(length: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(length)?;
    // A few bytes are not to make 2 MiB resident. Kernels without such pages refuse, which is as good.
    let _ = memory.advise(Advice::NoHugePage);
    Ok(memory)
}

#[cfg(test)]
#[allow(unsafe_code, reason = "mincore")]
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
