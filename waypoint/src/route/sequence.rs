//! What is decided by turns and not by chance: of 200 requests with a share of 25 %, 50 are chosen, by whichever connections and
//! workers they come. Each thing that is decided has its own sequence, which all workers share: a part of somebody else's would not be
//! even. One is touched only where something is open: a rule with one destination costs nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The whole, of which shares are parts.
const MILLION: u64 = 1_000_000;
/// 2^64 divided by the golden ratio: its multiples are spread evenly over any number of parts.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The turns of one thing that is decided again and again.
#[derive(Debug)]
pub struct Sequence(AtomicU64);

impl Default for Sequence {
    /// Proxies that begin at the same time do not all choose the same.
    fn default() -> Self {
        Self(AtomicU64::new(rand::random()))
    }
}

impl Sequence {
    /// A number below `n`, each as often as every other, and evenly: of ten in a row with the weights 90 and 10 one goes to the
    /// second, not none or three.
    pub fn below(&self, n: u64) -> u64 {
        let at = self.0.fetch_add(GOLDEN, Relaxed);
        ((u128::from(at) * u128::from(n)) >> 64) as u64
    }

    /// True for so many of a million: of however many in a row for their share, rounded down or up. (The sum of the shares so far
    /// passes a whole so often.)
    pub fn chance(&self, per_million: u32) -> bool {
        match u64::from(per_million) {
            0 => false,
            MILLION.. => true,
            share => self.0.fetch_add(share, Relaxed) % MILLION + share >= MILLION,
        }
    }
}

/// The turns of an injected fault. Who is delayed has other turns to be aborted than who is not: of the same turns, half of the requests
/// would always be both, or never.
#[derive(Debug, Default)]
pub struct FaultTurns {
    delay: Sequence,
    abort: [Sequence; 2],
}

impl FaultTurns {
    /// True for so many of a million.
    pub fn delays(&self, per_million: u32) -> bool {
        self.delay.chance(per_million)
    }

    /// The same of aborts, of a request that is delayed or is not.
    pub fn aborts(&self, is_delayed: bool, per_million: u32) -> bool {
        self.abort[usize::from(is_delayed)].chance(per_million)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_any_number_in_a_row_the_share_is_chosen() {
        for start in [0, 1, 999_999, 123_456_789] {
            for share in [1, 10_000, 100_000, 250_000, 333_333, 500_000, 750_000, 999_999] {
                let turns = Sequence(AtomicU64::new(start));
                let mut chosen = 0;
                for n in 1..=2_000u64 {
                    chosen += u64::from(turns.chance(share));
                    let exact = n * u64::from(share);
                    assert!((exact / MILLION..=exact.div_ceil(MILLION)).contains(&chosen), "{share}: {chosen} of {n}");
                }
            }
        }
        let turns = Sequence::default();
        assert!((0..100).all(|_| !turns.chance(0) && turns.chance(1_000_000) && turns.chance(u32::MAX)));
    }

    /// Workers take turns of one sequence: how they share the requests changes nothing.
    #[test]
    fn threads_together_choose_the_share() {
        let (turns, chosen) = (Sequence::default(), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for part in [30, 70, 99, 1] {
                let (turns, chosen) = (&turns, &chosen);
                scope.spawn(move || {
                    let own = (0..part).filter(|_| turns.chance(250_000)).count();
                    chosen.fetch_add(own as u64, Relaxed);
                });
            }
        });
        assert_eq!(chosen.into_inner(), 50);
    }

    #[test]
    fn who_is_delayed_is_aborted_as_often_as_who_is_not() {
        for _ in 0..20 {
            let (turns, mut seen) = (FaultTurns::default(), [[0; 2]; 2]);
            for _ in 0..400 {
                let is_delayed = turns.delays(500_000);
                seen[usize::from(is_delayed)][usize::from(turns.aborts(is_delayed, 500_000))] += 1;
            }
            assert_eq!(seen, [[100; 2]; 2]);
        }
    }

    #[test]
    fn weights_are_even() {
        let turns = Sequence::default();
        assert_eq!(turns.below(0), 0);
        for _ in 0..100 {
            let second = (0..144).filter(|_| turns.below(10) == 0).count();
            // 144 is a Fibonacci number, and so one of the golden ratio's.
            assert!((14..=15).contains(&second), "{second}");
        }
    }
}
