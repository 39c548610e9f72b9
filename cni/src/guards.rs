//! Which devices of a pod are guarded, which are to be, and when what failed is tried again. The decision alone,
//! without I/O and without a clock.
//!
//! What must always hold: a device counts as guarded only if it was said to be, and no longer than it is there under
//! the same index and name. What fails is tried again for as long as the device is there, at the next change and by
//! time, ever less often.

use karst_ebpf::net::Device;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// After a failure the device is let alone this long, whatever changes: loading programs costs the node, and a pod
/// makes changes.
const LEAST: Duration = Duration::from_millis(100);
/// Without a change it is tried again after [`LEAST`], then after twice that, and so on up to this.
const MOST: Duration = Duration::from_secs(30);

/// What is known of one pod's devices.
pub struct Guards(BTreeMap<Device, State>);

#[derive(Debug)]
enum State {
    /// It has come.
    New,
    /// Since when; not known of what the enrolment has guarded.
    Guarded(Option<Instant>),
    /// It has lost its guard, and gets it again at this time; at once, if that is not known.
    Lost(Option<Instant>),
    Failing {
        times: u32,
        last: Instant,
        next: Instant,
    },
}

/// What is to be said of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It is guarded now.
    Guarded,
    /// It had lost its guard, and has it again.
    Restored,
    /// It cannot be guarded; it could before, or was never tried.
    Failed,
    /// It still cannot be guarded. Nothing is said of it again.
    StillFailed,
}

impl Guards {
    /// Begins with what the enrolment has guarded.
    pub fn new(guarded: Vec<Device>) -> Self {
        Self(guarded.into_iter().map(|d| (d, State::Guarded(None))).collect())
    }

    /// Takes up which devices are to be guarded, and which of them have lost their guard. What is not there any more
    /// is forgotten.
    pub fn seen(&mut self, devices: &[Device], lost: &[Device]) {
        self.0.retain(|device, _| devices.contains(device));
        for device in devices {
            let state = self.0.entry(device.clone()).or_insert(State::New);
            // Who takes it off again and again does not keep the node busy.
            if let State::Guarded(since) = state
                && lost.contains(device)
            {
                *state = State::Lost(since.map(|since| since + LEAST));
            }
        }
    }

    /// Something has changed in the pod's network: what failed may do now.
    pub fn changed(&mut self) {
        for state in self.0.values_mut() {
            if let State::Failing { last, next, .. } = state {
                *next = (*next).min(*last + LEAST);
            }
        }
    }

    /// The devices that are to be guarded now.
    pub fn due(&self, now: Instant) -> Vec<Device> {
        let due = self.0.iter().filter(|(_, state)| match state {
            State::New => true,
            State::Guarded(_) => false,
            State::Lost(next) => next.is_none_or(|next| next <= now),
            State::Failing { next, .. } => *next <= now,
        });
        due.map(|(d, _)| d.clone()).collect()
    }

    /// Notes what came of an attempt.
    pub fn tried(&mut self, device: &Device, guarded: bool, now: Instant) -> News {
        let before = match self.0.get(device) {
            Some(State::Failing { times, .. }) => *times,
            Some(State::New | State::Guarded(_) | State::Lost(_)) | None => 0,
        };
        let was_lost = matches!(self.0.get(device), Some(State::Lost(_)));
        let (state, news) = if guarded {
            (State::Guarded(Some(now)), if was_lost { News::Restored } else { News::Guarded })
        } else {
            let wait = LEAST.saturating_mul(1 << before.min(16)).min(MOST);
            let news = if before == 0 { News::Failed } else { News::StillFailed };
            (State::Failing { times: before.saturating_add(1), last: now, next: now + wait }, news)
        };
        self.0.insert(device.clone(), state);
        news
    }

    /// When something is to be tried again, if nothing changes before.
    pub fn next(&self) -> Option<Instant> {
        let times = self.0.values().filter_map(|state| match state {
            State::Failing { next, .. } => Some(*next),
            State::Lost(next) => *next,
            State::New | State::Guarded(_) => None,
        });
        times.min()
    }

    /// How many devices cannot be guarded.
    pub fn failing(&self) -> usize {
        self.0.values().filter(|state| matches!(state, State::Failing { .. })).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, name: &str) -> Device {
        Device { index, name: name.into() }
    }

    #[test]
    fn what_the_enrolment_has_guarded_is_not_guarded_again_and_what_came_since_is() {
        let (eth0, eth1) = (device(2, "eth0"), device(3, "eth1"));
        let mut g = Guards::new(vec![eth0.clone()]);
        let now = Instant::now();
        g.seen(std::slice::from_ref(&eth0), &[]);
        assert_eq!(g.due(now), []);
        g.seen(&[eth0, eth1.clone()], &[]);
        assert_eq!(g.due(now), std::slice::from_ref(&eth1));
        assert_eq!(g.tried(&eth1, true, now), News::Guarded);
        assert_eq!((g.due(now), g.next(), g.failing()), (vec![], None, 0));
    }

