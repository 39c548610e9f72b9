//! One worker's book: a table by the hash of the key, and a list from the flow that was seen last to the one that was not for the
//! longest time, which makes room. The hash is keyed by a secret of the process, so that no client can choose paths that fall
//! together; of two keys with one hash the later takes the place.

use crate::{
    flow::{Destination, Example, Flow, Key, Request, Seen, Source, range},
    path::Template,
};
use karst_core::limits;
use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState},
    net::IpAddr,
};

/// No slot.
const NONE: u32 = u32::MAX;

/// A table whose keys are hashes already.
#[derive(Clone, Copy, Default)]
struct Taken(u64);

impl Hasher for Taken {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

struct Slot {
    flow: Flow,
    /// Of a caller without an identity: as its key has it, to be compared.
    range: Option<(IpAddr, u8)>,
    hash: u64,
    /// The one that was seen after it.
    newer: u32,
    /// The one that was seen before it.
    older: u32,
}

impl Slot {
    fn count(&mut self, now: u64) {
        self.flow.count += 1;
        self.flow.last = now;
    }
}

/// The book of one worker.
pub struct Book {
    capacity: usize,
    slots: Vec<Slot>,
    by_hash: HashMap<u64, u32, BuildHasherDefault<Taken>>,
    /// Flows with paths, by service.
    with_path: HashMap<String, usize>,
    newest: u32,
    oldest: u32,
    evicted: u64,
    hasher: RandomState,
}

/// What is hashed and compared of a request or connection.
struct Wanted<'a> {
    seen: &'a Seen<'a>,
    template: Option<Template<'a>>,
}

impl<'a> Wanted<'a> {
    fn new(seen: &'a Seen<'a>, any: bool) -> Self {
        let of = |request: Request<'a>| if any { Template::Any } else { Template::Of(request.path) };
        Self { seen, template: seen.request.map(of) }
    }

    fn is(&self, slot: &Slot) -> bool {
        let (seen, key) = (self.seen, &slot.flow.key);
        let source = match (seen.identity, &key.source) {
            (Some(identity), Source::Identity(text)) => identity.as_str() == text,
            (None, Source::Addresses(_)) => slot.range == Some(range(seen.from)),
            (Some(_), Source::Addresses(_)) | (None, Source::Identity(_)) => false,
        };
        let request = match (seen.request, self.template) {
            (Some(request), Some(template)) => method(request.method) == key.method && template.is(&key.path),
            _ => key.method.is_empty() && key.path.is_empty(),
        };
        source
            && request
            && seen.to.port() == key.port
            && seen.reporter == key.reporter
            && seen.workload == key.destination.workload
            && seen.service == key.destination.service
            && seen.namespace == key.destination.namespace
            && seen.decision.verdict() == key.verdict
            && seen.decision.policy() == key.policy
    }

    fn key(&self) -> Key {
        let seen = self.seen;
        let text = |(ip, bits): (IpAddr, u8)| format!("{ip}/{bits}");
        Key {
            reporter: seen.reporter,
            destination: Destination {
                namespace: seen.namespace.into(),
                workload: seen.workload.into(),
                service: seen.service.into(),
            },
            port: seen.to.port(),
            source: match seen.identity {
                Some(identity) => Source::Identity(identity.as_str().into()),
                None => Source::Addresses(text(range(seen.from))),
            },
            method: seen.request.map(|r| method(r.method).into()).unwrap_or_default(),
            path: self.template.map(Template::text).unwrap_or_default(),
            verdict: seen.decision.verdict(),
            policy: seen.decision.policy().into(),
        }
    }

    fn example(&self) -> Example {
        let seen = self.seen;
        let mut example = Example {
            from: seen.from,
            to: seen.to,
            pod: seen.pod.into(),
            host: String::new(),
            path: String::new(),
            cut: false,
        };
        if let Some(request) = seen.request {
            let (host, path) = (start(request.host, limits::FLOW_HOST), start(request.path, limits::FLOW_PATH));
            let whole = (host.len(), path.len()) == (request.host.len(), request.path.len());
            example.cut = !whole || method(request.method) != request.method;
            (example.host, example.path) = (host.into(), path.into());
        }
        example
    }
}

impl Hash for Wanted<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let seen = self.seen;
        match seen.identity {
            Some(identity) => identity.as_str().hash(state),
            None => range(seen.from).hash(state),
        }
        seen.reporter.hash(state);
        seen.namespace.hash(state);
        seen.workload.hash(state);
        seen.service.hash(state);
        state.write_u16(seen.to.port());
        seen.decision.verdict().hash(state);
        seen.decision.policy().hash(state);
        if let (Some(request), Some(template)) = (seen.request, self.template) {
            method(request.method).hash(state);
            template.hash(state);
        }
    }
}

