//! The choice of an endpoint.

use crate::{
    clock,
    cluster::{endpoint::LbEndpoint, endpoint_set::EndpointSet, locality::LocalityGroup},
};
use karst_api::route::{self as ir, Method};
use std::sync::atomic::Ordering::Relaxed;
use xxhash_rust::xxh64::xxh64;

/// Draws before every endpoint is looked at.
const DRAWS: usize = 4;
/// What a level takes for each of its endpoints that is healthy, per cent (Envoy's overprovisioning factor).
const OVERPROVISIONED: u64 = 140;
/// In slow start, of a controller that tells neither: Istio's least part, in millionths, and aggression, in thousandths.
const WARMUP: (u32, u32) = (100_000, 1000);
/// An overloaded endpoint gets this part of its share, per cent: never nothing, or nobody would see that it is better.
const OVERLOADED: u64 = 10;

/// What an endpoint's share follows from besides itself.
#[derive(Clone, Copy)]
struct Moment {
    now: u64,
    /// Overloaded endpoints get less.
    spares: bool,
}

impl Moment {
    fn is_spared(self, m: &LbEndpoint) -> bool {
        self.spares && m.state.is_overloaded(self.now)
    }
}

/// Which endpoints a request may go to, now. `tried`: by their places.
struct Look<'a> {
    set: &'a EndpointSet,
    t: u64,
    ejection_active: bool,
    tried: &'a [usize],
}

impl<'a> Look<'a> {
    fn at(now: u64, set: &'a EndpointSet, tried: &'a [usize]) -> Self {
        Self { set, t: now, ejection_active: set.ejection_active(now), tried }
    }

    fn is_healthy(&self, m: &LbEndpoint) -> bool {
        !self.ejection_active || !m.state.is_ejected(self.t)
    }

    /// Healthy, and not tried.
    fn is_fresh(&self, m: &LbEndpoint) -> bool {
        self.is_healthy(m) && !self.tried.iter().any(|i| self.set.members.get(*i).is_some_and(|x| std::ptr::eq(x, m)))
    }

    /// Healthy, not tried, and not avoided: these come before all others, and only for them another one is given up.
    fn is_usable(&self, m: &LbEndpoint) -> bool {
        !m.state.is_avoided(self.t) && self.is_fresh(m)
    }
}

/// The endpoint for a request, by its place. `hash`: of what the policy names, if the request has it. Those that could not be
/// reached a moment ago are left out as long as there are others, and so are, of those that remain, `tried`. None: no endpoint may
/// be used.
pub fn choose(
    set: &EndpointSet,
    hash: Option<u64>,
    tried: &[usize],
    mut random: impl FnMut(u64) -> u64,
) -> Option<usize> {
    choose_at(clock::now(), set, hash, tried, &mut random)
}

/// As [`choose`], at a time of [`clock`] that has been read already.
pub fn choose_at(
    now: u64,
    set: &EndpointSet,
    hash: Option<u64>,
    tried: &[usize],
    random: &mut dyn FnMut(u64) -> u64,
) -> Option<usize> {
    let look = Look::at(now, set, tried);
    let moment = Moment { now, spares: set.overload_active(now) };
    let first = if look.ejection_active { priority(set, &|m: &LbEndpoint| look.is_healthy(m), random) } else { 0 };
    choose_from(set, first, hash, moment, &|m: &LbEndpoint| look.is_usable(m), random)
        .or_else(|| choose_from(set, first, hash, moment, &|m: &LbEndpoint| look.is_fresh(m), random))
        .or_else(|| match tried {
            [] => None,
            _ => choose_from(set, first, hash, moment, &|m: &LbEndpoint| look.is_healthy(m), random),
        })
}

/// May a client that was at an endpoint go on there? Until it ends it may.
pub fn is_usable(set: &EndpointSet, index: usize, now: u64) -> bool {
    let look = Look::at(now, set, &[]);
    set.members.get(index).is_some_and(|m| (m.group.is_some() || m.workload.draining) && look.is_usable(m))
}

/// Is there another endpoint that would come before this one, if it has failed?
pub fn has_other(set: &EndpointSet, index: usize, tried: &[usize]) -> bool {
    let look = Look::at(clock::now(), set, tried);
    set.members.iter().enumerate().any(|(k, m)| k != index && m.group.is_some() && look.is_usable(m))
}

