//! What a worker knows of buckets that other replicas keep: tokens that it has leased, and who waits for some. Nothing here sends or
//! waits; [`super::link`] does.

use crate::{
    quota::{
        frame::Ask,
        table::{Grant, Rate},
    },
    route::bucket::Bucket,
    snapshot::Snapshot,
};
use karst_core::limits;
use karst_proxy::state::Workload;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    mem,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};
use xxhash_rust::xxh64::xxh64;

/// [`limits::QUOTA_LEASE`] in nanoseconds.
const LEASE: u64 = limits::QUOTA_LEASE.as_nanos() as u64;
/// [`limits::QUOTA_AGAIN`] in nanoseconds.
const ASK_AGAIN: u64 = limits::QUOTA_AGAIN.as_nanos() as u64;
/// A lease is at most this part of what each replica would have of a full bucket.
const PART: u64 = 4;

/// What a request that has waited is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has a token.
    Taken,
    /// There is none before this time.
    Over(Duration),
    /// The keeper was not reached.
    Away,
}

/// What a lease says of one more request. `asks`: the keeper is to be asked now.
#[derive(Debug)]
pub enum Leased {
    Taken {
        asks: bool,
    },
    /// There is none before this time.
    Over(Duration),
    Wait(oneshot::Receiver<Verdict>, bool),
    /// There are too many leases, or too many wait.
    Full,
}

/// Of whom a bucket is asked, and for how much.
pub struct Terms<'a> {
    pub keeper: &'a Arc<str>,
    pub rate: Rate,
    /// How many keep buckets.
    pub replicas: usize,
}

/// The way to a replica.
#[derive(Clone)]
pub struct Link {
    /// Buckets that it is to be asked about.
    pub asks: mpsc::Sender<Bucket>,
    pub health: Rc<Health>,
}

/// Does a replica answer?
#[derive(Default)]
pub struct Health {
    /// Until when it is not tried: a time of [`crate::route::limit::now`].
    pub away: Cell<u64>,
    /// It has not answered the last time: it is asked, and nobody waits for that.
    pub is_failing: Cell<bool>,
}

/// Who keeps buckets, as one snapshot has it.
#[derive(Default)]
struct Replicas {
    of: Option<Arc<Snapshot>>,
    /// By uid. Ourselves among them, if there are others.
    all: Rc<[Arc<Workload>]>,
}

/// A worker's leases.
#[derive(Default)]
pub struct Leases {
    replicas: RefCell<Replicas>,
    links: RefCell<HashMap<Arc<str>, Link>>,
    all: RefCell<HashMap<Bucket, Lease>>,
}

struct Lease {
    keeper: Arc<str>,
    rate: Rate,
    /// Most tokens that are leased beside those that somebody waits for.
    most: u32,
    tokens: u32,
    /// Until when they may be used.
    until: u64,
    /// Tokens that are to be given back.
    back: u32,
    /// Nobody is asked before.
    again: u64,
    /// When there is a token again, as the keeper has said.
    free: u64,
    /// Tokens that were asked for; None: it is not being asked.
    asked: Option<u32>,
    /// Requests since the last answer.
    demand: u32,
    waiting: Vec<oneshot::Sender<Verdict>>,
}

/// The pods of the same gateway that are ready: of the same account, behind one of its services. None: we are alone.
fn replicas(snapshot: &Snapshot, own: &Arc<Workload>) -> Rc<[Arc<Workload>]> {
    let is_one = |w: &&Arc<Workload>| w.identity == own.identity && w.healthy && !w.ips.is_empty();
    let endpoints = own.services.iter().filter_map(|(key, _)| snapshot.mesh.endpoints.get(key));
    let others = endpoints.flat_map(|all| all.keys()).filter_map(|uid| snapshot.mesh.workloads.get(uid)).filter(is_one);
    let mut all: Vec<Arc<Workload>> = others.cloned().chain([own.clone()]).collect();
    all.sort_by(|a, b| a.uid.cmp(&b.uid));
    all.dedup_by(|a, b| a.uid == b.uid);
    if all.len() == 1 { [].into() } else { all.into() }
}

