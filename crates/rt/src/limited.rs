//! Lines of the log that others cause by connecting: each reason has so many at once and so many a second; the next line after
//! that says how many were left out. (Metrics count every one.)

use crate::clock::Instant;
use std::{collections::HashMap, time::Duration};

/// Lines of a reason at once.
const BURST: u32 = 1000;
/// Then one in this time.
const PACE: Duration = Duration::from_millis(10);

/// The lines of one thread.
#[derive(Debug, Default)]
pub struct Limited(HashMap<&'static str, Reason>);

#[derive(Debug)]
struct Reason {
    /// When the last of the lines so far would be due, if they came at the pace.
    due: Instant,
    left_out: u64,
}

impl Limited {
    /// May there be a line for this reason now? Then: how many were left out before it.
    pub fn pass(&mut self, reason: &'static str, now: Instant) -> Option<u64> {
        let known = self.0.entry(reason).or_insert(Reason { due: now, left_out: 0 });
        let due = known.due.max(now) + PACE;
        if due.duration_since(now) > PACE * BURST {
            known.left_out += 1;
            return None;
        }
        known.due = due;
        Some(std::mem::take(&mut known.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_reason_is_cut_and_counted_and_hides_no_other() {
        let (mut lines, start) = (Limited::default(), Instant::now());
        let told = (0..3 * BURST).filter(|_| lines.pass("policy_denied", start).is_some()).count();
        assert_eq!(told, BURST as usize);
        assert_eq!(lines.pass("no_certificate", start), Some(0));
        assert_eq!(lines.pass("policy_denied", start + PACE), Some(u64::from(2 * BURST)), "the next says how many");
        assert_eq!(lines.pass("policy_denied", start + PACE), None);
        let later = start + PACE * 2 * BURST;
        assert_eq!(lines.pass("policy_denied", later), Some(1));
        assert!((1..BURST).all(|_| lines.pass("policy_denied", later) == Some(0)), "a burst is free again");
    }
}
