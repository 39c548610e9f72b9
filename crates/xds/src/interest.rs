//! What a subscriber is told of one type: everything, what it has asked for by name, or what is in its groups.
//!
//! By name it is told of the resource of that name or alias, or of those in the group of that name, and of the members of what it
//! is told of so (a service's endpoints). What it holds and nothing of that names any more is told as removed. What has not
//! changed for it costs nothing: it is given the names that may have.
//!
//! Who has asked for everything and is told of its groups keeps what it was told of for as long as that is there, with all changes,
//! also when it is in another group: it may have connections that are decided by it (a waypoint's clients, when their service has
//! another waypoint).

use crate::{
    Entry,
    snapshot::{Index, Set},
};
use imbl::ordmap::DiffItem;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
};

type NameSet = BTreeSet<Arc<str>>;

/// Most names that are noted for a stream that does not look, of each set: of more it looks at all that it holds and may want.
/// (Names of pods are new ones each time: a client that reads nothing would have those of a day kept for it.)
pub(crate) const MAX_TOUCHED: usize = 16_384;

/// The resources that may be others than when a subscriber was told last.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Touched {
    These(NameSet),
    /// More than [`MAX_TOUCHED`].
    Any,
}

impl Touched {
    /// These, too.
    pub(crate) fn note<'a>(&mut self, names: impl IntoIterator<Item = &'a Arc<str>>) {
        for name in names {
            let Self::These(noted) = self else { return };
            noted.insert(name.clone());
            if noted.len() > MAX_TOUCHED {
                *self = Self::Any;
            }
        }
    }
}

impl Default for Touched {
    fn default() -> Self {
        Self::These(NameSet::new())
    }
}

/// What a subscriber wants of one type.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interest {
    /// It is told of everything.
    pub wildcard: bool,
    /// Names that it has asked for.
    pub names: BTreeSet<Arc<str>>,
    /// Groups that it is in without asking, unless it is told of everything.
    pub groups: Arc<[String]>,
    /// Names that it has just asked for, and is to hear of even if there is nothing to tell.
    pub asked: BTreeSet<Arc<str>>,
    /// Names that it has just asked for no more.
    pub left: Vec<Arc<str>>,
    /// What it holds: name to version.
    pub held: HashMap<Arc<str>, Arc<str>>,
    /// What it holds, if that is all of a snapshot; `held` is then empty.
    pub seen: Option<Set>,
    /// Has it had its first answer?
    pub answered: bool,
    /// The set that it is told of, if that is not the type's own (see [`crate::server::Variant`]).
    pub set: Option<&'static str>,
    /// What it is told of by a name or a group, and not as a member of something else.
    direct: HashSet<Arc<str>>,
    /// It has asked for everything, and is told of its groups.
    limited: bool,
    /// All that it holds and all that it may want is to be looked at.
    stale: bool,
}

pub(crate) struct Difference {
    /// What has come to a group that the subscriber is limited to, and was there before.
    pub moved: Vec<(String, Entry)>,
    pub changed: Changed,
    pub removed: Vec<String>,
}

/// Resources that a subscriber is to be told of, in their order.
#[derive(Debug)]
pub(crate) enum Changed {
    These(std::vec::IntoIter<(String, Entry)>),
    /// What it does not hold of all that there is. That is looked up when it is sent: a thousand subscribers who come at once have no
    /// list of the whole mesh each.
    News {
        set: Set,
        held: HashMap<Arc<str>, Arc<str>>,
        /// The last one that was taken.
        after: Option<String>,
    },
}

impl Changed {
    /// Takes the next ones, at most so many.
    pub(crate) fn take(&mut self, most: usize) -> Vec<(String, Entry)> {
        match self {
            Self::These(list) => list.take(most).collect(),
            Self::News { set, held, after } => {
                let next = news(set, held, after.as_deref()).take(most);
                let next: Vec<_> = next.map(|(name, entry)| (name.clone(), entry.clone())).collect();
                if let Some((name, _)) = next.last() {
                    *after = Some(name.clone());
                }
                next
            }
        }
    }