/// The level that a request goes to. Each takes so much of what is left as it has healthy endpoints, with a margin.
fn priority(set: &EndpointSet, healthy: &impl Fn(&LbEndpoint) -> bool, random: &mut dyn FnMut(u64) -> u64) -> usize {
    let Some(last) = set.groups.last().map(|g| g.priority).filter(|l| *l > 0) else { return 0 };
    let mut at = random(100);
    for priority in 0..=last {
        let (mut all, mut well) = (0, 0);
        for index in set.groups.iter().filter(|g| g.priority == priority).flat_map(|g| &g.members) {
            all += 1;
            well += u64::from(healthy(&set.members[*index as usize]));
        }
        let takes = (OVERPROVISIONED * well).checked_div(all).unwrap_or(0).min(100);
        if at < takes {
            return priority;
        }
        at -= takes;
    }
    0
}

/// An endpoint of this level; if none of it can be used, of the others, near ones first.
fn choose_from(
    set: &EndpointSet,
    first: usize,
    hash: Option<u64>,
    moment: Moment,
    usable: &impl Fn(&LbEndpoint) -> bool,
    random: &mut dyn FnMut(u64) -> u64,
) -> Option<usize> {
    if let [_] = set.groups[..] {
        return choose_in_group(set, 0, hash, moment, usable, random);
    }
    let able = |g: &LocalityGroup| g.members.iter().any(|i| usable(&set.members[*i as usize]));
    let of = |priority: usize| set.groups.iter().enumerate().filter(move |(_, g)| g.priority == priority && able(g));
    let last = set.groups.last()?.priority;
    let priority = std::iter::once(first).chain(0..=last).find(|l| of(*l).next().is_some())?;
    let mut at = random(of(priority).map(|(_, g)| u64::from(g.weight)).sum());
    let (group, _) = of(priority).find(|(_, g)| {
        let hit = at < u64::from(g.weight);
        at = at.saturating_sub(u64::from(g.weight));
        hit
    })?;
    choose_in_group(set, group, hash, moment, usable, random)
}

/// One of a group.
fn choose_in_group(
    set: &EndpointSet,
    group: usize,
    hash: Option<u64>,
    moment: Moment,
    usable: &impl Fn(&LbEndpoint) -> bool,
    random: &mut dyn FnMut(u64) -> u64,
) -> Option<usize> {
    let among = &set.groups.get(group)?.members[..];
    let balance = set.policy.balance.as_ref();
    let method = balance.map_or(Method::LeastRequest, ir::Balance::method);
    match method {
        Method::RingHash | Method::Maglev if hash.is_some() => {
            on_ring(set, hash.unwrap_or(0), method, &|m| m.group == Some(group) && usable(m))
        }
        // Without anything to hash: any.
        Method::Random | Method::RingHash | Method::Maglev => draw(set, among, moment, usable, random),
        Method::RoundRobin => {
            let turn = |_| among[set.cluster.round_robin.fetch_add(1, Relaxed) % among.len()] as usize;
            let takes_turn = |i: &usize| {
                let m = &set.members[*i];
                let part = warmth(balance, moment.now.saturating_sub(m.state.since));
                usable(m) && (part == 100 || random(100) < part) && (!moment.is_spared(m) || random(100) < OVERLOADED)
            };
            let turns = || (0..among.len()).map(turn);
            turns().find(takes_turn).or_else(|| turns().find(|i| usable(&set.members[*i])))
        }
        Method::LeastRequest | Method::PeakEwma => {
            let first = draw(set, among, moment, usable, random)?;
            // Another one, if there is one.
            let other = |m: &LbEndpoint| usable(m) && !std::ptr::eq(m, &set.members[first]);
            let second =
                if among.len() == 1 { first } else { draw(set, among, moment, &other, random).unwrap_or(first) };
            let cost = |i: usize| {
                let m = &set.members[i];
                let active = u64::from(m.state.active.load(Relaxed)) + 1;
                let latency = if method == Method::PeakEwma { m.state.latency(moment.now).max(1) } else { 1 };
                active * latency / u64::from(m.workload.capacity.max(1))
            };
            // What an overloaded one still gets, it gets by being drawn first; as the second it must be far less busy.
            let handicap = if moment.is_spared(&set.members[second]) { 100 / OVERLOADED } else { 1 };
            Some(if cost(second).saturating_mul(handicap) < cost(first) { second } else { first })
        }
    }
}

