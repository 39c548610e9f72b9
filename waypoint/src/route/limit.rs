//! Rate limits. A bucket is one number, the time until which its tokens are spent (the generic cell rate algorithm, ITU-T I.371): taking
//! a token is one compare-and-swap, and nothing runs to fill buckets.

use crate::{
    clock,
    quota::table::Rate,
    route::bucket::{Bucket, BucketHash, Key},
};
use karst_api::route as ir;
use karst_core::limits;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Of a limit with keys: the bucket of all values beyond [`limits::LIMIT_VALUES`].
const BEYOND: Bucket = 0;
/// Where few were idle, nobody looks for idle ones again so soon: nanoseconds. Clients choose the values, and each new one would have
/// all buckets looked at.
const AGAIN: u64 = 100_000_000;

/// A limit with its bucket, or its buckets.
#[derive(Debug)]
pub struct Limit {
    ir: ir::RateLimit,
    /// Nanoseconds that a token is worth.
    step: u64,
    /// What a full bucket is worth.
    full: u64,
    keys: Vec<Key>,
    all: AtomicU64,
    buckets: Mutex<Buckets>,
}

/// The buckets of a limit with keys.
#[derive(Debug, Default)]
struct Buckets {
    until: HashMap<Bucket, u64>,
    /// Idle ones are not looked for before this time.
    again: u64,
    #[cfg(test)]
    sweeps: usize,
}

impl Buckets {
    /// The bucket of this name, or the one that is shared by those for which there is no room.
    fn find(&mut self, bucket: Bucket, now: u64) -> &mut u64 {
        let is_new = !self.until.contains_key(&bucket);
        if is_new && self.until.len() >= limits::LIMIT_VALUES && now >= self.again {
            self.sweep(now);
        }
        let is_beyond = is_new && self.until.len() >= limits::LIMIT_VALUES;
        self.until.entry(if is_beyond { BEYOND } else { bucket }).or_insert(0)
    }

    /// Forgets idle ones.
    fn sweep(&mut self, now: u64) {
        self.until.retain(|_, until| *until > now);
        if self.until.len() > limits::LIMIT_VALUES / 2 {
            self.again = now.saturating_add(AGAIN);
        }
        #[cfg(test)]
        {
            self.sweeps += 1;
        }
    }
}

/// There is no token.
#[derive(Debug, PartialEq, Eq)]
pub struct Over {
    /// Tokens of a full bucket.
    pub limit: u32,
    /// When there is a token again.
    pub after: Duration,
}

/// The limits of a service's routes, to be taken over where nothing has changed: a bucket does not fill because another rule changes.
#[derive(Debug, Default)]
pub struct Limits(HashMap<String, Arc<Limit>>);

impl Limits {
    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The limit of this name, that of `old` if it is the same.
    pub fn take_over(&mut self, old: Option<&Limits>, l: &ir::RateLimit) -> Arc<Limit> {
        let same = |x: &&Arc<Limit>| x.ir == *l;
        let known = self.0.get(&l.name).or_else(|| old?.0.get(&l.name)).filter(same).cloned();
        let one = known.unwrap_or_else(|| Arc::new(Limit::new(l)));
        self.0.insert(l.name.clone(), one.clone());
        one
    }
}

/// Nanoseconds since the process began.
pub fn now() -> u64 {
    clock::elapsed().as_nanos() as u64
}

impl Limit {
    fn new(limit: &ir::RateLimit) -> Self {
        let step = (limit.per_ms.saturating_mul(1_000_000) / u64::from(limit.requests.max(1))).max(1);
        Self {
            ir: limit.clone(),
            step,
            full: step.saturating_mul(u64::from(limit.burst.max(1))),
            keys: Key::all(limit),
            all: AtomicU64::new(0),
            buckets: Mutex::default(),
        }
    }

    /// What it was made of.
    pub fn rule(&self) -> &ir::RateLimit {
        &self.ir
    }

    /// What tells its buckets apart; nothing: it has one.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// How fast its buckets fill, and what they hold.
    pub fn rate(&self) -> Rate {
        Rate { step: self.step, full: self.full }
    }

    /// What the names of its buckets begin with. Of one that is shared they are names among all limits, and a limit that has changed
    /// begins anew, as a local one does.
    pub fn name(&self) -> BucketHash {
        let mut name = BucketHash::default();
        if !self.ir.shared.is_empty() {
            name.value(self.ir.shared.as_bytes());
            name.value(&self.step.to_be_bytes());
            name.value(&self.full.to_be_bytes());
        }
        name
    }

