//! The names that are followed, where the control plane tells only what is asked for (a ztunnel's `XDS_ON_DEMAND`).
//!
//! What must always hold: what was asked for is told from then on, so an answer is as good as one of now while there is a stream.
//! Without one, what is known stays known; that there is nothing of a name is believed for a bounded time. Names that nothing uses
//! are given up, by pages of time, and none while there is no stream: nobody could be asked for it again.

use crate::state::{Mark, Name, Pages};
use karst_core::limits::{DEMAND_IDLE_PAGES, DEMAND_NOBODY_AWAY, DEMAND_PAGE, MAX_DEMAND_NAMES};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::time::Instant;

/// What is counted, for metrics.
#[derive(Debug, Default)]
pub struct Counts {
    /// Names that are followed now.
    pub names: AtomicU64,
    /// Names given up so far.
    pub evicted: AtomicU64,
}

/// The names that are followed.
pub struct Book {
    names: HashMap<String, (Name, Arc<Mark>)>,
    pages: Pages,
    /// When the next page begins.
    next: Instant,
    /// Since when there is no stream.
    away: Option<Instant>,
    most: usize,
    counts: Arc<Counts>,
}

impl Book {
    /// One without names.
    pub fn new(pages: Pages, counts: Arc<Counts>) -> Self {
        let (names, next, away) = (HashMap::new(), Instant::now() + DEMAND_PAGE, None);
        Self { names, pages, next, away, most: MAX_DEMAND_NAMES, counts }
    }

