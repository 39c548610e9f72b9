//! How many retries a service takes in a time (Gateway API's GEP-3388): a part of all requests that were sent to it lately, and at least
//! so many, whatever the part. Workers count together, without locks, and the time is given.

use karst_api::route as ir;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// So many slices a time is counted in: the oldest is forgotten when the next begins.
const SLICES: usize = 10;
const MILLION: u64 = 1_000_000;

/// The retries of a service, and the requests that they are a part of.
pub struct RetryRate {
    rules: ir::RetryRate,
    /// That are no retries, in the last `interval_ms`.
    requests: Window,
    /// In the same time.
    retries: Window,
    /// In the last `at_least_ms`.
    recent: Window,
}

impl RetryRate {
    /// Nothing was sent yet.
    pub fn new(rules: &ir::RetryRate) -> Self {
        Self {
            rules: *rules,
            requests: Window::new(rules.interval_ms),
            retries: Window::new(rules.interval_ms),
            recent: Window::new(rules.at_least_ms),
        }
    }

    /// Does it count by these rules?
    pub fn is_by(&self, rules: &ir::RetryRate) -> bool {
        self.rules == *rules
    }

    /// Notes a request that is no retry. `now`: milliseconds since the process began.
    pub fn request(&self, now: u64) {
        self.requests.add(now);
    }

    /// May there be one more retry? Then it is noted. Of workers that ask at the same instant each may get the last one: there are at
    /// most as many too many as workers.
    pub fn retry(&self, now: u64) -> bool {
        let retries = self.retries.sum(now) + 1;
        let all = self.requests.sum(now) + retries;
        let is_part = retries * MILLION <= all * u64::from(self.rules.per_million);
        let may = is_part || self.recent.sum(now) < u64::from(self.rules.at_least);
        if may {
            self.retries.add(now);
            self.recent.add(now);
        }
        may
    }
}

/// What was counted in the last time. It is never longer than was asked for, and shorter by less than one of its slices and what the
/// clock's milliseconds do not divide.
struct Window {
    /// Milliseconds; at least 1.
    slice: u64,
    /// How many slices are summed, with the one that is under way: 1 to [`SLICES`].
    slices: u32,
    /// Of each slice its number (the upper half), and what was counted in it (the lower).
    counts: [AtomicU64; SLICES],
}

impl Window {
    /// Of so many milliseconds.
    fn new(length: u64) -> Self {
        let length = length.max(1);
        let slice = length.div_ceil(SLICES as u64);
        // Its length is at most SLICES of them.
        Self { slice, slices: (length / slice) as u32, counts: Default::default() }
    }

    /// The number of the slice that is under way. After 2^32 of them (49 days of milliseconds, if they are as short as that) numbers
    /// begin anew; those of before are then taken for new ones for no longer than one of them lasts.
    fn number(&self, now: u64) -> u32 {
        (now / self.slice) as u32
    }

    fn add(&self, now: u64) {
        let number = self.number(now);
        let count = &self.counts[number as usize % SLICES];
        let mut word = count.load(Relaxed);
        loop {
            let (of, counted) = halves(word);
            let next = match number.wrapping_sub(of) {
                0 => counted.saturating_add(1),
                // A newer one has its place: it is out of the time.
                behind if behind > u32::MAX / 2 => return,
                _ => 1,
            };
            let new = (u64::from(number) << 32) | u64::from(next);
            match count.compare_exchange_weak(word, new, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(other) => word = other,
            }
        }
    }

    fn sum(&self, now: u64) -> u64 {
        let number = self.number(now);
        let all = self.counts.iter().map(|count| halves(count.load(Relaxed)));
        all.filter(|(of, _)| number.wrapping_sub(*of) < self.slices).map(|(_, counted)| u64::from(counted)).sum()
    }
}