    /// Are there no more?
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::These(list) => list.len() == 0,
            Self::News { set, held, after } => news(set, held, after.as_deref()).next().is_none(),
        }
    }
}

impl From<Vec<(String, Entry)>> for Changed {
    fn from(list: Vec<(String, Entry)>) -> Self {
        Self::These(list.into_iter())
    }
}

/// What of a set is not held, of what comes after a name.
fn news<'a>(
    set: &'a Set,
    held: &'a HashMap<Arc<str>, Arc<str>>,
    after: Option<&str>,
) -> impl Iterator<Item = (&'a String, &'a Entry)> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let rest = set.range::<_, str>((from, Bound::Unbounded));
    rest.filter(|(name, entry)| held.get(name.as_str()).is_none_or(|version| *version != entry.version))
}

impl Interest {
    /// One of a stream that has just begun, by what the subscriber says that it holds.
    pub(crate) fn new(held: HashMap<String, String>) -> Self {
        let held = held.into_iter().map(|(name, version)| (name.into(), version.into())).collect();
        Self { held, stale: true, ..Self::default() }
    }

    /// Has it asked for everything?
    pub(crate) fn is_for_everything(&self) -> bool {
        self.wildcard || self.limited
    }

    /// It asks for everything, or only for what it names.
    pub(crate) fn set_everything(&mut self, on: bool) {
        if !(on && self.limited) {
            self.limited = false;
            self.set_wildcard(on);
        }
    }

    /// Who asks for everything is told of these groups only, and of what it holds. None: of everything.
    pub(crate) fn limit(&mut self, groups: Option<&Arc<[String]>>) {
        match groups {
            Some(groups) if self.wildcard || (self.limited && self.groups != *groups) => {
                self.set_wildcard(false);
                (self.limited, self.stale, self.groups) = (true, true, groups.clone());
            }
            None if self.limited => {
                (self.limited, self.groups) = (false, Arc::default());
                self.set_wildcard(true);
            }
            Some(_) | None => {}
        }
    }

    fn set_wildcard(&mut self, on: bool) {
        if self.wildcard == on {
            return;
        }
        (self.wildcard, self.stale) = (on, !on);
        self.direct.clear();
        if !on && let Some(seen) = self.seen.take() {
            self.held = seen.iter().map(|(n, e)| (n.as_str().into(), e.version.clone())).collect();
        }
    }

    /// A name is asked for.
    pub(crate) fn ask(&mut self, name: &str) {
        let name: Arc<str> = name.into();
        self.asked.insert(name.clone());
        self.names.insert(name);
    }

    /// A name is asked for no more.
    pub(crate) fn leave(&mut self, name: &str) {
        self.asked.remove(name);
        self.left.extend(self.names.take(name));
    }

    /// What there was to choose from is another.
    pub(crate) fn look_again(&mut self) {
        self.stale = !self.wildcard;
    }

    /// What has to be sent so that the subscriber holds what it wants of `now`; notes it as held. Once a subscriber has had its
    /// first answer, this costs as much as has changed, not as much as there is. `touched`: what may have changed for one that is
    /// not told of everything.
    pub(crate) fn advance(&mut self, now: &Set, index: &Index, touched: Touched) -> Difference {
        match self.wildcard {
            true => self.advance_all(now, index),
            false => self.advance_named(now, index, touched),
        }
    }

    fn advance_all(&mut self, now: &Set, index: &Index) -> Difference {
        let (mut changed, mut removed) = (vec![], vec![]);
        let everything = self.seen.is_some();
        match &self.seen {
            Some(seen) => {
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
            }
            None => {
                removed.extend(self.held.keys().filter(|name| !now.contains_key(&***name)).map(ToString::to_string));
                removed.sort();
            }
        }
        self.seen = Some(now.clone());
        let held = std::mem::take(&mut self.held);
        self.left.clear();
        self.answer(now, index, everything, &mut changed, &mut removed);
        let changed = match everything {
            true => changed.into(),
            false => Changed::News { set: now.clone(), held, after: None },
        };
        Difference { moved: vec![], changed, removed }
    }

