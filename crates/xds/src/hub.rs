//! From the newest snapshot to the streams that it concerns: of 5,000 of which each is told of what its node needs, a change of a pod
//! wakes those that have asked for it, and no other.
//!
//! What must always hold: a stream that follows a name learns of every later change of what the name names. So the names are taken
//! in, and the newest snapshot is given out, under one lock. It is held for as long as it takes to note what has changed.

use crate::{
    interest::Touched,
    snapshot::{Entry, Resources, Set},
};
use imbl::ordmap::DiffItem;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// Who publishes snapshots, and whom they concern.
#[derive(Default)]
pub struct Hub(Mutex<Board>);

#[derive(Default)]
struct Board {
    newest: Arc<Resources>,
    /// Number of the newest stream.
    last: u64,
    streams: HashMap<u64, Place>,
    /// Of each set, those that follow all of it.
    all: HashMap<&'static str, BTreeMap<u64, Names>>,
    /// Of each set, those that follow a name.
    named: HashMap<&'static str, HashMap<Arc<str>, BTreeSet<u64>>>,
}

/// Is a stream that follows everything told the names of what has changed?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    Told,
    NotTold,
}

/// A stream.
#[derive(Default)]
struct Place {
    wake: Arc<Notify>,
    /// What may have changed for it since it looked last.
    touched: HashMap<&'static str, Touched>,
    /// The names that it follows.
    names: HashMap<&'static str, BTreeSet<Arc<str>>>,
    /// Number of the newest snapshot that concerns it.
    concerned: u64,
    /// Number of the newest snapshot that it has taken in.
    taken_in: u64,
}

impl Hub {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest snapshot.
    pub fn newest(&self) -> Arc<Resources> {
        self.board().newest.clone()
    }

    /// Number of the newest snapshot, and the streams that have taken in all of it that concerns them.
    pub fn taken_in(&self) -> (u64, HashSet<u64>) {
        let board = self.board();
        let is_current = |place: &Place| place.taken_in != 0 && place.taken_in >= place.concerned;
        let current = board.streams.iter().filter(|(_, place)| is_current(place)).map(|(id, _)| *id);
        (board.newest.version, current.collect())
    }

    /// A newer snapshot is there.
    pub fn publish(&self, resources: Arc<Resources>) {
        let mut board = self.board();
        let board = &mut *board;
        let before = std::mem::replace(&mut board.newest, resources);
        let nothing = Set::new();
        let sets: BTreeSet<&'static str> = board.all.keys().chain(board.named.keys()).copied().collect();
        for name in sets {
            let old = before.types.get(name).unwrap_or(&nothing);
            let new = board.newest.types.get(name).unwrap_or(&nothing);
            let mut changes = old.diff(new).peekable();
            if changes.peek().is_none() {
                continue;
            }
            let changed: Vec<(Arc<str>, [Option<&Entry>; 2])> = changes
                .map(|item| match item {
                    DiffItem::Add(name, now) => (name.as_str().into(), [None, Some(now)]),
                    DiffItem::Update { old: (_, before), new: (name, now) } => {
                        (name.as_str().into(), [Some(before), Some(now)])
                    }
                    DiffItem::Remove(name, before) => (name.as_str().into(), [Some(before), None]),
                })
                .collect();
            for (id, names) in board.all.get(name).into_iter().flatten() {
                let Some(place) = board.streams.get_mut(id) else { continue };
                place.concerned = board.newest.version;
                place.wake.notify_one();
                if *names == Names::Told {
                    place.touched.entry(name).or_default().note(changed.iter().map(|(name, _)| name));
                }
            }
            let Some(named) = board.named.get(name) else { continue };
            for (changed, entries) in &changed {
                for id in keys(changed, *entries, [old, new]).iter().filter_map(|key| named.get(*key)).flatten() {
                    let Some(place) = board.streams.get_mut(id) else { continue };
                    place.concerned = board.newest.version;
                    place.wake.notify_one();
                    place.touched.entry(name).or_default().note([changed]);
                }
            }
        }
    }

