//! The bpf(2) calls that aya does not offer for every program type.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::Path,
    time::Duration,
};

const BPF_PROG_LOAD: i32 = 5;
const BPF_OBJ_GET: i32 = 7;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_LINK_UPDATE: i32 = 29;
const BPF_LINK_DETACH: i32 = 34;
const BPFFS_MAGIC: i64 = 0xcafe_4a11;
const CGROUP2_MAGIC: i64 = 0x6367_7270;

fn bpf<T>(cmd: i32, attr: &T) -> io::Result<i64> {
    // SAFETY: callers pass the kernel's layout for `cmd`; pointers inside outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, cmd, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens a pinned object.
pub(crate) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let fd = bpf(BPF_OBJ_GET, &Attr { path: path.as_ptr() as u64, fd: 0, flags: 0 })?;
    // SAFETY: the kernel returned a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Exchanges the program behind a link, atomically.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link: u32,
        program: u32,
        flags: u32,
        old: u32,
    }
    let attr = Attr { link: link.as_raw_fd() as u32, program: program.as_raw_fd() as u32, flags: 0, old: 0 };
    bpf(BPF_LINK_UPDATE, &attr).map(|_| ())
}

/// Detaches a link at once. (Removing its pin would do so too, but at some later time.)
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &(link.as_raw_fd() as u32)).map(|_| ())
}

/// The network namespace inode behind an sk_lookup link; 0 when the namespace is gone.
pub(crate) fn link_netns(link: BorrowedFd<'_>) -> io::Result<u32> {
    link_target(link)
}

/// The index of the device behind a tcx link; 0 when the device is gone.
pub(crate) fn link_device(link: BorrowedFd<'_>) -> io::Result<u32> {
    link_target(link)
}

/// What a link is attached to: the first word of what the kernel tells of its kind.
fn link_target(link: BorrowedFd<'_>) -> io::Result<u32> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        prog: u32,
        pad: u32,
        target: u32,
        attach_type: u32,
        rest: [u64; 8],
    }
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut info = Info::default();
    let attr = Attr { fd: link.as_raw_fd() as u32, len: size_of::<Info>() as u32, info: &raw mut info as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
    Ok(info.target)
}

/// Has the verifier a look at a few instructions (of struct bpf_insn, as words) of a program of this type: are they allowed?
pub(crate) fn program_load(kind: u32, attach_type: u32, instructions: &[u64]) -> io::Result<()> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel: u32,
        flags: u32,
        name: [u64; 2],
        ifindex: u32,
        attach_type: u32,
    }
    let attr = Attr {
        kind,
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        attach_type,
        ..Attr::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &attr)?;
    // SAFETY: the kernel returned a new descriptor, which is closed here.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    Ok(())
}

/// The index of a device of the calling thread's network namespace.
pub(crate) fn ifindex(device: &str) -> io::Result<u32> {
    let device = CString::new(device)?;
    // SAFETY: a NUL-terminated string.
    match unsafe { libc::if_nametoindex(device.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        i => Ok(i),
    }
}

/// Moves the calling thread to a new network namespace.
pub(crate) fn unshare_netns() -> io::Result<()> {
    // SAFETY: no preconditions; only the calling thread is moved.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Is this directory on a bpffs?
pub(crate) fn is_bpffs(dir: &Path) -> bool {
    is_filesystem(dir, BPFFS_MAGIC)
}

/// Is this directory on a cgroup2?
pub(crate) fn is_cgroup2(dir: &Path) -> bool {
    is_filesystem(dir, CGROUP2_MAGIC)
}

fn is_filesystem(dir: &Path, magic: i64) -> bool {
    let Ok(path) = CString::new(dir.as_os_str().as_bytes()) else { return false };
    // SAFETY: an all-zero statfs is valid, the kernel fills it.
    unsafe {
        let mut found: libc::statfs = std::mem::zeroed();
        libc::statfs(path.as_ptr(), &raw mut found) == 0 && found.f_type == magic
    }
}

/// The clock of the programs (bpf_ktime_get_ns).
pub(crate) fn monotonic() -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to `time`, which outlives the call.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0)))
}
