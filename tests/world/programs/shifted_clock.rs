//! A clock that can be wrong, preloaded into a process (`LD_PRELOAD`): the time of day differs from the system's by what the file
//! KARST_WORLD_CLOCK says in eight bytes, nanoseconds, at that moment. The monotonic clock is as it is.

use std::{
    ffi::{c_char, c_int, c_void},
    mem::transmute,
    ptr::{null_mut, without_provenance_mut},
    sync::atomic::{AtomicI64, AtomicPtr, Ordering::Relaxed},
};

#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

type ClockGettime = unsafe extern "C" fn(c_int, *mut Timespec) -> c_int;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn getenv(name: *const c_char) -> *const c_char;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn close(fd: c_int) -> c_int;
    fn mmap(at: *mut c_void, length: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
}

const CLOCK_REALTIME: c_int = 0;
const CLOCK_REALTIME_COARSE: c_int = 5;
const O_CLOEXEC: c_int = 0o2_000_000;
const PROT_READ: c_int = 1;
const MAP_SHARED: c_int = 1;

/// The C library's function.
static NEXT: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
/// By how much it is wrong; null: not looked for yet.
static SHIFT: AtomicPtr<AtomicI64> = AtomicPtr::new(null_mut());
static NONE: AtomicI64 = AtomicI64::new(0);

/// As clock_gettime(2).
///
/// # Safety
/// As clock_gettime(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
    // SAFETY: the C library's own function of this type, with the caller's arguments.
    let said = unsafe { transmute::<*mut c_void, ClockGettime>(next())(clock, time) };
    if said == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) {
        // SAFETY: it has been written just now.
        let time = unsafe { &mut *time };
        let nanoseconds = time.nanoseconds + shift().load(Relaxed);
        time.seconds += nanoseconds.div_euclid(1_000_000_000);
        time.nanoseconds = nanoseconds.rem_euclid(1_000_000_000);
    }
    said
}

fn next() -> *mut c_void {
    let known = NEXT.load(Relaxed);
    if !known.is_null() {
        return known;
    }
    // SAFETY: RTLD_NEXT, and a string that ends. The C library has this function.
    let found = unsafe { dlsym(without_provenance_mut(usize::MAX), c"clock_gettime".as_ptr()) };
    NEXT.store(found, Relaxed);
    found
}

fn shift() -> &'static AtomicI64 {
    let known = SHIFT.load(Relaxed);
    // SAFETY: only what lives for ever is stored: NONE, or a mapping that is never removed.
    if let Some(known) = unsafe { known.as_ref() } {
        return known;
    }
    // Two threads may both look: then there are two mappings of one file.
    let found = mapped().unwrap_or((&raw const NONE).cast_mut());
    SHIFT.store(found, Relaxed);
    // SAFETY: as above.
    unsafe { &*found }
}

fn mapped() -> Option<*mut AtomicI64> {
    // SAFETY: strings that end; a descriptor of our own; a new mapping at the start of a page.
    unsafe {
        let path = getenv(c"KARST_WORLD_CLOCK".as_ptr());
        if path.is_null() {
            return None;
        }
        let fd = open(path, O_CLOEXEC);
        if fd < 0 {
            return None;
        }
        let at = mmap(null_mut(), size_of::<AtomicI64>(), PROT_READ, MAP_SHARED, fd, 0);
        close(fd);
        (at.addr() != usize::MAX).then_some(at.cast())
    }
}