/// Who keeps a bucket: of all replicas the one with the highest hash (rendezvous), so that when one comes or goes only its own move.
fn keeper(all: &[Arc<Workload>], bucket: Bucket) -> Option<&Arc<Workload>> {
    let seed = bucket as u64 ^ (bucket >> 64) as u64;
    let rank = |w: &Workload| xxh64(w.uid.as_bytes(), seed);
    all.iter().max_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.uid.cmp(&b.uid)))
}

impl Leases {
    /// Who keeps a bucket, and how many replicas there are. None: this one does.
    pub fn keeper(
        &self,
        snapshot: &Arc<Snapshot>,
        own: Option<&Arc<Workload>>,
        bucket: Bucket,
    ) -> Option<(Arc<Workload>, usize)> {
        let own = own?;
        let all = self.replicas(snapshot, own);
        keeper(&all, bucket).filter(|keeper| keeper.uid != own.uid).map(|keeper| (keeper.clone(), all.len()))
    }

    fn replicas(&self, snapshot: &Arc<Snapshot>, own: &Arc<Workload>) -> Rc<[Arc<Workload>]> {
        let mut known = self.replicas.borrow_mut();
        if known.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, snapshot)) {
            return known.all.clone();
        }
        let all = replicas(snapshot, own);
        *known = Replicas { of: Some(snapshot.clone()), all: all.clone() };
        let is_one = |uid: &Arc<str>| all.iter().any(|w| w.uid == *uid);
        self.links.borrow_mut().retain(|uid, _| is_one(uid));
        self.all.borrow_mut().retain(|_, lease| is_one(&lease.keeper));
        all
    }

    /// Lets go of a snapshot that is not the newest one: the next request looks for the replicas anew.
    pub fn let_go(&self, newest: &Arc<Snapshot>) {
        let mut known = self.replicas.borrow_mut();
        if known.of.as_ref().is_some_and(|of| !Arc::ptr_eq(of, newest)) {
            known.of = None;
        }
    }

    /// The way to a keeper, made if there is none.
    pub fn link(&self, keeper: &Arc<str>, make: impl FnOnce() -> Link) -> Link {
        self.links.borrow_mut().entry(keeper.clone()).or_insert_with(make).clone()
    }

    /// One more request.
    pub fn take(&self, bucket: Bucket, terms: &Terms<'_>, now: u64) -> Leased {
        let mut all = self.all.borrow_mut();
        if !all.contains_key(&bucket) && all.len() >= limits::QUOTA_LEASES {
            return Leased::Full;
        }
        let lease = all.entry(bucket).or_insert_with(|| Lease::new(terms));
        // Who waits for the keeper before is told that it is away.
        if lease.keeper != *terms.keeper || lease.rate != terms.rate {
            *lease = Lease::new(terms);
        }
        lease.take(now)
    }

    /// What is wanted of these buckets; those of which nothing is known any more are left out.
    pub fn asks(&self, buckets: &mut Vec<Bucket>) -> Vec<Ask> {
        let mut all = self.all.borrow_mut();
        buckets.retain(|bucket| all.contains_key(bucket));
        buckets.iter().filter_map(|bucket| Some(all.get_mut(bucket)?.ask(*bucket))).collect()
    }

    /// The keeper has answered.
    pub fn granted(&self, bucket: Bucket, grant: Grant, now: u64) {
        if let Some(lease) = self.all.borrow_mut().get_mut(&bucket) {
            lease.granted(grant, now);
        }
    }

    /// The keeper was not reached.
    pub fn failed(&self, bucket: Bucket) {
        if let Some(lease) = self.all.borrow_mut().get_mut(&bucket) {
            lease.asked = None;
            for waiter in lease.waiting.drain(..) {
                let _ = waiter.send(Verdict::Away);
            }
        }
    }

    /// Forgets what is not used, and says of which buckets of a keeper, at most so many, tokens are to be given back.
    pub fn sweep(&self, keeper: &Arc<str>, most: usize, now: u64) -> Vec<Bucket> {
        let mut out = vec![];
        self.all.borrow_mut().retain(|bucket, lease| {
            if lease.keeper != *keeper {
                return true;
            }
            lease.expire(now);
            if lease.back > 0 && out.len() < most && lease.asks() {
                out.push(*bucket);
            }
            !lease.is_idle(now)
        });
        out
    }
}

