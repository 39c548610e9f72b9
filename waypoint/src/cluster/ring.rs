//! Hash rings and Maglev tables of a destination's endpoints.

use super::endpoint::LbEndpoint;
use karst_api::route::{self as ir, Method};
use xxhash_rust::xxh64::xxh64;

/// The points of a ring, or the table of Maglev.
pub fn ring(policy: &ir::Policy, members: &[LbEndpoint]) -> Vec<(u64, u32)> {
    let Some(balance) = &policy.balance else { return vec![] };
    if members.is_empty() {
        return vec![];
    }
    // The same on every proxy: by name, not by place.
    let mut order: Vec<(usize, &str)> = members.iter().enumerate().map(|(i, m)| (i, &*m.workload.uid)).collect();
    order.sort_by_key(|(_, u)| *u);
    match balance.method() {
        Method::RingHash => {
            let each = (balance.ring_size as usize).div_ceil(members.len()).max(1);
            let mut out = Vec::with_capacity(each * members.len());
            for (index, uid) in order {
                out.extend((0..each).map(|k| (xxh64(uid.as_bytes(), k as u64), index as u32)));
            }
            out.sort_unstable();
            out
        }
        Method::Maglev => maglev(&order, balance.ring_size.max(2) as usize),
        Method::LeastRequest | Method::RoundRobin | Method::Random | Method::PeakEwma => vec![],
    }
}

/// Maglev's table (Eisenbud et al., 2016, §3.4): everybody in turn takes the next free place of his permutation.
fn maglev(order: &[(usize, &str)], size: usize) -> Vec<(u64, u32)> {
    const FREE: u32 = u32::MAX;
    let mut table = vec![(0, FREE); size];
    let steps: Vec<(usize, usize)> = order
        .iter()
        .map(|(_, u)| {
            let (a, b) = (xxh64(u.as_bytes(), 0) as usize, xxh64(u.as_bytes(), 1) as usize);
            (a % size, b % (size - 1) + 1)
        })
        .collect();
    let mut next = vec![0; order.len()];
    let mut filled = 0;
    while filled < size {
        for (position, (index, _)) in order.iter().enumerate() {
            let (offset, skip) = steps[position];
            let at = loop {
                let at = (offset + next[position] * skip) % size;
                next[position] += 1;
                if table[at].1 == FREE {
                    break at;
                }
            };
            table[at].1 = *index as u32;
            filled += 1;
            if filled == size {
                break;
            }
        }
    }
    table
}