    /// A stream has begun.
    pub fn join(self: &Arc<Self>) -> Stream {
        let mut board = self.board();
        board.last += 1;
        let (id, wake) = (board.last, Arc::<Notify>::default());
        board.streams.insert(id, Place { wake: wake.clone(), ..Place::default() });
        drop(board);
        Stream { hub: self.clone(), id, wake }
    }
}

/// All names by which a resource is followed: its own, its aliases and groups, and those of the resources that its groups are
/// called after; before and now.
fn keys<'a>(name: &'a str, entries: [Option<&'a Entry>; 2], sets: [&'a Set; 2]) -> BTreeSet<&'a str> {
    let mut keys = BTreeSet::from([name]);
    for (entry, set) in entries.into_iter().zip(sets) {
        let Some(entry) = entry else { continue };
        keys.extend(entry.keys());
        keys.extend(entry.groups.iter().filter_map(|group| set.get(group)).flat_map(Entry::keys));
    }
    keys
}

/// One stream's side; when it is dropped the stream is forgotten.
pub struct Stream {
    hub: Arc<Hub>,
    id: u64,
    wake: Arc<Notify>,
}

impl Stream {
    /// Its number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Waits for a snapshot that concerns it. Who stops waiting misses none.
    pub(crate) async fn concerned(&self) {
        self.wake.notified().await;
    }

    /// The newest snapshot, and what may have changed in it since it was asked for last.
    pub(crate) fn take(&self) -> (Arc<Resources>, HashMap<&'static str, Touched>) {
        let mut board = self.hub.board();
        let touched = board.streams.get_mut(&self.id).map(|place| std::mem::take(&mut place.touched));
        (board.newest.clone(), touched.unwrap_or_default())
    }

    /// It has taken in all that concerns it of this snapshot.
    pub(crate) fn has_taken_in(&self, version: u64) {
        if let Some(place) = self.hub.board().streams.get_mut(&self.id) {
            place.taken_in = place.taken_in.max(version);
        }
    }

    /// It follows all of a set.
    pub(crate) fn follow_all(&self, set: &'static str, names: Names) {
        self.hub.board().all.entry(set).or_default().insert(self.id, names);
    }

    /// It follows these names, too.
    pub(crate) fn follow(&self, set: &'static str, names: impl IntoIterator<Item = Arc<str>>) {
        let mut board = self.hub.board();
        let board = &mut *board;
        let Some(place) = board.streams.get_mut(&self.id) else { return };
        let (own, all) = (place.names.entry(set).or_default(), board.named.entry(set).or_default());
        for name in names {
            all.entry(name.clone()).or_default().insert(self.id);
            own.insert(name);
        }
    }

    /// It follows these names no more.
    pub(crate) fn leave(&self, set: &'static str, names: &[Arc<str>]) {
        let mut board = self.hub.board();
        if let Some(own) = board.streams.get_mut(&self.id).and_then(|place| place.names.get_mut(set)) {
            for name in names {
                own.remove(name);
            }
        }
        board.forget(set, self.id, names);
    }

    /// It follows nothing of a set.
    pub(crate) fn leave_all(&self, set: &'static str) {
        let mut board = self.hub.board();
        let names = board.streams.get_mut(&self.id).and_then(|place| place.names.remove(set));
        board.forget(set, self.id, names.iter().flatten());
        if let Some(all) = board.all.get_mut(set) {
            all.remove(&self.id);
        }
    }
}

