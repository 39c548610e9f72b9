//! One object per node, attached to the root of cgroup2.
//!
//! - `mark_connect4`, `mark_connect6`: a TCP connect in an enrolled network namespace gets the capture mark, whatever
//!   mark it had; routing does the rest. Sockets in `EXEMPT` (ztunnel's) are left alone.
//! - `note_probe`: a connect from the node's own network namespace to an enrolled pod is noted in `PROBES`; one of a socket of
//!   ztunnel's in an enrolled namespace in `OWN_FLOWS`, so that it is never redirected to ztunnel again.
//!   If only the kubelet may probe, its sockets are told by its cgroup: the connect hooks, which run in the process that calls,
//!   put them into `PROBE_SOCKETS`; `note_probe`, where source and destination are known, passes over all others.
//!
//! Several nodes may share one kernel: each has its own instance, which acts only on its own pods (by netns cookie)
//! and its own host namespace. Proven by tests/world (capture, probes).
#![no_std]
#![no_main]

mod addr;

use addr::{mapped, word, words};
use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_ops,
    btf_maps::SkStorage,
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_ktime_get_ns, bpf_setsockopt, bpf_sk_storage_get,
    },
    macros::{btf_map, cgroup_sock_addr, map, sock_ops},
    maps::{Array, HashMap, LruHashMap},
    programs::{SockAddrContext, SockOpsContext},
};
use karst_ebpf_common::{Addr, Flow, MARK_APP, MARK_CAPTURE, MARK_MASK, OWN_FLOW_ON_LO, OwnFlow, prober};

/// Netns cookies of enrolled pods, and how many connects were marked. Inserted last at enrolment, removed first.
#[map]
static ENROLLED: HashMap<u64, u64> = HashMap::with_max_entries(4096, 0);
/// Addresses of enrolled pods.
#[map]
static POD_IPS: HashMap<Addr, u32> = HashMap::with_max_entries(8192, 0);
/// Flows from the node to its pods, with the time of the connect call. Read by the pods' programs.
#[map]
static PROBES: LruHashMap<Flow, u64> = LruHashMap::with_max_entries(4096, 0);
/// Flows that ztunnel's sockets have opened, with the time of the connect call. Read by the pods' programs.
#[map]
static OWN_FLOWS: LruHashMap<OwnFlow, u64> = LruHashMap::with_max_entries(16384, 0);
/// Sockets that are ztunnel's. Only who holds a descriptor of this map can add one.
#[btf_map]
static EXEMPT: SkStorage<u32> = SkStorage::new();
/// Who may probe: one value, see `karst_ebpf_common::prober`.
#[map]
static PROBE_CGROUP: Array<u64> = Array::with_max_entries(1, 0);
/// Sockets on which a process of that cgroup has called connect.
#[btf_map]
static PROBE_SOCKETS: SkStorage<u32> = SkStorage::new();

/// Cookie of the node's own network namespace; set by the loader.
#[unsafe(no_mangle)]
static HOST_NETNS: u64 = 0;

const TCP: u32 = 6;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const TCP_CONNECT_CB: u32 = 3;
const PASSIVE_ESTABLISHED_CB: u32 = 5;
const SO_BINDTODEVICE: i32 = 25;
const AF_INET: u32 = 2;

#[cgroup_sock_addr(connect4)]
pub fn mark_connect4(ctx: SockAddrContext) -> i32 {
    mark(&ctx);
    1
}
#[cgroup_sock_addr(connect6)]
pub fn mark_connect6(ctx: SockAddrContext) -> i32 {
    mark(&ctx);
    1
}

#[inline(always)]
fn mark(ctx: &SockAddrContext) {
    let sa = ctx.sock_addr;
    // SAFETY: the program's context, and helpers that take it; `m` outlives its call. The counter is a value of a map that lives as
    // long as this program; connects at the same time on two CPUs may count as one.
    unsafe {
        if (*sa).protocol != TCP {
            return;
        }
        let cookie = bpf_get_netns_cookie(sa.cast());
        if cookie == core::ptr::read_volatile(&raw const HOST_NETNS) {
            return note_prober(ctx);
        }
        let Some(count) = ENROLLED.get_ptr_mut(&cookie) else { return };
        if !EXEMPT.get_ptr_mut(ctx).is_null() {
            return;
        }
        let mut m = MARK_CAPTURE;
        bpf_setsockopt(sa.cast(), SOL_SOCKET, SO_MARK, (&raw mut m).cast(), 4);
        *count += 1;
    }
}

/// Who may probe, as the agent says.
#[inline(always)]
fn allowed() -> u64 {
    PROBE_CGROUP.get(0).copied().unwrap_or(prober::NONE)
}

