//! The supervisor (KARST_WARM_SPARE): a process that only looks after two others, one that serves and one that stands by. When
//! the first one dies, the second one, which knows the mesh and has its certificates, is told to serve, and another one is
//! started to stand by. In a container it is the first process, so kubelet and its back-off are not in the way.
//!
//! It has one thread beside the log's, no runtime, opens no port and reads nothing that comes from outside, so that it has
//! nothing to die of. What it does is decided in [`machine`]. Each process has one end of a pair of sockets as standard input: what
//! is sent there is the order to serve, and its end is the end of the supervisor. With KARST_SURVIVE_KILL a process has sent the other
//! way who holds its open connections ([`Left`]); the order to serve then passes that on. Proven by tests/world (`restarts`).

mod machine;

use crate::config::Config;
use anyhow::Context;
use karst_proxy::bootstrap::LAST_LINES;
use karst_rt::{
    clock::Instant,
    log,
    seqpacket::Channel,
    signals::{Signal, Signals, adopt_orphans, bury_orphans, terminate},
    survive::holder::Left,
};
use machine::{Action, End, Event, Id, Machine, Role};
use std::{
    collections::VecDeque,
    env,
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::ExitStatusExt,
    },
    path::PathBuf,
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
};

/// Looks after the processes until they have ended for good.
///
/// # Errors
/// Options that no process could serve with, or a system that gives no signals.
pub fn run(config: Config) -> anyhow::Result<ExitCode> {
    let config = config.adopt()?;
    // Before there is another thread, which would take some of them.
    let signals = Signals::block().context("cannot block signals")?;
    log::start(config.log.log_format, &config.log.log_level)?;
    if config.survive_kill {
        // Holders, whose parents have been killed.
        adopt_orphans().context("cannot adopt orphans")?;
    }
    let mut processes = Processes {
        program: env::current_exe().context("cannot find this program's file")?,
        arguments: env::args_os().skip(1).collect(),
        survive_kill: config.survive_kill,
        running: vec![],
        left: None,
    };
    let began = Instant::now();
    let mut machine = Machine::new();
    let mut events = VecDeque::from([Event::Time]);
    loop {
        while let Some(event) = events.pop_front() {
            for action in machine.step(began.elapsed(), event) {
                if let Action::Exit(code) = action {
                    tracing::info!(code, "the supervisor ends");
                    std::thread::sleep(LAST_LINES);
                    return Ok(ExitCode::from(code));
                }
                events.extend(processes.perform(action));
            }
        }
        let limit = machine.wake_at().map(|at| at.saturating_sub(began.elapsed()));
        if signals.wait(limit).context("cannot wait for signals")? == Some(Signal::Stop) {
            events.push_back(Event::Stop);
        }
        events.extend(processes.ended());
        if config.survive_kill {
            bury_orphans(|pid| processes.running.iter().any(|process| process.child.id() == pid));
        }
        events.push_back(Event::Time);
    }
}

struct Process {
    id: Id,
    child: Child,
    /// What it is told; and it tells who holds its connections.
    orders: Channel,
    serves: bool,
}

/// The processes that run, the oldest first.
struct Processes {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// May they leave something behind? If not, what they say is not listened to.
    survive_kill: bool,
    running: Vec<Process>,
    /// Who holds the connections of the last one that has served and ended.
    left: Option<Left>,
}

