//! Snapshots of resources and the difference between them.

use imbl::ordmap::DiffItem;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// The resources of a type by name. A copy shares what it has in common with the original, and two of them are compared
/// without a look at what they share.
pub type Set = imbl::OrdMap<String, Entry>;

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
    pub types: HashMap<&'static str, Set>,
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
    /// Names that it has just asked for, and is to hear of even if there is nothing to tell.
    pub asked: Vec<String>,
    /// What it holds: name to version.
    pub held: HashMap<String, Arc<str>>,
    /// What it holds, if that is all of a snapshot; `held` is then empty.
    pub seen: Option<Set>,
    /// Has it had its first answer?
    pub answered: bool,
    /// The set that it is told of, if that is not the type's own (see [`crate::server::Variant`]).
    pub set: Option<&'static str>,
}

pub(crate) struct Difference {
    pub changed: Vec<(String, Entry)>,
    pub removed: Vec<String>,
}

impl Interest {
    /// Everything, or only what is asked for by name.
    pub(crate) fn set_wildcard(&mut self, on: bool) {
        self.wildcard = on;
        if !on && let Some(seen) = self.seen.take() {
            self.held = seen.iter().map(|(n, e)| (n.clone(), e.version.clone())).collect();
        }
    }

    /// What has to be sent so that the subscriber holds `now`; notes it as held. Once a subscriber to everything has had its
    /// first answer, this costs as much as has changed, not as much as there is.
    pub(crate) fn advance(&mut self, now: &Set) -> Difference {
        let (mut changed, mut removed) = (vec![], vec![]);
        let everything = self.seen.is_some();
        if let Some(seen) = &self.seen {
            for d in seen.diff(now) {
                match d {
                    DiffItem::Add(n, e) => changed.push((n.clone(), e.clone())),
                    DiffItem::Update { old: (_, o), new: (n, e) } if o.version != e.version => {
                        changed.push((n.clone(), e.clone()));
                    }
                    DiffItem::Update { .. } => {}
                    DiffItem::Remove(n, _) => removed.push(n.clone()),
                }
            }
        } else {
            let asked = |name: &str, e: &Entry| {
                self.wildcard || self.names.contains(name) || e.aliases.iter().any(|a| self.names.contains(a))
            };
            let news = |name: &String, e: &Entry| self.held.get(name).is_none_or(|v| *v != e.version) && asked(name, e);
            changed.extend(
                now.iter().filter(|(name, entry)| news(name, entry)).map(|(name, entry)| (name.clone(), entry.clone())),
            );
            removed.extend(self.held.keys().filter(|name| !now.contains_key(*name)).cloned());
            removed.sort();
            for name in &removed {
                self.held.remove(name);
            }
            for (name, entry) in &changed {
                self.held.insert(name.clone(), entry.version.clone());
            }
        }
        if self.wildcard {
            self.seen = Some(now.clone());
            self.held = HashMap::new();
        }
        self.answer(now, everything, &mut changed, &mut removed);
        Difference { changed, removed }
    }

    /// What was asked for by name is answered: with the resource, if the subscriber has it already as one of all; as removed, if
    /// there is none of that name. (Otherwise it is among what has changed.)
    fn answer(&mut self, now: &Set, everything: bool, changed: &mut Vec<(String, Entry)>, removed: &mut Vec<String>) {
        let mut asked: HashSet<String> = std::mem::take(&mut self.asked).into_iter().collect();
        if asked.is_empty() {
            return;
        }
        let mut found: Vec<(String, Entry)> = Vec::new();
        asked.retain(|name| match now.get(name) {
            Some(e) => {
                found.push((name.clone(), e.clone()));
                false
            }
            None => true,
        });
        if !asked.is_empty() {
            for (name, entry) in now.iter().filter(|(_, entry)| entry.aliases.iter().any(|a| asked.contains(a))) {
                found.push((name.clone(), entry.clone()));
            }
            asked.retain(|name| !found.iter().any(|(_, entry)| entry.aliases.contains(name)));
        }
        if everything {
            found.retain(|(name, _)| !changed.iter().any(|(c, _)| c == name));
            changed.append(&mut found);
        }
        let mut nothing: Vec<String> = asked.into_iter().filter(|name| !removed.contains(name)).collect();
        nothing.sort();
        removed.append(&mut nothing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(v: &[(&str, &str)]) -> Set {
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
    fn without_the_wildcard_what_was_held_is_still_known() {
        let now = set(&[("a", "1"), ("b", "1")]);
        let mut i = Interest { wildcard: true, ..Default::default() };
        i.advance(&now);
        i.set_wildcard(false);
        i.names.insert("b".into());
        let d = i.advance(&set(&[("b", "2")]));
        assert_eq!((d.changed.len(), d.removed), (1, vec!["a".to_string()]));
        i.set_wildcard(true);
        let d = i.advance(&set(&[("b", "2"), ("c", "1")]));
        assert_eq!((d.changed.len(), d.changed[0].0.as_str()), (1, "c"));
    }

    #[test]
    fn what_is_asked_for_by_name_is_answered() {
        let now = set(&[("a", "1"), ("b", "1")]);
        let names = |d: &Difference| (d.changed.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>(), d.removed.clone());
        let list = |v: &[&str]| v.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut all = Interest { wildcard: true, ..Default::default() };
        all.asked = list(&["a", "nobody"]);
        assert_eq!(names(&all.advance(&now)), (list(&["a", "b"]), list(&["nobody"])), "each once");
        all.asked = list(&["alias-b", "nobody", "nobody", "none"]);
        assert_eq!(names(&all.advance(&now)), (list(&["b"]), list(&["nobody", "none"])));
        assert_eq!(names(&all.advance(&now)), (vec![], vec![]), "answered once");
        all.asked = list(&["b"]);
        assert_eq!(names(&all.advance(&set(&[("a", "1")]))), (vec![], list(&["b"])));
        // Who asks for some by name is told of those it does not hold yet.
        let mut some = Interest { names: list(&["alias-a", "none"]).into_iter().collect(), ..Default::default() };
        some.asked = list(&["alias-a", "none"]);
        assert_eq!(names(&some.advance(&now)), (list(&["a"]), list(&["none"])));
        assert_eq!(names(&some.advance(&now)), (vec![], vec![]));
    }

    #[test]
    fn names_and_aliases_select() {
        let mut i = Interest::default();
        i.names.insert("alias-b".into());
        let d = i.advance(&set(&[("a", "1"), ("b", "1")]));
        assert_eq!((d.changed.len(), d.changed[0].0.as_str()), (1, "b"));
    }
}