/// The part of its share that an endpoint of this age has in slow start, per cent: as Envoy reckons it.
fn warmth(balance: Option<&ir::Balance>, age: u64) -> u64 {
    let Some(balance) = balance.filter(|b| age < b.warmup_ms) else { return 100 };
    let (least, aggression) = match balance.warmup_aggression {
        0 => WARMUP,
        aggression => (balance.warmup_minimum, aggression),
    };
    let grown = (age.max(1) as f64 / balance.warmup_ms as f64).powf(1000.0 / f64::from(aggression));
    ((grown * 100.0) as u64).max(u64::from(least) / 10_000)
}

/// One of those that can be used, by capacity, warmth and overload.
fn draw(
    set: &EndpointSet,
    among: &[u32],
    moment: Moment,
    usable: &impl Fn(&LbEndpoint) -> bool,
    random: &mut dyn FnMut(u64) -> u64,
) -> Option<usize> {
    let weight = |member: &LbEndpoint| {
        let part = warmth(set.policy.balance.as_ref(), moment.now.saturating_sub(member.state.since));
        let share = if moment.is_spared(member) { OVERLOADED } else { 100 };
        u64::from(member.workload.capacity) * part * share
    };
    if among.is_empty() {
        return None;
    }
    let all = || among.iter().map(|i| (*i as usize, &set.members[*i as usize]));
    let most = all().map(|(_, m)| weight(m)).max().unwrap_or(0).max(1);
    for _ in 0..DRAWS {
        let index = among[random(among.len() as u64) as usize] as usize;
        let member = &set.members[index];
        if usable(member) && random(most) < weight(member) {
            return Some(index);
        }
    }
    let usable = || all().filter(|(_, m)| usable(m));
    let total: u64 = usable().map(|(_, m)| weight(m)).sum();
    let mut at = random(total.max(1));
    let mut last = None;
    for (index, member) in usable() {
        last = Some(index);
        if at < weight(member) {
            return Some(index);
        }
        at -= weight(member);
    }
    last
}

fn on_ring(set: &EndpointSet, hash: u64, method: Method, usable: &impl Fn(&LbEndpoint) -> bool) -> Option<usize> {
    let length = set.ring.len();
    if length == 0 {
        return None;
    }
    let from = match method {
        Method::Maglev => (hash % length as u64) as usize,
        _ => set.ring.partition_point(|(h, _)| *h < hash) % length,
    };
    (0..length).map(|k| set.ring[(from + k) % length].1 as usize).find(|i| usable(&set.members[*i]))
}

