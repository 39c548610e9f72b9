//! Session affinity (`sessionAffinity: ClientIP` of a Service): which endpoint a client was sent to, as kube-proxy keeps it: for each
//! port of the service, until the client has made no connection for the service's timeout, or the endpoint is gone. The client is
//! the pod, which is what its address stands for. Who is not remembered (a new client, a new ztunnel, a full table) is given the
//! endpoint that a hash of client and service prefers, which mostly is the one of before.

use karst_proxy::state::Workload;
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Clients that are remembered, more than a node has pods; beyond, the one is forgotten that has called longest ago.
const MAX_CLIENTS: usize = 1024;
/// Service ports that are remembered of one client; beyond, the one is forgotten that it has called longest ago. A client cannot
/// push out what is remembered of others.
const MAX_SERVICES: usize = 256;

/// A service's key, and its port.
type Port = (Arc<str>, u16);

/// Where clients were sent; shared by the workers of the process.
#[derive(Debug, Default)]
pub struct Affinity(Mutex<HashMap<Arc<str>, HashMap<Port, Bound>>>);

#[derive(Debug)]
struct Bound {
    endpoint: Arc<str>,
    /// The newest connection.
    last: Instant,
}

impl Affinity {
    /// The endpoint that a client is to stay with.
    pub fn get(&self, client: &str, port: &Port, timeout: Duration, now: Instant) -> Option<Arc<str>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = all.get(client)?.get(port)?;
        (now.duration_since(bound.last) < timeout).then(|| bound.endpoint.clone())
    }

    /// A client has been sent to an endpoint.
    pub fn put(&self, client: &Arc<str>, port: Port, endpoint: &Arc<str>, now: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = |ports: &HashMap<Port, Bound>| ports.values().map(|b| b.last).max();
        make_room(&mut all, client, MAX_CLIENTS, newest);
        let ports = all.entry(client.clone()).or_default();
        make_room(ports, &port, MAX_SERVICES, |b| Some(b.last));
        ports.insert(port, Bound { endpoint: endpoint.clone(), last: now });
    }
}

/// Takes out what is oldest, if there is no room for a new key.
fn make_room<K: Clone + Eq + Hash, V>(
    map: &mut HashMap<K, V>,
    new: &K,
    max: usize,
    age: impl Fn(&V) -> Option<Instant>,
) {
    if map.len() < max || map.contains_key(new) {
        return;
    }
    let oldest = map.iter().map(|(k, v)| (age(v), k)).min_by_key(|(age, _)| *age).map(|(_, k)| k.clone());
    if let Some(key) = oldest {
        map.remove(&key);
    }
}

