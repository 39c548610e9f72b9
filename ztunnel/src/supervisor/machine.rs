//! What a supervisor does about what becomes of its processes. Pure: every order of events can be tried.
//!
//! What must always hold: at most one process serves, and at most one stands by; one that stands by is told to serve when none
//! does, and never else; open connections go on only after a kill, and once in a while; whoever is told to stop starts nothing any
//! more; and there is always something to wait for. Proven by the tests below, with random events.

use std::time::Duration;

/// A spare is started this long after a process has begun to serve, which needs the CPU more.
const SPARE_AFTER: Duration = Duration::from_millis(250);
/// Spares that do not last are started ever later, at most after this time.
const SPARE_CAP: Duration = Duration::from_secs(60);
/// A spare that ends before this time has not lasted.
const SPARE_LASTS: Duration = Duration::from_secs(10);
/// A worker that ends before this time has not lasted. (Short: one that is killed every other second is replaced for ever, which is
/// better for connections than kubelet's back-off of 10 s to 5 min.)
const WORKER_LASTS: Duration = Duration::from_secs(1);
/// After so many workers in a row that have not lasted the supervisor ends, and kubelet's back-off begins.
const GIVE_UP: u32 = 5;
/// Pause before a worker that no spare can replace, if the last one has not lasted; twice that after two, and so on.
const PAUSE: Duration = Duration::from_millis(100);
/// And at most.
const PAUSE_CAP: Duration = Duration::from_secs(2);

/// The signal that kills a process without a fault of its own: sent by somebody, or by the kernel for want of memory. After any other
/// end its memory may be wrong, or a connection's bytes may be what has ended it, and would do so again.
const KILLED: i32 = 9;
/// Open connections do not go on if another worker has crashed within this time, for the same reason.
const GOES_ON_AFTER: Duration = Duration::from_secs(10);

/// Number of a process that was started; never used again.
pub type Id = u64;

/// How a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It could not be started.
    NotStarted,
}

impl End {
    /// The exit code that says so, as a shell has it.
    fn code(self) -> u8 {
        match self {
            Self::Code(code) => u8::try_from(code).unwrap_or(1),
            Self::Signal(number) => u8::try_from(number).map_or(u8::MAX, |number| number.saturating_add(128)),
            Self::NotStarted => 1,
        }
    }
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A process has ended.
    Ended(Id, End),
    /// All are to end.
    Stop,
    /// Time has passed.
    Time,
}

/// What a process is started as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It serves at once.
    Worker {
        /// How many workers have crashed before.
        crashes: u32,
    },
    /// It stands by.
    Spare,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a process.
    Start(Id, Role),
    /// Tell a spare to serve.
    Activate {
        /// Which.
        id: Id,
        /// How many workers have crashed before.
        crashes: u32,
        /// May open connections of the one before go on?
        goes_on: bool,
    },
    /// Tell a process to end.
    Terminate(Id),
    /// End, with this exit code; the last action.
    Exit(u8),
}

#[derive(Clone, Copy, Debug)]
struct Process {
    id: Id,
    /// Since when it has been what it is.
    since: Duration,
}

/// The state. Times are counted from any one moment.
#[derive(Debug)]
pub struct Machine {
    next: Id,
    worker: Option<Process>,
    spare: Option<Process>,
    /// When a worker is to be started; only while there is neither worker nor spare.
    worker_at: Option<Duration>,
    /// When a spare is to be started; only while there is a worker and no spare.
    spare_at: Option<Duration>,
    /// Workers that have crashed.
    crashes: u32,
    /// When the last one has.
    crashed_at: Option<Duration>,
    /// The last of these that have not lasted, in a row.
    short_workers: u32,
    /// The last spares that have not lasted, in a row.
    short_spares: u32,
    stopping: bool,
    ended: bool,
}

impl Machine {
    /// With nothing started yet: the first event begins.
    pub fn new() -> Self {
        Self {
            next: 0,
            worker: None,
            spare: None,
            worker_at: Some(Duration::ZERO),
            spare_at: None,
            crashes: 0,
            crashed_at: None,
            short_workers: 0,
            short_spares: 0,
            stopping: false,
            ended: false,
        }
    }