/// The number of a slice, and what was counted in it.
fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1000;

    /// 20 % of ten seconds, and one retry a second.
    fn rules(percent: u32, at_least: u32) -> ir::RetryRate {
        ir::RetryRate { per_million: percent * 10_000, interval_ms: 10 * SECOND, at_least, at_least_ms: SECOND }
    }

    /// How many of so many retries there may be at a moment.
    fn allowed(rate: &RetryRate, asked: usize, now: u64) -> usize {
        (0..asked).filter(|_| rate.retry(now)).count()
    }

    #[test]
    fn retries_are_at_most_their_part_of_all_requests() {
        // (percent, requests that are no retries, retries): GEP-3388 has 200 retries among 1000 requests by 20 %.
        let table = [(20, 800, 200), (50, 10, 10), (0, 1000, 0), (20, 3, 0), (20, 4, 1), (1, 0, 0)];
        for (percent, requests, want) in table {
            let rate = RetryRate::new(&rules(percent, 0));
            (0..requests).for_each(|_| rate.request(5));
            assert_eq!(allowed(&rate, 2000, 5), want, "{percent} % of {requests}");
        }
        assert_eq!(allowed(&RetryRate::new(&rules(100, 0)), 2000, 5), 2000, "all may be retries");
    }

    #[test]
    fn so_many_there_may_be_in_a_time_whatever_the_part() {
        let rate = RetryRate::new(&rules(0, 3));
        for second in [0, 1, 7, 100_000] {
            assert_eq!(allowed(&rate, 10, second * SECOND), 3, "second {second}");
            assert_eq!(allowed(&rate, 10, second * SECOND + 899), 0, "the time is not over");
        }
        // They come back when they are out of it, and not all of them at once.
        let rate = RetryRate::new(&rules(0, 2));
        assert!(rate.retry(0) && rate.retry(500) && !rate.retry(900));
        assert_eq!(allowed(&rate, 10, 1000), 1);
        assert_eq!((allowed(&rate, 10, 1400), allowed(&rate, 10, 1500)), (0, 1));
    }

    /// The minimum is none that is added: retries of the part count as those that there may be whatever it is.
    #[test]
    fn the_larger_of_both_counts_not_their_sum() {
        let rate = RetryRate::new(&rules(20, 3));
        (0..40).for_each(|_| rate.request(0));
        assert_eq!(allowed(&rate, 100, 0), 10);
        let rate = RetryRate::new(&rules(20, 30));
        (0..40).for_each(|_| rate.request(0));
        assert_eq!(allowed(&rate, 100, 0), 30);
    }

    #[test]
    fn what_is_out_of_the_interval_gives_no_retries() {
        let rate = RetryRate::new(&rules(20, 0));
        (0..40).for_each(|_| rate.request(0));
        assert_eq!(allowed(&rate, 1, 9999), 1);
        assert!(!rate.retry(10 * SECOND), "its requests are gone");
        // Nor do retries that are gone count against those of now.
        (0..4).for_each(|_| rate.request(20 * SECOND));
        assert_eq!(allowed(&rate, 10, 20 * SECOND), 1);
    }

    /// Compared with a list of all that was counted: never more than the time asked for, and nearly all of it.
    #[test]
    fn a_window_is_about_as_long_as_it_should_be() {
        for length in [1, 2, 9, 10, 11, 15, 19, 21, 99, 1000, 1234, 3_600_000] {
            let window = Window::new(length);
            let covered = window.slice * u64::from(window.slices);
            assert!(covered <= length && covered + window.slice > length, "{length}: {covered}");
            let mut at = vec![];
            for step in 0..500_u64 {
                let now = 7 + step * length.div_ceil(23);
                window.add(now);
                at.push(now);
                let since = |time: u64| at.iter().filter(|t| now - **t < time).count() as u64;
                let sum = window.sum(now);
                assert!(sum <= since(covered), "{length} at {now}: {sum}");
                assert!(sum >= since(covered - window.slice + 1), "{length} at {now}: {sum}");
            }
        }
    }

    #[test]
    fn workers_count_together() {
        let window = Window::new(10 * SECOND);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|n| window.add(n)));
            }
        });
        assert_eq!(window.sum(999), 4000);
        // Who is late by more than the whole time changes nothing.
        window.add(50 * SECOND);
        window.add(0);
        assert_eq!(window.sum(50 * SECOND), 1);
    }
}