/// Of these endpoints the one that a client prefers (rendezvous hashing, weighted by capacity): if another one comes or goes, only
/// the clients move whose own it is.
pub fn prefer<'a>(client: &str, service: &str, all: impl Iterator<Item = &'a Workload>) -> Option<usize> {
    let score = |w: &Workload| {
        // The 53 bits that a double holds, moved into the middle of (0, 1).
        let unit = ((hash([client, service, &w.uid]) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        f64::from(w.capacity) / -unit.ln()
    };
    let scored = all.map(score).enumerate();
    scored.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(i, _)| i)
}

/// FNV-1a, then mixed as by splitmix64. The same in every process: a new ztunnel prefers what the one before did.
fn hash(parts: [&str; 3]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        // A byte that no text holds ends each of them.
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use karst_proxy::testing::{pod, snapshot};

    const TIMEOUT: Duration = Duration::from_secs(10_800);
    fn port(service: &str) -> Port {
        (service.into(), 80)
    }

    #[test]
    fn a_client_is_remembered_until_it_has_not_called_for_the_timeout() {
        let (a, t) = (Affinity::default(), Instant::now());
        let (client, x, y): (Arc<str>, Arc<str>, Arc<str>) = ("c".into(), "x".into(), "y".into());
        let at = |seconds: u64| t + Duration::from_secs(seconds);
        assert_eq!(a.get(&client, &port("s"), TIMEOUT, t), None);
        a.put(&client, port("s"), &x, t);
        assert_eq!(a.get(&client, &port("s"), TIMEOUT, at(10_799)), Some(x.clone()));
        assert_eq!(a.get(&client, &port("s"), TIMEOUT, at(10_800)), None);
        assert_eq!(a.get(&client, &port("s"), Duration::from_secs(60), at(60)), None, "the timeout is the one of now");
        assert_eq!(a.get(&client, &("s".into(), 81), TIMEOUT, t), None, "another port");
        assert_eq!(a.get("d", &port("s"), TIMEOUT, t), None, "another client");
        // Each connection begins the time anew.
        a.put(&client, port("s"), &x, at(10_000));
        assert_eq!(a.get(&client, &port("s"), TIMEOUT, at(20_000)), Some(x));
        a.put(&client, port("s"), &y, at(20_001));
        assert_eq!(a.get(&client, &port("s"), TIMEOUT, at(20_002)), Some(y));
    }

    #[test]
    fn the_table_is_bounded_and_a_client_pushes_out_only_its_own() {
        let (a, t) = (Affinity::default(), Instant::now());
        let (one, other, x): (Arc<str>, Arc<str>, Arc<str>) = ("one".into(), "other".into(), "x".into());
        a.put(&other, port("s"), &x, t);
        for i in 0..=MAX_SERVICES {
            a.put(&one, port(&format!("s{i}")), &x, t + Duration::from_secs(i as u64));
        }
        let there = |client: &str, service: &str| a.get(client, &port(service), TIMEOUT, t).is_some();
        assert!(!there("one", "s0") && there("one", "s1") && there("one", &format!("s{MAX_SERVICES}")));
        assert!(there("other", "s"));
        for i in 0..MAX_CLIENTS {
            a.put(&format!("c{i}").into(), port("s"), &x, t + Duration::from_secs(1000 + i as u64));
        }
        assert!(!there("other", "s") && !there("one", "s1") && there("c0", "s"));
        assert_eq!(a.0.lock().unwrap().len(), MAX_CLIENTS);
    }

    #[test]
    fn a_client_prefers_the_same_endpoint_whatever_comes_and_goes() {
        let workloads = |n: u8, weight: u32| {
            let mut all: Vec<_> = (0..n).map(|i| pod(&format!("e{i}"), &format!("10.0.0.{i}"), &[])).collect();
            all[0].capacity = Some(weight);
            let s = snapshot(all, vec![]);
            (0..n).map(|i| s.workload([10, 0, 0, i].into()).unwrap().clone()).collect::<Vec<_>>()
        };
        let (ten, eleven) = (workloads(10, 1), workloads(11, 1));
        let choice =
            |all: &[Arc<Workload>], c: usize| prefer(&format!("client-{c}"), "ns/s", all.iter().map(|w| &**w)).unwrap();
        let (mut counts, mut moved) = ([0; 10], 0);
        for c in 0..10_000 {
            let (before, after) = (choice(&ten, c), choice(&eleven, c));
            counts[before] += 1;
            assert!(after == before || after == 10, "who moves, moves to the new one");
            moved += usize::from(after != before);
            // The order of the list has no part in it.
            let backwards: Vec<_> = ten.iter().rev().cloned().collect();
            assert_eq!(9 - choice(&backwards, c), before);
        }
        assert!(counts.iter().all(|n| (850..1150).contains(n)), "{counts:?}");
        assert!((750..1070).contains(&moved), "{moved} of 10,000 moved to the eleventh");
        let heavy = workloads(10, 3);
        let first = (0..12_000).filter(|c| choice(&heavy, *c) == 0).count();
        assert!((2700..3300).contains(&first), "a capacity of 3 among 12: {first} of 12,000");
        assert_eq!(prefer("c", "s", [].into_iter()), None);
    }
}
