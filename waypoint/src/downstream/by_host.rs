//! Which of a port's listeners are for a host name: those with the name itself, else those with the longest wildcard that it fits. It
//! costs the same with one listener and with the thousands that ListenerSets may add.

use std::collections::HashMap;

/// Places of listeners by their host names: whole, `*.domain`, or `*`.
#[derive(Debug, Default)]
pub struct ByHost {
    whole: HashMap<String, Vec<usize>>,
    /// By what follows the `*`; nothing: all names.
    wild: HashMap<String, Vec<usize>>,
    /// Lengths of the latter, the longest first.
    lengths: Vec<usize>,
}

impl ByHost {
    /// Of the host names of each listener, in order.
    pub fn new<'a>(all: impl Iterator<Item = &'a [String]>) -> Self {
        let mut index = Self::default();
        for (place, hosts) in all.enumerate() {
            for host in hosts {
                if let Some(end) = host.strip_prefix('*') {
                    add(&mut index.wild, end, place);
                }
                if host != "*" {
                    add(&mut index.whole, host, place);
                }
            }
        }
        index.lengths = index.wild.keys().map(String::len).collect();
        index.lengths.sort_unstable_by(|a, b| b.cmp(a));
        index.lengths.dedup();
        index
    }

    /// Those for a name, in order; without a name, those for all names.
    pub fn find(&self, name: Option<&str>) -> &[usize] {
        const NONE: &[usize] = &[];
        let Some(name) = name else { return self.wild.get("").map_or(NONE, Vec::as_slice) };
        if let Some(found) = self.whole.get(name) {
            return found;
        }
        // A wildcard stands for something, `*` alone for nothing, too.
        let fitting = self.lengths.iter().filter(|length| **length == 0 || **length < name.len());
        let mut found = fitting.filter_map(|length| self.wild.get(name.get(name.len() - length..)?));
        found.next().map_or(NONE, Vec::as_slice)
    }
}

fn add(to: &mut HashMap<String, Vec<usize>>, host: &str, place: usize) {
    let places = to.entry(host.to_string()).or_default();
    if places.last() != Some(&place) {
        places.push(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How closely a host fits; None: not.
    fn rank(host: &str, name: Option<&str>) -> Option<usize> {
        match (host, name) {
            ("*", _) => Some(0),
            (_, None) => None,
            (h, Some(n)) if h == n => Some(usize::MAX),
            (h, Some(n)) => h.strip_prefix('*').filter(|s| n.len() > s.len() && n.ends_with(s)).map(str::len),
        }
    }

    fn naive(all: &[Vec<String>], name: Option<&str>) -> Vec<usize> {
        let of = |hosts: &Vec<String>| hosts.iter().filter_map(|h| rank(h, name)).max();
        let best = all.iter().filter_map(of).max();
        (0..all.len()).filter(|place| best.is_some() && of(&all[*place]) == best).collect()
    }

    /// All pairs of listeners with one or two of these hosts, and all of these names.
    #[test]
    fn the_closest_name_is_found_as_by_looking_at_each() {
        const HOSTS: [&str; 7] = ["*", "*.com", "*.a.com", "*a.com", "a.com", "b.a.com", "*.é.com"];
        const NAMES: [&str; 10] =
            ["a.com", "b.a.com", "c.b.a.com", "xa.com", ".com", "com", "*", "*.com", "x.é.com", ""];
        let mut lists: Vec<Vec<String>> = HOSTS.iter().map(|h| vec![h.to_string()]).collect();
        lists.extend(HOSTS.iter().flat_map(|a| HOSTS.iter().map(|b| vec![a.to_string(), b.to_string()])));
        let names = NAMES.into_iter().map(Some).chain([None]);
        let names: Vec<Option<&str>> = names.collect();
        for one in &lists {
            for other in &lists {
                let all = [one.clone(), other.clone()];
                let index = ByHost::new(all.iter().map(Vec::as_slice));
                for name in &names {
                    assert_eq!(index.find(*name), naive(&all, *name), "{all:?} {name:?}");
                }
            }
        }
        assert!(ByHost::default().find(Some("a.com")).is_empty());
    }
}