    /// What was asked for by name beside everything is answered: with the resource, if the subscriber has it already as one of all;
    /// as removed, if there is none of that name. (Otherwise it is among what has changed.)
    fn answer(
        &mut self,
        now: &Set,
        index: &Index,
        everything: bool,
        changed: &mut Vec<(String, Entry)>,
        removed: &mut Vec<String>,
    ) {
        let asked = std::mem::take(&mut self.asked);
        if asked.is_empty() {
            return;
        }
        let gone: HashSet<String> = removed.iter().cloned().collect();
        let mut told: HashSet<String> = changed.iter().map(|(name, _)| name.clone()).collect();
        for name in asked {
            let found = called(now, index, &name);
            if found.is_empty() && !gone.contains(&*name) {
                removed.push(name.to_string());
            }
            for name in found.into_iter().filter(|_| everything) {
                if let Some(entry) = now.get(&*name)
                    && told.insert(name.to_string())
                {
                    changed.push((name.to_string(), entry.clone()));
                }
            }
        }
    }

    fn advance_named(&mut self, now: &Set, index: &Index, touched: Touched) -> Difference {
        let mut removed = BTreeSet::new();
        let is_stale = std::mem::take(&mut self.stale);
        let (mut touched, is_any) = match touched {
            Touched::These(names) => (names, false),
            Touched::Any => (NameSet::new(), true),
        };
        if is_stale || is_any {
            // What is direct is found anew, and with it members that have come meanwhile.
            self.direct.clear();
            touched.extend(self.held.keys().cloned());
            let names = self.names.iter().map(|name| &**name).chain(self.groups.iter().map(String::as_str));
            touched.extend(names.flat_map(|name| meant(now, index, name)));
        }
        touched.extend(std::mem::take(&mut self.left).iter().flat_map(|name| meant(now, index, name)));
        // What is asked for is told of, whether it is held or not: that is the answer.
        let mut again = BTreeSet::new();
        for name in std::mem::take(&mut self.asked) {
            let found = called(now, index, &name);
            if found.is_empty() {
                removed.insert(name.to_string());
            }
            touched.extend(meant(now, index, &name));
            again.extend(found);
        }
        // Whose members are wanted is known only when all are looked at; a member may have been looked at before.
        let (mut looked_at, mut open) = (BTreeSet::new(), touched.into_iter().collect::<Vec<_>>());
        while let Some(name) = open.pop() {
            let is_direct = now.get(&*name).is_some_and(|entry| self.names_it(&name, entry));
            let changes = match is_direct {
                true => self.direct.insert(name.clone()),
                false => self.direct.remove(&name),
            };
            if changes {
                open.extend(index.members(&name).cloned());
            }
            looked_at.insert(name);
        }
        let (mut moved, mut changed) = (vec![], vec![]);
        for name in looked_at {
            let wanted = now.get(&*name).filter(|entry| {
                let is_kept = self.limited && self.held.contains_key(&*name);
                let is_member = || entry.groups.iter().any(|group| self.direct.contains(group.as_str()));
                is_kept || self.direct.contains(&name) || is_member()
            });
            match wanted {
                Some(entry) => {
                    let held = self.held.get(&*name);
                    let is_held = held.is_some_and(|version| *version == entry.version);
                    if !is_held || again.contains(&name) {
                        let has_moved = held.is_none() && entry.is_moved && self.limited && self.answered;
                        self.held.insert(name.clone(), entry.version.clone());
                        let told = if has_moved { &mut moved } else { &mut changed };
                        told.push((name.to_string(), self.as_asked(now, entry)));
                    }
                }
                None => {
                    if self.held.remove(&*name).is_some() {
                        removed.insert(name.to_string());
                    }
                }
            }
        }
        Difference { moved, changed: changed.into(), removed: removed.into_iter().collect() }
    }

    /// Is a resource asked for, by whatever name, or in one of the subscriber's groups?
    fn names_it(&self, name: &str, entry: &Entry) -> bool {
        self.names.contains(name)
            || entry.keys().any(|key| self.names.contains(key))
            || entry.groups.iter().any(|group| self.groups.contains(group))
    }

