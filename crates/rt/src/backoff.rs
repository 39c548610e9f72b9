//! The only retry timer in the tree: exponential with full jitter, capped, reset by success.

use rand::Rng;
use std::time::Duration;

/// Delays between tries.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    tries: u32,
}

impl Backoff {
    /// Delays up to `first`, then up to twice that, and so on to `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, tries: 0 }
    }
    /// The next delay: anywhere between half and the whole of the current step.
    pub fn next_delay(&mut self) -> Duration {
        let step = self.first.saturating_mul(1u32.checked_shl(self.tries).unwrap_or(u32::MAX)).min(self.cap);
        self.tries = self.tries.saturating_add(1).min(30);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
    /// After a success: start again from the first delay.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_differ() {
        let mut b = Backoff::new(Duration::from_millis(10), Duration::from_secs(15));
        let d: Vec<_> = (0..40).map(|_| b.next_delay()).collect();
        assert!(d[0] <= Duration::from_millis(10) && d[0] >= Duration::from_millis(5));
        assert!(d[39] <= Duration::from_secs(15) && d[39] >= Duration::from_millis(7500));
        assert!(d[20..].iter().any(|x| *x != d[39]), "jitter");
        b.reset();
        assert!(b.next_delay() <= Duration::from_millis(10));
    }
}
