//! What goes wrong for a user: what failed, why, and the next step. Every error that leaves a verb is one of these.

use std::{fmt, process::ExitCode};

/// How the process ends, so that scripts can tell apart why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Something failed.
    Failed = 1,
    /// It cannot be said (explain).
    Unknown = 2,
    /// The command line is wrong (sysexits' EX_USAGE, as istioctl).
    Usage = 64,
    /// A file cannot be read or is no valid manifest (EX_DATAERR, as istioctl).
    Data = 65,
    /// What was checked has findings at or above the threshold (as istioctl's analyze).
    Findings = 79,
    /// Whoever reads the answer has enough (as a shell tells of a program that SIGPIPE has ended). Nothing is said.
    Closed = 141,
}

/// An error of a user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    what: String,
    why: String,
    next: String,
    exit: Exit,
}

impl Problem {
    /// What failed, on what object.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), why: String::new(), next: String::new(), exit: Exit::Failed }
    }
    /// A wrong command line, and what to type instead.
    pub fn usage(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(what).next(next).exit(Exit::Usage)
    }
    /// Why.
    #[must_use]
    pub fn because(mut self, why: impl fmt::Display) -> Self {
        self.why = why.to_string();
        self
    }
    /// The next step.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }
    /// How the process ends by it.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
    /// The status of the process.
    pub fn status(&self) -> Exit {
        self.exit
    }
    /// The next step; empty if there is none to name.
    pub fn next_step(&self) -> &str {
        &self.next
    }
    /// For `main`.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.why.is_empty() {
            write!(f, ": {}", self.why)?;
        }
        if !self.next.is_empty() {
            write!(f, "\n  next: {}", self.next)?;
        }
        Ok(())
    }
}