    /// A resource with the names among its aliases by which the subscriber has asked for it, and no resource is called so.
    fn as_asked(&self, now: &Set, entry: &Entry) -> Entry {
        let asked = |group: &&String| self.names.contains(group.as_str()) && !now.contains_key(*group);
        let mut groups = entry.groups.iter().filter(asked).peekable();
        if groups.peek().is_none() {
            return entry.clone();
        }
        Entry { aliases: entry.aliases.iter().chain(groups).cloned().collect(), ..entry.clone() }
    }
}

/// The resources that a name names: the one that is called so; without one, those that have it as an alias or are in that group.
fn called(now: &Set, index: &Index, name: &str) -> NameSet {
    match now.contains_key(name) {
        true => BTreeSet::from([name.into()]),
        false => index.members(name).cloned().collect(),
    }
}

/// All that a name may be the reason to be told of.
fn meant(now: &Set, index: &Index, name: &str) -> NameSet {
    let own = now.contains_key(name).then(|| name.into());
    own.into_iter().chain(index.members(name).cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Resources;

    fn set(v: &[(&str, &str)]) -> Set {
        v.iter().map(|(n, b)| (n.to_string(), Entry::new(b.as_bytes().to_vec(), vec![format!("alias-{n}")]))).collect()
    }

    fn list(v: &[&str]) -> Vec<String> {
        v.iter().map(ToString::to_string).collect()
    }

    fn told(mut d: Difference) -> (Vec<String>, Vec<String>) {
        (d.changed.take(usize::MAX).into_iter().map(|(name, _)| name).collect(), d.removed)
    }

    /// A subscriber, and what it follows.
    struct Stream {
        interest: Interest,
        now: Resources,
    }

    impl Stream {
        fn of(interest: Interest) -> Self {
            Self { interest, now: Resources::default() }
        }
        /// It is told of a new version, in which these may be others.
        fn goes_on(&mut self, set: &Set, touched: &[&str]) -> (Vec<String>, Vec<String>) {
            self.goes_on_by(set, Touched::These(touched.iter().map(|name| Arc::from(*name)).collect()))
        }
        fn goes_on_by(&mut self, set: &Set, touched: Touched) -> (Vec<String>, Vec<String>) {
            let types = HashMap::from([("t", set.clone())]);
            self.now = self.now.next(types, self.now.version + 1, crate::Scopes::new());
            told(self.interest.advance(set, &self.now.index("t"), touched))
        }
        fn asks(&mut self, names: &[&str], set: &Set) -> (Vec<String>, Vec<String>) {
            names.iter().for_each(|name| self.interest.ask(name));
            self.goes_on(set, &[])
        }
        fn leaves(&mut self, names: &[&str], set: &Set) -> (Vec<String>, Vec<String>) {
            names.iter().for_each(|name| self.interest.leave(name));
            self.goes_on(set, &[])
        }
        fn all() -> Self {
            let mut interest = Interest::new(HashMap::new());
            interest.set_everything(true);
            Self::of(interest)
        }
        fn named() -> Self {
            Self::of(Interest::new(HashMap::new()))
        }
    }

    #[test]
    fn only_differences_are_sent() {
        let mut i = Stream::all();
        assert_eq!(i.goes_on(&set(&[("a", "1"), ("b", "1")]), &[]), (list(&["a", "b"]), vec![]));
        assert_eq!(i.goes_on(&set(&[("a", "1"), ("b", "2")]), &[]), (list(&["b"]), vec![]));
        assert_eq!(i.goes_on(&set(&[("b", "2")]), &[]), (vec![], list(&["a"])));
    }

    #[test]
    fn a_reconnect_gets_only_what_changed() {
        let now = set(&[("a", "1"), ("b", "1")]);
        let held = || HashMap::from([("a".to_string(), now["a"].version.to_string()), ("gone".into(), "x".into())]);
        let mut i = Stream::of(Interest::new(held()));
        i.interest.set_everything(true);
        assert_eq!(i.goes_on(&now, &[]), (list(&["b"]), list(&["gone"])));
        // By name: what is asked for is told, and what is held and no name names any more is not kept.
        let mut i = Stream::of(Interest::new(held()));
        assert_eq!(i.asks(&["b"], &now), (list(&["b"]), list(&["a", "gone"])));
        let mut i = Stream::of(Interest::new(held()));
        i.interest.groups = list(&["alias-a"]).into();
        assert_eq!(i.asks(&["b", "none"], &now), (list(&["b"]), list(&["a", "gone", "none"])), "an alias is no group");
    }

    #[test]
    fn without_the_wildcard_what_was_held_is_still_known() {
        let now = set(&[("a", "1"), ("b", "1")]);
        let mut i = Stream::all();
        i.goes_on(&now, &[]);
        i.interest.set_everything(false);
        assert_eq!(i.asks(&["b"], &set(&[("a", "1"), ("b", "2")])), (list(&["b"]), list(&["a"])));
        i.interest.set_everything(true);
        assert_eq!(i.goes_on(&set(&[("b", "2"), ("c", "1")]), &[]), (list(&["c"]), vec![]));
    }

    #[test]
    fn what_is_asked_for_by_name_is_answered() {
        let now = set(&[("a", "1"), ("b", "1")]);
        let mut all = Stream::all();
        assert_eq!(all.asks(&["a", "nobody"], &now), (list(&["a", "b"]), list(&["nobody"])), "each once");
        assert_eq!(all.asks(&["alias-b", "nobody", "nobody", "none"], &now), (list(&["b"]), list(&["nobody", "none"])));
        assert_eq!(all.goes_on(&now, &[]), (vec![], vec![]), "answered once");
        assert_eq!(all.asks(&["b"], &set(&[("a", "1")])), (vec![], list(&["b"])));
        // Who asks for some by name is told, though it holds them.
        let mut some = Stream::named();
        assert_eq!(some.asks(&["alias-a", "none"], &now), (list(&["a"]), list(&["none"])));
        assert_eq!(some.goes_on(&now, &["a", "b"]), (vec![], vec![]));
        assert_eq!(some.asks(&["a", "none"], &now), (list(&["a"]), list(&["none"])), "each time that it asks");
    }

    /// Two pods of a service, one of another, and the service.
    fn mesh(pods: &[(&str, &str, &str)]) -> Set {
        let of = |services: &str| services.split_whitespace().map(String::from).collect::<Vec<_>>();
        let pods = pods.iter().map(|(name, bytes, services)| {
            let entry = Entry::new(bytes.as_bytes().to_vec(), vec![format!("ip-{name}")]);
            (name.to_string(), entry.in_groups(of(services)))
        });
        let service = Entry::new(b"service".to_vec(), vec!["vip".into()]).in_groups(list(&["~host/s"]));
        pods.chain([("svc".to_string(), service)]).collect()
    }

    #[test]
    fn a_service_brings_its_endpoints_by_whatever_name_it_is_asked_for() {
        let now = mesh(&[("a", "1", "svc"), ("b", "1", "svc"), ("c", "1", "other")]);
        for name in ["svc", "vip", "~host/s"] {
            let mut i = Stream::named();
            assert_eq!(i.asks(&[name], &now), (list(&["a", "b", "svc"]), vec![]), "{name}");
            // A change of an endpoint, one that comes, one that goes.
            let later = mesh(&[("a", "2", "svc"), ("b", "1", ""), ("c", "1", "other svc")]);
            assert_eq!(i.goes_on(&later, &["a", "b", "c"]), (list(&["a", "c"]), list(&["b"])), "{name}");
            assert_eq!(i.leaves(&[name], &later), (vec![], list(&["a", "c", "svc"])), "{name}");
            assert!(i.interest.held.is_empty() && i.interest.direct.is_empty());
        }
    }

    #[test]
    fn what_two_names_name_stays_until_neither_does() {
        let now = mesh(&[("a", "1", "svc"), ("b", "1", "svc")]);
        let mut i = Stream::named();
        i.asks(&["vip", "svc", "ip-a"], &now);
        assert_eq!(i.leaves(&["vip"], &now), (vec![], vec![]));
        assert_eq!(i.leaves(&["svc"], &now), (vec![], list(&["b", "svc"])));
        assert_eq!(i.leaves(&["ip-a", "never asked"], &now), (vec![], list(&["a"])));
    }

    /// Of all there is what it holds is left out, and the rest comes in parts, once each.
    #[test]
    fn what_is_not_held_comes_in_parts() {
        let names: Vec<String> = (0..25).map(|i| format!("n{i:02}")).collect();
        let now = set(&names.iter().map(|name| (name.as_str(), "1")).collect::<Vec<_>>());
        let version = |content: &str| crate::snapshot::version(content.as_bytes());
        let holds = [("n00", "1"), ("n07", "other"), ("n08", "1"), ("n24", "1"), ("gone", "1")];
        let held = holds.map(|(name, content)| (name.to_string(), version(content)));
        let mut interest = Interest::new(HashMap::from(held));
        interest.set_everything(true);
        let index = Resources::new(HashMap::from([("t", now.clone())]), 1).index("t");
        let Difference { mut changed, removed, .. } = interest.advance(&now, &index, Touched::default());
        assert_eq!(removed, ["gone"]);
        let (mut came, mut sizes) = (vec![], vec![]);
        while !changed.is_empty() {
            let part = changed.take(10);
            sizes.push(part.len());
            came.extend(part.into_iter().map(|(name, _)| name));
        }
        let want: Vec<String> = names.into_iter().filter(|name| !["n00", "n08", "n24"].contains(&&**name)).collect();
        assert_eq!((came, sizes), (want, vec![10, 10, 2]));
        assert!(changed.take(10).is_empty());
    }

    #[test]
    fn what_comes_to_be_under_a_name_is_told_of() {
        let mut i = Stream::named();
        let nothing = Set::new();
        assert_eq!(i.asks(&["vip", "ip-a", "~host/s"], &nothing), (vec![], list(&["ip-a", "vip", "~host/s"])));
        let now = mesh(&[("a", "1", "svc")]);
        assert_eq!(i.goes_on(&now, &["a", "svc"]), (list(&["a", "svc"]), vec![]));
        assert_eq!(i.goes_on(&nothing, &["a", "svc"]), (vec![], list(&["a", "svc"])));
    }

    #[test]
    fn who_has_asked_by_a_group_is_told_that_name() {
        let now = mesh(&[("a", "1", "svc ~node/n")]);
        let mut i = Stream::named();
        i.interest.groups = list(&["~node/n"]).into();
        ["~host/s", "svc"].iter().for_each(|name| i.interest.ask(name));
        let index = Resources::new(HashMap::from([("t", now.clone())]), 1).index("t");
        let changed = i.interest.advance(&now, &index, Touched::default()).changed.take(usize::MAX);
        let aliases = |at: usize| (changed[at].0.clone(), changed[at].1.aliases.to_vec());
        assert_eq!(
            aliases(0),
            ("a".into(), list(&["ip-a"])),
            "its own group, and one that is a resource, are no answers"
        );
        assert_eq!(aliases(1), ("svc".into(), list(&["vip", "~host/s"])));
    }

    #[test]
    fn who_asks_for_everything_may_be_limited_to_groups() {
        let now = mesh(&[("a", "1", "g"), ("b", "1", "h"), ("c", "1", "")]);
        let groups = |all: &[&str]| -> Arc<[String]> { list(all).into() };
        let mut i = Stream::all();
        i.interest.limit(Some(&groups(&["g"])));
        assert_eq!(i.goes_on(&now, &[]), (list(&["a"]), vec![]));
        i.interest.limit(Some(&groups(&["h", "none"])));
        assert_eq!(i.goes_on(&now, &[]), (list(&["b"]), vec![]), "what it holds stays");
        // What is moved into a group is told, though it is the same.
        let moved = mesh(&[("a", "1", "h"), ("b", "1", "g"), ("c", "1", "h")]);
        assert_eq!(i.goes_on(&moved, &["a", "b", "c"]), (list(&["c"]), vec![]));
        i.interest.set_everything(true);
        assert!(!i.interest.wildcard, "it asks once more, and is limited still");
        i.interest.limit(None);
        assert_eq!(i.goes_on(&moved, &[]), (list(&["svc"]), vec![]));
        // Who asks by name is not.
        let mut named = Stream::named();
        named.interest.limit(Some(&groups(&["g"])));
        assert_eq!(named.asks(&["c"], &now), (list(&["c"]), vec![]));
    }

    /// A service has another waypoint, and clients are connected by the first still: what changes of its policies holds for them.
    #[test]
    fn what_has_left_the_groups_of_a_limited_subscriber_is_told_on_until_it_is_gone() {
        let all = |bytes: &str, group: &str| mesh(&[("a", bytes, group), ("b", "1", "h")]);
        let groups: Arc<[String]> = list(&["g"]).into();
        let mut i = Stream::all();
        i.interest.limit(Some(&groups));
        assert_eq!(i.goes_on(&all("1", "g"), &[]), (list(&["a"]), vec![]));
        assert_eq!(i.goes_on(&all("1", "h"), &["a"]), (vec![], vec![]));
        assert_eq!(i.goes_on(&all("2", "h"), &["a", "b"]), (list(&["a"]), vec![]), "and b is not told");
        // The same after a reconnect.
        let held = i.interest.held.iter().map(|(name, version)| (name.to_string(), version.to_string())).collect();
        let mut again = Stream::of(Interest::new(held));
        again.interest.set_everything(true);
        again.interest.limit(Some(&groups));
        assert_eq!(again.goes_on(&all("3", "h"), &[]), (list(&["a"]), vec![]));
        assert_eq!(again.goes_on(&mesh(&[("b", "1", "h")]), &["a"]), (vec![], list(&["a"])));
        assert_eq!(again.goes_on(&all("3", "h"), &["a"]), (vec![], vec![]), "another of its name");
    }

    /// Whatever changes, and is asked for: what is held is what the names of now name, and nothing else.
    #[test]
    fn small_steps_lead_to_what_is_asked_for() {
        use rand::{Rng, SeedableRng, rngs::StdRng};
        let mut random = StdRng::seed_from_u64(18);
        let (mut now, mut i) = (Set::new(), Stream::named());
        i.interest.groups = list(&["g0"]).into();
        let mut held: BTreeSet<String> = BTreeSet::new();
        for step in 0..2000 {
            let mut touched: Vec<String> = vec![];
            if random.random_range(0..2) == 0 {
                let name = format!("r{}", random.random_range(0..6));
                let (alias, member) = (random.random_range(0..4), random.random_range(0..6));
                let own = format!("g{}", random.random_range(0..4));
                let made = Entry::new(vec![random.random_range(0..3)], vec![format!("x{alias}")]);
                let made = made.in_groups(vec![own, format!("r{member}")]);
                match random.random_range(0..3) {
                    0 => drop(now.remove(&name)),
                    _ => drop(now.insert(name.clone(), made)),
                }
                touched.push(name);
            } else {
                let name =
                    ["r", "x", "g"][random.random_range(0..3)].to_string() + &random.random_range(0..4).to_string();
                match random.random_range(0..2) {
                    0 => i.interest.ask(&name),
                    _ => i.interest.leave(&name),
                }
            }
            let touched = match random.random_range(0..8) {
                0 => Touched::Any,
                _ => Touched::These(touched.iter().map(|name| Arc::from(name.as_str())).collect()),
            };
            let (changed, removed) = i.goes_on_by(&now, touched);
            held.retain(|name| !removed.contains(name));
            held.extend(changed);
            let interest = &i.interest;
            let direct = |name: &String, e: &Entry| {
                let keys: Vec<&str> = e.keys().chain([name.as_str()]).collect();
                keys.iter().any(|key| interest.names.contains(*key)) || e.groups.contains(&"g0".to_string())
            };
            let all: BTreeSet<&String> = now.iter().filter(|(name, e)| direct(name, e)).map(|(name, _)| name).collect();
            let wanted = |(name, e): &(&String, &Entry)| all.contains(name) || e.groups.iter().any(|g| all.contains(g));
            let want: BTreeSet<String> = now.iter().filter(wanted).map(|(name, _)| name.clone()).collect();
            assert_eq!(held, want, "step {step}");
        }
    }
}
