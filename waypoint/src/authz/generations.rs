//! What was found out, by hash and time. Two generations of bounded size: what is found in the old one is young again, and when the
//! young one is full it becomes the old one. So what is not asked for falls out. One for each worker, without a lock.

use aws_lc_rs::digest::Digest;
use std::{collections::HashMap, mem};

/// A hash (SHA-256) of all that a value follows from.
pub type Key = [u8; 32];

/// A hash as a key.
pub fn key(hash: &Digest) -> Key {
    let mut out = Key::default();
    for (to, from) in out.iter_mut().zip(hash.as_ref()) {
        *to = *from;
    }
    out
}

/// How much each of the two generations holds.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub entries: usize,
    pub bytes: usize,
}

struct Entry<T> {
    value: T,
    bytes: usize,
    /// Both included, in whatever unit the owner has.
    valid: (u64, u64),
}

/// Values by key.
pub struct Generations<T> {
    room: Room,
    young: HashMap<Key, Entry<T>>,
    /// Of the young ones.
    bytes: usize,
    old: HashMap<Key, Entry<T>>,
}

impl<T> Generations<T> {
    /// None yet.
    pub fn new(room: Room) -> Self {
        Self { room, young: HashMap::new(), bytes: 0, old: HashMap::new() }
    }

    /// What is known at this time. What is not valid any more is dropped.
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

    /// Keeps what is good between two times (both included), and takes so much room.
    pub fn put(&mut self, key: Key, value: T, bytes: usize, valid: (u64, u64)) {
        self.old.remove(&key);
        self.insert(key, Entry { value, bytes, valid });
    }

    fn insert(&mut self, key: Key, entry: Entry<T>) {
        if self.young.len() >= self.room.entries || self.bytes + entry.bytes > self.room.bytes {
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

    const ROOM: Room = Room { entries: 2048, bytes: 2 << 20 };

    fn key(n: u32) -> Key {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        key
    }

    #[test]
    fn what_is_kept_is_found_within_its_time() {
        let mut all = Generations::new(ROOM);
        all.put(key(1), "one", 10, (100, 200));
        for (now, wanted) in [(100, Some("one")), (200, Some("one"))] {
            assert_eq!(all.get(&key(1), now).copied(), wanted, "{now}");
        }
        assert_eq!(all.get(&key(2), 150), None);
        assert_eq!(all.get(&key(1), 201), None);
        assert_eq!(all.get(&key(1), 150), None, "it was dropped");
        assert_eq!(all.bytes, 0);
        all.put(key(1), "one", 10, (100, 200));
        assert_eq!(all.get(&key(1), 99), None, "not yet");
    }

    #[test]
    fn it_holds_only_so_much_and_what_is_used_stays() {
        let mut all = Generations::new(ROOM);
        for n in 0..20 * ROOM.entries as u32 {
            all.put(key(n), n, 1, (0, u64::MAX));
            assert!(all.get(&key(0), 0).is_some(), "asked for each time: {n}");
        }
        assert!(all.young.len() <= ROOM.entries && all.old.len() <= ROOM.entries);
        assert_eq!(all.get(&key(1), 0), None, "nobody has asked for it");
        assert_eq!(all.bytes, all.young.len());
        for n in 0..100 {
            all.put(key(n), n, ROOM.bytes / 10, (0, u64::MAX));
            assert!(all.bytes <= ROOM.bytes);
        }
        assert!(all.young.len() + all.old.len() <= 20, "large ones are few");
        all.put(key(99), 1, 7, (0, u64::MAX));
        assert_eq!(all.get(&key(99), 0), Some(&1), "the newer counts");
    }
}
