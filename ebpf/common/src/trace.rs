//! What the programs tell of packets that they drop or pass by, and who has asked for it (`karst-cni trace`).
//!
//! Fixed records and no text: the words are user space's. The sizes and places below are the layout of pinned maps.

use crate::{Addr, COUNTERS, Counter, Flow};
use core::mem::offset_of;

/// Size of the ring buffer of [`TraceRecord`]s, one for each node: a power of two, some 800 records. When it is full, records
/// are lost and counted.
pub const TRACE_BYTES: u32 = 64 << 10;
/// So many records on one CPU in one window at most; what is beyond is counted ([`TraceBudget::withheld`]).
pub const TRACE_RATE: u64 = 100;
/// A window is the time in nanoseconds shifted by so many bits: 1.07 s.
pub const TRACE_WINDOW_SHIFT: u32 = 30;

/// What is asked for: the one value of the map `TRACE`. All zero: nobody asks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceRequest {
    /// Until when, in nanoseconds of the monotonic clock: who asks and ends without a word leaves nothing behind.
    pub until: u64,
    /// A bit for each [`Counter`] that is asked for.
    pub what: u64,
    /// The first address of a pod, for that pod only; zero for all.
    pub pod: Addr,
}

impl TraceRequest {
    /// The value as the map's words.
    pub fn words(&self) -> [u64; 4] {
        let [a, b, c, d] = self.pod.map(u32::to_ne_bytes);
        let pair = |x: [u8; 4], y: [u8; 4]| u64::from_ne_bytes([x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3]]);
        [self.until, self.what, pair(a, b), pair(c, d)]
    }
}

/// What was told on one CPU: the one value of the map `TRACED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceBudget {
    /// The window that `spent` is of.
    pub window: u64,
    /// Records of this window.
    pub spent: u64,
    /// Records since the node's maps were made.
    pub told: u64,
    /// Records that were not told: beyond the rate, or the ring buffer was full.
    pub withheld: u64,
}

impl TraceBudget {
    /// The value of the map's words.
    pub fn of_words([window, spent, told, withheld]: [u64; 4]) -> Self {
        Self { window, spent, told, withheld }
    }
}

/// One packet that was dropped or passed by. What could not be read of it is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRecord {
    /// When, in nanoseconds of the monotonic clock.
    pub at: u64,
    /// The first address of the pod whose program says this.
    pub pod: Addr,
    /// From where to where.
    pub flow: Flow,
    /// Index of the device, in the pod's network namespace.
    pub device: u32,
    /// The [`Counter`] that counts this.
    pub what: u32,
    /// EtherType of the frame, or the protocol of its VLAN tag, in network byte order; zero where no frame was looked at.
    pub ether_type: u16,
    /// Protocol over IP.
    pub protocol: u8,
    /// Nothing: there is no padding.
    pub rest: u8,
}

impl TraceRecord {
    /// Reads a record as a program wrote it, with its counter. None: it is none of this layout.
    pub fn read(bytes: &[u8]) -> Option<(Counter, Self)> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        let addr =
            |at: usize| Some([word(bytes, at)?, word(bytes, at + 4)?, word(bytes, at + 8)?, word(bytes, at + 12)?]);
        let flow = offset_of!(Self, flow);
        let record = Self {
            at: u64::from_ne_bytes(part(bytes, offset_of!(Self, at))?),
            pod: addr(offset_of!(Self, pod))?,
            flow: Flow {
                src: addr(flow + offset_of!(Flow, src))?,
                dst: addr(flow + offset_of!(Flow, dst))?,
                sport: u16::from_ne_bytes(part(bytes, flow + offset_of!(Flow, sport))?),
                dport: u16::from_ne_bytes(part(bytes, flow + offset_of!(Flow, dport))?),
            },
            device: word(bytes, offset_of!(Self, device))?,
            what: word(bytes, offset_of!(Self, what))?,
            ether_type: u16::from_ne_bytes(part(bytes, offset_of!(Self, ether_type))?),
            protocol: *bytes.get(offset_of!(Self, protocol))?,
            rest: 0,
        };
        Some((*Counter::ALL.get(record.what as usize)?, record))
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(part(bytes, at)?))
}

const _: () = assert!(size_of::<TraceRequest>() == 32 && offset_of!(TraceRequest, pod) == 16);
const _: () = assert!(size_of::<TraceBudget>() == 32 && offset_of!(TraceBudget, withheld) == 24);
const _: () = assert!(size_of::<TraceRecord>() == 72 && align_of::<TraceRecord>() == 8);
// A bit for each counter; the ring buffer's size is one that the kernel takes.
const _: () = assert!(COUNTERS <= u64::BITS && TRACE_BYTES.is_power_of_two() && TRACE_BYTES >= 4096);

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a record, in the order of its fields: there is no padding between them.
    fn bytes(what: u32) -> [u8; 72] {
        let mut out = [0; 72];
        let mut at = 0;
        let mut put = |b: &[u8]| {
            out[at..at + b.len()].copy_from_slice(b);
            at += b.len();
        };
        put(&7u64.to_ne_bytes());
        for w in [1u32, 2, 3, 4, 11, 12, 13, 14, 21, 22, 23, 24] {
            put(&w.to_ne_bytes());
        }
        put(&40_000u16.to_be_bytes());
        put(&8080u16.to_be_bytes());
        put(&5u32.to_ne_bytes());
        put(&what.to_ne_bytes());
        put(&0x0800u16.to_be_bytes());
        put(&[6, 0]);
        out
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let flow =
            Flow { src: [11, 12, 13, 14], dst: [21, 22, 23, 24], sport: 40_000u16.to_be(), dport: 8080u16.to_be() };
        let record = TraceRecord {
            at: 7,
            pod: [1, 2, 3, 4],
            flow,
            device: 5,
            what: Counter::GuardDrop as u32,
            ether_type: 0x0800u16.to_be(),
            protocol: 6,
            rest: 0,
        };
        assert_eq!(TraceRecord::read(&bytes(Counter::GuardDrop as u32)), Some((Counter::GuardDrop, record)));
    }

    #[test]
    fn what_is_no_record_is_none() {
        let good = bytes(0);
        for n in 0..good.len() {
            assert_eq!(TraceRecord::read(&good[..n]), None);
        }
        assert_eq!(TraceRecord::read(&bytes(COUNTERS)), None, "of a newer agent");
        assert_eq!(TraceRecord::read(&[0; 80]), None);
    }

    #[test]
    fn counters_are_numbered_in_their_order() {
        for (i, c) in Counter::ALL.iter().enumerate() {
            assert_eq!(*c as usize, i);
        }
    }

    #[test]
    fn a_request_is_written_as_the_programs_read_it() {
        let pod = [u32::from_ne_bytes([1, 2, 3, 4]), u32::from_ne_bytes([5, 6, 7, 8]), 9, 10];
        let [until, what, low, high] = TraceRequest { until: 1, what: 2, pod }.words();
        assert_eq!((until, what, low.to_ne_bytes()), (1, 2, [1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(high.to_ne_bytes()[..4], 9u32.to_ne_bytes());
        assert_eq!(TraceBudget::of_words([1, 2, 3, 4]), TraceBudget { window: 1, spent: 2, told: 3, withheld: 4 });
    }
}
