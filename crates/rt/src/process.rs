//! Facts about the process itself.
#![allow(unsafe_code, reason = "getrlimit, setrlimit, sysconf and clock_gettime; setns of a thread that ends with it")]

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// See [`trims`].
static TRIMS: AtomicU64 = AtomicU64::new(0);

/// How often freed memory has been returned so far.
pub fn trims() -> u64 {
    TRIMS.load(Relaxed)
}

/// Where procfs can be written: in a container that has the node's at `/host/proc`, its own is read-only.
pub fn proc_root() -> &'static Path {
    let host = Path::new("/host/proc");
    if host.join("sys").is_dir() { host } else { Path::new("/proc") }
}

/// Runs `work` on a thread of its own that sees cgroups as the node's first process does. (In a container /proc shows where
/// a process is relative to the container's own cgroup, as `/../../system.slice/x`.)
///
/// # Errors
/// If that process's cgroup namespace cannot be entered (CAP_SYS_ADMIN and CAP_SYS_PTRACE are needed); then `work` is not
/// run.
pub fn with_node_cgroups<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let on_thread = || {
        let ns = File::open(proc_root().join("1/ns/cgroup"))?;
        // SAFETY: an open descriptor; only this thread is moved, and it ends below.
        if unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWCGROUP) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(work())
    };
    std::thread::scope(|s| s.spawn(on_thread).join())
        .unwrap_or_else(|_| Err(io::Error::other("the thread has panicked")))
}

/// Ticks of the clock by which procfs counts CPU time, in one second.
pub fn ticks_per_second() -> u64 {
    // SAFETY: no preconditions.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).ok().filter(|ticks| *ticks > 0).unwrap_or(100)
}

/// For how long the process has had processors so far, of all its threads together; 0 where the system does not say.
pub fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec. Where the call fails, it stays as it is.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    let [seconds, nanoseconds] = [time.tv_sec, time.tv_nsec].map(|part| u64::try_from(part).unwrap_or_default());
    Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds)
}

/// Bytes of a page of memory.
pub fn page_size() -> u64 {
    // SAFETY: no preconditions.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0).unwrap_or(4096)
}

/// Raises the soft limit of open descriptors to the hard one and returns it.
///
/// # Errors
/// Those of `getrlimit` and `setrlimit`.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        limit.rlim_cur = limit.rlim_max;
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
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

/// Returns freed memory to the system after a burst: whole pages between what is still used, of all arenas. (glibc keeps them
/// otherwise.) It holds each arena's lock meanwhile, for milliseconds with a large heap: not on a worker's thread, and rarely.
pub fn trim_memory() {
    TRIMS.fetch_add(1, Relaxed);
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_processor_time() {
        let (began, before) = (std::time::Instant::now(), processor_time());
        let mut sum = 0u64;
        while began.elapsed() < Duration::from_millis(50) {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        let (had, cores) = (processor_time() - before, std::thread::available_parallelism().map_or(1, usize::from));
        assert!(had > Duration::ZERO && had <= began.elapsed() * cores as u32 * 2, "{had:?}");
    }
}
