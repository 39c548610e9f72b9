//! Snapshots of resources and the difference between them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// One resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Hash of the content (see [`version`]).
    pub version: Arc<str>,
    /// The encoded message.
    pub bytes: Arc<[u8]>,
    /// Other names by which it can be asked for.
    pub aliases: Arc<[String]>,
}

/// All resources, by type URL and name.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// The resources.
    pub types: HashMap<&'static str, Arc<BTreeMap<String, Entry>>>,
    /// Number of this snapshot; acknowledgements are reported by it.
    pub version: u64,
}

/// The version of a resource: hexadecimal xxhash64 of its bytes, as istiod writes it, so that an unchanged resource is
/// not sent again after a reconnect, whichever of the two serves.
pub fn version(bytes: &[u8]) -> String {
    format!("{:x}", xxhash_rust::xxh64::xxh64(bytes, 0))
}

impl Entry {
    /// An entry of encoded bytes.
    pub fn new(bytes: Vec<u8>, aliases: Vec<String>) -> Self {
        Self { version: version(&bytes).into(), bytes: bytes.into(), aliases: aliases.into() }
    }
}

/// What a subscriber wants of one type.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interest {
    pub wildcard: bool,
    pub names: std::collections::BTreeSet<String>,
    /// What it holds: name to version.
    pub held: HashMap<String, Arc<str>>,
    /// Has it had its first answer?
    pub answered: bool,
}

pub(crate) struct Difference {
    pub changed: Vec<(String, Entry)>,
    pub removed: Vec<String>,
}

impl Interest {
    /// What has to be sent so that the subscriber holds `now`; notes it as held.
    pub(crate) fn advance(&mut self, now: &BTreeMap<String, Entry>) -> Difference {
        let asked = |n: &str, e: &Entry| {
            self.wildcard || self.names.contains(n) || e.aliases.iter().any(|a| self.names.contains(a))
        };
        let changed: Vec<(String, Entry)> = now
            .iter()
            .filter(|(n, e)| self.held.get(*n).is_none_or(|v| *v != e.version) && asked(n, e))
            .map(|(n, e)| (n.clone(), e.clone()))
            .collect();
        let mut removed: Vec<String> = self.held.keys().filter(|n| !now.contains_key(*n)).cloned().collect();
        removed.sort();
        for n in &removed {
            self.held.remove(n);
        }
        for (n, e) in &changed {
            self.held.insert(n.clone(), e.version.clone());
        }
        Difference { changed, removed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(v: &[(&str, &str)]) -> BTreeMap<String, Entry> {
        v.iter().map(|(n, b)| (n.to_string(), Entry::new(b.as_bytes().to_vec(), vec![format!("alias-{n}")]))).collect()
    }

    #[test]
    fn only_differences_are_sent() {
        let mut i = Interest { wildcard: true, ..Default::default() };
        let d = i.advance(&set(&[("a", "1"), ("b", "1")]));
        assert_eq!((d.changed.len(), d.removed.len()), (2, 0));
        let d = i.advance(&set(&[("a", "1"), ("b", "2")]));
        assert_eq!((d.changed.len(), d.changed[0].0.as_str()), (1, "b"));
        let d = i.advance(&set(&[("b", "2")]));
        assert_eq!((d.changed.len(), d.removed), (0, vec!["a".to_string()]));
    }

    #[test]
    fn a_reconnect_gets_only_what_changed() {
        let now = set(&[("a", "1"), ("b", "1")]);
        let mut i = Interest { wildcard: true, ..Default::default() };
        i.held.insert("a".into(), now["a"].version.clone());
        i.held.insert("gone".into(), "x".into());
        let d = i.advance(&now);
        assert_eq!((d.changed.len(), d.changed[0].0.as_str(), d.removed), (1, "b", vec!["gone".to_string()]));
    }

    #[test]
    fn names_and_aliases_select() {
        let mut i = Interest::default();
        i.names.insert("alias-b".into());
        let d = i.advance(&set(&[("a", "1"), ("b", "1")]));
        assert_eq!((d.changed.len(), d.changed[0].0.as_str()), (1, "b"));
    }
}
