//! Endpoints by place (Istio's localityLbSetting): which come first, and which parts they get.

use crate::cluster::endpoint::LbEndpoint;
use karst_api::route as ir;
use karst_proxy::state::Workload;

/// A group of endpoints, among which the balancer chooses.
#[derive(Debug, PartialEq, Eq)]
pub struct LocalityGroup {
    /// Less comes first.
    pub priority: usize,
    /// Its part of what the level gets.
    pub weight: u32,
    pub members: Vec<u32>,
}

/// The groups, in order of their levels. Endpoints in none get nothing.
pub fn groups(locality: Option<&ir::Locality>, own: &Workload, members: &[LbEndpoint]) -> Vec<LocalityGroup> {
    let all = || (0..members.len() as u32).collect();
    let Some(locality) = locality else { return vec![LocalityGroup { priority: 0, weight: 1, members: all() }] };
    let mut out: Vec<LocalityGroup> = vec![];
    let mut put = |priority: usize, weight: u32, i: usize| match out
        .iter_mut()
        .find(|g| (g.priority, g.weight) == (priority, weight))
    {
        Some(g) => g.members.push(i as u32),
        None => out.push(LocalityGroup { priority, weight, members: vec![i as u32] }),
    };
    if let Some(distribution) = locality.distribute.iter().find(|distribution| is_in(own, &distribution.from)) {
        // The most exact place counts.
        let mut to: Vec<(&str, u32)> = distribution.to.iter().map(|(p, w)| (p.as_str(), *w)).collect();
        to.sort_by_key(|(p, _)| std::cmp::Reverse(p.split('/').filter(|x| *x != "*").count()));
        let mut parts: Vec<LocalityGroup> =
            to.iter().map(|(_, weight)| LocalityGroup { priority: 0, weight: *weight, members: vec![] }).collect();
        for (index, member) in members.iter().enumerate() {
            if let Some(k) = to.iter().position(|(p, _)| is_in(&member.workload, p)) {
                parts[k].members.push(index as u32);
            }
        }
        parts.retain(|g| !g.members.is_empty());
        return parts;
    }
    let known = !locality.labels.is_empty() || !own.region.is_empty();
    for (index, member) in members.iter().enumerate() {
        let priority = match locality.failover && known {
            true => distance(locality, own, &member.workload),
            false => 0,
        };
        put(priority, 1, index);
    }
    out.sort_by_key(|g| g.priority);
    out
}

/// How far away it is: 0 is nearest.
fn distance(locality: &ir::Locality, own: &Workload, workload: &Workload) -> usize {
    if !locality.labels.is_empty() {
        let fits = |p: &&String| match p.split_once('=') {
            Some((k, v)) => label(workload, k) == Some(v),
            None => label(own, p).is_some_and(|v| label(workload, p) == Some(v)),
        };
        return locality.labels.len() - locality.labels.iter().take_while(fits).count();
    }
    let next = locality.to_region.get(&*own.region).is_some_and(|r| **r == *workload.region);
    match (own.region == workload.region, own.zone == workload.zone, own.subzone == workload.subzone) {
        (true, true, true) => 0,
        (true, true, false) => 1,
        (true, false, _) => 2,
        (false, ..) if next => 3,
        (false, ..) => 4,
    }
}

/// A label; those of places are not told apart from where the pod is.
fn label<'a>(workload: &'a Workload, key: &str) -> Option<&'a str> {
    let place = match key {
        "topology.kubernetes.io/region" => &workload.region,
        "topology.kubernetes.io/zone" => &workload.zone,
        "topology.istio.io/subzone" => &workload.subzone,
        "topology.istio.io/network" => &workload.network,
        "topology.istio.io/cluster" => &workload.cluster,
        "kubernetes.io/hostname" => &workload.node,
        _ => return workload.labels.get(key).map(String::as_str),
    };
    Some(place).filter(|p| !p.is_empty()).map(|p| &**p)
}

/// Is it in this place (`region/zone/subzone`; what is left out, or `*`, is any)?
fn is_in(workload: &Workload, place: &str) -> bool {
    place.split('/').zip([&workload.region, &workload.zone, &workload.subzone]).all(|(p, own)| p == "*" || *p == **own)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::cluster::endpoint_set::tests::members;

    /// `region/zone` of each, and labels.
    fn workload(place: &str) -> Workload {
        let m = members(1).remove(0);
        let mut w = (*m.workload).clone();
        let (region, zone) = place.split_once('/').unwrap();
        (w.region, w.zone) = (region.into(), zone.into());
        w.labels = std::sync::Arc::new([("tier".to_string(), place.replace('/', "-"))].into());
        w
    }

    fn seen(l: &ir::Locality, own: &str, others: &[&str]) -> Vec<(usize, u32, Vec<u32>)> {
        let mut all = members(others.len());
        for (m, p) in all.iter_mut().zip(others) {
            m.workload = std::sync::Arc::new(workload(p));
        }
        groups(Some(l), &workload(own), &all).into_iter().map(|g| (g.priority, g.weight, g.members)).collect()
    }

    #[test]
    fn near_ones_first() {
        let mut l = ir::Locality { failover: true, ..Default::default() };
        let others = ["r1/a", "r2/a", "r1/b", "r3/a", "r1/a"];
        assert_eq!(seen(&l, "r1/a", &others), [(0, 1, vec![0, 4]), (2, 1, vec![2]), (4, 1, vec![1, 3])]);
        l.to_region.insert("r1".into(), "r3".into());
        assert_eq!(seen(&l, "r1/a", &others), [(0, 1, vec![0, 4]), (2, 1, vec![2]), (3, 1, vec![3]), (4, 1, vec![1])]);
        assert_eq!(
            seen(&l, "/", &others),
            [(0, 1, vec![0, 1, 2, 3, 4])],
            "who does not know where he is has no nearest"
        );
    }

    #[test]
    fn labels_in_place_of_places() {
        let labels = vec!["topology.kubernetes.io/region".to_string(), "tier=r1-b".into()];
        let l = ir::Locality { failover: true, labels, ..Default::default() };
        assert_eq!(seen(&l, "r1/a", &["r1/a", "r1/b", "r2/a"]), [(0, 1, vec![1]), (1, 1, vec![0]), (2, 1, vec![2])]);
    }

    #[test]
    fn localities_get_the_parts_that_are_written() {
        let d = |from: &str, to: &[(&str, u32)]| ir::Distribution {
            from: from.into(),
            to: to.iter().map(|(p, n)| (p.to_string(), *n)).collect(),
        };
        let distribute = vec![d("r1/a/*", &[("r1/*", 20), ("r1/a/*", 70), ("r2/*", 10)]), d("*", &[("r2", 100)])];
        let l = ir::Locality { distribute, ..Default::default() };
        let others = ["r1/a", "r2/a", "r1/b", "r3/a"];
        assert_eq!(seen(&l, "r1/a", &others), [(0, 70, vec![0]), (0, 20, vec![2]), (0, 10, vec![1])]);
        assert_eq!(seen(&l, "r3/x", &others), [(0, 100, vec![1])]);
    }
}
