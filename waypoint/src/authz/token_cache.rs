//! What was found out about tokens, by hash: to verify a signature costs a hundred times what the hash does. One cache for each
//! worker, without a lock.
//!
//! Always: what is found was put there under the same key, and within its time. A key is a hash of all that the result follows from
//! (the token, and the rules with their keys), so other rules or keys never find what was verified by the old ones. What is not
//! asked for falls out.

use std::{
    collections::HashMap,
    fmt::Write,
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Tokens of each of the two generations.
const TOKENS: usize = 2048;
/// Their bytes as sent. (Their claims, as read, take some times that.)
const BYTES: usize = 2 << 20;
const NAME: &str = "karst_jwt_verifications_total";

/// Of a hash (SHA-256).
pub type Key = [u8; 32];

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

    /// Metrics, in the text format.
    pub fn render(&self, out: &mut String) {
        let _ = writeln!(out, "# HELP {NAME} Tokens (JWT) of requests that were looked at.\n# TYPE {NAME} counter");
        for outcome in Outcome::ALL {
            let _ = writeln!(out, "{NAME}{{outcome=\"{}\"}} {}", outcome.text(), self.of(outcome));
        }
    }
}

struct Entry<T> {
    value: T,
    bytes: usize,
    /// Seconds since 1970, both included.
    valid: (u64, u64),
}

/// Values by key. Two generations: what is found in the old one is young again, and when the young one is full it becomes the old one.
pub struct TokenCache<T> {
    young: HashMap<Key, Entry<T>>,
    /// Of the young ones.
    bytes: usize,
    old: HashMap<Key, Entry<T>>,
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
        Self { young: HashMap::new(), bytes: 0, old: HashMap::new(), counts }
    }

    /// What is known at this time (seconds since 1970). What is not valid any more is dropped.
    pub fn get(&mut self, key: &Key, now: u64) -> Option<&T> {
        if !self.young.contains_key(key)
            && let Some(entry) = self.old.remove(key)
        {
            self.insert(*key, entry);
        }
        let (from, until) = self.young.get(key)?.valid;
        if !(from..=until).contains(&now) {
            self.bytes -= self.young.remove(key).map_or(0, |entry| entry.bytes);
            return None;
        }
        self.young.get(key).map(|entry| &entry.value)
    }

    /// Keeps what is good between two times (both included); `bytes`: how long the token is.
    pub fn put(&mut self, key: Key, value: T, bytes: usize, valid: (u64, u64)) {
        self.old.remove(&key);
        self.insert(key, Entry { value, bytes, valid });
    }

    fn insert(&mut self, key: Key, entry: Entry<T>) {
        if self.young.len() >= TOKENS || self.bytes + entry.bytes > BYTES {
            self.old = mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.bytes += entry.bytes;
        if let Some(replaced) = self.young.insert(key, entry) {
            self.bytes -= replaced.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        key
    }

    #[test]
    fn what_is_kept_is_found_within_its_time() {
        let mut cache = TokenCache::default();
        cache.put(key(1), "one", 10, (100, 200));
        for (now, wanted) in [(100, Some("one")), (200, Some("one"))] {
            assert_eq!(cache.get(&key(1), now).copied(), wanted, "{now}");
        }
        assert_eq!(cache.get(&key(2), 150), None);
        assert_eq!(cache.get(&key(1), 201), None);
        assert_eq!(cache.get(&key(1), 150), None, "it was dropped");
        assert_eq!(cache.bytes, 0);
        cache.put(key(1), "one", 10, (100, 200));
        assert_eq!(cache.get(&key(1), 99), None, "not yet");
    }

    #[test]
    fn it_holds_only_so_much_and_what_is_used_stays() {
        let mut cache = TokenCache::default();
        for n in 0..20 * TOKENS as u32 {
            cache.put(key(n), n, 1, (0, u64::MAX));
            assert!(cache.get(&key(0), 0).is_some(), "asked for each time: {n}");
        }
        assert!(cache.young.len() <= TOKENS && cache.old.len() <= TOKENS);
        assert_eq!(cache.get(&key(1), 0), None, "nobody has asked for it");
        assert_eq!(cache.bytes, cache.young.len());
        for n in 0..100 {
            cache.put(key(n), n, BYTES / 10, (0, u64::MAX));
            assert!(cache.bytes <= BYTES);
        }
        assert!(cache.young.len() + cache.old.len() <= 20, "large ones are few");
        cache.put(key(99), 1, 7, (0, u64::MAX));
        assert_eq!(cache.get(&key(99), 0), Some(&1), "the newer counts");
    }
}
