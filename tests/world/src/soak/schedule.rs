//! When which fault comes: made from a seed, which replays it.
//!
//! What must always hold: the same seed and length give the same schedule; faults that exclude each other do not meet, and no more
//! than [`AT_ONCE`] go on at a time; every fault has ended before [`QUIET`] is left.

use super::faults::{Clock, Fault, KINDS};
use std::{collections::VecDeque, ops::RangeInclusive, time::Duration};

/// So many faults go on at a time, at most.
pub const AT_ONCE: usize = 5;
/// Nothing happens for so long at the start and at the end: it is seen what the mesh does by itself.
pub const QUIET: Duration = Duration::from_secs(15);
/// The shortest run that has room for faults.
pub const SHORTEST: Duration = Duration::from_secs(120);
/// A fault comes so many milliseconds after the one before.
const GAP: RangeInclusive<u64> = 1_200..=3_600;
/// Clocks are wrong by so much, milliseconds: less than what a certificate of 20 s has left when it is renewed.
const STEP: RangeInclusive<u64> = 500..=3_000;

/// A fault that is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What.
    pub fault: Fault,
    /// When, counted from the start of the run.
    pub at: Duration,
    /// How long it lasts.
    pub lasts: Duration,
}

impl Planned {
    /// When what it has taken is free again, as planned.
    pub fn free(&self) -> Duration {
        self.at + self.fault.holds(self.lasts)
    }
}

/// Random numbers that are the same on every machine and with every release (splitmix64).
pub struct Dice(u64);

impl Dice {
    /// Begins with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number within a range, which is not all of u64.
    pub fn within(&mut self, range: &RangeInclusive<u64>) -> u64 {
        range.start() + self.roll() % (range.end() - range.start() + 1)
    }
}

/// The schedule of a run of this length. Kinds that wait longest come first, so that each comes about as often as its parts allow.
pub fn schedule(seed: u64, length: Duration) -> Vec<Planned> {
    let mut dice = Dice::new(seed);
    let mut plan: Vec<Planned> = Vec::new();
    let mut waiting: VecDeque<Fault> = VecDeque::new();
    let mut at = QUIET;
    let last = length.saturating_sub(QUIET);
    while at < last {
        if waiting.len() < KINDS.len() / 2 {
            refill(&mut waiting, &mut dice);
        }
        if let Some(next) = fitting(&plan, &waiting, at) {
            let fault = drawn(waiting.remove(next).unwrap_or(Fault::ChurnPolicy), &mut dice);
            let lasts = Duration::from_millis(dice.within(&fault.lasts()));
            let planned = Planned { fault, at, lasts };
            if planned.free() <= last {
                plan.push(planned);
            }
        }
        at += Duration::from_millis(dice.within(&GAP));
    }
    plan
}

/// Adds the kinds that do not wait already, in an order of their own.
fn refill(waiting: &mut VecDeque<Fault>, dice: &mut Dice) {
    let mut new: Vec<Fault> = KINDS.into_iter().filter(|kind| !waiting.contains(kind)).collect();
    for i in (1..new.len()).rev() {
        new.swap(i, dice.within(&(0..=i as u64)) as usize);
    }
    waiting.extend(new);
}

/// The place of the first that may come now.
fn fitting(plan: &[Planned], waiting: &VecDeque<Fault>, at: Duration) -> Option<usize> {
    let held: Vec<Fault> = plan.iter().filter(|p| p.free() > at).map(|p| p.fault).collect();
    let going = plan.iter().filter(|p| p.free() - p.fault.rest() > at).count();
    let may = |fault: &Fault| going < AT_ONCE && !held.iter().any(|other| other.excludes(*fault));
    waiting.iter().position(may)
}

/// A kind with what is left to chance.
fn drawn(kind: Fault, dice: &mut Dice) -> Fault {
    match kind {
        Fault::ChurnRoute(_) => Fault::ChurnRoute(dice.within(&(0..=100)) as u8),
        Fault::StepClock(clock, _) => {
            let (forward, node) = (dice.roll().is_multiple_of(2), (dice.roll() % 2) as usize);
            let by = dice.within(&STEP) as i16;
            let clock = if clock == Clock::Controller { clock } else { Clock::Node(node) };
            Fault::StepClock(clock, if forward { by } else { -by })
        }
        other => other,
    }
}
