//! Who holds a place, and who gives way for the next: pure data, without clock, lock or socket.
//!
//! Always true: no more places are taken than there are, by all together and by one source; strangers never have what is
//! kept for known sources; a newcomer is refused only where it could have a place by ending something in use, of a source
//! that has no more than its own. (`tests::a_naive_model_decides_the_same`)

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, atomic::AtomicUsize},
};

/// Who a connection is counted for. Known sources and strangers have shares of their own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// An IPv4 address, or the first of an IPv6 /64: whoever has one address of it has all.
    Stranger(IpAddr),
    /// An address that the control plane has told of, or that has shown who it is.
    Known(IpAddr),
    /// Somebody who has shown who he is, by name.
    Named(Arc<str>),
}

impl Source {
    /// The source of an address.
    pub fn address(ip: IpAddr, known: bool) -> Self {
        const NET: u128 = u128::MAX << 64;
        match ip.to_canonical() {
            ip if known => Self::Known(ip),
            IpAddr::V4(ip) => Self::Stranger(ip.into()),
            IpAddr::V6(ip) => Self::Stranger(Ipv6Addr::from_bits(ip.to_bits() & NET).into()),
        }
    }

    /// Is it no stranger?
    pub fn is_known(&self) -> bool {
        match self {
            Self::Stranger(_) => false,
            Self::Known(_) | Self::Named(_) => true,
        }
    }
}

/// How many places there are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In all.
    pub total: usize,
    /// For one source.
    pub per_source: usize,
    /// Of all, those that strangers cannot have.
    pub known: usize,
    /// Of all, those that strangers do not lose to known sources.
    pub strangers: usize,
    /// What one source may have in use on all its places together (streams of its tunnels).
    pub in_use: usize,
}

impl Limits {
    /// Without any difference between sources, but that who has the most gives way first.
    pub const fn even(total: usize) -> Self {
        Self { total, per_source: total, known: 0, strangers: 0, in_use: usize::MAX }
    }

    /// Half of all places for known sources only, an eighth that strangers do not lose, a quarter for one source.
    pub const fn shared(total: usize) -> Self {
        Self { total, per_source: total.div_ceil(4), known: total / 2, strangers: total / 8, in_use: usize::MAX }
    }
}

