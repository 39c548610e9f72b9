//! One object per pod: `pod_lookup` steers the pod's connections to ztunnel's listeners, `pod_guard` drops what
//! tries to leave another way. Fail closed: an empty slot refuses.
//!
//! What is local is what the kernel says: `LOCAL` holds every address of the namespace, kept up to date by the agent. For traffic
//! to a local address the kernel reports the address's device as ingress, which is `lo` only for addresses on `lo`.
//!
//! What the pod would forward (for a container or virtual machine inside it) is delivered to it by its routing rules, and told by its
//! destination, which is not local, and its device (`FORWARDED`).
//!
//! A connection of ztunnel's own is never redirected to ztunnel (`OWN_FLOWS`), whatever `LOCAL` holds: so there is no loop,
//! also in the moment before the agent has heard of a new address. Proven by tests/world (adversary, forward).
//!
//! What is dropped or passed by is told to who asks for it (`trace`).
#![no_std]
#![no_main]

mod addr;
mod frame;
mod trace;

use addr::{is_loopback, mapped, word, words};
use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_INGRESS, bpf_sk_lookup},
    btf_maps::SkStorage,
    helpers::generated::{bpf_ktime_get_ns, bpf_redirect, bpf_sk_storage_get},
    macros::{btf_map, classifier, map, sk_lookup},
    maps::{HashMap, LruHashMap, PerCpuArray, SockMap},
    programs::{SkLookupContext, TcContext},
};
use frame::Frame;
use karst_ebpf_common::{
    Addr, COUNTERS, Counter, Flow, HBONE_PORT, MARK_CAPTURE, MARK_MASK, MARK_ZTUNNEL, MAX_FORWARDED, MAX_LOCAL,
    MAX_POD_IPS, MAX_UPLINKS, OWN_FLOW_ON_LO, OWN_FLOW_WINDOW_NS, OwnFlow, PROBE_WINDOW_NS, flag, slot,
};
use trace::{tell, tell_frame};

#[map]
static LISTENERS: SockMap = SockMap::with_max_entries(slot::COUNT, 0);
#[map]
static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS, 0);
/// Every address of the pod's network namespace.
#[map]
static LOCAL: HashMap<Addr, u32> = HashMap::with_max_entries(MAX_LOCAL, 0);
/// Indices of the devices that carry an address that the mesh knows.
#[map]
static UPLINKS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_UPLINKS, 0);
/// The slot for TCP that came by a device of this index and is not for the pod: what would be forwarded.
#[map]
static FORWARDED: HashMap<u32, u32> = HashMap::with_max_entries(MAX_FORWARDED, 0);
/// Shared with the node's object, as are `OWN_FLOWS` and `EXEMPT`.
#[map]
static PROBES: LruHashMap<Flow, u64> = LruHashMap::with_max_entries(4096, 0);
#[map]
static OWN_FLOWS: LruHashMap<OwnFlow, u64> = LruHashMap::with_max_entries(16384, 0);
#[btf_map]
static EXEMPT: SkStorage<u32> = SkStorage::new();

#[unsafe(no_mangle)]
static IPS: [Addr; MAX_POD_IPS] = [[0; 4]; MAX_POD_IPS];
#[unsafe(no_mangle)]
static FLAGS: u32 = 0;
/// Cookie of the pod's network namespace; set by the loader.
#[unsafe(no_mangle)]
static NETNS: u64 = 0;

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;
const LO: u32 = 1;
const TCP: u32 = 6;
const UDP: u32 = 17;
const AF_INET: u32 = 2;
/// Exactly the socket in the slot, not another of its reuseport group.
const NO_REUSEPORT: u64 = 2;

