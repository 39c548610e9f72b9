//! The choice among a service's endpoints by what was learnt of them: those that could not be reached a moment ago come last.

use crate::{
    plan::{Balance, Plan, Refusal, bound, plan},
    state::{Snapshot, Workload},
};
use karst_proxy::unreachable::Unreachable;
use std::{net::SocketAddr, sync::Arc};

/// The plan, with those left out that could not be reached a moment ago, if there are others.
pub fn choose(
    balance: &mut impl Balance,
    avoided: &Unreachable,
    snapshot: &Snapshot,
    source: &Workload,
    to: SocketAddr,
    tried: &[Arc<str>],
) -> Plan {
    let first = plan(snapshot, source, to, tried, balance);
    // Mostly what is chosen is not avoided: nothing is copied then, however many others are.
    let Some(uid) = first.leads_to().filter(|uid| avoided.avoids(uid, to.port())) else { return first };
    // Who is to stay with an endpoint goes elsewhere only when it has failed to reach it itself.
    if bound(snapshot, source, to, balance).as_ref() == Some(uid) {
        return first;
    }
    let mut besides = avoided.besides(tried, to.port());
    besides.extend_from_slice(tried);
    match plan(snapshot, source, to, &besides, balance) {
        Plan::Refuse(Refusal::NoEndpoint) => first,
        other => other,
    }
}

/// Is there another endpoint than the chosen one that has not been tried? One that is avoided is no reason to give up this one.
pub fn has_other(
    balance: &mut impl Balance,
    avoided: &Unreachable,
    snapshot: &Snapshot,
    source: &Workload,
    to: SocketAddr,
    tried: &[Arc<str>],
    chosen: Option<&Arc<str>>,
) -> bool {
    let mut besides: Vec<_> = tried.iter().chain(chosen).cloned().collect();
    besides.extend(avoided.besides(&besides, to.port()));
    match plan(snapshot, source, to, &besides, balance) {
        Plan::Refuse(_) => false,
        other => other.endpoint().is_none_or(|uid| !besides.contains(&uid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Draw;
    use karst_core::limits;
    use karst_proxy::testing::{pod, service, snapshot};
    use std::{cell::Cell, time::Duration};

    #[test]
    fn one_is_given_up_only_for_one_that_is_not_avoided() {
        let key = "ns/s.ns.svc.cluster.local";
        let end = |name: &str, ip: &str| pod(name, ip, &[(key, &[(80, 8080)])]);
        let pods = vec![pod("c", "10.0.0.9", &[]), end("a", "10.0.0.1"), end("b", "10.0.0.2")];
        let s = snapshot(pods, vec![service("s", "10.96.0.1", &[(80, 8080)])]);
        let at = |ip: &str| s.workload(ip.parse().unwrap()).unwrap();
        let (c, a, b) = (at("10.0.0.9"), &at("10.0.0.1").uid, &at("10.0.0.2").uid);
        let u = Unreachable::new(limits::AVOID);
        let to = "10.96.0.1:80".parse().unwrap();
        let other = |tried: &[Arc<str>]| has_other(&mut Draw(0), &u, &s, c, to, tried, Some(a));
        assert!(other(&[]) && !other(std::slice::from_ref(b)));
        // It was lost a moment ago: it comes after this one, not in its place.
        u.add(b, Some(80));
        assert!(!other(&[]));
    }

    /// Picks the first endpoint, and counts who holds a name while it is asked.
    struct Holders {
        name: Arc<str>,
        most: Cell<usize>,
        bound: Option<Arc<str>>,
    }
    impl Balance for Holders {
        fn random(&mut self, _: u64) -> u64 {
            self.most.set(self.most.get().max(Arc::strong_count(&self.name)));
            0
        }
        fn load(&self, _: &str) -> u64 {
            0
        }
        fn bound(&self, _: &str, _: &Arc<str>, _: u16, _: Duration) -> Option<Arc<str>> {
            self.bound.clone()
        }
    }

    #[test]
    fn what_is_avoided_elsewhere_costs_nothing() {
        let key = "ns/s.ns.svc.cluster.local";
        let end = |name: &str, ip: &str| pod(name, ip, &[(key, &[(80, 8080)])]);
        let state = |affinity: u32| {
            let pods = vec![pod("c", "10.0.0.9", &[]), end("a", "10.0.0.1"), end("b", "10.0.0.2")];
            let mut svc = service("s", "10.96.0.1", &[(80, 8080)]);
            svc.karst_session_affinity_seconds = affinity;
            snapshot(pods, vec![svc])
        };
        let chosen = |s: &Snapshot, u: &Unreachable, b: &mut Holders| {
            let c = s.workload("10.0.0.9".parse().unwrap()).unwrap();
            let p = choose(b, u, s, c, "10.96.0.1:80".parse().unwrap(), &[]);
            p.leads_to().unwrap().clone()
        };
        let s = state(0);
        let elsewhere: Arc<str> = "elsewhere".into();
        let mut by = Holders { name: elsewhere.clone(), most: Cell::default(), bound: None };
        let u = Unreachable::new(limits::AVOID);
        let first = chosen(&s, &u, &mut by);
        u.add(&elsewhere, None);
        u.add(&first, Some(81));
        let before = Arc::strong_count(&elsewhere);
        by.most.set(0);
        assert_eq!((chosen(&s, &u, &mut by), by.most.get()), (first.clone(), before), "no name is copied");
        u.add(&first, Some(80));
        let second = chosen(&s, &u, &mut by);
        assert_ne!(second, first);
        u.add(&second, None);
        assert_eq!(chosen(&s, &u, &mut by), first, "all are avoided");
        // Who is to stay with it stays, though others could not reach it.
        by.bound = Some(second.clone());
        assert_eq!(chosen(&state(10), &u, &mut by), second);
    }
}