impl Processes {
    /// Does it; an event, if it cannot be done.
    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Start(id, role) => {
                if matches!(role, Role::Worker { .. }) {
                    self.let_go();
                }
                match self.start(id, role) {
                    Ok(()) => return None,
                    Err(e) => {
                        tracing::error!(error = %e, program = %self.program.display(), "cannot start a process");
                        return Some(Event::Ended(id, End::NotStarted));
                    }
                }
            }
            Action::Activate { id, crashes, goes_on } => {
                if !goes_on {
                    self.let_go();
                }
                let left = self.left.take();
                let holder: Vec<BorrowedFd<'_>> = left.iter().map(AsFd::as_fd).collect();
                let process = self.find(id)?;
                process.serves = true;
                // If it has ended too, we will hear of that.
                let told = process.orders.send(&crashes.to_le_bytes(), &holder);
                let connections = if holder.is_empty() { "cut" } else { "go on" };
                tracing::info!(pid = process.child.id(), crashes, ?told, connections, "the spare takes over");
            }
            Action::Terminate(id) => {
                let _ = self.find(id).map(|process| terminate(&process.child));
            }
            // Not for a process.
            Action::Exit(_) => {}
        }
        None
    }

    fn start(&mut self, id: Id, role: Role) -> io::Result<()> {
        let (orders, input) = Channel::pair()?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::from(input));
        match role {
            Role::Worker { crashes } => command.arg("--crashes").arg(crashes.to_string()),
            Role::Spare => command.arg("--standby"),
        };
        let child = command.spawn()?;
        tracing::info!(pid = child.id(), ?role, "process started");
        self.running.push(Process { id, child, orders, serves: matches!(role, Role::Worker { .. }) });
        Ok(())
    }

    /// Closes what the last one has left: its connections, and its ports, which the next one needs.
    fn let_go(&mut self) {
        if let Some(left) = self.left.take() {
            left.end();
        }
    }

    fn find(&mut self, id: Id) -> Option<&mut Process> {
        self.running.iter_mut().find(|process| process.id == id)
    }

    /// Those that have ended since. The younger first: if both have ended, the spare is not told to serve.
    fn ended(&mut self) -> Vec<Event> {
        let mut events = vec![];
        self.running.retain_mut(|process| {
            let end = match process.child.try_wait() {
                Ok(None) => return true,
                Ok(Some(status)) => End::from(status),
                // Nobody else waits for it, so this does not happen; it is not to be waited for without end.
                Err(_) => End::NotStarted,
            };
            match end {
                End::Code(0) => tracing::info!(pid = process.child.id(), "process has ended"),
                End::Code(_) | End::Signal(_) | End::NotStarted => {
                    tracing::warn!(pid = process.child.id(), ?end, "process has ended");
                }
            }
            if process.serves && self.survive_kill {
                self.left = Left::of(&process.orders);
            }
            events.push(Event::Ended(process.id, end));
            false
        });
        events.reverse();
        events
    }
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(number)) => Self::Signal(number),
            // It was not waited for to be stopped or traced, so it has ended.
            (None, None) => Self::Code(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn shell(script: &str) -> Processes {
        let arguments = ["-c", script, "sh"].map(OsString::from).to_vec();
        Processes { program: "/bin/sh".into(), arguments, survive_kill: true, running: vec![], left: None }
    }

    /// The ends of so many processes, in the order in which they are told.
    fn ends(processes: &mut Processes, count: usize) -> Vec<Event> {
        let mut all = vec![];
        for _ in 0..1000 {
            all.extend(processes.ended());
            if all.len() >= count {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        all
    }

    #[test]
    fn a_process_knows_its_role_and_how_it_ends_is_told() {
        // `$1` is the role.
        let mut processes = shell("[ \"$1\" = --crashes ] && exit $2; kill -9 $$");
        assert_eq!(processes.perform(Action::Start(1, Role::Worker { crashes: 7 })), None);
        assert_eq!(ends(&mut processes, 1), [Event::Ended(1, End::Code(7))]);
        assert_eq!(processes.perform(Action::Start(2, Role::Spare)), None);
        assert_eq!(ends(&mut processes, 1), [Event::Ended(2, End::Signal(9))]);
        processes.program = "/nonexistent".into();
        let failed = processes.perform(Action::Start(3, Role::Spare));
        assert_eq!(failed, Some(Event::Ended(3, End::NotStarted)));
    }

    #[test]
    fn a_spare_is_told_on_its_input_and_hears_of_our_end() {
        let mut processes = shell("[ $(head -c 4 | wc -c) = 4 ] && exit 5; exit 6");
        assert_eq!(processes.perform(Action::Start(1, Role::Spare)), None);
        assert_eq!(processes.perform(Action::Activate { id: 1, crashes: 1, goes_on: true }), None);
        assert_eq!(ends(&mut processes, 1), [Event::Ended(1, End::Code(5))]);
        assert_eq!(processes.perform(Action::Start(2, Role::Spare)), None);
        // As the kernel does when we end.
        processes.find(2).unwrap().orders = Channel::pair().unwrap().0;
        assert_eq!(ends(&mut processes, 1), [Event::Ended(2, End::Code(6))]);
        // Who has ended is told nothing.
        assert_eq!(processes.perform(Action::Activate { id: 2, crashes: 2, goes_on: true }), None);
        assert_eq!(processes.perform(Action::Terminate(2)), None);
    }

    /// What has held the connections of one that has ended goes to the next one, or ends, as it is said.
    #[test]
    fn what_a_worker_has_left_goes_to_its_spare_or_ends() {
        for goes_on in [true, false] {
            let mut processes = shell("exec sleep 60");
            for (id, role) in [(1, Role::Worker { crashes: 0 }), (2, Role::Spare)] {
                assert_eq!(processes.perform(Action::Start(id, role)), None);
            }
            // As they would tell: each of a holder of its own.
            let mut holders = vec![];
            for process in &mut processes.running {
                let (supervisor, orders) = Channel::pair().unwrap();
                let (holder, other) = Channel::pair().unwrap();
                Channel::from_fd(orders).unwrap().send(b"h", &[other.as_fd()]).unwrap();
                process.orders = supervisor;
                holders.push(holder);
            }
            let (spare, orders) = Channel::pair().unwrap();
            let kept = std::mem::replace(&mut processes.find(2).unwrap().orders, spare);
            assert!(processes.find(1).unwrap().child.kill().is_ok());
            assert_eq!(ends(&mut processes, 1), [Event::Ended(1, End::Signal(9))]);
            assert!(processes.left.is_some());
            let holder = holders.remove(0);
            // It ends as soon as it hears something; nothing is the end of who might have said it.
            let heard = std::thread::spawn(move || {
                for _ in 0..1000 {
                    match holder.recv(1) {
                        Ok((said, _)) => return said,
                        Err(_) => std::thread::sleep(Duration::from_millis(5)),
                    }
                }
                panic!("it was left alone")
            });
            assert_eq!(processes.perform(Action::Activate { id: 2, crashes: 1, goes_on }), None);
            let (said, passed) = Channel::from_fd(orders).unwrap().recv(8).unwrap();
            assert_eq!((said, passed.len()), (1u32.to_le_bytes().to_vec(), usize::from(goes_on)));
            drop(passed);
            assert_eq!(heard.join().unwrap().is_empty(), goes_on);
            assert!(processes.left.is_none() && processes.find(2).unwrap().serves);
            processes.find(2).unwrap().child.kill().unwrap();
            processes.find(2).unwrap().child.wait().unwrap();
            drop(kept);
        }
    }

    /// Where nothing is to go on, nobody is believed who says that something could.
    #[test]
    fn what_a_worker_says_counts_only_where_it_is_asked_for() {
        let mut processes = Processes { survive_kill: false, ..shell("exec sleep 60") };
        assert_eq!(processes.perform(Action::Start(1, Role::Worker { crashes: 0 })), None);
        let ((supervisor, orders), (_holder, other)) = (Channel::pair().unwrap(), Channel::pair().unwrap());
        Channel::from_fd(orders).unwrap().send(b"h", &[other.as_fd()]).unwrap();
        let process = processes.find(1).unwrap();
        process.orders = supervisor;
        process.child.kill().unwrap();
        assert_eq!(ends(&mut processes, 1), [Event::Ended(1, End::Signal(9))]);
        assert!(processes.left.is_none());
    }

    #[test]
    fn of_two_that_have_ended_the_younger_is_told_first() {
        let mut processes = shell("exit 1");
        for id in [1, 2] {
            assert_eq!(processes.perform(Action::Start(id, Role::Spare)), None);
        }
        // Both have ended before we look.
        for process in &processes.running {
            let file = format!("/proc/{}/stat", process.child.id());
            while !std::fs::read_to_string(&file).unwrap().contains(") Z ") {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        assert_eq!(processes.ended(), [2, 1].map(|id| Event::Ended(id, End::Code(1))));
    }
}