/// In the process that connects: is it of the cgroup that may probe?
///
/// # Safety
/// To be called by a connect hook, with its context.
#[inline(always)]
unsafe fn note_prober(ctx: &SockAddrContext) {
    // SAFETY: helpers of this kind of program; `one` outlives the call that copies it.
    unsafe {
        if bpf_get_current_cgroup_id() == allowed() {
            let mut one = 1u32;
            PROBE_SOCKETS.get_or_insert_ptr_mut(ctx, Some(&mut one));
        }
    }
}

/// May this socket's connect pass as a probe?
///
/// # Safety
/// `o` must be the program's context.
#[inline(always)]
unsafe fn may_probe(o: *mut bpf_sock_ops) -> bool {
    // SAFETY: as in `is_exempt`.
    unsafe {
        let sk = (*o).__bindgen_anon_2.sk;
        allowed() == prober::ALL
            || (!sk.is_null()
                && !bpf_sk_storage_get(
                    (&raw const PROBE_SOCKETS).cast_mut().cast(),
                    sk.cast(),
                    core::ptr::null_mut(),
                    0,
                )
                .is_null())
    }
}

#[sock_ops]
pub fn note_probe(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        TCP_CONNECT_CB => {}
        PASSIVE_ESTABLISHED_CB => {
            // SAFETY: the program's context.
            unsafe { keep_on_lo(&ctx) };
            return 1;
        }
        _ => return 1,
    }
    let o = ctx.ops;
    // SAFETY: the program's context, and helpers that take it; of what is found in maps only whether it is there matters.
    unsafe {
        let netns = bpf_get_netns_cookie(ctx.as_ptr());
        let host = netns == core::ptr::read_volatile(&raw const HOST_NETNS);
        if !host && (ENROLLED.get(&netns).is_none() || !is_exempt(o)) {
            return 1;
        }
        // A dual-stack socket shows AF_INET6 with mapped addresses.
        let (l4, r4) = (word(&raw const (*o).local_ip4), word(&raw const (*o).remote_ip4));
        let (l6, r6) = (words(&raw const (*o).local_ip6), words(&raw const (*o).remote_ip6));
        let (src, dst) = if (*o).family == AF_INET { (mapped(l4), mapped(r4)) } else { (l6, r6) };
        let flow = Flow {
            src,
            dst,
            sport: ((*o).local_port as u16).to_be(),
            dport: (u32::from_be((*o).remote_port) as u16).to_be(),
        };
        if !host {
            let own = OwnFlow { netns: [netns as u32, (netns >> 32) as u32], flow };
            let on_lo = if is_for_app(o) { OWN_FLOW_ON_LO } else { 0 };
            let at = (bpf_ktime_get_ns() & !OWN_FLOW_ON_LO) | on_lo;
            let _ = OWN_FLOWS.insert(&own, &at, 0);
        } else if POD_IPS.get(&dst).is_some() && may_probe(o) {
            let _ = PROBES.insert(&flow, &bpf_ktime_get_ns(), 0);
        }
    }
    1
}

/// The application's end of a connection that ztunnel has made in a client's name stays on `lo`. To the kernel it has the
/// client's address and a port of ztunnel's choice: if a client (many clients, behind one address) happens to use that port
/// itself, its packets come by another device, and are not this socket's any more.
///
/// # Safety
/// To be called with the program's context.
#[inline(always)]
unsafe fn keep_on_lo(ctx: &SockOpsContext) {
    // SAFETY: the program's context; `lo` outlives the call that copies it.
    unsafe {
        if is_for_app(ctx.ops) && ENROLLED.get(&bpf_get_netns_cookie(ctx.as_ptr())).is_some() {
            let mut lo = *b"lo\0\0";
            bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_BINDTODEVICE, (&raw mut lo).cast(), 4);
        }
    }
}

/// Does its socket have the mark of connections to the application in a client's name?
///
/// # Safety
/// `o` must be the program's context.
#[inline(always)]
unsafe fn is_for_app(o: *mut bpf_sock_ops) -> bool {
    // SAFETY: the context is the caller's promise; the socket is the kernel's own and there as long as this call.
    unsafe {
        let sk = (*o).__bindgen_anon_2.sk;
        !sk.is_null() && core::ptr::read_volatile(&raw const (*sk).mark) & MARK_MASK == MARK_APP
    }
}

/// Is it a socket of ztunnel's?
///
/// # Safety
/// `o` must be the program's context.
#[inline(always)]
unsafe fn is_exempt(o: *mut bpf_sock_ops) -> bool {
    // SAFETY: the context is the caller's promise; the socket is the kernel's own and there as long as this call; without a value
    // nothing is made.
    unsafe {
        let sk = (*o).__bindgen_anon_2.sk;
        !sk.is_null()
            && !bpf_sk_storage_get((&raw const EXEMPT).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), 0).is_null()
    }
}
