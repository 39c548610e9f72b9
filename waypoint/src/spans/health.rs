//! Does a collector take anything? The exporter finds out; workers look before they make anything for it. While it is down, what there
//! would be for it is counted and not made, and the exporter tries it after pauses that grow with each failure.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    time::Duration,
};

/// Until the first try, at most. After each failure more the pause is twice as long,
const FIRST: Duration = Duration::from_secs(1);
/// and at most this.
const LONGEST: Duration = Duration::from_secs(30);

/// What is known of a collector. It is written when something has become of a batch or a try, and by the exporter alone.
#[derive(Debug, Default)]
pub struct Health {
    is_down: AtomicBool,
    /// Failures since it has taken something.
    failures: AtomicU32,
}

impl Health {
    /// Does it take nothing at the moment?
    pub fn is_down(&self) -> bool {
        self.is_down.load(Relaxed)
    }

    /// It takes nothing. True: that is new.
    pub fn fail(&self) -> bool {
        self.failures.store(self.failures.load(Relaxed).saturating_add(1), Relaxed);
        !self.is_down.swap(true, Relaxed)
    }

    /// It answers. What it takes is not known yet: one that hangs or fails as soon as there is something has a longer pause each time.
    pub fn answer(&self) {
        self.is_down.store(false, Relaxed);
    }

    /// It has taken something. While all is well nothing is written: workers look at what is beside it.
    pub fn take(&self) {
        if self.failures.load(Relaxed) > 0 {
            self.failures.store(0, Relaxed);
        }
    }

    /// Until it is tried again: at least half of the longest, so that many proxies do not come at once. `random`: a number below another.
    pub fn pause(&self, random: impl FnOnce(u64) -> u64) -> Duration {
        let doublings = self.failures.load(Relaxed).saturating_sub(1);
        let longest = FIRST.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST);
        let half = longest / 2;
        half + Duration::from_millis(random(half.as_millis() as u64 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shortest and longest pause, in milliseconds.
    fn pauses(health: &Health) -> [u128; 2] {
        [health.pause(|_| 0), health.pause(|bound| bound - 1)].map(|pause| pause.as_millis())
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        let health = Health::default();
        assert!(!health.is_down());
        for (n, longest) in [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000].into_iter().enumerate() {
            assert_eq!((health.fail(), health.is_down()), (n == 0, true), "{n}");
            assert_eq!(pauses(&health), [longest / 2, longest]);
        }
        for _ in 0..100 {
            health.fail();
        }
        assert_eq!(pauses(&health), [15_000, 30_000]);
    }

    #[test]
    fn what_it_takes_counts_and_not_that_it_answers() {
        let health = Health::default();
        for _ in 0..3 {
            health.fail();
        }
        health.answer();
        assert!(!health.is_down());
        assert!(health.fail(), "it is down again");
        assert_eq!(pauses(&health), [4000, 8000], "the fourth in a row");
        health.answer();
        health.take();
        assert!(health.fail());
        assert_eq!(pauses(&health), [500, 1000]);
    }
}
