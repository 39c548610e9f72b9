//! Facts about the process itself.
#![allow(unsafe_code)] // getrlimit and setrlimit

use std::{io, path::Path};

/// Where procfs can be written: in a container that has the node's at `/host/proc`, its own is read-only.
pub fn proc_root() -> &'static Path {
    let host = Path::new("/host/proc");
    if host.join("sys").is_dir() { host } else { Path::new("/proc") }
}

/// Raises the soft limit of open descriptors to the hard one and returns it.
///
/// # Errors
/// Those of `getrlimit` and `setrlimit`.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut r = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `r` is a valid rlimit for both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut r) != 0 {
            return Err(io::Error::last_os_error());
        }
        r.rlim_cur = r.rlim_max;
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const r) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(r.rlim_cur)
}

/// Sets the allocator up for a proxy: buffers of some hundred KiB come and go all the time, and by default each would be
/// mapped, faulted in page by page, and unmapped again.
pub fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 8 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TOP_PAD, 256 << 10);
    }
}

/// Returns freed memory to the system after a burst (glibc keeps it otherwise).
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}
