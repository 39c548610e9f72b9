//! Signals as a process without a runtime takes them: blocked, and waited for one after the other. Nothing runs in a handler, and
//! none is lost between two looks. (Where there is a runtime, it is `tokio::signal` that waits.)
#![allow(unsafe_code, reason = "sigset_t, pthread_sigmask, sigtimedwait, kill, prctl and waitid")]

use std::{io, process::Child, ptr, time::Duration};

/// Those that are waited for.
const WANTED: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD];

/// What a signal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The process is to end: SIGTERM or SIGINT.
    Stop,
    /// One child or several have ended: signals of a kind do not queue up.
    Child,
}

/// The blocked signals.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them in this thread, and in the threads that it starts from now on. What is blocked waits, also in the first process
    /// of a container, for which the kernel drops signals that it does not handle. Processes that are started inherit this, and
    /// begin with [`unblock`].
    ///
    /// # Errors
    /// Those of `pthread_sigmask`.
    pub fn block() -> io::Result<Self> {
        let set = wanted();
        mask(libc::SIG_BLOCK, &set)?;
        Ok(Self(set))
    }

    /// Waits for the next one, for `limit` at most. None: there was none, and the caller should look at its own time.
    ///
    /// # Errors
    /// Those of `sigwaitinfo` and `sigtimedwait`.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<Option<Signal>> {
        let number = match limit {
            // SAFETY: the set outlives the call, and nothing is to be written.
            None => unsafe { libc::sigwaitinfo(&raw const self.0, ptr::null_mut()) },
            Some(limit) => {
                let limit = libc::timespec {
                    tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
                    tv_nsec: limit.subsec_nanos().into(),
                };
                // SAFETY: set and time outlive the call, and nothing is to be written.
                unsafe { libc::sigtimedwait(&raw const self.0, ptr::null_mut(), &raw const limit) }
            }
        };
        match number {
            libc::SIGTERM | libc::SIGINT => Ok(Some(Signal::Stop)),
            libc::SIGCHLD => Ok(Some(Signal::Child)),
            _ => match io::Error::last_os_error() {
                // The time is over; or the process was stopped, and goes on.
                e if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(None),
                e => Err(e),
            },
        }
    }
}

/// Lets the signals through that the parent had blocked. To be called before there is another thread.
///
/// # Errors
/// Those of `pthread_sigmask`.
pub fn unblock() -> io::Result<()> {
    mask(libc::SIG_UNBLOCK, &wanted())
}

/// Tells a child that has not been waited for to end (SIGTERM).
///
/// # Errors
/// Those of `kill`.
pub fn terminate(child: &Child) -> io::Result<()> {
    let pid = libc::pid_t::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: no memory is involved; until it is waited for, the number is the child's.
    if unsafe { libc::kill(pid, libc::SIGTERM) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// From now on children of ours whose parent has ended are ours, as they are the first process's of a container.
///
/// # Errors
/// Those of `prctl`.
pub fn adopt_orphans() -> io::Result<()> {
    let (yes, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: no memory is involved.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, yes, none, none, none) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets go of children that have ended and that nobody waits for: all but those that `is_own` knows.
pub fn bury_orphans(is_own: impl Fn(u32) -> bool) {
    loop {
        // SAFETY: all-zero is a valid siginfo_t, and the kernel writes to that local only.
        let pid = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            if libc::waitid(libc::P_ALL, 0, &raw mut info, flags) == 0 { info.si_pid() } else { 0 }
        };
        // One of our own is looked at by who has started it, and the others after that.
        if pid <= 0 || u32::try_from(pid).is_ok_and(&is_own) {
            return;
        }
        // SAFETY: no memory is involved. It has ended, so this does not wait.
        unsafe { libc::waitpid(pid, ptr::null_mut(), libc::WNOHANG) };
    }
}

fn wanted() -> libc::sigset_t {
    // SAFETY: all-zero is a valid sigset_t, and the calls write to that local only; they fail for invalid signals alone.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in WANTED {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

fn mask(how: libc::c_int, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the kernel reads a set that outlives the call; what was before is not asked for.
    match unsafe { libc::pthread_sigmask(how, ptr::from_ref(set), ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own: what is blocked is the thread's, and goes with it.
    #[test]
    fn a_blocked_signal_waits_until_it_is_asked_for() {
        let run = || {
            let signals = Signals::block().unwrap();
            assert_eq!(signals.wait(Some(Duration::from_millis(1))).unwrap(), None);
            // SAFETY: no preconditions; the signal is this thread's, which blocks it.
            assert_eq!(unsafe { libc::raise(libc::SIGTERM) }, 0);
            assert_eq!(signals.wait(Some(Duration::from_secs(5))).unwrap(), Some(Signal::Stop));
            // SAFETY: as above.
            assert_eq!(unsafe { libc::raise(libc::SIGINT) }, 0);
            assert_eq!(signals.wait(None).unwrap(), Some(Signal::Stop));
            assert_eq!(signals.wait(Some(Duration::ZERO)).unwrap(), None);
            unblock().unwrap();
        };
        std::thread::spawn(run).join().unwrap();
    }

    #[test]
    fn a_child_is_told_to_end() {
        use std::os::unix::process::ExitStatusExt;
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        terminate(&child).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
    }
}
