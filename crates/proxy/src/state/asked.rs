//! What of the mesh was asked for, where the control plane tells no more than that ([`crate::demand`]).
//!
//! What must always hold: what a name stands for is decided by only where the name is told. A name that is not is unknown, and
//! neither of the mesh nor outside.

use imbl::HashMap;
use karst_xds::HOST_GROUP;
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

/// By what something of the mesh is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// Whatever has this address in our network: services, workloads.
    Address(IpAddr),
    /// A service by its key, with its endpoints; or a workload by its uid.
    Resource(Arc<str>),
    /// The services of this host in whatever namespace, with their endpoints.
    Host(Arc<str>),
}

impl Name {
    /// As the control plane is asked.
    pub fn wire(&self, network: &str) -> String {
        match self {
            Self::Address(ip) => format!("{network}/{ip}"),
            Self::Resource(name) => name.to_string(),
            Self::Host(host) => format!("{HOST_GROUP}{host}"),
        }
    }

    /// The other way.
    pub fn of_wire(text: &str, network: &str) -> Self {
        if let Some(host) = text.strip_prefix(HOST_GROUP) {
            return Self::Host(host.into());
        }
        let address = text.strip_prefix(network).and_then(|rest| rest.strip_prefix('/')?.parse().ok());
        address.map_or_else(|| Self::Resource(text.into()), Self::Address)
    }
}

/// Time, in pages: a name that was used within one counts as used in it, so that no use but the first of a page is written down.
#[derive(Clone, Debug, Default)]
pub struct Pages(Arc<AtomicU32>);

impl Pages {
    /// The page of now.
    pub fn now(&self) -> u32 {
        self.0.load(Relaxed)
    }

    /// Goes to the next one.
    pub fn turn(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// When a name was used last.
#[derive(Debug, Default)]
pub struct Mark(AtomicU32);

impl Mark {
    /// One that is used now.
    pub fn new(pages: &Pages) -> Arc<Self> {
        Arc::new(Self(AtomicU32::new(pages.now())))
    }

    /// How many pages ago.
    pub fn age(&self, pages: &Pages) -> u32 {
        pages.now().wrapping_sub(self.0.load(Relaxed))
    }

    /// It is used. Threads share it: they write to it once in a page.
    fn note(&self, page: u32) {
        if self.0.load(Relaxed) != page {
            self.0.store(page, Relaxed);
        }
    }
}

/// The names of which is told.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    names: HashMap<Name, Arc<Mark>>,
    pages: Pages,
}

impl Asked {
    /// Nothing was asked for.
    pub fn new(pages: Pages) -> Self {
        Self { names: HashMap::new(), pages }
    }

    /// Is it told what there is of this name? Whoever asks uses it.
    pub fn has(&self, name: &Name) -> bool {
        let Some(mark) = self.names.get(name) else { return false };
        mark.note(self.pages.now());
        true
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.names.keys()
    }

    pub(super) fn put(&mut self, name: Name, mark: Arc<Mark>) {
        self.names.insert(name, mark);
    }

    pub(super) fn remove(&mut self, name: &Name) {
        self.names.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_as_it_was_written() {
        for network in ["", "east"] {
            for name in [
                Name::Address([10, 0, 0, 1].into()),
                Name::Address([0xfd00, 0, 0, 0, 0, 0, 0, 1].into()),
                Name::Resource("ns/s.ns.svc.cluster.local".into()),
                Name::Resource("Kubernetes//Pod/ns/a".into()),
                Name::Host("api.example.com".into()),
            ] {
                assert_eq!(Name::of_wire(&name.wire(network), network), name);
            }
        }
        assert_eq!(Name::of_wire("west/10.0.0.1", "east"), Name::Resource("west/10.0.0.1".into()));
    }

    #[test]
    fn a_use_is_noted_by_page() {
        let pages = Pages::default();
        let mut asked = Asked::new(pages.clone());
        let (one, other) = (Name::Host("a".into()), Name::Host("b".into()));
        for name in [&one, &other] {
            asked.put(name.clone(), Mark::new(&pages));
        }
        let age = |asked: &Asked, name: &Name| asked.names.get(name).map(|mark| mark.age(&pages));
        (0..3).for_each(|_| pages.turn());
        assert!(asked.has(&one) && !asked.has(&Name::Host("c".into())));
        assert_eq!((age(&asked, &one), age(&asked, &other)), (Some(0), Some(3)));
        asked.remove(&one);
        assert!(!asked.has(&one));
    }
}
