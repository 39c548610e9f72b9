//! Errors that come again and again: each is logged when it first comes, then when it has come 16, 32, 64 … times, and once more
//! when it is over, with the count.

use std::collections::BTreeMap;

/// From this count on, each doubling is logged.
const REMINDER: u64 = 16;
/// So many errors are told apart; with more, counting starts anew.
const MAX_ERRORS: usize = 1024;

/// Counts errors by their text, in rounds of tries.
#[derive(Debug, Default)]
pub struct Repeated {
    errors: BTreeMap<String, Seen>,
    round: u64,
}

#[derive(Debug, Default)]
struct Seen {
    count: u64,
    /// The round in which it came last.
    round: u64,
}

impl Repeated {
    /// Notes an error of this round. The line to log, if there is one.
    pub fn note(&mut self, error: &str) -> Option<String> {
        let round = self.round;
        if let Some(seen) = self.errors.get_mut(error) {
            // Several objects with the same error in one round are one.
            seen.count += u64::from(seen.round != round);
            let again = seen.round != round && seen.count >= REMINDER && seen.count.is_power_of_two();
            seen.round = round;
            return again.then(|| format!("{error} ({} times)", seen.count));
        }
        if self.errors.len() >= MAX_ERRORS {
            self.errors.clear();
        }
        self.errors.insert(error.into(), Seen { count: 1, round });
        Some(error.into())
    }

    /// Ends a round. What has not come in it is over: a line for each.
    pub fn end_round(&mut self) -> Vec<String> {
        let round = self.round;
        self.round += 1;
        let mut over = vec![];
        self.errors.retain(|error, seen| {
            if seen.round != round {
                over.push(format!("over after {} times: {error}", seen.count));
            }
            seen.round == round
        });
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_repeated_is_logged_once_with_a_count() {
        let mut r = Repeated::default();
        let mut lines = vec![];
        for _ in 0..100 {
            // The same of four objects, and of another none.
            lines.extend((0..4).filter_map(|_| r.note("no such kind")));
            assert!(r.end_round().is_empty());
        }
        assert_eq!(
            lines,
            ["no such kind", "no such kind (16 times)", "no such kind (32 times)", "no such kind (64 times)"]
        );
        assert_eq!(r.note("another").as_deref(), Some("another"));
        assert_eq!(r.end_round(), ["over after 100 times: no such kind"]);
        assert_eq!(r.end_round(), ["over after 1 times: another"]);
        assert!(r.note("no such kind").is_some(), "it has come back");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut r = Repeated::default();
        (0..5000).for_each(|i| drop(r.note(&i.to_string())));
        assert!(r.errors.len() <= MAX_ERRORS);
    }
}
