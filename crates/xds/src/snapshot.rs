//! Snapshots of resources, and what can be asked for in them.

use imbl::ordmap::DiffItem;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

/// The resources of a type by name. A copy shares what it has in common with the original, and two of them are compared
/// without a look at what they share.
pub type Set = imbl::OrdMap<String, Entry>;
/// The groups that subscribers are limited to, by their own names.
pub type Scopes = imbl::OrdMap<String, Arc<[String]>>;

/// One resource.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Hash of the content (see [`version`]).
    pub version: Arc<str>,
    /// The encoded message.
    pub bytes: Arc<[u8]>,
    /// Other names by which it can be asked for.
    pub aliases: Arc<[String]>,
    /// Groups that it is a member of. Who asks for a group, or for the resource of that name, is told of the members.
    pub groups: Arc<[String]>,
    /// It was there before it came to its groups ([`Entry::moved_to`]).
    pub is_moved: bool,
}

/// Is it the same for who is told of it?
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        let names = (&self.aliases, &self.groups) == (&other.aliases, &other.groups);
        names && (&self.version, &self.bytes) == (&other.version, &other.bytes)
    }
}

/// All resources, by type URL and name.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// The resources.
    pub types: HashMap<&'static str, Set>,
    /// Number of this snapshot; acknowledgements are reported by it.
    pub version: u64,
    /// Of types that are told by groups ([`crate::server::Types::scoped`]), those of each subscriber that has some.
    pub scopes: Scopes,
    index: HashMap<&'static str, Index>,
}

impl Resources {
    /// Resources without a version before.
    pub fn new(types: HashMap<&'static str, Set>, version: u64) -> Self {
        Self::default().next(types, version, Scopes::new())
    }

    /// The version after this one. It costs as much as has changed, where the sets share the rest.
    pub fn next(&self, types: HashMap<&'static str, Set>, version: u64, scopes: Scopes) -> Self {
        let (nothing, mut index) = (Set::new(), self.index.clone());
        index.retain(|name, _| types.contains_key(name));
        for (name, set) in &types {
            index.entry(name).or_default().follow(self.types.get(name).unwrap_or(&nothing), set);
        }
        Self { types, version, scopes, index }
    }

    /// The names of a set other than the resources' own.
    pub(crate) fn index(&self, set: &str) -> Index {
        self.index.get(set).cloned().unwrap_or_default()
    }
}

/// The version of a resource: hexadecimal xxhash64 of its bytes, as istiod writes it, so that an unchanged resource is
/// not sent again after a reconnect, whichever of the two serves.
pub fn version(bytes: &[u8]) -> String {
    format!("{:x}", xxhash_rust::xxh64::xxh64(bytes, 0))
}

impl Entry {
    /// An entry of encoded bytes, in no group.
    pub fn new(bytes: Vec<u8>, aliases: Vec<String>) -> Self {
        let version = version(&bytes).into();
        Self { version, bytes: bytes.into(), aliases: aliases.into(), groups: Arc::default(), is_moved: false }
    }

    /// The same in these groups.
    pub fn in_groups(self, groups: Vec<String>) -> Self {
        Self { groups: groups.into(), ..self }
    }

    /// The same in these groups, where what it leads to is told already: who comes to hear of it may hear of it first.
    pub fn moved_to(self, groups: Vec<String>) -> Self {
        Self { is_moved: true, ..self.in_groups(groups) }
    }

    /// All by which it is found besides its name.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.aliases.iter().chain(self.groups.iter()).map(String::as_str)
    }
}

/// The resources that have an alias, or are in a group, by that.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index(imbl::HashMap<Arc<str>, Arc<[Arc<str>]>>);

/// Of one alias or group.
#[derive(Default)]
struct Change<'a> {
    gone: HashSet<&'a str>,
    new: Vec<Arc<str>>,
}

impl Index {
    /// The names of the resources with an alias or in a group. Who keeps one shares it.
    pub(crate) fn members(&self, key: &str) -> impl Iterator<Item = &Arc<str>> {
        self.0.get(key).into_iter().flat_map(|all| all.iter())
    }