impl Board {
    fn forget<'a>(&mut self, set: &'static str, id: u64, names: impl IntoIterator<Item = &'a Arc<str>>) {
        let Some(named) = self.named.get_mut(set) else { return };
        for name in names {
            if let Some(ids) = named.get_mut(name) {
                ids.remove(&id);
                if ids.is_empty() {
                    named.remove(name);
                }
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut board = self.hub.board();
        for (set, names) in board.streams.remove(&self.id).map(|place| place.names).into_iter().flatten() {
            board.forget(set, self.id, &names);
        }
        for all in board.all.values_mut() {
            all.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scopes, interest::MAX_TOUCHED};
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    fn entry(bytes: &str, alias: &str, groups: &[&str]) -> Entry {
        let groups = groups.iter().map(ToString::to_string).collect();
        Entry::new(bytes.as_bytes().to_vec(), vec![alias.into()]).in_groups(groups)
    }

    /// Publishes the version after, with these sets.
    fn publish(hub: &Hub, sets: &[(&'static str, &[(&str, Entry)])]) {
        let set = |all: &[(&str, Entry)]| all.iter().map(|(name, entry)| (name.to_string(), entry.clone())).collect();
        let types = sets.iter().map(|(name, all)| (*name, set(all))).collect();
        let newest = hub.newest();
        hub.publish(Arc::new(newest.next(types, newest.version + 1, Scopes::new())));
    }

    /// Is it woken, and of what of the set `pods` is it told?
    fn wakes(stream: &Stream) -> Option<Vec<String>> {
        let mut concerned = pin!(stream.concerned());
        let woken = concerned.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        let (_, mut touched) = stream.take();
        let Touched::These(names) = touched.remove("pods").unwrap_or_default() else { panic!("{MAX_TOUCHED} names") };
        woken.then(|| names.iter().map(ToString::to_string).collect())
    }

    fn names(all: &[&str]) -> Vec<Arc<str>> {
        all.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn a_stream_is_woken_for_what_it_follows_alone() {
        let hub = Arc::<Hub>::default();
        let (all, rules, node, service, vip) = (hub.join(), hub.join(), hub.join(), hub.join(), hub.join());
        all.follow_all("pods", Names::NotTold);
        rules.follow_all("rules", Names::Told);
        node.follow("pods", names(&["~node/n"]));
        service.follow("pods", names(&["svc"]));
        vip.follow("pods", names(&["vip", "nobody"]));
        let svc = || ("svc", entry("s", "vip", &[]));
        let pod = |bytes: &str, groups: &[&str]| ("a", entry(bytes, "ip-a", groups));
        let woken = || [&all, &rules, &node, &service, &vip].map(wakes);
        let of = |all: &[&str]| Some(all.iter().map(ToString::to_string).collect::<Vec<_>>());
        publish(&hub, &[("pods", &[svc(), pod("1", &["svc", "~node/n"])])]);
        assert_eq!(woken(), [of(&[]), None, of(&["a"]), of(&["a", "svc"]), of(&["a", "svc"])]);
        // The endpoint of a service that is followed by its address.
        publish(&hub, &[("pods", &[svc(), pod("2", &["svc", "~node/m"])])]);
        assert_eq!(woken(), [of(&[]), None, of(&["a"]), of(&["a"]), of(&["a"])], "it was on that node before");
        publish(&hub, &[("pods", &[svc(), pod("3", &["svc", "~node/m"])])]);
        assert_eq!(woken(), [of(&[]), None, None, of(&["a"]), of(&["a"])]);
        publish(&hub, &[("pods", &[svc(), pod("3", &["svc", "~node/m"])]), ("rules", &[("r", entry("", "", &[]))])]);
        assert_eq!(woken(), [None, of(&[]), None, None, None]);
        // It leaves the service, and the service goes.
        publish(&hub, &[("pods", &[svc(), pod("3", &["~node/m"])])]);
        assert_eq!(woken(), [of(&[]), of(&[]), None, of(&["a"]), of(&["a"])]);
        service.leave("pods", &names(&["svc"]));
        publish(&hub, &[("pods", &[pod("3", &["~node/m"])])]);
        assert_eq!(woken(), [of(&[]), None, None, None, of(&["svc"])]);
    }

    #[test]
    fn what_comes_while_it_looks_is_not_missed() {
        let hub = Arc::<Hub>::default();
        let stream = hub.join();
        stream.follow("pods", names(&["a"]));
        publish(&hub, &[("pods", &[("a", entry("1", "", &[]))])]);
        publish(&hub, &[("pods", &[("a", entry("2", "", &[])), ("b", entry("1", "", &[]))])]);
        let (now, touched) = stream.take();
        assert_eq!((now.version, &touched["pods"]), (2, &Touched::These(names(&["a"]).into_iter().collect())));
        publish(&hub, &[("pods", &[("a", entry("3", "", &[]))])]);
        assert_eq!(wakes(&stream), Some(vec!["a".into()]));
        assert_eq!(wakes(&stream), None);
    }

    #[test]
    fn a_stream_that_does_not_look_is_kept_no_day_of_names() {
        let hub = Arc::<Hub>::default();
        let (node, all) = (hub.join(), hub.join());
        node.follow("pods", names(&["~node/n"]));
        all.follow_all("pods", Names::Told);
        // Pods come and go: each has a name of its own.
        for batch in 0..3 * MAX_TOUCHED / 1_024 {
            let pods: Vec<_> =
                (0..1_024).map(|i| (format!("{batch}-{i}"), entry("1", &format!("ip-{i}"), &["~node/n"]))).collect();
            let pods: Vec<_> = pods.iter().map(|(name, entry)| (name.as_str(), entry.clone())).collect();
            publish(&hub, &[("pods", &pods)]);
        }
        for stream in [&node, &all] {
            let (now, mut touched) = stream.take();
            assert_eq!((now.types["pods"].len(), touched.remove("pods")), (1_024, Some(Touched::Any)));
            assert_eq!(stream.take().1.remove("pods"), None, "who has looked begins anew");
        }
        publish(&hub, &[("pods", &[("a", entry("1", "", &["~node/n"]))])]);
        let (_, mut touched) = node.take();
        assert!(matches!(touched.remove("pods"), Some(Touched::These(names)) if names.len() == 1_025));
    }

    #[test]
    fn a_stream_that_nothing_concerns_has_taken_in_the_newest() {
        let hub = Arc::<Hub>::default();
        let (one, other) = (hub.join(), hub.join());
        one.follow("pods", names(&["a"]));
        let current = || {
            let (version, streams) = hub.taken_in();
            (version, streams.contains(&one.id()), streams.contains(&other.id()))
        };
        publish(&hub, &[("pods", &[("a", entry("1", "", &[]))])]);
        assert_eq!(current(), (1, false, false), "who has taken in nothing has not");
        one.has_taken_in(1);
        assert_eq!(current(), (1, true, false));
        publish(&hub, &[("pods", &[("a", entry("1", "", &[])), ("b", entry("1", "", &[]))])]);
        assert_eq!(current(), (2, true, false), "it is not concerned");
        publish(&hub, &[("pods", &[("a", entry("2", "", &[]))])]);
        assert_eq!(current(), (3, false, false));
        one.has_taken_in(3);
        assert_eq!(current(), (3, true, false));
    }

    #[test]
    fn of_a_stream_that_has_ended_nothing_is_left() {
        let hub = Arc::<Hub>::default();
        let (one, other) = (hub.join(), hub.join());
        for stream in [&one, &other] {
            stream.follow("pods", names(&["a", "b"]));
            stream.follow_all("rules", Names::NotTold);
        }
        one.leave_all("pods");
        one.leave_all("rules");
        let left = |hub: &Hub| {
            let board = hub.board();
            let named: usize = board.named.values().flat_map(HashMap::values).map(BTreeSet::len).sum();
            (board.streams.len(), named, board.all.values().map(BTreeMap::len).sum::<usize>())
        };
        assert_eq!(left(&hub), (2, 2, 1));
        drop((one, other));
        assert_eq!(left(&hub), (0, 0, 0));
        assert!(hub.board().named.values().all(HashMap::is_empty));
    }
}
