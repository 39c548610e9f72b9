//! One worker's book: a table by the hash of the key, and a list from the flow that was seen last to the one that was not for the
//! longest time, which makes room.
//!
//! Whatever finds a flow, it is counted only after its whole key was compared: one that has taken the place of another is never
//! counted for it. So the hash need only be fast. It is keyed by a secret of the process; who knew it could make flows that fall
//! together, and look-ups that pass those of one book, no more.

use crate::{
    flow::{Example, Flow, Seen},
    packed::Head,
};
use foldhash::{SharedSeed, fast::SeedableRandomState};
use hashbrown::HashTable;
use karst_core::limits;
use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};

/// No slot.
const NONE: u32 = u32::MAX;

struct Slot {
    head: Head,
    text: Box<str>,
    count: u64,
    first: u64,
    last: u64,
    hash: u64,
    /// The one that was seen after it.
    newer: u32,
    /// The one that was seen before it.
    older: u32,
    /// Looked at by readers only.
    example: Box<Example>,
}

impl Slot {
    fn is(&self, head: &Head, text: &str) -> bool {
        self.head == *head && *self.text == *text
    }

    fn count(&mut self, now: u64) {
        self.count += 1;
        self.last = now;
        // One that came earlier may have waited longer for its decision.
        self.first = self.first.min(now);
    }

    fn flow(&self) -> Flow {
        Flow {
            key: self.head.key(&self.text),
            count: self.count,
            first: self.first,
            last: self.last,
            example: Example::clone(&self.example),
        }
    }
}

/// The book of one worker.
pub struct Book {
    capacity: usize,
    slots: Vec<Slot>,
    by_hash: HashTable<u32>,
    /// Flows with paths, by service.
    with_path: HashMap<Box<str>, usize, SeedableRandomState>,
    newest: u32,
    oldest: u32,
    evicted: u64,
    hasher: SeedableRandomState,
    /// Of what is noted at the moment.
    text: String,
}

/// Is a name of its key longer than any that Kubernetes has?
fn is_too_long(seen: &Seen<'_>) -> bool {
    let names = [seen.namespace, seen.workload, seen.service, seen.decision.policy()];
    let identity = seen.identity.map_or(0, |identity| identity.as_str().len());
    identity > limits::FLOW_IDENTITY || names.iter().any(|name| name.len() > limits::FLOW_NAME)
}

impl Book {
    /// An empty book with room for so many flows (at least one).
    pub fn new(capacity: usize) -> Self {
        let secret = RandomState::new().hash_one(capacity);
        let hasher = SeedableRandomState::with_seed(secret, SharedSeed::global_random());
        Self {
            capacity: capacity.clamp(1, NONE as usize - 1),
            slots: vec![],
            by_hash: HashTable::new(),
            with_path: HashMap::with_hasher(hasher.clone()),
            newest: NONE,
            oldest: NONE,
            evicted: 0,
            hasher,
            text: String::new(),
        }
    }

    /// Notes a connection or request. `now`: seconds since 1970. True: another flow had to make room, or this one's names are longer
    /// than any that Kubernetes has, and it is not kept.
    pub fn note(&mut self, seen: &Seen<'_>, now: u64) -> bool {
        if is_too_long(seen) {
            self.evicted += 1;
            return true;
        }
        let head = Head::write(seen, &mut self.text);
        // What is seen again and again, one after the other, needs no look-up.
        if let Some(newest) = self.slots.get_mut(self.newest as usize).filter(|slot| slot.is(&head, &self.text)) {
            newest.count(now);
            return false;
        }
        let hash = head.hash(&self.text, &self.hasher);
        if self.is_known(&head, hash, now) {
            return false;
        }
        if seen.pod.len() > limits::FLOW_NAME {
            self.evicted += 1;
            return true;
        }
        let paths = || self.with_path.get(seen.service).copied().unwrap_or_default();
        if seen.request.is_none() || paths() < limits::FLOWS_PER_SERVICE {
            return self.insert(head, hash, seen, now);
        }
        // A service whose paths have no end is one line for each caller and method, and not the whole book.
        head.write_any_path(&mut self.text);
        let hash = head.hash(&self.text, &self.hasher);
        !self.is_known(&head, hash, now) && self.insert(head, hash, seen, now)
    }

    /// The flows, those seen last first.
    pub fn flows(&self) -> impl Iterator<Item = Flow> {
        let slot = |at: u32| self.slots.get(at as usize);
        std::iter::successors(slot(self.newest), move |s| slot(s.older)).map(Slot::flow)
    }

    /// Flows that had to make room.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Counts it, if the book has it.
    fn is_known(&mut self, head: &Head, hash: u64, now: u64) -> bool {
        let (slots, text) = (&self.slots, &self.text);
        let is = |at: &u32| slots.get(*at as usize).is_some_and(|slot| slot.is(head, text));
        let Some(&at) = self.by_hash.find(hash, is) else { return false };
        if let Some(slot) = self.slots.get_mut(at as usize) {
            slot.count(now);
        }
        if at != self.newest {
            self.unlink(at);
            self.link(at);
        }
        true
    }

    fn insert(&mut self, head: Head, hash: u64, seen: &Seen<'_>, now: u64) -> bool {
        if !head.path(&self.text).is_empty() {
            *self.with_path.entry(seen.service.into()).or_default() += 1;
        }
        let (text, example) = (self.text.as_str().into(), Box::new(Example::of(seen)));
        let slot = Slot { head, text, count: 1, first: now, last: now, hash, newer: NONE, older: NONE, example };
        let is_full = self.slots.len() >= self.capacity;
        let at = if is_full { self.oldest } else { self.slots.len() as u32 };
        if is_full {
            self.unlink(at);
            if let Some(place) = self.slots.get_mut(at as usize) {
                let gone = std::mem::replace(place, slot);
                self.forget(&gone, at);
            }
        } else {
            self.slots.push(slot);
        }
        self.evicted += u64::from(is_full);
        let slots = &self.slots;
        self.by_hash.insert_unique(hash, at, |at| slots.get(*at as usize).map_or(0, |slot| slot.hash));
        self.link(at);
        is_full
    }

    /// Takes one that has made room out of the tables.
    fn forget(&mut self, gone: &Slot, at: u32) {
        if let Ok(entry) = self.by_hash.find_entry(gone.hash, |slot| *slot == at) {
            entry.remove();
        }
        if gone.head.path(&gone.text).is_empty() {
            return;
        }
        let service = gone.head.service(&gone.text);
        if let Some(count) = self.with_path.get_mut(service) {
            *count -= 1;
            if *count == 0 {
                self.with_path.remove(service);
            }
        }
    }

    /// Takes it out of the list.
    fn unlink(&mut self, at: u32) {
        let Some((newer, older)) = self.slots.get(at as usize).map(|slot| (slot.newer, slot.older)) else { return };
        match self.slots.get_mut(newer as usize) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = newer,
            None => self.oldest = newer,
        }
    }

    /// Puts it at the list's beginning.
    fn link(&mut self, at: u32) {
        let older = std::mem::replace(&mut self.newest, at);
        if let Some(slot) = self.slots.get_mut(at as usize) {
            (slot.newer, slot.older) = (NONE, older);
        }
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = at,
            None => self.oldest = at,
        }
    }
}

#[cfg(test)]
mod tests;
