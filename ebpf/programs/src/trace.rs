//! What is told of a packet that is dropped or passed by, to who asks for it (`karst-cni trace`).
//!
//! Only on the ways that end so, never where a connection is given to a listener or a packet of one passes. Nobody asks: one
//! look at `TRACE`. Somebody does: what is told is bounded by a rate, and nobody waits for its reader. The second half is a
//! function of its own, so that the programs' ways are not longer for it. Proven by tests/world (trace).

use crate::{
    IPS,
    addr::{mapped, word, words},
    frame::Frame,
};
use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
    programs::TcContext,
};
use core::ptr::read_volatile;
use karst_ebpf_common::{
    Addr, Counter, Flow, TRACE_BYTES, TRACE_RATE, TRACE_WINDOW_SHIFT, TraceBudget, TraceRecord, TraceRequest,
};

/// Shared by the pods of a node, as are the others here.
#[map]
static TRACE: Array<TraceRequest> = Array::with_max_entries(1, 0);
#[map]
static TRACED: PerCpuArray<TraceBudget> = PerCpuArray::with_max_entries(1, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(TRACE_BYTES, 0);

/// The reader looks by itself: waking it would be work for each packet.
const NO_WAKEUP: u64 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const NO_ADDR: Addr = [0; 4];

/// Tells of a connection at `pod_lookup`. Ports in network byte order.
#[inline(always)]
pub fn tell(what: Counter, flow: &Flow, protocol: u32, device: u32) {
    if asked() {
        connection(what as u32, flow, protocol, device);
    }
}
/// Tells of a frame at `pod_guard`.
#[inline(always)]
pub fn tell_frame(what: Counter, ctx: &TcContext) {
    if asked() {
        frame(what as u32, ctx.skb.skb);
    }
}

/// May somebody be asking?
#[inline(always)]
fn asked() -> bool {
    match TRACE.get_ptr(0) {
        // SAFETY: a value of a map that lives as long as this program.
        Some(p) => unsafe { read_volatile(&raw const (*p).until) != 0 },
        None => false,
    }
}

#[inline(never)]
fn connection(what: u32, flow: &Flow, protocol: u32, device: u32) {
    let now = now();
    if wanted(now, what) && spend(now) {
        let (pod, protocol) = (first_ip(), protocol as u8);
        send(&TraceRecord { at: now, pod, flow: *flow, device, what, ether_type: 0, protocol, rest: 0 });
    }
}

#[inline(never)]
fn frame(what: u32, skb: *mut __sk_buff) {
    let now = now();
    if !wanted(now, what) || !spend(now) {
        return;
    }
    // SAFETY: the program's context.
    let (device, tag) = unsafe { (word(&raw const (*skb).ifindex), word(&raw const (*skb).vlan_proto)) };
    let ctx = TcContext::new(skb);
    let (mut ether_type, mut kind, mut ip) = (0u16, 0u16, 0usize);
    if let Some(frame) = Frame::read(&ctx) {
        ether_type = if frame.beside { tag as u16 } else { frame.outer };
        // Behind a tag as without; behind two of them nothing is read.
        (kind, ip) = frame.inner.unwrap_or((0, 0));
    }
    let (mut src, mut dst, mut protocol, mut at) = (NO_ADDR, NO_ADDR, 0u8, 0usize);
    if kind == 0x0800u16.to_be() {
        if let (Ok(s), Ok(d)) = (ctx.load::<u32>(ip + 12), ctx.load::<u32>(ip + 16)) {
            (src, dst) = (mapped(s), mapped(d));
        }
        protocol = ctx.load::<u8>(ip + 9).unwrap_or(0);
        at = ip + ((ctx.load::<u8>(ip).unwrap_or(0) & 0xf) as usize) * 4;
    } else if kind == 0x86ddu16.to_be() {
        if let (Ok(s), Ok(d)) = (ctx.load::<Addr>(ip + 8), ctx.load::<Addr>(ip + 24)) {
            (src, dst) = (s, d);
        }
        // Behind extension headers: told without ports.
        protocol = ctx.load::<u8>(ip + 6).unwrap_or(0);
        at = ip + 40;
    }
    let (mut sport, mut dport) = (0u16, 0u16);
    if protocol == TCP || protocol == UDP {
        sport = ctx.load::<u16>(at).unwrap_or(0);
        dport = ctx.load::<u16>(at + 2).unwrap_or(0);
    }
    let flow = Flow { src, dst, sport, dport };
    send(&TraceRecord { at: now, pod: first_ip(), flow, device, what, ether_type, protocol, rest: 0 });
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Does somebody ask for this, of this pod, now?
#[inline(always)]
fn wanted(now: u64, what: u32) -> bool {
    let Some(p) = TRACE.get_ptr(0) else { return false };
    // SAFETY: a value of a map that lives as long as this program; it may change between two reads, which tells at worst one
    // packet too many or too few.
    let (until, bits, pod) = unsafe {
        (read_volatile(&raw const (*p).until), read_volatile(&raw const (*p).what), words(&raw const (*p).pod))
    };
    let own = first_ip();
    let all = (pod[0] | pod[1] | pod[2] | pod[3]) == 0;
    let this = pod[0] == own[0] && pod[1] == own[1] && pod[2] == own[2] && pod[3] == own[3];
    now < until && (bits >> (what & 63)) & 1 != 0 && (all || this)
}

/// Takes one of this window's records; false: there are no more.
#[inline(always)]
fn spend(now: u64) -> bool {
    let Some(b) = TRACED.get_ptr_mut(0) else { return false };
    let window = now >> TRACE_WINDOW_SHIFT;
    // SAFETY: this CPU's value of a map that lives as long as this program, which is not interrupted by itself.
    unsafe {
        if (*b).window != window {
            (*b).window = window;
            (*b).spent = 0;
        }
        if (*b).spent >= TRACE_RATE {
            (*b).withheld += 1;
            return false;
        }
        (*b).spent += 1;
        true
    }
}

#[inline(always)]
fn send(record: &TraceRecord) {
    let sent = EVENTS.output::<TraceRecord>(record, NO_WAKEUP).is_ok();
    if let Some(b) = TRACED.get_ptr_mut(0) {
        // SAFETY: as in `spend`.
        unsafe { if sent { (*b).told += 1 } else { (*b).withheld += 1 } }
    }
}

/// The pod's first address, by which it is known to user space.
#[inline(always)]
fn first_ip() -> Addr {
    // SAFETY: a constant of the object; volatile, because the loader sets it.
    unsafe { words((&raw const IPS).cast()) }
}