impl Lease {
    fn new(terms: &Terms<'_>) -> Self {
        let whole = terms.rate.full / terms.rate.step.max(1);
        let most = whole / (PART * terms.replicas.max(1) as u64);
        Self {
            keeper: terms.keeper.clone(),
            rate: terms.rate,
            most: u32::try_from(most).unwrap_or(u32::MAX),
            tokens: 0,
            until: 0,
            back: 0,
            again: 0,
            free: 0,
            asked: None,
            demand: 0,
            waiting: vec![],
        }
    }

    fn take(&mut self, now: u64) -> Leased {
        self.expire(now);
        self.demand = self.demand.saturating_add(1);
        if self.tokens > 0 {
            self.tokens -= 1;
            // In time for the next ones.
            let is_low = self.tokens < self.spare() / 2 && now >= self.again;
            return Leased::Taken { asks: is_low && self.asks() };
        }
        if now < self.again {
            return Leased::Over(Duration::from_nanos(self.free.saturating_sub(now)));
        }
        if self.waiting.len() >= limits::QUOTA_WAITING {
            return Leased::Full;
        }
        let (told, wait) = oneshot::channel();
        self.waiting.push(told);
        Leased::Wait(wait, self.asks())
    }

    /// Twice as many as were wanted since the last answer: it grows with what comes, and shrinks with it.
    fn spare(&self) -> u32 {
        self.demand.saturating_mul(2).min(self.most)
    }

    /// Is somebody to ask now? Not if that is being done.
    fn asks(&mut self) -> bool {
        let asks = self.asked.is_none();
        self.asked.get_or_insert(0);
        asks
    }

    fn ask(&mut self, bucket: Bucket) -> Ask {
        let wanted = (self.waiting.len() as u32).saturating_add(self.spare().saturating_sub(self.tokens));
        self.asked = Some(wanted);
        Ask { bucket, rate: self.rate, want: wanted, back: mem::take(&mut self.back) }
    }

    fn granted(&mut self, grant: Grant, now: u64) {
        let wanted = self.asked.take().unwrap_or(0);
        let after = Duration::from_nanos(grant.after);
        let mut tokens = grant.tokens;
        for waiter in self.waiting.drain(..) {
            let verdict = if tokens > 0 { Verdict::Taken } else { Verdict::Over(after) };
            // Who has given up has taken none.
            if waiter.send(verdict).is_ok() && verdict == Verdict::Taken {
                tokens -= 1;
            }
        }
        self.tokens = self.tokens.saturating_add(tokens);
        if grant.tokens > 0 {
            self.until = now.saturating_add(LEASE);
        }
        // Less than was wanted: that was all there is.
        if grant.tokens < wanted {
            self.again = now.saturating_add(grant.after.min(ASK_AGAIN));
            self.free = now.saturating_add(grant.after);
        }
        self.demand = 0;
    }

    fn expire(&mut self, now: u64) {
        if self.tokens > 0 && now >= self.until {
            self.back = self.back.saturating_add(mem::take(&mut self.tokens));
        }
    }

    fn is_idle(&self, now: u64) -> bool {
        self.tokens == 0 && self.back == 0 && self.asked.is_none() && self.waiting.is_empty() && now >= self.again
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]
    use super::*;
    use karst_proxy::testing::{pod, service, snapshot};