    #[test]
    fn a_device_made_anew_under_the_same_name_is_another_one() {
        let now = Instant::now();
        let (before, after) = (device(3, "eth1"), device(4, "eth1"));
        let mut g = Guards::new(vec![before]);
        // Nobody has seen it go.
        g.seen(std::slice::from_ref(&after), &[]);
        assert_eq!(g.due(now), [after]);
        // And one that has another name is looked at again.
        let renamed = device(4, "eth2");
        g.seen(std::slice::from_ref(&renamed), &[]);
        assert_eq!(g.due(now), [renamed]);
    }

    #[test]
    fn one_that_has_lost_its_guard_or_was_gone_is_guarded_again() {
        let now = Instant::now();
        let eth1 = device(3, "eth1");
        let mut g = Guards::new(vec![eth1.clone()]);
        g.seen(std::slice::from_ref(&eth1), std::slice::from_ref(&eth1));
        assert_eq!(g.due(now), std::slice::from_ref(&eth1));
        assert_eq!(g.tried(&eth1, true, now), News::Restored, "it is no new device");
        // Once more, and soon: not as often as somebody likes to take it off.
        g.seen(std::slice::from_ref(&eth1), std::slice::from_ref(&eth1));
        assert_eq!((g.due(now), g.next()), (vec![], Some(now + LEAST)));
        assert_eq!(g.due(now + LEAST), std::slice::from_ref(&eth1));
        assert_eq!(g.tried(&eth1, true, now + LEAST), News::Restored);
        g.seen(&[], &[]);
        g.seen(std::slice::from_ref(&eth1), &[]);
        assert_eq!(g.due(now), [eth1]);
    }

    #[test]
    fn what_failed_is_not_guarded_is_said_once_and_is_tried_again_ever_less_often() {
        let eth1 = device(3, "eth1");
        let mut g = Guards::new(vec![]);
        g.seen(std::slice::from_ref(&eth1), &[]);
        let mut now = Instant::now();
        assert_eq!(g.tried(&eth1, false, now), News::Failed);
        let mut waits = vec![];
        for _ in 0..12 {
            // Seen again as it is: that makes nothing of it.
            g.seen(std::slice::from_ref(&eth1), &[]);
            let next = g.next().expect("it is tried again");
            assert_eq!(g.due(next.checked_sub(Duration::from_millis(1)).unwrap()), []);
            assert_eq!(g.due(next), std::slice::from_ref(&eth1));
            waits.push(next - now);
            now = next;
            assert_eq!((g.tried(&eth1, false, now), g.failing()), (News::StillFailed, 1));
        }
        assert_eq!(waits[..4], [1, 2, 4, 8].map(|n| LEAST * n));
        assert_eq!(waits[9..], [MOST; 3]);
        assert_eq!(g.tried(&eth1, true, now), News::Guarded);
        assert_eq!((g.due(now + MOST), g.next(), g.failing()), (vec![], None, 0));
        // It fails another time: that is news.
        g.seen(std::slice::from_ref(&eth1), std::slice::from_ref(&eth1));
        assert_eq!(g.tried(&eth1, false, now), News::Failed);
    }

    #[test]
    fn a_change_brings_the_next_attempt_forward_and_many_changes_do_not_bring_many() {
        let eth1 = device(3, "eth1");
        let mut g = Guards::new(vec![]);
        g.seen(std::slice::from_ref(&eth1), &[]);
        let start = Instant::now();
        let mut now = start;
        for _ in 0..20 {
            g.tried(&eth1, false, now);
            now += MOST;
        }
        let mut tries = 0;
        let (start, mut now) = (now, now);
        while now < start + Duration::from_secs(1) {
            g.changed();
            if !g.due(now).is_empty() {
                tries += 1;
                g.tried(&eth1, false, now);
            }
            now += Duration::from_millis(10);
        }
        assert_eq!(tries, 10, "a second of changes, an attempt each {LEAST:?}");
    }

    #[test]
    fn one_that_fails_keeps_no_other_back_and_is_forgotten_when_it_goes() {
        let now = Instant::now();
        let (eth1, eth2) = (device(3, "eth1"), device(4, "eth2"));
        let mut g = Guards::new(vec![]);
        g.seen(&[eth1.clone(), eth2.clone()], &[]);
        g.tried(&eth1, false, now);
        assert_eq!(g.due(now), std::slice::from_ref(&eth2));
        g.tried(&eth2, true, now);
        g.seen(&[eth2], &[]);
        assert_eq!((g.next(), g.failing()), (None, 0));
        // The next one of that name begins anew.
        g.seen(std::slice::from_ref(&eth1), &[]);
        assert_eq!(g.tried(&eth1, false, now), News::Failed);
    }
}