/// The hash of a value.
pub fn hash(value: &[u8]) -> u64 {
    xxh64(value, 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::cluster::{endpoint::EndpointStats, endpoint_set::tests::set};
    use karst_core::limits;
    use karst_proxy::dial::Endpoint;
    use rand::Rng;
    use std::sync::Arc;

    fn with(m: Method, n: usize) -> EndpointSet {
        let mut b = ir::Balance { ring_size: if m == Method::Maglev { 65_537 } else { 1024 }, ..Default::default() };
        b.set_method(m);
        set(n, ir::Policy { balance: Some(b), ..Default::default() })
    }

    fn counts(s: &EndpointSet, rounds: usize, mut hash: impl FnMut(usize) -> Option<u64>) -> Vec<usize> {
        let mut r = rand::rng();
        let mut out = vec![0; s.members.len()];
        for k in 0..rounds {
            out[choose(s, hash(k), &[], |n| r.random_range(0..n.max(1))).unwrap()] += 1;
        }
        out
    }

    #[test]
    fn methods_spread_evenly() {
        assert_eq!(counts(&with(Method::RoundRobin, 4), 400, |_| None), [100; 4]);
        for m in [Method::Random, Method::LeastRequest, Method::PeakEwma] {
            let c = counts(&with(m, 4), 4000, |_| None);
            assert!(c.iter().all(|n| (800..1200).contains(n)), "{m:?} {c:?}");
        }
        for m in [Method::RingHash, Method::Maglev] {
            let c = counts(&with(m, 4), 4000, |k| Some(hash(&k.to_le_bytes())));
            assert!(c.iter().all(|n| (600..1400).contains(n)), "{m:?} {c:?}");
        }
    }

    #[test]
    fn a_hash_stays_with_its_endpoint() {
        for m in [Method::RingHash, Method::Maglev] {
            let (four, five) = (with(m, 4), with(m, 5));
            let at = |s: &EndpointSet, k: usize| {
                let i = choose(s, Some(hash(&k.to_le_bytes())), &[], |_| 0).unwrap();
                s.members[i].workload.name.clone()
            };
            let moved = (0..1000).filter(|k| at(&four, *k) != at(&five, *k)).count();
            // A fifth of them has to move; not many more do.
            assert!((100..350).contains(&moved), "{m:?}: {moved}");
        }
    }

    #[test]
    fn what_was_tried_is_left_out_while_there_are_others() {
        for m in [Method::RoundRobin, Method::Random, Method::LeastRequest, Method::RingHash] {
            let s = with(m, 2);
            let mut r = rand::rng();
            for _ in 0..50 {
                let i = choose(&s, Some(7), &[0], |n| r.random_range(0..n.max(1))).unwrap();
                assert_eq!(i, 1, "{m:?}");
            }
            assert!(choose(&s, Some(7), &[0, 1], |_| 0).is_some());
        }
        assert!(choose(&with(Method::LeastRequest, 0), None, &[], |_| 0).is_none());
    }

    #[test]
    fn what_could_not_be_reached_is_left_out_while_there_are_others() {
        for m in [Method::RoundRobin, Method::Random, Method::LeastRequest, Method::PeakEwma, Method::RingHash] {
            // Which of three are chosen.
            let seen = |tried: &[usize], avoided: &[usize]| {
                let s = with(m, 3);
                avoided.iter().for_each(|i| s.members[*i].state.avoid());
                let mut r = rand::rng();
                let mut seen = [false; 3];
                for k in 0..300_u32 {
                    let i = choose(&s, Some(hash(&k.to_le_bytes())), tried, |n| r.random_range(0..n.max(1)));
                    seen[i.unwrap()] = true;
                }
                seen
            };
            assert_eq!(seen(&[], &[0]), [false, true, true], "{m:?}");
            assert_eq!(seen(&[1], &[0]), [false, false, true], "{m:?}");
            // What has just failed is the last resort; then all are one.
            assert_eq!(seen(&[1], &[0, 2]), [true, false, true], "{m:?}");
            assert_eq!(seen(&[], &[0, 1, 2]), [true; 3], "{m:?}");
            assert_eq!(seen(&[0, 1, 2], &[]), [true; 3], "{m:?}");
        }
    }

    #[test]
    fn one_is_given_up_only_for_one_that_is_better() {
        let s = with(Method::LeastRequest, 3);
        assert!(has_other(&s, 0, &[]) && has_other(&s, 0, &[1]) && !has_other(&s, 0, &[1, 2]));
        assert!(!has_other(&with(Method::LeastRequest, 1), 0, &[]));
        // One that was lost a moment ago is tried after this one, not in its place.
        s.members[1].state.avoid();
        assert!(has_other(&s, 0, &[]) && !has_other(&s, 0, &[2]));
        s.members[2].state.avoid();
        assert!(!has_other(&s, 0, &[]));
        // So is one that is ejected.
        let outlier =
            ir::Outlier { consecutive_5xx: 1, ejection_ms: 60_000, max_ejection_percent: 100, ..Default::default() };
        let s = set(2, ir::Policy { outlier: Some(outlier), ..Default::default() });
        assert!(has_other(&s, 0, &[]));
        s.record_outcome(&s.members[1], Some(500));
        assert!(!has_other(&s, 0, &[]) && has_other(&s, 1, &[]));
    }

    #[test]
    fn what_could_not_be_reached_comes_back() {
        let s = with(Method::LeastRequest, 1);
        let e = &s.members[0].state;
        assert!(!e.is_avoided(clock::now()));
        e.avoid();
        let (now, time) = (clock::now(), limits::AVOID.as_millis() as u64);
        assert!(e.is_avoided(now) && e.is_avoided(now + time - 1_000) && !e.is_avoided(now + time));
    }

    #[test]
    fn an_overloaded_one_gets_less_and_never_nothing() {
        let overloaded = |m: Method, n: usize, which: &[usize]| {
            let s = with(m, n);
            let pause = std::time::Duration::from_secs(60);
            which.iter().for_each(|i| s.record_overload(&s.members[*i], pause, clock::now()));
            s
        };
        for m in [Method::RoundRobin, Method::Random, Method::LeastRequest, Method::PeakEwma] {
            // An eleventh of two.
            let c = counts(&overloaded(m, 2, &[0]), 4000, |_| None);
            assert!((200..600).contains(&c[0]), "{m:?} {c:?}");
            let c = counts(&overloaded(m, 4, &[1, 2]), 4000, |_| None);
            assert!(c[1] > 0 && c[2] > 0 && c[0] > 1000 && c[3] > 1000, "{m:?} {c:?}");
            // Of three, two: that is more than half, and all are one.
            let c = counts(&overloaded(m, 3, &[0, 1]), 3000, |_| None);
            assert!(c.iter().all(|n| (750..1250).contains(n)), "{m:?} {c:?}");
            assert_eq!(counts(&overloaded(m, 1, &[0]), 10, |_| None), [10], "{m:?}");
        }
        // Whom a hash sends there stays.
        let c = counts(&overloaded(Method::RingHash, 2, &[0]), 4000, |k| Some(hash(&k.to_le_bytes())));
        assert!(c.iter().all(|n| (1200..2800).contains(n)), "{c:?}");
        // Those that are left are used whoever is overloaded.
        let s = overloaded(Method::LeastRequest, 2, &[1]);
        assert_eq!(choose(&s, None, &[0], |_| 0), Some(1));
    }

    #[test]
    fn in_slow_start_an_endpoint_gets_its_part() {
        let balance = |warmup_minimum, warmup_aggression| ir::Balance {
            warmup_ms: 1000,
            warmup_minimum,
            warmup_aggression,
            ..Default::default()
        };
        for (least, aggression, wanted) in [
            (100_000, 1000, [10, 10, 25, 90, 100]),
            (300_000, 1000, [30, 30, 30, 90, 100]),
            // By the square root: fast at first.
            (0, 2000, [3, 22, 50, 94, 100]),
            (0, 0, [10, 10, 25, 90, 100]),
        ] {
            let parts = [0, 50, 250, 900, 1000].map(|age| warmth(Some(&balance(least, aggression)), age));
            assert_eq!(parts, wanted, "{least} {aggression}");
        }
        assert_eq!(warmth(None, 0), 100);
        // An eleventh of two, by whatever method.
        for m in [Method::RoundRobin, Method::Random, Method::LeastRequest, Method::PeakEwma] {
            let mut slow = balance(100_000, 1000);
            slow.set_method(m);
            let mut s = set(2, ir::Policy { balance: Some(slow), ..Default::default() });
            let now = 1 << 40;
            let mut new = EndpointStats::new();
            new.since = now;
            s.members[1].state = Arc::new(new);
            let mut r = rand::rng();
            let mut chosen = [0; 2];
            for _ in 0..4000 {
                let drawn = choose_at(now, &s, None, &[], &mut |n| r.random_range(0..n.max(1)));
                chosen[drawn.unwrap()] += 1;
            }
            assert!((200..600).contains(&chosen[1]), "{m:?} {chosen:?}");
        }
    }

    #[test]
    fn an_overload_ends_when_the_endpoint_has_said() {
        let s = with(Method::LeastRequest, 2);
        let now = clock::now();
        assert!(!s.overload_active(now));
        s.record_overload(&s.members[0], std::time::Duration::from_secs(5), now);
        assert!(s.overload_active(now) && s.overload_active(now + 4999) && !s.overload_active(now + 5000));
        s.record_overload(&s.members[0], std::time::Duration::from_secs(1), now);
        assert!(!s.overload_active(now + 1000), "its last word counts");
    }

    #[test]
    fn the_busy_one_is_avoided() {
        let s = with(Method::LeastRequest, 2);
        s.members[0].state.active.store(50, Relaxed);
        let c = counts(&s, 1000, |_| None);
        assert_eq!(c, [0, 1000]);
    }

    #[test]
    fn the_slow_one_is_avoided_until_that_is_long_ago() {
        let s = with(Method::PeakEwma, 3);
        s.members[0].state.record_latency(std::time::Duration::from_secs(1), clock::now());
        assert_eq!(counts(&s, 1000, |_| None)[0], 0);
        let e = &s.members[0].state;
        let (t, then) = (clock::now(), e.latency(clock::now()));
        assert!(e.latency(t + 10_000) < then / 2 && e.latency(t + 200_000) < 1000);
    }
}
