//! The decisions of a soak (`cargo xtask soak`): its schedule, what faults excuse, and whether memory is flat. Needs no world.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_world::soak::{
    faults::{Clock, Fault, KINDS},
    judge::{Call, Failure, PLACES, Place, Window, excuse},
    schedule::{AT_ONCE, Dice, Planned, QUIET, SHORTEST, schedule},
    slope::fit,
};
use std::{collections::BTreeSet, mem::discriminant, time::Duration};

const CI: Duration = Duration::from_secs(300);
const WHOLE: Duration = Duration::from_secs(3600);

fn secs(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

#[test]
fn a_seed_replays_its_schedule_and_another_does_not() {
    for seed in 0..20 {
        assert_eq!(schedule(seed, CI), schedule(seed, CI));
        assert_ne!(schedule(seed, CI), schedule(seed + 1, CI));
    }
    // Nor may a release of ours change what a seed that was reported means: splitmix64's own figures for the seed 0.
    let mut dice = Dice::new(0);
    assert_eq!((dice.roll(), dice.roll()), (0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4));
}

#[test]
fn a_schedule_overlaps_within_its_bounds() {
    for (seed, length) in (0..60).map(|seed| (seed, CI)).chain([(1, WHOLE), (2, SHORTEST)]) {
        let plan = schedule(seed, length);
        let going = |at: Duration| plan.iter().filter(|p| p.at <= at && at < p.free() - p.fault.rest()).count();
        let most = plan.iter().map(|p| going(p.at)).max().unwrap();
        assert!(most <= AT_ONCE, "seed {seed}: {most} at a time");
        assert!(length == SHORTEST || most >= 3, "seed {seed}: faults are to be on top of each other, and {most} are");
        for (i, a) in plan.iter().enumerate() {
            assert!(a.at >= QUIET && a.free() <= length - QUIET, "seed {seed}: {a:?} has not ended");
            assert!(a.fault.lasts().contains(&(a.lasts.as_millis() as u64)), "{a:?}");
            let meets = |b: &&Planned| a.fault.excludes(b.fault) && b.at < a.free();
            assert_eq!(plan[i + 1..].iter().find(meets), None, "seed {seed}: meets {a:?}");
        }
        assert!(plan.is_sorted_by_key(|p| p.at), "seed {seed}");
    }
}

#[test]
fn every_kind_of_fault_comes_also_in_five_minutes() {
    let kinds = |plan: &[Planned]| plan.iter().map(|p| p.fault.kind()).collect::<BTreeSet<_>>();
    let all: BTreeSet<_> = KINDS.iter().map(|fault| fault.kind()).collect();
    for seed in 0..60 {
        assert_eq!(kinds(&schedule(seed, CI)), all, "seed {seed}");
    }
    let plan = schedule(7, WHOLE);
    for kind in all {
        let count = plan.iter().filter(|p| p.fault.kind() == kind).count();
        assert!(count >= 20, "{kind}: only {count} in an hour");
    }
}

#[test]
fn faults_of_one_part_exclude_each_other() {
    for (a, b, apart) in [
        (Fault::RollZtunnel(0), Fault::KillWorker(0), true),
        (Fault::RollZtunnel(0), Fault::KillWorker(1), false),
        (Fault::KillController, Fault::PauseController, true),
        (Fault::LoseNode, Fault::PauseController, true),
        (Fault::RollWaypoint, Fault::PauseController, true),
        (Fault::RollWaypoint, Fault::RollGateway, false),
        (Fault::StepClock(Clock::Node(0), 1), Fault::KillController, true),
        (Fault::KillWorker(0), Fault::PauseController, false),
        (Fault::FillDisk, Fault::KillAgent(0), false),
        (Fault::StallApi, Fault::RollWaypoint, true),
        (Fault::StallApi, Fault::KillController, false),
        (Fault::StallApi, Fault::ChurnPod(0), false),
    ] {
        assert_eq!((a.excludes(b), b.excludes(a)), (apart, apart), "{a} and {b}");
    }
    for kind in KINDS {
        assert!(kind.excludes(kind), "{kind} takes nothing");
    }
    for (i, a) in KINDS.iter().enumerate() {
        assert!(!KINDS[i + 1..].contains(a), "{a:?} is there twice");
    }
    // A fault that is forgotten in the table never comes.
    let named: BTreeSet<_> = KINDS.iter().map(|kind| format!("{:?}", discriminant(kind))).collect();
    assert_eq!(named.len(), 15);
}

fn call(place: Place, failure: Failure, began: f64, ended: f64) -> Call {
    Call { place, failure, began: secs(began), ended: secs(ended), text: String::new() }
}

fn is_excused(fault: Fault, (from, to): (f64, f64), call: &Call) -> bool {
    excuse(call, &[Window { fault, from: secs(from), to: Some(secs(to)) }]).is_some()
}

#[test]
fn a_killed_worker_excuses_what_it_carried_and_nothing_else() {
    let at = |place, failure, began, ended| {
        is_excused(Fault::KillWorker(1), (100.0, 100.2), &call(place, failure, began, ended))
    };
    for place in [Place::OtherNode, Place::Service, Place::HeldOther] {
        assert!(at(place, Failure::Cut, 99.9, 100.1), "{place}");
        assert!(!at(place, Failure::Refused, 99.9, 100.1), "{place}: nobody is refused");
        assert!(!at(place, Failure::Late, 99.9, 110.0), "{place}: nobody waits in vain");
        assert!(!at(place, Failure::Cut, 98.0, 99.0), "{place}: before");
        assert!(!at(place, Failure::Cut, 102.0, 103.0), "{place}: after");
    }
    // However long it takes until the spare serves: what begins after the kill waits for it.
    let late = call(Place::OtherNode, Failure::Cut, 102.0, 103.0);
    assert!(!is_excused(Fault::KillWorker(1), (100.0, 104.0), &late));
    for place in [Place::SameNode, Place::HeldSame, Place::CalmNode, Place::CalmWaypoint] {
        assert!(!at(place, Failure::Cut, 99.9, 100.1), "{place} does not pass node 1");
    }
    assert!(at(Place::Waypoint, Failure::Status(503), 99.9, 100.1));
    assert!(!at(Place::Waypoint, Failure::Status(404), 99.9, 100.1), "a route was lost");
    assert!(!at(Place::Gateway, Failure::Status(500), 99.9, 100.1));
}

#[test]
fn a_lost_node_excuses_what_needs_it() {
    let at =
        |place, failure, began, ended| is_excused(Fault::LoseNode, (100.0, 108.0), &call(place, failure, began, ended));
    assert!(at(Place::OtherNode, Failure::Late, 104.0, 114.0));
    assert!(at(Place::HeldOther, Failure::Cut, 99.0, 120.0));
    assert!(at(Place::NewPod(1), Failure::Late, 104.0, 114.0));
    assert!(!at(Place::NewPod(0), Failure::Late, 104.0, 114.0));
    assert!(at(Place::Service, Failure::Late, 99.9, 110.0), "it was on its way to the lost node");
    assert!(!at(Place::Service, Failure::Late, 101.0, 111.0), "there is another endpoint");
    for place in [Place::SameNode, Place::HeldSame, Place::CalmNode, Place::CalmWaypoint] {
        assert!(!at(place, Failure::Late, 99.0, 110.0), "{place}");
    }
    assert!(at(Place::Gateway, Failure::Status(503), 104.0, 105.0));
    assert!(!at(Place::Gateway, Failure::Status(404), 104.0, 105.0));
    assert!(!at(Place::OtherNode, Failure::Late, 129.0, 139.0), "by then it is long back");
}

#[test]
fn who_is_away_excuses_only_what_is_new() {
    for (fault, node) in [
        (Fault::PauseController, 0),
        (Fault::KillController, 1),
        (Fault::RollController, 2),
        (Fault::FillDisk, 0),
        (Fault::KillAgent(1), 1),
    ] {
        assert!(is_excused(fault, (100.0, 103.0), &call(Place::NewPod(node), Failure::Late, 101.0, 111.0)), "{fault}");
        assert!(!is_excused(fault, (100.0, 103.0), &call(Place::NewPod(node), Failure::Late, 120.0, 130.0)), "{fault}");
        for place in PLACES {
            assert!(!is_excused(fault, (100.0, 103.0), &call(place, Failure::Cut, 101.0, 102.0)), "{fault}: {place}");
        }
    }
    assert!(!is_excused(Fault::KillAgent(1), (0.0, 9.0), &call(Place::NewPod(0), Failure::Late, 1.0, 2.0)));
}

#[test]
fn rollouts_and_changes_excuse_nothing_and_wrong_bytes_are_never_excused() {
    let places = PLACES.into_iter().chain([Place::NewPod(0), Place::NewPod(1)]);
    for place in places {
        for kind in KINDS {
            let wrong = call(place, Failure::Wrong, 5.0, 6.0);
            assert!(!is_excused(kind, (0.0, 10.0), &wrong), "{kind}: {place}");
        }
        for fault in [
            Fault::RollZtunnel(0),
            Fault::RollWaypoint,
            Fault::RollGateway,
            Fault::ChurnPod(0),
            Fault::ChurnPolicy,
            Fault::ChurnRoute(1),
            Fault::StepClock(Clock::Node(0), 1000),
            Fault::StallApi,
        ] {
            for failure in [Failure::Cut, Failure::Late, Failure::Refused, Failure::Status(503)] {
                assert!(!is_excused(fault, (0.0, 10.0), &call(place, failure, 5.0, 6.0)), "{fault}: {place}");
            }
        }
    }
}

#[test]
fn a_kept_connection_ends_only_by_what_ends_its_proxies() {
    let at = |fault, place| is_excused(fault, (100.0, 102.0), &call(place, Failure::Ended, 101.0, 101.1));
    for (fault, place) in [
        (Fault::RollWaypoint, Place::Waypoint),
        (Fault::RollGateway, Place::Gateway),
        (Fault::RollZtunnel(0), Place::Waypoint),
        (Fault::RollZtunnel(0), Place::CalmWaypoint),
        (Fault::LoseNode, Place::Gateway),
    ] {
        assert!(at(fault, place), "{fault}: {place}");
    }
    for (fault, place) in [
        (Fault::RollWaypoint, Place::Gateway),
        (Fault::RollGateway, Place::Waypoint),
        (Fault::RollZtunnel(1), Place::CalmWaypoint),
        (Fault::ChurnRoute(50), Place::Waypoint),
        (Fault::ChurnPolicy, Place::CalmWaypoint),
        (Fault::StepClock(Clock::Node(0), 1000), Place::Waypoint),
        (Fault::KillController, Place::Gateway),
        (Fault::KillAgent(0), Place::Waypoint),
        (Fault::LoseNode, Place::CalmWaypoint),
    ] {
        assert!(!at(fault, place), "{fault}: {place}");
    }
    let before = call(Place::Waypoint, Failure::Ended, 98.0, 99.0);
    assert!(!is_excused(Fault::RollWaypoint, (100.0, 102.0), &before));
}

#[test]
fn a_fault_that_goes_on_excuses_until_now() {
    let window = Window { fault: Fault::LoseNode, from: secs(100.0), to: None };
    assert!(excuse(&call(Place::OtherNode, Failure::Late, 150.0, 160.0), &[window]).is_some());
    assert!(excuse(&call(Place::OtherNode, Failure::Late, 80.0, 90.0), &[window]).is_none());
}

/// An hour of samples, one in five seconds: a base, so much more in that hour, and noise of the allocator.
fn hour(base: f64, growth: f64, noise: f64) -> Vec<(f64, f64)> {
    let mut dice = Dice::new(11);
    let mut one = |i: u32| {
        let x = f64::from(i) * 5.0;
        let by_chance = (dice.roll() % 1000) as f64 / 1000.0 - 0.5;
        (x, base + growth * x / 3600.0 + noise * by_chance)
    };
    (0..=720).map(&mut one).collect()
}

#[test]
fn a_leak_is_seen_and_noise_is_not() {
    for (growth, noise, flat) in
        [(0.0, 0.0, true), (0.0, 6.0, true), (-9.0, 1.0, true), (1.0, 2.0, true), (4.0, 2.0, false), (20.0, 6.0, false)]
    {
        let line = fit(&hour(20.0, growth, noise)).unwrap();
        assert!((line.growth - growth).abs() < 0.5 + noise / 4.0, "{growth}: {line:?}");
        assert_eq!(line.is_flat(), flat, "{growth} MiB beside noise of {noise}: {line:?}, bound {}", line.bound());
    }
    assert_eq!(fit(&[]), None);
    assert_eq!(fit(&[(1.0, 1.0), (2.0, 1.0)]), None, "two samples are always on a line");
    assert_eq!(fit(&[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)]), None, "all at one time");
}
