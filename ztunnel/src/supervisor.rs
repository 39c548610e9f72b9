//! The supervisor (KARST_WARM_SPARE): a process that only looks after two others, one that serves and one that stands by. When
//! the first one dies, the second one, which knows the mesh and has its certificates, is told to serve, and another one is
//! started to stand by. In a container it is the first process, so kubelet and its back-off are not in the way.
//!
//! It has one thread beside the log's, no runtime, opens no port and reads nothing that comes from outside, so that it has
//! nothing to die of. What it does is decided in [`machine`]. Each process has a pipe from it as standard input: what is
//! written there is the order to serve, and its end is the end of the supervisor. Proven by tests/world (`restarts`).

mod machine;

use crate::config::Config;
use anyhow::Context;
use karst_proxy::bootstrap::LAST_LINES;
use karst_rt::{
    clock::Instant,
    log,
    signals::{Signal, Signals, terminate},
};
use machine::{Action, End, Event, Id, Machine, Role};
use std::{
    collections::VecDeque,
    env,
    ffi::OsString,
    io::{self, Write},
    os::unix::process::ExitStatusExt,
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
    let mut processes = Processes {
        program: env::current_exe().context("cannot find this program's file")?,
        arguments: env::args_os().skip(1).collect(),
        running: vec![],
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
        events.push_back(Event::Time);
    }
}

struct Process {
    id: Id,
    child: Child,
}

/// The processes that run, the oldest first.
struct Processes {
    program: PathBuf,
    arguments: Vec<OsString>,
    running: Vec<Process>,
}

impl Processes {
    /// Does it; an event, if it cannot be done.
    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Start(id, role) => match self.start(id, role) {
                Ok(()) => return None,
                Err(e) => {
                    tracing::error!(error = %e, program = %self.program.display(), "cannot start a process");
                    return Some(Event::Ended(id, End::NotStarted));
                }
            },
            Action::Activate { id, crashes } => {
                let process = self.find(id)?;
                // If it has ended too, we will hear of that.
                let told = process.child.stdin.as_mut().map(|orders| orders.write_all(&crashes.to_le_bytes()));
                tracing::info!(pid = process.child.id(), crashes, ?told, "the spare takes over");
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
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::piped());
        match role {
            Role::Worker { crashes } => command.arg("--crashes").arg(crashes.to_string()),
            Role::Spare => command.arg("--standby"),
        };
        let child = command.spawn()?;
        tracing::info!(pid = child.id(), ?role, "process started");
        self.running.push(Process { id, child });
        Ok(())
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
        Processes { program: "/bin/sh".into(), arguments, running: vec![] }
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
    fn a_spare_is_told_by_its_pipe_and_hears_of_our_end() {
        let mut processes = shell("[ $(head -c 4 | wc -c) = 4 ] && exit 5; exit 6");
        assert_eq!(processes.perform(Action::Start(1, Role::Spare)), None);
        assert_eq!(processes.perform(Action::Activate { id: 1, crashes: 1 }), None);
        assert_eq!(ends(&mut processes, 1), [Event::Ended(1, End::Code(5))]);
        assert_eq!(processes.perform(Action::Start(2, Role::Spare)), None);
        // As the kernel does when we end.
        drop(processes.find(2).and_then(|process| process.child.stdin.take()));
        assert_eq!(ends(&mut processes, 1), [Event::Ended(2, End::Code(6))]);
        // Who has ended is told nothing.
        assert_eq!(processes.perform(Action::Activate { id: 2, crashes: 2 }), None);
        assert_eq!(processes.perform(Action::Terminate(2)), None);
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
