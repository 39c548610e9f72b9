//! The series of a metric, found in two ways: by their labels, which alone tell them apart, and by a key that the labels follow
//! from, so that a hit writes no labels. Labels name workloads, not their pods: two lines with the same labels are no page, and a
//! count that falls when a pod has been replaced looks like a restart. What to do when it is full, and what is stale, the metric
//! says.

use std::{
    hash::Hash,
    sync::{Arc, Weak},
};

/// Series by their labels `L` and by keys `K`; `MOST` are wanted. A copy shares them and costs next to nothing, so that it can be
/// behind a lock as well as an arc-swap.
#[derive(Debug)]
pub struct Index<L, K, T, const MOST: usize> {
    by_labels: imbl::HashMap<L, Arc<T>>,
    /// Where they are, without writing the labels.
    by_key: imbl::HashMap<K, Weak<T>>,
}

impl<L: Clone + Eq + Hash, K: Clone + Eq + Hash, T, const MOST: usize> Index<L, K, T, MOST> {
    /// Most keys whose series is remembered; beyond, all are found anew.
    const MAX_KEYS: usize = 4 * MOST;

    /// The series of a key that has been asked for before. One that was swept while somebody held it is found until it is let go.
    pub fn known(&self, key: &K) -> Option<Arc<T>> {
        self.by_key.get(key)?.upgrade()
    }

    /// Is there a series with these labels, or place for it?
    pub fn has_place(&self, labels: &L) -> bool {
        self.by_labels.len() < MOST || self.by_labels.contains_key(labels)
    }

    /// The series with these labels, from now on of this key too; `new` makes it, whether there is place or not.
    pub fn add(&mut self, key: K, labels: L, new: impl FnOnce(L) -> T) -> Arc<T> {
        let series = match self.by_labels.get(&labels) {
            Some(series) => series.clone(),
            None => {
                let series = Arc::new(new(labels.clone()));
                self.by_labels.insert(labels, series.clone());
                series
            }
        };
        if self.by_key.len() >= Self::MAX_KEYS {
            self.by_key.clear();
        }
        self.by_key.insert(key, Arc::downgrade(&series));
        series
    }

    /// All of them, in no order.
    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.by_labels.values()
    }

    /// Drops the stale ones, and the keys of those that are gone. One that nobody uses has a strong count of one.
    pub fn sweep(&mut self, mut is_stale: impl FnMut(&Arc<T>) -> bool) {
        // Not by `retain`: it works on a copy, and whatever is beside a dropped one is then held by both.
        let stale = self.by_labels.iter().filter(|(_, series)| is_stale(series));
        let stale: Vec<L> = stale.map(|(labels, _)| labels.clone()).collect();
        self.remove(&stale);
    }

    /// Drops a tenth of the most, of those that nobody uses: the ones `used` longest ago.
    pub fn evict<U: Copy + Ord>(&mut self, used: impl Fn(&T) -> U) {
        let unused = self.by_labels.iter().filter(|(_, series)| Arc::strong_count(series) == 1);
        let mut unused: Vec<(U, L)> = unused.map(|(labels, series)| (used(series), labels.clone())).collect();
        unused.sort_by_key(|(used, _)| *used);
        unused.truncate(MOST / 10);
        if !unused.is_empty() {
            self.remove(&unused.into_iter().map(|(_, labels)| labels).collect::<Vec<_>>());
        }
    }

    fn remove(&mut self, all: &[L]) {
        all.iter().for_each(|labels| drop(self.by_labels.remove(labels)));
        self.by_key.retain(|_, series| series.strong_count() > 0);
    }
}

// Neither needs what a derived one would ask of `T`.
impl<L, K, T, const MOST: usize> Default for Index<L, K, T, MOST> {
    fn default() -> Self {
        Self { by_labels: imbl::HashMap::default(), by_key: imbl::HashMap::default() }
    }
}

impl<L: Clone, K: Clone, T, const MOST: usize> Clone for Index<L, K, T, MOST> {
    fn clone(&self) -> Self {
        Self { by_labels: self.by_labels.clone(), by_key: self.by_key.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    /// The labels are a number; so is the key; a series has counted so much.
    type Small = Index<u32, u32, AtomicU32, 20>;

    fn add(all: &mut Small, key: u32, labels: u32) -> Arc<AtomicU32> {
        all.add(key, labels, |_| AtomicU32::new(0))
    }

    fn counts(all: &Small) -> Vec<u32> {
        let mut counts: Vec<_> = all.values().map(|series| series.load(Relaxed)).collect();
        counts.sort();
        counts
    }

    /// Replicas share one, and a pod in place of another counts on.
    #[test]
    fn keys_with_the_same_labels_have_one_series() {
        let mut all = Small::default();
        let (one, other) = (add(&mut all, 1, 7), add(&mut all, 2, 7));
        assert!(Arc::ptr_eq(&one, &other) && !Arc::ptr_eq(&one, &add(&mut all, 3, 8)));
        assert!([1, 2].iter().all(|key| all.known(key).is_some_and(|known| Arc::ptr_eq(&known, &one))));
        one.store(5, Relaxed);
        drop((one, other));
        add(&mut all, 4, 7).fetch_add(1, Relaxed);
        assert_eq!((counts(&all), all.known(&5).is_none()), (vec![0, 6], true));
    }

    #[test]
    fn stale_series_and_their_keys_are_forgotten() {
        let mut all = Small::default();
        let held = add(&mut all, 1, 1);
        (2..=4).for_each(|n| add(&mut all, n, n).store(n, Relaxed));
        all.sweep(|series| Arc::strong_count(series) == 1 && series.load(Relaxed) != 3);
        assert_eq!((counts(&all), all.by_key.len()), (vec![0, 3], 2));
        all.sweep(|_| true);
        assert_eq!((counts(&all), all.known(&1).is_some(), all.known(&3).is_some()), (vec![], true, false));
        drop(held);
        assert!(all.known(&1).is_none());
        all.sweep(|_| true);
        assert_eq!(all.by_key.len(), 0);
    }

    #[test]
    fn the_ones_used_longest_ago_make_place() {
        let mut all = Small::default();
        let held = add(&mut all, 0, 0);
        (1..20).for_each(|n| add(&mut all, n, n).store(n, Relaxed));
        assert!(all.has_place(&19) && !all.has_place(&20));
        let before = all.clone();
        all.evict(|series| series.load(Relaxed));
        let kept: Vec<u32> = [0].into_iter().chain(3..20).collect();
        assert_eq!(counts(&all), kept, "two are gone, and not the one in use");
        assert!(all.has_place(&20) && all.known(&0).is_some_and(|known| Arc::ptr_eq(&known, &held)));
        assert_eq!(counts(&before).len(), 20, "a copy is one of its own");
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let mut all = Small::default();
        (0..=Small::MAX_KEYS as u32).for_each(|key| add(&mut all, key, 7).store(key, Relaxed));
        assert_eq!((counts(&all), all.by_key.len()), (vec![80], 1));
        add(&mut all, 0, 7);
        assert!(all.known(&0).is_some());
    }
}