    /// Takes in an event of the time `now`.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.ended {
            return actions;
        }
        match event {
            Event::Ended(id, end) => {
                if let Some(worker) = self.worker.take_if(|process| process.id == id) {
                    self.worker_ended(now, worker, end, &mut actions);
                } else if let Some(spare) = self.spare.take_if(|process| process.id == id) {
                    self.spare_ended(now, spare);
                }
            }
            Event::Stop => self.stop(&mut actions),
            Event::Time => {}
        }
        self.start_due(now, &mut actions);
        actions
    }

    /// When [`Event::Time`] is to be told at the latest, if nothing else happens.
    pub fn wake_at(&self) -> Option<Duration> {
        [self.worker_at, self.spare_at].into_iter().flatten().min()
    }

    fn worker_ended(&mut self, now: Duration, worker: Process, end: End, actions: &mut Vec<Action>) {
        if self.stopping || end == End::Code(0) {
            // It was told to: by us, or on its admin page. Then all of the container ends, as it would without a supervisor.
            return self.exit(end.code(), actions);
        }
        self.crashes = self.crashes.saturating_add(1);
        let before = self.crashed_at.replace(now);
        let is_rare = before.is_none_or(|before| now.saturating_sub(before) >= GOES_ON_AFTER);
        let goes_on = is_rare && end == End::Signal(KILLED);
        self.short_workers = if now.saturating_sub(worker.since) < WORKER_LASTS { self.short_workers + 1 } else { 0 };
        if self.short_workers >= GIVE_UP {
            return self.exit(end.code(), actions);
        }
        match self.spare.take() {
            Some(spare) => {
                actions.push(Action::Activate { id: spare.id, crashes: self.crashes, goes_on });
                self.short_spares = 0;
                self.serves(spare.id, now);
            }
            None => {
                self.spare_at = None;
                self.worker_at = Some(now + pause(PAUSE, self.short_workers, PAUSE_CAP));
            }
        }
    }

    fn spare_ended(&mut self, now: Duration, spare: Process) {
        if self.stopping {
            return;
        }
        self.short_spares =
            if now.saturating_sub(spare.since) < SPARE_LASTS { self.short_spares.saturating_add(1) } else { 0 };
        self.spare_at = Some(now + pause(SPARE_AFTER, self.short_spares + 1, SPARE_CAP));
    }

    fn stop(&mut self, actions: &mut Vec<Action>) {
        self.stopping = true;
        (self.worker_at, self.spare_at) = (None, None);
        actions.extend(self.spare.take().map(|spare| Action::Terminate(spare.id)));
        match &self.worker {
            // Whoever is told twice is told twice.
            Some(worker) => actions.push(Action::Terminate(worker.id)),
            None => self.exit(0, actions),
        }
    }

    fn exit(&mut self, code: u8, actions: &mut Vec<Action>) {
        self.ended = true;
        (self.worker_at, self.spare_at) = (None, None);
        actions.extend(self.spare.take().map(|spare| Action::Terminate(spare.id)));
        actions.push(Action::Exit(code));
    }

    fn start_due(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.worker_at.take_if(|at| *at <= now).is_some() {
            let id = self.number();
            actions.push(Action::Start(id, Role::Worker { crashes: self.crashes }));
            self.serves(id, now);
        }
        if self.spare_at.take_if(|at| *at <= now).is_some() {
            let id = self.number();
            actions.push(Action::Start(id, Role::Spare));
            self.spare = Some(Process { id, since: now });
        }
    }

    fn serves(&mut self, id: Id, now: Duration) {
        self.worker = Some(Process { id, since: now });
        self.spare_at = Some(now + pause(SPARE_AFTER, self.short_spares + 1, SPARE_CAP));
    }

    fn number(&mut self) -> Id {
        self.next += 1;
        self.next
    }
}