#[inline(always)]
fn count(c: Counter) {
    if let Some(p) = COUNTS.get_ptr_mut(c as u32) {
        // SAFETY: this CPU's value of a map that lives as long as this program, which is not interrupted by itself.
        unsafe { *p += 1 }
    }
}
#[inline(always)]
fn flags() -> u32 {
    // SAFETY: a constant of the object; volatile, because the loader sets it.
    unsafe { core::ptr::read_volatile(&raw const FLAGS) }
}
#[inline(always)]
fn is_mine(a: &Addr) -> bool {
    let p = &raw const IPS as *const u32;
    let mut hit = false;
    let mut i = 0;
    while i < MAX_POD_IPS {
        // SAFETY: `i` and `j` are within `IPS`; volatile, because the loader sets it.
        let v = |j: usize| unsafe { core::ptr::read_volatile(p.add(i * 4 + j)) };
        hit |= v(0) == a[0] && v(1) == a[1] && v(2) == a[2] && v(3) == a[3];
        i += 1;
    }
    hit
}

/// Is it an address of this network namespace, as the kernel has it?
#[inline(always)]
fn is_local(a: &Addr) -> bool {
    // SAFETY: only whether there is a value matters.
    is_loopback(a) || unsafe { LOCAL.get(a) }.is_some()
}
/// The slot for what the pod would forward: what is not for it, and came by a device between which it forwards.
#[inline(always)]
fn forwarded(device: u32, local: &Addr) -> Option<u32> {
    // SAFETY: a slot's number, in a map that is allocated once; at worst that of another device which has just got this place.
    let to = unsafe { FORWARDED.get(&device) }.copied()?;
    if is_local(local) { None } else { Some(to) }
}
/// Has a socket of ztunnel's opened this flow, a moment ago? One that it has opened to the application, from a client's address, is
/// so on `lo` alone: the client may use that port itself, and whoever is behind the same address.
#[inline(always)]
fn is_own(flow: Flow, device: u32) -> bool {
    // SAFETY: a constant of the object; volatile, because the loader sets it.
    let netns = unsafe { core::ptr::read_volatile(&raw const NETNS) };
    let key = OwnFlow { netns: [netns as u32, (netns >> 32) as u32], flow };
    // SAFETY: a time, in a map that is allocated once; at worst that of another flow which has just got this place.
    match unsafe { OWN_FLOWS.get(&key) } {
        Some(at) if *at & OWN_FLOW_ON_LO != 0 && device != LO => false,
        // SAFETY: a helper without arguments.
        Some(at) => unsafe { bpf_ktime_get_ns() }.wrapping_sub(*at) < OWN_FLOW_WINDOW_NS,
        None => false,
    }
}

#[sk_lookup]
pub fn pod_lookup(ctx: SkLookupContext) -> u32 {
    // SAFETY: what the kernel calls this kind of program with.
    let c = unsafe { &*(ctx.as_ptr() as *const bpf_sk_lookup) };
    // SAFETY: fields of the context.
    let (l4, r4) = unsafe { (word(&raw const c.local_ip4), word(&raw const c.remote_ip4)) };
    // SAFETY: fields of the context.
    let (l6, r6) = unsafe { (words(&raw const c.local_ip6), words(&raw const c.remote_ip6)) };
    let (local, remote) = if c.family == AF_INET { (mapped(l4), mapped(r4)) } else { (l6, r6) };
    // remote_port: network order in the low 16 bits; local_port: host order.
    let flow = Flow { src: remote, dst: local, sport: c.remote_port, dport: (c.local_port as u16).to_be() };
    // SAFETY: a field of the context.
    let device = unsafe { word(&raw const c.ingress_ifindex) };
    let (to, why) = if device == LO {
        if is_local(&local) {
            count(Counter::Local);
            return SK_PASS;
        }
        match c.protocol {
            TCP if is_own(flow, device) => {
                count(Counter::OwnFlow);
                tell(Counter::OwnFlow, &flow, TCP, device);
                return SK_PASS;
            }
            TCP => (slot::OUTBOUND, Counter::Outbound),
            UDP if c.local_port == 53 => (slot::DNS, Counter::Dns),
            _ => return SK_PASS,
        }
    } else if let Some(to) = forwarded(device, &local) {
        if is_local(&remote) {
            count(Counter::Local);
            return SK_PASS;
        }
        if is_own(flow, device) {
            count(Counter::OwnFlow);
            tell(Counter::OwnFlow, &flow, c.protocol, device);
            return SK_PASS;
        }
        match c.protocol {
            TCP => (to, Counter::Forwarded),
            UDP if c.local_port == 53 && to == slot::FORWARD => (slot::DNS, Counter::Dns),
            _ => return SK_PASS,
        }
    } else {
        if c.protocol != TCP {
            return SK_PASS;
        }
        if is_local(&remote) {
            count(Counter::Local);
            return SK_PASS;
        }
        let meant = is_mine(&local);
        if meant && c.local_port == HBONE_PORT as u32 {
            (slot::HBONE, Counter::Hbone)
        } else {
            // SAFETY: only whether there is a value matters.
            let uplink = meant || unsafe { UPLINKS.get(&device) }.is_some();
            if !uplink && flags() & flag::ALL_DEVICES == 0 {
                count(Counter::OtherDevice);
                tell(Counter::OtherDevice, &flow, TCP, device);
                return SK_PASS;
            }
            // SAFETY: a time, in a map that is allocated once; at worst that of another flow which has just got this place.
            if let Some(at) = unsafe { PROBES.get(&flow) } {
                // SAFETY: a helper without arguments.
                if unsafe { bpf_ktime_get_ns() }.wrapping_sub(*at) < PROBE_WINDOW_NS {
                    count(Counter::Probe);
                    tell(Counter::Probe, &flow, TCP, device);
                    return SK_PASS;
                }
            }
            if is_own(flow, device) {
                count(Counter::OwnFlow);
                tell(Counter::OwnFlow, &flow, TCP, device);
                return SK_PASS;
            }
            if flags() & flag::NO_INBOUND != 0 {
                count(Counter::OptOut);
                tell(Counter::OptOut, &flow, TCP, device);
                return SK_PASS;
            }
            (slot::PLAINTEXT, Counter::Plaintext)
        }
    };
    match LISTENERS.redirect_sk_lookup(&ctx, to, NO_REUSEPORT) {
        Ok(()) => {
            count(why);
            SK_PASS
        }
        Err(_) => {
            count(Counter::NoListener);
            tell(Counter::NoListener, &flow, c.protocol, device);
            SK_DROP
        }
    }
}