    /// Takes a token at this time, from this bucket if there are several.
    ///
    /// # Errors
    /// If there is none.
    pub fn take(&self, now: u64, bucket: impl FnOnce() -> Bucket) -> Result<(), Over> {
        if !self.keys.is_empty() {
            let bucket = bucket();
            let mut all = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
            let until = all.find(bucket, now);
            *until = self.next(*until, now)?;
            return Ok(());
        }
        let mut until = self.all.load(Relaxed);
        loop {
            let next = self.next(until, now)?;
            match self.all.compare_exchange_weak(until, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => until = other,
            }
        }
    }

    /// Until when tokens are spent after one more.
    fn next(&self, until: u64, now: u64) -> Result<u64, Over> {
        let next = until.max(now).saturating_add(self.step);
        let spent = next - now;
        if spent > self.full {
            return Err(Over { limit: self.ir.burst, after: Duration::from_nanos(spent - self.full) });
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    const S: u64 = 1_000_000_000;

    fn limit(requests: u32, per_ms: u64, burst: u32, by_caller: bool) -> ir::RateLimit {
        ir::RateLimit { name: "n".into(), requests, per_ms, burst, by_caller, ..Default::default() }
    }

    fn of(who: &str) -> Bucket {
        let mut hash = BucketHash::default();
        hash.value(who.as_bytes());
        hash.finish()
    }

    fn any() -> Bucket {
        BEYOND
    }

    #[test]
    fn a_bucket_empties_and_fills() {
        let l = Limit::new(&limit(10, 1000, 20, false));
        let taken = |t: u64, n: usize| (0..n).filter(|_| l.take(t, any).is_ok()).count();
        assert_eq!(taken(5 * S, 100), 20, "full at the beginning");
        assert_eq!(taken(5 * S + S / 2, 100), 5, "half a second later");
        assert_eq!(l.take(5 * S + S / 2, any), Err(Over { limit: 20, after: Duration::from_millis(100) }));
        assert_eq!(taken(60 * S, 100), 20, "it holds no more");
    }

    #[test]
    fn callers_have_their_own() {
        let l = Limit::new(&limit(2, 1000, 2, true));
        let taken = |who: &str| (0..5).filter(|_| l.take(S, || of(who)).is_ok()).count();
        assert_eq!((taken("a"), taken("b"), taken("a")), (2, 2, 0));
        for i in 0..limits::LIMIT_VALUES {
            let _ = l.take(S, || of(&format!("x{i}")));
        }
        assert!(l.buckets.lock().unwrap().until.len() <= limits::LIMIT_VALUES + 1);
        assert_eq!(taken("who comes late"), 0, "those share one, which is empty by now");
        let _ = l.take(100 * S, || of("y"));
        assert!(l.buckets.lock().unwrap().until.len() < 3, "idle ones are forgotten");
    }

    #[test]
    fn a_flood_of_new_values_has_not_all_buckets_looked_at_for_each() {
        let l = Limit::new(&limit(1, 3_600_000, 1, true));
        let sweeps = || l.buckets.lock().unwrap().sweeps;
        for (now, wanted) in [(S, 1), (S + AGAIN, 2)] {
            for i in 0..limits::LIMIT_VALUES + 1000 {
                let _ = l.take(now, || of(&format!("{now} {i}")));
            }
            assert_eq!(sweeps(), wanted);
        }
        // Where many are idle, there is room at once.
        for hours in [3, 6] {
            let now = hours * 3600 * S;
            assert!((0..=limits::LIMIT_VALUES).all(|i| l.take(now, || of(&format!("{hours} {i}"))).is_ok()));
        }
    }

    /// Or who was refused for an hour would be by the limit of a second that has taken its place.
    #[test]
    fn a_shared_limit_that_has_changed_has_other_buckets() {
        let name = |requests, per_ms, shared: &str| {
            let rule = ir::RateLimit { shared: shared.into(), ..limit(requests, per_ms, requests, false) };
            Limit::new(&rule).name().finish()
        };
        let all =
            [name(1, 3_600_000, "f"), name(1, 1000, "f"), name(2, 1000, "f"), name(1, 1000, "g"), name(1, 1000, "")];
        for (i, one) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|other| other != one), "{i}");
        }
        assert_eq!(name(1, 1000, "f"), all[1]);
        assert_eq!(name(5, 50, ""), all[4], "of a local one the limit itself is another");
    }

    #[test]
    fn a_change_elsewhere_does_not_fill_it() {
        let (mut a, mut b) = (Limits::default(), Limits::default());
        let taken = |b: &mut Limits, a: Option<&Limits>, l: &ir::RateLimit| b.take_over(a, l).take(S, any).is_ok();
        let same = limit(1, 1000, 1, false);
        assert!(taken(&mut a, None, &same));
        assert!(!taken(&mut b, Some(&a), &same));
        assert!(taken(&mut b, Some(&a), &ir::RateLimit { name: "other".into(), ..same }));
        assert!(taken(&mut Limits::default(), Some(&b), &limit(5, 1000, 5, false)), "a new limit");
    }
}
