//! The rules for one port, found by hash: the whole path, its prefixes by length, its leading segments. A look-up costs the same with
//! ten and with thousands of rules.

use crate::route::{input::RouteInput, matcher::StringMatcher, rule::Rule};
use hashbrown::HashTable;
use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

/// So many rules are looked at one after the other. Most hosts have one or two: tables of paths would take more than the rules.
pub(super) const FEW: usize = 4;

/// The rules for one port.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) rules: Box<[Arc<Rule>]>,
    /// Where they are by path, if they are not few.
    pub(super) paths: Option<Box<Paths>>,
}

/// Rules by path. The tables have numbers of rules only: a path is kept once, in its rule.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// The first rule with a path, by the path's hash.
    exact: HashTable<u32>,
    prefix: HashTable<u32>,
    segments: HashTable<u32>,
    hasher: RandomState,
    /// By rule: the next one in the same table with the same path, or [`NO_RULE`].
    next: Box<[u32]>,
    /// Lengths of the prefixes.
    lengths: Vec<usize>,
    /// Those without a path, with a pattern, or that ignore its case.
    other: Vec<u32>,
}

/// No rule has this number.
const NO_RULE: u32 = u32::MAX;

/// The path that a rule is found by.
fn path_of(rule: &Rule) -> &str {
    match &rule.path {
        Some(StringMatcher::Exact(p) | StringMatcher::Prefix(p) | StringMatcher::PathSegments(p)) => p,
        Some(StringMatcher::Regex(_) | StringMatcher::Present) | None => "",
    }
}

impl Index {
    pub(super) fn new(rules: impl Iterator<Item = Arc<Rule>>) -> Self {
        let rules: Box<[Arc<Rule>]> = rules.collect();
        let paths = (rules.len() > FEW).then(|| Box::new(Paths::new(&rules)));
        Self { rules, paths }
    }

    pub(super) fn origins(&self) -> Vec<String> {
        self.rules.iter().map(|r| r.origin.clone()).collect()
    }

    /// The first rule that holds.
    pub(super) fn find(&self, input: &RouteInput<'_>) -> Option<&Arc<Rule>> {
        match &self.paths {
            Some(paths) => self.rules.get(paths.find(&self.rules, input) as usize),
            None => self.rules.iter().find(|rule| rule.matches(input, true)),
        }
    }
}

impl Paths {
    fn new(rules: &[Arc<Rule>]) -> Self {
        let mut index = Self { next: vec![NO_RULE; rules.len()].into(), ..Self::default() };
        let hasher = index.hasher.clone();
        let path = |number: &u32| path_of(&rules[*number as usize]);
        // From the last one: each is put before those of its path that are there.
        for (at, rule) in rules.iter().enumerate().rev() {
            let number = at as u32;
            let table = match &rule.path {
                Some(StringMatcher::Exact(_)) if !rule.ignore_case => &mut index.exact,
                Some(StringMatcher::Prefix(prefix)) if !rule.ignore_case => {
                    index.lengths.push(prefix.len());
                    &mut index.prefix
                }
                Some(StringMatcher::PathSegments(_)) if !rule.ignore_case => &mut index.segments,
                _ => {
                    index.other.push(number);
                    continue;
                }
            };
            let own = path_of(rule);
            let hash = hasher.hash_one(own);
            match table.find_mut(hash, |n| path(n) == own) {
                Some(first) => index.next[at] = std::mem::replace(first, number),
                None => {
                    table.insert_unique(hash, number, |n| hasher.hash_one(path(n)));
                }
            }
        }
        index.other.reverse();
        index.other.shrink_to_fit();
        index.lengths.sort_unstable();
        index.lengths.dedup();
        index.lengths.shrink_to_fit();
        index
    }

    /// The rules of a table with this path, in order.
    fn with_path(&self, rules: &[Arc<Rule>], table: &HashTable<u32>, path: &str) -> impl Iterator<Item = u32> {
        let first = match table.is_empty() {
            true => None,
            false => table.find(self.hasher.hash_one(path), |n| path_of(&rules[*n as usize]) == path).copied(),
        };
        std::iter::successors(first, move |n| self.next.get(*n as usize).copied().filter(|n| *n != NO_RULE))
    }

    /// The number of the first rule that holds, or [`NO_RULE`].
    fn find(&self, rules: &[Arc<Rule>], input: &RouteInput<'_>) -> u32 {
        let holds = |number: u32, path_too| rules[number as usize].matches(input, path_too);
        let mut best = NO_RULE;
        let mut look = |table: &HashTable<u32>, path: &str| {
            first_that_holds(self.with_path(rules, table, path), |number| holds(number, false), &mut best);
        };
        look(&self.exact, input.path);
        for n in &self.lengths {
            match input.path.get(..*n) {
                Some(p) => look(&self.prefix, p),
                None if *n > input.path.len() => break,
                // Within a character: no prefix of that length is one of this path.
                None => {}
            }
        }
        if !self.segments.is_empty() {
            look(&self.segments, input.path);
            for (at, _) in input.path.match_indices('/') {
                look(&self.segments, &input.path[..at]);
            }
        }
        first_that_holds(self.other.iter().copied(), |number| holds(number, true), &mut best);
        best
    }
}

/// Goes through candidates, which are in order, to the first that holds, and takes it for the best if it is.
fn first_that_holds(candidates: impl Iterator<Item = u32>, holds: impl Fn(u32) -> bool, best: &mut u32) {
    for number in candidates {
        if *best <= number {
            return;
        }
        if holds(number) {
            *best = number;
            return;
        }
    }
}