/// There is no place, and nobody who would have to give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A place that was given.
#[derive(Debug)]
pub struct Given<T> {
    /// For [`Table::leave`].
    pub id: u64,
    /// Who has lost its place for it.
    pub instead_of: Option<T>,
    /// What the source has in use.
    pub share: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Held {
    /// Those of the source, the oldest first.
    ids: BTreeSet<u64>,
    share: Arc<AtomicUsize>,
}

/// How many places a source has, and since when: the last is who gives way first.
type Rank = (usize, Reverse<u64>, Source);

/// The places and who has them.
#[derive(Debug)]
pub struct Table<T> {
    limits: Limits,
    next: u64,
    entries: HashMap<u64, (Source, T)>,
    sources: HashMap<Source, Held>,
    strangers: BTreeSet<Rank>,
    known: BTreeSet<Rank>,
    /// Places that strangers have.
    strange: usize,
}

impl<T> Table<T> {
    /// An empty one.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            next: 0,
            entries: HashMap::new(),
            sources: HashMap::new(),
            strangers: BTreeSet::new(),
            known: BTreeSet::new(),
            strange: 0,
        }
    }

    /// Places that are taken.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Is none taken?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Gives a place. Where none is free, the oldest that is idle gives way, of the source that has the most: of the newcomer's
    /// own if that has as many as it may, else of its class. Where nothing is idle, the oldest of a source that has
    /// more than the newcomer's will have.
    ///
    /// # Errors
    /// If nobody has to give way.
    pub fn admit(&mut self, source: Source, holder: T, idle: impl Fn(&T) -> bool) -> Result<Given<T>, Full> {
        let own = self.sources.get(&source).map_or(0, |h| h.ids.len());
        let victim = if own >= self.limits.per_source {
            Some(self.oldest_idle(&source, &idle).ok_or(Full)?)
        } else {
            match self.gives_way(source.is_known()) {
                None => None,
                Some(class) => {
                    let found = self.victim(class, own, &idle);
                    // Whoever is known may also take a known one's place.
                    let found = found.or_else(|| source.is_known().then(|| self.victim(true, own, &idle)).flatten());
                    Some(found.ok_or(Full)?)
                }
            }
        };
        let instead_of = victim.and_then(|id| self.leave(id));
        let id = self.next;
        self.next += 1;
        let share = self.change(&source, |ids| ids.insert(id));
        self.strange += usize::from(!source.is_known());
        self.entries.insert(id, (source, holder));
        Ok(Given { id, instead_of, share })
    }

    /// Gives a place back. None: it was lost before.
    pub fn leave(&mut self, id: u64) -> Option<T> {
        let (source, holder) = self.entries.remove(&id)?;
        self.change(&source, |ids| ids.remove(&id));
        self.strange -= usize::from(!source.is_known());
        Some(holder)
    }

    /// Whose class gives way for a newcomer: the known ones (true) or the strangers. None: there is a free place.
    fn gives_way(&self, known: bool) -> Option<bool> {
        let limits = &self.limits;
        let full = self.entries.len() >= limits.total;
        let share = limits.total.saturating_sub(limits.known);
        let kept = limits.strangers.min(share);
        match known {
            true => full.then_some(self.strange <= kept),
            false => (full || self.strange >= share).then_some(self.strange < kept),
        }
    }

    fn victim(&self, known: bool, own: usize, idle: &impl Fn(&T) -> bool) -> Option<u64> {
        let class = if known { &self.known } else { &self.strangers };
        let found = class.iter().rev().find_map(|(_, _, s)| self.oldest_idle(s, idle));
        let most = || class.last().filter(|(n, ..)| *n > own + 1).map(|(_, Reverse(oldest), _)| *oldest);
        found.or_else(most)
    }

    fn oldest_idle(&self, source: &Source, idle: &impl Fn(&T) -> bool) -> Option<u64> {
        let ids = &self.sources.get(source)?.ids;
        ids.iter().find(|id| self.entries.get(id).is_some_and(|(_, t)| idle(t))).copied()
    }

    /// Changes the places of a source, and its rank with them.
    fn change(&mut self, source: &Source, edit: impl FnOnce(&mut BTreeSet<u64>) -> bool) -> Arc<AtomicUsize> {
        let class = if source.is_known() { &mut self.known } else { &mut self.strangers };
        let held = self.sources.entry(source.clone()).or_default();
        let rank = |ids: &BTreeSet<u64>| Some((ids.len(), Reverse(*ids.first()?), source.clone()));
        if let Some(rank) = rank(&held.ids) {
            class.remove(&rank);
        }
        edit(&mut held.ids);
        let share = held.share.clone();
        match rank(&held.ids) {
            Some(r) => drop(class.insert(r)),
            None => drop(self.sources.remove(source)),
        }
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};
    use std::collections::HashSet;

    fn stranger(n: u8) -> Source {
        Source::address([192, 0, 2, n].into(), false)
    }
    fn known(n: u8) -> Source {
        Source::address([10, 0, 0, n].into(), true)
    }
    fn table(total: usize, per_source: usize, known: usize, strangers: usize) -> Table<&'static str> {
        Table::new(Limits { total, per_source, known, strangers, in_use: usize::MAX })
    }
    /// Admits where everything is idle: who has given way.
    fn add(t: &mut Table<&'static str>, s: Source, name: &'static str) -> Result<Option<&'static str>, Full> {
        t.admit(s, name, |_| true).map(|g| g.instead_of)
    }

    #[test]
    fn a_network_of_ipv6_is_one_stranger_and_each_known_address_its_own() {
        let s = |a: &str, k| Source::address(a.parse().unwrap(), k);
        assert_eq!(s("fd00::1", false), s("fd00::ffff:2", false));
        assert_ne!(s("fd00::1", false), s("fd00:0:0:1::1", false));
        assert_ne!(s("fd00::1", true), s("fd00::2", true));
        assert_eq!(s("::ffff:10.0.0.1", false), s("10.0.0.1", false));
        assert_ne!(s("10.0.0.1", false), s("10.0.0.2", false));
        assert!(!s("10.0.0.1", false).is_known() && s("10.0.0.1", true).is_known());
    }

    #[test]
    fn the_oldest_of_who_has_the_most_gives_way() {
        let mut t = table(4, 4, 0, 0);
        for (s, name) in [(1, "a"), (2, "b1"), (2, "b2"), (3, "c")] {
            assert_eq!(add(&mut t, stranger(s), name), Ok(None));
        }
        assert_eq!(add(&mut t, stranger(4), "d"), Ok(Some("b1")));
        assert_eq!(add(&mut t, stranger(5), "e"), Ok(Some("a")), "all have one: the oldest of all");
        assert_eq!(t.len(), 4);
    }

    #[test]
    fn a_source_with_all_it_may_have_gives_way_itself() {
        let mut t = table(10, 2, 0, 0);
        for (name, want) in [("1", None), ("2", None), ("3", Some("1")), ("4", Some("2"))] {
            assert_eq!(add(&mut t, stranger(1), name), Ok(want));
        }
        assert_eq!(t.len(), 2);
    }

    #[test]
    fn strangers_do_not_get_what_is_kept_for_known_sources() {
        let mut t = table(4, 4, 2, 1);
        for (s, want) in [(1, None), (2, None), (3, Some("s"))] {
            assert_eq!(add(&mut t, stranger(s), "s"), Ok(want));
        }
        assert_eq!((t.len(), t.strange), (2, 2));
        // Known sources find a place, first what is kept for them, then the strangers', but the last of these.
        for (k, want) in [(1, None), (2, None), (3, Some("s")), (4, Some("k"))] {
            assert_eq!(add(&mut t, known(k), "k"), Ok(want));
        }
        assert_eq!((t.len(), t.strange), (4, 1));
        assert_eq!(add(&mut t, stranger(9), "t"), Ok(Some("s")));
        // With no stranger left, the next one gets back what known sources have borrowed.
        let mut t = table(4, 4, 2, 1);
        for _ in 0..4 {
            assert_eq!(add(&mut t, known(1), "k"), Ok(None));
        }
        assert_eq!(add(&mut t, stranger(1), "s"), Ok(Some("k")));
    }

    #[test]
    fn what_is_in_use_gives_way_only_to_who_has_less() {
        let mut t = table(3, 3, 0, 0);
        let busy = |_: &&str| false;
        for (s, name) in [(1, "a1"), (1, "a2"), (2, "b")] {
            assert!(t.admit(known(s), name, busy).is_ok());
        }
        assert!(t.admit(known(2), "b2", busy).is_err(), "it would only be the other way round then");
        assert!(t.admit(known(1), "a3", busy).is_err());
        assert_eq!(t.admit(known(3), "c", busy).map(|g| g.instead_of), Ok(Some("a1")));
        assert!(t.admit(known(4), "d", busy).is_err(), "all have one");
        // Something idle gives way before, whoever has it; the newcomer's own if it has as many as it may.
        assert_eq!(t.admit(known(4), "d", |n| *n == "b").map(|g| g.instead_of), Ok(Some("b")));
        let mut t = table(9, 2, 0, 0);
        assert!(t.admit(known(1), "1", busy).is_ok() && t.admit(known(1), "2", busy).is_ok());
        assert!(t.admit(known(1), "3", busy).is_err());
        assert_eq!(t.admit(known(1), "3", |n| *n == "2").map(|g| g.instead_of), Ok(Some("2")));
    }

    #[test]
    fn without_places_nobody_is_admitted() {
        for (total, per_source, known) in [(0, 1, 0), (1, 0, 0), (1, 1, 1)] {
            let mut t = table(total, per_source, known, 0);
            assert_eq!(add(&mut t, stranger(1), "x"), Err(Full));
            assert!(t.is_empty());
        }
    }

    #[test]
    fn a_place_is_given_back_once() {
        let mut t = table(1, 1, 0, 0);
        let first = t.admit(stranger(1), "a", |_| true).unwrap();
        let second = t.admit(stranger(2), "b", |_| true).unwrap();
        assert_eq!((second.instead_of, t.leave(first.id), t.len()), (Some("a"), None, 1));
        assert_eq!((t.leave(second.id), t.leave(second.id), t.len()), (Some("b"), None, 0));
        assert!(t.sources.is_empty() && t.strangers.is_empty() && t.strange == 0);
    }

    #[test]
    fn what_a_source_has_in_use_is_counted_over_all_its_places() {
        let mut t = table(4, 4, 0, 0);
        let a = t.admit(known(1), "a", |_| true).unwrap();
        let b = t.admit(known(1), "b", |_| true).unwrap();
        let c = t.admit(known(2), "c", |_| true).unwrap();
        assert!(Arc::ptr_eq(&a.share, &b.share) && !Arc::ptr_eq(&a.share, &c.share));
    }

    /// The rules once more, by searching a list.
    struct Naive {
        limits: Limits,
        /// Number and source, the oldest first.
        all: Vec<(u64, Source)>,
    }

    impl Naive {
        fn held(&self, s: &Source) -> usize {
            self.all.iter().filter(|(_, x)| x == s).count()
        }
        /// Who gives way among these: idle before in use, of the source with most, then the oldest.
        fn pick(&self, among: impl Fn(&Source) -> bool, own: usize, busy: &HashSet<u64>) -> Option<u64> {
            let oldest = |s: &Source| self.all.iter().find(|(_, x)| x == s).unwrap().0;
            let rank = |s: &Source| (self.held(s), Reverse(oldest(s)));
            let mut idle: Vec<_> = self.all.iter().filter(|(id, s)| among(s) && !busy.contains(id)).collect();
            idle.sort_by_key(|(id, s)| (Reverse(rank(s)), *id));
            if let Some((id, _)) = idle.first() {
                return Some(*id);
            }
            let most = self.all.iter().filter(|(_, s)| among(s)).max_by_key(|(_, s)| rank(s))?;
            (self.held(&most.1) > own + 1).then(|| oldest(&most.1))
        }
        fn admit(&mut self, id: u64, s: Source, busy: &HashSet<u64>) -> Result<Option<u64>, Full> {
            let (l, own) = (self.limits, self.held(&s));
            let strange = self.all.iter().filter(|(_, x)| !x.is_known()).count();
            let share = l.total.saturating_sub(l.known);
            let full = self.all.len() >= l.total;
            let victim = if own >= l.per_source {
                let mine = self.all.iter().find(|(id, x)| *x == s && !busy.contains(id));
                Some(mine.ok_or(Full)?.0)
            } else if s.is_known() && full {
                let strangers_first = strange > l.strangers.min(share);
                let first = if strangers_first { self.pick(|x| !x.is_known(), own, busy) } else { None };
                Some(first.or_else(|| self.pick(Source::is_known, own, busy)).ok_or(Full)?)
            } else if !s.is_known() && (full || strange >= share) {
                let known_first = strange < l.strangers.min(share);
                Some(self.pick(|x| x.is_known() == known_first, own, busy).ok_or(Full)?)
            } else {
                None
            };
            self.all.retain(|(id, _)| Some(*id) != victim);
            self.all.push((id, s));
            Ok(victim)
        }
    }

    #[test]
    fn a_naive_model_decides_the_same() {
        let mut refused = 0;
        for seed in 0..300 {
            let mut r = StdRng::seed_from_u64(seed);
            let total = r.random_range(0..12);
            let limits = Limits {
                total,
                per_source: r.random_range(0..=total + 1),
                known: r.random_range(0..=total),
                strangers: r.random_range(0..=total),
                in_use: usize::MAX,
            };
            let mut t: Table<u64> = Table::new(limits);
            let mut naive = Naive { limits, all: vec![] };
            let (mut busy, mut places) = (HashSet::new(), HashMap::new());
            for n in 0..200u64 {
                if r.random_bool(0.3) && !naive.all.is_empty() {
                    let (gone, _) = naive.all.remove(r.random_range(0..naive.all.len()));
                    assert_eq!(t.leave(places[&gone]), Some(gone), "seed {seed}");
                    continue;
                }
                let s = Source::address([10, 0, 0, r.random_range(0..4)].into(), r.random_bool(0.5));
                if r.random_bool(0.4) {
                    busy.insert(n);
                }
                let given = t.admit(s.clone(), n, |x| !busy.contains(x));
                let wanted = naive.admit(n, s, &busy);
                assert_eq!(given.as_ref().map(|g| g.instead_of).map_err(|e| *e), wanted, "seed {seed}, step {n}");
                match given {
                    Ok(g) => drop(places.insert(n, g.id)),
                    Err(Full) => refused += 1,
                }
                let strange = naive.all.iter().filter(|(_, x)| !x.is_known()).count();
                assert_eq!((t.len(), t.strange), (naive.all.len(), strange));
                assert!(t.len() <= total && strange <= total - limits.known, "seed {seed}");
                assert!(t.sources.values().all(|h| h.ids.len() <= limits.per_source));
            }
        }
        assert!(refused > 100, "{refused}");
    }
}
