//! What pods have their addresses from, by node: thousands of ranges, of which all or most have the same length.

use imbl::{HashMap, OrdMap};
use karst_core::Cidr;
use std::{net::IpAddr, sync::Arc};

/// The ranges of all nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodRanges {
    nodes: OrdMap<Arc<str>, Arc<[Cidr]>>,
    /// Each range, and how many nodes have it.
    all: HashMap<Cidr, usize>,
    /// Family (of IPv4?) and prefix length, and how many ranges have them.
    lengths: OrdMap<(bool, u8), usize>,
}

impl PodRanges {
    /// May a pod have this address? As many looks as there are lengths.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let mut lengths = self.lengths.keys().filter(|(is_v4, _)| *is_v4 == ip.is_ipv4());
        lengths.any(|(_, length)| Cidr::new(ip, *length).is_some_and(|range| self.all.contains_key(&range)))
    }

    /// Node and range of each.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Cidr)> {
        self.nodes.iter().flat_map(|(node, ranges)| ranges.iter().map(move |range| (node, range)))
    }

    /// A node has these ranges, and no others.
    pub(super) fn put(&mut self, node: &str, ranges: &[Cidr]) {
        let before = match ranges.is_empty() {
            true => self.nodes.remove(node),
            false => self.nodes.insert(node.into(), ranges.into()),
        };
        for range in before.iter().flat_map(|before| before.iter()) {
            less(&mut self.all, range);
            let key = length(range);
            match self.lengths.get(&key).copied() {
                Some(count) if count > 1 => self.lengths.insert(key, count - 1),
                Some(_) | None => self.lengths.remove(&key),
            };
        }
        for range in ranges {
            *self.all.entry(*range).or_insert(0) += 1;
            *self.lengths.entry(length(range)).or_insert(0) += 1;
        }
    }
}

fn length(range: &Cidr) -> (bool, u8) {
    (range.base().is_ipv4(), range.prefix_len())
}

fn less(all: &mut HashMap<Cidr, usize>, range: &Cidr) {
    match all.get(range).copied() {
        Some(count) if count > 1 => all.insert(*range, count - 1),
        Some(_) | None => all.remove(range),
    };
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// Whatever nodes come and go: as if all ranges were looked at.
    #[test]
    fn the_look_up_agrees_with_a_linear_search() {
        let mut random = StdRng::seed_from_u64(4);
        let mut ranges = PodRanges::default();
        let mut naive: std::collections::BTreeMap<String, Vec<Cidr>> = Default::default();
        for _ in 0..2000 {
            let node = format!("n{}", random.random_range(0..6));
            let one = |random: &mut StdRng| -> Cidr {
                let (third, length) = (random.random_range(0..4), [16, 22, 24, 24, 32][random.random_range(0..5)]);
                match random.random_range(0..3) {
                    0 => format!("fd00:{third}::/{}", length * 2),
                    _ => format!("10.0.{third}.0/{length}"),
                }
                .parse()
                .unwrap()
            };
            let new: Vec<Cidr> = (0..random.random_range(0..3)).map(|_| one(&mut random)).collect();
            ranges.put(&node, &new);
            match new.is_empty() {
                true => drop(naive.remove(&node)),
                false => drop(naive.insert(node, new)),
            }
            let (third, last) = (random.random_range(0..5), random.random_range(0..3));
            for ip in
                [format!("10.0.{third}.{last}"), format!("fd00:{third}::{last}"), format!("::ffff:10.0.{third}.0")]
            {
                let ip: IpAddr = ip.parse().unwrap();
                let want = naive.values().flatten().any(|range| range.contains(ip));
                assert_eq!(ranges.contains(ip), want, "{ip} in {naive:?}");
            }
            assert_eq!(ranges.iter().count(), naive.values().flatten().count());
            assert!(ranges.lengths.values().sum::<usize>() == ranges.iter().count());
        }
    }
}