/// On each Ethernet device of the pod that may lead out of it, egress. Nothing leaves but IP and ARP, by what is in the frame and not by what its sender
/// says of it (a raw socket may say anything, and put a VLAN tag before it); where other protocols may, what is behind a tag is judged
/// like the rest. A TCP SYN leaves only from a socket of ztunnel's; a DNS query that is not
/// ztunnel's goes to `lo`, where `pod_lookup` takes it. (A routing rule for port 53 would be simpler, but the kernel's check
/// of source addresses applies it to the answers too, and drops them.)
#[classifier]
pub fn pod_guard(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    match segment(&ctx) {
        Segment::Other => TCX_NEXT,
        Segment::Foreign => {
            if flags() & flag::OTHER_PROTOCOLS != 0 {
                return TCX_NEXT;
            }
            count(Counter::GuardProtocol);
            tell_frame(Counter::GuardProtocol, &ctx);
            TCX_DROP
        }
        Segment::Unparsable => {
            count(Counter::GuardUnparsable);
            tell_frame(Counter::GuardUnparsable, &ctx);
            TCX_DROP
        }
        Segment::Dns => {
            if flags() & (flag::NO_DNS | flag::CLOSED) != 0 || is_exempt(&ctx) {
                return TCX_NEXT;
            }
            // eth_type_trans on lo (address 0) would take another address for somebody else's.
            if ctx.store(0, &[0u8; 6], 0).is_err() {
                count(Counter::GuardUnparsable);
                tell_frame(Counter::GuardUnparsable, &ctx);
                return TCX_DROP;
            }
            ctx.set_mark(MARK_CAPTURE);
            // SAFETY: a helper that takes numbers only.
            unsafe { bpf_redirect(LO, BPF_F_INGRESS as u64) as i32 }
        }
        // Also what answers a stranger: nobody has judged who that is.
        Segment::Tcp(_) if flags() & flag::CLOSED != 0 => {
            count(Counter::GuardDrop);
            tell_frame(Counter::GuardDrop, &ctx);
            TCX_DROP
        }
        Segment::Tcp(f) if f & 0x12 != 0x02 => TCX_NEXT,
        Segment::Tcp(_) => {
            // SAFETY: a field of the context.
            let trusted = flags() & flag::TRUST_MARK != 0 && unsafe { (*skb).mark } & MARK_MASK == MARK_ZTUNNEL;
            if trusted || is_exempt(&ctx) {
                count(Counter::GuardPass);
                TCX_NEXT
            } else {
                count(Counter::GuardDrop);
                tell_frame(Counter::GuardDrop, &ctx);
                TCX_DROP
            }
        }
    }
}