    const S: u64 = 1_000_000_000;
    const B: Bucket = 5;
    /// A hundred a second, eighty at once: two replicas lease ten at a time.
    const RATE: Rate = Rate { step: S / 100, full: 80 * (S / 100) };

    fn take(leases: &Leases, now: u64) -> Leased {
        leases.take(B, &Terms { keeper: &"k".into(), rate: RATE, replicas: 2 }, now)
    }

    fn wanted(leases: &Leases) -> (u32, u32) {
        let asks = leases.asks(&mut vec![B]);
        (asks[0].want, asks[0].back)
    }

    fn grant(leases: &Leases, tokens: u32, after: u64, now: u64) {
        leases.granted(B, Grant { tokens, after }, now);
    }

    fn verdict(leased: Leased) -> Verdict {
        match leased {
            Leased::Wait(mut wait, _) => wait.try_recv().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_waits_and_the_next_have_what_was_leased() {
        let leases = Leases::default();
        let (first, second) = (take(&leases, S), take(&leases, S));
        assert!(matches!((&first, &second), (Leased::Wait(_, true), Leased::Wait(_, false))), "one question is enough");
        assert_eq!(wanted(&leases), (6, 0), "for both, and twice as many");
        grant(&leases, 4, 0, S);
        assert_eq!((verdict(first), verdict(second)), (Verdict::Taken, Verdict::Taken));
        assert!(matches!(take(&leases, S), Leased::Taken { asks: false }));
        assert!(matches!(take(&leases, S), Leased::Taken { .. }));
        assert!(matches!(take(&leases, S), Leased::Wait(..)), "used up");
    }

    #[test]
    fn more_is_asked_for_before_a_lease_is_used_up() {
        let leases = Leases::default();
        let waiting: Vec<Leased> = (0..40).map(|_| take(&leases, S)).collect();
        assert_eq!(wanted(&leases), (50, 0), "no more than ten beside those who wait");
        grant(&leases, 50, 0, S);
        assert!(waiting.into_iter().all(|leased| verdict(leased) == Verdict::Taken));
        let asks: Vec<bool> = (0..10)
            .map(|_| match take(&leases, S) {
                Leased::Taken { asks } => asks,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(asks.iter().filter(|asks| **asks).count(), 1, "{asks:?}");
        assert!(!asks[9], "before the last");
    }

    #[test]
    fn what_is_used_up_is_known_for_a_moment() {
        let leases = Leases::default();
        let waiting = [take(&leases, S), take(&leases, S), take(&leases, S)];
        assert_eq!(wanted(&leases).0, 9);
        grant(&leases, 2, S / 2, S);
        let over = Verdict::Over(Duration::from_millis(500));
        assert_eq!(waiting.map(verdict), [Verdict::Taken, Verdict::Taken, over]);
        match take(&leases, S + ASK_AGAIN / 2) {
            Leased::Over(after) => assert_eq!(after, Duration::from_millis(450)),
            other => panic!("{other:?}"),
        }
        assert!(matches!(take(&leases, S + ASK_AGAIN), Leased::Wait(_, true)), "others may have given some back");
    }

    #[test]
    fn who_has_given_up_has_taken_none_and_what_is_unused_goes_back() {
        let leases = Leases::default();
        drop((take(&leases, S), take(&leases, S)));
        assert_eq!(wanted(&leases), (6, 0));
        grant(&leases, 4, 0, S);
        assert!(leases.sweep(&"other".into(), 10, 3 * S).is_empty(), "another keeper's are not looked at");
        assert!(leases.sweep(&"k".into(), 10, S + LEASE / 2).is_empty());
        assert_eq!(leases.sweep(&"k".into(), 10, S + LEASE), [B]);
        assert_eq!(wanted(&leases), (0, 4));
        grant(&leases, 0, 0, S + LEASE);
        assert!(leases.sweep(&"k".into(), 10, S + LEASE).is_empty() && leases.all.borrow().is_empty(), "forgotten");
    }

    #[test]
    fn without_the_keeper_nobody_waits() {
        let leases = Leases::default();
        let waiting = take(&leases, S);
        wanted(&leases);
        leases.failed(B);
        assert_eq!(verdict(waiting), Verdict::Away);
        assert!(matches!(take(&leases, S), Leased::Wait(_, true)), "the next one asks");
        // Another keeper: who waits for the one before is not forgotten.
        let Leased::Wait(mut old, _) = take(&leases, S) else { panic!("it waits") };
        let other = Terms { keeper: &"other".into(), rate: RATE, replicas: 2 };
        assert!(matches!(leases.take(B, &other, S), Leased::Wait(_, true)));
        assert!(old.try_recv().is_err());
    }

    #[test]
    fn leases_are_bounded() {
        let leases = Leases::default();
        let terms = Terms { keeper: &"k".into(), rate: RATE, replicas: 2 };
        for n in 0..limits::QUOTA_LEASES {
            leases.take(Bucket::from(n as u64), &terms, S);
        }
        assert!(matches!(leases.take(Bucket::MAX, &terms, S), Leased::Full));
        for _ in 0..limits::QUOTA_WAITING {
            leases.take(0, &terms, S);
        }
        assert!(matches!(leases.take(0, &terms, S), Leased::Full));
    }

    /// A gateway's replicas, as the mesh has them: of its account, behind its service, ready.
    fn mesh(pods: &[&str]) -> (Arc<Snapshot>, Arc<Workload>) {
        const KEY: &str = "ns/gw.ns.svc.cluster.local";
        const PORTS: &[(u32, u32)] = &[(80, 8080)];
        let one = |(n, name): (usize, &&str)| {
            let ip = format!("10.0.0.{}", n + 1);
            let behind = [(KEY, PORTS)];
            let mut pod = pod(name, &ip, if name.starts_with("apart") { &[] } else { &behind });
            pod.service_account = if name.starts_with("other") { "other" } else { "gw" }.into();
            pod.status = i32::from(name.starts_with("unready"));
            pod
        };
        let all = pods.iter().enumerate().map(one).collect();
        let mut s = Snapshot::new("");
        s.mesh = snapshot(all, vec![service("gw", "10.96.0.1", &[(80, 8080)])]);
        let own = s.mesh.workload("10.0.0.1".parse().unwrap()).unwrap().clone();
        (Arc::new(s), own)
    }

    #[test]
    fn replicas_are_pods_of_the_same_gateway_that_are_ready() {
        let all = ["gw-a", "gw-b", "other-a", "unready-a", "apart-a", "gw-c"];
        let (s, own) = mesh(&all);
        let names = |all: &[Arc<Workload>]| all.iter().map(|w| w.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&replicas(&s, &own)), ["gw-a", "gw-b", "gw-c"]);
        let (s, own) = mesh(&["gw-a", "other-a"]);
        assert!(replicas(&s, &own).is_empty(), "alone");
        assert!(Leases::default().keeper(&s, Some(&own), 1).is_none());
    }

    #[test]
    fn each_keeps_its_part_and_only_those_of_one_that_goes_move() {
        let ((three, own), (two, _)) = (mesh(&["gw-a", "gw-b", "gw-c"]), mesh(&["gw-a", "gw-b"]));
        let (three, two) = (replicas(&three, &own), replicas(&two, &own));
        let name = |all: &[Arc<Workload>], n: u64| {
            let bucket = (Bucket::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64) | Bucket::from(n);
            keeper(all, bucket).unwrap().name.to_string()
        };
        let mut counts: HashMap<String, usize> = HashMap::new();
        for n in 0..3000 {
            let of_three = name(&three, n);
            *counts.entry(of_three.clone()).or_default() += 1;
            if of_three != "gw-c" {
                assert_eq!(name(&two, n), of_three);
            }
        }
        assert!(counts.len() == 3 && counts.values().all(|n| (800..1200).contains(n)), "{counts:?}");
    }
}