/// A method that is kept as it is; whoever invents long ones is not told apart.
fn method(method: &str) -> &str {
    start(method, limits::FLOW_METHOD)
}

/// The first bytes of a text, at the end of a character.
fn start(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most.min(text.len()))).unwrap_or_default()
}

impl Book {
    /// An empty book with room for so many flows (at least one).
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.clamp(1, NONE as usize - 1),
            slots: vec![],
            by_hash: HashMap::default(),
            with_path: HashMap::new(),
            newest: NONE,
            oldest: NONE,
            evicted: 0,
            hasher: RandomState::new(),
        }
    }

    /// Notes a connection or request. `now`: seconds since 1970. True: another flow had to make room, or this one's names are longer
    /// than any that Kubernetes has, and it is not kept.
    pub fn note(&mut self, seen: &Seen<'_>, now: u64) -> bool {
        let exact = Wanted::new(seen, false);
        // What is seen again and again, one after the other, needs no look-up.
        if let Some(newest) = self.slots.get_mut(self.newest as usize).filter(|slot| exact.is(slot)) {
            newest.count(now);
            return false;
        }
        let hash = self.hasher.hash_one(&exact);
        if self.is_known(&exact, hash, now) {
            return false;
        }
        let names = [seen.namespace, seen.workload, seen.service, seen.pod, seen.decision.policy()];
        let identity = seen.identity.map_or(0, |identity| identity.as_str().len());
        if identity > limits::FLOW_IDENTITY || names.iter().any(|name| name.len() > limits::FLOW_NAME) {
            self.evicted += 1;
            return true;
        }
        let paths = || self.with_path.get(seen.service).copied().unwrap_or_default();
        if seen.request.is_none() || paths() < limits::FLOWS_PER_SERVICE {
            return self.insert(&exact, hash, now);
        }
        // A service whose paths have no end is one line for each caller and method, and not the whole book.
        let any = Wanted::new(seen, true);
        let hash = self.hasher.hash_one(&any);
        !self.is_known(&any, hash, now) && self.insert(&any, hash, now)
    }

    /// The flows, those seen last first.
    pub fn flows(&self) -> impl Iterator<Item = &Flow> {
        let slot = |at: u32| self.slots.get(at as usize);
        std::iter::successors(slot(self.newest), move |s| slot(s.older)).map(|s| &s.flow)
    }

    /// Flows that had to make room.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn is_known(&mut self, wanted: &Wanted<'_>, hash: u64, now: u64) -> bool {
        let Some(&at) = self.by_hash.get(&hash) else { return false };
        let Some(slot) = self.slots.get_mut(at as usize).filter(|slot| wanted.is(slot)) else { return false };
        slot.count(now);
        if at != self.newest {
            self.unlink(at);
            self.link(at);
        }
        true
    }

    fn insert(&mut self, wanted: &Wanted<'_>, hash: u64, now: u64) -> bool {
        let flow = Flow { key: wanted.key(), count: 1, first: now, last: now, example: wanted.example() };
        if !flow.key.path.is_empty() {
            *self.with_path.entry(flow.key.destination.service.clone()).or_default() += 1;
        }
        let range = wanted.seen.identity.is_none().then(|| range(wanted.seen.from));
        let slot = Slot { flow, range, hash, newer: NONE, older: NONE };
        let same = self.by_hash.get(&hash).copied();
        let full = (self.slots.len() >= self.capacity).then_some(self.oldest);
        let (at, evicts) = match same.or(full) {
            None => {
                self.slots.push(slot);
                (self.slots.len() as u32 - 1, false)
            }
            Some(at) => {
                self.unlink(at);
                if let Some(place) = self.slots.get_mut(at as usize) {
                    let gone = std::mem::replace(place, slot);
                    self.by_hash.remove(&gone.hash);
                    self.forget_path(&gone.flow.key);
                }
                (at, true)
            }
        };
        self.evicted += u64::from(evicts);
        self.by_hash.insert(hash, at);
        self.link(at);
        evicts
    }

    fn forget_path(&mut self, key: &Key) {
        if key.path.is_empty() {
            return;
        }
        if let Some(count) = self.with_path.get_mut(&key.destination.service) {
            *count -= 1;
            if *count == 0 {
                self.with_path.remove(&key.destination.service);
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