    /// `old` has become `new`. Each list is made once, however many of its members have changed.
    fn follow(&mut self, old: &Set, new: &Set) {
        let mut changes: HashMap<&str, Change<'_>> = HashMap::new();
        for item in old.diff(new) {
            let (name, before, now) = match item {
                DiffItem::Add(name, now) => (name, None, Some(now)),
                DiffItem::Update { old: (_, before), new: (name, now) } => (name, Some(before), Some(now)),
                DiffItem::Remove(name, before) => (name, Some(before), None),
            };
            let (had, has) = (keys(before), keys(now));
            for key in had.difference(&has) {
                changes.entry(*key).or_default().gone.insert(name.as_str());
            }
            let own: Arc<str> = name.as_str().into();
            for key in has.difference(&had) {
                changes.entry(*key).or_default().new.push(own.clone());
            }
        }
        for (key, Change { gone, new }) in changes {
            let known = self.0.get(key).into_iter().flat_map(|all| all.iter());
            let kept = known.filter(|name| !gone.contains(&***name)).cloned();
            let all: Arc<[Arc<str>]> = kept.chain(new).collect();
            match all.is_empty() {
                true => drop(self.0.remove(key)),
                false => drop(self.0.insert(key.into(), all)),
            }
        }
    }
}

fn keys(entry: Option<&Entry>) -> BTreeSet<&str> {
    entry.into_iter().flat_map(Entry::keys).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn entry(aliases: &[&str], groups: &[&str]) -> Entry {
        let list = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        Entry::new(vec![], list(aliases)).in_groups(list(groups))
    }

    fn members(index: &Index, key: &str) -> Vec<String> {
        let mut all: Vec<String> = index.members(key).map(ToString::to_string).collect();
        all.sort();
        all
    }

    #[test]
    fn the_index_follows_aliases_and_groups() {
        let set = |all: Vec<(&str, Entry)>| -> HashMap<&'static str, Set> {
            HashMap::from([("t", all.into_iter().map(|(name, entry)| (name.to_string(), entry)).collect::<Set>())])
        };
        let one = Resources::new(set(vec![("a", entry(&["ip-1"], &["g"])), ("b", entry(&["ip-2"], &["g", "h"]))]), 1);
        assert_eq!(
            (members(&one.index("t"), "g"), members(&one.index("t"), "ip-2")),
            (vec!["a".into(), "b".into()], vec!["b".into()])
        );
        assert!(one.index("none").members("g").next().is_none());
        let two =
            one.next(set(vec![("a", entry(&["ip-3"], &["g"])), ("c", entry(&["ip-2"], &["h"]))]), 2, Scopes::new());
        let of = |key: &str| members(&two.index("t"), key);
        assert_eq!((of("g"), of("h"), of("ip-2")), (vec!["a".to_string()], vec!["c".into()], vec!["c".into()]));
        assert_eq!((of("ip-1"), of("ip-3")), (vec![], vec!["a".to_string()]));
        assert!(members(&one.index("t"), "g") == ["a", "b"], "the version before is what it was");
    }

    /// Whatever changes: as if it was made anew.
    #[test]
    fn small_steps_lead_to_the_same_index() {
        let mut random = StdRng::seed_from_u64(5);
        let mut now = Resources::default();
        for version in 1..300 {
            let mut set = now.types.get("t").cloned().unwrap_or_default();
            for _ in 0..random.random_range(1..5) {
                let mut some = |prefix: &str| -> Vec<String> {
                    (0..random.random_range(0..3)).map(|_| format!("{prefix}{}", random.random_range(0..4))).collect()
                };
                let made = Entry::new(vec![], some("alias")).in_groups(some("group"));
                let name = format!("r{}", random.random_range(0..8));
                match random.random_range(0..4) {
                    0 => drop(set.remove(&name)),
                    _ => drop(set.insert(name, made)),
                }
            }
            now = now.next(HashMap::from([("t", set.clone())]), version, Scopes::new());
            let anew = Resources::new(HashMap::from([("t", set)]), version).index("t");
            for key in (0..4).flat_map(|n| [format!("alias{n}"), format!("group{n}")]) {
                assert_eq!(members(&now.index("t"), &key), members(&anew, &key), "{key} at {version}");
            }
        }
    }
}
