//! What the series of one proxy have grown by. A counter that is smaller than before has begun anew with its process: it has grown
//! by what it is. A series that comes later has begun at 0; one that vanishes is forgotten. The first page of a proxy, and the
//! first one after a silence, only says where its counters stand: how long they took to get there is not known. A counter that has
//! begun anew and has overtaken its old value since it was last read is not noticed (nor is it by Prometheus).

use crate::text::Sample;
use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
};

/// A proxy that was not read for this long begins anew, in milliseconds. What its peers have told meanwhile was counted by them
/// (`edge::STICKY` is not shorter).
const STALE: u64 = 60_000;

struct Last {
    value: u64,
    round: u64,
}

/// The counters of one proxy as they were last read, by a hash of name and labels: 24 bytes for each, whatever their length. Two
/// of a million have the same hash once in 30 million times; then their growth is wrong, and nothing else.
#[derive(Default)]
pub(crate) struct Counters {
    last: HashMap<u64, Last>,
    hasher: RandomState,
    round: u64,
    read_at: Option<u64>,
}

impl Counters {
    /// Begins a page that was read at this time, in milliseconds.
    pub(crate) fn begin(&mut self, now: u64) -> Round<'_> {
        self.round += 1;
        let is_first = self.read_at.is_none_or(|before| now.saturating_sub(before) > STALE);
        self.read_at = Some(now);
        Round { counters: self, is_first }
    }
}

#[cfg(test)]
impl Counters {
    /// Bytes that they take: of each an entry and a byte of the table's own.
    pub(crate) fn bytes(&self) -> usize {
        self.last.capacity() * (size_of::<(u64, Last)>() + 1)
    }
}

/// A page that is being taken in.
pub(crate) struct Round<'a> {
    counters: &'a mut Counters,
    is_first: bool,
}

impl Round<'_> {
    /// Is it the first page, or the first after a silence? Then nothing has grown.
    pub(crate) fn is_first(&self) -> bool {
        self.is_first
    }

    /// What a series has grown by.
    pub(crate) fn growth(&mut self, series: &impl Hash, value: u64) -> u64 {
        let key = self.counters.hasher.hash_one(series);
        let now = Last { value, round: self.counters.round };
        match (self.counters.last.insert(key, now), self.is_first) {
            (_, true) => 0,
            (None, false) => value,
            (Some(before), false) => value.checked_sub(before.value).unwrap_or(value),
        }
    }

    /// Forgets what the page has no more.
    pub(crate) fn end(self) {
        let round = self.counters.round;
        self.counters.last.retain(|_, last| last.round == round);
    }
}

/// A counter's value; None: it is none.
pub(crate) fn counter(sample: &Sample<'_>) -> Option<u64> {
    (sample.value.is_finite() && sample.value >= 0.0).then_some(sample.value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};
    use std::collections::BTreeMap;

    fn read(counters: &mut Counters, now: u64, page: &BTreeMap<&str, u64>) -> BTreeMap<String, u64> {
        let mut round = counters.begin(now);
        let grown = page.iter().map(|(name, value)| ((*name).to_owned(), round.growth(name, *value))).collect();
        round.end();
        grown
    }

    /// Counts single events beside the counters that the pages show: what was grown by is what has happened between two pages.
    #[test]
    fn growth_is_what_has_happened_between_two_pages() {
        let mut random = StdRng::seed_from_u64(3);
        let names = ["a", "b", "c", "d"];
        let (mut page, mut since) = (BTreeMap::new(), BTreeMap::new());
        let mut counters = Counters::default();
        read(&mut counters, 0, &page);
        for step in 1..2000 {
            for _ in 0..random.random_range(0..9) {
                let name = names[random.random_range(0..names.len())];
                *page.entry(name).or_insert(0) += 1;
                *since.entry(name.to_owned()).or_insert(0) += 1;
            }
            // The process begins anew, or drops a series, right after it was read: nothing is lost unseen.
            let grown = read(&mut counters, step * 2000, &page);
            for (name, by) in &grown {
                assert_eq!(*by, since.remove(name).unwrap_or_default(), "{name} in step {step}");
            }
            since.clear();
            // What has begun anew is noticed by its smaller value: let it be smaller, whatever happens until it is read.
            let all_large = page.values().all(|value| *value > 9);
            match random.random_range(0..12) {
                _ if !all_large => {}
                0 => page.values_mut().for_each(|value| *value = 0),
                1 => page.clear(),
                2 => drop(page.remove(names[random.random_range(0..names.len())])),
                _ => {}
            }
        }
    }

    #[test]
    fn a_smaller_counter_has_begun_anew_and_silence_makes_a_new_start() {
        let mut counters = Counters::default();
        let mut grown = |now, value| read(&mut counters, now, &BTreeMap::from([("a", value)]))["a"];
        assert_eq!([grown(0, 100), grown(2000, 103), grown(4000, 2)], [0, 3, 2]);
        assert_eq!([grown(4001 + STALE, 50), grown(6001 + STALE, 51)], [0, 1], "who was not read is no spike");
    }

    #[test]
    fn what_is_no_counter_is_passed_over() {
        let value = |text: &str| counter(&crate::text::read(text, |_| true).unwrap()[0]);
        assert_eq!([value("a 3"), value("a -1"), value("a NaN"), value("a +Inf")], [Some(3), None, None, None]);
    }
}
