//! The buckets that this replica keeps, for all workers, in a table of fixed size without a lock. As a local limit's, a bucket is the
//! time until which its tokens are spent (GCRA): one that is full says nothing, and its place is anybody's.

use crate::route::bucket::Bucket;
use karst_core::limits;
use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// [`limits::QUOTA_BUCKETS`], whose remainder is cheap.
const SLOTS: usize = limits::QUOTA_BUCKETS;
/// Places that a bucket may have. Where others' buckets have them all, it is one with the first: nobody gets more by that.
const PROBES: usize = 8;

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds that a token is worth.
    pub step: u64,
    /// What a full bucket is worth.
    pub full: u64,
}

/// What a bucket has given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    pub tokens: u32,
    /// Nanoseconds until it has another one.
    pub after: u64,
}

#[derive(Default)]
struct Slot {
    /// 0: nobody's.
    name: AtomicU64,
    until: AtomicU64,
}

/// The buckets.
#[derive(Default)]
pub struct Table(OnceLock<Box<[Slot]>>);

impl Table {
    /// Takes as many tokens as there are, at most `want`, at a time of [`crate::route::limit::now`].
    pub fn take(&self, bucket: Bucket, rate: Rate, want: u32, now: u64) -> Grant {
        let until = &self.slot(bucket, now).until;
        let step = rate.step.max(1);
        let missing = |spent: u64| spent.saturating_add(step).saturating_sub(rate.full);
        let mut old = until.load(Relaxed);
        loop {
            let spent = old.saturating_sub(now);
            let free = rate.full.saturating_sub(spent) / step;
            let tokens = want.min(u32::try_from(free).unwrap_or(u32::MAX));
            if tokens == 0 {
                return Grant { tokens, after: missing(spent) };
            }
            let spent = spent.saturating_add(step.saturating_mul(tokens.into()));
            match until.compare_exchange_weak(old, now.saturating_add(spent), Relaxed, Relaxed) {
                Ok(_) => return Grant { tokens, after: missing(spent) },
                Err(other) => old = other,
            }
        }
    }

    /// Puts tokens back that were taken and not used.
    pub fn give_back(&self, bucket: Bucket, rate: Rate, tokens: u32, now: u64) {
        let worth = rate.step.saturating_mul(tokens.into());
        let until = &self.slot(bucket, now).until;
        let mut old = until.load(Relaxed);
        while let Err(other) = until.compare_exchange_weak(old, old.saturating_sub(worth), Relaxed, Relaxed) {
            old = other;
        }
    }

    fn slot(&self, bucket: Bucket, now: u64) -> &Slot {
        let slots = self.0.get_or_init(|| (0..SLOTS).map(|_| Slot::default()).collect());
        let name = (bucket as u64).max(1);
        let first = (bucket >> 64) as usize % SLOTS;
        let at = |i: usize| &slots[(first + i) % SLOTS];
        if let Some(found) = (0..PROBES).map(at).find(|slot| slot.name.load(Relaxed) == name) {
            return found;
        }
        for slot in (0..PROBES).map(at) {
            let mut held = slot.name.load(Relaxed);
            let is_free = held == 0 || slot.until.load(Relaxed) <= now;
            if is_free && held != name {
                match slot.name.compare_exchange(held, name, Relaxed, Relaxed) {
                    Ok(_) => return slot,
                    Err(other) => held = other,
                }
            }
            // Another worker has taken the place meanwhile, for the same bucket: it has no second one.
            if held == name {
                return slot;
            }
        }
        at(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    /// Ten a second, twenty at once.
    const RATE: Rate = Rate { step: S / 10, full: 2 * S };

    #[test]
    fn a_bucket_gives_what_it_has_and_fills() {
        let table = Table::default();
        assert_eq!(table.take(7, RATE, 15, S), Grant { tokens: 15, after: 0 });
        assert_eq!(table.take(7, RATE, 15, S), Grant { tokens: 5, after: S / 10 });
        assert_eq!(table.take(7, RATE, 15, S), Grant { tokens: 0, after: S / 10 });
        assert_eq!(table.take(7, RATE, 15, 2 * S).tokens, 10);
        assert_eq!(table.take(8, RATE, 20, 2 * S).tokens, 20, "another bucket");
        table.give_back(7, RATE, 3, 2 * S);
        assert_eq!(table.take(7, RATE, 15, 2 * S).tokens, 3, "what was given back");
        assert_eq!(table.take(7, RATE, 0, 90 * S), Grant::default());
        assert_eq!(table.take(7, RATE, 100, 90 * S).tokens, 20, "it holds no more");
    }

    /// Names that begin at one place: those that are full make room, and when none is, all share what the first has.
    #[test]
    fn there_are_only_so_many_places() {
        let table = Table::default();
        let name = |n: usize| Bucket::from(n as u64 + 1);
        for n in 0..PROBES {
            assert_eq!(table.take(name(n), RATE, 20, S).tokens, 20);
        }
        assert_eq!(table.take(name(PROBES), RATE, 1, S).tokens, 0, "one with the first, which is empty");
        assert_eq!(table.take(name(PROBES), RATE, 20, 9 * S).tokens, 20, "in a place that is free again");
        assert_eq!(table.take(name(1), RATE, 20, 9 * S).tokens, 20, "its own place, or another");
    }

    /// Workers that ask for a new bucket at the same time find one.
    #[test]
    fn a_bucket_has_one_place() {
        const BUCKETS: usize = 5000;
        let (table, barrier) = (Table::default(), std::sync::Barrier::new(2));
        let given: Vec<AtomicU64> = (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for (n, given) in given.iter().enumerate() {
                        barrier.wait();
                        let name = ((n as Bucket) << 64) | (n as Bucket + 1);
                        given.fetch_add(table.take(name, RATE, 20, S).tokens.into(), Relaxed);
                    }
                });
            }
        });
        assert!(given.iter().all(|given| given.load(Relaxed) == 20));
    }

    /// Odd rates of a peer's do no harm.
    #[test]
    fn any_rate_is_taken() {
        let table = Table::default();
        for (step, full) in [(0, 0), (0, u64::MAX), (u64::MAX, u64::MAX), (u64::MAX, 0), (1, u64::MAX)] {
            let rate = Rate { step, full };
            table.take(9, rate, u32::MAX, u64::MAX - 1);
            table.give_back(9, rate, u32::MAX, 1);
        }
    }
}