/// Is the packet from a socket of ztunnel's?
#[inline(always)]
fn is_exempt(ctx: &TcContext) -> bool {
    // SAFETY: a field of the context.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    !sk.is_null()
        // SAFETY: the kernel's own socket, which is there as long as its packet; without a value nothing is made.
        && !unsafe { bpf_sk_storage_get((&raw const EXEMPT).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), 0) }
            .is_null()
}

enum Segment {
    Other,
    /// Neither IP nor ARP; or behind a VLAN tag, where no other protocols may leave.
    Foreign,
    Unparsable,
    Dns,
    /// TCP, with its flags.
    Tcp(u8),
}

/// What matters of a packet. A first fragment too short to hold the TCP flags is unparsable, as is one that would be written
/// over them (RFC 3128; by IPv6 no host takes such, RFC 5722); later fragments carry no SYN. Of UDP only whole or first
/// fragments with destination port 53 matter.
#[inline(always)]
fn segment(ctx: &TcContext) -> Segment {
    let Some(frame) = Frame::read(ctx) else { return Segment::Unparsable };
    if frame.is_tagged() && flags() & flag::OTHER_PROTOCOLS == 0 {
        return Segment::Foreign;
    }
    // Who may send tagged frames has no way out by a tag: hosts take it off (VLAN 0), and find a segment as any other.
    let Some((proto, ip)) = frame.inner else { return Segment::Unparsable };
    if proto == 0x0806u16.to_be() {
        return Segment::Other;
    }
    if proto == 0x0800u16.to_be() {
        let (Ok(vihl), Ok(p), Ok(frag)) = (ctx.load::<u8>(ip), ctx.load::<u8>(ip + 9), ctx.load::<u16>(ip + 6)) else {
            return Segment::Unparsable;
        };
        let place = frag & 0x1fffu16.to_be();
        if place != 0 {
            return if place == 1u16.to_be() && p as u32 == TCP { Segment::Unparsable } else { Segment::Other };
        }
        return transport(ctx, p, ip + ((vihl & 0xf) as usize) * 4);
    }
    if proto != 0x86ddu16.to_be() {
        return Segment::Foreign;
    }
    // Hop-by-hop, routing, fragment, destination options, authentication: at most six, then we give up.
    let Ok(mut next) = ctx.load::<u8>(ip + 6) else { return Segment::Unparsable };
    let mut at = ip + 40;
    let mut i = 0;
    while i < 6 {
        match next {
            0 | 43 | 60 | 51 => {
                let (Ok(n), Ok(len)) = (ctx.load::<u8>(at), ctx.load::<u8>(at + 1)) else { return Segment::Unparsable };
                at += if next == 51 { (len as usize + 2) * 4 } else { (len as usize + 1) * 8 };
                next = n;
            }
            44 => {
                let (Ok(n), Ok(off)) = (ctx.load::<u8>(at), ctx.load::<u16>(at + 2)) else {
                    return Segment::Unparsable;
                };
                if off & 0xfff8u16.to_be() != 0 {
                    return Segment::Other;
                }
                at += 8;
                next = n;
            }
            p => return transport(ctx, p, at),
        }
        i += 1;
    }
    Segment::Unparsable
}

#[inline(always)]
fn transport(ctx: &TcContext, protocol: u8, at: usize) -> Segment {
    match protocol as u32 {
        TCP => match ctx.load::<u8>(at + 13) {
            Ok(f) => Segment::Tcp(f),
            Err(_) => Segment::Unparsable,
        },
        UDP => match ctx.load::<u16>(at + 2) {
            Ok(p) if p == 53u16.to_be() => Segment::Dns,
            _ => Segment::Other,
        },
        _ => Segment::Other,
    }
}
