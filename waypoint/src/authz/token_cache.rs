//! What was found out about tokens, by hash: to verify a signature costs a hundred times what the hash does.
//!
//! Always: what is found was put there under the same key, and within its time. A key is a hash of all that the result follows from
//! (the token, and the rules with their keys), so other rules or keys never find what was verified by the old ones.

use crate::authz::generations::{Generations, Key, Room};
use karst_core::limits;
use karst_rt::exposition::{Kind, Page};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Of each generation.
const ROOM: Room = Room { entries: limits::TOKENS, bytes: limits::TOKEN_BYTES };
const NAME: &str = "karst_jwt_verifications_total";

/// What became of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was found: verified before, by the same rules.
    Cached,
    /// It was verified.
    Verified,
    /// It is not good.
    Refused,
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Cached, Self::Verified, Self::Refused];

    fn text(self) -> &'static str {
        match self {
            Outcome::Cached => "cached",
            Outcome::Verified => "verified",
            Outcome::Refused => "refused",
        }
    }
}

/// The counters of a process.
#[derive(Debug, Default)]
pub struct Counts([AtomicU64; Outcome::ALL.len()]);

impl Counts {
    /// One more.
    pub fn count(&self, outcome: Outcome) {
        self.0[outcome as usize].fetch_add(1, Relaxed);
    }

    /// How many.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize].load(Relaxed)
    }

    /// Adds them to the metrics page.
    pub fn render(&self, page: &mut Page) {
        let mut family = page.family(NAME, Kind::Counter, "Tokens (JWT) of requests that were looked at.");
        for outcome in Outcome::ALL {
            family.sample(&[("outcome", outcome.text())], self.of(outcome));
        }
    }
}

/// What was found out about tokens.
pub struct TokenCache<T> {
    all: Generations<T>,
    /// Whoever uses it counts here.
    pub counts: Arc<Counts>,
}

impl<T> Default for TokenCache<T> {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl<T> TokenCache<T> {
    /// An empty one.
    pub fn new(counts: Arc<Counts>) -> Self {
        Self { all: Generations::new(ROOM), counts }
    }

    /// What is known at this time (seconds since 1970). What is not valid any more is dropped.
    pub fn get(&mut self, key: &Key, now: u64) -> Option<&T> {
        self.all.get(key, now)
    }

    /// Keeps what is good between two times (both included); `bytes`: how long the token is.
    pub fn put(&mut self, key: Key, value: T, bytes: usize, valid: (u64, u64)) {
        self.all.put(key, value, bytes, valid);
    }
}
