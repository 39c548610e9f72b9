//! Reading addresses out of kernel contexts.
//!
//! Context fields are read with `read_volatile`, all of them first, and chosen between afterwards: LLVM otherwise
//! merges `if v4 { ctx.a } else { ctx.b }` into one load through a modified context pointer, which the verifier refuses.
#![allow(dead_code, reason = "each program uses its own part of it")]

use core::ptr::read_volatile;
use karst_ebpf_common::Addr;

/// An IPv4 address, as the programs compare it.
#[inline(always)]
pub fn mapped(v4: u32) -> Addr {
    [0, 0, 0xffffu32.to_be(), v4]
}
/// One word, read by itself.
///
/// # Safety
/// `p` must point into the program's context, a constant, or a value of a map.
#[inline(always)]
pub unsafe fn word(p: *const u32) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { read_volatile(p) }
}
/// An address, read word by word.
///
/// # Safety
/// As of [`word`], for all of `p`.
#[inline(always)]
pub unsafe fn words(p: *const [u32; 4]) -> Addr {
    // SAFETY: the caller's promise; the words are within the array.
    unsafe {
        let q = p as *const u32;
        [word(q), word(q.add(1)), word(q.add(2)), word(q.add(3))]
    }
}
/// Is it an address of the loopback networks?
#[inline(always)]
pub fn is_loopback(a: &Addr) -> bool {
    if a[0] != 0 || a[1] != 0 {
        return false;
    }
    (a[2] == 0xffffu32.to_be() && u32::from_be(a[3]) >> 24 == 127) || (a[2] == 0 && a[3] == 1u32.to_be())
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Helpers that the kernel offers only to GPL-compatible programs are used; our licence is compatible by dual licensing.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
