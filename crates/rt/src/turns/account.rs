//! How much is one turn, whose is used up, and who is called next: pure data, without clock and tasks.

use karst_core::limits;
use std::collections::VecDeque;

/// The work of a share since its turn began, and what is still held against it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account(usize);

impl Account {
    /// Some more.
    pub(super) fn and(self, work: usize) -> Self {
        Self(self.0.saturating_add(work).min(limits::TURN_DEBT))
    }
    /// Is a turn of this size used up?
    pub(super) fn is_over(self, turn: usize) -> bool {
        self.0 >= turn
    }
    /// After so many rounds.
    pub(super) fn after(self, rounds: u64, turn: usize) -> Self {
        Self(self.0.saturating_sub(turn.saturating_mul(usize::try_from(rounds).unwrap_or(usize::MAX))))
    }
}

/// Those who wait, of each peer in order; the peers in turn.
#[derive(Debug)]
pub(super) struct Queue<T>(VecDeque<(u64, VecDeque<T>)>);

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Queue<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub(super) fn push(&mut self, peer: u64, one: T) {
        match self.0.iter_mut().find(|(known, _)| *known == peer) {
            Some((_, waiting)) => waiting.push_back(one),
            None => self.0.push_back((peer, VecDeque::from([one]))),
        }
    }
    pub(super) fn pop(&mut self) -> Option<T> {
        let (peer, mut waiting) = self.0.pop_front()?;
        let one = waiting.pop_front();
        if !waiting.is_empty() {
            self.0.push_back((peer, waiting));
        }
        one
    }
}

/// How much is one turn: with so many shares that wait, in company or alone.
pub(super) fn turn(waiting: usize, company: bool) -> usize {
    match company {
        true => (limits::TURN / waiting.max(1)).max(limits::TURN_LEAST),
        false => limits::TURN_ALONE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    #[test]
    fn a_queue_has_each_peer_in_turn_and_each_peers_in_order() {
        let mut queue = Queue::default();
        for (peer, one) in [(1, "a1"), (1, "a2"), (1, "a3"), (2, "b1"), (3, "c1"), (2, "b2")] {
            queue.push(peer, one);
        }
        let all: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(all, ["a1", "b1", "c1", "a2", "b2", "a3"]);
        assert!(queue.is_empty() && queue.pop().is_none());
    }

    /// Whatever is done in whatever order: nobody does more than turns and what goes beyond one, and debts end.
    #[test]
    fn accounts_are_fair() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let turn = turn(random.random_range(0..10), true);
            assert!((limits::TURN_LEAST..=limits::TURN).contains(&turn));
            let largest = random.random_range(1..limits::TURN_HANDSHAKE);
            let (mut account, mut all) = (Account::default(), 0);
            for round in 1..=500 {
                while !account.is_over(turn) {
                    let work = random.random_range(1..=largest);
                    all += work;
                    account = account.and(work);
                }
                assert!(all <= round * turn + largest, "seed {seed}");
                account = account.after(1, turn);
            }
            assert!(all >= 499 * turn, "seed {seed}: it never waits without a debt");
            let rounds = (0..).scan(Account::default().and(usize::MAX), |debt, _| {
                let over = debt.is_over(turn);
                *debt = debt.after(1, turn);
                over.then_some(())
            });
            assert!(rounds.count() <= limits::TURN_DEBT / limits::TURN_LEAST, "seed {seed}");
        }
    }
}