/// None, then `first`, then twice that, and so on up to `cap`.
fn pause(first: Duration, step: u32, cap: Duration) -> Duration {
    match step {
        0 => Duration::ZERO,
        step => first.saturating_mul(1u32.checked_shl(step - 1).unwrap_or(u32::MAX)).min(cap),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};
    use std::collections::BTreeMap;

    const KILLED: End = End::Signal(super::KILLED);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// With a worker (1) since the beginning, and a spare (2) since [`SPARE_AFTER`].
    fn with_spare() -> Machine {
        let mut machine = Machine::new();
        let start = machine.step(ms(0), Event::Time);
        assert_eq!(start, [Action::Start(1, Role::Worker { crashes: 0 })]);
        assert_eq!(machine.wake_at(), Some(SPARE_AFTER), "the worker first");
        assert_eq!(machine.step(SPARE_AFTER, Event::Time), [Action::Start(2, Role::Spare)]);
        assert_eq!(machine.wake_at(), None);
        machine
    }

    #[test]
    fn a_spare_takes_over_at_once_and_has_one_itself() {
        let mut machine = with_spare();
        let taken = machine.step(ms(5000), Event::Ended(1, KILLED));
        assert_eq!(taken, [Action::Activate { id: 2, crashes: 1, goes_on: true }]);
        assert_eq!(machine.wake_at(), Some(ms(5250)));
        assert_eq!(machine.step(ms(5250), Event::Time), [Action::Start(3, Role::Spare)]);
        // Each second one, for as long as it takes: each has lasted.
        let mut now = ms(5250);
        for n in 3..200 {
            now += ms(1500);
            let worker = n - 1;
            let taken = machine.step(now, Event::Ended(worker, KILLED));
            let crashes = u32::try_from(worker).unwrap();
            assert_eq!(taken, [Action::Activate { id: n, crashes, goes_on: false }], "too often for open connections");
            now += SPARE_AFTER;
            assert_eq!(machine.step(now, Event::Time), [Action::Start(n + 1, Role::Spare)]);
        }
    }

    #[test]
    fn open_connections_go_on_after_a_kill_that_is_rare() {
        // What the last two ends are, and how much later the second one is.
        let goes_on = |first: End, second: End, later: Duration| {
            let mut machine = with_spare();
            let mut of = |now: Duration, id: Id, end: End| match machine.step(now, Event::Ended(id, end))[..] {
                [Action::Activate { goes_on, .. }] => {
                    machine.step(now + SPARE_AFTER, Event::Time);
                    goes_on
                }
                ref other => panic!("{other:?}"),
            };
            [of(ms(5000), 1, first), of(ms(5000) + later, 2, second)]
        };
        let soon = GOES_ON_AFTER - ms(1);
        assert_eq!(goes_on(KILLED, KILLED, GOES_ON_AFTER), [true, true]);
        assert_eq!(goes_on(KILLED, KILLED, soon), [true, false]);
        for other in [End::Code(101), End::Signal(11), End::Signal(6), End::NotStarted] {
            assert_eq!(goes_on(other, KILLED, GOES_ON_AFTER), [false, true], "{other:?}");
            assert_eq!(goes_on(other, KILLED, soon), [false, false], "{other:?}");
            assert_eq!(goes_on(KILLED, other, GOES_ON_AFTER), [true, false], "{other:?}");
        }
    }

    #[test]
    fn without_a_spare_a_worker_is_started_anew() {
        let mut machine = with_spare();
        assert!(machine.step(ms(5000), Event::Ended(2, KILLED)).is_empty());
        let started = machine.step(ms(5100), Event::Ended(1, KILLED));
        assert_eq!(started, [Action::Start(3, Role::Worker { crashes: 1 })]);
    }

    #[test]
    fn a_crash_loop_ends_with_the_last_ones_code() {
        let (mut machine, mut now, mut starts, mut exit) = (Machine::new(), Duration::ZERO, 0, None);
        let mut event = Event::Time;
        while exit.is_none() {
            let actions = machine.step(now, event);
            event = Event::Time;
            for action in actions {
                match action {
                    Action::Start(id, _) => {
                        starts += 1;
                        event = Event::Ended(id, End::Code(78));
                    }
                    Action::Exit(code) => exit = Some(code),
                    Action::Activate { .. } | Action::Terminate(_) => unreachable!("there was time for no spare"),
                }
            }
            if event == Event::Time && exit.is_none() {
                now = machine.wake_at().unwrap();
            }
        }
        assert_eq!((starts, exit), (GIVE_UP, Some(78)));
        assert!(now >= ms(700) && now < ms(3000), "with pauses in between: {now:?}");
        assert!(machine.step(now, Event::Stop).is_empty(), "that was the end");
    }

    #[test]
    fn spares_that_do_not_last_are_started_ever_later_and_end_nothing() {
        let (mut machine, mut now, mut id, mut last) = (with_spare(), SPARE_AFTER, 2, Duration::ZERO);
        for _ in 0..50 {
            assert!(machine.step(now, Event::Ended(id, End::Code(1))).is_empty());
            let at = machine.wake_at().unwrap();
            assert!(at - now >= last && at - now <= SPARE_CAP);
            (last, now, id) = (at - now, at, id + 1);
            assert_eq!(machine.step(now, Event::Time), [Action::Start(id, Role::Spare)]);
        }
        assert_eq!(last, SPARE_CAP);
        // One that has lasted begins anew.
        now += SPARE_LASTS;
        machine.step(now, Event::Ended(id, KILLED));
        assert_eq!(machine.wake_at(), Some(now + SPARE_AFTER));
    }

    #[test]
    fn a_stop_is_passed_on_and_the_workers_end_is_ours() {
        for (end, code) in [(End::Code(0), 0), (End::Code(3), 3), (KILLED, 137)] {
            let mut machine = with_spare();
            let told = machine.step(ms(5000), Event::Stop);
            assert_eq!(told, [Action::Terminate(2), Action::Terminate(1)]);
            assert_eq!(machine.wake_at(), None);
            assert!(machine.step(ms(5001), Event::Ended(2, End::Code(0))).is_empty());
            assert_eq!(machine.step(ms(9000), Event::Ended(1, end)), [Action::Exit(code)]);
        }
        // While none serves.
        let mut machine = Machine::new();
        machine.step(ms(0), Event::Time);
        machine.step(ms(1), Event::Ended(1, KILLED));
        assert_eq!(machine.step(ms(2), Event::Stop), [Action::Exit(0)]);
    }

    #[test]
    fn a_worker_that_ends_in_order_ends_all() {
        let mut machine = with_spare();
        let ended = machine.step(ms(300), Event::Ended(1, End::Code(0)));
        assert_eq!(ended, [Action::Terminate(2), Action::Exit(0)], "/quitquitquit");
    }

    /// What the system does with the actions, and what must hold of them.
    #[derive(Default)]
    struct System {
        /// Those that run: do they serve?
        running: BTreeMap<Id, bool>,
        stopped: bool,
        exited: bool,
    }

    impl System {
        fn perform(&mut self, actions: Vec<Action>) {
            for action in actions {
                assert!(!self.exited, "{action:?} after the end");
                match action {
                    Action::Start(id, role) => {
                        assert!(!self.stopped, "a start after the stop");
                        let before = self.running.insert(id, matches!(role, Role::Worker { .. }));
                        assert!(before.is_none(), "a number is used twice");
                    }
                    Action::Activate { id, .. } => {
                        assert!(!self.stopped);
                        let before = self.running.insert(id, true);
                        assert_eq!(before, Some(false), "only one that stands by");
                    }
                    Action::Terminate(id) => assert!(self.running.contains_key(&id)),
                    Action::Exit(_) => self.exited = true,
                }
                let serving = self.running.values().filter(|serves| **serves).count();
                assert!(serving <= 1 && self.running.len() <= 2, "{:?}", self.running);
            }
        }
    }

    #[test]
    fn whatever_happens_one_serves_at_most_and_something_goes_on() {
        for seed in 0..2000 {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut machine, mut system, mut now) = (Machine::new(), System::default(), Duration::ZERO);
            system.perform(machine.step(now, Event::Time));
            for _ in 0..200 {
                if system.exited {
                    break;
                }
                now += ms(random.random_range(0..3000) / random.random_range(1..50));
                let running: Vec<Id> = system.running.keys().copied().collect();
                let event = match random.random_range(0..100) {
                    0 => Event::Stop,
                    1..40 if !running.is_empty() => {
                        let id = running[random.random_range(0..running.len())];
                        system.running.remove(&id);
                        let end = [End::Code(0), End::Code(1), KILLED, KILLED, End::NotStarted];
                        Event::Ended(id, end[random.random_range(0..end.len())])
                    }
                    // One that was never started, or has ended already.
                    40 => Event::Ended(random.random_range(0..5) * 1_000_000, KILLED),
                    _ => {
                        now = now.max(machine.wake_at().unwrap_or_default());
                        Event::Time
                    }
                };
                system.stopped |= event == Event::Stop;
                let spare = system.running.iter().find(|(_, serves)| !**serves).map(|(id, _)| *id);
                let serving = system.running.values().any(|serves| *serves);
                let actions = machine.step(now, event);
                let is_end = |action: &Action| matches!(action, Action::Exit(_));
                if let (Some(id), false, false) = (spare, serving, system.stopped || actions.iter().any(is_end)) {
                    let activated = |action: &Action| matches!(action, Action::Activate { id: of, .. } if *of == id);
                    assert!(actions.iter().any(activated), "seed {seed}: a spare serves at once: {actions:?}");
                }
                system.perform(actions);
                let waits = machine.wake_at().is_some() || system.running.values().any(|serves| *serves);
                assert!(system.exited || waits, "seed {seed}: nothing would ever happen again");
                assert!(system.exited || !system.stopped || machine.wake_at().is_none(), "seed {seed}");
            }
        }
    }
}