    /// All names, for a stream that begins.
    pub fn wire(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    /// The name that is asked for so.
    pub fn name(&self, wire: &str) -> Option<&Name> {
        self.names.get(wire).map(|(name, _)| name)
    }

    /// A name is answered: it is followed, and in use.
    pub fn put(&mut self, wire: &str, name: Name) -> Arc<Mark> {
        let mark = Mark::new(&self.pages);
        self.names.insert(wire.into(), (name, mark.clone()));
        self.counts.names.store(self.names.len() as u64, Relaxed);
        mark
    }

    /// When [`Book::turn`] is to be called next.
    pub fn due(&self) -> Instant {
        self.next
    }

    /// Begins a page, and gives up what was not used for the longest time allowed.
    pub fn turn(&mut self) -> Vec<(String, Name)> {
        self.pages.turn();
        self.next = Instant::now() + DEMAND_PAGE;
        let pages = self.pages.clone();
        self.give_up(|_, mark| mark.age(&pages) >= DEMAND_IDLE_PAGES)
    }

    /// Gives up a quarter of the names if there are too many. `has`: is there anything of a name?
    pub fn shrink(&mut self, has: impl Fn(&Name) -> bool) -> Vec<(String, Name)> {
        if self.names.len() <= self.most {
            return vec![];
        }
        let mut all: Vec<((bool, u32), &String)> =
            self.names.iter().map(|(wire, one)| (self.rank(&has, one), wire)).collect();
        all.sort_unstable_by(|(one, _), (other, _)| other.cmp(one));
        all.truncate(self.names.len() - (self.most - self.most / 4));
        let gone = all.into_iter().map(|(_, wire)| wire.clone()).collect();
        self.remove(gone)
    }

    /// The higher, the sooner it is given up.
    fn rank(&self, has: &impl Fn(&Name) -> bool, (name, mark): &(Name, Arc<Mark>)) -> (bool, u32) {
        (!has(name), mark.age(&self.pages))
    }

    /// There is a stream.
    pub fn connected(&mut self) {
        self.away = None;
    }

    /// There is none, or none again: what is not believed any more.
    pub fn disconnected(&mut self, has: impl Fn(&Name) -> bool) -> Vec<(String, Name)> {
        let since = *self.away.get_or_insert_with(Instant::now);
        match since.elapsed() >= DEMAND_NOBODY_AWAY {
            true => self.give_up(|name, _| !has(name)),
            false => vec![],
        }
    }

    fn give_up(&mut self, goes: impl Fn(&Name, &Mark) -> bool) -> Vec<(String, Name)> {
        let gone = self.names.iter().filter(|(_, (name, mark))| goes(name, mark));
        let gone = gone.map(|(wire, _)| wire.clone()).collect();
        self.remove(gone)
    }

    fn remove(&mut self, gone: Vec<String>) -> Vec<(String, Name)> {
        let gone: Vec<_> =
            gone.into_iter().filter_map(|wire| self.names.remove(&wire).map(|(name, _)| (wire, name))).collect();
        self.counts.evicted.fetch_add(gone.len() as u64, Relaxed);
        self.counts.names.store(self.names.len() as u64, Relaxed);
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Snapshot;
    use std::{collections::BTreeSet, time::Duration};
    use tokio::time::advance;

    fn host(n: usize) -> Name {
        Name::Host(format!("h{n}").into())
    }

    /// A book, and who reads what it has told.
    fn book(most: usize) -> (Book, Snapshot, Arc<Counts>) {
        let (pages, counts) = (Pages::default(), Arc::<Counts>::default());
        let snapshot = Snapshot::new("").on_demand(pages.clone());
        (Book { most, ..Book::new(pages, counts.clone()) }, snapshot, counts)
    }

    fn put(book: &mut Book, snapshot: &mut Snapshot, n: usize) {
        let mark = book.put(&host(n).wire(""), host(n));
        snapshot.put_name(host(n), mark);
    }

    fn gone(all: Vec<(String, Name)>) -> BTreeSet<String> {
        assert!(all.iter().all(|(wire, name)| name.wire("") == *wire));
        all.into_iter().map(|(wire, _)| wire).collect()
    }

    fn wires(all: &[usize]) -> BTreeSet<String> {
        all.iter().map(|n| host(*n).wire("")).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_nothing_uses_is_given_up_by_pages() {
        let (mut book, mut snapshot, counts) = book(100);
        (0..3).for_each(|n| put(&mut book, &mut snapshot, n));
        for page in 1..DEMAND_IDLE_PAGES {
            advance(DEMAND_PAGE).await;
            assert!(Instant::now() >= book.due());
            assert!(book.turn().is_empty(), "page {page}");
            assert!(snapshot.is_told(&host(1)), "it is used");
        }
        assert_eq!(gone(book.turn()), wires(&[0, 2]));
        assert_eq!((book.wire().len(), counts.names.load(Relaxed), counts.evicted.load(Relaxed)), (1, 1, 2));
        assert!(book.due() > Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn of_too_many_what_stands_for_nothing_goes_first_and_then_the_oldest() {
        let (mut book, mut snapshot, _) = book(8);
        (0..4).for_each(|n| put(&mut book, &mut snapshot, n));
        book.turn();
        (4..8).for_each(|n| put(&mut book, &mut snapshot, n));
        assert!(snapshot.is_told(&host(0)));
        assert!(book.shrink(|_| true).is_empty(), "there is room");
        put(&mut book, &mut snapshot, 8);
        // 5 and 6 are nobody's, 1 to 3 are old; six of nine stay.
        let left = gone(book.shrink(|name| *name != host(5) && *name != host(6)));
        assert!(left.len() == 3 && left.is_superset(&wires(&[5, 6])), "{left:?}");
        assert!(left.is_subset(&wires(&[1, 2, 3, 5, 6])), "{left:?}");
        // However many are of one age.
        (10..30).for_each(|n| put(&mut book, &mut snapshot, n));
        book.shrink(|_| true);
        assert_eq!(book.wire().len(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_control_plane_nothing_is_forgotten_but_that_there_is_nobody() {
        let (mut book, mut snapshot, _) = book(100);
        (0..2).for_each(|n| put(&mut book, &mut snapshot, n));
        let has = |name: &Name| *name == host(0);
        assert!(book.disconnected(has).is_empty());
        advance(DEMAND_NOBODY_AWAY - Duration::from_secs(1)).await;
        assert!(book.disconnected(has).is_empty(), "tried again");
        book.connected();
        assert!(book.disconnected(has).is_empty(), "there was one meanwhile");
        advance(DEMAND_NOBODY_AWAY).await;
        assert_eq!(gone(book.disconnected(has)), wires(&[1]));
        assert_eq!(book.wire(), [host(0).wire("")]);
        assert_eq!((book.name(&host(0).wire("")), book.name("none")), (Some(&host(0)), None));
    }
}
